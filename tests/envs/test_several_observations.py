"""Observations of several arrays as frames: names, layouts, autoreset modes, stacks, and what is wrong with them."""

from __future__ import annotations

import array_envs
import gymnasium as gym
import numpy as np
import pytest
from array_envs import Nested, Pairs, frames_of, image_of, vector_of
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import FrameStackObservation
from quick_run import config_of
from replay_autoreset import Walk

pytest.importorskip("envpool")

from fastrl import config_for, train
from fastrl.base.errors import ConfigError, RunError
from fastrl.dqn.network import trunk_for
from fastrl.envs.custom import CustomEnvs
from fastrl.envs.frame_stack import FrameStack
from fastrl.envs.frames import in_words
from fastrl.envs.make import look_at
from fastrl.envs.names import name_of
from fastrl.envs.observations import SeveralObservations
from fastrl.envs.step import frame_bytes

IMAGE, VECTOR = array_envs.IMAGE, array_envs.WHERE
COLUMNS = ("reward", "terminated", "truncated", "first", "reset", "game_over", "score", "length", "env_id")


def observed(space, wrappers=()):
    return SeveralObservations("x:y", space, wrappers)


class Gives(gym.Env):
    """Gives what it is told to, in the steps that it is told."""

    action_space = spaces.Discrete(2)

    def __init__(self, space, obs=None):
        self.observation_space, self.obs = space, obs or {}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.see(), {}

    def see(self):
        return self.obs.get(self.steps, {"a": np.zeros((10, 10), np.uint8), "b": np.zeros(3, np.float32)})

    def step(self, action):
        self.steps += 1
        return self.see(), 1.0, False, self.steps == 4, {}


SPACE = spaces.Dict({"a": spaces.Box(0, 255, (10, 10), np.uint8), "b": spaces.Box(-1, 1, (3,), np.float32)})


# --- what they become ---------------------------------------------------------------------------------


def test_arrays_are_named_by_the_keys_on_the_way_to_them_and_stand_in_the_order_of_their_names():
    space = spaces.Dict({"z": VECTOR, "b": spaces.Tuple((IMAGE, spaces.Dict({"c": VECTOR})))})
    other = spaces.Dict([("z", VECTOR), ("b", space["b"])])
    for each in (space, other):
        assert list(observed(each).frame_shape.items()) == [("b.0", (3, 10, 12)), ("b.1.c", (3,)), ("z", (3,))]
    assert observed(spaces.Tuple([VECTOR] * 11)).frame_shape == {str(i): (3,) for i in range(11)}


def test_frames_are_the_arrays_with_channels_in_front_and_bools_as_bytes():
    found = observed(Nested.observation_space)
    where = np.array([1, 2, 3], np.float32)
    walk = Nested(1)
    walk.episode, walk.steps = 2, 3
    frames = found.frame(walk.where(), 0, 0)
    assert frames.keys() == found.frame_shape.keys() == found.frame_dtype.keys() == {"image", "at.where", "at.flags"}
    for name, expected in frames_of(where).items():
        np.testing.assert_array_equal(frames[name], expected)
        assert frames[name].shape == found.frame_shape[name]
        assert frames[name].dtype == expected.dtype == found.frame_dtype[name]
        assert frames[name].flags.c_contiguous
    assert found.images


def test_a_stack_of_vectors_becomes_one_vector_and_so_no_image():
    space = spaces.Dict({"image": spaces.Box(0, 255, (4, 40, 40), np.uint8), "v": spaces.Box(-1, 1, (4, 3))})
    found = observed(space, ["FrameStackObservation"])
    assert found.frame_shape == {"image": (4, 40, 40), "v": (12,)}
    frames = found.frame({"image": np.zeros((4, 40, 40), np.uint8), "v": np.arange(12.0).reshape(4, 3)}, 0, 0)
    np.testing.assert_array_equal(frames["v"], np.arange(12))
    assert not observed(spaces.Dict({"v": spaces.Box(-1, 1, (4, 3))}), ["FrameStackObservation"]).images


KINDS = [(kind, mode, False) for kind in (Nested, Pairs) for mode in AutoresetMode]
KINDS.append((Nested, AutoresetMode.SAME_STEP, True))


