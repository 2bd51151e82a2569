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

from ase import Atoms
from ase.data import atomic_numbers, covalent_radii

from alchemy import __version__
from alchemy.cli_paths import find_campaign
from alchemy.errors import AlchemyError
from alchemy.gate import Gate
from alchemy.labelers.base import make_labeler
from alchemy.labelers.label import label_structure
from alchemy.plugins import find, installed

PACKAGES = ("torch", "numpy", "ase", "dask", "distributed", "h5py", "pydantic", "pyiron_base")
NEEDS_OPTIONS = {"ase": {"calculator": "ase.calculators.emt.EMT"}}
SPEAKS_METAL = ("emt", "ase")


@dataclass(frozen=True)
class Finding:
    """ok None: a fact, neither good nor bad."""

    what: str
    ok: bool | None
    text: str


def examine(campaign: Path | None) -> list[Finding]:
    """All findings; nothing here raises for what is broken around us."""
    return [*_packages(), _tace(), *_machine(), _store(), *_labelers(campaign)]


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


def _store() -> Finding:
    """Append and read back, in the temporary folder."""
    from alchemy.store import Store

    try:
        with tempfile.TemporaryDirectory() as folder:
            store = Store(Path(folder) / "store.h5")
            store.append(structures=[Atoms("H2", positions=[[0, 0, 0], [0, 0, 0.74]])])
            number = len(Store(Path(folder) / "store.h5").snapshot())
    except (AlchemyError, OSError) as error:
        return Finding("store", False, str(error))
    return Finding("store", number == 1, "written and read back")


def _labelers(campaign: Path | None) -> Iterator[Finding]:
    if campaign is None:
        for name in installed("labelers"):
            command = getattr(find("labelers", name), "own_command", None)
            if command is not None:  # its data files and settings are a campaign's
                yield Finding(name, None, _program(command))
                continue
            symbol = "Cu" if name in SPEAKS_METAL else "H"
            yield _try(name, name, NEEDS_OPTIONS.get(name, {}), Path.cwd(), symbol)
        return
    given = find_campaign(campaign).campaign
    symbol = "H" if "H" in given.elements else given.elements[0]
    for name, fidelity in given.fidelities.items():
        yield _try(name, fidelity.labeler, fidelity.options, given.base_dir, symbol)


def _program(command: str) -> str:
    """Where the program of a labeler is."""
    name = shlex.split(command)[0]
    found = shutil.which(name)
    return f"{found}; `doctor CAMPAIGN` tries it" if found else f"{name} is not installed"


def _try(
    shown: str, labeler_name: str, options: dict[str, Any], base_dir: Path, symbol: str
) -> Finding:
    """One real label of a pair of atoms at the distance of a bond."""
    radius = float(covalent_radii[atomic_numbers[symbol]])
    pair = Atoms([symbol] * 2, positions=[[0, 0, 0], [0, 0, 2.2 * radius]])
    started = time.perf_counter()
    try:
        labeler = make_labeler(labeler_name, options, base_dir=base_dir)
        with tempfile.TemporaryDirectory() as folder:
            record = label_structure(
                pair, fidelity=shown, labeler=labeler, root=Path(folder), gate=Gate()
            )
    except (AlchemyError, OSError) as error:
        return Finding(shown, False, str(error))
    spent = f"{symbol}2 in {time.perf_counter() - started:.1f} s"
    if record.status != "ok":
        reason = f"{record.reason}: {record.message}".replace("\n", " ")
        return Finding(shown, False, f"{labeler.code()}, {spent}: {reason}")
    return Finding(shown, True, f"{labeler.code()}, {spent}")
