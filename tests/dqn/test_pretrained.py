"""Weights that ship: rounded once, judged as they ship, loaded with one call, refused when damaged."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("envpool")
pytest.importorskip("ale_py")
pytest.importorskip("cv2")

import pretrain
from untrained import make_run

import fastrl
from fastrl import evaluate
from fastrl.base.errors import ConfigError
from fastrl.dqn import checkpoint, pretrained
from fastrl.dqn.agent import greedy, load_agent
from fastrl.envs.rules import EvaluationRules
from fastrl.play.games import play_games

ROOT = Path(__file__).parents[2]
SHIPPED = pretrained.games()
JUDGEMENT = pretrained.Judgement(
    commit="abc", exported_at="def", protocol="whole games", played_with={"torch": "2"},
    scores={"envpool": {"games": 2, "seed": 0, "mean": 1.5}},
)  # fmt: skip


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """An empty folder in place of the package's own."""
    monkeypatch.setattr(pretrained, "WEIGHTS", tmp_path / "weights")
    return tmp_path / "weights"


@pytest.fixture
def exported(weights, tmp_path):
    """The untrained network for catch that ships now."""
    network = make_run(tmp_path / "run")
    pretrained.export(tmp_path / "run", "newest", lambda *_: JUDGEMENT)
    return network


def test_what_is_loaded_are_the_runs_weights_rounded_to_bfloat16(exported, weights):
    loaded = fastrl.load_pretrained("catch")
    assert not loaded.training
    assert loaded.settings == exported.settings
    for name, tensor in exported.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.bfloat16().float()), name
    assert {tensor.dtype for tensor in load_file(weights / "catch.safetensors").values()} == {torch.bfloat16}
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.float32}


def test_the_network_that_is_judged_is_the_one_that_ships(weights, tmp_path):
    judged = []
    trained = make_run(tmp_path / "run")

    def judge(network, config):
        judged.append(network)
        assert config.game == "catch"
        assert pretrained.games() == []  # nothing appears before it is judged
        return JUDGEMENT

    pretrained.export(tmp_path / "run", "newest", judge)
    loaded = fastrl.load_pretrained("catch")
    obs = torch.rand(8, 1, 10, 5)
    assert torch.equal(judged[0](obs), loaded(obs))
    assert not torch.equal(trained(obs), loaded(obs))


def test_the_card_says_where_the_weights_come_from_and_names_no_folder(exported, weights):
    card = pretrained.card("catch")
    assert (card.game, card.seed, card.frames, card.minutes) == ("catch", 5, 400, 1.7)
    assert card.command == "python -u -m fastrl.train catch --seed 5; python -m fastrl.train --resume RUN"
    assert card.network == exported.settings
    assert card.scores == JUDGEMENT.scores
    text = (weights / "catch.json").read_text()
    assert "somewhere" not in text
    assert "platform" not in text
    assert "python" in card.trained_with
    assert card.describe() == (
        "catch after 400 frames in 2 minutes, seed 5, commit abc; mean score 1.5 over 2 games on envpool"
    )


def test_the_card_says_whether_the_weights_are_an_average(exported, weights, tmp_path):
    assert pretrained.card("catch").averaged is False
    state = sorted((tmp_path / "run" / "checkpoints").glob("0*"))[-1] / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"averaged": True}))
    card = pretrained.export(tmp_path / "run", "newest", lambda *_: JUDGEMENT)
    assert card.averaged
    assert "averaged weights" in card.describe()
    agent = load_agent("catch")
    assert agent.averaged
    assert agent.about.count("averaged weights") == 1


def test_another_checkpoint_replaces_what_ships(exported, tmp_path):
    before = fastrl.load_pretrained("catch").hidden.weight
    pretrained.export(tmp_path / "run", "000000000200", lambda *_: JUDGEMENT)
    assert pretrained.card("catch").frames == 200
    assert not torch.equal(fastrl.load_pretrained("catch").hidden.weight, before)


def test_what_ships_stays_whole_when_an_export_is_broken_off(exported, weights, tmp_path):
    def break_off(*_):
        raise KeyboardInterrupt

    before = {path: path.read_bytes() for path in weights.iterdir()}
    with pytest.raises(KeyboardInterrupt):
        pretrained.export(tmp_path / "run", "000000000200", break_off)
    assert {path: path.read_bytes() for path in weights.iterdir()} == before


