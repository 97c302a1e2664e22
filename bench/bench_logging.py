"""What watching costs: a line of metrics with its histograms, the norms of an update, a picture of the panel.

Each is set against the loop that it is about, in turns and in one process: a line comes every `log_every_frames`, norms
every 100 updates, a picture twice a second. The aim is less than 1 % for all together.
"""

from __future__ import annotations

import io

import numpy as np
import pytest

pytest.importorskip("torch")

from loops import NEVER, run_in_progress, seconds_of

from fastrl.config import preset_for
from fastrl.dqn.run.loop import MEASURE_EVERY_UPDATES
from fastrl.dqn.run.metrics import Metrics
from fastrl.runs.panel import REDRAW_EVERY_SECONDS, Panel

ROUNDS = 9
VECTOR_STEPS = 8
"""Vector steps of the loop in one round."""


def make_panel(run, monkeypatch):
    """Return a panel that draws all it can, unseen."""
    rich = pytest.importorskip("rich.console")
    console = rich.Console(file=io.StringIO(), force_terminal=True, width=100, height=30)
    monkeypatch.setattr(rich, "Console", lambda: console)
    panel = Panel(run.config.total_frames, "frames")
    panel.extras.scores = list(range(100))
    panel.extras.shares = dict.fromkeys("act environments add sample update priorities callbacks".split(), 1 / 7)
    panel.extras.due |= {"evaluation": 1_000_000, "save": 1_000_000}
    panel.show(0, {"score": "1", "epsilon": 0.1, "loss": "0.1"})
    return panel


@pytest.mark.benchmark(group="watching, beside 8 vector steps of Breakout")
def bench_logging(benchmark, tmp_path, capsys, monkeypatch):
    settings = {"learn_start_steps": 1_000, "capacity": 60_000, "log_every_frames": NEVER}
    settings["compile"] = benchmark.enabled  # a pass that measures nothing need not wait for the compiler
    with run_in_progress(tmp_path, updates=2, **settings) as run:
        config, learner = run.config, run.learner
        metrics = next(callback for callback in run.callbacks if isinstance(callback, Metrics))
        panel, batch = make_panel(run, monkeypatch), run.buffer.sample(config.batch_size, 0.5)
        log_every_steps = preset_for("breakout", learner.device.type).config.log_every_frames // config.frame_skip

        def loop():
            for _ in range(VECTOR_STEPS):
                run.step()

        def line():
            metrics._log(run)

        def prepare_line():
            learner.learn(batch, measure=True)
            metrics._batch, metrics._actions = batch, [np.zeros(log_every_steps, np.int64)]

        stages = {
            "loop": loop,
            "prepare": prepare_line,
            "line": line,
            "update": lambda: learner.learn(batch),
            "measured_update": lambda: learner.learn(batch, measure=True),
            "picture": panel.draw,
        }
        rounds = 1 if benchmark.disabled else ROUNDS
        turns = [{name: seconds_of(stage) for name, stage in stages.items()} for _ in range(rounds)]
        benchmark.pedantic(line, setup=prepare_line, rounds=1)
        panel.close()
    medians = {name: float(np.median([turn[name] for turn in turns])) for name in stages if name != "prepare"}
    norms = float(np.median([turn["measured_update"] - turn["update"] for turn in turns]))
    loop_per_step = medians["loop"] / (VECTOR_STEPS * config.group_size)
    updates_per_step = config.samples_per_step / config.batch_size
    shares = {
        "line_share": medians["line"] / (log_every_steps * loop_per_step),
        "norms_share": norms * updates_per_step / MEASURE_EVERY_UPDATES / loop_per_step,
        "picture_share": medians["picture"] / REDRAW_EVERY_SECONDS,
    }
    benchmark.extra_info |= {f"{name}_ms": 1e3 * seconds for name, seconds in medians.items()}
    benchmark.extra_info |= {"norms_ms": 1e3 * norms} | shares | {"all_shares": sum(shares.values())}
    with capsys.disabled():
        print("\n" + "\n".join(f"  {name:26} {value:10.4f}" for name, value in benchmark.extra_info.items()))
