"""The model of a run: built from the data, or taken from a file and taught new fidelities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from .config import HeadConfig, InputConfig, TaceConfig
from .data import Labelled
from .errors import DataError, TaceError
from .finetune import check_elements, extend_fidelities, fit_new_level, freeze, load_trainable
from .inputs import read_inputs
from .model import Tace
from .quantities import INPUTS
from .reference import mean_neighbors, set_statistics, statistics
from .runfile import SPIN, RunFile, config_of, filled
from .runfile_data import RunData

NEUTRAL_SPREAD = 1e-12  # an input that is zero in all data has no size of its own


def new_model(run: RunFile, data: RunData) -> tuple[Tace, list[str]]:
    """A model that fits the data, with energies of atoms, scales and offsets from the training set.

    Raises:
        TaceError: settings that do not fit together, or data that lack what the model needs.
    """
    block = run.block("model")
    inputs = [_input(part, data.train) for part in block.get("inputs", ())]
    config = config_of(block, inputs, elements=data.elements, fidelities=data.fidelities)
    config = replace(config, avg_neighbors=mean_neighbors(data.train, config))
    facts = statistics(data.train, config, data.e0_eV)
    model = Tace(config, seed=int(run.value("seed")), dtype=dtype_of(run) or torch.float32)
    for head in config.heads:
        if head.name not in facts.heads:
            raise DataError(f"head {head.name}: no training frame has a label '{head.name}'")
    set_statistics(model, facts)
    return model, list(facts.notes)


def dtype_of(run: RunFile) -> torch.dtype | None:
    """What the run asks for."""
    name = run.block("model").get("dtype")
    return None if name is None else {"float32": torch.float32, "float64": torch.float64}[name]


def _input(part: Any, frames: Sequence[Labelled]) -> InputConfig:
    """An input whose scale is its largest size in the data, and whose classes are those in the data."""
    probe = filled(part, scale=1.0, values=(1,))
    if probe.name == SPIN:
        seen = {f.atoms.info.get(SPIN) for f in frames}
        if None in seen:
            lacking = next(f for f in frames if SPIN not in f.atoms.info)
            raise DataError(f"{lacking.name}: the model reads {SPIN}, which this frame does not give")
        return filled(part, scale=1.0, values=sorted({int(v) for v in seen if v is not None}))
    size = 0.0
    for frame in frames:
        value = read_inputs(frame.atoms, [probe])[probe.name]
        length = np.linalg.norm(value, axis=-1) if INPUTS[probe.name].shape else np.abs(value)
        size = max(size, float(np.max(length, initial=0.0)))
    return filled(part, scale=size if size > NEUTRAL_SPREAD else 1.0, values=())


def started_model(run: RunFile) -> Tace:
    """The model that a run starts from, ready to be trained.

    Raises:
        ModelFileError: missing or damaged.
        TaceError: the model block asks for another model than the file holds.
    """
    assert run.init is not None
    model = load_trainable(run.init, dtype=dtype_of(run))
    given = {k: v for k, v in run.block("model").items() if k not in ("init", "dtype", "preset")}
    for name, value in given.items():
        own = model.config.to_json()[name]
        wanted = _as_stored(name, value, model.config)
        if own != wanted:
            raise TaceError(
                f"{run.name}: model.{name} is {wanted}, but {run.init} has {own}; leave it out, or leave "
                "'init' out to train a new model"
            )
    return model


def _as_stored(name: str, value: Any, config: TaceConfig) -> Any:
    """A setting of the run file in the form of `TaceConfig.to_json`."""
    inputs = list(config.inputs)
    if name == "inputs":
        own = {i.name: i for i in config.inputs}
        inputs = [
            filled(part, scale=own[n].scale if n in own else 1.0, values=own[n].values if n in own else (1,))
            for part in value
            for n in [part if isinstance(part, str) else part["name"]]
        ]
    facts = {"elements": config.elements, "fidelities": config.fidelities}
    return config_of({name: value}, inputs, **facts).to_json()[name]


def adapt_model(model: Tace, run: RunFile, data: RunData) -> tuple[Tace, list[str]]:
    """Teach a model the fidelities of the data that the run names, and freeze what it says.

    Raises:
        TaceError: elements or fidelities that cannot be added; says what works.
    """
    check_elements(model, data.elements, where=str(run.init))
    notes = []
    new = [name for name in data.fidelities if name not in model.config.fidelities]
    named = run.block("data").get("fidelities", ())
    unasked = [name for name in new if name not in named]
    if unasked:
        known = ", ".join(model.config.fidelities)
        raise TaceError(
            f"the data are at '{unasked[0]}', a level that {run.init} does not have (it has {known}); "
            f"name it in data.fidelities to add it, or say which one a file holds: {{file: …, fidelity: "
            f"{model.config.fidelities[-1]}}}"
        )
    if new:
        model = extend_fidelities(model, new)
        notes.append(f"new levels, started as copies of the last one: {', '.join(new)}")
        for level in new:
            fit_new_level(model, data.train, level, data.e0_eV.get(level))
    _keep_or_set_e0(model, run, data, new)
    parts = run.block("finetune").get("freeze", ())
    if parts:
        frozen = freeze(model, parts)
        left = sum(p.numel() for p in model.parameters() if p.requires_grad)
        notes.append(f"frozen: {len(frozen)} tensors ({', '.join(parts)}); {left} numbers are trained")
    return model, notes


def _keep_or_set_e0(model: Tace, run: RunFile, data: RunData, new: Sequence[str]) -> None:
    """Energies of atoms stay those of the model, unless the run file gives others."""
    if "e0_eV" not in run.block("data"):
        return
    for level, own in data.e0_eV.items():
        if level in model.config.fidelities and level not in new:
            f = model.config.fidelities.index(level)
            for n, z in enumerate(model.config.elements):
                if z in own:
                    model.e0_eV[f, n] = own[z]


def heads_and_inputs(run: RunFile, model: Tace | None) -> tuple[tuple[HeadConfig, ...], tuple[str, ...]]:
    """Of the model there is, else of the one that the run file describes."""
    if model is not None:
        return model.config.heads, model.config.input_names
    return run.heads, run.input_names
