"""Every message that refuses a command line names a remedy, and the remedy works: it is read, applied and run."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from untrained import make_run, write_settings

pytest.importorskip("envpool")

from fastrl import __main__ as front
from fastrl import evaluate, plot, train, watch
from fastrl.base.errors import ConfigError, RunError
from fastrl.base.ranges import Falling, Points, fields_of
from fastrl.config import PRESETS, DQNConfig, SarsaConfig

MODULES = {"train": train, "evaluate": evaluate, "watch": watch, "plot": plot}
Line = list[str]
CSV = "frames,time/minutes,games/return_mean_100,evaluation/return_mean\n1,0.1,1.0,\n2,0.2,2.0,3.0\n"


def words_of(text: str) -> Line:
    """Return the words of a command up to the end of its sentence."""
    return shlex.split(re.split(r"; | \(|\)|$", text)[0].removesuffix("."))


def replaced(line: Line, old: str, new: str) -> Line:
    return [new if word == old else word for word in line]


def with_value(line: Line, flag: str, *values: str) -> Line:
    """Return a line with another value of a flag, or the flag put at its end."""
    without = without_flag(line, flag)
    return [*without, flag, *values]


def without_flag(line: Line, flag: str) -> Line:
    """Return a line without a flag and what belongs to it."""
    if flag not in line and flag.replace("--", "--no-", 1) in line:
        flag = flag.replace("--", "--no-", 1)
    where = next((i for i, word in enumerate(line) if word.partition("=")[0] == flag), None)
    if where is None:
        return list(line)
    after = where + 1
    while after < len(line) and not line[after].startswith("--"):
        after += 1
    return line[:where] + line[after:]


def remedies(line: Line, message: str) -> Iterator[Line]:
    """Yield the command lines that a message leads to; what is to be deleted or copied is, here and now."""
    if found := re.search(r"did you mean (.+?)\?", message):
        wrong = re.match(r"(--\S+)|.*?game is '([^']+)'", message)
        assert wrong, message
        for one in found[1].split(" or "):
            yield replaced(line, wrong[1] or wrong[2], one)
    for found in re.finditer(r"(?:try|with|versions?:) ((?:python -m fastrl\.|fastrl )\w+.*?)(?=; |$)", message):
        yield (
            re.sub(r"^python -m fastrl\.|^fastrl ", "", found[1]).split()[:1]
            + words_of(found[1])[3 if found[1].startswith("python") else 2 :]
        )
    flag = (re.match(r"(--[\w-]+)", message) or [""])[0]
    if found := re.search(r"give (?:finite )?(?:at least|\w* ?between|at most) ([\d.,]+)(?: and ([\d.,]+))?", message):
        for value in filter(None, found.groups()):
            yield with_value(line, flag, value.replace(",", "").rstrip("."))
    if found := re.search(r"give a finite number above ([\d.]+)", message):
        yield with_value(line, flag, str(float(found[1]) + 1e-3))
    if "give two numbers, the first at most 1" in message:
        yield with_value(line, flag, "1", "1e-3")
    if "give one of them without a value, or leave it out" in message:
        yield from (with_value(line, one) for one in ("--epsilon-ladder", "--epsilon-schedule"))
        yield without_flag(line, "--epsilon-schedule")
    if "give words STEP:VALUE" in message:
        yield with_value(line, flag, "0:1" if "a whole number" in message else "0:0.5")
    if found := re.search(r"or give (--[\w-]+) without a value", message):
        yield with_value(line, found[1])
    if "give a whole number" in message:
        yield with_value(line, flag, "3")
    if re.search(r"give a number(;|$)", message):
        yield with_value(line, flag, *["0.5"] * (2 if flag == "--size" else 1))
    if "give True or False" in message:
        yield [*(word for word in line if not word.startswith(f"{flag}=")), f"{flag}=True"]
        yield [*(word for word in line if not word.startswith(f"{flag}=")), f"{flag}=False"]
    if "--device cpu, or install PyTorch" in message:
        yield with_value(line, flag, "cpu")
    if found := re.search(r"; give ([\w-]+(?:, [\w-]+)* or [\w-]+|envpool)(?:$|;)", message):
        for value in re.split(", | or ", found[1]):
            yield with_value(line, flag, value)
    if found := re.search(r"give a name that ends in (\.\w+) or (\.\w+)", message):
        for ending in found.groups():
            yield with_value(line, flag, f"film{ending}")
    if "give the name of one folder" in message or "give printable characters" in message:
        yield with_value(line, flag, "Größe 🎮 it's")
    if "give the name of a file" in message:
        yield with_value(line, flag, str(Path(line[line.index(flag) + 1]) / "new.gif"))
    if re.search(rf"give {flag} another place|give another($|;)|give {flag} another name", message) and flag:
        yield with_value(line, flag, "another place.gif" if flag == "--out" and line[0] != "plot" else "another")
    if found := re.search(r"free; give ([\d,]+) or less", message):
        yield with_value(line, flag, found[1].replace(",", ""))
    if found := re.search(r"([\d,]+) would fit with --frame-store lz4", message):
        yield with_value(with_value(line, flag, found[1].replace(",", "")), "--frame-store", "lz4")
    if "give another --name" in message:
        yield with_value(line, "--name", f"another name {len(list(Path('runs').glob('*')))}")
    for words, other, *values in (
        ("another --runs-dir", "--runs-dir", "elsewhere"),
        ("a smaller --capacity", "--capacity", "200"),
        ("out with --no-checkpoint-replay", "--no-checkpoint-replay"),
    ):
        if words in message:
            yield with_value(line, other, *values)
    if found := re.search(r"resume it with (--resume .*?)(?:;|$)", message):
        yield ["train", *shlex.split(found[1])]
    if found := re.search(r"or delete (.+?), which has", message):
        shutil.rmtree(shlex.split(found[1])[0])
        yield line
    if "leave it out" in message and flag:
        yield without_flag(line, flag)
    if "leave the game out" in message:
        yield [word for word in line if word != "pong"]
    if found := re.search(r"copy (.+?) there and resume the copy", message):
        shutil.copytree(found[1], "elsewhere/copy")
        yield [*without_flag(without_flag(line, flag), "--resume"), "--resume", "elsewhere/copy"]
    if "give a divisor of it" in message:
        yield with_value(line, flag, "2")
    if found := re.search(r"it lies in one: give (\S+)", message):
        yield with_value(line, "--resume", found[1])
    if "give one that a run made" in message:
        yield with_value(line, "--resume", "runs/NAME")
    if found := re.search(r"give the run and the checkpoint's name: (.*)", message):
        yield [line[0], *words_of(found[1])]
    if found := re.search(r"has no checkpoint '\w+'; there is ([\w, ]+)", message):
        for name in found[1].split(", "):
            yield with_value(line, "--checkpoint", name)
    if "give newest, best or the name of a folder" in message:
        yield with_value(line, "--checkpoint", "newest")
        yield with_value(line, "--checkpoint", "best")
    if found := re.search(r"give one of ([\w, ]+?), or train", message):
        for game in found[1].split(", "):
            yield [line[0], game]
    if found := re.search(r"asks for \w+, which \S+ has not; it has (.*)", message):
        for column in found[1].split(", "):
            yield with_value(line, flag, column)
    if found := re.search(r"give one for each of: (.*)", message):
        yield with_value(line, flag, *(f"label {i}" for i, _ in enumerate(found[1].split("; "))))
    if found := re.search(r"give two numbers between (\d+) and (\d+)", message):
        yield with_value(line, flag, *found.groups())
    if found := re.search(r"is given twice; give it once", message):
        yield [*dict.fromkeys(line)]
    if found := re.search(r"; give (--\w+) ([\w ]+?)(?:,|$| instead)", message):
        for value in found[2].split(" or "):
            yield with_value(line, found[1], *([] if value == "instead" else [value]))
    if "or --game" in message:
        yield with_value(line, "--game", "breakout")
    if found := re.search(r"or (--levels) instead", message):
        yield [*without_flag(line, flag), found[1]]
    if "give a folder that a run made, or a CSV file" in message:
        yield [line[0], "runs/NAME"]
    if found := re.search(r"command is '(\w+)'; give ([\w, ]+), or --help", message):
        for name in found[2].split(", "):
            yield [name, "--help"]
    if "--help" in message:
        yield [*line[:1], "--help"] if line[0] in MODULES else ["--help"]


def refusal(line: Line) -> str | None:
    """Run a command and return why it was refused, None if it was not."""
    try:
        if line[0] not in MODULES:
            front._help(line)
        else:
            MODULES[line[0]].main(line[1:])
    except (ConfigError, RunError) as error:
        return str(error)
    except SystemExit as leaving:  # of --help
        return None if leaving.code == 0 else f"left with {leaving.code}"
    return None


def try_remedies(line: Line, before: tuple[str, ...] = ()) -> str:
    """Run a line that is refused, and each remedy that the message names; return the message.

    What a remedy leads to may be refused for another reason, whose remedies are tried too.
    """
    message = refusal(line)
    assert message is not None, f"{line} was not refused"
    assert "\n" not in message
    tried = list(remedies(line, message))
    assert tried, f"no remedy: {message}"
    for other in tried:
        again = refusal(other)
        assert again not in (*before, message), f"{other} is refused again: {again}"
        if again is not None:
            assert len(before) < 2, f"one remedy after another: {before}, {message}, {again}"
            try_remedies(other, (*before, message))
    return message


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return a folder with runs/NAME, a run of catch with checkpoints, and runs/EMPTY and runs/SARSA without."""
    path = tmp_path_factory.mktemp("room")
    make_run(path / "runs" / "NAME")
    shutil.copytree(path / "runs/NAME/checkpoints/000000000400", path / "runs/NAME/checkpoints/best")
    (path / "runs/NAME/metrics.csv").write_text(CSV, encoding="utf-8")
    (path / "alone.csv").write_text(CSV, encoding="utf-8")
    write_settings(path / "runs" / "EMPTY", PRESETS["catch"].config)
    write_settings(path / "runs" / "SARSA", SarsaConfig())
    return path


