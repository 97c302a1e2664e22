"""Whole games played by several processes, on an engine that loses them; the same code runs on Ray."""

from __future__ import annotations

import json
from unittest.mock import patch

import numpy as np
import pytest
from untrained import make_run

from fastrl import evaluate
from fastrl.base.errors import ConfigError, RunError
from fastrl.distributed import actor, engine
from fastrl.distributed import player as player_module
from fastrl.distributed.actor import versions
from fastrl.distributed.collectors import START_SECONDS, LostError
from fastrl.distributed.evaluation import MOST_LOSSES, play_shares
from fastrl.distributed.player import Plan, Player, Playing
from fastrl.dqn.network import QNetwork
from fastrl.envs.rules import EvaluationRules
from fastrl.play.games import joined

NETWORK = QNetwork((1, 10, 5), 3, "vector", hidden=8)
WEIGHTS = {name: value.numpy() for name, value in NETWORK.state_dict().items()}


def plan(episodes=30, game="catch", **changes):
    settings = {"seed": 3, "rules": EvaluationRules(epsilon=0.3), "backend": "envpool", "network": NETWORK.settings,
                "stack": 1, "bars": True, "suffix": ".gif"}  # fmt: skip
    return Plan(game=game, episodes=episodes, **settings | changes)


class Ref:
    def __init__(self, answer):
        self.answer = answer