@pytest.mark.parametrize("limit", [3, 27_000])
@pytest.mark.parametrize(("kind", "mode", "apart"), KINDS)
def test_steps_are_those_of_the_same_games_with_one_array(kind, mode, apart, limit):
    makes = [lambda: vector_of(kind, mode, apart=apart), lambda: vector_of(Walk, mode)]
    several, single = (CustomEnvs(name_of(m), 1, seed=1, max_episode_steps=limit) for m in makes)
    name = "1" if kind is Pairs else "at.where"
    steps, finals = [(several.reset(), single.reset())], 0
    rng = np.random.default_rng(0)
    for _ in range(40):
        actions = rng.integers(4, size=3)
        steps.append((several.step(actions), single.step(actions)))
    for mine, its in steps:
        for column in COLUMNS:
            np.testing.assert_array_equal(getattr(mine, column), getattr(its, column), err_msg=column)
        assert (mine.final is None) == (its.final is None)
        for frames, places in ((mine.frame, its.frame), (mine.final, its.final)):
            if places is None:
                continue
            finals += places is its.final
            np.testing.assert_array_equal(frames[name], places)
            for i, place in enumerate(places):
                expected = {"0": np.moveaxis(image_of(place), -1, 0)} if kind is Pairs else frames_of(place)
                for array, value in expected.items():
                    np.testing.assert_array_equal(frames[array][i], value)
    assert (finals > 0) == (mode != AutoresetMode.NEXT_STEP)
    several.close()
    single.close()


def test_records_are_selected_and_updated_in_every_array():
    envs = CustomEnvs(name_of(array_envs.make_same), 1, seed=1)
    whole = envs.reset()
    part = envs.step([0, 1, 2]).select(np.array([2, 0]))
    assert part.frame["image"].shape == (2, 3, 10, 12)
    before = {name: array.copy() for name, array in whole.frame.items()}
    whole.update(part)
    for name, array in whole.frame.items():
        np.testing.assert_array_equal(array[[2, 0]], part.frame[name])
        np.testing.assert_array_equal(array[1], before[name][1])
    assert not np.array_equal(whole.frame["at.where"], before["at.where"])
    envs.close()


def test_a_frames_bytes_are_those_of_all_arrays():
    envs = CustomEnvs(name_of(array_envs.make_nested), 1, seed=1)
    assert frame_bytes(envs) == 10 * 12 * 3 + 3 * 4 + 2
    envs.close()


# --- stacks -------------------------------------------------------------------------------------------


def test_stacks_of_several_arrays_are_the_stacks_of_each():
    shapes, dtypes = {"a": (2, 2), "b": (3,)}, {"a": np.dtype(np.uint8), "b": np.dtype(np.float32)}
    several = FrameStack(3, 4, shapes, dtypes)
    alone = {name: FrameStack(3, 4, shapes[name], dtypes[name]) for name in shapes}
    rng, half = np.random.default_rng(0), None
    for k in range(30):
        ids = None if k % 3 else rng.permutation(3)[:2]
        n = 3 if ids is None else 2
        frame = {name: (9 * rng.random((n, *shape))).astype(dtypes[name]) for name, shape in shapes.items()}
        first = rng.random(n) < 0.2
        seen = several.push(frame, first, ids)
        for name, stack in alone.items():
            np.testing.assert_array_equal(seen[name], stack.push(frame[name], first, ids))
        half = several.state() if k == 15 else half
    again = FrameStack(3, 4, shapes, dtypes)
    again.load_state(several.state())
    for name, array in again.state()["stacks"].items():
        np.testing.assert_array_equal(array, several.state()["stacks"][name])
        assert not np.array_equal(array, half["stacks"][name])  # a state is a copy
    with pytest.raises(ValueError, match=r"frame is float64 \(3, 3\); give float32"):
        several.push({"a": np.zeros((3, 2, 2), np.uint8), "b": np.zeros((3, 3))}, np.zeros(3, bool))


def test_an_environment_that_stacks_its_arrays_itself_is_not_stacked_again(tmp_path):
    def make_env():
        return FrameStackObservation(Gives(SPACE), 4)

    with pytest.raises(ConfigError, match=r"stacks frames itself: FrameStackObservation is among .*; give --stack 1"):
        train.dqn(make_env, config_of(make_env, tmp_path, stack=4), quiet=True)
    assert list(tmp_path.iterdir()) == []


# --- settings -----------------------------------------------------------------------------------------


def test_a_look_tells_all_shapes_and_the_preset_names_them():
    shapes = {"at.flags": (2,), "at.where": (3,), "image": (3, 10, 12)}
    assert look_at(name_of(array_envs.make_nested)) == (shapes, None)
    assert look_at(name_of(array_envs.make_next)) == (shapes, 3)
    config = config_for(array_envs.make_nested)
    assert (config.trunk, config.hidden, config.frame_skip) == ("minatar", 128, 1)
    vectors = spaces.Dict({"a": VECTOR, "b": VECTOR})
    assert config_for(lambda: Gives(vectors, {k: vectors.sample() for k in range(9)})).trunk == "vector"
    assert in_words(shapes) == "at.flags [2], at.where [3], image [3, 10, 12]"
    assert in_words({"a\x1b[2J": (2,)}) == r"'a\x1b[2J' [2]"  # or it would clear the screen


