"""Measurements that take turns, so that the load of the machine falls on all alike, and their quartiles.

`in_turns` does it with calls of this process; a `Worker` is a model in a process, and perhaps a virtual
environment, of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from harness import HERE, Record

Times = dict[str, list[float]]  # milliseconds by name, one number per round


def in_turns(
    calls: Mapping[str, Callable[[], object]], *, seconds: float, least: int = 5, most: int = 200
) -> Times:
    """CPU milliseconds of calls of this process, round after round."""
    for call in calls.values():
        for _ in range(2):
            call()
    times: Times = {name: [] for name in calls}
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < least or (rounds < most and time.perf_counter() < end):
        for name, call in calls.items():
            start = time.process_time()
            call()
            times[name].append(1e3 * (time.process_time() - start))
        rounds += 1
    return times


def quartiles(name: str, values: Sequence[float]) -> Record:
    """Median under `name`, quartiles under `name_q1` and `name_q3`."""
    low, middle, high = (float(x) for x in np.quantile(values, (0.25, 0.5, 0.75)))
    return {name: middle, f"{name}_q1": low, f"{name}_q3": high}


def ratio(times: Times, first: str, second: str) -> Record:
    """Of `first` to `second`: that of their medians, and the quartiles of the ratios of single rounds."""
    by_round = [a / b for a, b in zip(times[first], times[second], strict=True)]
    found = quartiles("ratio", by_round)
    medians = statistics.median(times[first]), statistics.median(times[second])
    return {"pair": f"{first}/{second}", **found, "ratio": medians[0] / medians[1], "rounds": len(by_round)}


def slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Exponent of a power law through the points, least squares of the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


class WorkerError(Exception):
    """A model that cannot do what was asked; says why."""


class Worker:
    """A process of `worker.py` with one model; it works only while `ask` waits for it."""

    def __init__(
        self, name: str, *, threads: int = 1, peers_bench: Path | None = None, peers_venvs: Path | None = None
    ) -> None:
        """
        Args:
            name: `ours`, `ours-eager` (without compiled kernels), `<peer>` or `<peer>-compiled`.
        """
        base, _, form = name.partition("-")
        environment = {**os.environ}
        for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            environment[variable] = str(threads)
        python = sys.executable
        if base == "ours":
            environment["TACE_NATIVE"] = "0" if form == "eager" else "1"
        else:
            if peers_bench is None or peers_venvs is None:
                raise WorkerError(f"{name}: --peers-bench and --peers-venvs are needed")
            # a peer must not see our packages: one of them has the name of ours
            environment["PYTHONPATH"] = str(peers_bench.resolve())
            python = str(peers_venvs.absolute() / base / "bin" / "python")
        self.name = name
        try:
            self.process = subprocess.Popen(
                [python, str(HERE / "worker.py"), base, form, "--threads", str(threads)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                text=True, env=environment,
            )  # fmt: skip
        except OSError as error:
            raise WorkerError(f"{name}: {error}") from error

    def ask(self, do: str, **arguments: Any) -> Record:
        """One request and its answer.

        Raises:
            WorkerError: the model refused, or its process ended.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self.process.stdin.flush()
            answer = json.loads(self.process.stdout.readline() or "{}")
        except (OSError, ValueError) as error:
            raise WorkerError(f"{self.name}: {error}") from error
        if not answer or "error" in answer:
            raise WorkerError(f"{self.name}: {answer.get('error', 'the process ended')}")
        return answer

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.process.stdin.close()  # type: ignore[union-attr]
        self.process.wait()


@contextlib.contextmanager
def workers(names: Sequence[str], **more: Any) -> Iterator[dict[str, Worker]]:
    """By name, ended when the block is left; keywords as of `Worker`."""
    found: dict[str, Worker] = {}
    try:
        for name in names:
            found[name] = Worker(name, **more)
        yield found
    finally:
        for worker in found.values():
            worker.close()


def rounds_of(ready: Mapping[str, Worker], *, rounds: int, seconds: float) -> tuple[Times, Times]:
    """CPU and wall milliseconds of a call; each turn is the median of as many calls as fit into `seconds`."""
    cpu: Times = {name: [] for name in ready}
    wall: Times = {name: [] for name in ready}
    for _ in range(rounds):
        for name, worker in ready.items():
            found = worker.ask("call", seconds=seconds)
            cpu[name].append(statistics.median(found["cpu_ms"]))
            wall[name].append(statistics.median(found["wall_ms"]))
    return cpu, wall
