"""Slabs by facet, and adsorbates on their sites: pymatgen's SlabGenerator and AdsorbateSiteFinder.

An adsorbate stands upright on its binding atom (C before N, O, S, otherwise its first), as high above the
site as the sum of covalent radii asks. Slabs have z as normal, vacuum on both sides, and are flagged periodic
along all axes, as plane-wave codes want it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.collections import g2
from ase.constraints import FixAtoms
from ase.data import atomic_numbers, covalent_radii

from tace.wording import hint

from ..errors import StructureError

SITES = ("ontop", "bridge", "hollow")
BINDING = ("C", "N", "O", "S")


def parse_facet(text: str) -> tuple[int, ...]:
    """'111', '1-10', '0001' (hexagonal) or '1 1 -2' as Miller indices.

    Raises:
        StructureError: not three or four integers, all zero, or h + k + i ≠ 0 of four.
    """
    found = re.findall(r"-?\d+" if re.search(r"[\s,]", text) else r"-?\d", text.strip())
    if not re.fullmatch(r"[-\d\s,]+", text) or len(found) not in (3, 4):
        raise StructureError(
            f"facets: found '{text}'; write Miller indices such as 111, 1-10, 0001 or [1, 0, 2]"
        )
    indices = tuple(int(n) for n in found)
    if not any(indices):
        raise StructureError(f"facets: found '{text}'; a facet that is zero along all axes does not exist")
    if len(indices) == 4 and indices[0] + indices[1] + indices[2] != 0:
        raise StructureError(
            f"facets: found '{text}'; of four indices the first three add up to 0: such a facet does not "
            "exist, write three"
        )
    return indices


def slabs(crystal: Atoms, facet: tuple[int, ...], *, thickness_A: float, vacuum_A: float) -> list[Atoms]:
    """All different terminations of a facet, the smallest cells that repeat.

    Args:
        facet: Miller indices in the cell of `crystal`; four only where that is hexagonal.

    Raises:
        StructureError: a crystal that is not periodic along all axes, or four indices of another crystal.
    """
    from pymatgen.core.surface import SlabGenerator
    from pymatgen.io.ase import AseAtomsAdaptor

    if not crystal.pbc.all():
        raise StructureError(
            f"{crystal.get_chemical_formula()} is not periodic along all axes; slabs are cut from crystals"
        )
    angles, lengths = crystal.cell.angles(), crystal.cell.lengths()
    hexagonal = abs(lengths[0] - lengths[1]) < 1e-3 and np.allclose(angles, (90, 90, 120), atol=0.1)
    if len(facet) == 4:
        if not hexagonal:
            raise StructureError(
                f"facets: {facet} has four indices, and {crystal.get_chemical_formula()} is not hexagonal; "
                "write three"
            )
        facet = (facet[0], facet[1], facet[3])
    adaptor = AseAtomsAdaptor()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of oxidation states that nobody has given
        generator = SlabGenerator(
            adaptor.get_structure(crystal),
            facet,
            thickness_A,
            10.0,
            center_slab=True,
            max_normal_search=max(map(abs, facet)),  # smaller ones give larger cells: 32 for 12 atoms of 211
        )
        found = [slab.get_orthogonal_c_slab() for slab in generator.get_slabs()]
    return [_upright(adaptor.get_atoms(slab), vacuum_A) for slab in found]


def _upright(found: Atoms, vacuum_A: float) -> Atoms:
    """a along x, normal along z, nothing but atoms; wrapped, so that no atom is cut off."""
    cell, _ = found.cell.standard_form()
    atoms = Atoms(found.numbers, scaled_positions=found.get_scaled_positions(), cell=cell, pbc=True)
    atoms.center(vacuum_A, axis=2)
    order = np.argsort(atoms.positions[:, 2].round(6), kind="stable")
    return atoms[order]


def adsorbed(slab: Atoms, name: str, sites: Sequence[str], *, repeat: tuple[int, int]) -> list[Atoms]:
    """The slab, repeated, with the adsorbate on each kind of site that symmetry tells apart.

    Raises:
        StructureError: an unknown adsorbate, or no site of these kinds.
    """
    from pymatgen.analysis.adsorption import AdsorbateSiteFinder
    from pymatgen.io.ase import AseAtomsAdaptor

    above = adsorbate(name)
    wide = slab.repeat((*repeat, 1))
    # in a single surface cell, sites that symmetry relates are found twice
    looked = slab.repeat((*(max(2, n) for n in repeat), 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        finder = AdsorbateSiteFinder(AseAtomsAdaptor.get_structure(looked))
        found = finder.find_adsorption_sites(distance=0.0, positions=list(sites))
    frames = []
    for kind in sites:
        for site in found[kind]:
            inside = np.linalg.solve(wide.cell.array.T, np.asarray(site, dtype=float))
            inside[:2] %= 1.0
            frame = wide.copy()
            frame += _placed(above, wide, inside @ wide.cell.array)
            frames.append(_with_room(frame, slab))
    if not frames:
        raise StructureError(
            f"sites: {slab.get_chemical_formula()} has no {' or '.join(sites)} site; add others of "
            f"{', '.join(SITES)}"
        )
    return frames


def adsorbate(name: str) -> Atoms:
    """The molecule upright on its binding atom, which lies at the origin."""
    if name in atomic_numbers and atomic_numbers[name] > 0:
        return Atoms(name, positions=[[0, 0, 0]])
    if name not in g2.names:
        raise StructureError(
            f"adsorbates: found '{name}', neither an element nor a molecule of ASE's g2 set; "
            f"{hint(name, tuple(sorted(n for n in g2.names if len(n) < 6)))}"
        )
    atoms = molecule(name)
    foot = next((atoms.symbols.search(s)[0] for s in BINDING if s in atoms.symbols), 0)
    atoms.positions -= atoms.positions[foot]
    rest = np.delete(atoms.positions, foot, axis=0).mean(0)
    if np.linalg.norm(rest) > 1e-3:  # else it lies, as CH4 would
        atoms.rotate(rest, (0, 0, 1))
    return Atoms(atoms.numbers, positions=atoms.positions)


def _placed(above: Atoms, slab: Atoms, site: np.ndarray) -> Atoms:
    """At the site, and no atom of it closer to the slab than the sum of covalent radii."""
    lattice = slab.cell.array[:2]
    shifts = np.array([i * lattice[0] + j * lattice[1] for i in (-1, 0, 1) for j in (-1, 0, 1)])
    there = (slab.positions[None] + shifts[:, None]).reshape(-1, 3)
    radii = np.tile(covalent_radii[slab.numbers], len(shifts))
    heights = []
    for number, position in zip(above.numbers, above.positions, strict=True):
        aside = np.linalg.norm(there[:, :2] - (site[:2] + position[:2]), axis=1)
        reach = covalent_radii[number] + radii
        near = aside < reach
        if near.any():
            contact = there[near, 2] + np.sqrt(reach[near] ** 2 - aside[near] ** 2)
            heights.append(contact.max() - position[2])
    placed = above.copy()
    top = slab.positions[:, 2].max()
    placed.positions += [site[0], site[1], max(heights, default=top)]
    return placed


def _with_room(frame: Atoms, slab: Atoms) -> Atoms:
    """The vacuum above the adsorbate is as wide as it was above the slab."""
    room = slab.cell[2, 2] - np.ptp(slab.positions[:, 2])
    cell = frame.cell.array.copy()
    cell[2, 2] = np.ptp(frame.positions[:, 2]) + room
    frame.set_cell(cell)
    return frame


def fix_bottom(atoms: Atoms, share: float, *, slab_atoms: int) -> Atoms:
    """Fix the atoms in the lower share of a slab's thickness; the slab's atoms come first."""
    if share > 0:
        z = atoms.positions[:slab_atoms, 2]
        limit = z.min() + share * np.ptp(z) - 1e-6
        atoms.set_constraint(FixAtoms(np.flatnonzero(z <= limit) if np.ptp(z) > 0 else []))
    return atoms
