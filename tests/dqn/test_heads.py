"""The learner with each head, with Munchausen and with noisy layers, beside its equations written as loops."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from quick_run import start
from test_learner import ACTIONS, CPU, IMAGE, TINY, B, make, make_batch, same, weights

from fastrl.base.errors import ConfigError
from fastrl.config import PRESETS
from fastrl.dqn.device.device import forget_compiled
from fastrl.dqn.learner import Learner
from fastrl.dqn.noisy import NoisyLinear

N = 7
HEADS = {
    "expected": {},
    "c51": {"head": "c51", "atoms": N, "v_max": 3.0},
    "quantile": {"head": "quantile", "quantiles": N},
    "iqn": {"head": "iqn", "quantiles": N},
}
WAYS = {"double": {}, "plain": {"double": False}, "munchausen": {"munchausen": True}, "noisy": {"noisy": True}}
MIDPOINTS = (np.arange(N) + 0.5) / N
ALL = [{**head, **way} for head, way in itertools.product(HEADS.values(), WAYS.values())]


def softmax(x):
    e = np.exp(np.asarray(x, np.float64) - np.max(x))
    return e / e.sum()


def forward(network, obs, taus=None, noise=None):
    """Return outputs [B, A] or [B, A, N] of obs, in float64: taus [B, N] of IQN, noise [noise_size] of noisy layers."""
    weights = {name: p.detach().double().numpy() for name, p in network.state_dict().items()}
    with torch.no_grad():
        features = network.features(torch.from_numpy(obs)).double().numpy()
    left = list(noise if noise is not None else [])

    def layer(name, streams=1):
        """Return weight and bias of a layer; noise is taken from the front of what is left."""
        weight, bias = weights[f"{name}.weight"].copy(), weights[f"{name}.bias"].copy()
        if noise is None:
            return weight, bias
        rows, columns = weight.shape
        numbers = [np.sign(x) * np.sqrt(abs(x)) for x in left[: streams * columns + rows]]
        del left[: streams * columns + rows]
        for i, j in itertools.product(range(rows), range(columns)):
            of_input = numbers[i * streams // rows * columns + j]
            weight[i, j] += weights[f"{name}.weight_sigma"][i, j] * of_input * numbers[streams * columns + i]
        bias += weights[f"{name}.bias_sigma"] * numbers[streams * columns :]
        return weight, bias

    layers = {"hidden": layer("hidden", 2 if network.dueling else 1)}
    layers |= {name: layer(name) for name in (("value", "advantage") if network.dueling else ("action_value",))}
    assert not left

    def behind(x):
        """Return the last layers' numbers of one row, [A, numbers]."""
        weight, bias = layers["hidden"]
        x = np.maximum(weight @ x + bias, 0)
        if not network.dueling:
            weight, bias = layers["action_value"]
            return (weight @ x + bias).reshape(ACTIONS, -1)
        value, advantage = (
            weight @ part + bias
            for (weight, bias), part in zip((layers["value"], layers["advantage"]), np.split(x, 2), strict=True)
        )
        advantage = advantage.reshape(ACTIONS, -1)
        return value + advantage - advantage.mean(0)

    out = []
    for b, x in enumerate(features):
        if network.settings["head"] != "iqn":
            out.append(behind(x))
            continue
        columns = []
        for tau in MIDPOINTS if taus is None else taus[b]:
            cosines = np.array([np.cos(np.pi * i * float(tau)) for i in range(64)])
            embedded = weights["head.embedding.weight"] @ cosines + weights["head.embedding.bias"]
            columns.append(behind(x * np.maximum(embedded, 0))[:, 0])
        out.append(np.stack(columns, 1))
    return np.stack(out)[..., 0] if network.settings["head"] == "expected" else np.stack(out)


