"""Observations and rewards of custom environments: layouts, stacks, small images, limits, and what is not finite."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import FlattenObservation, FrameStackObservation, TimeLimit, TransformObservation

pytest.importorskip("envpool")

from fastrl import evaluate, train
from fastrl.base.errors import ConfigError, RunError
from fastrl.dqn.agent import load_agent
from fastrl.envs import observations
from fastrl.envs.custom import CustomEnvs
from fastrl.envs.names import name_of
from fastrl.envs.observations import Observations, channel_axis
from fastrl.runs import folder
from fastrl.runs.metrics_csv import MetricsCsv

HERE = __name__
MODES = list(AutoresetMode)


class Gives(gym.Env):
    """Returns what it is told to: an observation space, and for each step of an episode an observation or reward."""

    def __init__(self, space, obs=None, rewards=(), ends=None):
        self.observation_space, self.action_space = space, spaces.Discrete(2)
        self._obs, self._rewards, self._ends = obs or {}, rewards, ends
        self.resets = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.resets = 0, self.resets + 1
        return self._show(), {}

    def step(self, action):
        self.steps += 1
        reward = self._rewards[self.steps - 1] if self.steps <= len(self._rewards) else 1.0
        return self._show(), reward, self.steps == self._ends, False, {}

    def _show(self):
        space, shown = self.observation_space, self._obs.get(self.steps)
        return np.full(space.shape, self.steps, space.dtype) if shown is None else shown


class FrameStack(gym.ObservationWrapper):
    """A stack of one's own, its frames behind one another."""

    def __init__(self, env):
        super().__init__(env)
        self.observation_space = box(*env.observation_space.shape, 4)

    def observation(self, obs):
        return np.stack([obs] * 4, axis=-1)


class Cells(gym.Env):
    """As MinAtar shows its games: 10 x 10 cells, bool, planes last. A ball falls, and a paddle catches it."""

    observation_space = spaces.Box(0.0, 1.0, (10, 10, 6), bool)
    action_space = spaces.Discrete(3)
    render_mode = "rgb_array"

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.row, self.column, self.paddle = 0, int(self.np_random.integers(10)), 5
        return self._show(), {}

    def step(self, action):
        self.row, self.paddle = self.row + 1, min(max(self.paddle + int(action) - 1, 0), 9)
        over = self.row == 9
        return self._show(), float(over and abs(self.paddle - self.column) < 2), over, False, {}

    def render(self):
        return np.repeat(self._show()[:, :, :1], 3, axis=2).astype(np.uint8) * 255

    def _show(self):
        cells = np.zeros((10, 10, 6), bool)
        cells[self.row, self.column, 0] = cells[9, self.paddle, 1] = True
        return cells


def box(*shape, dtype=np.uint8):
    return spaces.Box(0, 1 if dtype == np.bool_ else 200, shape, dtype)


def image(*shape):
    return Gives(box(*shape), ends=7)


def stacked_by_the_wrapper():
    return FrameStackObservation(image(40, 44), 3)


def stacked_under_other_wrappers():
    moved = TransformObservation(stacked_by_the_wrapper(), lambda obs: np.moveaxis(obs, 0, -1), box(40, 44, 3))
    return TimeLimit(moved, 6)


def stacked_in_colour():
    return FrameStackObservation(image(40, 44, 3), 4)


def stacked_by_own_code():
    return FrameStack(image(40, 44))


def stacked_without_a_wrapper():
    return image(4, 40, 44)


def stacked_in_a_vector():
    return SyncVectorEnv([stacked_by_the_wrapper] * 2)


def stacked_in_other_processes():
    return AsyncVectorEnv([stacked_by_the_wrapper] * 2)


def stacked_vectors():
    return FrameStackObservation(Gives(box(5, dtype=np.float32), ends=7), 4)


def planes_behind():
    return image(40, 44, 4)


def make_cells():
    return Cells()


def make_long():
    return Gives(box(3, dtype=np.float32))


def small(make_env, tmp_path, **settings):
    settings = {
        "compile": False, "device": "cpu", "runs_dir": str(tmp_path), "total_frames": 200, "learn_start_steps": 20,
        "hidden": 8, "batch_size": 16, "evaluate_episodes": 1, "final_episodes": 1, "capacity": 400, "dephase_steps": 0,
        **settings,
    }  # fmt: skip
    config = train.config_for(make_env)
    return config.replace(**{"num_envs": min(config.num_envs, 4)} | settings)


def flags(tmp_path, *more):
    words = ["--no-compile", "--device", "cpu", "--runs-dir", str(tmp_path), "--name", "x", "--hidden", "8"]
    return [*words, "--num-envs", "4", "--batch-size", "16", "--final-episodes", "1", "--capacity", "400", *more]


def open_envs(make_env, num_envs=2, **settings):
    return CustomEnvs(name_of(make_env), num_envs, seed=1, **settings)


# --- stacks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make_env", "shape"),
    [
        (stacked_by_the_wrapper, (3, 40, 44)),
        (stacked_under_other_wrappers, (3, 40, 44)),
        (stacked_in_colour, (12, 40, 44)),
        (stacked_by_own_code, (4, 40, 44)),
        (stacked_without_a_wrapper, (4, 40, 44)),
        (stacked_in_a_vector, (3, 40, 44)),
        (stacked_in_other_processes, (3, 40, 44)),
        (stacked_vectors, (4, 5)),
    ],
)
def test_what_is_stacked_already_is_not_stacked_again_and_trains_with_a_stack_of_one(make_env, shape, tmp_path):
    num_envs = {"num_envs": 2} if "vector" in make_env.__name__ or "processes" in make_env.__name__ else {}
    config = small(make_env, tmp_path, stack=4, **({} if make_env is stacked_vectors else num_envs))
    with pytest.raises(ConfigError, match=r"--stack is 4, and .* stacks frames itself: .*; give --stack 1"):
        train.dqn(make_env, config, quiet=True)
    assert list(tmp_path.iterdir()) == []
    run = train.dqn(make_env, config.replace(stack=1, total_frames=80), quiet=True)
    assert run.learner.updates > 0
    assert run.buffer.sample(4).obs.shape == (4, 1, *shape)


def test_the_remedies_of_a_second_stack_work(tmp_path, capsys):
    command = [f"{HERE}:stacked_without_a_wrapper", "--total-frames", "100"]
    with pytest.raises(ConfigError, match=r"\(channels .* belong behind it: \[40, 44, 4\]\); give --stack 1$"):
        train.main([*command, *flags(tmp_path)])
    assert train.main([*command, *flags(tmp_path), "--stack", "1"]) == 0
    command[0] = f"{HERE}:planes_behind"
    assert train.main([*command, *flags(tmp_path / "other")]) == 0
    assert load_agent(str(tmp_path / "other" / "x")).network.settings["obs_shape"] == [4, 4, 40, 44]


@pytest.mark.parametrize(
    "space",
    [box(40, 44, 4), box(84, 84, 4), box(3, 84, 84), box(4, 10, 10), box(84, 84), box(4, 84, 84, dtype=np.bool_)],
)
def test_channels_that_need_not_be_a_stack_are_none(space):
    assert Observations("x:y", space, ["TimeLimit", "Gives"]).stacked == ""


def test_four_axes_are_a_stack_though_no_wrapper_says_so():
    observed = Observations("x:y", box(4, 40, 44, 3))
    assert "the shape [4, 40, 44, 3]" in observed.stacked
    given = np.arange(4 * 40 * 44 * 3, dtype=np.uint8).reshape(1, 4, 40, 44, 3)
    frame = observed.frames(given, [0], np.zeros(1, int))[0]
    assert np.array_equal(frame, np.concatenate([np.moveaxis(image, -1, 0) for image in given[0]]))  # frame by frame


def test_a_run_that_stacked_twice_before_goes_on_as_it_was_trained(tmp_path, monkeypatch):
    with monkeypatch.context() as before:
        before.setattr(Observations, "_stack_words", lambda self, stackers: "")
        run = train.dqn(stacked_by_the_wrapper, small(stacked_by_the_wrapper, tmp_path, total_frames=80), quiet=True)
    again = train.dqn(stacked_by_the_wrapper, run.config.replace(total_frames=120), resume=run.folder, quiet=True)
    assert again.frames >= 120
    assert evaluate.main([str(run.folder), "--episodes", "1"]) == 0


# --- layouts and small images -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((10, 10, 4), -1), ((10, 10, 7), -1), ((10, 10, 10), -1), ((7, 10, 10), 0), ((4, 84, 84), 0), ((84, 84, 3), -1),
        ((4, 4, 16), -1), ((3, 3, 2), -1), ((2, 3, 3), 0), ((210, 160, 3), -1), ((3, 210, 160), 0), ((4, 60, 80), 0),
        ((6, 7, 2), -1), ((2, 6, 7), 0), ((20, 30, 10), -1), ((10, 20, 30), 0), ((6, 7, 12), None), ((9, 10, 8), None),
    ],
)  # fmt: skip
def test_the_channels_are_where_the_rule_says(shape, axis):
    assert channel_axis(shape) == axis


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.float32, np.float64])
def test_planes_of_any_number_and_kind_come_first_in_a_frame(dtype):
    given = np.arange(600).reshape(10, 10, 6) % 3 == 0
    given = given.astype(dtype)
    observed = Observations("x:y", spaces.Box(0, 1 if dtype == np.bool_ else 200, (10, 10, 6), dtype))
    frames = observed.frames(given[None], [0], np.zeros(1, int))
    assert observed.frame_shape == (6, 10, 10)
    assert frames.dtype == observed.frame_dtype == (np.uint8 if dtype in (np.bool_, np.uint8) else np.float32)
    scale = 255 if dtype == np.bool_ else 1  # the network divides bytes by 255
    assert np.array_equal(frames[0], np.moveaxis(given, -1, 0).astype(int) * scale)


def test_planes_as_those_of_minatar_train_without_a_flag(tmp_path, capsys):
    assert train.main([f"{HERE}:make_cells", *flags(tmp_path, "--total-frames", "400")]) == 0
    said = capsys.readouterr().out
    assert "400 frames of a custom environment with images of 10 x 10" in said
    assert "frames [6, 10, 10] stacked 4 high, trunk minatar" in said
    config = folder.load_config(tmp_path / "x")
    assert (config.trunk, config.stack, config.total_frames) == ("minatar", 4, 400)
    assert train.config_for(make_cells, "cpu").hidden == 128
    again = train.dqn(make_cells, config.replace(total_frames=600), resume=tmp_path / "x", quiet=True)
    assert again.learner.updates > 0
    batch = again.buffer.sample(4)
    assert (batch.obs.dtype, batch.obs.nbytes) == (np.uint8, 4 * 4 * 600)
    assert set(np.unique(batch.obs)) == {0, 255}
    assert evaluate.main([str(tmp_path / "x"), "--episodes", "2"]) == 0


@pytest.mark.parametrize(
    ("shape", "device", "trunk"),
    [
        ((84, 84), "cpu", "small"), ((84, 84), "cuda", "nature"), ((36, 40), "cuda", "nature"),
        ((35, 40), "cuda", "small"), ((20, 20), "cpu", "small"), ((19, 40), "cpu", "minatar"),
        ((10, 5), "cuda", "minatar"), ((3, 3), "cpu", "minatar"), ((2, 9), "cpu", "vector"), ((9,), "cuda", "vector"),
    ],
)  # fmt: skip
def test_the_trunk_of_a_custom_environment_fits_its_frames(shape, device, trunk, monkeypatch):
    import torch

    monkeypatch.setattr("fastrl.dqn.device.device.pick_device", lambda name: torch.device(name))
    config = train.config_for(lambda: Gives(box(*shape)), device)
    assert config.trunk == trunk
    assert config.stack == (1 if trunk == "vector" else 4)


def test_a_trunk_too_large_for_the_image_is_refused_before_anything_is_written(tmp_path):
    command = [f"{HERE}:make_cells", *flags(tmp_path, "--total-frames", "100")]
    with pytest.raises(ConfigError, match=r"--trunk is 'nature', .* do not fit .*; give --trunk minatar$"):
        train.main([*command, "--trunk", "nature"])
    assert list(tmp_path.iterdir()) == []
    assert train.main([*command, "--trunk", "minatar"]) == 0


