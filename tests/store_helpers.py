"""Rows for a store, and what it has on disk."""

import numpy as np
from ase.build import molecule

from alchemy.identity import label_key, structure_uid
from alchemy.store import LabelRow


def water(shift=0.0):
    atoms = molecule("H2O")
    atoms.positions[0, 0] += shift
    return atoms


def label_of(atoms, fidelity="pbe", *, status="ok", energy=-1.5, **values):
    uid = structure_uid(atoms)
    rng = np.random.default_rng(len(atoms))
    given = {
        "key": label_key(uid, fidelity, "f" * 32, values.get("replica", 0)),
        "structure_uid": uid,
        "fidelity": fidelity,
        "fingerprint": "f" * 32,
        "status": status,
        "code": "test 1.0",
        "energy_eV": energy,
        "energy_kind": "total",
        "forces_eV_per_A": rng.normal(size=(len(atoms), 3)),
        "stress_eV_per_A3": None,
        "wall_s": 1.0,
        "cpu_s": 2.0,
        "created": 3.0,
    }
    return LabelRow(**(given | values))


def same(a, b):
    """Equality of rows; NaN equals NaN and arrays are compared by value."""
    for name, value in vars(a).items():
        other = getattr(b, name)
        if name in ("properties", "conditions"):
            assert value.keys() == other.keys()
            for key in value:
                np.testing.assert_array_equal(value[key], other[key])
        elif value is None or other is None:
            assert value is other, name
        elif isinstance(value, str):
            assert value == other, name
        else:
            np.testing.assert_array_equal(value, other, err_msg=name)
    return True


def commits(store):
    return sorted(path.name for path in store.directory.iterdir())