class FakePlayers:
    """Players in this process; `losses` in a hundred answers are lost, and answers come in any order.

    Those in `silent` never start, and those in `news` answer with these in place of what they play, until they are
    restarted.
    """

    def __init__(self, losses=0, seed=0, silent=(), news=None):
        self._rng, self._losses, self._silent = np.random.default_rng(seed), losses, silent
        self.now, self.notes, self.closed, self.lost = 0.0, [], False, 0
        self.started, self.played, self.restarted = [], [], []
        self._players, self._news = {}, news or {}

    def start(self, number):
        self.started.append(number)

    def ready(self, number):
        return Ref("never" if number in self._silent else lambda: Player(number, versions()).ready())

    def put(self, weights):
        return weights

    def play(self, number, plan, weights, share):
        self.played.append((number, share))
        player = self._players[number] = Player(number, versions())
        return self._answer(number, lambda: player.play(plan, weights, share.start, len(share)))

    def go_on(self, number):
        return self._answer(number, self._players[number].go_on)

    def _answer(self, number, answer):
        if number not in self._news:
            return Ref(answer)
        news = next(self._news[number], "never")
        return Ref(news if news == "never" else lambda: news)

    def restart(self, number):
        self.restarted.append((number, self.now))
        self._news.pop(number, None)

    def wait(self, refs, seconds):
        self.now += seconds
        coming = [ref for ref in refs if ref.answer != "never"]
        return [coming[i] for i in self._rng.permutation(len(coming))[: 1 + len(coming) // 2]]

    def get(self, number, ref):
        if self._rng.integers(100) < self._losses:
            self.lost += 1
            raise LostError("ActorDiedError")
        return ref.answer()

    def close(self):
        self.closed = True


def scores(players, collectors, *, said=None, **changes):
    played = play_shares(
        players, collectors, plan(**changes), WEIGHTS, timeout=10.0, say=(said if said is not None else []).append,
        clock=lambda: players.now,
    )  # fmt: skip
    return joined([part.games for part in played]).scores.tolist(), played[0].film


def test_the_number_of_players_and_those_that_are_lost_change_nothing():
    one, film = scores(FakePlayers(), 1)
    assert len(one) == 30
    assert set(one) == {-1.0, 1.0}
    assert film.startswith(b"GIF8")
    for seed in range(4):
        said, players = [], FakePlayers(losses=30, seed=seed)
        assert scores(players, 3, said=said) == (one, film)
        assert players.lost >= len(said)
        assert all(" is gone (ActorDiedError); games " in line for line in said)
        assert len(players.played) == 4 + len(said)  # shares of 8, 8, 8 and 6
    assert said


def test_no_more_players_than_shares_are_started():
    players = FakePlayers()
    scores(players, 9)
    assert players.started == [0, 1, 2, 3]


def test_players_that_never_start_keep_none_waiting_unless_they_are_all():
    players = FakePlayers(silent=(1, 2))
    assert scores(players, 3)[0] == scores(FakePlayers(), 1)[0]
    assert {number for number, _ in players.played} == {0}
    with pytest.raises(ConfigError, match=r"--collectors is 2, and none has started .*; give a --ray-address"):
        scores(FakePlayers(silent=(0, 1)), 2)


def test_games_that_end_every_process_are_given_up():
    players, said = FakePlayers(), []
    play = players.play
    players.play = lambda number, plan, weights, share: Ref(lose) if share.start == 8 else play(
        number, plan, weights, share
    )  # fmt: skip
    with pytest.raises(RunError, match=r"games 9 to 16 were lost with 5 collectors.*give fewer --collectors"):
        scores(players, 2, said=said)
    assert len(said) == MOST_LOSSES - 1


def test_a_player_that_hangs_is_replaced_and_its_games_are_played_again():
    one = scores(FakePlayers(), 1)
    stands_still = iter(lambda: Playing(steps=7, films=False), None)
    never_opens = iter(lambda: Playing(steps=0, films=False), None)
    for news, after in (
        (iter(()), 10 + START_SECONDS),  # it was stopped while it opened its games
        (never_opens, 10 + START_SECONDS),
        (iter([Playing(steps=7, films=False)]), 10),  # or while it played
        (stands_still, 10),  # it lives, but its games hang
    ):
        players, said = FakePlayers(news={0: news}), []
        assert scores(players, 2, said=said) == one
        [(number, at)] = players.restarted
        assert number == 0
        assert after < at < after + 2
        assert said == [f"collector 0 has not got further for {after:g} seconds; games 1 to 8 are played again"]


def test_a_player_that_has_played_a_share_must_open_the_next_games_in_the_timeout():
    players, said = FakePlayers(), []
    answer = players._answer

    def hang(number, found):
        return answer(number, found) if len(players.played) != 2 else Ref("never")

    players._answer = hang
    assert scores(players, 1, said=said) == scores(FakePlayers(), 1)
    [(_, at)] = players.restarted
    assert 10 < at < 12
    assert said == ["collector 0 has not got further for 10 seconds; games 9 to 16 are played again"]


def test_players_that_are_lost_whenever_they_start_are_given_up():
    players = FakePlayers()
    players.ready = lambda number: Ref(lose)
    with pytest.raises(ConfigError, match="none has started within"):
        scores(players, 2)


def test_a_player_that_plays_for_long_or_writes_a_film_for_long_is_left_alone():
    news = [Playing(steps=i // 30, films=False) for i in range(300)]  # 30 answers of 0.25 seconds for each step
    film = [Playing(steps=10, films=True)] * 500
    players, said = FakePlayers(news={0: iter([*news, *film, player_module.Played(None, b"film")])}), []
    played = play_shares(
        players, 1, plan(episodes=8), WEIGHTS, timeout=10.0, say=said.append, clock=lambda: players.now
    )
    assert played[0].film == b"film"
    assert (said, players.restarted) == ([], [])
    assert players.now >= 200


def test_games_that_hang_in_every_process_are_given_up():
    players, said = FakePlayers(), []
    players._answer = lambda number, answer: Ref("never")
    with pytest.raises(RunError, match=r"were lost with 5 collectors.*a larger --collector-timeout"):
        scores(players, 2, said=said)
    assert len(players.restarted) >= MOST_LOSSES


def test_a_share_is_told_of_while_it_is_played_and_then_handed_over(monkeypatch):
    monkeypatch.setattr(player_module, "NEWS_SECONDS", 0.001)
    player = Player(0, versions())
    found = player.play(plan(episodes=4_000), WEIGHTS, 0, 4_000)
    seen = [found]
    while isinstance(seen[-1], Playing):
        seen.append(player.go_on())
    steps = [news.steps for news in seen[:-1]]
    assert steps == sorted(steps)
    assert 0 < steps[-1]
    assert any(news.films for news in seen[:-1])
    assert len(seen[-1].games.scores) == 4_000


def lose():
    raise LostError("WorkerCrashedError")


def test_players_with_other_versions_are_refused_by_name():
    for name in ("fastrl", "Python", "Ray"):
        wanted = {"fastrl": versions()["fastrl"], "Python": versions()["Python"]} | {name: "9.9"}
        with pytest.raises(ConfigError, match=rf"collector 1 runs on .* with {name} .*the learner has 9\.9; install"):
            Player(1, wanted).ready()


def test_rays_version_is_one_of_those_that_must_agree():
    with patch.object(actor.metadata, "version", lambda name: {"ray": "2.60.0"}[name]):
        assert versions()["Ray"] == "2.60.0"


def test_the_command_gives_what_one_process_gives(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run", "catch")
    made = []

    def fake(*arguments):
        made.append(FakePlayers())
        made[-1].arguments = arguments
        return made[-1]

    monkeypatch.setattr(engine, "RayPlayers", fake)
    flags = ["run", "--episodes", "20", "--epsilon", "0.3", "--seed", "5"]
    assert evaluate.main([*flags, "--json", "one.json", "--out", "one.gif"]) == 0
    assert evaluate.main(
        [*flags, "--json", "three.json", "--out", "three.gif", "--collectors", "3", "--ray-address", "auto"]
    ) == 0  # fmt: skip
    one, three = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "three"))
    assert three == one
    assert (tmp_path / "three.gif").read_bytes() == (tmp_path / "one.gif").read_bytes()
    assert made[0].arguments == (3, "auto", "catch")
    assert made[0].closed
    assert "film of the first game: three.gif" in capsys.readouterr().out


def test_players_are_ended_when_games_fail(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run", "catch")
    players = FakePlayers()
    players.play = lambda *arguments: Ref(fail)
    monkeypatch.setattr(engine, "RayPlayers", lambda *arguments: players)
    with pytest.raises(RunError, match="x:y raised"):
        evaluate.main(["run", "--collectors", "2"])
    assert players.closed


def fail():
    raise RunError("environment x:y raised ValueError")
