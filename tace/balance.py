"""Weights of further quantities in the loss, where none are given.

Units decide how loud a quantity is: a polarizability that spreads by 1e-3 e·Å²/V per atom is not heard
beside forces that spread by 1 eV/Å. Here every number of a quantity, in units of the spread of its labels,
counts as much as every component of a force does in its own: weight · spread² is that of the forces times
the number of labels over that of force components, though never more than that of the forces, and one
without forces.

Measured on BaTiO3 in a field (40 frames, 200 steps), with weights of 1 for all but α (100): polarisation at
49 % of its spread, α at 73 %, forces at 16 %; as here: 16 %, 56 %, 24 %; each as loud as the forces
whatever its number: 65 %, 41 %, 47 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from .data import Sample
from .loss import PER_ATOM, nearest_image
from .settings import TrainSettings

ENOUGH = 500  # samples that are looked at


def balanced_weights(samples: Sequence[Sample], settings: TrainSettings) -> dict[str, float]:
    """A weight for every quantity of the samples that `settings.label_weights` does not name.

    A quantity without any spread, as that of one structure, counts by its size, and by one if it is zero.
    """
    seen = samples[:: max(1, len(samples) // ENOUGH)]
    forces, n_forces = _mean_square(np.concatenate([s.forces for s in seen]))
    loudness = settings.forces_weight * forces
    names = dict.fromkeys(n for s in seen for n in (*s.labels, *s.atom_labels))
    if any(s.hessian is not None for s in seen):
        names["hessian"] = None
    found = {}
    for name in names:
        if name not in settings.label_weights:
            spread, count = _spread(seen, name)
            wanted = loudness * min(1.0, count / n_forces) if loudness > 0 else 1.0
            found[name] = float(f"{wanted / spread:.2g}") if spread > 0 else 1.0
    return found


def with_weights(settings: TrainSettings, samples: Sequence[Sample]) -> TrainSettings:
    """The settings with a weight for every quantity of the samples."""
    weights = {**balanced_weights(samples, settings), **settings.label_weights}
    return replace(settings, label_weights=weights)


def _spread(samples: Sequence[Sample], name: str) -> tuple[float, int]:
    """Mean variance of a component, about the mean of the element for atoms, and the number of labels.

    Of a Hessian the mean square.
    """
    if name == "hessian":
        return _mean_square(np.concatenate([s.hessian.reshape(-1) for s in samples if s.hessian is not None]))
    if any(name in s.atom_labels for s in samples):
        values = np.concatenate([_rows(s.atom_labels[name]) for s in samples])
        species = np.concatenate([s.graph.species for s in samples])
        groups = [values[species == z] for z in np.unique(species)]
    else:
        groups = [np.concatenate([_of_structure(s, name, samples[0]) for s in samples])]
    known = [group[np.isfinite(group).all(1)] for group in groups]
    known = [group for group in known if len(group)]
    if not known:
        return 0.0, 0
    spread, count = _mean_square(np.concatenate([group - group.mean(0) for group in known]))
    size, _ = _mean_square(np.concatenate(known))
    return (spread if spread > 1e-12 * size else size), count


def _of_structure(sample: Sample, name: str, first: Sample) -> np.ndarray:
    """[1, components] as the loss compares it; a polarisation as its nearest image to that of `first`."""
    value = torch.from_numpy(sample.labels[name]).reshape(1, -1)
    if name == "polarization":
        start = torch.from_numpy(first.labels[name]).reshape(1, -1)
        value = nearest_image(value - start, torch.from_numpy(np.asarray(sample.graph.cell))[None])
    return (value / len(sample.graph.species) if name in PER_ATOM else value).numpy()


def _rows(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), -1)


def _mean_square(values: np.ndarray) -> tuple[float, int]:
    """Of what is finite, and how much that is."""
    finite = values[np.isfinite(values)]
    return (float(np.mean(finite**2)) if len(finite) else 0.0), finite.size
