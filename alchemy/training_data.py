"""The labels of a store for torch: random access, batches in any number of workers, nothing kept in memory.

    dataset = StoreDataset("copper/store.h5", part="train", fidelities=["pbe"])
    batches = StoreBatches(dataset, 16, seed=1)
    for frames in DataLoader(dataset, batch_sampler=batches, collate_fn=list, num_workers=4): ...

The files are mapped; a worker opens them itself and carries only the path and row numbers. Row numbers count
from the first commit on and stay what they are when the store is compacted meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from torch.utils.data import Dataset, Sampler

from alchemy.conditions import with_conditions
from alchemy.errors import InputError
from alchemy.store import Snapshot, Store
from alchemy.store.named import specs_in, values_of
from alchemy.store.schema import row_count
from alchemy.store.segment import Segment
from alchemy.store.table import matching
from tace.data import Labelled
from tace.wording import hint

_COLUMNS = {
    "structures": ("cell", "pbc", "charge", "multiplicity", "offset", "atoms/numbers", "atoms/positions"),
    "labels": ("energy", "stress", "offset", "atoms/forces"),
}


class StoreDataset(Dataset[Labelled]):
    """Good labels of a store, ordered by structure and level: the same order whoever wrote them when.

    Args:
        part: of these structures only (train, test, …); None takes all.
        fidelities: levels of theory; empty takes all.
        expression: a query that labels must match besides.
        as_of: the store after that commit; None is now. Later commits do not change the dataset.
        fidelity_weights: multiply the weights of the labels, which are their property `weight` or 1.

    Raises:
        InputError: nothing matches, or there is no such level.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        part: str | None = "train",
        fidelities: Sequence[str] = (),
        expression: str = "",
        as_of: int | None = None,
        fidelity_weights: Mapping[str, float] | None = None,
    ) -> None:
        self.path = Path(path)
        snapshot = Store(self.path).snapshot(as_of)
        self.as_of = snapshot.last
        raw = _chosen(snapshot, part, fidelities, expression)
        if not len(raw):
            where = f" in part '{part}'" if part else ""
            raise InputError(f"{self.path}: no good label{where} matches; 'alchemy data stats' counts them")
        codes, vocabulary = snapshot.raw.codes("labels", "fidelity")
        self.fidelities = tuple(vocabulary)
        self._levels = codes[raw].astype(np.int32)
        self._labels = raw
        self._structures = snapshot.raw.structure_of("labels")[raw]
        own = snapshot.raw.named("properties", "weight")[raw]
        factors = np.array([(fidelity_weights or {}).get(name, 1.0) for name in self.fidelities])
        self.weights = np.where(np.isnan(own), 1.0, own) * factors[self._levels]
        self.n_atoms = snapshot.raw.column("structures", "n_atoms")[self._structures]
        self._reader: _Reader | None = None

    def __len__(self) -> int:
        return len(self._labels)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None}

    def __getitem__(self, index: int) -> Labelled:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Labelled]:
        """Frames with all labels and conditions; arrays are copies."""
        reader = self._open()
        return [
            reader.frame(
                int(self._labels[i]),
                int(self._structures[i]),
                fidelity=self.fidelities[self._levels[i]],
                weight=float(self.weights[i]),
            )
            for i in indices
        ]

    def arrays(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """n_atoms [S], numbers [A], positions and forces [A,3], cells [S,3,3], pbc [S,3], energies [S],
        stresses [S,6] of a batch; NaN where there is no label. Faster than frames.
        """
        reader = self._open()
        rows = [reader.pieces(int(self._labels[i]), int(self._structures[i])) for i in indices]
        columns = list(zip(*rows, strict=True))
        names = ("numbers", "positions", "forces")
        joined = {name: np.concatenate(part) for name, part in zip(names, columns[:3], strict=True)}
        rest = dict(zip(("cells", "pbc", "energies", "stresses"), map(np.array, columns[3:]), strict=True))
        return {"n_atoms": self.n_atoms[np.asarray(indices)], **joined, **rest}

    def _open(self) -> _Reader:
        # A mapping survives a fork, so a child may go on with that of its parent.
        if self._reader is None:
            self._reader = _Reader(Store(self.path).segments(self.as_of))
        return self._reader


def _chosen(
    snapshot: Snapshot, part: str | None, fidelities: Sequence[str], expression: str
) -> np.ndarray:
    """Raw row numbers of the labels."""
    rows = snapshot.raw
    raw = rows.label_rows
    fidelity = rows.codes("labels", "fidelity")
    for name in fidelities:
        if name not in fidelity.vocabulary:
            listed = hint(name, fidelity.vocabulary, label="there are")
            raise InputError(f"no labels of '{name}'; {listed}")
    good = rows.codes("labels", "status").same("ok")[raw] & (rows.column("labels", "replica")[raw] == 0)
    if fidelities:
        good &= np.isin(fidelity.codes[raw], [fidelity.vocabulary[name] for name in fidelities])
    if expression:
        good &= matching(snapshot, expression, rows="labels")
    if part is not None:
        good &= rows.parts.same(part)[rows.structure_of("labels")[raw]]
    raw = raw[good]
    rank = np.argsort(np.argsort([*fidelity.vocabulary]))
    ids = [rows.column("labels", name)[raw].view(">u8") for name in ("uid", "structure_uid")]
    keys = (ids[0][:, 1], ids[0][:, 0], rank[fidelity.codes[raw]], ids[1][:, 1], ids[1][:, 0])
    found: np.ndarray = raw[np.lexsort(keys)]
    return found


class _Reader:
    """Rows of mapped files by their number from the first commit on."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.segments = segments
        self.starts = {
            table: np.concatenate([[0], np.cumsum([row_count(s, table) for s in segments])]).astype(np.int64)
            for table in _COLUMNS
        }
        self.columns = {
            table: [
                {name: segment[f"/{table}/{name}"] for name in names} if row_count(segment, table) else {}
                for segment in segments
            ]
            for table, names in _COLUMNS.items()
        }

    def place(self, table: str, raw: int) -> tuple[int, int]:
        starts = self.starts[table]
        number = int(np.searchsorted(starts, raw, side="right")) - 1
        return number, raw - int(starts[number])

    def pieces(self, label: int, structure: int) -> tuple[Any, ...]:
        number, row = self.place("structures", structure)
        own = self.columns["structures"][number]
        lo, hi = own["offset"][row], own["offset"][row + 1]
        number, place = self.place("labels", label)
        given = self.columns["labels"][number]
        first, last = given["offset"][place], given["offset"][place + 1]
        forces = given["atoms/forces"][first:last] if last > first else np.full((hi - lo, 3), np.nan)
        return (
            own["atoms/numbers"][lo:hi],
            own["atoms/positions"][lo:hi],
            forces,
            own["cell"][row],
            own["pbc"][row],
            given["energy"][place],
            given["stress"][place],
        )

    def frame(self, label: int, structure: int, *, fidelity: str, weight: float) -> Labelled:
        numbers, positions, forces, cell, pbc, energy, stress = self.pieces(label, structure)
        atoms = Atoms(numbers=numbers, positions=positions, cell=cell, pbc=pbc)
        number, row = self.place("structures", structure)
        own = self.columns["structures"][number]
        for name in ("charge", "multiplicity"):
            if own[name][row]:
                atoms.info[name] = int(own[name][row])
        labels = self._named("properties", label)
        labels.pop("weight", None)
        return Labelled(
            atoms=with_conditions(atoms, self._named("conditions", label)),
            fidelity=fidelity,
            energy_eV=None if np.isnan(energy) else float(energy),
            forces_eV_per_A=None if np.isnan(forces).all() else np.array(forces),
            stress_eV_per_A3=None if np.isnan(stress).all() else np.array(stress),
            weight=weight,
            name=f"structure {structure} at {fidelity}",
            labels=labels,
        )

    def _named(self, field: str, label: int) -> dict[str, np.ndarray]:
        number, row = self.place("labels", label)
        segment, rows = self.segments[number], np.array([row])
        found = {}
        for name, spec in specs_in(segment, field).items():
            (value,) = values_of(segment, field, name, spec=spec, rows=rows)
            if value is not None:
                found[name] = value.copy()
        return found


class StoreBatches(Sampler[list[int]]):
    """Batches in an order that depends on the seed and the epoch alone.

    Args:
        by_weight: draw labels with replacement, as often as their weights say; else each once per epoch.
        drop_last: leave out a last batch that is not full.
    """

    def __init__(
        self, dataset: StoreDataset, size: int, *, seed: int, by_weight: bool = False, drop_last: bool = False
    ) -> None:
        if size < 1:
            raise InputError(f"a batch of {size}: give 1 or more")
        self.dataset, self.size, self.seed = dataset, size, seed
        self.by_weight, self.drop_last, self.epoch = by_weight, drop_last, 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the next iteration; each one has an order of its own."""
        self.epoch = epoch

    def __len__(self) -> int:
        n = len(self.dataset)
        return n // self.size if self.drop_last else -(-n // self.size)

    def __iter__(self) -> Iterator[list[int]]:
        rng, n = np.random.default_rng([self.seed, self.epoch]), len(self.dataset)
        if self.by_weight:
            order = rng.choice(n, n, p=self.dataset.weights / self.dataset.weights.sum())
        else:
            order = rng.permutation(n)
        for number in range(len(self)):
            yield order[number * self.size : (number + 1) * self.size].tolist()
