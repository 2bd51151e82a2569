"""Quantum ESPRESSO: inputs, verdicts and numbers of outputs; with pw.x itself: -m codes."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.constraints import FixAtoms
from ase.io.espresso import read_espresso_in, read_fortran_namelist
from label_helpers import label, make
from program_helpers import needs_program, write_upf
from test_labelers import slope_error

from alchemy.cli import main
from alchemy.errors import EnvironmentProblemError, InputError
from alchemy.labelers.base import LabelFailureError, fingerprint
from alchemy.labelers.isolated import isolated_atom

OUTPUTS = Path(__file__).parent / "data" / "espresso"
DEBIAN = Path("/usr/share/espresso/pseudo")


def al4():
    """The structure of the two outputs."""
    atoms = bulk("Al", "fcc", a=4.05, cubic=True)
    atoms.rattle(0.05, seed=1)
    return atoms


@pytest.fixture
def espresso(tmp_path):
    shelf = tmp_path / "pseudo"
    shelf.mkdir()
    for element in ("Al", "Cu", "C", "O", "H", "Ni"):
        write_upf(shelf / f"{element}.pbe.UPF", element)
    return lambda **options: make("espresso", **{"pseudo_dir": str(shelf), **options})


def rendered(labeler, atoms, **values):
    text = labeler.inputs(atoms, {**labeler.options(), **values})["pw.in"]
    namelists, _ = read_fortran_namelist(text.splitlines(keepends=True))
    return text, {**namelists["control"], **namelists["system"], **namelists["electrons"]}


# --- inputs ---------------------------------------------------------------------------------------


def test_what_is_written_is_what_ase_reads(espresso, tmp_path):
    slab = fcc111("Cu", (1, 1, 2), vacuum=4.0)
    slab += Atoms("OC", [[0, 0, 8.1], [0, 0, 7]])
    slab.pbc = True
    slab.rattle(0.05, seed=2)
    slab.set_constraint(FixAtoms([0]))
    labeler = espresso(kspacing_per_A=0.9)
    files = labeler.inputs(slab, labeler.options())
    (tmp_path / "pw.in").write_text(files["pw.in"])
    with (tmp_path / "pw.in").open() as file:
        found = read_espresso_in(file)
    assert list(found.symbols) == list(slab.symbols)
    assert np.abs(found.positions - slab.positions).max() < 1e-11  # twelve decimals
    assert np.abs(np.asarray(found.cell - slab.cell)).max() < 1e-11
    assert not found.constraints  # if_pos would make zeros of forces
    # by name: whatever the order of the atoms
    species = re.findall(r"^(\w+) [\d.]+ (\w+)\.pbe\.UPF$", files["pw.in"], re.M)
    assert species == [("C", "C"), ("Cu", "Cu"), ("O", "O")]
    assert {name for name in files if name != "pw.in"} == {f"pseudo/{e}.pbe.UPF" for e, _ in species}
    assert "K_POINTS automatic\n4 4 1 0 0 0" in files["pw.in"]


def test_settings_reach_their_keywords(espresso):
    keys = rendered(espresso(ecutwfc_Ry=33.0, input_dft="beef-vdw"), al4(), mixing_beta=0.11)[1]
    wanted = {
        "ecutwfc": 33.0, "ecutrho": 264.0, "smearing": "cold", "degauss": 0.01, "nspin": 1,
        "tprnfor": True, "tstress": True, "mixing_beta": 0.11, "input_dft": "beef-vdw", "conv_thr": 1e-9,
    }  # fmt: skip
    assert {key: keys[key] for key in wanted} == wanted
    system = {"vdw_corr": "dft-d3", "nbnd": 20, "lspinorb": False}
    extra = {"system": system, "electrons": {"mixing_fixed_ns": 1}}
    keys = rendered(espresso(ecutrho_Ry=200.0, occupations="fixed", **extra), molecule("CO"))[1]
    assert {key: keys[key] for key in (*system, "mixing_fixed_ns")} == {**system, "mixing_fixed_ns": 1}
    assert (keys["ecutrho"], keys["tstress"], "smearing" in keys) == (200.0, False, False)
    assert "K_POINTS gamma" in rendered(espresso(), molecule("CO"))[0]


def test_spin_follows_the_multiplicity_and_the_elements(espresso):
    def keys(atoms, **options):
        found = rendered(espresso(**options), atoms)[1]
        return {k: v for k, v in found.items() if "magnet" in k or k == "nspin"}

    oxygen = keys(isolated_atom("O"))
    assert (oxygen["nspin"], oxygen["tot_magnetization"]) == (2, 2)
    assert oxygen["starting_magnetization(1)"] > 0
    assert keys(molecule("H2O")) == {"nspin": 1}
    assert keys(Atoms("H"))["tot_magnetization"] == 1  # the least that fits, unless told
    assert keys(bulk("Cu")) == {"nspin": 1}  # in a metal, an odd number of electrons is no moment
    free = keys(bulk("Ni"), starting_magnetization={"Ni": 0.4})
    assert free == {"nspin": 2, "starting_magnetization(1)": 0.4}
    impossible = Atoms("H")
    impossible.info["multiplicity"] = 3
    with pytest.raises(LabelFailureError, match="bad-multiplicity"):
        keys(impossible)


def test_charges_are_refused_where_the_energy_would_mean_nothing(espresso):
    ion, cell = molecule("OH"), al4()
    for atoms in (ion, cell):
        atoms.info["charge"] = -1
        with pytest.raises(LabelFailureError, match="charge-not-supported"):
            rendered(espresso(), atoms)
    keys = rendered(espresso(assume_isolated="mt"), ion)[1]
    assert (keys["tot_charge"], keys["assume_isolated"]) == (-1, "mt")
    assert rendered(espresso(charged_cells=True), cell)[1]["tot_charge"] == -1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"system": {"ecutwfc": 50}}, r"system\.ecutwfc: use the option ecutwfc_Ry"),
        ({"electrons": {"Mixing_beta": 0.1}}, r"electrons\.Mixing_beta: use the option mixing_beta"),
        ({"control": {"outdir": "/scratch"}}, r"control\.outdir: it is set for you"),
        ({"smearing": "warm"}, "smearing is 'warm'.*'cold'"),
        ({"kspacing_per_A": 0.0}, "kspacing_per_A is 0"),
        ({"ecutwfc_eV": 500}, "no option 'ecutwfc_eV'; did you mean 'ecutwfc_Ry'"),
        ({"ladder": {"x": {"degauss_Ry": 0.05}}}, "'degauss_Ry' is physics"),
        ({"pseudopotentials": {"Al": "Cu.pbe.UPF"}}, r"Al: .*Cu\.pbe\.UPF is of Cu"),
    ],
)
def test_mistakes_are_named_before_anything_runs(options, message, espresso):
    with pytest.raises(InputError, match=message):
        espresso(**options)


def test_the_fingerprint_knows_the_pseudopotentials_by_content(espresso, tmp_path):
    chosen = {"pseudopotentials": {"Al": "Al.pbe.UPF"}}
    plain = fingerprint(espresso(**chosen))
    assert plain == fingerprint(espresso(**chosen, mixing_beta=0.1, diagonalization="cg"))
    assert plain != fingerprint(espresso(**chosen, kspacing_per_A=0.3))
    copied = tmp_path / "pseudo" / "other-name.upf"
    shutil.copy(tmp_path / "pseudo" / "Al.pbe.UPF", copied)
    assert plain == fingerprint(espresso(pseudopotentials={"Al": copied.name}))
    copied.write_text(copied.read_text() + "<!-- newer -->")
    assert plain != fingerprint(espresso(pseudopotentials={"Al": copied.name}))


CAMPAIGN = """
alchemy: 1
name: alloy
elements: [Cu, {second}]
seed: 1
fidelities: {{pbe: {{labeler: espresso, pseudo_dir: pseudo, target: true}}}}
start:
  - rattle: {{structures: start.xyz, count: 1, stdev: 0.05 A}}
    label: {{pbe: all}}
