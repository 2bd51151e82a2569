"""D3 on top of a calculator, against the library's own calculator and its sums over finite clusters."""

from __future__ import annotations

import dataclasses
import sys
from importlib.util import find_spec

import numpy as np
import pytest
from ase import Atoms
from ase.build import make_supercell, molecule
from ase.calculators.calculator import Calculator, PropertyNotImplementedError
from ase.calculators.lj import LennardJones
from ase.units import Bohr, Hartree
from numpy.testing import assert_allclose

from tace.calculator import TaceCalculator
from tace.committee import Committee
from tace.config import preset
from tace.dispersion import CUTOFFS_BOHR, REACH_A, with_dispersion
from tace.errors import TaceError
from tace.model import Tace
from tace.testing import FLOAT64, check_potential, from_calculator

needs_d3 = pytest.mark.skipif(find_spec("dftd3") is None, reason="no dftd3; try: pip install dftd3")


def base() -> LennardJones:
    """Soft and smooth, so that finite differences of it are clean."""
    return LennardJones(sigma=0.6, epsilon=0.2, rc=4.0, smooth=True)


# the library cuts coordination numbers at 21 Å, where a pair still counts 1e-7: the energy jumps by 4e-9 eV,
# and so many pairs of a dense crystal cross it at a strain of 1e-3 that the slope is off by 1e-4 of it
D3 = dataclasses.replace(FLOAT64, step=1e-3, slope=1e-4)


class ZeroCalculator(Calculator):
    """Nothing, for every structure."""

    implemented_properties = ("energy", "forces")

    def calculate(self, *args):
        super().calculate(*args)
        self.results = {"energy": 0.0, "forces": np.zeros((len(self.atoms), 3))}


@needs_d3
@pytest.mark.parametrize("functional", ["pbe", "B3LYP"])
@pytest.mark.parametrize("damping", ["d3bj", "d3zero", "d3bjm", "d3zerom"])
@pytest.mark.parametrize("name", ["ethanol", "crystal", "atom"])
def test_the_sum_is_the_calculator_plus_what_the_library_says(name, functional, damping, structure):
    from dftd3.ase import DFTD3

    atoms, alone, d3 = structure(name), structure(name), structure(name)
    atoms.calc = with_dispersion(base(), functional=functional, damping=damping)
    reach = {name: value * Bohr for name, value in CUTOFFS_BOHR.items()}
    alone.calc, d3.calc = base(), DFTD3(method=functional, damping=damping, realspace_cutoff=reach)
    # the same library: only the unit conversion and the sum are rounded
    expected = alone.get_potential_energy() + d3.get_potential_energy()
    assert atoms.get_potential_energy() == pytest.approx(expected, abs=1e-12)
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()
    assert atoms.calc.results["dispersion_energy"] == pytest.approx(d3.get_potential_energy(), abs=1e-12)
    assert_allclose(atoms.get_forces(), alone.get_forces() + d3.get_forces(), rtol=0, atol=1e-12)
    if atoms.pbc.all():
        assert_allclose(atoms.get_stress(), alone.get_stress() + d3.get_stress(), rtol=0, atol=1e-12)


@needs_d3
def test_water_has_the_energy_that_the_library_documents():
    water = molecule("H2O")
    water.calc = with_dispersion(base(), functional="TPSS")
    water.get_potential_energy()
    # printed with all digits in its manual; the three-body term of so small a molecule is below them
    assert water.calc.results["dispersion_energy"] == pytest.approx(-0.011441640787279111, rel=1e-9)


def cluster_energy(atoms: Atoms, copies: int) -> float:
    """Energy of the middle cell among copies along the periodic axes, from pairs of a finite system."""
    from dftd3.interface import DispersionModel, RationalDampingParam

    cell = atoms.cell.complete()
    steps = [range(-copies, copies + 1) if periodic else [0] for periodic in atoms.pbc]
    shifts = np.array([[a, b, c] for a in steps[0] for b in steps[1] for c in steps[2]])
    shifts = shifts[np.argsort(np.abs(shifts).sum(1), kind="stable")]  # the middle first
    positions = (atoms.positions + (shifts @ cell)[:, None]).reshape(-1, 3)
    model = DispersionModel(np.tile(atoms.numbers, len(shifts)), positions / Bohr)
    model.set_realspace_cutoff(**CUTOFFS_BOHR)
    pairs = model.get_pairwise_dispersion(RationalDampingParam(method="pbe"))["additive pairwise energy"]
    return float(pairs[: len(atoms)].sum() * Hartree)


