"""fastrl's replay and other people's, each as its own documentation uses it for stacks of Atari frames.

Every class is a `contender.Buffer`. Nothing here is imported before its contender's process asks for it.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import Any

import numpy as np
from contender import ALPHA, BETA, FRAME, FRAME_BYTES, GAMMA, STACK, STACK_BYTES, Drawn, Step, Tree

SMALL_BYTES = 40
"""Action, reward, flags and priority of a row, about."""
Transitions = tuple[np.ndarray, np.ndarray, np.ndarray]


class Fastrl:
    """fastrl's own. With ``reuse`` every draw of a size writes into the same batch, as the floor does."""

    about = "frames kept once"
    prioritized = True

    def __init__(self, rows: int, num_envs: int, n_step: int, threads: int = 1, reuse: bool = False) -> None:
        from fastrl.replay import PrioritizedReplayBuffer, RamStore

        self._buffer = PrioritizedReplayBuffer(
            capacity=rows, num_envs=num_envs, obs_shape=FRAME, stack=STACK, n_step=n_step, gamma=GAMMA, alpha=ALPHA,
            seed=0, store=partial(RamStore, threads=threads),
        )  # fmt: skip
        self.rows = rows // num_envs * num_envs
        self._reuse, self._batches = reuse, {}

    @staticmethod
    def bytes_a_row(n_step: int) -> int:
        return FRAME_BYTES + SMALL_BYTES

    def add(self, step: Step) -> None:
        self._buffer.add(step.frame, step.action, step.reward, step.done, step.no)

    def sample(self, batch_size: int) -> Drawn:
        batch = self._buffer.sample(batch_size, beta=BETA, out=self._batches.get(batch_size))
        if self._reuse:
            self._batches[batch_size] = batch
        return Drawn(batch.index, batch)

    def update(self, drawn: Drawn, priority: np.ndarray) -> None:
        self._buffer.update_priorities(drawn.index, priority)

    def set_n_step(self, n_step: int) -> bool:
        self._buffer.set_n_step(n_step)
        return True

    def transitions(self, drawn: Drawn) -> Transitions:
        return drawn.batch.obs, drawn.batch.next_obs, drawn.batch.reward

    @staticmethod
    def tree(leaves: int) -> Tree:
        from fastrl.replay import SumTree

        tree, rng = SumTree(leaves), np.random.default_rng(0)
        tree.set(np.arange(leaves), rng.random(leaves))
        return Tree(lambda size: tree.sample(size, rng), tree.set)


