"""The effective temperature of rows that were drawn exactly at a planted temperature."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.optimize import minimize_scalar

from freenergy.inference import exact, pseudo_log_likelihood
from freenergy.random import RandomStream
from freenergy.thermodynamics import temperature
from freenergy.thermodynamics.temperature import effective_temperature

UNITS = list(itertools.product(("bernoulli", "spin"), repeat=2))
all_units = pytest.mark.parametrize("units", UNITS, ids="-".join)
METHODS = ("pseudo_likelihood", "energy", "structural")
fitted = pytest.mark.parametrize("method", METHODS[:2])


@pytest.fixture(autouse=True)
def no_warning():
    """No division by zero, no overflow: what cannot be known is said in the result."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def draw(table):
    """``draw(model, n, beta)``, rows from the enumerated marginal distribution at beta."""

    def rows(model, n, beta=1.0, seed=0):
        reference = table(model, beta)
        p = np.exp(reference.log_marginal)
        chosen = np.random.default_rng(seed).choice(len(p), size=n, p=p / p.sum())
        return torch.from_numpy(reference.v[chosen])

    return rows


def set_(model, *, weight=None, visible_bias=None, hidden_bias=None):
    with torch.no_grad():
        for parameter, value in (
            (model.weight, weight),
            (model.visible_bias, visible_bias),
            (model.hidden_bias, hidden_bias),
        ):
            if value is not None:
                parameter.copy_(torch.as_tensor(value).expand_as(parameter))
    return model


def best(log_likelihood) -> float:
    """The beta that maximises a function of beta, found without a derivative."""
    found = minimize_scalar(
        lambda t: -log_likelihood(math.exp(t)), bounds=(-3, 3), options={"xatol": 1e-9}
    )
    return math.exp(found.x)


# --- the planted temperature --------------------------------------------------------------------


@fitted
@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
@all_units
def test_the_planted_temperature_lies_in_the_interval(rbm, draw, units, beta, method):
    """12 intervals at 99.9 %; a flipped sign or beta outside the softplus misses by far more."""
    model = rbm(8, 5, visible=units[0], hidden=units[1], scale=0.7, bias=0.3, seed=3)
    rows = draw(model, 2000, beta)
    found = effective_temperature(model, rows, method, confidence=0.999, n_bootstrap=500)
    assert found.trusted, found.reasons
    assert found.beta_lower < beta < found.beta_upper
    assert found.beta_upper / found.beta_lower < 1.7
    assert (found.method, found.confidence, found.n_samples) == (method, 0.999, 2000)


@fitted
def test_beta_is_inside_the_free_energy(rbm, draw, method):
    """The rule beta * F(v; 1) would be 20 % off here, and the interval excludes its value."""
    model = rbm(8, 5, scale=1.5, bias=0.0, seed=1)
    rows = draw(model, 4000, 0.3)

    def naive(beta):
        x = beta * (model.free_energy(flips) - model.free_energy(rows)[:, None])
        return float(torch.nn.functional.logsigmoid(x).sum())

    eye = torch.eye(8, dtype=torch.bool)
    flips = torch.where(eye, 1 - rows[:, None, :], rows[:, None, :])
    with torch.no_grad():
        wrong = best(naive)
    found = effective_temperature(model, rows, method, confidence=0.999)
    assert found.beta_lower < 0.3 < found.beta_upper
    assert wrong < 0.25 < found.beta_lower


@pytest.mark.slow
@fitted
def test_the_interval_covers_as_often_as_it_says(rbm, draw, method):
    """95 % intervals on 200 models; 0.91 to 0.985 is what 200 binomial draws allow."""
    covered = []
    for seed in range(200):
        units, beta = UNITS[seed % 4], (0.5, 1.0, 2.0)[seed % 3]
        model = rbm(8, 5, visible=units[0], hidden=units[1], bias=0.3, seed=seed)
        found = effective_temperature(model, draw(model, 300, beta, seed), method)
        covered.append(found.beta_lower < beta < found.beta_upper)
    assert 0.91 < np.mean(covered) < 0.985


