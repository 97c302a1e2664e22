"""Other programs' CSV files beside runs: their steps become frames, each file a seed of one line."""

from __future__ import annotations

import numpy as np
import pytest
from recorded import record

pytest.importorskip("matplotlib")
pytest.importorskip("scipy")

from fastrl import plot
from fastrl.base.errors import ConfigError
from fastrl.cli import read
from fastrl.runs.curves import Curve, curve_of, name_groups, summary_at
from fastrl.runs.others import EVALUATION, FRAMES, MINUTES, SCORE, Theirs, is_others, read_others

PROGRESS = """rollout/ep_rew_mean,time/total_timesteps,time/time_elapsed,eval/mean_reward
1.5,1000,60,
,1500,,7.0
2.5,2000,120,
"""
MONITOR = """#{"t_start": 1700000000.5, "env_id": "ALE/Breakout-v5"}
r,l,t
2.0,100,30.0
4.0,300,90.0
"""
TENSORBOARD = """Wall time,Step,Value
1700000000.1,10,1.0
1700000060.1,20,3.0
"""


def write(folder, **texts):
    """Write CSV files by these names."""
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.csv").write_text(text)
    return folder


def columns_of(tmp_path, text, theirs, y=SCORE):
    word = f"other={write(tmp_path / 'files', a=text) / 'a.csv'}"
    (run,) = read_others([word], theirs, y, "pong")[word]
    assert (run.line, run.game, run.settings) == ("other", "pong", {})
    return {name: run.column(name, "--y").tolist() for name in run.columns}


def test_progress_of_stable_baselines_is_known(tmp_path):
    found = columns_of(tmp_path, PROGRESS, Theirs(frames_per_step=4))
    assert found[FRAMES] == [4000, 6000, 8000]
    assert found[SCORE][0::2] == [1.5, 2.5]
    assert np.isnan(found[SCORE][1])
    assert found[EVALUATION][1] == 7
    assert found[MINUTES][0::2] == [1, 2]


def test_a_monitor_has_a_row_for_each_game_whose_scores_are_averaged(tmp_path):
    found = columns_of(tmp_path, MONITOR, Theirs(frames_per_step=4))
    assert found == {FRAMES: [400, 1600], SCORE: [2, 3], MINUTES: [0.5, 1.5]}


def test_a_monitors_score_is_the_mean_of_the_last_hundred_games(tmp_path):
    games = "".join(f"{score},1,{score}\n" for score in range(150))
    found = columns_of(tmp_path, "#{}\nr,l,t\n" + games, Theirs(frames_per_step=1))
    assert found[SCORE][99] == np.mean(range(100))
    assert found[SCORE][149] == np.mean(range(50, 150))


def test_an_export_of_tensorboard_is_known(tmp_path):
    found = columns_of(tmp_path, TENSORBOARD, Theirs(frames_per_step=1, rows=2))
    assert found == {FRAMES: [10, 20], SCORE: [1, 2], EVALUATION: [1, 2], MINUTES: [0, 1]}


@pytest.mark.parametrize(("text", "minutes"), [(PROGRESS, [1, 2]), (MONITOR, [0.5, 1.5]), (TENSORBOARD, [0, 1])])
def test_minutes_need_no_frames_of_a_step(tmp_path, text, minutes):
    word = f"other={write(tmp_path / 'files', a=text) / 'a.csv'}"
    (run,) = read_others([word], Theirs(), SCORE, None, x=MINUTES)[word]
    assert curve_of(run, MINUTES, SCORE).x.tolist() == minutes


def test_a_space_after_a_comma_is_none_of_a_name(tmp_path):
    found = columns_of(tmp_path, 'steps, reward, "a, b"\n1, 2, 3\n', Theirs(("steps", "reward"), 1))
    assert (found[FRAMES], found[SCORE]) == ([1], [2])


def test_a_table_of_another_encoding_is_named_with_what_to_do(tmp_path):
    (tmp_path / "a.csv").write_bytes("steps,reward\n1,2\n".encode("utf-16"))
    for words in (["mine={}"], ["{}"]):
        with pytest.raises(ConfigError, match=r"a\.csv is no text in UTF-8 \(.*\); give a CSV file, saved as UTF-8"):
            plot.main([word.format(tmp_path / "a.csv") for word in words])


def test_rows_without_both_numbers_are_named_by_the_files_own_columns(tmp_path):
    files = write(tmp_path / "files", a="steps,reward\n1,nan\n2,\n")
    with pytest.raises(ConfigError, match=r"a\.csv has no row with a number in both steps and reward; give another"):
        plot.main([f"mine={files}", "--their-columns", "steps", "reward", "--their-frames-per-step", "4"])


def test_another_programs_file_without_a_name_leads_to_the_name(tmp_path):
    files = write(tmp_path / "seed 1", a=PROGRESS)
    with pytest.raises(ConfigError, match=r"; if another program wrote the file, give 'NAME=.*seed 1/a\.csv'$"):
        plot.main([str(files / "a.csv")])


def test_columns_may_be_named(tmp_path):
    text = "when,steps,reward\nmonday,5,1.0\ntuesday,10,\nfriday,15,5.0\nsat"
    found = columns_of(tmp_path, text, Theirs(("steps", "reward"), 2.0, 2), y="train/loss")
    assert found[FRAMES] == [10, 20, 30]
    assert found["train/loss"][0::2] == [1, 3]
    assert np.isnan(found["train/loss"][1])  # a gap is no game


def test_each_file_of_a_folder_or_a_pattern_is_a_seed(tmp_path):
    folder = write(tmp_path / "sb3", one=PROGRESS, two=PROGRESS)
    (folder / "notes.txt").write_text("no table")
    for files in (folder, f"{folder}/*.csv", f"{tmp_path}/**/*.csv"):
        (runs,) = read_others([f"SB3={files}"], Theirs(frames_per_step=1), SCORE, None).values()
        assert [run.name for run in runs] == ["one", "two"]


def test_a_run_whose_name_has_an_equals_sign_is_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record(tmp_path, "lr=1")
    assert not is_others("lr=1")
    assert is_others("lr=2")
    assert not any(map(is_others, ["runs/x", "=x", "x=", "runs/lr=3"]))


@pytest.mark.parametrize(
    ("text", "theirs", "message"),
    [
        (PROGRESS, Theirs(), "how many frames a step of other has; give --their-frames-per-step 4 for Atari"),
        ("a,b\n1,2\n", Theirs(), "--their-columns a b --their-frames-per-step 4; it has a, b"),  # all in one message
        ("a,b\n1,2\n", Theirs(("a", "c")), "--their-columns asks for c, .* it has a, b"),
        (
            PROGRESS,
            Theirs(("time/total_timesteps", "x"), 1),
            "--their-columns asks for x, .* it has rollout/ep_rew_mean",
        ),
        ("a,b\n1,2\n", Theirs(frames_per_step=1), "is of no known program; .* --their-columns a b; it has a, b"),
        ("\x1b[1ma,b\n1,2\n", Theirs(("x", "b"), 1), r"it has '\\x1b\[1ma', b$"),
        ("\x1b[1ma,b\n1,2\n", Theirs(frames_per_step=1), r"--their-columns '\\x1b\[1ma' b; it has '\\x1b\[1ma', b$"),
        (PROGRESS, Theirs(("steps", "x"), 1), "--their-columns asks for steps, .* it has rollout/ep_rew_mean"),
        ("a,b\n1,x\n", Theirs(("a", "b"), 1), "something else than numbers in column b"),
        ("a,b\n1,x\n", Theirs(("a", "b"), 1), "'x'.; correct the file, or name another column with --their-columns"),
        ("a,b\n1\n2,3\n", Theirs(("a", "b"), 1), r"/a\.csv has 1 cell in line 2, and 2 names of columns; give each"),
        ("a,b\n1,2,3\n", Theirs(("a", "b"), 1), r"/a\.csv has 3 cells in line 2, and 2 names of columns"),
        (MONITOR.replace("2.0,100,", "2.0,"), Theirs(None, 1), r"/a\.csv has 2 cells in line 3, and 3 names"),
        ("a,b,b\n1,2,3\n", Theirs(("a", "b"), 1), r"/a\.csv has several columns named b; rename all but one"),
        ("a;b\n1;2\n", Theirs(("a", "b"), 1), r"/a\.csv separates its cells by ';'; give commas"),
        ("a\tb\n1\t2\n", Theirs(("a", "b"), 1), r"/a\.csv separates its cells by '.t'; give commas"),
        ("", Theirs(frames_per_step=1), "holds no measurements"),
        ("a,b\n", Theirs(frames_per_step=1), "holds no measurements"),
    ],
)
def test_what_cannot_be_read_is_named_with_the_remedy(tmp_path, text, theirs, message):
    with pytest.raises(ConfigError, match=message):
        columns_of(tmp_path, text, theirs)


