"""One model in a process of its own; builds what it is told to, and times calls when it is its turn.

Started by `turns.Worker`. Requests come in as JSON lines and one JSON line answers each. Ours needs `tace`;
a peer needs its own environment and the peers' harness (`common`, `peer_<name>`) on PYTHONPATH.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from ase import Atoms
from ase.io import read
from harness import E0_3BPA, SIZES, PeakMemory, Record, _status, split_3bpa

Call = Callable[[], object]


class Model(Protocol):
    """What a worker needs of a model: calls that are ready to be timed, and what is known of them."""

    def forces(self, size: str, atoms: Atoms, cutoff: float) -> tuple[Call, Record]: ...

    def step(self, size: str, data: Path, frames: int) -> tuple[Call, Record]: ...


class Ours:
    """Our model as it is, without compiled kernels where TACE_NATIVE=0 is set, or after `tace compile`."""

    def __init__(self, form: str) -> None:
        self.compiled = form == "compiled"

    def forces(self, size: str, atoms: Atoms, cutoff: float) -> tuple[Call, Record]:
        import ours

        elements = sorted({int(z) for z in atoms.numbers})
        model = ours.build(
            elements, cutoff=cutoff, L_max=SIZES[size], avg_neighbors=20.0, e0=dict.fromkeys(elements, 0.0)
        )
        parameters = sum(p.numel() for p in model.parameters())
        known = {"parameters": parameters, "version": _version("tace-alchemy")}
        model.requires_grad_(False)
        batch = ours.batch(model, [ours.graph(model, atoms)])
        known = {**known, "edges": 2 * len(batch.pair_i)}
        if self.compiled:
            return ours.compiled_call(model, batch), known
        return lambda: ours.call(model, batch, training=False), known

    def step(self, size: str, data: Path, frames: int) -> tuple[Call, Record]:
        import ours

        train, _ = split_3bpa(data)
        training = ours.Training(train, SIZES[size], E0_3BPA)
        graphs = [ours.graph(training.model, a) for a in train[:frames]]
        ready = training.prepared(train[:frames], graphs)
        known = {"parameters": sum(map(torch.Tensor.numel, training.parameters))}
        return lambda: training.step(*ready), {**known, "version": _version("tace-alchemy")}


class FromHarness:
    """A peer, built by the script that the peers' harness has for it."""

    def __init__(self, name: str, form: str) -> None:
        import common

        self.common, self.form = common, form
        kinds = [
            kind for kind in vars(importlib.import_module(f"peer_{name}")).values()
            if isinstance(kind, type) and issubclass(kind, common.Peer) and kind is not common.Peer
        ]  # fmt: skip
        self.peer = kinds[0](argparse.Namespace(dtype="float32", opt="", threads=torch.get_num_threads()))

    def _known(self) -> Record:
        model = self.peer.model
        parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        return {"parameters": parameters, "version": self.peer.version}

    def forces(self, size: str, atoms: Atoms, cutoff: float) -> tuple[Call, Record]:
        self.peer.build(self.common.SIZES[size], self.common.make_stats([atoms], cutoff))
        self.peer.model.eval()
        known = self._known()
        self.peer.model.requires_grad_(False)
        if self.form == "compiled":
            return compiled_nequip(self.peer, atoms), known
        batch = self.peer.collate([self.peer.graph(atoms, labels=False)])
        return lambda: self.peer.forward(batch, training=False), known

    def step(self, size: str, data: Path, frames: int) -> tuple[Call, Record]:
        if self.form == "compiled":
            raise NotImplementedError("the compiled form is for inference")
        # the harness reads its own copy of the same frames, of which BENCH_DATA is the folder
        train, _ = self.common.load_3bpa_split()
        self.peer.build(self.common.SIZES[size], self.common.make_stats(train, 5.0, E0_3BPA))
        self.peer.model.train()
        known, chosen = self._known(), train[:frames]
        batch = self.peer.collate([self.peer.graph(a, labels=True) for a in chosen])
        reference = self.common._ref(self.peer, chosen)
        optimizer = self.peer.optimizer()
        average = self.common.EMA(self.peer.model, self.peer.ema_decay)
        return lambda: self.common.train_step(self.peer, optimizer, batch, reference, average), known


def compiled_nequip(peer: Any, atoms: Atoms) -> Call:
    """NequIP by its own route: exported and compiled ahead of time, as its calculator for ASE loads it."""
    from nequip.nn.compile import DictInputOutputWrapper
    from nequip.scripts._compile_utils import ASE_TARGET
    from nequip.utils.aot import aot_export_model

    graph = peer.graph(atoms, labels=False)
    data = ASE_TARGET["data_settings"](dict(graph))
    free = torch.export.Dim
    wanted = [name for name in ASE_TARGET["output"] if name != "stress"]  # NaN for a molecule, and refused
    shapes = {"graph": free.STATIC, "node": free("num_nodes", min=2), "edge": free("num_edges", min=2)}
    with tempfile.TemporaryDirectory() as folder:
        path = aot_export_model(
            model=peer.model, device="cpu", input_fields=ASE_TARGET["input"],
            output_fields=wanted, data=data, batch_map=shapes,
            output_path=str(Path(folder) / "model.nequip.pt2"),
        )  # fmt: skip
        model = torch._inductor.aoti_load_package(path)
    run = DictInputOutputWrapper(model, ASE_TARGET["input"], wanted)
    return lambda: run(data)


def counted_gflop(call: Call) -> float:
    """Floating-point operations of a call that PyTorch's profiler counts, 1e9."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], with_flops=True) as found:
        call()
    return sum(event.flops or 0 for event in found.key_averages()) / 1e9


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


class Timed:
    """The call that is ready, and how long and how large it is."""

    def __init__(self, model: Model) -> None:
        self.model, self.call = model, None

    def prepare(self, request: Record) -> Record:
        """Build, and find the peak memory: over that before the first call, and over that between calls."""
        self.call = None
        if request["do"] == "forces":
            atoms = read(request["structure"], "0")
            bare = Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
            call, known = self.model.forces(request["size"], bare, request["cutoff"])
            known["atoms"] = len(bare)
        else:
            call, known = self.model.step(request["size"], Path(request["data"]), request["frames"])
        first = PeakMemory()
        for _ in range(3):
            call()
        known["peak_from_start_MiB"] = first()
        later = PeakMemory()
        call()
        known |= {"peak_MiB": later(), "rss_MiB": _status("VmRSS")}
        self.call = call
        return known

    def measure(self, seconds: float) -> Record:
        """Calls until the time is over, at least one."""
        assert self.call is not None
        cpu: list[float] = []
        wall: list[float] = []
        end = time.perf_counter() + seconds
        while not cpu or (len(cpu) < 100 and time.perf_counter() < end):
            start = time.process_time(), time.perf_counter()
            self.call()
            cpu.append(1e3 * (time.process_time() - start[0]))
            wall.append(1e3 * (time.perf_counter() - start[1]))
        return {"cpu_ms": cpu, "wall_ms": wall}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("form", nargs="?", default="")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    torch.set_num_threads(args.threads)
    model: Model = Ours(args.form) if args.name == "ours" else FromHarness(args.name, args.form)
    timed = Timed(model)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "call":
                answer = timed.measure(request["seconds"])
            elif request["do"] == "flops":
                assert timed.call is not None
                answer = {"gflop": counted_gflop(timed.call)}
            else:
                answer = timed.prepare(request)
        except Exception as error:  # whatever a peer raises is an answer, and the others go on
            answer = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
