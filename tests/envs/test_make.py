"""One maker of environments: which kind it makes, and what it refuses."""

import re
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from replay_autoreset import Walk

pytest.importorskip("envpool")
pytest.importorskip("ale_py")
pytest.importorskip("cv2")

from fastrl.base.errors import ConfigError
from fastrl.envs.ale import AleEnvs
from fastrl.envs.atari import AtariEnvs
from fastrl.envs.custom import CustomEnvs
from fastrl.envs.make import look_at, make_envs
from fastrl.envs.names import name_of
from fastrl.envs.rules import Rules

ROOT = Path(__file__).parent.parent.parent
RULES = Rules(full_action_set=True, noop_max=3, frame_skip=2, repeat_action_probability=0.1, episodic_life=False)


def make_walk():
    return Walk(0)


def make_vector():
    return SyncVectorEnv([lambda: Walk(0)] * 3, autoreset_mode=AutoresetMode.SAME_STEP)


def test_nothing_else_makes_environments():
    call = re.compile(r"\b(AtariEnvs|AleEnvs|CustomEnvs)\(")
    callers = [
        str(path.relative_to(ROOT))
        for folder in ("fastrl", "bench", "examples", "tools")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if call.search(path.read_text())
    ]
    assert callers == ["fastrl/envs/make.py"]


@pytest.mark.parametrize(
    ("game", "num_envs", "options", "kind"),
    [
        ("pong", 2, {}, AtariEnvs),
        ("catch", 2, {}, AtariEnvs),
        ("pong", 1, {"backend": "gymnasium"}, AleEnvs),
        (name_of(make_walk), 2, {}, CustomEnvs),
        (name_of(make_walk), 2, {"backend": "gymnasium"}, CustomEnvs),
    ],
)
def test_the_name_of_a_game_and_the_backend_decide_the_kind(game, num_envs, options, kind):
    envs = make_envs(game, num_envs, rules=Rules(), seed=1, **options)
    assert type(envs) is kind
    assert envs.num_envs == num_envs
    assert len(envs.action_names) == envs.num_actions
    step = envs.reset()
    assert step.frame.shape == (num_envs, *envs.frame_shape)
    assert step.frame.dtype == envs.frame_dtype
    assert step.first.all()
    assert step.reset.all()
    assert envs.takes_actions
    envs.send(np.zeros(num_envs, int))
    assert envs.recv().length.tolist() == [1] * num_envs
    envs.close()


def test_the_rules_reach_both_makers_of_atari_games():
    envpool = make_envs("breakout", 2, rules=RULES, seed=1, max_episode_steps=9, reward_clip=True)
    config = envpool._pool.config
    assert config["full_action_space"]
    assert not config["episodic_life"]
    assert config["noop_max"] == 3
    assert config["frame_skip"] == envpool.frame_skip == 2
    assert config["max_episode_steps"] == 9
    assert config["reward_clip"]
    assert config["repeat_action_probability"] == pytest.approx(0.1)
    ale = make_envs("breakout", 1, rules=RULES, seed=1, max_episode_steps=9, backend="gymnasium")
    assert ale.action_names == envpool.action_names
    assert (ale.num_actions, ale.frame_skip, ale._env.noop_max) == (18, 2, 3)
    assert ale._env.unwrapped.ale.getFloat("repeat_action_probability") == pytest.approx(0.1)


def test_atari_games_draw_where_asked_to_and_custom_ones_where_they_can():
    assert not make_envs("pong", 1, rules=Rules(), seed=1).has_pictures
    for backend in ("envpool", "gymnasium"):
        envs = make_envs("pong", 1, rules=Rules(), seed=1, backend=backend, pictures=True)
        envs.reset()
        assert envs.has_pictures
        assert envs.render().shape == (210, 160, 3)
    assert not make_envs("catch", 1, rules=Rules(), seed=1, pictures=True).has_pictures
    assert not make_envs(name_of(make_walk), 1, rules=Rules(), seed=1, pictures=True).has_pictures


@pytest.mark.parametrize(
    ("game", "num_envs", "options", "message"),
    [
        ("pong", 1, {"backend": "atari"}, "backend is 'atari'; give 'envpool' or 'gymnasium'"),
        ("pong", 2, {"backend": "gymnasium"}, "num_envs is 2; backend 'gymnasium' plays one game at a time: give 1"),
        ("pong", 1, {"backend": "gymnasium", "dephase_steps": 5}, "dephase_steps is 5.*; give 0"),
        ("catch", 1, {"backend": "gymnasium"}, "backend is 'gymnasium', which has no catch; give 'envpool'"),
        ("no_such_module:make_env", 1, {}, "'no_such_module:make_env' cannot be imported"),
        ("brekout", 1, {}, "did you mean breakout"),
    ],
)
def test_what_cannot_be_made_is_named(game, num_envs, options, message):
    with pytest.raises(ConfigError, match=message):
        make_envs(game, num_envs, rules=Rules(), seed=1, **options)


def test_a_look_at_a_custom_environment_tells_its_frames_and_its_number():
    assert look_at(name_of(make_walk)) == ((3,), None)
    assert look_at(name_of(make_vector)) == ((3,), 3)
    with pytest.raises(ConfigError, match="returned int; return a gymnasium"):
        look_at(name_of(lambda: 3))


def test_a_vector_returns_the_rows_that_are_asked_for_and_steps_the_others_by_their_first_action():
    taken = []

    class Noting(Walk):
        def step(self, action):
            taken.append(int(action))
            return super().step(action)

    assert issubclass(Noting, gym.Env)
    make = lambda: SyncVectorEnv([lambda: Noting(0)] * 3, autoreset_mode=AutoresetMode.SAME_STEP)  # noqa: E731
    envs = make_envs(name_of(make), 3, rules=Rules(), seed=1)
    whole = make_envs(name_of(make), 3, rules=Rules(), seed=1)
    for each in (envs, whole):
        each.reset()
    for _ in range(6):
        taken.clear()
        envs.send([3, 2], [2, 0])
        rows = envs.recv()
        assert taken == [2, 0, 3]
        whole.send([2, 0, 3])
        every = whole.recv()
        assert rows.env_id.tolist() == [2, 0]
        for name in ("frame", "reward", "game_over", "first", "score", "length", "final"):
            column = getattr(every, name)
            assert np.array_equal(getattr(rows, name), column[[2, 0]]) if column is not None else rows.final is None
    with pytest.raises(ValueError, match="at most once"):
        envs.send([1, 1], [0, 0])
