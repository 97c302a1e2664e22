"""Sums over updates, and norms by layer."""

from __future__ import annotations

import typing

import pytest
import torch
from test_learner import CPU, TINY, make, make_batch, weights

from fastrl.dqn.network import QNetwork, Trunk
from fastrl.dqn.update_stats import Tally

NAMES = ("trunk.0.weight", "trunk.0.bias", "value.weight")


def tensors(*norms):
    """Return tensors of these norms."""
    return [torch.full((4,), norm / 2) for norm in norms]


def test_a_layers_norm_is_that_of_its_weight_and_bias_together():
    tally = Tally(NAMES, CPU)
    before = tensors(3.0, 4.0, 12.0)
    tally.measure(before, [p + change for p, change in zip(before, tensors(0.3, 0.4, 0.0), strict=True)])
    metrics = tally.read()
    assert metrics["update_ratio/trunk.0"] == pytest.approx(0.5 / 5)
    assert metrics["update_ratio/value"] == 0
    assert metrics["train/param_norm"] == pytest.approx(13)
    assert metrics["train/update_norm"] == pytest.approx(0.5)
    assert metrics["train/update_ratio"] == pytest.approx(0.5 / 13)
    assert tally.read() == {}


def test_the_last_measured_update_counts_and_a_layer_of_zeros_divides_by_nothing():
    tally = Tally(NAMES, CPU)
    for change in (1.0, 2.0):
        tally.measure(tensors(0.0, 0.0, 1.0), tensors(0.0, 0.0, 1.0 + change))
    metrics = tally.read()
    assert metrics["update_ratio/trunk.0"] == 0
    assert metrics["update_ratio/value"] == pytest.approx(2)


def test_sums_become_means_and_the_largest_q_stays():
    tally = Tally(NAMES, CPU)
    for loss, q_max in ((1.0, 5.0), (2.0, 4.0)):
        tally.add(torch.tensor([loss, 2 * loss, 3 * loss, q_max]), torch.tensor(4 * loss))
        tally.updates += 1
    names = "loss td_error q_mean grad_norm q_max"
    assert tally.read() == dict(
        zip((f"train/{name}" for name in names.split()), (1.5, 3.0, 4.5, 6.0, 5.0), strict=True)
    )


def test_memory_stays_where_a_recording_adds_to_it():
    tally = Tally(NAMES, CPU)
    place, state = tally.totals.data_ptr(), {name: torch.as_tensor(v).clone() for name, v in tally.state().items()}
    tally.read()
    tally.load_state(state | {"summed": 3})
    assert tally.totals.data_ptr() == place


@pytest.mark.parametrize("trunk", typing.get_args(Trunk))
def test_every_layer_of_every_trunk_has_a_ratio(trunk):
    network = QNetwork((4, 84, 84), 3, trunk, 8)
    layers = {name for name, module in network.named_modules() if list(module.parameters(recurse=False))}
    tally = Tally(dict(network.named_parameters()), CPU)
    parameters = [p.detach() for p in network.parameters()]
    tally.measure(parameters, [2 * p for p in parameters])
    ratios = {k: v for k, v in tally.read().items() if k.startswith("update_ratio/")}
    assert ratios == pytest.approx({f"update_ratio/{name}": 1.0 for name in layers})


def test_the_learner_measures_each_layer_when_asked_and_goes_on_with_it_after_a_save():
    learner, plain = make(), make()
    before = weights(learner)
    learner.learn(make_batch(), measure=True)
    plain.learn(make_batch())
    state = learner.state()
    metrics, after = learner.metrics(), weights(learner)
    for layer in ("trunk.1", "trunk.3", "hidden", "value", "advantage"):
        old, new = (torch.cat([w[f"{layer}.{kind}"].flatten() for kind in ("weight", "bias")]) for w in (before, after))
        assert metrics[f"update_ratio/{layer}"] == pytest.approx(float((new - old).norm() / old.norm()), rel=1e-4)
    assert not any(name.startswith("update_ratio") for name in plain.metrics())
    resumed = make(seed=9)
    resumed.load_state(state)
    assert resumed.metrics() == metrics


def test_a_state_of_before_layers_were_told_apart_is_taken_over():
    learner, resumed = make(), make(TINY)
    learner.learn(make_batch(), measure=True)
    state = learner.state()
    del state["norms"]
    state["totals"] = torch.cat([state["totals"], torch.tensor([3.0, 0.1])])  # norms of all layers together
    resumed.load_state(state)
    norms = ("train/param_norm", "train/update_norm", "train/update_ratio", "update_ratio/")
    assert resumed.metrics() == {k: v for k, v in learner.metrics().items() if not k.startswith(norms)}


def test_errors_are_those_of_the_last_priorities_handed_back():
    prompt, late = make(), make(delayed=True)
    assert prompt.errors.shape == (0,)
    for learner in (prompt, late):
        learner.learn(make_batch(0))
    assert late.errors.shape == (0,)
    _, errors = prompt.learn(make_batch(1))
    assert (prompt.errors == errors).all()
    late.learn(make_batch(1))
    _, first = make().learn(make_batch(0))
    assert (late.errors == first).all()
