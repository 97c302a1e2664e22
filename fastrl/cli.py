"""What the commands share: the reading of a command line, help, and from an error to one clear line.

The flags of a command are the fields of dataclasses: ``--batch-size 64``, ``--batch-size=64`` or ``--batch_size 64``
sets `batch_size`; ``--compile`` and ``--no-compile`` set a bool; a field's docstring is the flag's help. `read` parses
the words once and keeps what was given, and nothing else. The command then lays that over its defaults, which may
depend on it: what a preset says holds unless a flag says otherwise, wherever the flag stands.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import inspect
import itertools
import os
import re
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, get_args, get_origin

from fastrl.base.commands import program
from fastrl.base.console import complain, print_nowhere, say, though_closed
from fastrl.base.errors import ConfigError, PeerError, RunError, exit_status
from fastrl.base.launch import first_rank
from fastrl.base.ranges import Field, fields_of, flag_of, spelled

PATIENCE_SECONDS = 10.0
"""Time for the first of several processes to say what is wrong with the command of all."""
LOOK = "--help lists the flags and their values"
MOST_OF_A_LINE = 60
"""Characters of a flag's names for a value; longer lists are left to its text, which has them all."""
_VALUE_NAMES = {
    int: "N",
    float: "X",
    str: "TEXT",
    Path: "PATH",
    tuple[int, int]: "STEP:N",
    tuple[int, float]: "STEP:X",
}
_WANTED = {int: "a whole number", float: "a number", Path: "a path"}


def examples(doc: str | None) -> str:
    """Return what a command's docstring has below its first line, examples, as its user would type them."""
    return (doc or "").partition("\n\n")[2].replace("python -m fastrl.", program(""))


# --- one reading --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CommandLine:
    """What a command line says."""

    words: list[str]
    """The words that belong to no flag, in order."""
    given: dict[str, Any]
    """Values of the flags that were given, by the names of their fields."""
    help: bool
    """Whether it asks for help."""

    @property
    def word(self) -> str | None:
        """The only word; None without one. Several raise ConfigError."""
        if len(self.words) > 1:
            raise ConfigError(f"{self.words[1]!r} is one word too many after {self.words[0]!r}; {LOOK}")
        return self.words[0] if self.words else None


def read(arguments: Sequence[str], *kinds: type) -> CommandLine:
    """Read a command line whose flags are the fields of dataclasses.

    Parameters
    ----------
    arguments : sequence of str
        The words after the command's name.
    *kinds : type
        Dataclasses. Fields of one name must have one type. Values are converted, and not checked against ranges: the
        dataclass does that when it is made.

    Raises
    ------
    ConfigError
        If there is no such flag, or its value is missing or not of its type.
    """
    fields = {field.name: field for kind in kinds for field in fields_of(kind)}
    parsed, rest = _parser(fields.values()).parse_known_args(_plain(arguments, fields.values()))
    asks_help = "help" in parsed
    unknown = [word for word in rest if word.startswith("-")]
    if unknown and not asks_help:
        raise _no_flag(unknown[0].partition("=")[0], fields.values())
    if "" in rest:
        raise ConfigError("a word of the command line is empty (''); leave it out, or give what belongs there")
    given = {name: _value(fields[name], words) for name, words in vars(parsed).items() if name != "help"}
    return CommandLine([word for word in rest if word not in unknown], given, asks_help)


def refuse_others(given: Iterable[str], kind: type, of: str) -> None:
    """Raise ConfigError for the first name of a flag given that is no field of a dataclass, which is called `of`."""
    known = {field.name for field in fields_of(kind)}
    for name in given:
        if name not in known:
            raise ConfigError(f"{flag_of(name)} is no flag of {of}; leave it out; {LOOK}")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message.removeprefix('argument ')}; {LOOK}")