@fitted
@all_units
def test_the_estimate_maximises_the_likelihood_of_the_rows(rbm, draw, table, units, method):
    model = rbm(7, 4, visible=units[0], hidden=units[1], scale=0.8, seed=2)
    rows = draw(model, 100, 0.7)

    def log_likelihood(beta):
        if method == "pseudo_likelihood":
            return float(pseudo_log_likelihood(model, rows, beta).sum())
        return float((-beta * model.free_energy(rows, beta)).sum()) - 100 * float(
            table(model, beta).log_partition
        )

    with torch.no_grad():
        expected = best(log_likelihood)
    found = effective_temperature(model, rows, method, n_bootstrap=1)
    assert found.beta == pytest.approx(expected, rel=1e-5)
    assert found.temperature == pytest.approx(1 / expected, rel=1e-5)


def test_a_user_defined_hidden_unit_is_as_good(rbm, draw):
    model = rbm(7, 4, hidden="ternary", scale=0.8)
    rows = draw(model, 1000, 1.5)
    for method in METHODS[:2]:
        found = effective_temperature(model, rows, method, confidence=0.999)
        assert found.beta_lower < 1.5 < found.beta_upper


def test_visible_units_without_a_flip_have_an_energy(rbm, draw):
    model = rbm(6, 4, visible="ternary", scale=0.8)
    rows = draw(model, 1000, 1.5)
    found = effective_temperature(model, rows, "energy", confidence=0.999)
    assert found.beta_lower < 1.5 < found.beta_upper
    with pytest.raises(ValueError, match="needs binary units"):
        effective_temperature(model, rows)


def test_of_two_maxima_the_higher_one_is_taken():
    """The slope is in beta: a long stretch of ln beta at small beta adds little."""
    nodes = np.log(np.geomspace(0.01, 100, 401))
    beta = np.exp(nodes)
    for down, expected in ((-5.0, 10.0), (-20.0, 0.1)):
        slope = np.select([beta < 0.1, beta < 1, beta < 10], [1.0, down, 1.0], -1.0)
        choice, identified = temperature._highest(nodes, slope[None], 1e-12)
        assert identified.all()
        assert beta[choice[0]] == pytest.approx(expected, rel=0.03)


# --- the interval -------------------------------------------------------------------------------


@fitted
def test_the_bootstrap_is_that_of_solving_every_replica(rbm, draw, method):
    """The same draws, each replica maximised by itself: the interpolation must not show."""
    model, n, n_replicas = rbm(7, 4, scale=0.8, seed=5), 60, 30
    rows = draw(model, n)
    stream = RandomStream(7)
    stream.normal((n_replicas, 1))
    roots = []
    for _ in range(n_replicas):
        replica = rows[stream.integers(0, n, n)]

        def log_likelihood(beta, replica=replica):
            if method == "pseudo_likelihood":
                return float(pseudo_log_likelihood(model, replica, beta).mean())
            log_weight = float((-beta * model.free_energy(replica, beta)).mean())
            return log_weight - exact(model, beta).log_partition

        with torch.no_grad():
            roots.append(best(log_likelihood))
    expected = (
        np.quantile(roots, 0.1, method="lower"),
        np.quantile(roots, 0.9, method="higher"),
    )
    found = effective_temperature(
        model, rows, method, n_bootstrap=n_replicas, confidence=0.8, random=RandomStream(7)
    )
    width = math.log(expected[1] / expected[0])
    assert width > 0.1
    assert_allclose(
        np.log([found.beta_lower, found.beta_upper]), np.log(expected), atol=0.01 * width
    )


@fitted
def test_four_times_the_rows_halve_the_interval(rbm, draw, method):
    model = rbm(8, 5, scale=0.7)
    width = []
    for n in (250, 1000, 4000):
        found = effective_temperature(model, draw(model, n), method, n_bootstrap=1000)
        width.append(math.log(found.upper / found.lower))
    assert_allclose([width[0] / width[1], width[1] / width[2]], 2, rtol=0.2)


def test_more_confidence_is_a_wider_interval(rbm, draw):
    model = rbm(8, 5, scale=0.7)
    rows = draw(model, 300)
    found = [effective_temperature(model, rows, confidence=c) for c in (0.5, 0.9, 0.99)]
    assert found[0].lower > found[1].lower > found[2].lower
    assert found[0].upper < found[1].upper < found[2].upper
    assert len({r.temperature for r in found}) == 1


