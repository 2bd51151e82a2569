"""Sealed segments: immutable HDF5 files that carry their own checksums.

libhdf5 lays a file out in memory only and never touches the disk: with a full disk it crashes the
process or acknowledges what it did not write (measured, see the design notes). Bytes 0–4095 are the
HDF5 user block and hold our header:

    'ALCHSEG1', u32 length, JSON {size, sha256 of bytes 4096…, kind, lo, hi, uuid, format_version,
    index: [offset, length, crc32]}, zeros, u32 crc32 of bytes 0–4091

`/index` is a JSON map of every dataset to [dtype, shape, offset], so that a reader needs numpy and
not libhdf5: opening a file costs a tenth of parsing its HDF5 metadata.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import mmap
import os
import socket
import struct
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

import alchemy
from alchemy.errors import StoreDamagedError, StoreError

FORMAT_VERSION = "1.1"
USER_BLOCK = 4096
BLOCK = 1 << 16
MAGIC = b"ALCHSEG1"
WRITE_CHUNK = 1 << 24
# Python's mmap keeps a file descriptor, of which a process has about a thousand; small files are
# read whole, and then verifying their sha256 costs next to nothing.
READ_WHOLE = 1 << 22


class FileSystem:
    """The system calls of the store, so that tests can make each of them fail."""

    open = staticmethod(os.open)
    pread = staticmethod(os.pread)
    pwrite = staticmethod(os.pwrite)
    fsync = staticmethod(os.fsync)
    fchmod = staticmethod(os.fchmod)
    fstat = staticmethod(os.fstat)
    close = staticmethod(os.close)
    link = staticmethod(os.link)
    unlink = staticmethod(os.unlink)
    listdir = staticmethod(os.listdir)
    makedirs = staticmethod(os.makedirs)
    statvfs = staticmethod(os.statvfs)


class Dataset(NamedTuple):
    """An array on its way into a segment."""

    array: np.ndarray
    unit: str
    description: str
    attributes: Mapping[str, str] = {}


def array_bytes(array: np.ndarray) -> memoryview:
    """The bytes of an array in C order; fixed-length strings included, which memoryview refuses."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def crc32_blocks(data: memoryview | bytes) -> np.ndarray:
    """One crc32 per 64 KiB."""
    return np.array([zlib.crc32(data[i : i + BLOCK]) for i in range(0, len(data), BLOCK)], "<u4")


def _text_attribute(parent: Any, name: str, text: str) -> None:
    """A fixed-length UTF-8 attribute; the high-level API costs five times as much."""
    data = text.encode() or b"\0"
    kind = h5py.h5t.C_S1.copy()
    kind.set_size(len(data))
    kind.set_cset(h5py.h5t.CSET_UTF8)
    attribute = h5py.h5a.create(parent, name.encode(), kind, h5py.h5s.create(h5py.h5s.SCALAR))
    attribute.write(np.array(data), mtype=kind)


def _create_groups(root: Any, paths: Mapping[str, Dataset]) -> dict[str, Any]:
    groups: dict[str, Any] = {"": root}
    for path in paths:
        parts = path.split("/")[1:-1]
        for depth in range(1, len(parts) + 1):
            name = "/".join(parts[:depth])
            if name not in groups:
                groups[name] = h5py.h5g.create(root, name.encode())
    return groups


class _Memory(io.BytesIO):
    """A file in memory whose truncate() also extends, as that of real files does."""

    def truncate(self, size: int | None = None) -> int:
        size = self.tell() if size is None else size
        if size > len(self.getbuffer()):
            position = self.tell()
            self.seek(size - 1)
            self.write(b"\0")
            self.seek(position)
        return super().truncate(size)


def _lay_out(datasets: Mapping[str, Dataset], attributes: Mapping[str, str]) -> Any:
    """(file image without the raw data, offset of each dataset)."""
    memory = _Memory()
    create = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    create.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    create.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    create.set_obj_track_times(False)
    offsets = {}
    with h5py.File(
        memory,
        "w",
        libver=("v110", "v110"),
        userblock_size=USER_BLOCK,
        alignment_threshold=64,
        alignment_interval=64,
    ) as file:
        for name, text in attributes.items():
            _text_attribute(file.id, name, text)
        groups = _create_groups(file.id, datasets)
        for path, (array, unit, description, more) in datasets.items():
            group, leaf = path[1:].rpartition("/")[::2]
            kind = h5py.h5t.py_create(array.dtype, logical=True)
            space = h5py.h5s.create_simple(array.shape)
            dataset = h5py.h5d.create(groups[group], leaf.encode(), kind, space, create)
            _text_attribute(dataset, "unit", unit)
            _text_attribute(dataset, "description", description)
            for name, text in more.items():
                _text_attribute(dataset, name, text)
            offsets[path] = dataset.get_offset() or 0
    return memory, offsets


