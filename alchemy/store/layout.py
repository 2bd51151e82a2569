"""Datasets to the bytes of a sealed HDF5 file, piece by piece: what is merged need not fit into memory.

libhdf5 lays a file out in memory only and never touches the disk: with a full disk it crashes the
process or acknowledges what it did not write (measured, see the design notes). Bytes 0–4095 are the
HDF5 user block and hold our header:

    'ALCHSEG1', u32 length, JSON {size, sha256 of bytes 4096…, kind, lo, hi, after, uuid, time, by,
    format_version, index: [offset, length, crc32]}, zeros, u32 crc32 of bytes 0–4091

`/index` is a JSON map of every dataset to [dtype, shape, offset], so that a reader needs numpy and
not libhdf5: opening a file costs a tenth of parsing its HDF5 metadata.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import struct
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import h5py
import numpy as np

import alchemy

FORMAT_VERSION = "1.2"
USER_BLOCK = 4096
BLOCK = 1 << 16
MAGIC = b"ALCHSEG1"
WRITE_CHUNK = 1 << 24
PAGE = 1 << 12


class Chain:
    """Arrays one after another along their first axis, without joining them in memory."""

    def __init__(self, parts: Sequence[np.ndarray], dtype: Any = None, tail: tuple[int, ...] = ()) -> None:
        self.parts = [part for part in parts if part.size]
        self.dtype = np.dtype(dtype) if parts == [] else parts[0].dtype
        tail = parts[0].shape[1:] if parts else tail
        self.shape = (sum(len(part) for part in parts), *tail)
        self._bytes = [array_bytes(part) for part in self.parts]
        self._ends = [*accumulate(part.nbytes for part in self.parts)]
        self.nbytes = self._ends[-1] if self._ends else 0

    def between(self, lo: int, hi: int) -> memoryview | bytes:
        """Bytes lo…hi in C order."""
        if len(self._bytes) == 1:
            return self._bytes[0][lo:hi]
        found = []
        for part, end in zip(self._bytes, self._ends, strict=True):
            start = end - len(part)
            if end > lo and start < hi:
                found.append(part[max(lo - start, 0) : hi - start])
        return found[0] if len(found) == 1 else b"".join(found)


class Dataset(NamedTuple):
    """An array on its way into a segment."""

    array: np.ndarray | Chain
    unit: str
    description: str
    attributes: Mapping[str, str] = {}

    @property
    def chain(self) -> Chain:
        return self.array if isinstance(self.array, Chain) else Chain([self.array])


def array_bytes(array: np.ndarray) -> memoryview:
    """The bytes of an array in C order; fixed-length strings included, which memoryview refuses."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def crc32_blocks(data: Chain | np.ndarray) -> np.ndarray:
    """One crc32 per 64 KiB."""
    chain = data if isinstance(data, Chain) else Chain([data])
    starts = range(0, chain.nbytes, BLOCK)
    return np.array([zlib.crc32(chain.between(i, min(i + BLOCK, chain.nbytes))) for i in starts], "<u4")