@pytest.mark.parametrize(
    ("text", "theirs", "x", "y", "message"),
    [
        (
            "step,reward,secs\n1,2,3\n",
            Theirs(("step", "reward"), 1),
            MINUTES,
            SCORE,
            "--x asks for time/minutes, and no column of PATH is read as that; give --x frames; "
            "the file has step (read as frames), reward (read as games/return_mean_100), secs",
        ),
        (
            "time/total_timesteps,eval/mean_reward,train/loss\n1,2,3\n",
            Theirs(None, 4),
            MINUTES,
            EVALUATION,
            "--x asks for time/minutes, and no column of PATH is read as that; time/time_elapsed would be; "
            "give --x frames; the file has time/total_timesteps (read as frames), "
            "eval/mean_reward (read as evaluation/return_mean), train/loss",
        ),
        (
            "time/total_timesteps,eval/mean_reward,train/loss\n1,2,3\n",
            Theirs(None, 4),
            FRAMES,
            SCORE,
            "--y asks for games/return_mean_100, and no column of PATH is read as that; rollout/ep_rew_mean would be; "
            "give --y evaluation/return_mean, or the column to draw, as in --their-columns time/total_timesteps "
            "train/loss; the file has time/total_timesteps (read as frames), "
            "eval/mean_reward (read as evaluation/return_mean), train/loss",
        ),
        (
            MONITOR,
            Theirs(None, 4),
            "updates",
            SCORE,
            "--x asks for updates, and no column of PATH is read as that; give --x frames, or --x time/minutes; "
            "the file has r (read as games/return_mean_100), l (read as frames), t (read as time/minutes)",
        ),
    ],
)
def test_a_column_that_a_file_lacks_is_asked_for_in_the_files_own_names(tmp_path, text, theirs, x, y, message):
    path = write(tmp_path / "files", a=text) / "a.csv"
    (run,) = read_others([f"other={path}"], theirs, y, None)[f"other={path}"]
    with pytest.raises(ConfigError) as error:
        curve_of(run, x, y)
    assert str(error.value) == message.replace("PATH", str(path))
    flag, _, name = message.partition("give ")[2].partition(";")[0].partition(",")[0].partition(" ")
    assert len(curve_of(run, *((name, y) if flag == "--x" else (x, name))).y)  # the remedy works


def test_files_that_are_not_there_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"SB3=.* matches no file; give SB3= and a CSV file"):
        read_others([f"SB3={tmp_path}/none/*.csv"], Theirs(frames_per_step=1), SCORE, None)


def test_columns_that_are_named_leave_files_of_known_programs_as_they_are(tmp_path):
    write(tmp_path, log="step,reward\n5,1.0\n10,3.0\n", sb3=PROGRESS)
    words = [f"mine={tmp_path}/log.csv", f"SB3={tmp_path}/sb3.csv"]
    found = read_others(words, Theirs(("step", "reward"), 1), SCORE, None)
    (mine,), (sb3,) = (found[word] for word in words)
    assert mine.column(SCORE, "--y").tolist() == [1, 3]
    assert sb3.column(FRAMES, "--x").tolist() == [1000, 1500, 2000]
    assert curve_of(sb3, FRAMES, SCORE).y.tolist() == [1.5, 2.5]
    named = Theirs(("time/total_timesteps", "eval/mean_reward"), 1)  # of a known program too, what is named counts
    (sb3,) = read_others(words[1:], named, SCORE, None)[words[1]]
    assert curve_of(sb3, FRAMES, SCORE).y.tolist() == [7]
    with pytest.raises(ConfigError, match=r"--their-columns asks for time/total_timesteps, which .*log.csv has not"):
        read_others(words, named, SCORE, None)


def test_a_name_that_a_run_has_too_is_told_apart_by_its_files(tmp_path):
    run = record(tmp_path, "a")
    write(tmp_path / "theirs", one=PROGRESS, two=PROGRESS)
    for files, label in (("one.csv", "a (one.csv)"), ("*.csv", "a (theirs), 2 seeds")):
        words = [str(run), f"a={tmp_path}/theirs/{files}"]
        groups = plot.read_groups(words, plot.Arguments(their_frames_per_step=1))
        assert name_groups(groups) == ["a", label]


def test_values_at_equal_x_are_interpolated_and_summarised():
    curves = [Curve(np.array([0.0, 10.0]), np.array([0.0, y])) for y in (10.0, 20.0)]
    middle, low, high = summary_at(curves, 5)
    assert (middle, low, high) == (7.5, 5, 10)
    assert summary_at(curves[:1], 5) == (5, 5, 5)
    assert summary_at(curves, 11) is None


