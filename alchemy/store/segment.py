"""Reading sealed segments: immutable HDF5 files that carry their own checksums (see `layout`)."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from alchemy.errors import StoreDamagedError, StoreError
from alchemy.store import layout
from alchemy.store.filesystem import FileSystem, ReadBytes, read_all
from alchemy.store.layout import BLOCK, MAGIC, USER_BLOCK, crc32_blocks

# Python's mmap keeps a file descriptor, of which a process has about a thousand; small files are
# read whole, and then verifying their sha256 costs next to nothing.
READ_WHOLE = 1 << 20

# Derived datasets that number rows of the whole file, of no use for a part of it.
BY_PLACE = ("/uid_order", "/structure_row")


def version_of(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    return int(major), int(minor or 0)


def read_header(fs: FileSystem, fd: int, path: Path) -> dict[str, Any]:
    """The verified header. Raises StoreDamagedError, and StoreError for a newer format."""
    header = unpack_header(fs.pread(fd, USER_BLOCK, 0), path)
    stat = fs.fstat(fd)
    header.setdefault("time", stat.st_mtime)  # format 1.0 has neither
    header.setdefault("by", "")
    if stat.st_size != header["size"]:
        raise StoreDamagedError(f"{path}: header: {stat.st_size} bytes, should be {header['size']}")
    return header


def unpack_header(block: bytes, path: Path) -> dict[str, Any]:
    """The header in the first 4096 bytes of a file. Raises as `read_header` does."""
    if len(block) < USER_BLOCK or block[:8] != MAGIC:
        raise StoreDamagedError(
            f"{path}: header: not a store segment, or cut short; 'alchemy data repair' saves the rest"
        )
    if zlib.crc32(block[: USER_BLOCK - 4]) != struct.unpack_from("<I", block, USER_BLOCK - 4)[0]:
        raise StoreDamagedError(f"{path}: header: checksum does not match; 'alchemy data repair'")
    header: dict[str, Any] = json.loads(block[12 : 12 + struct.unpack_from("<I", block, 8)[0]])
    version = header["format_version"]
    if version_of(version)[0] > version_of(layout.FORMAT_VERSION)[0]:
        raise newer(path, version)
    return header


def newer(path: Path, version: str) -> StoreError:
    """What to say of a file of a later alchemy."""
    own = layout.FORMAT_VERSION
    return StoreError(f"{path}: format {version} is newer than the {own} of this alchemy; upgrade alchemy")


class Segment:
    """A sealed file opened for reading; arrays are read-only views of its bytes.

    Files up to 1 MiB are verified against their sha256 when opened. Larger ones are mapped, and each of
    their datasets is verified when it is first used. Raises StoreDamagedError, FileNotFoundError and
    other OSErrors.
    """

    def __init__(self, fs: FileSystem, path: Path, *, verify: bool = True) -> None:
        self.path = path
        fd = fs.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.header = read_header(fs, fd, path)
            size = self.header["size"]
            large = size > READ_WHOLE
            self._data: Any = fs.map(fd, size) if large else read_all(fs, fd, size)
        finally:
            fs.close(fd)
        if verify and not large and not self.intact():
            raise StoreDamagedError(
                f"{path}: contents do not match their sha256; 'alchemy data check' says where, "
                "'alchemy data repair' saves the rest"
            )
        self._read: dict[str, np.ndarray] = {}  # datasets of a file that is not mapped
        self._unverified = verify and large
        self._verified: set[str] = set()
        offset, length, crc = self.header["index"]
        text = self._data[offset : offset + length]
        if zlib.crc32(text) != crc:
            raise StoreDamagedError(f"{path}: /index: checksum does not match; 'alchemy data repair'")
        self._index: dict[str, list[Any]] = json.loads(text)
        self.derived: dict[Any, Any] = {}  # what readers computed from this file; it never changes

    def intact(self) -> bool:
        """Whether bytes 4096… have the sha256 of the header."""
        digest, size = hashlib.sha256(), self.header["size"]
        for start in range(USER_BLOCK, size, READ_WHOLE):
            digest.update(self._data[start : min(start + READ_WHOLE, size)])
        return bool(digest.hexdigest() == self.header["sha256"])

    def paths(self) -> list[str]:
        return list(self._index)

    def get(self, path: str) -> np.ndarray | None:
        """The dataset, or None when this segment has none of that name."""
        if path not in self._index:
            return None
        if self._unverified and path not in self._verified:
            if bad := self.bad_blocks(path):
                raise StoreDamagedError(
                    f"{self.path}: {path}: bytes {bad[0] * BLOCK}… do not match their crc32; "
                    "'alchemy data repair' saves the rest"
                )
            self._verified.add(path)
        return self._raw(path)

    def _raw(self, path: str) -> np.ndarray:
        dtype, shape, offset = self._index[path]
        if not isinstance(self._data, ReadBytes):
            return np.ndarray(tuple(shape), np.dtype(dtype), self._data, offset)
        if path not in self._read:
            size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
            try:
                data = self._data[offset : offset + size]
            except OSError as error:
                raise StoreError(f"{self.path}: {path}: cannot read: {error}") from error
            self._read[path] = np.frombuffer(data, dtype).reshape(shape)
        return self._read[path]

    def release(self) -> None:
        """Give mapped pages back: whoever looks again finds them in the page cache, 2 MB at a time."""
        if hasattr(self._data, "madvise"):
            self._data.madvise(mmap.MADV_DONTNEED)

    def bad_blocks(self, path: str) -> list[int]:
        """Blocks of 64 KiB of a dataset that do not match their checksums."""
        name = f"/integrity{path}"
        if name not in self._index or path.startswith("/integrity/"):
            return []
        found, expected = crc32_blocks(self._raw(path)), self._raw(name)
        bad: list[int] = np.flatnonzero(found != expected).tolist()
        return bad

    def __getitem__(self, path: str) -> np.ndarray:
        array = self.get(path)
        if array is None:
            raise StoreDamagedError(f"{self.path}: {path} is missing")
        return array

    def length(self, path: str) -> int:
        """Rows of a dataset; 0 when it is not there."""
        return int(self._index[path][1][0]) if path in self._index else 0

    def commit_uuids(self) -> list[str]:
        """Of the commits that are in this file."""
        merged = self.get("/commits/uuid")
        return [self.header["uuid"]] if merged is None else [row.tobytes().hex() for row in merged]

    def between(self, lo: int, hi: int) -> Segment:
        """Only commits lo…hi of a merged segment. Raises StoreError when it does not know them."""
        return Part(self, lo, hi)


class Part(Segment):
    """Some of the commits in a merged segment, as if they were alone in it."""

    def __init__(self, whole: Segment, lo: int, hi: int) -> None:
        self.path, self._whole = whole.path, whole
        self.header = {**whole.header, "lo": lo, "hi": hi}
        self.derived = {}
        numbers = whole.get("/commits/seq")
        if numbers is None or lo not in numbers or hi not in numbers:
            edge = hi if lo == whole.header["lo"] else lo
            raise StoreError(f"{whole.path}: commit {edge} is inside {whole.path.name}")
        first, last = np.searchsorted(numbers, [lo, hi]).tolist()
        self._commits = slice(first, last + 1)
        self._cache: dict[str, np.ndarray] = {}

    def paths(self) -> list[str]:
        return self._whole.paths()

    def release(self) -> None:
        self._cache.clear()
        self._whole.release()

    def get(self, path: str) -> np.ndarray | None:
        if path.endswith(BY_PLACE):
            return None
        if path not in self._cache:
            array = self._whole.get(path)
            if array is None:
                return None
            self._cache[path] = self._cut(path, array)
        return self._cache[path]

    def length(self, path: str) -> int:
        if path.startswith(("/integrity/", "/dict/")):
            return self._whole.length(path)
        array = self.get(path)
        return 0 if array is None else len(array)

    def _rows(self, table: str) -> tuple[int, int]:
        starts = self._whole.get(f"/commits/rows/{table}")
        if starts is None:
            return 0, 0
        return int(starts[self._commits.start]), int(starts[self._commits.stop])

    def _cut(self, path: str, array: np.ndarray) -> np.ndarray:
        table = path.split("/")[1]
        if path.startswith("/commits/rows/"):
            return array[self._commits.start : self._commits.stop + 1] - array[self._commits.start]
        if table == "commits":
            return array[self._commits]
        if table in ("dict", "integrity", "quantities", "index"):
            return array
        lo, hi = self._rows(table)
        own = offset_path(path)
        if own == path:
            return array[lo : hi + 1] - array[lo]
        offset = self._whole.get(own) if own else None
        return array[lo:hi] if offset is None else array[int(offset[lo]) : int(offset[hi])]


def joined(n: int, parts: Iterable[tuple[Segment, np.ndarray]], *, empty: np.ndarray) -> np.ndarray:
    """Arrays of several segments, n rows in all, as one; one that is all of them is not copied.

    Pages are given back file by file: of 32 files of 15 MB with a query's columns all over them the
    kernel keeps 300 MB mapped. `empty` is what no rows are.
    """
    found, start = empty, 0
    for segment, array in parts:
        if len(array) == n:
            return array
        if not start:
            found = np.empty((n, *array.shape[1:]), array.dtype)
        found[start : start + len(array)] = array
        start += len(array)
        segment.release()
    return found


def offset_path(path: str) -> str:
    """Where the offsets that cut a dataset stand, if there are any; for offsets their own path."""
    parts = path.split("/")  # '', table, …
    if parts[-1] == "offset" or parts[-1].endswith("_offset") or parts[-2].endswith("_offset"):
        return path
    if parts[-2] == "atoms":
        return f"/{parts[1]}/offset"
    if len(parts) == 4:  # a named array
        return f"/{parts[1]}/{parts[2]}_offset/{parts[3]}"
    return path + "_offset"


def inspect(fs: FileSystem, path: Path) -> list[str]:
    """What is wrong with the bytes of a segment, by file and dataset; empty when all are as written."""
    try:
        segment = Segment(fs, path, verify=False)
    except (StoreError, OSError) as error:
        return [str(error)]
    if segment.intact():
        return []
    found = [
        f"{path}: {name}: bytes {block * BLOCK}… do not match their crc32"
        for name in segment.paths()
        for block in segment.bad_blocks(name)
    ]
    return found or [f"{path}: HDF5 metadata: contents do not match their sha256"]
