"""Code and commands in the documents run; the links, paths and names there exist."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name
from types import ModuleType

import numpy as np
import pytest
from recorded import record
from untrained import make_run

from fastrl.base.errors import ConfigError
from fastrl.replay import ReplayBuffer

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
BLOCKS = [
    pytest.param(code, id=f"{page.stem}-{i}")
    for page in PAGES
    for i, code in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.S | re.M))
]
CHANGES = [  # a diff is two programs: the lines without a plus, and those without a minus
    pytest.param(re.sub(rf"^([{other}].*\n)|^.", "", diff, flags=re.M), side, id=f"{page.stem}-{i}-{side}")
    for page in PAGES
    for i, diff in enumerate(re.findall(r"^```diff\n(.*?)^```", page.read_text(), re.S | re.M))
    for side, other in (("before", "+"), ("after", "-"))
]
EXAMPLES = sorted(ROOT.glob("examples/*.py"))
COMMANDS = [  # of shell blocks, continued lines joined: those that run a module of fastrl
    pytest.param(words, id=f"{page.stem}-{' '.join(words[2:5])}")
    for page in PAGES
    for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.S | re.M)
    for line in block.replace("\\\n", " ").splitlines()
    if (words := shlex.split(line.partition("&& ")[2] or line, comments=True))[:2] == ["python", "-m"]
    and words[2].startswith("fastrl.")
]


PATH = re.compile(r"`((?:fastrl|csrc|tests|bench|docs|examples|tools)/[\w./-]*)`")
NAME = re.compile(r"\bfastrl\.\w[\w.]*\w(?=\(|`|\s)")
TODAY = [page for page in PAGES if page.name != "CHANGELOG.md"]  # which tells of earlier names too


class Begun(Exception):  # noqa: N818 - no error
    """A command has parsed its flags, and begins."""


@pytest.fixture
def somewhere(tmp_path, monkeypatch):
    """A working directory with a module in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_module", raising=False)
    Path("my_module.py").write_text(
        "import gymnasium as gym\n\ndef make_env():\n    return gym.make('CartPole-v1', render_mode='rgb_array')\n"
    )
    return tmp_path


@pytest.mark.parametrize("code", BLOCKS)
def test_every_python_block_runs(code, somewhere):
    exec(compile(code, "block", "exec"), {"__name__": "block"})


def test_the_script_of_a_custom_environment_trains_when_it_is_run_and_not_when_it_is_evaluated(tmp_path):
    (script,) = (block.values[0] for block in BLOCKS if "def make_env" in block.values[0])
    (tmp_path / "my_module.py").write_text(script)
    paths = os.pathsep.join([str(ROOT), *sys.path])

    def run(*words):
        done = subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": paths},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("my_module.py")
    (folder,) = (tmp_path / "runs").iterdir()
    assert "my_module:make_env: mean" in run("-m", "fastrl.evaluate", str(folder), "--episodes", "2")
    assert list((tmp_path / "runs").iterdir()) == [folder]


@pytest.mark.parametrize("code", BLOCKS)
def test_no_python_block_trains_when_it_is_imported(code, somewhere, monkeypatch):
    """A block that trains stands under a guard."""
    from fastrl.envs import names

    monkeypatch.setattr(names, "_given", {})
    Path("block.py").write_text(code)
    monkeypatch.delitem(sys.modules, "block", raising=False)
    with pytest.raises(ConfigError, match="has no attribute 'nothing'"):
        names.load("block:nothing")
    assert not Path("runs").exists()


