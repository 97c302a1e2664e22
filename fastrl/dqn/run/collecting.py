"""What a run says of its collectors."""

from __future__ import annotations

from fastrl.distributed.collectors import Collectors
from fastrl.dqn.callbacks import Callback, TrainingRun


class CollectorReport(Callback):
    """Adds the collectors' figures to each line of metrics and to the panel; says which were lost.

    Parameters
    ----------
    collectors : Collectors
        Those of the run.
    """

    key = "collectors"

    def __init__(self, collectors: Collectors) -> None:
        self._collectors = collectors

    def on_start(self, run: TrainingRun) -> None:
        self._collectors.say = run.reporter.line

    def on_log(self, run: TrainingRun, metrics: dict[str, float]) -> None:
        found = self._collectors.report()
        metrics |= found
        least, median, most = (
            found[f"time/collectors_rows_per_second_{which}"] for which in ("least", "median", "most")
        )
        words = [
            f"{found['collectors/alive']:.0f} of {run.config.collectors} alive",
            f"rows/s {least:,.0f} {median:,.0f} {most:,.0f} (least, median, most)",
            f"chunks ready {found['time/collectors_chunks_ready']:.1f}",
            f"the learner waits {found['time/collectors_waiting']:.0%}",
        ]
        if "collectors/staleness_updates" in found:
            words.append(f"weights {found['collectors/staleness_updates']:,.0f} updates old")
        if found["collectors/lost"]:
            words.append(f"lost {found['collectors/lost']:.0f}, restarted {found['collectors/restarted']:.0f}")
        run.reporter.extras.more["collect"] = words
