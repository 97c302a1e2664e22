"""Files appear whole or not at all, places are asked for before the work, and text is UTF-8 everywhere."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

from fastrl.base.errors import ConfigError
from fastrl.base.files import require_place, why_no_place, write_atomically

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for folder in ("fastrl", "examples", "tools") for path in (ROOT / folder).rglob("*.py"))
OPENERS = ("open", "read_text", "write_text", "fdopen", "NamedTemporaryFile", "TemporaryFile")


def opened_by_the_locale(source: str) -> list[str]:
    """Return the calls that open a file as text, in the encoding of the user's locale."""
    found = []
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        words = [ast.unparse(word) for word in (*call.args, *(key.value for key in call.keywords))]
        binary = any(word.strip("'") in ("rb", "wb", "xb", "ab", "r+b", "w+b") for word in words)
        others = ast.unparse(call.func) in ("os.open", "folder.open") or ast.unparse(call.func).endswith("archive.open")
        if name in OPENERS and not binary and not others and "encoding" not in {key.arg for key in call.keywords}:
            found.append(ast.unparse(call))
    return found


def test_the_check_of_encodings_finds_what_it_looks_for():
    assert len(opened_by_the_locale("open(a)\nx.open('w')\nPath(a).read_text()\np.write_text(t)")) == 4
    assert opened_by_the_locale("open(a, 'rb')\nx.open('w', encoding='utf-8')\nos.open(a, os.O_RDONLY)") == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_text_file_depends_on_the_locale(path):
    assert opened_by_the_locale(path.read_text(encoding="utf-8")) == []


def test_text_is_written_as_utf_8_and_a_failure_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_atomically(path, "Größe 🎮")
    assert path.read_bytes() == "Größe 🎮".encode()

    def fail(one, other):
        raise OSError("no")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no"):
        write_atomically(path, "new")
    assert path.read_bytes() == "Größe 🎮".encode()
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "file").write_bytes(b"old")
    (tmp_path / "link").symlink_to("data/file")
    write_atomically(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "data" / "file").read_bytes() == b"new"


def test_a_pipe_and_a_device_are_written_to_and_stay(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_atomically(pipe, "through")
        assert os.read(reader, 100) == b"through"
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    write_atomically(Path("/dev/null"), "x")
    assert not os.path.isfile("/dev/null")


def test_the_longest_name_is_no_obstacle(tmp_path):
    write_atomically(tmp_path / ("ü" * 125 + ".json"), "x")
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("file/x", "Not a directory"),
        ("file/x/y", "Not a directory"),
        ("a" * 256, "File name too long"),
        ("new/" + "ü" * 128 + "/x", "File name too long"),
        ("/proc/nowhere/x", "No such file or directory"),
    ],
)
def test_a_place_that_takes_no_file_is_named_and_nothing_is_left(tmp_path, name, reason):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError) as refused:
        require_place(tmp_path / name, "--json")
    assert str(refused.value) == (
        f"--json is {str(tmp_path / name)!r}, where no file can be made ({reason}); give --json another place"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_in_place_of_a_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"--out is '.*', a folder; give the name of a file"):
        require_place(tmp_path, "--out")


@pytest.mark.parametrize("name", ["new", "file", "a/b/c/new", "ü 🎮\n", "/dev/null", "/dev/stdout"])
def test_a_place_that_takes_a_file_is_left_as_it_was(tmp_path, name):
    (tmp_path / "file").write_bytes(b"old")
    require_place(tmp_path / name, "--json")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_folder_without_permission_is_named(tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)  # the tests may run as root, whom no folder refuses
    assert why_no_place(tmp_path / "x") == "Permission denied"
