"""Every state that a kill or a power cut can leave is a sound store with all that was acknowledged.

Random kills find one bad state in three hundred; here all of them are enumerated.
"""

import contextlib
import io
import random

import h5py
import numpy as np
import pytest
from ase import Atoms
from memory_fs import MemoryFileSystem, apply, rebuild, states

from alchemy.errors import AlchemyError
from alchemy.identity import structure_uid
from alchemy.store import SplitRow, Store
from alchemy.store import compact as compaction

PATH = "/store.h5"


def hydrogen(i):
    return Atoms("H", positions=[[i, 0, 0]])


UIDS = [structure_uid(hydrogen(i)) for i in range(60)]


def commit(store, i):
    store.append(structures=[hydrogen(i)], splits=[SplitRow(UIDS[i], "train", 0.0)])


def play(fs, n=14):
    """Commits with three compactions between them; the log knows what was acknowledged."""
    store = Store(PATH, fs=fs)
    for i in range(n):
        if i % 5 == 0:
            store = Store(PATH, fs=fs)
        commit(store, i)
        fs.log.append(("ack", i))
        if i % 4 == 0 and i:
            store.compact(full=i % 8 == 0)


def problem(fs, acknowledged, resume):
    """What is wrong with a state; '' when all is well."""
    try:
        store = Store(PATH, fs=fs)
        view = store.snapshot()
        n = len(view)
        if view.uids() != UIDS[:n] or n not in (acknowledged + 1, acknowledged + 2):
            return f"{n} structures, {acknowledged + 1} acknowledged"
        if set(view.part_of()) != set(UIDS[:n]):
            return "half a commit"
        if resume:
            if found := store.check():
                return str(found)
            commit(store, n)
            store.compact()
            again = Store(PATH, fs=fs).snapshot()
            if again.uids() != UIDS[: n + 1] or view.uids() != UIDS[:n]:
                return "going on does not work"
    except AlchemyError as error:
        return str(error)
    return ""


def judge(log, first, *, power, links=True):
    """(states, what was wrong with which of them)."""
    number, bad = 0, []
    for number, (case, acknowledged, kept) in enumerate(states(log, first, power=power), 1):
        found = problem(rebuild(kept, links=links), acknowledged, number % 8 == 0)
        if found:
            bad.append((case, found))
    return number, bad


@pytest.fixture
def small_writes(monkeypatch):
    monkeypatch.setattr("alchemy.store.layout.WRITE_CHUNK", 4096)


@pytest.mark.parametrize(
    ("n", "power"), [(14, 900), pytest.param(40, 6000, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])]
)
def test_no_state_after_a_kill_or_a_power_cut_is_bad(small_writes, n, power):
    fs = MemoryFileSystem()
    play(fs, n)
    number, bad = judge(fs.log, 0, power=power)
    assert number >= 2000
    assert bad == []


def test_without_hard_links_the_same_holds(small_writes):
    fs = MemoryFileSystem(links=False)
    play(fs)
    number, bad = judge(fs.log, 0, power=150, links=False)
    assert number >= 400
    assert bad == []


def test_the_harness_finds_the_faults_of_a_writer_that_does_not_sync(small_writes):
    fs = MemoryFileSystem()
    store = Store(PATH, fs=fs, durability="nofsync")
    for i in range(6):
        commit(store, i)
        fs.log.append(("ack", i))
    number, bad = judge(fs.log, 0, power=100)
    killed = [case for case, _ in bad if case[1] == "kill"]
    assert killed == [], "a kill alone does no harm"
    assert len(bad) > 0.2 * number


def test_the_harness_finds_a_compactor_that_removes_before_it_has_synced(small_writes, monkeypatch):
    merge = compaction._merge

    def hasty(store, run):
        store.durability = "nofsync"
        merge(store, run)
        store.durability = "fsync"

    monkeypatch.setattr(compaction, "_merge", hasty)
    fs = MemoryFileSystem()
    play(fs)
    _, bad = judge(fs.log, 0, power=150)
    assert bad
    assert not [case for case, _ in bad if case[1] == "kill"]


