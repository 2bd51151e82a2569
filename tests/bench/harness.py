"""What the benchmark scripts share: sizes, systems, timing, and the run of the peers beside ours.

Nothing is asserted. Times are CPU time of this process on one thread, which other work on the
machine disturbs far less than wall time; even so only figures of one run should be compared.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write

HERE = Path(__file__).resolve().parent
Record = dict[str, Any]
SIZES = {"64-0": 0, "64-1": 1, "64-2": 2}  # channels–L_max; the rest is TaceConfig's default
# isolated atoms of the 3BPA set, ωB97X/6-31G(d), eV
E0_3BPA = {1: -13.587222780835477, 6: -1029.4889999855063,
           7: -1484.9814568572233, 8: -2041.9816003861047}  # fmt: skip
BATCH = 5  # frames of a training step

# what the JSON lines say; docs/benchmarks.md has the same list
KEYS = {
    "bench": "script",
    "what": "measurement of that script",
    "by": "kind of share: phase, module, operator",
    "name": "that phase, module or operator",
    "model": "ours, ours-eager (no compiled kernels), a peer, or the form of an operator",
    "version": "of the model's package",
    "size": "of the model: channels–L_max, or a preset",
    "system": "structure, or step for a training step",
    "systems": "which of them an exponent goes through",
    "atoms": "number of atoms",
    "edges": "directed edges within the cutoff",
    "parameters": "weights that can be trained",
    "members": "of a committee",
    "kind": "what its models have besides",
    "cpu_ms": "CPU time of one call, median, ms",
    "cpu_least_ms": "the least, ms",
    "wall_ms": "elapsed time of one call, median, ms",
    "plain_ms": "CPU time with the operator in PyTorch, median, ms",
    "native_ms": "with the operator compiled, ms",
    "upper_ms": "with the operator compiled where features have ranks above 0, ms",
    "calculator_cpu_ms": "CPU time through the ASE calculator, ms",
    "ms_per_step": "CPU time of a training step, batch included, ms",
    "us_per_atom": "CPU time of one call per atom, µs",
    "import_s": "CPU time of the import, s",
    "load_s": "CPU time of reading the model, s",
    "first_call_s": "CPU time of the first force call, s",
    "second_call_s": "CPU time of the second, s",
    "used_s": "CPU time of training so far, s",
    "mark_s": "CPU time at which the error is asked for, s",
    "cpu_s": "CPU time of the work, s",
    "wall_s": "elapsed time of the work, s",
    "per_cpu_s": "structures, rows or atoms per CPU second",
    "bytes": "per structure",
    "MB": "peak memory of the process, MB",
    "peak_MiB": "peak memory of a call over that between calls, MiB",
    "peak_from_start_MiB": "peak memory of the first calls over that before them, MiB",
    "rss_MiB": "memory of the process, MiB",
    "F_rmse_meV_per_A": "RMSE of force components on the validation frames, averaged weights, meV/Å",
    "E_rmse_meV_per_atom": "RMSE of energies per atom, meV",
    "steps": "of training",
    "schedule": "of the learning rate",
    "seed": "of weights and order",
    "seeds": "number of trainings",
    "frames": "number of frames to train on",
    "trunk": "of a committee: own or shared",
    "part": "set that is judged",
    "spread_meV_per_A": "spread of forces, mean over atoms, meV/Å",
    "rank_correlation_spread_error": "of the spread of an atom's force with its error",
    "rank_correlation_of_the_two_spreads": "of whole members and of a shared trunk",
    "mean_force_call_cpu_s": "CPU time of mean forces of all frames, s",
    "training_cpu_s": "CPU time of training all members, s",
    "share": "of the CPU time",
    "calls": "of an operator in one call of the model",
    "gflop": "floating-point operations of a call, 1e9",
    "gflop_least": "the same without what compiled kernels do, 1e9",
    "gemm_gflops": "rate of float32 matrix products, 1e9/s",
    "floor_ms": "gflop over gemm_gflops, ms",
    "ratio": "of the first of a pair to the second; quartiles are over rounds",
    "pair": "of models",
    "fastest": "which peer that is",
    "of": "what a ratio or an exponent is of",
    "exponent": "of the number of atoms",
    "repeats": "number of calls",
    "rounds": "turns of every model",
    "threads": "of PyTorch",
    "torch": "version of PyTorch",
    "cpu": "model of the processor",
    "cores": "of the machine",
    "load1": "load average of the last minute",
    "error": "why a model has no figure",
}


def described(doc: str | None) -> argparse.ArgumentParser:
    """A parser that shows a script's docstring as it is written."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def options(doc: str | None, *, seconds: float) -> argparse.ArgumentParser:
    """Options that every script beside peers has."""
    parser = described(doc)
    parser.add_argument("--sizes", default="64-0,64-2", help="of " + ", ".join(SIZES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=seconds, help="of each measurement")
    parser.add_argument("--data", type=Path, help="directory of train_300K.(ext)xyz(.gz) of 3BPA")
    parser.add_argument("--peers-bench", type=Path, help="directory of common.py and peer_*.py")
    parser.add_argument("--peers-venvs", type=Path, help="directory of one virtual env per peer")
    parser.add_argument(
        "--models", default="mace,ours,tace01", help="what runs with --peers-bench, in this order"
    )
    return parser


def parsed(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse, check and set the threads."""
    args = parser.parse_args(argv)
    args.sizes = args.sizes.split(",")
    for size in args.sizes:
        if size not in SIZES:
            parser.error(f"unknown size '{size}': use {', '.join(SIZES)}")
    if (args.peers_bench is None) != (args.peers_venvs is None):
        parser.error("--peers-bench and --peers-venvs go together")
    torch.set_num_threads(args.threads)
    return args


def machine() -> Record:
    """The machine, in words that name no one."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(
            (x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), model
        )
    return {"cpu": model, "cores": os.cpu_count(), "load1": round(os.getloadavg()[0], 1)}


def known(key: str) -> bool:
    """Whether a key of a JSON line has a meaning in KEYS, by itself, as a quartile or as a ratio of two."""
    return key.removesuffix("_q1").removesuffix("_q3") in KEYS or "/" in key


def emit(record: Record) -> None:
    """One JSON line, floats to four digits."""
    unknown = [key for key in record if not known(key)]
    assert not unknown, f"say in harness.KEYS what {unknown} means"
    emit_own(record)


def emit_own(record: Record) -> None:
    """The same of a script that explains keys of its own."""
    short = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in record.items()}
    print(json.dumps(short), flush=True)


