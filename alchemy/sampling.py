"""One sampler alone: the settings of a campaign's block in, structures and their health out.

The same functions as in a campaign make them: `generate.make_structures`, or with models `tasks.explore` with
the options of `stages.explore.conditions`.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ValidationError

from tace.documents import Problem, dotted

from .config_blocks import Fidelity, StopMd
from .config_errors import problems_in
from .config_explain import kind_of, value_text
from .config_fields import SYMBOLS
from .config_samples import Explore, Sample
from .errors import InputError
from .identity import seed_for

if TYPE_CHECKING:
    from ase import Atoms

LABELER = "labeler"  # name of the level that --labeler defines
WITH_MODEL = ("md", "reico", "basin_hopping")


@dataclass(frozen=True)
class Order:
    """What was asked for on the command line."""

    kind: str
    settings: dict[str, Any]
    seed: int
    models: tuple[Path, ...]
    fidelity: str | None
    labeler: str | None

    @property
    def name(self) -> str:
        """The kind as campaign files call it."""
        return "reico" if self.kind == "grow" else self.kind.replace("-", "_")


def keys_of(order: Order) -> list[dict[str, Any]]:
    """Key, default and meaning of everything that the kind can be told."""
    rows = []
    for name, field in _block(order).model_fields.items():
        key = field.alias or name
        if key in ("with", "relax_with", "method"):
            continue  # said by --labeler and by the kind
        default = "–"
        if not field.is_required():
            default = value_text(field.get_default(call_default_factory=True), kind_of(field))
        rows.append({"key": key, "default": default, "what": field.description})
    return rows


def run(order: Order, out: Path | None) -> dict[str, Any]:
    """Make the structures, write them, and describe them as a JSON document.

    Raises:
        InputError: settings that the block does not take, or that give no structure.
    """
    from alchemy_policies.health import health

    started = time.process_time()
    if order.models:
        frames, outcomes, calls = _explored(order)
        forces = _forces(order, frames)
    else:
        frames, forces = _made(order)
        outcomes, calls = {}, None
    if out is not None:
        _write(frames, out)
    return {
        "kind": order.kind,
        "seed": order.seed,
        "out": None if out is None else str(out),
        "health": health(frames, forces),
        "outcomes": outcomes,
        "force_calls": calls,
        "cpu_s": time.process_time() - started,
    }


def _block(order: Order) -> type[BaseModel]:
    holder: type[BaseModel] = Explore if order.models else Sample
    if order.models and order.name not in WITH_MODEL:
        raise InputError(f"{order.kind} takes no model; --model is for grow, reico, md and basin-hopping")
    annotation = holder.model_fields[order.name].annotation
    return next(t for t in annotation.__args__ if t is not type(None))  # type: ignore[union-attr]


def _settings(order: Order) -> Any:
    """The block, validated as in a campaign file."""
    block, told = _block(order), dict(order.settings)
    if order.name == "reico":
        told["method"] = order.kind
    if order.labeler is not None and not order.models:
        key = "with" if order.name in ("md", "basin_hopping") else "relax_with"
        told[key] = LABELER
    if order.name in ("md", "basin_hopping") and not order.models and order.labeler is None:
        raise InputError(
            f"{order.kind} needs forces: give a committee with --model, or a labeler with --labeler emt"
        )
    if order.models and order.name != "reico" and "structures" not in told:
        raise InputError(f"{order.kind}.structures: missing; give the file to start from, structures=FILE")
    return _validated(block, told, order.kind)


def _validated(block: type[BaseModel], told: dict[str, Any], kind: str) -> Any:
    try:
        return block.model_validate(told)
    except ValidationError as error:
        raise InputError(_said(problems_in(error, block), kind)) from None


def _said(problems: list[Problem], kind: str) -> str:
    return "\n".join(f"{kind}.{dotted(p.loc)}: {p.message}" for p in problems)


def _made(order: Order) -> tuple[list[Atoms], list[Any] | None]:
    """Structures as of `start:`, and a labeler's forces on them where there is one."""
    from alchemy_policies.calculators import CalculatorSessions

    from .generate import make_structures
    from .labelers.base import make_labeler
    from .labelers.calculator import LabelerCalculator

    source = _settings(order)
    request: dict[str, Any] = {
        "kind": order.name,
        "source": source.model_dump(mode="json", by_alias=False),
        "base_dir": str(Path.cwd()),
        "elements": list(SYMBOLS),
        "labelers": _labelers(order),
        "seed": seed_for(order.seed, "sample", order.kind),
    }
    with tempfile.TemporaryDirectory(prefix="alchemy-sample-") as folder:
        frames = make_structures({**request, "scratch": str(Path(folder) / "scratch")})
        if order.labeler is None:
            return frames, None
        chosen = request["labelers"][LABELER]
        labeler = make_labeler(chosen["labeler"], chosen["options"], base_dir=Path.cwd())
        look = CalculatorSessions(LabelerCalculator(labeler, Path(folder) / "forces"))(frames)
        told = look(np.concatenate([atoms.positions for atoms in frames]), False)
        return frames, told.per_structure(told.mean_forces)


