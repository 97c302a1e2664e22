"""Fixtures that several files of tests share."""

from __future__ import annotations

import pytest


@pytest.fixture
def real_games_afterwards(monkeypatch):
    """Let a test put games in NumPy in the place of EnvPool's."""
    from fastrl.dqn import build, run

    monkeypatch.setattr(build, "_build_envs", build._build_envs)
    monkeypatch.setattr(run, "Learner", run.Learner)
