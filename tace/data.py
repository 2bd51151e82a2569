"""Labelled structures, statistics of a training set, and batches with targets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols
from torch import Tensor

from .batch import Batch, Graph, collate, make_graph
from .config import TaceConfig
from .errors import DataError, UnknownFidelityError


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


@dataclass(frozen=True)
class Sample:
    """A `Labelled` made ready for a model: its graph, and NaN where a label is missing."""

    graph: Graph
    energy: float
    forces: np.ndarray  # [A,3]
    stress: np.ndarray  # [6]
    weight: float
    name: str


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


def make_samples(frames: Iterable[Labelled], config: TaceConfig) -> list[Sample]:
    """Graphs and checked labels.

    Raises:
        DataError: a label of the wrong shape, NaN or infinite, a frame without any label, or an
            impossible weight.
    """
    samples = []
    for n, frame in enumerate(frames):
        name = frame.name or f"frame {n} ({frame.atoms.get_chemical_formula()})"
        count = len(frame.atoms)
        energy = _checked(frame.energy_eV, (), name, "energy")
        forces = _checked(frame.forces_eV_per_A, (count, 3), name, "forces")
        stress = _checked(frame.stress_eV_per_A3, (6,), name, "stress")
        if frame.energy_eV is None and frame.forces_eV_per_A is None:
            raise DataError(f"{name} has neither an energy nor forces: nothing to learn from")
        if not 0 < frame.weight < np.inf:
            raise DataError(f"{name}: weight must be positive and finite, got {frame.weight}")
        if frame.stress_eV_per_A3 is not None and not frame.atoms.pbc.all():
            raise DataError(f"{name} has a stress but is not periodic in three dimensions")
        graph = make_graph(
            frame.atoms,
            config.elements,
            cutoff=config.cutoff_A,
            fidelity=fidelity_index(frame.fidelity, config.fidelities),
        )
        samples.append(Sample(graph, float(energy), forces, stress, frame.weight, name))
    return samples


def _checked(
    value: float | np.ndarray | None, shape: tuple[int, ...], name: str, what: str
) -> np.ndarray:
    if value is None:
        return np.full(shape, np.nan)
    array = np.asarray(value, dtype=np.float64)
    if array.shape != shape:
        raise DataError(f"{name}: {what} has shape {array.shape}, expected {shape}")
    if not np.isfinite(array).all():
        raise DataError(f"{name}: {what} is not finite")
    return array


def collate_samples(
    samples: Sequence[Sample], n_species: int, weights: Sequence[float] | None = None
) -> tuple[Batch, Targets]:
    """One batch and its targets; `weights` multiply the samples' own."""
    batch = collate([s.graph for s in samples], n_species)
    factor = np.ones(len(samples)) if weights is None else np.asarray(weights, dtype=np.float64)
    weight = factor * np.array([s.weight for s in samples])
    counts = [len(s.graph.species) for s in samples]
    return batch, Targets(
        energies=torch.tensor([s.energy for s in samples], dtype=torch.float64),
        forces=torch.from_numpy(np.concatenate([s.forces for s in samples])),
        stresses=torch.from_numpy(np.stack([s.stress for s in samples])),
        weights=torch.from_numpy(weight),
        atom_weights=torch.from_numpy(np.repeat(weight, counts)),
        n_atoms=torch.tensor(counts, dtype=torch.float64),
        volumes=torch.from_numpy(np.abs(np.linalg.det([s.graph.cell for s in samples]))),
    )


@dataclass(frozen=True)
class Statistics:
    """What a model takes from its training set, per fidelity where it can differ."""

    avg_neighbors: float
    e0_eV: dict[str, dict[int, float]]
    scale_eV_per_A: dict[str, float]  # rms of the force vector norm
    shift_eV_per_atom: dict[str, float]  # mean of (E − Σ E0)/N
    notes: tuple[str, ...] = ()


def statistics(
    frames: Sequence[Labelled],
    config: TaceConfig,
    e0_eV: Mapping[str, Mapping[int, float]] | None = None,
) -> Statistics:
    """Neighbour count, isolated-atom energies, force scale and energy shift.

    Args:
        e0_eV: isolated-atom energies by fidelity and atomic number; fidelities that are missing are
            fitted by least squares on compositions (minimum norm where the data cannot tell).

    Raises:
        DataError: an element or a fidelity of the configuration for which there is nothing to fit.
    """
    notes: list[str] = []
    neighbors = mean_neighbors(frames, config)
    table, scale, shift = {}, {}, {}
    overall = _force_rms(frames)
    for name in config.fidelities:
        own = [f for f in frames if f.fidelity == name]
        given = (e0_eV or {}).get(name)
        if given is not None:
            missing = [chemical_symbols[z] for z in config.elements if z not in given]
            if missing:
                raise DataError(
                    f"fidelity '{name}': no isolated-atom energy for {', '.join(missing)}"
                )
            table[name] = {z: float(given[z]) for z in config.elements}
        else:
            table[name], note = _least_squares(own, config, name)
            notes += note
        residual = [
            (f.energy_eV - sum(table[name][int(z)] for z in f.atoms.numbers)) / len(f.atoms)
            for f in own
            if f.energy_eV is not None
        ]
        shift[name] = float(np.mean(residual)) if residual else 0.0
        scale[name] = _force_rms(own) or overall or 1.0
    return Statistics(neighbors, table, scale, shift, tuple(notes))


def mean_neighbors(frames: Sequence[Labelled], config: TaceConfig) -> float:
    """Directed edges per atom, at least 1; of a large set every n-th frame, some 200 to 400."""
    edges = atoms = 0
    for frame in frames[:: max(1, len(frames) // 200)]:
        graph = make_graph(frame.atoms, config.elements, cutoff=config.cutoff_A)
        edges, atoms = edges + 2 * len(graph.pairs.i), atoms + len(graph.species)
    return max(edges / max(atoms, 1), 1.0)


def _force_rms(frames: Sequence[Labelled]) -> float:
    """√(mean |F_i|²) over atoms, the vector norm; 0 without forces."""
    squares = [(f.forces_eV_per_A**2).sum(1) for f in frames if f.forces_eV_per_A is not None]
    return float(np.sqrt(np.concatenate(squares).mean())) if squares else 0.0


def _least_squares(
    frames: Sequence[Labelled], config: TaceConfig, name: str
) -> tuple[dict[int, float], list[str]]:
    own = [f for f in frames if f.energy_eV is not None]
    if not own:
        raise DataError(
            f"fidelity '{name}' has neither isolated-atom energies "
            "nor labelled energies to fit them to"
        )
    counts = np.array([[np.sum(f.atoms.numbers == z) for z in config.elements] for f in own], float)
    totals = zip(config.elements, counts.sum(0), strict=True)
    unseen = [chemical_symbols[z] for z, total in totals if not total]
    if unseen:
        raise DataError(
            f"fidelity '{name}': no isolated-atom energy for {', '.join(unseen)} and no labelled "
            "structure that holds it; give e0 or add such a structure"
        )
    solution, _, rank, _ = np.linalg.lstsq(counts, np.array([f.energy_eV for f in own]), rcond=None)
    note = []
    if rank < len(config.elements):
        note = [
            f"fidelity '{name}': the compositions do not determine all isolated-atom energies "
            f"(rank {rank} of {len(config.elements)}); the smallest solution was taken"
        ]
    return dict(zip(config.elements, map(float, solution), strict=True)), note
