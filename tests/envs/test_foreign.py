"""Code of custom environments, whatever it is and does: the run says the true thing, or refuses in one line."""

from __future__ import annotations

import functools
import os
import random
import signal
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from replay_autoreset import Walk

pytest.importorskip("envpool")

from fastrl import evaluate, train
from fastrl.base.errors import ConfigError
from fastrl.config import PRESETS, DQNConfig
from fastrl.dqn.run import train as train_config
from fastrl.envs import names
from fastrl.envs.custom import CustomEnvs
from fastrl.envs.foreign import EnvError
from fastrl.envs.names import load, name_of
from fastrl.play.games import play_games
from fastrl.runs.folder import RunFolder

HERE = __name__
FILE = os.path.relpath(__file__) if not os.path.relpath(__file__).startswith("..") else __file__


class Odd(gym.Env):
    """Does in reset and step what it is told, step only after some steps."""

    def __init__(self, reset=None, step=None, after=0, size=3):
        self.observation_space, self.action_space = spaces.Box(-5, 5, (size,), np.float32), spaces.Discrete(2)
        self.does_reset, self.does_step, self.after, self.steps = reset, step, after, 0
        self.obs = np.zeros(size, np.float32)

    def reset(self, *, seed=None, options=None):
        return self.does_reset() if self.does_reset else (self.obs, {})

    def step(self, action):
        self.steps += 1
        if self.does_step and self.steps > self.after:
            return self.does_step()
        return self.obs, 1.0, self.steps % 10 == 0, False, {}


class Ended(BaseException):
    pass


def fail(error=ValueError):
    raise error("first line\nsecond line")


LINE = next(n for n, line in enumerate(Path(__file__).read_text().splitlines(), 1) if "first line" in line)


class Factory:
    def __init__(self, size):
        self.size = size

    def make(self):
        return Odd(size=self.size)

    def __call__(self):
        return Odd(size=self.size)

    @classmethod
    def small(cls):
        return Odd(size=2)


def closure(size):
    def make_env():
        return Odd(size=size)

    return make_env


ONE = Odd()
factory = Factory(5)
part = functools.partial(Odd, size=5)
lam = lambda: Odd(size=5)  # noqa: E731
method = Factory(5).make
inner = closure(5)


def make_odd():
    return Odd()


def small(make_env, tmp_path, **settings) -> DQNConfig:
    return PRESETS["catch"].config.replace(
        game=name_of(make_env), device="cpu", compile=False, runs_dir=str(tmp_path), hidden=8, num_envs=2, batch_size=8,
        total_frames=200, learn_start_steps=20, evaluate_episodes=1, final_episodes=1, frame_skip=1, name="run",
        **settings,
    )  # fmt: skip


@pytest.fixture
def fresh(monkeypatch):
    """Another process: it was given no callable as an object."""
    monkeypatch.setattr(names, "_given", {})


# --- what a callable is -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make_env", "name"),
    [
        (make_odd, "make_odd"),
        (Odd, "Odd"),
        (Factory.small, "Factory.small"),
        (factory, "factory"),
        (factory.make, "factory.make"),
        (part, "part"),
        (lam, "lam"),
        (method, "method"),
        (inner, "inner"),
    ],
)
def test_a_callable_of_any_kind_goes_by_a_name_that_another_process_can_import(make_env, name, monkeypatch, request):
    if make_env is part:  # whose own module is functools: the script holds it
        monkeypatch.setitem(sys.modules, "__main__", sys.modules[HERE])
    given = name_of(make_env)
    assert given == (f"{Path(__file__).stem}:{name}" if make_env is part else f"{HERE}:{name}")
    assert load(given) is make_env
    size = make_env().observation_space.shape
    request.getfixturevalue("fresh")
    assert load(given)().observation_space.shape == size


@pytest.mark.parametrize("make_env", [lambda: Odd(), functools.partial(Odd), Factory(3), Factory(3).make])
def test_a_callable_that_no_variable_holds_has_a_name_that_does_not_lead_elsewhere(make_env, request):
    name = name_of(make_env)
    assert load(name) is make_env
    request.getfixturevalue("fresh")
    with pytest.raises(ConfigError, match="cannot be imported"):
        load(name)


