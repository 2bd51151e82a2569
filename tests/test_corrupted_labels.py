"""Wrong labels that look right: each kind is rejected with its own reason, by the path that a user takes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.build import add_adsorbate, bulk, fcc111, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.io import write

from alchemy.dataset_import import import_files
from alchemy.quarantine import quarantine, quarantined
from alchemy.store import Store
from tace.readers import Source

OUTPUTS = Path(__file__).parent / "data" / "outputs"
HARTREE, KCAL = 27.211386, 23.060548


def frame(atoms, *, energy=None, forces=None, stress=None):
    """EMT's label, or the given parts in its place."""
    atoms = atoms.copy()
    atoms.calc = EMT()
    results = {
        "energy": atoms.get_potential_energy() if energy is None else energy,
        "forces": atoms.get_forces(apply_constraint=False) if forces is None else forces,
    }
    if stress is not None:
        results["stress"] = stress
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def walk(n, *, seed=2):
    """Ethanol in a random walk: near frames of one composition."""
    rng = np.random.default_rng(seed)
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.1, rng=rng)
    for _ in range(n):
        atoms.positions += rng.normal(scale=0.02, size=atoms.positions.shape)
        yield frame(atoms)


@pytest.fixture(scope="module")
def ethanol(tmp_path_factory):
    """60 clean labels in a store, to be copied with one label changed."""
    folder = tmp_path_factory.mktemp("ethanol")
    write(folder / "walk.xyz", list(walk(60)))
    store = Store(folder / "store.h5", durability="nofsync")
    import_files(store, [Source(folder / "walk.xyz", fidelity="emt")])
    return store


@pytest.fixture
def imported(run, tmp_path):
    """What `alchemy data import` says of these frames: (exit code, words, the store after it)."""

    def call(frames, *words):
        given = tmp_path / "in.xyz"
        if isinstance(frames, Path):
            given = frames
        else:
            write(given, frames)
        code, out, err = run("data", "import", tmp_path / "set.h5", given, "--fidelity", "emt", *words)
        return code, out + err, Store(tmp_path / "set.h5").snapshot()

    return call


def rewritten(store, path, change):
    """A copy of a store with its rows changed."""
    view = store.snapshot()
    rows = view.labels()
    frames, rows = view.structures([row.structure_uid for row in rows]), change(rows)
    copy = Store(path, durability="nofsync")
    copy.append(structures=frames, labels=rows)
    return copy


def audited(run, path):
    code, out, _ = run("data", "audit", path, "--json")
    return code, {f["kind"]: f for f in json.loads(out)["findings"] if f["severity"] != "note"}


def test_clean_labels_pass_the_import_and_the_audit(run, ethanol, imported):
    code, text, view = imported([*walk(3)])
    assert (code, len(view)) == (0, 3), text
    assert audited(run, ethanol.path) == (0, {})


def test_an_unconverged_run_that_says_job_done_is_refused(imported):
    assert "JOB DONE" in (OUTPUTS / "si-unconverged.pwo").read_text()
    code, text, view = imported(OUTPUTS / "si-unconverged.pwo")
    assert (code, "scf-not-converged" in text, len(view)) == (2, True, 0)


def test_an_output_that_ends_too_early_is_refused_even_where_its_numbers_are_there(imported, tmp_path):
    """Cut behind the energy, ASE reads it as a label without forces; behind the forces, as a whole one."""
    lines = (OUTPUTS / "si.pwo").read_text().splitlines(keepends=True)
    for n in (195, 240):
        (tmp_path / "cut.pwo").write_text("".join(lines[:n]))
        code, text, view = imported(tmp_path / "cut.pwo")
        assert (code, "truncated-output" in text, len(view)) == (2, True, 0)
    code, text, view = imported(tmp_path / "cut.pwo", "--skip-unconverged")
    assert (code, "its last frame was left out" in text, len(view)) == (0, True, 0)


