"""fastrl's replay and other people's, as each holds dictionaries, draws stretches, or keeps its rows in files.

Every class is a `kinds.KindBuffer`. Nothing here is imported before its contender's process asks for it.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
from contender import ALPHA, BETA, GAMMA, Drawn
from floor import BareTree, compiled, pointer
from kinds import NUM_ENVS, Arrays, Kind, KindStep

Items = tuple[Arrays, np.ndarray]
PERIOD = 40
"""Steps from one stretch to the next, as R2D2 has them."""
POOL = 16
"""Draws of the floor made beforehand, taken in turn."""


def one_after_the_other(obs: Any, following: Any, reward: Any) -> Items:
    """Return transitions as items of two observations."""
    arrays = {name: np.stack([np.asarray(obs[name]), np.asarray(following[name])], axis=1) for name in obs}
    return arrays, np.asarray(reward).reshape(-1, 1)


class Floor:
    """The same copies from random places into reused arrays, and a bare tree; see `floor.Floor`."""

    about = "copies, a bare tree"
    prioritized = True

    def __init__(self, kind: Kind, rows: int, folder: Path) -> None:
        self._code, self._tree, self._t, self._per_env = compiled(), BareTree(rows, compiled()), 0, rows // NUM_ENVS
        rng = np.random.default_rng(0)
        self._cursors = np.arange(NUM_ENVS) * self._per_env
        half = kind.length // 2  # two stacks without a frame in common: every frame is copied once
        self._head = kind.batch, half
        begin = rng.integers(self._per_env - kind.length, size=(POOL, kind.batch))
        begin += self._cursors[rng.integers(NUM_ENVS, size=(POOL, kind.batch))]
        stacks = np.arange(kind.length).reshape(2, 1, half)
        self._places = [np.ascontiguousarray(each[:, None] + stacks) for each in begin]
        self._rings, self._outs = {}, {}
        for name, shape in kind.shapes.items():
            whole = (rows, *shape), kind.dtypes[name]
            if folder.name == "mmap":
                self._rings[name] = np.memmap(folder / name, whole[1], "w+", shape=whole[0])
            else:
                self._rings[name] = np.zeros(*whole)
            self._outs[name] = np.empty((2, kind.batch, half, *shape), kind.dtypes[name])
        self._batch = kind.batch

    def add(self, step: KindStep) -> None:
        places = self._cursors + self._t % self._per_env
        for name, ring in self._rings.items():
            frames = step.obs[name]
            self._code.scatter(pointer(ring), pointer(places), NUM_ENVS, frames[0].nbytes, pointer(frames))
        self._t += 1

    def sample(self) -> Drawn:
        leaves = self._tree.find(self._batch)
        self._places.append(places := self._places.pop(0))
        for name, ring in self._rings.items():
            out = self._outs[name]
            self._code.gather(pointer(ring), pointer(places), *self._head, ring[0].nbytes, pointer(out), 1)
        return Drawn(leaves, self._outs)

    def update(self, drawn: Drawn, priority: np.ndarray) -> None:
        self._tree.write(drawn.index, priority)


class Fastrl:
    """fastrl's own."""

    about = 'next observations from the next row; sequences with period 40; store="mmap"'
    prioritized = True

    def __init__(self, kind: Kind, rows: int, folder: Path) -> None:
        from fastrl.replay import PrioritizedReplayBuffer

        where = {"store": "mmap", "folder": folder / "replay"} if folder.name == "mmap" else {}
        self._buffer = PrioritizedReplayBuffer(
            capacity=rows, num_envs=NUM_ENVS, obs_shape=kind.shapes, obs_dtype=kind.dtypes, gamma=GAMMA, alpha=ALPHA,
            seed=0, **where,
        )  # fmt: skip
        self._kind = kind

    def add(self, step: KindStep) -> None:
        self._buffer.add(step.obs, step.action, step.reward, step.no, step.no)

    def sample(self) -> Drawn:
        if self._kind.length == 2:
            batch: Any = self._buffer.sample(self._kind.batch, beta=BETA)
        else:
            batch = self._buffer.sample_sequences(self._kind.batch, self._kind.length - 1, beta=BETA, period=PERIOD)
        return Drawn(batch.index, batch)

    def update(self, drawn: Drawn, priority: np.ndarray) -> None:
        if self._kind.length == 2:
            self._buffer.update_priorities(drawn.index, priority)
        else:
            error = np.broadcast_to(priority[:, None], drawn.batch.mask.shape)
            self._buffer.update_sequence_priorities(drawn.batch, error)

    def items(self, drawn: Drawn) -> Items:
        batch = drawn.batch
        obs = {name: array[:, 0] if self._kind.length == 2 else array[:, :, 0] for name, array in batch.obs.items()}
        if self._kind.length > 2:
            return obs, batch.reward
        return one_after_the_other(obs, {name: array[:, 0] for name, array in batch.next_obs.items()}, batch.reward)


