"""Where labels lie, as the commands write it into a run and read it from there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from freenergy.cli.options import absolute
from freenergy.studies.run_data import is_in_store

__all__ = ["common_labels", "lasting_labels"]


def lasting_labels(name: str, labels: str | None) -> str | None:
    """Labels of some data, as a path that still holds from another folder, or a name in them."""
    if labels is None:
        return None
    if is_in_store(labels):
        return absolute(labels)
    path, place = Path(labels).expanduser(), Path(name).expanduser()
    of_shards = place.is_dir() and path.is_dir() and not any(place.glob("*.parquet"))
    is_path = path.suffix.lower() == ".npy" or of_shards
    return absolute(labels) if is_path and not is_in_store(name) else labels


def common_labels(stored: Mapping[str, Any], name: str) -> str | None:
    """The column or the array of a run's labels, which other data of its kind have too."""
    labels, own = stored.get("labels"), stored["name"]
    is_file = labels is not None and not is_in_store(own) and Path(labels).is_absolute()
    if labels is None or is_file or is_in_store(labels):
        return None
    endings = {Path(n.partition(":")[0]).suffix.lower() for n in (own, name)}
    return labels if len(endings) == 1 else None
