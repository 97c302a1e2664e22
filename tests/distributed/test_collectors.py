"""Collectors on an engine that delivers late, out of order, twice and never; the same code runs on Ray."""

from __future__ import annotations

import copy
import math
from unittest.mock import patch

import numpy as np
import pytest
import torch
from fake_engine import PEACE, TROUBLE, FakeEngine, Ref
from ledger_games import Ledger, LedgerGames, number_of, wrong_rows

from fastrl.base.errors import ConfigError, RunError, Stopped
from fastrl.config import PRESETS, preset_for, with_agent
from fastrl.distributed import collectors as collectors_room
from fastrl.distributed.actor import Actor, CopiedNetwork, facts, pick_acting_kernels
from fastrl.distributed.chunk import pack
from fastrl.distributed.collectors import Collectors, LostError
from fastrl.dqn import collector
from fastrl.dqn.network import QNetwork, build_network
from fastrl.dqn.policy import Policy
from fastrl.dqn.trunk import pick_kernels
from fastrl.replay import PrioritizedReplayBuffer

CONFIG = PRESETS["catch"].config.replace(
    collectors=3, num_envs=4, chunk_steps=5, stack=3, n_step=3, hidden=8, collector_timeout=5.0, compile=False
)


class NoNetwork:
    """Acts for a policy that only ever explores."""

    updates = 0

    def weights(self):
        raise AssertionError

    act = weights


class Weights:
    """A network whose weights count."""

    def __init__(self):
        self.updates = 1

    def act(self, obs, mask=None):
        raise AssertionError

    def weights(self):
        return {"number": np.array([self.updates])}


def policy(network=None):
    return Policy(network or NoNetwork(), 3, np.random.default_rng(0))


def ledger_collectors(config, ledger, autoreset, engine):
    envs = LedgerGames(Ledger(), config.num_envs, 0, autoreset)
    return Collectors(config, engine, envs, facts(envs), clock=engine.clock)


def steps_of(collectors, count, by=None):
    by = by or policy()
    collectors.start(by)
    for _ in range(count):
        collectors.send(by)
        yield collectors.recv()


@pytest.mark.parametrize("autoreset", ["next_step", "same_step"])
@pytest.mark.parametrize(("trouble", "plan"), [(PEACE, 0), *((TROUBLE, plan) for plan in range(4))])
def test_no_row_is_wrong_whatever_happens_to_chunks_and_collectors(autoreset, trouble, plan):
    ledger, opened, drawn = Ledger(), set(), 0
    engine = FakeEngine(CONFIG, 7, trouble=trouble, plan=plan)
    buffer = PrioritizedReplayBuffer(
        capacity=12 * 60, num_envs=12, obs_shape=(4, 4), stack=3, n_step=3, gamma=0.9, autoreset=autoreset, seed=plan
    )
    with patch.object(collector, "build_envs", lambda config, seed: LedgerGames(ledger, 4, seed, autoreset)):
        collectors = ledger_collectors(CONFIG, ledger, autoreset, engine)
        for step, rows in enumerate(steps_of(collectors, 900)):
            opened |= set(number_of(rows.frame[rows.first]).tolist())
            buffer.add(
                rows.frame, rows.action, rows.reward, rows.terminated, rows.truncated, rows.first, rows.final,
                rows.env_id,
            )  # fmt: skip
            if step % 10 == 9 and buffer.drawable:
                batch = buffer.sample(64)
                assert wrong_rows(batch, ledger, opened, 3, 3, 0.9) == []
                drawn += len(batch.action)
    buffer.check()
    assert drawn > 5_000
    if trouble is TROUBLE:
        assert min(engine.seen[what] for what in ("drop", "kill", "twice", "swap", "step in")) > 0, engine.seen
        assert collectors.lost > 0
        assert collectors.restarted > 0


def test_in_another_place_or_life_a_process_counts_its_chunks_anew():
    one = Actor({}, 0, 2, {}, again=False)
    before = one._born
    one._seq = 7
    one.become(2, 0)
    assert (one._born, one._seq) == (before, 7)
    seen = {before}
    for number, life in ((2, 1), (0, 1), (2, 1)):
        one.become(number, life)
        assert one._seq == 0
        seen.add(one._born)
        one._seq = 7
    assert len(seen) == 4