class InPlace(io.RawIOBase):
    """A file for h5py whose writes go to the log of a file system in memory."""

    def __init__(self, fs, path):
        self.fs, self.fd, self.at = fs, fs.open(path, 0o102), 0
        self.inode = fs.fds[self.fd]

    def seek(self, offset, whence=0):
        self.at = (0, self.at, len(self.fs.inodes[self.inode]))[whence] + offset
        return self.at

    def tell(self):
        return self.at

    def readinto(self, buffer):
        data = self.fs.pread(self.fd, len(buffer), self.at)
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)

    def write(self, data):
        self.fs.pwrite(self.fd, bytes(data), self.at)
        self.at += len(data)
        return len(data)

    def truncate(self, size=None):
        entry = ("truncate", self.inode, self.at if size is None else size)
        self.fs.log.append(entry)
        apply(self.fs, entry)
        return entry[2]

    def flush(self):
        pass


def test_the_harness_finds_the_faults_of_a_writer_that_flushes_in_place():
    """The obvious way to write HDF5, append and flush, leaves files that cannot be opened."""
    fs = MemoryFileSystem()
    with h5py.File(InPlace(fs, PATH), "w") as file:
        for i in range(12):
            group = file.create_group(f"{i:04d}")
            group["positions"] = np.full((50, 3), float(i))
            group.attrs["energy"] = float(i)
            file.flush()
            fs.log.append(("ack", i))
    first = next(k for k, entry in enumerate(fs.log) if entry[0] == "ack") + 1
    bad = number = 0
    for (_, model), acknowledged, kept in states(fs.log, first, power=0):
        assert model == "kill"
        number += 1
        bad += not in_place_is_sound(bytes(rebuild(kept).inodes[3]), acknowledged)
    assert bad >= 0.05 * number, (bad, number)


def in_place_is_sound(content, acknowledged):
    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            return all((file[f"{i:04d}/positions"][()] == i).all() for i in range(acknowledged + 1))
    except (OSError, KeyError, RuntimeError, ValueError):
        return False


def everything(store):
    """All that a store says, in a form that can be compared."""
    view = store.snapshot()
    atoms = view.structures(view.uids())
    table = view.select("", rows="structures", columns=list(view.fields("structures")))
    positions = [a.positions.tolist() for a in atoms]
    return view.uids(), positions, view.part_of(), str(list(table.rows()))


@pytest.mark.parametrize("mapped", [False, True])
def test_no_flipped_bit_changes_what_is_read_and_every_one_is_reported(monkeypatch, mapped):
    """2,000 bits over a commit and a merged file; mapped files are verified when they are used."""
    if mapped:
        monkeypatch.setattr("alchemy.store.segment.READ_WHOLE", 100)
    fs = MemoryFileSystem()
    store = Store(PATH, fs=fs)
    for i in range(3):
        commit(store, i)
    store.compact()
    commit(store, 3)
    truth = everything(Store(PATH, fs=fs))
    rng = random.Random(7)
    inodes = sorted(inode for name, inode in fs.names.items() if name.endswith(".h5"))
    silent = []
    for trial in range(1000):
        content = fs.inodes[rng.choice(inodes)]
        at, mask = rng.randrange(4096 if trial % 4 == 0 else len(content)), 1 << rng.randrange(8)
        content[at] ^= mask
        with contextlib.suppress(AlchemyError):
            if everything(Store(PATH, fs=fs)) != truth or not mapped:
                silent.append(("read", trial))
        if trial % 5 == 0 and not Store(PATH, fs=fs).check():
            silent.append(("check", trial))
        content[at] ^= mask
    assert silent == []
    assert Store(PATH, fs=fs).check() == []
