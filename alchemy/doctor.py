"""What `alchemy doctor` tries."""

from __future__ import annotations

import platform
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ase.data import atomic_numbers

from alchemy import __version__
from alchemy.cli_paths import find_campaign
from alchemy.config import Campaign
from alchemy.errors import AlchemyError, InputError
from alchemy.gate import Gate
from alchemy.labelers.base import make_labeler
from alchemy.labelers.label import label_structure
from alchemy.plugins import find, installed
from alchemy.records import atoms_to_document
from alchemy.trials import pair, store_round_trip, train_one_step
from tace.errors import TaceError

PACKAGES = ("torch", "numpy", "ase", "dask", "distributed", "h5py", "pydantic", "pyiron_base")
NEEDS_OPTIONS = {"ase": {"calculator": "ase.calculators.emt.EMT"}}
SPEAKS_METAL = ("emt", "ase")


@dataclass(frozen=True)
class Finding:
    """ok None: a fact, neither good nor bad."""

    what: str
    ok: bool | None
    text: str


def examine(campaign: Path | None, *, on: str | None = None) -> Iterator[Finding]:
    """All findings; nothing here raises for what is broken around us.

    Args:
        on: batch system on which to try the campaign's jobs, of workers and of labels.

    Raises:
        InputError: `on` is not the batch system of the campaign.
    """
    given = find_campaign(campaign).campaign if campaign is not None else None
    if on is not None:
        from alchemy.doctor_cluster import uses

        if given is None:
            raise InputError(f"--on {on} tries the jobs of a campaign, and no campaign is named")
        if not uses(given, on):
            raise InputError(
                f"--on {on} tries the jobs of a campaign with run.where: {on}; its run.where is "
                f"{given.run.where}, and none of its labels are jobs of {on} (run.labels.where)"
            )
    return _all(given, on)


def _all(given: Campaign | None, on: str | None) -> Iterator[Finding]:
    yield from _packages()
    yield _tace()
    yield from _machine()
    yield _store(given.base_dir if given is not None else Path(tempfile.gettempdir()))
    yield _training(given)
    yield from _labelers(given)
    if given is not None and on is not None:
        from alchemy.doctor_cluster import examine_cluster

        where: Any = on  # one of the command's choices
        yield from examine_cluster(given, where)


def _packages() -> Iterator[Finding]:
    yield Finding("alchemy", None, f"{__version__}, Python {platform.python_version()}")
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            yield Finding(name, False, "is not installed")
    yield Finding("packages", True, ", ".join(found))


def _tace() -> Finding:
    """PyPI has another `tace`; whoever installed it beside ours may get the wrong one."""
    import alchemy
    import tace

    where = Path(str(tace.__path__[0])).resolve()
    ours = Path(alchemy.__path__[0]).resolve().parent / "tace"
    if where == ours:
        return Finding("tace", True, f"ours, {where}")
    return Finding(
        "tace",
        False,
        f"{where} is not ours ({ours}): another package of that name is installed; "
        "pip uninstall it or use an environment of its own",
    )