def test_bytes_of_zero_and_one_are_warned_of():
    with pytest.warns(UserWarning, match=r"uint8 of at most 1, which the network divides by 255; make them bool or"):
        Observations("x:y", spaces.Box(0, 1, (10, 10, 4), np.uint8))


# --- what is not finite, and what does not fit --------------------------------------------------------

NAN_AT_2 = np.array([0, np.nan, 0], np.float32)


def vectors(mode=None, shared_memory=True):
    """Return what turns a maker of one environment into a maker of one, or of vectors."""
    if mode is None:
        return lambda make_env: make_env
    if mode == "async":
        return lambda make_env: lambda: AsyncVectorEnv([make_env] * 2)
    return lambda make_env: lambda: SyncVectorEnv([make_env] * 2, autoreset_mode=mode)


EVERY = [vectors(), *map(vectors, MODES), vectors("async")]


def first_error(make_env, steps=4, **settings):
    envs = open_envs(make_env, **settings)

    def play():
        envs.reset()
        for _ in range(steps):
            envs.step([0, 0])

    with contextlib.closing(envs), pytest.raises(RunError) as error:
        play()
    return str(error.value)


@pytest.mark.parametrize("vector", EVERY)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_named_where_it_enters(vector, value):
    bad = np.array([0, value, 0], np.float32)
    said = first_error(vector(lambda: Gives(box(3, dtype=np.float32), {2: bad})))
    assert f"an observation whose [1] is {value:g}, in step 2 of an episode, environment 0; correct it there" in said
    said = first_error(vector(lambda: Gives(box(3, dtype=np.float32), rewards=[1.0, 2.0, value])))
    assert f"the reward {value:g}, in step 3 of an episode, environment 0; correct it there" in said
    said = first_error(vector(lambda: Gives(box(3, dtype=np.float32), {0: bad})))
    assert f"an observation whose [1] is {value:g}, in reset(), environment 0" in said
    said = first_error(vector(lambda: Gives(box(3, dtype=np.float32), {2: bad}, ends=2)))
    assert f"an observation whose [1] is {value:g}, in step 2 of an episode" in said  # the last of an episode


def test_the_environment_is_named_by_its_number_and_its_own_steps():
    def make_env():
        made.append(Gives(box(3, dtype=np.float32), {5: NAN_AT_2} if made else None, ends=None if made else 3))
        return made[-1]

    made = []
    assert "in step 5 of an episode, environment 1;" in first_error(make_env, steps=9)


def test_numbers_that_float32_does_not_hold_are_told_from_those_that_are_not_finite():
    wide = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    said = first_error(lambda: Gives(wide, {1: np.array([0, 1e300])}))
    assert "an observation whose [1] is 1e+300, in step 1 of an episode, environment 0; scale observations down" in said
    said = first_error(lambda: Gives(wide, rewards=[1e300]))
    assert "the reward 1e+300, in step 1 of an episode, environment 0; give --reward-clip, or scale rewards" in said
    envs = open_envs(lambda: Gives(wide, rewards=[1e300]), reward_clip=True)
    envs.reset()
    step = envs.step([0, 0])
    assert (step.reward.tolist(), step.score.tolist()) == ([1, 1], [1e300, 1e300])


def test_large_numbers_that_add_up_to_more_than_float32_holds_are_fine():
    envs = open_envs(lambda: Gives(spaces.Box(-np.inf, np.inf, (4,), np.float32), {1: np.full(4, 3e38, np.float32)}))
    envs.reset()
    assert (envs.step([0, 0]).frame == np.float32(3e38)).all()


def make_spoilt():
    return Gives(box(3, dtype=np.float32), {30: NAN_AT_2}, ends=40)


