"""What a search for transition states runs on: a committee's files, or a labeler by name."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alchemy_policies.calculators import CalculatorSessions
from alchemy_policies.calibration import Calibration

from alchemy.errors import InputError
from alchemy.labelers.base import make_labeler
from alchemy.labelers.calculator import LabelerCalculator
from alchemy.records import read_json
from tace.documents import Kind, read_document

if TYPE_CHECKING:
    from alchemy_policies.base import SessionFactory
    from ase import Atoms

CALIBRATION = "calibration.json"
_VALUE = Kind(InputError, remedy="write KEY=VALUE", top="write KEY=VALUE")


def labeler_sessions(name: str, settings: Sequence[str]) -> tuple[SessionFactory, Calibration]:
    """Sessions of a labeler, with options as 'key=value'; one calculator has no spread to calibrate.

    Raises:
        InputError: no such labeler or option.
    """
    labeler = make_labeler(name, options_of(settings), base_dir=Path.cwd())
    memory = Path("/dev/shm")  # noqa: S108 - a private directory is made in it
    folder = tempfile.mkdtemp(prefix="alchemy-ts-", dir=memory if memory.is_dir() else None)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    sessions = CalculatorSessions(LabelerCalculator(labeler, Path(folder) / "work"))
    return sessions, Calibration.uncalibrated()


def options_of(settings: Sequence[str]) -> dict[str, Any]:
    """Values as a campaign file would read them: 'true' is true, '3' is 3.

    Raises:
        InputError: one that is not key=value.
    """
    options: dict[str, Any] = {}
    for text in settings:
        key, sign, value = text.partition("=")
        if not sign or not key.strip():
            raise InputError(f"--set {text}: write it as key=value, such as method=GFN2-xTB")
        options.update(read_document(f"{key.strip()}: {value}", f"--set {text}", _VALUE).data)
    return options


def committee_sessions(
    paths: Sequence[Path], fidelity: str | None
) -> tuple[SessionFactory, Calibration]:
    """Sessions of model files or folders of member-*.pt; calibrated if calibration.json lies beside them.

    Raises:
        InputError: a folder without members.
        TaceError: files that are no models, or that do not belong together.
    """
    from tace.committee import Committee

    files: list[Path] = []
    for path in paths:
        members = sorted(path.glob("member-*.pt")) if path.is_dir() else [path]
        if not members:
            raise InputError(f"{path}: there is no member-*.pt in this folder")
        files += members
    committee = Committee.load(files)
    beside = files[0].parent / CALIBRATION
    calibration = Calibration.uncalibrated(max(2, len(committee.members)))
    if beside.is_file():
        calibration = Calibration.from_json(read_json(beside))

    def factory(frames: Sequence[Atoms]) -> Any:
        return committee.session(frames, fidelity=fidelity)

    return factory, calibration
