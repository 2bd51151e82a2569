"""Compaction: fewer files, the same rows, whoever reads or writes meanwhile."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from memory_fs import MemoryFileSystem, Refusing
from store_helpers import commits, fill, hydrogen, label_of, same, told

from alchemy.errors import StoreDamagedError, StoreError
from alchemy.identity import structure_uid
from alchemy.store import (
    Store,
    log,
)
from alchemy.store.segment import Segment

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("full", [True, False])
def test_no_snapshot_sees_a_compaction_whichever_commit_it_ends_at(store, full):
    fill(store)
    before = [told(store.snapshot(as_of=k)) for k in range(-1, 8)]
    rows = store.snapshot().labels(status=None)
    history = log(store)
    old = store.snapshot()
    result = store.compact(full=full)
    assert (result.written, result.removed) == (1, result.merged)
    for again in (store, Store(store.path)):
        assert [told(again.snapshot(as_of=k)) for k in range(-1, 8)] == before
        assert all(same(a, b) for a, b in zip(rows, again.snapshot().labels(status=None), strict=True))
    assert told(old) == before[-1], "a snapshot from before goes on"
    assert log(store) == history
    assert store.check() == []
    assert store.compact(full=full).merged == 0, "there is nothing left to do"


def test_a_merged_store_goes_on_and_merges_again(store):
    fill(store)
    store.compact()
    store.append(structures=[hydrogen(5)], labels=[label_of(hydrogen(5), properties={"dipole": np.ones(3)})])
    expected = [told(store.snapshot(as_of=k)) for k in range(9)]
    assert store.compact().merged == 2
    assert [n for n in commits(store) if not n.startswith("LOCK")] == ["m0000000000-0000000008.h5"]
    assert [told(Store(store.path).snapshot(as_of=k)) for k in range(9)] == expected
    assert os.path.samefile(store.path, store.directory / "m0000000000-0000000008.h5")
    assert store.check() == []


def test_a_store_of_one_commit_becomes_one_file_that_can_be_read_alone(store, tmp_path):
    store.append(structures=[hydrogen(1)])
    assert store.compact().written == 1
    copy = tmp_path / "copy.h5"
    copy.write_bytes(store.path.read_bytes())
    for again in (store, Store(copy)):
        assert (again.snapshot().last, again.snapshot().uids()) == (0, [structure_uid(hydrogen(1))])
        assert again.check() == []


def test_the_base_alone_is_the_whole_store(store, tmp_path):
    fill(store)
    expected = told(store.snapshot())
    store.compact()
    (tmp_path / "copy").mkdir()
    copy = Store(tmp_path / "copy" / "store.h5", durability="nofsync")
    copy.path.write_bytes(store.path.read_bytes())
    assert told(copy.snapshot()) == expected
    copy.append(structures=[hydrogen(9)])
    assert copy.snapshot().last == 8
    copy.compact()
    assert told(Store(copy.path).snapshot(as_of=7)) == expected


def test_small_merges_rewrite_each_row_only_a_few_times(store):
    written = committed = 0
    for i in range(64):
        store.append(structures=[hydrogen(i)])
        committed += (store.directory / f"c{i:010d}.h5").stat().st_size
        if i % 4 == 3:
            before = set(commits(store))
            store.compact(full=False)
            written += sum((store.directory / n).stat().st_size for n in set(commits(store)) - before)
    assert len(commits(store)) <= 8
    assert written < 2 * committed
    assert len(store.snapshot()) == 64


def test_a_commit_whose_number_was_merged_away_meanwhile_is_not_lost(tmp_path):
    """The writer looks before and links after somebody compacted: the number it wants is free again."""
    path = tmp_path / "store.h5"
    Store(path, durability="nofsync").append(structures=[hydrogen(0)])
    fs = FaultAt("link", lambda: _others(path))
    number = Store(path, durability="nofsync", fs=fs).append(structures=[hydrogen(7)])
    assert number == 4
    view = Store(path).snapshot()
    assert view.uids()[-1] == structure_uid(hydrogen(7))
    assert len(view) == 5
    assert Store(path).check() == []


def _others(path):
    other = Store(path, durability="nofsync")
    for i in range(1, 4):
        other.append(structures=[hydrogen(i)])
    other.compact()


class FaultAt(MemoryFileSystem.__mro__[1]):
    """The real file system; `action` runs once before the first call of that name."""

    def __init__(self, name, action):
        self.name, self.action = name, action

    def __getattribute__(self, name):
        real = object.__getattribute__(self, name)
        if name != object.__getattribute__(self, "name"):
            return real

        def call(*arguments):
            action, self.action = self.action, lambda: None
            action()
            return real(*arguments)

        return call


def test_files_that_overlap_in_part_are_read_once(store):
    """Two compactors that do not see each other's lock may make them."""
    for i in range(8):
        store.append(structures=[hydrogen(i)])
    expected = [told(store.snapshot(as_of=k)) for k in range(8)]
    whole = {n: (store.directory / n).read_bytes() for n in commits(store)}
    for lo, hi in ((0, 5), (3, 7)):
        part = Store(store.path.with_name(f"{lo}.h5"), durability="nofsync")
        part.directory.mkdir()
        for k in range(hi + 1):
            (part.directory / f"c{k:010d}.h5").write_bytes(whole[f"c{k:010d}.h5"])
        part.compact()
        if lo:
            _merge_range(part, store, lo, hi)
        else:
            os.link(part.path, store.directory / f"m{lo:010d}-{hi:010d}.h5")
    for name in whole:
        (store.directory / name).unlink()
    for again in (store, Store(store.path)):
        assert [told(again.snapshot(as_of=k)) for k in range(8)] == expected
    assert store.check() == []
    store.compact()
    assert [told(Store(store.path).snapshot(as_of=k)) for k in range(8)] == expected
    assert sum(n.startswith("m") for n in commits(store)) == 1


