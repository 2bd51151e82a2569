"""What `alchemy doctor` runs where the work will run: facts of a node, one step of training, one label.

`python -m alchemy.trials FILE` writes the facts of the node as JSON; a batch job does that.
"""

from __future__ import annotations

import os
import platform
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, covalent_radii

from .records import write_json_atomic


def pair(symbol: str) -> Atoms:
    """Two atoms at about the distance of a bond."""
    radius = float(covalent_radii[atomic_numbers[symbol]])
    return Atoms([symbol] * 2, positions=[[0, 0, 0], [0, 0, 2.2 * radius]])


def store_round_trip(folder: Path) -> str:
    """Write a store into the folder and read it back; '' if that works, else what is wrong."""
    from .errors import AlchemyError
    from .store import Store

    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".alchemy-doctor-") as inside:
            path = Path(inside) / "store.h5"
            Store(path).append(structures=[pair("H")])
            read = len(Store(path).snapshot())
    except (AlchemyError, OSError) as error:
        return str(error)
    return "" if read == 1 else f"wrote one structure and read {read}"


def node_facts(folder: Path) -> dict[str, Any]:
    """Of the machine that this runs on; `folder` is of the campaign's file system."""
    import torch

    from . import __version__
    from .executors import cores

    return {
        "host": socket.gethostname(),
        "alchemy": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cores": cores(),
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "gpus": [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())],
        "store": store_round_trip(folder),
    }


def train_one_step(request: dict[str, Any]) -> dict[str, Any]:
    """One step of the campaign's network on eight pairs of atoms; device, host and time."""
    import torch

    from tace.data import Labelled, make_samples
    from tace.train import TrainSettings, fit

    from .training import model_of

    started = time.perf_counter()
    torch.set_num_threads(int(request["threads"]))
    (fidelity,) = request["fidelities"]
    frames = []
    for n in range(8):
        atoms = pair(request["symbol"])
        atoms.positions[1, 2] += 0.05 * n
        slope = 0.1 * (n - 4.0)
        forces = np.array([[0.0, 0.0, slope], [0.0, 0.0, -slope]])
        frames.append(
            Labelled(atoms=atoms, fidelity=fidelity, energy_eV=0.05 * slope, forces_eV_per_A=forces)
        )
    model = model_of(request, frames)
    samples = make_samples(frames, model.config)
    settings = TrainSettings(steps=1, batch_size=4, compile="off")
    fit(model, samples[:6], samples[6:], settings=settings)
    return {
        "device": str(model.device),
        "host": socket.gethostname(),
        "seconds": round(time.perf_counter() - started, 1),
    }


if __name__ == "__main__":
    write_json_atomic(Path(sys.argv[1]), node_facts(Path(sys.argv[1]).parent))
