"""What type checkers make of `from fastrl import ...`; `make types` reads this file, and nothing runs it."""

from typing import Any, assert_type

import fastrl
from fastrl import Callback, DQNConfig, Run, SarsaConfig, TrainingRun, config_for, load_agent, play_games, train
from fastrl.play.games import Games
from fastrl.sarsa.run import SarsaRun


class Mine(Callback):
    def on_end(self, run: TrainingRun) -> None:
        assert_type(run.frames, int)


assert_type(train("breakout", [Mine()], total_frames=40_000), Run | Any)
assert_type(train(resume="runs/NAME"), Run | Any)
assert_type(train(DQNConfig()), Run)
assert_type(train(lambda: None), Run)
assert_type(fastrl.train(SarsaConfig(), resume="runs/NAME"), SarsaRun)
assert_type(config_for("breakout", device="cpu", seed=2), DQNConfig)
assert_type(play_games("breakout", fastrl.greedy(load_agent("breakout").network), 10, seed=0), Games)
train(42)  # type: ignore[call-overload]
