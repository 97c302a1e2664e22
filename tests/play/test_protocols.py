"""Protocols: what each says, who has the last word, and that every command means the same by it."""

import itertools
import json

import numpy as np
import pytest

pytest.importorskip("envpool")
pytest.importorskip("ale_py")
pytest.importorskip("cv2")

from untrained import make_run, write_settings

from fastrl import evaluate, train, watch
from fastrl.base.errors import ConfigError
from fastrl.config import DQNConfig
from fastrl.dqn.collector import build_collector
from fastrl.dqn.run import experiment
from fastrl.envs.atari import AtariEnvs
from fastrl.envs.names import action_names
from fastrl.envs.rules import PROTOCOLS, EvaluationRules
from fastrl.play import games
from fastrl.play.games import Games, play_games
from fastrl.runs import folder

BACKENDS = ["envpool", "gymnasium"]
MACHADO = {"repeat_action_probability": 0.25, "episodic_life": False, "fire_reset": False, "full_action_set": True,
           "noop_max": 1}  # fmt: skip


def noop(stacks):
    return np.zeros(len(stacks), int)


def switches(rules):
    return {name: getattr(rules, name) for name in MACHADO}


@pytest.fixture
def configured(monkeypatch):
    """Return the settings with which a command line would train."""

    def configure(*arguments):
        asked = []

        def start(config, **kwargs):
            asked.append(config)
            raise KeyboardInterrupt

        monkeypatch.setattr("fastrl.dqn.run.train", start)
        with pytest.raises(KeyboardInterrupt):
            train.main([*arguments])
        return asked[0]

    return configure


@pytest.fixture
def played(monkeypatch):
    """The rules by which games were played, none of them really."""
    played_by = []

    def play(game, act, episodes, *, rules, **kwargs):
        played_by.append(rules)
        return Games(game, np.ones(1), np.ones(1, int), rules, "envpool", [np.zeros((8, 8, 3), np.uint8)])

    monkeypatch.setattr(games, "play_games", play)
    return played_by


def test_what_a_protocol_says_holds_in_settings_of_runs_and_of_evaluations():
    for rules in (
        DQNConfig(protocol="machado"),
        DQNConfig().replace(protocol="machado"),
        EvaluationRules(protocol="machado"),
    ):
        assert switches(rules) == MACHADO
        assert rules.protocol_name == "machado"
    assert switches(DQNConfig()) == switches(DQNConfig(protocol="machado").replace(protocol="deepmind"))
    assert switches(DQNConfig()) == switches(EvaluationRules()) == PROTOCOLS["deepmind"]
    assert DQNConfig(protocol="machado").frame_skip == 4
    assert EvaluationRules(**DQNConfig(protocol="machado", noop_max=3, frame_skip=5).rules()).rules() == {
        "protocol": "machado", **MACHADO, "noop_max": 3, "frame_skip": 5,
    }  # fmt: skip


def test_flags_win_over_the_protocol_wherever_they_stand(configured):
    assert switches(configured("breakout", "--protocol", "machado")) == MACHADO
    config = configured("breakout", "--noop-max", "7", "--episodic-life", "--protocol", "machado", "--frame-skip", "5")
    assert switches(config) == MACHADO | {"noop_max": 7, "episodic_life": True}
    assert config.frame_skip == 5
    assert config.protocol_name == "machado but episodic_life True, noop_max 7"
    assert configured("breakout", "--no-fire-reset").protocol_name == "deepmind but fire_reset False"


def test_a_resumed_run_keeps_its_rules_until_it_is_told_others(configured, tmp_path):
    config = DQNConfig(protocol="machado", noop_max=3, runs_dir=str(tmp_path))
    write_settings(tmp_path / "run", config)
    assert configured("--resume", str(tmp_path / "run")) == config
    assert switches(configured("--resume", str(tmp_path / "run"), "--protocol", "deepmind")) == PROTOCOLS["deepmind"]


def test_a_run_from_before_there_were_protocols_keeps_its_rules(tmp_path):
    fields = {"agent": "dqn", "episodic_life": False, "repeat_action_probability": 0.1, "noop_max": 5, "frame_skip": 4}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    config = folder.load_config(tmp_path)
    assert (config.episodic_life, config.repeat_action_probability, config.noop_max) == (False, 0.1, 5)
    assert config.fire_reset
    assert not config.full_action_set


@pytest.mark.parametrize(
    "call",
    [
        lambda: DQNConfig(protocol="rainbow"),
        lambda: EvaluationRules(protocol="rainbow"),
        lambda: train.main(["breakout", "--protocol", "rainbow"]),
    ],
)
def test_an_unknown_protocol_is_named(call):
    with pytest.raises(ConfigError, match="--protocol is 'rainbow'; give deepmind or machado"):
        call()