def test_a_name_leads_to_the_callable_of_a_module_whose_import_failed_no_more(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    source = tmp_path / "mended.py"
    source.write_text(
        "from fastrl.envs.names import name_of\ndef make_env():\n    return 1\nname_of(make_env)\nmistake\n"
    )
    for _ in range(2):
        with pytest.raises(
            ConfigError, match=r"mended raised NameError: name 'mistake' is not defined at .*mended\.py:5"
        ):
            load("mended:make_env")
    source.write_text("def make_env():\n    return 22\n")
    assert load("mended:make_env")() == 22


@pytest.mark.parametrize("thing", [ONE, 3, None, "make_odd"], ids=str)
def test_what_cannot_be_called_is_refused_as_an_object_and_by_its_name(thing, tmp_path, monkeypatch):
    match = "is an environment itself, of type Odd; give a callable that makes" if thing is ONE else "cannot be called"
    with pytest.raises(ConfigError, match=match):
        train.dqn(thing, small(make_odd, tmp_path), quiet=True)
    monkeypatch.setattr(sys.modules[HERE], "thing", thing, raising=False)
    with pytest.raises(ConfigError, match=match):
        train.main([f"{HERE}:thing"])
    assert list(tmp_path.iterdir()) == []


COUNT = []


def growing():
    COUNT.append(1)
    return Odd(size=len(COUNT))


def changing_actions():
    COUNT.append(1)
    env = Odd()
    env.action_space = spaces.Discrete(1 + len(COUNT))
    return env


def first_a_vector():
    COUNT.append(1)
    return Odd() if len(COUNT) % 2 else SyncVectorEnv([Odd])


def spaceless():
    env = Odd()
    del env.observation_space
    return env


def generator():
    yield Odd()


@pytest.mark.parametrize(
    ("make_env", "message"),
    [
        (fail, f"raised ValueError: first line in make_env(), at {FILE}:{LINE}; correct it there"),
        (lambda: fail(Ended), f"raised Ended: first line in make_env(), at {FILE}:{LINE};"),
        (lambda: sys.exit(3), "raised SystemExit: 3 in make_env(), at "),
        (lambda: gym.make("Nothing-v0"), "raised NameNotFound: Environment `Nothing` doesn't exist"),
        (
            lambda size: Odd(),
            "cannot be called without arguments (missing a required argument: 'size'); give a function",
        ),
        (Factory.make, "cannot be called without arguments (missing a required argument: 'self')"),
        (lambda: None, "returned None (is its `return` missing?); return a gymnasium.Env or a"),
        (lambda: Odd, "returned the class Odd (call it); return a"),
        (lambda: make_odd, "returned function (call it); return a"),
        (generator, "returned a generator (say return instead of yield); return a"),
        (lambda: ONE, "returned the same Odd twice; make a new one at each call"),
        (lambda: gym.wrappers.TimeLimit(ONE, 5), "returned the same Odd twice; make a new one at each call"),
        (
            growing,
            "has the observation_space Box(-5.0, 5.0, (1,), float32) at one call and Box(-5.0, 5.0, (2,), float32)",
        ),
        (changing_actions, "has the action_space Discrete(2) at one call and Discrete(3) at another; let all have"),
        (first_a_vector, "returned a vector at one call and not at another"),
        (spaceless, "has None as its observation_space; set it to one of gymnasium.spaces in its __init__"),
        (lambda: Odd(reset=fail), f"raised ValueError: first line in reset(), at {FILE}:{LINE}; correct it there"),
        (lambda: Odd(reset=lambda: np.zeros(3)), "failed in reset(): ValueError: too many values to unpack"),
        (lambda: Odd(reset=lambda: None), "reset() returns a pair (observation, info)"),
    ],
)
def test_a_callable_that_does_not_do_is_refused_before_anything_is_written(make_env, message, tmp_path):
    COUNT.clear()
    with pytest.raises((ConfigError, EnvError)) as refused:
        train_config(small(make_env, tmp_path), quiet=True)
    said = str(refused.value)
    assert said.startswith(f"environment '{name_of(make_env)}' ")
    assert message in said
    assert "\n" not in said
    assert list(tmp_path.iterdir()) == []


def test_what_was_made_before_a_callable_fails_is_closed(tmp_path):
    made, closed = [], []

    class Closing(Odd):
        def close(self):
            closed.append(self)

    def make_env():
        if len(made) == 2:
            fail()
        made.append(Closing())
        return made[-1]

    with pytest.raises(ConfigError, match="first line"):
        CustomEnvs(name_of(make_env), 5, seed=1)
    assert closed == made
    assert len(made) == 2


def test_the_same_object_is_refused_in_an_evaluation_too(tmp_path):
    only = Odd()
    name = name_of(lambda: only)
    playing = CustomEnvs(name, 1, seed=1)
    with pytest.raises(ConfigError, match="returned the same Odd twice"):
        play_games(name, lambda stacks: np.zeros(len(stacks), int), 1, seed=1)
    playing.close()
    vector = SyncVectorEnv([Odd])
    CustomEnvs(name_of(lambda: vector), 1, seed=1)
    with pytest.raises(ConfigError, match="returned the same SyncVectorEnv twice"):
        CustomEnvs(name_of(lambda: vector), 1, seed=1)


# --- what it does while it is imported ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "import sys\nsys.exit(2)",
            r'raised SystemExit: 2 at .*odd_import\.py:2; put .* under `if __name__ == "__main__":`',
        ),
        (
            "x = 1\nimport no_such_thing",
            r"raised ModuleNotFoundError: No module named 'no_such_thing' at .*import\.py:2;",
        ),
        ("x = 1\nx = (", r"raised SyntaxError: '\(' was never closed .* at .*odd_import\.py:2; correct it there"),
        ("class E(BaseException): pass\nraise E", r"raised E at .*odd_import\.py:2; correct it there"),
        ("def make_envs(): pass", r"no attribute 'make_env'\); did you mean odd_import:make_envs\?"),
        ("make_env = 3", "is of type int, which cannot be called"),
    ],
)
def test_a_module_that_cannot_be_imported_is_answered_with_its_line(source, message, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "odd_import", raising=False)
    (tmp_path / "odd_import.py").write_text(source + "\n")
    with pytest.raises(ConfigError, match=message) as refused:
        load("odd_import:make_env")
    assert "\n" not in str(refused.value)


