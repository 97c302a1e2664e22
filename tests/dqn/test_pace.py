"""When a batch is due: samples per row added, after the warm-up."""

from __future__ import annotations

from fastrl.dqn.pace import Pace


def drawn(pace: Pace) -> int:
    """Return how many batches are due now, and take them."""
    count = 0
    while pace.due():
        count += 1
    return count


def test_nothing_is_due_before_the_warm_up():
    pace = Pace(samples_per_step=4.0, batch_size=8, warm_up_rows=10)
    for drawable in (0, 5, 9):
        pace.added(100, drawable)
        assert drawn(pace) == 0


def test_the_rows_that_end_the_warm_up_bring_no_credit_and_later_ones_do():
    pace = Pace(samples_per_step=4.0, batch_size=8, warm_up_rows=10)
    pace.added(100, 10)
    assert drawn(pace) == 0
    pace.added(4, 0)  # once warm, it stays so
    assert drawn(pace) == 2


def test_what_is_left_of_a_batch_counts_for_the_next():
    pace = Pace(samples_per_step=0.75, batch_size=4, warm_up_rows=0)
    pace.added(0, 1)
    due = []
    for _ in range(16):
        pace.added(1, 1)
        due.append(drawn(pace))
    assert due == [0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]


def test_without_a_warm_up_one_row_must_be_drawable():
    pace = Pace(samples_per_step=1.0, batch_size=1, warm_up_rows=0)
    pace.added(5, 0)
    pace.added(5, 0)
    assert drawn(pace) == 0


def test_a_restored_pace_continues():
    one = Pace(samples_per_step=1.0, batch_size=4, warm_up_rows=1)
    one.added(0, 1)
    one.added(7, 1)
    assert one.due()
    other = Pace(samples_per_step=1.0, batch_size=4, warm_up_rows=1)
    other.load_state(one.state())
    other.added(1, 0)
    assert drawn(other) == 1
    assert one.state() == {"credit": 3.0, "warm": True}
