"""The buffer against a list of everything that was ever added, driven by hypothesis."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from oracle import Oracle

from fastrl.replay import PrioritizedReplayBuffer, ReplayBuffer
from fastrl.replay.saves import segments

GAMMA, EPS, BETA = 0.9, 1e-3, 0.7


BUILT = {
    "num_envs": st.integers(1, 3),
    "stack": st.integers(1, 4),
    "n_step": st.integers(1, 4),
    "spare": st.integers(1, 9),
    "padding": st.sampled_from(["first", "zero"]),
    "autoreset": st.sampled_from(["next_step", "same_step", "disabled"]),
    "alpha": st.sampled_from([None, 0.0, 0.6, 1.0]),
    "several": st.booleans(),
    "extra": st.booleans(),
    "seed": st.integers(0, 2**31),
}
"""What a machine builds its buffer with, drawn anew for each."""


class BufferMachine(RuleBasedStateMachine):
    """Adds vector steps of all kinds, updates priorities, and compares all that can be drawn."""

    @initialize(**BUILT)
    def build(self, num_envs, stack, n_step, spare, padding, autoreset, alpha, several, extra, seed):
        self.num_envs, self.autoreset, self.alpha = num_envs, autoreset, alpha
        self.several, self.extra = several, extra
        rows = stack + n_step + spare
        shared = {
            "capacity": rows * num_envs, "num_envs": num_envs, "obs_shape": (2,), "obs_dtype": np.int32,
            "stack": stack, "stack_padding": padding, "n_step": n_step, "gamma": GAMMA, "autoreset": autoreset,
            "seed": seed,
        }  # fmt: skip
        self.stacks = (stack, 1, max(1, stack - 1))
        if several:
            shared |= {
                "obs_shape": {"image": (2,), "in": ((), (3,))}, "obs_dtype": {"image": np.int32, "in": ("<i8", ">f4")},
                "stack": {"image": stack, "in": self.stacks[1:]},
            }  # fmt: skip
        if extra:
            shared |= {"extra": {"own": ((), np.int16), "mine": ((2,), np.int64)}, "next_extra": ("mine",)}
        if alpha is None:
            self.buffer = ReplayBuffer(**shared)
        else:
            self.buffer = PrioritizedReplayBuffer(alpha=alpha, eps=EPS, **shared)
        self.oracle = Oracle(num_envs, rows, stack, padding, n_step, GAMMA, autoreset)
        self.rng = np.random.default_rng(seed)
        self.frames = 0
        self.must_open = np.zeros(num_envs, bool)
        self.held = []  # batches drawn some time ago, with copies of what they held
        self.folder, self.saves = tempfile.TemporaryDirectory(), []

    def teardown(self):
        if hasattr(self, "folder"):
            self.folder.cleanup()

    def new_numbers(self, n):
        self.frames += n
        return np.arange(self.frames - n + 1, self.frames + 1, dtype=np.int32)

    def observations(self, numbers):
        """Frames ``[n, …]`` that carry these numbers, in each of their arrays."""
        pairs = np.repeat(numbers[:, None], 2, axis=1)
        if not self.several:
            return pairs
        return {"image": pairs, "in": (numbers.astype(np.int64), np.repeat(-numbers[:, None], 3, axis=1).astype(">f4"))}

    def own(self, numbers):
        """Fields of one's own ``[n, …]`` that carry these numbers."""
        return {"mine": np.repeat(numbers[:, None], 2, axis=1).astype(np.int64), "own": -numbers.astype(np.int16)}

    @rule(
        repeat=st.integers(1, 12),
        done=st.sampled_from([0.0, 0.1, 0.4]),
        new_game=st.sampled_from([None, 0.0, 0.1, 0.5]),
        everybody=st.booleans(),
        finals=st.sampled_from(["array", "object", "terminated without"]),
        at_once=st.booleans(),
    )
    def add(self, repeat, done, new_game, everybody, finals, at_once):
        if at_once:
            self.extend(repeat, done, new_game, everybody, finals)
            return
        for _ in range(repeat):
            self.add_one(done, new_game, everybody, finals)

    def add_one(self, done, new_game, everybody, finals):
        env = self.some(everybody)
        all_of_them = everybody and self.rng.random() < 0.5
        self.buffer.add(**self.step(env, done, new_game, finals), env_id=None if all_of_them else env)

    def extend(self, repeat, done, new_game, everybody, finals):
        """Add many steps in one call; those of an oracle come one by one."""
        env = self.some(everybody)
        steps = [self.step(env, done, new_game, finals) for _ in range(repeat)]
        together = {name: [step[name] for step in steps] for name in steps[0]}
        for name, values in together.items():
            if any(value is None for value in values):
                together[name] = values if "final" in name and any(value is not None for value in values) else None
            elif finals == "array" or "final" not in name:
                together[name] = stacked(values)
        if self.rng.random() < 0.3:  # of another dtype: not in one call
            together["action"] = together["action"].astype(np.int16)
        self.buffer.extend(**together, env_id=env)

    def some(self, everybody):
        n = self.num_envs
        return np.arange(n) if everybody else self.rng.permutation(n)[: self.rng.integers(0, n + 1)]

    def step(self, env, done, new_game, finals):
        """Return the arguments of a vector step, and tell the oracle."""
        rng, n = self.rng, len(env)
        numbers, action, reward = self.new_numbers(n), rng.integers(0, 9, n), rng.normal(size=n).astype(np.float32)
        own = rng.integers(0, 2**15, n)
        terminated, truncated = rng.random(n) < done, rng.random(n) < done / 2
        first = None
        if new_game is not None:
            # Here and there a new game; None's meaning wherever an episode opens, unless a life was lost.
            first = (rng.random(n) < new_game) | self.must_open[env]
            self.must_open[env] = False
        ends, given, given_own = {}, [None] * n, [None] * n
        if self.autoreset != "next_step":
            last, last_own = self.new_numbers(n), rng.integers(0, 2**15, n)
            skip = (terminated if finals == "terminated without" else np.zeros(n, bool)) | ~(terminated | truncated)
            if finals == "array":
                skip[:] = False
            given = [None if skip[i] else int(last[i]) for i in range(n)]
            given_own = [None if skip[i] else int(last_own[i]) for i in range(n)]
            ends = {"final_obs": self.observations(last)}
            if self.extra:
                ends["final_extra"] = {"mine": self.own(last_own)["mine"]}
            if finals != "array":
                ends = {name: one_by_one(value, skip) for name, value in ends.items()}
            missing = (terminated | truncated) & np.array([frame is None for frame in given], bool)
            self.must_open[env] = missing  # a stack that goes on needs every frame
        for i, e in enumerate(env):
            opens = None if first is None else bool(first[i])
            self.oracle.add(
                e, int(numbers[i]), int(action[i]), float(reward[i]), terminated[i], truncated[i], opens, given[i],
                int(own[i]), given_own[i],
            )  # fmt: skip
        extra = {"extra": self.own(own)} if self.extra else {}
        return {
            "obs": self.observations(numbers), "action": action, "reward": reward, "terminated": terminated,
            "truncated": truncated, "first": first,
        } | ends | extra  # fmt: skip

    def rows_by_frame(self):
        """Rows that may be drawn, by the number that their frame carries."""
        return {self.oracle.envs[e][r].frame: (e, r) for e in range(self.num_envs) for r in self.oracle.drawable(e)}

    @invariant()
    def what_can_be_drawn_is_what_can_be_rebuilt(self):
        if not hasattr(self, "oracle"):
            return
        self.buffer.check()
        rows = self.rows_by_frame()
        assert self.buffer.drawable == len(rows)
        assert len(self.buffer) == len(self.oracle)
        for array, copy in self.held:
            assert np.array_equal(array, copy)
        if not rows:
            with pytest.raises(ValueError, match="no row can be drawn"):
                self.buffer.sample(2)
            return
        size = 2 * len(rows)
        how = (size,) if self.alpha is None else (size, BETA)
        if self.rng.random() < 0.3:
            self.buffer.prefetch(*how)
        batch = self.buffer.sample(*how)
        obs, next_obs = (self.leaves(each) for each in (batch.obs, batch.next_obs))
        drawn = [rows[int(frame)] for frame in obs[0][:, -1, 0]]
        assert drawn == sorted(drawn, key=lambda er: (er[0], er[1] % self.oracle.rows))
        if not self.alpha:
            assert set(drawn) == set(rows.values())  # two strata to each row: all are drawn
        for b, (e, r) in enumerate(drawn):
            for name, value in self.oracle.transition(e, r).items():
                if "obs" not in name:
                    assert np.array_equal(getattr(batch, name)[b], value), name
            for at, arrays in ((r, obs), (self.oracle.after(e, r), next_obs)):
                for stack, array in zip(self.stacks, arrays, strict=False):
                    value = np.reshape(self.oracle.observation(e, at, stack), (stack, *[1] * (array.ndim - 2)))
                    assert np.array_equal(array[b], np.broadcast_to(value, array[b].shape))
            if self.extra:
                now, after = self.oracle.envs[e][r].extra, self.oracle.envs[e][self.oracle.after(e, r)].extra
                assert batch.extra["own"][b] == -now
                assert batch.extra["mine"][b].tolist() == [now, now]
                assert batch.next_extra["mine"][b].tolist() == [after, after]
        assert set(batch.extra) == ({"own", "mine"} if self.extra else set())
        assert set(batch.next_extra) == ({"mine"} if self.extra else set())
        assert batch.index.tolist() == [r * self.num_envs + e for e, r in drawn]
        weights = np.ones(size)
        if self.alpha is not None:
            priorities = np.array([self.oracle.envs[e][r].priority for e, r in drawn])
            weights = (priorities + EPS) ** self.alpha
            weights = (weights / weights.min()) ** -BETA
        np.testing.assert_allclose(batch.weight, weights, rtol=1e-5)
        arrays = [*obs, *next_obs, batch.reward, batch.index, *batch.extra.values(), *batch.next_extra.values()]
        kept = arrays[self.rng.integers(len(arrays))]  # one array alone is enough to hold
        self.held = [*self.held[-5:], (kept, kept.copy())]
        self.last = (batch, drawn)

    def leaves(self, obs):
        """The arrays of observations, with the number that a frame carries in each."""
        return [obs["image"], obs["in"][0], -obs["in"][1]] if self.several else [obs]

    @rule(chunk=st.integers(1, 9))
    def read_all_rows(self, chunk):
        wanted = [
            (e, r, row) for e, rows in enumerate(self.oracle.envs) for r, row in enumerate(rows)
            if r >= self.oracle.oldest(e) and row.frame >= 0  # negative: it stands for what a crash lost
        ]  # fmt: skip
        drawable = [set(self.oracle.drawable(e)) for e in range(self.num_envs)]
        found = 0
        for rows in self.buffer.rows(chunk):
            assert 1 <= len(rows.env) <= chunk
            for i in range(len(rows.env)):
                e, r, row = wanted[found]
                assert (rows.env[i], rows.index[i]) == (e, r * self.num_envs + e)
                assert {int(np.unique(array[i])[0]) for array in self.leaves(rows.obs)} == {row.frame}
                assert (rows.final[i], rows.drawable[i]) == (row.final, r in drawable[e])
                if not row.final:
                    ends = {"terminated": (True, False), "truncated": (False, True)}.get(row.ended, (False, False))
                    assert (rows.action[i], rows.reward[i]) == (row.action, np.float32(row.reward))
                    assert (rows.terminated[i], rows.truncated[i]) == ends
                if self.extra:
                    assert rows.extra["mine"][i].tolist() == [row.extra] * 2
                found += 1
        assert found == len(wanted)

    @rule()
    def save_and_load(self):
        with tempfile.TemporaryDirectory() as folder:
            self.buffer.save(Path(folder) / "replay")
            self.buffer = type(self.buffer).load(Path(folder) / "replay")

    @rule(
        spare=st.integers(1, 30),
        beside=st.integers(0, 2),
        how=st.sampled_from(["file", "folder", "shares", "shares with an older one"]),
    )
    def save_and_load_with_another_capacity(self, spare, beside, how):
        rows = self.oracle.stack + self.oracle.n_step + spare
        path = Path(self.folder.name) / str(len(self.saves))
        if how == "file":
            self.buffer.save(path)
        else:
            earlier = {"shares": self.saves[-1:], "shares with an older one": self.saves[:1]}.get(how)
            self.buffer.begin_save(path, *(earlier or [None])).write()
        self.saves.append(path)
        capacity = rows * self.num_envs + beside % self.num_envs
        assert type(self.buffer).saved_settings(path)["capacity"] == self.buffer.settings["capacity"]
        self.buffer = type(self.buffer).load(path, capacity=capacity)
        assert self.buffer.settings["capacity"] == capacity
        self.oracle.resize(rows)

    @rule(n_step=st.integers(1, 5))
    def change_n(self, n_step):
        if self.oracle.rows < self.oracle.stack + n_step + 1:
            with pytest.raises(ValueError, match="capacity is"):
                self.buffer.set_n_step(n_step)
            return
        self.buffer.set_n_step(n_step)
        self.oracle.set_n_step(n_step)

    @rule(gamma=st.sampled_from([0, 0.5, GAMMA, 1.0]))
    def change_gamma(self, gamma):
        self.buffer.set_gamma(gamma)
        self.oracle.gamma = gamma

    @rule(late=st.booleans(), scale=st.sampled_from([1.0, 0.0, 30.0]))
    def update(self, late, scale):
        if self.alpha is None or not hasattr(self, "last"):
            return
        batch, drawn = self.last
        if late:  # rows may have been overwritten or closed to drawing since
            for _ in range(self.rng.integers(1, 20)):
                self.add_one(0.1, None, True, "array")
        priority = self.rng.random(len(drawn)) * scale
        self.buffer.update_priorities(batch.index, priority)
        alive = self.rows_by_frame()
        accepted = [(er, p) for er, p in zip(drawn, priority, strict=True) if er in alive.values()]
        for (e, r), p in accepted:
            self.oracle.envs[e][r].priority = float(p)
        self.oracle.max_priority = max([self.oracle.max_priority, *(float(p) for _, p in accepted)])