def test_a_seed_gives_one_answer_and_leaves_the_model_alone(rbm, draw):
    model = rbm(8, 5, dtype=torch.float32)
    rows = draw(model, 100)
    before = [p.detach().clone() for p in model.parameters()]
    first = effective_temperature(model, rows)
    assert effective_temperature(model, rows, random=RandomStream(0)) == first
    assert effective_temperature(model, rows.float()) == first
    other = effective_temperature(model, rows, random=RandomStream(1))
    assert (other.temperature, other.lower) != (first.temperature, first.lower)
    assert other.temperature == first.temperature
    for parameter, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, old)
        assert parameter.grad is None


# --- economy ------------------------------------------------------------------------------------


def test_a_subset_of_units_finds_the_same_temperature_with_a_wider_interval(rbm, draw):
    model = rbm(8, 5, scale=0.7)
    rows = draw(model, 2000, 0.5)
    whole = effective_temperature(model, rows)
    part = effective_temperature(model, rows, n_units=2, confidence=0.999)
    assert part.beta_lower < 0.5 < part.beta_upper
    part = effective_temperature(model, rows, n_units=2)
    assert part.upper / part.lower > 1.2 * whole.upper / whole.lower
    assert part.n_samples == 2000
    # Without replacement: 7 of the 8 units know nearly as much as all.
    most = effective_temperature(model, rows, n_units=7)
    assert most.upper / most.lower < 1.1 * whole.upper / whole.lower
    assert effective_temperature(model, rows, n_units=9) == whole


@fitted
def test_a_subset_of_rows_is_drawn_and_counted(rbm, draw, method):
    model = rbm(8, 5, scale=0.7)
    rows = draw(model, 2000, 0.5).sort(0).values
    found = effective_temperature(model, rows, method, n_rows=300)
    assert found.n_samples == 300
    assert found != effective_temperature(model, rows[:300], method)
    assert effective_temperature(model, rows, method, n_rows=5000).n_samples == 2000


def test_a_large_model_flips_few_units_of_a_thousand_rows(rbm, monkeypatch):
    seen = []
    score = temperature._pseudo_likelihood_score

    def spy(model, states, n_units, random):
        seen.append((len(states), n_units))
        return score(model, states, n_units, random)

    monkeypatch.setattr(temperature, "_pseudo_likelihood_score", spy)
    monkeypatch.setattr(temperature, "_BUDGET", 50_000)
    rows = torch.rand(1500, 40, generator=torch.Generator().manual_seed(0)).round()
    assert effective_temperature(rbm(40, 10), rows).n_samples == 1000
    assert seen == [(1000, 5)]


@pytest.mark.parametrize("elements", [1, 64, 1000])
def test_the_blocks_do_not_matter(rbm, draw, elements, monkeypatch):
    model = rbm(7, 4, scale=0.8)
    rows = draw(model, 50)
    whole = effective_temperature(model, rows, n_units=3)
    monkeypatch.setattr(temperature, "_CHUNK_ELEMENTS", elements)
    blocks = effective_temperature(model, rows, n_units=3)
    assert blocks.lower == pytest.approx(whole.lower, rel=1e-9)
    assert blocks.temperature == pytest.approx(whole.temperature, rel=1e-9)


# --- a given energy curve -----------------------------------------------------------------------


def test_a_given_energy_curve_replaces_enumeration_and_its_error_widens_the_interval(rbm, draw):
    model = rbm(8, 5, scale=0.7)
    rows = draw(model, 1000)

    def curve(error):
        return lambda beta: (exact(model, beta).energy, error)

    def measure(error):
        return effective_temperature(
            model, rows, "energy", energy_curve=curve(error), n_bootstrap=2000
        )

    plain = effective_temperature(model, rows, "energy", n_bootstrap=2000)
    assert measure(0.0) == plain
    wide = measure(0.2)
    assert wide.temperature == plain.temperature
    # To first order the error of U moves beta by error * beta² / C', C' the slope that remains
    # after the rows' own: independent of the rows, so that the squares add up.
    e = torch.tensor([0.9, 1.1]).double()
    local = torch.addmm(model.hidden_bias, rows, model.weight).detach()
    row_energy = [-float((model.hidden.mean(x * local) * local).sum(1).mean()) for x in e]
    model_energy = [exact(model, float(x)).energy for x in e]
    slope = ((model_energy[1] - row_energy[1]) - (model_energy[0] - row_energy[0])) / 0.2
    extra = 2 * 1.96 * 0.2 / abs(slope)
    assert extra > plain.beta_upper - plain.beta_lower
    expected = math.hypot(plain.beta_upper - plain.beta_lower, extra)
    assert wide.beta_upper - wide.beta_lower == pytest.approx(expected, rel=0.2)


