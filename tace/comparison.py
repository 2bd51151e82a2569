"""Predictions of one model or a committee for any quantity, and their differences to labels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms

from .batch import Graph, collate, make_graph
from .config import TaceConfig
from .data import Labelled, fidelity_index
from .derivatives import Evaluation, evaluate, voigt
from .errors import TaceError
from .hessian import hessian
from .model import Tace
from .prediction import small_sample_factor
from .quantities import LABELS
from .responses import available

ATOMS_AT_ONCE = 1024
OWN = ("energy", "forces", "stress")
LATENT = ("latent_charges", "atom", "e")
Values = dict[str, np.ndarray]


# ------------------------------------------------------------------ predictions
def predict(
    models: Sequence[Tace],
    frames: Sequence[Atoms],
    fidelities: Sequence[str],
    *,
    names: Sequence[str] = OWN[:2],
    spread: bool = False,
) -> list[Values]:
    """Mean over the models of every quantity asked for, of each structure at its fidelity.

    Args:
        names: of `responses.available`; a stress is left out of structures that are not periodic in 3D.
        spread: adds `energy_spread` and `force_spread`, the standard deviations over several models.

    Raises:
        TaceError: a quantity that the models do not predict, or a structure that they cannot read.
    """
    config = models[0].config
    for name in names:
        if name not in available(config):
            known = ", ".join(available(config))
            raise TaceError(f"the model does not predict '{name}'; it predicts {known}")
    graphs = [
        make_graph(
            atoms,
            config.elements,
            cutoff=config.cutoff_A,
            fidelity=fidelity_index(level, config.fidelities),
            inputs=config.inputs,
        )
        for atoms, level in zip(frames, fidelities, strict=True)
    ]
    found: list[Values] = []
    for chunk in _chunks(graphs):
        batch = collate(chunk, len(config.elements)).to(models[0].device)
        results = [
            evaluate(
                model,
                batch,
                forces="forces" in names,
                stress="stress" in names,
                responses=[n for n in names if n not in (*OWN, "hessian") and n != LATENT[0]],
            )
            for model in models
        ]
        found += _cut(results, chunk, names, config=config, spread=spread and len(models) > 1)
    if "hessian" in names:
        for values, atoms, level in zip(found, frames, fidelities, strict=True):
            index = fidelity_index(level, config.fidelities)
            values["hessian"] = np.mean([hessian(m, atoms, fidelity=index) for m in models], 0)
    return found


def scope_of(name: str, config: TaceConfig) -> str:
    """'structure' or 'atom'."""
    for head in config.heads:
        if head.name == name:
            return str(head.scope)
    return LATENT[1] if name == LATENT[0] else LABELS[name].scope


def unit_of(name: str) -> str:
    """In which a quantity is predicted; '' for heads of the user's own."""
    if name == LATENT[0]:
        return LATENT[2]
    return LABELS[name].unit if name in LABELS else ""


def _chunks(graphs: Sequence[Graph]) -> Iterator[list[Graph]]:
    chunk: list[Graph] = []
    atoms = 0
    for graph in graphs:
        if chunk and atoms + len(graph.species) > ATOMS_AT_ONCE:
            yield chunk
            chunk, atoms = [], 0
        chunk.append(graph)
        atoms += len(graph.species)
    if chunk:
        yield chunk


def _cut(
    results: Sequence[Evaluation],
    chunk: Sequence[Graph],
    names: Sequence[str],
    *,
    config: TaceConfig,
    spread: bool,
) -> list[Values]:
    """Mean over models, cut into structures."""
    whole = [_values(result, names) for result in results]
    mean = {name: np.mean([w[name] for w in whole], 0) for name in whole[0]}
    ends = np.cumsum([len(g.species) for g in chunk])[:-1]
    pieces = {
        name: np.split(value, ends) if scope_of(name, config) == "atom" else list(value)
        for name, value in mean.items()
    }
    if spread:
        for name in ("energy", "forces"):
            if name in mean:
                pieces[f"{name.rstrip('s')}_spread"] = _spread([w[name] for w in whole], ends)
    cut = [{name: np.asarray(piece[n]) for name, piece in pieces.items()} for n in range(len(chunk))]
    for values in cut:
        if "stress" in values and not np.isfinite(values["stress"]).all():
            del values["stress"]
    return cut


def _values(result: Evaluation, names: Sequence[str]) -> Values:
    found = {"energy": result.energies, "forces": result.forces}
    if result.stresses is not None:
        found["stress"] = voigt(result.stresses)
    found |= result.outputs
    return {n: v.double().cpu().numpy() for n in names if (v := found.get(n)) is not None}


def _spread(members: Sequence[np.ndarray], ends: np.ndarray) -> list[np.ndarray]:
    """Unbiased standard deviation over models; of a vector, of its length."""
    stacked = np.stack(members)
    variance = stacked.var(0, ddof=1)
    if stacked.ndim == 2:
        return list(np.sqrt(variance) / small_sample_factor(len(members)))
    norm = np.sqrt(variance.sum(-1)) / small_sample_factor(3 * (len(members) - 1) + 1)
    return np.split(norm, ends)