def _merge_range(part, store, lo, hi):
    from alchemy.store.layout import Image
    from alchemy.store.merge import merged_datasets

    segment = Segment(part.fs, part.path).between(lo, hi)
    image = Image(merged_datasets([segment], [lo]), kind="merged", lo=lo, hi=hi)
    content = b"".join(data for _, data in sorted(image.pieces()))
    (store.directory / f"m{lo:010d}-{hi:010d}.h5").write_bytes(content)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_refuses_any_call_of_a_compaction_loses_nothing(code, monkeypatch):
    monkeypatch.setattr("alchemy.store.layout.WRITE_CHUNK", 4096)
    for which in range(200):
        fs = Refusing(which, code)
        store = Store("/store.h5", fs=fs)
        for i in range(3):
            store.append(structures=[hydrogen(i)])
        fs.armed = True
        message = ""
        try:
            store.compact()
        except StoreError as error:
            message = str(error)
        assert not message or "nothing is lost" in message
        fs.armed = False
        again = Store("/store.h5", fs=fs)
        assert len(again.snapshot()) == 3
        assert again.check() == []
        again.append(structures=[hydrogen(9)])
        assert again.compact().merged > 0
        assert len(Store("/store.h5", fs=fs).snapshot()) == 4
        if not message and fs.left >= 0:
            break
    assert which >= 15


def test_a_damaged_file_stops_a_compaction_and_nothing_is_removed(store):
    for i in range(3):
        store.append(structures=[hydrogen(i)])
    path = store.directory / "c0000000001.h5"
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    before = commits(store)
    with pytest.raises(StoreDamagedError, match="alchemy data check"):
        Store(store.path).compact()
    assert [n for n in commits(store) if n != "LOCK.compact"] == before


def test_only_one_process_compacts_at_a_time_and_locks_are_not_needed(store):
    fs = MemoryFileSystem()
    one = Store("/store.h5", fs=fs)
    one.append(structures=[hydrogen(0)])
    one.append(structures=[hydrogen(1)])
    fd = fs.open("/store.h5.d/LOCK.compact", os.O_CREAT)
    fs.flock(fd, 6)
    assert one.compact().busy

    def no_locks(fd, how):
        raise OSError(errno.ENOLCK, "no locks here")

    fs.flock = no_locks
    assert one.compact().merged == 2
    fs.links = False
    with pytest.raises(StoreError, match=r"neither hard links nor locks.*another disk"):
        one.append(structures=[hydrogen(2)])


def work(path, number):
    store = Store(path, durability="nofsync")
    for i in range(20):
        store.append(structures=[hydrogen(i, number), hydrogen(i, 99)])


def compact_often(path, stop):
    store = Store(path, durability="nofsync")
    k = 0
    while not Path(stop).exists():
        store.compact(full=k % 3 == 0)
        k += 1
        time.sleep(0.02)


def read_often(path, stop):
    seen = []
    while not Path(stop).exists():
        uids = Store(path).snapshot().uids()
        assert uids[: len(seen)] == seen, "a reader never goes back"
        seen = uids
        time.sleep(0.01)


def test_writers_compactors_and_readers_at_once_lose_nothing(tmp_path):
    path, stop = str(tmp_path / "store.h5"), str(tmp_path / "stop")
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=work, args=(path, k)) for k in range(4)]
    tasks = (compact_often, compact_often, read_often, read_often)
    others = [fork.Process(target=task, args=(path, stop)) for task in tasks]
    for process in (*writers, *others):
        process.start()
    for process in writers:
        process.join(100)
    Path(stop).touch()
    for process in others:
        process.join(20)
    assert [process.exitcode for process in (*writers, *others)] == [0] * 8
    view = Store(path).snapshot()
    assert len(view) == len(set(view.uids())) == 4 * 20 + 20
    # each commit of a writer that added something is there once
    assert len({c.uuid for c in log(Store(path))}) == view.last + 1
    assert Store(path).check() == []


KILLED = """
import sys
from ase import Atoms
from alchemy.store import Store
store = Store(sys.argv[1])
start = int(sys.argv[2])
print("ready", flush=True)
for i in range(start, start + 10000):
    store.append(structures=[Atoms("H", positions=[[i, 0, 0]])])
    print(i, flush=True)
    if i % 3 == 0:
        store.compact(full=i % 2 == 0)
"""


@pytest.mark.parametrize("runs", [5, pytest.param(100, marks=pytest.mark.slow)])
def test_a_process_killed_at_any_moment_loses_nothing_acknowledged(tmp_path, runs):
    path = tmp_path / "store.h5"
    rng = np.random.default_rng(1)
    start = 0
    for _ in range(runs):
        command = [sys.executable, "-c", KILLED, str(path), str(start)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0.02, 0.4))
        process.send_signal(signal.SIGKILL)
        said = process.communicate(timeout=60)[0].split("\n")
        acknowledged = [int(word) for word in said[:-1]]
        n = len(Store(path).snapshot())
        assert n >= (acknowledged[-1] + 1 if acknowledged else start)
        assert Store(path).snapshot().uids() == [structure_uid(hydrogen(i)) for i in range(n)]
        start = n
    assert start > 0
    assert Store(path).check() == []
