"""False alarms of the checks of labels on published data, and what they catch when one label is corrupted.

    python tests/bench/label_alarms.py /path/to/data [--corrupt]

The folder holds extended XYZ with REF_energy and REF_forces, as `water_PBE0-TS/dev_320.extxyz.gz`. Every set
is imported (with the checks of the import) and audited. An alarm is an error or warning; a label that
`--quarantine` would set aside counts once. With --corrupt one label in fifty is made wrong in each of several
ways, and how many are caught is printed. JSON lines; what the alarms say goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from alchemy.audit import audit
from alchemy.dataset_import import import_files
from alchemy.store import LabelRow, Store
from tace.readers import Source

SETS = (
    "3bpa/train_300K", "acac/train_300K", "acac/val_600K", "rmd17_ethanol/train_1000",
    "rmd17_aspirin/dev_500", "water_revPBE0-D3/dev_80", "water_PBE0-TS/dev_320",
    "water_RPBE-D3/dev", "gap17_carbon/dev_300_of_pub_test", "SiO2_electric/dev", "spice_bec/dev",
    "superionic_water_bec/dev_4cc", "spice_dipeptide_charges/train_495", "gnl_cumulene/train",
    "formate_Cu110/dev", "oc20_relaxations/dev_24systems", "Be_electronic_temperature/dev_400",
    "mlearn_metals/Si_train", "mlearn_metals/Mo_train", "mlearn_metals/Li_train",
)  # fmt: skip
HARTREE, KCAL, EVERY = 27.211386, 23.060548, 50


def forces(row: LabelRow) -> np.ndarray:
    assert row.forces_eV_per_A is not None
    return row.forces_eV_per_A


def energy(row: LabelRow) -> float:
    assert row.energy_eV is not None
    return row.energy_eV


FAULTS: dict[str, Callable[[LabelRow], LabelRow]] = {
    "energy in Ha": lambda r: replace(r, energy_eV=energy(r) / HARTREE),
    "energy in kcal/mol": lambda r: replace(r, energy_eV=energy(r) * KCAL),
    "energy + 1 eV (spin)": lambda r: replace(r, energy_eV=energy(r) + 1.0),
    "forces in Ha/Bohr": lambda r: replace(r, forces_eV_per_A=forces(r) * 0.0194469),
    "forces in kcal/mol/A": lambda r: replace(r, forces_eV_per_A=forces(r) * KCAL),
    "forces of other sign": lambda r: replace(r, forces_eV_per_A=-forces(r)),
    "a third of the forces zero": lambda r: replace(
        r, forces_eV_per_A=np.where(np.arange(len(forces(r)))[:, None] % 3 == 0, 0.0, forces(r))
    ),
}


def imported(path: Path, folder: Path) -> tuple[Store, list[str]]:
    """The set in a store, and the notes of the import."""
    store = Store(folder / "set.h5", durability="nofsync")
    found = import_files(store, [Source(path, fidelity="ref")], skip_rejected=True)
    return store, [note for note in found.notes if "rejected" in note]


def corrupted(
    store: Store, fault: Callable[[LabelRow], LabelRow], folder: Path, name: str
) -> tuple[int, int, int]:
    """(labels corrupted, of these blamed, others blamed)."""
    view = store.snapshot()
    rows = [row for row in view.labels() if row.forces_eV_per_A is not None and row.energy_eV is not None]
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    chosen = set(rng.choice(len(rows), max(1, len(rows) // EVERY), replace=False).tolist())
    other = Store(folder / f"{zlib.crc32(name.encode())}.h5", durability="nofsync")
    other.append(
        structures=view.structures([row.structure_uid for row in rows]),
        labels=[fault(row) if n in chosen else row for n, row in enumerate(rows)],
    )
    blamed, wrong = audit(other.snapshot()).doubts(), {rows[n].key for n in chosen}
    return len(wrong), len(wrong & blamed.keys()), len(blamed.keys() - wrong)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--corrupt", action="store_true")
    parser.add_argument("--only", nargs="*", default=SETS)
    given = parser.parse_args(argv)
    for name in given.only:
        path = given.data / f"{name}.extxyz.gz"
        if not path.is_file():
            print(f"{name}: not there", file=sys.stderr)
            continue
        with tempfile.TemporaryDirectory() as scratch:
            judge(name, path, Path(scratch), corrupt=given.corrupt)


def judge(name: str, path: Path, folder: Path, *, corrupt: bool) -> None:
    """A line for the set as it is, one for each fault."""
    started = time.process_time()
    store, notes = imported(path, folder)
    found = audit(store.snapshot())
    alarms = [f for f in found.findings if f.severity != "note"]
    line = {
        "bench": "label_alarms", "set": name, "labels": sum(own["labels"] for own in found.levels),
        "blamed": len(found.doubts()), "findings": len(alarms), "cpu_s": time.process_time() - started,
    }  # fmt: skip
    print(json.dumps(line))
    for text in notes:
        print(f"{name}: {text}", file=sys.stderr)
    for one in alarms:
        said = f"{one.severity} {one.kind}: {one.message[:150]} {list(one.labels.values())[:2]}"
        print(f"{name}: {said}", file=sys.stderr)
    for fault, change in FAULTS.items() if corrupt else ():
        wrong, caught, others = corrupted(store, change, folder, fault)
        line = {"set": name, "fault": fault, "wrong": wrong, "caught": caught, "others_blamed": others}
        print(json.dumps({"bench": "label_alarms", **line}))


if __name__ == "__main__":
    main()
