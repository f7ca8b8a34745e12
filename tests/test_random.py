"""The random stream: uniformity, equality of precisions, and states that can be stored."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from freenergy.random import RandomStream

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
N = 2 * 10**7


@pytest.fixture(scope="module")
def draws() -> torch.Tensor:
    """20 million single-precision draws, made in pieces of odd sizes."""
    stream = RandomStream(2024)
    sizes = [1, 999_999, 7, 10**7 - 1, N - 10**7 - 1_000_006]
    return torch.cat([stream.uniform_(torch.empty(n)) for n in sizes])


def chi_square_p(counts: torch.Tensor | np.ndarray) -> float:
    counts = np.asarray(counts, dtype=float)
    expected = counts.sum() / len(counts)
    return float(chi2.sf(((counts - expected) ** 2).sum() / expected, len(counts) - 1))


def test_draws_lie_in_zero_to_one_on_a_grid_of_24_bits(draws):
    assert float(draws.min()) >= 0
    assert float(draws.max()) < 1
    steps = draws.double() * 2**24
    assert bool((steps == steps.round()).all())
    # Of 20 million draws about 19 fall on the first or the last two steps: both ends are there.
    assert float(draws.min()) < 10 * 2**-24
    assert float(draws.max()) > 1 - 10 * 2**-24


def test_draws_have_the_moments_of_a_uniform_distribution(draws):
    x = draws.double() - 0.5
    assert abs(float(x.mean())) < 4 * (1 / 12 / N) ** 0.5
    # Variance of x² is 1/180, of x³ 1/448.
    assert abs(float((x**2).mean()) - 1 / 12) < 4 * (1 / 180 / N) ** 0.5
    assert abs(float((x**3).mean())) < 4 * (1 / 448 / N) ** 0.5


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 64])
def test_draws_do_not_know_each_other(draws, lag):
    """Two draws are the halves of one word, so that lags 1 and 2 are of different kinds."""
    x = draws.double() - 0.5
    correlation = float((x[lag:] * x[:-lag]).mean()) * 12
    assert abs(correlation) < 4 / N**0.5
    first_half, second_half = x[2::2], x[1:-1:2]
    n = min(len(first_half), len(second_half))
    correlation = float((first_half[:n] * second_half[:n]).mean()) * 12
    assert abs(correlation) < 4 / n**0.5


@pytest.mark.parametrize("bits", ["high", "middle", "low"])
def test_every_twelve_bits_of_a_draw_are_uniform(draws, bits):
    steps = (draws * 2**24).to(torch.int32)
    part = steps >> {"high": 12, "middle": 6, "low": 0}[bits] & 4095
    assert chi_square_p(torch.bincount(part, minlength=4096)) > 1e-3


def test_pairs_of_draws_fill_the_square(draws):
    cells = (draws * 64).to(torch.int64)
    n = N // 2
    pairs = 64 * cells[0 : 2 * n : 2] + cells[1 : 2 * n : 2]
    assert chi_square_p(torch.bincount(pairs, minlength=4096)) > 1e-3


def test_double_precision_has_the_same_draws_as_single():
    single = RandomStream(1).uniform_(torch.empty(1001))
    double = RandomStream(1).uniform_(torch.empty(1001, dtype=torch.float64))
    assert torch.equal(single.double(), double)
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        assert torch.equal(RandomStream(1).uniform_(torch.empty(1001)), double)
    finally:
        torch.set_default_dtype(default)


@DTYPES
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (3, 5), (2, 0, 3)])
def test_any_shape_can_be_filled(dtype, shape):
    out = torch.full(shape, 7.0, dtype=dtype)
    assert RandomStream(0).uniform_(out) is out
    n = out.numel()
    line = RandomStream(0).uniform_(torch.empty(n + 1 + n % 2, dtype=dtype))
    assert torch.equal(out.flatten(), line[:n]), "an odd size takes the first draws of an even one"


def test_a_transposed_tensor_can_be_filled():
    out = torch.full((4, 3), 7.0).T
    RandomStream(0).uniform_(out)
    assert torch.equal(out, RandomStream(0).uniform_(torch.empty(3, 4)))


def test_a_seed_is_a_stream():
    def first(seed):
        return RandomStream(seed).uniform_(torch.empty(100))

    assert torch.equal(first(3), first(3))
    assert not torch.equal(first(3), first(4))
    assert torch.equal(first(np.random.SeedSequence(3)), first(3))
    assert not torch.equal(first(None), first(None))
    stream = RandomStream(3)
    assert not torch.equal(stream.uniform_(torch.empty(100)), stream.uniform_(torch.empty(100)))


# Bernoulli draws


def hosts():
    return [RandomStream(0), RandomStream(np.random.RandomState(0))]


@DTYPES
def test_certain_events_are_certain(dtype):
    for stream in hosts():
        p = torch.cat([torch.zeros(10**6, dtype=dtype), torch.ones(10**6, dtype=dtype)])
        certain = p.clone()
        assert stream.bernoulli_(p) is p
        assert torch.equal(p, certain)


@DTYPES
@pytest.mark.parametrize("draw", [0.0, 1 - 2**-24])
def test_certain_events_are_certain_at_both_ends_of_the_draws(dtype, draw):
    class Fixed(RandomStream):
        def uniform_(self, out):
            return out.fill_(draw)

    p = torch.tensor([0.0, 1.0], dtype=dtype)
    assert Fixed(0).bernoulli_(p).tolist() == [0, 1]


@DTYPES
def test_events_have_their_probability(dtype):
    n = 200_000
    p = torch.tensor([1e-4, 0.1, 0.5, 0.73, 0.999], dtype=dtype)
    for stream in hosts():
        draws = stream.bernoulli_(p.repeat(n, 1))
        assert draws.dtype == dtype
        assert set(draws.unique().tolist()) == {0.0, 1.0}
        z = (draws.double().mean(0) - p.double()) / (p * (1 - p) / n).double().sqrt()
        assert float(z.abs().max()) < 4


@DTYPES
def test_an_event_happens_where_the_uniform_draw_is_below_its_probability(dtype):
    """Also after larger and smaller requests, which share a buffer."""
    stream, twin = RandomStream(9), RandomStream(9)
    for shape in ((50, 20), (1001,), (3, 4), (51, 20), (5,), ()):
        p = torch.full(shape, 0.3, dtype=dtype)
        uniform = twin.uniform_(torch.empty(shape, dtype=dtype))
        assert torch.equal(stream.bernoulli_(p), (uniform < 0.3).to(dtype))


def test_one_seed_gives_the_same_events_in_both_precisions():
    p = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    single = RandomStream(5).bernoulli_(p.clone())
    double = RandomStream(5).bernoulli_(p.double())
    assert torch.equal(single.double(), double)


# The other draws


def test_permutations_are_uniform():
    for stream in hosts():
        assert sorted(stream.permutation(50).tolist()) == list(range(50))
        codes = [int(stream.permutation(4) @ torch.tensor([64, 16, 4, 1])) for _ in range(2400)]
        _, counts = np.unique(codes, return_counts=True)
        assert len(counts) == 24
        assert chi_square_p(counts) > 1e-3


def test_integers_are_uniform_without_the_upper_end():
    for stream in hosts():
        draws = stream.integers(-3, 4, 70_000)
        assert draws.dtype == torch.int64
        counts = torch.bincount(draws + 3)
        assert len(counts) == 7
        assert chi_square_p(counts) > 1e-3
        wide = stream.integers(-(2**63), 2**63, 1000)
        assert int(wide.min()) < -(2**62)
        assert int(wide.max()) > 2**62


def test_normal_draws_are_normal():
    for stream in hosts():
        draws = stream.normal((400, 500), scale=3.0)
        assert draws.shape == (400, 500)
        assert draws.dtype == torch.float64
        n = draws.numel()
        assert abs(float(draws.mean())) < 4 * 3 / n**0.5
        assert abs(float((draws / 3).var()) - 1) < 4 * (2 / n) ** 0.5
        assert abs(float((draws.abs() < 3).double().mean()) - 0.682689) < 4 * (0.2166 / n) ** 0.5


# A RandomState is used as it is


def test_a_random_state_gives_its_own_draws_in_order():
    state, twin = np.random.RandomState(3), np.random.RandomState(3)
    stream = RandomStream(state)
    uniform = stream.uniform_(torch.empty(5, 3, dtype=torch.float64))
    np.testing.assert_array_equal(uniform, twin.uniform(size=(5, 3)))
    single = stream.uniform_(torch.empty(5))
    np.testing.assert_array_equal(single, twin.uniform(size=5).astype(np.float32))
    events = stream.bernoulli_(torch.full((4, 6), 0.4))
    np.testing.assert_array_equal(events, twin.uniform(size=(4, 6)) < np.float32(0.4))
    np.testing.assert_array_equal(stream.permutation(9), twin.permutation(9))
    np.testing.assert_array_equal(stream.integers(-2, 8, 11), twin.randint(-2, 8, 11))
    np.testing.assert_array_equal(stream.normal((2, 3), 0.5), twin.normal(0.0, 0.5, (2, 3)))
    assert state.uniform() == twin.uniform(), "the state is shared, not copied"


def test_a_draw_of_a_random_state_next_to_one_stays_below_one():
    class AlmostOne(np.random.RandomState):
        def uniform(self, low=0.0, high=1.0, size=None):
            return np.full(size, np.nextafter(1.0, 0.0))

    for dtype in (torch.float32, torch.float64):
        stream = RandomStream(AlmostOne(0))
        assert float(stream.uniform_(torch.empty(3, dtype=dtype)).max()) < 1
        assert stream.bernoulli_(torch.ones(3, dtype=dtype)).tolist() == [1, 1, 1]


# States


def everything(stream: RandomStream) -> list:
    return [
        stream.uniform_(torch.empty(5)).tolist(),
        stream.normal((3,)).tolist(),
        stream.permutation(9).tolist(),
        stream.integers(0, 1000, 3).tolist(),
        stream.bernoulli_(torch.full((9,), 0.5)).tolist(),
        stream.uniform_(torch.empty(2, dtype=torch.float64)).tolist(),
    ]


@pytest.mark.parametrize("kind", ["sfc64", "random_state"])
@pytest.mark.parametrize("n_before", range(4))
def test_a_state_survives_json(kind, n_before):
    def new(seed: int) -> RandomStream:
        return RandomStream(seed if kind == "sfc64" else np.random.RandomState(seed))

    stream = new(1)
    for _ in range(n_before):
        # An odd number of half-words and of normal draws leaves something in the buffers.
        stream.permutation(n_before + 1)
        stream.normal((1,))
    stored = json.dumps(stream.state())
    expected = everything(stream)
    other = new(2)
    everything(other)
    other.restore(json.loads(stored))
    assert everything(other) == expected
    stream.restore(json.loads(stored))
    assert everything(stream) == expected


def test_a_state_is_a_snapshot():
    stream = RandomStream(1)
    state = stream.state()
    before = json.dumps(state)
    everything(stream)
    assert json.dumps(state) == before
    assert json.dumps(stream.state()) != before


def test_a_state_of_another_kind_is_refused():
    seeded, state = RandomStream(1), RandomStream(np.random.RandomState(1))
    with pytest.raises(ValueError, match="not one of a RandomState"):
        state.restore(seeded.state())
    with pytest.raises(ValueError, match=r"not one of a seeded stream \(SFC64\)"):
        seeded.restore(state.state())
    assert seeded.state() == RandomStream(1).state(), "a refused state changes nothing"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_stream_on_a_gpu_is_seeded_and_restored():
    stream = RandomStream(0, "cuda")
    assert stream.uniform_(torch.empty(3, device="cuda")).device.type == "cuda"
    state = json.loads(json.dumps(stream.state()))
    p = torch.full((10**6,), 0.3, device="cuda")
    first = stream.bernoulli_(p.clone())
    assert abs(float(first.mean()) - 0.3) < 4 * (0.21 / 10**6) ** 0.5
    other = RandomStream(1, "cuda")
    other.restore(state)
    assert torch.equal(other.bernoulli_(p.clone()), first)
    assert torch.equal(stream.bernoulli_(torch.ones_like(p)), torch.ones_like(p))


# ---- draws of a device ---------------------------------------------------------------------------


class DeviceStream(RandomStream):
    """A stream whose draws are torch's, as those on a GPU are."""

    def __init__(self, seed=None, device="cpu"):
        super().__init__(seed, device)
        self._device_generator = self._new_generator()
        self._device_generator.manual_seed(int(self.integers(0, 2**31, 1)))