def test_the_trunk_of_several_arrays_is_the_one_asked_for_if_it_fits_one_of_the_images():
    small, large, vector = (10, 10), (84, 84), (7,)
    assert trunk_for({"v": vector, "s": small, "l": large}, "nature") == "nature"
    assert trunk_for({"v": vector, "s": (20, 20), "t": small}, "nature") == "small"
    assert trunk_for({"v": vector, "s": small}, "nature") == "minatar"
    assert trunk_for({"v": vector}, "nature") == "vector"


# --- what is wrong ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (
            spaces.Dict({"a": IMAGE, "d": spaces.Discrete(4)}),
            r"has Discrete\(4\) as its observation\['d'\]; give",
        ),
        (spaces.Tuple((VECTOR, spaces.Dict({"t": spaces.Text(9)}))), r"observation\[1\]\['t'\]; .*FilterObservation"),
        (spaces.Dict({}), r"has the observations Dict\(\); give a Dict or Tuple of Boxes"),
        (spaces.Dict({"a.b": VECTOR, "a": spaces.Dict({"b": VECTOR})}), r"'a.b', \['a'\]\['b'\] and \['a.b'\]; rename"),
        (
            spaces.Dict({"a": spaces.Box(0, 1, (6, 7, 12))}),
            r"observations\['a'\] of shape \[6, 7, 12\], whose",
        ),
        (spaces.Sequence(VECTOR), "has the observations Sequence.*; give a Box"),
    ],
)
def test_spaces_that_do_not_fit_are_refused_before_anything_is_written(space, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        train.dqn(lambda: Gives(space), config_of(array_envs.make_xor, tmp_path), quiet=True)
    assert list(tmp_path.iterdir()) == []


def test_bytes_that_are_small_numbers_are_warned_of_by_name():
    with pytest.warns(UserWarning, match=r"observes uint8 of at most 1 in \['a'\], which the network divides by 255"):
        observed(spaces.Dict({"a": spaces.Box(0, 1, (10, 10), np.uint8)}))


IMAGE_10 = np.zeros((10, 10), np.uint8)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"a": IMAGE_10}, r"returned an observation without \['b'\], in {}, environment 0, and"),
        (IMAGE_10, r"returned an observation without \['a'\], in {}, environment 0, and"),
        (
            {"a": IMAGE_10, "b": np.zeros(4, np.float32)},
            r"an observation\['b'\] of float32 of shape \[4\], in {}, environ",
        ),
        (
            {"a": IMAGE_10 / 2, "b": np.zeros(3)},
            r"returned an observation\['a'\] of float64 of shape \[10, 10\], in {}",
        ),
    ],
)
@pytest.mark.parametrize("when", [0, 2])
def test_observations_that_are_not_as_declared_are_named_with_their_place(given, words, when):
    envs = CustomEnvs(name_of(lambda: Gives(SPACE, {when: given})), 1, seed=0)

    def play():
        envs.reset()
        for _ in range(3):
            envs.step([0])

    with pytest.raises(RunError, match=words.format(["reset\\(\\)", "", "step 2 of an episode"][when])):
        play()
    envs.close()


@pytest.mark.parametrize("count", [1, 2])
def test_an_array_that_a_vector_leaves_out_is_named_with_its_step(count):
    class Leaves(SyncVectorEnv):
        def step(self, actions):
            obs, *rest = super().step(actions)
            return {name: array for name, array in obs.items() if name == "a"}, *rest

    envs = CustomEnvs(name_of(lambda: Leaves([lambda: Gives(SPACE)] * count)), count, seed=0)
    envs.reset()
    whose = "step 1 of an episode, environment 0" if count == 1 else "a step of all environments"
    with pytest.raises(RunError, match=rf"without \['b'\], in {whose}, and its observation_space has one; let the"):
        envs.step([0] * count)
    envs.close()


def test_an_array_that_a_last_observation_lacks_is_named_with_its_step():
    class Lacks(SyncVectorEnv):
        def step(self, actions):
            *rest, info = super().step(actions)
            for last in info.get("final_obs", ()):
                last.pop("b")
            return *rest, info

    kinds = [lambda: Gives(SPACE)] * 2  # of four steps each
    envs = CustomEnvs(name_of(lambda: Lacks(kinds, autoreset_mode=AutoresetMode.SAME_STEP)), 2, seed=0)
    envs.reset()
    for _ in range(3):
        envs.step([0, 0])
    with pytest.raises(RunError, match=r"without \['b'\], in step 4 of an episode, environment 0, and"):
        envs.step([0, 0])
    envs.close()


def test_a_number_that_is_not_finite_is_named_with_its_array():
    spoilt = {"a": IMAGE_10, "b": np.array([0, np.nan, 0], np.float32)}
    envs = CustomEnvs(name_of(lambda: Gives(SPACE, {2: spoilt})), 1, seed=0)
    envs.reset()
    envs.step([0])
    with pytest.raises(RunError, match=r"an observation\['b'\] whose \[1\] is nan, in step 2 of an episode, environ"):
        envs.step([0])
    envs.close()
