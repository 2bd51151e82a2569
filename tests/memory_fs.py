"""A file system in memory that remembers every call, and what a kill or a power cut could leave of it."""

import errno
import fcntl
import itertools
import os
import random
import time
from types import SimpleNamespace

from alchemy.store.filesystem import FileSystem


def no_such(path):
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)


class MemoryFileSystem(FileSystem):
    """Files are bytearrays under names; `log` has every change, to be played back in part."""

    def __init__(self, *, links=True):
        self.inodes, self.names, self.folders = {}, {}, {"/"}
        self.log, self.fds, self.locks, self.links = [], {}, {}, links
        self.counter = itertools.count(3)

    def _do(self, *entry):
        self.log.append(entry)
        apply(self, entry)

    def open(self, path, flags, mode=0o777):
        path = str(path)
        if path in self.folders:
            inode = path
        elif path in self.names:
            if flags & os.O_EXCL:
                raise FileExistsError(errno.EEXIST, "exists", path)
            inode = self.names[path]
        elif flags & os.O_CREAT:
            inode = next(self.counter)
            self._do("create", inode, path)
        else:
            raise no_such(path)
        fd = next(self.counter)
        self.fds[fd] = inode
        return fd

    def close(self, fd):
        inode = self.fds.pop(fd)
        if self.locks.get(inode) == fd:
            del self.locks[inode]

    def flock(self, fd, how):
        owner = self.locks.setdefault(self.fds[fd], fd)
        if owner != fd and how & fcntl.LOCK_NB:
            raise BlockingIOError(errno.EWOULDBLOCK, "locked")

    def pread(self, fd, size, offset):
        return bytes(self.inodes[self.fds[fd]][offset : offset + size])

    def pwrite(self, fd, data, offset):
        self._do("write", self.fds[fd], offset, bytes(data))
        return len(data)

    def fsync(self, fd):
        self._do("fsync", self.fds[fd])

    def fchmod(self, fd, mode):
        pass

    def fstat(self, fd):
        inode = self.fds[fd]
        links = sum(one == inode for one in self.names.values())
        where = {"st_dev": 0, "st_ino": inode, "st_nlink": links}
        return SimpleNamespace(st_size=len(self.inodes[inode]), st_mtime=time.time(), **where)

    def link(self, source, target):
        source, target = str(source), str(target)
        if not self.links:
            raise OSError(errno.EPERM, "no hard links here")
        if source not in self.names:
            raise no_such(source)
        if target in self.names:
            raise FileExistsError(errno.EEXIST, "exists", target)
        self._do("link", self.names[source], target)

    def unlink(self, path):
        if str(path) not in self.names:
            raise no_such(str(path))
        self._do("unlink", str(path))

    def replace(self, source, target):
        source, target = str(source), str(target)
        if source not in self.names:
            raise no_such(source)
        if self.names.get(target) != self.names[source]:  # two names of one file stay, says POSIX
            self._do("replace", source, target)

    def listdir(self, path):
        path = str(path)
        if path not in self.folders:
            raise no_such(path)
        inside = [*self.names, *self.folders]
        return [one.rpartition("/")[2] for one in inside if one.rpartition("/")[0] == path]

    def makedirs(self, path, exist_ok=True):
        if str(path) not in self.folders:
            self._do("mkdir", str(path))

    def statvfs(self, path):
        return SimpleNamespace(f_bavail=1 << 40, f_frsize=1)

    def map(self, fd, size):
        return bytes(self.inodes[self.fds[fd]][:size])


def apply(fs, entry):
    """One change."""
    kind, *rest = entry
    if kind == "create":
        inode, path = rest
        fs.inodes.setdefault(inode, bytearray())
        fs.names[path] = inode
    elif kind == "write":
        inode, offset, data = rest
        content = fs.inodes.setdefault(inode, bytearray())
        content.extend(bytes(max(0, offset + len(data) - len(content))))
        content[offset : offset + len(data)] = data
    elif kind == "truncate":
        inode, size = rest
        content = fs.inodes.setdefault(inode, bytearray())
        del content[size:]
        content.extend(bytes(size - len(content)))
    elif kind == "link":
        fs.inodes.setdefault(rest[0], bytearray())
        fs.names[rest[1]] = rest[0]
    elif kind == "unlink":
        fs.names.pop(rest[0], None)
    elif kind == "replace" and rest[0] in fs.names:
        fs.names[rest[1]] = fs.names.pop(rest[0])
    elif kind == "mkdir":
        fs.folders.add(rest[0])


NAMING = ("create", "link", "unlink", "replace", "mkdir")


def folder_of(entry):
    return entry[-1].rpartition("/")[0] or "/"


def survivors(log, model, rng):
    """The changes that survive: all of them after a kill; a power cut may drop what was not synced."""
    if model == "kill":
        return log
    synced = {}
    for number, entry in enumerate(log):
        if entry[0] == "fsync":
            synced[entry[1]] = number
    kept = []
    for number, entry in enumerate(log):
        if entry[0] in ("write", "truncate"):
            safe = number < synced.get(entry[1], -1) or rng.random() > 0.4
        elif entry[0] in NAMING and model == "dirpower":
            safe = number < synced.get(folder_of(entry), -1) or rng.random() > 0.5
        else:
            safe = True
        if safe:
            kept.append(entry)
    return kept


def rebuild(log, *, links=True):
    """The file system after these changes, in a new process."""
    fs = MemoryFileSystem(links=links)
    for entry in log:
        apply(fs, entry)
    top = max([2, *(inode for inode in fs.inodes)])
    fs.counter = itertools.count(top + 1)
    return fs


def states(log, first, *, power, seed=3):
    """(acknowledged, file system) after every call from `first` on, and `power` cuts of each model."""
    rng = random.Random(seed)
    cases = [(k, "kill") for k in range(first, len(log) + 1)]
    cases += [(rng.randint(first, len(log)), m) for m in ("power", "dirpower") for _ in range(power)]
    for k, model in cases:
        acknowledged = max([-1, *(entry[1] for entry in log[:k] if entry[0] == "ack")])
        yield (k, model), acknowledged, survivors(log[:k], model, rng)


class Refusing(MemoryFileSystem):
    """Call number `left` that changes something fails, once it is armed."""

    def __init__(self, left, code):
        super().__init__()
        self.left, self.code, self.armed = left, code, False

    def __getattribute__(self, name):
        real = object.__getattribute__(self, name)
        if name not in ("pwrite", "link", "replace", "fsync", "fchmod") or not self.armed:
            return real

        def call(*arguments):
            self.left -= 1
            if self.left == -1:
                raise OSError(self.code, os.strerror(self.code))
            return real(*arguments)

        return call
