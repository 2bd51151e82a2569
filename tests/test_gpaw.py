"""GPAW: what its script is told and what its answer becomes; with GPAW itself: -m codes."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from label_helpers import label, make
from test_labelers import slope_error

from alchemy.errors import EnvironmentProblemError, InputError
from alchemy.labelers.base import LabelFailureError, fingerprint
from alchemy.labelers.isolated import isolated_atom


@pytest.fixture
def gpaw(tmp_path):
    shelf = tmp_path / "setups"
    shelf.mkdir()
    for name in ("Al.PBE.gz", "H.PBE.gz", "Ni.PBE.gz", "O.PBE", "Al.LDA.gz"):
        (shelf / name).write_text(name)
    return lambda **options: make("gpaw", **{"setups_dir": str(shelf), **options})


def told(labeler, atoms, **values):
    return json.loads(labeler.inputs(atoms, {**labeler.options(), **values})["gpaw.json"])


def test_settings_reach_the_keyword_arguments(gpaw):
    document = told(gpaw(kspacing_per_A=0.9, width_eV=0.2), bulk("Al"), maxiter=7, mixer={"beta": 0.02})
    assert document["arguments"] == {
        "mode": {"name": "pw", "ecut": 400.0}, "xc": "PBE", "kpts": {"size": [3, 3, 3], "gamma": True},
        "occupations": {"name": "fermi-dirac", "width": 0.2}, "convergence": {"density": 1e-6},
        "mixer": {"beta": 0.02}, "eigensolver": "dav", "maxiter": 7, "txt": "gpaw.txt",
    }  # fmt: skip
    assert document["structure"]["stress"] is True
    water = told(gpaw(), molecule("H2O"))
    assert (water["arguments"]["kpts"]["size"], water["structure"]["stress"]) == ([1, 1, 1], False)
    assert np.diag(water["structure"]["cell_A"]) == pytest.approx([10, 12, 10])  # 8 Å and its own extent


def test_moments_follow_the_multiplicity_and_the_elements(gpaw):
    oxygen = told(gpaw(), isolated_atom("O"))
    assert oxygen["structure"]["moments"] == [2.0]
    assert oxygen["arguments"]["occupations"]["fixmagmom"] is True
    nickel = told(gpaw(starting_magnetization={"Ni": 0.6}), bulk("Ni"))
    assert nickel["structure"]["moments"] == [0.6]
    assert "fixmagmom" not in nickel["arguments"]["occupations"]
    assert told(gpaw(), bulk("Al"))["structure"]["moments"] == []


def test_the_fingerprint_covers_the_data_sets_of_the_functional(gpaw, tmp_path):
    plain = fingerprint(gpaw())
    assert plain == fingerprint(gpaw(maxiter=9, mixer={"beta": 0.1}, command="python3 {input}"))
    assert plain != fingerprint(gpaw(ecut_eV=300.0))
    (tmp_path / "setups" / "Al.LDA.gz").write_text("newer")
    assert plain == fingerprint(gpaw())
    moved = tmp_path / "elsewhere"
    (tmp_path / "setups").rename(moved)
    assert plain == fingerprint(gpaw(setups_dir=str(moved)))
    (moved / "Cu.PBE.gz").write_text("more")
    assert plain != fingerprint(gpaw(setups_dir=str(moved)))


def test_mistakes_are_named_before_anything_runs(gpaw, tmp_path):
    with pytest.raises(InputError, match=r"data set of Pd: .*setups has none for PBE"):
        told(gpaw(), bulk("Pd"))
    with pytest.raises(InputError, match=r"no directory .*nowhere"):
        gpaw(setups_dir=str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="'ecut_eV' is physics"):
        gpaw(ladder={"soft": {"ecut_eV": 200.0}})
    charged = molecule("OH")
    charged.info["charge"] = -1
    with pytest.raises(LabelFailureError, match="charge-not-supported"):
        told(gpaw(), charged)
    path = tmp_path / "mine.j2"
    path.write_text("mode: [")
    with pytest.raises(InputError, match=r"mine\.j2 is not valid YAML"):
        told(gpaw(template=str(path)), bulk("Al"))


def test_an_interpreter_without_gpaw_is_the_machines_fault(gpaw, tmp_path):
    alone = gpaw(command=f"{sys.executable} -I -S {{input}}")
    with pytest.raises(EnvironmentProblemError, match=r"cannot import GPAW: No module named"):
        label(bulk("Al"), alone, tmp_path)


def test_another_interpreter_does_not_see_our_packages(gpaw, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/ours")
    assert gpaw(command="/usr/bin/python3 {input}").environment()["PYTHONPATH"] is None
    assert "PYTHONPATH" not in gpaw(command=f"{sys.executable} {{input}}").environment()


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (None, "engine-error"),
        ({"status": "failed", "reason": "scf-not-converged", "message": "x"}, "scf-not-converged"),
        ({"symbols": ["C", "O"]}, "geometry-mismatch"),
        ({"positions_A": [[0, 0, 0], [0, 0, 1.2]]}, "geometry-mismatch"),
    ],
)
def test_answers_that_are_no_label_are_refused(document, reason, gpaw, tmp_path):
    atoms = Atoms("OH", [[0, 0, 0], [0, 0, 1.0]], cell=[4, 4, 4], pbc=True)
    good = {
        "status": "ok", "energy_eV": -1.0, "forces_eV_per_A": [[0, 0, 1.0], [0, 0, -1.0]],
        "stress_eV_per_A3": [0.0] * 6, "symbols": ["O", "H"], "positions_A": atoms.positions.tolist(),
        "cell_A": atoms.cell.tolist(),
    }  # fmt: skip
    (tmp_path / "result.json").write_text(json.dumps(good))
    labeler = gpaw()

    def judge():
        labeler.verdict(tmp_path)
        return labeler.parse(atoms, tmp_path)

    assert judge().energy_kind == "free"
    (tmp_path / "result.json").unlink()
    if document is not None:
        (tmp_path / "result.json").write_text(json.dumps({**good, **document}))
    with pytest.raises(LabelFailureError, match=reason):
        judge()


# --- GPAW itself ----------------------------------------------------------------------------------


def run(python, *arguments):
    """Without our packages; with PATH, which Debian's Open MPI needs."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    return subprocess.run(
        [python, "-c", *arguments], capture_output=True, text=True, check=False, env=clean, cwd="/"
    )