def _index_text(datasets: Mapping[str, Dataset], offsets: Mapping[str, int]) -> bytes:
    entries = {
        path: [d.array.dtype.str, list(d.array.shape), offsets.get(path, 1 << 53)]
        for path, d in datasets.items()
    }
    return json.dumps(entries, separators=(",", ":")).encode()


def build_image(datasets: Mapping[str, Dataset], *, kind: str, lo: int = -1, hi: int = -1) -> bytes:
    """The whole file: layout, data, checksums, index and header. lo and hi are commit numbers; a
    single commit does not know its own yet, its name says it.
    """
    checks = {
        f"/integrity{path}": Dataset(
            crc32_blocks(array_bytes(d.array)), "1", f"crc32 per 64 KiB of {path}"
        )
        for path, d in datasets.items()
    }
    every = {**datasets, **checks}
    room = np.zeros(len(_index_text(every, {})), "u1")  # offsets only get shorter than their limit
    index = Dataset(room, "1", "JSON: dataset -> [dtype, shape, byte offset]")
    uuid = os.urandom(16).hex()
    attributes = {
        "format": "alchemy-store",
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "created_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "created_by": f"alchemy {alchemy.__version__} on {socket.gethostname()}",
        "units": json.dumps({"length": "Angstrom", "energy": "eV", "time": "s", "charge": "e"}),
    }
    memory, offsets = _lay_out({**every, "/index": index}, attributes)
    image = memory.getbuffer()
    text = _index_text(every, offsets).ljust(len(room))
    for path, data in [(p, array_bytes(d.array)) for p, d in every.items()] + [("/index", text)]:
        image[offsets[path] : offsets[path] + len(data)] = data
    header = {
        "size": len(image),
        "sha256": hashlib.sha256(image[USER_BLOCK:]).hexdigest(),
        "kind": kind,
        "lo": lo,
        "hi": hi,
        "uuid": uuid,
        "format_version": FORMAT_VERSION,
        "index": [offsets["/index"], len(text), zlib.crc32(text)],
    }
    image[:USER_BLOCK] = _pack_header(header)
    return bytes(image)


def _pack_header(header: dict[str, Any]) -> bytes:
    text = json.dumps(header).encode()
    block = (MAGIC + struct.pack("<I", len(text)) + text).ljust(USER_BLOCK - 4, b"\0")
    return block + struct.pack("<I", zlib.crc32(block))


def write_file(fs: FileSystem, path: Path, image: bytes, *, fsync: bool) -> None:
    """Write a new read-only file, or leave none. Raises OSError."""
    stat = fs.statvfs(path.parent)
    if stat.f_bavail * stat.f_frsize < len(image) + (1 << 20):
        raise OSError(errno.ENOSPC, f"no room for {len(image)} bytes", str(path))
    fd = fs.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        try:
            done = 0
            while done < len(image):
                done += fs.pwrite(fd, image[done : done + WRITE_CHUNK], done)
            fs.fchmod(fd, 0o444)
            if fsync:
                fs.fsync(fd)
        finally:
            fs.close(fd)
    except BaseException:
        remove(fs, path)
        raise


def sync_directory(fs: FileSystem, path: Path) -> None:
    """Make the names in a directory survive a power cut."""
    fd = fs.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fs.fsync(fd)
    finally:
        fs.close(fd)


def publish(fs: FileSystem, temporary: Path, number: int) -> int:
    """Give a finished file the first free commit number ≥ `number`; link() never replaces."""
    while True:
        try:
            fs.link(temporary, commit_path(temporary.parent, number))
            return number
        except OSError as error:
            # Over NFS the reply to a link that worked can get lost and the repeated call fails.
            if _links(fs, temporary) == 2:
                return number
            if not isinstance(error, FileExistsError):
                raise
        number += 1


def _links(fs: FileSystem, path: Path) -> int:
    fd = fs.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return fs.fstat(fd).st_nlink
    finally:
        fs.close(fd)


def commit_path(directory: Path, number: int) -> Path:
    return directory / f"c{number:010d}.h5"


