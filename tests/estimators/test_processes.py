"""Estimators that several processes fit together."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import freenergy as fe
from freenergy.distributed import Group


@pytest.mark.parametrize("random_state", [None, 0])
def test_all_processes_hold_out_the_same_rows_whatever_the_seed(
    together, monkeypatch, random_state
):
    """Else one process would learn from the rows by which another one judges."""
    own = threading.local()
    for module in ("base", "mlp_rows"):
        monkeypatch.setattr(f"freenergy.estimators.{module}.group_now", lambda: own.group)
    rbm = fe.BernoulliRBM(validation_fraction=0.25, random_state=random_state)
    net = fe.MLPRegressor(early_stopping=True, random_state=random_state)

    def held_out(group: Group) -> list[np.ndarray]:
        own.group = group
        places = [*rbm._held_out(40), *net._places(np.arange(40.0))]
        return [place.numpy() for place in places]

    first, *others = together(3, held_out)
    assert [len(places) for places in first] == [30, 10, 36, 4]
    for other in others:
        for places, expected in zip(other, first, strict=True):
            np.testing.assert_array_equal(places, expected)