@needs_d3
@pytest.mark.parametrize(("name", "copies"), [("wire", 15), ("slab", 12)])
@pytest.mark.parametrize("vacuum_A", [0.0, 3.0, 40.0])
def test_slabs_and_wires_have_the_energy_of_a_large_piece(name, copies, vacuum_A, structure):
    """The library's own flags for partly periodic structures give something else: see `_box`."""
    atoms = structure(name)
    for axis in np.flatnonzero(~atoms.pbc):
        atoms.cell[axis, axis] = vacuum_A
    atoms.rotate(35.0, (1.0, 2.0, -1.0), rotate_cell=True)
    atoms.calc = with_dispersion(base(), functional="pbe")
    forces = atoms.get_forces()
    said = atoms.calc.results["dispersion_energy"]
    # the piece is larger than the reach, and its edges, where coordination differs, are beyond it
    assert said == pytest.approx(cluster_energy(atoms, copies), abs=1e-9)
    assert_allclose(forces.sum(0), 0.0, atol=1e-10)


@needs_d3
def test_the_sum_obeys_the_laws_of_a_potential(structure):
    """Invariances, and forces and stress against finite differences, also of partly periodic structures."""
    names = ("ethanol", "crystal", "slab", "wire")
    potential = from_calculator(with_dispersion(base(), functional="pbe"))
    check_potential(potential, [structure(name) for name in names], cutoff_A=REACH_A, tolerance=D3)


@needs_d3
def test_a_supercell_has_a_multiple_of_the_energy(structure):
    small = structure("crystal")
    large = make_supercell(small, [[1, 1, 0], [0, 1, 1], [0, 0, 2]])
    for atoms in (small, large):
        atoms.calc = with_dispersion(base(), functional="pbe")
    # another choice of lattice vectors: float64 sums of 1e5 pairs
    assert large.get_potential_energy() == pytest.approx(2 * small.get_potential_energy(), abs=1e-9)


# ---- with a committee ----


@needs_d3
def test_a_committee_keeps_its_spreads_and_gains_the_dispersion(structure):
    config = preset(
        "nano", elements=(1, 6, 8), cutoff_A=3.4, channels=4, radial_hidden=(8,), avg_neighbors=4.0
    )
    committee = Committee([Tace(config, seed=seed) for seed in range(2)])
    atoms, alone = structure("crystal"), structure("crystal")
    atoms.calc = with_dispersion(TaceCalculator(committee), functional="pbe")
    alone.calc = TaceCalculator(committee)
    d3 = atoms.calc.get_property("dispersion_energy", atoms)
    assert d3 < -0.1
    assert atoms.get_potential_energy() == pytest.approx(alone.get_potential_energy() + d3, abs=1e-12)
    assert np.abs(atoms.get_stress() - alone.get_stress()).max() > 1e-4
    spread = atoms.calc.get_property("force_spread", atoms)
    assert (spread > 0).all()
    assert_allclose(spread, alone.calc.get_property("force_spread", alone), rtol=0, atol=1e-12)


@needs_d3
def test_stress_is_missing_where_the_calculator_has_none(structure):
    config = preset("nano", elements=(1, 6, 8), cutoff_A=3.4, channels=4, radial_hidden=(8,))
    atoms = structure("slab")
    atoms.calc = with_dispersion(TaceCalculator(Committee([Tace(config)])), functional="pbe")
    assert np.isfinite(atoms.get_forces()).all()
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_stress()


# ---- mistakes ----


@needs_d3
def test_an_unknown_functional_is_answered_with_similar_ones():
    with pytest.raises(TaceError, match=r"no d3bj parameters for functional 'r2scna'; try: .*r2scan"):
        with_dispersion(base(), functional="r2scna")
    with pytest.raises(TaceError, match=r"no d3zerom parameters for functional 'wb97m'; try: b97d"):
        with_dispersion(base(), functional="wb97m", damping="d3zerom")


@needs_d3
def test_an_unknown_damping_is_answered_with_the_known_ones():
    with pytest.raises(TaceError, match="unknown damping 'bj'; known: d3bj, d3zero"):
        with_dispersion(base(), functional="pbe", damping="bj")


@needs_d3
@pytest.mark.parametrize(
    ("symbols", "height", "message"),
    [("OgH", 2.0, r"no parameters for Og \(118\)"), ("H2", 0.0, "refuses H2: ")],
)
def test_a_structure_that_d3_cannot_treat_is_named(symbols, height, message):
    atoms = Atoms(symbols, positions=[[0, 0, 0], [0, 0, height]])
    atoms.calc = with_dispersion(ZeroCalculator(), functional="pbe")
    with pytest.raises(TaceError, match=message):
        atoms.get_potential_energy()


def test_without_the_library_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "dftd3", None)
    with pytest.raises(TaceError, match=r"needs the Python package 'dftd3'.*pip install 'dftd3"):
        with_dispersion(base(), functional="pbe")
