"""The score of Atari-5 from files of scores: hand-made numbers, the interval, and what is refused."""

from __future__ import annotations

import json
import math
import re

import pytest

pytest.importorskip("scipy")

import atari5

from fastrl.base.errors import ConfigError
from fastrl.envs.levels import ATARI_5, LEVELS


def write(folder, game, scores, protocol="machado", seed=0, env="envpool", name=""):
    path = folder / f"{name or game}-{seed}.json"
    facts = {"game": game, "protocol": protocol, "env": env, "checkpoint": f"runs/{game}-{seed}/000010000000"}
    path.write_text(json.dumps(facts | {"scores": scores}))
    return path


def human(folder, **scores):
    """Files in which each game stands at a human's level, but those that are given."""
    return [write(folder, game, scores.get(game, [LEVELS[game][1]] * 4)) for game in ATARI_5]


def said(files, capsys):
    assert atari5.main([str(path) for path in files]) == 0
    out = capsys.readouterr().out
    return out, [float(word) for word in re.findall(r"Atari-5: (\S+) \[(\S+), (\S+)\]", out)[0]]


def test_humans_have_one_score_and_no_spread(tmp_path, capsys):
    out, figures = said(human(tmp_path), capsys)
    assert figures == [round(101**0.9653 - 1, 1)] * 3
    assert "| battle_zone | 1 | 4 | 37,187.5 | 100.0% |" in out


def test_games_below_random_play_are_said_to_count_as_nothing(tmp_path, capsys):
    out, (middle, *_) = said(human(tmp_path, qbert=[0.0], phoenix=[10.0]), capsys)
    assert middle == pytest.approx(101 ** (0.9653 - 0.0805 - 0.1241) - 1, abs=0.05)
    assert "counted as 0 %: phoenix, qbert." in out
    assert "counted as 0 %" not in said(human(tmp_path), capsys)[0]


def test_scores_that_spread_have_an_interval_around_the_score(tmp_path, capsys):
    _, (middle, low, high) = said(human(tmp_path, battle_zone=[2_360.0, 37_187.5] * 50), capsys)
    assert middle == pytest.approx(101**0.5833 * 51**0.382 - 1, abs=0.05)
    assert low < middle < high
    assert high - low < 15


def test_seeds_are_summarised_by_their_interquartile_mean(tmp_path, capsys):
    random, top = LEVELS["qbert"]
    more = [write(tmp_path, "qbert", [score], seed=seed) for seed, score in ((1, random), (2, top), (3, 9 * top))]
    out, (middle, low, high) = said([*human(tmp_path), *more], capsys)
    assert middle == round(101**0.9653 - 1, 1)
    assert low < middle < high  # the two in the middle of four seeds are a human's level
    assert "| qbert | 4 | 7 |" in out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder, files: files[:-1], "no file is of qbert; evaluate a run of each"),
        (lambda folder, files: [*files, write(folder, "pong", [1.0])], "pong.*leave it out"),
        (lambda folder, files: [*files, write(folder, "qbert", [1.0], "deepmind", 1)], "one --protocol"),
        (
            lambda folder, files: [*files, write(folder, "qbert", [1.0], env="gymnasium", seed=1)],
            "on envpool.*one --env",
        ),
        (lambda folder, files: [*files, write(folder, "qbert", [1.0], name="again")], "of one checkpoint.*give one"),
        (lambda folder, files: [*files, files[-1]], "of one checkpoint.*give one"),
        (lambda folder, files: [*files, write(folder, "qbert", [], seed=1)], "has no scores"),
        (lambda folder, files: [*files, write(folder, "qbert", [1.0, math.nan], seed=1)], "no finite numbers"),
        (lambda folder, files: [*files, write(folder, "qbert", ["1"], seed=1)], "no finite numbers"),
        (lambda folder, files: [*files, write(folder, "qbert", [[1.0]], seed=1)], "no finite numbers"),
        (lambda folder, files: [*files, write(folder, "qbert", 1.0, seed=1)], "cannot be read as scores"),
        (lambda folder, files: [*files, folder / "none.json"], "cannot be read.*fastrl.evaluate RUN --json"),
        (lambda folder, files: [*files, folder], "cannot be read"),
    ],
)
def test_what_cannot_be_one_number_is_refused(tmp_path, change, words):
    files = change(tmp_path, human(tmp_path))
    with pytest.raises(ConfigError, match=words):
        atari5.main([str(path) for path in files])
