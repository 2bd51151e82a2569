"""Conditions of a campaign's label are part of its identity, and none is lost in silence."""

import numpy as np
import pytest
from ase.build import bulk
from ase.io import write

from alchemy.errors import StructureError
from alchemy.gate import Gate
from alchemy.generate import read_structures
from alchemy.labelers.ase_calculator import AseLabeler
from alchemy.labelers.label import label_structure
from alchemy.store import Store

LJ = "ase.calculators.lj.LennardJones"


def test_charge_spin_and_settings_of_the_calculation_make_different_labels(tmp_path, store):
    """Fields, electronic temperatures and the like are settings, which a template names."""
    from alchemy.stages.label import row_of

    charged, triplet = bulk("Ar"), bulk("Ar")
    charged.info["charge"], triplet.info["multiplicity"] = 1, 3
    frames = [bulk("Ar"), charged, triplet, bulk("Ar"), bulk("Ar")]
    arguments = [{}, {}, {}, {"epsilon": 2.0}, {}]
    levels = ["lj", "lj", "lj", "deeper", "lj"]  # a level is of one physics
    records = [
        label_structure(
            atoms, fidelity=level, labeler=AseLabeler(LJ, own), root=tmp_path / "labels", gate=Gate()
        )
        for atoms, own, level in zip(frames, arguments, levels, strict=True)
    ]
    assert len({record.key for record in records}) == 4
    assert records[4].key == records[0].key
    store.append(structures=frames, labels=[row_of(record) for record in records])
    view = Store(store.path).snapshot()
    assert len(view) == 3  # settings of a calculation are not the structure's
    assert (view.count("charge == 1 and fidelity == 'lj'"), view.count("multiplicity == 3")) == (1, 1)
    assert view.count("status is not None") == 4


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("electric_field", np.array([0.0, 0.0, 0.1])),
        ("electronic_temperature", 0.2),
        ("total_charge", 1.0),
        ("spin_multiplicity", 3.0),
        ("electric_field", 0.1),
    ],
)
def test_a_condition_in_a_file_that_labels_would_not_follow_is_refused(tmp_path, name, value):
    frames = [bulk("Cu"), bulk("Cu", cubic=True)]
    frames[1].info[name] = value
    write(tmp_path / "in.xyz", frames)
    with pytest.raises(StructureError, match=rf"in\.xyz, frame 1: .*{name}"):
        read_structures(tmp_path / "in.xyz", ":", ["Cu"])
    assert len(read_structures(tmp_path / "in.xyz", "0", ["Cu"])) == 1


def test_a_condition_that_says_nothing_new_is_no_hindrance(tmp_path):
    atoms = bulk("Cu")
    atoms.info |= {"charge": 1, "total_charge": 1.0, "electric_field": np.zeros(3)}
    write(tmp_path / "in.xyz", atoms)
    (found,) = read_structures(tmp_path / "in.xyz", ":", ["Cu"])
    assert found.info["charge"] == 1
