"""The loop of whole games on environments made of numbers, one of each kind: which rows it asks for, sees and draws."""

import numpy as np
import pytest

from fastrl.envs.step import Step
from fastrl.film.camera import Camera
from fastrl.play import acting
from fastrl.play.acting import Epsilon
from fastrl.play.loop import play_whole_games

LENGTHS = [[3, 1], [1, 4], [5, 2]]
"""Of environment 0, 1 and 2: the agent steps of its games, by turns."""


class Numbers:
    """Games whose frames tell environment, game, agent steps, all steps; a step scores ten times its number + action.

    Parameters
    ----------
    num_envs : environments, of those in `LENGTHS`.
    stands : environments that are not asked for stand still, as EnvPool's; otherwise they step too, as in a vector.
    autoreset : where the frame after a game's end is found.
    life : agent steps after which a life is lost. The step that follows ignores its action.
    takes_all : `takes_actions` is True then too, as on EnvPool; otherwise it is not, as on ale-py.
    """

    num_actions, action_names, frame_skip = 2, ["stay", "go"], 1
    frame_shape, frame_dtype = (4,), np.dtype(np.float32)
    has_pictures = True

    def __init__(
        self, num_envs=3, *, stands=True, autoreset="next_step", life=None, takes_all=True, shows_frames=False
    ):
        self.num_envs, self.autoreset, self.shows_frames = num_envs, autoreset, shows_frames
        self._stands, self._life, self._takes_all = stands, life, takes_all
        self.asked = []  # environments of each step
        self.acted = []  # [environment, game, agent steps before, action] of each action that counted
        self.drawn = 0
        self._game = np.full(num_envs, -1)

    @property
    def takes_actions(self):
        return self._takes_all or not self._lost.any()

    def reset(self):
        self._length, self._all, self._score = (np.zeros(self.num_envs, int) for _ in range(3))
        self._over, self._lost = np.zeros((2, self.num_envs), bool)
        self._game += 1
        yes = np.ones(self.num_envs, bool)
        return self._rows(yes, yes, self._frames())

    def send(self, actions, env_id=None):
        ids = np.arange(self.num_envs) if env_id is None else np.asarray(env_id)
        self.asked.append(ids.tolist())
        self._sent = ids, dict(zip(ids.tolist(), np.asarray(actions).tolist(), strict=True))

    def recv(self):
        ids, actions = self._sent
        first, reset = np.zeros((2, self.num_envs), bool)
        for i in ids if self._stands else range(self.num_envs):
            self._all[i] += 1
            if self._over[i]:  # next_step: this step resets
                first[i] = reset[i] = True
                self._open(i)
            elif self._lost[i]:
                reset[i], self._lost[i] = True, False
            else:
                action = actions.get(i, 0)
                if i in actions:
                    self.acted.append([i, int(self._game[i]), int(self._length[i]), action])
                self._length[i] += 1
                self._score[i] += 10 * self._length[i] + action
                self._over[i] = self._length[i] == LENGTHS[i][self._game[i] % 2]
                self._lost[i] = self._length[i] == self._life and not self._over[i]
        rows = self._rows(first, reset, self._frames())
        if self.autoreset != "next_step" and self._over.any():
            for i in np.flatnonzero(self._over):
                self._open(i)
            rows.final, rows.first, rows.frame = rows.frame, rows.game_over.copy(), self._frames()
        return rows.select(ids)

    def render(self, env_id=0):
        self.drawn += 1
        assert env_id == 0
        return np.array([[[self._game[0], self._length[0], self._all[0]]]], np.uint8)

    def close(self):
        pass

    def _open(self, i):
        self._game[i] += 1
        self._length[i] = self._score[i] = self._all[i] = 0
        self._over[i] = self._lost[i] = False

    def _frames(self):
        return np.stack([np.arange(self.num_envs), self._game, self._length, self._all], axis=1).astype(np.float32)

    def _rows(self, first, reset, frame):
        no = np.zeros(self.num_envs, bool)
        return Step(
            frame=frame,
            reward=no.astype(np.float32),
            terminated=self._over.copy(),
            truncated=no,
            first=first.copy(),
            reset=reset.copy(),
            game_over=self._over.copy(),
            score=self._score.astype(np.float32),
            length=self._length.copy(),
            env_id=np.arange(self.num_envs, dtype=np.int32),
        )


