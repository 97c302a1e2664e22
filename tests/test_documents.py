"""What the documents show runs, and what they promise of names holds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
BLOCKS = [
    pytest.param(code, id=f"{page.stem}-{i}")
    for page in PAGES
    for i, code in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.S | re.M))
]


@pytest.mark.parametrize("code", BLOCKS)
def test_every_python_block_runs(code):
    exec(compile(code, "block", "exec"), {"__name__": "block"})


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
