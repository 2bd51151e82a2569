"""`alchemy plan --measure`: one small label per level, some steps of training and force calls, really run."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from alchemy_policies.variants import rattled
from ase import Atoms

from .builders.build import BUILDERS
from .builders.preview import preview
from .config import Campaign
from .errors import StructureError
from .gate import Gate
from .generate import read_structures
from .labelers.base import make_labeler
from .labelers.isolated import isolated_atom
from .labelers.label import label_structure
from .records import LabelRecord
from .stages.model import recipe
from .tasks import Spent
from .training import model_of

WARM_STEPS, TIMED_STEPS, CALLS = 5, 20, 6
RATTLED_A = 0.05
TICK_S = 0.01  # of the clock of processes: a label of a millisecond may seem to cost nothing, and none does


@dataclass(frozen=True)
class Probe:
    """CPU seconds: of labels (fidelity, atoms), of a step of one member, of the committee on one frame."""

    labels: tuple[tuple[str, int, float], ...]
    step_cpu_s: float | None
    force_cpu_s: float | None


def probe(campaign: Campaign, fidelities: Sequence[str]) -> Probe:
    """Run them, in a temporary folder.

    Raises:
        EnvironmentProblemError: a code is not there.
        StructureError: a level cannot label the smallest start structure.
    """
    atoms = smallest(campaign)
    labels = []
    records: dict[str, LabelRecord] = {}
    with tempfile.TemporaryDirectory(prefix="alchemy-probe-") as folder:
        for name in fidelities:
            chosen = campaign.fidelities[name]
            labeler = make_labeler(chosen.labeler, chosen.options, base_dir=campaign.base_dir)
            # the first label of a process also loads the code: it is that of an atom, where those are wanted
            frames = [isolated_atom(campaign.elements[0])] if campaign.e0 == "compute" else []
            for one in (*frames, atoms):
                record = label_structure(one, fidelity=name, labeler=labeler, root=Path(folder), gate=Gate())
                labels.append((name, len(one), max(record.cpu_s, TICK_S)))
            if record.status != "ok":
                raise StructureError(
                    f"probe: '{name}' cannot label {atoms.get_chemical_formula()}: "
                    f"{record.reason}: {record.message}"
                )
            records[name] = record
    step, force = _model(campaign, records[campaign.target])
    return Probe(tuple(labels), step, force)


def smallest(campaign: Campaign) -> Atoms:
    """The smallest structure of the start block that can be had without a labeler, a little displaced."""
    found: list[Atoms] = []
    for item in campaign.start:
        if item.kind in BUILDERS:
            found += preview(campaign, item)[0]
            continue
        paths = item.files.paths if item.files is not None else (item.source.structures,)
        for path in paths:
            found += read_structures(campaign.resolve(path), ":", campaign.elements)
    if not found:
        raise StructureError("probe: no start item has a structure without a labeler; run without --measure")
    chosen = min(found, key=len)
    return rattled(chosen, np.random.default_rng(campaign.seed), stdev_A=RATTLED_A)


def _model(campaign: Campaign, record: LabelRecord) -> tuple[float, float]:
    """(CPU seconds of a step of one member, of the committee's forces on one frame)."""
    import torch

    from tace.committee import Committee
    from tace.data import Labelled, make_samples
    from tace.train import TrainSettings, fit

    torch.set_num_threads(campaign.run.threads_per_worker)
    told = {**recipe(campaign, (campaign.target,)), "trunk": None, "init": None, "e0_eV": {}}
    rng, frames = np.random.default_rng(campaign.seed), []
    for _ in range(campaign.model.train.batch + 2):
        frames.append(
            Labelled(
                atoms=rattled(record.atoms, rng, stdev_A=RATTLED_A),
                fidelity=record.fidelity,
                energy_eV=record.energy_eV,
                forces_eV_per_A=record.forces_eV_per_A,
            )
        )
    members = [model_of({**told, "seed": n}, frames) for n in range(campaign.model.committee)]
    model = model_of({**told, "seed": len(members)}, frames)
    samples = make_samples(frames, model.config)

    def steps(number: int) -> float:
        settings = TrainSettings(**{**told["settings"], "steps": number, "validate_every": number}, seed=0)
        began = Spent()
        fit(model, samples, samples[:1], settings=settings)
        return began.cpu_s()

    steps(WARM_STEPS)
    step = steps(TIMED_STEPS) / TIMED_STEPS
    walkers = [frame.atoms for frame in frames]
    session = Committee(members).session(walkers, fidelity=campaign.target)
    positions = np.concatenate([a.positions for a in walkers])
    session(positions, True)
    began = Spent()
    for n in range(CALLS):
        session(positions + 0.001 * n, n == 0)
    return step, began.cpu_s() / CALLS / len(walkers)
