"""Checkpoints: what goes in comes out, and a damaged file is always told from a good one."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from freenergy import files
from freenergy.training import CheckpointError, load_checkpoint, save_checkpoint

TENSORS = {
    "model.weight": torch.linspace(-1, 1, 12).view(4, 3),
    "model.bias": torch.tensor([1.5, float("nan"), float("-inf")], dtype=torch.float64),
    "chain": torch.tensor([[True, False]]),
    "counts": torch.arange(5),
    "scalar": torch.tensor(0.1),
    "empty": torch.empty(0, 3),
}
VALUES = {
    "epoch": 3,
    "history": [{"epoch": 1, "loss": 0.1}, {"epoch": 2, "loss": float("nan")}],
    "name": "β ≠ 1\n",
    "nested": {"list": [1, None, True, [2**63, 1e-320]]},
}


@pytest.fixture
def path(tmp_path) -> Path:
    file = tmp_path / "model.safetensors"
    save_checkpoint(file, TENSORS, VALUES)
    return file


def assert_refused(path: Path, content: bytes | None = None, match: str | None = None) -> None:
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=match) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)


def test_what_goes_in_comes_out(path):
    tensors, values = load_checkpoint(path)
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        np.testing.assert_array_equal(tensors[name].numpy(), tensor.numpy())
    assert repr(values) == repr(VALUES)


def test_views_and_parameters_are_stored_by_their_values(tmp_path):
    matrix = torch.arange(12.0).view(3, 4)
    tensors = {"view": matrix.T[1:], "parameter": torch.nn.Parameter(matrix.clone())}
    save_checkpoint(tmp_path / "file", tensors, {})
    loaded, _ = load_checkpoint(tmp_path / "file")
    assert bool((loaded["view"] == matrix.T[1:]).all())
    assert bool((loaded["parameter"] == matrix).all())
    assert not loaded["parameter"].requires_grad


def test_folders_are_made_and_files_replaced(tmp_path):
    path = tmp_path / "a" / "b" / "model.safetensors"
    for epoch in (1, 2):
        save_checkpoint(path, TENSORS, {"epoch": epoch})
    assert load_checkpoint(path)[1] == {"epoch": 2}
    assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()])
def test_a_failure_to_write_leaves_the_old_checkpoint(path, monkeypatch, error):
    def fail(*_args):
        raise error

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(type(error)):
        save_checkpoint(path, {"other": torch.ones(1000)}, {"epoch": 4})
    assert load_checkpoint(path)[1]["epoch"] == 3
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_file_cut_short_anywhere_is_refused(path):
    content = path.read_bytes()
    for length in range(len(content)):
        assert_refused(path, content[:length])


def test_a_single_flipped_bit_anywhere_is_noticed(path):
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for position in range(len(content)):
        altered = bytearray(content)
        altered[position] ^= 1 << int(rng.integers(8))
        assert_refused(path, bytes(altered))


def test_bytes_too_many_are_noticed(path):
    assert_refused(path, path.read_bytes() + b"\0")


@pytest.mark.parametrize("key", ["format", "values", "sha256"])
def test_a_missing_field_is_noticed(path, key):
    """As left by an altered name in the header, with all lengths right."""
    content = path.read_bytes()
    assert content.count(f'"{key}":'.encode()) == 1
    altered = content.replace(f'"{key}":'.encode(), f'"{key[:-1]}_":'.encode())
    assert_refused(path, altered)


def test_exchanged_tensors_are_noticed(tmp_path):
    """Both have one shape and type: only the checksum can tell."""
    path = tmp_path / "file"
    save_checkpoint(path, {"chain": torch.zeros(3), "other": torch.ones(3)}, {})
    content = path.read_bytes()
    swapped = content.replace(b'"chain"', b'"?????"').replace(b'"other"', b'"chain"')
    assert_refused(path, swapped.replace(b'"?????"', b'"other"'), match="checksum")


@pytest.mark.parametrize(
    ("old", "new"), [(b'"F32","shape":[4,3]', b'"I32","shape":[4,3]'), (b"[4,3]", b"[3,4]")]
)
def test_another_type_or_shape_of_the_same_size_is_noticed(path, old, new):
    content = path.read_bytes()
    assert content.count(old) == 1
    assert_refused(path, content.replace(old, new), match="checksum")


def test_changed_values_are_noticed(path):
    content = path.read_bytes()
    at = content.index(rb"\"epoch\": 3")
    assert_refused(path, content[: at + 11] + b"4" + content[at + 12 :], match="checksum")


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_nothing_in_a_file_is_ever_executed(tmp_path):
    marker, path = tmp_path / "executed", tmp_path / "model.safetensors"
    assert_refused(path, pickle.dumps(Bomb(marker)))
    torch.save({"model.weight": Bomb(marker)}, path)
    assert_refused(path)
    np.save(path.with_suffix(".npy"), np.array([Bomb(marker)], dtype=object))
    assert_refused(path, path.with_suffix(".npy").read_bytes())
    assert not marker.exists()
    pickle.loads(pickle.dumps(Bomb(marker)))
    assert marker.exists(), "the bomb of this test works"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 8,
        b"\xff" * 100,
        b"not a checkpoint",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 4) + b"null",
        struct.pack("<Q", 2) + b"\xff\xfe",
    ],
)
def test_rubbish_is_refused(tmp_path, content):
    assert_refused(tmp_path / "model.safetensors", content)


@pytest.mark.parametrize("metadata", [None, {}, {"format": "freenergy checkpoint 2"}])
def test_files_of_other_programs_and_versions_are_refused(tmp_path, metadata):
    save_file({"weight": torch.ones(3)}, tmp_path / "other.safetensors", metadata)
    assert_refused(tmp_path / "other.safetensors", match="not written by freenergy")


def test_a_missing_file_or_a_folder_is_no_checkpoint(tmp_path):
    assert_refused(tmp_path / "missing.safetensors", match="no checkpoint at")
    assert_refused(tmp_path, match="no checkpoint at")


def test_values_are_json(tmp_path):
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path / "file", {}, {"object": object()})
    assert list(tmp_path.iterdir()) == []
    save_checkpoint(tmp_path / "file", {"x": torch.ones(1)}, {"x": [1.5]})
    header = (tmp_path / "file").read_bytes()[8:]
    assert json.loads(header[: header.index(b"}}") + 2])["__metadata__"]["values"] == '{"x": [1.5]}'


def test_a_file_that_is_replaced_while_it_is_read_is_whole(path, monkeypatch):
    """A report may look at a run while it trains; every way to open the file is the same file."""
    save_checkpoint(path, {"x": torch.zeros(1000)}, {"epoch": 0})
    read = Path.read_bytes

    def read_then_replaced(self):
        content = read(self)
        save_checkpoint(path, {"x": torch.ones(1000)}, {"epoch": 1})
        return content

    monkeypatch.setattr(Path, "read_bytes", read_then_replaced)
    tensors, values = load_checkpoint(path)
    assert values == {"epoch": 0}
    assert not tensors["x"].any()
