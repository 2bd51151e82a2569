"""Repair saves every row that is sound, says what is lost, and throws nothing away."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from memory_fs import Refusing
from store_helpers import fill, hydrogen, label_of, same, told, water

from alchemy.errors import StoreDamagedError, StoreError
from alchemy.identity import structure_uid
from alchemy.store import Store, repair
from alchemy.store.bulk import Block
from alchemy.store.columns import TABLES
from alchemy.store.ids import id_bytes
from alchemy.store.layout import build_image
from alchemy.store.rows import Batch
from alchemy.store.schema import encode
from alchemy.store.segment import Segment
from alchemy.store.structures import structure_block


def damage(path, at, length=1):
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[at : at + length] = bytes(255 - b for b in data[at : at + length])
    path.write_bytes(data)


def large_store(store, n=3000):
    """One merged file whose positions and forces take several blocks of 64 KiB each."""
    rng = np.random.default_rng(0)
    frames = [water(0.001 * i) for i in range(n)]
    forces = rng.normal(size=(n, 3, 3))
    rows = [label_of(a, energy=float(i), forces_eV_per_A=forces[i]) for i, a in enumerate(frames)]
    store.append(structures=frames[: n // 2], labels=rows[: n // 2])
    store.append(structures=frames[n // 2 :], labels=rows[n // 2 :])
    store.compact()
    return frames, rows


def offset_of(path, name):
    segment = Segment(Store(path).fs, path, verify=False)
    return segment._index[name][2]


@pytest.mark.parametrize("lost", ["nothing", "header", "index"])
def test_only_the_rows_in_a_damaged_block_are_lost(store, lost):
    frames, rows = large_store(store)
    history = [c.uuid for c in store_log(store)]
    path = store.directory / "m0000000000-0000000001.h5"
    index_at = offset_of(path, "/labels/atoms/forces") + 70_000
    damage(path, index_at)
    if lost == "header":
        damage(path, 20)
    if lost == "index":
        damage(path, Segment(store.fs, path, verify=False).header["index"][0])
    with pytest.raises(StoreDamagedError, match="repair"):
        Store(store.path).snapshot().labels()
    result = repair(Store(store.path))
    again = Store(store.path)
    assert again.check() == []
    view = again.snapshot()
    per_block = 65536 // 72 + 2
    assert len(rows) - per_block <= len(view.labels()) < len(rows)
    assert len(view) == len(frames), "structures do not suffer from damaged forces"
    kept = {row.key: row for row in view.labels()}
    assert all(same(row, kept[row.key]) for row in rows if row.key in kept)
    assert sorted(result.lost_labels) == sorted(row.key for row in rows if row.key not in kept)
    assert result.lost_rows == len(rows) - len(kept)
    assert json.loads(Path(result.report).read_text())["lost_labels"] == result.lost_labels
    assert [c.uuid for c in store_log(again)] == history or lost == "header"
    assert any("m0000000000" in p.name for p in (store.directory / "quarantine").iterdir())
    store_goes_on(again)


def store_log(store):
    from alchemy.store import log

    return log(store)


def store_goes_on(store):
    store.append(structures=[hydrogen(77)])
    store.compact()
    assert Store(store.path).check() == []
    assert structure_uid(hydrogen(77)) in Store(store.path).snapshot()


def test_labels_of_a_lost_structure_are_lost_and_named(store):
    large_store(store)
    path = store.directory / "m0000000000-0000000001.h5"
    damage(path, offset_of(path, "/structures/atoms/positions") + 10)
    result = repair(Store(store.path))
    view = Store(store.path).snapshot()
    gone = {*result.lost_structures}
    assert 0 < len(gone) <= 65536 // 72 + 2
    assert len(result.lost_labels) == len(gone)
    assert not gone & {row.structure_uid for row in view.labels()}
    assert len(view) == len(view.labels()) == 3000 - len(gone)


def test_a_missing_commit_becomes_an_empty_one(store):
    for i in range(5):
        store.append(structures=[hydrogen(i)])
    (store.directory / "c0000000002.h5").unlink()
    (store.directory / "c0000000001.h5").unlink()
    result = repair(Store(store.path))
    assert result.lost_commits == [1, 2]
    assert Store(store.path).snapshot().uids() == [structure_uid(hydrogen(i)) for i in (0, 3, 4)]
    assert Store(store.path).append(structures=[hydrogen(1)]) == 5
    assert Store(store.path).check() == []


def test_a_file_that_others_make_up_for_is_only_moved_away(store):
    for i in range(3):
        store.append(structures=[hydrogen(i)])
    expected = told(store.snapshot())
    kept = {p.name: p.read_bytes() for p in store.directory.iterdir()}
    store.compact()
    for name, content in kept.items():
        (store.directory / name).write_bytes(content)
    damage(store.directory / "m0000000000-0000000002.h5", 9000)
    result = repair(Store(store.path))
    assert (result.lost_rows, sorted(result.replaced)) == (0, ["m0000000000-0000000002.h5", "store.h5"])
    assert told(Store(store.path).snapshot()) == expected
    store_goes_on(Store(store.path))


def test_repair_of_a_sound_store_does_nothing(store):
    fill(store)
    before = {p.name: p.stat().st_mtime_ns for p in store.directory.iterdir()}
    result = repair(store)
    assert (result.replaced, result.lost_rows, result.report) == ([], 0, "")
    assert {p.name: p.stat().st_mtime_ns for p in store.directory.iterdir()} == before


def test_after_any_damage_a_repaired_store_is_sound_and_holds_only_what_was_there(tmp_path):
    """Bits, pages, cuts and swaps; what is left is a subset of what was there, never something else."""
    original = Store(tmp_path / "a" / "store.h5", durability="nofsync")
    original.path.parent.mkdir()
    fill(original)
    truth = {row.key: row for view in [original.snapshot()] for row in view.labels(status=None)}
    uids = set(original.snapshot().uids())
    rng = random.Random(4)
    for trial in range(60):
        folder = tmp_path / f"t{trial}"
        shutil.copytree(tmp_path / "a", folder)
        store = Store(folder / "store.h5", durability="nofsync")
        if trial % 3 == 0:
            store.compact()
        victims = sorted(p for p in store.directory.iterdir() if p.name.endswith(".h5"))
        path = rng.choice(victims)
        size = path.stat().st_size
        if trial % 4 == 3:
            path.chmod(0o644)
            path.write_bytes(path.read_bytes()[: rng.randrange(size)])
        else:
            damage(path, rng.randrange(4096 if trial % 4 == 1 else size), rng.choice([1, 4096]))
        repair(Store(store.path))
        again = Store(store.path)
        assert again.check() == [], trial
        view = again.snapshot()
        assert view.last == 7
        assert set(view.uids()) <= uids
        # a retraction that is lost brings its label back, so only contents are compared
        assert all(same(row, truth[row.key]) for row in view.labels(status=None) if row.key in truth)


def test_a_disk_that_refuses_any_call_of_a_repair_makes_nothing_worse():
    for which in range(60):
        fs = Refusing(which, 28)
        store = Store("/store.h5", fs=fs)
        for i in range(3):
            store.append(structures=[hydrogen(i)])
        fs.inodes[fs.names["/store.h5.d/c0000000001.h5"]][9000] ^= 1
        fs.armed = True
        message = ""
        try:
            repair(store)
        except StoreError as error:
            message = str(error)
        fs.armed = False
        repair(Store("/store.h5", fs=fs))
        again = Store("/store.h5", fs=fs)
        assert again.check() == []
        assert {structure_uid(hydrogen(i)) for i in (0, 2)} <= set(again.snapshot().uids())
        if not message:
            break
    assert which > 5


def swapped(store):
    a, b = (store.directory / f"c000000000{i}.h5" for i in (1, 2))
    a.rename(store.path)
    b.rename(a)
    store.path.rename(b)


def copied(store):
    (store.directory / "c0000000005.h5").write_bytes((store.directory / "c0000000003.h5").read_bytes())


def renamed(store):
    store.compact()
    (store.directory / "m0000000000-0000000004.h5").rename(store.directory / "m0000000000-0000000007.h5")


@pytest.mark.parametrize(
    ("change", "words"),
    [(swapped, "renamed or moved"), (copied, "is a copy of"), (renamed, "so it was renamed")],
)
def test_files_in_the_wrong_place_are_reported(store, change, words):
    for i in range(5):
        store.append(structures=[hydrogen(i)])
    change(store)
    assert any(words in problem for problem in Store(store.path).check())


def sealed(store, **change):
    """A file whose bytes are as written, but whose contents cannot be."""
    block = structure_block([water()])
    block = Block(1, {**block.columns, **change}, {})
    store.directory.mkdir(exist_ok=True)
    image = build_image(encode(Batch(structures=block)), kind="commit")
    (store.directory / "c0000000000.h5").write_bytes(image)


def test_contents_that_cannot_be_are_reported(store):
    sealed(store, uid=id_bytes(["ab" * 16]))
    assert any("is not the uid of what is stored" in p for p in store.check())
    (store.directory / "c0000000000.h5").unlink()
    stray = label_of(hydrogen(1), fidelity="x")
    datasets = encode(Batch(structures=structure_block([water()]), labels=[stray]))
    codes = datasets["/labels/fidelity"]
    datasets["/labels/fidelity"] = codes._replace(array=codes.array + 9)
    (store.directory / "c0000000000.h5").write_bytes(build_image(datasets, kind="commit"))
    problems = "\n".join(store.check())
    assert "/labels/fidelity: a code is not in /dict/fidelity" in problems
    datasets["/labels/fidelity"] = codes
    (store.directory / "c0000000000.h5").write_bytes(build_image(datasets, kind="commit"))
    assert f"there is no structure {structure_uid(hydrogen(1))}" in "\n".join(Store(store.path).check())


def test_every_table_has_its_rows_counted_by_commit(store):
    fill(store)
    store.compact()
    merged = Segment(store.fs, store.path)
    assert {f"/commits/rows/{table}" for table in TABLES} <= set(merged.paths())


def test_a_store_of_format_1_0_is_compacted_and_repaired(tmp_path):
    from test_store_labels import GOLDEN

    shutil.copytree(GOLDEN, tmp_path / "old")
    store = Store(tmp_path / "old" / "store.h5", durability="nofsync")
    before = [told(store.snapshot(as_of=k)) for k in range(3)]
    store.compact()
    assert [told(Store(store.path).snapshot(as_of=k)) for k in range(3)] == before
    assert Store(store.path).check() == []
