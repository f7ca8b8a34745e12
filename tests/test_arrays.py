"""Numbers from a user: arrays, lists and tables give what tensors give, all else is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from numpy.testing import assert_array_equal
from torch import Tensor

from freenergy import inference, models, thermodynamics
from freenergy.arrays import as_matrix, as_tensor
from freenergy.inference import Tempering
from freenergy.models import VAE, BoltzmannMachine
from freenergy.random import RandomStream
from freenergy.training import VariationalMonitor

RNG = np.random.default_rng(0)
ROWS = torch.from_numpy(RNG.integers(0, 2, (24, 5)).astype(float))
STATES = torch.from_numpy(RNG.uniform(-0.5, 0.5, (2, 4)))
NAN = torch.tensor([float("nan"), 1.0, float("nan"), -1.0], dtype=torch.float64)
COUPLING = torch.tensor(
    [[0, 1, 2, 0], [1, 0, 0, -1], [2, 0, 0, 1], [0, -1, 1, 0]], dtype=torch.float64
)
CONNECTED = COUPLING != 0
N_SYSTEMS = 3


def rbm() -> models.RBM:
    torch.manual_seed(0)
    model = models.RBM(5, 3, dtype=torch.float64)
    with torch.no_grad():
        model.weight.mul_(50.0)
    return model


def vae() -> VAE:
    torch.manual_seed(0)
    return VAE(5, 2, hidden_sizes=(4,), dtype=torch.float64)


def machine() -> BoltzmannMachine:
    return BoltzmannMachine.from_coupling(0.2 * COUPLING)


def stream() -> RandomStream:
    return RandomStream(0)


def pair(x) -> tuple[Any, Any]:
    """Visible and hidden states at one end of a path."""
    hidden = torch.tensor([[1.0, 0.0, 1.0]], dtype=torch.float64)
    return x, (hidden.numpy() if isinstance(x, np.ndarray) else hidden)


OTHER_END = torch.zeros(1, 5, dtype=torch.float64), torch.zeros(1, 3, dtype=torch.float64)


class Call(NamedTuple):
    """A public function of one argument, with numbers that fit, and with what it calls them."""

    function: Callable[[Any], Any]
    numbers: Tensor
    name: str


def exact_log_partition():
    return inference.log_partition(rbm(), "exact")


CALLS = {
    # models
    "unravel": Call(lambda x: models.unravel(rbm(), x), ROWS, "rows"),
    "connected": Call(
        lambda x: BoltzmannMachine(4, connected=x).pairs, CONNECTED.double(), "connected"
    ),
    "from_coupling": Call(BoltzmannMachine.from_coupling, COUPLING, "coupling"),
    "from_coupling, bias": Call(
        lambda x: BoltzmannMachine.from_coupling(COUPLING, x), STATES[0], "bias"
    ),
    "from_coupling, connected": Call(
        lambda x: BoltzmannMachine.from_coupling(COUPLING, connected=x),
        CONNECTED.double(),
        "connected",
    ),
    "gibbs_sweep": Call(lambda x: machine().gibbs_sweep(x, stream()), STATES.sign(), "s"),
    "gibbs_sweep, held": Call(
        lambda x: machine().gibbs_sweep(STATES.sign(), stream(), held=x),
        torch.tensor([1.0, 0.0, 0.0, 1.0]),
        "held",
    ),
    # inference
    "anneal_mean_field, clamp": Call(
        lambda x: inference.anneal_mean_field(machine(), [2.0], clamp=x), NAN, "clamp"
    ),
    "anneal_mean_field, start": Call(
        lambda x: inference.anneal_mean_field(machine(), [2.0], start=x), STATES, "start"
    ),
    "anneal_mean_field, temperatures": Call(
        lambda x: inference.anneal_mean_field(machine(), x),
        torch.tensor([2.0, 1.5]).double(),
        "temperatures",
    ),
    "certify": Call(lambda x: inference.certify(rbm(), x, n_steps=20), ROWS, "data"),
    "certify, chains": Call(
        lambda x: inference.certify(rbm(), ROWS, chains=x, n_steps=20), ROWS, "chains"
    ),
    "check_states": Call(lambda x: inference.check_states(rbm(), x), ROWS, "rows"),
    "exact_boltzmann": Call(lambda x: inference.exact_boltzmann(machine(), clamp=x), NAN, "clamp"),
    "gibbs": Call(lambda x: inference.gibbs(rbm(), x, 3, random=stream()), ROWS, "start"),
    "importance_log_likelihood": Call(
        lambda x: inference.importance_log_likelihood(vae(), x, 10, random=stream()), ROWS, "rows"
    ),
    "independent_model, visible": Call(
        lambda x: inference.independent_model(rbm(), x, torch.full((3,), 0.5)),
        ROWS.mean(0),
        "visible_mean",
    ),
    "independent_model, hidden": Call(
        lambda x: inference.independent_model(rbm(), ROWS.mean(0), x),
        torch.full((3,), 0.3, dtype=torch.float64),
        "hidden_mean",
    ),
    "linear_response": Call(
        lambda x: inference.linear_response(machine(), x), STATES, "magnetization"
    ),
    "linear_response, clamp": Call(
        lambda x: inference.linear_response(machine(), STATES, clamp=x), NAN, "clamp"
    ),
    "log_likelihood": Call(
        lambda x: inference.log_likelihood(rbm(), x, exact_log_partition()), ROWS, "rows"
    ),
    "log_partition, data": Call(
        lambda x: inference.log_partition(rbm(), "tap", data=x), ROWS, "data"
    ),
    "log_partition, samples": Call(
        lambda x: inference.log_partition(
            rbm(), "reverse_ais", samples=x, n_chains=4, n_temperatures=5, width=50.0
        ),
        ROWS,
        "samples",
    ),
    "mean_field": Call(lambda x: inference.mean_field(rbm(), 1, start=x), ROWS, "start"),
    "mean_field_states": Call(
        lambda x: inference.mean_field_states(rbm(), 1, starts=x), ROWS, "starts"
    ),
    "pseudo_log_likelihood": Call(lambda x: inference.pseudo_log_likelihood(rbm(), x), ROWS, "v"),
    "stochastic_pseudo_log_likelihood": Call(
        lambda x: inference.stochastic_pseudo_log_likelihood(rbm(), x, stream()), ROWS, "v"
    ),
    "Tempering": Call(
        lambda x: Tempering(inference.temperature_ladder(rbm(), [0.0, 1.0]), x, stream()).visible,
        ROWS[: 2 * N_SYSTEMS].view(2, N_SYSTEMS, 5),
        "visible",
    ),
    # thermodynamics
    "RBMMonitor": Call(lambda x: thermodynamics.RBMMonitor(x, orders=(1,))(rbm()), ROWS, "train"),
    "RBMMonitor, held_out": Call(
        lambda x: thermodynamics.RBMMonitor(ROWS, x, orders=())(rbm()), ROWS, "held_out"
    ),
    "TemperatureMonitor": Call(lambda x: thermodynamics.TemperatureMonitor(x)(rbm()), ROWS, "rows"),
    "barrier": Call(lambda x: thermodynamics.barrier(rbm(), pair(x), OTHER_END), ROWS[:1], "a"),
    "descend": Call(lambda x: thermodynamics.descend(rbm(), x), ROWS, "start"),
    "effective_temperature": Call(
        lambda x: thermodynamics.effective_temperature(rbm(), x, n_bootstrap=5), ROWS, "rows"
    ),
    "free_energy_barrier": Call(
        lambda x: thermodynamics.free_energy_barrier(rbm(), OTHER_END, pair(x)), ROWS[:1], "b"
    ),
    "landscape": Call(
        lambda x: thermodynamics.landscape(rbm(), [1.0], rows=x, n_starts=5).to_dict(),
        ROWS,
        "start",
    ),
    "thermodynamics": Call(
        lambda x: (
            thermodynamics.thermodynamics(
                rbm(), [1.0], method="tempering", n_chains=4, data=x, time_budget=0.05
            ).beta
        ),
        ROWS,
        "data",
    ),
    # training
    "VariationalMonitor": Call(lambda x: VariationalMonitor(x)(vae()), ROWS, "rows"),
}

EVERY = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


def numbers_of(result: Any) -> Any:
    """What a result holds, in parts that compare; times are left out."""
    if isinstance(result, torch.nn.Module):
        return {name: t.detach().numpy() for name, t in result.state_dict().items()}
    if dataclasses.is_dataclass(result):
        return {f.name: numbers_of(getattr(result, f.name)) for f in dataclasses.fields(result)}
    if isinstance(result, dict):
        return {name: numbers_of(x) for name, x in result.items() if name != "seconds"}
    return result.detach().numpy() if isinstance(result, Tensor) else result


@pytest.mark.filterwarnings("ignore::freenergy.inference.MeanFieldWarning")
@EVERY
@pytest.mark.parametrize("convert", [Tensor.numpy, Tensor.tolist], ids=["array", "list"])
def test_arrays_and_lists_give_what_tensors_give(call, convert):
    expected = numbers_of(call.function(call.numbers))
    np.testing.assert_equal(numbers_of(call.function(convert(call.numbers))), expected)


@pytest.mark.filterwarnings("ignore::freenergy.inference.MeanFieldWarning")
@pytest.mark.parametrize("name", [name for name, call in CALLS.items() if call.numbers is ROWS])
@pytest.mark.parametrize("convert", [np.float32, np.int64, bool, pd.DataFrame])
def test_rows_of_zeros_and_ones_are_the_same_in_any_type(name, convert):
    call = CALLS[name]
    rows = call.numbers.numpy()
    other = pd.DataFrame(rows) if convert is pd.DataFrame else rows.astype(convert)
    np.testing.assert_equal(
        numbers_of(call.function(other)), numbers_of(call.function(call.numbers))
    )


@EVERY
def test_another_width_is_refused_with_what_was_expected(call):
    wider = np.concatenate([call.numbers.numpy()] * 2, axis=-1)
    if call.name == "temperatures":  # Of any number.
        wider = wider[None]
    with pytest.raises(
        ValueError,
        match=rf"^{call.name} must (have shape|be states of shape|have rows of|be a sq|be a se)",
    ):
        call.function(wider)


@EVERY
@pytest.mark.parametrize("values", [["one", "two"], np.array([None, 1.0]), np.array([[1j]])])
def test_what_is_no_number_is_refused_by_name(call, values):
    with pytest.raises(TypeError, match=f"^{call.name} must be a dense array of real numbers"):
        call.function(values)


@pytest.mark.parametrize("package", [models, inference, thermodynamics])
def test_no_public_function_is_left_that_takes_numbers_as_tensors_alone(package):
    """By its annotations: whoever takes a Tensor takes what becomes one."""
    for name in package.__all__:
        thing = getattr(package, name)
        if isinstance(thing, type) or not callable(thing):
            continue
        for parameter, kind in thing.__annotations__.items():
            if parameter != "return" and "Tensor" in kind:
                assert "ArrayLike" in kind, f"{name}({parameter}: {kind})"


# ---- the helper ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        np.eye(3)[::-1],
        np.asfortranarray(np.arange(9.0).reshape(3, 3)),
        np.eye(3, dtype=">f8"),
        np.eye(3, dtype=np.longdouble),
        np.eye(3, dtype=np.uint32),
        np.eye(3, dtype=np.float16),
        [torch.ones(2), torch.zeros(2)],
        ((1, 2), (3, 4)),
        np.float64(2.0),
        3,
    ],
)
@pytest.mark.filterwarnings("error")
def test_any_real_numbers_keep_their_values(values):
    found = as_tensor(values, "x")
    assert_array_equal(found.double().numpy(), np.asarray(values, dtype=float))


@pytest.mark.filterwarnings("error")
def test_a_read_only_array_is_copied_and_a_writable_one_shared():
    array = np.eye(2)
    assert as_tensor(array, "x").data_ptr() == array.ctypes.data
    array.setflags(write=False)
    as_tensor(array, "x").fill_(5.0)
    assert_array_equal(array, np.eye(2))


def test_precision_and_device_are_those_asked_for():
    like = torch.empty(0, dtype=torch.float32)
    assert as_tensor(np.eye(2), "x", like).dtype == torch.float32
    assert as_tensor(np.eye(2), "x").dtype == torch.float64
    assert as_tensor([1, 2], "x").dtype == torch.int64
    tensor = torch.ones(2)
    assert as_tensor(tensor, "x", like) is tensor


@pytest.mark.parametrize(
    "values",
    ["text", [None], {"a": 1}, sp.eye_array(3), np.array(["2020"], dtype="M8[Y]"), object()],
)
def test_what_is_no_array_of_numbers_is_refused(values):
    with pytest.raises(TypeError, match=r"x must be a dense array of real numbers, got \w+ of"):
        as_tensor(values, "x")


@pytest.mark.parametrize("values", [torch.eye(2).to_sparse(), torch.ones(2) * 1j])
def test_tensors_of_another_kind_are_refused(values):
    with pytest.raises(TypeError, match="x must be a dense array of real numbers, got a torch"):
        as_tensor(values, "x")


def test_ragged_rows_are_refused():
    with pytest.raises(ValueError, match="x must be an array with rows of one length"):
        as_tensor([[1.0], [1.0, 2.0]], "x")


@pytest.mark.parametrize(
    "values", [np.ones(3), np.ones((2, 2)), np.ones((0, 3)), np.ones((1, 2, 3))]
)
def test_a_matrix_has_rows_of_the_width_asked_for(values):
    with pytest.raises(ValueError, match=r"x must have shape \(n, 3\) with n > 0, got \("):
        as_matrix(values, "x", 3)
    assert as_matrix(np.ones((2, 3)), "x", 3).shape == (2, 3)
