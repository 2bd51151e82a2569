"""The blocks of structures made from a description: molecules, crystals, slabs, variants, random cells.

They are items of `start` and `test`; `reico` and `basin_hopping` are items of `explore` too. What builds them
is in `alchemy/builders`, and `alchemy sample` makes each of them alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from alchemy.config_fields import (
    Block,
    Count,
    Element,
    FilePath,
    Flag,
    Fraction,
    NotNegative,
    Positive,
    Whole,
    wrong,
)
from alchemy.quantities import Force, Length, Temperature
from tace.wording import describe, hint

RANDOM_KINDS = ("bulk", "surface", "adsorbate", "cluster")


def _check_range(value: object) -> tuple[int, int]:
    """'0-6', [0, 6] or 6."""
    ends: Any = value
    if isinstance(value, str) and (match := re.fullmatch(r"\s*(\d+)\s*-\s*(\d+)\s*", value)):
        ends = [int(match[1]), int(match[2])]
    if type(value) is int:
        ends = [value, value]
    if not (isinstance(ends, list | tuple) and len(ends) == 2 and all(type(n) is int for n in ends)):
        raise wrong(f"found {describe(value)}; write a range such as 0-6, or a number of atoms")
    if not 0 <= ends[0] <= ends[1]:
        raise wrong(f"found {ends[0]} to {ends[1]}; the first must not be above the second, nor below 0")
    return int(ends[0]), int(ends[1])


_RANGE_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "string", "pattern": r"^\s*\d+\s*-\s*\d+\s*$"},
        {"type": "integer", "minimum": 0},
        {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 2, "maxItems": 2},
    ]
}
AtomRange = Annotated[
    tuple[int, int], BeforeValidator(_check_range), WithJsonSchema(_RANGE_SCHEMA)
]


def _one_as_range(value: object) -> object:
    """`fraction: 0.2` is [0.2, 0.2]."""
    return [value, value] if isinstance(value, int | float) and not isinstance(value, bool) else value


def _check_share(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 < value[0] <= value[1]:
        raise wrong(f"found {value[0]:g} to {value[1]:g}; needs 0 < first ≤ second ≤ 1")
    return value


_SHARE_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2},
    ]
}
Share = Annotated[
    tuple[Fraction, Fraction],
    AfterValidator(_check_share),
    BeforeValidator(_one_as_range),
    WithJsonSchema(_SHARE_SCHEMA),
]


def _weights(value: object) -> object:
    """`kinds: [bulk, cluster]` gives each the weight 1."""
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        value = dict.fromkeys(value, 1.0)
    if not isinstance(value, Mapping):
        raise wrong(f"found {describe(value)}; write [bulk, surface] or weights, {{bulk: 3, surface: 1}}")
    for name in value:
        if name not in RANDOM_KINDS:
            raise wrong(f"found '{name}', no such kind; {hint(str(name), RANDOM_KINDS)}")
    return {k: float(v) if type(v) is int else v for k, v in value.items()}


Kinds = Annotated[
    dict[str, NotNegative],
    Field(min_length=1),
    BeforeValidator(_weights),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "object", "additionalProperties": {"type": "number", "minimum": 0}},
                {"type": "array", "items": {"enum": list(RANDOM_KINDS)}, "minItems": 1},
            ]
        }
    ),
]
Repeat = Annotated[tuple[Count, Count, Count], Field()]


class RandomCells(Block):
    """What the two blocks named reico have in common: how random structures come about."""

    count: Count = Field(description="Random structures, divided among the kinds by weight")
    mix: dict[Element, AtomRange] = Field(
        default_factory=dict, description="Atoms of each element: {Pd: 0-6, O: 0-3}; base of adsorbates"
    )
    adsorbate: dict[Element, AtomRange] = Field(
        default_factory=dict, description="Likewise, of what the kind adsorbate puts on its base"
    )
    kinds: Kinds = Field(
        default={"bulk": 1.0}, description="Weights of bulk, surface, adsorbate and cluster"
    )
    method: Literal["grow", "reico"] = Field(
        default="grow", description="grow (unbiased, any size), or reico (as published, 4-20 atoms)"
    )
    atoms: AtomRange = Field(default=(2, 200), description="Atoms in all, fewest and most")
    nearest_A: tuple[Length, Length] = Field(
        default=(1.5, 3.0), alias="nearest", description="Window of each atom's nearest neighbour"
    )
    volume_ratio: tuple[Positive, Positive] = Field(
        default=(1.2, 5.0), description="Volume of the cell, in spheres of 1.3 A radius per atom"
    )
    vacuum_A: Length = Field(
        default=8.0, alias="vacuum", description="On each side of surfaces and clusters"
    )
    structures: FilePath | None = Field(
        default=None, description="Slabs for the kind adsorbate; null: random ones of mix"
    )
    hold_base: Flag = Field(default=False, description="What lies below an adsorbate does not move")

    def recipe(self) -> dict[str, Any]:
        """Options of `alchemy_policies.Recipe`."""
        names = ("mix", "adsorbate", "atoms", "nearest_A", "volume_ratio", "vacuum_A")
        return {name: getattr(self, name) for name in names}

    def options(self) -> dict[str, Any]:
        """Options of `alchemy_policies.Reico` that both blocks have; JSON."""
        return {
            "count": self.count,
            "recipe": self.recipe(),
            "method": self.method,
            "kinds": dict(self.kinds),
            "on_starts": self.structures is not None,
            "hold_base": self.hold_base,
        }


class SampleReico(RandomCells):
    """Random structures of all elements together, for the time before there is a model."""

    relax_with: str | None = Field(
        default=None, description="Fidelity of a short optimisation; null: as they are born"
    )
    relax_steps: Whole = Field(default=10, description="Steps of the short optimisation")
    frames: Count = Field(default=3, description="Frames of each along its optimisation")
    birth: Flag = Field(default=False, description="What is born too; its largest forces are huge")

    @property
    def most(self) -> int:
        return self.count * (self.frames + self.birth if self.relax_with else 1)


class ExploreReico(RandomCells):
    """Random structures of all elements, optimised a little with the committee (REICO)."""

    relax_steps: Whole = Field(default=10, description="Steps of the short optimisation")
    frames: Count = Field(default=3, description="Frames of each along its optimisation")
    birth: Flag = Field(default=False, description="What is born too; its largest forces are huge")
    abort_above_eV_per_A: Force = Field(
        default=5.0, alias="abort_above", description="Expected error at which an optimisation ends"
    )
    batch_atoms: Count = Field(default=1024, description="Atoms side by side. Changes no result")


class Hops(Block):
    """What the two blocks of basin hopping have in common."""

    hops: Count = Field(default=20, description="Random hops of each walker")
    step_A: Length = Field(default=0.5, alias="step", description="Largest displacement of a coordinate")
    swap: Fraction = Field(default=0.0, description="Share of hops that exchange two elements instead")
    T_K: Temperature = Field(default=3000.0, alias="T", description="Of the rule that accepts a minimum")
    relax_steps: Count = Field(default=60, description="Most steps of each optimisation")
    walkers: Count = Field(default=1, description="Walkers, dealt to the structures")

    def options(self) -> dict[str, Any]:
        """Options of `alchemy_policies.BasinHopping` that both blocks have."""
        names = ("hops", "step_A", "swap", "relax_steps", "walkers")
        return {**{name: getattr(self, name) for name in names}, "temperature_K": self.T_K}


class SampleHopping(Hops):
    """Minima found by basin hopping with a labeler, for the time before there is a model."""

    structures: FilePath = Field(description="Structure file, relative to the campaign file")
    fidelity: str = Field(alias="with", description="Fidelity that optimises")

    @property
    def most(self) -> int:
        return (self.hops + 1) * self.walkers


class Smiles(Block):
    """Conformers of molecules, with hydrogens, charge and multiplicity; needs RDKit."""

    smiles: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        description="Molecules such as [CCO, 'CC(=O)[O-]']; quote what holds brackets"
    )
    conformers: Count = Field(default=1, description="Conformers of each molecule, at most")
    optimize: Literal["mmff", "uff", "none"] = Field(
        default="mmff", description="Force field that optimises them: mmff, uff or none"
    )
    apart_A: Length = Field(
        default=0.3, alias="apart", description="Conformers closer than this (RMS) are one"
    )

    @property
    def most(self) -> int:
        return len(self.smiles) * self.conformers


class Crystal(Block):
    """What the blocks of crystals and slabs have in common."""

    formula: str | None = Field(
        default=None, description="Elements in the order of the prototype's sites: Pd, NaCl, SrTiO3"
    )
    prototype: str | None = Field(
        default=None, description="fcc, bcc, hcp, rocksalt, perovskite, …; null: the element's own"
    )
    a_A: Length | None = Field(
        default=None, alias="a", description="Lattice constant; null: of the element, or from radii"
    )
    c_A: Length | None = Field(
        default=None, alias="c", description="Lattice constant c of hexagonal prototypes"
    )


class Bulk(Crystal):
    """A crystal by formula and prototype, at several volumes."""

    formula: str = Field(
        description="Elements in the order of the prototype's sites: Pd, NaCl, SrTiO3"
    )
    volumes: Annotated[tuple[Positive, ...], Field(min_length=1)] = Field(
        default=(1.0,), description="Volumes, in units of that of a and c: [0.94, 1.0, 1.06]"
    )
    repeat: Repeat = Field(default=(1, 1, 1), description="Conventional cells along each axis")

    @property
    def most(self) -> int:
        return len(self.volumes)


def _facet(value: object) -> object:
    """111 is a number in YAML, [1, -1, 0] a list; both mean text."""
    if type(value) is int:
        return str(value)
    if isinstance(value, list) and all(type(n) is int for n in value):
        return " ".join(map(str, value))
    return value


class Slab(Crystal):
    """Slabs of a crystal by facet, bare and with adsorbates on their sites."""

    structures: FilePath | None = Field(
        default=None, description="File of crystals to cut, in place of formula"
    )
    facets: Annotated[tuple[Annotated[str, BeforeValidator(_facet)], ...], Field(min_length=1)] = (
        Field(description='Miller indices: [111, 100, "1-10", [2, 1, 1]]; in the cell of the crystal')
    )
    thickness_A: Length = Field(
        default=6.0, alias="thickness", description="Least thickness of the crystal in it"
    )
    vacuum_A: Length = Field(default=8.0, alias="vacuum", description="On each side")
    repeat: tuple[Count, Count] = Field(default=(1, 1), description="Surface cells along each axis")
    adsorbates: tuple[str, ...] = Field(
        default=(), description="Elements or molecules of ASE's g2 set: [O, CO, H2O]"
    )
    sites: Annotated[tuple[Literal["ontop", "bridge", "hollow"], ...], Field(min_length=1)] = Field(
        default=("ontop", "bridge", "hollow"), description="Where adsorbates go; all that differ"
    )
    bare: Flag = Field(default=True, description="The slabs without adsorbate too")
    fixed: Fraction = Field(default=0.0, description="Share of the thickness, from below, that is fixed")

    @property
    def most(self) -> None:
        return None  # as many terminations and sites as there are


class Substitute(Block):
    """Copies of structures in which a share of one element is another."""

    structures: FilePath = Field(description="Structure file, relative to the campaign file")
    count: Count = Field(description="Copies in all, shared among the structures")
    replace: Element = Field(description="Element that is replaced")
    by: Annotated[tuple[Element, ...], Field(min_length=1)] = Field(
        description="What takes its place; of several, at random"
    )
    fraction: Share = Field(description="Share of its atoms, or a range [0.1, 0.5]; at least one atom")
    repeat: Repeat = Field(default=(1, 1, 1), description="The structure is repeated first")

    @property
    def most(self) -> int:
        return self.count


class Vacancy(Block):
    """Copies of structures without a share of their atoms."""

    structures: FilePath = Field(description="Structure file, relative to the campaign file")
    count: Count = Field(description="Copies in all, shared among the structures")
    element: Element | None = Field(default=None, description="Take out this one; null: any")
    fraction: Share = Field(description="Share of the atoms, or a range [0.02, 0.1]; at least one atom")
    repeat: Repeat = Field(default=(1, 1, 1), description="The structure is repeated first")

    @property
    def most(self) -> int:
        return self.count


class Strain(Block):
    """Copies of periodic structures at evenly spaced strains; the unstrained ones too."""

    structures: FilePath = Field(description="Structure file, relative to the campaign file")
    largest: Annotated[float, Field(strict=True, gt=0, lt=0.5)] = Field(
        default=0.04, description="Largest strain, relative: 0.04 is 4 %"
    )
    steps: Count = Field(default=2, description="Strains of each mode on either side of zero")
    modes: Annotated[
        tuple[Literal["hydrostatic", "uniaxial", "shear"], ...], Field(min_length=1)
    ] = Field(
        default=("hydrostatic", "uniaxial", "shear"), description="hydrostatic, uniaxial, shear"
    )

    @property
    def most(self) -> None:
        return None  # per structure of the file


# kind of an item -> its block; the item's class has a field of each of these names
BLOCKS: dict[str, type[Block]] = {
    "reico": SampleReico,
    "smiles": Smiles,
    "bulk": Bulk,
    "slab": Slab,
    "substitute": Substitute,
    "vacancy": Vacancy,
    "strain": Strain,
    "basin_hopping": SampleHopping,
}
