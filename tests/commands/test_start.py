"""A signal before a command has begun: one line and the signal's status, even while its imports run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from by_torchrun import set_launch

from fastrl.base import stop


def handlers():
    return {number: signal.getsignal(number) for number in stop.SIGNALS}


def as_in_a_shell():
    """Let no signal be ignored, as they are in a job in the background."""
    for number in stop.SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def signalled(tmp_path, package, number, *words):
    """Return the result of ``python -m`` and the words, which is sent a signal when it imports a package."""
    (tmp_path / f"{package}.py").write_text(f"import os\nos.kill(os.getpid(), {int(number)})\nraise ImportError\n")
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120,
        preexec_fn=as_in_a_shell,
    )  # fmt: skip


@pytest.mark.parametrize("number", stop.SIGNALS)
@pytest.mark.parametrize("package", ["numpy", "torch"])  # before and after the flags are read
def test_a_signal_while_training_is_imported_ends_with_one_line_and_writes_nothing(tmp_path, package, number):
    result = signalled(tmp_path, package, number, "fastrl.train", "breakout", "--quiet")
    assert result.returncode == 128 + number
    assert result.stderr == "python -m fastrl.train: stopped before anything was begun; nothing was written\n"
    assert result.stdout == ""
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "words", [["fastrl", "train", "catch"], ["fastrl.evaluate", "breakout"], ["fastrl.watch", "breakout"],
              ["fastrl.plot", "runs/NAME"]],
)  # fmt: skip
def test_a_signal_while_any_command_is_imported_ends_with_one_line(tmp_path, words):
    result = signalled(tmp_path, "numpy", signal.SIGTERM, *words)
    assert result.returncode == 128 + signal.SIGTERM
    assert "stopped before anything was begun" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_only_the_first_of_several_learners_says_so(tmp_path, monkeypatch):
    set_launch(monkeypatch, rank=1, count=2, local_rank=1, local_count=2)
    result = signalled(tmp_path, "numpy", signal.SIGTERM, "fastrl.train", "breakout")
    assert (result.returncode, result.stdout, result.stderr) == (143, "", "")


def test_a_learner_that_lets_the_first_one_name_a_wrong_flag_leaves_with_its_status(monkeypatch):
    set_launch(monkeypatch, rank=1, count=2, local_rank=1, local_count=2)
    torchrun_ends_it = "os.kill(os.getpid(), signal.SIGTERM)"
    program = (
        "import os, signal\nfrom fastrl import __main__, cli\n"
        f"cli.time.sleep = lambda seconds: {torchrun_ends_it}\n"
        "__main__.run_named('train', ['catch', '--bach-size', '32'])\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert (result.returncode, result.stdout, result.stderr) == (2, "", "")


@pytest.mark.parametrize("work", [stop.begun, stop.Stop().__enter__])
def test_work_that_begins_ends_the_time_in_which_a_signal_leaves_at_once(work):
    before = handlers()
    with stop.Start("stopped"):
        leaves = signal.getsignal(signal.SIGTERM)
        assert leaves != before[signal.SIGTERM]
        begun = work()
        assert leaves not in handlers().values()
        if begun is not None:
            begun.__exit__(None, None, None)
        assert handlers() == before
    assert handlers() == before


def test_a_signal_that_is_ignored_or_handled_stays_so_at_the_start():
    def own(number, frame):
        pass

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN), signal.signal(signal.SIGTERM, own)
    try:
        with stop.Start("stopped"):
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGHUP, before[0])
        signal.signal(signal.SIGTERM, before[1])


def test_a_process_forked_at_the_start_ends_without_a_word_of_the_command(capfd):
    with stop.Start("stopped"):
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGTERM
    assert capfd.readouterr().err == ""
