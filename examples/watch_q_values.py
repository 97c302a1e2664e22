"""A callback of your own: draw what the network thinks of one fixed observation, as an image in TensorBoard.

python examples/watch_q_values.py            # a short run of Catch; then: tensorboard --logdir runs
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fastrl import Batch, Callback, Run, TrainingRun, train


class WatchQValues(Callback):
    """At each line of metrics, adds one column per action to a picture of Q-values over time."""

    def __init__(self) -> None:
        self.obs: torch.Tensor | None = None
        self.columns: list[np.ndarray] = []

    def on_update(self, run: TrainingRun, batch: Batch) -> None:
        if self.obs is None:
            self.obs = torch.as_tensor(batch.obs[:1]).clone()  # the first ever learned from; on a GPU it lies there

    def on_log(self, run: TrainingRun, metrics: dict[str, float]) -> None:
        if self.obs is None:
            return
        q = run.learner.q_values(self.obs)[0]
        self.columns.append(q)
        metrics["mine/q_spread"] = float(q.max() - q.min())
        run.reporter.image("mine/q_over_time", self._picture(run.folder / "q_over_time.gif"), run.frames)

    def _picture(self, gif: Path) -> Path:
        """Write actions x time as a grey picture; return its path."""
        q = np.stack(self.columns, axis=1)
        grey = ((q - q.min()) / max(float(np.ptp(q)), 1e-9) * 255).astype(np.uint8)
        content = io.BytesIO()
        Image.fromarray(grey).resize((grey.shape[1] * 8, grey.shape[0] * 16), Image.Resampling.NEAREST).save(
            content, "GIF"
        )
        gif.write_bytes(content.getvalue())
        return gif


def main(total_frames: int = 10_000, runs_dir: str = "runs") -> Run:
    return train("catch", [WatchQValues()], total_frames=total_frames, runs_dir=runs_dir, compile=False)


if __name__ == "__main__":
    main()