class Cpprb:
    """cpprb, one ring for all environments, with its compression.

    ``stack_compress`` keeps a frame once only where the rows of one environment follow each other, and ``next_of``
    reads the next row: hence each environment's rows come in chunks, as from the local buffers of its Ape-X example,
    every chunk closed by ``on_episode_end``, for which it puts the chunk's last 4 rows aside whole. In each vector step
    as many chunks are due as it has rows. ``Nstep`` excludes ``next_of``: then both stacks are kept, compressed.
    """

    about = "stack_compress, next_of (n = 3: Nstep instead), chunks of 32 rows"
    prioritized = True
    CHUNK = 32
    ASIDE = 4

    def __init__(self, rows: int, num_envs: int, n_step: int) -> None:
        from cpprb import PrioritizedReplayBuffer

        stack = {"shape": (*FRAME, STACK), "dtype": np.uint8}
        fields = {"obs": stack, "act": {"dtype": np.int64}, "rew": {}, "done": {}}
        if n_step == 1:
            how = {"next_of": "obs", "stack_compress": "obs"}
        else:
            fields["next_obs"] = dict(stack)
            how = {"stack_compress": ["obs", "next_obs"]}
            how["Nstep"] = {"size": n_step, "gamma": GAMMA, "rew": "rew", "next": "next_obs"}
        self._chunk = min(self.CHUNK, num_envs)  # one chunk or more in every step; one environment needs none
        self.rows = rows
        self._buffer = PrioritizedReplayBuffer(rows, fields, alpha=ALPHA, **how)
        self._num_envs, self._n_step, self._t = num_envs, n_step, 0
        self._late: deque[Step] = deque(maxlen=self._chunk)

    @classmethod
    def bytes_a_row(cls, n_step: int) -> int:
        kept = 1 if n_step == 1 else 2
        return kept * FRAME_BYTES + 2 * STACK_BYTES * cls.ASIDE // cls.CHUNK + SMALL_BYTES

    def add(self, step: Step) -> None:
        self._late.append(step)
        self._t += 1
        for env in range(self._num_envs):
            if (self._t + env) % self._chunk == 0 and len(self._late) == self._chunk:
                self._close(env)

    def _close(self, env: int) -> None:
        """Add the last rows of one environment, episode by episode."""
        done = np.array([step.done[env] for step in self._late])
        ends = [*(np.flatnonzero(done) + 1), len(done)]
        for begin, end in zip([0, *ends], ends, strict=False):
            if begin == end:
                continue
            steps = [self._late[k] for k in range(begin, end)]
            following = steps if self._n_step > 1 else steps[-1:]  # next_of reads but the last
            self._buffer.add(
                obs=np.moveaxis(np.stack([step.stack[env] for step in steps]), 1, -1),
                act=np.array([step.action[env] for step in steps]),
                rew=np.array([step.reward[env] for step in steps]),
                next_obs=np.moveaxis(np.stack([step.next_stack[env] for step in following]), 1, -1),
                done=done[begin:end],
            )
            if self._chunk > 1 or done[end - 1]:
                self._buffer.on_episode_end()

    def sample(self, batch_size: int) -> Drawn:
        batch = self._buffer.sample(batch_size, beta=BETA)
        return Drawn(batch["indexes"], batch)

    def update(self, drawn: Drawn, priority: np.ndarray) -> None:
        self._buffer.update_priorities(drawn.index, priority)

    def set_n_step(self, n_step: int) -> bool:
        return False

    def transitions(self, drawn: Drawn) -> Transitions:
        obs, following = (np.moveaxis(drawn.batch[name], -1, 1) for name in ("obs", "next_obs"))
        return obs, following, drawn.batch["rew"][:, 0]

    @staticmethod
    def tree(leaves: int) -> None:
        return None


class Tianshou:
    """Tianshou's buffer of many environments; its DQN works out n-step returns and their last stack after the draw."""

    about = "stack_num, ignore_obs_next, save_only_last_obs (n = 3: compute_nstep_return)"
    prioritized = True

    def __init__(self, rows: int, num_envs: int, n_step: int) -> None:
        import torch
        from tianshou.algorithm.algorithm_base import Algorithm
        from tianshou.data import Batch, PrioritizedVectorReplayBuffer

        self._buffer = PrioritizedVectorReplayBuffer(
            rows, num_envs, alpha=ALPHA, beta=BETA, stack_num=STACK, ignore_obs_next=True, save_only_last_obs=True
        )
        self._make_batch, self._returns, self._zeros = Batch, Algorithm.compute_nstep_return, torch.zeros
        self.rows, self._n_step = self._buffer.maxsize, n_step

    @staticmethod
    def bytes_a_row(n_step: int) -> int:
        return FRAME_BYTES + SMALL_BYTES

    def add(self, step: Step) -> None:
        self._buffer.add(
            self._make_batch(
                obs=step.stack, act=step.action, rew=step.reward, terminated=step.done, truncated=step.no,
                obs_next=step.next_stack, info={},
            )
        )  # fmt: skip

    def sample(self, batch_size: int) -> Drawn:
        batch, index = self._buffer.sample(batch_size)
        if self._n_step > 1:
            self._returns(batch, self._buffer, index, self._value, GAMMA, self._n_step)
        return Drawn(index, batch)

    def _value(self, buffer: Any, index: np.ndarray) -> Any:
        """Fetch the last stacks as DQN does for its target network, and value them at nothing."""
        self._last = buffer[index].obs_next
        return self._zeros(len(index), 1)

    def update(self, drawn: Drawn, priority: np.ndarray) -> None:
        self._buffer.update_weight(drawn.index, priority)

    def set_n_step(self, n_step: int) -> bool:
        self._n_step = n_step
        return True

    def transitions(self, drawn: Drawn) -> Transitions:
        if self._n_step == 1:
            return drawn.batch.obs, drawn.batch.obs_next, drawn.batch.rew
        return drawn.batch.obs, self._last, drawn.batch.returns.numpy()[:, 0]

    @staticmethod
    def tree(leaves: int) -> Tree:
        from tianshou.data import SegmentTree

        tree, rng = SegmentTree(leaves), np.random.default_rng(0)
        tree[np.arange(leaves)] = rng.random(leaves)
        return Tree(lambda size: tree.get_prefix_sum_idx(rng.random(size) * tree.reduce()), tree.__setitem__)


