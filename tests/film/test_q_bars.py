"""Q-values beside pictures: which bar is how long, which one is marked, and what reaches the film."""

from __future__ import annotations

import io

import numpy as np
import pytest

pytest.importorskip("PIL")
pytest.importorskip("envpool")
pytest.importorskip("ale_py")
pytest.importorskip("cv2")

from fastrl.envs.rules import EvaluationRules
from fastrl.film.q_bars import BAR, CHOSEN, GROUND, LETTERS, ROW, WIDTH, Bars
from fastrl.film.video import gif_bytes
from fastrl.play.games import play_games

NAMES = ("NOOP", "FIRE", "RIGHT", "LEFT")
PICTURE = np.random.default_rng(0).integers(256, size=(210, 160, 3), dtype=np.uint8)


def lengths(picture, colour=BAR, actions=4):
    """Columns of a colour in each row of bars, below the words."""
    rows = min(ROW, len(picture) // actions)
    return [int((picture[row * rows + 3, -WIDTH:] == colour).all(axis=1).sum()) for row in range(actions)]


def test_a_picture_is_kept_as_it_is_and_the_bars_are_as_long_as_the_values_are_high():
    picture = Bars(NAMES).beside(PICTURE, np.array([0.0, 1.0, 2.0, 4.0]), 0)
    assert picture.shape == (210, 160 + WIDTH, 3)
    assert picture.dtype == np.uint8
    assert np.array_equal(picture[:, :160], PICTURE)
    nothing, one, two, all_of_it = lengths(picture)
    assert nothing == 0
    assert (two, all_of_it) == pytest.approx((2 * one, 4 * one), abs=2)
    assert all_of_it > 0.9 * WIDTH


def test_the_action_taken_is_marked_the_best_or_not():
    values = np.array([1.0, 2.0, 3.0, 4.0])
    picture = Bars(NAMES).beside(PICTURE, values, 1)
    assert [bool(n) for n in lengths(picture, CHOSEN)] == [False, True, False, False]
    assert [bool(n) for n in lengths(picture, BAR)] == [False, False, True, True]
    framed = (picture[:, 160] == LETTERS).all(axis=1)
    assert framed.nonzero()[0].tolist() == list(range(ROW, 2 * ROW))


def test_the_scale_only_ever_grows():
    bars = Bars(NAMES)
    first = lengths(bars.beside(PICTURE, np.array([0.0, 1.0, 2.0, 4.0])))
    bars.beside(PICTURE, np.array([0.0, 0.0, 0.0, 8.0]))
    later = lengths(bars.beside(PICTURE, np.array([0.0, 1.0, 2.0, 4.0])))
    assert later[3] == pytest.approx(first[3] / 2, abs=1)


@pytest.mark.parametrize("values", [[-np.inf, 2.0, -np.inf, 2.0], [-np.inf, 1.0, -np.inf, 2.0]])
def test_an_action_that_is_not_allowed_has_no_bar(values):
    before, _, none, best = lengths(Bars(NAMES).beside(PICTURE, np.array(values)))
    assert before == none == 0
    assert best > 0.9 * WIDTH


def test_where_nothing_is_decided_the_names_stand_alone():
    picture = Bars(NAMES).beside(PICTURE)
    assert lengths(picture) == lengths(picture, CHOSEN) == [0] * 4
    for row in range(4):
        assert (picture[row * ROW : (row + 1) * ROW, 160:] == LETTERS).all(axis=2).any()
    assert not (picture[4 * ROW :, 160:] != GROUND).any()


def test_values_that_are_no_numbers_are_written_and_have_no_bar():
    bars = Bars(NAMES)
    picture = bars.beside(PICTURE, np.array([np.nan, np.inf, 1.0, 2.0]), 3)
    assert lengths(picture)[:3] == [0, 0, 0]
    assert lengths(bars.beside(PICTURE, np.full(4, 7.0)), BAR)[0] > 0.9 * WIDTH  # highest so far


def test_all_eighteen_actions_fit_and_four_colours_are_all():
    names = "NOOP FIRE UP RIGHT LEFT DOWN UPRIGHT UPLEFT DOWNRIGHT DOWNLEFT UPFIRE RIGHTFIRE LEFTFIRE DOWNFIRE".split()
    names += "UPRIGHTFIRE UPLEFTFIRE DOWNRIGHTFIRE DOWNLEFTFIRE".split()
    picture = Bars(names).beside(PICTURE, np.linspace(-99, 99, 18), 9)
    colours = np.unique(picture[:, 160:].reshape(-1, 3), axis=0)
    assert {tuple(colour) for colour in colours.tolist()} == {GROUND, BAR, CHOSEN, LETTERS}
    assert (picture[17 * 11 : 18 * 11, 160:] == LETTERS).all(axis=2).any()


def test_pictures_of_other_sizes_are_fitted_so_that_words_can_be_read():
    """Four rows of words take 44 lines; a film is shrunk beyond 480 columns."""
    values = np.arange(4.0)
    small, wide = PICTURE[:20, :20], PICTURE.repeat(2, axis=0).repeat(4, axis=1)  # 420 lines of 640 columns
    assert np.array_equal(Bars(NAMES).beside(small, values)[:, :-WIDTH], small.repeat(3, axis=0).repeat(3, axis=1))
    assert np.array_equal(Bars(NAMES).beside(wide, values)[:, :-WIDTH], wide[::2, ::2])
    low = np.zeros((5, 300, 3), np.uint8)
    assert Bars(NAMES).beside(low, values).shape == (5, 300 + WIDTH, 3)  # not to be helped
    film = [Bars(NAMES).beside(wide, values, action) for action in range(4)]
    image = pytest.importorskip("PIL.Image").open(io.BytesIO(gif_bytes(film)))
    assert image.size == (320 + WIDTH, 210)


@pytest.mark.parametrize("backend", ["envpool", "gymnasium"])
def test_a_film_shows_the_values_of_each_decision_with_its_state_and_the_action_taken(backend):
    seen = []

    def act(stacks):
        values = np.zeros((len(stacks), 4), np.float32)
        values[:, len(seen) % 3 + 1] = 1 + len(seen)
        seen.append(values[0].argmax())
        return values

    options = {"seed": 1, "backend": backend, "rules": EvaluationRules(epsilon=0, max_steps=8), "film": True}
    film = play_games("breakout", act, 1, bars=True, **options).film
    assert len(film) == 9
    marked = [[bool(n) for n in lengths(picture, CHOSEN)] for picture in film]
    assert [marks.index(True) for marks in marked[:8]] == seen
    assert not any(marked[8])  # the last picture, in which nothing is decided any more
    moves = iter(seen)
    plain = play_games("breakout", lambda stacks: np.full(len(stacks), next(moves)), 1, **options).film
    assert np.array_equal([picture[:, :160] for picture in film], plain)


def test_an_action_taken_at_random_is_the_one_marked():
    values = np.array([[3.0, 2.0, 1.0]])
    rules = EvaluationRules(epsilon=1)
    film = play_games(
        "catch", lambda s: values.repeat(len(s), 0), 3, seed=1, rules=rules, stack=1, film=True, bars=True
    ).film
    marked = {tuple(bool(n) for n in lengths(picture, CHOSEN, 3)) for picture in film[:-1]}
    assert len(marked) > 1


@pytest.mark.parametrize("backend", ["envpool", "gymnasium"])
def test_who_is_shown_a_game_sees_pictures_of_one_shape(backend):
    shown = []
    act = lambda stacks: np.tile(np.arange(4.0), (len(stacks), 1))  # noqa: E731
    play_games(
        "breakout", act, 2, seed=1, backend=backend, rules=EvaluationRules(max_steps=4), show=shown.append, bars=True
    )
    assert {picture.shape for picture in shown} == {(210, 160 + WIDTH, 3)}


def test_bars_without_values_are_an_error_that_says_so():
    with pytest.raises(ValueError, match="bars are asked for, but act returned actions"):
        play_games("catch", lambda s: np.zeros(len(s), int), 1, seed=1, stack=1, film=True, bars=True)
    with pytest.raises(ValueError, match=r"act returned the values of 2 actions, and the environment has 3"):
        play_games("catch", lambda s: np.zeros((len(s), 2)), 1, seed=1, stack=1)