def test_a_curve_is_asked_only_between_the_bounds(rbm, draw):
    model, asked = rbm(8, 5, scale=0.7), []

    def curve(beta):
        asked.append(beta)
        return exact(model, beta).energy, 0.01

    rows = draw(model, 500)
    found = effective_temperature(model, rows, "energy", energy_curve=curve, bounds=(0.5, 1.5))
    assert found.trusted
    assert 0.5 - 1e-12 <= min(asked) < max(asked) <= 1.5 + 1e-12
    assert len(set(asked)) == len(asked) < 40


def test_a_curve_that_is_a_new_simulation_at_each_call_is_no_obstacle(rbm, draw):
    model, noise = rbm(8, 5, scale=0.7), np.random.default_rng(0)
    found = effective_temperature(
        model,
        draw(model, 1000),
        "energy",
        energy_curve=lambda beta: (exact(model, beta).energy + noise.normal(0, 0.02), 0.02),
    )
    assert found.lower < 1 < found.upper


def test_a_model_too_large_to_enumerate_needs_a_curve(rbm):
    model, rows = rbm(40, 30), torch.zeros(5, 40)
    with pytest.raises(ValueError, match=r"40 and 30\) to be enumerated: pass energy_curve"):
        effective_temperature(model, rows, "energy")
    with pytest.raises(ValueError, match="narrow bounds"):
        effective_temperature(model, rows, "energy", energy_curve=lambda beta: (math.nan, 0.0))


# --- structural ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("p", "g"), [(0.1, 1.0), (0.5, 1.0), (0.1, 3.0)])
def test_the_structural_temperature_is_one_over_g2_in_the_random_ensemble(rbm, p, g):
    model, rng = rbm(400, 50), np.random.default_rng(0)
    xi = (rng.random((400, 50)) < p) * rng.choice([-1.0, 1.0], (400, 50))
    set_(model, weight=g * xi / 400**0.5)
    found = effective_temperature(model, torch.zeros(1, 400), "structural")
    assert found.trusted
    # Each unit's share and power are both its number of weights, so that nothing fluctuates.
    assert_allclose([found.temperature, found.lower, found.upper], g**-2, rtol=1e-12)
    assert found.n_samples == 50


def test_the_structural_temperature_by_hand(rbm):
    """Columns (1, 1, 0, 0) and (2, 0, 0, 0): shares 1/2 and 1/4, powers 2 and 4."""
    model = set_(rbm(4, 2), weight=np.array([[1.0, 2], [1, 0], [0, 0], [0, 0]]))
    found = effective_temperature(model, torch.zeros(1, 4), "structural")
    assert found.temperature == pytest.approx((0.75 / 2) / (6 / 2))
    assert found.beta == pytest.approx(8)
    assert found.lower == pytest.approx(0.25 / 4)
    assert found.upper == pytest.approx(0.5 / 2)
    assert not found.trusted
    assert "2" in found.reasons[0]


@all_units
def test_one_distribution_has_one_structural_temperature(rbm, units):
    """With v = 2t − 1 the energy of a spin model is that of a 0/1 model of doubled weights."""
    model = rbm(30, 25, visible=units[0], hidden=units[1])
    factor = math.prod(2 if unit == "spin" else 1 for unit in units)
    plain = set_(rbm(30, 25), weight=factor * model.weight.detach())
    found = [
        effective_temperature(m, torch.ones(1, 30), "structural", random=RandomStream(0))
        for m in (model, plain)
    ]
    assert found[0] == found[1]


