"""Compiled graphs of energies, forces and stresses: recorded by `make_fx`, built by AOTInductor, kept.

A graph holds no weights, no sizes and no composition, so that one serves all models of a configuration,
whatever they are trained on, and all structures. It is native code of this machine, in the user's cache
beside the kernels, under a name made of all that it depends on; model files hold none. Where there is none
the model is evaluated as it is.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import native
from .batch import Batch
from .derivatives import evaluate
from .edge_sum import compiled as compiled_sums
from .model import Tace
from .opaque import operators
from .product import compiled as compiled_products
from .radial_tables import has_tables
from .recorded import recordable
from .recording import Function, batch_tensors, inference, record, varying, weights

log = logging.getLogger("tace")

# of energies per atom (eV) and forces (eV/Å) from those of PyTorch, for a scale of 1 eV: rounding
TOLERANCE = {torch.float32: (2e-5, 2e-4), torch.float64: (1e-11, 1e-10)}


class GraphError(Exception):
    """Why there is no graph; never reaches users."""


class Figures(NamedTuple):
    """What was found when a graph was built, beside it in the cache."""

    sha256: str
    seconds: float
    eager_ms: float
    graph_ms: float
    energy_off_eV_per_atom: float
    forces_off_eV_per_A: float

    @property
    def pays(self) -> bool:
        return self.graph_ms < self.eager_ms


# ------------------------------------------------------------------ building
def graph_path(model: Tace, kind: str) -> Path:
    """Where the graph of such a model is on this machine, if it has been built.

    Raises:
        GraphError: there are no compiled kernels, without which there are no graphs.
    """
    if not native.wanted():
        raise GraphError("TACE_NATIVE=0")
    try:
        kernels = native.build()
    except (native.NativeError, OSError) as error:
        raise GraphError(str(error)) from None
    config = {**model.config.to_json(), "avg_neighbors": None}  # which is among the weights
    numbers = (str(model.dtype), has_tables(model), torch.get_num_threads(), torch.__version__)
    sizes = [tuple(t.shape) for name, t in weights(model).items() if name.endswith(".table.values")]
    parts = (kind, json.dumps(config, sort_keys=True), repr(numbers), repr(sizes), kernels.name, _code())
    name = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
    return native.cache_folder() / f"graph-{name}.pt2"


def _code() -> str:
    """A digest of the modules that a graph may come from."""
    folder = resources.files("tace")
    names = sorted(x.name for x in folder.iterdir() if x.name.endswith(".py"))
    found = hashlib.sha256()
    for name in names:
        found.update((folder / name).read_bytes())
    return found.hexdigest()


def compile_graph(
    function: Function, values: Sequence[Tensor], tensors: Sequence[Tensor], dims: Sequence[dict[int, str]]
) -> bytes:
    """Record (see `record`) and build; the package comes back. It takes half a minute and more.

    Raises:
        GraphError: this model cannot be recorded, or the compiler fails.
    """
    import torch._inductor as inductor
    from torch._inductor import config
    from torch.export import Dim

    class Graph(torch.nn.Module):
        def forward(self, values: list[Tensor], tensors: list[Tensor]) -> Any:
            return made(values, tensors)

    try:
        with warnings.catch_warnings(), config.patch(compile_threads=1):
            warnings.simplefilter("ignore")
            made = record(function, values, tensors, dims)
            free = [dict.fromkeys(names, Dim.DYNAMIC) for names in dims]
            shapes = ([None] * len(values), free)
            given = (list(values), list(tensors))
            program = torch.export.export(Graph(), given, dynamic_shapes=shapes, strict=False)
            with tempfile.TemporaryDirectory() as folder:
                path = str(Path(folder) / "made.pt2")
                inductor.aoti_compile_and_package(program, package_path=path)
                return Path(path).read_bytes()
    except Exception as error:  # whatever torch's compiler raises: PyTorch does the work then
        first = str(error).strip().partition("\n")[0]
        raise GraphError(f"{type(error).__name__}: {first[:300]}") from error


def build(model: Tace, batches: Sequence[Batch]) -> Figures:
    """Build the graph of a model, compare it with PyTorch and time both, unless that has been done.

    Args:
        batches: the first, of several structures, is what is recorded; all of them are compared and the
            last one is timed.

    Raises:
        GraphError: no compiler, a model that cannot be recorded, or a graph that gives other numbers.
    """
    path = graph_path(model, "forces")
    with locked(path):
        return figures_of(path) or _build(model, batches, path)


def _build(model: Tace, batches: Sequence[Batch], path: Path) -> Figures:
    if compiled_sums() is None or compiled_products() is None:
        raise GraphError("there are no compiled kernels for it to call")
    start = time.perf_counter()
    recorded = recordable(model)
    values = list(weights(recorded).values())
    package = compile_graph(
        inference(recorded, sorted(batches[0].inputs)),
        values,
        batch_tensors(batches[0]),
        varying(batches[0]),
    )
    seconds = time.perf_counter() - start
    write_beside(path, package)
    call = _opened(str(path), hashlib.sha256(package).hexdigest())
    off = [_difference(model, call, values, batch) for batch in batches]
    per_atom, of_forces = (max(x) for x in zip(*off, strict=True))
    size = max(1.0, float(model.scale_eV.max()))
    allowed = [x * size for x in TOLERANCE[model.dtype]]
    if not (per_atom <= allowed[0] and of_forces <= allowed[1]):
        path.unlink()
        raise GraphError(f"the graph is off by {per_atom:.1e} eV/atom and {of_forces:.1e} eV/Å")
    eager_ms, graph_ms = _times(model, call, values, batches[-1])
    figures = Figures(
        hashlib.sha256(package).hexdigest(), seconds, eager_ms, graph_ms, per_atom, of_forces
    )
    write_beside(path.with_suffix(".json"), json.dumps(figures._asdict()).encode())
    return figures


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process builds a graph, and those that want the same one wait for it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as file:
        with contextlib.suppress(ImportError, OSError):  # systems without such locks build twice
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_beside(path: Path, content: bytes) -> None:
    """In one step: any number of processes may do it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    os.replace(temporary, path)