def test_a_run_that_meets_such_a_number_keeps_what_it_has_learned(tmp_path, capsys):
    with pytest.raises(RunError, match=r"environment '.*:make_spoilt' returned an observation whose \[1\] is nan, in"):
        train.dqn(make_spoilt, small(make_spoilt, tmp_path, name="x"))
    assert "what was learned is saved; resume with:" in capsys.readouterr().out
    assert (tmp_path / "x" / "checkpoints" / f"{4 * 29:012d}" / "weights.safetensors").exists()
    assert not (tmp_path / "x" / "faults").exists()  # the loss is not to blame


@pytest.mark.parametrize(
    ("space", "given", "said"),
    [
        (box(3, dtype=np.float32), np.zeros(4, np.float32), "float32 of shape [4], in {}, environment 0, and its "
         "observation_space says float32 of shape [3]; let the two agree"),
        (box(40, 44), np.full((40, 44), 0.5), "float64 of shape [40, 44], in {}, environment 0, and its "
         "observation_space says uint8 of shape [40, 44]"),
        (box(40, 44), np.full((44, 40), 1, np.uint8), "uint8 of shape [44, 40], in {}, environment 0, and its"),
    ],
)  # fmt: skip
def test_observations_that_are_not_as_declared_are_named_as_such(space, given, said):
    for step, where in ((2, "step 2 of an episode"), (0, "reset()")):
        assert f"returned an observation of {said.format(where)}" in first_error(
            lambda step=step: Gives(space, {step: given})
        )


class GivesNone(gym.Env):
    """Returns None as its observation, or as one array of it, after so many steps."""

    def __init__(self, space, at=0, part=None):
        self.observation_space, self.action_space = space, spaces.Discrete(2)
        self._at, self._part = at, part

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._show(), {}

    def step(self, action):
        self.steps += 1
        return self._show(), 0.0, False, False, {}

    def _show(self):
        shown = self.observation_space.sample()
        if self.steps < self._at:
            return shown
        return None if self._part is None else shown | {self._part: None}


SAYS = "says float32 of shape [3]; return such an array"
PAIR = spaces.Dict({"a": box(3, dtype=np.float32), "b": box(2, dtype=np.float32)})


@pytest.mark.parametrize(("at", "where"), [(0, "reset()"), (2, "step 2 of an episode")])
@pytest.mark.parametrize("in_a_vector", [False, True])
@pytest.mark.parametrize(
    ("space", "part", "said"),
    [
        (box(3, dtype=np.float32), None, f"None as the observation, in {{}}, environment 0, and its observation_space "
         f"{SAYS}"),
        (box(84, 84, 3), None, "None as the observation, in {}, environment 0, and its observation_space says uint8 of "
         "shape [84, 84, 3]; return such an array"),
        (PAIR, None, "None as the observation, in {}, environment 0, and its observation_space says ['a'] float32 of "
         "shape [3], ['b'] float32 of shape [2]; return such arrays"),
        (PAIR, "a", f"None as the observation['a'], in {{}}, environment 0, and its observation_space {SAYS}"),
    ],
)  # fmt: skip
def test_none_in_place_of_an_observation_is_named_with_what_the_space_says(at, where, in_a_vector, space, part, said):
    def make():
        return SyncVectorEnv([lambda: GivesNone(space, at, part)] * 2) if in_a_vector else GivesNone(space, at, part)

    assert first_error(make).endswith(f"returned {said.format(where)}")


@pytest.mark.filterwarnings("ignore:.*Calling `close` while waiting")
@pytest.mark.parametrize("shared", [False, True])
def test_none_from_other_processes_is_an_error_of_the_environment_too(shared):
    space = box(3, dtype=np.float32)
    said = first_error(lambda: AsyncVectorEnv([lambda: GivesNone(space)] * 2, shared_memory=shared))
    if shared:  # the process has made a number of it
        assert "returned an observation whose [0] is nan, in reset(), environment 0; correct it there" in said
    else:
        assert said.endswith("in reset() of all environments; return what the space says, float32 of shape [3]")


def test_none_from_a_vector_of_ones_own_is_named():
    class Nothing(SyncVectorEnv):
        def reset(self, **how):
            return None, super().reset(**how)[1]

    said = first_error(lambda: Nothing([lambda: Gives(box(3, dtype=np.float32))] * 2))
    assert said.endswith(f"None as the observation, in reset() of all environments, and its observation_space {SAYS}")


