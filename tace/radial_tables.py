"""Radial networks as splines of the distance: the same model, evaluated faster (`tace compile`).

A radial network reads the distance of a pair and nothing else – elements, levels of theory and conditions
act on the features of atoms – so that one table for each network stands for it, whatever the composition. The
grid is refined until values and slopes at distances between the knots, and forces on structures, agree with
the network; all of it is measured in float64, where rounding does not hide what the splines do.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .batch import Batch
from .derivatives import evaluate
from .errors import ModelFileError, TaceError
from .layers import Linear, RadialNetwork
from .model import Tace
from .radial import envelope, radial_basis
from .spline import spline, values

START_A = 0.05  # first knot; the first interval goes on below it, where no two nuclei ever are
INTERVALS = (32, 64, 128, 256, 512, 1024)
FORCE_BOUND = 1e-5  # eV/Å, of forces with tables against those with networks
LARGE_FORCE = 10.0  # eV/Å; a structure with larger forces than that may be off by 1e-6 of its largest
VALUE_BOUND, SLOPE_BOUND = 1e-6, 1e-5  # of the largest value and slope of the network
_BETWEEN = 7  # distances in every interval at which the splines are compared with the network


class Accuracy(NamedTuple):
    """How far tables are from the networks that they stand for, in float64."""

    intervals: int
    value_error: float  # largest, of the largest value of the network
    slope_error: float
    force_error_eV_per_A: float  # largest on any structure, scaled down where forces are above LARGE_FORCE
    energy_error_eV: float
    structures: int

    @property
    def within(self) -> bool:
        return (
            self.value_error <= VALUE_BOUND
            and self.slope_error <= SLOPE_BOUND
            and self.force_error_eV_per_A <= FORCE_BOUND
        )


class RadialTable(nn.Module):
    """Distances of pairs [P+1, 1] → what the network gives for them, [P+1, width]."""

    values: Tensor  # [knots, 3, width], see `spline`

    def __init__(self, exact: Tensor, grid: Tensor) -> None:
        """
        Args:
            exact: [knots, 3, width] float64 on the CPU.
            grid: [2] float64, first knot and step (Å).
        """
        super().__init__()
        self.exact, self.grid = exact, grid
        self.register_buffer("values", exact.clone(), persistent=False)

    def forward(self, distances: Tensor) -> Tensor:
        return spline(distances.squeeze(1), self.values, self.grid)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> RadialTable:
        """From the float64 table, which a model that was float32 in between would have lost."""
        super()._apply(fn, recurse)
        self.values = self.exact.to(self.values.device, self.values.dtype)
        return self


# ------------------------------------------------------------------ putting tables into models
def networks(model: Tace) -> Iterator[tuple[str, RadialNetwork]]:
    """Every radial network with its name."""
    for name, module in model.named_modules():
        if isinstance(module, RadialNetwork):
            yield name, module


def has_tables(model: Tace) -> bool:
    return model.edges.tables is not None


def drop_tables(model: Tace) -> None:
    """The model as it was: its networks are still there."""
    model.edges.tables = None
    for _, network in networks(model):
        network.table = None


def attach(
    model: Tace, tables: Mapping[str, Tensor], grid: Tensor, *, facts: Mapping[str, Any] | None = None
) -> None:
    """Let tables stand for the networks of these names, in place; `facts` are kept and shown.

    Raises:
        ModelFileError: a network without a table, or a table of another shape.
    """
    for name, network in networks(model):
        last = network.layers[-1]
        assert isinstance(last, Linear)
        width = last.weight.shape[1]
        table = tables.get(name)
        if table is None or table.ndim != 3 or table.shape[1:] != (3, width) or len(table) < 2:
            raise ModelFileError(f"the radial table of '{name}' is missing or of another shape")
        made = RadialTable(table.double().cpu(), grid.double().cpu())
        network.table = made.to(device=model.device, dtype=model.dtype)
    model.edges.tables = dict(facts or {})


def tables_document(model: Tace) -> dict[str, Any] | None:
    """What a file keeps of the tables of a model; None if it has none."""
    if not has_tables(model):
        return None
    made = {name: n.table for name, n in networks(model) if isinstance(n.table, RadialTable)}
    grid = next(iter(made.values())).grid
    return {
        "grid_A": grid.tolist(),
        "values": {name: table.exact for name, table in made.items()},
        "facts": dict(model.edges.tables or {}),
    }


def attach_document(model: Tace, document: Mapping[str, Any]) -> None:
    """Put tables of a file into the model.

    Raises:
        ModelFileError: they are incomplete or not numbers.
    """
    try:
        grid = torch.tensor(document["grid_A"], dtype=torch.float64)
        tables = dict(document["values"])
        well = grid.shape == (2,) and bool((grid > 0).all())
        if not well or not all(bool(t.isfinite().all()) for t in tables.values()):
            raise ModelFileError("radial tables with a grid or values that are not numbers")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelFileError(f"radial tables that cannot be read ({error})") from None
    attach(model, tables, grid, facts=document.get("facts"))


# ------------------------------------------------------------------ making them
def tabulate(network: RadialNetwork, basis: Callable[[Tensor], Tensor], distances: Tensor) -> Tensor:
    """[n] float64 distances → [n, 3, width]: value, slope and curvature of the network."""

    with torch.enable_grad():
        r = distances.detach().requires_grad_()
        value = network(basis(r.unsqueeze(1)))
        slope = _slope(value, r)
        return torch.stack([value, slope, _slope(slope, r)], 1).detach()


def _slope(functions: Tensor, r: Tensor) -> Tensor:
    """∂ functions[n, c] / ∂ r[n], by differentiating Σ_c seed·∂functions/∂r, which is linear in the seed."""
    seed = torch.ones_like(functions).requires_grad_()
    (sums,) = torch.autograd.grad(functions, r, seed, create_graph=True)
    (found,) = torch.autograd.grad(sums.sum(), seed, create_graph=True)
    return found


def basis_of(model: Tace) -> Callable[[Tensor], Tensor]:
    """Distances [n, 1] → enveloped radial functions, as `EdgeBasis` makes them."""
    config = model.config

    def basis(r: Tensor) -> Tensor:
        functions = radial_basis(r, config.cutoff_A, config.n_radial, orders=config.radial_orders)
        return functions * envelope(r, config.cutoff_A, config.envelope_p)

    return basis


def with_tables(model: Tace, batches: Sequence[Batch]) -> tuple[Tace, Accuracy]:
    """A copy of the model with tables on the coarsest grid that is good enough.

    Args:
        batches: structures on which forces with tables and networks are compared, made for this model.

    Raises:
        TaceError: no grid is good enough; the message says how close the finest came.
    """
    exact = copy.deepcopy(model).double().requires_grad_(False).cpu()
    drop_tables(exact)
    wanted = [_energy_and_forces(exact, batch) for batch in batches]
    for intervals in INTERVALS:
        step = (model.config.cutoff_A - START_A) / intervals
        grid = torch.tensor([START_A, step], dtype=torch.float64)
        tables = {name: _table(exact, network, grid, intervals) for name, network in networks(exact)}
        errors = [_errors(exact, network, tables[name], grid) for name, network in networks(exact)]
        tried = copy.deepcopy(exact)
        attach(tried, tables, grid)
        found = [_energy_and_forces(tried, batch) for batch in batches]
        pairs = list(zip(found, wanted, strict=True))
        accuracy = Accuracy(
            intervals,
            max(e[0] for e in errors),
            max(e[1] for e in errors),
            max((_force_error(f[1], w[1]) for f, w in pairs), default=0.0),
            max((float((f[0] - w[0]).abs().max()) for f, w in pairs), default=0.0),
            sum(batch.n_structures for batch in batches),
        )
        if accuracy.within:
            result = copy.deepcopy(model)
            attach(result, tables, grid, facts=accuracy._asdict())
            return result, accuracy
    raise TaceError(
        f"no table is close enough to the radial network: with {INTERVALS[-1]} intervals slopes are off by "
        f"{accuracy.slope_error:.1e} of the largest (allowed {SLOPE_BOUND:g}) and forces by "
        f"{accuracy.force_error_eV_per_A:.1e} eV/Å (allowed {FORCE_BOUND:g}); use the model as it is"
    )


def _table(model: Tace, network: RadialNetwork, grid: Tensor, intervals: int) -> Tensor:
    knots = grid[0] + grid[1] * torch.arange(intervals + 1, dtype=torch.float64)
    table = tabulate(network, basis_of(model), knots)
    table[-1] = 0.0  # exactly, as the envelope says; else the splines would end in a step of rounding errors
    return table * grid[1] ** torch.arange(3, dtype=torch.float64).view(1, 3, 1)


def _errors(model: Tace, network: RadialNetwork, table: Tensor, grid: Tensor) -> tuple[float, float]:
    """Largest deviation of values and slopes between the knots, of the largest of the network."""
    count = (len(table) - 1) * _BETWEEN
    places = (torch.arange(count, dtype=torch.float64) + 0.5) / _BETWEEN
    distances = grid[0] + grid[1] * places
    exact = tabulate(network, basis_of(model), distances)
    found = []
    for order in (0, 1):
        wrong = (values(distances, table, grid, order) - exact[:, order]).abs().max()
        found.append(float(wrong / exact[:, order].abs().max().clamp(min=1e-300)))
    return found[0], found[1]


def _force_error(found: Tensor, wanted: Tensor) -> float:
    largest = float(wanted.abs().max())
    return float((found - wanted).abs().max()) / max(1.0, largest / LARGE_FORCE)


def _energy_and_forces(model: Tace, batch: Batch) -> tuple[Tensor, Tensor]:
    result = evaluate(model, batch)
    assert result.forces is not None
    if not bool(result.forces.isfinite().all()):
        raise TaceError("the model gives forces that are not finite on a structure of the check")
    return result.energies, result.forces

