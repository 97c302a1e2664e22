"""A buffer in a folder whose process is killed at random moments: what can be drawn afterwards is what was added."""

from __future__ import annotations

import mmap
import os
import random
import signal
import time
from collections import Counter

import numpy as np
import pytest

from fastrl.replay import ReplayBuffer

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]
NUM_ENVS, ROWS, STACK, N_STEP = 2, 90, 2, 2
SHAPE = (700,)  # of int64: more than a page
SETTINGS = {
    "capacity": NUM_ENVS * ROWS, "num_envs": NUM_ENVS, "obs_shape": SHAPE, "obs_dtype": np.int64, "stack": STACK,
    "n_step": N_STEP, "seed": 0, "store": "mmap",
}  # fmt: skip
LIFE = 1_000_000  # frames of one process have numbers from a multiple of this on
ADDED, FLUSHED, BEGUN = range(3)  # what a process notes: its rows in each ring; those flushed; rows when it began


def add_until_killed(folder, life, seed, notes):
    """Add frames that are full of their number, and flush now and then."""
    rng, no = random.Random(seed), np.zeros(NUM_ENVS, bool)
    buffer = ReplayBuffer(**SETTINGS, folder=folder)
    notes[ADDED] = notes[FLUSHED] = notes[BEGUN] = buffer._ring.count[0]
    for t in range(LIFE):
        number = LIFE * life + 2 * t + np.arange(NUM_ENVS)
        done = np.array([rng.random() < 0.05, False])
        obs = np.repeat(number[:, None], *SHAPE, axis=1)
        notes[ADDED] += 1
        first = np.ones(NUM_ENVS, bool) if t == 0 else None  # games do not survive their process
        frames = obs if t % 3 else obs.astype(">i8")  # in one call of C, or by the plain path
        buffer.add(frames, number, np.ones(NUM_ENVS), done, no, first)
        if rng.random() < 0.02:
            buffer.flush()
            notes[FLUSHED] = notes[ADDED]


def kill_one(folder, life, rng, notes):
    """Let a process add rows; kill it, at a moment that may lie before its first row."""
    notes[:] = -1
    child = os.fork()
    if not child:
        try:
            add_until_killed(folder, life, rng.randrange(1 << 30), notes)
        finally:
            os._exit(1)
    if rng.random() < 0.8:
        steps, patience = rng.randrange(250), time.monotonic() + 20
        while (notes[ADDED] < 0 or notes[ADDED] - notes[BEGUN] < steps) and time.monotonic() < patience:
            time.sleep(0.0003)
    time.sleep(rng.random() * 0.003)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, "the process failed"


def check_all(buffer):
    """Check every row that can be drawn against the numbers in its frames."""
    buffer.check()
    if not buffer.drawable:
        return set()
    batch = buffer.sample(2 * buffer.drawable)  # two strata to each row: all are drawn
    for frames in (batch.obs, batch.next_obs):
        assert (frames == frames[..., :1]).all(), "a frame is torn"
    obs, after = batch.obs[..., 0], batch.next_obs[..., 0]
    assert np.array_equal(obs[:, -1], batch.action), "a frame is not that of its row"
    assert np.isin(obs[:, -1] - obs[:, 0], (0, 2)).all(), "a stack holds a foreign frame"
    steps = np.where(batch.reward > 1.5, 2, 1)  # rewards are 1, discounted by 0.99
    assert np.array_equal(after[:, -1] - obs[:, -1], 2 * steps), "a next observation is not the next"
    return set(batch.action.tolist())


@pytest.mark.parametrize("kills", [15, pytest.param(300, marks=pytest.mark.slow)])
def test_no_row_has_a_foreign_frame_after_any_kill(tmp_path, monkeypatch, kills):
    monkeypatch.setattr(os, "fsync", lambda _: None)  # what a process has written stays when it is killed
    rng = random.Random(kills)
    notes = np.frombuffer(mmap.mmap(-1, 24), np.int64)
    farthest = oldest = 0  # how far rings ran since the latest flush; the oldest row at the latest look
    met = Counter()
    for life in range(1, kills + 1):
        kill_one(tmp_path / "replay", life, rng, notes)
        buffer = ReplayBuffer(**SETTINGS, folder=tmp_path / "replay")
        check_all(buffer)
        ring = buffer._ring
        added, flushed, begun = notes.tolist()
        if added >= 0:
            farthest = max(added, farthest if flushed == begun else 0)
            assert ring.count[0] >= flushed, "flushed rows are missing"
            assert ring.oldest[0] <= max(oldest, farthest + 1 + ROWS // 32 - ROWS), "rows not overwritten are missing"
            met.update(begun=1, flushed=flushed > begun, overwrote=flushed > ROWS and added > flushed + STACK)
        if rng.random() < 0.5:
            buffer.flush()
            farthest = ring.count[0]
        oldest = ring.oldest[0]
        buffer._folder.close()
    assert met["begun"] < kills, met
    assert min(met.values()) >= kills // 10, met
