"""A study of several arms: what it trains, what it refuses, what stops it, and what it writes."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from recorded import TABLE, record
from untrained import write_settings

pytest.importorskip("envpool")
pytest.importorskip("matplotlib")
pytest.importorskip("scipy")

import study

from fastrl.base.errors import ConfigError
from fastrl.base.machine import cpu_count
from fastrl.dqn.agent import load_agent
from fastrl.envs.step import frame_bytes
from fastrl.runs.folder import RunFolder, load_dqn_config

ROOT = Path(__file__).parents[2]
QUICK = """game = "catch"
folder = "runs/quick"
[flags]
total_frames = 3_000
compile = false
learn_start_steps = 400
log_every_frames = 500
evaluate_every_frames = 1_000
evaluate_episodes = 3
final_episodes = 4
checkpoint_every_frames = 500
"""
ARM = '[[arm]]\nname = "one"\n'


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Write a table: what is common, and lines of arms; the current folder is a new one."""
    monkeypatch.chdir(tmp_path)

    def write(arms=ARM, common=QUICK):
        path = Path("arms.toml")
        path.write_text(common + arms)
        return path

    return write


@pytest.fixture
def two_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})


def command(*words, **options):
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, str(ROOT / "bench" / "study.py"), *map(str, words)], text=True,
        env=os.environ | {"PYTHONPATH": paths}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options,
    )  # fmt: skip


def rows(path="runs/quick/study.csv"):
    with Path(path).open() as file:
        return list(csv.DictReader(file))


def begin(arm, *, frames=1_000, ended_at=-1):
    """Leave of an arm what a run that was stopped leaves, or one that has ended."""
    write_settings(arm.folder.path, arm.config)
    checkpoint = arm.folder.checkpoints / f"{frames:012d}"
    (checkpoint / "replay").mkdir(parents=True)
    (checkpoint / "replay" / "frames").write_text("many")
    state = {"format": 3, "frames": frames, "callbacks": {"evaluation": {"ended_at": ended_at}}}
    (checkpoint / "state.json").write_text(json.dumps(state))
    return checkpoint


# --- whole studies ------------------------------------------------------------------------------------


def test_a_study_trains_its_arms_goes_on_after_one_that_fails_and_writes_a_table_and_pictures(table):
    path = table(
        '[[arm]]\nname = "broken"\nflags = { learning_rate = 1e30 }\n'
        '[[arm]]\nname = "one"\nseeds = [1, 2]\n[[arm]]\nname = "short"\nflags = { total_samples = 4_000 }\n'
    )
    process = command(path)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 1, said
    assert "broken-s1 failed with status 1: " in said
    assert "not finite" in said
    assert "1 of 4 runs failed" in said
    found = rows()
    assert {(row["arm"], row["seed"]) for row in found} == {("one", "1"), ("one", "2"), ("short", "1")}
    for name, frames, samples in (("one-s1", 3_008, 10_688), ("short-s1", 1_344, 4_032)):
        folder, (arm, seed) = RunFolder(f"runs/quick/{name}"), name.split("-s")
        assert not list(folder.path.rglob("replay"))
        assert int(folder.find().name) == frames
        load_agent(folder.path)
        last = [row for row in found if (row["arm"], row["seed"]) == (arm, seed)]
        assert [row["kind"] for row in last] == sorted((row["kind"] for row in last), reverse=True)
        for kind in ("training", "evaluation"):
            row = [row for row in last if row["kind"] == kind][-1]
            assert (int(row["frames"]), int(row["samples"])) == (frames, samples)
            assert -1 <= float(row["score"]) <= 1
            assert float(row["minutes"]) > 0
    for y in ("score", "evaluation"):
        for x in ("frames", "samples", "minutes"):
            svg = Path(f"runs/quick/{y}-{x}.svg").read_text()
            assert "one, 2 seeds" in svg
            assert "short" in svg
            assert Path(f"runs/quick/{y}-{x}.png").stat().st_size > 1_000
    card = json.loads(Path("runs/quick/machine.json").read_text())
    assert {"processor", "torch", "commit"} < card.keys()


