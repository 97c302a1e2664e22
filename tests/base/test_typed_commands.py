"""Commands that are printed can be typed as they are, in any folder, and messages can be printed anywhere."""

from __future__ import annotations

import io
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fastrl.base import commands
from fastrl.base.commands import command_line, install_command, program
from fastrl.base.console import say
from fastrl.base.machine import bytes_in_words


@pytest.mark.parametrize(
    ("argv", "called"),
    [
        ("/usr/bin/fastrl", "fastrl train"),
        ("/somewhere/fastrl/train.py", "python -m fastrl.train"),
        ("my_script.py", "python -m fastrl.train"),
        ("", "python -m fastrl.train"),
    ],
)
def test_a_command_is_called_as_its_user_calls_it(monkeypatch, argv, called):
    monkeypatch.setattr(sys, "argv", [argv, "train"])
    assert program("train") == called


def test_words_are_quoted_and_paths_hold_in_any_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    typed = command_line("tensorboard", "--logdir", Path("my runs/it's"))
    assert shlex.split(typed) == ["tensorboard", "--logdir", str(tmp_path / "my runs" / "it's")]
    echoed = subprocess.run(f"printf '%s\\n' {typed}", shell=True, capture_output=True, text=True, check=True, cwd="/")
    assert echoed.stdout.splitlines() == shlex.split(typed)


def test_an_extra_is_installed_from_the_clone_wherever_the_user_stands(monkeypatch, tmp_path):
    words = shlex.split(install_command("lz4"))
    assert words[:3] == ["pip", "install", "-c"]
    assert Path(words[3]).is_absolute()
    assert Path(words[3]).name == "constraints.txt"
    assert Path(words[3]).exists()
    assert words[4:] == ["-e", f"{Path(words[3]).parent}[lz4]"]
    monkeypatch.setattr(commands, "CLONE", tmp_path)  # no clone: installed from a wheel
    assert install_command("lz4") == "pip install -c constraints.txt -e '.[lz4]'"


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", r"Gr\xf6\xdfe \U0001f3ae \udcff"),
        ("latin-1", r"Größe \U0001f3ae \udcff"),
        ("utf-8", r"Größe 🎮 \udcff"),
    ],
)
def test_a_message_is_printed_whatever_stdout_can_show(monkeypatch, encoding, shown):
    stdout = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stdout)
    say("Größe 🎮 \udcff")
    assert stdout.buffer.getvalue().decode(encoding) == shown + "\n"


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 bytes"),
        (900, "900 bytes"),
        (1 << 10, "1.0 KiB"),
        (3 << 20, "3.0 MiB"),
        ((1 << 30) - 1, "1.0 GiB"),
        (6_600_000_000, "6.1 GiB"),
        (5 << 40, "5.0 TiB"),
        (10**24, "909,494,701,772.9 TiB"),
    ],
)
def test_bytes_are_said_in_a_unit_that_shows_them(count, words):
    assert bytes_in_words(count) == words