def test_forces_of_fixed_atoms_that_were_written_as_zero_are_rejected(imported):
    slab = fcc111("Cu", (1, 2, 3), vacuum=5.0, periodic=True)
    slab.info.clear()
    slab.rattle(0.05, seed=1)
    raw = frame(slab)
    forces = np.where(np.arange(len(slab))[:, None] < 2, 0.0, raw.get_forces())
    code, text, _ = imported([raw, frame(slab, forces=forces)])
    assert (code, "frame 1: zeroed-forces: 2 of 6 atoms (0, 1)" in text) == (2, True), text
    slab.set_constraint(FixAtoms([0, 1]))
    code, text, _ = imported([frame(slab, forces=forces)])
    assert (code, "constrained-forces" in text) == (2, True), text
    code, text, view = imported([raw, frame(slab, forces=forces)], "--skip-rejected")
    assert (code, len(view.labels())) == (0, 1)
    assert "left out: 1 frame that were rejected (constrained-forces 1)" in text


def test_a_stress_of_nan_is_rejected(imported):
    crystal = bulk("Cu", cubic=True)
    crystal.rattle(0.05, seed=1)
    code, text, view = imported([frame(crystal, stress=np.full(6, np.nan))])
    assert (code, "not-finite: NaN or infinity in stress" in text, len(view)) == (2, True, 0)


def test_a_multiplicity_that_its_electrons_cannot_have_is_rejected(imported):
    atoms = frame(molecule("H2O"))
    atoms.info["multiplicity"] = 2
    code, text, _ = imported([atoms])
    assert (code, "bad-multiplicity: multiplicity 2 does not fit 10 electrons" in text) == (2, True)
    atoms.info["multiplicity"] = 3
    assert imported([atoms])[0] == 0, "a triplet is possible"


def test_the_same_frame_with_another_label_is_rejected_and_with_the_same_is_known(imported):
    one = frame(molecule("H2O"))
    other = frame(molecule("H2O"), energy=one.get_potential_energy() + 0.5)
    code, text, _ = imported([one, other])
    assert (code, "frame 1: duplicate-disagrees: these files have" in text) == (2, True)
    assert "energies differ by 0.5 eV" in text
    code, text, view = imported([one, one])
    assert (code, "known already: 1" in text, len(view.labels())) == (0, True, 1)
    code, text, _ = imported([other])
    assert (code, "duplicate-disagrees: the store has" in text) == (2, True)


