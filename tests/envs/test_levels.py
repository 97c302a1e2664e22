"""Levels of random play and of a human: hand-made numbers, and games that have none."""

import pytest

from fastrl.envs.levels import ATARI_5, LEVELS, atari_5_score, human_normalized
from fastrl.envs.names import game_names


def test_every_game_of_the_table_is_one_that_can_be_played():
    assert len(LEVELS) == 57
    assert set(LEVELS) <= set(game_names())


def test_a_human_is_above_random_play():
    assert all(random < human for random, human in LEVELS.values())


@pytest.mark.parametrize(
    ("game", "score", "expected"),
    [
        ("breakout", 1.7, 0.0),
        ("breakout", 30.5, 1.0),
        ("breakout", 59.3, 2.0),
        ("double_dunk", -17.5, 0.5),
        ("skiing", -29859.3, -1.0),
    ],
)
def test_a_score_is_a_share_of_the_distance_to_a_human(game, score, expected):
    assert human_normalized(game, score) == pytest.approx(expected)


@pytest.mark.parametrize("game", ["catch", "my_module:make_env", "backgammon"])
def test_games_without_levels_have_no_share(game):
    assert human_normalized(game, 1.0) is None


def at(share):
    """Scores at one share of the distance to a human."""
    return {game: LEVELS[game][0] + share * (LEVELS[game][1] - LEVELS[game][0]) for game in ATARI_5}


def test_the_score_of_atari_5_by_hand():
    assert atari_5_score(at(0)) == atari_5_score(at(-3)) == 0  # no game pulls below random play
    assert atari_5_score(at(0.99)) == pytest.approx(100**0.9653 - 1)  # the weights add up to 0.9653
    assert atari_5_score(at(0) | {"battle_zone": LEVELS["battle_zone"][1]}) == pytest.approx(101**0.382 - 1)
    with pytest.raises(KeyError, match="qbert"):
        atari_5_score({game: 1.0 for game in ATARI_5 if game != "qbert"})