# systems ------------------------------------------------------------------------------------------


def palladium(cells: int) -> Atoms:
    """4·cells³ atoms of fcc Pd, displaced by 0.05 Å."""
    atoms = bulk("Pd", "fcc", a=3.89, cubic=True) * (cells, cells, cells)
    atoms.rattle(0.05, seed=1)
    return atoms


def frames_3bpa(folder: Path | None) -> list[Atoms]:
    """The 500 frames, with energy and forces in a calculator, no cell.

    The labels may be called energy and forces, or REF_energy and REF_forces.
    """
    names = [f"train_300K.{kind}{gz}" for kind in ("xyz", "extxyz") for gz in ("", ".gz")]
    paths = [folder / name for name in names if (folder / name).exists()] if folder else []
    if not paths:
        sys.exit(f"3BPA is needed: give --data a directory that holds one of {', '.join(names)}")
    frames = []
    for a in read(paths[0], ":", format="extxyz"):
        if "REF_energy" in a.info:
            energy, forces = float(a.info["REF_energy"]), a.arrays["REF_forces"]
        else:
            energy, forces = a.get_potential_energy(), a.get_forces()
        bare = Atoms(a.numbers, positions=a.positions)
        bare.calc = SinglePointCalculator(bare, energy=energy, forces=forces)
        frames.append(bare)
    return frames


def split_3bpa(folder: Path | None) -> tuple[list[Atoms], list[Atoms]]:
    """450 frames to train on and 50 to validate, seed 42."""
    frames = frames_3bpa(folder)
    # the legacy generator, so that the split is the one of the peers' harness
    order = np.random.RandomState(42).permutation(len(frames))
    return [frames[n] for n in order[50:]], [frames[n] for n in order[:50]]


# timing -------------------------------------------------------------------------------------------