FAULTS = {
    "an energy in hartree": ("near-mismatch", lambda r: replace(r, energy_eV=r.energy_eV / HARTREE)),
    "an energy in kcal/mol": ("near-mismatch", lambda r: replace(r, energy_eV=r.energy_eV * KCAL)),
    # EMT has no spin: the gap to another state is put in by hand
    "an energy of another spin": ("near-mismatch", lambda r: replace(r, energy_eV=r.energy_eV + 2.0)),
    "forces in Ha/Bohr": (
        "force-mismatch", lambda r: replace(r, forces_eV_per_A=r.forces_eV_per_A / 51.4220675),
    ),
    "forces in kcal/mol/A": (
        "force-mismatch", lambda r: replace(r, forces_eV_per_A=r.forces_eV_per_A * KCAL),
    ),
    "forces of the other sign": (
        "force-mismatch", lambda r: replace(r, forces_eV_per_A=-r.forces_eV_per_A),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", FAULTS)
def test_one_wrong_label_among_right_ones_is_named_and_set_aside(run, ethanol, tmp_path, what):
    reason, change = FAULTS[what]
    wrong = ethanol.snapshot().labels()[17].key
    store = rewritten(
        ethanol, tmp_path / "x.h5", lambda rows: [change(r) if r.key == wrong else r for r in rows]
    )
    code, found = audited(run, store.path)
    assert (code, list(found[reason]["labels"])) == (2, [wrong])
    blamed = {key for finding in found.values() if finding["blames"] for key in finding["labels"]}
    assert blamed == {wrong}, "nobody else is blamed"
    assert run("data", "audit", store.path, "--quarantine")[0] == 2
    view = store.snapshot()
    assert [row.key for row in quarantined(view)] == [wrong]
    assert wrong not in {row.key for row in view.labels()}
    assert audited(run, store.path) == (0, {})


def test_a_label_in_quarantine_does_not_come_back_by_a_merge_or_another_import(run, tmp_path):
    write(tmp_path / "walk.xyz", list(walk(3)))
    paths = tmp_path / "mine.h5", tmp_path / "theirs.h5"
    for path in paths:
        assert run("data", "import", path, tmp_path / "walk.xyz", "--fidelity", "emt")[0] == 0
    store = Store(paths[0])
    doubted = store.snapshot().labels()[0].key
    quarantine(store, {doubted: ("suspect", "for a test")})
    code, out, _ = run("data", "import", paths[0], tmp_path / "walk.xyz", "--fidelity", "emt")
    assert (code, "left out: 1 label that the store has withdrawn or doubts" in out) == (0, True)
    assert run("data", "merge", *paths)[0] == 0
    assert store.snapshot().label(doubted).status == "suspect"
    code, out, _ = run("data", "merge", paths[1], paths[0])
    assert f"label {doubted} (emt), which the source doubts: suspect" in out
    out = run("data", "query", paths[0], "status != 'ok'", "--columns", "key,status,energy", "--json")[1]
    assert [(row["key"], row["status"]) for row in json.loads(out)] == [(doubted, "suspect")]
    out = run("data", "query", paths[0], "stage == 'trust'", "--rows", "failures", "--json")[1]
    assert [row["message"] for row in json.loads(out)] == ["for a test"]


@pytest.mark.parametrize(
    ("factor", "words"),
    [(-1.0, "opposite sign of the forces"), (1 / 51.4220675, "forces in Ha/Bohr"), (KCAL, "kcal/mol/A")],
)
def test_a_whole_level_of_wrong_forces_is_named_as_such(run, ethanol, tmp_path, factor, words):
    def change(rows):
        return [replace(row, forces_eV_per_A=factor * row.forces_eV_per_A) for row in rows]

    code, found = audited(run, rewritten(ethanol, tmp_path / "x.h5", change).path)
    assert (code, words in found["force-energy-mismatch"]["message"]) == (2, True)
    assert not found["force-energy-mismatch"]["blames"], "no single label is at fault"


def test_species_on_each_others_places_are_named(run, imported, tmp_path):
    """Oxygen and a hydrogen of its neighbour exchanged in the file, the label is of the right structure."""
    frames = list(walk(40))
    bad = frames[20]
    numbers = bad.numbers.copy()
    hydrogen = int(np.flatnonzero(numbers == 1)[-1])  # of the methyl group
    oxygen = int(np.flatnonzero(numbers == 8)[0])
    results = dict(bad.calc.results)
    bad.numbers[[oxygen, hydrogen]] = numbers[[hydrogen, oxygen]]
    bad.calc = SinglePointCalculator(bad, **results)
    code, _, view = imported(frames)
    assert code == 0
    (wrong,) = [r.key for r in view.labels() if (view.structure(r.structure_uid).numbers != numbers).any()]
    code, found = audited(run, tmp_path / "set.h5")
    assert (code, list(found["swapped-species"]["labels"])) == (2, [wrong])


def test_five_hundred_clean_frames_raise_no_alarm(run, imported, tmp_path):
    """Slabs with fixed layers and adsorbed atoms, of EMT: no error, no warning, nobody blamed."""
    rng = np.random.default_rng(5)
    slab = fcc111("Pd", (1, 1, 3), vacuum=5.0, periodic=True)
    add_adsorbate(slab, "O", 1.2, "fcc")
    slab.set_constraint(FixAtoms([0]))
    slab.info.clear()
    slab.calc = EMT()
    ideal, frames = slab.get_positions(), []
    for n in range(500):
        slab.set_positions(ideal + rng.normal(scale=0.03 + 0.1 * (n % 4), size=ideal.shape) / 2,
                           apply_constraint=False)  # fmt: skip
        results = {"energy": slab.get_potential_energy(), "forces": slab.get_forces(apply_constraint=False)}
        copy = slab.copy()
        copy.calc = SinglePointCalculator(copy, **results)
        frames.append(copy)
    code, text, view = imported(frames)
    assert (code, len(view.labels())) == (0, 500), text
    code, found = audited(run, tmp_path / "set.h5")
    assert (code, found) == (0, {})
