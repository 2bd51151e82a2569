"""Everything a campaign knows, as rows in sealed HDF5 files: see `Store` and `Snapshot`."""

from alchemy.store.export import export_extxyz
from alchemy.store.rows import (
    CONDITIONS,
    PROPERTIES,
    EventRow,
    FailureRow,
    LabelRow,
    PredictionRow,
    PropertySpec,
    RetractionRow,
    SplitRow,
)
from alchemy.store.snapshot import Snapshot
from alchemy.store.store import Store
from alchemy.store.table import Table

__all__ = [
    "CONDITIONS",
    "PROPERTIES",
    "EventRow",
    "FailureRow",
    "LabelRow",
    "PredictionRow",
    "PropertySpec",
    "RetractionRow",
    "Snapshot",
    "SplitRow",
    "Store",
    "Table",
    "export_extxyz",
]
