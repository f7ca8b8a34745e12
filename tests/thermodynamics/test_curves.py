"""Thermodynamic functions by replica exchange against the table of all joint states."""

from __future__ import annotations

import itertools
import json
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from freenergy.inference import exact
from freenergy.models import RBM
from freenergy.random import RandomStream
from freenergy.thermodynamics import curves
from freenergy.thermodynamics.curves import energy_curve, thermodynamics
from freenergy.thermodynamics.temperature import effective_temperature

QUANTITIES = ("log_partition", "free_energy", "energy", "entropy", "heat_capacity")
UNITS = list(itertools.product(("bernoulli", "spin"), repeat=2))
all_units = pytest.mark.parametrize("units", UNITS, ids="-".join)
BETAS = [0.1, 0.4, 1.0, 2.5]


@pytest.fixture(autouse=True)
def no_warning():
    """No division by zero, no overflow: what cannot be known is said in the result."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def no_enumeration(monkeypatch):
    """As if the model were too large."""
    from freenergy.thermodynamics import temperature

    for module in (curves, temperature):
        monkeypatch.setattr(module, "is_enumerable", lambda *_: False)
        monkeypatch.setattr(module, "exact", lambda *_: pytest.fail("enumerated"))


def sampled(model, betas=BETAS, **options):
    return thermodynamics(model, betas, method="tempering", **options)


def distance(found, truth):
    """Distances from the truth in standard errors, (n_quantities, n)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.array(
            [
                (getattr(found, name) - getattr(truth, name)) / getattr(found, f"{name}_stderr")
                for name in QUANTITIES
            ]
        )


def planted(coupling: float, seed: int) -> RBM:
    """Two deep states, one the other with all spins turned over, and a little disorder."""
    rng = np.random.default_rng(seed)
    model = RBM(10, 6, visible="spin", hidden="spin", dtype=torch.float64)
    v, h = rng.choice([-1.0, 1.0], 10), rng.choice([-1.0, 1.0], 6)
    weight = coupling * np.outer(v, h) / math.sqrt(60) + rng.normal(0, 0.1, (10, 6))
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(weight))
        model.visible_bias.copy_(torch.from_numpy(rng.normal(0, 0.02, 10)))
    return model


def liquid(seed: int) -> RBM:
    """All units off or all on, at nearly the same energy, with a barrier between."""
    rng = np.random.default_rng(seed)
    model = RBM(9, 7, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(rng.normal(1.0, 0.1, (9, 7))))
        model.visible_bias.fill_(-3.5 * rng.normal(1, 0.03))
        model.hidden_bias.fill_(-4.5)
    return model


# One entry of the sums over all joint states, written without the package's enumeration.


@pytest.mark.parametrize("beta", [0.0, 0.7, 3.0])
def test_exact_curves_are_sums_over_all_joint_states(rbm, table, beta):
    model = rbm(6, 4, scale=1.0)
    found, reference = thermodynamics(model, [beta]), table(model, beta)
    assert found.method == "exact"
    assert found.trusted
    assert found.energy[0] == pytest.approx(reference.mean_energy, abs=1e-11)
    assert found.entropy[0] == pytest.approx(reference.entropy, abs=1e-11)
    assert found.heat_capacity[0] == pytest.approx(reference.heat_capacity, abs=1e-11)
    assert found.log_partition[0] == pytest.approx(reference.log_partition, abs=1e-11)
    for name in QUANTITIES:
        assert_array_equal(getattr(found, f"{name}_stderr"), 0.0)


@all_units
def test_tempering_agrees_with_all_joint_states(rbm, table, units):
    """Also that the errors are small: of energy and heat capacity, some per cent."""
    model = rbm(8, 5, visible=units[0], hidden=units[1], scale=0.8)
    found = sampled(model)
    truth = [table(model, beta) for beta in BETAS]
    assert found.method == "tempering"
    assert found.trusted, found.reasons
    for name, values in (
        ("log_partition", [t.log_partition for t in truth]),
        ("free_energy", [-t.log_partition / t.beta for t in truth]),
        ("energy", [t.mean_energy for t in truth]),
        ("entropy", [t.entropy for t in truth]),
        ("heat_capacity", [t.heat_capacity for t in truth]),
    ):
        error = getattr(found, f"{name}_stderr")
        assert (np.abs(getattr(found, name) - values) < 4.0 * error).all(), name
        assert (error > 0).all()
    capacity = np.array([t.heat_capacity for t in truth])
    assert (found.energy_stderr < 0.05 * np.sqrt(capacity) / BETAS + 1e-3).all()
    assert (found.heat_capacity_stderr < 0.15 * capacity + 1e-3).all()
    assert (found.entropy_stderr <= 0.1).all()


