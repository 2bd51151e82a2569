"""From an item of a campaign to its structures: one function per kind of `config_structures.BLOCKS`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from alchemy_policies.base import PolicyError
from alchemy_policies.calculators import CalculatorSessions
from alchemy_policies.hopping import BasinHopping
from alchemy_policies.reico import Reico
from alchemy_policies.variants import strained, substituted, with_vacancies
from ase import Atoms

from ..errors import StructureError
from ..gate import Gate

Read = Callable[[str], list[Atoms]]
Forces = Callable[[str], CalculatorSessions]


@dataclass(frozen=True)
class Material:
    """What a builder may use."""

    source: dict[str, Any]  # the settings of the item's block, by attribute
    rng: np.random.Generator
    read: Read  # a structure file
    forces: Forces  # of a fidelity


def build(kind: str, material: Material, elements: Sequence[str]) -> list[Atoms]:
    """The structures of an item, checked; without calculators, with the constraints that the item asks for.

    Raises:
        StructureError: an item that gives nothing sensible; says which key and what would do.
    """
    try:
        frames = BUILDERS[kind](material)
    except PolicyError as error:
        raise StructureError(f"{kind}: {error}") from error
    except StructureError as error:
        named = str(error).partition(":")[0].isalpha()  # a key of the block, and not a path
        raise StructureError(f"{kind}.{error}" if named else str(error)) from None
    for n, atoms in enumerate(frames):
        strange = sorted(set(atoms.get_chemical_symbols()) - set(elements))
        if strange:
            raise StructureError(
                f"{kind}: structure {n} ({atoms.get_chemical_formula()}) holds {', '.join(strange)}, "
                f"not among the campaign's elements ({', '.join(elements)})"
            )
        # random structures are offered as they are: what a labeler cannot do is a failed label
        problems = [] if kind == "reico" else Gate().check_structure(atoms)
        if problems:
            raise StructureError(f"{kind}: structure {n} ({atoms.get_chemical_formula()}): {problems[0][1]}")
    return frames


def _smiles(given: Material) -> list[Atoms]:
    from .molecules import conformers

    source = given.source
    return [
        atoms
        for text in source["smiles"]
        for atoms in conformers(
            text, given.rng, most=source["conformers"], optimize=source["optimize"], apart_A=source["apart_A"]
        )
    ]


def _bulk(given: Material) -> list[Atoms]:
    from .crystals import crystal

    source = given.source
    cell = crystal(source["formula"], source["prototype"], a_A=source["a_A"], c_A=source["c_A"])
    frames = []
    for volume in source["volumes"]:
        atoms = cell.repeat(tuple(source["repeat"]))
        atoms.set_cell(atoms.cell.array * volume ** (1 / 3), scale_atoms=True)
        frames.append(atoms)
    return frames


def _slab(given: Material) -> list[Atoms]:
    from .crystals import crystal
    from .slabs import adsorbed, fix_bottom, parse_facet, slabs

    source = given.source
    if source["structures"] is not None:
        crystals = given.read(source["structures"])
    else:
        crystals = [crystal(source["formula"], source["prototype"], a_A=source["a_A"], c_A=source["c_A"])]
    repeat = tuple(source["repeat"])
    frames = []
    for facet in [parse_facet(text) for text in source["facets"]]:
        cut = [
            slab
            for cell in crystals
            for slab in slabs(cell, facet, thickness_A=source["thickness_A"], vacuum_A=source["vacuum_A"])
        ]
        for slab in cut:
            bare = slab.repeat((*repeat, 1))
            made = [bare] if source["bare"] or not source["adsorbates"] else []
            for name in source["adsorbates"]:
                made += adsorbed(slab, name, source["sites"], repeat=repeat)
            frames += [fix_bottom(atoms, source["fixed"], slab_atoms=len(bare)) for atoms in made]
    return frames


def _copies(given: Material, change: Callable[[Atoms], Atoms]) -> list[Atoms]:
    starts = [atoms.repeat(tuple(given.source["repeat"])) for atoms in given.read(given.source["structures"])]
    return [change(starts[n % len(starts)]) for n in range(given.source["count"])]


def _substitute(given: Material) -> list[Atoms]:
    source = given.source
    return _copies(
        given,
        lambda atoms: substituted(
            atoms,
            given.rng,
            replaced=source["replace"],
            by=source["by"],
            fraction=tuple(source["fraction"]),
        ),
    )


def _vacancy(given: Material) -> list[Atoms]:
    source = given.source
    return _copies(
        given,
        lambda atoms: with_vacancies(
            atoms, given.rng, element=source["element"], fraction=tuple(source["fraction"])
        ),
    )


def _strain(given: Material) -> list[Atoms]:
    source = given.source
    return [
        frame
        for atoms in given.read(source["structures"])
        for frame in strained(atoms, source["modes"], largest=source["largest"], steps=source["steps"])
    ]


def _reico(given: Material) -> list[Atoms]:
    source = given.source
    slabs = given.read(source["structures"]) if source["structures"] else []
    names = ("mix", "adsorbate", "atoms", "nearest_A", "volume_ratio", "vacuum_A")
    policy = Reico(
        count=source["count"],
        recipe={name: source[name] for name in names},  # type: ignore[arg-type]
        method=source["method"],
        kinds=source["kinds"],
        on_starts=source["structures"] is not None,
        hold_base=source["hold_base"],
        relax_steps=source["relax_steps"],
        frames=source["frames"],
        birth=source["birth"],
        batch_atoms=1,  # a labeler takes one at a time
    )
    if source["relax_with"] is None:
        return [_bare(born.atoms) for born, _ in policy.make(slabs, given.rng)]
    forces = given.forces(source["relax_with"])
    found = policy(slabs, forces, None, given.rng)
    return _offered([c.atoms for c in found.candidates], forces, "relax_with")


def _basin_hopping(given: Material) -> list[Atoms]:
    source = given.source
    names = ("hops", "step_A", "swap", "relax_steps", "walkers")
    policy = BasinHopping(**{name: source[name] for name in names}, temperature_K=source["T_K"])
    forces = given.forces(source["fidelity"])
    found = policy(given.read(source["structures"]), forces, None, given.rng)
    return _offered([c.atoms for c in found.candidates], forces, "with")


def _bare(atoms: Atoms) -> Atoms:
    atoms.set_constraint()
    return atoms


def _offered(frames: list[Atoms], forces: CalculatorSessions, key: str) -> list[Atoms]:
    if not frames:
        raise StructureError(
            f"{key}: none of {forces.failed} calculations succeeded; choose a fidelity that can treat these "
            "structures, or larger distances"
        )
    return frames


BUILDERS: dict[str, Callable[[Material], list[Atoms]]] = {
    "smiles": _smiles,
    "bulk": _bulk,
    "slab": _slab,
    "substitute": _substitute,
    "vacancy": _vacancy,
    "strain": _strain,
    "reico": _reico,
    "basin_hopping": _basin_hopping,
}
