"""What a process knows of the torchrun that started it, and what it tells its user to type."""

from __future__ import annotations

import os
import shlex
import sys

import pytest
from by_torchrun import set_launch

from fastrl.base import launch, machine
from fastrl.base.commands import program
from fastrl.runs import folder


@pytest.fixture
def started(monkeypatch, tmp_path):
    """Let this process be one of four on two machines, whose torchrun was called with these words."""

    def by(*words, argv=("train.py", "breakout"), rank=1):
        set_launch(monkeypatch, rank=rank, count=4, local_rank=rank, local_count=2)
        monkeypatch.setattr(sys, "argv", list(argv))
        place = tmp_path / str(os.getppid())
        place.mkdir(exist_ok=True)
        (place / "cmdline").write_bytes(b"".join(os.fsencode(word) + b"\0" for word in words))
        monkeypatch.setattr(launch.launcher, "__defaults__", (tmp_path,))

    return by


def test_numbers_are_those_of_torchrun(monkeypatch, started):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "8")  # of some other launcher
    assert launch.launched() is None
    assert launch.first_rank()
    assert launch.launcher() == []
    started()
    assert launch.launched() == launch.Launch(rank=1, count=4, local_rank=1, local_count=2)
    assert not launch.first_rank()
    started(rank=0)
    assert launch.first_rank()


@pytest.mark.parametrize(
    ("words", "argv", "typed"),
    [
        (["/usr/bin/python3", "/opt/bin/torchrun", "--nproc-per-node", "2", "-m", "fastrl.train", "breakout"],
         ["/a/fastrl/train.py", "breakout"], "torchrun --nproc-per-node 2 -m fastrl.train"),
        (["python", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--module", "fastrl.train"],
         ["/a/fastrl/train.py"], "python -m torch.distributed.run --standalone --nproc-per-node=2 -m fastrl.train"),
        (["python", "torchrun", "--rdzv-id", "my job", "my_script.py", "--lr", "1"],
         ["my_script.py", "--lr", "1"], "torchrun --rdzv-id 'my job' -m fastrl.train"),
        (["python", "torchrun", "--no-python", "fastrl", "train", "breakout"],
         ["/opt/bin/fastrl", "train", "breakout"], "torchrun --no-python fastrl train"),
        (["python", "launch_somehow.py"], ["train.py", "breakout"],
         "torchrun --nnodes 2 --nproc-per-node 2 -m fastrl.train"),
        ([], ["train.py", "breakout"], "torchrun --nnodes 2 --nproc-per-node 2 -m fastrl.train"),
    ],
)  # fmt: skip
def test_training_is_called_by_torchrun_with_its_arguments_and_nothing_else_is(started, words, argv, typed):
    started(*words, argv=argv)
    assert program("train") == typed
    assert "torchrun" not in program("watch")


def test_the_command_that_a_run_records_and_the_one_that_resumes_it_carry_torchrun(started, monkeypatch):
    words = ["python", "/opt/bin/torchrun", "--nproc-per-node", "2", "-m", "fastrl.train", "catch", "--name", "a b"]
    started(*words, argv=["train.py", "catch", "--name", "a b"])
    monkeypatch.setattr(sys, "orig_argv", ["python", "-u", *words[4:]])
    assert shlex.split(folder._command_line()) == ["torchrun", *words[2:]]
    assert folder.RunFolder("/runs/a b").resume_command == (
        "torchrun --nproc-per-node 2 -m fastrl.train --resume '/runs/a b'"
    )


def test_processes_of_one_machine_share_its_cores(started, monkeypatch):
    for cores, share in ((8, 4), (5, 2), (1, 1)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
        assert machine.cpu_count() == cores
        started()
        assert machine.cpu_count() == share
