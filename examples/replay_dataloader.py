"""PyTorch's DataLoader over a replay: worker processes draw, each its own batches, and a seed repeats them all.

python examples/replay_dataloader.py          # by fork and by spawn; some seconds
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from fastrl.replay import PrioritizedReplayBuffer

NUM_ENVS, BATCH_SIZE, BATCHES, WORKERS = 8, 32, 3, 2


class Draws(IterableDataset[dict[str, torch.Tensor]]):
    """Batches of a replay as dictionaries of tensors, ``BATCHES`` from each worker in each epoch.

    A worker has the replay as it was when the epoch began. New rows and priorities reach it with the next epoch.
    """

    def __init__(self, replay: PrioritizedReplayBuffer) -> None:
        self.replay = replay

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = get_worker_info()
        if worker is not None:  # its copy of the replay has the generator of all the others, in the same state
            self.replay.reseed(worker.seed)  # differs from worker to worker and from epoch to epoch
        for _ in range(BATCHES):
            batch = self.replay.sample(BATCH_SIZE, beta=0.4)
            yield {name: torch.from_numpy(getattr(batch, name)) for name in batch.__slots__}


def filled() -> PrioritizedReplayBuffer:
    """Return a replay with some rows in it."""
    replay = PrioritizedReplayBuffer(
        capacity=4_000, num_envs=NUM_ENVS, obs_shape=(4,), obs_dtype=np.float32, n_step=3, seed=0
    )
    rng, no = np.random.default_rng(0), np.zeros(NUM_ENVS, bool)
    for _ in range(400):
        obs = rng.random((NUM_ENVS, 4), np.float32)
        replay.add(obs, rng.integers(2, size=NUM_ENVS), rng.random(NUM_ENVS), no, no)
    return replay


def draw(start_method: str, seed: int, epochs: int = 2) -> list[tuple[int, ...]]:
    """Return the names of the rows of each batch of a few epochs."""
    replay = filled()
    torch.manual_seed(seed)  # the seeds of workers follow from it
    loader = DataLoader(
        Draws(replay), batch_size=None, num_workers=WORKERS, multiprocessing_context=start_method
    )  # fmt: skip
    drawn = []
    for _ in range(epochs):
        for batch in loader:
            drawn.append(tuple(batch["index"].tolist()))
            # Here is the update. An index names the row, so that priorities find it, or are ignored if it is gone.
            replay.update_priorities(batch["index"].numpy(), batch["reward"].abs().numpy())
    return drawn


def main() -> None:
    """Show that all batches differ, and that a seed repeats them, whichever way the workers are started."""
    by_fork, by_spawn = draw("fork", seed=1), draw("spawn", seed=1)
    print(f"{len(set(by_fork))} of {len(by_fork)} batches differ")
    print("the same by fork and by spawn" if by_fork == by_spawn else "other batches by spawn than by fork")


if __name__ == "__main__":
    main()
