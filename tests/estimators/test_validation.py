"""Checks of input: what is wrong, in which column, and the estimator left as it was."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp

from freenergy.estimators.validation import check_finite, check_range, unchanged_on_error

FORMATS = pytest.mark.parametrize("make", [np.asarray, sp.csr_array, sp.csr_matrix])
DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def matrix(row: int, column: int, value: float, dtype=np.float64) -> np.ndarray:
    X = np.zeros((5, 4), dtype=dtype)
    X[1, 0] = X[2, 2] = X[4, 3] = 1
    X[row, column] = value
    return X


@FORMATS
@DTYPES
@pytest.mark.parametrize(
    ("value", "kind"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")]
)
@pytest.mark.parametrize("place", [(0, 0), (2, 3), (3, 1), (4, 3)])
def test_what_is_not_finite_is_named_by_place(make, dtype, value, kind, place):
    X = make(matrix(*place, value, dtype))
    message = rf"contains {kind} in column {place[1]}, first in row {place[0]}: remove or impute"
    with pytest.raises(ValueError, match=message):
        check_finite(X)
    names = np.array(["a", "b", "c", "d"], dtype=object)
    with pytest.raises(ValueError, match=rf"in column '{names[place[1]]}' \(index {place[1]}\)"):
        check_finite(X, names)


@FORMATS
@DTYPES
@pytest.mark.parametrize(("value", "shown"), [(-0.25, "-0.25"), (1.5, "1.5"), (255, "255")])
@pytest.mark.parametrize("place", [(0, 0), (2, 3), (3, 1), (4, 3)])
def test_what_is_out_of_range_is_named_by_place_and_value(make, dtype, value, shown, place):
    X = make(matrix(*place, value, dtype))
    message = rf"value {shown} in column {place[1]}, row {place[0]}, outside \[0, 1\]"
    with pytest.raises(ValueError, match=message):
        check_range(X, 0.0, 1.0)


@FORMATS
def test_the_first_of_several_is_named(make):
    X = matrix(1, 2, 7.0)
    X[3, 1] = X[4, 0] = -9.0
    with pytest.raises(ValueError, match="value 7 in column 2, row 1"):
        check_range(make(X), 0.0, 1.0)


@FORMATS
@DTYPES
def test_what_is_right_passes(make, dtype):
    X = make(matrix(3, 1, 0.5, dtype))
    check_finite(X)
    check_range(X, 0.0, 1.0)
    check_range(X, 0, 1)


def test_empty_sparse_data_passes():
    X = sp.csr_array((3, 4))
    check_finite(X)
    check_range(X, 0.0, 1.0)


def test_a_sum_that_overflows_is_not_taken_for_an_infinity():
    check_finite(np.full((4, 4), 1e308))
    check_finite(np.full((4, 4), 3e38, dtype=np.float32))
    with pytest.raises(ValueError, match="NaN in column 3, first in row 2"):
        check_finite(np.where(np.arange(16).reshape(4, 4) == 11, np.nan, 1e308))


def test_infinities_that_cancel_are_found():
    with pytest.raises(ValueError, match="infinity in column 1"):
        check_finite(np.array([[0.0, np.inf], [-np.inf, 0.0]]))


def test_layouts_of_memory_do_not_matter():
    X = matrix(2, 3, np.nan)
    for array in (np.asfortranarray(X), X[::-1], X[:, ::-1]):
        row, column = np.argwhere(np.isnan(array))[0]
        with pytest.raises(ValueError, match=f"column {column}, first in row {row}"):
            check_finite(array)


def test_indices_out_of_order_and_empty_rows_do_not_matter():
    X = sp.csr_array(([1.0, 0.5, np.nan], [3, 0, 2], [0, 0, 2, 2, 3]), shape=(4, 4))
    with pytest.raises(ValueError, match="NaN in column 2, first in row 3"):
        check_finite(X)
    X.data[:] = [0.5, 4.0, 0.5]
    with pytest.raises(ValueError, match="value 4 in column 0, row 1"):
        check_range(X, 0.0, 1.0)


@pytest.mark.parametrize("error", [ValueError, RuntimeError, KeyboardInterrupt])
def test_attributes_are_put_back_on_any_error(error):
    estimator = SimpleNamespace(kept=1, changed=2, removed=3)

    def fail():
        estimator.changed = 20
        estimator.new = 4
        del estimator.removed
        raise error

    with pytest.raises(error), unchanged_on_error(estimator):
        fail()
    assert vars(estimator) == {"kept": 1, "changed": 2, "removed": 3}


def test_attributes_stay_changed_without_an_error():
    estimator = SimpleNamespace(changed=2)
    with unchanged_on_error(estimator):
        estimator.changed = 20
    assert estimator.changed == 20