class Loops:
    """The losses and errors of one batch: loops over rows, actions, atoms and quantiles, in float64."""

    def __init__(self, config, support):
        self.config, self.support = config, support

    def value(self, outputs):
        """Return the value of an action with these outputs."""
        if self.config.head == "expected":
            return float(outputs)
        if self.config.head == "c51":
            return float(sum(p * z for p, z in zip(softmax(outputs), self.support, strict=True)))
        return float(sum(outputs) / N)

    def returns(self, outputs):
        """Return what mixes over actions, as a list."""
        return list(softmax(outputs)) if self.config.head == "c51" else list(np.atleast_1d(outputs))

    def row(self, out_tm1, out_t, out_t_online, action, reward, discount, taus):
        """Return loss and error of one transition, from the outputs [A] or [A, N] of its two states."""
        q_tm1, q_t = ([self.value(out) for out in outputs] for outputs in (out_tm1, out_t))
        numbers = [self.returns(out) for out in out_t]
        if self.config.munchausen:
            tau = 0.03
            log_policy = [tau * np.log(max(p, 1e-300)) for p in softmax(np.array(q_tm1) / tau)]
            reward = reward + 0.9 * max(log_policy[action], -1.0)
            policy = softmax(np.array(q_t) / tau)
            reward += discount * sum(-tau * p * np.log(p) for p in policy if p > 0)
            following = [sum(p * n[k] for p, n in zip(policy, numbers, strict=True)) for k in range(len(numbers[0]))]
        else:
            select = [self.value(out) for out in out_t_online] if self.config.double else q_t
            following = numbers[int(np.argmax(select))]
        mine = np.atleast_1d(out_tm1[action]).astype(np.float64)
        return getattr(self, self.config.head)(mine, reward, discount, following, taus)

    def target(self, reward, discount, z):
        """Return r + discount * z, no further from 0 than a return can be."""
        return min(max(reward + discount * z, -self.config.largest_return), self.config.largest_return)

    def expected(self, mine, reward, discount, following, taus):
        td = self.target(reward, discount, following[0]) - mine[0]
        return (td**2 / 2 if abs(td) <= 1 else abs(td) - 0.5), abs(td)

    def c51(self, mine, reward, discount, following, taus):
        wanted, gap = np.zeros(N), self.support[1] - self.support[0]
        for z, p in zip(self.support, following, strict=True):  # algorithm 1 of Bellemare et al. 2017
            place = (
                np.clip(self.target(reward, discount, z), self.support[0], self.support[-1]) - self.support[0]
            ) / gap
            low = min(int(place), N - 2)
            wanted[low] += p * (low + 1 - place)
            wanted[low + 1] += p * (place - low)
        divergence = sum(p * np.log(p / q) for p, q in zip(wanted, softmax(mine), strict=True) if p > 0)
        return divergence, divergence

    def quantile(self, mine, reward, discount, following, taus):
        return self.iqn(mine, reward, discount, following, MIDPOINTS)

    def iqn(self, mine, reward, discount, following, taus):
        target, loss = [self.target(reward, discount, z) for z in following], 0.0
        for tau, theta in zip(taus, mine, strict=True):
            for other in target:
                u = other - theta
                huber = u**2 / 2 if abs(u) <= 1 else abs(u) - 0.5
                loss += abs(tau - (u < 0)) * huber / N
        return loss, abs(np.mean(target) - np.mean(mine))


def spread(learner):
    """Let the two networks differ, and values lie far enough apart for every branch of the equations."""
    generator = torch.Generator().manual_seed(5)
    for network in (learner.online, learner.target):
        for name, p in network.named_parameters():
            if name.startswith(("value", "advantage", "action_value")) and "sigma" not in name:
                p.data += torch.randn(p.shape, generator=generator) * 0.3
    return learner


@pytest.mark.parametrize("dueling", [True, False])
@pytest.mark.parametrize("settings", ALL, ids=str)
def test_losses_and_errors_are_those_of_loops(settings, dueling):
    check_against_loops(spread(make(TINY.replace(dueling=dueling, **settings))))


@pytest.mark.parametrize("settings", ALL, ids=str)
def test_targets_go_no_further_than_a_return_can(settings):
    """Of rewards of 1 at most, discounted by 0.1; not where rewards are not clipped."""
    clipped = spread(make(TINY.replace(gamma=0.1, **settings)))
    errors = check_against_loops(clipped)
    unclipped = check_against_loops(spread(make(TINY.replace(gamma=0.1, reward_clip=False, **settings))))
    assert (errors != unclipped).any()


