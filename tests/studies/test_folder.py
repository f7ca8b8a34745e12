"""The folder of a study: claimed once, and shown as far as it goes."""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import dataclass

import pytest

from freenergy.files import write_atomically
from freenergy.studies.folder import NothingFinished, Plan, claim, finished, read_plan
from freenergy.training import RunError


@dataclass(frozen=True)
class Settings:
    seeds: tuple[int, ...] = (0, 1)
    rate: float = 0.5


def plan(study="warmth", rate=0.5, command="") -> Plan[Settings]:
    return Plan(study, {"name": "rows", "image_shape": [2, 3]}, Settings(rate=rate), command)


def test_a_plan_survives_its_folder(tmp_path):
    claim(tmp_path / "study", plan(command="first"))
    claim(tmp_path / "study", plan(command="second"))
    found = read_plan(tmp_path / "study", "warmth", Settings)
    assert found == plan()
    assert found.settings.seeds == (0, 1)
    assert found.command == "first", "the record is of the command that started it"
    assert found.versions["threads"] == "1"


def test_a_folder_is_claimed_for_one_study_alone(tmp_path):
    claim(tmp_path, plan())
    with pytest.raises(RunError, match="holds a study of other data or settings"):
        claim(tmp_path, plan(rate=0.6))
    with pytest.raises(RunError, match="holds another study, 'warmth'"):
        claim(tmp_path, plan("cold"))
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(RunError, match="holds a run"):
        claim(tmp_path, plan())


def test_what_a_killed_process_was_writing_is_removed_and_what_another_one_writes_is_not(tmp_path):
    killed, written = tmp_path / ".a.json.0123.tmp", tmp_path / ".b.json.4567.tmp"
    for path in (killed, written, tmp_path / "a.json"):
        path.write_text("{")
    two_hours_ago = time.time() - 7200
    for path in (killed, tmp_path / "a.json"):
        os.utime(path, (two_hours_ago, two_hours_ago))
    claim(tmp_path, plan())
    assert sorted(p.name for p in tmp_path.iterdir()) == [written.name, "a.json", "study.json"]


def test_a_file_that_is_written_while_others_claim_the_folder_arrives(tmp_path):
    """A rename from under the writer would end in an error, and lose what it has computed."""
    stop, failed = threading.Event(), []

    def write() -> None:
        while not stop.is_set():
            try:
                write_atomically(tmp_path / "net.json", "{}")
            except OSError as error:
                failed.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    for _ in range(100):
        claim(tmp_path, plan())
    stop.set()
    writer.join()
    assert failed == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.json", "study.json"]


def test_a_missing_or_damaged_plan_is_named(tmp_path):
    with pytest.raises(RunError, match="holds no study"):
        read_plan(tmp_path, "warmth", Settings)
    claim(tmp_path, plan())
    path = tmp_path / "study.json"
    values = json.loads(path.read_text())
    for content in ("", "[]", "{}", json.dumps(values | {"settings": {"colour": 2}})):
        path.write_text(content)
        with pytest.raises(RunError, match=r"study\.json is damaged"):
            read_plan(tmp_path, "warmth", Settings)


@pytest.mark.parametrize(
    ("done", "names", "seeds", "missing"),
    [
        ("A0 A1 A2 B0 B1 B2", ("A", "B"), (0, 1, 2), ""),
        ("A0 A1 A2 B0 B2", ("A", "B"), (0, 2), "B with seed 1"),
        ("A0 A1 B0", ("A", "B"), (0,), "A with seed 2; B with seeds 1, 2"),
        ("A0 A1 A2 B1 B2", ("A",), (0, 1, 2), "B with seed 0"),
    ],
)
def test_every_name_that_is_shown_has_every_seed_that_is_shown(
    tmp_path, done, names, seeds, missing
):
    found = finished(tmp_path, "AB", (0, 1, 2), lambda name, seed: f"{name}{seed}" in done.split())
    assert (found.names, found.seeds, found.missing) == (names, seeds, missing)


def test_without_a_first_seed_there_is_nothing_to_show(tmp_path):
    with pytest.raises(NothingFinished, match="has nothing to show yet; run it again"):
        finished(tmp_path, "AB", (0, 1), lambda name, seed: seed == 1)