@pytest.fixture
def room(monkeypatch, tmp_path, runs):
    """Stand in a copy of that folder; nothing is trained, played or drawn."""
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", ModuleType("imageio_ffmpeg"))
    monkeypatch.setattr(train, "_dqn", lambda *_: 0)
    monkeypatch.setattr("fastrl.sarsa.run.train", lambda *_, **__: SimpleNamespace(status=0))
    monkeypatch.setattr("fastrl.play.games.play_games", stop)
    monkeypatch.setattr(watch, "_open_window", stop)
    monkeypatch.setattr(watch, "has_display", lambda: False)
    monkeypatch.setattr(plot, "write_pictures", lambda *_: [])


def stop(*_, **__):
    raise SystemExit(0)


@pytest.mark.parametrize(
    "line",
    [
        "play",
        "train",
        "train catch pong",
        "train braekout",
        "train catch --bach-size 3",
        "train catch --no-compil",
        "train catch --colour red",
        "train catch --seed",
        "train catch --seed x",
        "train catch --gamma x",
        "train catch --n-step 3 --n-step-schedule 0:5 9:2",
        "train catch --epsilon-schedule 0:1 9:0.1 --epsilon-ladder 0.4 0.01",
        "train catch --compile=1",
        "train catch --compile=None",
        "train catch --learners 3",
        "train cartpole --batch-size 3",
        "train catch --env-groups 3",
        "train catch --name a/b",
        "train catch --name ''",
        "train catch --name 'a\nb'",
        "train catch --runs-dir 'a\nb'",
        "train --resume runs/NAME pong",
        "train --resume runs/NAME --name x",
        "train --resume runs/NAME --runs-dir other",
        "train --resume runs/SARSA --name x",
        "train --resume nowhere",
        "train --resume runs/NAME/checkpoints",
        "evaluate",
        "evaluate braekout",
        "evaluate seaquest",
        "evaluate runs/NAME --out film.avi",
        "evaluate runs/NAME --out runs",
        "evaluate runs/NAME --out runs/NAME/config.json/film.gif",
        "evaluate runs/NAME --out /proc/nowhere/film.gif",
        "evaluate runs/NAME --json runs",
        "evaluate runs/NAME --json runs/NAME/config.json/x",
        "evaluate runs/NAME --json /proc/nowhere/x.json",
        "evaluate runs/NAME --env gymnasium",
        "evaluate runs/NAME --checkpoint nope",
        "evaluate runs/NAME --checkpoint ../x",
        "evaluate runs/NAME/checkpoints/best",
        "evaluate runs/NAME/checkpoints/best/weights.safetensors",
        "evaluate breakout --checkpoint best",
        "watch",
        "watch seaquest",
        "watch runs/NAME --out /proc/nowhere/film.gif",
        "watch runs/NAME/checkpoints/000000000200",
        "plot",
        "plot runs/NAME --x no_such",
        "plot runs/NAME --y no_such",
        "plot runs/NAME --labels a b",
        "plot runs/NAME --size 1 30",
        "plot runs/NAME --x-max 0.5",
        "plot runs/NAME runs/NAME",
        "plot runs/NAME --levels",
        "plot alone.csv --levels",
        "plot alone.csv --game breakout --published --x minutes",
        "plot alone.csv --game breakout --levels --y time/minutes",
        "plot runs/NAME --out runs/NAME/config.json/x",
        "plot runs/NOWHERE",
    ],
)
def test_what_a_message_tells_to_do_gets_past_it(room, line):
    pytest.importorskip("matplotlib")
    try_remedies(shlex.split(line))


