"""Any quantity of any structures as arrays: of one model, or the mean of several, with their spread."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import Atoms

from .batch import Graph, collate, make_graph
from .committee import chunks
from .config import TaceConfig
from .data import fidelity_index
from .derivatives import ALWAYS_THERE, Evaluation, evaluate, voigt
from .errors import TaceError
from .hessian import hessian
from .model import Tace
from .prediction import small_sample_factor
from .quantities import LABELS
from .responses import available

OWN = ("energy", "forces", "stress")
LATENT = ("latent_charges", "atom", "e")
Values = dict[str, np.ndarray]


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
    for model in models:
        known = available(model.config)
        for name in names:
            if name not in known:
                raise TaceError(f"the model does not predict '{name}'; it predicts {', '.join(known)}")
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
    for chunk in chunks(graphs):
        batch = collate(chunk, len(config.elements)).to(models[0].device)
        results = [
            evaluate(
                model,
                batch,
                forces="forces" in names,
                stress="stress" in names,
                responses=[n for n in names if n not in (*OWN, *ALWAYS_THERE, "hessian")],
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
