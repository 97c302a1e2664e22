"""Work in a thread: its result, its error, and where no thread can be had."""

from __future__ import annotations

import threading

import pytest

from fastrl.base.background import Background


def test_the_result_is_what_the_work_returned_in_a_thread_of_its_own():
    background = Background(threading.current_thread, "some-name")
    assert not background.done
    background.start()
    thread = background.result()
    assert background.done
    assert (thread.name, thread.daemon) == ("some-name", True)
    assert thread is not threading.current_thread()


def test_what_the_work_raised_comes_out_where_it_is_waited_for():
    background = Background(lambda: 1 // 0, "name")
    background.start()
    background.wait()
    assert background.done
    with pytest.raises(ZeroDivisionError):
        background.result()


def test_a_wait_with_a_limit_ends_before_the_work_does():
    may = threading.Event()
    background = Background(lambda: may.wait(60), "name")
    background.start()
    background.wait(0.0)
    assert not background.done
    may.set()
    assert background.result() is True


def test_without_a_thread_to_be_had_the_work_is_done_at_once(monkeypatch):
    def none_left(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none_left)
    background = Background(threading.current_thread, "name")
    background.start()
    assert background.done
    assert background.result() is threading.current_thread()
