"""EnvPool itself: single frames through the replay against the stacks that EnvPool makes, bit for bit."""

from __future__ import annotations

import envpool
import numpy as np
import pytest

from fastrl.envs.atari import AtariEnvs
from fastrl.envs.names import task_id
from fastrl.replay import ReplayBuffer

N, STEPS, N_STEP, GAMMA = 6, 700, 3, 0.5


@pytest.mark.parametrize("game", ["breakout", "space_invaders", "pong"])
@pytest.mark.parametrize("episodic_life", [True, False])
@pytest.mark.parametrize("max_episode_steps", [27_000, 60])
def test_what_is_drawn_is_what_envpool_showed(game, episodic_life, max_episode_steps):
    envs = AtariEnvs(game, N, seed=7, episodic_life=episodic_life, max_episode_steps=max_episode_steps)
    stacked = envpool.make(
        task_id(game), env_type="gymnasium", num_envs=N, stack_num=4, episodic_life=episodic_life, reward_clip=True,
        max_episode_steps=max_episode_steps, num_threads=2, repeat_action_probability=0.0, noop_max=30,
        seed=(np.random.SeedSequence(7).spawn(2)[0].generate_state(N) & 0x7FFF_FFFF).tolist(),
    )  # fmt: skip
    # A ring of 400 rows is overwritten once; the "action" names the row.
    buffer = ReplayBuffer(capacity=400 * N, num_envs=N, obs_shape=(84, 84), stack=4, n_step=N_STEP, gamma=GAMMA, seed=0)
    rng = np.random.default_rng(0)
    seen = np.empty((STEPS + 1, N, 4, 84, 84), np.uint8)
    reward, ends, over = np.zeros((STEPS, N)), np.zeros((STEPS, N), bool), np.zeros((STEPS, N), bool)
    step, (seen[0], _) = envs.reset(), stacked.reset()
    for t in range(STEPS):
        actions = rng.integers(envs.num_actions, size=N)
        after = envs.step(actions)
        seen[t + 1], reward[t], terminated, truncated, _ = stacked.step(actions)
        over[t], ends[t] = after.terminated, terminated | truncated
        assert np.array_equal(after.frame, seen[t + 1][:, -1])
        names = t * N + np.arange(N)
        buffer.add(step.frame, names, after.reward, after.terminated, after.truncated, first=step.first)
        step = after
    envs.close()

    drawn = set()
    for _ in range(40):
        batch = buffer.sample(64)
        for b, name in enumerate(batch.action.tolist()):
            t, e = divmod(name, N)
            drawn.add(name)
            assert not (t and ends[t - 1, e]), "a reset row was drawn"
            length = next((k + 1 for k in range(N_STEP) if ends[t + k, e]), N_STEP)
            assert np.array_equal(batch.obs[b], seen[t, e])
            assert np.array_equal(batch.next_obs[b], seen[t + length, e])
            assert batch.reward[b] == np.float32(sum(GAMMA**k * reward[t + k, e] for k in range(length)))
            assert batch.discount[b] == (0 if over[t + length - 1, e] else GAMMA**length)
    assert len(drawn) > 1_000
    assert any(ends[name // N, name % N] for name in drawn) == ends[STEPS - 380 :].any()
