"""Checks of the blocks in `config_structures` that need the rest of the campaign, and advice about REICO."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from alchemy.config_structures import (
    Bulk,
    Crystal,
    RandomCells,
    SampleHopping,
    SampleReico,
    Slab,
    Substitute,
    Vacancy,
)
from tace.documents import Loc, Problem
from tace.wording import hint

if TYPE_CHECKING:
    from alchemy.config import Campaign

PUBLISHED_ATOMS = 20  # of the method reico; at 24 one random structure in a thousand is accepted


def problems_of_block(campaign: Campaign, block: Any, loc: Loc) -> Iterator[Problem]:
    """Elements, fidelities and settings of one block; its files are looked for elsewhere."""
    if isinstance(block, RandomCells):
        yield from _elements(campaign, block.mix, (*loc, "mix"))
        yield from _elements(campaign, block.adsorbate, (*loc, "adsorbate"))
        yield from _recipe(block, loc)
    if isinstance(block, SampleReico):
        if block.relax_with is not None:
            yield from _fidelity(campaign, block.relax_with, (*loc, "relax_with"))
        else:
            yield from _without_labeler(block, loc)
    if isinstance(block, SampleHopping):
        yield from _fidelity(campaign, block.fidelity, (*loc, "with"))
    if isinstance(block, Substitute):
        yield from _elements(campaign, [block.replace], (*loc, "replace"))
        yield from _elements(campaign, block.by, (*loc, "by"))
    if isinstance(block, Vacancy) and block.element is not None:
        yield from _elements(campaign, [block.element], (*loc, "element"))
    if isinstance(block, Bulk | Slab):
        yield from _crystal(block, loc)


def _elements(campaign: Campaign, symbols: Iterable[str], loc: Loc) -> Iterator[Problem]:
    for symbol in symbols:
        if symbol not in campaign.elements:
            yield Problem(
                loc,
                f"found {symbol}, which is not among the campaign's elements "
                f"({', '.join(campaign.elements)}); add it there, or leave it out here",
            )


def _fidelity(campaign: Campaign, name: str, loc: Loc) -> Iterator[Problem]:
    if name not in campaign.fidelities:
        yield Problem(loc, f"found '{name}', no such fidelity; {hint(name, campaign.fidelity_names)}")


def _recipe(block: RandomCells, loc: Loc) -> Iterator[Problem]:
    """The policy itself says what it cannot do; ase is imported only where the file asks for this."""
    from alchemy_policies.base import PolicyError
    from alchemy_policies.reico import Reico

    try:
        Reico(**block.options())
    except PolicyError as error:
        key, _, _ = str(error).partition(" ")
        yield Problem(loc, str(error).replace(key, key.removesuffix("_A"), 1))
    if block.structures is not None and block.mix and set(block.kinds) == {"adsorbate"}:
        yield Problem((*loc, "mix"), "has no effect: adsorbates lie on the slabs of 'structures'; remove it")


def _without_labeler(block: SampleReico, loc: Loc) -> Iterator[Problem]:
    for key in ("relax_steps", "frames", "birth"):
        if getattr(block, key) != type(block).model_fields[key].default:
            yield Problem(
                (*loc, key),
                "has no effect without relax_with: the structures stay as they are born; name a cheap "
                "fidelity with relax_with, or remove the key",
            )


def _crystal(block: Crystal, loc: Loc) -> Iterator[Problem]:
    named = getattr(block, "structures", None)
    if named is not None:
        given = [key for key in ("formula", "prototype", "a_A", "c_A") if getattr(block, key) is not None]
        for key in given:
            yield Problem(
                (*loc, key.removesuffix("_A")),
                "has no effect: the crystals come from 'structures'; remove one of the two",
            )
    elif block.formula is None:
        yield Problem((*loc, "formula"), "missing; give a formula such as Pd, or a file with 'structures'")


def uses_reico(campaign: Campaign) -> list[str]:
    """Where random structures come from: 'start[1].reico', 'explore[0].reico'."""
    return [
        f"{name}[{n}].reico"
        for name in ("start", "explore")
        for n, item in enumerate(getattr(campaign, name))
        if item.reico is not None
    ]


def reico_warnings(campaign: Campaign) -> list[str]:
    """What is known to go wrong with random structures, and what helps."""
    places = uses_reico(campaign)
    found = []
    if places and not campaign.model.les:
        found.append(
            f"model.les: false, with random structures from {places[0]}; on such data ACE-type models "
            "without long-range electrostatics diverge (the RMSE rises while the MAE falls): leave les on"
        )
    for name in ("start", "test", "explore"):
        for n, item in enumerate(getattr(campaign, name)):
            block = item.reico
            if block is None or block.method != "reico":
                continue
            most = min(block.atoms[1], sum(high for _, high in block.mix.values()))
            if most > PUBLISHED_ATOMS:
                found.append(
                    f"{name}[{n}].reico.method: reico with up to {most} atoms; the published rules accept "
                    f"one structure in 300 at {PUBLISHED_ATOMS} atoms and hardly ever give larger ones: "
                    "use grow"
                )
    return found
