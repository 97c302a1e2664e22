"""A command line is read once: what was given, wherever it stands, goes over defaults that may depend on it."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest

import fastrl
from fastrl import plot
from fastrl.base.errors import ConfigError
from fastrl.base.ranges import AtLeast, check
from fastrl.cli import read, refuse_others, run_command, show_help, texts_of
from fastrl.config import DQNConfig, SarsaConfig


@dataclass(frozen=True, kw_only=True)
class Base:
    """Inherited flags."""

    seed: Annotated[int, AtLeast(0)] = 1
    """Seeds everything."""


@dataclass(frozen=True, kw_only=True)
class Flags(Base):
    """All kinds of flags."""

    batch_size: Annotated[int | None, AtLeast(1)] = None
    """Samples in one
    update (default: 100 %)."""
    rate: float = 0.5
    """Step size."""
    kind: Literal["one", "two"] = "one"
    """`one` or `two`, as Espeholt et
    al. 2018 have it."""
    out: Path | None = None
    """A file (default: none)."""
    compile: bool = True
    """Compile."""
    fire: bool | None = None
    """Fire (default: by the protocol)."""
    size: tuple[float, float] = (8.0, 4.5)
    """In inches."""
    labels: tuple[str, ...] = ()
    """One each (default: names)."""

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class Others:
    """More flags."""

    learners: int = 3
    """Learners."""


@pytest.mark.parametrize(
    ("line", "words", "given"),
    [
        ("", [], {}),
        ("run", ["run"], {}),
        ("run --seed 2", ["run"], {"seed": 2}),
        ("--seed 2 run", ["run"], {"seed": 2}),
        ("a --seed=2 b", ["a", "b"], {"seed": 2}),
        ("--seed 1", [], {"seed": 1}),  # given, though it is the default
        ("--seed 2 --seed 3", [], {"seed": 3}),
        ("--batch-size 3", [], {"batch_size": 3}),
        ("--batch_size=3", [], {"batch_size": 3}),
        ("--batch-size None", [], {"batch_size": None}),
        ("--rate 1e-3", [], {"rate": 1e-3}),
        ("--rate -1", [], {"rate": -1.0}),
        ("--kind two", [], {"kind": "two"}),
        ("--out a_b/c.gif", [], {"out": Path("a_b/c.gif")}),
        ("--size 4 3 --labels one two", [], {"size": (4.0, 3.0), "labels": ("one", "two")}),
        ("--labels", [], {"labels": ()}),
        ("--compile run", ["run"], {"compile": True}),
        ("--no-compile run", ["run"], {"compile": False}),
        ("--compile=False", [], {"compile": False}),
        ("--fire", [], {"fire": True}),
        ("--no-fire", [], {"fire": False}),
        ("--no_fire --fire True", [], {"fire": True}),
        ("run --fire False --seed 2", ["run"], {"fire": False, "seed": 2}),
        ("--fire None", [], {}),
        ("--learners 4 --seed 2", [], {"learners": 4, "seed": 2}),
        ("my_module:make_env", ["my_module:make_env"], {}),
        ("a=b", ["a=b"], {}),
    ],
)
def test_what_is_given_is_read_and_nothing_else(line, words, given):
    found = read(line.split(), Flags, Others)
    assert (found.words, found.given, found.help) == (words, given, False)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--colour red", "--colour is no flag of this command; --help lists the flags and their values"),
        ("--colour=red", "--colour is no flag of this command; --help lists"),
        ("-x", "-x is no flag of this command"),
        ("--bach-size 3", "--bach-size is no flag of this command; did you mean --batch-size? --help lists"),
        ("--no-compil", "did you mean --no-compile"),
        ("--batch 3", "--batch is no flag of this command"),  # flags are not shortened
        ("--no-seed", "--no-seed is no flag of this command; did you mean --seed"),
        ("--seed", "--seed: expected one argument; --help lists"),
        ("--size 4", "--size: expected 2 arguments; --help lists"),
        ("--seed x", "--seed is 'x'; give a whole number"),
        ("--seed 1.5", "--seed is '1.5'; give a whole number"),
        ("--seed 1e-3", "--seed is '1e-3'; give a whole number"),
        ("--seed e", "--seed is 'e'; give a whole number"),
        ("--seed 1e999", "--seed is '1e999'; give a whole number"),
        ("--seed None", "--seed is 'None'; give a whole number"),
        ("--batch-size x", "--batch-size is 'x'; give a whole number"),
        ("--rate x", "--rate is 'x'; give a number"),
        ("--size 4 x", "--size is '4 x'; give a number"),
    ],
)
def test_what_cannot_be_read_is_one_line_with_the_nearest_remedy(line, message):
    with pytest.raises(ConfigError) as refused:
        read(line.split(), Flags, Others)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_empty_word_or_path_is_refused():
    with pytest.raises(ConfigError, match=r"a word of the command line is empty \(''\); leave it out"):
        read(["", "--seed", "3"], Flags)
    with pytest.raises(ConfigError, match="--out is ''; give a path"):
        read(["--out", ""], plot.Arguments)


def test_a_whole_number_may_have_an_exponent():
    seed = read(["--seed", "2e6"], Flags).given["seed"]
    assert (seed, type(seed)) == (2_000_000, int)


def test_one_word_is_asked_for():
    assert read(["--seed", "2"], Flags).word is None
    assert read(["a", "--seed", "2"], Flags).word == "a"
    with pytest.raises(ConfigError, match="'b' is one word too many after 'a'; --help lists"):
        _ = read(["a", "--seed", "2", "b"], Flags).word


def test_a_folder_that_hides_the_package_is_named(tmp_path, monkeypatch, capsys):
    """As where a clone's parent is the current folder: Python takes the clone for a package without a file."""

    def main(arguments):
        raise ImportError("cannot import name '__version__' from 'fastrl' (unknown location)")

    monkeypatch.setattr(fastrl, "__file__", None)
    monkeypatch.setattr(fastrl, "__path__", [str(tmp_path / "fastrl")])
    with pytest.raises(SystemExit, match="2"):
        run_command(main, "train", [])
    assert (
        f"train: error: the folder {tmp_path / 'fastrl'} hides the package of its name; change"
        in capsys.readouterr().err
    )


