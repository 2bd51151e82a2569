"""Structures from descriptions: crystals, slabs, conformers and variants are what they are called."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from alchemy_policies import PolicyError
from alchemy_policies.calculators import CalculatorSessions
from alchemy_policies.health import nearest_neighbours
from alchemy_policies.variants import rattled, strained, substituted, with_vacancies
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import CalculationFailed
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.data import covalent_radii

from alchemy.builders.build import BUILDERS, Material, build
from alchemy.builders.crystals import PROTOTYPES, crystal
from alchemy.builders.molecules import conformers
from alchemy.builders.slabs import SITES, adsorbate, adsorbed, fix_bottom, parse_facet, slabs
from alchemy.config_fields import SYMBOLS
from alchemy.config_structures import BLOCKS
from alchemy.errors import EnvironmentProblemError, StructureError
from alchemy.gate import Gate

HAS_RDKIT = importlib.util.find_spec("rdkit") is not None
needs_rdkit = pytest.mark.skipif(not HAS_RDKIT, reason="RDKit (extra 'smiles') is not installed")
# neighbours of the first and of the second element in the ideal structure
COORDINATION = {
    "sc": (6,), "fcc": (12,), "bcc": (8,), "hcp": (12,), "diamond": (4,), "rocksalt": (6, 6), "cscl": (8, 8),
    "zincblende": (4, 4), "wurtzite": (4, 4), "fluorite": (8, 4), "antifluorite": (4, 8),
    "perovskite": (12, 6),
}  # fmt: skip
EXAMPLES = {(1,): "Cu", (1, 1): "ZnO", (1, 2): "CaF2", (2, 1): "Li2O", (1, 1, 3): "SrTiO3"}


def neighbours(atoms: Atoms, symbol: str, reach_A: float) -> int:
    """Atoms within reach of the first of an element, by brute force over images."""
    shifts = np.array(np.meshgrid(*[[-2, -1, 0, 1, 2]] * 3)).reshape(3, -1).T @ atoms.cell.array
    home = atoms.positions[atoms.symbols.search(symbol)[0]]
    apart = np.linalg.norm(atoms.positions[:, None] + shifts - home, axis=-1)
    return int(((apart > 0.1) & (apart < reach_A)).sum())


# ---- crystals


@pytest.mark.parametrize("name", PROTOTYPES)
def test_a_prototype_has_its_stoichiometry_and_its_coordination(name):
    formula = EXAMPLES[PROTOTYPES[name].ratio]
    atoms = crystal(formula, name, a_A=4.0)
    symbols = list(dict.fromkeys(Atoms(formula).symbols))
    counts = [int((atoms.symbols == s).sum()) for s in symbols]
    assert tuple(n // np.gcd.reduce(counts) for n in counts) == PROTOTYPES[name].ratio
    assert not Gate().check_structure(atoms)
    bond = 4.0 * PROTOTYPES[name].bond
    for n, symbol in enumerate(symbols[: len(COORDINATION[name])]):
        # the A site of a perovskite sees its X at a/√2
        reach = 4.0 / np.sqrt(2) if (name, n) == ("perovskite", 0) else bond
        assert neighbours(atoms, symbol, reach + 0.05) == COORDINATION[name][n], symbol


def test_without_a_lattice_constant_bonds_are_known_or_as_long_as_radii():
    assert crystal("Pd", None).cell.lengths() == pytest.approx(3.89)
    assert crystal("Ti", None).cell.lengths() == pytest.approx([2.95, 2.95, 2.95 * np.sqrt(8 / 3)])
    salt = crystal("NaCl", "rocksalt")
    assert nearest_neighbours(salt)[0] == pytest.approx(covalent_radii[11] + covalent_radii[17])


@pytest.mark.parametrize(
    ("formula", "prototype", "said"),
    [
        ("Qq", "fcc", "'Qq' is no element"),
        ("Cu(", "fcc", "no chemical formula"),
        ("NaCl", "fcc", "fcc needs a formula A, found 'NaCl'; NaCl fits rocksalt"),
        ("Cu", "fccc", "did you mean 'fcc'"),
        ("NaCl", None, "prototype: missing"),
        ("H", None, "prototype: missing"),
    ],
)
def test_formulas_that_fit_no_prototype_say_which_do(formula, prototype, said):
    with pytest.raises(StructureError, match=said.replace("(", r"\(")):
        crystal(formula, prototype)
    with pytest.raises(StructureError, match="c: fcc is cubic"):
        crystal("Cu", "fcc", c_A=4.0)


# ---- slabs


@pytest.mark.parametrize(
    ("facet", "density"), [("111", 2 / np.sqrt(3)), ("100", 1.0), ("110", 1 / np.sqrt(2))]
)
def test_a_facet_has_its_density_of_atoms_its_thickness_and_its_vacuum(facet, density):
    """Of fcc, in atoms per half of the cube's face, with layers of one atom per surface cell."""
    atoms = slabs(crystal("Pd", None), parse_facet(facet), thickness_A=5.0, vacuum_A=7.0)[0]
    z = atoms.positions[:, 2]
    layers = len(np.unique(z.round(3)))
    area = float(np.linalg.norm(np.cross(*atoms.cell.array[:2])))
    assert len(atoms) / layers / area * (3.89**2 / 2) == pytest.approx(density, rel=1e-6)
    assert nearest_neighbours(atoms)[0] == pytest.approx(3.89 / np.sqrt(2))
    assert z.min() == pytest.approx(7.0) and atoms.cell[2, 2] - z.max() == pytest.approx(7.0)
    assert np.allclose(atoms.cell.array[2, :2], 0) and np.allclose(atoms.cell.array[:2, 2], 0)


