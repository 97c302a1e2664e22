"""What callbacks tell the screen and TensorBoard, on small runs of Catch."""

from __future__ import annotations

import pytest
from test_run import QUICK, start

from fastrl.dqn.callbacks import Callback, Clock


def test_the_screen_is_told_scores_stages_and_what_comes_next(tmp_path):
    seen = []

    class Look(Callback):
        def on_log(self, run, metrics):
            seen.append((run.frames // 1_000, dict(run.reporter.extras.due)))

    ended = start(QUICK.replace(total_frames=3_000, log_every_frames=400), tmp_path, Look())
    assert seen[0] == (0, {"evaluation": 2_000, "save": 1_000})
    assert (1, {"evaluation": 2_000, "save": 2_000}) in seen
    assert seen[-1] == (3, {"evaluation": 3_000, "save": 3_000})  # both come at the end
    assert sum(ended.reporter.extras.shares.values()) == pytest.approx(1)
    assert set(ended.reporter.extras.scores) == {-1.0, 1.0}


def test_a_clock_says_when_it_is_due_next():
    clock = Clock(100)
    clock.set(250)
    assert clock.next == 300
    assert not clock.due(299)
    assert clock.due(510)
    assert clock.next == 600
