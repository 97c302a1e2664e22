"""The optimizers against numbers worked out by hand and against PyTorch's own."""

import math

import pytest
import torch

from fastrl.config import DQNConfig
from fastrl.dqn.flat import FlatParameters
from fastrl.dqn.openmp import openmp_parallel
from fastrl.dqn.optimizer import (
    RMSPROP_EPS,
    CentredRMSProp,
    FlatOptimizer,
    build_optimizer,
    load_moments,
    moments,
    set_rate,
)

CPU = torch.device("cpu")


def parameter(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def test_two_steps_by_hand():
    p = parameter(1.0)
    optimizer = CentredRMSProp([p], lr=0.1, rho=0.5, eps=0.01)
    p.grad = torch.tensor([2.0], dtype=torch.float64)
    optimizer.step()  # m = 1, v = 2
    after_one = 1 - 0.1 * 2 / math.sqrt(2 - 1 + 0.01)
    assert p.item() == pytest.approx(after_one, rel=1e-14)
    p.grad = torch.tensor([-1.0], dtype=torch.float64)
    optimizer.step()  # m = 0, v = 1.5
    assert p.item() == pytest.approx(after_one + 0.1 * 1 / math.sqrt(1.5 + 0.01), rel=1e-14)


def test_eps_stands_inside_the_root():
    p = parameter(0.0)
    p.grad = torch.full((1,), 1e-6, dtype=torch.float64)
    CentredRMSProp([p], lr=1.0, eps=0.01).step()
    assert p.item() == pytest.approx(-1e-6 / math.sqrt(0.01), rel=1e-6)  # outside it would be 1e-6 / 0.01


def test_the_eps_for_a_mean_takes_the_steps_that_the_papers_takes_for_its_sum_over_32_rows():
    """Mnih et al. 2015: eps 0.01, and a gradient summed over the minibatch."""
    by_sum, by_mean = parameter(1.0, -2.0), parameter(1.0, -2.0)
    theirs, ours = CentredRMSProp([by_sum], eps=0.01), CentredRMSProp([by_mean], eps=RMSPROP_EPS)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        rows = torch.randn(32, 2, generator=generator, dtype=torch.float64) * 0.01
        by_sum.grad, by_mean.grad = rows.sum(0), rows.mean(0)
        theirs.step()
        ours.step()
    torch.testing.assert_close(by_mean, by_sum, rtol=1e-12, atol=0)


def test_without_eps_it_is_torchs_centred_rmsprop():
    generator = torch.Generator().manual_seed(0)
    ours, theirs = parameter(1.0, -2.0, 3.0), parameter(1.0, -2.0, 3.0)
    a = CentredRMSProp([ours], lr=1e-3, rho=0.9, eps=1e-14)
    b = torch.optim.RMSprop([theirs], lr=1e-3, alpha=0.9, eps=1e-14, centered=True)
    for _ in range(20):
        grad = torch.randn(3, generator=generator, dtype=torch.float64)
        ours.grad, theirs.grad = grad.clone(), grad.clone()
        a.step()
        b.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=0)


def test_parameters_without_gradient_stay():
    p, q = parameter(1.0), parameter(2.0)
    optimizer = CentredRMSProp([p, q])
    optimizer.step()
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert p.item() != 1
    assert q.item() == 2


def test_a_closure_is_called_with_gradients():
    p = parameter(3.0)
    optimizer = CentredRMSProp([p])

    def closure() -> float:
        loss = (p**2).sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 9
    assert p.item() < 3


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
@pytest.mark.parametrize("tensor", [False, True])
def test_a_new_rate_scales_the_next_step_and_no_other(optimizer, tensor):
    """With a tensor as rate as on a GPU, where a recorded graph goes on reading it."""

    def steps(*rates: float) -> list[float]:
        p = parameter(0.0)
        built = build_optimizer(DQNConfig(optimizer=optimizer, learning_rate=rates[0]), [p], CPU)
        if tensor:
            built.param_groups[0] |= {"lr": torch.tensor(rates[0], dtype=torch.float64), "capturable": True}
        rate, taken = built.param_groups[0]["lr"], []
        for number in rates:
            set_rate(built, number)
            p.grad, before = torch.ones_like(p), p.item()
            built.step()
            taken.append(p.item() - before)
        assert not tensor or built.param_groups[0]["lr"] is rate
        return taken

    plain, changed = steps(0.5, 0.5, 0.5), steps(0.5, 0.125, 0.5)
    assert changed == pytest.approx([plain[0], plain[1] / 4, plain[2]], rel=1e-6)


def test_the_settings_build_each_optimizer_with_its_own_eps():
    adam = build_optimizer(DQNConfig(batch_size=100, learning_rate=1e-3), [parameter(1.0)], CPU)
    assert isinstance(adam, torch.optim.Adam)
    assert adam.param_groups[0]["eps"] == 0.005 / 100
    assert adam.param_groups[0]["lr"] == 1e-3
    rmsprop = build_optimizer(DQNConfig(optimizer="rmsprop"), [parameter(1.0)], CPU)
    assert isinstance(rmsprop, CentredRMSProp)
    assert rmsprop.param_groups[0]["eps"] == RMSPROP_EPS
    for name in ("adam", "rmsprop"):
        config = DQNConfig(optimizer=name, optimizer_eps=0.125)
        assert build_optimizer(config, [parameter(1.0)], CPU).param_groups[0]["eps"] == 0.125