def test_facets_are_read_in_all_their_spellings():
    assert parse_facet("111") == (1, 1, 1)
    assert parse_facet("1-10") == (1, -1, 0)
    assert parse_facet("10 1 -2") == (10, 1, -2)
    assert parse_facet("0001") == (0, 0, 0, 1)
    titanium = crystal("Ti", None)
    one, other = (slabs(titanium, parse_facet(t), thickness_A=4.0, vacuum_A=6.0)[0] for t in ("0001", "001"))
    assert len(one) == len(other)


@pytest.mark.parametrize("text", ["11", "000", "abc", "1120", "0000", ""])
def test_facets_that_do_not_exist_are_refused(text):
    with pytest.raises(StructureError, match="facets: found"):
        parse_facet(text)
    with pytest.raises(StructureError, match="not hexagonal"):
        slabs(crystal("Pd", None), (0, 0, 0, 1), thickness_A=4.0, vacuum_A=6.0)
    with pytest.raises(StructureError, match="cut from crystals"):
        slabs(molecule("H2O"), (1, 1, 1), thickness_A=4.0, vacuum_A=6.0)


def test_fcc111_has_its_four_sites_and_adsorbates_bind_by_carbon_at_covalent_distance():
    slab = slabs(crystal("Pd", None), (1, 1, 1), thickness_A=4.0, vacuum_A=8.0)[0]
    frames = adsorbed(slab, "CO", SITES, repeat=(2, 2))
    assert len(frames) == 4  # ontop, bridge, fcc, hcp
    for frame in frames:
        metal = frame[: 4 * len(slab)]
        carbon, oxygen = (frame.positions[frame.symbols.search(s)[0]] for s in "CO")
        assert oxygen[2] > carbon[2]
        assert oxygen[:2] == pytest.approx(carbon[:2], abs=1e-6)
        pair = Atoms("C", positions=[carbon], cell=frame.cell, pbc=True) + metal
        touching = covalent_radii[6] + covalent_radii[46]
        assert pair.get_distances(0, range(1, len(pair)), mic=True).min() == pytest.approx(touching)
        top = frame.positions[:, 2].max()
        assert frame.cell[2, 2] - np.ptp(frame.positions[:, 2]) == pytest.approx(16.0)
        assert top < frame.cell[2, 2]


def test_adsorbates_stand_on_their_binding_atom_and_unknown_ones_are_refused():
    for name, foot in (("CO", "C"), ("H2O", "O"), ("NH3", "N"), ("CH3OH", "C"), ("O", "O")):
        atoms = adsorbate(name)
        assert atoms.positions[atoms.symbols.search(foot)[0]] == pytest.approx([0, 0, 0])
        assert atoms.positions[:, 2].mean() >= -1e-9
    with pytest.raises(StructureError, match="'C0', neither an element nor"):
        adsorbate("C0")


def test_the_lower_share_of_a_slab_is_fixed_and_nothing_of_what_lies_on_it():
    slab = slabs(crystal("Cu", None), (1, 0, 0), thickness_A=6.0, vacuum_A=6.0)[0]
    frame = adsorbed(slab, "H", ["ontop"], repeat=(1, 1))[0]
    fixed = fix_bottom(frame, 0.5, slab_atoms=len(slab)).constraints[0].index
    z = frame.positions[:, 2]
    middle = (z[: len(slab)].min() + z[: len(slab)].max()) / 2
    assert set(fixed) == set(np.flatnonzero(z <= middle))
    assert fix_bottom(slab.copy(), 0.0, slab_atoms=len(slab)).constraints == []