def test_standard_errors_are_standard_deviations(rbm):
    """95 in 100 values lie within 1.96 of them, over models of all couplings, also bistable."""
    models = [
        rbm(
            7,
            5,
            visible=UNITS[seed % 4][0],
            hidden=UNITS[seed % 4][1],
            scale=[0.1, 0.5, 1.0, 2.0][seed // 4 % 4],
            seed=seed,
        )
        for seed in range(20)
    ]
    models += [planted(coupling, seed) for seed in range(2) for coupling in (1.0, 3.0, 6.0)]
    models += [liquid(seed) for seed in range(4)]
    far = []
    for seed, model in enumerate(models):
        found = sampled(model, n_chains=32, random=seed)
        assert found.trusted, found.reasons
        far.append(distance(found, thermodynamics(model, BETAS, method="exact")))
    share = (np.abs(np.array(far)) < 1.96).mean((0, 2))
    # 120 values each, of which those of one model are correlated.
    assert (share > 0.90).all(), dict(zip(QUANTITIES, share, strict=True))
    assert (share[:4] < 0.99).all(), dict(zip(QUANTITIES, share, strict=True))
    assert np.abs(far).max() < 6.0


def test_conditional_variance_of_hidden_units_counts(rbm):
    """With one visible unit nearly all of the variance is that of the hidden ones."""
    model = rbm(1, 8, scale=1.0, bias=1.5)
    found, truth = sampled(model, [1.0]), exact(model, 1.0)
    assert found.heat_capacity[0] == pytest.approx(truth.heat_capacity, rel=0.02)
    assert found.energy[0] == pytest.approx(truth.energy, abs=0.05)


def test_independent_units_leave_no_doubt_but_chance(rbm):
    """Without couplings S, U and C are sums over units."""
    model = rbm(6, 5, scale=0.0, bias=1.0)
    found = sampled(model, [0.5, 2.0])
    field = torch.cat([model.visible_bias, model.hidden_bias]).detach().numpy()
    for i, beta in enumerate((0.5, 2.0)):
        p = 1 / (1 + np.exp(-beta * field))
        assert abs(found.energy[i] + field @ p) < 4 * found.energy_stderr[i]
        capacity = beta**2 * (field**2 * p * (1 - p)).sum()
        assert abs(found.heat_capacity[i] - capacity) < 4 * found.heat_capacity_stderr[i]


def test_energy_is_minus_the_slope_of_log_partition(rbm):
    model, step = rbm(10, 8, scale=0.6), 0.05
    found = sampled(model, [1 - step, 1.0, 1 + step], tolerance=0.02)
    slope = (found.log_partition[2] - found.log_partition[0]) / (2 * step)
    # Neighbouring ln Z share nearly all of their error; the rest is that of the energies.
    assert abs(slope + found.energy[1]) < 4 * found.energy_stderr.max()
    assert found.energy_stderr.max() < 0.05


def test_entropy_falls_from_that_of_free_units_as_the_temperature_falls(rbm):
    found = sampled(rbm(9, 7, scale=1.0), np.linspace(0, 4, 9))
    assert found.entropy[0] == pytest.approx(16 * math.log(2), abs=1e-12)
    assert (np.diff(found.entropy) < 0).all()
    assert (np.diff(found.energy) < 0).all()
    assert (found.heat_capacity >= 0).all()
    assert_allclose(found.entropy, found.beta * found.energy + found.log_partition, rtol=1e-12)


@all_units
def test_infinite_temperature_is_exact(rbm, table, units):
    model = rbm(6, 4, visible=units[0], hidden=units[1], scale=2.0, bias=2.0)
    found, reference = sampled(model, [0.0]), table(model, 0.0)
    assert found.log_partition[0] == pytest.approx(10 * math.log(2), abs=1e-12)
    assert found.free_energy[0] == -math.inf
    assert found.energy[0] == pytest.approx(reference.mean_energy, abs=1e-12)
    assert found.heat_capacity[0] == 0.0
    assert found.trusted
    assert found.temperature[0] == math.inf
    for name in QUANTITIES:
        assert getattr(found, f"{name}_stderr")[0] == 0.0


@all_units
def test_series_at_high_temperature_is_within_its_bound(rbm, units):
    model = rbm(6, 4, visible=units[0], hidden=units[1], scale=1.0)
    betas = [1e-12, 1e-7, 1e-5]
    found, truth = sampled(model, betas), thermodynamics(model, betas, method="exact")
    assert "acceptance" in found.diagnostics
    assert len(found.diagnostics["rungs"]) == 1
    for name in QUANTITIES:
        value, expected = getattr(found, name), getattr(truth, name)
        # Enumeration has the rounding of sums over many states, and of a difference of squares.
        rounding = 1e-13 * np.abs(expected) + {"energy": 1e-14}.get(name, 0.0)
        if name == "heat_capacity":
            rounding = np.square(betas) * 1e-12
        assert (np.abs(value - expected) <= getattr(found, f"{name}_stderr") + rounding).all(), name


def test_other_unit_types(rbm, table):
    model = rbm(5, 4, visible="ternary", hidden="spin", scale=0.7)
    found, reference = sampled(model, [0.0, 1.0]), table(model, 1.0)
    assert found.entropy[0] == pytest.approx(5 * math.log(3) + 4 * math.log(2), abs=1e-12)
    assert abs(found.entropy[1] - reference.entropy) < 4 * found.entropy_stderr[1]
    assert abs(found.heat_capacity[1] - reference.heat_capacity) < (
        4 * found.heat_capacity_stderr[1]
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_temperatures_together(rbm, dtype):
    model = rbm(12, 6, scale=2.0, dtype=dtype)
    found = sampled(model, [1e-6, 50.0, 1e-30, 5e-324])
    for name in QUANTITIES[:1] + QUANTITIES[2:]:
        assert np.isfinite(getattr(found, name)).all(), name
        assert np.isfinite(getattr(found, f"{name}_stderr")).all(), name
    assert not np.isnan(found.free_energy).any()
    assert not np.isnan(found.free_energy_stderr).any()
    far = distance(found, thermodynamics(model, found.beta, method="exact"))[:, 1]
    assert (np.abs(far) < 4).all()


def test_a_frozen_model_does_not_claim_to_be_without_error(rbm):
    """Its excitations are too rare to be seen; the errors must allow for them."""
    model = planted(6.0, 0)
    found, truth = sampled(model, [0.7, 1.5]), exact(model, 0.7)
    assert found.heat_capacity[0] != truth.heat_capacity
    assert abs(found.heat_capacity[0] - truth.heat_capacity) < 4 * found.heat_capacity_stderr[0]
    assert (found.heat_capacity_stderr > 0).all()
    assert (found.energy_stderr > 0).all()


def test_results_come_in_the_order_asked_for(rbm):
    model = rbm(7, 5)
    found = sampled(model, [1.0, 0.3, 1.0, 0.0])
    assert_array_equal(found.beta, [1.0, 0.3, 1.0, 0.0])
    sorted_ = sampled(model, [0.0, 0.3, 1.0])
    for name in QUANTITIES:
        assert_array_equal(getattr(found, name), getattr(sorted_, name)[[2, 1, 2, 0]])
    assert found.energy[0] < found.energy[1] < found.energy[3]
    assert set(sorted_.beta) <= set(found.diagnostics["rungs"])


def test_rungs_are_added_where_the_exchange_needs_them(rbm):
    found = sampled(rbm(40, 30, scale=1.0), [2.0], tolerance=1.0)
    rungs, acceptance = found.diagnostics["rungs"], found.diagnostics["acceptance"]
    assert len(rungs) > 8
    assert rungs[0] == 0.0
    assert rungs[-1] == 2.0
    assert acceptance.min() > 0.25
    close = sampled(rbm(7, 5, scale=0.05), np.linspace(0.1, 1, 10))
    assert len(close.diagnostics["rungs"]) == 11


def test_equal_seeds_give_equal_results(rbm):
    model = rbm(7, 5)
    first, second, other = (sampled(model, random=r) for r in (3, RandomStream(3), 4))
    for name in QUANTITIES:
        assert_array_equal(getattr(first, name), getattr(second, name))
    assert (first.energy != other.energy).all()
    torch.manual_seed(0)
    state = torch.get_rng_state()
    sampled(model)
    assert torch.equal(torch.get_rng_state(), state)


def test_data_starts_half_of_the_systems(rbm):
    model = planted(3.0, 1)
    rows = torch.ones(20, 10)
    found = sampled(model, [1.0], data=rows)
    assert np.abs(distance(found, thermodynamics(model, [1.0]))).max() < 4


def test_a_tighter_tolerance_is_met_by_longer_runs(rbm, monkeypatch):
    """Also while the records are thinned."""
    monkeypatch.setattr(curves, "_MAX_KEPT", 2**17)
    model = rbm(8, 5, scale=1.0)
    short, long = (sampled(model, tolerance=x) for x in (1.0, 0.02))
    assert long.trusted
    assert long.entropy_stderr.max() <= 0.02 < short.entropy_stderr.max()
    assert long.diagnostics["n_rounds"] > short.diagnostics["n_rounds"]
    assert np.abs(distance(long, thermodynamics(model, BETAS))).max() < 4


def test_thinned_records_stand_for_all_rounds(rbm, monkeypatch):
    monkeypatch.setattr(curves, "_MAX_KEPT", 1)
    model = rbm(8, 5, scale=1.0)
    found = sampled(model)
    assert found.trusted
    assert found.diagnostics["n_rounds"] >= 128  # 64 records and more, of which two become one.
    assert np.abs(distance(found, thermodynamics(model, BETAS))).max() < 4


def test_moments_do_not_depend_on_where_they_are_taken(rbm, monkeypatch):
    """Only rounding does: the same rounds give the same results about any centre."""
    model, make = rbm(8, 5, scale=1.0), curves._Simulation.__init__
    found = sampled(model)

    def off_centre(self, *args):
        make(self, *args)
        self._centre = self._centre + 3.0

    monkeypatch.setattr(curves._Simulation, "__init__", off_centre)
    other = sampled(model)
    for name in QUANTITIES:
        assert_allclose(getattr(found, name), getattr(other, name), rtol=1e-9)
        error = f"{name}_stderr"
        assert_allclose(getattr(found, error), getattr(other, error), rtol=1e-6)


def test_auto_enumerates_only_what_is_small(rbm, no_enumeration):
    found = thermodynamics(rbm(7, 5), BETAS)
    assert found.method == "tempering"


def test_what_was_not_reached_is_said(rbm):
    found = sampled(rbm(30, 20, scale=1.5), [0.5, 4.0], time_budget=0.01, tolerance=1e-3)
    assert not found.trusted
    text = " ".join(found.reasons)
    assert "too few to tell" in text
    assert "more than the 0.001 asked for" in text
    assert "came up the ladder" in text
    assert "trusted=False" in repr(found)
    for name in QUANTITIES:
        assert not np.isnan(getattr(found, name)).any()


@pytest.mark.parametrize(
    ("overlap", "drift", "word"),
    [(0.01, 0.0, "gap"), (0.5, 9.0, "drift"), (0.5, math.nan, "drift")],
)
def test_every_check_has_its_reason(rbm, monkeypatch, overlap, drift, word):
    monkeypatch.setattr(curves, "_MIN_ROUNDS", 32)
    evaluate = curves._Simulation._evaluate
    monkeypatch.setattr(
        curves._Simulation,
        "_evaluate",
        lambda self: replace(evaluate(self), overlap=overlap, drift=drift),
    )
    found = sampled(rbm(5, 4), [1.0], time_budget=0.2)
    assert len(found.reasons) == 1
    assert word in found.reasons[0]


def test_a_start_that_is_remembered_is_drift():
    """The mean of the first half of a run differs from that of the second."""
    rng = np.random.default_rng(0)
    steady = rng.normal(0, 1, (2, 64))
    assert (curves._deviation(steady) < 4).all()
    assert curves._deviation(steady + np.array([[0.0], [1.0]]))[1] > 4
    assert_array_equal(curves._deviation(np.zeros((3, 5))), 0.0)


def test_result_as_plain_json(rbm):
    found = sampled(rbm(5, 4), [0.0, 1.0])
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["beta"] == [0.0, 1.0]
    assert plain["free_energy"][0] is None
    assert plain["entropy"] == found.entropy.tolist()
    assert plain["diagnostics"]["rungs"] == found.diagnostics["rungs"].tolist()
    assert plain["reasons"] == []
    assert repr(found).startswith("Thermodynamics(2 inverse temperatures from 0 to 1")
    assert_allclose(found.temperature, [np.inf, 1.0])


@pytest.mark.parametrize(
    ("betas", "word"),
    [([], "at least one"), ([1.0, -0.5], "-0.5"), ([math.nan], "nan"), ([math.inf], "inf")],
)
@pytest.mark.parametrize("method", ["exact", "tempering"])
def test_impossible_temperatures_are_named(rbm, betas, word, method):
    with pytest.raises(ValueError, match=f"betas must.*{word}"):
        thermodynamics(rbm(4, 3), betas, method=method)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"method": "guess"}, "method"),
        ({"n_chains": 1}, "n_chains"),
        ({"time_budget": 0.0}, "time_budget"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"data": torch.zeros(3, 5)}, "data"),
        ({"data": torch.zeros(0, 4)}, "data"),
    ],
)
def test_impossible_options_are_named(rbm, options, word):
    with pytest.raises(ValueError, match=word):
        thermodynamics(rbm(4, 3), [1.0], **options)


