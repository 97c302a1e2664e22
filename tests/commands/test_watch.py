"""Watching an agent: which one, where it is shown, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

pytest.importorskip("envpool")
pytest.importorskip("ale_py")
pytest.importorskip("cv2")
pytest.importorskip("pygame")

import pygame
from PIL import Image, ImageSequence
from untrained import make_run

from fastrl import watch
from fastrl.base.errors import ConfigError, NoWindowError, Stopped
from fastrl.dqn import agent, pretrained
from fastrl.envs.rules import EvaluationRules
from fastrl.film import q_bars, window
from fastrl.play import games
from fastrl.play.games import Games


class FakeWindow:
    """Takes pictures; closed by its user after `patience` of them."""

    opened: ClassVar[list[FakeWindow]] = []
    patience = 10**9
    shown = True

    def __init__(self, title, pictures_per_second):
        self.title, self.pace = title, pictures_per_second
        self.pictures, self.closed = [], False
        self.opened.append(self)

    def draw(self, picture):
        self.pictures.append(picture)
        if len(self.pictures) >= self.patience:
            raise Stopped

    def close(self):
        self.closed = True


@pytest.fixture(autouse=True)
def windows(monkeypatch):
    """The windows that were opened, none of them real; no display but what a test sets."""
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(FakeWindow, "opened", [])
    monkeypatch.setattr(window, "Window", FakeWindow)
    return FakeWindow.opened


@pytest.fixture
def run(tmp_path):
    """The folder of an untrained run of catch."""
    make_run(tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """Breakout ships, untrained, with a mean score of 1.5; the current folder is empty."""
    judgement = pretrained.Judgement(
        commit="abc", exported_at="def", protocol="", played_with={}, scores={"envpool": {"games": 2, "mean": 1.5}}
    )
    monkeypatch.setattr(pretrained, "WEIGHTS", tmp_path / "weights")
    make_run(tmp_path / "breakout-run", "breakout")
    pretrained.export(tmp_path / "breakout-run", "newest", lambda *_: judgement)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def short(monkeypatch):
    """Games end after 12 steps."""
    play = games.play_games

    def play_short(*args, rules, **kwargs):
        return play(*args, rules=EvaluationRules(epsilon=rules.epsilon, max_steps=12), **kwargs)

    monkeypatch.setattr(games, "play_games", play_short)


def pictures_of(gif):
    """Return the pictures of a film, [H, W, 3] uint8 each."""
    with Image.open(gif) as image:
        return [np.asarray(picture.convert("RGB")) for picture in ImageSequence.Iterator(image)]


def test_without_a_display_a_run_is_filmed_and_the_path_is_the_last_word(run, windows, capsys):
    assert watch.main([str(run), "--episodes", "2"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"catch, {run}/checkpoints/000000000400"
    assert [line.split(":")[0] for line in said[1:3]] == ["game 1", "game 2"]
    assert said[1].endswith("in 9 steps")
    assert said[3:] == [f"film of the best game: {run}/pictures/watch-000000000400.gif"]
    assert len(pictures_of(run / "pictures" / "watch-000000000400.gif")) == 10
    assert windows == []


def test_a_film_needs_no_pygame(run, monkeypatch):
    monkeypatch.delitem(sys.modules, "fastrl.film.window")
    monkeypatch.setitem(sys.modules, "pygame", None)  # an import of it fails
    assert watch.main([str(run), "--no-window"]) == 0
    with pytest.raises(ConfigError, match=r"--window is on, but no window can be opened \(.* needs the extra 'train'"):
        watch.main([str(run), "--window"])


@pytest.mark.parametrize("name", ["breakout", "ALE/Breakout-v5"])
def test_a_game_is_played_by_what_ships_and_its_card_is_told(shipped, short, name, capsys):
    assert watch.main([name]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("breakout after 400 frames in 2 minutes")
    assert said[0].endswith("mean score 1.5 over 2 games on envpool")
    assert said[1].endswith("points in 12 steps")
    assert said[-1] == "film of the best game: watch-breakout.gif"
    assert Path("watch-breakout.gif").exists()


def test_a_runs_folder_comes_before_a_games_name(shipped, tmp_path, capsys):
    make_run(Path("breakout"))
    assert watch.main(["breakout", "--checkpoint", "000000000200"]) == 0
    assert capsys.readouterr().out.startswith("catch, breakout/checkpoints/000000000200")


def test_a_window_opens_where_there_is_a_display_unless_the_flag_says_otherwise(run, windows, monkeypatch):
    for display in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.setenv(display, ":7")
        assert watch.main([str(run)]) == 0
        assert len(windows.pop().pictures) == 10
        assert watch.main([str(run), "--no-window"]) == 0
        assert windows == []
        monkeypatch.delenv(display)
    assert watch.main([str(run), "--window"]) == 0
    assert windows.pop().closed


def test_a_window_shows_every_frame_at_the_games_pace_and_films_nothing(shipped, short, windows, capsys):
    assert watch.main(["breakout", "--window"]) == 0
    (window,) = windows
    assert (window.title, window.pace, window.closed) == ("fastrl: breakout", 60, True)
    assert len(window.pictures) >= 4 * 12
    assert {picture.shape for picture in window.pictures} == {(210, 160 + q_bars.WIDTH, 3)}
    assert "film" not in capsys.readouterr().out
    assert list(Path().iterdir()) == []
    assert watch.main(["breakout", "--window", "--no-q-values"]) == 0
    assert {picture.shape for picture in windows[1].pictures} == {(210, 160, 3)}
    assert np.array_equal([picture[:, :160] for picture in window.pictures], windows[1].pictures)


def test_a_window_and_a_film_show_the_same_games(shipped, short, windows, capsys):
    flags = ["breakout", "--episodes", "2", "--seed", "3", "--epsilon", "0.5", "--out", "film.gif"]
    assert watch.main([*flags, "--window"]) == 0
    filmed = Path("film.gif").read_bytes()
    shown = capsys.readouterr().out
    assert watch.main([*flags, "--no-window"]) == 0
    assert capsys.readouterr().out == shown
    assert Path("film.gif").read_bytes() == filmed


def test_the_best_game_is_the_one_filmed(run, monkeypatch):
    scores = iter([3.0, 7.0, 5.0])
    asked = []

    def play(game, act, episodes, *, seed, rules, **kwargs):
        asked.append((game, episodes, seed, rules.epsilon, rules.frame_skip, kwargs["stack"]))
        score = next(scores)
        return Games(game, np.array([score]), np.array([9]), rules, "envpool", [np.full((8, 8, 3), score, np.uint8)])

    monkeypatch.setattr(games, "play_games", play)
    assert (
        watch.main([str(run), "--episodes", "3", "--seed", "4", "--epsilon", "0.2", "--out", str(run / "a.gif")]) == 0
    )
    assert asked == [("catch", 1, seed, 0.2, 1, 1) for seed in (4, 5, 6)]
    assert set(np.unique(pictures_of(run / "a.gif"))) == {7}


def test_the_film_ends_after_the_pictures_asked_for(run):
    assert watch.main([str(run), "--max-pictures", "4", "--out", str(run / "a.gif")]) == 0
    assert len(pictures_of(run / "a.gif")) == 4


def test_closing_the_window_ends_calmly_with_the_film_of_what_was_played(run, windows, monkeypatch, capsys):
    monkeypatch.setattr(FakeWindow, "patience", 15)  # in the second game
    assert watch.main([str(run), "--window", "--episodes", "5", "--out", str(run / "a.gif")]) == 0
    assert windows[0].closed
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said[1:]] == ["game 1", "stopped", "film of the best game"]
    assert (run / "a.gif").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("flag", ["--window", "--no-window"])
def test_a_signal_ends_calmly_whatever_is_shown(run, windows, monkeypatch, capsys, number, flag):
    make_act, calls = agent.greedy, []

    def interrupted(network):
        act = make_act(network)

        def play(stacks):
            calls.append(1)
            if len(calls) == 12:  # in the second game
                os.kill(os.getpid(), number)
            return act(stacks)

        return play

    monkeypatch.setattr(agent, "greedy", interrupted)
    assert watch.main([str(run), flag, "--episodes", "5"]) == 128 + number
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said[1:3]] == ["game 1", "stopped"]
    assert len(calls) == 12
    assert all(window.closed for window in windows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "neither a run nor a game is given; try python -m fastrl.watch breakout"),
        (["--episodes", "2"], "neither a run nor a game is given"),
        (["RUNS"], r"is no run folder; it holds runs: give one of them, such as .*"),
        (["nowhere"], r"nowhere is no run folder \(it holds no config.json\), and game is 'nowhere'"),
        (["braekout"], "did you mean breakout"),
        (["pong"], "game is 'pong', for which no weights ship; give one of breakout"),
        (["breakout", "--checkpoint", "best"], "--checkpoint is 'best', but one network ships for breakout"),
        (["RUN", "--checkpoint", "best"], "has no checkpoint 'best'; there is 000000000200, 000000000400"),
        (["RUN", "--episodes", "0"], "--episodes is 0; give at least 1"),
        (["RUN", "--max-pictures", "0"], "--max-pictures is 0; give at least 1"),
        (["RUN", "--out", "."], r"--out is \'\.\', a folder"),
        (["RUN", "--out", "film.avi"], r"--out is film.avi; give a name that ends in .gif or .mp4"),
        (["RUN", "--epsilon", "2"], "--epsilon is 2.0; give between 0 and 1"),
        (["RUN", "--seed", "-1"], "--seed is -1; give at least 0"),
        (["RUN", "breakout"], "'breakout' is one word too many after '.*run'"),
    ],
)
def test_bad_input_is_one_clear_message_and_writes_nothing(run, shipped, arguments, message):
    before = sorted(run.rglob("*"))
    with pytest.raises(ConfigError, match=message):
        watch.main([{"RUN": str(run), "RUNS": str(run.parent)}.get(word, word) for word in arguments])
    assert sorted(run.rglob("*")) == before
    assert list(Path().iterdir()) == []


# --- real windows, drawn into memory ------------------------------------------------------------------

REAL = window.Window


@pytest.fixture
def real_window(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    window = REAL("title", 50)
    yield window
    window.close()


def test_a_real_window_shows_each_picture_enlarged(real_window):
    picture = np.random.default_rng(0).integers(256, size=(210, 160, 3), dtype=np.uint8)
    for shown in (picture, picture[::-1]):
        real_window.draw(shown)
        pixels = pygame.surfarray.array3d(pygame.display.get_surface()).swapaxes(0, 1)
        assert np.array_equal(pixels, shown.repeat(3, axis=0).repeat(3, axis=1))
    assert pygame.display.get_caption()[0] == "title"


@pytest.mark.parametrize(
    ("screen", "size"), [((800, 600), (400, 500)), ((500, 900), (400, 500)), ((90, 90), (80, 100))]
)
def test_a_real_window_fits_the_screen(real_window, monkeypatch, screen, size):
    monkeypatch.setattr(pygame.display, "get_desktop_sizes", lambda: [screen])
    real_window.draw(np.zeros((100, 80, 3), np.uint8))
    assert pygame.display.get_surface().get_size() == size


def test_a_real_window_keeps_the_pace(real_window):
    picture = np.zeros((10, 10, 3), np.uint8)
    real_window.draw(picture)
    started = time.monotonic()
    for _ in range(10):
        real_window.draw(picture)
    assert time.monotonic() - started > 0.15  # 50 a second


@pytest.mark.parametrize(
    "event", [pygame.event.Event(pygame.QUIT), pygame.event.Event(pygame.KEYDOWN, key=pygame.K_ESCAPE)]
)
def test_a_real_window_is_closed_by_its_button_and_by_escape(real_window, event):
    picture = np.zeros((10, 10, 3), np.uint8)
    real_window.draw(picture)
    pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=pygame.K_a))
    real_window.draw(picture)
    pygame.event.post(event)
    with pytest.raises(Stopped):
        real_window.draw(picture)


def test_where_no_display_answers_no_window_can_be_opened(monkeypatch):
    monkeypatch.delenv("SDL_VIDEODRIVER", raising=False)
    monkeypatch.setattr(pygame.display, "init", lambda: None)
    monkeypatch.setattr(pygame.display, "get_driver", lambda: "offscreen")
    with pytest.raises(NoWindowError, match=r"no window can be opened \(no display answers\)"):
        REAL("title", 60)

    def fail(*_):
        raise pygame.error("video system broken")

    monkeypatch.setattr(pygame.display, "init", fail)
    with pytest.raises(NoWindowError, match=r"\(video system broken\)"):
        REAL("title", 60)


def test_a_display_that_answers_and_opens_no_window_is_no_display(real_window, monkeypatch):
    def fail(*_):
        raise pygame.error("x11: no rights")

    monkeypatch.setattr(pygame.display, "set_mode", fail)
    with pytest.raises(NoWindowError, match=r"no window can be opened \(x11: no rights\)"):
        real_window.draw(np.zeros((10, 10, 3), np.uint8))


@pytest.mark.parametrize("fails", ["at once", "with the first picture"])
def test_a_dead_display_is_answered_with_a_film_unless_a_window_is_asked_for(run, monkeypatch, capsys, fails):
    def no_window(*_):
        raise NoWindowError("no window can be opened (no display answers)")

    monkeypatch.setattr(FakeWindow, "__init__" if fails == "at once" else "draw", no_window)
    monkeypatch.setattr(FakeWindow, "shown", False)
    monkeypatch.setenv("DISPLAY", ":99")
    film = run / "pictures" / "watch-000000000400.gif"
    with pytest.raises(
        ConfigError, match=r"--window is on, but .* \(no display answers\); give --no-window for a film"
    ):
        watch.main([str(run), "--window"])
    assert not film.exists()
    capsys.readouterr()
    assert watch.main([str(run)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1] == "no window can be opened (no display answers); making a film instead"
    assert said[2].startswith("game 1: ")
    assert said[3:] == [f"film of the best game: {film}"]
    assert len(pictures_of(film)) == 10
    assert all(window.closed for window in FakeWindow.opened)


def test_without_pygame_a_display_is_answered_with_a_film(run, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "fastrl.film.window")
    monkeypatch.setitem(sys.modules, "pygame", None)
    monkeypatch.setenv("DISPLAY", ":7")
    assert watch.main([str(run)]) == 0
    assert "needs the extra 'train'" in capsys.readouterr().out.splitlines()[1]
    assert (run / "pictures" / "watch-000000000400.gif").exists()


@pytest.mark.parametrize("display", [{"DISPLAY": ":99"}, {"WAYLAND_DISPLAY": "nowhere"}])
def test_the_command_makes_a_film_where_the_display_is_dead(run, display):
    environment = {name: value for name, value in os.environ.items() if name != "SDL_VIDEODRIVER"} | display
    command = [sys.executable, "-m", "fastrl.watch", str(run)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert "no window can be opened (no display answers); making a film instead" in result.stdout
    assert result.stdout.splitlines()[-1] == f"film of the best game: {run}/pictures/watch-000000000400.gif"


def test_the_command_plays_in_a_real_window(run):
    environment = os.environ | {"SDL_VIDEODRIVER": "dummy", "DISPLAY": ":7"}
    command = [sys.executable, "-m", "fastrl.watch", str(run)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert "points in 9 steps" in result.stdout
    assert "film" not in result.stdout
    assert "pygame" not in result.stdout + result.stderr