def _labelers(order: Order) -> dict[str, Any]:
    from tace.documents import read_value

    if order.labeler is None:
        return {}
    try:
        told = read_value(order.labeler)
    except ValueError as error:
        raise InputError(f"--labeler: found '{order.labeler}', {error}") from None
    told = {"labeler": told} if isinstance(told, str) else told
    if not isinstance(told, dict):
        raise InputError(
            "--labeler: write emt, or a mapping as in fidelities: '{labeler: tblite, method: GFN1-xTB}'"
        )
    chosen = _validated(Fidelity, told, "--labeler")
    return {LABELER: {"labeler": chosen.labeler, "options": chosen.options}}


def _explored(order: Order) -> tuple[list[Atoms], dict[str, int], int]:
    """Candidates of an explorer with where they come from, outcomes of its walkers, structures evaluated."""
    from alchemy_policies.calibration import Calibration

    from . import tasks
    from .generate import read_structures
    from .records import atoms_from_document, frame_to_document
    from .stages.explore import conditions

    stop, block = _stop(order)
    item = Explore.model_construct(**{order.name: block})
    models = [str(path) for path in _model_files(order)]
    named = block.structures
    starts = [] if named is None else read_structures(Path.cwd() / named, ":", SYMBOLS)
    frames, outcomes, calls = [], Counter[str](), 0
    with tempfile.TemporaryDirectory(prefix="alchemy-sample-") as folder:
        for n, options in enumerate(conditions(item, stop)):
            request = {
                "explorer": order.name,
                "options": options,
                "starts": [frame_to_document(a) for a in starts],
                "models": models,
                "fidelity": order.fidelity,
                "calibration": Calibration.uncalibrated(max(2, len(models))).to_json(),
                "seed": seed_for(order.seed, "sample", order.kind, n),
                "out": str(Path(folder) / f"{n}.json"),
            }
            document = tasks.read_candidates(Path(tasks.explore(request)["out"]))
            for candidate in document["candidates"]:
                atoms = atoms_from_document(candidate.pop("structure"))
                atoms.info.update({k: v for k, v in candidate.items() if v is not None})
                frames.append(atoms)
            outcomes.update(walker["outcome"] for walker in document["walkers"])
            calls += document["force_calls"]
    return frames, dict(outcomes), calls


def _stop(order: Order) -> tuple[StopMd, Any]:
    """Thresholds, which in a campaign stand in stop_md, may be given among the settings of md."""
    told = dict(order.settings)
    names = ("label_above", "abort_above") if order.name == "md" else ()
    limits = {name: told.pop(name) for name in names if name in told}
    stop = _validated(StopMd, limits, order.kind)
    if stop.label_above_eV_per_A >= stop.abort_above_eV_per_A:
        raise InputError(f"{order.kind}.label_above: must be below abort_above")
    rest = Order(order.kind, told, order.seed, order.models, order.fidelity, order.labeler)
    return stop, _settings(rest)


def _model_files(order: Order) -> list[Path]:
    found: list[Path] = []
    for path in order.models:
        members = sorted(path.glob("member-*.pt")) if path.is_dir() else [path]
        if not members or not members[0].exists():
            raise InputError(f"--model {path}: there is no model file, nor a folder of member-*.pt")
        found += members
    if len(found) < 2:
        raise InputError("--model: one model has no spread and cannot know when to stop; give two or more")
    return found


def _forces(order: Order, frames: list[Atoms]) -> list[Any] | None:
    """The committee's mean forces on what was found."""
    from . import tasks

    if not frames:
        return None
    committee = tasks.load_committee([str(path) for path in _model_files(order)])
    prediction = committee(frames, fidelity=order.fidelity, member_forces=False)
    pieces: list[Any] = prediction.per_structure(prediction.mean_forces)
    return pieces


def _write(frames: list[Atoms], out: Path) -> None:
    """The file appears at once and complete."""
    from ase.io import write

    if not frames:
        raise InputError("nothing was found that could be written; see the table without -o for why")
    draft = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        write(draft, frames, format="extxyz")
        os.replace(draft, out)
    finally:
        draft.unlink(missing_ok=True)