def check_against_loops(learner):
    """Check what a learner learns of one batch beside the loops, and return its errors [B]."""
    batch = make_batch()
    online, target = copy.deepcopy((learner.online, learner.target))
    found = learner.learn(batch)[1]
    taus, noise = (learner._drawn[name].numpy() if name in learner._drawn else [None] * 3 for name in ("taus", "noise"))
    out_tm1, out_t = forward(online, batch.obs, taus[0], noise[0]), forward(target, batch.next_obs, taus[1], noise[1])
    out_t_online = forward(online, batch.next_obs, None, noise[2])
    loops, losses, errors = Loops(learner.config, np.linspace(-3, 3, N)), [], []
    for b in range(B):
        outputs, columns = (out_tm1[b], out_t[b], out_t_online[b]), (float(batch.reward[b]), float(batch.discount[b]))
        loss, error = loops.row(*outputs, batch.action[b], *columns, None if taus[0] is None else taus[0][b])
        losses.append(loss * batch.weight[b])
        errors.append(error)
    np.testing.assert_allclose(found, errors, rtol=2e-4, atol=1e-5)
    assert learner.metrics()["train/loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    return found


@pytest.mark.parametrize("name", HEADS)
def test_the_gradient_of_a_heads_loss_is_that_of_differences_in_float64(name):
    head = make(TINY.replace(**HEADS[name])).online.head.double()
    generator = torch.Generator().manual_seed(2)
    shape = (4,) if name == "expected" else (4, N)
    out, out_t = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    reward, discount = torch.rand((2, 4), generator=generator, dtype=torch.float64)
    returns_t, taus = head.returns(out_t), torch.rand((4, N), generator=generator, dtype=torch.float64)
    out.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: head.loss(x, reward, discount, returns_t, 1.0, 100.0, taus)[0], (out,))


@pytest.mark.parametrize("settings", ALL, ids=str)
def test_gradients_reach_the_outputs_of_the_action_taken_alone(settings):
    learner = make(TINY.replace(dueling=False, **settings))
    bias = learner.online.action_value.bias
    before = bias.detach().clone().view(ACTIONS, -1)
    learner.learn(make_batch()._replace(action=np.ones(B, np.int64)))
    moved = (bias.detach().view(ACTIONS, -1) - before).abs().sum(1)
    assert moved[1] > 0
    assert moved[0] == moved[2] == 0


