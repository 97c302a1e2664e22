"""EnvPool's rules as Step records, checked against EnvPool itself and against ale_py."""

import sys

import numpy as np
import pytest

envpool = pytest.importorskip("envpool")

from fastrl.base import extras  # noqa: E402
from fastrl.base.errors import ConfigError  # noqa: E402
from fastrl.envs import names  # noqa: E402
from fastrl.envs.atari import AtariEnvs  # noqa: E402
from fastrl.envs.frame_stack import FrameStack  # noqa: E402
from fastrl.envs.names import task_id  # noqa: E402

FIELDS = "frame reward terminated truncated first reset game_over score length env_id".split()


def twin(envs, game, **options):
    """EnvPool itself, with the seeds of `envs` and other options: it plays the same games."""
    options = {"stack_num": 1, "episodic_life": True, **options}
    seeds = list(envs._pool.config["env_seed"])
    return envpool.make(task_id(game), env_type="gymnasium", num_envs=len(seeds), seed=seeds, **options)


def play(envs, steps, seed=0):
    """Yield the reset row and `steps` random steps, with the actions that led to them."""
    rng = np.random.default_rng(seed)
    yield None, envs.reset()
    for _ in range(steps):
        actions = rng.integers(envs.num_actions, size=envs.num_envs)
        yield actions, envs.step(actions)


def same(step, other):
    return all(np.array_equal(getattr(step, name), getattr(other, name)) for name in FIELDS)


# Names


def test_the_games_are_ataris_and_catch_alone():
    games = names.game_names()
    assert {"breakout", "space_invaders", "ms_pacman", "catch"} <= set(games)
    assert len(games) > 100
    assert not {"ant", "humanoid", "walker2d", "coinrun"} & {game.lower() for game in games}


@pytest.mark.parametrize(
    "spelling", ["space_invaders", "SpaceInvaders", "SpaceInvaders-v5", "ALE/SpaceInvaders-v5", "spaceinvaders-v5"]
)
def test_every_spelling_finds_its_game(spelling):
    assert task_id(spelling) == "SpaceInvaders-v5"
    assert names.game_name(spelling) == "space_invaders"


def test_catch_has_a_name_of_the_same_form():
    assert task_id("catch") == task_id("Catch-v0") == "Catch-v0"


def test_an_unknown_game_is_answered_with_the_nearest_names():
    with pytest.raises(ConfigError, match=r"game is 'brekout'.*did you mean breakout"):
        AtariEnvs("brekout", 1, seed=1)
    with pytest.raises(ConfigError, match=r"game is 'Ant-v5'"):
        task_id("Ant-v5")
    with pytest.raises(ConfigError, match=r"game_names\(\) lists"):
        task_id("qqqq")


def test_every_game_has_as_many_actions_in_ale_py_as_in_envpool():
    pytest.importorskip("ale_py")
    for game in names.game_names()[:-1:16]:
        in_envpool = envpool.make_spec(task_id(game)).gymnasium_action_space.n
        assert len(names.action_names(game)) == in_envpool, game


def test_actions_are_numbers_without_ale_py(monkeypatch):
    monkeypatch.setitem(sys.modules, "ale_py", None)
    names.action_names.cache_clear()
    assert AtariEnvs("breakout", 1, seed=1).action_names == ["0", "1", "2", "3"]
    names.action_names.cache_clear()


def test_a_missing_package_is_answered_with_the_extra_to_install():
    with pytest.raises(ImportError, match=r"test_atari needs the extra 'train': pip install -c \S*constraints.txt -e"):
        extras.need("no_such_package_at_all", "train")


# Rows


@pytest.mark.parametrize(
    ("game", "options"),
    [
        ("breakout", {}),
        ("breakout", {"episodic_life": False, "max_episode_steps": 150}),
        ("breakout", {"max_episode_steps": 70}),
        ("pong", {"max_episode_steps": 40, "episodic_life": False}),
        ("ms_pacman", {"repeat_action_probability": 0.25}),
        ("space_invaders", {"noop_max": 1500}),
    ],
)
def test_rows_and_stacks_equal_envpools_own_with_four_frames(game, options):
    envs = AtariEnvs(game, 2, seed=5, **options)
    stacks = FrameStack(2, 4, envs.frame_shape, envs.frame_dtype)
    own = twin(envs, game, stack_num=4, reward_clip=True, **options)
    score, ended, lives = np.zeros(2), np.zeros(2, bool), np.zeros(2, int)
    length = np.zeros(2, int)
    resets, lost_lives, replaced_games = 0, 0, 0
    for actions, step in play(envs, 220):
        if actions is None:
            observation, info = own.reset()
            reward = np.zeros(2)
            terminated = truncated = np.zeros(2, bool)
        else:
            observation, reward, terminated, truncated, info = own.step(actions)
            assert np.array_equal(step.reset, ended)
        assert np.array_equal(stacks.push(step.frame, step.first), observation)
        assert np.array_equal(step.reward, reward)
        assert not step.reward[step.reset].any()
        assert np.array_equal(step.terminated | step.truncated, terminated | truncated)
        assert not (step.terminated & step.truncated).any()

        replaced = ended & (info["elapsed_step"] > 0) & (info["lives"] > lives)
        assert np.array_equal(step.first, (info["elapsed_step"] == 0) | replaced)
        assert np.array_equal(step.game_over, (info["terminated"] > 0) & terminated | truncated | replaced)
        score = np.where(info["elapsed_step"] == 0, 0, score + info["reward"])
        assert np.array_equal(step.score, score)
        length += ~step.reset & (actions is not None)
        assert np.array_equal(step.length[~step.first], length[~step.first])
        assert np.array_equal(step.length[step.game_over], length[step.game_over])
        score[replaced] = length[step.first] = 0
        ended, lives = terminated | truncated, info["lives"]
        resets += (step.reset & (step.length > 0)).sum()
        lost_lives += (step.terminated & ~step.game_over).sum()
        replaced_games += replaced.sum()
    if options.get("episodic_life", True):
        assert lost_lives > 0  # the test has seen what it speaks of
        assert resets > 0
    else:
        assert lost_lives == 0
    assert (replaced_games > 0) == ("noop_max" in options)


def test_the_time_limit_counts_the_whole_game_and_not_one_life():
    envs = AtariEnvs("breakout", 2, seed=2, max_episode_steps=60)
    lost_lives = 0
    for _, step in play(envs, 70):
        assert np.array_equal(step.game_over, ~step.reset & (step.length == 60))
        assert (step.terminated | step.truncated)[step.game_over].all()
        lost_lives += (step.terminated & ~step.game_over).sum()
    assert lost_lives > 0


def test_a_life_lost_in_the_very_last_step_terminates():
    life = next(step.length[0] for _, step in play(AtariEnvs("breakout", 1, seed=2), 100) if step.terminated[0])
    *_, (_, last) = play(AtariEnvs("breakout", 1, seed=2, max_episode_steps=int(life)), life)
    assert (last.terminated[0], last.truncated[0], last.game_over[0]) == (True, False, True)


def test_rewards_are_clipped_only_where_asked_and_scores_never():
    clipped, raw = (AtariEnvs("space_invaders", 2, seed=3, reward_clip=clip) for clip in (True, False))
    most = 0.0
    for (_, a), (_, b) in zip(play(clipped, 150), play(raw, 150), strict=True):
        assert np.array_equal(a.reward, np.sign(b.reward))
        assert np.array_equal(a.score, b.score)
        most = max(most, b.reward.max())
    assert most > 1


# Reproducibility


def test_the_seed_decides_everything_and_the_number_of_threads_nothing():
    runs = [
        [step for _, step in play(AtariEnvs("breakout", 2, seed=seed, threads=threads, dephase_steps=9), 60)]
        for seed, threads in ((7, 1), (7, 2), (8, 1))
    ]
    assert all(same(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not all(np.array_equal(a.frame, b.frame) for a, b in zip(runs[0], runs[2], strict=True))


def test_environments_of_one_seed_differ():
    envs = AtariEnvs("breakout", 4, seed=1, repeat_action_probability=0.5)
    envs.reset()
    steps = [envs.step([t % 4] * 4) for t in range(40)]
    films = np.stack([step.frame for step in steps], axis=1)
    assert len({film.tobytes() for film in films}) == 4


def test_a_second_reset_starts_whole_new_games():
    envs = AtariEnvs("breakout", 1, seed=1)
    for _ in range(2):
        *_, (_, last) = play(envs, 60)
        assert last.length.min() > 50
    start = envs.reset()
    assert start.first.all()
    assert not start.length.any()


# Subsets


def test_environments_that_are_not_stepped_stand_still():
    whole, parts = (AtariEnvs("breakout", 3, seed=4) for _ in range(2))
    rng = np.random.default_rng(0)
    plan = rng.integers(4, size=(3, 70))  # by environment
    whole.reset()
    expected = [whole.step(plan[:, t]) for t in range(70)]
    parts.reset()
    clock = np.zeros(3, int)
    while clock.min() < 70:
        ids = rng.permutation(np.flatnonzero(clock < 70))
        ids = ids[: rng.integers(1, len(ids) + 1)]
        step = parts.step(plan[ids, clock[ids]], ids)
        assert np.array_equal(step.env_id, ids)
        for row, i in enumerate(ids):
            for name in FIELDS:
                assert np.array_equal(getattr(step, name)[row], getattr(expected[clock[i]], name)[i]), name
        clock[ids] += 1


def test_dephased_games_start_apart_and_on_no_final_row():
    envs = AtariEnvs("breakout", 4, seed=6, dephase_steps=60)
    start = envs.reset()
    assert len(set(start.length.tolist())) > 1
    assert start.length.max() <= 60
    assert start.reset.all()
    assert not (start.terminated | start.truncated | start.game_over).any()
    assert not start.reward.any()
    assert not envs.step(np.zeros(4, int)).reset.any()


def test_dephased_games_count_their_whole_length_and_score():
    envs = AtariEnvs("catch", 8, seed=1, dephase_steps=20)
    games = 0
    ended = np.zeros(8, bool)
    for actions, step in play(envs, 30):
        if actions is not None:
            assert np.array_equal(step.reset, ended)
        assert np.array_equal(step.game_over, (step.length == 9) & ~step.reset)
        assert np.isin(step.score[step.game_over], (-1, 1)).all()
        ended = step.game_over
        games += ended.sum()
    assert games >= 8 * 2


# Catch


def test_catch_gives_float_frames_and_games_of_nine_steps():
    envs = AtariEnvs("catch", 2, seed=1)
    assert (envs.frame_shape, envs.frame_dtype, envs.frame_skip) == ((10, 5), np.dtype(np.float32), 1)
    assert envs.action_names == ["LEFT", "STAY", "RIGHT"]
    for t, (_, step) in enumerate(play(envs, 25)):
        assert step.frame.shape == (2, 10, 5)
        assert step.frame.dtype == np.float32
        assert (step.first == (t % 10 == 0)).all()
        assert (step.game_over == (t % 10 == 9)).all()
        assert (step.terminated == step.game_over).all()
        assert (step.reset == (t % 10 == 0)).all()


def test_catch_cannot_be_cut_short():
    with pytest.raises(ConfigError, match="max_episode_steps is 5; catch takes at least 9"):
        AtariEnvs("catch", 1, seed=1, max_episode_steps=5)


# Use and misuse


def test_the_screen_is_the_emulators_and_the_same_actions_play_the_same_game_in_ale_py():
    ale_py = pytest.importorskip("ale_py")
    for game in ("breakout", "space_invaders"):
        envs = AtariEnvs(game, 2, seed=1, noop_max=1, reward_clip=False, render=True, episodic_life=False)
        ale = ale_py.ALEInterface()
        ale.setFloat("repeat_action_probability", 0.0)
        ale.loadROM(str(ale_py.roms.get_rom_path(game)))
        actions = {action.name: action for action in ale.getMinimalActionSet()}
        envs.reset()
        ale.act(actions["FIRE"])
        scored = 0.0
        for action in np.random.default_rng(0).integers(envs.num_actions, size=80):
            step = envs.step([action, 0])
            reward = sum(ale.act(actions[envs.action_names[action]]) for _ in range(4))
            assert step.reward[0] == reward
            assert np.array_equal(envs.render(0), ale.getScreenRGB())
            scored += reward
        assert scored > 0
        assert not np.array_equal(envs.render(0), envs.render(1))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("num_envs", 0),
        ("seed", -1),
        ("threads", -1),
        ("frame_skip", 0),
        ("noop_max", 0),
        ("max_episode_steps", 0),
        ("dephase_steps", -1),
        ("repeat_action_probability", 1.5),
    ],
)
def test_a_setting_out_of_its_range_is_named(setting, value):
    with pytest.raises(ConfigError, match=f"{setting} is {value}"):
        AtariEnvs("breakout", **{"num_envs": 1, "seed": 1, setting: value})


