"""`tace compile`: a model file with radial tables, and the compiled graph of this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.data import covalent_radii

from .batch import Batch, collate, make_graph
from .card import CARD, card_atoms, load_with_card, self_test
from .committee import Committee
from .errors import TaceError
from .graphs import GraphError, build
from .inputs import NEUTRAL
from .io import load_model, read_archive, save_model
from .model import Tace
from .radial_tables import FORCE_BOUND, drop_tables, has_tables, with_tables

CLOSEST = 0.75  # of the sum of covalent radii, in structures that are made up
_LARGEST = 48  # atoms: comparisons in float64 of more cost memory and tell no more
# of forces (eV/Å) in the precision of a file, besides the bound: rounding, for a scale of 1 eV
ROUNDING = {torch.float32: 2e-5, torch.float64: 1e-10}


def compile_file(
    path: Path, output: Path, *, structures: Sequence[Atoms] = (), graph: bool = True
) -> dict[str, Any]:
    """Write the model of `path` with radial tables to `output`, and build its graph on this machine.

    Args:
        structures: on which forces are compared, besides that of the card and some that are made up.

    Returns:
        Plain values: `tables`, and `graph` with what was measured, or why there is none.

    Raises:
        TaceError: not a model, one with tables already, no structure to compare forces on, or no table
            that is good enough.
    """
    model, card = load_with_card(path)
    if has_tables(model):
        raise TaceError(f"{path}: has radial tables already; compile the file that it was made from")
    extra = dict(read_archive(path).get("extra") or {})
    frames = examples(model, card, structures, where=str(path))
    batches = [_batch(model, [atoms], level) for atoms, level in frames]
    made, accuracy = with_tables(model, batches)
    test = card.get("self_test")
    if test and CARD in extra:
        atoms, level = card_atoms(test), test["fidelity"]
        extra[CARD] = {**extra[CARD], "self_test": self_test(made, atoms, level)}
    save_model(output, made, extra)
    report: dict[str, Any] = {"tables": accuracy._asdict(), "graph": None}
    if graph:
        try:
            report["graph"] = build(made, _for_graph(made, [a for a, _ in frames]))._asdict()
        except GraphError as error:
            report["graph"] = {"failed": str(error)}
    return report


def compare_files(
    path: Path, output: Path, *, structures: Sequence[Atoms] = (), repeats: int = 9
) -> dict[str, Any]:
    """Forces and times of a compiled file beside those of the model that it was made from.

    Returns:
        `passed`, the largest deviation and what is allowed, CPU milliseconds of a call for each structure.
    """
    model, card = load_with_card(path)
    drop_tables(model)
    compiled = load_model(output)
    if compiled.config != model.config or not has_tables(compiled):
        raise TaceError(f"{output}: was not compiled from {path}")
    committees = Committee([model]), Committee([compiled])
    rows = []
    for atoms, level in examples(model, card, structures, where=str(path)):
        batch = _batch(model, [atoms], level)
        both = [c.evaluate_batch(batch, member_forces=False) for c in committees]
        times = [_cpu_ms(c, batch, repeats) for c in committees]
        rows.append({
            "formula": atoms.get_chemical_formula(), "atoms": len(atoms), "fidelity": level,
            "energy_off_eV_per_atom": float(abs(both[0].energies - both[1].energies).max()) / len(atoms),
            "forces_off_eV_per_A": float(abs(both[0].mean_forces - both[1].mean_forces).max()),
            "model_ms": times[0], "compiled_ms": times[1],
        })  # fmt: skip
    allowed = FORCE_BOUND + ROUNDING[model.dtype] * max(1.0, float(model.scale_eV.max()))
    worst = max(row["forces_off_eV_per_A"] for row in rows)
    return {
        "passed": bool(worst <= allowed),
        "forces_off_eV_per_A": worst,
        "forces_tolerance_eV_per_A": allowed,
        "graph": committees[1].graphs is not None,
        "structures": rows,
    }


def _cpu_ms(committee: Committee, batch: Batch, repeats: int) -> float:
    found = []
    for n in range(repeats + 2):
        start = time.process_time()
        committee.evaluate_batch(batch, member_forces=False)
        if n >= 2:
            found.append(1e3 * (time.process_time() - start))
    return statistics.median(found)


# ------------------------------------------------------------------ structures
def examples(
    model: Tace, card: Mapping[str, Any], given: Sequence[Atoms], *, where: str
) -> list[tuple[Atoms, str]]:
    """Structures and levels on which forces are compared: given, that of the card, and two that are made up.

    Raises:
        TaceError: there are none, for the model reads conditions that nobody but its user knows.
    """
    levels = model.config.fidelities
    found = [(atoms, levels[n % len(levels)]) for n, atoms in enumerate(given)]
    test = card.get("self_test")
    if test and len(test["numbers"]) <= _LARGEST:
        found.append((card_atoms(test), test["fidelity"]))
    needed = [name for name in model.config.input_names if name not in NEUTRAL]
    if not needed:
        found += [(atoms, level) for level in levels for atoms in made_up(model.config.elements)]
    if not found:
        raise TaceError(
            f"{where}: the model reads {', '.join(needed)}, and there is no structure to compare forces on; "
            "give some with --structures"
        )
    return found


def made_up(elements: Sequence[int]) -> list[Atoms]:
    """A cluster and a crystal of all elements, no two atoms nearer than CLOSEST; always the same."""
    rng = np.random.default_rng(0)
    return [_packed(elements, 12, rng, periodic=False), _packed(elements, 9, rng, periodic=True)]


def _packed(elements: Sequence[int], count: int, rng: np.random.Generator, *, periodic: bool) -> Atoms:
    numbers = np.resize(rng.permutation(np.asarray(elements)), max(count, min(len(elements), 24)))
    edge = (np.sum((2.2 * covalent_radii[numbers]) ** 3)) ** (1 / 3)  # Å, of a cube with room for all
    atoms = Atoms(cell=[edge] * 3, pbc=periodic)
    while len(atoms) < len(numbers):
        number = numbers[len(atoms)]
        atoms.append(Atoms([number], positions=rng.uniform(0, edge, (1, 3)))[0])
        near = atoms.get_distances(-1, range(len(atoms) - 1), mic=periodic) if len(atoms) > 1 else []
        if np.any(near < CLOSEST * (covalent_radii[numbers[: len(near)]] + covalent_radii[number])):
            del atoms[-1]
            edge = edge if periodic else edge * 1.01  # a cluster makes room until the atom fits
    if not periodic:
        atoms.cell = None
    return atoms


def _batch(model: Tace, frames: Sequence[Atoms], level: str) -> Batch:
    config = model.config
    index = config.fidelities.index(level)
    graphs = [
        make_graph(a, config.elements, cutoff=config.cutoff_A, fidelity=index, inputs=config.inputs)
        for a in frames
    ]
    return collate(graphs, len(config.elements))


def _for_graph(model: Tace, frames: Sequence[Atoms]) -> list[Batch]:
    """What a graph is recorded on, compared on and timed on: several structures, one by one, the largest."""
    level = model.config.fidelities[0]
    several = list(frames[:2]) if len(frames) > 1 else [frames[0], frames[0][:-1]]
    largest = max(frames, key=len)
    singles = [_batch(model, [atoms], level) for atoms in (*frames[:3], largest)]
    return [_batch(model, several, level), _batch(model, [*frames[:3], frames[0]], level), *singles]