def test_the_working_directory_stays(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "moving", raising=False)
    (tmp_path / "moving.py").write_text(
        "import os\nfrom replay_autoreset import Walk\nos.chdir('/')\n\n"
        "def make_env():\n    os.chdir('/')\n    return Walk(0)\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match=r"changed the working directory to / in its import; it is .* again: let"):
        load("moving:make_env")
    with pytest.warns(UserWarning, match=r"changed the working directory to / in make_env\(\)"):
        CustomEnvs("moving:make_env", 1, seed=1)
    assert Path.cwd() == tmp_path


# --- what it does in a run ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "message", "cause"),
    [
        (fail, f"raised ValueError: first line in step(), at {FILE}:{LINE}; correct it there", ValueError),
        (lambda: fail(Ended), f"raised Ended: first line in step(), at {FILE}:{LINE};", Ended),
        (sys.exit, "raised SystemExit in step(), at ", SystemExit),
        (lambda: fail(KeyboardInterrupt), f"raised KeyboardInterrupt in step(), at {FILE}:{LINE};", KeyboardInterrupt),
        (
            lambda: (np.zeros(3), 1.0, False, {}),
            "failed in step(): ValueError: not enough values to unpack (expe",
            ValueError,
        ),
        (lambda: None, "step() returns (observation, reward, terminated, truncated, info)", TypeError),
    ],
)
def test_an_environment_that_fails_in_the_run_ends_it_with_what_was_learned_saved(
    step, message, cause, tmp_path, capsys
):
    def make_env():
        return Odd(step=step if broken else None, after=60)

    broken = True
    config = small(make_env, tmp_path)
    with pytest.raises(EnvError) as ended:
        train_config(config)
    assert message in str(ended.value)
    assert type(ended.value.__cause__) is cause  # with its traceback
    assert "what was learned is saved; resume with: " in capsys.readouterr().out
    found, words = RunFolder(tmp_path / "run").newest_whole()
    assert (found.name, words) == (f"{2 * 60:012d}", [])
    broken = False
    assert train_config(config, resume=tmp_path / "run", quiet=True).frames == 200


@pytest.mark.filterwarnings("ignore::UserWarning")  # Gymnasium's way to print tracebacks
@pytest.mark.parametrize(
    ("step", "message"),
    [
        (fail, "failed in step(): ValueError: first line; the traceback of its process stands above"),
        (lambda: os._exit(9), "failed in step(): EOFError; a process of its vector is gone"),
    ],
)
def test_an_environment_that_fails_in_a_process_of_its_own_ends_the_run_too(step, message, tmp_path):
    def make_env():
        return AsyncVectorEnv([lambda: Odd(step=step, after=30)] * 2)

    with pytest.raises(EnvError) as ended:
        train_config(small(make_env, tmp_path), quiet=True)
    assert message in str(ended.value)
    assert RunFolder(tmp_path / "run").newest_whole()[0].name == f"{2 * 30:012d}"