def stacked(values):
    """Return arrays of one more axis, nested as the values are."""
    if isinstance(values[0], dict):
        return {name: stacked([value[name] for value in values]) for name in values[0]}
    if isinstance(values[0], tuple):
        return tuple(map(stacked, zip(*values, strict=True)))
    return np.stack(values)


def one_by_one(value, skip):
    """Return what nested arrays hold for each environment, or None where it is skipped."""

    def part(value, i):
        if isinstance(value, dict):
            return {name: part(each, i) for name, each in value.items()}
        return tuple(part(each, i) for each in value) if isinstance(value, tuple) else value[i]

    objects = np.full(len(skip), None, object)
    for i in np.flatnonzero(~skip):
        objects[i] = part(value, i)
    return objects


@pytest.mark.parametrize(
    ("kernels", "stores", "examples"),
    [
        ("compiled", "ram", 150),
        pytest.param("reference", "ram", 150, marks=pytest.mark.slow),
        ("compiled", "lz4", 60),
    ],
    indirect=["kernels", "stores"],
)
def test_buffer_and_oracle_agree_after_every_operation(kernels, stores, examples, monkeypatch):
    monkeypatch.setattr(segments, "PIECE", 32)  # four single frames, so that small rings take many files
    monkeypatch.setattr(os, "fsync", lambda _: None)
    run_state_machine_as_test(
        BufferMachine,
        settings=settings(
            max_examples=examples, stateful_step_count=25, deadline=None, derandomize=True, database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip
