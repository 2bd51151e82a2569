"""Labelled structures for `alchemy train`: from files, which `tace.readers` reads, or a campaign's store.

`read_campaign` is also the plug-in by which `tace` reads a campaign (entry-point group `tace.readers`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ase.data import atomic_numbers

from alchemy.cli_paths import find_campaign, find_home, find_store, is_home
from alchemy.errors import AlchemyError, InputError
from alchemy.identity import structure_uid
from tace import readers
from tace.errors import DataError
from tace.readers import data_hash as digest
from tace.wording import count

__all__ = ["KINDS", "Dataset", "digest", "read_campaign", "read_dataset"]

DEFAULT_CUTOFF_A = 5.0
KINDS = ("energy", "forces", "stress")


@dataclass
class Dataset(readers.Dataset):
    """What to train on, with the identity of every structure."""

    uids: list[str] = field(default_factory=list)
    cutoff_A: float = DEFAULT_CUTOFF_A

    def table(self) -> list[dict[str, Any]]:
        """Labels per level; what is missing shows in the difference to the frames."""
        plural = {"energy": "energies", "forces": "forces", "stress": "stresses"}
        return [
            {"fidelity": name, "frames": row["frames"], **{plural[kind]: row[kind] for kind in KINDS}}
            for name, row in self.counts().items()
        ]


def read_dataset(
    sources: Sequence[Path], keys: Mapping[str, str | None], fidelities: Sequence[str]
) -> Dataset:
    """Read files, or one campaign; `fidelities` restricts and orders the levels."""
    campaigns = [p for p in sources if p.is_dir() or p.suffix in (".yaml", ".yml")]
    if campaigns and len(sources) > 1:
        raise InputError("--data takes files, or one campaign; export the campaign to combine them")
    if campaigns:
        if any(keys.values()):
            raise InputError("the keys of labels are for files; a campaign's store needs none")
        return _with_uids(_from_campaign(campaigns[0], fidelities))
    labels = {kind: key for kind in KINDS if (key := keys.get(kind))}
    found = readers.read_dataset(
        [readers.Source(path, keys=labels, fidelity_key=keys.get("fidelity")) for path in sources],
        fidelities=fidelities,
        need=("energy", "forces"),
    )
    return _with_uids(found)


def _with_uids(found: readers.Dataset) -> Dataset:
    return Dataset(
        frames=found.frames,
        fidelities=found.fidelities,
        elements=found.elements,
        e0_eV=found.e0_eV,
        test=found.test,
        cutoff_A=found.cutoff_A or DEFAULT_CUTOFF_A,
        notes=found.notes,
        uids=[structure_uid(frame.atoms) for frame in found.frames],
    )


def read_campaign(path: Path, fidelities: Sequence[str] = ()) -> readers.Dataset | None:
    """The labels of a campaign or of a store alone; None where the path is neither.

    Raises:
        DataError: a campaign that has no labels, or a level that it does not have.
    """
    if path.suffix in (".h5", ".d"):
        return _asked(lambda: _from_store(path, fidelities)) if _is_store(path) else None
    holds = path.is_dir() and (is_home(path) or any(path.glob("*.y*ml")) or any(path.glob("store.h5*")))
    if not holds and path.suffix not in (".yaml", ".yml"):
        return None
    return _asked(lambda: _from_campaign(path, fidelities))


def _asked(read: Callable[[], readers.Dataset]) -> readers.Dataset:
    try:
        return read()
    except AlchemyError as error:  # tace does not know our errors
        raise DataError(str(error)) from error


def _is_store(path: Path) -> bool:
    """Ours, rather than an HDF5 file of somebody else."""
    if path.with_name(f"{path.name}.d").is_dir() or (path.suffix == ".d" and path.is_dir()):
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(8) == b"ALCHSEG1"


def _from_store(path: Path, wanted: Sequence[str]) -> readers.Dataset:
    """All good labels; those of structures in no part are trained on."""
    from alchemy.datasets import TEST, TRAIN, isolated_energies, labelled
    from alchemy.store import Store

    store = find_store(path)
    snapshot = Store(store).snapshot()
    rows = [row for row in snapshot.labels() if row.replica == 0]
    names = readers.choose(sorted({row.fidelity for row in rows}), wanted)
    parts = snapshot.part_of()
    rows = [row for name in names for row in rows if row.fidelity == name]
    train = [row for row in rows if parts.get(row.structure_uid, TRAIN) == TRAIN]
    if not train:
        raise InputError(f"{store} holds no labels to train on")
    frames = labelled(snapshot, train)
    test = labelled(snapshot, [row for row in rows if parts.get(row.structure_uid) == TEST])
    numbers = sorted({int(z) for frame in (*frames, *test) for z in frame.atoms.numbers})
    found = isolated_energies(snapshot, names)
    return readers.Dataset(
        frames=frames,
        fidelities=names,
        elements=tuple(numbers),
        e0_eV={name: own for name, own in found.items() if set(numbers) <= own.keys()},
        test=test,
        notes=[f"{store}: {count(len(frames), 'label')} to train on, {len(test)} to test with"],
    )


def _from_campaign(path: Path, wanted: Sequence[str]) -> readers.Dataset:
    from alchemy.datasets import isolated_energies, labelled, rows_of
    from alchemy.store import Store

    store = find_store(path)
    given = find_campaign(path if is_home(path) else find_home(path))
    names = readers.choose(given.used or given.campaign.fidelity_names, wanted)
    if not wanted:
        names = (*(n for n in names if n != given.campaign.target), given.campaign.target)
    snapshot = Store(store).snapshot()
    rows = rows_of(snapshot, "train", names)
    if not rows:
        raise InputError(f"{store} holds no labels to train on")
    numbers = sorted(atomic_numbers[symbol] for symbol in given.campaign.elements)
    found = isolated_energies(snapshot, names)
    test = labelled(snapshot, rows_of(snapshot, "test", names))
    return readers.Dataset(
        frames=labelled(snapshot, rows),
        fidelities=names,
        elements=tuple(numbers),
        e0_eV={name: own for name, own in found.items() if set(numbers) <= own.keys()},
        test=test,
        cutoff_A=given.campaign.model.cutoff_A,
        notes=[f"{store}: {count(len(rows), 'label')} to train on, {len(test)} to test with"],
    )