class Cpprb:
    """cpprb; `next_of` reads the next row, so that each environment's rows come in chunks (see `peers.Cpprb`)."""

    about = "one field for each array, next_of, chunks of 32 rows; mmap_prefix"
    prioritized = True
    CHUNK = 32

    def __init__(self, kind: Kind, rows: int, folder: Path) -> None:
        from cpprb import PrioritizedReplayBuffer

        if kind.length > 2:
            raise NotImplementedError("has no stretches of episodes")
        fields = {name: {"shape": kind.shapes[name], "dtype": kind.dtypes[name]} for name in kind.shapes}
        fields |= {"act": {"dtype": np.int64}, "rew": {}, "done": {}}
        where = {"mmap_prefix": str(folder / "rows")} if folder.name == "mmap" else {}
        self._buffer = PrioritizedReplayBuffer(rows, fields, next_of=list(kind.shapes), alpha=ALPHA, **where)
        self._kind, self._t = kind, 0
        self._late: deque[KindStep] = deque(maxlen=self.CHUNK)

    def add(self, step: KindStep) -> None:
        self._late.append(step)
        self._t += 1
        if len(self._late) == self.CHUNK:
            self._close((-self._t) % NUM_ENVS)  # one environment's chunk is due in each vector step

    def _close(self, env: int) -> None:
        rows = {name: np.stack([step.obs[name][env] for step in self._late]) for name in self._kind.shapes}
        newest = self._late[-1].next_obs
        self._buffer.add(
            **rows, **{f"next_{name}": newest[name][env][None] for name in rows},
            act=np.array([step.action[env] for step in self._late]),
            rew=np.array([step.reward[env] for step in self._late]), done=np.zeros(self.CHUNK),
        )  # fmt: skip
        self._buffer.on_episode_end()

    def sample(self) -> Drawn:
        batch = self._buffer.sample(self._kind.batch, beta=BETA)
        return Drawn(batch["indexes"], batch)

    def update(self, drawn: Drawn, priority: np.ndarray) -> None:
        self._buffer.update_priorities(drawn.index, priority)

    def items(self, drawn: Drawn) -> Items:
        obs, following = ({name: drawn.batch[p + name] for name in self._kind.shapes} for p in ("", "next_"))
        return one_after_the_other(obs, following, drawn.batch["rew"])


class Tianshou:
    """Tianshou's buffer of many environments; stretches as its documentation makes them, stacks of 80."""

    about = "a Batch of arrays, ignore_obs_next; sequences: stack_num=80, of observations and rewards"
    prioritized = True

    def __init__(self, kind: Kind, rows: int, folder: Path) -> None:
        from tianshou.data import Batch, PrioritizedVectorReplayBuffer

        if folder.name == "mmap":
            raise NotImplementedError("keeps no rows in files")
        stack = kind.length if kind.length > 2 else 1
        self._buffer = PrioritizedVectorReplayBuffer(
            rows, NUM_ENVS, alpha=ALPHA, beta=BETA, stack_num=stack, ignore_obs_next=True
        )
        self._make, self._kind, self._stack = Batch, kind, stack

    def add(self, step: KindStep) -> None:
        self._buffer.add(
            self._make(
                obs=self._make(step.obs), act=step.action, rew=step.reward, terminated=step.no, truncated=step.no,
                obs_next=self._make(step.next_obs), info={},
            )
        )  # fmt: skip

    def sample(self) -> Drawn:
        if self._stack == 1:
            batch, index = self._buffer.sample(self._kind.batch)
            return Drawn(index, batch)
        index = self._buffer.sample_indices(self._kind.batch)
        arrays = {name: self._buffer.get(index, name) for name in ("obs", "act", "rew", "terminated")}
        return Drawn(index, arrays | {"weight": self._buffer.get_weight(index)})

    def update(self, drawn: Drawn, priority: np.ndarray) -> None:
        self._buffer.update_weight(drawn.index, priority)

    def items(self, drawn: Drawn) -> Items:
        if self._stack == 1:
            return one_after_the_other(dict(drawn.batch.obs), dict(drawn.batch.obs_next), drawn.batch.rew)
        return dict(drawn.batch["obs"]), drawn.batch["rew"][:, :-1]


