"""What predictions are compared with: targets that are given, or those of a stream."""

from __future__ import annotations

from typing import Any

from freenergy.data import as_stream

__all__ = ["rows_and_targets"]


def rows_and_targets(X: Any, y: Any = None) -> tuple[Any, Any]:
    """Rows to predict and their targets, which a stream may have itself.

    Parameters
    ----------
    X : {array-like, sparse matrix, dataframe, stream} of shape (n_samples, n_features)
    y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None

    Returns
    -------
    X, y : as ``predict`` and a measure of the predictions take them

    Raises
    ------
    ValueError
        When there are no targets.

    Examples
    --------
    >>> import numpy as np
    >>> from freenergy.data import stream
    >>> rows_and_targets(stream(np.eye(2), labels=["up", "down"]))[1].tolist()
    ['up', 'down']
    >>> rows_and_targets(np.eye(2))
    Traceback (most recent call last):
        ...
    ValueError: score needs y, the targets of the rows; only a stream with labels has its own
    """
    if y is not None:
        return X, y
    stream = as_stream(X)
    if stream is None:
        raise ValueError(
            "score needs y, the targets of the rows; only a stream with labels has its own"
        )
    return stream, stream.read_labels()