def test_a_signal_stops_a_study_its_arms_save_and_the_same_command_resumes_them(table):
    path = table(common=QUICK.replace("3_000", "12_000"))
    process = command(path)
    folder = RunFolder("runs/quick/one-s1")
    deadline = time.monotonic() + 120
    while not folder.numbered() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "stopping: one-s1 save their checkpoints" in said
    assert f"go on with: python bench/study.py {path}" in said
    stopped_at = int(folder.find().name)
    assert 0 < stopped_at < 12_000
    assert (folder.find() / "replay").exists()  # saved by the signal: nothing is lost
    assert rows()
    folder.lock()  # its process is gone
    folder.close()
    process = command(path)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    assert "one-s1: resumed on core" in said
    assert f"resuming after {stopped_at:,} frames" in Path("runs/quick/logs/one-s1.log").read_text()
    assert int(folder.find().name) >= 12_000
    assert not list(folder.path.rglob("replay"))


def test_an_arm_has_one_core_and_one_thread_and_a_session_of_its_own(table, monkeypatch):
    wanted = study.read_table(table(), jobs=1)
    show = (
        "import os; print(sorted(os.sched_getaffinity(0)), os.environ['OMP_NUM_THREADS'], os.getsid(0) == os.getpid())"
    )
    monkeypatch.setattr(study.Arm, "command", lambda self: [sys.executable, "-c", show])
    allowed = os.sched_getaffinity(0)
    core = max(allowed)
    job = study.start(wanted, wanted.arms[0], core)
    assert job.process.wait(30) == 0
    assert job.log.read_text() == f"[{core}] 1 True\n"
    assert os.sched_getaffinity(0) == allowed
    config = wanted.arms[0].config
    assert (config.device, config.torch_threads, config.env_threads) == ("cpu", 1, 1)


@pytest.mark.skipif(cpu_count() < 2, reason="needs two cores")
def test_arms_run_side_by_side_and_those_first_that_have_begun(table, monkeypatch):
    wanted = study.read_table(table('[[arm]]\nname = "one"\nseeds = [1, 2, 3]\n'), jobs=2)
    begin(wanted.arms[2])
    started, most = [], []
    monkeypatch.setattr(study.Arm, "command", lambda self: [sys.executable, "-c", "import time; time.sleep(1)"])
    whole = study.start

    def watched(wanted, arm, core):
        started.append(arm.key)
        most.append(core)
        return whole(wanted, arm, core)

    monkeypatch.setattr(study, "start", watched)
    begun = time.monotonic()
    assert study.run_arms(wanted) == 1  # none has ended
    assert time.monotonic() - begun > 1.9  # three, two at once
    assert started == ["one-s3", "one-s1", "one-s2"]
    assert set(most) == set(sorted(os.sched_getaffinity(0))[:2])


def test_what_was_killed_before_its_first_checkpoint_begins_anew(table, monkeypatch):
    wanted = study.read_table(table(), jobs=1)
    (arm,) = wanted.arms
    write_settings(arm.folder.path, arm.config)
    there = "import sys, pathlib; print(pathlib.Path('runs/quick/one-s1').exists())"
    assert arm.command()[3] == "catch"
    monkeypatch.setattr(study.Arm, "command", lambda self: [sys.executable, "-c", there])
    job = study.start(wanted, arm, min(os.sched_getaffinity(0)))
    job.process.wait(30)
    assert job.log.read_text() == "False\n"


def test_an_arm_that_has_ended_is_not_trained_again_and_a_killed_study_drops_its_replay_now(table, capsys):
    path = table()
    wanted = study.read_table(path)
    checkpoint = begin(wanted.arms[0], frames=3_000, ended_at=3_000)
    (wanted.arms[0].folder / "metrics.csv").write_text(TABLE)
    assert study.main([str(path)]) == 0
    assert "1 of 1 runs have ended" in capsys.readouterr().out
    assert not (checkpoint / "replay").exists()
    assert (checkpoint / "state.json").exists()
    assert len(rows()) == 5