def test_misuse_is_answered_before_envpool_could_crash_or_hang():
    envs = AtariEnvs("catch", 3, seed=1)
    with pytest.raises(RuntimeError, match="before reset"):
        envs.send([0, 0, 0])
    with pytest.raises(RuntimeError, match="call send"):
        envs.recv()
    envs.reset()
    with pytest.raises(RuntimeError, match="call send"):
        envs.recv()
    for actions, env_id, message in (
        ([0, 0], None, "2 entries for 3"),
        ([0, 0, 3], None, "from 0 to 2"),
        ([0, -1, 0], None, "from 0 to 2"),
        ([0.0, 0.0, 0.0], None, "integers"),
        ([0, 0], [0, 3], "env_id runs from 0 to 3"),
        ([0, 0], [1, 1], "at most once"),
        (np.zeros(0, int), np.zeros(0, int), "0 entries for 0"),
    ):
        with pytest.raises(ValueError, match=message):
            envs.send(actions, env_id)
    envs.send([0, 1, 2])
    for call in (envs.reset, lambda: envs.send([0, 1, 2])):
        with pytest.raises(RuntimeError, match="in progress"):
            call()
    assert envs.recv().length.tolist() == [1, 1, 1]
    with pytest.raises(RuntimeError, match="render=True"):
        envs.render()


# Stacks


def grid(*values):
    """[n, 1] uint8 frames of one pixel."""
    return np.array(values, np.uint8)[:, None]


def test_a_stack_is_filled_with_the_first_frame_of_a_game():
    stack = FrameStack(2, 3, (1,), np.uint8)
    none = np.zeros(2, bool)
    stack.push(grid(1, 10), none)  # the first push ever
    stack.push(grid(2, 20), none)
    assert stack.push(grid(3, 30), np.array([False, True]))[..., 0].tolist() == [[1, 2, 3], [30, 30, 30]]
    assert stack.push(grid(4, 40), none)[..., 0].tolist() == [[2, 3, 4], [30, 30, 40]]


def test_a_stack_can_be_padded_with_zeros():
    stack = FrameStack(1, 3, (1,), np.uint8, padding="zero")
    assert stack.push(grid(5), np.array([True]))[..., 0].tolist() == [[0, 0, 5]]
    assert stack.push(grid(6), np.array([False]))[..., 0].tolist() == [[0, 5, 6]]


def test_a_push_of_some_environments_leaves_the_others_and_returns_a_copy():
    stack = FrameStack(3, 2, (1,), np.uint8)
    stack.push(grid(1, 2, 3), np.ones(3, bool))
    part = stack.push(grid(9, 8), np.array([False, True]), np.array([2, 0]))
    assert part[..., 0].tolist() == [[3, 9], [8, 8]]
    part[:] = 0
    assert stack.push(grid(4, 5, 6), np.zeros(3, bool))[..., 0].tolist() == [[8, 4], [2, 5], [9, 6]]


def test_a_stack_goes_on_from_its_saved_state():
    stack = FrameStack(1, 2, (1,), np.uint8)
    stack.push(grid(7), np.array([False]))
    state = stack.state()
    stack.push(grid(1), np.array([False]))
    other = FrameStack(1, 2, (1,), np.uint8)
    other.load_state(state)
    assert other.push(grid(8), np.array([False]))[..., 0].tolist() == [[7, 8]]
    with pytest.raises(ValueError, match=r"state\['stacks'\] is uint8 \(1, 2, 1\)"):
        FrameStack(2, 2, (1,), np.uint8).load_state(state)


def test_a_stack_refuses_frames_of_another_shape_or_type():
    stack = FrameStack(1, 2, (1,), np.uint8)
    for frame in (np.zeros((1, 2), np.uint8), np.zeros((1, 1), np.float32), np.zeros((2, 1), np.uint8)):
        with pytest.raises(ValueError, match=r"give uint8 \(1, 1\)"):
            stack.push(frame, np.array([True]))
    with pytest.raises(ConfigError, match="padding is 'last'"):
        FrameStack(1, 2, (1,), np.uint8, padding="last")
    with pytest.raises(ConfigError, match="stack is 0"):
        FrameStack(1, 0, (1,), np.uint8)
