"""Films of a run: what fails costs the film alone, and a thread writes them while the run goes on."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import threading
import time

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from number_run import CONFIG, events, play, rows
from PIL import Image, ImageSequence
from replay_autoreset import Walk

from fastrl import evaluate, train, watch
from fastrl.base import stop
from fastrl.base.errors import RunError
from fastrl.config import DQNConfig
from fastrl.dqn.callbacks import Callback
from fastrl.dqn.run import evaluation, films, saver
from fastrl.envs.custom import CustomEnvs
from fastrl.envs.names import name_of
from fastrl.envs.rules import EvaluationRules
from fastrl.film import video
from fastrl.film.q_bars import Bars
from fastrl.play.games import Games, play_games
from fastrl.runs.folder import load_config

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Drawn(Walk):
    """Draws what the test says: a value, or an exception that is raised."""

    render_mode = "rgb_array"
    drawn = None

    def render(self):
        if isinstance(self.drawn, BaseException):
            raise self.drawn
        return self.drawn() if callable(self.drawn) else self.drawn


def make_drawn():
    return Drawn(0)


def make_workers():
    return AsyncVectorEnv([lambda k=k: Drawn(k) for k in range(2)], autoreset_mode=AutoresetMode.SAME_STEP)


def make_cartpoles():
    return gym.make_vec("CartPole-v1", 2, "vector_entry_point", render_mode="rgb_array")


def settings(make_env, tmp_path, name="run", **changes):
    return train.config_for(make_env).replace(
        compile=False, device="cpu", runs_dir=str(tmp_path), name=name, total_frames=600, learn_start_steps=60,
        n_step=1, hidden=16, batch_size=32, evaluate_episodes=2, final_episodes=2, evaluate_every_frames=200,
        log_every_frames=150, num_envs=2, **changes,
    )  # fmt: skip


def sizes():
    """Draw a picture of another size each time."""
    sizes.calls += 1
    return np.full((20 + sizes.calls % 7, 30, 3), 200, np.uint8)


sizes.calls = 0
SHOWN = {
    "grey": np.full((20, 30), 200, np.uint8),
    "grey with a channel": np.full((20, 30, 1), 200, np.uint8),
    "RGBA": np.full((20, 30, 4), 200, np.uint8),
    "floats": np.full((20, 30, 3), 0.5),
    "lists": np.full((20, 30, 3), 200).tolist(),
    "sizes that vary": sizes,
}
NOT_SHOWN = {
    "None": (None, "render() returned None; return a picture [H, W, 3] uint8"),
    "nothing": (np.zeros((0, 30, 3), np.uint8), "render() returned uint8 [0, 30, 3]; return a picture [H, W, 3] uint8"),
    "text": ("a picture", "render() returned str; return a picture [H, W, 3] uint8"),
    "an error": (ZeroDivisionError("no display"), "render() raised ZeroDivisionError: no display"),
    "an exit": (SystemExit(1), "render() raised SystemExit: 1"),
}


def scores(make_env, **options):
    rules, values = EvaluationRules(epsilon=0.5), np.array([0.0, 1.0, 0.5, 0.5])
    return play_games(
        name_of(make_env), lambda stacks: np.tile(values, (len(stacks), 1)), 7, seed=1, rules=rules, **options
    )


CASES = [(make_drawn, drawn) for drawn in (*SHOWN, *NOT_SHOWN)] + [(make_workers, "RGBA"), (make_workers, "an error")]


@pytest.mark.filterwarnings("ignore")  # Gymnasium's own words on what its workers met
@pytest.mark.parametrize(("make_env", "drawn"), CASES)
def test_whatever_can_be_shown_is_filmed_and_nothing_else_costs_a_score(make_env, drawn, monkeypatch):
    without = scores(make_env)
    what, words = (SHOWN[drawn], "") if drawn in SHOWN else NOT_SHOWN[drawn]
    monkeypatch.setattr(Drawn, "drawn", staticmethod(what) if callable(what) else what)
    games = scores(make_env, film=True, bars=True)
    assert games.scores.tolist() == without.scores.tolist()
    assert games.lengths.tolist() == without.lengths.tolist()
    assert games.film_error == (words and f"{name_of(make_env)} cannot be filmed: {words}")
    assert bool(games.film) == (not words)
    if games.film:
        assert len({picture.shape for picture in games.film}) == 1
        assert games.film[0][10, 15].tolist() == [128 if drawn == "floats" else 200] * 3


def test_a_film_that_fails_in_its_midst_is_kept_up_to_there(monkeypatch):
    pictures = iter([SHOWN["grey"]])
    monkeypatch.setattr(Drawn, "drawn", staticmethod(lambda: next(pictures, None)))
    games = scores(make_drawn, film=True)
    assert len(games.film) == 1
    assert games.film_error.endswith("render() returned None; return a picture [H, W, 3] uint8")


@pytest.mark.parametrize(
    ("drawn", "shown"),
    [
        ((SHOWN["grey"], SHOWN["grey"] // 2), [200, 100]),
        (np.stack([SHOWN["RGBA"], SHOWN["RGBA"] // 2]), [200, 100]),
        (SHOWN["RGBA"], [200, 200]),  # of all environments
    ],
)
def test_a_vector_may_draw_each_environment_or_all_at_once(drawn, shown):
    envs = CustomEnvs(
        name_of(lambda: gym.make_vec("CartPole-v1", 2, "vector_entry_point", render_mode="rgb_array")), 2, seed=1
    )
    envs._envs.unwrapped.render = lambda: drawn
    assert [envs.render(i)[3, 4].tolist() for i in range(2)] == [[value] * 3 for value in shown]
    envs.close()


# --- runs ---------------------------------------------------------------------------------------------


def test_a_run_whose_film_fails_says_so_once_and_equals_one_without_films(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Drawn, "drawn", None)
    run = train.dqn(make_drawn, settings(make_drawn, tmp_path))
    said = [line for line in capsys.readouterr().out.splitlines() if "--no-films" in line]
    assert said == [
        f"{name_of(make_drawn)} cannot be filmed: render() returned None; return a picture [H, W, 3] uint8; the run "
        "continues without the film; --no-films turns films off"
    ]
    assert len([row for row in rows(run.folder) if row["evaluation/return_mean"]]) == 3
    again = train.dqn(make_drawn, run.config.replace(total_frames=800), resume=run.folder, quiet=True)
    assert again.frames >= 800
    assert not (run.folder / "pictures").exists()
    without = train.dqn(make_drawn, settings(make_drawn, tmp_path, "without", films=False), quiet=True)
    assert not (without.folder / "pictures").exists()
    assert load_config(without.folder).films is False
    monkeypatch.setattr(Drawn, "drawn", SHOWN["RGBA"])
    filmed = train.dqn(make_drawn, settings(make_drawn, tmp_path, "filmed"), quiet=True)
    assert len(list((filmed.folder / "pictures").iterdir())) == 3
    assert rows(filmed.folder) == rows(without.folder) == rows(run.folder)[: len(rows(without.folder))]


def test_no_films_is_a_flag_and_a_setting_that_older_runs_lack(tmp_path):
    flags = [
        "--runs-dir",
        str(tmp_path),
        "--name",
        "run",
        "--no-compile",
        "--total-frames",
        "600",
        "--final-episodes",
        "1",
    ]
    assert train.main(["catch", *flags, "--no-films"]) == 0
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record.pop("films") is False
    assert not (tmp_path / "run" / "pictures").exists()
    (tmp_path / "run" / "config.json").write_text(json.dumps(record))
    assert load_config(tmp_path / "run").films is True
    assert DQNConfig().films is True
    flags = ["--learners", "2", "--episodes", "1", "--version", "v0", "--runs-dir", str(tmp_path), "--name", "sarsa"]
    assert train.main(["cartpole", *flags, "--no-films"]) == 0
    assert not (tmp_path / "sarsa" / "pictures").exists()


@pytest.mark.parametrize("module", ["fastrl.sarsa.run.film", "fastrl.film.video.gif_bytes"])
def test_a_cartpole_run_whose_film_fails_says_so_and_ends_well(tmp_path, monkeypatch, capsys, module):
    def fail(*_, **__):
        raise FULL

    monkeypatch.setattr(module, fail)
    flags = ["--learners", "2", "--episodes", "1", "--version", "v0", "--runs-dir", str(tmp_path), "--name", "sarsa"]
    assert train.main(["cartpole", *flags]) == 0
    said = capsys.readouterr().out
    assert "cartpole-v0.gif could not be made (OSError: [Errno 28] No space left on device); the run continues" in said
    assert "--no-films turns films off" in said


def refuse_replace(src, dst):
    raise FULL


@pytest.mark.parametrize(
    ("owner", "name", "fault", "words"),
    [
        (video, "write_atomically", FULL, "OSError: [Errno 28] No space left on device"),
        (Image.Image, "save", ValueError("unknown file extension"), "ValueError: unknown file extension"),
        (video, "gif_bytes", MemoryError(), "MemoryError"),
        (Bars, "beside", OSError("cannot open resource"), "drawing the Q-values raised OSError: cannot open resource"),
    ],
)
def test_a_film_that_cannot_be_written_or_drawn_is_said_once(tmp_path, monkeypatch, capsys, owner, name, fault, words):
    def fail(*_, **__):
        raise fault

    monkeypatch.setattr(owner, name, fail)
    ended = play(tmp_path / "run", config=CONFIG.replace(total_frames=1_500), quiet=False)
    said = [line for line in capsys.readouterr().out.splitlines() if "--no-films" in line]
    assert len(said) == 1
    assert words in said[0]
    if owner is not Bars:
        assert said[0].startswith(f"the film {ended.folder}/pictures/0000000007")
    assert len([row for row in rows(ended.folder) if row["evaluation/return_mean"]]) == 3
    assert not list((tmp_path / "run").glob("pictures/*.gif"))


def test_a_folder_of_films_that_is_a_file_costs_the_films_alone(tmp_path, capsys):
    class Spoil(Callback):
        def on_start(self, run):
            (run.folder / "pictures").write_text("")

    play(tmp_path / "run", config=CONFIG.replace(total_frames=800), hooks=[Spoil()], quiet=False)
    assert "could not be written (FileExistsError" in capsys.readouterr().out


def test_a_film_has_at_most_300_pictures_and_lasts_as_long_as_what_it_shows(tmp_path, monkeypatch):
    asked = []

    def play_long(game, act, episodes, *, rules, film_steps, **_):
        asked.append(film_steps)
        film = [np.full((8, 8, 3), number % 250, np.uint8) for number in range(film_steps + 1)]
        return Games(game, np.zeros(1), np.array([900]), rules, "envpool", film)

    monkeypatch.setattr(evaluation, "play_games", play_long)
    ended = play(tmp_path / "run", config=CONFIG.replace(total_frames=400))
    assert asked == [599]
    (gif,) = (ended.folder / "pictures").iterdir()
    with Image.open(gif) as image:
        milliseconds = [picture.info["duration"] for picture in ImageSequence.Iterator(image)]
    assert len(milliseconds) == films.MOST_PICTURES == 300
    assert sum(milliseconds) == 600 * 1000 / video.PICTURES_PER_SECOND


# --- the thread ---------------------------------------------------------------------------------------


def film_threads():
    return [thread for thread in threading.enumerate() if thread.name == "fastrl-film"]


@pytest.fixture
def late(monkeypatch):
    """Films are written once ``late.may`` is set."""

    class Late:
        may, begun = threading.Event(), threading.Event()

    write = video.write_gif

    def wait(*args, **options):
        Late.begun.set()
        assert Late.may.wait(60)
        write(*args, **options)

    Late.may.clear()
    Late.begun.clear()
    monkeypatch.setattr(video, "write_gif", wait)
    yield Late
    Late.may.set()


class Watcher(Callback):
    """Calls a function in each step."""

    def __init__(self, then):
        self.then = then
        self.filmed, self.waits = 0, None

    def on_log(self, run, metrics):
        self.waits = run.evaluation.films.pending

    def on_step(self, run, actions):
        if self.waits is not None:  # a line of metrics takes the film along
            assert run.evaluation.films.pending != self.waits
        self.then(run)

    def on_evaluation(self, run, games):
        self.filmed += len(games.film) > 0


def test_the_run_goes_on_while_a_film_is_written_and_nothing_else_changes(tmp_path, late):
    whole, start = tmp_path / "whole", threading.Thread.start

    def at_once(thread):
        if thread.name == "fastrl-film":
            raise RuntimeError("can't start new thread")
        start(thread)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", at_once)
        late.may.set()
        one = play(whole)
        late.may.clear()
    meanwhile = []

    def then(run):
        if late.begun.is_set() and not late.may.is_set():
            meanwhile.append(run.frames)
            assert not list(run.folder.path.glob("pictures/*.gif"))
            if len(meanwhile) == 3:
                late.may.set()

    late.begun.clear()
    watcher = Watcher(then)
    other = play(tmp_path / "other", hooks=[watcher])
    assert len(meanwhile) == 3
    assert watcher.filmed == 3
    assert rows(one.folder) == rows(other.folder)
    assert events(one.folder) == events(other.folder)
    assert len(events(one.folder)["agent"]) == 3
    names = [sorted(path.name for path in run.folder.path.glob("pictures/*")) for run in (one, other)]
    assert names[0] == names[1]
    for name in names[0]:
        assert (whole / "pictures" / name).read_bytes() == (tmp_path / "other" / "pictures" / name).read_bytes()
    for thread in film_threads():
        thread.join(60)
    assert film_threads() == []


def test_a_second_film_waits_for_the_first(tmp_path, monkeypatch):
    running, most = [], []
    write = video.write_gif

    def noted(path, *args, **options):
        running.append(path)
        most.append(len(running))
        time.sleep(0.05)
        write(path, *args, **options)
        running.remove(path)

    monkeypatch.setattr(video, "write_gif", noted)
    config = CONFIG.replace(evaluate_every_frames=50, log_every_frames=5_000, total_frames=600)
    ended = play(tmp_path / "run", config=config)
    assert set(most) == {1}
    assert len(most) > 8
    frames = [int(path.stem) for path in sorted((ended.folder / "pictures").iterdir())]
    assert [frame for frame, _ in events(ended.folder)["agent"]] == frames
    assert len(frames) == len(most)


def test_a_stop_waits_for_the_film(tmp_path, late):
    def then(run):
        if late.begun.is_set() and not run.stop:
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Timer(0.3, late.may.set).start()

    stopped = play(tmp_path / "run", hooks=[Watcher(then)])
    assert stopped.stop.signal == signal.SIGTERM
    (gif,) = (tmp_path / "run" / "pictures").iterdir()
    assert gif.suffix == ".gif"
    assert [frame for frame, _ in events(stopped.folder)["agent"]] == [int(gif.stem)]


def test_a_second_signal_does_not_wait_for_the_film(tmp_path, late, monkeypatch):
    monkeypatch.setattr(stop, "TWICE_SECONDS", -1.0)
    monkeypatch.setattr(saver, "LEAVE_SECONDS", 0.0)

    def then(run):
        if late.begun.is_set():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        play(tmp_path / "run", hooks=[Watcher(then)])
    assert film_threads()  # which still waits
    assert not list((tmp_path / "run").glob("pictures/*"))


def test_a_run_that_an_error_ends_leaves_the_film_whole_and_its_resume_shows_it(tmp_path, late):
    def then(run):
        if late.begun.is_set():
            threading.Timer(0.3, late.may.set).start()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        play(tmp_path / "run", hooks=[Watcher(then)])
    (gif,) = (tmp_path / "run" / "pictures").iterdir()
    resumed = play(tmp_path / "run", resume=True)
    assert events(resumed.folder)["agent"][0][0] == int(gif.stem)
    assert len(events(resumed.folder)["agent"]) == 3


def test_a_checkpoint_taken_while_a_film_is_written_resumes_with_that_film(tmp_path, late):
    """It equals the run that was not interrupted, in TensorBoard's images too; and if the film is lost, in all else."""
    picture = tmp_path / "cut"

    class Copy(Callback):
        def on_step(self, run, actions):
            if late.begun.is_set() and not picture.exists():
                run.settle()  # of the checkpoint right after the evaluation

        def on_checkpoint(self, run, folder):
            if not picture.exists():
                late.may.set()
                run.evaluation.films.wait()
                shutil.copytree(run.folder, picture)

    config = CONFIG.replace(checkpoint_every_frames=700)
    whole = play(tmp_path / "whole", config=config, hooks=[Copy()])
    shutil.copytree(picture, tmp_path / "lost")
    shutil.rmtree(tmp_path / "lost" / "pictures")
    resumed = play(picture, config=config, resume=True, hooks=[Callback()])
    assert events(resumed.folder) == events(whole.folder)
    assert rows(resumed.folder) == rows(whole.folder)
    lost = play(tmp_path / "lost", config=config, resume=True, hooks=[Callback()])
    assert [frame for frame, _ in events(lost.folder)["agent"]] == [f for f, _ in events(whole.folder)["agent"]][1:]
    assert rows(lost.folder) == rows(whole.folder)