def test_more_than_seven_megabytes_do_not_ship(weights, tmp_path):
    make_run(tmp_path / "run", hidden=1_500)
    with pytest.raises(ConfigError, match=r"takes 13\.\d MB in bfloat16, and at most 7 MB ship; give .*--hidden"):
        pretrained.export(tmp_path / "run", "newest", lambda *_: JUDGEMENT)
    assert list(weights.iterdir()) == []


def test_a_run_of_another_kind_or_without_checkpoints_does_not_ship(weights, tmp_path):
    make_run(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"no checkpoint 'best'; there is 000000000200, 000000000400"):
        pretrained.export(tmp_path / "run", "best", lambda *_: JUDGEMENT)
    (tmp_path / "cartpole").mkdir()
    (tmp_path / "cartpole" / "config.json").write_text('{"agent": "sarsa"}')
    with pytest.raises(ConfigError, match="is a cartpole run"):
        pretrained.export(tmp_path / "cartpole", "best", lambda *_: JUDGEMENT)
    assert not weights.exists()


def test_a_game_without_weights_is_answered_with_those_that_have_some(weights, tmp_path):
    with pytest.raises(ConfigError, match="game is 'pong', for which no weights ship; none ship for any game yet"):
        fastrl.load_pretrained("pong")
    make_run(tmp_path / "run")
    pretrained.export(tmp_path / "run", "newest", lambda *_: JUDGEMENT)
    for game in ("pong", "../weights/catch", ""):
        with pytest.raises(ConfigError, match=r"no weights ship; give one of catch, or train your own with python -m"):
            fastrl.load_pretrained(game)


@pytest.mark.parametrize("name", ["Catch-v0", "CATCH"])
def test_a_game_may_be_given_in_any_spelling_as_to_evaluate(exported, name):
    for call in (fastrl.load_pretrained, lambda name: load_agent(name).network):
        assert torch.equal(call(name).hidden.weight, fastrl.load_pretrained("catch").hidden.weight)
    assert pretrained.card(name).game == "catch"


@pytest.mark.parametrize("game", [None, 3, ["catch"], Path("catch")])
def test_what_is_no_name_of_a_game_is_refused_with_those_that_are(exported, game):
    with pytest.raises(
        ConfigError, match=rf"^game is {re.escape(repr(game))}, which is no name; give one of catch, as"
    ):
        fastrl.load_pretrained(game)


def test_an_unknown_device_is_named(exported):
    with pytest.raises(ConfigError, match="--device is 'tpu'"):
        fastrl.load_pretrained("catch", "tpu")


def test_the_network_goes_to_the_device_that_is_asked_for(exported):
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    network = fastrl.load_pretrained("catch", "cuda")
    assert {tensor.device.type for tensor in [*network.parameters(), *network.buffers()]} == {"cuda"}
    assert play_games("catch", greedy(network), 3, seed=1, stack=1).scores.shape == (3,)


@pytest.mark.parametrize("damage", ["cut short", "of another network", "no card", "a card that lacks something"])
def test_damaged_files_are_named_with_a_remedy(exported, weights, damage):
    file, card = weights / "catch.safetensors", weights / "catch.json"
    if damage == "cut short":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "of another network":
        tensors = {name: tensor + 1 for name, tensor in load_file(file).items()}
        save_file(tensors, file, metadata={"network": "{}", "format": str(checkpoint.WEIGHTS_FORMAT)})
    elif damage == "no card":
        card.unlink()
    else:
        card.write_text(json.dumps({"game": "catch"}))
    with pytest.raises(ConfigError, match=r"catch\.(safetensors|json) is damaged \(.*\); install fastrl anew, or"):
        fastrl.load_pretrained("catch")


CATCH = {"obs_shape": [1, 10, 5], "num_actions": 3, "trunk": "vector", "hidden": 64}


@pytest.mark.parametrize(
    "settings",
    [
        None,
        [],
        {},
        {"colour": "red"},
        CATCH | {"num_actions": 4},
        CATCH | {"hidden": 10**7},  # 800 TB
        CATCH | {"hidden": 10**30},
        CATCH | {"hidden": "many"},
        CATCH | {"hidden": -1},
        CATCH | {"obs_shape": 3},
        CATCH | {"trunk": "huge"},
        CATCH | {"trunk": ["vector"]},
    ],
)
def test_a_file_that_describes_another_network_is_refused(exported, weights, settings):
    path = weights / "catch.safetensors"
    metadata = {"network": json.dumps(settings), "format": str(checkpoint.WEIGHTS_FORMAT)}
    save_file(load_file(path), path, metadata=metadata)
    with pytest.raises(ConfigError, match=r"catch\.safetensors cannot be read"):
        checkpoint.load_network(path)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 100, b'\x10\0\0\0\0\0\0\0{"a":1}'])
