"""`alchemy export --models`: the newest committee with what a user of it must know."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

from alchemy import __version__
from alchemy.cli_paths import can_be_made
from alchemy.errors import InputError
from alchemy.records import read_json, write_json_atomic
from alchemy.state import Home, RoundState

CARD, CALIBRATION = "model-card.json", "calibration.json"


def export_models(directory: Path, out: Path, *, force: bool) -> dict[str, Any]:
    """Copy the members, write calibration.json and model-card.json; the card comes back."""
    home = Home(directory)
    number = _newest(home)
    if (out / CARD).exists() and not force:
        raise InputError(f"{out} holds a model already; --force overwrites")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give the name of a folder")
    can_be_made(out).mkdir(parents=True, exist_ok=True)
    for path in out.glob("member-*.pt"):
        path.unlink()  # of a larger committee
    digests = {}
    for path in sorted(home.models(number).glob("member-*.pt")):
        shutil.copyfile(path, out / path.name)
        digests[path.name] = hashlib.sha256((out / path.name).read_bytes()).hexdigest()
    calibration = _calibration(home, number)
    if calibration is not None:
        write_json_atomic(out / CALIBRATION, calibration)
    card = _card(home, number, digests, calibrated=calibration is not None)
    write_json_atomic(out / CARD, card)
    return card


def _newest(home: Home) -> int:
    for number in reversed(home.rounds()):
        if RoundState(home, number).outputs("train") is not None:
            return number
    raise InputError(f"{home.path}: no committee has been trained yet")


def _calibration(home: Home, number: int) -> dict[str, Any] | None:
    """As fitted in the round before: on labels that the committee of that round had not seen."""
    outputs = RoundState(home, number - 1).outputs("assess") if number > 1 else None
    return None if outputs is None else outputs.get("calibration")


def _card(home: Home, number: int, digests: dict[str, str], *, calibrated: bool) -> dict[str, Any]:
    campaign = read_json(home.facts)
    facts = RoundState(home, number).facts
    return {
        "format": "alchemy-model-card",
        "version": 1,
        "alchemy": __version__,
        "campaign": campaign["name"],
        "round": number,
        "elements": campaign["elements"],
        "fidelities": campaign["used_fidelities"],
        "target": campaign["target"],
        "levels_of_theory": campaign["fidelities"],
        "units": {"energy": "eV", "length": "Å", "forces": "eV/Å", "stress": "eV/Å³"},
        "training_labels": facts.get("train", {}).get("labels"),
        "test_errors": facts.get("test", {}),
        "calibrated": calibrated,
        "calibration_is_of_round": number - 1 if calibrated else None,
        "stop": facts.get("stop"),
        "campaign_hash": campaign["hashes"][-1]["hash"],
        "files": digests,
    }
