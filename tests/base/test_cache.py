"""What is kept for other processes is found again, and nothing that lies in its place does harm."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fastrl.base import cache

KEY = {"processor": "Z80", "cores": 1, "shape": (4, 84)}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return tmp_path / "caches"


def only_file(place: Path) -> Path:
    (path,) = (path for path in place.rglob("*") if path.is_file())
    return path


def test_what_is_kept_is_found_by_an_equal_key_of_the_same_kind_alone():
    assert cache.cached("speed", KEY) is None
    cache.keep("speed", KEY, {"threads": 2})
    assert cache.cached("speed", dict(reversed(KEY.items()))) == {"threads": 2}
    assert cache.cached("speed", KEY | {"cores": 2}) is None
    assert cache.cached("other", KEY) is None
    cache.keep("speed", KEY, {"threads": 1})
    assert cache.cached("speed", KEY) == {"threads": 1}


@pytest.mark.parametrize("home", ["", "relative/place"])
def test_without_an_absolute_path_in_the_environment_it_lies_below_the_home(tmp_path, monkeypatch, home):
    monkeypatch.setenv("XDG_CACHE_HOME", home)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / ".cache" / "fastrl"


def test_without_a_home_nothing_is_kept(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    cache.keep("speed", KEY, 1)
    assert cache.cached("speed", KEY) is None


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[]", b"3", b'{"value": 1}', b"[" * 60_000, b'{"key": {"cores": 1}, "value": 1}'],
)
def test_a_damaged_or_foreign_file_counts_as_missing_and_is_replaced(place, content):
    cache.keep("speed", KEY, 1)
    only_file(place).write_bytes(content)
    assert cache.cached("speed", KEY) is None
    cache.keep("speed", KEY, 2)
    assert cache.cached("speed", KEY) == 2


def test_a_file_that_is_far_too_large_is_not_read(place):
    cache.keep("speed", KEY, 1)
    path = only_file(place)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"more": "x" * cache.LARGEST}))
    assert cache.cached("speed", KEY) is None


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_a_place_that_takes_no_file_is_passed_over(place, depth):
    """Files where folders should be, which holds for the superuser too; at the end a folder in place of the file."""
    cache.keep("speed", KEY, 1)
    names = only_file(place).relative_to(place).parts
    bad = place.joinpath(*names[:depth])
    os.rename(place, place.with_name("moved"))
    bad.parent.mkdir(parents=True, exist_ok=True)
    bad.mkdir() if depth == len(names) else bad.write_text("a file")
    cache.keep("speed", KEY, 1)
    assert cache.cached("speed", KEY) is None
    assert [path for path in place.rglob("*") if path.is_file()] in ([], [bad])  # nothing is left of the attempt


def test_a_pipe_in_its_place_is_not_waited_for(place):
    cache.keep("speed", KEY, 1)
    path = only_file(place)
    path.unlink()
    os.mkfifo(path)
    cache.keep("speed", KEY, 1)
    assert cache.cached("speed", KEY) is None