def test_a_second_control_c_in_an_environment_is_one(tmp_path):
    def asked():
        raise KeyboardInterrupt(signal.SIGINT)  # as `fastrl.base.stop` does

    with pytest.raises(KeyboardInterrupt):
        train_config(small(lambda: Odd(step=asked, after=9), tmp_path), quiet=True)


def test_closing_that_fails_is_a_warning_and_all_others_are_closed(tmp_path):
    closed = []

    class Closing(Odd):
        def close(self):
            closed.append(self)
            fail()

    envs = CustomEnvs(name_of(Closing), 3, seed=1)
    with pytest.warns(UserWarning, match=r"raised ValueError: first line in close\(\), at ") as warned:
        envs.close()
    assert (len(warned), len(closed)) == (3, 3)


def test_generators_that_everybody_shares_are_not_ours(tmp_path):
    def restart():
        np.random.seed(0)  # noqa: NPY002
        random.seed(0)
        torch.manual_seed(0)
        return Walk(0)

    class Restarting(Walk):
        def __init__(self):
            super().__init__(0)

        def step(self, action):
            restart()
            return super().step(action)

    lines = []
    for number, make_env in enumerate((lambda: Walk(0), Restarting)):
        run = train_config(small(make_env, tmp_path / str(number), trunk="vector"), quiet=True)
        head, *rows = [line.split(",") for line in (run.folder / "metrics.csv").read_text().splitlines()]
        lines.append([[v for k, v in zip(head, row, strict=True) if not k.startswith("time/")] for row in rows])
    assert lines[0] == lines[1]


def test_a_look_plays_a_step_so_that_a_run_need_not_begin(tmp_path):
    with pytest.raises(EnvError, match="not enough values to unpack"):
        train.config_for(lambda: Odd(step=lambda: (np.zeros(3), 1.0, False, {})))


# --- seeds --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("seed", [0, 7, 2**31 - 3, 2**31 - 2, 2**31 - 1, 2**31, 2**32 - 1, 2**64, 10**30])
def test_environments_get_seeds_of_31_bits_each_another_one(seed, num_envs):
    seeds = []

    class Seeded(Walk):
        def __init__(self):
            super().__init__(0)

        def reset(self, *, seed=None, options=None):
            seeds.append(seed)
            return super().reset(seed=seed, options=options)

    envs = CustomEnvs(name_of(Seeded), num_envs, seed=seed)
    envs.reset()
    assert len(set(seeds)) == num_envs
    assert all(0 <= given < 2**31 for given in seeds)
    if seed + num_envs <= 2**31:
        assert seeds == list(range(seed, seed + num_envs))
    envs.reset()
    assert seeds[num_envs:] == [None] * num_envs
    envs.close()


def test_a_run_and_its_evaluations_take_seeds_of_any_size(tmp_path):
    config = small(lambda: Walk(0), tmp_path, seed=2**63 - 1, trunk="vector")
    assert train_config(config, quiet=True).evaluation.last is not None
    catch = PRESETS["catch"].config.replace(
        seed=2**63 - 1, device="cpu", compile=False, runs_dir=str(tmp_path), total_frames=200, final_episodes=1
    )
    assert train_config(catch, quiet=True).evaluation.last is not None


def test_the_vector_of_ale_py_takes_the_seeds_of_a_run():
    ale_py = pytest.importorskip("ale_py")
    gym.register_envs(ale_py)
    for seed in (2**31 - 1, 2**32 - 1):
        envs = CustomEnvs(name_of(lambda: gym.make_vec("ALE/Breakout-v5", num_envs=3)), 3, seed=seed)
        assert envs.reset().reset.all()
        envs.close()


# --- in place of the environment of the training --------------------------------------------------------


class Three(Odd):
    def __init__(self):
        super().__init__()
        self.action_space = spaces.Discrete(3)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            "factory",
            r"frames of shape \[4, 5\], and the network was trained on \[4, 3\]; give --make-env the environment",
        ),
        ("Three", "the values of 2 actions, and the environment has 3; give the environment that"),
    ],
)
def test_an_agent_is_not_evaluated_in_an_environment_of_other_spaces(other, message, tmp_path):
    run = train_config(small(make_odd, tmp_path, trunk="vector", stack=4), quiet=True)
    with pytest.raises(ConfigError, match=message):
        evaluate.main([str(run.folder), "--make-env", f"{HERE}:{other}", "--episodes", "1"])
