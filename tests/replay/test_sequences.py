"""Stretches of games: against the history, the plain twin, and numbers worked out by hand."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule, run_state_machine_as_test
from kernels import COMPILED, REFERENCE
from make import NO, filled, refused, small
from test_against_oracle import BETA, EPS, BufferMachine

from fastrl.replay import PrioritizedReplayBuffer, RamStore, ReplayBuffer
from fastrl.replay.ring import Ring
from fastrl.replay.saves import segments
from fastrl.replay.sequences import sequence_priority


def check_stretch(batch, b, machine, env, start, length):
    """Compare one stretch of a batch with the history."""
    oracle, burn_in = machine.oracle, batch.burn_in
    steps, observations = oracle.stretch(env, start, length, burn_in)
    assert batch.mask[b].tolist() == [step is not None for step in steps]
    nothing = (0, np.float32(0), np.float32(0))
    got = zip(batch.action[b], batch.reward[b], batch.discount[b], strict=True)
    assert list(got) == [step or nothing for step in steps]
    for t, observation in enumerate(observations):
        if observation is None:
            continue
        for stack, array in zip(machine.stacks, machine.leaves(batch.obs), strict=False):
            value = np.reshape(observation[-stack:], (stack, *[1] * (array.ndim - 3)))
            assert np.array_equal(array[b, t], np.broadcast_to(value, array[b, t].shape)), (env, start, t)
    if machine.extra:
        for t in np.flatnonzero(batch.mask[b]):
            own = oracle.envs[env][start - burn_in + t].extra
            assert (batch.extra["own"][b, t], batch.extra["mine"][b, t].tolist()) == (-own, [own, own])
    assert set(batch.extra) == ({"own", "mine"} if machine.extra else set())
    assert batch.begin[b] == next(t for t, step in enumerate(steps) if step)


class SequenceMachine(BufferMachine):
    """Everything that a buffer goes through, and after each operation a batch of stretches."""

    @invariant()
    def every_stretch_is_the_one_of_the_history(self):
        if not hasattr(self, "oracle"):
            return
        rng, most = self.rng, self.oracle.rows - self.oracle.stack
        length = int(rng.integers(1, most + 1))
        burn_in, period = int(rng.integers(0, most - length + 1)), int(rng.integers(1, length + 1))
        how = {"period": period} if self.alpha is None else {"period": period, "beta": BETA}
        cells = self.oracle.cells(length, period)
        nodes = self.buffer._tree._nodes.copy()
        if not cells:
            with pytest.raises(ValueError, match="no stretch of"):
                self.buffer.sample_sequences(2, length, burn_in, **how)
            assert np.array_equal(self.buffer._tree._nodes, nodes)
            return
        size = 2 * sum(map(len, cells.values()))
        batch = self.buffer.sample_sequences(size, length, burn_in, **how)
        assert np.array_equal(self.buffer._tree._nodes, nodes)
        drawn = [(i % self.num_envs, i // self.num_envs) for i in batch.index.tolist()]
        assert set(drawn) <= set(cells)
        if not self.alpha:
            assert set(drawn) == set(cells)  # two strata to each row that counts
        for b, (env, start) in enumerate(drawn):
            check_stretch(batch, b, self, env, start, length)
        weights = np.ones(size)
        if self.alpha is not None:
            by_cell = [[self.oracle.envs[e][q].priority for q in cells[e, r]] for e, r in drawn]
            shares = np.array([sum((p + EPS) ** self.alpha for p in cell) for cell in by_cell])
            weights = (shares / shares.min()) ** -BETA
        np.testing.assert_allclose(batch.weight, weights, rtol=1e-5)
        kept = [batch.reward, *(array[:, -1] for array in self.leaves(batch.obs))]
        self.held = [*self.held[-5:], *((array, array.copy()) for array in kept)]
        self.last_stretches = batch, drawn, length, period

    @rule(late=st.booleans(), scale=st.sampled_from([1.0, 0.0, 30.0]), eta=st.sampled_from([0.0, 0.9, 1.0]))
    def update_stretches(self, late, scale, eta):
        if self.alpha is None or not hasattr(self, "last_stretches"):
            return
        batch, drawn, length, period = self.last_stretches
        if late:  # rows may have been overwritten or closed to drawing since
            for _ in range(self.rng.integers(1, 20)):
                self.add_one(0.1, None, True, "array")
        error = self.rng.random((len(drawn), length)) * scale
        self.buffer.update_sequence_priorities(batch, error, eta)
        for b, (env, start) in enumerate(drawn):
            alive, rows = self.oracle.drawable(env), self.oracle.envs[env]
            of_steps = error[b][batch.mask[b, batch.burn_in :]]
            priority = eta * of_steps.max() + (1 - eta) * of_steps.mean()
            if start in alive:
                for q in alive:
                    if q >= start and q // period == start // period and rows[q].game == rows[start].game:
                        rows[q].priority = float(priority)
                self.oracle.max_priority = max(self.oracle.max_priority, float(priority))


@pytest.mark.parametrize(
    ("kernels", "stores", "examples"),
    [
        ("compiled", "ram", 40),
        ("reference", "ram", 8),
        pytest.param("reference", "ram", 150, marks=pytest.mark.slow),
        ("compiled", "lz4", 12),
    ],
    indirect=["kernels", "stores"],
)
def test_stretches_and_oracle_agree_after_every_operation(kernels, stores, examples, monkeypatch):
    monkeypatch.setattr(segments, "PIECE", 32)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    run_state_machine_as_test(
        SequenceMachine,
        settings=settings(
            max_examples=examples, stateful_step_count=25, deadline=None, derandomize=True, database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(12))
def test_the_kernel_and_its_twin_agree_to_the_last_bit(seed):
    rng = np.random.default_rng(seed)
    num_envs, stack, n_step = rng.integers(1, 5, 3).tolist()
    rows = stack + n_step + int(rng.integers(1, 30))
    ring = Ring(num_envs, rows, stack, n_step, (2,), np.dtype(np.int16))
    nodes = np.zeros(num_envs * rows)
    for _ in range(rng.integers(1, 150)):
        env = rng.permutation(num_envs)[: rng.integers(0, num_envs + 1)]
        n = len(env)
        mark, first = rng.choice([0] * 9 + [1, 2], n), rng.choice([-1] * 9 + [0, 1], n)
        ring.push(
            env, rng.integers(-99, 99, (n, 2)), rng.normal(size=n).astype(np.float32), mark.astype(np.uint8),
            first.astype(np.int8),
        )  # fmt: skip
    drawn = np.flatnonzero(ring.drawable)
    if not len(drawn):
        return
    nodes[drawn] = rng.random(len(drawn)) * 10.0 ** rng.integers(-150, 150)
    for zero in (False, True):
        length, burn_in = int(rng.integers(1, rows)), int(rng.integers(0, rows))
        period, steps, batch = int(rng.integers(1, 12)), length + burn_in, len(drawn)
        answers = []
        for kernels in (COMPILED, REFERENCE):
            stretches = kernels.Stretches(
                rows, stack, zero, 0.9, nodes, ring.oldest, ring.count, ring.first, ring.reward, ring.mark,
                ring.action.reshape(len(nodes), -1).view(np.uint8),
            )  # fmt: skip
            slots = np.full(num_envs * min(length, rows), -7)
            found = stretches.unfinished(length, slots)
            out = [drawn.copy(), np.empty(batch), np.full((batch * steps, 4), 99, np.uint8)]
            out += [np.full((batch, steps), 99, kind) for kind in (np.float32, np.float32, np.uint8)]
            out += [np.full((batch, stack + steps), 99)]
            stretches.assemble(period, burn_in, *out)
            answers.append([slots[:found], *out])
        for compiled, plain in zip(*answers, strict=True):
            assert np.array_equal(compiled, plain)


def played(marks, **changes):
    """Return a buffer of one environment whose row t holds frame, action and reward t, by the letters of ``marks``.

    ``.`` an ordinary row, ``t`` and ``c`` a termination and a cut (truncation), ``f`` the final observation after it,
    ``l`` one after which the game goes on, ``n`` the first row of a game that nothing announced.
    """
    buffer = small(**{"num_envs": 1, "capacity": 40, "obs_shape": (), "obs_dtype": np.int16, "stack": 2} | changes)
    first = None
    for t, mark in enumerate(marks):
        first = True if mark == "n" else first
        buffer.add([np.int16(t)], [t], [t], [mark == "t"], [mark == "c"], first=None if first is None else [first])
        first = {"l": False}.get(mark)
    return buffer


def drawn(buffer, row, *args, **how):
    """Return the stretch that starts at a row, as a batch, and its place in it."""
    batch = buffer.sample_sequences(200, *args, **how)
    return batch, batch.index.tolist().index(row)


def only(batch, b):
    """Return a batch of one of the stretches alone."""
    fields = {name: getattr(batch, name) for name in batch.__slots__}
    return type(batch)(**{k: v[b : b + 1] if isinstance(v, np.ndarray) else v for k, v in fields.items()})


def test_a_game_ends_a_stretch_and_its_last_step_has_the_final_observation(kernels):
    batch, b = drawn(played("...tf..."), 1, 5)
    assert batch.mask[b].tolist() == [True, True, True, False, False]
    assert batch.reward[b].tolist() == [1, 2, 3, 0, 0]
    assert batch.action[b].tolist() == [1, 2, 3, 0, 0]
    assert batch.discount[b].tolist() == [0.5, 0.5, 0, 0, 0]
    assert batch.obs[b, :4].tolist() == [[0, 1], [1, 2], [2, 3], [3, 4]]


def test_a_truncated_game_ends_a_stretch_but_value_flows_from_its_final_observation(kernels):
    batch, b = drawn(played("...cf..."), 1, 5)
    assert batch.mask[b].tolist() == [True, True, True, False, False]
    assert batch.discount[b].tolist() == [0.5, 0.5, 0.5, 0, 0]
    assert batch.obs[b, 3].tolist() == [3, 4]


def test_a_lost_life_ends_value_but_no_stretch(kernels):
    batch, b = drawn(played("...tl...."), 1, 6, 1)
    assert batch.mask[b].tolist() == [True, True, True, True, False, True, True]
    assert batch.reward[b].tolist() == [0, 1, 2, 3, 0, 5, 6]
    assert batch.discount[b].tolist() == [0.5, 0.5, 0.5, 0, 0, 0.5, 0.5]
    assert batch.obs[b].tolist() == [[0, 0], [0, 1], [1, 2], [2, 3], [3, 4], [4, 5], [5, 6], [6, 7]]


def test_a_final_observation_of_a_lost_life_begins_no_burn_in(kernels):
    batch, b = drawn(played("...tl...."), 6, 2, 2)
    assert batch.mask[b].tolist() == [False, True, True, True]
    assert batch.begin[b] == 1
    assert batch.obs[b, 1:].tolist() == [[4, 5], [5, 6], [6, 7], [7, 8]]


def test_an_abandoned_game_ends_a_stretch_before_the_step_whose_outcome_is_unknown(kernels):
    batch, b = drawn(played("....n..."), 1, 4)
    assert batch.mask[b].tolist() == [True, True, False, False]
    assert batch.obs[b, :3].tolist() == [[0, 1], [1, 2], [2, 3]]


@pytest.mark.parametrize(("padding", "pad"), [("first", 5), ("zero", 0)])
def test_burn_in_stops_at_the_first_row_of_a_game_and_its_stack_is_padded(kernels, padding, pad):
    batch, b = drawn(played("...tf......", stack=3, stack_padding=padding), 6, 2, 4)
    assert batch.mask[b].tolist() == [False, False, False, True, True, True]
    assert batch.begin[b] == 3
    assert batch.obs[b, 3:].tolist() == [[pad, pad, 5], [pad, 5, 6], [5, 6, 7], [6, 7, 8]]


def test_burn_in_stops_where_the_stack_of_a_step_was_overwritten(kernels):
    buffer = played("." * 14, capacity=10)  # rows 4 to 13 are held; row 5 is the first with both its frames
    batch, b = drawn(buffer, 7, 2, 4)
    assert batch.mask[b].tolist() == [False, False, True, True, True, True]
    assert batch.obs[b, 2:].tolist() == [[4, 5], [5, 6], [6, 7], [7, 8], [8, 9]]


@pytest.mark.parametrize(
    ("marks", "starts"),
    [
        ("......", [0, 1, 2]),  # the last row has no next frame, and from rows 3 and 4 on there are no 3 steps
        ("...t", [0]),
        ("...tf", [0, 1, 2, 3]),  # all of the game is there
        ("...tl", [0, 1, 2, 3]),
        ("...tl.", [0, 1, 2]),  # it goes on
        ("...tl...", [0, 1, 2, 3]),
        ("...n", [0, 1]),
        ("...n...", [0, 1, 3]),
    ],
)
def test_a_stretch_is_drawn_once_it_has_all_its_steps_or_its_game_is_over(kernels, marks, starts):
    batch = played(marks).sample_sequences(300, 3)
    assert sorted(set(batch.index.tolist())) == starts


def test_starts_are_a_period_apart_and_every_game_has_one_at_its_first_row(kernels):
    batch = played("." * 10 + "tf" + "." * 20).sample_sequences(300, 5, period=4)
    assert sorted(set(batch.index.tolist())) == [0, 4, 8, 12, 16, 20, 24]
    batch = played("." * 12 + "tf" + "." * 20).sample_sequences(300, 5, period=4)
    assert sorted(set(batch.index.tolist())) == [0, 4, 8, 12, 14, 16, 20, 24, 28]


def test_a_period_multiplies_the_chance_of_a_start_by_the_rows_that_count_for_it():
    """Rows 0 to 9 of one game, over: cells 0-3, 4-7 and 8-9, and the final observation."""
    buffer = played("." * 9 + "tf", alpha=1.0, eps=1e-9)
    buffer.update_priorities(np.arange(10), [1, 1, 1, 1, 3, 3, 3, 3, 8, 8])
    batch = buffer.sample_sequences(3_200, 4, beta=1.0, period=4)
    counts = {start: (batch.index == start).sum() for start in (0, 4, 8)}
    assert counts == {0: pytest.approx(400, abs=2), 4: pytest.approx(1_200, abs=2), 8: pytest.approx(1_600, abs=2)}
    weights = {start: batch.weight[batch.index == start][0] for start in (0, 4, 8)}
    assert weights == pytest.approx({0: 1.0, 4: 1 / 3, 8: 1 / 4})


def test_priorities_are_the_mix_of_maximum_and_mean_worked_out_by_hand():
    error = np.array([[1.0, 2.0, 6.0], [4.0, np.nan, -9.0], [0.0, 0.0, 0.0]])
    mask = np.array([[1, 1, 1], [1, 0, 0], [0, 1, 1]], bool)
    assert sequence_priority(error, mask).tolist() == pytest.approx([0.9 * 6 + 0.1 * 3, 4.0, 0.0])
    assert sequence_priority(error, mask, eta=0).tolist() == [3.0, 4.0, 0.0]
    assert sequence_priority(error, mask, eta=1).tolist() == [6.0, 4.0, 0.0]


def test_an_update_gives_every_row_of_a_cell_the_priority_and_no_other():
    buffer = played("." * 9 + "tf" + "." * 9, alpha=1.0, eps=0.5)
    alone = only(*drawn(buffer, 4, 4, 2, period=4))
    buffer.update_sequence_priorities(alone, [[1.0, 2.0, 5.0, 0.0]], eta=0.5)
    assert buffer.weights(np.arange(10)).tolist() == [1.5] * 4 + [3.5 + 0.5] * 4 + [1.5] * 2
    assert buffer.max_priority == 3.5


@pytest.mark.parametrize(
    ("marks", "start", "cell"),
    [
        ("." * 4 + "tf" + "." * 12, 6, [6, 7]),  # a game's first cell ends at the next multiple of 4
        ("." * 8 + "tf" + "." * 12, 8, [8]),  # a game's last cell ends with it; row 10 belongs to the next
        ("." * 8 + "tl" + "." * 12, 8, [8, 10, 11]),  # unless it goes on
    ],
)
def test_a_cell_ends_with_its_game_and_at_the_next_multiple_of_the_period(marks, start, cell):
    buffer = played(marks, alpha=1.0, eps=0.5)
    buffer.update_sequence_priorities(only(*drawn(buffer, start, 4, period=4)), np.full((1, 4), 7.0))
    assert np.flatnonzero(buffer.weights(np.arange(16)) == 7.5).tolist() == cell


def test_errors_where_the_mask_is_false_or_within_the_burn_in_count_for_nothing():
    buffer = played("...tl......", alpha=1.0, eps=0.5)
    batch = buffer.sample_sequences(300, 5, 1)
    error = np.where(batch.mask[:, 1:], 2.0, np.inf)
    buffer.update_sequence_priorities(batch, error)
    assert set(buffer.weights(batch.index)) == {2.5}


def test_frames_once_are_the_frames_of_all_stacks(stores, kernels):
    one, other = (filled(18, stack=3, obs_shape=(2, 3), seed=5) for _ in range(2))
    stacked, once = one.sample_sequences(6, 4, 2), other.sample_sequences(6, 4, 2, stacked=False)
    assert stacked.obs.shape == (6, 7, 3, 2, 3)
    assert once.obs.shape == (6, 9, 2, 3)
    for t in range(7):
        assert np.array_equal(once.obs[:, t : t + 3], stacked.obs[:, t])
    assert np.array_equal(stacked.index, once.index)


def test_stacks_that_share_frames_cannot_be_written_and_others_can():
    with pytest.raises(ValueError, match="read-only"):
        filled(stack=2).sample_sequences(2, 3).obs[:] = 0
    filled(stack=1).sample_sequences(2, 3).obs[:] = 0
    filled(stack=2).sample_sequences(2, 3, stacked=False).obs[:] = 0


@pytest.mark.parametrize("kept", ["obs", "action", "reward", "discount", "mask", "weight", "index"])
def test_a_batch_whose_array_is_held_is_not_overwritten_and_one_that_is_free_is_lent_again(kept):
    buffer = filled(18)
    memory = buffer.sample_sequences(3, 4).reward.ctypes.data
    assert buffer.sample_sequences(3, 4).reward.ctypes.data == memory
    held = getattr(buffer.sample_sequences(3, 4), kept)[1:]  # a view
    copy = held.copy()
    for _ in range(8):
        buffer.sample_sequences(3, 4)
    assert np.array_equal(held, copy)


def test_equal_seeds_give_equal_stretches_and_calls_that_fail_do_not_count():
    one, other = filled(18), filled(18)
    with refused(one, "no stretch of 18 steps can be drawn yet: 36 rows held; add more"):
        one.sample_sequences(4, 18)
    first, second = one.sample_sequences(4, 3, 2), other.sample_sequences(4, 3, 2)
    for name in first.__slots__:
        assert np.array_equal(getattr(first, name), getattr(second, name)), name
    assert np.array_equal(one.sample(4).index, other.sample(4).index)


def test_a_draw_whose_frames_could_not_be_read_does_not_count():
    class Failing(RamStore):
        fails = False

        def gather(self, ids, *outs):
            if self.fails:
                raise MemoryError("too little")
            super().gather(ids, *outs)

    one, other = filled(18, store=Failing), filled(18)
    one._store.fails = True
    with pytest.raises(MemoryError, match="too little"):
        one.sample_sequences(4, 3)
    one.check()
    one._store.fails = False
    assert np.array_equal(one.sample_sequences(4, 3).index, other.sample_sequences(4, 3).index)


def test_stretches_are_drawn_beside_a_batch_that_was_prefetched():
    one, other = filled(18), filled(18)
    one.prefetch(5)
    one.sample_sequences(4, 3)
    assert np.array_equal(one.sample(5).obs, other.sample(5).obs)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"batch_size": 0}, r"batch_size is 0; give an integer from 1 up"),
        ({"length": 0}, r"length is 0; give an integer from 1 up"),
        ({"length": 2.5}, r"length is 2\.5; give an integer"),
        ({"burn_in": -1}, r"burn_in is -1; give an integer from 0 up"),
        ({"period": 0}, r"period is 0; give an integer from 1 up"),
        ({"period": 4}, r"period is 4 and length 3, so that steps .* never be drawn; give a period from 1 to 3"),
        ({"beta": 1.5}, r"beta is 1\.5; give a number from 0 to 1"),
        ({"stacked": "no"}, r"stacked is 'no'; give True or False"),
        ({"length": 19}, r"length is 19 and burn_in 0, which with stack=2 takes 21 rows .* has 20; .* capacity=42"),
        ({"burn_in": 16}, r"length is 3 and burn_in 16, which with stack=2 takes 21 rows"),
        ({"burn_in": 2**63 - 1}, r"takes 9223372036854775812 rows"),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_name(how, message):
    buffer = filled()
    with refused(buffer, message):
        buffer.sample_sequences(**{"batch_size": 4, "length": 3} | how)


def test_the_remedy_for_a_ring_that_is_too_short_works():
    filled(30, capacity=42).sample_sequences(4, 19)


@pytest.mark.parametrize(
    ("error", "eta", "message"),
    [
        (np.ones((4, 5)), 0.9, r"error has shape \(4, 5\); give one for each step behind the burn-in, \(4, 3\)"),
        (np.ones(4), 0.9, r"error has shape \(4,\)"),
        (np.full((4, 3), -1.0), 0.9, r"error holds -1\.0; give absolute TD errors"),
        (np.full((4, 3), np.nan), 0.9, r"error holds nan; give absolute TD errors"),
        (np.full((4, 3), np.inf), 0.9, r"error holds inf; give absolute TD errors"),
        (np.full((4, 3), "x"), 0.9, r"error is .*; give absolute TD errors"),
        (np.ones((4, 3)), 1.1, r"eta is 1\.1; give a number from 0 to 1"),
    ],
)
def test_priorities_that_do_not_fit_are_refused_by_name(error, eta, message):
    buffer = filled()
    batch = buffer.sample_sequences(4, 3, 2)
    with refused(buffer, message):
        buffer.update_sequence_priorities(batch, error, eta)


def test_a_uniform_buffer_draws_stretches_of_weight_one():
    buffer = ReplayBuffer(capacity=40, num_envs=2, obs_shape=(1,), seed=0)
    for t in range(15):
        buffer.add(np.full((2, 1), t, np.uint8), [t, t], [t, t], NO, NO)
    batch = buffer.sample_sequences(6, 4, 2, period=2)
    assert batch.weight.tolist() == [1.0] * 6
    assert (batch.obs[:, 2, 0, 0] == batch.index // 2).all()


class _OtherMemory(RamStore):
    """A store whose frames are no NumPy arrays: an object around one, as a tensor is."""

    def empty(self, shape):
        return _Frames(super().empty(shape))

    def gather(self, ids, *outs):
        super().gather(ids, *[out.array for out in outs])


class _Frames:
    def __init__(self, array):
        self.array = array

    def reshape(self, *shape):
        return _Frames(self.array.reshape(*shape))


@pytest.mark.parametrize("stacked", [True, False])
def test_frames_in_memory_of_another_kind_are_the_same(stacked):
    one, other = filled(18, stack=3), filled(18, stack=3, store=_OtherMemory)
    expected, found = (buffer.sample_sequences(5, 4, 2, stacked=stacked).obs for buffer in (one, other))
    assert isinstance(found, _Frames)
    for t in range(7):
        assert np.array_equal(found.array[:, t, ...], expected[:, t, ...])


def test_a_copied_buffer_and_a_saved_one_draw_the_same_stretches(tmp_path):
    buffer = filled(18)
    buffer.update_sequence_priorities(buffer.sample_sequences(8, 3), np.random.default_rng(0).random((8, 3)))
    buffer.save(tmp_path / "replay")
    others = [PrioritizedReplayBuffer.load(tmp_path / "replay"), buffer.__copy__()]
    expected = buffer.sample_sequences(8, 3, 2, period=2)
    for other in others:
        found = other.sample_sequences(8, 3, 2, period=2)
        assert all(np.array_equal(getattr(found, name), getattr(expected, name)) for name in found.__slots__)