def interpreter():
    """The one that the labeler takes by itself; None: neither has GPAW."""
    if find_spec("gpaw"):
        return sys.executable
    return "/usr/bin/python3" if run("/usr/bin/python3", "import gpaw").returncode == 0 else None


@pytest.fixture(scope="module")
def python_of_gpaw():
    found = interpreter()
    if found is None:
        pytest.skip("not installed: gpaw (for this Python or for /usr/bin/python3)")
    return found


H2 = {"ecut_eV": 250.0, "vacuum_A": 3.0}
AL4 = {"ecut_eV": 150.0, "kspacing_per_A": 0.8, "width_eV": 0.1, "density_convergence": 1e-8}
DIRECTLY = """
import json, sys
from ase import Atoms
from gpaw import GPAW, PW, FermiDirac
told = json.loads(sys.argv[1])
atoms = Atoms(told["symbols"], told["positions"], cell=told["cell"], pbc=True)
atoms.calc = GPAW(mode=PW(told["ecut"]), xc="PBE", kpts={"size": told["kpts"], "gamma": True}, txt=None,
                  occupations=FermiDirac(0.1), convergence={"density": told["density"]})
atoms.get_potential_energy()
print(json.dumps([atoms.calc.get_potential_energy(force_consistent=True), atoms.get_forces().tolist()]))
"""


@pytest.mark.codes
@pytest.mark.parametrize("name", ["H2", "Al"])
def test_a_label_is_what_gpaws_own_calculator_gets(name, python_of_gpaw, tmp_path):
    atoms, options = (molecule("H2"), H2) if name == "H2" else (bulk("Al", cubic=True), AL4)
    atoms.rattle(0.05, seed=1)
    record = label(atoms, make("gpaw", **options), tmp_path)
    assert (record.status, record.message) == ("ok", "")
    cell = atoms.cell.tolist() if name == "Al" else np.diag([6.0, 6.0, 6.0]).tolist()
    document = {
        "symbols": list(atoms.symbols), "positions": atoms.positions.tolist(), "cell": cell,
        "ecut": options["ecut_eV"], "kpts": [2, 2, 2] if name == "Al" else [1, 1, 1],
        "density": options.get("density_convergence", 1e-6),
    }  # fmt: skip
    said = run(python_of_gpaw, DIRECTLY, json.dumps(document))
    energy, forces = json.loads(said.stdout.splitlines()[-1])
    assert record.energy_eV == pytest.approx(energy, abs=1e-6)  # the same steps of the same program
    assert record.forces_eV_per_A == pytest.approx(np.array(forces), abs=1e-5)


@pytest.mark.codes
def test_gpaws_forces_are_the_slope_of_the_free_energy(python_of_gpaw, tmp_path):
    atoms = bulk("Al", cubic=True)
    atoms.rattle(0.05, seed=1)
    # the energy extrapolated to zero width is off by 0.09 eV/Å; curvature at this step 1e-4, grid 1e-3
    assert slope_error(atoms, make("gpaw", **AL4), tmp_path, step_A=0.01) < 5e-3


@pytest.mark.codes
def test_gpaw_that_ran_out_of_steps_is_repaired_by_the_ladder(python_of_gpaw, tmp_path):
    lazy = {**H2, "maxiter": 2}
    failed = label(molecule("H2"), make("gpaw", **lazy, retries=0), tmp_path / "none")
    assert (failed.status, failed.reason) == ("failed", "scf-not-converged")
    repaired = label(molecule("H2"), make("gpaw", **lazy), tmp_path / "all")
    assert (repaired.status, repaired.fingerprint) == ("ok", failed.fingerprint)
    asked = label(molecule("H2"), make("gpaw", **H2), tmp_path / "asked")
    assert repaired.energy_eV == pytest.approx(asked.energy_eV, abs=1e-4)  # GPAW converges 5e-4 eV/electron
