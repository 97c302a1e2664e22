"""Messages name what there is: flags, arguments, commands of this package; and they are printable anywhere."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

pytest.importorskip("envpool")

from fastrl import evaluate, plot, train, watch
from fastrl.base.ranges import fields_of
from fastrl.config import DQNConfig, SarsaConfig

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "fastrl").rglob("*.py"))
KINDS = (train.Arguments, DQNConfig, SarsaConfig, evaluate.Arguments, watch.Arguments, plot.Arguments)
FLAGS = {flag for kind in KINDS for field in fields_of(kind) for flag in (field.flag, f"--no-{field.flag[2:]}")}
TORCHRUN = {"--nproc-per-node", "--nnodes", "--master-addr", "--rdzv-endpoint", "--module"}
OTHERS = {"--help", "--logdir", "--address"} | TORCHRUN  # those of argparse, TensorBoard, Ray and torchrun
ELSEWHERE = {"my_module", "terminal_observation", "obs_type"}  # a module of the user's; Stable-Baselines3's
ARGUMENT = re.compile(r"^(--)?(\w+) is \{\}")
COMMAND = re.compile(r"python -m fastrl|\bfastrl (train|evaluate|watch|plot)\b|tensorboard --|pip install")


@cache
def messages(path: Path) -> tuple[str, ...]:
    """Return the texts of a module but for its docstrings; ``{}`` stands where a value is filled in."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    no_message = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
    texts = []
    for node in ast.walk(tree):
        if id(node) in no_message:
            continue
        if isinstance(node, ast.JoinedStr):
            no_message |= {id(part) for part in node.values}
            texts.append("".join(str(p.value) if isinstance(p, ast.Constant) else "{}" for p in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.append(node.value)
    return tuple(texts)


@cache
def names() -> frozenset[str]:
    """Return every name in the package: of arguments, fields, attributes, functions and what modules hold."""
    found: set[str] = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for kind, name in ((ast.arg, "arg"), (ast.Attribute, "attr"), (ast.Name, "id"), (ast.keyword, "arg")):
                if isinstance(node, kind):
                    found.add(str(getattr(node, name)))
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(node.name)
    return frozenset(found)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_flag_and_argument_that_a_message_names_is_there(path):
    for text in messages(path):
        flags = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*[a-z0-9](?![{\w-])", text))
        assert flags <= FLAGS | OTHERS, text
        if told := ARGUMENT.match(text):
            known = f"--{told[2]}" in FLAGS if told[1] else told[2] in names()
            assert known, f"{told[2]} is no argument: {text}"
        if " " in text and not path.name.startswith("reference"):
            for word in re.findall(r"(?<![\w./'-])[a-z]+(?:_[a-z0-9]+)+(?![\w./(:-])", text):
                assert word in names() | ELSEWHERE, f"{word} is no name: {text}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_in_messages_are_made_where_words_are_quoted(path):
    """Not by hand: `fastrl.base.commands` quotes them, makes paths absolute, and knows how the user calls them."""
    if path.name in ("commands.py", "__main__.py"):
        return
    found = [text for text in messages(path) if COMMAND.search(text)]
    assert found == ([] if path.name != "cli.py" else ["python -m fastrl."])  # which it replaces in examples


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_messages_are_ascii(path):
    if path.name == "panel.py":  # which asks the terminal first
        return
    assert [text for text in messages(path) if not text.isascii()] == []


def test_what_these_tests_look_for_is_found(tmp_path):
    path = tmp_path / "x.py"
    path.write_text(
        '"""Doc --bogus."""\nraise E(f"{a} is {b!r}; give --batch-size {c}")\nx = "python -m fastrl.train"\n'
    )
    assert set(messages(path)) == {"{} is {}; give --batch-size {}", "python -m fastrl.train"}
    assert "--batch-size" in FLAGS
    assert "--no-compile" in FLAGS
    assert "reward_dtype" not in FLAGS
    assert "num_envs" in names()
