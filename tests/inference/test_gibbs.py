"""Gibbs chains against exact averages, within their statistical error."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from freenergy.inference import ChainState, gibbs
from freenergy.inference.gibbs import random_hidden
from freenergy.random import RandomStream

PAIRS = [("bernoulli", "bernoulli"), ("spin", "spin"), ("bernoulli", "spin"), ("ternary", "spin")]
UNITS = pytest.mark.parametrize("units", PAIRS, ids="-".join)
N_CHAINS = 20_000


def largest_z(chains: ChainState, reference) -> float:
    """Largest deviation of a mean or a correlation from the table, in standard errors.

    Every chain counts once, so that the draws are independent.
    """
    v, h = chains.visible.double().numpy(), chains.hidden.double().numpy()
    pv, ph = reference.probability.sum(1), reference.probability.sum(0)
    square = (reference.v**2).T @ reference.probability @ reference.h**2
    z = []
    for estimate, exact, second in (
        (v.mean(0), reference.visible, pv @ reference.v**2),
        (h.mean(0), reference.hidden, ph @ reference.h**2),
        (v.T @ h / len(v), reference.correlation, square),
    ):
        z.append(np.abs(estimate - exact) / np.sqrt((second - exact**2) / len(v)))
    return max(float(x.max()) for x in z)


@UNITS
@pytest.mark.parametrize("beta", [0.4, 1.0, 1.6])
def test_long_chains_reproduce_exact_means_and_correlations(rbm, table, random, units, beta):
    """34 numbers, of which the largest |z| stays below 4.5 (p = 2e-4 for all of them)."""
    scale = 0.6 if units[0] == "bernoulli" else 0.3
    model = rbm(6, 4, visible=units[0], hidden=units[1], scale=scale)
    chains = gibbs(model, N_CHAINS, 40, beta=beta, random=random)
    assert largest_z(chains, table(model, beta)) < 4.5
    # The same chains tell the temperature apart.
    assert largest_z(chains, table(model, beta * 1.3)) > 8


def test_one_step_from_equilibrium_stays_in_equilibrium(rbm, table, random):
    """Also for couplings so strong that a chain would never get there on its own."""
    model, beta = rbm(6, 4, visible="spin", hidden="spin", scale=1.5, bias=0.1), 1.2
    reference = table(model, beta)
    p = np.exp(reference.log_marginal)
    rows = np.random.default_rng(0).choice(len(p), size=N_CHAINS, p=p / p.sum())
    chains = gibbs(model, torch.from_numpy(reference.v[rows]), 1, beta=beta, random=random)
    assert largest_z(chains, reference) < 4.5


def test_a_chain_at_another_beta_differs(rbm):
    model = rbm(6, 4, scale=1.0)
    start = torch.ones(100, 6).double()
    cold, warm = (gibbs(model, start, 3, beta=b, random=RandomStream(0)) for b in (2.0, 1.0))
    assert not torch.equal(cold.visible, warm.visible)
    default = gibbs(model, start, 3, random=RandomStream(0))
    assert torch.equal(default.visible, warm.visible)
    assert torch.equal(default.hidden, warm.hidden)


@UNITS
def test_at_infinite_temperature_every_value_is_as_likely(rbm, random, units):
    model = rbm(6, 4, visible=units[0], hidden=units[1], scale=5.0, bias=5.0)
    chains = gibbs(model, N_CHAINS, 1, beta=0.0, random=random)
    for layer, unit in ((chains.visible, model.visible), (chains.hidden, model.hidden)):
        for value in unit.support:
            share = (layer == value).double().mean(0)
            p = 1 / len(unit.support)
            assert float((share - p).abs().max()) < 4.5 * (p * (1 - p) / N_CHAINS) ** 0.5


def test_a_start_is_left_as_it_was(rbm, random):
    model = rbm(6, 4, scale=1.0)
    start = torch.zeros(50, 6).double()
    chains = gibbs(model, start, 3, random=random)
    assert not start.any()
    assert chains.visible.any()
    visible, hidden = chains.visible.clone(), chains.hidden.clone()
    gibbs(model, chains, 3, random=random)
    assert torch.equal(chains.visible, visible)
    assert torch.equal(chains.hidden, hidden)
    assert not any(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("units", PAIRS[:2], ids="-".join)
def test_one_seed_gives_one_chain_in_single_and_in_double_precision(rbm, units):
    """Up to a probability that rounds across a draw, of which there is none here."""
    chains = {}
    for dtype in (torch.float32, torch.float64):
        model = rbm(6, 4, visible=units[0], hidden=units[1], scale=1.0, dtype=dtype)
        for attempt in range(2):
            chains[dtype, attempt] = gibbs(model, 100, 10, beta=0.8, random=RandomStream(5))
    first = chains[torch.float32, 0]
    assert first.visible.dtype == torch.float32
    for other in chains.values():
        assert torch.equal(first.visible, other.visible.float())
        assert torch.equal(first.hidden, other.hidden.float())
    elsewhere = gibbs(model, 100, 10, beta=0.8, random=RandomStream(6))
    assert not torch.equal(elsewhere.visible, first.visible.double())


def test_a_chain_can_be_continued(rbm):
    model = rbm(6, 4, scale=1.0)
    stream = RandomStream(2)
    halfway = gibbs(model, 30, 4, beta=0.8, random=stream)
    parts = gibbs(model, halfway, 6, beta=0.8, random=stream)
    whole = gibbs(model, 30, 10, beta=0.8, random=RandomStream(2))
    assert torch.equal(parts.visible, whole.visible)
    assert torch.equal(parts.hidden, whole.hidden)


def test_no_step_only_draws_the_hidden_units(rbm, random):
    model = rbm(6, 4, scale=1.0)
    start = torch.tensor([[1.0, 0, 1, 1, 0, 0]]).double().repeat(N_CHAINS, 1)
    chains = gibbs(model, start, 0, beta=0.7, random=random)
    assert torch.equal(chains.visible, start)
    mean = model.hidden_mean(start[:1], 0.7).detach()
    z = (chains.hidden.mean(0) - mean) / (mean * (1 - mean) / N_CHAINS).sqrt()
    assert float(z.abs().max()) < 4.5
    same = gibbs(model, chains, 0, random=random)
    assert torch.equal(same.hidden, chains.hidden)


def test_one_step_is_v_h_v_h(rbm):
    model = rbm(6, 4, scale=1.0)
    start = torch.zeros(20, 6).double()
    stream = RandomStream(3)
    h = model.sample_hidden(start, stream, 0.9)
    v = model.sample_visible(h, stream, 0.9)
    h = model.sample_hidden(v, stream, 0.9)
    chains = gibbs(model, start, 1, beta=0.9, random=RandomStream(3))
    assert torch.equal(chains.visible, v)
    assert torch.equal(chains.hidden, h)


def test_a_single_chain_moves_whatever_the_shape_of_its_start(rbm):
    model = rbm(6, 4, scale=0.5)
    chain = gibbs(model, torch.zeros(6).double(), 5, random=RandomStream(0))
    batch = gibbs(model, torch.zeros(1, 6).double(), 5, random=RandomStream(0))
    assert torch.equal(chain.visible, batch.visible[0])
    assert torch.equal(chain.hidden, batch.hidden[0])


def test_a_start_in_another_type_is_converted(rbm, random):
    model = rbm(6, 4, dtype=torch.float32)
    chains = gibbs(model, torch.ones(3, 6, dtype=torch.int64), 1, random=random)
    assert chains.visible.dtype == torch.float32


def test_hidden_states_that_know_nothing_are_uniform(rbm, random):
    model = rbm(6, 4, hidden="spin", bias=5.0)
    h = random_hidden(model, N_CHAINS, random)
    assert h.shape == (N_CHAINS, 4)
    assert float(h.mean(0).abs().max()) < 4.5 / N_CHAINS**0.5


def test_impossible_requests_are_refused(rbm, random):
    model = rbm(6, 4)
    with pytest.raises(ValueError, match="n_steps must not be negative, got -1"):
        gibbs(model, 5, -1, random=random)
    with pytest.raises(ValueError, match="at least one chain is needed, got 0"):
        gibbs(model, 0, random=random)


def test_the_state_is_readable_and_frozen(rbm, random):
    chains = gibbs(rbm(6, 4), 5, random=random)
    assert repr(chains) == "ChainState(n_chains=5, n_visible=6, n_hidden=4)"
    with pytest.raises(AttributeError):
        chains.visible = None