def _status(name: str) -> float:
    """A line of /proc/self/status in MiB; NaN where there is none."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith(name):
                return int(line.split()[1]) / 1024.0
    return float("nan")


class PeakMemory:
    """Highest resident memory over that at the start, MiB (Linux)."""

    def __init__(self) -> None:
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):  # give freed memory back: glibc only
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        self.start = _status("VmRSS")

    def __call__(self) -> float:
        return _status("VmHWM") - self.start


def timed(call: Callable[[], object], *, seconds: float, warmup: int = 4, least: int = 5) -> Record:
    """Median and least CPU milliseconds of a call, and the median wall time."""
    memory, cpu, wall = PeakMemory(), [], []
    for _ in range(warmup):
        call()
    end = time.perf_counter() + seconds
    while len(cpu) < least or (len(cpu) < 60 and time.perf_counter() < end):
        start = time.process_time(), time.perf_counter()
        call()
        cpu.append(1e3 * (time.process_time() - start[0]))
        wall.append(1e3 * (time.perf_counter() - start[1]))
    return {
        "cpu_ms": statistics.median(cpu),
        "cpu_least_ms": min(cpu),
        "wall_ms": statistics.median(wall),
        "repeats": len(cpu),
        "peak_MiB": memory(),
    }


# peers beside ours --------------------------------------------------------------------------------


class Peers:
    """Runs each model's script in its own environment, all timed by the peers' harness."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder = args, folder
        self.names = args.models.split(",")
        self.environment = {**os.environ, "BENCH_DATA": str(folder)}
        old = os.environ.get("PYTHONPATH")
        path = [str(args.peers_bench.resolve()), *([old] if old else [])]
        self.environment["PYTHONPATH"] = os.pathsep.join(path)

    def _command(self, name: str, what: str, size: str, *rest: object) -> list[str]:
        if name == "ours":
            head = [sys.executable, str(HERE / "peer_ours.py")]
        else:
            # absolute, not resolved: a virtual environment's python is a link
            python = self.args.peers_venvs.absolute() / name / "bin" / "python"
            head = [str(python), str(self.args.peers_bench.resolve() / f"peer_{name}.py")]
        fixed = ["--size", size, "--dtype", "float32", "--threads", self.args.threads]
        return [*head, what, *map(str, [*fixed, *rest, "--out", self._out(name, size)])]

    def _out(self, name: str, size: str) -> Path:
        return self.folder / f"{name}-{size}.jsonl"

    def _start(self, name: str, what: str, size: str, *rest: object) -> subprocess.Popen[bytes]:
        self._out(name, size).unlink(missing_ok=True)
        return subprocess.Popen(
            self._command(name, what, size, *rest), env=self.environment, stdout=subprocess.DEVNULL
        )

    def _records(self, name: str, size: str) -> Iterator[Record]:
        path = self._out(name, size)
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        for line in lines or ['{"error": "no output"}']:
            yield {**json.loads(line), "peer": name, "size": size}

    def one_by_one(self, what: str, *rest: object) -> Iterator[Record]:
        """Every size, and within it every model in turn."""
        for size in self.args.sizes:
            for name in self.names:
                self._start(name, what, size, *rest).wait()
                yield from self._records(name, size)

    def in_slices(self, what: str, size: str, *rest: object) -> Iterator[Record]:
        """All models started at once; they hand on a token, so that one works at a time."""
        token = self.folder / f"turn-{size}.json"
        token.write_text(
            json.dumps({"active": self.names, "turn": self.names[0]}), encoding="utf-8"
        )
        running = [
            self._start(n, what, size, *rest, "--turn-file", token, "--turn-name", n)
            for n in self.names
        ]
        for process in running:
            process.wait()
        for name in self.names:
            yield from self._records(name, size)


@contextlib.contextmanager
def peers(args: argparse.Namespace) -> Iterator[Peers]:
    """The peers, with 3BPA in a temporary directory in the form that their harness reads."""
    with tempfile.TemporaryDirectory() as folder:
        frames = frames_3bpa(args.data)
        write(Path(folder) / "train_300K.xyz", frames, format="extxyz")
        yield Peers(args, Path(folder))


def ratios(records: Sequence[Record], *, value: str, by: Sequence[str]) -> None:
    """Print ours/peer of `value` for every combination of `by`."""
    table: dict[tuple[Any, ...], dict[str, float]] = {}
    for r in records:
        if value in r:
            table.setdefault(tuple(r[k] for k in by), {})[r["model"]] = r[value]
    for key, row in table.items():
        if "ours" in row and len(row) > 1:
            found = {f"ours/{name}": row["ours"] / x for name, x in row.items() if name != "ours"}
            emit({"bench": "ratio", "of": value, **dict(zip(by, key, strict=True)), **found})