def test_a_hung_collector_is_replaced_once_it_is_silent_for_too_long():
    engine = FakeEngine(CONFIG, 7, trouble=PEACE | {"hang": 0.02}, plan=3)
    said = []
    with patch.object(collector, "build_envs", lambda config, seed: LedgerGames(Ledger(), 4, seed)):
        collectors = ledger_collectors(CONFIG, Ledger(), "next_step", engine)
        collectors.say = said.append
        list(steps_of(collectors, 600))
    assert engine.seen["restart"] > 0
    assert "has not answered for 5 seconds; a new one takes its place" in said[0]


@pytest.mark.parametrize("in_order", [False, True])
def test_a_run_whose_collectors_never_answer_ends_with_a_remedy(in_order):
    config = CONFIG.replace(collectors_in_order=in_order)
    engine, said = FakeEngine(config, 7, trouble=PEACE | {"hang": 1.0}), []
    with patch.object(collector, "build_envs", lambda config, seed: LedgerGames(Ledger(), 4, seed)):
        collectors = ledger_collectors(config, Ledger(), "next_step", engine)
        collectors.say = said.append
        with pytest.raises(RunError, match=r"if 5 steps of 4 games take longer than 5 seconds, give a larger --coll"):
            list(steps_of(collectors, 1))
    assert engine.seen["restart"] == 5 * (1 if in_order else 3)
    assert "has not answered for 185 seconds; a new one takes its place" in said[-1]


