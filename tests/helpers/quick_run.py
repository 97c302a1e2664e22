"""Whole runs, small: on Catch in eager float32 on one thread, and of custom environments."""

from __future__ import annotations

from fastrl import config_for
from fastrl.base.stop import Stop
from fastrl.config import PRESETS
from fastrl.dqn.callbacks import Callback
from fastrl.dqn.run import Run, train
from fastrl.envs.names import name_of

QUICK = PRESETS["catch"].config.replace(
    compile=False, precision="float32", total_frames=4_000, learn_start_steps=400, log_every_frames=500,
    evaluate_every_frames=2_000, checkpoint_every_frames=1_000, evaluate_episodes=3, final_episodes=4,
)  # fmt: skip


class Scores(Callback):
    """Notes the scores of the last evaluation."""

    key = "scores"

    def on_evaluation(self, run, games):
        self.scores = games.scores


def start(config, tmp_path, *hooks, name="run", **kwargs):
    return train(config.replace(runs_dir=str(tmp_path), name=name), hooks, quiet=True, **kwargs)


def config_of(make_env, tmp_path, **settings):
    """Return the settings of a short run of a custom environment."""
    settings = {
        "compile": False, "device": "cpu", "runs_dir": str(tmp_path), "total_frames": 600, "learn_start_steps": 60,
        "n_step": 1, "hidden": 16, "batch_size": 32, "evaluate_episodes": 2, "final_episodes": 3, **settings,
    }  # fmt: skip
    return config_for(make_env).replace(game=name_of(make_env), **settings)


def played(config, steps):
    """Return a run that was closed after so many vector steps."""
    run = Run(config, [], Stop(), resume=None, quiet=True)
    with run.reporter:
        run.start()
        for _ in range(steps):
            run.step()
    run.close()
    return run