def test_a_vector_whose_arrays_are_not_as_declared_is_refused():
    class Odd(SyncVectorEnv):
        def step(self, actions):
            obs, reward, *rest = super().step(actions)
            return self.change(obs, reward) + tuple(rest)

    def make(change):
        def make_env():
            envs = Odd([lambda: Gives(box(40, 44), ends=3)] * 2)
            envs.change = change
            return envs

        return make_env

    said = first_error(make(lambda obs, reward: (obs / 255, reward)))
    assert (
        "of float64 of shape [40, 44], in a step of all environments, and its observation_space says uint8 of shape"
        in said
    )
    said = first_error(make(lambda obs, reward: (obs.reshape(2, 44, 40), reward)))
    assert "an observation of uint8 of shape [44, 40]" in said
    said = first_error(make(lambda obs, reward: (obs, reward[:, None])))
    assert "return one number for each of its 2 environments" in said
    said = first_error(make(lambda obs, reward: (obs, ["1,5", 1.0])))
    assert "returned the rewards ['1,5', 1.0]; return one number" in said
    said = first_error(lambda: Gives(box(3), rewards=[None]))
    assert "the reward nan, in step 1 of an episode, environment 0; correct it there (None counts as nan)" in said


def played(envs, steps):
    """Let environments step so often."""
    for _ in range(steps):
        envs.step(np.zeros(envs.num_envs, np.int64))


@pytest.mark.parametrize("mode", MODES)
def test_the_step_of_a_misfit_is_that_of_its_own_episode(mode):
    def make_env():
        wrong = {2: np.zeros(4, np.float32)}
        envs = [lambda: Gives(box(3, dtype=np.float32), ends=3), lambda: Gives(box(3, dtype=np.float32), wrong, ends=3)]
        return SyncVectorEnv(envs, autoreset_mode=mode)

    envs = CustomEnvs(name_of(make_env), 2, seed=0)
    envs.reset()
    envs._envs.envs[1]._obs, wrong = {}, envs._envs.envs[1]._obs
    while envs._envs.envs[1].resets == 1:  # through a whole episode without it
        envs.step([0, 0])
    envs._envs.envs[1]._obs = wrong
    with pytest.raises(RunError, match=r"of shape \[4\], in step 2 of an episode, environment 1, and"):
        played(envs, 4)
    envs.close()


def test_a_misfit_of_the_observation_that_opens_an_episode_is_in_reset():
    for mode in MODES:
        vector = SyncVectorEnv([lambda: Gives(box(3, dtype=np.float32), ends=3)], autoreset_mode=mode)
        envs = CustomEnvs(name_of(lambda vector=vector: vector), 1, seed=0)
        envs.reset()
        vector.envs[0]._obs = {0: np.zeros(4, np.float32)}
        with pytest.raises(RunError, match=r"of shape \[4\], in reset\(\), environment 0, and"):
            played(envs, 5)
        envs.close()


# --- casts --------------------------------------------------------------------------------------------


