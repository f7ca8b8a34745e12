"""Batch normalisation, over whole batches and ghost batches, and its population statistics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from freenergy.normalization.layers import (
    BatchNorm,
    GhostBatchNorm,
    of_whole_batches,
    over_processes,
    set_population_statistics,
)


def rows(n, width=3, seed=0, shift=2.0, scale=5.0):
    draws = np.random.default_rng(seed).normal(shift, scale, (n, width))
    return torch.from_numpy(draws)


def normalised(x):
    return (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()


def affine(layer, seed=1):
    """A layer in double precision whose scale and shift are not 1 and 0."""
    layer = layer.double()
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(rng.uniform(0.5, 2.0, layer.num_features)))
        layer.bias.copy_(torch.from_numpy(rng.normal(size=layer.num_features)))
    return layer


# ---- one batch -----------------------------------------------------------------------------------


def test_training_normalises_by_the_batch():
    layer, x = affine(BatchNorm(3)), rows(20)
    expected = normalised(x) * layer.weight + layer.bias
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_a_batch_of_one_row_is_normalised_by_the_running_averages_and_changes_none():
    layer = affine(BatchNorm(3))
    for seed in range(5):
        layer(rows(20, seed=seed))
    before = [b.clone() for b in layer.buffers()]
    x = rows(1, seed=9)
    assert layer.training
    found = layer(x)
    layer.eval()
    torch.testing.assert_close(found, layer(x), rtol=0, atol=0)
    for a, b in zip(before, layer.buffers(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("make", [BatchNorm, GhostBatchNorm])
def test_one_row_has_a_gradient(make):
    layer, x = make(3).double(), rows(1).requires_grad_()
    layer(x).sum().backward()
    assert torch.isfinite(x.grad).all()
    assert (x.grad != 0).all()


# ---- ghost batches -------------------------------------------------------------------------------


def test_ghost_batches_are_normalised_each_by_itself():
    layer, x = affine(GhostBatchNorm(3, 8)), rows(32)
    expected = torch.cat([normalised(p) for p in x.split(8)]) * layer.weight + layer.bias
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


@given(n=st.integers(2, 70), size=st.integers(2, 40))
@settings(max_examples=40, deadline=None)
def test_no_ghost_batch_is_smaller_than_asked_unless_the_batch_is(n, size):
    layer, x = GhostBatchNorm(2, size).double(), rows(n, 2)
    y = layer(x)
    parts = x.tensor_split(max(1, n // size))
    assert min(map(len, parts)) >= min(size, n)
    torch.testing.assert_close(y, torch.cat([normalised(p) for p in parts]))


def test_running_averages_of_ghost_batches_are_those_of_as_many_small_batches():
    ghost, plain = GhostBatchNorm(3, 8).double(), BatchNorm(3).double()
    x = rows(32)
    ghost(x)
    for part in x.split(8):
        plain(part)
    assert torch.equal(ghost.running_mean, plain.running_mean)
    assert torch.equal(ghost.running_var, plain.running_var)
    # (1 - 0.1)^4 of the start is left, which was a variance of 1.
    expected = 0.9**4 + sum(0.1 * 0.9 ** (3 - k) * p.var(0) for k, p in enumerate(x.split(8)))
    torch.testing.assert_close(ghost.running_var, expected, rtol=1e-12, atol=0)


def test_prediction_knows_no_ghost_batches():
    ghost, plain = GhostBatchNorm(3, 8).double().eval(), BatchNorm(3).double().eval()
    assert torch.equal(ghost(rows(32)), plain(rows(32)))


def test_a_ghost_batch_of_one_row_is_refused():
    with pytest.raises(ValueError, match="ghost_batch_size must be at least 2, got 1"):
        GhostBatchNorm(3, 1)


# ---- several processes ---------------------------------------------------------------------------


def learned(layer, x, slopes):
    """Outputs, and the slopes of Σ slopes·y along the rows and the parameters."""
    x = x.clone().requires_grad_()
    y = layer(x)
    (slopes * y).sum().backward()
    return y.detach(), x.grad, layer.weight.grad, layer.bias.grad


@pytest.mark.parametrize("shift", [0.0, 1e4])
@pytest.mark.parametrize("ends", [(0, 7, 20), (0, 1, 20), (0, 20, 20), (0, 3, 3, 12, 20)], ids=str)
def test_the_parts_of_several_processes_are_normalised_as_the_whole_batch(together, ends, shift):
    whole, x, slopes = affine(BatchNorm(3)), rows(20, shift=shift), rows(20, seed=1, scale=1.0)
    y, along_x, *along_parameters = learned(whole, x, slopes)

    def work(group):
        layer, own = affine(BatchNorm(3)), slice(ends[group.rank], ends[group.rank + 1])
        with over_processes([layer], group):
            found = learned(layer, x[own], slopes[own])
        return found, list(layer.buffers())

    found, buffers = zip(*together(len(ends) - 1, work), strict=True)
    # Numbers of this size are known to twelve digits beside the shift.
    close = {"rtol": 1e-11, "atol": 1e-11 * (1.0 + shift / 10.0)}
    torch.testing.assert_close(torch.cat([part[0] for part in found]), y, **close)
    torch.testing.assert_close(torch.cat([part[1] for part in found]), along_x, **close)
    for k, expected in enumerate(along_parameters, start=2):
        torch.testing.assert_close(sum(part[k] for part in found), expected, **close)
    for kept in buffers:
        torch.testing.assert_close(kept, list(whole.buffers()), **close)


def test_the_only_row_of_all_processes_is_normalised_by_the_running_averages(together):
    x = rows(1)

    def work(group):
        layer = affine(BatchNorm(3))
        layer(rows(20))
        before = [b.clone() for b in layer.buffers()]
        with over_processes([layer], group):
            y = layer(x[group.rank :])
        assert all(map(torch.equal, layer.buffers(), before))
        return y, layer.eval()(x)

    (first, expected), (second, _) = together(2, work)
    assert torch.equal(first, expected)
    assert second.shape == (0, 3)


def test_processes_that_were_not_asked_to_normalise_by_themselves(together):
    layer, ghost = BatchNorm(3).double(), GhostBatchNorm(3).double()
    assert of_whole_batches(nn.Sequential(layer, nn.ReLU(), ghost)) == [layer]
    (group, _) = together(2, lambda group: group)
    with pytest.raises(RuntimeError, match="the pass failed"), over_processes([layer], group):
        raise RuntimeError("the pass failed")
    # Nothing is left that a copy or a pickle would carry along, and nobody is waited for.
    assert "group" not in vars(layer)
    torch.testing.assert_close(layer(rows(20)), normalised(rows(20)), rtol=1e-12, atol=1e-12)


# ---- population statistics -----------------------------------------------------------------------


def deep(make=BatchNorm):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(3, 6), make(6), nn.ReLU(), nn.Linear(6, 4), make(4), nn.Tanh(), nn.Linear(4, 2)
    ).double()


@pytest.mark.parametrize("make", [BatchNorm, GhostBatchNorm])
def test_all_rows_come_out_of_each_normalisation_with_mean_0_and_unbiased_variance_1(make):
    net, x = deep(make), rows(50)
    net.train()
    for part in x.split(17):
        net(part)
    set_population_statistics(net, x.split(13))
    assert not net.training
    with torch.no_grad():
        for k, layer in enumerate(net):
            if isinstance(layer, nn.BatchNorm1d):
                y, variance = net[: k + 1](x), net[:k](x).var(0)
                torch.testing.assert_close(
                    y.mean(0), torch.zeros_like(variance), rtol=0, atol=1e-12
                )
                torch.testing.assert_close(
                    y.var(0), variance / (variance + 1e-5), rtol=1e-12, atol=0
                )


def test_the_blocks_make_no_difference():
    x, found = rows(50), []
    for size in (50, 7, 1):
        net = deep()
        set_population_statistics(net, iter(x.split(size)))
        found.append(net.state_dict())
    for other in found[1:]:
        for name, value in found[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-12, atol=1e-14)


def test_sums_are_in_double_precision():
    """In single precision a variance of 1 on top of a mean of 10⁴ would be lost to rounding."""
    x = rows(100_000, 1, shift=1e4, scale=1.0).float()
    net = nn.Sequential(BatchNorm(1))
    set_population_statistics(net, x.split(4096))
    assert float(net[0].running_mean) == pytest.approx(float(x.double().mean()), rel=1e-7)
    assert float(net[0].running_var) == pytest.approx(float(x.double().var()), rel=1e-6)


def test_a_constant_column_stays_finite():
    x = rows(10)
    x[:, 1] = 1e4
    net = nn.Sequential(BatchNorm(3)).double()
    set_population_statistics(net, [x])
    assert float(net[0].running_var[1]) == 0.0
    # Rounding of 10⁴ in double precision, over the root of ε.
    assert float(net(x).detach()[:, 1].abs().max()) < 1e-9


def test_one_row_leaves_the_running_averages():
    net = nn.Sequential(BatchNorm(3)).double()
    net(rows(20))
    before = net[0].running_var.clone()
    set_population_statistics(net, [rows(1)])
    assert torch.equal(net[0].running_var, before)


def test_a_net_without_normalisation_is_left_alone():
    net = nn.Sequential(nn.Linear(3, 2)).double().train()
    set_population_statistics(net, [rows(5)])
    assert not net.training
