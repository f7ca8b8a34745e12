"""Rows of data as a trainer asks for them: dense tensors and sparse matrices alike."""

from __future__ import annotations

import warnings
from typing import NamedTuple, Protocol

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from freenergy.random import RandomStream

__all__ = ["DenseRows", "LabelledBatch", "LabelledRows", "Rows", "SparseRows", "as_rows"]

_BLOCK = 4096


class Rows(Protocol):
    """What training needs of its data."""

    @property
    def width(self) -> int:
        """Number of columns."""
        ...

    def __len__(self) -> int: ...

    def take(self, index: Tensor | slice) -> Tensor:
        """Dense rows, on the model's device and in its precision."""
        ...

    def part(self, index: Tensor) -> Rows:
        """The rows at these positions, as rows again."""
        ...

    def mean(self) -> Tensor:
        """Mean of each column."""
        ...


class DenseRows:
    """Rows of one tensor, which is moved to the device whole."""

    def __init__(self, data: Tensor) -> None:
        self.data = data

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.data.shape[1]

    def __len__(self) -> int:
        return len(self.data)

    def take(self, index: Tensor | slice) -> Tensor:
        """The rows at these positions."""
        if isinstance(index, slice):
            return self.data[index]
        # Several times as fast as indexing, for the rows of a batch.
        return self.data.index_select(0, index.to(self.data.device))

    def part(self, index: Tensor) -> DenseRows:
        """The rows at these positions, as rows again."""
        return DenseRows(self.data[index])

    def mean(self) -> Tensor:
        """Mean of each column, summed in double precision."""
        return self.data.mean(0, dtype=torch.float64).to(self.data)


class SparseRows:
    """Rows of a CSR matrix; only the batch at hand is ever dense."""

    def __init__(self, data: sp.csr_array, dtype: torch.dtype, device: torch.device) -> None:
        self.data = data
        self.dtype = dtype
        self.device = device

    @property
    def width(self) -> int:
        """Number of columns."""
        return int(self.data.shape[1])

    def __len__(self) -> int:
        return int(self.data.shape[0])

    def take(self, index: Tensor | slice) -> Tensor:
        """The rows at these positions, dense."""
        rows = self.data[index if isinstance(index, slice) else index.numpy()]
        return torch.from_numpy(rows.toarray()).to(device=self.device, dtype=self.dtype)

    def part(self, index: Tensor) -> SparseRows:
        """The rows at these positions, as rows again."""
        return SparseRows(self.data[index.numpy()], self.dtype, self.device)

    def mean(self) -> Tensor:
        """Mean of each column, summed in double precision."""
        # SciPy's own sum runs in the matrix's precision, whatever its ``dtype`` says.
        total = np.bincount(self.data.indices, weights=self.data.data, minlength=self.width)
        return torch.from_numpy(total / len(self)).to(device=self.device, dtype=self.dtype)


class LabelledBatch(NamedTuple):
    """Rows with their labels and weights, as a supervised gradient takes them.

    Attributes
    ----------
    rows : Tensor of shape (n, n_features)
    labels : Tensor
        Of shape (n,): the classes' numbers, -1 where a row has none; or the targets of a
        regression.
    weights : Tensor of shape (n,) or None
        Of the rows in the mean; None is one for each.
    """

    rows: Tensor
    labels: Tensor
    weights: Tensor | None


class LabelledRows:
    """Rows with a label each, and perhaps a weight.

    Examples
    --------
    >>> import torch
    >>> rows = LabelledRows(DenseRows(torch.eye(3)), torch.tensor([0, 1, -1]))
    >>> rows.take(slice(1, 3)).labels
    tensor([ 1, -1])
    """

    def __init__(self, rows: Rows, labels: Tensor, weights: Tensor | None = None) -> None:
        self.rows = rows
        self.labels = labels
        self.weights = weights

    @property
    def width(self) -> int:
        """Number of columns, without the labels."""
        return self.rows.width

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, index: Tensor | slice) -> LabelledBatch:
        """The rows at these positions, with labels and weights."""
        weights = None if self.weights is None else self.weights[index]
        return LabelledBatch(self.rows.take(index), self.labels[index], weights)

    def part(self, index: Tensor) -> LabelledRows:
        """The rows at these positions, as labelled rows again."""
        weights = None if self.weights is None else self.weights[index]
        return LabelledRows(self.rows.part(index), self.labels[index], weights)

    def shuffled(self, random: RandomStream) -> LabelledRows:
        """The same rows with their labels in a random order, and the weights in their places."""
        order = random.permutation(len(self)).to(self.labels.device)
        return LabelledRows(self.rows, self.labels[order], self.weights)

    @property
    def total(self) -> float:
        """Sum of the weights, the number of rows where none has one."""
        return float(len(self) if self.weights is None else self.weights.double().sum())

    def class_shares(self, n_classes: int) -> Tensor:
        """Weight of each class among the labelled rows, with one pseudo-count for each."""
        labelled = self.labels >= 0
        weights = None if self.weights is None else self.weights[labelled].double()
        counts = torch.bincount(self.labels[labelled], weights, n_classes).double() + 1.0
        return counts / counts.sum()

    def mean(self) -> Tensor:
        """Weighted mean of each column, summed in double precision."""
        if self.weights is None:
            return self.rows.mean()
        total = self.weights.new_zeros(self.width, dtype=torch.float64)
        for start in range(0, len(self), _BLOCK):
            part = slice(start, start + _BLOCK)
            total += self.weights[part].double() @ self.rows.take(part).double()
        return (total / self.total).to(self.weights)


def as_rows(data: np.ndarray | Tensor | sp.sparray | sp.spmatrix, like: Tensor) -> Rows:
    """Rows of an array, a tensor or a sparse matrix, with the precision and device of ``like``.

    Examples
    --------
    >>> import numpy as np, torch
    >>> rows = as_rows(np.eye(3), like=torch.empty(0))
    >>> rows.take(slice(0, 1))
    tensor([[1., 0., 0.]])
    """
    if sp.issparse(data):
        return SparseRows(sp.csr_array(data), like.dtype, like.device)
    if not isinstance(data, Tensor):
        with warnings.catch_warnings():
            # Arrays of a memory map or a dataframe are read-only; rows are never written to.
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            data = torch.from_numpy(np.ascontiguousarray(data))
    return DenseRows(data.to(like.device, like.dtype))
