"""Second derivatives of the energy of one structure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from ase import Atoms

from .batch import collate, make_graph
from .derivatives import evaluate
from .model import Tace

ATOMS_AT_ONCE = 512


def hessian(
    model: Tace, atoms: Atoms, *, fidelity: int = 0, of: Sequence[int] | None = None
) -> np.ndarray:
    """∂²E/∂x∂x [3A, 3A], eV/Å², made symmetric.

    Rows are found many at once, on copies of the structure each of which is asked for a row of its own.

    Args:
        of: atoms whose block is wanted, [3F, 3F] in this order; None is all of them.

    Raises:
        UnknownElementError, DataError: see `make_graph`.
    """
    config = model.config
    graph = make_graph(
        atoms, config.elements, cutoff=config.cutoff_A, fidelity=fidelity, inputs=config.inputs
    )
    n = len(atoms)
    copies = max(1, ATOMS_AT_ONCE // n)
    wanted = np.arange(n) if of is None else np.asarray(of, dtype=int)
    components = (3 * wanted[:, None] + np.arange(3)).ravel()
    found = []
    for start in range(0, len(components), copies):
        rows = torch.from_numpy(components[start : start + copies]).to(model.device)
        batch = collate([graph] * len(rows), len(config.elements)).to(model.device)
        result = evaluate(model, batch, forces=False, hessian_rows=rows.unsqueeze(0))
        found.append(result.outputs["hessian_rows"].reshape(len(rows), 3 * n))
    matrix = torch.cat(found).cpu().numpy()[:, components]
    return np.asarray(0.5 * (matrix + matrix.T))
