"""The system calls of the store and the steps made of them: write a file, give it a name, be sure of it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from alchemy.errors import StoreError

ROOM = 1 << 20  # what is left free on the disk
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
COMMIT_LOCK = "LOCK.commit"


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
    replace = staticmethod(os.replace)
    listdir = staticmethod(os.listdir)
    makedirs = staticmethod(os.makedirs)
    statvfs = staticmethod(os.statvfs)
    flock = staticmethod(fcntl.flock)

    @staticmethod
    def map(fd: int, size: int) -> Any:
        return mmap.mmap(fd, size, prot=mmap.PROT_READ)


class ReadBytes:
    """A file whose bytes are read when they are asked for, by slices; it stays open meanwhile."""

    def __init__(self, fs: FileSystem, fd: int) -> None:
        self._fs, self._fd = fs, os.dup(fd)

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            os.close(self._fd)

    def __getitem__(self, among: slice) -> bytes:
        return read_all(self._fs, self._fd, among.stop - among.start, start=among.start)


class ReadingFileSystem(FileSystem):
    """Maps no file: a mapped page that a server cannot deliver kills the process, a read is an error."""

    def map(self, fd: int, size: int) -> Any:  # type: ignore[override]
        return ReadBytes(self, fd)


REMOTE = ("nfs", "lustre", "cifs", "smb", "fuse.sshfs", "gpfs", "beegfs", "ceph", "glusterfs", "afs", "9p")


def is_remote(path: Path, mounts: str = "/proc/self/mounts") -> bool:
    """Whether a path is on a network file system, as far as the kernel says."""
    place = path.resolve()
    best, kind = "", ""
    with contextlib.suppress(OSError):
        for line in Path(mounts).read_text(errors="replace").splitlines():
            _, mount, name, *_ = [*line.split(), "", "", ""]
            mount = mount.replace("\\040", " ")
            if len(mount) >= len(best) and place.is_relative_to(mount or "-"):
                best, kind = mount, name
    return kind.startswith(REMOTE)


def write_file(
    fs: FileSystem, path: Path, pieces: Iterable[tuple[int, Any]], *, size: int, fsync: bool
) -> None:
    """Write a new read-only file from (offset, bytes), or leave none. Raises OSError."""
    stat = fs.statvfs(path.parent)
    if stat.f_bavail * stat.f_frsize < size + ROOM:
        raise OSError(errno.ENOSPC, f"no room for {size} bytes", str(path))
    fd = fs.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        try:
            for offset, data in pieces:
                done = 0
                while done < len(data):
                    done += fs.pwrite(fd, data[done:], offset + done)
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


def publish(fs: FileSystem, temporary: Path, final: Path) -> bool:
    """Give a finished file its name unless somebody has it already; whether it has.

    link() never replaces. Where there are no hard links, a rename under a lock does the same, and the
    temporary name is gone then. Raises OSError, and StoreError where there is neither.
    """
    try:
        fs.link(temporary, final)
        return True
    except OSError as error:
        # Over NFS the reply to a link that worked can get lost and the repeated call fails.
        if _links(fs, temporary) == 2:
            return True
        if isinstance(error, FileExistsError):
            return False
        if error.errno not in NO_LINKS:
            raise
    return _renamed(fs, temporary, final)


def _renamed(fs: FileSystem, temporary: Path, final: Path) -> bool:
    with lock(fs, final.parent / COMMIT_LOCK, wait=True) as held:
        if held is None:
            raise StoreError(
                f"{final.parent}: this file system has neither hard links nor locks, so a commit cannot "
                "be kept from replacing another one; put the store on another disk"
            )
        if final.name in fs.listdir(final.parent):
            return False
        fs.replace(temporary, final)
        return True


@contextlib.contextmanager
def lock(fs: FileSystem, path: Path, *, wait: bool) -> Iterator[bool | None]:
    """True with the lock, False when another process has it, None where locks do not work."""
    fd = fs.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fs.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            held: bool | None = True
        except BlockingIOError:
            held = False
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP):
                raise
            held = None
        yield held
    finally:
        fs.close(fd)  # frees the lock; so does the death of the process


def _links(fs: FileSystem, path: Path) -> int:
    fd = fs.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return fs.fstat(fd).st_nlink
    finally:
        fs.close(fd)


def remove(fs: FileSystem, path: Path) -> None:
    """Remove a temporary file if possible; a leftover is ignored by readers."""
    with contextlib.suppress(OSError):
        fs.unlink(path)


def read_all(fs: FileSystem, fd: int, size: int, *, start: int = 0) -> bytes:
    """`size` bytes from `start` on. Raises OSError when there are fewer."""
    pieces, done = [], 0
    while done < size:
        piece = fs.pread(fd, size - done, start + done)
        if not piece:
            raise OSError(errno.EIO, "file became shorter while being read")
        pieces.append(piece)
        done += len(piece)
    return b"".join(pieces)
