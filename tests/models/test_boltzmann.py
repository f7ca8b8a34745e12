"""The Boltzmann machine: its energy, couplings that stay symmetric, and Gibbs sampling."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from freenergy.inference import exact_boltzmann
from freenergy.models import BoltzmannMachine
from freenergy.random import RandomStream

UNITS = pytest.mark.parametrize("unit", ["spin", "bernoulli"])


def random_machine(n: int, *, unit: str = "spin", scale: float = 0.5, n_hidden: int = 0, seed=0):
    rng = np.random.default_rng([seed, n])
    upper = np.triu(rng.normal(0, scale, (n, n)), 1)
    return BoltzmannMachine.from_coupling(
        torch.from_numpy(upper + upper.T),
        torch.from_numpy(rng.normal(0, 0.5, n)),
        unit=unit,
        n_hidden=n_hidden,
    )


def all_states(unit: str, n: int) -> torch.Tensor:
    values = (-1.0, 1.0) if unit == "spin" else (0.0, 1.0)
    return torch.tensor(list(itertools.product(values, repeat=n)), dtype=torch.float64)


@UNITS
@pytest.mark.parametrize("beta", [0.4, 1.0, 2.5])
def test_the_energy_is_a_sum_over_pairs(unit, beta):
    machine, states = random_machine(5, unit=unit), all_states(unit, 5)
    weight, bias = machine.weight.detach().numpy(), machine.bias.detach().numpy()
    for s, energy in zip(states.numpy(), machine.energy(states, beta).detach(), strict=True):
        pairs = sum(weight[i, j] * s[i] * s[j] for i in range(5) for j in range(i + 1, 5))
        assert float(energy) == pytest.approx(-beta * (bias @ s + pairs), abs=1e-13)


@UNITS
def test_the_local_field_is_what_a_flip_costs(unit):
    machine, states = random_machine(5, unit=unit), all_states(unit, 5)
    low, high = machine.unit.support
    for i in range(5):
        up, down = states.clone(), states.clone()
        up[:, i], down[:, i] = high, low
        cost = machine.energy(down, 1.3) - machine.energy(up, 1.3)
        field = machine.local_field(states, 1.3)[:, i]
        assert_allclose(((high - low) * field).detach(), cost.detach(), atol=1e-13)
        probability = 1 / (1 + torch.exp(-cost))
        mean = low + (high - low) * probability
        assert_allclose(machine.conditional_mean(states, 1.3)[:, i].detach(), mean.detach())


@UNITS
def test_an_rbm_is_a_boltzmann_machine(rbm, table, unit):
    model = rbm(4, 3, visible=unit, hidden=unit)
    machine = BoltzmannMachine.from_rbm(model)
    truth, found = table(model, 1.3), exact_boltzmann(machine, 1.3)
    assert found.log_partition == pytest.approx(truth.log_partition, abs=1e-12)
    assert found.energy == pytest.approx(truth.mean_energy, abs=1e-12)
    assert_allclose(found.mean, np.concatenate([truth.visible, truth.hidden]), atol=1e-13)
    assert_allclose(found.second_moment[:4, 4:], truth.correlation, atol=1e-13)
    assert [block.tolist() for block in machine.blocks] == [[0, 1, 2, 3], [4, 5, 6]]
    assert int(machine.pairs.sum()) == 4 * 3


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_an_optimiser_keeps_the_couplings_symmetric_without_a_diagonal(optimizer):
    machine = random_machine(6, n_hidden=2)
    step = optimizer(machine.parameters(), lr=0.1, weight_decay=0.1)
    states = all_states("spin", 6)[:20]
    for _ in range(5):
        step.zero_grad()
        (machine.energy(states) ** 2).sum().backward()
        step.step()
    coupling = machine.coupling.detach()
    assert torch.equal(coupling, coupling.T)
    assert not bool(coupling.diagonal().any())
    assert not bool(machine.weight.detach().tril().any())


def test_the_slope_of_the_energy_in_a_coupling_counts_the_pair_once():
    machine = random_machine(4)
    s = torch.tensor([[1.0, -1, -1, 1]]).double()
    machine.energy(s).sum().backward()
    assert_allclose(machine.weight.grad, -torch.outer(s[0], s[0]).triu(1))
    assert_allclose(machine.bias.grad, -s[0])


def test_a_pair_that_is_not_connected_never_gets_a_coupling():
    connected = ~torch.eye(5, dtype=torch.bool)
    connected[0, 1] = connected[1, 0] = False
    machine = BoltzmannMachine(5, connected=connected, dtype=torch.float64)
    machine.energy(torch.ones(1, 5).double()).sum().backward()
    assert float(machine.weight.grad[0, 1]) == 0.0
    assert float(machine.coupling.detach()[0, 1]) == 0.0
    assert sorted(len(block) for block in machine.blocks) == [1, 1, 1, 2]


@UNITS
def test_blocks_hold_every_unit_once_and_no_coupling(unit):
    rng = np.random.default_rng(3)
    upper = torch.from_numpy(np.triu(rng.random((20, 20)) < 0.2, 1))
    machine = BoltzmannMachine(15, 5, unit=unit, connected=upper | upper.T)
    assert sorted(torch.cat(machine.blocks).tolist()) == list(range(20))
    for block in machine.blocks:
        assert not bool(machine.pairs[block[:, None], block].any())
    assert len(machine.blocks) < 10


@UNITS
def test_gibbs_sweeps_reach_the_boltzmann_distribution(unit):
    machine = random_machine(5, unit=unit, scale=0.5, seed=2)
    chains = all_states(unit, 5)[:1].repeat(20_000, 1)
    chains = machine.gibbs_sweep(chains, RandomStream(0), 0.8, n_sweeps=25)
    truth = exact_boltzmann(machine, 0.8)
    error = 5 / np.sqrt(20_000)
    assert_allclose(chains.mean(0), truth.mean, atol=error)
    assert_allclose(chains.T @ chains / 20_000, truth.second_moment, atol=error)


def test_held_units_keep_their_values_and_the_others_follow_them():
    machine = random_machine(5, seed=4)
    start = torch.tensor([[1.0, -1, 1, 1, 1]]).double().repeat(20_000, 1)
    held = torch.tensor([True, True, False, False, False])
    chains = machine.gibbs_sweep(start, RandomStream(1), n_sweeps=25, held=held)
    assert torch.equal(chains[:, :2], start[:, :2])
    clamp = torch.where(held, start[0], torch.nan)
    truth = exact_boltzmann(machine, clamp=clamp)
    assert_allclose(chains.mean(0), truth.mean, atol=5 / np.sqrt(20_000))
    assert bool((start == torch.tensor([1.0, -1, 1, 1, 1])).all()), "the start is left as it was"


def test_one_seed_gives_one_chain():
    machine, start = random_machine(6), all_states("spin", 6)
    a, b = (machine.gibbs_sweep(start, RandomStream(7), n_sweeps=3) for _ in range(2))
    assert torch.equal(a, b)


@pytest.mark.parametrize("strength", [1e4, -1e4])
def test_huge_couplings_freeze_a_pair_and_stay_finite(strength):
    pair = BoltzmannMachine.from_coupling(torch.tensor([[0.0, strength], [strength, 0.0]]).double())
    chains = pair.gibbs_sweep(all_states("spin", 2), RandomStream(0), n_sweeps=2)
    assert_allclose(chains[:, 0] * chains[:, 1], np.sign(strength))
    truth = exact_boltzmann(pair)
    assert truth.log_partition == pytest.approx(abs(strength) + np.log(2), rel=1e-12)
    assert truth.entropy == pytest.approx(np.log(2), abs=1e-10)
    assert_allclose(truth.mean, 0, atol=1e-12)


def test_a_machine_is_stored_and_copied_whole():
    machine = random_machine(6, n_hidden=2)
    other = BoltzmannMachine(4, 2, dtype=torch.float64)
    other.load_state_dict(machine.state_dict())
    copy = pickle.loads(pickle.dumps(machine))
    for twin in (other, copy):
        assert torch.equal(twin.coupling, machine.coupling)
        assert torch.equal(twin.bias, machine.bias)


def test_a_machine_of_given_couplings_leaves_the_global_stream_of_torch(rbm):
    model = rbm(3, 2, visible="spin", hidden="spin")
    before = torch.get_rng_state()
    BoltzmannMachine.from_coupling(torch.zeros(3, 3))
    BoltzmannMachine.from_rbm(model)
    assert torch.equal(torch.get_rng_state(), before)


def test_impossible_machines_are_refused():
    with pytest.raises(ValueError, match="got 0 and 3"):
        BoltzmannMachine(0, 3)
    with pytest.raises(ValueError, match=r"shape \(3, 3\), got \(2, 2\)"):
        BoltzmannMachine(3, connected=torch.ones(2, 2))
    with pytest.raises(ValueError, match="symmetric: a coupling acts on both"):
        BoltzmannMachine(2, connected=torch.tensor([[False, True], [False, False]]))
    with pytest.raises(ValueError, match="square matrix"):
        BoltzmannMachine.from_coupling(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="zero diagonal"):
        BoltzmannMachine.from_coupling(torch.eye(2))
    with pytest.raises(ValueError, match="by up to 1"):
        BoltzmannMachine.from_coupling(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
    with pytest.raises(ValueError, match="zero where connected is False"):
        BoltzmannMachine.from_coupling(
            torch.tensor([[0.0, 1.0], [1.0, 0.0]]), connected=torch.zeros(2, 2)
        )


def test_an_rbm_of_two_unit_types_is_refused(rbm):
    with pytest.raises(ValueError, match="'bernoulli' and 'spin'"):
        BoltzmannMachine.from_rbm(rbm(3, 2, visible="bernoulli", hidden="spin"))


def test_a_clamp_of_enumeration_must_fit_the_units():
    machine = BoltzmannMachine(3)
    for clamp in (torch.ones(1), torch.ones(4), torch.ones(1, 3)):
        with pytest.raises(ValueError, match=r"clamp must have shape \(3,\)"):
            exact_boltzmann(machine, clamp=clamp)
    with pytest.raises(ValueError, match=r"clamp must hold values in \[-1, 1\]"):
        exact_boltzmann(machine, clamp=torch.tensor([2.0, torch.nan, torch.nan]))


def test_enumeration_of_too_many_states_is_refused():
    with pytest.raises(ValueError, match="the 21 free units have"):
        exact_boltzmann(BoltzmannMachine(21))
    with pytest.raises(ValueError, match="beta must be positive"):
        exact_boltzmann(BoltzmannMachine(2), beta=0.0)
