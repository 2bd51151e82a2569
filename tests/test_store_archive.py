"""Archives: the whole store in one small file that any HDF5 reader opens and that becomes a store again."""

import h5py
import numpy as np
import pytest
from store_helpers import fill, hydrogen, label_of, told

from alchemy.errors import InputError, StoreError
from alchemy.store import Store, diff, merge_into
from alchemy.store.archive import open_archive, write_archive


def test_an_archive_says_what_the_store_says_and_becomes_a_store_again(store, tmp_path, run):
    fill(store)
    store.compact(full=False)
    store.append(structures=[hydrogen(7)], labels=[label_of(hydrogen(7), "pbe")])
    path = tmp_path / "all.h5"
    code, out, _ = run("data", "compact", store.path, "--archive", path)
    assert (code, str(path) in out) == (0, True)
    truth = store.snapshot()
    assert told(open_archive(path)) == told(truth)
    assert truth.commit_uuids() == open_archive(path).commit_uuids()
    code, _, err = run("data", "merge", tmp_path / "new.h5", path)
    assert code == 0, err
    assert not any(diff(truth, Store(tmp_path / "new.h5").snapshot()).values())
    code, _, err = run("data", "query", path)
    assert (code, "is an archive; 'alchemy data merge NEW.h5" in err) == (2, True)
    assert "give another name" in run("data", "compact", store.path, "--archive", path)[2]
    assert run("data", "compact", store.path, "--archive", path, "--force", "--json")[0] == 0
    assert sorted(p.name for p in tmp_path.glob("*all*")) == ["all.h5"]


def test_an_archive_is_plain_hdf5_with_gzip_and_smaller_than_the_store(store, tmp_path):
    frames = [hydrogen(i) for i in range(2000)]
    store.append(structures=frames, labels=[label_of(a) for a in frames])
    store.compact()
    size = write_archive(store, tmp_path / "a.h5")
    assert size == (tmp_path / "a.h5").stat().st_size < store.path.stat().st_size / 2
    with h5py.File(tmp_path / "a.h5") as archive, h5py.File(store.path) as base:
        forces = archive["labels/atoms/forces"]
        assert (forces.compression, forces.shuffle, forces.fletcher32) == ("gzip", True, True)
        assert forces.attrs["unit"] == "eV/Angstrom"
        np.testing.assert_array_equal(forces[()], base["labels/atoms/forces"][()])


def test_an_archive_that_is_damaged_newer_or_nothing_is_refused(store, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="nothing to archive"):
        write_archive(store, tmp_path / "a.h5")
    frames = [hydrogen(i) for i in range(500)]
    store.append(structures=frames, labels=[label_of(a) for a in frames])
    with pytest.raises(InputError, match="there is no folder"):
        write_archive(store, tmp_path / "no" / "a.h5")
    path = tmp_path / "a.h5"
    write_archive(store, path)
    with h5py.File(path) as file:
        at = file["labels/atoms/forces"].id.get_chunk_info(0).byte_offset + 20
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    with pytest.raises(StoreError, match=r"/labels/atoms/forces: cannot be unpacked"):
        merge_into(Store(tmp_path / "new.h5"), open_archive(path))
    path.write_bytes(data[:3000])
    with pytest.raises(StoreError, match="not an archive of a store, or damaged"):
        open_archive(path)
    monkeypatch.setattr("alchemy.store.layout.FORMAT_VERSION", "2.0")
    write_archive(store, path, overwrite=True)
    monkeypatch.undo()
    with pytest.raises(StoreError, match=r"format 2\.0 is newer"):
        open_archive(path)