class Flashbax:
    """flashbax's trajectories of L observations, compiled, the state donated."""

    about = "trajectory buffer of L observations (sequences with period 40), jit, donated; no importance weights"
    prioritized = True

    def __init__(self, kind: Kind, rows: int, folder: Path) -> None:
        import flashbax
        import jax

        if folder.name == "mmap":
            raise NotImplementedError("keeps no rows in files")
        self._jax = jax
        buffer = flashbax.make_prioritised_trajectory_buffer(
            add_batch_size=NUM_ENVS, sample_batch_size=kind.batch, sample_sequence_length=kind.length,
            period=1 if kind.length == 2 else PERIOD, min_length_time_axis=kind.length,
            max_length_time_axis=rows // NUM_ENVS, priority_exponent=ALPHA,
        )  # fmt: skip
        row: dict[str, Any] = {name: np.zeros(kind.shapes[name], kind.dtypes[name]) for name in kind.shapes}
        row = {"obs": row, "action": np.int32(0), "reward": np.float32(0), "done": np.bool_(0)}
        self._state = jax.jit(buffer.init)(jax.tree.map(jax.numpy.asarray, row))
        self._add = jax.jit(buffer.add, donate_argnums=0)
        self._set = jax.jit(buffer.set_priorities, donate_argnums=0)
        self._key = jax.random.PRNGKey(0)

        def draw(state: Any, key: Any) -> tuple[Any, Any]:
            key, now = jax.random.split(key)
            return key, buffer.sample(state, now)

        self._draw = jax.jit(draw)

    def add(self, step: KindStep) -> None:
        row = {"obs": step.obs, "action": step.action.astype(np.int32), "reward": step.reward, "done": step.no}
        self._state = self._add(self._state, self._jax.tree.map(lambda column: column[:, None], row))
        self._jax.block_until_ready(self._state)

    def sample(self) -> Drawn:
        self._key, batch = self._draw(self._state, self._key)
        self._jax.block_until_ready(batch)
        return Drawn(batch.indices, batch)

    def update(self, drawn: Drawn, priority: np.ndarray) -> None:
        self._state = self._set(self._state, drawn.index, priority.astype(np.float32))
        self._jax.block_until_ready(self._state)

    def items(self, drawn: Drawn) -> Items:
        rows = drawn.batch.experience
        return {name: np.asarray(a) for name, a in rows["obs"].items()}, np.asarray(rows["reward"])[:, :-1]


class TorchRL:
    """TorchRL's buffer with uniform draws: its trees do not load with every PyTorch."""

    about = "UNIFORM; both observations in a LazyTensorStorage; sequences: SliceSampler; mmap: LazyMemmapStorage"
    prioritized = False

    def __init__(self, kind: Kind, rows: int, folder: Path) -> None:
        import torch
        from tensordict import TensorDict
        from torchrl.data import LazyMemmapStorage, LazyTensorStorage, ReplayBuffer
        from torchrl.data.replay_buffers.samplers import SliceSampler

        self._tensors, self._dict, self._kind, self._slices = torch.from_numpy, TensorDict, kind, kind.length > 2
        how: dict[str, Any] = {"batch_size": kind.batch * (kind.length if self._slices else 1)}
        if self._slices:
            how["sampler"] = SliceSampler(
                slice_len=kind.length, end_key=("next", "done"), truncated_key=None, strict_length=True
            )
        where = {"ndim": 2} if self._slices else {}
        if folder.name == "mmap":
            storage: Any = LazyMemmapStorage(rows, scratch_dir=folder / "rows")
        else:
            storage = LazyTensorStorage(rows, **where)
        self._buffer = ReplayBuffer(storage=storage, dim_extend=1 if self._slices else 0, **how)

    def add(self, step: KindStep) -> None:
        obs = {name: self._tensors(array) for name, array in step.obs.items()}
        reward, done = self._tensors(step.reward)[:, None], self._tensors(step.no)[:, None]
        result: dict[str, Any] = {"reward": reward, "done": done, "terminated": done}
        if not self._slices:  # a stretch has its next observations in it
            result |= {name: self._tensors(array) for name, array in step.next_obs.items()}
        rows = self._dict({**obs, "action": self._tensors(step.action), "next": result}, [NUM_ENVS])
        self._buffer.extend(rows[:, None] if self._slices else rows)

    def sample(self) -> Drawn:
        batch = self._buffer.sample()
        return Drawn(None, batch)

    def update(self, drawn: Drawn, priority: np.ndarray) -> None:
        pass

    def items(self, drawn: Drawn) -> Items:
        batch = drawn.batch
        obs = {name: batch[name].numpy() for name in self._kind.shapes}
        reward = batch["next", "reward"].numpy()[:, 0]
        if not self._slices:
            return one_after_the_other(obs, {name: batch["next", name].numpy() for name in obs}, reward)
        split = self._kind.batch, self._kind.length
        obs = {name: array.reshape(*split, *array.shape[1:]) for name, array in obs.items()}
        return obs, reward.reshape(split)[:, :-1]
