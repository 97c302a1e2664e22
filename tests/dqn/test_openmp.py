"""Which OpenMP library is PyTorch's, among those that a process has loaded."""

from __future__ import annotations

from pathlib import Path

from fastrl.dqn.openmp import candidates, openmp_parallel

MAPS = """\
55d0-55d1 r--p 00000000 08:01 11 /usr/bin/python3.11
7f01-7f02 r-xp 00001000 08:01 22 /venv/lib/scikit_learn.libs/libgomp-d22c30c5.so.1.0.0
7f02-7f03 r--p 00001000 08:01 22 /venv/lib/scikit_learn.libs/libgomp-d22c30c5.so.1.0.0
7f03-7f04 r-xp 00000000 08:01 33 /venv/lib/my own/torch/lib/libgomp.so.1
7f04-7f05 r-xp 00000000 08:01 44 /venv/lib/my own/torch.libs/libgomp-a34b3233.so.1
7f05-7f06 r-xp 00000000 08:01 55 /venv/lib/libcompany.so
7f06-7f07 rw-p 00000000 00:00 0
7f07-7f08 rw-p 00000000 00:00 0 [stack]
"""


def test_pytorchs_own_come_first_and_paths_may_hold_spaces():
    assert candidates(MAPS.splitlines(), Path("/venv/lib/my own/torch")) == [
        "/venv/lib/my own/torch/lib/libgomp.so.1",
        "/venv/lib/my own/torch.libs/libgomp-a34b3233.so.1",
        "/venv/lib/scikit_learn.libs/libgomp-d22c30c5.so.1.0.0",
    ]


def test_of_this_process_one_is_found():
    assert openmp_parallel()
