"""Reactions from files: end structures, a network file, or a trajectory in which bonds changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alchemy.errors import AlchemyError, InputError
from tace.documents import Kind, Problem, read_document
from tace.wording import describe, hint

if TYPE_CHECKING:
    from alchemy_policies.ts import Reaction
    from ase import Atoms

    from alchemy.config import Campaign

KEYS = ("name", "reactant", "product", "guess")
NETWORK = Kind(
    InputError,
    remedy="write 'reactions:' and under it '- {name: hop, reactant: a.xyz, product: b.xyz}'",
    top="a network file begins with 'reactions:'",
)


@dataclass(frozen=True)
class ReactionFiles:
    """A reaction by the files of its structures, each 'file' or 'file@frame'."""

    name: str
    reactant: str | None = None
    product: str | None = None
    guess: str | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """Those that are given."""
        return tuple(f for f in (self.reactant, self.product, self.guess) if f is not None)


def read_network(path: Path) -> list[ReactionFiles]:
    """The reactions of a network file; all its mistakes are told at once, by line.

    Raises:
        InputError: a file that cannot be read, or keys and values that make no reaction.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a network of reactions ({error})") from None
    document = read_document(text, str(path), NETWORK)
    problems: list[Problem] = []
    for key in document.data:
        if key != "reactions":
            problems.append(Problem((key,), f"no such key; {hint(key, ('reactions',))}"))
    entries = document.data.get("reactions")
    if not isinstance(entries, list) or not entries:
        found = "nothing" if "reactions" not in document.data else describe(entries)
        problems.append(Problem(("reactions",), f"found {found}; write a list, '- {{name: …}}' each"))
        raise document.error(problems)
    reactions = [_entry(entry, n, problems) for n, entry in enumerate(entries)]
    _refuse_twins(reactions, problems)
    if problems:
        raise document.error(problems)
    return reactions


def _entry(entry: object, number: int, problems: list[Problem]) -> ReactionFiles:
    loc = ("reactions", number)
    if not isinstance(entry, dict):
        problems.append(Problem(loc, f"found {describe(entry)}; write '- {{name: hop, reactant: …}}'"))
        return ReactionFiles(f"#{number}")
    values: dict[str, Any] = {}
    for key, value in entry.items():
        if key not in KEYS:
            problems.append(Problem((*loc, key), f"no such key; {hint(key, KEYS)}"))
        elif not isinstance(value, str) or not value.strip():
            problems.append(Problem((*loc, key), f"found {describe(value)}; write text"))
        else:
            values[key] = value
    made = ReactionFiles(values.pop("name", f"reaction-{number}"), **values)
    if made.reactant is None and made.guess is None:
        problems.append(Problem(loc, "has neither 'reactant' nor 'guess'; one structure is needed"))
    if made.reactant is None and made.product is not None:
        problems.append(Problem((*loc, "product"), "stands without 'reactant'; give both ends"))
    return made


def _refuse_twins(reactions: Sequence[ReactionFiles], problems: list[Problem]) -> None:
    names = [r.name for r in reactions]
    for n, name in enumerate(names):
        if name in names[:n]:
            problems.append(Problem(("reactions", n, "name"), f"'{name}' stands twice; name it otherwise"))


def load(files: ReactionFiles, base: Path, elements: Sequence[str] | None = None) -> Reaction:
    """Read the structures of a reaction; paths start at `base`.

    Raises:
        InputError: a file that does not exist, or that holds more than the one frame that is meant.
    """
    from alchemy_policies.ts import Reaction

    found = {
        what: read_one(base, place, elements)
        for what, place in (("reactant", files.reactant), ("product", files.product), ("guess", files.guess))
        if place is not None
    }
    if "reactant" not in found:
        return Reaction(files.name, found["guess"], is_guess=True)
    return Reaction(files.name, found["reactant"], found.get("product"), found.get("guess"))


def read_one(base: Path, place: str, elements: Sequence[str] | None = None) -> Atoms:
    """The structure at 'file' (which then holds one) or 'file@frame'."""
    from ase.data import chemical_symbols

    from alchemy.generate import read_structures

    name, at, index = place.rpartition("@")
    if not at or not index.lstrip("-").isdigit():
        name, index = place, ":"
    path = base / Path(name).expanduser()
    frames = read_structures(path, index, elements or chemical_symbols)
    if len(frames) != 1:
        raise InputError(f"{path} holds {len(frames)} structures; say which one: {name}@0 is the first")
    return frames[0]


def from_trajectory(path: Path, *, hold: int = 3, elements: Sequence[str] | None = None) -> list[Reaction]:
    """A reaction for every lasting change of bonds along the frames of a file.

    Raises:
        InputError: nothing reacted.
    """
    from alchemy_policies.ts import reactions_from_frames
    from ase.data import chemical_symbols

    from alchemy.generate import read_structures

    frames = read_structures(path, ":", elements or chemical_symbols)
    odd = [n for n, a in enumerate(frames) if list(a.numbers) != list(frames[0].numbers)]
    if odd:
        raise InputError(f"{path}: frame {odd[0]} has other atoms than frame 0; a trajectory keeps them")
    reactions = reactions_from_frames(frames, hold=hold, name=path.stem)
    if not reactions:
        raise InputError(
            f"{path}: no bond formed or broke for {hold} frames in a row, in {len(frames)} frames; give a "
            "longer or hotter trajectory, or the ends of the reaction"
        )
    return reactions


def reactions_of(campaign: Campaign, number: int) -> list[Reaction]:
    """Those of item `number` of a campaign's explore block; of several items, names begin with the number.

    Raises:
        InputError: files that cannot be used.
    """
    item = campaign.explore[number].ts
    assert item is not None
    if item.network is not None:
        network = campaign.resolve(item.network)
        found = [load(entry, network.parent, campaign.elements) for entry in read_network(network)]
    elif item.trajectory is not None:
        found = from_trajectory(campaign.resolve(item.trajectory), elements=campaign.elements)
    else:
        named = [None if p is None else str(p) for p in (item.reactant, item.product, item.guess)]
        name = "-".join(p.stem for p in (item.reactant, item.product) if p is not None) or "guess"
        found = [load(ReactionFiles(name, *named), campaign.base_dir, campaign.elements)]
    several = sum(other.ts is not None for other in campaign.explore) > 1
    return [replace(r, name=f"{number}:{r.name}") for r in found] if several else found


def examined(campaign: Campaign) -> Iterator[AlchemyError]:
    """What is wrong with the reactions of a campaign, before any round begins."""
    from alchemy_policies import PolicyError
    from alchemy_policies.ts import checked

    for number, item in enumerate(campaign.explore):
        if item.ts is None:
            continue
        try:
            for reaction in reactions_of(campaign, number):
                checked(reaction)
                beyond = [n for n in item.ts.fixed if n >= len(reaction.reactant)]
                if beyond:
                    raise InputError(f"reaction '{reaction.name}' has no atom {beyond[0]} to fix")
        except AlchemyError as error:
            yield error
        except PolicyError as error:
            yield InputError(str(error))