def bad_values(field) -> Iterator[str]:
    """Yield values that a field must not have."""
    if field.choices:
        yield "no-such"
    elif field.type is int:
        yield from ("x", "-1", str(10**24))
    elif field.type is float:
        yield from ("x", "nan", "-1")
    elif any(isinstance(allowed, Points) for allowed in field.ranges):
        yield from ("x", "0:x", "0", "0:-1", "1:0.5", "0:nan")
    elif any(isinstance(allowed, Falling) for allowed in field.ranges):
        yield from ("x", "0.5", "nan")


COMMANDS = {
    "train catch": DQNConfig,
    "train cartpole": SarsaConfig,
    "evaluate runs/NAME": evaluate.Arguments,
    "watch runs/NAME": watch.Arguments,
    "plot runs/NAME": plot.Arguments,
}
CASES = [(command, field) for command, kind in COMMANDS.items() for field in fields_of(kind) if [*bad_values(field)]]


@pytest.mark.parametrize(("command", "field"), [pytest.param(c, f, id=f"{c} {f.flag}") for c, f in CASES])
def test_a_flag_out_of_its_range_says_what_works(room, command, field):
    pytest.importorskip("matplotlib")
    if command == "evaluate runs/NAME" and field.name in ("collectors", "collector_timeout"):
        pytest.importorskip("ray")  # without it no number of collectors works
    for value in bad_values(field):
        message = try_remedies([*command.split(), field.flag, value])
        assert message.startswith(f"{field.flag} is ")