def _parser(fields: Iterable[Field], helps: dict[str, str] | None = None, **options: Any) -> _Parser:
    """Return a parser that keeps the words of each flag given, and True or False of a switch."""
    parser = _Parser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS, **options)
    parser._negative_number_matcher = re.compile(r"^-\d*\.?\d+([eE][-+]?\d+)?$")  # argparse's own knows no exponent
    parser.add_argument("-h", "--help", action="store_true", default=argparse.SUPPRESS, help="Show this help and exit.")
    for field in fields:
        text = (helps or {}).get(field.name, "").replace("%", "%%")
        if field.type is bool:
            parser.add_argument(field.flag, dest=field.name, action=argparse.BooleanOptionalAction, help=text)
        else:
            count, one = _shape(field.type)
            value = f"{{{','.join(field.choices)}}}" if field.choices else _VALUE_NAMES[one]
            if len(value) > MOST_OF_A_LINE:
                value = "NAME"  # of those that the text lists
            parser.add_argument(field.flag, dest=field.name, nargs=count, metavar=value, help=text)
    return parser


def _shape(hint: Any) -> tuple[int | str | None, type]:
    """Return how many words a flag of this type takes, as argparse says it, and the type of each."""
    if get_origin(hint) is not tuple:
        return None, hint
    types = get_args(hint)
    return ("*" if types[-1] is Ellipsis else len(types)), types[0]


def _plain(arguments: Iterable[str], fields: Iterable[Field]) -> list[str]:
    """Spell flags with hyphens, and switches without values: ``--x False`` and ``--x=False`` become ``--no-x``."""
    switches = {field.flag: field for field in fields if field.type is bool}
    plain: list[str] = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if flag.startswith("--"):
            flag = flag.replace("_", "-")
        if equals and flag in switches and value not in _switch_values(switches[flag]):
            raise ConfigError(f"{flag} is {value!r}; give {' or '.join(_switch_values(switches[flag]))}")
        for word in (flag, value) if equals and flag in switches else (flag + equals + value,):
            switch = switches.get(plain[-1]) if plain else None
            if switch is None or word not in _switch_values(switch):
                plain.append(word)
            elif word == "False":
                plain[-1] = f"--no-{switch.flag[2:]}"
            elif word == "None":
                plain.pop()
    return plain


def _switch_values(switch: Field) -> list[str]:
    return ["True", "False", *(["None"] if switch.optional else [])]


def _value(field: Field, words: Any) -> Any:
    """Return the value of a flag: of its words, or the True or False of a switch."""
    if isinstance(words, bool):
        return words
    if words == "None" and field.optional:
        return None
    _, one = _shape(field.type)
    try:
        return tuple(_converted(word, one) for word in words) if isinstance(words, list) else _converted(words, one)
    except ValueError:
        said = " ".join(words) if isinstance(words, list) else words
        wanted = field.ranges[0] if isinstance(words, list) and field.ranges else _WANTED[one]
        raise ConfigError(f"{field.flag} is {said!r}; give {wanted}") from None


def _converted(word: str, kind: Any) -> Any:
    """Return a word as a value of a type, which for ``STEP:VALUE`` is a tuple; ValueError if it is none."""
    if get_origin(kind) is tuple:
        return tuple(_converted(part, one) for one, part in zip(get_args(kind), word.split(":"), strict=True))
    if kind is Path and not word:
        raise ValueError("an empty path is the current folder")
    if kind is int and "e" in word.lower() and (number := float(word)).is_integer():  # 1e6
        return int(number)
    return kind(word)


def _no_flag(flag: str, fields: Iterable[Field]) -> ConfigError:
    flags = [spelling for field in fields for spelling in (field.flag, *_off(field))]
    near = difflib.get_close_matches(flag, flags, n=1, cutoff=0.7)
    remedy = f"did you mean {near[0]}? " if near else ""
    return ConfigError(f"{flag} is no flag of this command; {remedy}{LOOK}")


def _off(field: Field) -> list[str]:
    return [f"--no-{field.flag[2:]}"] if field.type is bool else []


# --- help ---------------------------------------------------------------------------------------------