def _machine() -> Iterator[Finding]:
    import torch

    from alchemy.executors import cores

    yield Finding("cores", None, f"{cores()} usable, torch uses {torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
        yield Finding("GPU", True, ", ".join(names))
    else:
        yield Finding("GPU", None, "none that this build of torch can use; the CPU does the work")
    yield _kernels()


def _kernels() -> Finding:
    from tace import edge_sum, native, product

    if edge_sum.compiled() is not None and product.compiled() is not None:
        return Finding("kernels", True, f"compiled for this machine, {native.build()}")
    return Finding(
        "kernels",
        None,
        "PyTorch does all the work, which takes two to four times as long on a CPU: no C++ compiler was "
        "found (install g++ or clang++), it failed, or TACE_NATIVE=0; `python -m tace.native` says which",
    )


def _store(folder: Path) -> Finding:
    problem = store_round_trip(folder)
    return Finding("store", not problem, problem or f"written and read back in {folder}")


def training_request(campaign: Campaign) -> dict[str, Any]:
    """For `trials.train_one_step`: the campaign's network, without its data."""
    from alchemy.stages.model import overrides

    numbers = sorted(int(atomic_numbers[symbol]) for symbol in campaign.elements)
    return {
        "symbol": campaign.elements[0],
        "fidelities": [campaign.target],
        "elements": numbers,
        "preset": campaign.model.preset,
        "cutoff_A": campaign.model.cutoff_A,
        "overrides": overrides(campaign.model),
        "dtype": campaign.model.dtype,
        "e0_eV": {campaign.target: {str(z): 0.0 for z in numbers}},
        "seed": 0,
        "init": None,
        "trunk": None,
        "threads": campaign.run.model_threads,
    }


SMALL = {
    "symbol": "H", "fidelities": ["trial"], "elements": [1], "preset": "nano", "cutoff_A": 4.0,
    "overrides": {}, "dtype": "float32", "e0_eV": {"trial": {"1": 0.0}}, "seed": 0, "init": None,
    "trunk": None, "threads": 1,
}  # fmt: skip


def _training(given: Campaign | None) -> Finding:
    """One step of the network, here."""
    request = training_request(given) if given is not None else SMALL
    try:
        done = train_one_step(request)
    except (AlchemyError, TaceError, RuntimeError, OSError) as error:
        return Finding("training", False, f"{request['preset']}: {error}".replace("\n", " "))
    text = f"one step of {request['preset']} on {done['device']}, {done['seconds']} s"
    return Finding("training", True, text)


def label_request(campaign: Campaign, fidelity: str, root: Path) -> dict[str, Any]:
    """For `tasks.label`: a pair of atoms of the campaign at one level."""
    chosen = campaign.fidelities[fidelity]
    return {
        "structure": atoms_to_document(pair(_symbol(campaign))),
        "fidelity": fidelity,
        "labeler": chosen.labeler,
        "options": chosen.options,
        "base_dir": str(campaign.base_dir),
        "root": str(root / "labels"),
        "gate": {},
        "e0_eV": None,
    }


def _symbol(campaign: Campaign) -> str:
    return "H" if "H" in campaign.elements else campaign.elements[0]


def _labelers(given: Campaign | None) -> Iterator[Finding]:
    if given is None:
        for name in installed("labelers"):
            command = getattr(find("labelers", name), "own_command", None)
            if command is not None:  # its data files and settings are a campaign's
                yield Finding(name, None, _program(command))
                continue
            symbol = "Cu" if name in SPEAKS_METAL else "H"
            yield _try(name, name, NEEDS_OPTIONS.get(name, {}), Path.cwd(), symbol)
        return
    for name, fidelity in given.fidelities.items():
        yield _try(name, fidelity.labeler, fidelity.options, given.base_dir, _symbol(given))


def _program(command: str) -> str:
    """Where the program of a labeler is."""
    name = shlex.split(command)[0]
    found = shutil.which(name)
    return f"{found}; `doctor CAMPAIGN` tries it" if found else f"{name} is not installed"


def _try(
    shown: str, labeler_name: str, options: dict[str, Any], base_dir: Path, symbol: str
) -> Finding:
    """One real label of a pair of atoms at the distance of a bond."""
    started = time.perf_counter()
    try:
        labeler = make_labeler(labeler_name, options, base_dir=base_dir)
        with tempfile.TemporaryDirectory() as folder:
            record = label_structure(
                pair(symbol), fidelity=shown, labeler=labeler, root=Path(folder), gate=Gate()
            )
    except (AlchemyError, OSError) as error:
        return Finding(shown, False, str(error))
    spent = f"{symbol}2 in {time.perf_counter() - started:.1f} s"
    if record.status != "ok":
        reason = f"{record.reason}: {record.message}".replace("\n", " ")
        return Finding(shown, False, f"{labeler.code()}, {spent}: {reason}")
    return Finding(shown, True, f"{labeler.code()}, {spent}")