# --- with runs that are run -----------------------------------------------------------------------------

SMALL = (
    "train catch --device cpu --no-compile --total-frames 600 --final-episodes 1 --evaluate-episodes 1 --num-envs 4 "
    "--batch-size 8 --hidden 8 --env-threads 1 --learn-start-steps 50 --quiet"
).split()


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """Stand in a folder with runs/a, which has been run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    assert refusal([*SMALL, "--name", "a"]) is None
    return tmp_path


def test_the_name_of_a_run_that_is_there_can_be_changed_or_the_run_resumed(trained):
    assert "resume it with --resume" in try_remedies([*SMALL, "--name", "a"])
    shutil.rmtree("runs/a/checkpoints")
    assert "or delete runs/a, which has no checkpoint" in try_remedies([*SMALL, "--name", "a"])


def test_a_run_that_cannot_be_resumed_that_far_says_what_can_be_done(trained):
    resume = ["train", "--resume", "runs/a", "--quiet"]
    assert "has played 600 already; give more" in try_remedies([*resume, "--total-frames", "100"])
    assert refusal([*resume, "--total-frames", "700"]) is None
    shutil.rmtree("runs/a/checkpoints")
    assert refusal(resume) == "runs/a has no checkpoint yet; start a run of another --name"


def test_too_little_memory_or_disk_names_what_fits(trained, monkeypatch):
    monkeypatch.setattr("fastrl.dqn.run.build.available_bytes", lambda: 1 << 20)
    message = try_remedies([*SMALL, "--name", "b", "--frame-store", "ram", "--capacity", "1_000_000"])
    assert re.search(r"takes \d+\.\d MiB of the 1.0 MiB free; give [\d,]+ or less", message)
    monkeypatch.undo()
    monkeypatch.chdir(trained)
    monkeypatch.setattr(
        "fastrl.dqn.run.build.free_disk_bytes", lambda path: 400_000 if "runs" in str(path) else 1 << 40
    )
    message = try_remedies([*SMALL, "--name", "c"])
    assert re.search(r"needs up to \d+\.\d KiB of disk .* 390.6 KiB are free", message)