def test_the_structural_temperature_falls_with_the_square_of_the_weights(rbm):
    model = rbm(30, 25)
    before = effective_temperature(model, torch.ones(1, 30), "structural")
    set_(model, weight=3 * model.weight.detach())
    after = effective_temperature(model, torch.ones(1, 30), "structural")
    for name in ("temperature", "lower", "upper"):
        assert getattr(after, name) == pytest.approx(getattr(before, name) / 9)


def test_a_hidden_unit_without_weights_counts_for_nothing(rbm):
    model = rbm(30, 25)
    before = effective_temperature(model, torch.ones(1, 30), "structural")
    larger = set_(rbm(30, 27), weight=torch.cat([model.weight, torch.zeros(30, 2)], 1).detach())
    after = effective_temperature(larger, torch.ones(1, 30), "structural")
    assert after.temperature == pytest.approx(before.temperature)


# --- nothing to learn from ----------------------------------------------------------------------


def check(found) -> None:
    numbers = [found.lower, found.temperature, found.upper]
    assert not any(math.isnan(x) for x in numbers)
    assert 0 <= found.lower <= found.temperature <= found.upper
    assert found.beta_lower <= found.beta <= found.beta_upper
    for inverse, x in zip((found.beta_upper, found.beta, found.beta_lower), numbers, strict=True):
        assert inverse == 0 if x == math.inf else x == 0 or inverse == pytest.approx(1 / x)
    assert found.trusted == (not found.reasons)


@fitted
def test_one_row_has_no_interval(rbm, draw, method):
    model = rbm(8, 5, scale=0.7)
    found = effective_temperature(model, draw(model, 1), method)
    check(found)
    assert (found.lower, found.upper) == (0, math.inf)
    assert "fewer than 20 rows: 1" in found.reasons
    assert "all rows are equal" in found.reasons[-1]


@fitted
def test_equal_rows_have_no_interval(rbm, draw, method):
    model = rbm(8, 5, scale=0.7)
    found = effective_temperature(model, draw(model, 1).repeat(100, 1), method)
    check(found)
    assert (found.lower, found.upper, found.trusted) == (0, math.inf, False)


@fitted
def test_few_rows_are_not_trusted(rbm, draw, method):
    model = rbm(8, 5, scale=0.7)
    check(effective_temperature(model, draw(model, 19), method))
    assert any("fewer" in x for x in effective_temperature(model, draw(model, 19), method).reasons)
    assert not any(
        "fewer" in x for x in effective_temperature(model, draw(model, 20), method).reasons
    )


@fitted
@all_units
def test_a_model_without_energy_has_no_temperature(rbm, draw, units, method):
    model = rbm(8, 5, visible=units[0], hidden=units[1], scale=0.0, bias=0.0)
    rows = draw(model, 100)
    for hidden_bias in (0.0, 0.7):
        set_(model, hidden_bias=hidden_bias)
        found = effective_temperature(model, rows, method)
        check(found)
        assert (found.temperature, found.lower, found.upper) == (1, 0, math.inf)
        assert found.reasons == ("the rows have the same likelihood at every beta",)


def test_a_model_without_weights_is_infinitely_hot_in_structure(rbm):
    model = rbm(8, 25, scale=0.0)
    found = effective_temperature(model, torch.zeros(1, 8), "structural")
    check(found)
    assert (found.temperature, found.lower, found.upper) == (math.inf, 0, math.inf)
    assert found.reasons == ("all weights are zero",)


@fitted
def test_ground_states_are_colder_than_the_bounds(rbm, method):
    """Two ground states: the colder the likelier, and no replica disagrees."""
    model = set_(rbm(6, 3, visible="spin", hidden="spin"), visible_bias=0.0, hidden_bias=0.0)
    set_(model, weight=1.0)
    rows = torch.ones(60, 6) * (2.0 * (torch.arange(60) % 2) - 1)[:, None]
    found = effective_temperature(model, rows, method)
    check(found)
    assert found.temperature == pytest.approx(1e-3)
    assert found.lower == 0
    assert "colder" in found.reasons[0]


@fitted
def test_rows_against_the_model_are_hotter_than_the_bounds(rbm, draw, method):
    model = rbm(8, 5, scale=0.0, bias=0.0)
    set_(model, visible_bias=2.0)
    rows = 1 - draw(model, 100)
    found = effective_temperature(model, rows, method)
    check(found)
    assert found.temperature == pytest.approx(1e3)
    assert found.upper == math.inf
    assert "hotter" in found.reasons[0]