# ------------------------------------------------------------------ comparison
@dataclass(frozen=True)
class Pairs:
    """Labels and predictions of one quantity at one fidelity."""

    name: str
    unit: str
    labels: np.ndarray  # [n, components]
    predictions: np.ndarray  # [n, components]
    frames: np.ndarray  # [n] which of the compared frames a row belongs to

    @property
    def rmse(self) -> float:
        """Over components."""
        return float(np.sqrt(np.mean((self.predictions - self.labels) ** 2)))

    @property
    def mae(self) -> float:
        return float(np.mean(np.abs(self.predictions - self.labels)))


def shared(models: Sequence[Tace], frames: Sequence[Labelled]) -> tuple[str, ...]:
    """Quantities that are labelled in some frame and that the model predicts."""
    able = available(models[0].config)
    heads = {head.name for head in models[0].config.heads}
    seen = {name for f in frames for name in f.labels}
    named = [n for n in able if n in seen and (n in heads or n in LABELS) and n not in OWN]
    own = [n for n in OWN if any(label_of(f, n) is not None for f in frames)]
    return (*own, *named)


def label_of(frame: Labelled, name: str) -> np.ndarray | None:
    """A label as an array; None if missing."""
    own = {"energy": frame.energy_eV, "forces": frame.forces_eV_per_A, "stress": frame.stress_eV_per_A3}
    value = own[name] if name in own else frame.labels.get(name)
    return None if value is None else np.asarray(value, dtype=np.float64)


def compare(
    models: Sequence[Tace], frames: Sequence[Labelled], *, fidelity: str | None = None
) -> dict[str, dict[str, Pairs]]:
    """Pairs by fidelity and quantity; of the mean of several models.

    Args:
        fidelity: predict all frames at this level; None: each at its own.

    Raises:
        TaceError: an element or fidelity that the models do not know.
    """
    names = shared(models, frames)
    levels = [fidelity or f.fidelity for f in frames]
    found = predict(models, [f.atoms for f in frames], levels, names=names)
    table: dict[str, dict[str, Pairs]] = {}
    for level in dict.fromkeys(levels):
        for name in names:
            own = [
                (n, frames[n], found[n])
                for n in range(len(frames))
                if levels[n] == level and name in found[n] and label_of(frames[n], name) is not None
            ]
            pairs = _pairs(name, scope_of(name, models[0].config), own, e0=_e0(models[0], level))
            if pairs is not None:
                table.setdefault(level, {})[name] = pairs
    return table


def _e0(model: Tace, level: str) -> dict[int, float]:
    row = model.e0_eV[model.config.fidelities.index(level)]
    return dict(zip(model.config.elements, row.tolist(), strict=True))


def _pairs(
    name: str, scope: str, own: Sequence[tuple[int, Labelled, Values]], *, e0: Mapping[int, float]
) -> Pairs | None:
    """Energies are per atom and less those of isolated atoms, so that compositions compare."""
    labels, predictions, index = [], [], []
    for n, frame, values in own:
        label, value = label_of(frame, name), values[name]
        assert label is not None
        per, free = 1, 0.0
        if name == "energy":
            per, free = len(frame.atoms), sum(e0[int(z)] for z in frame.atoms.numbers)
        rows = len(frame.atoms) if scope == "atom" and name != "hessian" else 1
        label, value = ((x.reshape(rows, -1) - free) / per for x in (label, value))
        if name == "polarization":
            value = label + _nearest(value - label, frame.atoms)
        known = np.isfinite(label).all(1)
        labels.append(label[known])
        predictions.append(value[known])
        index.append(np.full(int(known.sum()), n))
    if name == "hessian":  # of structures of any size
        labels, predictions = ([x.reshape(-1, 1) for x in part] for part in (labels, predictions))
        index = [np.full(len(x), n[0]) for x, n in zip(labels, index, strict=True)]
    if not sum(map(len, labels)):
        return None
    unit = "eV/atom" if name == "energy" else unit_of(name)
    return Pairs(name, unit, np.concatenate(labels), np.concatenate(predictions), np.concatenate(index))


def _nearest(difference: np.ndarray, atoms: Atoms) -> np.ndarray:
    """A polarisation is defined up to e times a lattice vector: the shortest of all differences."""
    fractional = np.linalg.solve(atoms.cell.array.T, difference.T).T
    return np.asarray(difference - np.round(fractional) @ atoms.cell.array)


def error_rows(table: Mapping[str, Mapping[str, Pairs]], **more: str) -> list[dict[str, object]]:
    """One row for each fidelity and quantity: labels, RMSE and MAE over components."""
    rows: list[dict[str, object]] = []
    for level, own in table.items():
        for name, pairs in own.items():
            values = {"rmse": pairs.rmse, "mae": pairs.mae}
            numbers = {k: v if math.isfinite(v) else None for k, v in values.items()}
            row = {"fidelity": level, "quantity": name, "unit": pairs.unit, "labels": len(pairs.labels)}
            rows.append({**more, **row, **numbers})
    return rows