class _Pages:
    """A file for libhdf5 that keeps the pages written to, which hold metadata; data never come here."""

    def __init__(self) -> None:
        self.pages: dict[int, bytearray] = {}
        self.size = self._position = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        for page, at, part in _cut(self._position, len(view)):
            self.pages.setdefault(page, bytearray(PAGE))[at : at + part.stop - part.start] = view[part]
        self._position += len(view)
        self.size = max(self.size, self._position)
        return len(view)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        for page, at, part in _cut(self._position, len(view)):
            length = part.stop - part.start
            view[part] = self.pages[page][at : at + length] if page in self.pages else bytes(length)
        self._position += len(view)
        return len(view)

    def read(self, length: int = -1) -> bytes:
        buffer = bytearray(self.size - self._position if length < 0 else length)
        self.readinto(buffer)
        return bytes(buffer)

    def truncate(self, size: int | None = None) -> int:
        self.size = self._position if size is None else size
        return self.size

    def flush(self) -> None:
        pass

    def copy_to(self, buffer: bytearray, start: int) -> None:
        """Overwrite bytes start… of the file that are in pages."""
        for page in range(start // PAGE, (start + len(buffer) - 1) // PAGE + 1):
            if page in self.pages:
                lo, hi = max(page * PAGE, start), min((page + 1) * PAGE, start + len(buffer))
                buffer[lo - start : hi - start] = self.pages[page][lo - page * PAGE : hi - page * PAGE]


def _cut(position: int, length: int) -> Iterator[tuple[int, int, slice]]:
    """(page, offset in it, slice of the data) of each page that a range touches."""
    done = 0
    while done < length:
        page, at = divmod(position + done, PAGE)
        step = min(PAGE - at, length - done)
        yield page, at, slice(done, done + step)
        done += step


class _Texts:
    """Fixed-length UTF-8 attributes; the high-level API costs ten times as much."""

    def __init__(self) -> None:
        self.scalar = h5py.h5s.create(h5py.h5s.SCALAR)
        self.kinds: dict[int, Any] = {}

    def add(self, parent: Any, name: bytes, text: str) -> None:
        data = text.encode() or b"\0"
        kind = self.kinds.get(len(data))
        if kind is None:
            kind = self.kinds[len(data)] = h5py.h5t.C_S1.copy()
            kind.set_size(len(data))
            kind.set_cset(h5py.h5t.CSET_UTF8)
        h5py.h5a.create(parent, name, kind, self.scalar).write(np.array(data), mtype=kind)


def _create_groups(root: Any, paths: Mapping[str, Dataset]) -> dict[str, Any]:
    groups: dict[str, Any] = {"": root}
    for path in paths:
        parts = path.split("/")[1:-1]
        for depth in range(1, len(parts) + 1):
            name = "/".join(parts[:depth])
            if name not in groups:
                groups[name] = h5py.h5g.create(root, name.encode())
    return groups


def _lay_out(datasets: Mapping[str, Dataset], attributes: Mapping[str, str]) -> tuple[_Pages, dict[str, int]]:
    """(metadata of the file, offset of each dataset)."""
    memory, offsets = _Pages(), {}
    create = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    create.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    create.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    create.set_obj_track_times(False)
    with h5py.File(
        memory,
        "w",
        libver=("v110", "v110"),
        userblock_size=USER_BLOCK,
        alignment_threshold=64,
        alignment_interval=64,
    ) as file:
        texts = _Texts()
        kinds: dict[Any, Any] = {}
        spaces: dict[tuple[int, ...], Any] = {}
        for name, text in attributes.items():
            texts.add(file.id, name.encode(), text)
        groups = _create_groups(file.id, datasets)
        for path, (array, unit, description, more) in datasets.items():
            group, leaf = path[1:].rpartition("/")[::2]
            what, shape = (array.dtype, array.dtype.metadata is None), array.shape
            if what not in kinds:
                kinds[what] = h5py.h5t.py_create(array.dtype, logical=True)
            if shape not in spaces:
                spaces[shape] = h5py.h5s.create_simple(shape)
            dataset = h5py.h5d.create(groups[group], leaf.encode(), kinds[what], spaces[shape], create)
            texts.add(dataset, b"unit", unit)
            texts.add(dataset, b"description", description)
            for name, text in more.items():
                texts.add(dataset, name.encode(), text)
            offsets[path] = dataset.get_offset() or 0
    return memory, offsets


def _index_text(datasets: Mapping[str, Dataset], offsets: Mapping[str, int]) -> bytes:
    entries = {
        path: [d.array.dtype.str, list(d.array.shape), offsets.get(path, 1 << 53)]
        for path, d in datasets.items()
    }
    return json.dumps(entries, separators=(",", ":")).encode()


class Image:
    """The bytes of a sealed file: layout, data, checksums, index and header.

    lo and hi are commit numbers; a single commit does not know its own yet, its name says it, but it
    knows the last one that its writer saw, `after`.
    """

    def __init__(
        self, datasets: Mapping[str, Dataset], *, kind: str, lo: int = -1, hi: int = -1, after: int = -1
    ) -> None:
        checks = {
            f"/integrity{path}": Dataset(crc32_blocks(d.chain), "1", f"crc32 per 64 KiB of {path}")
            for path, d in datasets.items()
        }
        every = {**datasets, **checks}
        room = np.zeros(len(_index_text(every, {})), "u1")  # offsets only get shorter than their limit
        index = Dataset(room, "1", "JSON: dataset -> [dtype, shape, byte offset]")
        now, by = time.time(), f"alchemy {alchemy.__version__} on {socket.gethostname()}"
        attributes = {
            "format": "alchemy-store",
            "format_version": FORMAT_VERSION,
            "kind": kind,
            "created_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)),
            "created_by": by,
            "units": json.dumps({"length": "Angstrom", "energy": "eV", "time": "s", "charge": "e"}),
        }
        self._pages, offsets = _lay_out({**every, "/index": index}, attributes)
        text = _index_text(every, offsets).ljust(len(room))
        self._placed = [(offsets[path], d.chain) for path, d in every.items() if d.chain.nbytes]
        self._placed.append((offsets["/index"], Chain([np.frombuffer(text, "u1")])))
        self.size = max([self._pages.size, *(at + chain.nbytes for at, chain in self._placed)])
        self.uuid = os.urandom(16).hex()
        self._header = {
            "size": self.size,
            "kind": kind,
            "lo": lo,
            "hi": hi,
            "after": after,
            "uuid": self.uuid,
            "time": now,
            "by": by,
            "format_version": FORMAT_VERSION,
            "index": [offsets["/index"], len(text), zlib.crc32(text)],
        }

    def pieces(self) -> Iterator[tuple[int, bytes | memoryview]]:
        """(offset, bytes) of the whole file; the header, which vouches for the rest, comes last."""
        digest = hashlib.sha256()
        for start in range(USER_BLOCK, self.size, WRITE_CHUNK):
            buffer = bytearray(min(WRITE_CHUNK, self.size - start))
            self._pages.copy_to(buffer, start)
            for at, chain in self._placed:
                lo, hi = max(at, start), min(at + chain.nbytes, start + len(buffer))
                if lo < hi:
                    buffer[lo - start : hi - start] = chain.between(lo - at, hi - at)
            digest.update(buffer)
            yield start, memoryview(buffer)
        yield 0, _pack_header({**self._header, "sha256": digest.hexdigest()})


def build_image(datasets: Mapping[str, Dataset], *, kind: str, lo: int = -1, hi: int = -1) -> bytes:
    """The whole file in memory."""
    return b"".join(data for _, data in sorted(Image(datasets, kind=kind, lo=lo, hi=hi).pieces()))


def _pack_header(header: dict[str, Any]) -> bytes:
    text = json.dumps(header).encode()
    block = (MAGIC + struct.pack("<I", len(text)) + text).ljust(USER_BLOCK - 4, b"\0")
    return block + struct.pack("<I", zlib.crc32(block))