def test_the_cpu_has_no_generator_that_a_recording_has_to_know():
    assert RandomStream(0).generator is None
    assert DeviceStream(0).generator is not None


def test_draws_of_a_device_go_on_from_a_stored_state():
    stream = DeviceStream(0)
    stream.uniform_(torch.empty(7))
    state = json.loads(json.dumps(stream.state()))
    expected = stream.uniform_(torch.empty(9)), stream.permutation(9)
    for other in (stream, DeviceStream(1)):
        held = other.generator
        other.restore(state)
        assert other.generator is held
        assert_same_draws(other, expected)


def test_a_new_generator_goes_on_from_a_state():
    stream = DeviceStream(0)
    state, held = stream.state(), stream.generator
    expected = stream.uniform_(torch.empty(9)), stream.permutation(9)
    stream.renew(state)
    assert stream.generator is not held
    assert_same_draws(stream, expected)


def assert_same_draws(stream: RandomStream, expected: tuple) -> None:
    found = stream.uniform_(torch.empty(9)), stream.permutation(9)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_another_seed_leaves_the_generator_in_its_place():
    """A recorded graph draws from the generator that it was told of."""
    stream, fresh = DeviceStream(0), DeviceStream(5)
    held = stream.generator
    stream.reseed(5)
    assert stream.generator is held
    assert stream.state() == fresh.state()


def test_memory_of_draws_on_a_device_is_not_used_twice():
    """A recorded graph goes on writing to its addresses."""
    stream = DeviceStream(0)
    first, second = (stream._buffer(torch.Size([3, 2]), torch.float32) for _ in range(2))
    assert first.data_ptr() != second.data_ptr()


@pytest.mark.parametrize("kind", [RandomStream, DeviceStream])
def test_a_probability_that_is_not_a_number_gives_zero(kind):
    """Training that diverged is told so by its parameters, and has to live till then."""
    states = kind(0).bernoulli_(torch.tensor([torch.nan, 0.0, 1.0]))
    assert states.tolist() == [0.0, 0.0, 1.0]
