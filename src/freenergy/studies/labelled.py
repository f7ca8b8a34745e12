"""Rows with classes, to learn from and held out, as the studies of classifiers take them."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from sklearn.utils.multiclass import type_of_target

from freenergy.data import DataError, Dataset
from freenergy.studies.results import split_held_out
from freenergy.training import LabelledRows, as_rows

__all__ = ["split_labelled"]


def split_labelled(dataset: Dataset) -> tuple[LabelledRows, LabelledRows, int]:
    """Rows to learn from and held-out rows with their classes, and the number of classes.

    Raises
    ------
    DataError
        When the rows have no labels, or none that are two classes or more.
    """
    y, y_test = dataset.y_train, dataset.y_test
    if y is None or (dataset.x_test is not None and y_test is None):
        raise DataError(
            f"{dataset.name} has no labels; this study trains classifiers, so choose data with "
            "labels, or say where they are (--labels, or labels of a stream)"
        )
    if np.ndim(y) != 1 or type_of_target(y) not in ("binary", "multiclass"):
        raise DataError(
            f"the labels of {dataset.name} are no classes ({type_of_target(y)}); this study "
            "trains classifiers"
        )
    x, x_held_out = split_held_out(dataset)
    if y_test is None:
        # As split_held_out splits the rows.
        y, y_test = train_test_split(y, test_size=0.2, random_state=0)
    classes = np.unique(y)
    if len(classes) < 2:
        raise DataError(f"all rows of {dataset.name} have the label {classes[0]}; two are needed")
    return _mixed(x, y, classes), _mixed(x_held_out, y_test, classes), len(classes)


def _mixed(x: np.ndarray, y: np.ndarray, classes: np.ndarray) -> LabelledRows:
    """Rows in random order, since files are often sorted and only the first are read.

    Labels are places in the list of classes; -1 is one that was not met in training.
    """
    order = np.random.default_rng(0).permutation(len(y))
    place = np.searchsorted(classes, y[order]).clip(max=len(classes) - 1)
    labels = np.where(classes[place] == y[order], place, -1)
    rows = torch.from_numpy(x[order])
    return LabelledRows(as_rows(rows, rows), torch.from_numpy(labels))
