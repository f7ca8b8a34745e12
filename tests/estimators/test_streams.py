"""Estimators on data that are streamed: the same models, whatever the rows lie in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils.multiclass import check_classification_targets

import freenergy as fe
from freenergy.data import DataError, stream
from freenergy.estimators.unrolled_rbm_classifier import _pretraining_rows
from freenergy.training import CheckpointError, StreamedRows

RNG = np.random.default_rng(0)
CLASSES = RNG.integers(0, 3, 400)
ROWS = ((RNG.random((3, 8)) < 0.5)[CLASSES] ^ (RNG.random((400, 8)) < 0.1)).astype(np.float32)
NAMES = np.array(["ant", "bee", "cat"])
SMALL = 64 * 32  # 64 rows in the buffer, blocks of two.

RBM = fe.BernoulliRBM(6, batch_size=20, n_iter=4, random_state=0)
VAE = fe.VariationalAutoencoder(4, batch_size=20, n_iter=3, random_state=0)
CLASSIFIER = fe.RBMClassifier(12, batch_size=20, n_iter=12, random_state=0)
UNROLLED = fe.UnrolledRBMClassifier(
    fe.BernoulliRBM(12, learning_rate=0.2, batch_size=20, n_iter=6, centered=True),
    depth=1,
    batch_size=20,
    n_iter=12,
    learning_rate=0.02,
    random_state=0,
)
NET = fe.MLPClassifier((16,), max_iter=8, learning_rate_init=0.02, batch_size=20, random_state=0)
REGRESSOR = fe.MLPRegressor(
    hidden_layer_sizes=(16,), max_iter=10, learning_rate_init=0.02, batch_size=20, random_state=0
)

pytestmark = pytest.mark.filterwarnings("ignore:.*Maximum iterations")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "x").mkdir()
    for k, part in enumerate(np.array_split(ROWS, 4)):
        np.save(tmp_path / "x" / f"{k}.npy", part)
    return tmp_path / "x"


def labelled(labels=CLASSES, **options):
    return stream(ROWS, labels=labels, buffer_bytes=SMALL, **options)


def assert_same(one, other):
    for p, q in zip(one.model_.parameters(), other.model_.parameters(), strict=True):
        assert_array_equal(p.detach(), q.detach())


# ---- densities -----------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", [RBM, VAE], ids=lambda e: type(e).__name__)
def test_a_path_a_stream_and_a_torch_dataset_give_the_same_model(estimator, folder):
    np.save(folder.parent / "x.npy", ROWS)
    models = [
        clone(estimator).fit(what)
        for what in (
            stream(folder.parent / "x.npy"),
            str(folder.parent / "x.npy"),
            torch.utils.data.TensorDataset(torch.from_numpy(ROWS)),
            stream(ROWS, n_readers=4),
        )
    ]
    for other in models[1:]:
        assert_same(models[0], other)
    assert models[0].n_features_in_ == 8
    assert next(models[0].model_.parameters()).dtype == torch.float32


@pytest.mark.parametrize("estimator", [RBM, VAE], ids=lambda e: type(e).__name__)
def test_shards_that_fit_into_the_buffer_train_to_the_bits_of_the_array(estimator, folder):
    assert_same(clone(estimator).fit(folder), clone(estimator).fit(ROWS))


def test_a_stream_is_learned_from_as_well_as_an_array(folder):
    small = stream(folder, buffer_bytes=SMALL)
    there, here = (clone(RBM).set_params(n_iter=30).fit(what) for what in (small, ROWS))
    likelihoods = [rbm.log_likelihood(ROWS).mean for rbm in (there, here)]
    alone = clone(RBM).set_params(n_iter=0).fit(ROWS).log_likelihood(ROWS).mean
    assert min(likelihoods) > alone + 0.5
    assert likelihoods[0] == pytest.approx(likelihoods[1], abs=0.3)


def test_results_for_streams_are_those_for_arrays(folder):
    rbm = clone(RBM).fit(folder)
    assert_array_equal(rbm.transform(folder), rbm.transform(ROWS))
    assert_array_equal(rbm.free_energy(stream(folder, buffer_bytes=SMALL)), rbm.free_energy(ROWS))
    assert_array_equal(rbm.score_samples(folder), rbm.score_samples(ROWS))
    assert rbm.log_likelihood(folder).mean == pytest.approx(rbm.log_likelihood(ROWS).mean)
    assert rbm.effective_temperature(folder).temperature > 0


def test_results_that_would_not_fit_into_memory_are_refused(folder, monkeypatch):
    rbm = clone(RBM).fit(folder)
    monkeypatch.setattr("freenergy.estimators.base._MOST_RESULT_BYTES", 400 * 4)
    assert len(rbm.free_energy(folder)) == 400
    with pytest.raises(ValueError, match=r"takes .* GB or more: go through the blocks"):
        rbm.transform(folder)


def test_rows_of_a_stream_are_held_out_and_watched(folder):
    rbm = clone(RBM).set_params(validation_fraction=0.25, method="ptt").fit(folder)
    assert len(rbm.history_["log_likelihood_held_out"]) == 4
    vae = clone(VAE).set_params(validation_fraction=0.25).fit(folder)
    assert len(vae.history_["free_energy_held_out"]) == 3


def test_values_are_checked_and_binarised_on_the_way(folder):
    grey = 3 * ROWS
    with pytest.raises(DataError, match=r"value 3 in column .*, row 0: outside"):
        clone(RBM).fit(stream(grey))
    assert_same(clone(RBM).fit(stream(grey, binarize=0.5)), clone(RBM).fit(stream(ROWS)))
    with pytest.raises(DataError, match="standardised"):
        clone(RBM).fit(stream(grey, standardize=True))
    clone(VAE).set_params(likelihood="gaussian").fit(stream(grey, standardize=True))


def test_a_broken_shard_leaves_a_fitted_model_as_it_was(folder):
    rbm = clone(RBM).fit(folder)
    before = rbm.components_.copy()
    shard = np.load(folder / "2.npy")
    shard[50, 3] = np.nan
    np.save(folder / "2.npy", shard)
    with pytest.raises(DataError, match=r"2\.npy has NaN in column 3, row 50"):
        rbm.fit(folder)
    assert_array_equal(rbm.components_, before)
    assert_array_equal(rbm.score_samples(ROWS), rbm.score_samples(ROWS))


def test_a_shard_that_goes_midway_leaves_the_checkpoint(folder, tmp_path):
    def lose(trainer):
        if trainer.epoch == 2:
            (folder / "1.npy").rename(tmp_path / "1.npy")

    small = stream(folder, buffer_bytes=SMALL)
    rbm = clone(RBM).set_params(checkpoint_dir=tmp_path / "kept", callback=lose)
    with pytest.raises(DataError, match=r"1\.npy is not there any more"):
        rbm.fit(small)
    assert not hasattr(rbm, "model_")
    (tmp_path / "1.npy").rename(folder / "1.npy")
    assert_same(rbm.set_params(callback=None).fit(small), clone(RBM).fit(small))
    with pytest.raises(CheckpointError, match="the data"):
        rbm.fit(stream(ROWS[:200]))


def test_the_width_must_be_that_of_the_fit(folder):
    rbm = clone(RBM).fit(folder)
    with pytest.raises(ValueError, match="has 5 features, but BernoulliRBM is expecting 8"):
        rbm.transform(stream(ROWS[:, :5]))


def test_a_resumed_fit_is_on_the_same_values_in_the_same_order(tmp_path):
    def fit(**options):
        net = clone(REGRESSOR).set_params(max_iter=1, checkpoint_dir=tmp_path)
        return net.fit(labelled(ROWS @ np.arange(8.0), **options))

    fit()
    fit(n_readers=3)
    with pytest.raises(CheckpointError, match="the data"):
        fit(standardize=True)
    net = clone(REGRESSOR).set_params(max_iter=1, checkpoint_dir=tmp_path)
    with pytest.raises(CheckpointError, match="the buffer of a stream"):
        net.fit(stream(ROWS, labels=ROWS @ np.arange(8.0)))


class Endless(torch.utils.data.IterableDataset):
    def __iter__(self):
        while True:
            yield from zip(ROWS, CLASSES.tolist(), strict=True)


def test_a_place_in_rows_without_numbers_is_not_kept(tmp_path):
    rbm = clone(RBM).set_params(updates_per_epoch=3, checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match="updates_per_epoch=None, or give a torch Dataset with"):
        rbm.fit(stream(Endless()))


def test_columns_of_a_table_have_their_names(tmp_path):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(ROWS, columns=list("abcdefgh"))
    frame.to_parquet(tmp_path / "x.parquet")
    rbm = clone(RBM).fit(tmp_path / "x.parquet")
    assert list(rbm.feature_names_in_) == list("abcdefgh")
    assert_array_equal(rbm.transform(frame), rbm.transform(tmp_path / "x.parquet"))
    frame[list("hgfedcba")].to_parquet(tmp_path / "y.parquet")
    with pytest.raises(ValueError, match="columns of the fit"):
        rbm.transform(tmp_path / "y.parquet")


def test_partial_fit_takes_a_stream_that_fits(folder):
    rbm = clone(RBM).partial_fit(folder)
    assert_allclose(rbm.components_, clone(RBM).partial_fit(ROWS).components_, rtol=1e-5)


# ---- labels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", [CLASSIFIER, UNROLLED, NET], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("early", [False, True])
def test_classes_are_learned_from_a_stream(estimator, early):
    options = {"early_stopping": early, "validation_fraction": 0.2}
    there, here = (clone(estimator).set_params(**options) for _ in range(2))
    there.fit(labelled(NAMES[CLASSES]))
    here.fit(ROWS, NAMES[CLASSES])
    assert there.classes_.tolist() == NAMES.tolist()
    scores = [model.score(ROWS, NAMES[CLASSES]) for model in (there, here)]
    assert scores[0] > 0.85
    assert scores[0] == pytest.approx(scores[1], abs=0.06)
    assert_array_equal(there.predict(stream(ROWS)), there.predict(ROWS))


@pytest.mark.parametrize("objective", ["discriminative", "generative", "hybrid"])
def test_every_objective_learns_from_a_stream(objective):
    """To the bit as from an array, where the buffer holds all rows."""
    estimator = clone(CLASSIFIER).set_params(objective=objective, n_iter=3)
    labels = CLASSES
    if objective != "discriminative":
        labels = np.where(np.arange(400) % 4, CLASSES, -1)
        estimator.set_params(unlabeled=-1)
    there = clone(estimator).fit(stream(ROWS, labels=labels))
    assert_same(there, clone(estimator).fit(ROWS, labels))
    assert there.classes_.tolist() == [0, 1, 2]


UNROLLINGS = [
    {},
    {"depth": 3, "tied": False, "order": 2},
    {"depth": 2, "release_after": 1},
    {"depth": 1, "optimizer": "sgd", "learning_rate": 0.5, "schedule": "cosine"},
    {"pretrain": False, "input_dropout": 0.2, "dropout": 0.1},
]


@pytest.mark.parametrize("options", UNROLLINGS, ids=str)
@pytest.mark.parametrize("unlabelled", [False, True])
def test_an_unrolled_machine_learns_from_a_stream_in_every_phase(options, unlabelled):
    """To the bit as from an array, where the buffer holds all rows."""
    if unlabelled and not options.get("pretrain", True):
        pytest.skip("nothing would be learned from rows without a label")
    estimator = clone(UNROLLED).set_params(n_iter=3, unlabeled=-1, **options)
    labels = np.where(np.arange(400) % 4, -1, CLASSES) if unlabelled else CLASSES
    there = clone(estimator).fit(stream(ROWS, labels=labels))
    here = clone(estimator).fit(ROWS, labels)
    assert_same(there, here)
    assert list(there.pretraining_history_) == list(here.pretraining_history_)
    assert there.history_["updates"] == here.history_["updates"]
    for name in ("rbm_free_energy", "rbm_tap2_log_partition"):
        assert np.isfinite(there.history_[name]).all()


def test_rows_without_a_label_are_passed_over_where_the_buffer_does_not_hold_all():
    labels = np.where(np.arange(400) % 4, -1, CLASSES)
    estimator = clone(UNROLLED).set_params(unlabeled=-1, n_iter=25)
    there = clone(estimator).fit(stream(ROWS, labels=labels, buffer_bytes=SMALL))
    assert there.history_["updates"] == [5] * 25  # 100 rows with a label, batches of 20
    assert there.score(ROWS, CLASSES) > 0.85
    there.set_params(updates_per_epoch=4, n_iter=2)
    there.fit(stream(ROWS, labels=labels, buffer_bytes=SMALL))
    assert there.history_["updates"] == [4] * 2
    frozen = FrozenEstimator(clone(RBM).fit(ROWS))
    with pytest.raises(ValueError, match="nothing is learned from them here; leave them out"):
        clone(estimator).set_params(rbm=frozen).fit(stream(ROWS, labels=labels))
    known = labels >= 0
    given = clone(estimator).set_params(rbm=frozen, n_iter=2)
    assert_same(
        clone(given).fit(stream(ROWS[known], labels=labels[known])),
        clone(given).fit(ROWS[known], labels[known]),
    )


@pytest.mark.parametrize("estimator", [CLASSIFIER, UNROLLED], ids=lambda e: type(e).__name__)
def test_held_out_rows_of_a_stream_are_judged_by_those_that_have_a_label(estimator):
    labels = np.where(RNG.random(400) < 0.5, -1, CLASSES)
    options = {"unlabeled": -1, "early_stopping": True, "validation_fraction": 0.25, "n_iter": 12}
    if estimator is CLASSIFIER:
        options["objective"] = "hybrid"
    found = clone(estimator).set_params(**options).fit(labelled(labels))
    assert max(found.history_["accuracy_held_out"]) > 0.8
    # Blocks have two rows, of which the second is held out.
    rare = np.where(np.arange(400) % 2, -1, CLASSES)
    with pytest.raises(ValueError, match="none of the rows that are held out has a label"):
        clone(found).fit(labelled(rare))
    seldom = clone(found).set_params(early_stopping=False, n_iter=1)
    big = np.resize(ROWS, (4000, 8))
    rare = np.append(np.full(3990, -1), np.resize(CLASSES, 10))
    seldom.fit(stream(big, labels=rare, buffer_bytes=SMALL))
    assert np.isfinite(seldom.history_["loss"]).all()


def test_an_unrolled_machine_learns_from_rows_without_end():
    machine = clone(UNROLLED).set_params(updates_per_epoch=7, n_iter=2)
    machine.rbm.set_params(updates_per_epoch=5, n_iter=3)
    machine.fit(stream(Endless(), buffer_bytes=2**14))
    assert machine.pretraining_history_["updates"] == [5] * 3
    assert machine.history_["updates"] == [7] * 2
    rows = StreamedRows(stream(Endless()), torch.empty(0))
    assert _pretraining_rows(rows, machine.rbm).start_rows == 5 * 20
    assert machine.classes_.tolist() == [0, 1, 2]


def lose(folder, away, epoch):
    """A callback that takes a shard away."""

    def after(trainer):
        if trainer.epoch == epoch:
            (folder / "1.npy").rename(away / "1.npy")

    return after


@pytest.mark.parametrize("phase", ["pretraining", "tied", "released"])
def test_a_shard_that_goes_in_any_phase_leaves_the_checkpoint(folder, tmp_path, phase):
    small = stream(folder, labels=CLASSES, buffer_bytes=SMALL)
    epoch = {"pretraining": 2, "tied": 1, "released": 3}[phase]
    estimator = clone(UNROLLED).set_params(n_iter=4, depth=2, release_after=2)
    whole = clone(estimator).fit(small)
    kept = tmp_path / "kept"
    broken = clone(estimator).set_params(checkpoint_dir=kept)
    loser = broken.rbm if phase == "pretraining" else broken
    loser.set_params(callback=lose(folder, tmp_path, epoch))
    with pytest.raises(DataError, match=r"1\.npy is not there any more"):
        broken.fit(small)
    assert not hasattr(broken, "model_")
    assert (kept / "fit.safetensors").exists() == (phase != "pretraining")
    assert (kept / "pretraining" / "fit.safetensors").exists()
    (tmp_path / "1.npy").rename(folder / "1.npy")
    passes = []
    loser.set_params(callback=lambda trainer: passes.append(trainer.epoch))
    assert_same(broken.fit(small), whole)
    assert passes[0] == epoch + 1


@pytest.mark.parametrize(
    "estimator", [CLASSIFIER, UNROLLED, NET, REGRESSOR], ids=lambda e: type(e).__name__
)
def test_a_broken_shard_is_named_and_leaves_a_fitted_model_with_labels_too(estimator, folder):
    data = {"labels": CLASSES, "buffer_bytes": SMALL}
    fitted = clone(estimator).set_params(**{estimator_passes(estimator): 1})
    fitted.fit(stream(folder, **data))
    before = fitted.predict(ROWS)
    shard = np.load(folder / "2.npy")
    shard[50, 3] = np.nan
    np.save(folder / "2.npy", shard)
    with pytest.raises(DataError, match=r"2\.npy has NaN in column 3, row 50"):
        fitted.fit(stream(folder, **data))
    with pytest.raises(DataError, match=r"2\.npy has NaN in column 3, row 50"):
        fitted.score(stream(folder, **data))
    assert_array_equal(fitted.predict(ROWS), before)
    np.save(folder / "2.npy", shard[:, :5])
    with pytest.raises(DataError, match=r"2\.npy has rows of shape \(5,\), but .*0\.npy"):
        fitted.fit(stream(folder, **data))
    np.save(folder / "2.npy", np.load(folder / "1.npy"))
    opened = stream(folder, **data)
    (folder / "3.npy").unlink()
    with pytest.raises(DataError, match=r"3\.npy is not there any more"):
        fitted.fit(opened)


@pytest.mark.parametrize(
    "estimator", [CLASSIFIER, UNROLLED, NET, REGRESSOR], ids=lambda e: type(e).__name__
)
def test_labels_may_be_given_apart_or_be_items(estimator):
    class Pairs(torch.utils.data.Dataset):
        def __len__(self):
            return 400

        def __getitem__(self, k):
            return ROWS[k], int(CLASSES[k])

    estimator = clone(estimator)
    first = clone(estimator).fit(labelled())
    assert_same(first, clone(estimator).fit(stream(ROWS, buffer_bytes=SMALL), CLASSES))
    assert_same(first, clone(estimator).fit(stream(Pairs(), buffer_bytes=SMALL)))


@pytest.mark.parametrize("estimator", [CLASSIFIER, UNROLLED, NET], ids=lambda e: type(e).__name__)
def test_rare_classes_are_known_from_labels_in_one_column(estimator):
    labels = np.append(2, np.resize([0, 1], 4999))
    rows = np.resize(ROWS, (5000, 8))
    found = clone(estimator).set_params(**{estimator_passes(estimator): 1})
    found.fit(stream(rows, labels=labels[:, None]))
    assert found.classes_.tolist() == [0, 1, 2]


def estimator_passes(estimator):
    return "max_iter" if "max_iter" in estimator.get_params() else "n_iter"


def test_many_classes_of_many_rows_take_no_memory(monkeypatch):
    """As many numbers as there are rows would be 8 TB here."""
    counts = (np.arange(1000), np.full(1000, 10**9))
    monkeypatch.setattr(fe.data.DataStream, "label_counts", lambda self, portion: counts)
    net = clone(NET).set_params(max_iter=1)
    repeated = []
    define = type(net)._define_targets
    monkeypatch.setattr(
        type(net),
        "_define_targets",
        lambda self, y, c: (repeated.append(len(y)), define(self, y, c)),
    )
    net.fit(labelled())
    assert repeated[0] <= 2**21
    assert len(net.classes_) == 1000


@pytest.mark.parametrize("estimator", [CLASSIFIER, UNROLLED], ids=lambda e: type(e).__name__)
def test_labels_of_many_rows_are_counted_and_not_collected(estimator, monkeypatch):
    numbers = np.arange(-1, 999)
    counts = (numbers, np.full(1000, 10**9))
    monkeypatch.setattr(fe.data.DataStream, "label_counts", lambda self, portion: counts)
    longest = []
    check = check_classification_targets
    monkeypatch.setattr(
        "freenergy.estimators.classifier.check_classification_targets",
        lambda y: (longest.append(len(y)), check(y)),
    )
    small = clone(estimator).set_params(n_iter=1)
    if estimator is CLASSIFIER:
        small.set_params(objective="hybrid")
    with pytest.warns(UserWarning, match="^1000000000 rows have the label -1"):
        small.fit(labelled())
    assert longest[0] <= 2**21
    assert small.classes_.tolist() == numbers[1:].tolist()


@pytest.mark.parametrize("estimator", [NET, REGRESSOR], ids=lambda e: type(e).__name__)
def test_a_net_must_know_how_many_rows_there_are(estimator):
    with pytest.raises(ValueError, match=r"Endless gives rows one after .* Dataset with a length"):
        clone(estimator).fit(stream(Endless()))


def test_a_net_of_a_table_takes_no_stream():
    """Also where the encoded columns are as many as those of the table."""
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"kind": ["a"] * 400, "x": ROWS[:, 0]})
    with pytest.warns(UserWarning, match="one value only"):
        net = clone(NET).partial_fit(frame, CLASSES, classes=[0, 1, 2])
    numbers = stream(ROWS[:, :2], labels=CLASSES)
    for use in (net.predict, lambda x: net.partial_fit(x, None)):
        with pytest.raises(ValueError, match=r"was fitted on a table .* pass that"):
            use(numbers)


def test_a_regression_is_learned_from_a_stream():
    targets = ROWS @ np.arange(8.0) + 1.0
    net = clone(REGRESSOR).fit(labelled(targets))
    assert net.score(ROWS, targets) > 0.9
    assert net.score(stream(ROWS), targets) == net.score(ROWS, targets)


def test_batch_normalisation_knows_a_sample_of_the_stream():
    net = clone(NET).set_params(normalization="batch").fit(labelled())
    assert net.score(ROWS, CLASSES) > 0.85


@pytest.mark.parametrize(
    ("estimator", "options", "message"),
    [
        (CLASSIFIER, {"class_weight": "balanced"}, "class_weight need arrays"),
        (UNROLLED, {"class_weight": "balanced"}, "class_weight need arrays"),
        (NET, {"class_weight": "balanced"}, "class_weight needs arrays"),
        (NET, {"solver": "lbfgs"}, "lbfgs' needs arrays"),
        (NET, {"warm_start": True}, "warm_start needs arrays"),
    ],
)
def test_what_needs_all_rows_at_once_is_refused(estimator, options, message):
    with pytest.raises(ValueError, match=message):
        clone(estimator).set_params(**options).fit(labelled())


@pytest.mark.parametrize(
    "estimator", [CLASSIFIER, UNROLLED, NET, REGRESSOR], ids=lambda e: type(e).__name__
)
def test_a_stream_is_scored_by_its_own_labels(estimator, folder):
    fitted = clone(estimator).fit(labelled())
    expected = fitted.score(ROWS, CLASSES)
    assert fitted.score(labelled()) == expected == fitted.score(folder, CLASSES)
    assert fitted.score(stream(folder, labels=CLASSES[:, None])) == expected
    flipped = labelled((CLASSES + 1) % 3)
    assert fitted.score(flipped) == fitted.score(ROWS, (CLASSES + 1) % 3) < expected
    weights = np.arange(400.0)
    assert fitted.score(labelled(), sample_weight=weights) == fitted.score(ROWS, CLASSES, weights)
    pairs = [(torch.from_numpy(row), int(y)) for row, y in zip(ROWS, CLASSES, strict=True)]
    assert fitted.score(pairs_of(pairs)) == expected
    with pytest.raises(ValueError, match="score needs y, the targets of the rows"):
        fitted.score(ROWS)
    with pytest.raises(DataError, match="has no labels; name them"):
        fitted.score(folder)
    with pytest.raises(DataError, match="own order only"):
        fitted.score(torch.utils.data.DataLoader(pairs_of(pairs), batch_size=9, shuffle=True))


def pairs_of(pairs):
    class Pairs(torch.utils.data.Dataset):
        def __len__(self):
            return len(pairs)

        def __getitem__(self, k):
            return pairs[k]

    return Pairs()


def test_a_stream_without_labels_is_no_classification(folder):
    for estimator in (CLASSIFIER, UNROLLED, NET, REGRESSOR):
        with pytest.raises(DataError, match="has no labels; name them"):
            clone(estimator).fit(folder)
    with pytest.raises(ValueError, match="takes arrays here"):
        clone(CLASSIFIER).partial_fit(folder, CLASSES, classes=[0, 1, 2])


@pytest.mark.parametrize("kind", [fe.MLPClassifier, fe.MLPRegressor, fe.RBMClassifier])
def test_a_name_in_place_of_labels_is_told_where_it_belongs(tmp_path, kind):
    np.save(tmp_path / "0.npy", np.random.default_rng(0).random((30, 4)))
    with pytest.raises(fe.data.DataError, match=r"got 'kind': give an array, or the name of a"):
        kind().fit(tmp_path, "kind")
