"""What a model takes from its training set: neighbour count, energies of atoms, scales and shifts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from ase.data import chemical_symbols

from .batch import collate, make_graph, species_index
from .charges import ChargeHead
from .config import HeadConfig, TaceConfig
from .data import Labelled, fidelity_index
from .errors import DataError
from .geometry import EdgeBasis, pair_vectors
from .heads import HeadLabel, HeadStatistics, TensorHead, head_statistics
from .model import Tace

FIELD, ALPHA = "electric_field", "polarizability"


@dataclass(frozen=True)
class Statistics:
    """What a model takes from its training set, per fidelity where it can differ."""

    avg_neighbors: float
    e0_eV: dict[str, dict[int, float]]
    scale_eV_per_A: dict[str, float]  # rms of the force vector norm
    shift_eV_per_atom: dict[str, float]  # mean of (E − Σ E0)/N
    heads: dict[str, HeadStatistics] = field(default_factory=dict)  # of those that have labels
    polarizability: np.ndarray | None = None  # [F, Z] e·Å²/V of atoms, of a model that reads a field
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
    if config.zbl:
        frames = [_without_repulsion(f, config) for f in frames]
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
    heads = {
        head.name: found for head in config.heads if (found := _of_head(head, frames, config)) is not None
    }
    return Statistics(
        neighbors, table, scale, shift, heads, _of_field(frames, config), tuple(notes)
    )


def set_statistics(model: Tace, found: Statistics) -> None:
    """Put the statistics of a training set into a new model."""
    model.set_reference(found.e0_eV, found.scale_eV_per_A, found.shift_eV_per_atom)
    for name, of_head in found.heads.items():
        head = model.heads[f"to_{name}"]
        assert isinstance(head, (ChargeHead, TensorHead))
        head.set_statistics(of_head)
    if found.polarizability is not None:
        model.reference.set(ALPHA, found.polarizability)


def _of_head(head: HeadConfig, frames: Sequence[Labelled], config: TaceConfig) -> HeadStatistics | None:
    """Of the frames that have its label, if there are any."""
    labels = [
        HeadLabel(
            species_index(f.atoms.numbers, config.elements),
            np.asarray(f.labels[head.name], dtype=np.float64),
            fidelity_index(f.fidelity, config.fidelities),
        )
        for f in frames
        if head.name in f.labels
    ]
    if not labels:
        return None
    return head_statistics(
        head, labels, n_elements=len(config.elements), n_fidelities=len(config.fidelities)
    )


def _of_field(frames: Sequence[Labelled], config: TaceConfig) -> np.ndarray | None:
    """What atoms contribute to the isotropic polarisability, so that only the rest has to be learnt."""
    if FIELD not in config.input_names or any(head.name == ALPHA for head in config.heads):
        return None
    found = _of_head(HeadConfig(ALPHA, symmetry="ij=ji"), frames, config)
    return None if found is None else found.shift[:, :, 0] / math.sqrt(3.0)  # its part is the unit tensor/√3


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


def _without_repulsion(frame: Labelled, config: TaceConfig) -> Labelled:
    """The frame with the screened nuclear repulsion, which the model adds unscaled, taken off its energy."""
    if frame.energy_eV is None:
        return frame
    batch = collate(
        [make_graph(frame.atoms, config.elements, cutoff=config.cutoff_A)], len(config.elements)
    )
    vectors = pair_vectors(batch, batch.positions, batch.pair_shift)
    geometry = EdgeBasis(config)(batch, batch.positions, batch.cells, vectors, dtype=torch.float64)
    assert geometry.repulsion is not None
    return replace(frame, energy_eV=frame.energy_eV - float(geometry.repulsion.sum()))


def _least_squares(
    frames: Sequence[Labelled], config: TaceConfig, name: str
) -> tuple[dict[int, float], list[str]]:
    own = [f for f in frames if f.energy_eV is not None]
    if not own and frames and not any(f.forces_eV_per_A is not None for f in frames):
        return dict.fromkeys(config.elements, 0.0), []  # nothing but other quantities is trained on
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