# ---- molecules


@needs_rdkit
def test_conformers_differ_have_hydrogens_charge_and_spin_and_follow_the_seed():
    def made(seed: int, smiles: str = "CCCCO") -> list[Atoms]:
        rng = np.random.default_rng(seed)
        return conformers(smiles, rng, most=6, optimize="mmff", apart_A=0.3)

    one, again, other = made(1), made(1), made(2)
    assert [a.positions.tobytes() for a in one] == [a.positions.tobytes() for a in again]
    assert one[0].positions.tobytes() != other[0].positions.tobytes()
    assert len(one) > 1
    assert one[0].get_chemical_formula() == "C4H10O"
    assert all(not Gate().check_structure(a) for a in one)
    assert 1.0 < min(nearest_neighbours(a)[0].min() for a in one) / 0.96 < 1.05  # O-H of force fields
    assert made(1, "CC(=O)[O-]")[0].info == {"charge": -1}
    assert made(1, "[CH3]")[0].info == {"multiplicity": 2}
    assert made(1, "CO")[0].info == {}


@needs_rdkit
@pytest.mark.parametrize(
    ("smiles", "said"),
    [
        ("C(C", "'C(C' is no molecule .*open parentheses"),
        ("", "is no molecule"),
        ("C[N](C)(C)(C)C", "valence"),
        ("*C", "holds a '*'"),
        ("O.O", "several molecules"),
    ],
)
def test_smiles_that_are_no_molecule_say_why(smiles, said, capfd):
    with pytest.raises(StructureError, match=said.replace("(C'", r"\(C'").replace("*'", r"\*'")):
        conformers(smiles, np.random.default_rng(0), most=1, optimize="none", apart_A=0.3)
    assert capfd.readouterr().err == ""  # RDKit's own words are in the message


def test_without_rdkit_one_is_told_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "rdkit", None)
    with pytest.raises(EnvironmentProblemError, match=r"pip install 'tace-alchemy\[smiles\]'"):
        conformers("CCO", np.random.default_rng(0), most=1, optimize="mmff", apart_A=0.3)


# ---- variants


def test_strains_are_even_and_only_along_periodic_axes():
    copper = bulk("Cu", cubic=True)
    frames = strained(copper, ["hydrostatic", "uniaxial", "shear"], largest=0.04, steps=2)
    assert len(frames) == 1 + 4 * (1 + 3 + 3)
    volumes = sorted(f.get_volume() / copper.get_volume() for f in frames[1:5])
    assert volumes == pytest.approx([(1 + s) ** 3 for s in (-0.04, -0.02, 0.02, 0.04)])
    for frame in frames:
        assert frame.get_scaled_positions() == pytest.approx(copper.get_scaled_positions(), abs=1e-12)
    slab = slabs(copper, (1, 0, 0), thickness_A=4.0, vacuum_A=6.0)[0]
    slab.pbc = (True, True, False)
    heights = {round(float(f.cell[2, 2]), 9) for f in strained(slab, ["uniaxial"], largest=0.1, steps=1)}
    assert len(heights) == 1
    for options in ({"largest": 0.6}, {"modes": ["bend"]}):
        with pytest.raises(PolicyError):
            strained(copper, **{"modes": ["shear"], "largest": 0.1, "steps": 1, **options})
    with pytest.raises(PolicyError, match="not periodic"):
        strained(molecule("H2O"), ["shear"], largest=0.1, steps=1)


def test_substitutions_and_vacancies_hit_the_share_asked_for_and_nothing_else():
    rng = np.random.default_rng(3)
    salt = bulk("NaCl", "rocksalt", a=5.6, cubic=True).repeat((2, 1, 1))
    kept = salt.copy()
    for _ in range(20):
        mixed = substituted(salt, rng, replaced="Na", by=["K", "Rb"], fraction=(0.25, 0.5))
        assert 2 <= (mixed.numbers != salt.numbers).sum() <= 4
        assert (mixed.symbols == "Cl").sum() == 8
        holes = with_vacancies(salt, rng, element="Cl", fraction=(0.125, 0.25))
        assert (holes.symbols == "Na").sum() == 8 and 6 <= (holes.symbols == "Cl").sum() <= 7
    assert (salt.numbers == kept.numbers).all() and len(salt) == len(kept)
    shaken = rattled(salt, rng, stdev_A=0.05)
    assert 0.03 < np.std(shaken.positions - salt.positions) < 0.07  # 48 draws
    with pytest.raises(PolicyError, match="holds no Br, only Cl, Na"):
        substituted(salt, rng, replaced="Br", by=["K"], fraction=(0.1, 0.1))
    with pytest.raises(PolicyError, match="leaves none"):
        with_vacancies(salt, rng, element=None, fraction=(1.0, 1.0))
    with pytest.raises(PolicyError, match="fraction is"):
        with_vacancies(salt, rng, element=None, fraction=(0.5, 0.2))


