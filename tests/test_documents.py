"""What the documents show runs, and what they promise of names holds."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from recorded import record
from untrained import make_run

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
COMMANDS = [  # of shell blocks, continued lines joined: what runs is a module of ours
    pytest.param(words, id=f"{page.stem}-{' '.join(words[2:5])}")
    for page in PAGES
    for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.S | re.M)
    for line in block.replace("\\\n", " ").splitlines()
    if (words := shlex.split(line.partition("&& ")[2] or line, comments=True))[:2] == ["python", "-m"]
    and words[2].startswith("fastrl.")
]


class Begun(Exception):  # noqa: N818 - no error
    """A command has understood its flags, and begins."""


@pytest.fixture
def somewhere(tmp_path, monkeypatch):
    """An empty folder to work in, with a module in it."""
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


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_in_a_page_is_understood(words, somewhere, monkeypatch):
    """Runs and games begin, and are not played; curves are drawn."""
    from fastrl import games, sarsa_run
    from fastrl.dqn import run

    def begin(*args, **kwargs):
        raise Begun

    for module, name in ((run, "train"), (sarsa_run, "train"), (games, "play_games")):
        monkeypatch.setattr(module, name, begin)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", ModuleType("imageio_ffmpeg"))  # no film is made
    module, *arguments = words[2:]
    Path("runs").mkdir()
    if module == "fastrl.plot":
        for seed, name in enumerate(("NAME", "A", "B", "A-s1", "A-s2", "A-s3")):
            record(Path("runs"), name, seed=seed)
    elif "--make-env" in arguments:
        make_run(Path("runs/NAME"), game="own")
    else:
        make_run(Path("runs/NAME"), "breakout")
        shutil.copytree("runs/NAME/checkpoints/000000000400", "runs/NAME/checkpoints/best")
    main = importlib.import_module(module).main
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
            pytest.importorskip(node.module, exc_type=ImportError)  # other people's libraries
    exec(compile(code, side, "exec"), {"__name__": side})


def test_the_ring_is_drawn_as_it_is():
    drawing = re.search(r"^```text\nslot.*?^```", (ROOT / "docs" / "replay.md").read_text(), re.S | re.M)[0]
    lines = {words[0]: words[1:] for line in drawing.splitlines() if (words := line.replace("|", " ").split())}
    row, what = np.array(lines["row"], int), dict(zip(map(int, lines["row"]), lines["what"], strict=True))
    slots = len(row)
    buffer = ReplayBuffer(capacity=slots, num_envs=1, obs_shape=(1,), stack=3, n_step=2)
    for r in range(row.max() + 1):  # of the rows that were overwritten nothing is known
        here = what.get(r, ".")
        buffer.add(
            np.full((1, 1), r, np.uint8), [r], [0.0], [here == "done"], [False],
            first=None if here == "final" else [here == "first"],
        )  # fmt: skip
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
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_nobody_is_told_to_install_somebody_elses_package():
    sources = [p for folder in ("fastrl", "docs", "csrc") for p in (ROOT / folder).rglob("*") if p.is_file()]
    for path in [*PAGES, *(p for p in sources if p.suffix in {".py", ".pyx", ".md"})]:
        assert not re.search(r"pip install (-\S+ )*['\"]?fastrl", path.read_text()), path
