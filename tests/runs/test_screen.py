"""What a run shows on a terminal, and in a file."""

from __future__ import annotations

import io
import os
import pty
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

rich_console = pytest.importorskip("rich.console")

from fastrl.runs import screen  # noqa: E402
from fastrl.runs.folder import RunFolder  # noqa: E402
from fastrl.runs.panel import REDRAW_EVERY_SECONDS, Panel, open_screen, sparkline  # noqa: E402
from fastrl.runs.report import Reporter  # noqa: E402

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
SCORES = [3.0, 1.0, 8.0, 2.0]
FIELDS = {"score": "3.5 (last 4 games)", "epsilon": 0.25, "loss": "0.0100"}


@pytest.fixture
def clock(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(screen, "monotonic", lambda: clock[0])
    return clock


@pytest.fixture
def open_panel(monkeypatch, clock):
    """A function that opens a panel on a terminal of some size; what the terminal got is in `panel.got()`."""
    make, opened = rich_console.Console, []

    def open_on(width=80, height=24, total=20_000, encoding="utf-8", environment=None):
        written = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="", write_through=True)
        console = make(
            file=written, force_terminal=True, width=width, height=height, color_system="standard",
            legacy_windows=False, _environ={"TERM": "xterm"} | (environment or {}),
        )  # fmt: skip
        monkeypatch.setattr(rich_console, "Console", lambda: console)
        panel = Panel(total, "frames")
        panel.console = console
        panel.got = lambda: written.buffer.getvalue().decode(encoding)
        opened.append(panel)
        return panel

    yield open_on
    for panel in opened:
        panel.close()


def play(panel, clock, pictures=3):
    """Show 100 frames a second, with all that a panel can show."""
    panel.extras.scores = SCORES
    panel.extras.shares = {"act": 0.25, "update": 0.747, "add": 0.003}
    panel.extras.due |= {"evaluation": 6_000, "save": 12_000}
    for picture in range(pictures):
        clock[0] = 100.0 + picture
        panel.show(100 * picture, FIELDS)


def last_picture(panel, rows):
    """The last so many rows that the terminal got, without colours."""
    return ANSI.sub("", panel.got().rpartition("\r")[2]).split("\n")[-rows:]


# --- lines ----------------------------------------------------------------------------------------------


