"""Every Atari game that EnvPool has starts, steps, evaluates and films.

All of them take two minutes: ``make games``. Those that differ in kind are among the tests of every day.
"""

import numpy as np
import pytest

pytest.importorskip("envpool")
pytest.importorskip("ale_py")
pytest.importorskip("cv2")

from fastrl.envs.ale import SCREEN_HEIGHT
from fastrl.envs.atari import AtariEnvs
from fastrl.envs.names import game_names
from fastrl.envs.rules import EvaluationRules
from fastrl.play.games import play_games

KINDS = {
    "breakout": "the ball waits for FIRE",
    "asterix": "no FIRE",
    "backgammon": "no NOOP, and no move without dice",
    "freeway": "no FIRE, no lives",
    "lost_luggage": "nine actions in all, none of them FIRE",
    "pooyan": "a screen of 220 lines",
    "tic_tac_toe_3d": "spelt in two ways",
}
ATARI = [name for name in game_names() if name != "catch"]
GAMES = [pytest.param(game, marks=() if game in KINDS else pytest.mark.slow) for game in ATARI]


@pytest.fixture
def act():
    """An act function that plays at random; `EvaluationRules(epsilon=1)` draws the actions."""
    return lambda stacks: np.zeros(len(stacks), int)


def test_the_games_that_differ_in_kind_are_among_envpools():
    assert set(KINDS) <= set(ATARI)


@pytest.mark.parametrize("game", GAMES)
def test_a_game_starts_and_steps(game):
    envs, rng = AtariEnvs(game, 2, seed=1, threads=1), np.random.default_rng(0)
    assert len(envs.action_names) == envs.num_actions
    frames = [envs.reset().frame]
    for _ in range(150):
        step = envs.step(rng.integers(envs.num_actions, size=2))
        assert np.isfinite(step.reward).all()
        frames.append(step.frame)
    envs.close()
    assert frames[0].shape == (2, 84, 84)
    for one in np.swapaxes(frames, 0, 1):
        assert len(np.unique(one, axis=0)) > 2  # something moves


@pytest.mark.parametrize("backend", ["envpool", "gymnasium"])
@pytest.mark.parametrize("game", GAMES)
def test_a_game_evaluates_and_films(game, backend, act):
    rules = EvaluationRules(epsilon=1, max_steps=100)
    games = play_games(game, act, 1, seed=1, rules=rules, backend=backend, film=True, threads=1)
    assert 0 < games.lengths[0] <= 100
    assert len(games.film) == games.lengths[0] + 1
    assert games.film[0].shape[0] >= SCREEN_HEIGHT
    assert games.film[0].shape[1:] == (160, 3)
    assert len(np.unique(np.array(games.film)[:, ::7, ::5], axis=0)) > 1


@pytest.mark.parametrize("game", ["frogger", "journey_escape", "pacman"])
def test_both_makers_of_games_show_the_same_lines_of_a_screen(game):
    """Without a FIRE and with one no-op, they open in the same frame; the last two draw 230 and 250 lines."""
    rng = np.random.default_rng(0)
    actions = rng.integers(5, size=31)

    def seen(backend):
        shown = []

        def act(stacks):
            shown.append(stacks[0].copy())
            return np.full(len(stacks), actions[len(shown)])

        play_games(game, act, 1, seed=1, backend=backend, rules=EvaluationRules(epsilon=0, noop_max=1, max_steps=30))
        return np.array(shown)

    assert np.array_equal(seen("envpool"), seen("gymnasium"))