FILES_OF_OTHERS = {
    "sb3/1/progress.csv": "time/total_timesteps,rollout/ep_rew_mean,time/time_elapsed",
    "exports/a.csv": "Wall time,Step,Value",
    "log.csv": "env_steps,reward,loss",
}


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_in_a_page_is_understood(words, somewhere, monkeypatch):
    """Runs and games begin but are not played; curves are drawn."""
    from fastrl.distributed import engine
    from fastrl.dqn import run
    from fastrl.play import games
    from fastrl.sarsa import run as sarsa_run

    def begin(*args, **kwargs):
        raise Begun

    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", ModuleType("imageio_ffmpeg"))  # no film is made
    module, *arguments = words[2:]
    command = importlib.import_module(module)
    for owner, name in ((run, "train"), (sarsa_run, "train"), (games, "play_games"), (engine, "RayPlayers")):
        monkeypatch.setattr(owner, name, begin)
        if hasattr(command, name):  # a command may import it when it is imported itself, or when it needs it
            monkeypatch.setattr(command, name, begin)
    Path("runs").mkdir()
    if module == "fastrl.plot":
        for seed, name in enumerate(("NAME", "A", "B", "A-s1", "A-s2", "A-s3")):
            record(Path("runs"), name, seed=seed, batch_size=64)
        for file, names in FILES_OF_OTHERS.items():
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            Path(file).write_text(f"{names}\n1,1,1\n2,2,2\n")
    elif "--make-env" in arguments:
        make_run(Path("runs/NAME"), game="own")
    else:
        make_run(Path("runs/NAME"), "breakout")
        shutil.copytree("runs/NAME/checkpoints/000000000400", "runs/NAME/checkpoints/best")
    main = command.main
    if module == "fastrl.plot":
        assert main(arguments) == 0
    elif "--help" in arguments:
        with pytest.raises(SystemExit, match="0"):
            main(arguments)
    else:
        with pytest.raises(Begun):
            main(arguments)


@pytest.mark.parametrize(("code", "side"), CHANGES)
def test_both_sides_of_every_diff_run(code, side):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and side == "before":
            pytest.importorskip(node.module, exc_type=ImportError)  # other libraries
    exec(compile(code, side, "exec"), {"__name__": side})


def test_the_ring_is_drawn_as_it_is():
    drawing = re.search(r"^```text\nslot.*?^```", (ROOT / "docs" / "replay.md").read_text(), re.S | re.M)[0]
    lines = {words[0]: words[1:] for line in drawing.splitlines() if (words := line.replace("|", " ").split())}
    row, what = np.array(lines["row"], int), dict(zip(map(int, lines["row"]), lines["what"], strict=True))
    slots = len(row)
    buffer = ReplayBuffer(capacity=slots, num_envs=1, obs_shape=(1,), stack=3, n_step=2)
    for r in range(row.max() + 1):  # the drawing does not show the rows that were overwritten
        here = what.get(r, ".")
        first = None if here == "final" else [here == "first"]
        buffer.add(np.full((1, 1), r, np.uint8), [r], [0.0], [here == "done"], [False], first=first)
    assert (row % slots == np.arange(slots)).all()
    assert lines["slot"] == [str(slot) for slot in range(slots)]
    drawn = set(buffer.sample(buffer.drawable).action.tolist())  # uniform, a stratum for each
    assert {r: r in drawn for r in what} == {r: yes == "yes" for r, yes in zip(what, lines["drawn"], strict=True)}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_named_in_a_document(example):
    assert any(f"(../examples/{example.name})" in page.read_text() for page in ROOT.glob("docs/*.md"))


def test_the_two_commands_stand_in_the_readme():
    text = (ROOT / "README.md").read_text()
    assert "\npip install -c constraints.txt -e '.[train]' && python -m fastrl.train breakout\n" in text
    assert "\npip install -c constraints.txt -e '.[test]' && pytest\n" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\((?!https?://)([^)#]*)#?([^)]*)\)", page.read_text()):
        path = page.parent / target if target else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), f"{target}#{anchor}"


def anchors(page: Path) -> set[str]:
    """Return what a link to a heading of a page can say after its #."""
    headings = re.findall(r"^#+ (.*)", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", TODAY, ids=lambda page: page.name)
def test_every_path_in_a_page_exists(page):
    for path in PATH.findall(page.read_text()):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", TODAY, ids=lambda page: page.name)
def test_every_dotted_name_in_a_page_exists(page):
    for name in sorted(set(NAME.findall(page.read_text()))):
        assert resolve_name(name) is not None, name


def test_no_page_says_to_install_a_package_of_this_name_from_an_index():
    sources = [p for folder in ("fastrl", "docs", "csrc") for p in (ROOT / folder).rglob("*") if p.is_file()]
    for path in [*PAGES, *(p for p in sources if p.suffix in {".py", ".pyx", ".md"})]:
        assert not re.search(r"pip install (-\S+ )*['\"]?fastrl", path.read_text()), path