# --- refused before anything is written ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "field", "then", "now"),
    [
        ("{ gamma = 0.5 }", "gamma", "0.99", "0.5"),
        ("{ total_samples = 7 }", "total_samples", "None", "7"),
        ("{ capacity = 4_000 }", "capacity", "5000", "4000"),
        ("{ double = false }", "double", "True", "False"),
    ],
)
def test_another_table_for_an_arm_that_has_begun_is_refused(table, flags, field, then, now):
    first = study.read_table(table())
    first.arms[0].fix("capacity", 5_000)
    begin(first.arms[0])
    before = sorted(Path().rglob("*"))
    path = table(f"{ARM}flags = {flags}\n")
    message = (
        f"arms.toml: arm one-s1 has begun with {field} {then}, and the table gives it {now} now; put that back, give "
        "the arm another name, or delete runs/quick/one-s1 to begin it anew"
    )
    with pytest.raises(ConfigError) as error:
        study.main([str(path)])
    assert str(error.value) == message
    assert sorted(Path().rglob("*")) == before
    path = table(f'[[arm]]\nname = "two"\nflags = {flags}\n')  # the remedy
    study.check_begun(study.read_table(path))


def test_what_was_fixed_when_an_arm_began_stays_whatever_the_machine_has_now(table):
    first = study.read_table(table())
    for name, value in (("capacity", 4_321), ("frame_store", "lz4"), ("precision", "float32")):
        first.arms[0].fix(name, value)
    begin(first.arms[0])
    again = study.read_table(table())
    study.check_begun(again)
    study.check_room(again)
    config = again.arms[0].config
    assert (config.capacity, config.frame_store, config.precision) == (4_321, "lz4", "float32")
    assert config == load_dqn_config(again.arms[0].folder)


def test_a_new_arm_is_fixed_by_what_the_machine_has(table):
    wanted = study.read_table(table())
    study.check_room(wanted)
    config = wanted.arms[0].config
    assert (config.capacity, config.frame_store) == (3_750, "ram")
    assert config.precision in ("float32", "bfloat16")
    words = wanted.arms[0].command()
    assert words[1:4] == ["-m", "fastrl.train", "catch"]
    assert {"--capacity=3750", "--frame-store=ram", "--no-films", "--no-compile", "--seed=1"} < set(words)


def test_arms_that_are_still_trained_by_another_process_are_named(table):
    wanted = study.read_table(table())
    begin(wanted.arms[0])
    with_lock = RunFolder(wanted.arms[0].folder.path)
    with_lock.lock()
    try:
        with pytest.raises(
            ConfigError, match=f"arm one-s1 is still being trained: .* process {os.getpid()} on .*; wait"
        ):
            study.check_begun(wanted)
    finally:
        with_lock.close()
    study.check_begun(wanted)


def test_a_second_study_in_one_folder_is_refused(table):
    path = table()
    Path("runs/quick").mkdir(parents=True)
    other = RunFolder("runs/quick")
    other.lock()
    try:
        with pytest.raises(ConfigError, match=r"runs/quick belongs to process \d+ .*; wait for that study, or stop it"):
            study.main([str(path)])
    finally:
        other.close()


def test_another_kind_of_processor_is_refused(table):
    wanted = study.read_table(table())
    begin(wanted.arms[0])
    Path("runs/quick/machine.json").write_text(json.dumps({"processor": "abacus"}))
    with pytest.raises(
        ConfigError, match=r"runs/quick began on abacus, and this is .*: go on there, or give the table"
    ):
        study.check_begun(wanted)


@pytest.mark.usefixtures("two_cores")
def test_memory_for_the_arms_that_run_at_once_is_asked_first(table, monkeypatch):
    arms = '[[arm]]\nname = "one"\nseeds = [1, 2]\nflags = { total_frames = 100_000_000, capacity = 1_000_000 }\n'
    row_bytes = frame_bytes(study._closed_envs(study.read_table(table()).arms[0].config))
    monkeypatch.setattr(study, "available_bytes", lambda: int(1.5e6 * (row_bytes + 32)))
    monkeypatch.setattr(study, "compressed_bytes", lambda config: 10_000)
    study.check_room(study.read_table(table(arms), jobs=1))
    with pytest.raises(ConfigError, match=r"arms.toml: arm one-s1, 2 at once: --capacity is 1,000,000, which takes"):
        study.check_room(study.read_table(table(arms), jobs=2))
    wanted = study.read_table(table(arms.replace(", capacity = 1_000_000", "")), jobs=2)
    with pytest.raises(ConfigError, match=r"one-s1, 2 at once: its share .* fills 1,000,000; give fewer jobs"):
        study.check_room(wanted)