@pytest.mark.parametrize("head", HEADS)
def test_munchausen_needs_no_online_forward_of_the_next_observations(head, monkeypatch):
    learner, calls = make(TINY.replace(munchausen=True, **HEADS[head])), []
    features = learner.online.features
    monkeypatch.setattr(learner.online, "features", lambda obs: calls.append(1) or features(obs))
    learner.learn(make_batch())
    assert len(calls) == 1


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "settings",
    [
        HEADS["quantile"] | WAYS["munchausen"],
        HEADS["iqn"] | WAYS["noisy"],
        pytest.param(HEADS["iqn"] | WAYS["munchausen"], marks=pytest.mark.slow),
        pytest.param(HEADS["c51"] | WAYS["noisy"], marks=pytest.mark.slow),
        pytest.param(HEADS["quantile"], marks=pytest.mark.slow),
        pytest.param(HEADS["c51"] | WAYS["munchausen"], marks=pytest.mark.slow),
        pytest.param(WAYS["munchausen"], marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_compiled_and_eager_agree_on_images(settings, precision):
    forget_compiled()  # PyTorch keeps eight versions of a function
    config = TINY.replace(trunk="small", learning_rate=1e-3, precision=precision, **settings)
    eager, compiled = (Learner(config.replace(compile=c), IMAGE, "uint8", ACTIONS, CPU, 1) for c in (False, True))
    tolerance = {"rtol": 1e-3, "atol": 1e-4} if precision == "float32" else {"rtol": 0.05, "atol": 0.02}
    for seed in range(6):  # across one copy of the target
        batch = make_batch(seed, IMAGE, "uint8")
        np.testing.assert_allclose(compiled.learn(batch)[1], eager.learn(batch)[1], **tolerance)
    if precision == "float32":
        np.testing.assert_array_equal(compiled.act(batch.obs[:4]), eager.act(batch.obs[:4]))


@pytest.mark.parametrize("settings", [HEADS["quantile"], HEADS["iqn"], {"munchausen": True}], ids=str)
def test_it_overfits_one_batch(settings):
    learner, batch = make(TINY.replace(target_period_updates=10_000, learning_rate=3e-3, **settings)), make_batch()
    first = learner.learn(batch)[1].mean()
    for _ in range(400):
        errors = learner.learn(batch)[1]
    assert errors.mean() < 0.05 * first


@pytest.mark.parametrize("settings", ALL, ids=str)
def test_a_state_is_taken_over_to_the_bit(settings):
    learner, other = make(TINY.replace(**settings)), make(TINY.replace(**settings), seed=2)
    for seed in range(3):
        learner.learn(make_batch(seed))
    other.act(make_batch().obs)  # so that its generator has moved too
    other.load_state(learner.state())
    for n in (4, 7):
        np.testing.assert_array_equal(learner.act(make_batch().obs[:n]), other.act(make_batch().obs[:n]))
    np.testing.assert_array_equal(learner.learn(make_batch(5))[1], other.learn(make_batch(5))[1])
    assert same(weights(learner), weights(other))


def test_the_state_of_a_head_of_as_many_numbers_is_refused():
    learner, saved = make(TINY.replace(**HEADS["quantile"])), make(TINY.replace(**HEADS["c51"])).state()
    with pytest.raises(ConfigError, match="--head is 'quantile'; the saved state needs 'c51'"):
        learner.load_state(saved)
    del saved["head"]  # as states of before heads had names
    make(TINY.replace(**HEADS["c51"])).load_state(saved)


# --- random numbers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [HEADS["iqn"], {"noisy": True}], ids=str)
def test_each_update_draws_anew_and_another_seed_draws_others(settings):
    one, other = (make(TINY.replace(**settings), seed=seed) for seed in (1, 2))
    name, drawn = ("noise" if "noisy" in settings else "taus"), []
    for learner in (one, other):
        for _ in range(2):
            learner.learn(make_batch())
            drawn.append(learner._draws[name].clone())
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(drawn, 2))
    flat = torch.stack(drawn)
    assert len(flat.unique()) == flat.numel()  # nothing is shared by networks or rows
    if name == "taus":
        assert 0 <= flat.min() < 0.05
        assert 0.95 < flat.max() < 1
    else:
        assert abs(flat.mean()) < 0.1
        assert abs(flat.std() - 1) < 0.1


@pytest.mark.parametrize("settings", [{}, HEADS["c51"], HEADS["quantile"], {"munchausen": True}], ids=str)
def test_without_them_nothing_is_drawn_and_no_tensor_made(settings):
    learner = make(TINY.replace(**settings))
    before = learner._generator.get_state()
    learner.learn(make_batch())
    learner.act(make_batch().obs[:4])
    assert learner._draws == learner._drawn == {}
    assert torch.equal(learner._generator.get_state(), before)
    assert learner.state()["generator"] is None


@pytest.mark.parametrize("settings", [HEADS["iqn"], {"noisy": True}], ids=str)
def test_the_global_generator_has_no_part_in_it(settings):
    learner, other = make(TINY.replace(**settings)), make(TINY.replace(**settings))
    before = torch.get_rng_state()
    learner.learn(make_batch())
    learner.act(make_batch().obs[:4])
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    other.learn(make_batch())
    assert same(weights(learner), weights(other))


# --- noisy layers -------------------------------------------------------------------------------------


def test_noise_is_factorised_and_each_stream_has_its_own():
    layer = NoisyLinear(2, 4, streams=2)
    with torch.no_grad():
        layer.weight.zero_(), layer.bias.zero_(), layer.weight_sigma.fill_(1.0), layer.bias_sigma.fill_(10.0)
    # f(4) = 2, f(-9) = -3, f(1) = 1, f(0) = 0 of the inputs, a pair for each stream; 1, -2, 3, 4 of the outputs.
    noise = torch.tensor([4.0, -9, 1, 0, 1, -4, 9, 16])
    weight, bias = layer.sample(noise)
    assert weight.tolist() == [[2, -3], [-4, 6], [3, 0], [4, 0]]
    assert bias.tolist() == [10, -20, 30, 40]
    assert layer.noise_size == 8
    assert layer(torch.tensor([[1.0, 1]]), noise).tolist() == [[9, -18, 33, 44]]
    assert layer(torch.tensor([[1.0, 1]])).tolist() == [[0, 0, 0, 0]]


def test_noisy_layers_begin_as_the_paper_says():
    layer = NoisyLinear(16, 300)
    assert layer.weight.abs().max() <= 1 / 4
    assert layer.weight.std().item() == pytest.approx(0.25 / 3**0.5, rel=0.05)  # uniform within 1 / root of the inputs
    assert torch.equal(layer.weight_sigma, torch.full((300, 16), 0.5 / 4))
    assert torch.equal(layer.bias_sigma, torch.full((300,), 0.5 / 4))


def test_gradients_of_noisy_layers_are_those_of_differences_in_float64():
    layer, generator = NoisyLinear(3, 4, streams=2).double(), torch.Generator().manual_seed(0)
    x, noise = (torch.randn(n, generator=generator, dtype=torch.float64) for n in ((5, 3), (layer.noise_size,)))
    names = [name for name, _ in layer.named_parameters()]

    def through(*parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x, noise))

    assert torch.autograd.gradcheck(through, tuple(p.detach().requires_grad_() for p in layer.parameters()))


