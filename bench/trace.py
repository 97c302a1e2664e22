"""A picture of the loop in time: what host, environments and GPU did at each moment, for chrome://tracing or Perfetto.

``python bench/trace.py trace.json.gz`` warms the GPU preset up (the CPU one where there is no GPU), records a few
vector steps with torch.profiler, and says how much of that time the GPU had something to do. ``--summary`` keeps that
as JSON, before the trace itself is written, which takes long.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from loops import DEVICE, NEVER, run_in_progress, seconds_of
from machine_card import machine_card

from fastrl.base.stopwatch import Stopwatch

import torch  # isort: skip  # after fastrl, which sets how its threads wait
from torch.profiler import ProfilerActivity, profile, record_function  # isort: skip


class NamedLaps(Stopwatch):
    """The loop's stopwatch, which also marks the end of each stage in the trace."""

    def __call__(self, stage: str) -> None:
        super().__call__(stage)
        with record_function(f"end of {stage}"):
            pass


def busy_seconds(intervals: Iterable[tuple[float, float]]) -> float:
    """Return how long at least one of the intervals, in microseconds, lasts."""
    busy, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return busy / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="where the trace goes, .json or .json.gz")
    parser.add_argument("--summary", type=Path, help="where the figures go, .json")
    parser.add_argument("--steps", type=int, default=40, help="vector steps to record")
    parser.add_argument("--samples-per-step", type=float, help="samples learned per agent step (default: the preset's)")
    args = parser.parse_args()
    settings = {"learn_start_steps": 2_000, "capacity": 100_000, "log_every_frames": NEVER}
    if args.samples_per_step:
        settings["samples_per_step"] = args.samples_per_step
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (DEVICE == "cuda")
    with tempfile.TemporaryDirectory() as folder, run_in_progress(folder, updates=50, **settings) as run:

        def play():
            for _ in range(args.steps):
                run.step()

        with profile(activities=activities, acc_events=True) as profiler:
            laps = run.lap = NamedLaps()
            before, seconds = run.steps, seconds_of(play)
        steps = run.steps - before
    rate, shares = steps / seconds, {stage: spent / seconds for stage, spent in laps.seconds.items()}
    summary: dict[str, Any] = {"machine": machine_card(), "agent_steps_per_second": rate, "share_of_host": shares}
    print(f"{steps:,} agent steps in {seconds:.3f} s: {rate:,.0f} a second, traced")
    for stage, share in sorted(shares.items(), key=lambda item: -item[1]):
        print(f"  {stage:13} {share:6.1%} of the host's time")
    if DEVICE == "cuda":
        kernels = [e.time_range for e in profiler.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        summary["gpu_busy"] = busy_seconds((r.start, r.end) for r in kernels) / seconds
        print(f"  the GPU was busy for {summary['gpu_busy']:.1%} of the time")
    if args.summary:
        args.summary.write_text(json.dumps(summary, indent=1) + "\n")
    profiler.export_chrome_trace(args.path)


if __name__ == "__main__":
    main()