@pytest.mark.usefixtures("two_cores")
def test_disk_for_the_arms_that_run_at_once_is_asked_first(table, monkeypatch):
    arms = '[[arm]]\nname = "one"\nseeds = [1, 2, 3]\n'
    sums = {}
    for jobs in (1, 2):
        monkeypatch.setattr(study, "free_disk_bytes", lambda path: 100)
        with pytest.raises(
            ConfigError, match=rf"{jobs} at once need up to .* and 100 bytes are free at runs/quick"
        ) as error:
            study.check_room(study.read_table(table(arms), jobs=jobs))
        sums[jobs] = float(str(error.value).partition("up to ")[2].split()[0])
    assert sums[2] == pytest.approx(2 * sums[1], rel=0.2)
    without = QUICK + "checkpoint_replay = false\n"
    study.check_room(study.read_table(table(arms, without), jobs=2))


def test_an_arm_whose_trunk_does_not_fit_the_game_is_refused_before_any_runs(table):
    wanted = study.read_table(table(ARM + '[[arm]]\nname = "broken"\nflags = { trunk = "nature" }\n'))
    with pytest.raises(ConfigError, match=r"arms.toml: arm broken-s1: --trunk is 'nature', whose .* give --trunk"):
        study.check_room(wanted)
    assert not any(arm.folder.path.exists() for arm in wanted.arms)


def test_the_networks_of_a_checkpoint_count_in_the_disk_for_arms(table, monkeypatch):
    arms = '[[arm]]\nname = "wide"\nseeds = [1]\nflags = { hidden = 4_096 }\n'
    # Two streams of 4,096 units on 50 inputs, four times, and Adam's two moments.
    most = 6 * 4 * (2 * 51 * 4_096)
    monkeypatch.setattr(study, "free_disk_bytes", lambda path: most)
    study.check_room(study.read_table(table()))
    with pytest.raises(ConfigError, match=r"1 at once need up to .* of disk for checkpoints with the replay"):
        study.check_room(study.read_table(table(arms)))


@pytest.mark.usefixtures("two_cores")
def test_frames_in_files_of_the_arms_that_run_at_once_take_their_disk_too(table, monkeypatch):
    arms, common = '[[arm]]\nname = "one"\nseeds = [1, 2]\n', QUICK + 'frame_store = "mmap"\n'
    one = 3_750 * frame_bytes(study._closed_envs(study.read_table(table(arms)).arms[0].config))
    monkeypatch.setattr(study, "free_disk_bytes", lambda path: free)
    free, without = 4 * one, common + "checkpoint_replay = false\n"
    wanted = study.read_table(table(arms, without), jobs=2)
    study.check_room(wanted)
    assert {arm.config.frame_store for arm in wanted.arms} == {"mmap"}
    with pytest.raises(ConfigError, match="for checkpoints with the replay and frames in files, and"):
        study.check_room(study.read_table(table(arms, common), jobs=2))
    free = 2 * one
    with pytest.raises(ConfigError, match=r"2 at once: its share of the free disk holds .* fills 3,750; give fewer"):
        study.check_room(study.read_table(table(arms, without), jobs=2))
    study.check_room(study.read_table(table(arms, without), jobs=1))  # the remedy


