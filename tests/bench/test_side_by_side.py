"""Contestants of a bench: processes of their own, which play rounds in turn."""

from __future__ import annotations

import pytest
from side_by_side import Contestant, Result, ratio, side_by_side
from update_in_turns import main

LOOP = """
import time
about, unit = {"from": __file__}, 10
done = 0

def play(steps):
    global done
    time.sleep(steps * 0.001)
    done += steps

def counts():
    return {"steps": done}

def close():
    pass

def make():
    import theirs
    return theirs
"""


def test_each_contestant_imports_from_its_own_tree_and_plays_whole_rounds(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "theirs.py").write_text(LOOP)
    monkeypatch.chdir(tmp_path)  # trees may be given from here
    results = side_by_side([Contestant(n, "theirs:make", tree=n) for n in ("a", "b")], 3, 0.04, lambda text: None)
    for result in results:
        assert result.failure is None
        assert result.about["from"] == str(tmp_path / result.name / "theirs.py")
        steps = [played["steps"] for played in result.rounds]
        assert len(steps) == 3
        assert steps[0] == steps[1] == steps[2] > 0
        assert steps[0] % 10 == 0


def test_ratios_are_those_within_rounds():
    """Rates of 10, 20, 40 and 20, 40, 20 steps a second: ratios of 2, 2 and 0.5."""
    a, b = (
        Result("", rounds=[{"steps": steps, "seconds": 2.0} for steps in each]) for each in ((20, 40, 80), (40, 80, 40))
    )
    assert ratio(b, a, "steps") == 2
    assert ratio(a, b, "steps") == 0.5
    assert ratio(Result("", failure="lost"), a, "steps") is None


def test_a_contestant_that_cannot_begin_is_reported_with_the_reason(tmp_path):
    (result,) = side_by_side([Contestant("none", "theirs:make", tree=str(tmp_path))], 1, 0.01, lambda text: None)
    assert result.failure == "ModuleNotFoundError: No module named 'theirs'"
    assert result.missing


def test_a_folder_that_is_no_checkout_is_named(tmp_path):
    with pytest.raises(SystemExit, match="is no checkout: it has no folder fastrl; give two"):
        main(str(tmp_path), str(tmp_path), [])
