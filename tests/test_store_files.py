"""The store on disk: a commit is one file that never changes, and a snapshot is all up to one of them."""

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from store_helpers import commits, label_of, same, water

from alchemy.errors import StoreDamagedError, StoreError
from alchemy.identity import structure_uid
from alchemy.store import SplitRow, Store
from alchemy.store.filesystem import FileSystem
from alchemy.store.layout import build_image
from alchemy.store.rows import Batch
from alchemy.store.schema import encode
from alchemy.store.segment import Segment
from alchemy.store.structures import structure_block

ROOT = Path(__file__).parents[1]


def test_a_commit_is_one_new_read_only_file_and_old_ones_do_not_change(store):
    contents = {}
    for i in range(3):
        assert store.append(structures=[water(i / 10)]) == i
        assert commits(store) == [f"c{k:010d}.h5" for k in range(i + 1)]
        for path in store.directory.iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o444
            assert contents.setdefault(path, path.read_bytes()) == path.read_bytes()


def test_as_of_shows_the_store_as_it_was(store):
    for i in range(4):
        atoms = water(i / 10)
        split = SplitRow(structure_uid(water()), ["train", "test"][i % 2], float(i))
        store.append(structures=[atoms], labels=[label_of(atoms)], splits=[split])
    frozen = store.snapshot(as_of=1)
    store.append(structures=[water(9.0)])
    for again in (Store(store.path), store):
        for last in (-1, 0, 1, 2, 3):
            view = again.snapshot(as_of=last)
            assert (view.last, len(view), len(view.labels())) == (last, last + 1, last + 1)
            assert len(view.select("energy < 0")) == last + 1
    assert len(store.snapshot()) == 5
    assert len(frozen) == 2
    assert set(frozen.part_of().values()) == {"test"}
    with pytest.raises(StoreError, match="no commit 9; the last one is 4"):
        store.snapshot(as_of=9)
    with pytest.raises(StoreError, match="has no structure"):
        frozen.structure(structure_uid(water(9.0)))


def test_repeated_snapshots_open_no_file_again(store):
    store.append(structures=[water()])
    first = store.snapshot()
    assert store.snapshot() is first
    segments = first._segments
    store.append(structures=[water(0.1)])
    assert store.snapshot()._segments[0] is segments[0]


def test_stock_h5py_reads_a_commit_and_agrees_with_our_reader(store):
    atoms = water()
    label = label_of(atoms, properties={"dipole": np.ones(3), "charges": np.zeros(3)})
    store.append(structures=[atoms], labels=[label], registry={"é": {}})
    segment = Segment(FileSystem(), store.directory / "c0000000000.h5")
    seen = []

    def visit(name, item):
        if isinstance(item, h5py.Dataset):
            assert item.attrs["unit"]
            assert item.attrs["description"]
            assert item.chunks is None
            if name != "index":
                np.testing.assert_array_equal(item[()], segment[f"/{name}"])
                seen.append(f"/{name}")

    with h5py.File(segment.path, "r") as file:
        assert file.attrs["format"] == b"alchemy-store"
        assert file["labels/energy"].attrs["unit"] == b"eV"
        np.testing.assert_array_equal(file["labels/atoms/forces"][()], label.forces_eV_per_A)
        assert file["dict/key"].asstr()[0] == "é"
        file.visititems(visit)
    assert sorted(seen) == sorted(segment.paths())


def test_large_files_are_mapped_and_read_the_same(store, monkeypatch):
    monkeypatch.setattr("alchemy.store.segment.READ_WHOLE", 1000)
    atoms = water()
    store.append(structures=[atoms], labels=[label_of(atoms)])
    view = Store(store.path).snapshot()
    assert view.structures([structure_uid(atoms)]) == [atoms]
    assert same(view.labels()[0], label_of(atoms))
    assert store.check() == []


def merged(path, frames, *, lo, hi, kind):
    batch = Batch(structures=structure_block(frames))
    path.write_bytes(build_image(encode(batch), kind=kind, lo=lo, hi=hi))


def test_a_base_and_merged_files_replace_the_commits_they_cover(store):
    frames = [water(i / 10) for i in range(6)]
    for atoms in frames:
        store.append(structures=[atoms])
    uids = store.snapshot().uids()
    merged(store.path, frames[:2], lo=0, hi=1, kind="base")
    merged(store.directory / "m0000000002-0000000004.h5", frames[2:5], lo=2, hi=4, kind="merged")
    for again in (store, Store(store.path)):
        assert (again.snapshot().last, again.snapshot().uids()) == (5, uids)
    for i in range(5):
        (store.directory / f"c{i:010d}.h5").unlink()
    for again in (store, Store(store.path)):
        assert again.snapshot().uids() == uids
        assert again.snapshot(as_of=1).uids() == uids[:2]
        with pytest.raises(StoreError, match=r"commit 3 is inside m0000000002-0000000004\.h5"):
            again.snapshot(as_of=3)
        assert again.check() == []
    assert store.append(structures=[water(7.0)]) == 6


def test_a_newer_format_is_refused_and_says_so(store, monkeypatch):
    monkeypatch.setattr("alchemy.store.layout.FORMAT_VERSION", "2.0")
    store.append(structures=[water()])
    monkeypatch.undo()
    with pytest.raises(StoreError, match=r"format 2\.0 is newer than the 1\.2"):
        Store(store.path).snapshot()


WRITER = """
import sys
from ase import Atoms
from alchemy.store import Store
store = Store(sys.argv[1])
numbers = [store.append(structures=[Atoms("H", positions=[[i, int(sys.argv[2]), 0]]),
                                    Atoms("H", positions=[[i, 9, 0]])]) for i in range(10)]
print(*numbers)
"""


def test_two_writers_at_once_lose_nothing(tmp_path):
    path = tmp_path / "store.h5"
    command = [sys.executable, "-c", WRITER, str(path)]
    writers = [
        subprocess.Popen([*command, str(k)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        for k in (1, 2)
    ]
    numbers = [int(n) for writer in writers for n in writer.communicate(timeout=120)[0].split()]
    assert sorted(numbers) == list(range(20)), "every commit has its own number"
    view = Store(path).snapshot()
    assert view.last == 19
    # 10 of each writer and 10 that both tried to add
    assert len(view) == len(set(view.uids())) == 30
    assert Store(path).check() == []


def test_only_the_store_opens_hdf5_files_for_writing():
    """libhdf5 writing to a disk loses data silently or crashes when the disk is full."""
    pattern = re.compile(r"h5py\.File\((?!.*[\"']r[\"'])")
    folders = ("alchemy", "policies", "tace", "templates")
    guarded = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    found = [
        str(p)
        for p in guarded
        if pattern.search(p.read_text()) and p.parent != ROOT / "alchemy" / "store"
    ]
    assert found == []


def test_an_unknown_durability_is_refused(tmp_path):
    with pytest.raises(StoreError, match="fsync, nofsync"):
        Store(tmp_path / "store.h5", durability="maybe")


def test_a_missing_commit_is_named(store):
    for i in range(5):
        store.append(structures=[water(i / 10)])
    os.unlink(store.directory / "c0000000002.h5")
    again = Store(store.path)
    assert len(again.snapshot(as_of=1)) == 2
    for read in (again.snapshot, lambda: again.snapshot(as_of=4), lambda: again.append()):
        with pytest.raises(StoreDamagedError, match="commit 2 is missing"):
            read()
    assert any("commit 2 is missing" in problem for problem in again.check())
