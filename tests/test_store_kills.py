"""Processes that die in the middle of an export, a repair, or beside other writers; a limit on file sizes."""

import itertools
import multiprocessing
import os
import random
import resource
import signal
import time

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from store_helpers import fill, hydrogen, label_of, told, water

from alchemy.errors import StoreError
from alchemy.identity import structure_uid
from alchemy.store import Store, export_extxyz, repair

FORK = multiprocessing.get_context("fork")  # a new interpreter would take seconds to import


def write_on(path, acknowledged, number):
    store, file = Store(path), os.open(acknowledged, os.O_WRONLY | os.O_CREAT)
    for i in itertools.count():
        store.append(structures=[hydrogen(i, number)])
        os.write(file, f"{i}\n".encode())


def export_on(path, target):
    while True:
        export_extxyz(Store(path).snapshot(), "", target, overwrite=True)


def repair_once(path):
    repair(Store(path))


def started(task, *arguments):
    process = FORK.Process(target=task, args=arguments)
    process.start()
    return process


def killed(process, after, how=signal.SIGKILL):
    time.sleep(after)
    os.kill(process.pid, how)
    process.join(60)


@pytest.mark.parametrize("runs", [2, pytest.param(30, marks=pytest.mark.slow)])
def test_an_export_that_is_killed_leaves_the_old_file_or_the_new_one(tmp_path, runs):
    store, path, rng = Store(tmp_path / "store.h5"), tmp_path / "all.xyz", random.Random(0)
    frames = [water(i / 100) for i in range(40)]
    store.append(structures=frames, labels=[label_of(a) for a in frames])
    for _ in range(runs):
        killed(started(export_on, store.path, path), rng.uniform(0.0, 0.2))
        if path.exists():
            assert len(ase.io.read(path, ":")) == 40
    assert store.check() == []


@pytest.mark.parametrize("runs", [2, pytest.param(30, marks=pytest.mark.slow)])
def test_a_repair_that_is_killed_is_finished_by_the_next_one(tmp_path, runs):
    store, rng = Store(tmp_path / "store.h5"), random.Random(1)
    uids = []
    for i in range(30):
        store.append(structures=[hydrogen(i)])
        uids.append(structure_uid(hydrogen(i)))
    for i in range(0, 30, 3):
        path = store.directory / f"c{i:010d}.h5"
        content = bytearray(path.read_bytes())
        content[5000:5004] = b"\xff" * 4  # metadata of HDF5: every row can be saved
        path.chmod(0o644)
        path.write_bytes(content)
    for _ in range(runs):
        killed(started(repair_once, store.path), rng.uniform(0.0, 0.2))
    repair(Store(store.path))
    again = Store(store.path)
    assert again.check() == []
    assert again.snapshot().uids() == uids


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_of_four_writers_one_dies_and_the_others_go_on(tmp_path, how):
    path = tmp_path / "store.h5"
    notes = [tmp_path / f"acknowledged{number}" for number in range(4)]
    writers = [started(write_on, path, note, number) for number, note in enumerate(notes)]
    killed(writers[0], 0.4, how)
    time.sleep(0.3)
    for writer in writers[1:]:
        assert writer.is_alive()
        killed(writer, 0.0)
    wanted = {
        structure_uid(hydrogen(int(line), number))
        for number, note in enumerate(notes)
        if note.exists()
        for line in note.read_text().split()
    }
    assert wanted, "somebody acknowledged something"
    store = Store(path)
    assert wanted <= set(store.snapshot().uids())
    assert len(store.snapshot()) - len(wanted) <= 4, "one commit of each may be there and not be acknowledged"
    assert store.check() == []
    before = len(store.snapshot())
    store.append(structures=[hydrogen(-1)])
    assert len(store.snapshot()) == before + 1


def test_a_limit_on_file_sizes_is_a_clean_error_and_nothing_is_lost(store):
    fill(store)
    truth = told(store.snapshot())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (1 << 12, 1 << 14):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(StoreError, match=r"cannot write the commit: .*File too large"):
                store.append(structures=[hydrogen(5)])
            with pytest.raises(StoreError, match=r"cannot compact: .*nothing is lost"):
                store.compact()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert told(Store(store.path).snapshot()) == truth
        assert not [name for name in os.listdir(store.directory) if name.startswith(".tmp")]
    assert store.append(structures=[hydrogen(5)]) == 8


def test_a_poscar_and_structures_at_the_edges_keep_their_identity(store, tmp_path):
    crystal = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    crystal.rattle(0.1, seed=0)
    many = Atoms("H10000", positions=np.arange(30000.0).reshape(-1, 3))
    heavy = Atoms("Og", positions=[[0.1, 0.2, 0.3]])
    store.append(structures=[crystal, many, heavy], labels=[label_of(many)])
    view = store.snapshot()
    assert [len(atoms) for atoms in view.structures(view.uids())] == [8, 10000, 1]
    stored = view.structure(view.uids()[0])
    ase.io.write(tmp_path / "POSCAR", stored, direct=False, format="vasp")
    assert structure_uid(ase.io.read(tmp_path / "POSCAR")) == view.uids()[0]
    assert view.select("'Og' in elements").uids == [structure_uid(heavy)]
    assert view.label(label_of(many).key).forces_eV_per_A.shape == (10000, 3)
    assert view.count("count('H') == 10000") == 1