"""


def test_a_campaign_that_lacks_a_pseudopotential_is_refused_by_check(espresso, tmp_path, capsys):
    bulk("Cu").write(tmp_path / "start.xyz", format="extxyz")
    file = tmp_path / "campaign.yaml"
    file.write_text(CAMPAIGN.format(second="Ni"))
    assert main(["check", str(file)]) == 0  # `pseudo` is beside the campaign's file, wherever we stand
    capsys.readouterr()
    file.write_text(CAMPAIGN.format(second="Pd"))
    assert main(["check", str(file)]) == 2
    said = "".join(capsys.readouterr())
    assert re.search(r"fidelities\.pbe: pseudopotential of Pd: .*pseudo has none for PBE", said)


# --- outputs --------------------------------------------------------------------------------------


@pytest.fixture
def judged(espresso, tmp_path):
    """Verdict and numbers of an output, after a change of its text."""

    def judge(name="al4.out", change=None):
        directory = tmp_path / "label"
        directory.mkdir(exist_ok=True)
        text = (OUTPUTS / name).read_text()
        changed = change(text) if change else text
        assert (changed == text) is (change is None)
        (directory / "pw.out").write_text(changed)
        labeler = espresso()
        labeler.verdict(directory)
        return labeler.parse(al4(), directory)

    return judge


def test_an_output_is_read_with_its_units_and_signs(judged):
    result = judged()
    rydberg, bohr = 13.605693, 0.52917721
    assert result.energy_eV == pytest.approx(-16.58116688 * rydberg, abs=1e-4)  # F, of the line with '!'
    assert result.forces_eV_per_A[1] == pytest.approx(
        np.array([0.01093685, -0.01511527, 0.00419899]) * rydberg / bohr, abs=1e-6
    )
    assert result.energy_kind == "free"
    # pw.x prints −0.57e-3 Ry/bohr³ under tension; here tension is positive
    voigt = np.array([0.57019, 0.49524, 0.56870, 0.02172, 0.00128, 0.02237]) * 1e-3
    assert result.stress_eV_per_A3 == pytest.approx(voigt * rydberg / bohr**3, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("al4-two-steps.out", None, "scf-not-converged"),  # ends with JOB DONE.
        ("al4.out", lambda t: t[: len(t) // 2], "truncated-output"),
        ("al4.out", lambda t: t.replace("convergence has been achieved", ""), "truncated-output"),
        ("al4.out", lambda t: t.replace("Forces acting on atoms", "No forces"), "truncated-output"),
        ("al4.out", lambda t: t.replace("total   stress", "no stress"), "truncated-output"),
        ("al4.out", lambda t: t.replace(" Al  tau(   2)", " Si  tau(   2)"), "geometry-mismatch"),
        ("al4.out", lambda t: t.replace("0.5106840", "0.5116840"), "geometry-mismatch"),
        ("al4.out", lambda t: t.replace("a(3) = (   0.0", "a(3) = (   0.1"), "geometry-mismatch"),
    ],
)
def test_outputs_that_are_no_label_are_refused(name, change, reason, judged):
    with pytest.raises(LabelFailureError, match=reason):
        judged(name, change)


def test_errors_of_the_program_are_told_and_those_of_a_solver_climb_the_ladder(judged):
    def stopped(message):
        bar = "%" * 79
        return lambda text: f"{text[:4000]}\n {bar}\n     Error in routine x (1):\n     {message}\n {bar}\n"

    with pytest.raises(LabelFailureError, match=r"engine-error: .*routine x \(1\): charge is wrong"):
        judged(change=stopped("charge is wrong: smearing is needed"))
    with pytest.raises(LabelFailureError, match=r"scf-not-converged: .*S matrix"):
        judged(change=stopped("S matrix not positive definite"))


# --- pw.x itself ----------------------------------------------------------------------------------

FILES = {
    "Al": "Al.pz-vbc.UPF", "Si": "Si.pbe-rrkj.UPF", "C": "C.pbe-rrkjus.UPF", "O": "O.pbe-rrkjus.UPF",
    "Cu": "Cu.pbe-kjpaw.UPF",
}  # fmt: skip
METAL = {
    "functional": "LDA", "ecutwfc_Ry": 15.0, "ecutrho_Ry": 60.0, "kspacing_per_A": 0.8, "degauss_Ry": 0.02,
    "pseudopotentials": {"Al": FILES["Al"]},
}  # fmt: skip
COVALENT = {"ecutwfc_Ry": 18.0, "ecutrho_Ry": 72.0, "kspacing_per_A": 1.0, "occupations": "fixed"}
SMALL_BOX = {"ecutwfc_Ry": 25.0, "vacuum_A": 4.0}


quick = needs_program("pw.x")  # two CPU seconds in all: part of the default run where pw.x is there


def real(test):
    return pytest.mark.codes(quick(test))


def debian(*elements, **options):
    return make("espresso", **{"pseudopotentials": {e: FILES[e] for e in elements}, **options})


@quick
@pytest.mark.parametrize(
    ("atoms", "labeler", "input_data", "kpts"),
    [
        (al4(), lambda: make("espresso", **METAL), {"ecutwfc": 15, "ecutrho": 60, "occupations": "smearing",
         "smearing": "cold", "degauss": 0.02}, (2, 2, 2)),
        (bulk("Si"), lambda: debian("Si", **COVALENT), {"ecutwfc": 18, "ecutrho": 72}, (3, 3, 3)),
        pytest.param(molecule("CO"), lambda: debian("C", "O", **SMALL_BOX), {"ecutwfc": 25, "ecutrho": 200,
         "occupations": "smearing", "smearing": "cold", "degauss": 0.01}, None, marks=pytest.mark.codes),
    ],
    ids=["Al4", "Si2", "CO"],
)  # fmt: skip
def test_a_label_is_what_ases_calculator_gets(atoms, labeler, input_data, kpts, tmp_path):
    from ase.calculators.espresso import Espresso, EspressoProfile

    atoms = atoms.copy()
    atoms.rattle(0.05, seed=1)
    record = label(atoms, labeler(), tmp_path)
    assert (record.status, record.message) == ("ok", "")
    again = atoms.copy()
    if not atoms.pbc.any():
        again.set_cell([6, 6, 8])
        again.pbc = True
    again.calc = Espresso(
        profile=EspressoProfile(command="pw.x", pseudo_dir=str(DEBIAN)),
        pseudopotentials={e: FILES[e] for e in set(atoms.symbols)},
        input_data={"control": {"tprnfor": True, "tstress": True}, "system": input_data,
                    "electrons": {"conv_thr": 1e-9, "mixing_beta": 0.4}},
        kpts=kpts,
        directory=str(tmp_path / "ase"),
    )  # fmt: skip
    # the same input but for its layout: 1e-6 eV leaves room for the last step of the SCF (1e-9 Ry)
    assert record.energy_eV == pytest.approx(again.get_potential_energy(), abs=1e-6)
    assert record.forces_eV_per_A == pytest.approx(again.get_forces(), abs=1e-4)  # √(1e-9 Ry) in forces
    assert record.code.startswith("espresso 6.") or record.code.startswith("espresso 7.")


@real
def test_forces_are_the_slope_of_the_free_energy_under_smearing(tmp_path):
    labeler = make("espresso", **{**METAL, "conv_thr_Ry": 1e-11, "smearing": "fd", "degauss_Ry": 0.05})
    # 0.01 Å: curvature gives 1e-4; printed digits (1e-8 Ry) give 1e-5
    assert slope_error(al4(), labeler, tmp_path, step_A=0.01) < 5e-4
    outputs = [path.read_text() for path in tmp_path.glob("*/pw.out")]
    free = [float(re.search(r"!.*=\s+(\S+) Ry", text)[1]) for text in outputs]
    entropy = [float(re.search(r"\(-TS\)\s+=\s+(\S+) Ry", text)[1]) for text in outputs]
    # the check above can tell: −TS has a slope of its own, above the tolerance
    assert len(free) == 3
    assert np.ptp(entropy) * 13.6 / 0.02 > 5e-3


@quick
def test_two_steps_do_not_converge_and_the_ladder_does(tmp_path):
    lazy = {**METAL, "electron_maxstep": 2}
    failed = label(al4(), make("espresso", **lazy, retries=0), tmp_path / "none")
    assert (failed.status, failed.reason) == ("failed", "scf-not-converged")
    assert "not converged after 2 iterations" in failed.message
    repaired = label(al4(), make("espresso", **lazy), tmp_path / "all")
    assert repaired.status == "ok"
    assert repaired.fingerprint == failed.fingerprint
    asked = label(al4(), make("espresso", **METAL), tmp_path / "asked")
    assert repaired.energy_eV == pytest.approx(asked.energy_eV, abs=1e-6)  # conv_thr_Ry 1e-9


SLAB = """
alchemy: 1
name: oxide
elements: [Cu, O]
seed: 1
fidelities:
  lda:
    labeler: espresso
    functional: LDA
    ecutwfc_Ry: 20
    kspacing_per_A: 1.5
    degauss_Ry: 0.02
    pseudopotentials: {Cu: Cu.pz-d-rrkjus.UPF, O: O.pz-rrkjus.UPF}
