"""A store without a campaign is data for `tace train` as it is."""

import numpy as np
import pytest
from ase import Atoms
from store_helpers import in_conditions, label_of, water

from alchemy.identity import structure_uid
from alchemy.store import SplitRow, Store
from tace.errors import DataError
from tace.readers import Source, read_dataset


@pytest.fixture
def filled(store):
    frames = [water(0.1 * i) for i in range(4)]
    own = [{"dipole": np.full(3, i), "weight": np.array(2.0)} for i in range(4)]
    dipoles = [label_of(a, properties=p) for a, p in zip(frames, own, strict=True)]
    atoms = [Atoms(s, positions=[[0, 0, 0]]) for s in "HO"]
    splits = [SplitRow(structure_uid(a), "isolated", 0.0) for a in atoms]
    uids = [structure_uid(a) for a in frames]
    splits += [SplitRow(uids[0], "test", 0.0), SplitRow(uids[1], "train", 0.0)]
    rows = [*dipoles, in_conditions(frames[3], electric_field=[0, 0, 0.1]), label_of(frames[2], "gfn2")]
    rows += [label_of(a, energy=-10.0 - i) for i, a in enumerate(atoms)]
    store.append(structures=[*frames, *atoms], labels=rows, splits=splits)
    return store


def test_all_labels_conditions_weights_and_parts_come_along(filled):
    for path in (filled.path, filled.directory):
        data = read_dataset([path])
        assert data.fidelities == ("gfn2", "pbe")
        assert data.elements == (1, 8)
        assert data.e0_eV == {"pbe": {1: -10.0, 8: -11.0}}
        assert len(data.test) == 1
        assert [f.fidelity for f in data.frames].count("pbe") == 4
        assert sum("dipole" in f.labels for f in data.frames) == 3
        assert sorted(f.weight for f in data.frames) == [1.0, 1.0, 2.0, 2.0, 2.0]
        (field,) = [f for f in data.frames if "electric_field" in f.atoms.info]
        assert field.atoms.info["electric_field"].tolist() == [0, 0, 0.1]
    only = read_dataset([Source(filled.path, options={"fidelities": ["gfn2"]})])
    assert only.fidelities == ("gfn2",)


def test_after_compaction_the_file_alone_is_data(filled, tmp_path):
    filled.compact()
    (tmp_path / "sent").mkdir()
    copy = tmp_path / "sent" / "set.h5"
    copy.write_bytes(filled.path.read_bytes())
    assert len(read_dataset([copy]).frames) == 5


def test_other_hdf5_files_are_not_taken_for_stores(tmp_path, store):
    (tmp_path / "other.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(DataError, match=r"other\.h5"):
        read_dataset([tmp_path / "other.h5"])
    store.append(structures=[water()])
    with pytest.raises(DataError, match="holds no labels to train on"):
        read_dataset([store.path])
    assert isinstance(store, Store)
