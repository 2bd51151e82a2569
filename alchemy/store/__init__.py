"""Everything a campaign knows, as rows in sealed HDF5 files: see `Store` and `Snapshot`."""

from alchemy.store.bulk import LabelColumns, StructureColumns
from alchemy.store.combine import Merged, merge_into
from alchemy.store.compact import Compaction
from alchemy.store.export import export_extxyz
from alchemy.store.history import Changes, Commit, diff, log
from alchemy.store.repair import Repair, repair
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
    "Changes",
    "Commit",
    "Compaction",
    "EventRow",
    "FailureRow",
    "LabelColumns",
    "LabelRow",
    "Merged",
    "PredictionRow",
    "PropertySpec",
    "Repair",
    "RetractionRow",
    "Snapshot",
    "SplitRow",
    "Store",
    "StructureColumns",
    "Table",
    "diff",
    "export_extxyz",
    "log",
    "merge_into",
    "repair",
]