@pytest.mark.parametrize("dueling", [True, False])
def test_training_acts_with_noise_and_evaluations_without(dueling):
    learner = make(TINY.replace(noisy=True, dueling=dueling))
    with torch.no_grad():
        learner._flat.values.mul_(3)  # so that actions differ
    obs = np.random.default_rng(0).random((4, 1, 10, 5), np.float32)
    seen = [learner.act(obs) for _ in range(30)]
    assert len({tuple(actions) for actions in seen}) > 1
    many = np.concatenate([obs] * 3)  # of another number than compiled functions take
    assert len({tuple(learner.act(many)) for _ in range(30)}) > 1
    values = [learner.q_values(obs) for _ in range(3)]
    assert np.array_equal(values[0], values[1])
    assert np.array_equal(values[0], values[2])
    np.testing.assert_allclose(values[0], forward(learner.online, obs), rtol=1e-5, atol=1e-5)
    rng = learner._generator.get_state()
    noise = torch.randn(learner.online.noise_size, generator=learner._generator).numpy()
    expected = forward(learner.online, obs, None, noise)
    learner._generator.set_state(rng)
    np.testing.assert_array_equal(learner.act(obs), expected.argmax(1))


def test_noise_is_learned():
    learner = make(TINY.replace(noisy=True))
    sigmas = {name: p.clone() for name, p in learner.online.named_parameters() if "sigma" in name}
    assert len(sigmas) == 6
    for seed in range(3):
        learner.learn(make_batch(seed))
    assert all(not torch.equal(p, sigmas[name]) for name, p in learner.online.named_parameters() if "sigma" in name)


# --- Catch --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("frames", "settings"),
    [
        (40_000, {"head": "c51", "v_max": 2.0}), (20_000, {"head": "quantile"}), (20_000, {"head": "iqn"}),
        (20_000, {"munchausen": True}), (20_000, {"head": "quantile", "munchausen": True}),
        (20_000, {"head": "iqn", "munchausen": True}),
        (40_000, {"head": "c51", "munchausen": True}),  # whose bonuses are returns too: a v_max of 2 is too small
        (20_000, {"noisy": True}),
        (40_000, {"noisy": True, "head": "iqn", "epsilon_start": 0.0, "epsilon_end": 0.0}),  # 20,000: not everywhere
    ],
    ids=str,
)  # fmt: skip
def test_each_head_solves_catch(tmp_path, frames, settings):
    config = PRESETS["catch"].config.replace(total_frames=frames, compile=False, films=False, quantiles=8, **settings)
    assert start(config, tmp_path).evaluation.last.mean >= 0.9
