"""Values for JSON, and atomic writing: the old file or the new one, never a torn one."""

from __future__ import annotations

import json
import math
import os
import stat

import numpy as np
import pytest
import torch

from freenergy import files
from freenergy.files import as_json, write_atomically


def test_bytes_are_written_as_they_are(tmp_path):
    content = bytes(range(256)) * 100
    path = write_atomically(tmp_path / "file.bin", content)
    assert path == tmp_path / "file.bin"
    assert path.read_bytes() == content


def test_text_is_written_as_utf8_without_touching_line_ends(tmp_path):
    write_atomically(str(tmp_path / "note.txt"), "β = 1/T\r\nσ\n")
    assert (tmp_path / "note.txt").read_bytes() == "β = 1/T\r\nσ\n".encode()


def test_an_empty_file_can_be_written(tmp_path):
    assert write_atomically(tmp_path / "empty", b"").read_bytes() == b""


def test_missing_folders_are_made(tmp_path):
    path = write_atomically(tmp_path / "a" / "b" / "note.txt", "x")
    assert path.read_text() == "x"


def test_a_file_is_replaced_and_nothing_else_left(tmp_path):
    path = tmp_path / "note.txt"
    path.write_text("a much longer old content")
    write_atomically(path, "new")
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["note.txt"]


@pytest.mark.skipif(os.name != "posix", reason="an open file is not replaced elsewhere")
def test_who_reads_the_old_file_reads_it_to_its_end(tmp_path):
    path = tmp_path / "note.txt"
    path.write_text("old content")
    with path.open() as reader:
        assert reader.read(4) == "old "
        write_atomically(path, "NEW CONTENT")
        assert reader.read() == "content"
    assert path.read_text() == "NEW CONTENT"


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, step, error):
    path = tmp_path / "note.txt"
    path.write_text("old")

    def fail(*_args):
        raise error("no space left")

    monkeypatch.setattr(files.os, step, fail)
    with pytest.raises(error):
        write_atomically(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["note.txt"]


def test_the_content_is_on_the_disk_before_the_name_points_at_it(tmp_path, monkeypatch):
    path, events = tmp_path / "note.txt", []
    fsync, replace = os.fsync, os.replace

    def sync(handle):
        events.append(("fsync", os.fstat(handle).st_size))
        fsync(handle)

    def rename(source, target):
        events.append(("replace", os.path.dirname(source) == os.path.dirname(target)))
        replace(source, target)

    monkeypatch.setattr(files.os, "fsync", sync)
    monkeypatch.setattr(files.os, "replace", rename)
    write_atomically(path, "12345")
    assert events[:2] == [("fsync", 5), ("replace", True)]


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_permissions_follow_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        path = write_atomically(tmp_path / "note.txt", "x")
        assert os.umask(umask) == umask, "the umask is left as it was"
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_folder_is_not_replaced(tmp_path):
    (tmp_path / "runs").mkdir()
    with pytest.raises(OSError, match="runs"):
        write_atomically(tmp_path / "runs", "x")
    assert [p.name for p in tmp_path.iterdir()] == ["runs"]


def test_text_that_utf8_cannot_hold_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(UnicodeEncodeError):
        write_atomically(tmp_path / "a" / "note.txt", "\ud800")
    assert list(tmp_path.iterdir()) == []


def test_json_gets_plain_numbers_and_null_for_what_it_does_not_have():
    value = {
        "curve": np.array([[1.0, np.nan], [np.inf, 2.0]]),
        "count": np.int64(3),
        "flag": np.bool_(True),
        "single": np.float32(0.5),
        "tensor": torch.tensor([1, 2]),
        "parts": ({"x": -math.inf}, None, "text", ()),
    }
    found = as_json(value)
    assert found == {
        "curve": [[1.0, None], [None, 2.0]],
        "count": 3,
        "flag": True,
        "single": 0.5,
        "tensor": [1, 2],
        "parts": [{"x": None}, None, "text", []],
    }
    assert json.loads(json.dumps(found, allow_nan=False)) == found