def _difference(model: Tace, call: Function, values: list[Tensor], batch: Batch) -> tuple[float, float]:
    """Deviation of energies (eV/atom) and forces (eV/Å), less by what forces exceed the scale of the model.

    Structures that are made up may have forces of millions of eV/Å, and rounding grows with them.
    """
    wanted = evaluate(model, batch)
    energies, forces, *_ = call(values, batch_tensors(batch))
    assert wanted.forces is not None
    per_atom = ((energies - wanted.energies) / batch.n_atoms).abs().max()
    # energies of atoms are rounded too: 4 units in the last place of a float64
    rounding = 4.0 * torch.finfo(torch.float64).eps * wanted.energies.abs().max()
    beyond = max(1.0, float(wanted.forces.abs().max()) / max(1.0, float(model.scale_eV.max())))
    off = float((forces - wanted.forces).abs().max()) / beyond
    return float((per_atom - rounding).clamp(min=0.0)) / beyond, off


def _times(
    model: Tace, call: Function, values: list[Tensor], batch: Batch, *, repeats: int = 15
) -> tuple[float, float]:
    """Median CPU milliseconds of PyTorch and of the graph, taken in turns."""
    calls = (lambda: evaluate(model, batch), lambda: call(values, batch_tensors(batch)))
    times: list[list[float]] = [[], []]
    for n in range(repeats + 3):
        for found, each in zip(times, calls, strict=True):
            start = time.process_time()
            each()
            if n >= 3:
                found.append(1e3 * (time.process_time() - start))
    return statistics.median(times[0]), statistics.median(times[1])


# ------------------------------------------------------------------ opening
def figures_of(path: Path) -> Figures | None:
    """Of a graph that is there and whole; loading a damaged one may crash."""
    try:
        figures = Figures(**json.loads(path.with_suffix(".json").read_text(encoding="utf-8")))
        whole = hashlib.sha256(path.read_bytes()).hexdigest() == figures.sha256
    except (OSError, ValueError, TypeError):
        return None
    return figures if whole else None


def opened(path: Path, figures: Figures) -> Function:
    """The function that a package holds: native code, which is run. Members of a committee share one."""
    return _opened(str(path), figures.sha256)


@functools.lru_cache(maxsize=8)
def _opened(path: str, sha256: str) -> Function:
    operators()
    loader = torch._C._aoti.AOTIModelPackageLoader(path, "model", False, 1, -1)

    def call(values: Sequence[Tensor], tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(loader.run([*values, *tensors]))

    return call


def status(model: Tace) -> str:
    """Of the graph of a model with radial tables, in a line."""
    try:
        figures = figures_of(graph_path(model, "forces"))
    except GraphError as error:
        return f"none ({error})"
    if figures is None:
        return "none on this machine; 'tace compile' builds it"
    verdict = "used" if figures.pays else "not used"
    times = f"{figures.graph_ms:.3g} ms against {figures.eager_ms:.3g} ms of PyTorch"
    return f"on this machine, {verdict}: {times}"


def switched_off() -> bool:
    """Whether TACE_GRAPHS=0 says to do without graphs."""
    return os.environ.get("TACE_GRAPHS", "1").strip() == "0"


def find(model: Tace) -> Function | None:
    """The graph of a model with radial tables, if it is there and pays; else None, and the log says why."""
    if not has_tables(model) or model.device.type != "cpu":
        return None
    if switched_off():
        log.info("TACE_GRAPHS=0: no compiled graph, PyTorch does it")
        return None
    try:
        path = graph_path(model, "forces")
        figures = figures_of(path)
        if figures is None:
            log.info("no compiled graph on this machine, PyTorch does it: 'tace compile' builds one")
            return None
        if not figures.pays:
            log.info(
                "the compiled graph takes %.3g ms and PyTorch %.3g ms: PyTorch does it",
                figures.graph_ms, figures.eager_ms,
            )  # fmt: skip
            return None
        if compiled_sums() is None or compiled_products() is None:
            raise GraphError("there are no compiled kernels for it to call")
        return opened(path, figures)
    except (GraphError, RuntimeError, OSError) as error:
        log.warning("no compiled graph, PyTorch does it: %s", error)
        return None

