"""Any quantity of any structures, as arrays: the mean over the members of a committee."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from ase import Atoms

from .batch import Batch, collate, make_graph
from .committee import Committee, chunks
from .data import fidelity_index
from .derivatives import ALWAYS_THERE, Evaluation, evaluate, voigt
from .errors import TaceError
from .hessian import hessian
from .model import Tace
from .responses import available

BASIC = ("energy", "forces", "stress", "features")


def predict(
    committee: Committee, frames: Sequence[Atoms], names: Sequence[str], *, fidelity: str | None = None
) -> list[dict[str, np.ndarray]]:
    """One dictionary for each structure; shapes and units are those of `quantities.LABELS`.

    Stress is NaN for structures that are not periodic in three dimensions.

    Args:
        names: of `responses.available(config)`, or 'features' (invariant features of atoms).

    Raises:
        TaceError: a quantity that a member does not predict.
        UnknownElementError, UnknownFidelityError, DataError: see `make_graph`.
    """
    for member in committee.members:
        known = {*available(member.config), "features"}
        for name in names:
            if name not in known:
                raise TaceError(
                    f"the model does not predict '{name}'; it predicts {', '.join(sorted(known))}"
                )
    config = committee.members[0].config
    level = fidelity_index(fidelity or committee.fidelities[-1], committee.fidelities)
    graphs = [
        make_graph(
            a, config.elements, cutoff=config.cutoff_A, fidelity=level, inputs=config.inputs
        )
        for a in frames
    ]
    found: list[dict[str, np.ndarray]] = []
    for chunk in chunks(graphs):
        batch = collate(chunk, len(config.elements)).to(committee.members[0].device)
        each = [_of_batch(member, batch, names) for member in committee.members]
        found += [
            {name: np.mean([one[n][name] for one in each], 0) for name in each[0][n]}
            for n in range(len(chunk))
        ]
    if "hessian" in names:
        for atoms, own in zip(frames, found, strict=True):
            own["hessian"] = np.mean(
                [hessian(m, atoms, fidelity=level) for m in committee.members], 0
            )
    return found


def _of_batch(model: Tace, batch: Batch, names: Sequence[str]) -> list[dict[str, np.ndarray]]:
    responses = [n for n in names if n not in (*BASIC, *ALWAYS_THERE, "hessian")]
    result = evaluate(
        model, batch, forces="forces" in names, stress="stress" in names, responses=responses
    )
    counts = batch.n_atoms.tolist()
    columns = {n: _split(n, result, model, counts) for n in names if n != "hessian"}
    return [{n: column[s] for n, column in columns.items()} for s in range(len(counts))]


def _split(name: str, result: Evaluation, model: Tace, counts: list[int]) -> list[np.ndarray]:
    """The values of each structure."""
    if name == "energy":
        values, of_atoms = result.energies, False
    elif name == "stress":
        assert result.stresses is not None
        values, of_atoms = voigt(result.stresses), False
    elif name == "forces":
        assert result.forces is not None
        values, of_atoms = result.forces, True
    elif name == "features":
        values, of_atoms = result.features.double(), True
    else:
        values, of_atoms = result.outputs[name], _of_atoms(name, model)
    parts = torch.split(values, counts) if of_atoms else values.unbind(0)
    return [part.cpu().numpy() for part in parts]


def _of_atoms(name: str, model: Tace) -> bool:
    for head in model.config.heads:
        if head.name == name:
            return head.scope == "atom"
    return name not in ("dipole", "polarization", "polarizability")
