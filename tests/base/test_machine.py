"""What this process may use of the machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fastrl.base.machine import (
    available_bytes,
    busy_seconds,
    free_disk_bytes,
    has_hard_links,
    processor,
)


def test_available_memory_is_the_least_of_machine_and_groups(tmp_path):
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    inner = groups / "outer" / "inner"
    inner.mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:  1000 kB\n")
    (proc / "self" / "cgroup").write_text("0::/outer/inner\n")
    assert available_bytes(proc, groups) == 1_024_000
    (inner / "memory.max").write_text("max\n")
    (inner / "memory.current").write_text("5\n")
    (groups / "outer" / "memory.max").write_text("900000\n")
    (groups / "outer" / "memory.current").write_text("500000\n")
    (groups / "outer" / "memory.stat").write_text("inactive_file 100000\nanon 3\n")
    assert available_bytes(proc, groups) == 500_000
    assert available_bytes(tmp_path / "none", groups) is None


def test_available_memory_under_the_first_version_of_groups(tmp_path):
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (groups / "memory" / "job").mkdir(parents=True)
    (proc / "self" / "cgroup").write_text("4:memory:/job\n2:cpu:/\n")
    (groups / "memory" / "job" / "memory.limit_in_bytes").write_text("700\n")
    (groups / "memory" / "job" / "memory.usage_in_bytes").write_text("300\n")
    assert available_bytes(proc, groups) == 400
    (groups / "memory" / "job" / "memory.limit_in_bytes").write_text(str(2**63 - 4096))
    assert available_bytes(proc, groups) is None


def test_the_file_system_is_asked_whether_it_has_hard_links(tmp_path, monkeypatch):
    assert has_hard_links(tmp_path / "no" / "such")
    monkeypatch.setattr(os, "link", lambda *paths: (_ for _ in ()).throw(PermissionError()))
    assert not has_hard_links(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_disk_is_asked_where_a_folder_would_be_made(tmp_path):
    free = free_disk_bytes(tmp_path)
    assert free > 0
    assert free_disk_bytes(tmp_path / "no" / "folder") == pytest.approx(free, rel=0.1)
    assert free_disk_bytes(Path("no") / "folder") > 0


def test_a_processor_is_known_by_more_than_its_name(tmp_path):
    assert processor()
    cpuinfo = tmp_path / "cpuinfo"
    text = "processor\t: 0\nvendor_id\t: A\nmodel\t\t: 2\nmodel name\t: EPYC: one\ncpu MHz\t\t: 2596.096\n"
    cpuinfo.write_text(text + "\n" + text.replace("2", "9"))
    assert processor(cpuinfo).endswith("A, EPYC: one, 2")
    assert processor(tmp_path / "nothing")


def test_the_work_of_all_processes_counts_on_the_cores_that_this_one_may_use(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 2}, raising=False)
    tick = os.sysconf("SC_CLK_TCK")
    lines = [
        "cpu  9999 9999 9999 9999 9999 9999 9999 9999 0 0",
        f"cpu0 {tick} {2 * tick} {4 * tick} 9999 9999 {8 * tick} {16 * tick} {32 * tick} 9999 9999",
        "cpu1 9999 9999 9999 9999 9999 9999 9999 9999 0 0",
        f"cpu2 {64 * tick} 0 0 9999 9999 0 0 0 0 0",
        "intr 1 2 3",
    ]
    (tmp_path / "stat").write_text("\n".join(lines) + "\n")
    assert busy_seconds(tmp_path) == 127
    (tmp_path / "stat").write_text("cpu0 no number\n")
    assert busy_seconds(tmp_path) is None
    assert busy_seconds(tmp_path / "nothing") is None