def test_one_collector_that_never_answers_does_not_end_the_run_of_the_others(monkeypatch):
    monkeypatch.setattr(collectors_room, "START_SECONDS", 0.0)
    engine = FakeEngine(CONFIG, 7)
    collect = engine.collect
    engine.collect = lambda number, *what: Ref(1, math.inf, None) if number == 1 else collect(number, *what)
    with patch.object(collector, "build_envs", lambda config, seed: LedgerGames(Ledger(), 4, seed)):
        rows = steps_of(ledger_collectors(CONFIG, Ledger(), "next_step", engine), 2_000)
        assert {int(env) // 4 for row in rows for env in row.env_id} == {0, 2}
    assert engine.seen["restart"] > 5


def test_a_collector_that_starts_is_given_time():
    config = CONFIG.replace(collectors=1)
    engine = FakeEngine(config, 7)
    with patch.object(collector, "build_envs", lambda config, seed: LedgerGames(Ledger(), 4, seed)):
        collectors = ledger_collectors(config, Ledger(), "next_step", engine)
        rows = steps_of(collectors, 2)
        collectors.open_games()
        engine.free_at[0] = engine.now + 60.0  # longer than the timeout of 5 seconds
        next(rows)
    assert engine.seen["restart"] == 0


def played(config, count, *, trouble=PEACE, plan=0, by=None):
    with patch.object(collector, "build_envs", lambda config, seed: LedgerGames(Ledger(), 4, seed)):
        engine = FakeEngine(config, 7, trouble=trouble, plan=plan)
        collectors = ledger_collectors(config, Ledger(), "next_step", engine)
        return [(rows.env_id.tolist(), rows.action.tolist(), rows.reward.tolist()) for rows in
                steps_of(collectors, count, by)]  # fmt: skip


def test_in_order_two_runs_are_equal_whatever_the_delays():
    in_order = CONFIG.replace(collectors_in_order=True)
    assert played(in_order, 200, plan=1) == played(in_order, 200, plan=2)
    assert played(CONFIG, 200, plan=1) != played(CONFIG, 200, plan=2)


def test_in_order_chunks_come_in_turn_from_all_collectors():
    envs = [env_id[0] for env_id, _, _ in played(CONFIG.replace(collectors_in_order=True), 60)]
    assert envs == [first for first in (0, 4, 8) for _ in range(5)] * 4


def test_no_collector_is_left_aside():
    envs = [env_id[0] for env_id, _, _ in played(CONFIG, 600)]
    assert min(envs.count(first) for first in (0, 4, 8)) > 120


def test_collectors_play_different_games_and_a_replaced_one_plays_new_ones():
    config = CONFIG.replace(collectors_in_order=True)
    rewards = played(config, 15)
    assert len({str(rewards[at][2:]) for at in (0, 5, 10)}) == 3
    arguments = (FakeEngine(config, 7)._config, 7, 0)
    with patch.object(collector, "build_envs", lambda config, seed: seed_games(seed)):
        first, again, replaced = (actor(*arguments, again=again) for again in (False, False, True))
    assert first == again != replaced


def seed_games(seed):
    games = LedgerGames(Ledger(), 4, seed)
    games.action_names = [str(seed)] * 3  # `facts` shows it
    return games


def actor(config, seed, number, *, again):
    from fastrl.config import to_record
    from fastrl.distributed.actor import versions

    return Actor(to_record(config), seed, number, versions(), again=again).open_games()["actions"]


@pytest.mark.parametrize("noisy", [True, False])
def test_a_collector_acts_with_noise_of_its_own_where_layers_are_noisy(noisy):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = QNetwork((2, 10, 5), 3, "vector", hidden=8, noisy=noisy)
        torch.nn.init.zeros_(network.advantage.bias)  # or one action is the best, whatever is seen
    one, same, other = (CopiedNetwork(network, seed) for seed in (1, 1, 2))
    obs = np.random.default_rng(0).standard_normal((500, 2, 10, 5), np.float32)
    first, second = one.act(obs), one.act(obs)
    assert np.array_equal(first, same.act(obs))
    assert np.array_equal(first, second) == (not noisy)
    assert np.array_equal(first, other.act(obs)) == (not noisy)


KERNELS = [name for name in (pick_kernels(False), pick_kernels(True)) if name is not None]


@pytest.mark.skipif(not KERNELS, reason="this processor has no fast kernels")
@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("noisy", [True, False])
@pytest.mark.parametrize("trunk", ["small", "impala-strided"])
def test_a_collector_acts_by_the_kernels_of_the_learner_with_the_newest_weights(kernels, noisy, trunk):
    config = with_agent(preset_for("breakout", "cpu").config, "dueling")
    config = config.replace(noisy=noisy, hidden=32, trunk=trunk)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        own, *others = (build_network(config, (4, 84, 84), 4) for _ in range(3))
    plain, fast = CopiedNetwork(copy.deepcopy(own), 3), CopiedNetwork(own, 3, kernels, 40)
    obs = np.random.default_rng(0).integers(0, 256, (40, 4, 84, 84)).astype(np.uint8)
    seen = set()
    for updates, other in enumerate(others, 1):
        # Actions far apart in value, or the last bits would decide.
        other.advantage.weight.data *= 30
        weights = {name: value.numpy() for name, value in other.state_dict().items()}
        for network in (plain, fast):
            network.load(weights, updates)
        actions = plain.act(obs)
        assert np.mean(fast.act(obs) == actions) > 0.9
        seen |= set(actions.tolist())
        with torch.no_grad():
            noise = torch.randn(own.noise_size) if noisy else None
            exact = plain._network(torch.from_numpy(obs), noise).numpy()
            found = fast._fast(obs, noise).numpy()
        assert np.abs(found - exact).max() < (0.02 if trunk == "small" else 0.05) * np.abs(exact).max()
    assert len(seen) > 1


def test_a_collector_acts_by_pytorchs_kernels_where_the_settings_or_the_frames_ask_for_them():
    config = with_agent(preset_for("breakout", "cpu").config, "dueling")
    assert pick_acting_kernels(config, np.uint8) in (KERNELS or [None])
    assert pick_acting_kernels(config.replace(kernels="torch"), np.uint8) is None
    assert pick_acting_kernels(config, np.float32) is None
    assert pick_acting_kernels(config.replace(trunk="vector"), np.uint8) is None
    assert pick_acting_kernels(config.replace(trunk="impala-strided"), np.uint8) in (KERNELS or [None])
    assert pick_acting_kernels(config.replace(precision="float32"), np.uint8) == pick_kernels(False)


def test_weights_are_put_once_per_interval_and_every_request_carries_the_newest():
    config = CONFIG.replace(weights_every_steps=200)
    engine, network = FakeEngine(config, 7), Weights()
    asked = []
    engine.collect = lambda number, request, weights, ask=engine.collect: (
        asked.append((request.version, None if weights is None else int(weights["number"][0])))
        or ask(number, request._replace(version=0), None)
    )
    by = policy(network)
    network.updates = 0
    with patch.object(collector, "build_envs", lambda config, seed: LedgerGames(Ledger(), 4, seed)):
        collectors, counted = ledger_collectors(config, Ledger(), "next_step", engine), 0
        for rows in steps_of(collectors, 300, by):
            counted += len(rows.counted)
            network.updates += len(rows.counted)  # one update per step
    assert engine.seen["put"] == pytest.approx(counted / 200, abs=2)
    assert asked[0] == (0, None)
    assert all(weights is None if version == 0 else weights == version for version, weights in asked)
    assert [version for version, _ in asked] == sorted(version for version, _ in asked)
    assert collectors.report()["collectors/staleness_updates"] > 0


def test_two_requests_of_each_collector_are_in_flight():
    engine = FakeEngine(CONFIG, 7)
    asked, answered = [0], [0]
    ask, get = engine.collect, engine.get
    engine.collect = lambda *arguments: asked.__setitem__(0, asked[0] + 1) or ask(*arguments)
    engine.get = lambda *arguments: answered.__setitem__(0, answered[0] + 1) or get(*arguments)
    with patch.object(collector, "build_envs", lambda config, seed: LedgerGames(Ledger(), 4, seed)):
        collectors = ledger_collectors(CONFIG, Ledger(), "next_step", engine)
        by = policy()
        collectors.start(by)
        opened = answered[0]
        for _ in range(50):
            collectors.send(by)
            assert asked[0] - (answered[0] - opened) == 2 * 3
            collectors.recv()


def test_a_stop_is_heard_while_every_collector_is_silent():
    engine = FakeEngine(CONFIG, 7, trouble=PEACE | {"hang": 1.0})
    envs = LedgerGames(Ledger(), 4, 0)

    def check():
        if engine.now > 20:
            raise Stopped

    with patch.object(collector, "build_envs", lambda config, seed: LedgerGames(Ledger(), 4, seed)):
        collectors = Collectors(CONFIG, engine, envs, facts(envs), check=check, clock=engine.clock)
        with pytest.raises(Stopped):
            list(steps_of(collectors, 1))


def test_errors_of_games_come_out_and_a_collector_that_keeps_failing_is_asked_less_and_less():
    engine = FakeEngine(CONFIG.replace(collectors=1), 7)
    times = []

    def fail(number, ref):
        times.append(engine.now)
        raise LostError("gone") if len(times) < 9 else RunError("environment 'x:y' raised ValueError")

    with patch.object(collector, "build_envs", lambda config, seed: LedgerGames(Ledger(), 4, seed)):
        collectors = ledger_collectors(CONFIG.replace(collectors=1), Ledger(), "next_step", engine)
        collectors.open_games()
        engine.get = fail
        with pytest.raises(RunError, match="x:y"):
            list(steps_of(collectors, 1))
    pauses = np.diff(times)
    assert pauses[0] >= 0.2
    assert 5.0 <= pauses[-1] <= 6.0
    assert collectors.lost == 1


def test_collectors_with_other_versions_or_games_are_refused_by_name():
    wanted = {"fastrl": "0.0", "Python": "3.11"}
    with pytest.raises(ConfigError, match=r"collector 2 runs on .* with fastrl .*, and the learner has 0\.0; install"):
        Actor({}, 0, 2, wanted, again=False).open_games()
    engine, envs = FakeEngine(CONFIG, 7), LedgerGames(Ledger(), 4, 0)
    with patch.object(collector, "build_envs", lambda config, seed: LedgerGames(Ledger(), 4, seed)):
        collectors = Collectors(CONFIG, engine, envs, facts(envs) | {"frame_skip": 9}, clock=engine.clock)
        with pytest.raises(ConfigError, match="plays catch with frame_skip 1, this process with 9; install"):
            collectors.open_games()


def test_collectors_that_never_start_are_counted():
    engine = FakeEngine(CONFIG, 7)
    usual = engine.open_games
    engine.open_games = lambda number: setattr(ref := usual(number), "due", [0, 0, 1e9][number]) or ref
    with patch.object(collector, "build_envs", lambda config, seed: LedgerGames(Ledger(), 4, seed)):
        collectors = ledger_collectors(CONFIG, Ledger(), "next_step", engine)
        with pytest.raises(ConfigError, match=r"--collectors is 3, and 1 of them have not started .*; give at most 2"):
            collectors.open_games()


def test_the_report_counts_rows_and_losses_since_the_last_one():
    engine = FakeEngine(CONFIG, 7, trouble=TROUBLE, plan=2)
    with patch.object(collector, "build_envs", lambda config, seed: LedgerGames(Ledger(), 4, seed)):
        collectors = ledger_collectors(CONFIG, Ledger(), "next_step", engine)
        collectors.open_games()
        collectors.report()
        began = engine.now
        count = sum(len(rows.action) for rows in steps_of(collectors, 200))
    seconds = engine.now - began
    found = collectors.report()
    rates = [found[f"time/collectors_rows_per_second_{which}"] for which in ("least", "median", "most")]
    assert rates == sorted(rates)
    assert sum(rates) * seconds == pytest.approx(count)  # of three collectors
    assert found["collectors/lost"] == collectors.lost > 0
    assert 0 <= found["time/collectors_waiting"] <= 1
    assert collectors.report()["time/collectors_rows_per_second_most"] == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("autoreset", ["next_step", "same_step"])
def test_a_chunk_gives_back_the_rows_that_were_packed_as_copies(dtype, autoreset):
    games = LedgerGames(Ledger(), 4, 0, autoreset)
    one = collector.Collector([collector.Group(games, 0, 3)])
    by, rows = policy(), []
    one.start(by)
    for _ in range(30):
        one.send(by)
        row = one.recv()
        noise = np.random.default_rng(0).random(row.frame.shape) if dtype is np.float32 else row.frame
        rows.append(row.select(np.ones(4, bool)))
        object.__setattr__(rows[-1], "frame", noise.astype(dtype))
        if row.final is not None:
            object.__setattr__(rows[-1], "final", row.final.astype(dtype))
    chunk = pack(rows, number=0, born=1, seq=1, version=0)
    assert chunk.steps == 30
    for step, row in enumerate(rows):
        again = chunk.rows(step, row.env_id)
        for name in collector.Rows.__slots__:
            np.testing.assert_array_equal(getattr(again, name), getattr(row, name), err_msg=name)
            value = getattr(again, name)
            if value is not None and name != "env_id":
                assert value.flags.writeable
                assert not any(np.shares_memory(value, column) for column in chunk.columns.values())
                assert value.dtype == getattr(row, name).dtype


def test_frames_that_repeat_themselves_travel_small():
    games = LedgerGames(Ledger(), 64, 0)
    row = collector.Group(games, 0, 1)
    row.reset()
    frame = np.zeros((64, 84, 84), np.uint8)
    zeros = np.zeros(64, np.int64)
    columns = {name: zeros for name in collector.Rows.__slots__ if name not in ("frame", "final")}
    chunk = pack([collector.Rows(frame=frame, final=None, **columns)], number=0, born=1, seq=1, version=0)
    assert len(chunk.frames[0]) < frame.nbytes / 100


def test_what_a_replaced_process_still_sends_is_dropped_and_does_not_count_as_another_one():
    games = LedgerGames(Ledger(), 4, 0)
    collectors = Collectors(CONFIG, FakeEngine(CONFIG, 7), games, facts(games))
    slot = collectors._slots[0]
    columns = {name: np.zeros(4, np.int64) for name in collector.Rows.__slots__ if name not in ("frame", "final")}
    row = collector.Rows(frame=np.zeros((4, 2), np.uint8), final=None, **columns)
    sent = [(1, 1), (1, 2), (2, 1), (1, 3), (2, 2), (2, 2)]
    taken = [collectors._follows(slot, pack([row], number=0, born=born, seq=seq, version=0)) for born, seq in sent]
    assert taken == [True, True, True, False, True, False]
    assert collectors.restarted == 1
