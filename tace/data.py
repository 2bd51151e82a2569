"""Labelled structures, and batches with targets."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from .batch import Batch, Graph, collate, make_graph, send
from .config import TaceConfig
from .errors import DataError, TaceError, UnknownFidelityError
from .responses import label_shape


@dataclass(frozen=True)
class Labelled:
    """A structure with what is known of it at one fidelity; None is unknown, never zero."""

    atoms: Atoms
    fidelity: str = "default"
    energy_eV: float | None = None
    forces_eV_per_A: np.ndarray | None = None  # [A,3]
    stress_eV_per_A3: np.ndarray | None = None  # [6], Voigt, ASE sign
    weight: float = 1.0
    name: str = ""
    labels: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Further quantities by name, shape and unit of `quantities.LABELS`, or of a head of the model; of
    atoms [A, ...], where NaN marks an atom without label; a Hessian is [3A, 3A]."""


@dataclass(frozen=True)
class Sample:
    """A `Labelled` made ready for a model: its graph, and NaN where a label is missing."""

    graph: Graph
    energy: float
    forces: np.ndarray  # [A,3]
    stress: np.ndarray  # [6]
    weight: float
    name: str
    labels: Mapping[str, np.ndarray] = field(default_factory=dict)  # of the structure, NaN if missing
    atom_labels: Mapping[str, np.ndarray] = field(default_factory=dict)  # [A, ...]
    hessian: np.ndarray | None = None  # [3A, 3A]