@pytest.mark.parametrize(
    ("arms", "common", "message"),
    [
        ("", QUICK, "arms.toml: arm is missing; give a game, and an \\[\\[arm\\]\\]"),
        (ARM, "", "arms.toml: game is missing"),
        (ARM, "gmae = 1\n", "arms.toml: there is no key gmae; did you mean game?"),
        (ARM, 'game = "catch"\njobs = 0\n', "arms.toml: jobs is 0; give between 1 and"),
        (ARM, 'game = "catch"\njobs = true\n', "arms.toml: jobs is True; give a value of type int"),
        (ARM, "game = catch\n", "arms.toml is no TOML"),
        (ARM, 'game = "nothing_such"\n', "arms.toml, arm one: "),
        ("[[arm]]\n", QUICK, "arms.toml, arm without a name: name is ''"),
        ('[[arm]]\nname = "a/b"\n', QUICK, "arms.toml, arm a/b: name is 'a/b'; give the name of one folder"),
        (ARM + ARM, QUICK, "arms.toml, arm one: two arms have this name"),
        (ARM + '[[arm]]\nname = "two"\n', QUICK, "arms one and two have the same settings"),
        (f"{ARM}seeds = []\n", QUICK, "arms.toml, arm one: seeds is \\[\\]; give one whole number or more"),
        (f"{ARM}seeds = [1, 1]\n", QUICK, "arms.toml, arm one: seeds is \\[1, 1\\]; give"),
        (f'{ARM}seeds = ["x"]\n', QUICK, "arms.toml, arm one: --seed is 'x'; give a whole number"),
        (f"{ARM}flags = {{ gama = 1 }}\n", QUICK, "arms.toml, arm one: gama is no setting .* did you mean gamma?"),
        (f"{ARM}flags = {{ gamma = 2 }}\n", QUICK, "arms.toml, arm one: --gamma is 2; give between 0 and 1"),
        (
            f"{ARM}flags = {{ seed = 2 }}\n",
            QUICK,
            "arms.toml, arm one: flags has seed, which game, seeds, name",
        ),
        (f"{ARM}flags = {{ torch_threads = 2 }}\n", QUICK, "arms.toml, arm one: flags has torch_threads, but an arm"),
        (f"{ARM}flags = {{ collectors = 2 }}\n", QUICK, "arms.toml, arm one: flags has collectors, but an arm"),
        (
            f'{ARM}flags = {{ n_step_schedule = ["0:3"] }}\n',
            QUICK,
            r"one: n_step_schedule is \['0:3'\]; give numbers, a schedule as \[\[0, 3\], \[600_000, 1\]\]",
        ),
        (f"{ARM}gamma = 0.5\n", QUICK, "arms.toml, arm one: there is no key gamma; .* settings stand under flags"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_by_what_is_wrong_in_it(table, arms, common, message):
    with pytest.raises(ConfigError, match=message):
        study.main([str(table(arms, common))])
    assert not Path("runs").exists()


def test_a_table_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing\.toml cannot be read \(No such file"):
        study.read_table(tmp_path / "nothing.toml")


def test_the_table_of_the_examples_is_one():
    wanted = study.read_table(ROOT / "examples" / "arms.toml")
    assert [arm.key for arm in wanted.arms] == ["preset-s1", "preset-s2", "uniform-s1", "uniform-s2", "2015-s1"]
    assert wanted.folder == Path("runs/arms")


# --- what was measured --------------------------------------------------------------------------------


def test_the_rows_of_an_arm_are_its_scores_and_evaluations_with_frames_samples_and_minutes(table):
    wanted = study.read_table(table())
    wanted.folder.mkdir(parents=True)
    record(wanted.folder, "one-s1", TABLE, batch_size=64)
    found = list(study.measurements(wanted.arms))
    kept = [tuple(row[name] for name in ("kind", "frames", "samples", "minutes", "score")) for row in found]
    assert kept == [
        ("training", 100, 0, 1.0, 1.0),
        ("training", 200, 0, 2.0, 2.0),
        ("training", 300, 320, 4.0, 4.0),
        ("evaluation", 250, 160, 3.0, 7.0),  # half-way between the rows around it
        ("evaluation", 400, 576, 6.0, 9.0),
    ]
    assert {(row["arm"], row["seed"]) for row in found} == {("one", 1)}


def test_a_report_needs_no_training_and_leaves_out_what_has_not_begun(table, capsys):
    path = table('[[arm]]\nname = "one"\n[[arm]]\nname = "two"\nflags = { gamma = 0.5 }\n')
    assert study.main([str(path), "--report"]) == 0
    assert capsys.readouterr().out == "nothing is measured yet\n"
    Path("runs/quick").mkdir(parents=True)
    record(Path("runs/quick"), "two-s1", TABLE, batch_size=64)
    assert study.main([str(path), "--report"]) == 0
    assert {row["arm"] for row in rows()} == {"two"}
    assert Path("runs/quick/evaluation-samples.png").exists()


def test_speed_is_measured_in_turns_and_gives_the_minutes_from_then_on(table, capsys):
    path = table('[[arm]]\nname = "one"\nseeds = [1, 2]\n[[arm]]\nname = "two"\nflags = { gamma = 0.5 }\n')
    assert study.main([str(path), "--speed", "--rounds", "2", "--seconds", "0.05"]) == 0
    said = capsys.readouterr().out
    assert said.index("preparing one") < said.index("preparing two") < said.index("round 2 of 2")
    assert "on the machine took" in said
    found = json.loads(Path("runs/quick/speed.json").read_text())
    assert list(found["arms"]) == ["one", "two"]
    assert not list(Path("runs/quick").glob("one*"))  # nothing was trained
    found["arms"]["two"]["frames_per_second"] = 2.0
    Path("runs/quick/speed.json").write_text(json.dumps(found))
    record(Path("runs/quick"), "two-s1", TABLE, batch_size=64)
    assert study.main([str(path), "--report"]) == 0
    assert [float(row["minutes"]) for row in rows()] == [round(n / 120, 3) for n in (100, 200, 300, 250, 400)]
    table('[[arm]]\nname = "two"\nflags = { gamma = 0.5 }\n[[arm]]\nname = "new"\n')
    assert study.main([str(path), "--report"]) == 0
    assert "speed.json lacks new, so minutes are those of the runs; measure again" in capsys.readouterr().out
    assert [float(row["minutes"]) for row in rows()] == [1.0, 2.0, 4.0, 3.0, 6.0]


def test_an_arm_that_cannot_be_timed_is_said_with_its_reason(table, capsys):
    path = table('[[arm]]\nname = "one"\n[[arm]]\nname = "broken"\nflags = { trunk = "nature" }\n')
    assert study.main([str(path), "--speed", "--rounds", "1", "--seconds", "0.05"]) == 1
    assert "broken could not be timed: ConfigError: --trunk is 'nature'" in capsys.readouterr().out
    assert list(json.loads(Path("runs/quick/speed.json").read_text())["arms"]) == ["one"]
    with pytest.raises(ConfigError, match="--speed is for at least one round"):
        study.main([str(path), "--speed", "--rounds", "0"])


def test_seeds_without_a_common_range_are_said_not_to_be_drawn_and_the_table_has_them(table, capsys):
    path = table('[[arm]]\nname = "one"\nseeds = [1, 2]\n')
    Path("runs/quick").mkdir(parents=True)
    record(Path("runs/quick"), "one-s1", TABLE, batch_size=64)
    late = "\n".join([TABLE.splitlines()[0], "1000,9,1.0,9.0,", "1100,9,1.0,9.5,7.0", ""])
    record(Path("runs/quick"), "one-s2", late, batch_size=64)
    assert study.main([str(path), "--report"]) == 0
    assert "score over frames is not drawn: runs of one line share no range" in capsys.readouterr().out
    assert {row["seed"] for row in rows()} == {"1", "2"}


def test_values_of_every_type_become_flags():
    assert study.as_flag("double", True) == ["--double"]
    assert study.as_flag("total_frames", 3) == ["--total-frames=3"]
    assert study.as_flag("films", False) == ["--no-films"]
    assert study.as_flag("epsilon_ladder", (0.4, 0.01)) == ["--epsilon-ladder", "0.4", "0.01"]
    assert study.as_flag("n_step_schedule", ((0, 10), (9, 1))) == ["--n-step-schedule", "0:10", "9:1"]
    assert study.as_flag("n_step_schedule", ()) == ["--n-step-schedule"]


@pytest.mark.parametrize(
    "flags",
    [
        "n_step_schedule = [[0, 10], [2_000, 3]], gamma_schedule = [[0, 0.97], [500, 0.99]], learning_rate = 2e-3",
        "epsilon_ladder = [0.4, 0.01], optimizer_eps = 2e-5, double = false",
        'agent = "qr-dqn", quantiles = 8, learning_rate_schedule = [[0, 1e-3]]',
        'agent = "dqn2015", capacity = 4_000',
    ],
)
def test_the_command_of_an_arm_gives_the_settings_of_its_table(table, monkeypatch, flags):
    from fastrl import train
    from fastrl.dqn import run

    wanted = study.read_table(table(f"{ARM}flags = {{ {flags} }}\n"))
    study.check_room(wanted)
    reached = []

    def begin(config, **_):
        reached.append(config)
        raise ConfigError("begun")

    monkeypatch.setattr(run, "train", begin)
    with pytest.raises(ConfigError, match="begun"):
        train.main(wanted.arms[0].command()[3:])
    assert reached == [wanted.arms[0].config]
