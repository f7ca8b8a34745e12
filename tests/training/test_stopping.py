"""When training ends early: the entropy collapsed, or a number no longer rises."""

from __future__ import annotations

import math
from contextlib import suppress
from types import SimpleNamespace

import pytest

from freenergy.thermodynamics import RBMMonitor
from freenergy.training import RunConfig, RunDirectory, TrainingOptions, as_rows
from freenergy.training.stopping import EarlyStopping, EntropyCollapse, StopTraining


def fake(values, key: str = "tap2_entropy", *, every: int = 1, **options) -> SimpleNamespace:
    """A trainer with these entropies in its history; None is an epoch that was not read."""
    history = [
        {"epoch": n} | ({} if value is None else {key: value})
        for n, value in enumerate(values, start=1)
    ]
    return SimpleNamespace(
        history=history,
        epoch=len(history),
        monitor_every=every,
        options=TrainingOptions(**options),
    )


def stops_after(values, stop: EntropyCollapse, **settings) -> int | None:
    """The epoch after which training ends, its history growing as in a run."""
    for n in range(1, len(values) + 1):
        try:
            stop(fake(values[:n], **settings))
        except StopTraining:
            return n
    return None


def shrinking(model) -> dict[str, float]:
    """A monitor whose reading depends on the model alone: it falls as the weights grow."""
    return {"tap2_entropy": 50.0 - 200.0 * float(model.weight.detach().norm())}


# When


def test_a_falling_entropy_stops_after_patience_records():
    values = [100.0, 50.0, 4.0, 3.0, 2.0, 1.0]
    assert stops_after(values, EntropyCollapse()) == 5
    assert stops_after(values, EntropyCollapse(patience=1)) == 3
    assert stops_after(values, EntropyCollapse(patience=4)) == 6
    assert stops_after(values, EntropyCollapse(patience=5)) is None
    assert stops_after(values, EntropyCollapse(fraction=0.5, patience=1)) == 2, "at the threshold"
    assert stops_after(values, EntropyCollapse(fraction=0.01, patience=1)) == 6


def test_the_records_must_be_in_a_row():
    values = [100.0, 1.0, 1.0, 80.0, 1.0, 1.0, 1.0]
    assert stops_after(values, EntropyCollapse()) == 7
    assert stops_after(values[:6], EntropyCollapse()) is None


def test_the_reference_is_the_first_record_and_not_the_highest():
    assert stops_after([10.0, 100.0, 4.0], EntropyCollapse(fraction=0.3, patience=1)) is None
    assert stops_after([10.0, 100.0, 2.0], EntropyCollapse(fraction=0.3, patience=1)) == 3


def test_a_negative_entropy_is_a_collapse_at_any_fraction():
    stop = EntropyCollapse(fraction=0.0, patience=2)
    assert stops_after([10.0, 0.1, -1.0, -2.0], stop) == 4
    assert stops_after([-1.0, -2.0], stop) == 2, "from the first record on"
    assert stops_after([-10.0, -0.1], EntropyCollapse(patience=2)) == 2, "however close to zero"
    assert stops_after([-1.0, 2.0, 3.0], stop) is None
    assert stops_after([10.0, 0.0, 0.0], stop) == 3


def test_a_healthy_run_is_left_alone():
    # Of MNIST with 200 hidden units, ten epochs of PCD.
    entropy = [344.6, 344.6, 324.4, 312.8, 295.8, 280.7, 271.1, 261.3, 255.6, 245.3]
    assert stops_after(entropy, EntropyCollapse()) is None


def test_epochs_that_were_not_read_do_not_count():
    values = [None, 100.0, None, 1.0, None, 1.0, None, 1.0]
    assert stops_after(values, EntropyCollapse(), every=2) == 8
    assert stops_after(values, EntropyCollapse(patience=2), every=2) == 6


def test_what_is_not_a_number_says_nothing():
    values = [math.nan, 100.0, 1.0, math.nan, 1.0, math.inf, 1.0]
    assert stops_after(values, EntropyCollapse()) == 7
    assert stops_after([math.nan] * 5, EntropyCollapse()) is None


def test_without_a_history_nothing_happens():
    EntropyCollapse()(fake([]))


# What is watched


def test_the_exact_entropy_comes_before_the_mean_field_one():
    trainer = fake([100.0, 90.0])
    for record, value in zip(trainer.history, (100.0, 1.0), strict=True):
        record["exact_entropy"] = value
    with pytest.raises(StopTraining, match="exact_entropy is 1 nats"):
        EntropyCollapse(patience=1)(trainer)
    EntropyCollapse(patience=1, key="tap2_entropy")(trainer)


@pytest.mark.parametrize("key", ["exact_entropy", "entropy", "tap2_entropy"])
def test_each_known_key_is_found(key):
    assert stops_after([100.0, 1.0], EntropyCollapse(patience=1), key=key) == 2


