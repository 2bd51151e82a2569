"""Import, load and first force call of a saved model, beside MACE; one JSON line each.

    python tests/bench/start_up.py --peers-bench DIR --peers-venvs DIR

Each repeat is a process of its own, ours and MACE's in turn, that imports the calculator for ASE, loads a
model of 64 channels from its file and asks for the forces of acetamide: CPU time of the whole process,
interpreter included. `import_s`, `load_s` and `first_call_s` are parts of it, `second_call_s` comes after it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import ours
import torch
from ase.build import molecule
from harness import SIZES, Record, described, emit, machine
from turns import Times, quartiles, ratio

from tace.io import save_model

ELEMENTS = (1, 6, 7, 8)
PARTS = ("import_s", "load_s", "first_call_s", "second_call_s")
# {make}: an expression that gives the calculator of the file sys.argv[1]; structures come as plain arrays
CHILD = """
import sys, time
marks = [time.process_time()]
{imports}
marks.append(time.process_time())
calculator = {make}
marks.append(time.process_time())
import numpy as np
from ase import Atoms
given = np.load(sys.argv[2])
atoms = Atoms(given["numbers"], positions=given["positions"])
atoms.calc = calculator
between = time.process_time()
first = atoms.get_forces()
marks.append(time.process_time() - between + marks[-1])
if sys.argv[3] == "twice":
    atoms.positions += 0.01
    between = time.process_time()
    atoms.get_forces()
    marks.append(time.process_time() - between + marks[-1])
import json
print(json.dumps([b - a for a, b in zip(marks, marks[1:])]))
"""
OURS = CHILD.format(
    imports="from tace.calculator import TaceCalculator", make="TaceCalculator(sys.argv[1])"
)
MACE = CHILD.format(
    imports="from mace.calculators import MACECalculator",
    make="MACECalculator(model_paths=sys.argv[1], device='cpu', default_dtype='float32')",
)
SAVE_MACE = """
import argparse, sys
import common, peer_mace, torch
peer = peer_mace.Mace(argparse.Namespace(dtype="float32", opt="", threads=1))
stats = common.Stats([1, 6, 7, 8], 5.0, 16.0, dict.fromkeys([1, 6, 7, 8], 0.0))
peer.build(common.SIZES[sys.argv[3]], stats)
torch.save(peer.model, sys.argv[4])
"""


def run(code: str, *words: str, python: str, path: str | None = None) -> tuple[str, float]:
    """Standard output and CPU seconds of a process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    environment["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # MACE's files are pickles
    if path is not None:
        environment["PYTHONPATH"] = path
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [python, "-c", code, *words], capture_output=True, text=True, env=environment, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"start_up: a process failed: {done.stderr.strip()[-500:]}")
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def saved(size: str, folder: Path, args: argparse.Namespace) -> dict[str, tuple[str, str, str | None, Path]]:
    """Of each model: code, interpreter, PYTHONPATH and file."""
    path = folder / f"ours-{size}.pt"
    model = ours.build(
        ELEMENTS, cutoff=ours.CUTOFF_A, L_max=SIZES[size], avg_neighbors=16.0, e0=dict.fromkeys(ELEMENTS, 0.0)
    )
    save_model(path, model)
    found: dict[str, tuple[str, str, str | None, Path]] = {"ours": (OURS, sys.executable, None, path)}
    if args.peers_venvs is not None:
        python = str(args.peers_venvs.absolute() / "mace" / "bin" / "python")
        harness, path = str(args.peers_bench.resolve()), folder / f"mace-{size}.model"
        run(SAVE_MACE, "--threads", "1", size, str(path), python=python, path=harness)
        found["mace"] = (MACE, python, "", path)
    return found


def measured(size: str, folder: Path, args: argparse.Namespace) -> tuple[Times, dict[str, list[list[float]]]]:
    """CPU milliseconds of whole processes, and seconds of the parts, by model."""
    structure, atoms = folder / "structure.npz", molecule("CH3CONH2")
    np.savez(structure, numbers=atoms.numbers, positions=atoms.positions)
    models = saved(size, folder, args)
    times: Times = {name: [] for name in models}
    parts: dict[str, list[list[float]]] = {name: [] for name in models}
    # with several rounds the first fills caches of the disk, and is not counted
    for repeat in range(-1 if args.rounds > 1 else 0, args.rounds):
        for name, (code, python, path, file) in models.items():
            out, cpu = run(code, str(file), str(structure), "once", python=python, path=path)
            if repeat >= 0:
                times[name].append(1e3 * cpu)
    for _ in range(max(1, args.rounds // 3)):
        for name, (code, python, path, file) in models.items():
            out, _ = run(code, str(file), str(structure), "twice", python=python, path=path)
            parts[name].append(json.loads(out.splitlines()[-1]))
    return times, parts


def main(argv: Sequence[str] | None = None) -> None:
    parser = described(__doc__)
    parser.add_argument("--sizes", default="64-0,64-2", help="of " + ", ".join(SIZES))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--peers-bench", type=Path, help="directory of common.py and peer_mace.py")
    parser.add_argument("--peers-venvs", type=Path, help="directory of the virtual environment mace")
    args = parser.parse_args(argv)
    if (args.peers_bench is None) != (args.peers_venvs is None):
        parser.error("--peers-bench and --peers-venvs go together")
    for size in args.sizes.split(","):
        with tempfile.TemporaryDirectory() as folder:
            times, parts = measured(size, Path(folder), args)
        what: Record = {"bench": "start_up", "size": size, "threads": 1, "torch": torch.__version__}
        for name in times:
            middle = np.median(np.array(parts[name]), axis=0)
            of_parts = dict(zip(PARTS, map(float, middle), strict=True))
            record = {**what, "model": name, **quartiles("cpu_ms", times[name]), **of_parts}
            emit({**record, "rounds": args.rounds, **machine()})
        if "mace" in times:
            emit({**what, "what": "ratio of CPU times", **ratio(times, "ours", "mace")})


if __name__ == "__main__":
    main()
