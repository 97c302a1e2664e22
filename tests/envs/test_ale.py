"""ale-py's games as Step records: which rows there are, and what they count."""

import numpy as np
import pytest

pytest.importorskip("envpool")
pytest.importorskip("ale_py")
pytest.importorskip("cv2")

from fastrl.base.errors import ConfigError
from fastrl.envs.ale import AleEnvs


def play(envs, steps, action=None, seed=0):
    """Yield whether an action was taken and the row that it led to, `steps` times after a reset."""
    rng = np.random.default_rng(seed)
    yield True, envs.reset()
    for _ in range(steps):
        taken = envs.takes_actions
        envs.send([rng.integers(envs.num_actions) if action is None else action])
        yield taken, envs.recv()


def test_fire_is_pressed_after_a_lost_life_in_a_row_of_its_own():
    envs = AleEnvs("breakout", seed=1, reward_clip=False)
    rows = [(taken, step, envs._lives) for taken, step in play(envs, 400)]
    presses = 0
    for (_, _, lives), (_, before, lives_before), (taken, step, lives_now) in zip(
        rows, rows[1:], rows[2:], strict=False
    ):
        if before.game_over[0]:
            continue
        assert step.reset[0] == (not taken) == (lives_before < lives)
        assert step.length[0] == before.length[0] + taken
        assert step.score[0] == before.score[0] + step.reward[0]
        assert step.terminated[0] == step.game_over[0] == (lives_now == 0)
        assert not step.first[0]
        presses += not taken
    assert presses > 3


@pytest.mark.parametrize(
    ("game", "options"),
    [
        ("breakout", {"episodic_life": False}),
        ("breakout", {"fire_reset": False}),
        ("asterix", {}),  # no FIRE
    ],
)
def test_where_nothing_presses_fire_every_step_takes_an_action(game, options):
    envs = AleEnvs(game, seed=1, **options)
    rows = list(play(envs, 120))
    assert all(taken for taken, _ in rows)
    assert [step.length[0] for _, step in rows] == list(range(121))


def test_a_game_is_cut_off_after_the_steps_that_the_settings_allow_and_the_next_one_follows():
    envs = AleEnvs("pong", seed=1, max_episode_steps=5)
    rows = [step for _, step in play(envs, 12)]
    assert [bool(step.truncated[0]) for step in rows] == [n in (5, 11) for n in range(13)]
    assert [bool(step.game_over[0]) for step in rows] == [n in (5, 11) for n in range(13)]
    assert [bool(step.first[0]) for step in rows] == [n in (0, 6, 12) for n in range(13)]
    assert [bool(step.reset[0]) for step in rows] == [n in (0, 6, 12) for n in range(13)]
    assert [int(step.length[0]) for step in rows] == [0, 1, 2, 3, 4, 5] * 2 + [0]
    assert not any(step.terminated[0] for step in rows)


def test_the_seed_decides_every_game():
    def games(seed):
        envs = AleEnvs("breakout", seed=seed, repeat_action_probability=0.5)
        return [[step.frame for _, step in play(envs, 20)] for _ in range(2)]  # each play starts the next game

    assert np.array_equal(games(1), games(1))
    first, second = games(1)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, games(2)[0])


def test_each_frame_is_shown_while_it_is_drawn():
    shown = []
    envs = AleEnvs("pong", seed=1, noop_max=1, render=True, each_frame=lambda draw: shown.append(draw()))
    assert envs.shows_frames
    rows = [step for _, step in play(envs, 3)]
    assert len(rows) == 4
    assert len(shown) == 2 + 4 * 3  # a no-op, FIRE, and four frames a step
    assert np.array_equal(shown[-1], envs.render())
    assert shown[0].shape == (210, 160, 3)


def test_scores_are_never_clipped_and_rewards_where_asked():
    clipped, raw = (AleEnvs("space_invaders", seed=3, reward_clip=clip) for clip in (True, False))
    most = 0.0
    for (_, one), (_, other) in zip(play(clipped, 150), play(raw, 150), strict=True):
        assert one.reward[0] == np.sign(other.reward[0])
        assert one.score[0] == other.score[0]
        most = max(most, other.reward[0])
    assert most > 1


@pytest.mark.parametrize(
    ("setting", "value"),
    [("seed", -1), ("frame_skip", 0), ("noop_max", 0), ("max_episode_steps", 0), ("repeat_action_probability", 1.5)],
)
def test_a_setting_out_of_its_range_is_named(setting, value):
    with pytest.raises(ConfigError, match=f"{setting} is {value}"):
        AleEnvs("breakout", **{"seed": 1, setting: value})


def test_misuse_is_answered():
    envs = AleEnvs("pong", seed=1)
    with pytest.raises(RuntimeError, match="before reset"):
        envs.send([0])
    with pytest.raises(RuntimeError, match="call send"):
        envs.recv()
    with pytest.raises(RuntimeError, match="render=True"):
        envs.render()
    envs.reset()
    for actions, env_id, message in (
        ([0, 0], None, "2 entries for 1"),
        ([6], None, "from 0 to 5"),
        ([0], [1], "env_id"),
    ):
        with pytest.raises(ValueError, match=message):
            envs.send(actions, env_id)
    envs.send([0])
    for call in (envs.reset, lambda: envs.send([0])):
        with pytest.raises(RuntimeError, match="in progress"):
            call()
    assert envs.recv().length.tolist() == [1]
    envs.close()