def show_help(usage: str, doc: str | None, *defaults: Any, about: str = "", without: Collection[str] = ()) -> NoReturn:
    """Print the help of a command and leave with status 0.

    Parameters
    ----------
    usage : str
        The command, and the words that it takes besides flags.
    doc : str
        The docstring of its module: the first line says what it does, examples follow.
    *defaults : dataclass
        Instances; their fields are the flags, with their values as defaults.
    about : str
        What these defaults are.
    without : collection of str
        Names of fields that have no effect here.
    """
    purpose, _, _ = (doc or "").partition("\n\n")
    helps: dict[str, str] = {}
    for default in defaults:
        texts = texts_of(type(default))
        helps |= {name: _with_default(text, getattr(default, name)) for name, text in texts.items()}
    fields = [field for default in defaults for field in fields_of(type(default)) if field.name not in without]
    parser = _parser(
        fields, helps, usage=f"{usage} [flags]", description=f"{purpose} {about}", formatter_class=_Formatter
    )
    say(parser.format_help() + "\nexamples:\n" + textwrap.indent(examples(doc), "  ").rstrip())
    sys.exit(0)


class _Formatter(argparse.HelpFormatter):
    """Wraps at spaces alone: a flag or a date in a text stays in one piece."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


def texts_of(kind: type) -> dict[str, str]:
    """Return the docstring of each field of a dataclass, those of its bases included, without its line breaks."""
    texts: dict[str, str] = {}
    for part in filter(dataclasses.is_dataclass, reversed(kind.__mro__)):
        definition = ast.parse(textwrap.dedent(inspect.getsource(part))).body[0]
        assert isinstance(definition, ast.ClassDef)
        for field, text in itertools.pairwise(definition.body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
                texts[field.target.id] = " ".join(str(ast.literal_eval(text.value)).split())
    return texts


def _with_default(text: str, value: Any) -> str:
    """Return a help text with its default: the value, or what the text itself says of None, ``(default: ...)``."""
    if value is None or value == ():
        return text
    if isinstance(value, bool):
        value = "on" if value else "off"
    elif isinstance(value, tuple):
        value = spelled(value)
    known = re.sub(r"\(default: [^)]*\)", f"(default: {value})", text)
    return known if known != text else f"{text} (default: {value})"


# --- from an error to one line ------------------------------------------------------------------------


def run_command(main: Callable[[list[str]], int], prog: str, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and leave with its exit status; an error of the user's is one line, not a traceback."""
    try:
        try:
            status = main(list(sys.argv[1:] if arguments is None else arguments))
        finally:
            if sys.stdout is not None:  # as after `>&-`
                with though_closed():
                    sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output has left, as in `fastrl train --help | head`
        print_nowhere()
        status = 128 + signal.SIGPIPE
    except (ConfigError, ImportError) as error:
        status = exit_status(error)
        if not first_rank():
            _let_the_first_speak(status)
        complain(f"{prog}: error: {(isinstance(error, ImportError) and _hidden()) or error}")
    except PeerError as error:
        status = exit_status(error)
        if first_rank():  # the learner that failed has said why, if it could
            complain(f"{prog}: error: {error}")
        elif status == 2:
            _let_the_first_speak(status)
    except RunError as error:
        complain(f"{prog}: error: {error}")
        status = exit_status(error)
    except KeyboardInterrupt as asked:
        if first_rank():
            complain(f"{prog}: stopped at once; what was saved before is whole")
        status = 128 + (asked.args[0] if asked.args else signal.SIGINT)
    sys.exit(status)


def _hidden() -> str | None:
    """Return words on a folder named like the package that Python took for it, None if it took the package."""
    package = sys.modules["fastrl"]
    if package.__file__ is not None:
        return None
    return (
        f"the folder {next(iter(package.__path__))} hides the package of its name; change to another folder, such as "
        "that one itself, or type `fastrl COMMAND`"
    )


def _let_the_first_speak(status: int) -> None:
    """Leave with this status as soon as torchrun ends this process, which it does once the first one has failed too.

    All were given the same command, so the first one says what is wrong with it. Only where it fails to, as on another
    machine, this returns.
    """
    signal.signal(signal.SIGTERM, lambda *_: os._exit(status))
    time.sleep(PATIENCE_SECONDS)
