"""Starting from a trained model: new fidelities, frozen parts, and old data replayed beside the new.

    model = load_trainable(path)
    model = extend_fidelities(model, ["ccsd"])
    freeze(model, ["backbone"])
    samples = with_replay(new, old, fraction=0.3, seed=0)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from ase.data import chemical_symbols
from torch import Tensor

from .config import TaceConfig
from .data import Labelled, Sample
from .errors import TaceError
from .io import load_model
from .model import Tace
from .properties import predict
from .readout import ENERGY_READOUTS

READOUTS = (*ENERGY_READOUTS, "heads.")
_EMBEDDING = ("embedding", "fidelity_table", "fidelity_mix.", "conditions.")
# tables with a row for each level
_LEVEL_FIRST = (
    "fidelity_table", "reference.e0_eV", "reference.scale_eV", "reference.shift_eV", "reference.scale",
    "reference.shift", "reference.polarizability", ".offset", ".hardness_offset",
)  # fmt: skip


# ------------------------------------------------------------------ freezing
def groups(model: Tace) -> dict[str, Callable[[str], bool]]:
    """The parts of a model that can be frozen, each with what tells its parameters by name."""
    starts = {
        "embedding": _EMBEDDING,
        "layers": ("layers.",),
        "readout": ENERGY_READOUTS,
        "heads": ("heads.",),
        "conditions": ("conditions.", "fields.", "magnetic."),
        **{f"layers.{t}": (f"layers.{t}.",) for t in range(model.config.n_layers)},
        **{
            f"heads.{head.name}": (f"heads.{key}.",)
            for head, key in zip(model.config.heads, model.heads, strict=True)
        },
    }
    return {
        **{name: partial(_starts_with, start) for name, start in starts.items()},
        "radial": lambda n: ".radial." in n,
        "backbone": lambda n: not n.startswith(READOUTS),
    }


def _starts_with(starts: tuple[str, ...], name: str) -> bool:
    return name.startswith(starts)


def freeze(model: Tace, names: Sequence[str]) -> list[str]:
    """Take parts out of training; `backbone` is everything but readouts and heads.

    Returns:
        names of the frozen parameters.

    Raises:
        TaceError: an unknown part, one without parameters, or nothing left to train.
    """
    known = groups(model)
    frozen: list[str] = []
    for name in names:
        if name not in known:
            raise TaceError(f"finetune.freeze: no part '{name}' in the model; it has {', '.join(known)}")
        own = [n for n, _ in model.named_parameters() if known[name](n)]
        if not own:
            raise TaceError(f"finetune.freeze: the model has no parameters in '{name}'")
        frozen += own
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    if not any(p.requires_grad for p in model.parameters()):
        raise TaceError("finetune.freeze: everything is frozen; leave out a part, such as 'readout'")
    return sorted(set(frozen))


def new_readouts(model: Tace, seed: int) -> Tace:
    """Draw the readouts of energies and latent charges anew and freeze all else, in place.

    Members of a committee that share their trunk differ in nothing else (`stacked.shares_trunk`).
    """
    fresh = Tace(model.config, seed=seed, dtype=model.dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(ENERGY_READOUTS):
                parameter.copy_(fresh.get_parameter(name))
    freeze(model, ["backbone"])
    return model


def load_trainable(path: Path, *, dtype: torch.dtype | None = None) -> Tace:
    """A model whose parameters can be trained further; see `io.load_model`."""
    return load_model(path, dtype=dtype).train().requires_grad_(True)


# ------------------------------------------------------------------ elements and fidelities
def check_elements(model: Tace, elements: Sequence[int], *, where: str) -> None:
    """Refuse elements that the model was not built for.

    Raises:
        TaceError: says which, and what works instead.
    """
    new = [chemical_symbols[z] for z in elements if z not in model.config.elements]
    if new:
        known = ", ".join(chemical_symbols[z] for z in model.config.elements)
        raise TaceError(
            f"the data hold {', '.join(new)}, which {where} does not know (it knows {known}); a new element "
            "cannot be added to a trained model: train a new one with 'tace train' on the old and the new "
            "data together, or leave these structures out"
        )


def extend_fidelities(model: Tace, names: Sequence[str], *, like: str | None = None) -> Tace:
    """A model that knows further fidelities, each of which starts as an exact copy of an old one.

    Old levels predict what they did: bit for bit, or to rounding if the readout is per fidelity. The new
    ones come last, so that the last name is the target.

    Args:
        like: the level that is copied; None is the last one, the target.

    Raises:
        TaceError: a name that the model has, or a level to copy that it has not.
    """
    old = model.config
    source = like or old.fidelities[-1]
    if source not in old.fidelities:
        raise TaceError(f"the model has no level '{source}' to copy; it has {', '.join(old.fidelities)}")
    twice = [n for n in names if n in old.fidelities]
    if twice:
        raise TaceError(f"the model has the level '{twice[0]}' already")
    if not names:
        return model
    config = replace(old, fidelities=(*old.fidelities, *names))
    grown = Tace(config, dtype=model.dtype)
    columns = [*range(len(old.fidelities)), *[old.fidelities.index(source)] * len(names)]
    state, stored = grown.state_dict(), model.state_dict()
    for name, value in state.items():
        state[name] = _grown(name, value, stored, columns, old)
    grown.load_state_dict(state)
    return grown.to(model.device).train(model.training)


def _grown(
    name: str, fresh: Tensor, stored: dict[str, Tensor], levels: list[int], config: TaceConfig
) -> Tensor:
    """One entry of the state: old levels kept, new ones copied."""
    if name == "fidelity_table" and name not in stored:  # a single level had none: it adds exactly zero
        return torch.zeros_like(fresh)
    if name not in stored:
        if ".hidden_out." in name and config.readout == "per_fidelity":
            head, _, tail = name.partition(".hidden_out.")
            number, _, rest = tail.partition(".")
            return stored[f"{head}.hidden_out.{levels[int(number)]}.{rest}"].clone()
        return fresh  # the map of the new table
    value = stored[name]
    if value.shape == fresh.shape:
        return value.clone()
    if name.endswith(_LEVEL_FIRST):
        return value[levels].clone()
    n_old = len(config.fidelities)
    if name.startswith(ENERGY_READOUTS):  # levels are the slow index of the columns
        return value.unflatten(-1, (n_old, -1))[..., levels, :].flatten(-2)
    return value.unflatten(-1, (-1, n_old))[..., levels].flatten(-2)  # of heads, the fast one


def fit_new_level(
    model: Tace, frames: Sequence[Labelled], level: str, e0_eV: Mapping[int, float] | None = None
) -> None:
    """Energies of atoms of a new fidelity, so that it starts where its labels lie.

    Without `e0_eV` those of the copied level move by the least-squares deviation on compositions; with
    them the shift moves by the mean deviation per atom. Levels without energies are left as they are.

    Raises:
        TaceError: `e0_eV` lacks an element of the data.
    """
    f = model.config.fidelities.index(level)
    table, shift = model.e0_eV, model.shift_eV
    own = [x for x in frames if x.fidelity == level]
    if e0_eV is not None:
        present = {int(z) for x in own for z in x.atoms.numbers}
        missing = [chemical_symbols[z] for z in sorted(present - e0_eV.keys())]
        if missing:
            raise TaceError(f"fidelity '{level}': no isolated-atom energy for {', '.join(missing)}")
        for n, z in enumerate(model.config.elements):
            table[f, n] = e0_eV.get(z, float(table[f, n]))
    known = [(x.atoms, x.energy_eV) for x in own if x.energy_eV is not None]
    if not known:
        return
    found = predict([model], [atoms for atoms, _ in known], [level] * len(known), names=["energy"])
    wrong = np.array([energy - float(v["energy"]) for (_, energy), v in zip(known, found, strict=True)])
    counts = np.array([[np.sum(a.numbers == z) for z in model.config.elements] for a, _ in known], float)
    if e0_eV is None:
        moved = np.linalg.lstsq(counts, wrong, rcond=None)[0]
        table[f] += torch.from_numpy(moved).to(table.device)
    else:
        shift[f] += float(np.mean(wrong / counts.sum(1)))


# ------------------------------------------------------------------ replay
def with_replay(
    new: Sequence[Sample], old: Sequence[Sample], *, fraction: float, seed: int
) -> list[Sample]:
    """A training list in which old samples make up this share, so that nothing is forgotten.

    Every sample of both is in it; the smaller part is gone through again as often as needed. To be drawn
    with `fidelity_balance` 0, as the shares are in the list.
    """
    n_new = max(len(new), round(len(old) * (1.0 - fraction) / fraction))
    n_old = max(len(old), round(len(new) * fraction / (1.0 - fraction)))
    rng = np.random.default_rng([seed, 7])
    return [*_repeated(new, n_new, rng), *_repeated(old, n_old, rng)]


def _repeated(samples: Sequence[Sample], count: int, rng: np.random.Generator) -> list[Sample]:
    rounds = -(-count // len(samples))
    order = np.concatenate([rng.permutation(len(samples)) for _ in range(rounds)])[:count]
    return [samples[n] for n in order]
