"""Streams: whatever the rows lie in, they are the same rows, mixed by the seed alone."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from freenergy.data import DataError, Standardization, as_stream, stream
from freenergy.data.reading import in_batches, mixed, read_ahead
from freenergy.data.sources import ArraySource, BinaryFile, Block, Shards
from freenergy.random import RandomStream

# Six float32 columns: 40 rows in the buffer, blocks of one row (or what a file asks for).
SMALL = 40 * 24
PIXELS = np.arange(12, dtype=np.uint8).reshape(4, 3) * 20


def together(blocks):
    blocks = list(blocks)
    return np.concatenate([block.rows for block in blocks])


def numbered(n, **options):
    """A stream of rows that are their own numbers."""
    return stream(np.arange(n, dtype=np.float32)[:, None], **options)


# ---- sources -------------------------------------------------------------------------------------


def test_every_kind_of_file_gives_the_same_rows(stored, rows, labels):
    what, names = stored
    found = stream(what, labels=names, buffer_bytes=SMALL)
    assert (found.n_rows, found.width, found.dtype) == (230, 6, np.float32)
    assert len(found.ranges) > 1
    blocks = list(found.blocks())
    assert_array_equal(together(blocks), rows)
    assert_array_equal(np.concatenate([block.labels for block in blocks]), labels)
    assert_array_equal(found.read(45, 205).rows, rows[45:205])
    assert_allclose(found.statistics().mean, rows.mean(0, dtype=float), rtol=1e-13)


def test_an_epoch_visits_each_row_once_with_its_label(stored, rows, labels):
    what, names = stored
    found = stream(what, labels=names, buffer_bytes=SMALL).encoded(lambda y: y)
    batches = list(found.batches(32, RandomStream(0)))
    assert [len(batch.rows) for batch in batches] == [32] * 7 + [6]
    pairs = np.column_stack([together(batches), np.concatenate([b.labels for b in batches])])
    expected = np.column_stack([rows, labels])
    assert sorted(map(tuple, pairs)) == sorted(map(tuple, expected))
    assert not np.array_equal(pairs, expected)


def test_opening_reads_no_rows(tmp_path):
    """20 GB that take no place on the disk."""
    array = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.uint8, (25_000_000, 800))
    del array
    found = stream(tmp_path / "x.npy", binarize=0.5)
    assert found.n_rows == 25_000_000
    assert found.read(24_999_998, 25_000_000).rows.shape == (2, 800)
    assert isinstance(found.fingerprint, str)


def test_a_part_of_a_memory_map_is_read_from_its_file(made, rows):
    part, _ = made("memory_map")
    source = stream(part).source
    assert source.offset % 24 == np.load(source.name, mmap_mode="r").offset % 24
    assert_array_equal(source.read(0, 230).rows, rows)
    assert_array_equal(stream(part[::2]).read(0, 115).rows, rows[::2])
    assert_array_equal(stream(part[:, 1:3]).read(0, 230).rows, rows[:, 1:3])


def test_small_memory_maps_are_arrays_and_large_ones_streams(made, monkeypatch):
    part, _ = made("memory_map")
    assert as_stream(part) is None
    assert as_stream(np.eye(3)) is None
    monkeypatch.setattr("freenergy.data.streaming.LARGE_BYTES", 1000)
    assert as_stream(part).n_rows == 230


@pytest.mark.parametrize("kind", ["hdf5", "zarr"])
def test_labels_of_a_store_may_be_named_in_full(kind, made, rows, labels):
    what, name = made(kind)
    store = str(what).partition(":")[0]
    for rows_of, labels_of in ((what, f"{store}:/{name}"), (rows, f"{store}:{name}")):
        found = stream(rows_of, labels=labels_of).encoded(lambda y: y)
        assert_array_equal(np.concatenate([block.labels for block in found.blocks()]), labels)
    inner = str(what).partition(":")[2] or "/x"
    with pytest.raises(DataError, match=f"has no array '/z'; it has {inner}, /{name}"):
        stream(f"{store}:{inner}", labels=f"{store}:/z")
    with pytest.raises(DataError, match=f"has no array 'z'; it has {inner}, /{name}"):
        stream(f"{store}:{inner}", labels="z")


@pytest.mark.parametrize("ending", ["csv", "npz"])
def test_files_that_are_read_as_a_whole_say_by_what(ending, tmp_path):
    path = tmp_path / f"x.{ending}"
    path.touch()
    with pytest.raises(DataError, match=rf"data\.load\('.*x\.{ending}'\)\.x_train"):
        stream(path)


def test_mapped_pixels_are_streamed_however_few(tmp_path):
    np.save(tmp_path / "u8.npy", PIXELS)
    found = as_stream(np.load(tmp_path / "u8.npy", mmap_mode="r"))
    assert_array_equal(found.read(0, 4).rows, PIXELS.astype(np.float32) / 255)
    assert as_stream(PIXELS) is None


def test_blocks_never_cross_shards_and_follow_chunks_and_row_groups(made):
    shards = stream(made("npy_shards")[0], buffer_bytes=32 * 30 * 24).ranges
    assert shards == ((0, 30), (30, 50), (50, 51), *((k, k + 30) for k in range(51, 171, 30)),
                      (171, 200), (200, 230))  # fmt: skip
    chunks = stream(made("hdf5")[0], buffer_bytes=32 * 40 * 24).ranges
    assert [start for start, _ in chunks] == list(range(0, 230, 32))
    groups = stream(made("parquet")[0], labels="label", buffer_bytes=32 * 50 * 24).ranges
    assert groups == ((0, 40), (40, 90), (90, 230))


def test_images_are_flattened_and_pixels_scaled():
    pixels = np.random.default_rng(0).integers(0, 256, (50, 4, 3), dtype=np.uint8)
    found = stream(pixels)
    assert found.image_shape == (4, 3)
    assert_array_equal(found.read(0, 50).rows, pixels.reshape(50, 12).astype(np.float32) / 255)
    masks = (pixels > 100).astype(np.uint8)
    assert_array_equal(stream(masks).read(0, 50).rows, masks.reshape(50, 12))
    assert_array_equal(stream(masks, full_scale=2).read(0, 50).rows.max(), 0.5)


# ---- what is done to values ----------------------------------------------------------------------


def test_values_are_binarised_on_the_fly():
    grey = np.random.default_rng(0).random((40, 3))
    assert_array_equal(stream(grey, binarize=0.3).read(0, 40).rows, grey > 0.3)
    assert_array_equal(stream(np.eye(2), binarize=1.0).read(0, 2).rows, 0)
    spins = stream(grey, binarize=0.3).onto(-1.0, 1.0)
    assert_array_equal(spins.read(0, 40).rows, np.where(grey > 0.3, 1, -1))


def test_a_threshold_is_compared_with_what_full_scale_leaves():
    white = PIXELS > 128
    assert_array_equal(stream(PIXELS, binarize=128 / 255).read(0, 4).rows, white)
    assert_array_equal(stream(PIXELS, binarize=128, full_scale=1).read(0, 4).rows, white)
    assert_array_equal(stream(PIXELS.astype(float), binarize=128).read(0, 4).rows, white)
    late = np.concatenate([np.zeros_like(PIXELS), PIXELS])
    guessed = stream(late, binarize=0.5, buffer_bytes=32 * 3)
    with pytest.raises(DataError, match=r"value 20 .* the first rows are 0 and 1 only; .*=1$"):
        guessed.read(0, 8)


@given(st.integers(0, 2**32), st.sampled_from([1.0, 1e6, 1e-6]))
@settings(max_examples=20)
def test_standardised_columns_have_mean_zero_and_variance_one(seed, size):
    rng = np.random.default_rng(seed)
    x = size * (rng.normal(size=(97, 4)) + 1e3)
    x[:, 2] = size * 0.1
    found = stream(x, standardize=True, buffer_bytes=32 * 10 * 32)
    values = together(found.blocks())
    assert_allclose(values.mean(0), 0, atol=1e-10)
    assert_allclose(values.std(0), [1, 1, 0, 1], rtol=1e-9, atol=1e-9)
    assert_allclose(found.standardization.mean, x.mean(0), rtol=1e-13)
    again = stream(x[:5], standardize=found.standardization)
    assert_array_equal(again.read(0, 5).rows, values[:5])


def test_statistics_do_not_depend_on_threads_or_lose_digits():
    x = np.random.default_rng(0).normal(1e6, 1.0, (1000, 2))
    found = [stream(x, buffer_bytes=3200, n_readers=n).statistics(variances=True) for n in (1, 3)]
    assert_array_equal(found[0].mean, found[1].mean)
    assert_array_equal(found[0].variance, found[1].variance)
    assert_allclose(found[0].variance, x.var(0), rtol=1e-9)
    some = stream(x, buffer_bytes=3200).statistics(n_rows=100)
    assert 100 <= some.n_rows < 1000


def test_whole_numbers_far_from_zero_keep_their_digits():
    """Seconds since 1970: single precision resolves 128 of them."""
    seconds = 1_700_000_000 + np.random.default_rng(0).integers(0, 1000, (500, 2))
    found = stream(seconds, standardize=True, buffer_bytes=3200)
    expected = (seconds - seconds.mean(0)) / seconds.std(0)
    assert_allclose(together(found.blocks()), expected, atol=1e-6)
    assert found.dtype == np.float32
    binary = stream(seconds, binarize=1_700_000_500).read(0, 500).rows
    assert_array_equal(binary, seconds > 1_700_000_500)


def test_double_precision_is_kept_in_either_order_of_bytes():
    x = np.random.default_rng(0).random((5, 2))
    assert stream(x.astype(">f8")).dtype == np.float64
    assert_array_equal(stream(x.astype(">f8")).read(0, 5).rows, x)


# ---- order ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_readers", [2, 5])
def test_the_order_depends_on_the_seed_and_not_on_the_threads(n_readers):
    one, many = (numbered(1000, buffer_bytes=800, n_readers=n) for n in (1, n_readers))
    first = together(one.batches(64, RandomStream(3)))
    assert_array_equal(first, together(many.batches(64, RandomStream(3))))
    assert not np.array_equal(first, together(one.batches(64, RandomStream(4))))
    order = RandomStream(3)
    epochs = [together(one.batches(64, order)) for _ in range(2)]
    assert not np.array_equal(*epochs)


def test_without_an_order_rows_come_as_they_lie():
    assert_array_equal(together(numbered(100, buffer_bytes=80).batches(7))[:, 0], np.arange(100))


def test_a_buffer_that_holds_all_mixes_uniformly():
    """Each row in each place equally often: χ² of 16 cells × 2000 epochs."""
    rows, order = numbered(16), RandomStream(0)
    counts = np.zeros((16, 16))
    for _ in range(2000):
        counts[np.arange(16), together(rows.batches(4, order))[:, 0].astype(int)] += 1
    chi2 = ((counts - 125) ** 2 / 125).sum()
    assert abs(chi2 - 225) < 5 * np.sqrt(2 * 225)


def test_a_small_buffer_mixes_blocks_far_apart():
    order = together(numbered(4096, buffer_bytes=4 * 512).batches(64, RandomStream(0)))[:, 0]
    assert sorted(order) == list(range(4096))
    assert abs(np.corrcoef(order, np.arange(4096))[0, 1]) < 0.3
    neighbours = np.abs(np.diff(order)) == 1
    assert neighbours.mean() < 0.02


def test_a_limited_epoch_reads_no_more_blocks_than_it_needs():
    read = []

    class Counted(ArraySource):
        def read(self, start, stop):
            read.append(start)
            return super().read(start, stop)

    found = numbered(3200, buffer_bytes=32 * 400)
    found = type(found)(Counted(found.source.array, "x"), *list(vars(found).values())[1:])
    order = RandomStream(0)
    epochs = [together(found.batches(50, order, limit=3)) for _ in range(2)]
    assert [len(rows) for rows in epochs] == [150, 150]
    assert len(read) == 4  # Two blocks of 100 rows for each.
    assert set(epochs[0][:, 0]) != set(epochs[1][:, 0])


def test_small_shards_are_mixed_at_the_cost_of_large_ones():
    """Places in the buffer are drawn for a 32nd of it at a time, not for each shard."""

    class Counted(RandomStream):
        drawn = 0

        def permutation(self, n):
            self.drawn += n
            return super().permutation(n)

    shards = Shards([ArraySource(np.full((2, 1), k, np.float32), str(k)) for k in range(2000)])
    cuts = shards.cuts(10)
    found = numbered(3, buffer_bytes=4 * 320)
    found = replace(found, source=shards, ranges=tuple(zip(cuts, [*cuts[1:], 4000], strict=True)))
    order = Counted(0)
    values = together(found.batches(50, order))[:, 0]
    assert sorted(values) == sorted([*range(2000)] * 2)
    assert order.drawn < 2000 + 40 * 4000


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    size=st.integers(1, 12),
    capacity=st.integers(9, 40),
    seed=st.integers(0, 2**32),
)
def test_mixing_and_batching_lose_and_repeat_nothing(sizes, size, capacity, seed):
    ends = np.cumsum(sizes)
    blocks = [Block(np.arange(e - n, e)[:, None], np.arange(e - n, e))
              for n, e in zip(sizes, ends, strict=True)]  # fmt: skip
    batches = list(in_batches(mixed(blocks, capacity, RandomStream(seed)), size))
    assert [len(b.rows) for b in batches[:-1]] == [size] * (len(batches) - 1)
    assert sorted(together(batches)[:, 0]) == list(range(ends[-1]))
    for batch in batches:
        assert_array_equal(batch.rows[:, 0], batch.labels)


# ---- rows held out -------------------------------------------------------------------------------


@pytest.mark.parametrize("n_held_out", [1, 7, 100, 229])
def test_rows_held_out_are_apart_and_spread(stored, n_held_out):
    what, names = stored
    kept, held_out = stream(what, labels=names, buffer_bytes=SMALL).split(n_held_out)
    assert (kept.n_rows, held_out.n_rows) == (230 - n_held_out, n_held_out)
    positions = [set(), set()]
    for part, found in zip((kept, held_out), positions, strict=True):
        for start, stop in part.ranges:
            found |= set(range(start, stop))
    assert positions[0] | positions[1] == set(range(230))
    assert len(together(held_out.blocks())) == n_held_out
    assert len(kept.sample(20).rows) == min(20, 230 - n_held_out)


def test_too_many_rows_cannot_be_held_out(rows):
    for n in (0, 230):
        with pytest.raises(DataError, match=f"{n} of 230 rows"):
            stream(rows).split(n)


# ---- rows one after the other --------------------------------------------------------------------


class Counting(torch.utils.data.IterableDataset):
    def __init__(self, n=None):
        self.n = n

    def __iter__(self):
        k = 0
        while self.n is None or k < self.n:
            yield np.array([k, -k], dtype=np.float32)
            k += 1


def test_an_iterable_that_ends_is_a_pass(rows):
    found = stream(Counting(100), buffer_bytes=320)
    assert found.n_rows is None
    for _ in range(2):
        values = together(found.batches(30, RandomStream(0)))
        assert sorted(values[:, 0]) == list(range(100))
    assert not np.array_equal(values[:, 0], np.arange(100))


def test_an_endless_iterable_goes_on_in_the_next_epoch():
    found = stream(Counting(), buffer_bytes=320)
    first, second = (together(found.batches(30, RandomStream(0), limit=4)) for _ in range(2))
    assert sorted(first[:, 0]) == list(range(120))
    assert sorted(second[:, 0]) == list(range(120, 240))


def test_an_iterable_begins_again_at_its_end():
    found = stream(Counting(60))
    seen = [sorted(together(found.batches(20, RandomStream(0), limit=2))[:, 0]) for _ in range(3)]
    assert seen == [list(range(40)), list(range(40, 60)), list(range(40))]


def test_looking_at_an_iterable_leaves_it_at_its_first_row():
    found = stream(Counting(), buffer_bytes=320)
    assert found.sample(5).rows[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert found.statistics(n_rows=10).mean[0] == 4.5
    assert found.statistics().n_rows == found.buffer_rows
    assert together(found.batches(5, limit=1))[0, 0] == 0


def test_a_row_is_counted_from_the_first_one_in_every_pass():
    class Broken(Counting):
        def __iter__(self):
            for row in super().__iter__():
                yield row if row[0] != 123 else np.array([np.nan, 0], dtype=np.float32)

    found = stream(Broken(), buffer_bytes=320)
    list(found.batches(20, limit=5))
    with pytest.raises(DataError, match="NaN in column 0, row 123: remove"):
        list(found.batches(20, limit=5))


def test_a_loader_gives_its_batches_row_by_row(rows, labels):
    tensors = torch.utils.data.TensorDataset(torch.from_numpy(rows), torch.from_numpy(labels))
    found = stream(torch.utils.data.DataLoader(tensors, batch_size=37)).encoded(lambda y: y)
    batches = list(found.batches(50))
    assert_array_equal(together(batches), rows)
    assert_array_equal(np.concatenate([b.labels for b in batches]), labels)


# ---- reading ahead -------------------------------------------------------------------------------


def test_reading_ahead_is_bounded_and_stops_when_closed():
    begun = []

    def job(k):
        begun.append(k)
        return k

    results = read_ahead((lambda k=k: job(k) for k in range(1000)), 2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    time.sleep(0.05)
    assert len(begun) <= 6
    results.close()
    names = [thread.name for thread in threading.enumerate()]
    assert not any(name.startswith("freenergy-read") for name in names)


def test_an_error_comes_where_its_block_would_have():
    def job(k):
        if k == 3:
            raise DataError("shard 3")
        return k

    results = read_ahead((lambda k=k: job(k) for k in range(9)), 4)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DataError, match="shard 3"):
        next(results)


# ---- what is refused -----------------------------------------------------------------------------


def test_a_missing_value_is_named_by_shard_row_and_column(made, tmp_path, rows):
    folder, _ = made("npy_shards")
    shard = np.load(folder / "2.npy")
    for value, kind in ((np.nan, "NaN"), (np.inf, "infinity")):
        shard[30, 4] = value
        np.save(folder / "2.npy", shard)
        with pytest.raises(DataError, match=rf"2\.npy has {kind} in column 4, row 30: remove"):
            list(stream(folder, buffer_bytes=SMALL).blocks())
    table, _ = made("parquet")
    import pandas as pd

    frame = pd.read_parquet(table / "1.parquet")
    frame.loc[100, "c"] = np.nan
    frame.to_parquet(table / "1.parquet")
    with pytest.raises(DataError, match=r"1\.parquet has NaN in column 'c' \(index 2\), row 10"):
        list(stream(table, labels="label").blocks())


def test_values_out_of_bounds_are_named():
    x = np.zeros((50, 3))
    x[40, 1] = 1.5
    with pytest.raises(DataError, match=r"ndarray has the value 1.5 in column 1, row 40: outside"):
        list(stream(x).within(0, 1).blocks())
    assert len(together(stream(x, binarize=0.5).within(0, 1).blocks())) == 50
    pixels = np.zeros((50, 3), dtype=np.uint8)
    pixels[40, 1] = 200
    found = stream(pixels, binarize=0.5, buffer_bytes=32 * 30)
    with pytest.raises(DataError, match=r"value 200 in column 1, row 40: .*full_scale=255"):
        list(found.blocks())


def test_shards_that_do_not_fit_are_told_by_their_headers(made, monkeypatch):
    folder, _ = made("npy_shards")
    monkeypatch.setattr(BinaryFile, "read", None)  # No row is read.
    good = np.load(folder / "1.npy")
    for wrong, message in (
        (good[:, :5], r"1\.npy has rows of shape \(5,\), but .*0\.npy has \(6,\)"),
        (good.astype(np.float64), r"1\.npy has values of type float64, but .*0\.npy has float32"),
        (good.astype("U1"), r"1\.npy has values of type <U1; give real numbers"),
        (good[:0], r"1\.npy is empty, shape \(0, 6\)"),
        (good[0], r"1\.npy has shape \(6,\); give \(rows, features\)"),
    ):
        np.save(folder / "1.npy", wrong)
        with pytest.raises(DataError, match=message):
            stream(folder)
    (folder / "1.npy").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"cannot read .*1\.npy"):
        stream(folder)


def test_a_column_too_many_in_a_table_is_told(made):
    table, _ = made("parquet")
    import pandas as pd

    frame = pd.read_parquet(table / "1.parquet")
    frame.rename(columns={"a": "z"}).to_parquet(table / "1.parquet")
    with pytest.raises(DataError, match=r"1\.parquet does not have the columns of .*0\.parquet"):
        stream(table, labels="label")
    frame.assign(a="text").to_parquet(table / "1.parquet")
    with pytest.raises(DataError, match=r"1\.parquet has columns that are not numeric.*: a"):
        stream(table, labels="label")
    frame.drop(columns="label").to_parquet(table / "1.parquet")
    with pytest.raises(DataError, match=r"1\.parquet has no column 'label'"):
        stream(table, labels="label")


def test_folders_hold_shards_of_one_kind_only(tmp_path):
    with pytest.raises(DataError, match="is an empty folder"):
        stream(tmp_path)
    np.save(tmp_path / "0.npy", np.eye(3))
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / ".hidden").touch()
    assert stream(tmp_path).n_rows == 3
    (tmp_path / "1.parquet").touch()
    with pytest.raises(DataError, match=r"1\.parquet is not of the kind of .*0\.npy"):
        stream(tmp_path)
    (tmp_path / "1.parquet").rename(tmp_path / "1.txt")
    with pytest.raises(DataError, match=r"1\.txt is no \.npy or \.parquet shard"):
        stream(tmp_path)


def test_a_shard_that_vanishes_midway_is_named(made):
    folder, _ = made("npy_shards")
    blocks = stream(folder, buffer_bytes=SMALL, n_readers=1).blocks()
    next(blocks)
    (folder / "3.npy").unlink()
    with pytest.raises(DataError, match=r"3\.npy is not there any more"):
        list(blocks)


def test_a_shard_that_is_cut_short_is_named(made):
    folder, _ = made("npy_shards")
    found = stream(folder)
    data = (folder / "2.npy").read_bytes()
    (folder / "2.npy").write_bytes(data[:-100])
    with pytest.raises(DataError, match=r"2\.npy ends before row"):
        list(found.blocks())
    with pytest.raises(DataError, match=r"cannot read .*2\.npy"):
        stream(folder)


def test_a_row_without_its_label_is_named(tmp_path):
    pd = pytest.importorskip("pandas")
    for missing, names in ((None, ["u", "v"]), (np.nan, [0.0, 1.0])):
        frame = pd.DataFrame({"x": np.arange(40.0), "y": names * 20})
        frame["y"] = frame["y"].astype(object if missing is None else float)
        frame.loc[33, "y"] = missing
        frame.to_parquet(tmp_path / "x.parquet", row_group_size=10)
        found = stream(tmp_path / "x.parquet", labels="y", buffer_bytes=320)
        assert len(found.read(0, 40).rows) == 40
        for read in (found.label_counts, lambda f=found: list(f.encoded(np.copy).batches(7))):
            with pytest.raises(DataError, match=r"x\.parquet has .* for the label of row 33: remo"):
                read()


def test_labels_in_one_column_are_labels(rows, labels):
    apart = stream(rows, labels=labels[:, None])
    pairs = torch.utils.data.TensorDataset(*map(torch.from_numpy, (rows, labels[:, None])))
    items = stream(torch.utils.data.Subset(pairs, range(230)))
    for found in (apart, stream(pairs), items):
        assert_array_equal(found.read(0, 230).labels, labels)


def test_a_chunk_that_the_buffer_would_not_hold_is_divided(tmp_path, rows):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", data=rows, chunks=(230, 1))
    found = stream(tmp_path / "x.h5", buffer_bytes=SMALL)
    assert max(stop - start for start, stop in found.ranges) <= 40
    assert_array_equal(together(found.blocks()), rows)


def test_items_that_fail_or_differ_are_told():
    class Failing(torch.utils.data.Dataset):
        def __len__(self):
            return 10

        def __getitem__(self, k):
            return torch.zeros(3 if k < 5 else 4) if k < 8 else 1 / 0

    with pytest.raises(DataError, match=r"Failing cannot be read \(ZeroDivisionError"):
        list(stream(Failing()).blocks())
    with pytest.raises(DataError, match=r"item 5 of Failing has shape \(4,\) instead of \(3,\)"):
        stream(Failing()).read(0, 7)
    with pytest.raises(DataError, match="part of its items"):
        stream(Failing(), labels=np.zeros(10))


@pytest.mark.parametrize(
    ("what", "options", "message"),
    [
        ("nowhere.npy", {}, "no file or folder nowhere.npy; give"),
        ("nowhere.h5:/x", {}, "no file nowhere.h5"),
        (np.eye(3), {"labels": [1, 2]}, "have shape .2,. for the 3 rows"),
        (np.eye(3), {"labels": "nowhere.npy"}, "no file or folder nowhere.npy with the labels"),
        (np.eye(3), {"binarize": 0.5, "standardize": True}, "exclude each other"),
        (np.eye(3), {"binarize": np.nan}, "binarize=nan is not a number"),
        (PIXELS, {"binarize": 128}, r"128 .* after division by 255, which lie in .0, 1.: .* above"),
        (PIXELS, {"binarize": -1}, "it lies below all of them"),
        (np.eye(3), {"binarize": 3, "full_scale": 2}, "after division by 2, .* such as 0.5"),
        (PIXELS // 128, {"binarize": 256}, r"compared with values, which lie in \[0, 255\]"),
        (np.eye(3), {"full_scale": 0.0}, "full_scale=0.0 must be positive"),
        (np.eye(3), {"n_readers": 0}, "n_readers must be a whole number"),
        (np.eye(3), {"buffer_bytes": 1.5}, "buffer_bytes must be a whole number"),
        (np.zeros(3), {}, "has shape .3,."),
        (np.zeros((3, 0)), {}, "is empty"),
        (np.array([["a"]]), {}, "give real numbers"),
        ({"x": 1}, {}, "dict cannot be streamed"),
        (np.eye(3), {"standardize": Standardization(np.zeros(2), np.ones(2))}, "has 3 columns"),
    ],
)
def test_mistakes_are_told(what, options, message):
    with pytest.raises(DataError, match=message):
        stream(what, **options)


def test_more_rows_than_fit_are_not_read_together(monkeypatch):
    monkeypatch.setattr("freenergy.data.data_stream._MOST_HELD_TOGETHER", 1000)
    with pytest.raises(DataError, match=r"230 rows of ndarray together take .* GB"):
        stream(np.zeros((230, 6))).read(0, 230)


# ---- fingerprint ---------------------------------------------------------------------------------


def test_fingerprints_tell_shards_values_and_what_is_done_to_them(made, rows):
    folder, _ = made("npy_shards")
    before = stream(folder).fingerprint
    assert stream(folder).fingerprint == before
    assert stream(folder, binarize=0.5).fingerprint != before
    (folder / "1.npy").rename(folder / "1b.npy")
    assert stream(folder).fingerprint != before
    (folder / "1b.npy").rename(folder / "1.npy")
    shard = np.load(folder / "0.npy")
    shard[0, 0] = 1 - shard[0, 0]
    np.save(folder / "0.npy", shard)
    assert stream(folder).fingerprint != before


def test_fingerprints_tell_standardised_columns_and_rows_without_numbers(rows):
    plain, own = stream(rows), stream(rows, standardize=True)
    other = stream(rows, standardize=Standardization(np.zeros(6), np.ones(6)))
    assert len({found.fingerprint for found in (plain, own, other)}) == 3
    loaders = [torch.utils.data.DataLoader(list(x), batch_size=7) for x in (rows, 1 - rows, rows)]
    found = [stream(loader).fingerprint for loader in loaders]
    assert found[0] == found[2] != found[1]


def test_the_shards_of_a_row_are_found():
    shards = Shards([ArraySource(np.full((n, 2), n), str(n)) for n in (3, 1, 4)])
    assert [shards.place(row)[0] for row in range(8)] == list("33314444")
    assert shards.place(7) == ("4", 3)


def test_the_nearest_name_in_the_folder_is_asked_about(tmp_path):
    (tmp_path / "shards").mkdir()
    with pytest.raises(DataError, match=r"no file or folder .*; did you mean 'shards'\? give"):
        stream(tmp_path / "shrads")
