"""Rows: dense and sparse data look the same to a trainer, with labels and without."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from numpy.testing import assert_allclose, assert_array_equal

from freenergy.random import RandomStream
from freenergy.training import LabelledRows, as_rows
from freenergy.training import rows as module
from freenergy.training.rows import DenseRows, SparseRows

X = np.random.default_rng(0).integers(0, 3, (11, 5)) / 2.0
FORMATS = [sp.csr_array, sp.csr_matrix, sp.csc_array, sp.coo_matrix, sp.lil_matrix]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def all_rows(dtype):
    like = torch.empty(0, dtype=dtype)
    yield as_rows(X, like)
    yield as_rows(X.astype(np.float32), like)
    yield as_rows(torch.from_numpy(X), like)
    for make in FORMATS:
        yield as_rows(make(X), like)


@DTYPES
@pytest.mark.parametrize(
    "index",
    [slice(0, 4), slice(4, 8), slice(8, 99), torch.tensor([7, 0, 7, 10]), torch.tensor([3])],
    ids=str,
)
def test_every_kind_of_rows_gives_the_same(index, dtype):
    expected = X[index if isinstance(index, slice) else index.numpy()]
    for rows in all_rows(dtype):
        taken = rows.take(index)
        assert taken.dtype == dtype
        assert_array_equal(taken.numpy(), expected)


@DTYPES
def test_size_and_mean(dtype):
    for rows in all_rows(dtype):
        assert (len(rows), rows.width) == X.shape
        assert rows.mean().dtype == dtype
        assert_allclose(rows.mean().numpy(), X.mean(0), rtol=1e-6 if dtype is torch.float32 else 0)


def test_sparse_data_stays_sparse():
    like = torch.empty(0)
    assert isinstance(as_rows(sp.csc_matrix(X), like), SparseRows)
    assert isinstance(as_rows(X, like), DenseRows)


def test_means_are_summed_in_double_precision():
    """In single precision a sum of 10 million tenths is wrong in the third digit."""
    tenth = np.float32(0.1)
    dense = as_rows(torch.tensor([[tenth]]).expand(10**7, 1), torch.empty(0))
    assert float(dense.mean()) == tenth
    column = sp.csr_array(np.full((10**6, 1), tenth))
    assert float(as_rows(column, torch.empty(0)).mean()) == pytest.approx(tenth, rel=1e-7)


@pytest.mark.parametrize(
    "array",
    [X[::-1], X[:, ::-1], np.asfortranarray(X), X[::2], X.astype(int), X > 0, X.tolist()],
    ids=["reversed", "mirrored", "fortran", "strided", "integers", "booleans", "list"],
)
def test_arrays_of_any_layout_and_type_are_taken(array):
    rows = as_rows(array, torch.empty(0, dtype=torch.float64))
    assert_array_equal(rows.take(slice(None)).numpy(), np.asarray(array, dtype=float))


def test_arrays_that_cannot_be_written_to_are_taken_in_silence():
    locked = X.copy()
    locked.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = as_rows(locked, torch.empty(0, dtype=torch.float64))
    assert_array_equal(rows.take(slice(0, 3)).numpy(), X[:3])


# ---- with labels ---------------------------------------------------------------------------------

LABELS = torch.tensor([0, 2, -1, 1, 2, 2, -1, 0, 2, 1, 2])
WEIGHTS = torch.from_numpy(np.random.default_rng(1).uniform(0, 3, 11))


def labelled(weights=None):
    like = torch.empty(0, dtype=torch.float64)
    for form in (X, sp.csr_array(X)):
        yield LabelledRows(as_rows(form, like), LABELS, weights)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("index", [slice(3, 8), torch.tensor([7, 0, 7, 10])], ids=str)
def test_a_batch_keeps_rows_labels_and_weights_together(weights, index):
    for rows in labelled(weights):
        assert (len(rows), rows.width) == X.shape
        batches = [rows.take(index)]
        if isinstance(index, torch.Tensor):
            batches.append(rows.part(index).take(slice(None)))
        for batch in batches:
            assert_array_equal(batch.rows, X[index])
            assert_array_equal(batch.labels, LABELS[index])
            if weights is None:
                assert batch.weights is None
            else:
                assert_array_equal(batch.weights, weights[index])


def test_means_and_totals_are_those_of_repeated_rows():
    counts = np.array([0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2])
    again = X.repeat(counts, axis=0)
    for rows in labelled(torch.from_numpy(counts).double()):
        assert rows.total == len(again)
        assert_allclose(rows.mean(), again.mean(0), rtol=1e-14)
    for rows in labelled():
        assert rows.total == len(X)
        assert_allclose(rows.mean(), X.mean(0), rtol=1e-14)


def test_a_weighted_mean_is_the_same_in_blocks(monkeypatch):
    whole = [rows.mean() for rows in labelled(WEIGHTS)]
    assert_allclose(whole[0], WEIGHTS.numpy() @ X / WEIGHTS.sum().item(), rtol=1e-14)
    monkeypatch.setattr(module, "_BLOCK", 4)
    for rows, expected in zip(labelled(WEIGHTS), whole, strict=True):
        assert_allclose(rows.mean(), expected, rtol=1e-14)


def test_shares_of_classes_have_one_pseudo_count_each():
    for rows in labelled():
        assert_allclose(rows.class_shares(3), np.array([3, 3, 6]) / 12, rtol=1e-15)
        assert_allclose(rows.class_shares(4), np.array([3, 3, 6, 1]) / 13, rtol=1e-15)
    for rows in labelled(WEIGHTS):
        counts = [float(WEIGHTS[k == LABELS].sum()) + 1 for k in range(3)]
        assert_allclose(rows.class_shares(3), np.array(counts) / sum(counts), rtol=1e-14)
    unknown = LabelledRows(DenseRows(torch.eye(2)), torch.tensor([-1, -1]))
    assert_array_equal(unknown.class_shares(2), [0.5, 0.5])


def test_weights_in_single_precision_are_summed_in_double():
    n = 10**6
    weights = torch.full((n,), 0.1)
    rows = LabelledRows(DenseRows(torch.ones(n, 1)), torch.zeros(n, dtype=torch.int64), weights)
    assert rows.total == pytest.approx(n * float(np.float32(0.1)), rel=1e-12)
    assert float(rows.mean()) == 1.0


def test_shuffled_labels_keep_rows_weights_and_counts():
    data, labels = torch.arange(50)[:, None].double(), torch.arange(50)
    rows = LabelledRows(as_rows(data, data), labels, weights=data[:, 0])
    found = rows.shuffled(RandomStream(0))
    assert found.rows is rows.rows
    assert found.weights is rows.weights
    assert not bool((found.labels == labels).all())
    assert_allclose(found.labels.sort().values, labels)