def test_a_diverged_model_is_refused(rbm):
    model = rbm(4, 3)
    model.weight.data[0, 0] = math.nan
    with pytest.raises(ValueError, match="not finite"):
        thermodynamics(model, [1.0])


# The curve between the temperatures.


def test_energy_curve_passes_through_its_points_and_errs_little_between(rbm):
    model = rbm(8, 5, scale=1.0)
    found = thermodynamics(model, [2.0, 0.0, 0.5, 1.0, 1.5, 0.25, 0.5])
    curve = energy_curve(found)
    for beta, energy in zip(found.beta, found.energy, strict=True):
        assert curve(beta) == pytest.approx((energy, 0.0), abs=1e-12)
    values = []
    for beta in np.linspace(0, 2, 41):
        energy, error = curve(beta)
        values.append(energy)
        # The error of interpolation is a guess, and of the right size.
        assert abs(energy - exact(model, beta).energy) <= 2 * error + 1e-12
        assert error < 0.3
    assert (np.diff(values) < 0).all()
    assert all(math.isnan(x) for beta in (-0.1, 2.01, math.nan) for x in curve(beta))


def test_energy_curve_has_the_slope_of_the_heat_capacity(rbm):
    model = rbm(8, 5, scale=1.0)
    curve = energy_curve(thermodynamics(model, [0.8, 1.0, 1.2]))
    slope = (curve(1.0 + 1e-5)[0] - curve(1.0 - 1e-5)[0]) / 2e-5
    assert slope == pytest.approx(-exact(model, 1.0).heat_capacity, rel=1e-4)