start:
  - rattle: {structures: slab.xyz, count: 1, stdev: 0.05 A}
    label: {lda: all}
"""


@real
def test_a_copper_slab_with_oxygen_is_labelled_by_the_command(tmp_path, capsys):
    slab = fcc111("Cu", (1, 1, 2), a=3.61, vacuum=4.0)
    slab += Atoms("O", [slab.positions[1] + [0.3, 0.9, 1.2]])
    slab.pbc = True
    slab.set_constraint(FixAtoms([0]))
    slab.info.clear()
    slab.write(tmp_path / "slab.xyz", format="extxyz")
    assert "move_mask" in (tmp_path / "slab.xyz").read_text()
    (tmp_path / "campaign.yaml").write_text(SLAB)
    slabs, campaign, out = (str(tmp_path / name) for name in ("slab.xyz", "campaign.yaml", "lda.extxyz"))
    assert main(["label", slabs, "--campaign", campaign, "--with", "lda", "--out", out, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["labels"]
    assert row["status"] == "ok"
    (record,) = [json.loads(path.read_text()) for path in tmp_path.glob("lda.labels/*/record.json")]
    forces = np.array(record["forces_eV_per_A"])
    assert record["energy_kind"] == "free"
    assert len(record["stress_eV_per_A3"]) == 6
    assert np.abs(forces[0]).max() > 0.01  # of the fixed atom: raw, as the others'
    assert np.abs(forces.sum(axis=0)).max() < 1e-5  # pw.x subtracts the mean; eight decimals are printed


@real
def test_the_oxygen_atom_is_a_triplet_below_its_singlet(tmp_path):
    singlet = isolated_atom("O")
    singlet.info["multiplicity"] = 1
    labeler = debian("O", **SMALL_BOX)
    low, high = (label(atoms, labeler, tmp_path) for atoms in (isolated_atom("O"), singlet))
    assert (low.status, high.status) == ("ok", "ok")
    assert high.energy_eV - low.energy_eV > 1.0  # experiment 1.97 eV; a closed shell is higher, or smeared


@quick
def test_elements_without_a_file_stop_before_the_program_runs(tmp_path):
    with pytest.raises(InputError, match=r"of Pd: .*espresso/pseudo has none for PBE"):
        label(bulk("Pd"), make("espresso"), tmp_path)
    with pytest.raises(EnvironmentProblemError, match=r"'pw\.xx' is not in PATH"):
        label(bulk("Si"), debian("Si", command="pw.xx -in {input}", **COVALENT), tmp_path)
