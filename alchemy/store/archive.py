"""A store in one compressed HDF5 file, for keeping: gzip, shuffle and a checksum of each chunk, no plug-in.

The datasets are those of a merged file. Any HDF5 reader opens it; `alchemy data merge` takes it back.
It is made in memory, as libhdf5 must not write to disks (see `layout`), so it is for what fits there.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from alchemy.errors import InputError, StoreDamagedError, StoreError
from alchemy.store import filesystem as disk
from alchemy.store import layout
from alchemy.store.index import Index
from alchemy.store.merge import merged_datasets
from alchemy.store.segment import Segment, newer, version_of
from alchemy.store.snapshot import Snapshot

if TYPE_CHECKING:
    from alchemy.store.store import Store

FORMAT = "alchemy-archive"
_CHUNK = 1 << 20  # bytes


def write_archive(store: Store, path: Path, *, overwrite: bool = False) -> int:
    """Everything up to now into a new file; its size comes back. The store stays as it is.

    Raises:
        InputError: the file exists, or its folder does not.
        StoreError: the store cannot be read, or the file not be written.
    """
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists; give another name or --force")
    if not path.resolve().parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}")
    last = store.snapshot().last
    if last < 0:
        raise InputError(f"{store.path}: there is nothing to archive")
    segments = store.segments(last)
    memory = io.BytesIO()
    with h5py.File(memory, "w", libver=("v110", "v110")) as file:
        file.attrs.update(format=FORMAT, format_version=layout.FORMAT_VERSION, last=last)
        for name, dataset in merged_datasets(segments, [_first(s) for s in segments]).items():
            chain = dataset.chain
            array = np.concatenate([np.zeros((0, *chain.shape[1:]), chain.dtype), *chain.parts])
            made = file.create_dataset(name, data=array, track_times=False, **_packing(array))
            made.attrs.update(unit=dataset.unit, description=dataset.description, **dataset.attributes)
    data = memory.getbuffer()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        disk.write_file(store.fs, temporary, [(0, data)], size=len(data), fsync=store.durability == "fsync")
        store.fs.replace(temporary, path)
    except OSError as error:
        disk.remove(store.fs, temporary)
        raise StoreError(f"{path}: cannot write: {error}") from error
    return len(data)


def _packing(array: np.ndarray) -> dict[str, Any]:
    if not array.size:
        return {}
    rows = min(len(array), max(1, _CHUNK * len(array) // array.nbytes))
    chunks = (rows, *array.shape[1:])
    return {"chunks": chunks, "compression": "gzip", "shuffle": True, "fletcher32": True}


def _first(segment: Segment) -> int:
    """Its first commit; a single one knows its number by its name."""
    lo = int(segment.header["lo"])
    return lo if lo >= 0 else int(segment.path.stem[1:])


class Archive(Segment):
    """The datasets of an archive, unpacked when they are used."""

    def __init__(self, path: Path) -> None:
        self.path, self.derived = path, {}
        self._arrays: dict[str, np.ndarray] = {}
        try:
            self._data = h5py.File(path, "r", locking=False)
            version, last = self._data.attrs["format_version"], int(self._data.attrs["last"])
        except (OSError, KeyError) as error:
            raise StoreDamagedError(f"{path}: not an archive of a store, or damaged: {error}") from error
        if version_of(version)[0] > version_of(layout.FORMAT_VERSION)[0]:
            raise newer(path, version)
        self.header = {"lo": 0, "hi": last, "format_version": version}
        self._names: list[str] = []
        self._data.visititems(lambda name, item: self._note(name, item))

    def _note(self, name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            self._names.append(f"/{name}")

    def paths(self) -> list[str]:
        return list(self._names)

    def get(self, path: str) -> np.ndarray | None:
        if path not in self._names:
            return None
        if path not in self._arrays:
            try:
                self._arrays[path] = self._data[path][()]
            except OSError as error:
                raise StoreDamagedError(f"{self.path}: {path}: cannot be unpacked: {error}") from error
        return self._arrays[path]

    def length(self, path: str) -> int:
        return int(self._data[path].shape[0]) if path in self._names else 0


def is_archive(path: Path) -> bool:
    """Whether a file is one; cheap, and false for what cannot be read."""
    if not path.is_file() or not h5py.is_hdf5(path):
        return False
    try:
        with h5py.File(path, "r", locking=False) as file:
            return bool(file.attrs.get("format") == FORMAT)
    except OSError:
        return False


def open_archive(path: Path) -> Snapshot:
    """The store as it was archived. Raises StoreError, StoreDamagedError."""
    archive = Archive(path)
    return Snapshot(Index().more([(path.name, archive, archive.header["hi"])]))