def test_energy_curve_of_one_temperature_is_a_point(rbm):
    curve = energy_curve(sampled(rbm(5, 4), [1.0]))
    assert curve(1.0)[1] > 0
    assert all(math.isnan(x) for x in curve(0.9))


def test_energy_curve_falls_also_where_energies_scatter(rbm):
    """A noisy energy that rises from one beta to the next does not make the cubic swing."""
    found = thermodynamics(rbm(8, 5), [0.5, 1.0, 1.1, 2.0])
    found.energy[2] = found.energy[1] + 0.01
    curve = energy_curve(found)
    values = [curve(beta)[0] for beta in np.linspace(0.5, 2.0, 61)]
    assert max(values) <= found.energy[0] + 1e-12
    assert min(values) >= found.energy[3] - 1e-12
    assert np.diff(values).max() < 0.01


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_effective_temperature_without_enumeration(rbm, table, no_enumeration, beta):
    """Rows drawn exactly at a temperature are given that temperature by the sampled curve."""
    model = rbm(8, 5, scale=1.0)
    reference = table(model, beta)
    p = np.exp(reference.log_marginal)
    chosen = np.random.default_rng(1).choice(len(p), size=2000, p=p / p.sum())
    rows = torch.from_numpy(reference.v[chosen])
    grid = np.geomspace(0.05, 6.0, 14)
    curve = energy_curve(thermodynamics(model, grid))
    found = effective_temperature(
        model, rows, "energy", energy_curve=curve, bounds=(grid[0], grid[-1])
    )
    assert found.trusted, found.reasons
    assert found.beta_lower < beta < found.beta_upper
    assert found.beta == pytest.approx(beta, rel=0.15)