KINDS = {
    "stands": {"stands": True},
    "whole": {"stands": False},
    "same_step": {"stands": False, "autoreset": "same_step"},
    "disabled": {"stands": False, "autoreset": "disabled"},
    "single": {"num_envs": 1},
}


def play(envs, games, *, epsilon=0.0, stack=2, max_steps=100, show=None):
    """Play with an act function that always goes; return scores, lengths, the film, and the stacks it was shown."""
    seen = []

    def act(stacks):
        seen.append(stacks.copy())
        return np.ones(len(stacks), int)

    camera = Camera(1, 1_000, show, bars=False)
    camera.names(envs.action_names)
    scores, lengths = play_whole_games(
        envs,
        act,
        games,
        explore=Epsilon(epsilon, envs.num_actions, envs.num_envs, seed=0),
        stack=stack,
        max_steps=max_steps,
        camera=camera,
        draw=lambda step: envs.render(0),
    )
    return scores.tolist(), lengths.tolist(), [picture[0, 0].tolist() for picture in camera.film], seen


def score(length):
    return sum(10 * step + 1 for step in range(1, length + 1))


@pytest.mark.parametrize("kind", KINDS)
def test_each_game_is_played_whole_and_counted_once(kind):
    envs = Numbers(**KINDS[kind])
    scores, lengths, _, seen = play(envs, 3)
    assert lengths == ([3, 1, 3] if kind == "single" else [3, 1, 5])
    assert scores == [score(length) for length in lengths]
    counted = [(i, game) for i, game, *_ in envs.acted]
    assert len(counted) == sum(lengths)
    assert sum(len(stacks) for stacks in seen) == sum(lengths)
    assert all(action == 1 for *_, action in envs.acted)


@pytest.mark.parametrize("kind", ["stands", "whole", "same_step", "disabled"])
def test_games_that_are_over_are_left_out(kind):
    envs = Numbers(**KINDS[kind])
    *_, seen = play(envs, 3)
    assert envs.asked == [[0, 1, 2], [0, 2], [0, 2], [2], [2]]
    assert [stacks[:, -1, 0].tolist() for stacks in seen] == envs.asked
    assert [stacks[:, -1, 2].tolist() for stacks in seen] == [[0] * 3, [1] * 2, [2] * 2, [3], [4]]
    assert not any(stacks[:, -1, 1].any() for stacks in seen)  # no second game is looked at


@pytest.mark.parametrize("kind", KINDS)
def test_more_games_than_environments_are_played_in_rounds(kind):
    envs = Numbers(**KINDS[kind])
    scores, lengths, film, seen = play(envs, 5)
    assert scores == [score(length) for length in lengths]
    if kind == "single":
        assert lengths == [3, 1, 3, 1, 3]
    else:
        assert lengths[:3] == [3, 1, 5]
        assert envs.asked[5] == [0, 1]  # the second round needs two environments
        assert seen[5].shape == (2, 2, 4)
    assert {game for game, *_ in film} == {0}  # of the first game alone
    first_stacks = [stacks for stacks in seen if not stacks[0, -1, 2]]
    assert all((stacks[:, 0] == stacks[:, 1]).all() for stacks in first_stacks)  # stacks start over in each round


@pytest.mark.parametrize("kind", KINDS)
def test_a_game_is_cut_off_though_its_environment_goes_on(kind):
    scores, lengths, _, seen = play(Numbers(**KINDS[kind]), 3, max_steps=2)
    assert lengths == [2, 1, 2]
    assert scores == [score(length) for length in lengths]
    assert sum(map(len, seen)) == sum(lengths)


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_game_is_filmed_once_per_agent_step(kind):
    shown = []
    *_, film, _ = play(Numbers(**KINDS[kind]), 3, show=lambda picture: shown.append(picture[0, 0].tolist()))
    steps = [0, 1, 2, 3] if kind in ("stands", "whole", "single") else [0, 1, 2]  # others have begun the next game
    assert film == shown == [[0, step, step] for step in steps]


