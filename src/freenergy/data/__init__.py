"""Names and paths to arrays, and streams of what does not fit into memory."""

from freenergy.data.data_stream import DataStream
from freenergy.data.datasets import NAMES, Dataset, Drawn, load
from freenergy.data.errors import DataError
from freenergy.data.opening import open_source
from freenergy.data.sources import Block, Source
from freenergy.data.statistics import ColumnStatistics, Standardization
from freenergy.data.streaming import LARGE_BYTES, as_stream, stream

__all__ = [
    "LARGE_BYTES",
    "NAMES",
    "Block",
    "ColumnStatistics",
    "DataError",
    "DataStream",
    "Dataset",
    "Drawn",
    "Source",
    "Standardization",
    "as_stream",
    "load",
    "open_source",
    "stream",
]
