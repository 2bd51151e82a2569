"""Queries of a store, and the frames that are exported from it."""

import json

import ase.io
import numpy as np
import pytest
from ase.build import bulk
from store_helpers import label_of, water

from alchemy.errors import InputError, QueryError
from alchemy.identity import structure_uid
from alchemy.store import EventRow, FailureRow, PredictionRow, SplitRow, Store, export_extxyz


def test_select_joins_structures_labels_and_births(store):
    pd = bulk("Pd", cubic=True)
    frames = [water(), pd, water(0.3)]
    uids = [structure_uid(a) for a in frames]
    big = label_of(pd, energy=-8.0, stress_eV_per_A3=np.ones(6))
    failed = label_of(frames[2], status="failed", energy=np.nan, forces_eV_per_A=None)
    store.append(structures=frames, events=[EventRow(uids[0], "start", sampler="file", time=0.0)])
    store.append(
        labels=[label_of(frames[0]), big, failed],
        splits=[SplitRow(uids[1], "test", 0.0)],
        events=[EventRow(uids[1], "candidate", sampler="md", round=2, time=0.0)],
        failures=[FailureRow("f" * 32, "explore", "", "exploded", "T > 1e5 K", 1, 0.0)],
        predictions=[PredictionRow(uids[0], "m", "pbe", -1.0, 0.1, 0.5, np.ones(3))],
    )
    view = store.snapshot()

    def found(expression, **options):
        return [uids.index(uid) for uid in view.select(expression, **options).uids]

    assert found("'Pd' in elements") == [1]
    assert found("count('H') == 2 and not 'Pd' in elements") == [0, 2]
    assert found("periodic and volume > 50") == [1]
    assert found("volume is None") == [0, 2]
    assert found("sampler == 'md' and round == 2 and split == 'test'") == [1]
    assert found("round is None") == [0, 2]
    assert found("status != 'ok'") == [2]
    assert found("energy is None and max_force is None") == [2]
    assert found("has_stress and energy_per_atom == -2") == [1]
    assert found("status == 'ok'", sort="energy") == [1, 0]
    assert found("", rows="labels", sort="-energy") == [0, 1, 2], "unset values come last"
    assert found("", rows="labels", sort="-energy", limit=1) == [0]
    assert found("formula == 'OH2'") == [0, 2]
    assert found("max_force_std > 0.1", rows="predictions") == [0]
    norms = np.linalg.norm(big.forces_eV_per_A, axis=1)
    table = view.select("'Pd' in elements", columns=["fmax", "elements", "n_atoms", "periodic"])
    assert list(table.rows()) == [
        {"max_force": norms.max(), "elements": ["Pd"], "n_atoms": 4, "periodic": True}
    ]
    unknown = view.select("reason == 'exploded'", rows="failures", columns=["n_atoms", "message"])
    assert list(unknown.rows()) == [{"n_atoms": None, "message": "T > 1e5 K"}]
    assert len(view.select("n_atoms > 0", rows="failures")) == 0
    for rows in ("structures", "labels", "events", "failures", "predictions"):
        everything = view.select(rows=rows, columns=list(view.fields(rows)))
        assert json.loads(json.dumps(list(everything.rows()), allow_nan=False))
    for wrong in ({"columns": ["enrgy"]}, {"sort": "enrgy"}, {"rows": "label"}, {"limit": -1}):
        with pytest.raises(QueryError):
            view.select("", **wrong)


def test_queries_of_many_commits_equal_queries_of_one(tmp_path):
    frames = [bulk(s, cubic=s != "Pd") for s in ("Cu", "Pd", "Au", "Ag")] + [water()]
    rows = [label_of(a, f, energy=float(i)) for i, a in enumerate(frames) for f in ("gfn2", "pbe")]
    one, many = (Store(tmp_path / f"{n}.h5", durability="nofsync") for n in ("one", "many"))
    one.append(structures=frames, labels=rows)
    for atoms in frames:
        many.append(structures=[atoms])
    for row in reversed(rows):
        many.append(labels=[row])
    for expression in ("fidelity == 'pbe' and energy > 1", "count('Pd') >= 1 or fmax < 2", ""):
        tables = [
            sorted(map(str, s.snapshot().select(expression, rows="labels").rows()))
            for s in (one, many)
        ]
        assert tables[0] == tables[1]


def test_exported_frames_are_read_by_ase(store, tmp_path):
    pd = bulk("Pd", cubic=True)
    ion = water()
    ion.info |= {"charge": 1, "multiplicity": 2}
    strained = label_of(pd, "pbe", stress_eV_per_A3=np.arange(6) / 100)
    rows = [strained, label_of(ion, "pbe"), label_of(ion, "gfn2")]
    store.append(
        structures=[pd, ion], labels=rows, splits=[SplitRow(structure_uid(pd), "train", 0.0)]
    )
    view, path = store.snapshot(), tmp_path / "all.xyz"
    assert export_extxyz(view, "", path) == 3
    with pytest.raises(InputError, match="exists"):
        export_extxyz(view, "", path)
    assert export_extxyz(view, "", path, fidelity="pbe", overwrite=True) == 2
    first, second = ase.io.read(path, ":")
    assert (structure_uid(first), structure_uid(second)) == (structure_uid(pd), structure_uid(ion))
    assert first.info["fidelity"] == "pbe"
    assert first.info["split"] == "train"
    assert first.get_potential_energy() == strained.energy_eV
    # extxyz writes forces with 8 decimals
    np.testing.assert_allclose(first.get_forces(), strained.forces_eV_per_A, rtol=0, atol=1e-8)
    np.testing.assert_allclose(first.get_stress(), strained.stress_eV_per_A3)
    assert export_extxyz(view, "'Pd' in elements", path, ref_keys=True, overwrite=True) == 1
    atoms = ase.io.read(path)
    assert atoms.calc is None
    assert atoms.info["REF_energy"] == strained.energy_eV
    assert atoms.arrays["REF_forces"].shape == (4, 3)
    assert np.shape(atoms.info["REF_stress"]) == (3, 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["all.xyz", "store.h5.d"]
