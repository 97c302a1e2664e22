"""The moving average of weights: its numbers, what plays it, and that learning does not depend on it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_learner import ACTIONS, CPU, OBS, TINY, make, make_batch, same, weights

from fastrl.dqn.average import EVERY_UPDATES, AveragedWeights
from fastrl.dqn.flat import FlatParameters
from fastrl.dqn.learner import Learner
from fastrl.dqn.network import QNetwork

AVERAGING = TINY.replace(average_updates=50)


def build() -> tuple[QNetwork, FlatParameters]:
    torch.manual_seed(0)
    network = QNetwork((4, 84, 84), 3, trunk="small", hidden=8).to(memory_format=torch.channels_last)
    return network, FlatParameters(network.parameters())


def learned(learner: Learner, updates: int) -> Learner:
    for update in range(updates):
        learner.learn(make_batch(update))
    return learner


@pytest.mark.parametrize("reach", [1, 3, 50, 10**6])
def test_it_is_the_average_that_a_plain_loop_computes_in_float64(reach):
    network, flat = build()
    average = AveragedWeights(network, flat, reach)
    rng = np.random.default_rng(0)
    expected = {name: tensor.double().clone() for name, tensor in network.state_dict().items()}
    for update in range(1, 701):
        with torch.no_grad():
            for tensor in network.parameters():
                tensor.add_(float(rng.normal()))
        average.add()
        every = min(10, reach)
        if update < 10 or update % every == 0:
            kept = (1 - 1 / max(1.0, min(reach, update / 10))) ** every
            for name, tensor in network.state_dict().items():
                expected[name] = kept * expected[name] + (1 - kept) * tensor.double()
    for name, tensor in average.network.state_dict().items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("reach", [100, 25_000])
def test_it_moves_by_two_thirds_within_one_reach(reach):
    network, flat = build()
    average = AveragedWeights(network, flat, reach)
    flat.values.data.fill_(1.0)
    for _ in range(10 * reach):
        average.add()
    flat.values.data.fill_(1.001)  # so near that float32 rounds a step
    for _ in range(reach):
        average.add()
    assert average.network.value.bias.item() == pytest.approx(1 + 0.001 * (1 - np.exp(-1)), abs=2e-5)


@pytest.mark.parametrize(("reach", "updates"), [(1, 19), (50, 9), (25_000, 10)])
def test_the_first_updates_are_not_waited_for(reach, updates):
    learner = learned(make(TINY.replace(average_updates=reach)), updates)
    assert same(learner.judged.state_dict(), weights(learner))


def test_the_number_given_is_how_far_it_reaches():
    averages = [learned(make(TINY.replace(average_updates=reach)), 100).judged.state_dict() for reach in (3, 8)]
    assert not same(*averages)


def test_learning_does_not_depend_on_it():
    plain, averaging = make(), make(AVERAGING)
    for update in range(3 * EVERY_UPDATES):
        for one, other in zip(plain.learn(make_batch(update)), averaging.learn(make_batch(update)), strict=True):
            np.testing.assert_array_equal(one, other)
    assert same(weights(plain), weights(averaging))
    assert same(plain.target.state_dict(), averaging.target.state_dict())
    obs = make_batch().obs
    np.testing.assert_array_equal(plain.act(obs), averaging.act(obs))
    np.testing.assert_array_equal(plain.q_values(obs), averaging.q_values(obs))


def test_the_network_that_is_judged_is_the_average_where_there_is_one():
    plain, averaging = learned(make(), 100), learned(make(AVERAGING), 100)
    obs = make_batch().obs
    assert plain.judged is plain.online
    np.testing.assert_array_equal(plain.judged_q_values(obs), plain.q_values(obs))
    assert not same(averaging.judged.state_dict(), weights(averaging))
    with torch.no_grad():
        expected = averaging.judged(torch.from_numpy(obs)).numpy()  # its arithmetic is float32
    np.testing.assert_array_equal(averaging.judged_q_values(obs), expected)
    assert np.abs(expected - averaging.q_values(obs)).max() > 1e-3
    for values in (plain.judged_q_values, averaging.judged_q_values):
        with pytest.raises(ValueError, match=r"^obs is uint8 \[8, 1, 10, 5\]; give float32"):
            values(obs.astype(np.uint8))


def test_a_resumed_learner_has_the_same_average():
    whole = learned(make(AVERAGING), 37)
    resumed = make(AVERAGING, seed=2)
    resumed.load_state(whole.state())
    assert same(resumed.judged.state_dict(), whole.judged.state_dict())
    for learner in (whole, resumed):
        learned(learner, 20)
    assert same(resumed.judged.state_dict(), whole.judged.state_dict())


@pytest.mark.parametrize("older", [False, True], ids=["kept none", "had no setting for it"])
def test_an_average_that_begins_at_a_resume_counts_from_there(older):
    state = learned(make(), 1_000).state()
    if older:
        del state["average"]
    resumed = make(AVERAGING, seed=2)
    resumed.load_state(state)
    assert same(resumed.judged.state_dict(), weights(resumed))
    assert same(learned(resumed, 10).judged.state_dict(), weights(resumed))  # a tenth of ten updates: the last


def test_a_run_that_keeps_none_any_more_drops_it():
    resumed = make(seed=2)
    resumed.load_state(learned(make(AVERAGING), 20).state())
    assert resumed.judged is resumed.online
    assert resumed.state()["average"] is None


def test_the_state_holds_a_copy():
    learner = learned(make(AVERAGING), 20)
    state = learner.state()
    before = {name: tensor.clone() for name, tensor in state["average"]["weights"].items()}
    learned(learner, 20)
    assert same(state["average"]["weights"], before)


def test_noisy_layers_are_judged_without_noise():
    learner = learned(Learner(AVERAGING.replace(noisy=True), OBS, np.float32, ACTIONS, CPU, 1), 20)
    obs = make_batch().obs
    np.testing.assert_array_equal(learner.judged_q_values(obs), learner.judged_q_values(obs))