def test_a_run_is_evaluated_and_watched_by_its_own_rules_unless_told_others(tmp_path, played, capsys):
    make_run(tmp_path / "run", "breakout", protocol="machado", noop_max=2)
    path = str(tmp_path / "run")
    evaluate.main([path])
    said = capsys.readouterr().out
    assert "protocol machado but noop_max 2: whole games" in said
    assert "sticky actions 0.25" in said
    watch.main([path, "--epsilon", "0.5"])
    evaluate.main([path, "--protocol", "deepmind", "--json", str(tmp_path / "facts.json")])
    evaluate.main([path, "--repeat-action-probability", "0", "--fire-reset"])
    evaluate.main([path, "--protocol", "deepmind", "--no-episodic-life", "--fire-reset", "False"])
    watch.main([path, "--protocol", "deepmind"])
    own, watched, other, changed, switched, watched_other = played
    assert switches(own) == MACHADO | {"noop_max": 2}
    assert (switches(watched), watched.epsilon) == (switches(own), 0.5)
    assert switches(other) == PROTOCOLS["deepmind"] | {"full_action_set": True}  # the network has its actions
    assert switches(changed) == switches(own) | {"repeat_action_probability": 0.0, "fire_reset": True}
    assert switches(switched) == switches(other) | {"episodic_life": False, "fire_reset": False}
    assert switches(watched_other) == switches(other)
    assert json.loads((tmp_path / "facts.json").read_text())["protocol"].startswith("protocol deepmind but")


def test_evaluations_on_the_way_keep_the_runs_rules(tmp_path, monkeypatch):
    from fastrl.dqn.run import evaluation

    asked = []
    monkeypatch.setattr(evaluation, "play_games", lambda *args, rules, **kwargs: asked.append(rules) or 1 / 0)
    config = DQNConfig(
        protocol="machado", frame_skip=5, num_envs=2, total_frames=200, trunk="small", hidden=16, batch_size=8,
        dephase_steps=0, compile=False, checkpoint_replay=False, runs_dir=str(tmp_path),
    )  # fmt: skip
    with pytest.raises(ZeroDivisionError):
        experiment.train(config, quiet=True)
    assert asked[0].rules() == config.rules()


def test_training_games_keep_the_rules():
    config = DQNConfig(protocol="machado", num_envs=2, noop_max=3)
    options = build_collector(config, 0).envs._pool.config
    assert options["full_action_space"]
    assert not options["episodic_life"]
    assert not options["use_fire_reset"]
    assert options["noop_max"] == 3
    assert options["repeat_action_probability"] == pytest.approx(0.25)


def test_the_full_action_set_has_its_names():
    for game, count in (("breakout", 18), ("lost_luggage", 9)):
        envs = AtariEnvs(game, 1, seed=1, full_action_set=True)
        assert envs.num_actions == count
        assert envs.action_names == list(action_names(game, True))
        assert envs.action_names[0] == "NOOP"


@pytest.mark.parametrize("game", ["breakout", "lost_luggage", "backgammon"])
def test_both_makers_of_games_play_the_same_game_by_machados_rules(game):
    """To the bit: one no-op, no FIRE that nobody pressed, the same actions; stickiness aside, which is chance."""
    actions = np.random.default_rng(0).integers(9 if game == "lost_luggage" else 18, size=150)

    def seen(backend):
        stacks_seen, number = [], itertools.count()

        def act(stacks):
            stacks_seen.append(stacks[0].copy())
            return np.full(len(stacks), actions[next(number)])

        rules = EvaluationRules(protocol="machado", repeat_action_probability=0, epsilon=0, max_steps=150)
        played = play_games(game, act, 1, seed=1, backend=backend, rules=rules)
        return np.array(stacks_seen), played.scores.tolist(), played.lengths.tolist()

    (frames, *figures), (others, *other_figures) = map(seen, BACKENDS)
    assert np.array_equal(frames, others)
    assert figures == other_figures
    assert len(np.unique(frames, axis=0)) > 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_machados_rules_nobody_presses_fire_for_the_player(backend):
    def play(act):
        frames = []

        def watched(stacks):
            frames.append(stacks[0, -1].copy())
            return act(len(frames)) * np.ones(len(stacks), int)

        rules = EvaluationRules(protocol="machado", epsilon=0, max_steps=250)
        played = play_games("breakout", watched, 1, seed=1, backend=backend, rules=rules)
        return played.lengths[0], len(np.unique(frames, axis=0))

    assert play(lambda number: 0)[1] < 10  # no ball ever moves
    length, frames = play(lambda number: int(number < 5))
    assert frames > 15
    assert length == 250  # the first ball is lost, and there is no second


@pytest.mark.parametrize("backend", BACKENDS)
def test_actions_stick_on_both_makers_of_games(backend):
    def last(sticky):
        frames = []

        def right(stacks):
            frames.append(stacks[0, -1].copy())
            return np.full(len(stacks), 2)

        rules = EvaluationRules(fire_reset=False, noop_max=1, repeat_action_probability=sticky, epsilon=0, max_steps=20)
        play_games("breakout", right, 1, seed=1, backend=backend, rules=rules)
        return frames

    assert np.array_equal(last(1.0)[-1], last(1.0)[1])  # the no-op of the start for ever
    assert not np.array_equal(last(0.0)[-1], last(0.0)[1])