def read_header(fs: FileSystem, fd: int, path: Path) -> dict[str, Any]:
    """The verified header. Raises StoreDamagedError, and StoreError for a newer format."""
    block = fs.pread(fd, USER_BLOCK, 0)
    if len(block) < USER_BLOCK or block[:8] != MAGIC:
        raise StoreDamagedError(f"{path}: header: not a store segment, or cut short")
    if zlib.crc32(block[:-4]) != struct.unpack("<I", block[-4:])[0]:
        raise StoreDamagedError(f"{path}: header: checksum does not match")
    header: dict[str, Any] = json.loads(block[12 : 12 + struct.unpack_from("<I", block, 8)[0]])
    version = header["format_version"]
    if int(version.split(".")[0]) > int(FORMAT_VERSION.split(".")[0]):
        raise StoreError(
            f"{path}: format {version} is newer than the {FORMAT_VERSION} of this alchemy; upgrade"
        )
    size = fs.fstat(fd).st_size
    if size != header["size"]:
        raise StoreDamagedError(f"{path}: header: {size} bytes, should be {header['size']}")
    return header


class Segment:
    """A sealed file opened for reading; arrays are read-only views of its bytes.

    Files up to 4 MiB are verified against their sha256 when opened; larger ones are mapped, and
    only `check` reads all of them. Raises StoreDamagedError, FileNotFoundError and other OSErrors.
    """

    def __init__(self, fs: FileSystem, path: Path, *, verify: bool = True) -> None:
        self.path = path
        fd = fs.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.header = read_header(fs, fd, path)
            self._data = _contents(fs, fd, self.header["size"])
        finally:
            fs.close(fd)
        if verify and isinstance(self._data, bytes) and not self.intact():
            raise StoreDamagedError(
                f"{path}: contents do not match their sha256; `alchemy store check` says where"
            )
        offset, length, crc = self.header["index"]
        text = self._data[offset : offset + length]
        if zlib.crc32(text) != crc:
            raise StoreDamagedError(f"{path}: /index: checksum does not match")
        self._index: dict[str, list[Any]] = json.loads(text)
        self.derived: dict[Any, Any] = {}  # what readers computed from this file; it never changes

    def intact(self) -> bool:
        """Whether bytes 4096… have the sha256 of the header."""
        digest = hashlib.sha256(memoryview(self._data)[USER_BLOCK:]).hexdigest()
        return bool(digest == self.header["sha256"])

    def paths(self) -> list[str]:
        return list(self._index)

    def get(self, path: str) -> np.ndarray | None:
        """The dataset, or None when this segment has none of that name."""
        if path not in self._index:
            return None
        dtype, shape, offset = self._index[path]
        return np.ndarray(tuple(shape), np.dtype(dtype), self._data, offset)

    def __getitem__(self, path: str) -> np.ndarray:
        array = self.get(path)
        if array is None:
            raise StoreDamagedError(f"{self.path}: {path} is missing")
        return array

    def length(self, path: str) -> int:
        """Rows of a dataset; 0 when it is not there."""
        return int(self._index[path][1][0]) if path in self._index else 0


def _contents(fs: FileSystem, fd: int, size: int) -> bytes | mmap.mmap:
    if size > READ_WHOLE:
        return mmap.mmap(fd, size, prot=mmap.PROT_READ)
    pieces, done = [], 0
    while done < size:
        piece = fs.pread(fd, size - done, done)
        if not piece:
            raise OSError(errno.EIO, "file became shorter while being read")
        pieces.append(piece)
        done += len(piece)
    return b"".join(pieces)


def inspect(fs: FileSystem, path: Path) -> list[str]:
    """What is wrong with a segment, by file and dataset; empty when every byte is as written."""
    try:
        segment = Segment(fs, path, verify=False)
    except (StoreError, OSError) as error:
        return [str(error)]
    if segment.intact():
        return []
    found = []
    for name in segment.paths():
        crcs = segment.get(f"/integrity{name}")
        if crcs is not None:
            bad = np.flatnonzero(crc32_blocks(array_bytes(segment[name])) != crcs)
            found += [f"{path}: {name}: bytes {b * BLOCK}… do not match their crc32" for b in bad]
    return found or [f"{path}: HDF5 metadata: contents do not match their sha256"]


def remove(fs: FileSystem, path: Path) -> None:
    """Remove a temporary file if possible; a leftover is ignored by readers."""
    with contextlib.suppress(OSError):
        fs.unlink(path)