@fitted
def test_replicas_without_a_maximum_open_the_interval(rbm, method):
    """One frustrated unit in 60 rows: a third of the replicas is without it."""
    model = set_(rbm(2, 1), weight=0.0, visible_bias=1.0, hidden_bias=0.0)
    rows = torch.ones(60, 2)
    rows[0, 0] = 0
    found = effective_temperature(model, rows, method)
    check(found)
    # p(v_i = 1) = 119 / 120, as sigma(beta) for a unit without couplings.
    assert found.beta == pytest.approx(math.log(119), rel=1e-6)
    assert found.lower == 0
    assert found.upper < math.inf
    assert "bootstrap replicas" in found.reasons[0]


@fitted
@all_units
@pytest.mark.parametrize("scale", [1e-6, 50.0, 1e4])
def test_faint_and_saturated_weights_are_no_obstacle(rbm, units, scale, method):
    model = rbm(8, 5, visible=units[0], hidden=units[1], scale=scale)
    low, high = model.visible.support
    v = torch.rand(100, 8, generator=torch.Generator().manual_seed(0)).round()
    check(effective_temperature(model, low + (high - low) * v, method))
    check(effective_temperature(model, v.new_full((1, 8), high), method))
    check(effective_temperature(model, v.new_full((1, 8), high), "structural"))


@fitted
def test_a_constant_column_is_no_obstacle(rbm, draw, method):
    model = rbm(8, 5, scale=0.7)
    rows = draw(model, 200)
    rows[:, 2] = 1
    found = effective_temperature(model, rows, method)
    check(found)
    assert found.trusted


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("value", "cure"), [(math.nan, "impute"), (math.inf, "impute"), (0.5, "round"), (2, "round")]
)
def test_values_that_are_no_state_are_refused_by_column(rbm, method, value, cure):
    rows = torch.zeros(5, 6).double()
    rows[3, 4] = value
    expected = f"value {value:g} in column 4, first in row 3.* take the values 0, 1: .*{cure}"
    with pytest.raises(ValueError, match=expected):
        effective_temperature(rbm(6, 4), rows, method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(5, 7), (6,), (2, 3, 6)])
def test_rows_of_another_shape_are_refused(rbm, method, shape):
    with pytest.raises(ValueError, match=r"shape \(n, 6\)"):
        effective_temperature(rbm(6, 4), torch.zeros(shape), method)


def test_no_rows_are_refused(rbm):
    with pytest.raises(ValueError, match="at least one row"):
        effective_temperature(rbm(6, 4), torch.zeros(0, 6))


def test_a_diverged_model_is_refused(rbm):
    model = set_(rbm(6, 4), hidden_bias=math.nan)
    with pytest.raises(ValueError, match="parameters that are not finite"):
        effective_temperature(model, torch.zeros(5, 6))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "magic"}, "unknown method 'magic': use one of 'pseudo_likelihood', 'energy'"),
        ({"n_bootstrap": 0}, "n_bootstrap must be positive"),
        ({"n_rows": 0}, "n_rows must be positive"),
        ({"n_units": -1}, "n_units must be positive"),
        ({"confidence": 1.0}, "confidence must lie between"),
        ({"bounds": (0.0, 1.0)}, "bounds must be"),
        ({"bounds": (2.0, 1.0)}, "bounds must be"),
    ],
)
def test_arguments_out_of_range_are_refused(rbm, options, message):
    with pytest.raises(ValueError, match=message):
        effective_temperature(rbm(6, 4), torch.zeros(5, 6), **options)


def test_the_repr_says_it_in_one_line(rbm, draw):
    model = rbm(8, 5, scale=0.7)
    text = repr(effective_temperature(model, draw(model, 500)))
    assert text.startswith("EffectiveTemperature(temperature=")
    assert text.endswith(
        "confidence=0.95, method='pseudo_likelihood', n_samples=500, trusted=True)"
    )
    assert "fewer than 20 rows" in repr(effective_temperature(model, draw(model, 5)))