@pytest.mark.slow
def test_the_benchmark_of_the_generators_tells_what_the_laws_demand():
    script = Path(__file__).parent / "bench" / "reico_generator.py"
    words = [sys.executable, str(script), "--smoke"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=200)
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert {r["bench"] for r in records} == {"size", "compositions", "kinds", "descent"}
    grown = [r for r in records if r.get("method") == "grow" and "acceptance" in r]
    assert {r["acceptance"] for r in grown} == {1.0}
    assert all(r["same_bytes"] for r in records if "same_bytes" in r)


# ---- items of a campaign


def material(kind: str, settings: dict, *, seed: int = 0, frames=(), forces=None) -> Material:
    source = BLOCKS[kind].model_validate(settings).model_dump(mode="json", by_alias=False)
    return Material(source, np.random.default_rng(seed), lambda _: list(frames), forces)


def test_every_kind_has_a_builder_and_the_same_seed_gives_the_same_bytes():
    assert set(BUILDERS) == set(BLOCKS)
    copper = bulk("Cu", cubic=True)
    for kind, settings in {
        "reico": {"count": 4, "mix": {"Cu": "1-3", "O": "0-2"}, "kinds": ["bulk", "cluster"]},
        "bulk": {"formula": "Cu", "volumes": [0.9, 1.1]},
        "slab": {"formula": "Cu", "facets": [111], "adsorbates": ["O"], "fixed": 0.4},
        "substitute": {"structures": "x", "count": 3, "replace": "Cu", "by": ["Ag"], "fraction": 0.5},
        "vacancy": {"structures": "x", "count": 3, "fraction": 0.1, "repeat": [2, 2, 1]},
        "strain": {"structures": "x"},
    }.items():
        one, again = (build(kind, material(kind, settings, frames=[copper]), SYMBOLS) for _ in range(2))
        assert len(one) > 1
        assert [a.positions.tobytes() for a in one] == [a.positions.tobytes() for a in again]
        assert all(a.calc is None for a in one)
        with pytest.raises(StructureError, match=rf"{kind}: .*not among the campaign's elements \(H\)"):
            build(kind, material(kind, settings, frames=[copper]), ["H"])


class Refusing(EMT):
    """EMT whose SCF 'does not converge' where atoms are closer than 1.9 Å."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=()) -> None:
        if nearest_neighbours(atoms)[0].min() < 1.9:
            raise CalculationFailed("did not converge")
        super().calculate(atoms, properties, system_changes)


def test_a_labeler_relaxes_what_it_can_and_its_failures_end_one_structure_only():
    settings = {"count": 12, "mix": {"Cu": "2-3", "Pd": "1-2"}, "relax_with": "emt", "relax_steps": 4,
                "frames": 2, "birth": True}
    forces = CalculatorSessions(Refusing())  # a third of these are refused at birth
    frames = build("reico", material("reico", settings, forces=lambda _: forces), SYMBOLS)
    assert forces.failed > 0
    assert 3 < len(frames) < 12 * 3
    always = CalculatorSessions(EMT())
    lower = build("reico", material("reico", {**settings, "count": 4}, forces=lambda _: always), SYMBOLS)
    energies = []
    for atoms in lower:
        atoms.calc = EMT()
        energies.append(atoms.get_potential_energy())
    assert len(lower) == 12
    assert (np.array(energies).reshape(4, 3)[:, 2] < np.array(energies).reshape(4, 3)[:, 0]).all()


def test_basin_hopping_with_a_labeler_keeps_what_is_fixed():
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.2, seed=1)
    atoms.set_constraint(FixAtoms([0]))
    settings = {"structures": "x", "with": "emt", "hops": 2, "relax_steps": 4, "step": "0.4 A"}
    given = material("basin_hopping", settings, frames=[atoms], forces=lambda _: CalculatorSessions(EMT()))
    frames = build("basin_hopping", given, SYMBOLS)
    assert len(frames) == 3
    assert all((f.positions[0] == atoms.positions[0]).all() for f in frames)
    assert all((f.positions[1:] != atoms.positions[1:]).any() for f in frames)
