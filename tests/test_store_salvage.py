"""Reading what is sound beside what is not, and without mapping; and a harness that sees lost commits."""

import errno
import mmap
import os
import pickle

import pytest
from memory_fs import MemoryFileSystem
from store_helpers import fill, hydrogen, label_of, told

from alchemy.errors import StoreDamagedError, StoreError
from alchemy.identity import structure_uid
from alchemy.store import SplitRow, Store
from alchemy.store import filesystem as disk


def break_at(path, at, data=b"\0" * 64):
    content = bytearray(path.read_bytes())
    content[at : at + len(data)] = data
    path.unlink()  # other names of the file stay what they are
    path.write_bytes(content)


def contents(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*.h5"))}


def test_a_damaged_second_name_stops_nobody_and_the_next_compaction_makes_it_anew(store):
    fill(store)
    store.compact()
    truth = told(store.snapshot())
    break_at(store.path, 0)
    again = Store(store.path)
    assert told(again.snapshot()) == truth
    assert any("store.h5: header" in problem for problem in again.check())
    assert again.append(structures=[hydrogen(9)]) == 8
    again.compact()
    assert again.check() == []
    assert len(Store(store.path).snapshot()) == len(again.snapshot())


def test_a_damaged_file_that_nothing_makes_up_for_is_never_passed_over(store):
    """Stale commits beside it would look like the whole store, and the next append would take its numbers."""
    for i in range(4):
        store.append(structures=[hydrogen(i)])
    early = {p: p.read_bytes() for p in store.directory.glob("c000000000[01].h5")}
    store.compact()
    for path in store.directory.glob("m*.h5"):
        path.unlink()
    break_at(store.path, 0)
    for files in ({}, early):
        for path, data in files.items():
            path.write_bytes(data)
        again = Store(store.path)

        def append(again=again):
            again.append(structures=[hydrogen(9)])

        for work in (again.snapshot, append, again.compact):
            with pytest.raises(StoreDamagedError, match=r"store\.h5: header: .*data repair"):
                work()


def test_of_a_damaged_store_the_rest_is_read_when_asked_and_what_is_left_out_is_said(store, run, tmp_path):
    frames = [hydrogen(i) for i in range(6)]
    uids = [structure_uid(a) for a in frames]
    for i, atoms in enumerate(frames):
        splits = [SplitRow(uids[i], "train", 0.0)] if i != 2 else []
        store.append(structures=[atoms], labels=[label_of(atoms)], splits=splits)
    late = label_of(frames[2], "ccsd")
    store.append(labels=[late, label_of(frames[3], "ccsd")], splits=[SplitRow(uids[2], "test", 0.0)])
    break_at(store.directory / "c0000000002.h5", 20000)
    (store.directory / "c0000000004.h5").unlink()
    before = contents(store.path.parent)
    with pytest.raises(StoreDamagedError, match=r"commit 4 is missing.*'alchemy data repair'"):
        store.snapshot()
    view, problems = Store(store.path).salvage()
    assert view.uids() == [uids[i] for i in (0, 1, 3, 5)]
    assert {(r.structure_uid, r.fidelity) for r in view.labels()} == {
        *((uids[i], "pbe") for i in (0, 1, 3, 5)),
        (uids[3], "ccsd"),
    }
    assert view.part_of() == {uids[i]: "train" for i in (0, 1, 3, 5)}, "not of what is lost"
    assert any("c0000000002.h5" in text and "left out" in text for text in problems)
    assert any("commits 4 to 4 are missing" in text for text in problems)
    code, out, err = run("data", "query", store.path, "fidelity == 'pbe'", "--count", "--salvage")
    assert (code, out, "warning: " in err) == (0, "4\n", True)
    assert run("data", "query", store.path)[0] == 2
    code, out, err = run("data", "export", store.path, tmp_path / "rest.xyz", "--salvage")
    assert (code, "5 labelled structures" in out) == (0, True), err
    assert contents(store.path.parent) == before


def test_of_a_sound_store_salvage_is_all_of_it(store):
    fill(store)
    view, problems = store.salvage()
    assert problems == []
    assert told(view) == told(store.snapshot())


def test_without_mapping_the_same_is_read_and_a_failing_server_is_an_error(store, monkeypatch):
    fill(store)
    store.compact()
    monkeypatch.setattr("alchemy.store.segment.READ_WHOLE", 100)  # small files would be read whole anyway
    truth = told(Store(store.path, io="mmap").snapshot())

    def refuse(*_, **__):
        raise AssertionError("mapped")

    monkeypatch.setattr(mmap, "mmap", refuse)
    with pytest.raises(AssertionError, match="mapped"):
        Store(store.path, io="mmap").snapshot()
    reading = pickle.loads(pickle.dumps(Store(store.path, io="pread")))
    assert told(reading.snapshot()) == truth
    assert reading.check() == []
    lost = Store(store.path, io="pread")
    view = lost.snapshot()

    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    lost.fs.pread = fail
    with pytest.raises(StoreError, match=r"cannot read: .*Input/output error"):
        view.labels()
    with pytest.raises(StoreError, match="use one of auto, mmap, pread"):
        Store(store.path, io="maybe")


def test_network_file_systems_are_recognised(tmp_path):
    mounts = tmp_path / "mounts"
    mounts.write_text(
        f"/dev/sda / ext4 rw 0 0\nserver:/x {tmp_path} nfs4 rw 0 0\nother {tmp_path}/local ext4 rw 0 0\n"
    )
    for name, remote in (("store.h5", True), ("local/store.h5", False), ("localities/store.h5", True)):
        assert disk.is_remote(tmp_path / name, str(mounts)) is remote, name
    assert not disk.is_remote(tmp_path / "store.h5", str(tmp_path / "none"))


class Meddling(MemoryFileSystem):
    """Between the moment that a writer chose its number and the one when it takes it, another commits."""

    def __init__(self):
        super().__init__()
        self.meddle = None

    def _before(self, target):
        if self.meddle and str(target).rpartition("/")[2].startswith("c"):
            work, self.meddle = self.meddle, None
            work()

    def link(self, source, target):
        self._before(target)
        super().link(source, target)

    def replace(self, source, target):
        self._before(target)
        super().replace(source, target)


@pytest.mark.parametrize("how", ["link", "rename"])
def test_two_writers_lose_commits_when_names_are_taken_by_rename_and_none_with_link(monkeypatch, how):
    """Shows that the race is really run: the harness has to see what the obvious way loses."""
    if how == "rename":

        def by_rename(fs, temporary, final):
            fs.replace(temporary, final)
            return True

        monkeypatch.setattr(disk, "publish", by_rename)
    fs = Meddling()
    one, other = (Store("/store.h5", fs=fs) for _ in range(2))
    for i in range(20):
        fs.meddle = lambda i=i: other.append(structures=[hydrogen(i, 1)])
        one.append(structures=[hydrogen(i)])
    found = len(Store("/store.h5", fs=fs).snapshot())
    assert found == 40 if how == "link" else found < 40