def casts(make_env):
    """Return what is warned of while an environment is played, made as often as a run makes it."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as found:
        patch.setattr(observations, "_told", set())
        warnings.simplefilter("always")
        for _ in range(3):
            envs = CustomEnvs(name_of(make_env), 2, seed=0)
            envs.reset()
            played(envs, 3)
            envs.close()
    return [str(each.message) for each in found if "to which it is cast" in str(each.message)]


@pytest.mark.parametrize("when", [0, 1])
def test_observations_of_another_dtype_than_declared_are_warned_of_once(when):
    def make_env():
        return Gives(box(3, dtype=np.float32), {when: np.full(3, 0.1)})

    (said,) = casts(make_env)
    assert f"environment {name_of(make_env)!r} returned an observation of float64, and its observation_space" in said
    assert "says float32, to which it is cast; let the two agree (.astype('float32'), or" in said


def test_each_array_that_is_cast_is_warned_of_by_name():
    space = spaces.Dict({"a": box(3, dtype=np.float32), "b": box(2, dtype=np.int32), "c": box(2, dtype=np.float32)})
    given = {"a": np.zeros(3), "b": np.zeros(2, np.int64), "c": np.zeros(2, np.float32)}
    first, second = casts(lambda: Gives(space, dict.fromkeys(range(9), given)))
    assert "returned an observation['a'] of float64, and its observation_space says float32" in first
    assert "returned an observation['b'] of int64, and its observation_space says int32" in second


@pytest.mark.parametrize("given", [np.zeros(3, np.float16), np.zeros(3, np.uint8), np.zeros(3, np.float32), [0.5] * 3])
def test_observations_that_lose_nothing_and_lists_are_not_warned_of(given):
    assert casts(lambda: Gives(box(3, dtype=np.float32), {0: given, 1: given})) == []


# --- scores -------------------------------------------------------------------------------------------

LARGE = 2.0**24 + 1  # which float32 does not hold


def make_rich():
    return Gives(box(3, dtype=np.float32), rewards=[2.0**24, 1.0], ends=2)


def test_large_scores_are_reported_exactly(tmp_path, capsys):
    run = train.dqn(make_rich, small(make_rich, tmp_path, name="x", log_every_frames=50))
    rows = MetricsCsv(Path(run.folder / "metrics.csv"), "frames", rows=100)._read()
    assert {row["games/return_mean_100"] for row in rows if row["games/return_mean_100"]} == {repr(LARGE)}
    assert [row["evaluation/return_max"] for row in rows if row["evaluation/return_max"]] == [repr(LARGE)]
    assert run.evaluation.last.scores.tolist() == [LARGE]
    assert "mean 16,777,217.0" in capsys.readouterr().out


def test_ordinary_scores_are_the_numbers_that_they_always_were():
    envs = open_envs(lambda: Gives(box(3, dtype=np.float32), rewards=[0.1, 0.1, 5.0]))
    envs.reset()
    scores = [envs.step([0, 0]).score for _ in range(3)]
    assert all(score.dtype == np.float64 for score in scores)
    assert [score[0] for score in scores] == [float(np.float32(total)) for total in (0.1, 0.2, 5.2)]


# --- limits -------------------------------------------------------------------------------------------


def async_vector(mode, shared_memory):
    make = {"autoreset_mode": mode, "shared_memory": shared_memory}
    return lambda: AsyncVectorEnv([make_long] * 2, **make)


@pytest.mark.parametrize(
    "make_env",
    [
        make_long,
        *[lambda mode=mode: SyncVectorEnv([make_long] * 2, autoreset_mode=mode) for mode in MODES],
        async_vector(AutoresetMode.NEXT_STEP, True),
        async_vector(AutoresetMode.SAME_STEP, True),
        async_vector(AutoresetMode.DISABLED, False),
    ],
)
def test_an_episode_is_truncated_at_the_limit_in_every_kind_of_vector(make_env):
    envs = open_envs(make_env, max_episode_steps=5)
    envs.reset()
    inside, seen = envs.autoreset == "next_step", []
    for _ in range(18):
        step = envs.step([0, 1])
        last = step.frame if inside or step.final is None else step.final
        assert (step.frame == step.frame[0, 0]).all()
        assert not step.terminated.any()
        seen.append((int(step.length[0]), int(last[0, 0]), int(step.frame[0, 0]), bool(step.truncated[0])))
        assert step.game_over[0] == step.truncated[0]
        assert step.score[0] == step.length[0]
    envs.close()
    episode = [(n, n, n, False) for n in range(1, 5)]
    end = [(5, 5, 5, True), (0, 0, 0, False)] if inside else [(5, 5, 0, True)]
    assert seen == ([*episode, *end] * 4)[:18]


def test_an_episode_that_ends_in_the_step_that_the_vector_plays_past_the_limit_begins_once():
    made = []

    def make_env():
        made.append(Gives(box(3, dtype=np.float32), ends=6))
        return made[-1]

    envs = open_envs(make_env, max_episode_steps=5)
    envs.reset()
    shown = [int(envs.step([0, 0]).frame[0, 0]) for _ in range(12)]
    assert shown == [1, 2, 3, 4, 5, 0] * 2
    assert made[0].resets == 3


@pytest.mark.parametrize("mode", MODES)
def test_an_episode_that_ends_at_the_limit_is_terminated_and_one_of_a_single_step_is_a_step_long(mode):
    def make(**settings):
        one = Gives(box(3, dtype=np.float32), **settings)
        return lambda: SyncVectorEnv([lambda: one], autoreset_mode=mode)

    envs = open_envs(make(ends=3), max_episode_steps=3)
    envs.reset()
    *_, last = [envs.step([0]) for _ in range(3)]
    assert (last.terminated.tolist(), last.truncated.tolist()) == ([True], [False])
    envs = open_envs(make(), max_episode_steps=1)
    envs.reset()
    ends = [bool(envs.step([0]).truncated[0]) for _ in range(4)]
    assert ends == ([True, False] * 2 if mode == AutoresetMode.NEXT_STEP else [True] * 4)


def test_in_one_step_an_environment_ends_by_itself_and_another_at_the_limit():
    both = [Gives(box(3, dtype=np.float32), ends=ends) for ends in (5, None)]
    envs = open_envs(
        lambda: SyncVectorEnv([lambda: both[0], lambda: both[1]], autoreset_mode="SameStep"), max_episode_steps=5
    )
    envs.reset()
    *_, last = [envs.step([0, 0]) for _ in range(5)]
    assert (last.terminated.tolist(), last.truncated.tolist()) == ([True, False], [False, True])
    assert (last.final[:, 0].tolist(), last.frame[:, 0].tolist()) == ([5, 5], [0, 0])


def test_the_first_observation_of_a_later_episode_is_one_of_reset_in_every_mode():
    class Worse(Gives):
        def reset(self, **settings):
            obs, info = super().reset(**settings)
            return (obs if self.resets == 1 else NAN_AT_2), info

    for vector in EVERY:
        assert "is nan, in reset(), environment 0" in first_error(
            vector(lambda: Worse(box(3, dtype=np.float32), ends=2))
        )


def test_the_limit_of_the_environment_wins_if_it_is_shorter():
    envs = open_envs(lambda: TimeLimit(make_long(), 3), max_episode_steps=5)
    envs.reset()
    assert [bool(envs.step([0, 0]).truncated[0]) for _ in range(8)] == [False, False, True, False] * 2


def test_a_vector_that_cannot_be_cut_off_is_warned_of_once():
    envs = open_envs(async_vector(AutoresetMode.NEXT_STEP, False), max_episode_steps=5)
    envs.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(5):
            envs.step([0, 0])
    with pytest.warns(UserWarning, match="an episode of more than --max-episode-steps, and its vector cannot reset"):
        envs.step([0, 0])
    assert envs.step([0, 0]).length.tolist() == [7, 7]
    envs.close()


def test_a_run_and_its_evaluations_cut_games_off_where_it_is_told_to(tmp_path, capsys):
    run = train.dqn(make_long, small(make_long, tmp_path, name="x", total_frames=300, max_episode_steps=20))
    assert run.evaluation.last.lengths.tolist() == [20]
    assert max(length for length in run.callbacks[0]._lengths) == 20
    capsys.readouterr()
    assert evaluate.main([str(run.folder), "--episodes", "2"]) == 0
    said = capsys.readouterr().out
    assert "at most 20 steps" in said
    assert "of 20 steps on average" in said
    assert evaluate.main([str(run.folder), "--episodes", "2", "--max-episode-steps", "30"]) == 0
    assert "of 30 steps on average" in capsys.readouterr().out


def test_a_flat_observation_is_what_the_message_on_channels_promises(tmp_path):
    def make_env():
        return FlattenObservation(image(6, 7, 12))

    run = train.dqn(make_env, small(make_env, tmp_path, total_frames=80), quiet=True)
    assert run.config.trunk == "vector"


def test_observations_without_a_number_are_refused():
    with pytest.raises(ConfigError, match="give a Box of shape"):
        open_envs(lambda: Gives(box(0, dtype=np.float32)))
