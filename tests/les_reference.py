"""Batches with given charges, and sums over charges written without anything of `tace.les*`."""

from __future__ import annotations

import math

import numpy as np
import torch
from ase import Atoms
from scipy.special import erf, erfc
from torch import Tensor

from tace.batch import Batch, collate, make_graph
from tace.config import LesConfig
from tace.les import les_energies

K_E = 14.399645478425668  # e²/(4π ε0), eV Å


def batch_of(*structures: Atoms) -> Batch:
    return collate([make_graph(atoms, (1, 8), cutoff=2.0) for atoms in structures], 2)


def charges_of(batch: Batch, *values: np.ndarray) -> Tensor:
    """[A,n_q] sorted like the batch, from the charges of each structure in its own order."""
    stacked = torch.from_numpy(np.concatenate([np.reshape(v, (len(v), -1)) for v in values]).astype(float))
    return stacked[torch.argsort(batch.original)]


def energy(atoms: Atoms, charges: np.ndarray, config: LesConfig | None = None) -> float:
    batch = batch_of(atoms)
    config = config or LesConfig()
    return les_energies(charges_of(batch, charges), batch.positions, batch.cells, batch, config).item()


def place(atoms: Atoms) -> tuple[Batch, Tensor, Tensor]:
    """A batch of one structure and its positions and cells as leaves."""
    batch = batch_of(atoms)
    return batch, batch.positions.clone().requires_grad_(), batch.cells.clone().requires_grad_()


def random_atoms(rng: np.random.Generator, cell: np.ndarray, pbc: object, n: int = 6) -> Atoms:
    """n atoms of H and O in turn, anywhere in the cell."""
    symbols = ["H" if i % 2 else "O" for i in range(n)]
    return Atoms(symbols, scaled_positions=rng.random((n, 3)), cell=cell, pbc=pbc)


def images(vectors: np.ndarray, reach: float) -> np.ndarray:
    """All lattice vectors [n,3] of 1 to 3 vectors with components up to what covers `reach`."""
    heights = 1.0 / np.linalg.norm(np.linalg.pinv(vectors), axis=0)
    axes = [np.arange(-n, n + 1) for n in np.ceil(reach / heights).astype(int)]
    counts = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(vectors))
    found = counts @ vectors
    return found[np.linalg.norm(found, axis=1) <= reach]


def pair_sum(positions, charges, shifts, function) -> float:
    """½ Σ_ij Σ_shifts q_i q_j f(|r_ij + shift|) without i = j at zero shift."""
    total = 0.0
    for i, a in enumerate(positions):
        for j, b in enumerate(positions):
            r = np.linalg.norm(a - b + shifts, axis=1)
            total += 0.5 * charges[i] * charges[j] * function(r[r > 1e-9]).sum()
    return total


def ewald_2d(positions, charges, plane: np.ndarray, *, sigma: float) -> float:
    """Energy of Gaussian charges periodic in a plane [2,3], its own self energy removed.

    The two-dimensional Ewald sum (Parry 1975; de Leeuw and Perram 1979), reciprocal part only, exact for any
    total charge up to the convention that its uniform sheet has the potential −2π k_e |z|.
    """
    normal = np.cross(*plane)
    area = np.linalg.norm(normal)
    z = positions @ (normal / area)
    d = z[:, None] - z
    product = np.outer(charges, charges)
    near = sigma * math.sqrt(2 / math.pi) * np.exp(-(d**2) / (2 * sigma**2))
    flat = d * erf(d / (math.sqrt(2) * sigma)) + near
    total = -2.0 * (product * flat).sum()
    dual = 2 * math.pi * np.linalg.pinv(plane).T
    for wave in images(dual, 9.0 / sigma):
        g = np.linalg.norm(wave)
        if g > 1e-9:
            phase = np.cos((positions[:, None] - positions) @ wave)
            sides = sum(
                np.exp(s * g * d) * erfc(g * sigma / math.sqrt(2) + s * d / (math.sqrt(2) * sigma))
                for s in (1, -1)
            )
            total += (product * phase * sides).sum() / g
    return 0.5 * K_E * math.pi / area * total - K_E * (charges**2).sum() / (math.sqrt(2 * math.pi) * sigma)


def slopes(atoms: Atoms, charges: np.ndarray, config: LesConfig, *, step: float = 1e-4) -> np.ndarray:
    """∂E/∂x by central differences: [A,3]."""
    found = np.zeros((len(atoms), 3))
    for i, a in np.ndindex(found.shape):
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[i, a] += sign * step
            found[i, a] += sign * energy(moved, charges, config) / (2 * step)
    return found


def strain_slopes(atoms: Atoms, charges: np.ndarray, config: LesConfig, *, step: float = 1e-4) -> np.ndarray:
    """∂E/∂ε by central differences of symmetric strains: [3,3]."""
    found = np.zeros((3, 3))
    for a, b in np.ndindex(3, 3):
        for sign in (1, -1):
            strain = np.zeros((3, 3))
            strain[a, b] += 0.5 * sign * step
            strain[b, a] += 0.5 * sign * step
            moved = atoms.copy()
            moved.set_cell(atoms.cell[:] @ (np.eye(3) + strain))
            moved.positions = atoms.positions @ (np.eye(3) + strain)
            found[a, b] += sign * energy(moved, charges, config) / (2 * step)
    return found