def test_a_file_gets_a_plain_line_every_ten_seconds_and_one_at_the_end(capsys, clock):
    out = open_screen(4000, "frames", quiet=False)
    out.extras.scores, out.extras.due["save"] = SCORES, 3000
    for at in range(0, 4001, 100):
        clock[0] = 100.0 + at / 100
        out.show(at, {"score": at / 7, "phase": "learn"})
    out.show(4001, {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("/")[0] for line in lines] == ["0", "1,000", "2,000", "3,000", "4,000"]
    assert lines[1] == "1,000/4,000 frames  100 frames/s  0:30 left  score 142.9  phase learn"


def test_the_rate_is_that_of_the_last_minute(capsys, clock):
    out = open_screen(100_000, "steps", quiet=False)
    for second in range(0, 200, 10):
        clock[0] = 50.0 + second
        out.show(min(second, 100) * 10 + max(second - 100, 0) * 30, {})
    assert "  30 steps/s  " in capsys.readouterr().out.splitlines()[-1]


def test_messages_are_shown_and_nothing_at_all_when_quiet(tmp_path, capsys):
    with Reporter(tmp_path / "a", total=10) as out:
        out.line("[bold] stays as it is")
    assert capsys.readouterr().out == "[bold] stays as it is\n"
    with Reporter(tmp_path / "b", total=10, quiet=True) as out:
        out.line("never")
        out.progress(10)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("term", ["dumb", "unknown", None])
def test_a_terminal_that_cannot_redraw_gets_lines(monkeypatch, term):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("TERM", raising=False)
    if term:
        monkeypatch.setenv("TERM", term)
    assert type(open_screen(10, "frames", quiet=False)) is screen.Plain


# --- the panel ------------------------------------------------------------------------------------------


def test_the_panel_says_how_far_how_good_what_next_and_where_the_time_goes(open_panel, clock):
    panel = open_panel(width=100)
    play(panel, clock)
    progress, score, due, bar, stages, now = last_picture(panel, 6)
    assert re.fullmatch(r"frames    ─{40}   1%  200 of 20,000  100/s  3:18 left", progress)
    assert score == "score     3.5 (last 4 games)  ▃▁█▂"
    assert due == "next      evaluation in 5,800 frames (1.0 min)  save in 11,800 frames (2.0 min)"
    assert re.fullmatch(r"time      █{15}▓{45}", bar)
    assert stages == "          █ act 25%  ▓ update 75%"
    assert now == "now       epsilon 0.25  loss 0.0100"


@pytest.mark.parametrize("width", [5, 20, 40, 80, 200])
@pytest.mark.parametrize("height", [1, 2, 5, 24])
def test_the_panel_fits_any_terminal_the_most_important_first(open_panel, clock, width, height):
    panel = open_panel(width, height)
    play(panel, clock, pictures=1)
    rows = ANSI.sub("", panel.got()).replace("\r", "").split("\n")
    assert 1 <= len(rows) <= max(1, height - 1)
    assert max(map(len, rows)) < width
    assert rows[0].startswith("frames"[: width - 2])


def test_each_picture_takes_the_place_of_the_one_before_and_messages_stay_above(open_panel, clock):
    panel = open_panel(width=100)
    play(panel, clock, pictures=2)
    before = len(panel.got())
    clock[0] += 1
    panel.show(300, FIELDS)
    assert panel.got()[before:].count("\x1b[1A") == 5  # up from the sixth row to the first
    before = len(panel.got())
    panel.line("a [message]")
    first, *rest = ANSI.sub("", panel.got()[before:]).replace("\r", "").split("\n")
    assert first == "a [message]"
    assert len(rest) == 6


def test_a_terminal_made_narrower_is_cleared_of_the_rows_that_it_wrapped(open_panel, clock):
    panel = open_panel(width=100)
    play(panel, clock)
    drawn = last_picture(panel, 6)
    before = len(panel.got())
    panel.console.width = 40
    clock[0] += 1
    panel.show(400, FIELDS)
    wrapped = sum(-(-len(row) // 40) for row in drawn)
    assert wrapped > 6
    assert panel.got()[before:].count("\x1b[1A") == wrapped - 1
    before = len(panel.got())
    panel.console.width = 90  # wider again: there is nothing more to clear than was drawn
    clock[0] += 1
    rows = len(panel._drawn)
    panel.show(500, FIELDS)
    assert panel.got()[before:].count("\x1b[1A") == rows - 1


def test_no_picture_is_drawn_before_the_last_has_been_seen(open_panel, clock):
    panel = open_panel()
    play(panel, clock)
    before = panel.got()
    clock[0] += REDRAW_EVERY_SECONDS / 2
    panel.show(1_000, FIELDS)
    assert panel.got() == before
    panel.show(20_000, FIELDS)  # the end is shown at once, and nothing comes next
    assert "20,000 of 20,000" in panel.got()
    assert not any(row.startswith("next") for row in last_picture(panel, 5))


def test_the_cursor_is_never_left_hidden(open_panel, clock):
    panel = open_panel()
    assert panel.got() == "\x1b[?25l\x1b[?25h"
    play(panel, clock)
    panel.close()
    assert panel.got().count("\x1b[?25l") == 1


def test_no_color_means_none(open_panel, clock):
    coloured, plain = open_panel(), open_panel(environment={"NO_COLOR": "1"})
    for panel in (coloured, plain):
        play(panel, clock)
    assert re.search(r"\x1b\[[0-9;]*3[1-7]m", coloured.got())
    assert not re.search(r"\x1b\[[0-9;]*3[1-7]m", plain.got())
    assert last_picture(plain, 6)[3].endswith("▓")  # shades tell stages apart all the same


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_stages_are_told_apart_without_colours(open_panel, clock, encoding):
    panel = open_panel(width=120, environment={"NO_COLOR": "1"}, encoding=encoding)
    panel.extras.shares = dict.fromkeys("abcdefgh", 0.125)
    panel.show(1, {})
    legend = last_picture(panel, 3)[-1].split()
    assert legend[1::3] == list("abcdefgh")
    assert len(set(legend[0::3])) == 8


@pytest.mark.skipif(not hasattr(signal, "SIGCONT"), reason="Ctrl-Z is Unix's")
def test_what_the_shell_printed_after_ctrl_z_stays_and_the_rate_begins_anew(open_panel, clock):
    heard = signal.getsignal(signal.SIGCONT)
    panel = open_panel()
    play(panel, clock)
    before, rows = panel.got(), len(panel._drawn)
    os.kill(os.getpid(), signal.SIGCONT)  # as `timeout` sends it, at once
    assert not panel._continued
    clock[0] += 3_600
    os.kill(os.getpid(), signal.SIGCONT)
    panel.line("message")
    clock[0] += 1
    panel.show(1_000, FIELDS)
    assert panel.got()[len(before) :].startswith("\n" * rows)
    assert panel.rate == 0
    clock[0] += 2
    panel.show(1_600, FIELDS)
    assert panel.rate == 300
    panel.close()
    assert signal.getsignal(signal.SIGCONT) == heard


def test_a_terminal_without_unicode_gets_ascii(open_panel, clock):
    panel = open_panel(encoding="latin-1")
    play(panel, clock)
    assert panel.got().isascii()
    assert "score     3.5 (last 4 games)  -_#." in ANSI.sub("", panel.got())


def test_a_sparkline_goes_from_the_lowest_to_the_highest():
    assert sparkline([]) == ""
    assert sparkline([5.0]) == "▄"
    assert sparkline([-21.0, -21.0]) == "▄▄"
    assert sparkline(range(8)) == "▁▂▃▄▅▆▇█"
    assert sparkline([-1.0, 0.0, 1.0]) == "▁▅█"


@pytest.mark.parametrize("end", ["raise KeyboardInterrupt", "raise RuntimeError", "out.show(100, {})", "os._exit(9)"])
def test_a_real_terminal_is_left_whole_whatever_ends_the_run(end):
    script = f"""
        import contextlib, os
        from fastrl.runs.panel import open_screen
        with contextlib.closing(open_screen(100, "frames", quiet=False)) as out:
            out.show(50, {{"score": 1.25, "phase": "[warm]-up"}})
            out.line("a [message]")
            {end}
    """
    shown = in_a_terminal(script)
    plain = ANSI.sub("", shown)
    assert "50 of 100" in plain
    assert "score     1.25" in plain
    assert "phase [warm]-up" in plain
    assert "a [message]" in plain
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")
    if end != "os._exit(9)":
        assert shown.endswith(("\n", "\x1b[?25h"))  # what comes next begins a row of its own
        assert "\n" in shown[shown.rindex("phase") :]


TRAIN = """
    import fcntl, signal, sys, termios
    fcntl.ioctl(1, termios.TIOCSCTTY, 0)  # whose end is a hangup
    signal.signal(signal.SIGHUP, signal.SIG_{hangup})
    from fastrl.cli import run_command
    from fastrl.train import main
    flags = "catch --no-compile --device cpu --final-episodes 1 --name run --total-frames {frames} --runs-dir".split()
    run_command(main, "train", [*flags, {folder!r}])
"""


@pytest.mark.parametrize(("hangup", "frames", "status"), [("DFL", 10_000_000, 129), ("IGN", 20_000, 0)])
def test_a_terminal_that_closes_under_a_panel_costs_nothing(tmp_path, hangup, frames, status):
    """A run that hears of it stops in good order; one that was to outlive its terminal goes on to its end."""
    ours, theirs = pty.openpty()
    script = textwrap.dedent(TRAIN).format(hangup=hangup, frames=frames, folder=str(tmp_path))
    child = subprocess.Popen(
        [sys.executable, "-c", script], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "120", "LINES": "24"}, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    try:
        while b"epsilon" not in shown:  # in the panel
            shown += os.read(ours, 4096)
        os.close(ours)
        assert child.wait(600) == status
    finally:
        child.kill()
    newest, words = RunFolder(tmp_path / "run").newest_whole()
    assert words == []
    assert (int(newest.name) == frames) == (status == 0)


def in_a_terminal(script):
    """Run a script with a terminal as its stdout; return what it showed."""
    ours, theirs = pty.openpty()
    env = os.environ | {"TERM": "xterm", "COLUMNS": "120", "LINES": "24"}
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdout=theirs,
        stderr=subprocess.DEVNULL,
        env=env,
        cwd=Path(__file__).parents[2],
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:  # Linux's way to say that the other end is closed
            piece = b""
        if not piece:
            break
        shown += piece
    os.close(ours)
    child.wait()
    return shown.decode()
