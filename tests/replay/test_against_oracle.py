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

from fastrl.replay import Batch, PrioritizedReplayBuffer, ReplayBuffer
from fastrl.replay.saves import segments

GAMMA, EPS, BETA = 0.9, 1e-3, 0.7


class BufferMachine(RuleBasedStateMachine):
    """Adds vector steps of all kinds, updates priorities, and compares all that can be drawn."""

    @initialize(
        num_envs=st.integers(1, 3),
        stack=st.integers(1, 4),
        n_step=st.integers(1, 4),
        spare=st.integers(1, 9),
        padding=st.sampled_from(["first", "zero"]),
        autoreset=st.sampled_from(["next_step", "same_step", "disabled"]),
        alpha=st.sampled_from([None, 0.0, 0.6, 1.0]),
        seed=st.integers(0, 2**31),
    )
    def build(self, num_envs, stack, n_step, spare, padding, autoreset, alpha, seed):
        self.num_envs, self.autoreset, self.alpha = num_envs, autoreset, alpha
        rows = stack + n_step + spare
        shared = {
            "capacity": rows * num_envs, "num_envs": num_envs, "obs_shape": (2,), "obs_dtype": np.int32,
            "stack": stack, "stack_padding": padding, "n_step": n_step, "gamma": GAMMA, "autoreset": autoreset,
            "seed": seed,
        }  # fmt: skip
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

    def new_frames(self, n):
        self.frames += n
        return np.repeat(np.arange(self.frames - n + 1, self.frames + 1, dtype=np.int32)[:, None], 2, axis=1)

    @rule(
        repeat=st.integers(1, 12),
        done=st.sampled_from([0.0, 0.1, 0.4]),
        new_game=st.sampled_from([None, 0.0, 0.1, 0.5]),
        everybody=st.booleans(),
        finals=st.sampled_from(["array", "object", "terminated without"]),
    )
    def add(self, repeat, done, new_game, everybody, finals):
        for _ in range(repeat):
            self.add_one(done, new_game, everybody, finals)

    def add_one(self, done, new_game, everybody, finals):
        rng, n = self.rng, self.num_envs
        env = np.arange(n) if everybody else rng.permutation(n)[: rng.integers(0, n + 1)]
        n = len(env)
        obs, action, reward = self.new_frames(n), rng.integers(0, 9, n), rng.normal(size=n).astype(np.float32)
        terminated, truncated = rng.random(n) < done, rng.random(n) < done / 2
        first = None
        if new_game is not None:
            # Here and there a new game; None's meaning wherever an episode opens, unless a life was lost.
            first = (rng.random(n) < new_game) | self.must_open[env]
            self.must_open[env] = False
        final_obs, given = None, [None] * n
        if self.autoreset != "next_step":
            frames = self.new_frames(n)
            given = [int(frame[0]) for frame in frames]
            if finals == "array":
                final_obs = frames
            else:
                final_obs = np.empty(n, object)
                for i in range(n):
                    skip = finals != "object" and terminated[i]
                    final_obs[i] = frames[i] if (terminated[i] or truncated[i]) and not skip else None
                    given[i] = None if final_obs[i] is None else given[i]
            missing = (terminated | truncated) & np.array([frame is None for frame in given], bool)
            self.must_open[env] = missing  # a stack that goes on needs every frame
        self.buffer.add(
            obs, action, reward, terminated, truncated, first=first, final_obs=final_obs,
            env_id=None if everybody and rng.random() < 0.5 else env,
        )  # fmt: skip
        for i, e in enumerate(env):
            opens = None if first is None else bool(first[i])
            self.oracle.add(
                e, int(obs[i, 0]), int(action[i]), float(reward[i]), terminated[i], truncated[i], opens, given[i]
            )

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
        drawn = [rows[int(frame)] for frame in batch.obs[:, -1, 0]]
        assert drawn == sorted(drawn, key=lambda er: (er[0], er[1] % self.oracle.rows))
        if not self.alpha:
            assert set(drawn) == set(rows.values())  # two strata to each row: all are drawn
        for b, (e, r) in enumerate(drawn):
            for name, value in self.oracle.transition(e, r).items():
                got = getattr(batch, name)[b]
                assert np.array_equal(got[..., 0] if "obs" in name else got, value), name
        assert batch.index.tolist() == [r * self.num_envs + e for e, r in drawn]
        weights = np.ones(size)
        if self.alpha is not None:
            priorities = np.array([self.oracle.envs[e][r].priority for e, r in drawn])
            weights = (priorities + EPS) ** self.alpha
            weights = (weights / weights.min()) ** -BETA
        np.testing.assert_allclose(batch.weight, weights, rtol=1e-5)
        kept = getattr(batch, self.rng.choice(Batch.__slots__))  # one array alone is enough to hold
        self.held = [*self.held[-5:], (kept, kept.copy())]
        self.last = (batch, drawn)

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
    monkeypatch.setattr(segments, "PIECE", 32)  # four frames, so that small rings take many files
    monkeypatch.setattr(os, "fsync", lambda _: None)
    run_state_machine_as_test(
        BufferMachine,
        settings=settings(
            max_examples=examples, stateful_step_count=25, deadline=None, derandomize=True, database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip
