"""Action masks of custom environments: read in every autoreset mode, and what is wrong with them named."""

from __future__ import annotations

import gymnasium as gym
import masked_envs
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv
from masked_envs import ACTIONS, MAKERS, MaskedWalk, make_next, mask_of

pytest.importorskip("envpool")

from fastrl import train
from fastrl.base.errors import RunError
from fastrl.envs.custom import CustomEnvs
from fastrl.envs.make import look_at
from fastrl.envs.masks import Masks, nth_allowed, only_allowed, random_allowed
from fastrl.envs.names import name_of
from fastrl.envs.rules import EvaluationRules
from fastrl.play.games import play_games

HERE = __name__


def envs_of(make_env, **settings):
    return CustomEnvs(name_of(make_env), 2, seed=0, **settings)


def choose(rng, step):
    return random_allowed(rng, step.mask)


@pytest.mark.parametrize("limit", [27_000, 3])
@pytest.mark.parametrize("make_env", MAKERS)
def test_every_record_has_the_masks_of_its_frames(make_env, limit):
    envs, rng = envs_of(make_env, max_episode_steps=limit), np.random.default_rng(0)
    assert not envs.masked
    step, ends = envs.reset(), 0
    assert envs.masked
    for _ in range(60):
        assert step.mask.dtype == np.bool_
        over = step.terminated & (envs.autoreset == "next_step")  # no action is chosen there
        expected = [np.ones(ACTIONS, bool) if gone else mask_of(f) for f, gone in zip(step.frame, over, strict=True)]
        np.testing.assert_array_equal(step.mask, expected)
        assert (step.final_mask is None) == (step.final is None)
        if step.final is not None:
            for i in np.flatnonzero(step.terminated | step.truncated):
                ends += 1
                wanted = np.ones(ACTIONS, bool) if step.terminated[i] else mask_of(step.final[i])
                np.testing.assert_array_equal(step.final_mask[i], wanted)
        before, copy = step, step.mask.copy()
        step = envs.step(choose(rng, step))
        np.testing.assert_array_equal(before.mask, copy)  # the caller's to keep
    assert ends > 10 or envs.autoreset == "next_step"
    envs.close()


def test_without_masks_records_have_none():
    envs = envs_of(masked_envs.make_unmasked_doors)
    step = envs.reset()
    assert step.mask is None
    assert not envs.masked
    step = envs.step([0, 0])
    assert step.mask is None
    assert step.select(np.array([0])).final_mask is None


@pytest.mark.parametrize("make_env", MAKERS)
def test_environments_that_are_not_asked_take_an_action_that_they_allow(make_env):
    envs, rng = envs_of(make_env), np.random.default_rng(1)
    opened = envs.reset()
    step = opened.select(np.array([0]))
    opened.mask[:] = False  # the caller's to write to
    for _ in range(40):  # any action that is not allowed raises
        step = envs.step(choose(rng, step), [0])
        assert len(step.mask) == 1
    envs.close()


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("make_env", MAKERS)
def test_whole_games_take_allowed_actions_alone_and_of_these_the_best(make_env, epsilon):
    def act(stacks):  # the last actions are best
        return np.tile(np.arange(ACTIONS, dtype=np.float32), (len(stacks), 1))

    rules = EvaluationRules(epsilon=epsilon)
    games = play_games(name_of(make_env), act, 7, seed=3, rules=rules, stack=1)
    assert len(games.scores) == 7
    again = play_games(name_of(make_env), act, 7, seed=3, rules=rules, stack=1)
    np.testing.assert_array_equal(games.scores, again.scores)
    if epsilon == 0 and make_env is make_next:  # in the first round environment k plays k + 1 steps
        best = [[np.flatnonzero(mask_of((number, 0, k))).max() for k in range(number + 1)] for number in range(3)]
        expected = [sum(10 * (k + 1) + action for k, action in enumerate(actions)) for actions in best]
        assert games.scores[:3].tolist() == expected


def test_a_function_that_acts_by_itself_is_told_of_an_action_that_is_not_allowed():
    with pytest.raises(ValueError, match=r"act returned action 0, and the environment allows \[1\]; return Q-values"):
        play_games(name_of(masked_envs.make_single), lambda stacks: np.zeros(len(stacks), int), 1, seed=0, stack=1)


def test_values_that_are_no_numbers_matter_only_where_the_action_is_allowed():
    def values_of(spoilt):
        return lambda stacks: np.where([spoilt(mask_of(stack[-1])) for stack in stacks], np.nan, 1.0)

    name, rules = name_of(masked_envs.make_single), EvaluationRules(epsilon=0)
    assert len(play_games(name, values_of(np.logical_not), 2, seed=0, rules=rules, stack=1).scores) == 2
    with pytest.raises(ValueError, match=r"act returned the Q-values \[.*nan.*\] in game 0"):
        play_games(name, values_of(np.asarray), 2, seed=0, rules=rules, stack=1)


def test_values_without_an_allowed_one_are_named_as_they_were_returned():
    def act(stacks):
        return np.where([mask_of(stack[-1]) for stack in stacks], -np.inf, 7.0)

    message = r"Q-values \[7.0, .*\] in game 0; .* -inf for some, not all, of the allowed \[\d(, \d)?\] actions"
    with pytest.raises(ValueError, match=message):
        play_games(name_of(masked_envs.make_single), act, 1, seed=0, rules=EvaluationRules(epsilon=0), stack=1)


def test_looking_at_an_environment_takes_an_action_that_it_allows():
    assert not mask_of((0, 0, 0))[0]
    assert look_at(name_of(masked_envs.make_single)) == ((3,), None)


# --- drawn from masks ---------------------------------------------------------------------------------


def test_random_actions_are_allowed_ones_with_equal_probability():
    mask = np.array([[0, 1, 0, 1, 1], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]], bool)
    drawn = np.stack([random_allowed(np.random.default_rng(seed), mask) for seed in range(3_000)])
    for row, allowed in enumerate(mask):
        shares = np.bincount(drawn[:, row], minlength=5) / len(drawn)
        assert (shares[~allowed] == 0).all()
        np.testing.assert_allclose(shares[allowed], 1 / allowed.sum(), atol=0.03)


def test_the_nth_allowed_action_is_counted_from_zero():
    mask = np.array([[0, 1, 0, 1, 1]] * 3, bool)
    assert nth_allowed(mask, np.array([0, 1, 2])).tolist() == [1, 3, 4]
    assert nth_allowed(mask, np.array([0.9, 1.1, 2.99])).tolist() == [1, 3, 4]


def test_values_of_actions_that_are_not_allowed_are_below_all_others():
    assert only_allowed([[1.0, 5.0, -3.0]], np.array([[True, False, True]])).tolist() == [[1.0, -np.inf, -3.0]]


# --- what is wrong ------------------------------------------------------------------------------------


class Wrong(gym.Env):
    """Gives the mask of each step from a list, the first in reset(); None leaves it out."""

    observation_space, action_space = spaces.Box(0, 1, (2,), np.float32), spaces.Discrete(3)
    masks = ()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2, np.float32), self.info()

    def step(self, action):
        self.steps += 1
        return np.zeros(2, np.float32), 0.0, False, False, self.info()

    def info(self):
        mask = self.masks[min(self.steps, len(self.masks) - 1)]
        return {} if mask is None else {"action_mask": mask}


def make_wrong():
    return SyncVectorEnv([MaskedThree, Wrong])


class MaskedThree(Wrong):
    """Beside `Wrong`, an environment whose masks are right."""

    @property
    def masks(self):
        return [None if all(mask is None for mask in Wrong.masks[:1]) else np.array([1, 0, 1], np.int8)]


ONE = np.array([1, 0, 1], np.int8)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ([ONE * 0], r"action_mask'\] that allows no action in reset\(\), environment 1; allow one, or end the episode"),
        ([ONE, ONE, ONE * 0], r"that allows no action in step 2 of an episode, environment 1; allow one"),
        ([ONE, None], r"gave no info\['action_mask'\] in step 1 of an episode, environment 1, and gave masks before"),
        ([None, None, ONE], r"gave info\['action_mask'\] in step 2 of an episode, environment 1, and none in its"),
        ([ONE, ONE * 2], r"gave info\['action_mask'\] \[2, 0, 2\] in step 1 .* environment 1; give bools, or integers"),
    ],
)  # fmt: skip
def test_a_mask_that_is_wrong_is_named_with_environment_and_step(masks, message, monkeypatch):
    monkeypatch.setattr(Wrong, "masks", masks)
    envs = envs_of(make_wrong)
    with pytest.raises(RunError, match=message) as caught:  # noqa: PT012
        step = envs.reset()
        for _ in range(4):
            step = envs.step([0, 0] if step.mask is None else step.mask.argmax(axis=1))
    assert f"{HERE}:make_wrong" in str(caught.value)


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({"action_mask": np.ones((2, 4), bool)}, r"action_mask'\] of bool \[4\] in reset\(\), environment 0; give"),
        ({"action_mask": np.ones((2, 3), np.float32)}, r"action_mask'\] of float32 \[3\] in reset\(\), environment 0"),
        ({"action_mask": np.ones((2, 3), bool), "_action_mask": np.array([True, False])},
         r"gave no info\['action_mask'\] in reset\(\), environment 1, and gave masks before or in other environments"),
        ({"action_mask": [None, [True, True, False]]}, r"of object \[\] in reset\(\), environment 0"),
    ],
)  # fmt: skip
def test_a_vector_of_the_users_own_is_told_too(info, message):
    with pytest.raises(RunError, match=message):
        Masks("m:f", 2, 3).begin(info)


def test_infos_without_masks_or_of_other_kinds_are_left_alone():
    for info in ({}, {"action_mask_of_another": 1}, [{}, {}], None):
        masks = Masks("m:f", 2, 3)
        assert masks.begin(info) is None
        assert not masks.given
        assert masks.read(info, np.ones(2, int)) is None


def test_a_later_reset_without_masks_is_refused():
    masks = Masks("m:f", 2, 3)
    assert masks.begin({"action_mask": np.eye(3)[:2].astype(bool)}).tolist() == [
        [True, False, False],
        [False, True, False],
    ]
    with pytest.raises(RunError, match=r"gave no info\['action_mask'\] in reset\(\), environment 0"):
        masks.begin({})


def test_a_run_on_masks_that_are_wrong_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(Wrong, "masks", [ONE * 0])
    config = train.config_for(make_next).replace(game=name_of(make_wrong), num_envs=2, runs_dir=str(tmp_path))
    with pytest.raises(RunError, match="allows no action"):
        train.dqn(make_wrong, config.replace(compile=False, device="cpu"), quiet=True)
    assert list(tmp_path.iterdir()) == []


def test_the_walks_mostly_forbid_the_first_action():
    masks = [mask_of((n, e, k)) for n in range(3) for e in range(9) for k in range(6)]
    assert np.mean([mask[0] for mask in masks]) < 0.5
    assert MaskedWalk(0).reset()[1]["action_mask"].dtype == np.int8
