"""Tasks of molecular dynamics: temperature, pressure and length of each, and how far a ladder is climbed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from alchemy_policies.energy_spread import energy_spread_limit, energy_spread_per_atom
from alchemy_policies.ladder import Climb, Ladder

from ..config_blocks import StopMd
from ..config_samples import ExploreMd
from ..datasets import TRAIN
from ..state import RoundState
from ..store import Snapshot
from .context import Context

# fields of the campaign's block that are options of the explorer by the same name
_AS_THEY_ARE = (
    "timestep_fs", "walkers", "batch_atoms", "check_every", "ensemble", "thermostat",
    "friction_per_fs", "tau_fs", "barostat_tau_fs", "compressibility_per_GPa", "ramp_to_K",
)  # fmt: skip


def dynamics(md: ExploreMd, stop: StopMd, past: Sequence[Climb]) -> list[dict[str, Any]]:
    """Options of the explorer, one entry per temperature and pressure that are open."""
    if md.ladder_fs:
        return [_options(md, stop, climb) for climb in ladder_of(md).open(past)]
    conditions = [(t, p) for t in md.T_K for p in md.pressures_eV_per_A3]
    return [_options(md, stop, Climb(t, p, float(md.time_fs or 0.0))) for t, p in conditions]


def ladder_of(md: ExploreMd) -> Ladder:
    """Temperatures and pressures in the order of the file."""
    return Ladder(md.T_K, md.ladder_fs or (), md.pressures_eV_per_A3, md.survive)


def _options(md: ExploreMd, stop: StopMd, climb: Climb) -> dict[str, Any]:
    steps = max(1, round(climb.time_fs / md.timestep_fs))
    return {
        **{name: getattr(md, name) for name in _AS_THEY_ARE},
        "temperatures_K": [climb.temperature_K],
        "pressure_eV_per_A3": climb.pressure_eV_per_A3,
        "time_fs": climb.time_fs,
        "samples": 4 if md.sample_every is None else max(1, steps // md.sample_every),
        "label_above_eV_per_A": stop.label_above_eV_per_A,
        "abort_above_eV_per_A": stop.abort_above_eV_per_A,
        "bias_height_eV": md.bias_height_eV if md.bias == "udd" else 0.0,
        "bias_width_eV": md.bias_width_eV,
        "guards": {
            "pair_factor": stop.guards.min_distance_factor,
            "max_force_eV_per_A": stop.guards.max_force_eV_per_A,
            "max_temperature_ratio": stop.guards.max_temperature_factor,
            "max_volume_ratio": stop.guards.max_volume_factor,
        },
    }


def energy_limit(context: Context, state: RoundState, snapshot: Snapshot) -> dict[str, float]:
    """The option of walkers that ends a walk by the spread of energies; none where it is not asked for."""
    factor = context.campaign.stop_md.energy_spread
    if factor is None or not any(item.md for item in context.campaign.explore):
        return {}
    parts = snapshot.part_of()
    known = {r.structure_uid for r in snapshot.labels() if parts.get(r.structure_uid) == TRAIN}
    scores = context.score(state.number, sorted(known), context.target, name="train")
    limit = energy_spread_limit(energy_spread_per_atom(scores.prediction()), factor)
    return {"energy_spread_above_eV_per_atom": limit} if math.isfinite(limit) else {}


def climbs(context: Context, before: int) -> dict[int, list[Climb]]:
    """What the ladders of the campaign's items have seen in the rounds before that one."""
    found: dict[int, list[Climb]] = {}
    for number in range(1, before):
        ladders = RoundState(context.home, number).facts.get("explore", {}).get("ladders", {})
        for item, own in ladders.items():
            found.setdefault(int(item), []).extend(Climb.from_json(climb) for climb in own)
    return found


def climbed(requests: Sequence[dict[str, Any]], documents: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """What this round adds, for its facts: by the number of the item."""
    found: dict[str, list[Any]] = {}
    for request, document in zip(requests, documents, strict=True):
        if request["ladder"] is None:
            continue
        options, walkers = request["options"], document["walkers"]
        climb = Climb(options["temperatures_K"][0], options["pressure_eV_per_A3"], options["time_fs"])
        found.setdefault(str(request["ladder"]), []).append(climb.after(walkers).to_json())
    return found


def still_to_climb(context: Context, number: int) -> tuple[str, ...]:
    """Rungs that dynamics has not survived at full length after that round; empty without ladders."""
    past = climbs(context, number + 1)
    words: list[str] = []
    for n, item in enumerate(context.campaign.explore):
        if item.md is not None and item.md.ladder_fs:
            words += ladder_of(item.md).left(past.get(n, []))
    return tuple(words)