def test_a_key_can_be_given():
    stop = EntropyCollapse(key="tap3_entropy", patience=1)
    assert stops_after([100.0, 1.0], stop, key="tap3_entropy") == 2


def test_an_entropy_that_nothing_records_is_an_error_and_not_silence():
    with pytest.raises(
        ValueError, match=r"needs .*'tap2_entropy'.*there: 'tap1_entropy'\).*set key"
    ):
        EntropyCollapse()(fake([1.0], key="tap1_entropy"))
    with pytest.raises(ValueError, match=r"needs 'tap3_entropy' .*there: none\)"):
        EntropyCollapse(key="tap3_entropy")(fake([None]))
    EntropyCollapse()(fake([None], every=2))
    with pytest.raises(ValueError, match="EntropyCollapse needs"):
        EntropyCollapse()(fake([None, None], every=2))


def test_the_message_says_what_happened_and_what_helps():
    with pytest.raises(StopTraining) as caught:
        EntropyCollapse(patience=1)(fake([100.0, 1.25], beta=2.0))
    message = str(caught.value)
    assert "tap2_entropy is 1.25 nats after epoch 2, at or below 5 (it began at 100)" in message
    assert "set weight_constraint and max_norm, lower beta (now 2" in message
    trainer = fake([100.0, 1.25], weight_constraint="l2", max_norm=7.0)
    with pytest.raises(StopTraining, match=r"lower max_norm \(now 7\).*fewer epochs"):
        EntropyCollapse(patience=1)(trainer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fraction": 1.0}, r"fraction must lie in \[0, 1\), got 1.0"),
        ({"fraction": -0.1}, r"fraction must lie in \[0, 1\), got -0.1"),
        ({"fraction": math.nan}, r"fraction must lie in \[0, 1\), got nan"),
        ({"fraction": "half"}, r"fraction must lie in \[0, 1\), got 'half'"),
        ({"patience": 0}, "patience must be a whole number of at least 1, got 0"),
        ({"patience": 1.5}, "patience must be a whole number of at least 1, got 1.5"),
        ({"key": 3}, "key must be the name of an entropy or None, got 3"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EntropyCollapse(**options)


def test_the_callback_is_readable():
    assert repr(EntropyCollapse()) == "EntropyCollapse(fraction=0.05, patience=3, key=None)"


# In a run


def config_of(rows, n_epochs: int = 30) -> RunConfig:
    options = TrainingOptions(n_epochs=n_epochs, batch_size=10, learning_rate=0.3)
    return RunConfig({"name": "test"}, rows.shape[1], 4, options, seed=0, dtype="float64")


def epochs_until_stop(tmp_path, rows, interruptions=()) -> tuple[int, list[float]]:
    """Train in a run directory, killed at these epochs and taken up by a new trainer."""
    config = config_of(rows)
    run = RunDirectory.create(tmp_path, config)
    rows = as_rows(rows, like=rows)
    stop = EntropyCollapse(fraction=0.2, patience=2)
    for limit in (*interruptions, None):
        trainer = config.build(rows, (shrinking,))

        def on_epoch(trainer, limit=limit):
            stop(trainer)
            if trainer.epoch == limit:
                raise KeyboardInterrupt

        with suppress(KeyboardInterrupt, StopTraining):
            run.train(trainer, rows, on_epoch=on_epoch)
    return trainer.epoch, [record["tap2_entropy"] for record in run.history()]


def test_training_ends_with_the_state_of_the_last_epoch_kept(data, start, same_state):
    trainer = start(data(), n_epochs=30, learning_rate=0.3)
    trainer.monitors = (shrinking,)
    rows = as_rows(data(), like=data())
    with suppress(StopTraining):
        trainer.fit(rows, on_epoch=EntropyCollapse(fraction=0.2, patience=2))
    stopped = trainer.epoch
    assert 2 < stopped < 30
    assert len(trainer.history) == stopped
    values = [record["tap2_entropy"] for record in trainer.history]
    threshold = 0.2 * values[0]
    assert max(values[-2:]) <= threshold < values[-3]
    plain = start(data(), n_epochs=stopped, learning_rate=0.3)
    plain.monitors = trainer.monitors
    plain.fit(rows)
    same_state(trainer.state(), plain.state())


def test_a_real_monitor_is_understood(data, start):
    trainer = start(data(), n_epochs=3)
    trainer.monitors = (RBMMonitor(data(), orders=(2,)),)
    trainer.fit(as_rows(data(), like=data()), on_epoch=EntropyCollapse())
    assert trainer.epoch == 3
    EntropyCollapse(key="tap2_entropy")(trainer)


def test_a_resumed_run_stops_where_a_whole_one_does(data, tmp_path):
    whole = epochs_until_stop(tmp_path / "whole", data())
    assert 4 < whole[0] < 30
    for epoch in (1, whole[0] - 1):
        assert epochs_until_stop(tmp_path / f"cut{epoch}", data(), [epoch]) == whole
    assert epochs_until_stop(tmp_path / "twice", data(), [2, 3]) == whole


# When a number no longer rises


class Scores:
    """A monitor that reads these numbers, one after another."""

    def __init__(self, values, key: str = "score") -> None:
        self.values = iter(values)
        self.key = key

    def __call__(self, model) -> dict[str, float]:
        return {self.key: next(self.values)}


def train_on(start, rows, values, stopping: EarlyStopping, **options):
    """A trainer whose epochs have these scores."""
    trainer = start(rows, n_epochs=len(values), **options)
    trainer.monitors = (Scores(values, stopping.key),)
    trainer.fit(as_rows(rows, like=rows), on_epoch=stopping)
    return trainer


@pytest.mark.parametrize(
    ("values", "patience", "tolerance", "n_epochs", "best"),
    [
        ([1, 2, 3, 4], 1, 0.0, 4, 4),
        ([4, 3, 2, 1], 2, 0.0, 3, 1),
        ([1, 5, 5, 5, 9], 2, 0.0, 4, 2),
        ([1, 5, 4, 6, 5, 5, 5], 3, 0.0, 7, 4),
        # A rise within the tolerance is the best so far, but no reason to go on.
        ([1.0, 1.05, 1.09, 2.0], 2, 0.1, 3, 3),
        # Small rises that add up are one.
        ([1.0, 1.06, 1.12, 1.18, 1.24, 1.3], 2, 0.1, 6, 6),
        ([math.nan, math.nan, 1, 2], 3, 0.0, 4, 4),
        ([1, math.nan, math.nan, math.nan], 2, 0.0, 3, 1),
        ([math.nan] * 5, 3, 0.0, 3, 1),
        ([-math.inf, -5, -6, -7], 2, 0.0, 4, 2),
    ],
)
def test_training_ends_when_a_number_no_longer_rises(
    data, start, same_state, values, patience, tolerance, n_epochs, best
):
    stopping = EarlyStopping("score", patience=patience, tolerance=tolerance)
    trainer = train_on(start, data(), values, stopping)
    assert (trainer.epoch, stopping.best_epoch) == (n_epochs, best)
    history = trainer.history
    stopping.restore_best(trainer)
    assert trainer.epoch == best
    assert trainer.history == history
    assert len(history) == n_epochs, "the history stays whole"
    # The state is that of a training which ends at the best epoch, to the bit.
    trainer.history = history[:best]
    if not any(math.isnan(value) for value in values):
        short = start(data(), n_epochs=best)
        short.monitors = (Scores(values),)
        short.fit(as_rows(data(), like=data()))
        same_state(trainer.state(), short.state())


def test_the_best_value_is_a_number_or_minus_infinity(data, start):
    for values, expected in (([math.nan, 1.0, 0.5], 1.0), ([math.nan] * 3, -math.inf)):
        stopping = EarlyStopping("score")
        train_on(start, data(), values, stopping)
        assert stopping.best_value == expected
    fresh = EarlyStopping("score")
    assert (fresh.best_value, fresh.best_epoch) == (-math.inf, None)


def test_before_any_epoch_there_is_nothing_to_restore(data, start, same_state):
    trainer = start(data())
    before = trainer.state()
    EarlyStopping("score").restore_best(trainer)
    same_state(trainer.state(), before)


def test_the_best_epoch_of_one_training_is_not_that_of_another(data, start, same_state):
    stopping = EarlyStopping("score")
    train_on(start, data(), [1.0, 2.0], stopping)
    other = start(data(), seed=1)
    before = other.state()
    with pytest.raises(ValueError, match="another trainer; make one for each"):
        stopping.restore_best(other)
    same_state(other.state(), before)
    with pytest.raises(ValueError, match="another trainer; make one for each"):
        train_on(start, data(), [1.0, 2.0], stopping)


def test_epochs_that_were_not_read_leave_the_patience(data, start):
    trainer = start(data(), n_epochs=8)
    trainer.monitors, trainer.monitor_every = (Scores([3.0, 2.0, 1.0, 0.0]),), 2
    stopping = EarlyStopping("score", patience=2)
    trainer.fit(as_rows(data(), like=data()), on_epoch=stopping)
    assert (trainer.epoch, stopping.best_epoch) == (6, 2)


def test_a_number_that_nobody_gives_is_named(data, start):
    trainer = start(data(), n_epochs=1)
    with pytest.raises(ValueError, match=r"needs 'score' in the records .*'epoch', 'updates', "):
        trainer.fit(as_rows(data(), like=data()), on_epoch=EarlyStopping("score"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patience": 0}, "patience must be a whole number of at least 1, got 0"),
        ({"tolerance": -1.0}, "tolerance must not be negative, got -1.0"),
        ({"tolerance": math.nan}, "tolerance must be a finite number, got nan"),
    ],
)
def test_impossible_options_of_early_stopping_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EarlyStopping("score", **options)
