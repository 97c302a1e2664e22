"""A buffer in a folder against a list of everything that was ever added, with ends of its process at any time."""

from __future__ import annotations

import copy
import os
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule, run_state_machine_as_test
from oracle import Row
from test_against_oracle import BUILT, BufferMachine


class FolderMachine(BufferMachine):
    """Does all that `BufferMachine` does to a buffer with ``store="mmap"``, and ends its process now and then."""

    @initialize(**BUILT)
    def build(self, seed, **built):
        super().build(seed=seed, **built)
        self.homes = 0
        self.buffer = type(self.buffer)(**self.buffer.settings, seed=seed, store="mmap", folder=self.new_home())
        self.flushed = copy.deepcopy(self.oracle)

    def new_home(self):
        self.homes += 1
        return Path(self.folder.name) / f"home {self.homes}"

    def take_up_again(self):
        self.buffer = type(self.buffer).from_folder(self.buffer._folder.path)
        if hasattr(self, "last"):
            del self.last  # names of rows that a crash lost are given again

    @rule()
    def flush(self):
        self.buffer.flush()
        self.flushed = copy.deepcopy(self.oracle)

    @rule()
    def close(self):
        self.buffer.close()
        self.flushed = copy.deepcopy(self.oracle)
        self.take_up_again()

    @rule(flush=st.booleans(), steps=st.integers(0, 9))
    def crash(self, flush, steps):
        if flush:
            self.flush()
        for _ in range(steps):
            self.add_one(0.1, None, True, "array")
        reserved = self.buffer._folder.reserved.copy()
        self.buffer._folder.close()
        self.oracle = copy.deepcopy(self.flushed)
        for env, rows in enumerate(self.oracle.envs):
            if rows and reserved[env] > len(rows):
                gone = int(reserved[env]) - self.oracle.rows
                self.oracle.lost[env] = max(self.oracle.lost[env], min(gone, len(rows)))
                rows.append(Row(-1, rows[-1].game + 1, rows[-1].episode + 1, final=True))
                self.must_open[env] = True
        self.take_up_again()

    @rule()
    def save_and_load(self):
        path = Path(self.folder.name) / "a save"
        self.buffer.save(path)
        self.buffer.close()
        self.buffer = type(self.buffer).load(path, "mmap", folder=self.new_home())
        self.flushed = copy.deepcopy(self.oracle)

    @rule(spare=st.integers(1, 30))
    def save_and_load_with_another_capacity(self, spare):
        rows = self.oracle.stack + self.oracle.n_step + spare
        path = Path(self.folder.name) / str(len(self.saves))
        self.buffer.begin_save(path, *self.saves[-1:]).write()
        self.saves.append(path)
        self.buffer.close()
        home = self.new_home()
        self.buffer = type(self.buffer).load(path, "mmap", folder=home, capacity=rows * self.num_envs)
        self.oracle.resize(rows)
        self.flushed = copy.deepcopy(self.oracle)


def test_a_buffer_in_a_folder_and_the_oracle_agree_after_every_operation(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)
    run_state_machine_as_test(
        FolderMachine,
        settings=settings(
            max_examples=12, stateful_step_count=25, deadline=None, derandomize=True, database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip
