"""Rows for a store, and what it has on disk."""

import numpy as np
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator

from alchemy.identity import label_key, structure_uid
from alchemy.store import (
    EventRow,
    FailureRow,
    LabelRow,
    PredictionRow,
    PropertySpec,
    RetractionRow,
    SplitRow,
)

TABLES = ("structures", "labels", "events", "failures", "predictions")


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


def in_conditions(atoms, *, energy=-1.5, **conditions):
    uid = structure_uid(atoms)
    arrays = {name: np.asarray(value, float) for name, value in conditions.items()}
    key = label_key(uid, "pbe", "f" * 32, 0, arrays)
    return label_of(atoms, key=key, conditions=arrays, energy=energy)


def hydrogen(i, y=0):
    return Atoms("H", positions=[[i, y, 0]])


def fill(store):
    """Eight commits with every kind of row, named quantities in some of them only."""
    pd = bulk("Pd", cubic=True)
    pd.set_tags([1, 2, 3, 4])
    frames = [water(), pd, water(0.2), hydrogen(1)]
    uid = [structure_uid(a) for a in frames]
    quadrupole = PropertySpec("atom", (3, 3), "e*A^2", "quadrupoles")
    first = label_of(frames[0], properties={"charges": np.ones(3), "hessian": np.eye(9)})
    store.append(structures=frames[:1], labels=[first], events=[EventRow(uid[0], "start", time=0.0)])
    store.append(structures=frames[1:2], splits=[SplitRow(uid[1], "test", 0.0)])
    store.append(
        labels=[label_of(pd, "gfn2", properties={"q": np.ones((4, 3, 3)), "dipole": np.ones(3)})],
        quantities={"q": quadrupole},
    )
    store.append(failures=[FailureRow(uid[0], "label", "é", "scf", "two\nlines", 1, 0.0)])
    store.append(
        structures=frames[2:],
        predictions=[PredictionRow(uid[0], "m", "pbe", -1.0, 0.1, 0.2, np.ones(3))],
        registry={"m": {"a": 1}},
    )
    store.append(labels=[label_of(frames[2], "é2", status="failed", energy=None, forces_eV_per_A=None)])
    store.append(retractions=[RetractionRow(first.key, "wrong", 0.0)])
    last = label_of(frames[2], stress_eV_per_A3=np.ones(6))
    store.append(labels=[last], splits=[SplitRow(uid[1], "train", 1.0)])


def told(view):
    """All that a snapshot says."""
    tables = [
        str(list(view.select("", rows=rows, columns=list(view.fields(rows))).rows())) for rows in TABLES
    ]
    frames = [(a.info, {n: v.tolist() for n, v in a.arrays.items()}) for a in view.structures(view.uids())]
    return view.last, view.uids(), tables, frames, view.part_of(), view.registry(), view.quantities()


def labelled_frames(n=3):
    rng = np.random.default_rng(0)
    frames = []
    for i in range(n):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.05, seed=i)
        results = {"energy": -1.0 - i, "forces": rng.normal(size=(4, 3)), "stress": rng.normal(size=6)}
        atoms.calc = SinglePointCalculator(atoms, **results)
        atoms.info["dipole"] = rng.normal(size=3)
        atoms.arrays["born_charges"] = rng.normal(size=(4, 9))
        atoms.arrays["charges"] = rng.normal(size=4)
        atoms.info["electric_field"] = np.array([0.0, 0.0, 0.1 * i])
        frames.append(atoms)
    return frames
