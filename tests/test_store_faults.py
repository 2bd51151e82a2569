"""Laws of the store when something breaks: nothing acknowledged is lost, nothing damaged is read.

Faults are injected at the system calls. Random kills find one bad state in three hundred;
enumerating every call finds all of them.
"""

import errno
import os
import random

import pytest
from ase import Atoms

from alchemy.errors import StoreDamagedError, StoreError
from alchemy.identity import structure_uid
from alchemy.store import LabelRow, SplitRow, Store
from alchemy.store.filesystem import FileSystem


class KilledError(BaseException):
    """The process is gone: not even clean-up code runs any more."""


class FaultyFileSystem(FileSystem):
    """Calls `fault(name, number, arguments)` before every system call and keeps the names."""

    def __init__(self, fault=None):
        self.calls = []
        self.fault = fault or (lambda name, number, arguments: None)

    def __getattribute__(self, name):
        real = object.__getattribute__(self, name)
        if name not in vars(FileSystem):
            return real

        def call(*arguments, **options):
            self.calls.append(name)
            instead = self.fault(name, len(self.calls) - 1, arguments)
            return real(*arguments, **options) if instead is None else instead

        return call


def kill_at(limit):
    """Dies at call `limit`, a write being half done."""

    def fault(name, number, arguments):
        if number == limit and name == "pwrite":
            fd, data, offset = arguments
            os.pwrite(fd, data[: len(data) // 2], offset)
        if number >= limit:
            raise KilledError

    return fault


def hydrogen(i):
    return Atoms("H", positions=[[i, 0, 0]])


def uid(i):
    return structure_uid(hydrogen(i))


@pytest.fixture(autouse=True)
def small_writes(monkeypatch):
    """A commit of 18 kB then takes several writes, so that faults can come between them."""
    monkeypatch.setattr("alchemy.store.layout.WRITE_CHUNK", 8192)


def run(store, done, n=3):
    for i in range(n):
        store.append(structures=[hydrogen(i)], splits=[SplitRow(uid(i), "train", 0.0)])
        done.append(i)


def test_a_kill_at_any_system_call_loses_no_acknowledged_row(tmp_path):
    counting = FaultyFileSystem()
    run(Store(tmp_path / "count.h5", fs=counting), [])
    assert len(counting.calls) > 50
    for limit in range(len(counting.calls)):
        path, done = tmp_path / f"{limit}.h5", []
        with pytest.raises(KilledError):
            run(Store(path, fs=FaultyFileSystem(kill_at(limit))), done)
        again = Store(path)
        view = again.snapshot()
        # a commit can be complete although its writer died before it could say so
        assert view.uids() in ([uid(i) for i in done], [uid(i) for i in range(len(done) + 1)])
        assert set(view.part_of()) == set(view.uids()), "a commit is all or nothing"
        assert again.check() == []
        run(again, [])
        assert Store(path).snapshot().uids() == [uid(i) for i in range(3)]


def test_a_commit_is_synced_before_it_has_a_name_and_its_name_before_it_is_acknowledged(tmp_path):
    """What a power cut may drop is what was not synced; so the order of the calls is the law."""
    fs = FaultyFileSystem()
    Store(tmp_path / "store.h5", fs=fs).append(structures=[hydrogen(0)])
    calls = [c for c in fs.calls if c in ("makedirs", "pwrite", "fchmod", "fsync", "link")]
    writes = ["pwrite"] * calls.count("pwrite")
    assert calls == ["makedirs", "fsync", *writes, "fchmod", "fsync", "link", "fsync"]


def test_a_torn_temporary_file_is_ignored(tmp_path):
    store = Store(tmp_path / "store.h5")
    store.append(structures=[hydrogen(0)])
    whole = (store.directory / "c0000000000.h5").read_bytes()
    for i, size in enumerate((0, 10, 5000, len(whole))):
        (store.directory / f".tmp-{i:032x}").write_bytes(whole[:size])
    (store.directory / "notes.txt").write_text("not ours")
    again = Store(store.path)
    assert again.snapshot().uids() == [uid(0)]
    assert again.check() == []
    assert again.append(structures=[hydrogen(1)]) == 1


def fail_at(which, code):
    """Call number `which` of a commit fails once; calls of reading are not counted."""
    started = []

    def fault(name, number, arguments):
        if name == "makedirs":
            started.append(number)
        if started and number == started[0] + which and name != "unlink":
            if name == "close":
                os.close(arguments[0])
            raise OSError(code, os.strerror(code))

    return fault


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_refused_system_call_is_a_clean_error_and_changes_nothing(tmp_path, code):
    store = Store(tmp_path / "store.h5")
    store.append(structures=[hydrogen(0)])
    before = sorted(os.listdir(store.directory))
    for which in range(100):
        fs = FaultyFileSystem(fail_at(which, code))
        writer = Store(store.path, fs=fs)
        message = None
        try:
            writer.append(structures=[hydrogen(1)])
        except StoreError as error:
            message = str(error)
        names = fs.calls[fs.calls.index("makedirs") :]
        if message is None and which >= len(names):
            break
        # removing the temporary file may fail without harm
        assert names[which] == "unlink" if message is None else os.strerror(code) in message
        if "link" not in names:
            assert sorted(os.listdir(store.directory)) == before, "no file is left over"
            assert writer.snapshot().uids() == [uid(0)]
        fresh = Store(store.path)
        assert fresh.check() == []
        assert fresh.snapshot().uids()[0] == uid(0)
        for path in store.directory.iterdir():
            if path.name not in before:
                path.unlink()
    assert which > 10
    assert store.append(structures=[hydrogen(2)]) == 2, "writing goes on where it failed"


def test_a_full_disk_is_noticed_before_anything_is_written(tmp_path):
    class Full:
        f_bavail, f_frsize = 1, 4096

    fs = FaultyFileSystem(lambda name, number, arguments: Full() if name == "statvfs" else None)
    store = Store(tmp_path / "store.h5", fs=fs)
    with pytest.raises(StoreError, match="no room for"):
        store.append(structures=[hydrogen(0)])
    assert "pwrite" not in fs.calls
    assert store.snapshot().last == -1


def test_short_writes_are_continued(tmp_path):
    def short(name, number, arguments):
        if name == "pwrite":
            fd, data, offset = arguments
            return os.pwrite(fd, data[:1000], offset)
        return None

    store = Store(tmp_path / "store.h5", fs=FaultyFileSystem(short))
    store.append(structures=[hydrogen(0)])
    assert Store(store.path).check() == []
    assert Store(store.path).snapshot().uids() == [uid(0)]


@pytest.mark.parametrize("code", [errno.EEXIST, errno.EIO])
def test_a_link_whose_reply_got_lost_counts_as_made(tmp_path, code):
    """NFS repeats a call whose reply it missed; the repeated one then fails."""

    def lost(name, number, arguments):
        if name == "link":
            os.link(*arguments)
            raise OSError(code, os.strerror(code))

    store = Store(tmp_path / "store.h5", fs=FaultyFileSystem(lost))
    assert store.append(structures=[hydrogen(0)]) == 0
    assert store.append(structures=[hydrogen(1)]) == 1
    assert sorted(os.listdir(store.directory)) == ["c0000000000.h5", "c0000000001.h5"]


def test_a_number_taken_meanwhile_is_not_overwritten(tmp_path):
    """The other writer commits between our look at the directory and our link."""
    path = tmp_path / "store.h5"
    others = iter(range(10, 13))

    def overtake(name, number, arguments):
        if name == "link" and (i := next(others, None)) is not None:
            Store(path).append(structures=[hydrogen(i)])

    store = Store(path, fs=FaultyFileSystem(overtake))
    assert store.append(structures=[hydrogen(0)]) == 3
    assert sorted(Store(path).snapshot().uids()) == sorted(uid(i) for i in (0, 10, 11, 12))


def test_a_failed_label_that_lost_a_race_does_not_hide_the_ok_one(tmp_path):
    path = tmp_path / "store.h5"
    Store(path).append(structures=[hydrogen(0)])

    def label(status, energy):
        return LabelRow(
            key="a" * 32,
            structure_uid=uid(0),
            fidelity="pbe",
            fingerprint="f" * 32,
            status=status,
            code="test",
            energy_eV=energy,
            energy_kind="total",
            forces_eV_per_A=None,
            stress_eV_per_A3=None,
            wall_s=0.0,
            cpu_s=0.0,
            created=0.0,
        )

    def overtake(name, number, arguments):
        if name == "link":
            Store(path).append(labels=[label("ok", -1.0)])

    Store(path, fs=FaultyFileSystem(overtake)).append(labels=[label("failed", float("nan"))])
    view = Store(path).snapshot()
    assert view.last == 2
    assert [row.energy_eV for row in view.labels(status=None)] == [-1.0]


def test_a_listing_that_misses_a_new_commit_is_read_again(tmp_path):
    path = tmp_path / "store.h5"
    run(Store(path), [])
    stale = iter([["c0000000000.h5", "c0000000002.h5"]])
    fs = FaultyFileSystem(lambda name, n, a: next(stale, None) if name == "listdir" else None)
    assert Store(path, fs=fs).snapshot().last == 2


@pytest.mark.parametrize("code", [errno.ESTALE, errno.ENOENT])
def test_a_file_that_was_merged_away_meanwhile_is_looked_for_again(tmp_path, code):
    path = tmp_path / "store.h5"
    run(Store(path), [])
    gone = iter([True])

    def fault(name, number, arguments):
        if name == "open" and str(arguments[0]).endswith("c0000000001.h5") and next(gone, False):
            raise OSError(code, os.strerror(code))

    assert Store(path, fs=FaultyFileSystem(fault)).snapshot().last == 2


def flip(path, bit):
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[bit >> 3] ^= 1 << (bit & 7)
    path.write_bytes(data)


def test_every_flipped_bit_is_reported_and_never_read(tmp_path):
    store = Store(tmp_path / "store.h5", durability="nofsync")
    run(store, [])
    rng = random.Random(5)
    for trial in range(200):
        path = store.directory / f"c{trial % 3:010d}.h5"
        # a third of them in the header, which is a quarter of the file
        size = 4096 if trial % 9 < 3 else path.stat().st_size
        bit = rng.randrange(8 * size)
        flip(path, bit)
        problems = Store(store.path).check()
        assert problems, bit
        assert all(path.name in problem for problem in problems)
        with pytest.raises(StoreDamagedError, match=path.name):
            Store(store.path).snapshot()
        flip(path, bit)
    assert Store(store.path).check() == []


def test_a_flipped_bit_is_traced_to_its_dataset(tmp_path):
    store = Store(tmp_path / "store.h5")
    store.append(structures=[hydrogen(1.23456789)])
    before = store.snapshot()
    path = store.directory / "c0000000000.h5"
    at = path.read_bytes().index(hydrogen(1.23456789).positions.tobytes())
    flip(path, 8 * at + 3)
    (problem,) = Store(store.path).check()
    assert f"{path}: /structures/atoms/positions: " in problem
    assert before.structure(before.uids()[0]) == hydrogen(1.23456789), "read before the damage"


def test_truncated_and_swapped_in_files_are_reported(tmp_path):
    store = Store(tmp_path / "store.h5")
    run(store, [])
    path = store.directory / "c0000000001.h5"
    whole = path.read_bytes()
    path.chmod(0o644)
    for content in (b"", whole[:100], whole[:4096], whole[:-1], whole + b"\0", b"x" * len(whole)):
        path.write_bytes(content)
        assert any("c0000000001.h5" in problem for problem in Store(store.path).check())
        with pytest.raises(StoreDamagedError, match=r"c0000000001\.h5"):
            Store(store.path).snapshot()
    assert Store(store.path).snapshot(as_of=0).uids() == [uid(0)], "what came before is readable"
    path.write_bytes(whole)
    assert Store(store.path).check() == []


def test_a_damaged_base_is_reported_with_the_rest(tmp_path):
    store = Store(tmp_path / "store.h5")
    run(store, [])
    store.path.write_bytes(b"ALCHSEG1" + bytes(5000))
    (problem,) = store.check()
    assert "store.h5: header" in problem
    with pytest.raises(StoreDamagedError, match="header"):
        store.snapshot()