def test_what_a_killed_process_left_of_a_film_is_removed(tmp_path):
    ended = play(tmp_path / "run", config=CONFIG.replace(total_frames=400))
    left = ended.folder / "pictures" / ".000000000700.gif.77.partial"
    left.write_bytes(b"GIF89a")
    play(tmp_path / "run", config=CONFIG.replace(total_frames=400), resume=True)
    assert not left.exists()


# --- films that are asked for -------------------------------------------------------------------------


@pytest.fixture
def drawn_run(tmp_path, monkeypatch):
    """The folder of a run whose environment draws nothing that can be shown from here on."""
    monkeypatch.setattr(Drawn, "drawn", SHOWN["grey"])
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    run = train.dqn(make_drawn, settings(make_drawn, tmp_path, films=False), quiet=True)
    monkeypatch.setattr(Drawn, "drawn", None)
    return run.folder.path


REASON = r"make_drawn cannot be filmed: render\(\) returned None; return a picture \[H, W, 3\] uint8"


def test_evaluate_says_why_there_is_no_film_and_fails_only_if_one_was_asked_for(drawn_run, tmp_path, capsys):
    assert evaluate.main([str(drawn_run), "--episodes", "2"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("render() returned None; return a picture [H, W, 3] uint8")
    out, scores = tmp_path / "a.gif", tmp_path / "scores.json"
    with pytest.raises(RunError, match=f"--out is {out}, but .*{REASON}"):
        evaluate.main([str(drawn_run), "--episodes", "2", "--out", str(out), "--json", str(scores)])
    assert "over 2 games" in capsys.readouterr().out
    assert len(json.loads(scores.read_text())["scores"]) == 2
    assert not out.exists()


def test_watch_says_why_it_shows_nothing(drawn_run, capsys, monkeypatch):
    with pytest.raises(RunError, match=REASON):
        watch.main([str(drawn_run)])
    assert "points in" in capsys.readouterr().out
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    with pytest.raises(RunError, match=REASON.replace("filmed", "shown")):
        watch.main([str(drawn_run), "--window"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_evaluation_says_why_it_gives_no_score(drawn_run, tmp_path, capsys, monkeypatch, number):
    def stopped(*args, **options):
        os.kill(os.getpid(), number)
        time.sleep(10)

    monkeypatch.setattr(evaluate.games, "play_games", stopped)
    scores = tmp_path / "scores.json"
    before = signal.signal(number, signal.SIG_DFL)  # a job in the background ignores some
    try:
        assert evaluate.main([str(drawn_run), "--json", str(scores)]) == 128 + number
    finally:
        signal.signal(number, before)
    assert "the short ones end first" in capsys.readouterr().out
    assert not scores.exists()


def test_watch_and_evaluate_fail_where_a_film_is_asked_for_and_the_environment_draws_none(
    drawn_run, monkeypatch, tmp_path
):
    monkeypatch.setattr(Drawn, "render_mode", None)
    for command in (watch.main, evaluate.main):
        assert command([str(drawn_run), "--episodes", "1"]) == 0
        with pytest.raises(RunError, match=r"--out is .*a.gif, but nothing to see: .*render_mode='rgb_array'"):
            command([str(drawn_run), "--episodes", "1", "--out", str(tmp_path / "a.gif")])


def test_watch_announces_the_environment_that_it_plays(drawn_run, capsys, monkeypatch):
    monkeypatch.setattr(Drawn, "drawn", SHOWN["grey"])
    assert watch.main([str(drawn_run), "--make-env", f"{__name__}:make_workers"]) == 0
    (newest,) = (drawn_run / "checkpoints").glob("[0-9]*")
    assert capsys.readouterr().out.splitlines()[0] == f"{__name__}:make_workers, {newest}"


@pytest.mark.parametrize("command", [watch.main, evaluate.main])
def test_a_film_that_finds_no_room_is_one_line(drawn_run, command, monkeypatch):
    monkeypatch.setattr(Drawn, "drawn", SHOWN["grey"])
    monkeypatch.setattr(os, "replace", refuse_replace)
    with pytest.raises(RunError, match=r"the film .*gif could not be written \(OSError: \[Errno 28\] No space left"):
        command([str(drawn_run), "--episodes", "1"])