@pytest.mark.parametrize("name", ["adam", "rmsprop"])
def test_moments_are_kept_parameter_by_parameter_and_loaded_into_the_same_layout(name):
    def network() -> FlatParameters:
        w = torch.arange(36.0).reshape(2, 2, 3, 3).contiguous(memory_format=torch.channels_last)
        flat = FlatParameters([torch.nn.Parameter(w), torch.nn.Parameter(torch.arange(5.0))])
        for view in flat.views(flat.grads):
            view.copy_(torch.linspace(-1, 1, view.numel()).reshape(view.shape))
        return flat

    config = DQNConfig(optimizer=name)
    ours, other = network(), network()
    saved = build_optimizer(config, [ours.values], CPU)
    saved.step()
    with torch.no_grad():
        other.values.copy_(ours.values)
    kept = {i: {k: v.contiguous() for k, v in found.items()} for i, found in moments(saved, ours).items()}
    assert {k: list(v.shape) for k, v in kept[0].items() if v.dim()} == {
        k: [2, 2, 3, 3] for k, v in kept[0].items() if v.dim()
    }
    loaded = build_optimizer(config, [other.values], CPU)
    load_moments(loaded, other, kept)
    for one, two in zip(moments(saved, ours).values(), moments(loaded, other).values(), strict=True):
        assert all(torch.equal(one[k], two[k]) and one[k].stride() == two[k].stride() for k in one)
    saved.step()
    loaded.step()
    assert torch.equal(ours.values, other.values)
    load_moments(loaded, other, {})
    assert all(not value.any() for found in moments(loaded, other).values() for value in found.values())


def two_parameters() -> FlatParameters:
    """Return a weight whose channels lie last, of several blocks of the kernel, and a bias."""
    w = torch.linspace(-1, 1, 64 * 3 * 8 * 8).reshape(64, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    return FlatParameters([torch.nn.Parameter(w), torch.nn.Parameter(torch.arange(5.0))])


def gradients(flat: FlatParameters, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(view.shape, generator=generator) for view in flat.views(flat.values.data)]


@pytest.mark.parametrize("most", [1e6, 10.0])
def test_the_kernel_steps_as_torchs_adam_does_on_clipped_gradients(most):
    config = DQNConfig(max_grad_norm=most, learning_rate=1e-2)
    ours, other = two_parameters(), two_parameters()
    views = other.views(other.values.data)
    kernel, adam = FlatOptimizer(config, views, ours, CPU), build_optimizer(config, [other.values], CPU)
    assert kernel.keeps_copies  # or this compares PyTorch with itself
    for seed in range(5):
        grads = gradients(ours, seed)  # of the plain layout, which is not the weight's
        for view, g in zip(other.views(other.grads), grads, strict=True):
            view.copy_(g)
        wanted = torch.nn.utils.clip_grad_norm_([other.values], most)
        adam.step()
        assert kernel.step(grads).item() == pytest.approx(wanted.item(), rel=1e-5)
        torch.testing.assert_close(ours.values, other.values, rtol=0, atol=2e-6)
    for one, two in zip(kernel.state()["moments"].values(), moments(adam, other).values(), strict=True):
        for name in ("step", "exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-7)


def test_a_copy_in_bfloat16_stays_that_of_its_parameter():
    flat = two_parameters()
    weight, bias = flat.views(flat.values.data)
    copy = weight.to(torch.bfloat16, memory_format=torch.preserve_format)
    optimizer = FlatOptimizer(DQNConfig(learning_rate=0.1), [weight, bias], flat, CPU, [copy, None])
    before = copy.clone()
    optimizer.step([g.to(torch.bfloat16) for g in gradients(flat, 0)])
    assert torch.equal(copy, weight.to(torch.bfloat16))
    assert not torch.equal(copy, before)


@pytest.mark.parametrize("name", ["adam", "rmsprop"])
def test_an_optimizer_goes_on_from_its_state(name):
    config = DQNConfig(optimizer=name)
    ours, other = two_parameters(), two_parameters()
    saved, loaded = (FlatOptimizer(config, f.views(f.values.data), f, CPU) for f in (ours, other))
    saved.step(gradients(ours, 0))
    loaded.step(gradients(ours, 7))  # moments that are to be forgotten
    with torch.no_grad():
        other.values.copy_(ours.values)
    loaded.load_state(saved.state())
    for seed in (1, 2):
        for optimizer in (saved, loaded):
            optimizer.step(gradients(ours, seed))
    assert torch.equal(ours.values, other.values)


def test_threads_share_a_step_and_change_nothing_of_it():
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            flat = two_parameters()
            optimizer = FlatOptimizer(DQNConfig(), flat.views(flat.values.data), flat, CPU)
            for seed in range(3):
                optimizer.step(gradients(flat, seed))
            found.append(flat.values.detach().clone())
    finally:
        torch.set_num_threads(before)
    assert openmp_parallel()  # or one thread did it all
    assert all(torch.equal(one, found[0]) for one in found)


def test_moments_are_made_where_the_parameters_are_the_count_of_steps_too():
    """The fused kernels of a GPU read it there, and what is loaded lies on the CPU."""
    saved = FlatParameters([torch.nn.Parameter(torch.ones(3))])
    optimizer = torch.optim.Adam([saved.values])
    saved.values.grad = torch.ones_like(saved.values)
    optimizer.step()
    with torch.device("meta"):
        elsewhere = FlatParameters([torch.nn.Parameter(torch.ones(3))])
    loaded = torch.optim.Adam([elsewhere.values])
    load_moments(loaded, elsewhere, moments(optimizer, saved))
    assert {name: value.device.type for name, value in loaded.state[elsewhere.values].items()} == dict.fromkeys(
        ("step", "exp_avg", "exp_avg_sq"), "meta"
    )