@pytest.mark.parametrize("takes_all", [True, False])
def test_a_step_that_presses_fire_asks_for_no_action_unless_it_takes_a_row_among_others(takes_all):
    envs = Numbers(1, life=2, takes_all=takes_all)
    scores, lengths, film, seen = play(envs, 1, stack=3)
    assert (scores, lengths) == ([score(3)], [3])
    ticks = [stacks[0, :, 3].tolist() for stacks in seen]  # all steps, those of FIRE too
    assert ticks == [[0, 0, 0], [0, 0, 1], *([[0, 1, 2]] if takes_all else []), [1, 2, 3]]
    # The picture of an agent step is that of the first row in which an action was asked for.
    assert film == [[0, 0, 0], [0, 1, 1], [0, 2, 2 if takes_all else 3], [0, 3, 4]]
    assert [action for *_, action in envs.acted] == [1, 1, 1]


def test_epsilon_tosses_a_coin_whenever_actions_are_asked_for():
    def actions(**options):
        envs = Numbers(1, **options)
        play(envs, 4, epsilon=0.5)
        return [action for *_, action in envs.acted]

    plain = actions()
    assert len(set(plain)) == 2
    assert actions(life=2, takes_all=False) == plain
    assert actions(life=2, takes_all=True) != plain


def test_environments_that_show_each_frame_are_filmed_and_not_shown_again():
    shown = []
    *_, film, _ = play(Numbers(1, shows_frames=True), 2, show=shown.append)
    assert len(film) == 4
    assert shown == []


def test_without_something_to_draw_nothing_is_filmed():
    envs = Numbers(3)
    camera = Camera(1, 1_000, None, bars=False)
    play_whole_games(
        envs,
        lambda stacks: np.ones(len(stacks), int),
        3,
        explore=Epsilon(0, 2, 3, 0),
        stack=1,
        max_steps=9,
        camera=camera,
        draw=None,
    )
    assert camera.film == []
    assert envs.drawn == 0


class Noted(Camera):
    """Remembers what was decided when a picture was filmed."""

    def __init__(self):
        super().__init__(1, 1_000, None, False)
        self.decisions, self._decision = [], None

    def decided(self, values=None, action=None):
        self._decision = (None if values is None else np.asarray(values)[0].tolist(), action)

    def shoot(self, step, picture):
        self.decisions.append((step, *self._decision))


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_comes_with_the_decision_made_in_it_and_the_last_one_with_none(kind):
    envs, camera = Numbers(**KINDS[kind]), Noted()
    play_whole_games(
        envs,
        lambda stacks: stacks[:, -1, 2:] * [[1.0, 2.0]] + [[0.0, 1.0]],
        3,
        explore=Epsilon(0, 2, envs.num_envs, 0),
        stack=1,
        max_steps=9,
        camera=camera,
        draw=lambda step: envs.render(),
    )
    expected = [(step, [step, 2.0 * step + 1], 1) for step in range(3)]
    ends = kind in ("stands", "whole", "single")
    assert camera.decisions == [*expected, *([(3, None, None)] if ends else [])]


def test_how_far_games_are_is_said_now_and_then(monkeypatch):
    now, said = [0.0], []
    monkeypatch.setattr(acting.time, "monotonic", lambda: now[0])
    act = acting.telling(lambda stacks: stacks[:, 0], said.append)
    for at, playing in ((10.0, 3), (30.0, 3), (59.0, 2), (60.0, 1)):
        now[0] = at
        assert act(np.full((playing, 1), at)).tolist() == [at] * playing
    assert said == ["6 steps played, 3 games in progress", "9 steps played, 1 game in progress"]