class Flashbax:
    """flashbax's trajectories of 4 + n frames, compiled, the state donated; both stacks are views into a trajectory."""

    about = "trajectory buffer, sequences of 4 + n frames, jit, donated"
    prioritized = True

    def __init__(self, rows: int, num_envs: int, n_step: int) -> None:
        import flashbax
        import jax

        self._jax, self._make, self._n_step = jax, flashbax.make_prioritised_trajectory_buffer, n_step
        self._per_env = rows // num_envs
        self._settings = {
            "add_batch_size": num_envs, "sample_sequence_length": STACK + n_step, "period": 1,
            "min_length_time_axis": STACK + n_step, "max_length_time_axis": self._per_env, "priority_exponent": ALPHA,
        }  # fmt: skip
        buffer = self._make(sample_batch_size=1, **self._settings)
        row = {"obs": np.zeros(FRAME, np.uint8), "action": np.int32(0), "reward": np.float32(0), "done": np.bool_(0)}
        self._state = jax.jit(buffer.init)(jax.tree.map(jax.numpy.asarray, row))
        self._add = jax.jit(buffer.add, donate_argnums=0)
        self._set = jax.jit(buffer.set_priorities, donate_argnums=0)
        self._samples: dict[int, Any] = {}
        self._key = jax.random.PRNGKey(0)
        self.rows = self._per_env * num_envs

    @staticmethod
    def bytes_a_row(n_step: int) -> int:
        return FRAME_BYTES + SMALL_BYTES

    def add(self, step: Step) -> None:
        self.fill([step])

    def fill(self, steps: list[Step]) -> None:
        """Add vector steps at once, ``[N, T]`` rows."""
        rows = {
            "obs": [step.frame for step in steps], "action": [step.action.astype(np.int32) for step in steps],
            "reward": [step.reward for step in steps], "done": [step.done for step in steps],
        }  # fmt: skip
        self._state = self._add(self._state, {name: np.stack(column, axis=1) for name, column in rows.items()})
        self._jax.block_until_ready(self._state)

    def sample(self, batch_size: int) -> Drawn:
        if batch_size not in self._samples:
            self._samples[batch_size] = self._compiled(batch_size)
        self._key, batch = self._samples[batch_size](self._state, self._key)
        self._jax.block_until_ready(batch)
        return Drawn(batch.indices, batch)

    def _compiled(self, batch_size: int) -> Any:
        """Return a draw that continues with its key."""
        sample = self._make(sample_batch_size=batch_size, **self._settings).sample

        def draw(state: Any, key: Any) -> tuple[Any, Any]:
            key, now = self._jax.random.split(key)
            return key, sample(state, now)

        return self._jax.jit(draw)

    def update(self, drawn: Drawn, priority: np.ndarray) -> None:
        self._state = self._set(self._state, drawn.index, priority.astype(np.float32))
        self._jax.block_until_ready(self._state)

    def set_n_step(self, n_step: int) -> bool:
        return False

    def transitions(self, drawn: Drawn) -> Transitions:
        rows = drawn.batch.experience
        frames, reward = np.asarray(rows["obs"]), np.asarray(rows["reward"])[:, STACK - 1 : -1]
        return frames[:, :STACK], frames[:, self._n_step :][:, :STACK], reward @ GAMMA ** np.arange(self._n_step)

    @staticmethod
    def tree(leaves: int) -> Tree:
        import jax
        from flashbax.buffers import sum_tree

        rng = np.random.default_rng(0)
        state = jax.jit(sum_tree.set_batch_bincount)(
            sum_tree.init(leaves), np.arange(leaves), rng.random(leaves).astype(np.float32)
        )
        draw = jax.jit(sum_tree.stratified_sample, static_argnums=1)
        write = jax.jit(sum_tree.set_batch_scan, donate_argnums=0)
        kept = {"state": state, "key": jax.random.PRNGKey(0)}

        def sample(size: int) -> Any:
            kept["key"], now = jax.random.split(kept["key"])
            return jax.block_until_ready(draw(kept["state"], size, now))

        def update(index: Any, weight: np.ndarray) -> None:
            kept["state"] = jax.block_until_ready(write(kept["state"], index, weight.astype(np.float32)))

        return Tree(sample, update)