def test_a_flag_of_another_kind_of_run_is_refused():
    refuse_others(["batch_size", "seed"], DQNConfig, of="a run of pong")
    with pytest.raises(ConfigError, match="--learners is no flag of a run of pong; leave it out; --help lists"):
        refuse_others(["seed", "learners"], DQNConfig, of="a run of pong")
    with pytest.raises(ConfigError, match="--batch-size is no flag of a run of cartpole"):
        refuse_others(["batch_size"], SarsaConfig, of="a run of cartpole")


@pytest.mark.parametrize("line", ["--help", "-h", "run --seed 2 --help", "--bogus --help"])
def test_help_is_asked_for_anywhere(line):
    assert read(line.split(), Flags).help


def help_of(*arguments, capsys, **settings):
    with pytest.raises(SystemExit) as leaving:
        show_help(*arguments, **settings)
    assert leaving.value.code == 0
    return capsys.readouterr().out


def test_help_shows_the_defaults_that_hold_and_what_none_means(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    doc = "Do it.\n\npython -m fastrl.do x\n"
    text = help_of("do RUN", doc, Flags(batch_size=7, seed=3), Others(), about="Well.", capsys=capsys)
    flat = " ".join(text.split())
    for words in (
        "usage: do RUN [flags] Do it. Well. options:",
        "--seed N Seeds everything. (default: 3)",
        "--batch-size N Samples in one update (default: 7).",
        "--kind {one,two} `one` or `two`, as Espeholt et al. 2018 have it. (default: one)",
        "--out PATH A file (default: none).",
        "--compile, --no-compile Compile. (default: on)",
        "--fire, --no-fire Fire (default: by the protocol).",
        "--size X X In inches. (default: 8.0 4.5)",
        "--labels [TEXT ...] One each (default: names).",
        "--learners N Learners. (default: 3)",
        "examples: python -m fastrl.do x",
    ):
        assert words in flat
    assert "--batch-size N Samples in one update (default: 100 %)." in " ".join(
        help_of("do RUN", doc, Flags(), capsys=capsys).split()
    )


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("kind", [DQNConfig, SarsaConfig])
def test_help_wraps_whole_paragraphs(kind, columns, capsys, monkeypatch):
    """A line of a text ends only where the next word would not fit."""
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = help_of("do", "Do.\n\nx\n", kind(), capsys=capsys).splitlines()
    texts = [line[24:] for line in lines if line.startswith(" " * 24) or re.match(r"  -.{0,19} {2,}\S", line)]
    assert len(texts) > len(texts_of(kind))
    assert max(map(len, lines)) <= columns
    for one, following in itertools.pairwise(texts):
        ended = re.search(r"(\.|\)|\(default: [^)]*\))$", one)
        assert ended or 24 + len(one) + 1 + len(following.split()[0]) > columns - 2, one


def test_texts_of_flags_include_those_of_bases_and_are_one_paragraph():
    texts = texts_of(Flags)
    assert texts["seed"] == "Seeds everything."
    assert texts["kind"] == "`one` or `two`, as Espeholt et al. 2018 have it."
    for kind in (DQNConfig, SarsaConfig):
        texts = texts_of(kind)
        assert set(texts) == set(kind.__dataclass_fields__)
        assert all(text.endswith((".", ")")) and "\n" not in text for text in texts.values())


@pytest.mark.parametrize("word", ["--compile=1", "--compile=false", "--compile=None"])
def test_a_switch_with_another_value_is_refused_with_its_values(word):
    value = word.partition("=")[2]
    with pytest.raises(ConfigError, match=rf"--compile is '{value}'; give True or False"):
        read([word, "pong"], Flags)


def test_negative_numbers_with_an_exponent_are_numbers():
    assert read(["--rate", "-1e-3", "--size", "8", "-1e0"], Flags).given == {"rate": -1e-3, "size": (8.0, -1.0)}


def test_a_schedule_is_words_of_steps_and_values():
    line = read("catch --n-step-schedule 0:10 200_000:3 --gamma-schedule 0:.97 5:1e-1 --name x".split(), DQNConfig)
    assert line.given == {
        "n_step_schedule": ((0, 10), (200_000, 3)), "gamma_schedule": ((0, 0.97), (5, 0.1)), "name": "x",
    }  # fmt: skip
    assert read(["--n-step-schedule", "--seed", "1"], DQNConfig).given == {"n_step_schedule": (), "seed": 1}
    assert line.word == "catch"


def test_help_shows_a_schedule_as_it_is_given(capsys):
    with pytest.raises(SystemExit):
        show_help("train", "Train.", DQNConfig(n_step_schedule=((0, 10), (5, 3)), gamma_schedule=((0, 0.5),)))
    said = " ".join(capsys.readouterr().out.split())
    assert "--n-step-schedule [STEP:N ...]" in said
    assert "no schedule. (default: 0:10 5:3)" in said
    assert "Replaces gamma. (default: 0:0.5)" in said


@pytest.mark.parametrize("words", ["x", "0", "0:1:2", "0:", ":1", "0:1.5", "0:1 catch", "0.5:1"])
def test_words_that_are_no_schedule_are_refused_with_what_to_give(words):
    told = re.escape(f"--n-step-schedule is '{words}'; give words STEP:VALUE, where steps ascend from 0 and each value")
    with pytest.raises(ConfigError, match=told):
        read(["--n-step-schedule", *words.split()], DQNConfig)