def test_a_file_that_holds_no_weights_is_refused(tmp_path, content):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="cannot be read"):
        checkpoint.load_network(path)


def test_a_maintainers_scores_are_those_that_anyone_gets(weights, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pretrain, "current_commit", lambda: "def")
    monkeypatch.setattr(pretrain, "EvaluationRules", partial(EvaluationRules, max_steps=20))
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run", "breakout")
    assert pretrain.main(["run", "--commit", "abc", "--checkpoint", "newest", "--games", "2"]) == 0
    card = pretrained.card("breakout")
    assert (card.commit, card.exported_at) == ("abc", "def")
    for env in ("envpool", "gymnasium"):
        flags = ["--episodes", "2", "--env", env, "--json", "figures.json", "--max-episode-steps", "20"]
        assert evaluate.main(["ALE/Breakout-v5", *flags]) == 0
        figures = json.loads(Path("figures.json").read_text())
        assert figures["protocol"] == card.protocol
        assert card.scores[env] == {name: figures.get(name) for name in figures.keys() & card.scores[env].keys()} | {
            "games": 2, "seed": 0
        }  # fmt: skip
        assert {"mean", "median", "std", "min", "max"} < card.scores[env].keys()
        assert Path(f"evaluation-breakout-{env}.gif").exists()
    assert "2 games on gymnasium" in capsys.readouterr().out


def test_wheel_and_sdist_hold_the_weights():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert settings["package-data"]["fastrl"] == ["weights/*.safetensors", "weights/*.json"]
    assert "recursive-include fastrl/weights *.safetensors *.json" in (ROOT / "MANIFEST.in").read_text()
    assert pretrained.WEIGHTS == Path(fastrl.__file__).parent / "weights"


def test_without_torch_the_message_names_the_extra_that_brings_it():
    code = "import sys; sys.modules['torch'] = None; import fastrl; fastrl.load_pretrained('breakout')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ImportError" in result.stderr
    assert "needs the extra 'train'" in result.stderr


@pytest.mark.parametrize("game", SHIPPED)
def test_each_shipped_card_is_complete(game):
    card = pretrained.card(game)
    assert card.game == game
    assert re.fullmatch("[0-9a-f]{7,40}", card.commit)
    assert re.fullmatch("[0-9a-f]{7,40}", card.exported_at)  # and no -dirty
    assert card.command.startswith("python ")
    assert not re.search(r"(^|[\s=])[~/]", card.command)  # no folder of anybody's machine
    assert card.averaged or "--average-updates" not in card.command
    assert card.frames > 0
    assert card.minutes > 0
    assert "sticky actions" in card.protocol
    for env in ("envpool", "gymnasium"):
        assert card.scores[env]["games"] >= 100
        assert card.scores[env]["min"] <= card.scores[env]["median"] <= card.scores[env]["max"]
        assert card.scores[env]["min"] <= card.scores[env]["mean"] <= card.scores[env]["max"]
        assert card.scores[env]["std"] >= 0
    for versions in (card.trained_with, card.played_with):
        assert {"torch", "envpool", "ale-py", "gymnasium", "python"} <= versions.keys()


@pytest.mark.parametrize("game", SHIPPED)
def test_each_shipped_network_is_small_and_described_by_its_card(game):
    path = pretrained.WEIGHTS / f"{game}.safetensors"
    assert path.stat().st_size <= pretrained.LARGEST_BYTES
    assert {tensor.dtype for tensor in load_file(path).values()} == {torch.bfloat16}
    assert fastrl.load_pretrained(game).settings == pretrained.card(game).network


@pytest.mark.parametrize("game", SHIPPED)
@pytest.mark.parametrize("backend", ["envpool", "gymnasium"])
def test_each_shipped_network_plays(game, backend):
    agent = load_agent(game)
    rules = EvaluationRules(max_steps=20, frame_skip=agent.rules.frame_skip)
    games = play_games(game, greedy(agent.network), 1, seed=1, rules=rules, backend=backend, stack=agent.stack)
    assert games.lengths.tolist() == [20]
    assert np.isfinite(games.scores).all()


def test_every_card_belongs_to_weights():
    assert sorted(path.stem for path in pretrained.WEIGHTS.glob("*.json")) == SHIPPED