def test_a_baseline_stands_beside_runs_in_one_command(tmp_path, capsys):
    runs = [record(tmp_path, f"mine-s{seed}", seed=seed) for seed in (1, 2)]
    folder = write(tmp_path / "sb3", one=PROGRESS, two=PROGRESS.replace("2.5", "4.5"))
    words = [*map(str, runs), f"SB3={folder}", "--their-frames-per-step", "0.2", "--at", "200", "1000", "1e6"]
    assert plot.main([*words, "--out", str(tmp_path / "both"), "--published"]) == 0
    header, first, second, third, mine, theirs, *files = capsys.readouterr().out.splitlines()
    assert header.split() == ["frames", "mine,", "2", "seeds", "SB3,", "2", "seeds"]
    assert first.split() == ["200", "2.0", "1.5"]
    assert second.split() == ["1,000", "-", "-"]
    assert third.split() == ["1,000,000", "-", "-"]
    assert mine == "-: score of mine, 2 seeds goes from 100 to 300 frames"
    assert theirs == "-: score of SB3, 2 seeds goes from 200 to 400 frames"
    assert files == [str(tmp_path / "both.png"), str(tmp_path / "both.svg")]
    groups = plot.read_groups([*map(str, runs), f"SB3={folder}"], plot.Arguments(their_frames_per_step=0.2))
    assert [[run.game for run in group] for group in groups] == [["breakout"] * 2] * 2  # as the runs say
    assert curve_of(groups[1][1], FRAMES, SCORE).y.tolist() == [1.5, 4.5]


def test_files_of_two_kinds_are_no_seeds_of_one_line(tmp_path):
    folder = write(tmp_path / "sb3", monitor=MONITOR, progress=PROGRESS)
    with pytest.raises(ConfigError) as refused:
        read_others([f"SB3={folder}"], Theirs(frames_per_step=4), SCORE, None)
    assert str(refused.value) == (
        f"SB3={folder} is {folder}/monitor.csv and {folder}/progress.csv, tables of different columns, which are no "
        f"seeds of one setting; name the files of one kind, such as SB3={folder}/monitor.csv"
    )
    read_others([f"SB3={folder}/monitor.csv"], Theirs(frames_per_step=4), SCORE, None)


@pytest.mark.parametrize("files", ["br[1]", "br[1]/a.csv", "br[[]1]/*.csv"])
def test_brackets_in_a_path_that_exists_are_no_pattern(tmp_path, files):
    write(tmp_path / "br[1]", a=PROGRESS)
    [run] = read_others([word := f"SB3={tmp_path}/{files}"], Theirs(frames_per_step=4), SCORE, None)[word]
    assert run.path == tmp_path / "br[1]" / "a.csv"


def test_a_run_of_cartpole_can_have_a_name_too(tmp_path):
    run = record(tmp_path, "sarsa", table="episodes,v0/return\n1,10\n2,20\n", kind="sarsa", game=None)
    [[one]] = plot.read_groups([f"mine={run}"], plot.Arguments())
    assert (one.game, one.line, one.columns) == ("cartpole", "mine", ["episodes", "v0/return"])


@pytest.mark.parametrize("files", ["runs/a-s*", "runs/a-s*/metrics.csv", "thinned", "thinned/a-s*.csv"])
def test_own_runs_and_their_csv_files_are_known_too(tmp_path, monkeypatch, files):
    monkeypatch.chdir(tmp_path)
    for folder in ("runs", "thinned"):
        (tmp_path / folder).mkdir()
    for seed in (1, 2):
        run = record(tmp_path / "runs", f"a-s{seed}", seed=seed)
        (tmp_path / "thinned" / f"a-s{seed}.csv").write_text((run / "metrics.csv").read_text())
    (tmp_path / "theirs.csv").write_text(PROGRESS)
    words = [f"mine={files}"]
    groups = plot.read_groups([*words, "SB3=theirs.csv"], plot.Arguments(their_frames_per_step=4))
    game = "breakout" if files.startswith("runs") else None
    assert [{run.game for run in group} for group in groups] == [{game}, {game}]
    groups = plot.read_groups(words, plot.Arguments())
    assert [[curve_of(run, FRAMES, SCORE).y.tolist() for run in group] for group in groups] == [[[1, 2, 4]] * 2]
    assert name_groups(groups) == ["mine, 2 seeds"]
    with pytest.raises(ConfigError, match="--their-rows is for other programs' files, and none is given"):
        plot.main([*words, "--their-rows", "3"])


def test_flags_for_files_that_are_not_given_are_named(tmp_path):
    folder = record(tmp_path, "a")
    with pytest.raises(ConfigError, match="--their-rows is for other programs' files, and none is given"):
        plot.main([str(folder), "--their-rows", "3"])


def test_the_flags_are_read(tmp_path):
    given = read(["x", "--their-columns", "steps", "ep reward", "--their-frames-per-step", "4"], plot.Arguments).given
    assert given == {"their_columns": ("steps", "ep reward"), "their_frames_per_step": 4.0}