@dataclass(frozen=True)
class Targets:
    """Labels of a batch in input order; NaN marks a missing one."""

    energies: Tensor  # [S] float64
    forces: Tensor  # [A,3] float64
    stresses: Tensor  # [S,6] float64
    weights: Tensor  # [S] float64
    atom_weights: Tensor  # [A] float64: the weight of the structure the atom is in
    n_atoms: Tensor  # [S] float64
    volumes: Tensor  # [S] float64, Å³; of the cell, 0 without one
    cells: Tensor  # [S,3,3] float64
    labels: Mapping[str, Tensor]  # further quantities of structures, [S, ...] float64
    atom_labels: Mapping[str, Tensor]  # and of atoms, [A, ...] float64
    rows: Tensor  # [k, S] which rows of the Hessian are compared, as atom · 3 + axis of each structure
    hessian_rows: Tensor  # [k, A, 3] float64
    # of energies, forces and stresses: whether all rows have labels, or none; not there if some have. Known
    # to the host, so that a loss on a GPU need not wait for the answer
    labelled: Mapping[str, bool]

    def to(self, device: torch.device | str) -> Targets:
        """The same targets on another device."""
        sent = functools.partial(send, device=device)
        moved: dict[str, Any] = {k: sent(v) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(
            self,
            **moved,
            labels={k: sent(v) for k, v in self.labels.items()},
            atom_labels={k: sent(v) for k, v in self.atom_labels.items()},
        )


def fidelity_index(name: str, fidelities: Sequence[str]) -> int:
    """Position of a fidelity.

    Raises:
        UnknownFidelityError: the model has no level of that name.
    """
    if name not in fidelities:
        raise UnknownFidelityError(
            f"fidelity '{name}' is unknown to the model; it knows {', '.join(fidelities)}"
        )
    return list(fidelities).index(name)


def make_samples(
    frames: Iterable[Labelled], config: TaceConfig, labels: Sequence[str] = ()
) -> list[Sample]:
    """Graphs and checked labels.

    Args:
        labels: names of further quantities to train on.

    Raises:
        DataError: a label of the wrong shape, NaN or infinite, a frame without any label, or an
            impossible weight; a structure that the model cannot read. The frame is named.
        TaceError: a quantity that the model does not predict.
    """
    shapes = {name: label_shape(name, config) for name in labels}
    return [
        _sample(frame, frame.name or f"frame {n} ({frame.atoms.get_chemical_formula()})", config, shapes)
        for n, frame in enumerate(frames)
    ]


def _sample(
    frame: Labelled, name: str, config: TaceConfig, shapes: Mapping[str, tuple[str, tuple[int, ...]]]
) -> Sample:
    count = len(frame.atoms)
    energy = _checked(frame.energy_eV, (), name, "energy")
    forces = _checked(frame.forces_eV_per_A, (count, 3), name, "forces")
    stress = _checked(frame.stress_eV_per_A3, (6,), name, "stress")
    given = [frame.energy_eV, frame.forces_eV_per_A, *(frame.labels.get(n) for n in shapes)]
    if all(value is None for value in given):
        wanted = ", ".join(["energy", "forces", *shapes])
        raise DataError(f"{name} has none of {wanted}: nothing to learn from")
    if not 0 < frame.weight < np.inf:
        raise DataError(f"{name}: weight must be positive and finite, got {frame.weight}")
    if frame.stress_eV_per_A3 is not None:
        if not frame.atoms.pbc.all():
            raise DataError(f"{name} has a stress but is not periodic in three dimensions")
        if abs(frame.atoms.cell.volume) < 1e-6:
            raise DataError(f"{name} has a stress but a cell without volume")
    found: dict[str, np.ndarray] = {}
    of_atoms: dict[str, np.ndarray] = {}
    hessian = None
    for label, (scope, shape) in shapes.items():
        value = frame.labels.get(label)
        if label == "hessian":
            hessian = _checked(value, (3 * count, 3 * count), name, label)
        elif scope == "atom":
            of_atoms[label] = _checked(value, (count, *shape), name, label, partial=True)
        else:
            found[label] = _checked(value, shape, name, label)
    try:
        graph = make_graph(
            frame.atoms,
            config.elements,
            cutoff=config.cutoff_A,
            fidelity=fidelity_index(frame.fidelity, config.fidelities),
            inputs=config.inputs,
        )
    except TaceError as error:
        raise type(error)(f"{name}: {error}") from None
    return Sample(graph, float(energy), forces, stress, frame.weight, name, found, of_atoms, hessian)


def _checked(
    value: float | np.ndarray | None, shape: tuple[int, ...], name: str, what: str, *, partial: bool = False
) -> np.ndarray:
    """NaN if missing; `partial` lets rows be NaN."""
    if value is None:
        return np.full(shape, np.nan)
    array = np.asarray(value, dtype=np.float64)
    if array.shape != shape:
        raise DataError(f"{name}: {what} has shape {array.shape}, expected {shape}")
    bad = np.isinf(array) if partial else ~np.isfinite(array)
    if bad.any():
        raise DataError(f"{name}: {what} is not finite")
    return array


def collate_samples(
    samples: Sequence[Sample],
    n_species: int,
    weights: Sequence[float] | None = None,
    *,
    hessian_rows: int = 0,
    seed: int = 0,
) -> tuple[Batch, Targets]:
    """One batch and its targets; `weights` multiply the samples' own.

    Args:
        hessian_rows: rows of the Hessian of each structure, drawn anew for every seed.
    """
    batch = collate([s.graph for s in samples], n_species)
    energies = torch.tensor([s.energy for s in samples], dtype=torch.float64)
    forces = torch.from_numpy(np.concatenate([s.forces for s in samples]))
    stresses = torch.from_numpy(np.stack([s.stress for s in samples]))
    factor = np.ones(len(samples)) if weights is None else np.asarray(weights, dtype=np.float64)
    weight = factor * np.array([s.weight for s in samples])
    counts = [len(s.graph.species) for s in samples]
    return batch, Targets(
        energies=energies,
        forces=forces,
        stresses=stresses,
        weights=torch.from_numpy(weight),
        atom_weights=torch.from_numpy(np.repeat(weight, counts)),
        n_atoms=torch.tensor(counts, dtype=torch.float64),
        volumes=torch.from_numpy(np.abs(np.linalg.det([s.graph.cell for s in samples]))),
        cells=batch.cells,
        labels={n: torch.from_numpy(np.stack([s.labels[n] for s in samples])) for n in samples[0].labels},
        atom_labels={
            n: torch.from_numpy(np.concatenate([s.atom_labels[n] for s in samples]))
            for n in samples[0].atom_labels
        },
        **_hessian_rows(samples, hessian_rows, seed),
        labelled=_labelled(energies=energies, forces=forces[:, 0], stresses=stresses[:, 0]),
    )


def _labelled(**columns: Tensor) -> dict[str, bool]:
    finite = {name: torch.isfinite(x) for name, x in columns.items()}
    return {n: bool(has.all()) for n, has in finite.items() if bool(has.all()) or not bool(has.any())}


def _hessian_rows(samples: Sequence[Sample], rows: int, seed: int) -> dict[str, Tensor]:
    counts = [len(s.graph.species) for s in samples]
    rng = np.random.default_rng([seed, 3])
    index = np.stack([rng.integers(0, 3 * n, rows) for n in counts], 1)
    values = np.full((rows, sum(counts), 3), np.nan)
    start = 0
    for sample, n, own in zip(samples, counts, index.T, strict=True):
        if sample.hessian is not None:
            values[:, start : start + n] = sample.hessian[own].reshape(rows, n, 3)
        start += n
    return {"rows": torch.from_numpy(index), "hessian_rows": torch.from_numpy(values)}
