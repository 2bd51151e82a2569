"""Hyperparameters of a model, and the presets.

A preset fixes what the function class is; elements, fidelities, cutoff and the mean number of neighbours
come from the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any

from .errors import TaceError
from .quantities import INPUTS
from .tensors import index_symmetry
from .wording import hint


@dataclass(frozen=True)
class LesConfig:
    """Latent Ewald summation: energy of learned charges (spec §11)."""

    sigma_A: float = 1.0  # width of the Gaussian charges
    dl_A: float = 1.2  # resolution: k_c = 2π/dl
    smooth: bool = False  # a C² taper over the outer 40 % of |k|², so that no cell change is felt as a jump
    n_charges: int = 1  # latent charge channels; their energies add
    form: str = "coulomb"  # or 'dispersion', the r⁻⁶ analogue
    constraint: str = "none"  # sum of the charges of a structure: 'neutral', or its 'total_charge'
    remove_self: bool = True
    epsilon_inf: float = 1.0  # optical permittivity that scales Born charges made of latent charges
    mesh_above_atoms: int = 1500  # periodic structures above this use a mesh method; 0: never

    def __post_init__(self) -> None:
        _check(
            self,
            "les",
            {
                "sigma_A": self.sigma_A > 0,
                "dl_A": self.dl_A > 0,
                "n_charges": self.n_charges >= 1,
                "form": self.form in ("coulomb", "dispersion"),
                "constraint": self.constraint in ("none", "neutral", "total_charge"),
                "epsilon_inf": self.epsilon_inf >= 1.0,
                "mesh_above_atoms": self.mesh_above_atoms >= 0,
            },
        )


@dataclass(frozen=True)
class InputConfig:
    """A condition that the model reads (spec §4, §12); names are those of `quantities.INPUTS`."""

    name: str
    scale: float = 1.0  # typical size, by which values are divided
    values: tuple[int, ...] = ()  # the classes of a discrete input (spin multiplicity), ascending

    def __post_init__(self) -> None:
        if self.name not in INPUTS:
            raise TaceError(f"unknown input '{self.name}'; {hint(self.name, INPUTS)}")
        discrete = self.name == "spin_multiplicity"
        _check(
            self,
            f"input {self.name}:",
            {
                "scale": self.scale > 0,
                "values": list(self.values) == sorted(set(self.values))
                and bool(self.values) == discrete,
            },
        )


_OWN_NAMES = ("energy", "forces", "stress", "hessian", "latent_charges", "features")


@dataclass(frozen=True)
class HeadConfig:
    """A quantity predicted directly from the features (spec §9, §10)."""

    name: str  # of the label: 'dipole', 'polarizability', 'charges', or any name of your own
    scope: str = "structure"  # or 'atom'
    symmetry: str = ""  # of the indices: '' scalar, 'i', 'ij', 'ij=ji', 'ij=-ji', 'ijkl=jikl=klij'
    reduce: str = "sum"  # of atoms to a structure: 'sum' or 'mean'
    charges: str = ""  # 'qeq', 'uniform' or 'free' for a head of partial charges
    hidden: int = 0  # width of a non-linear readout of scalars; 0: linear
    with_charges: bool = False  # add Σ q_i x_i of the charge head to a dipole (finite systems)

    def __post_init__(self) -> None:
        index_symmetry(self.symmetry)  # raises for one that cannot be read
        _check(
            self,
            f"head {self.name}:",
            {
                "name": self.name.isidentifier() and self.name not in _OWN_NAMES,
                "scope": self.scope in ("structure", "atom"),
                "reduce": self.reduce in ("sum", "mean"),
                "charges": self.charges in ("", "qeq", "uniform", "free")
                and not (self.charges and (self.symmetry or self.scope != "atom")),
                "hidden": self.hidden >= 0,
                "with_charges": not self.with_charges
                or (self.symmetry == "i" and self.scope == "structure"),
            },
        )


def _check(config: Any, where: str, checks: Mapping[str, bool]) -> None:
    for name, good in checks.items():
        if not good:
            raise TaceError(f"{where} setting {name} = {getattr(config, name)!r} is not possible")


@dataclass(frozen=True)
class TaceConfig:
    """Everything that is needed to rebuild a model; plain numbers and strings only."""

    elements: tuple[int, ...]  # atomic numbers, ascending
    fidelities: tuple[str, ...] = ("default",)
    cutoff_A: float = 5.0
    n_layers: int = 2
    channels: int = 64
    l_max: int = 3  # rank of edge attributes and of A
    L_max: int = 2  # rank of the features passed between layers
    correlation: int = 3
    paths: str = "minimal"  # or 'official'
    coupling_norm: str = "unit"  # or 'cartesian', as published
    n_radial: int = 8
    envelope_p: int = 5
    radial_hidden: tuple[int, ...] = (64, 64, 64)
    readout_hidden: int = 16
    avg_neighbors: float = 1.0  # mean number of directed edges per atom in the training set
    start: str = "unit"  # size of features before training; 'small': a quarter, for a few dozen structures
    radial_orders: tuple[int, ...] = (0,)  # orders of the spherical Bessel functions, n_radial of each
    mixing: str = "coupled"  # of channels after the product basis; or 'uncoupled'
    weights: str = "max"  # ICT weights kept in A; 'all' keeps the lower ones too
    gate: str = "none"  # on A: 'norm' or 'scalar'
    residual: bool = False  # add the features of the layer below
    readout: str = "shared"  # or 'per_fidelity': readout weights of their own for every level
    zbl: bool = False  # screened nuclear repulsion at short range
    les: LesConfig | None = None
    inputs: tuple[InputConfig, ...] = ()
    heads: tuple[HeadConfig, ...] = ()

    def __post_init__(self) -> None:
        checks = {
            "elements": len(self.elements) > 0 and list(self.elements) == sorted(set(self.elements)),
            "fidelities": len(self.fidelities) > 0
            and len(set(self.fidelities)) == len(self.fidelities),
            "cutoff_A": self.cutoff_A > 0,
            "n_layers": self.n_layers >= 1,
            "channels": self.channels >= 1,
            "l_max": 0 <= self.l_max <= 6,
            "L_max": 0 <= self.L_max <= self.l_max,
            "correlation": 1 <= self.correlation <= 4,
            "paths": self.paths in ("minimal", "official"),
            "coupling_norm": self.coupling_norm in ("cartesian", "unit"),
            "n_radial": self.n_radial >= 1,
            "envelope_p": self.envelope_p >= 3,
            "readout_hidden": self.readout_hidden >= 1,
            "avg_neighbors": self.avg_neighbors > 0,
            "radial_orders": len(self.radial_orders) > 0
            and len(set(self.radial_orders)) == len(self.radial_orders)
            and all(0 <= q <= 10 for q in self.radial_orders),
            "start": self.start in ("unit", "small"),
            "mixing": self.mixing in ("coupled", "uncoupled"),
            "weights": self.weights in ("max", "all"),
            "gate": self.gate in ("none", "norm", "scalar"),
            "readout": self.readout in ("shared", "per_fidelity"),
            "inputs": _distinct(self.inputs),
            "heads": _distinct(self.heads),
        }
        _check(self, "model", checks)
        names = [i.name for i in self.inputs]
        if self.les is not None and self.les.constraint == "total_charge" and "total_charge" not in names:
            raise TaceError("les.constraint total_charge needs the input 'total_charge'")
        if self.weights == "all" and not (
            2 <= self.l_max <= 3 and self.correlation >= 2 and self.n_layers >= 2 and self.L_max >= 1
        ):
            raise TaceError(
                "weights 'all' needs l_max 2 or 3, correlation ≥ 2, n_layers ≥ 2 and L_max ≥ 1: elsewhere it "
                "adds nothing, or is too large"
            )
        if self.residual and self.n_layers < 2:
            raise TaceError("residual needs n_layers ≥ 2: the first layer has none below it")
        for head in self.heads:
            if head.with_charges and not any(other.charges for other in self.heads):
                raise TaceError(f"head {head.name}: with_charges needs a head of charges beside it")

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(i.name for i in self.inputs)

    def to_json(self) -> dict[str, Any]:
        """Lists instead of tuples, so that it survives JSON and torch.load(weights_only=True)."""
        return {k: _plain(v) for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> TaceConfig:
        """Inverse of `to_json`; an unknown key is refused by name."""
        values = dict(document)
        if values.get("les") is not None:
            values["les"] = _nested(LesConfig, values["les"], "les ")
        for key, kind in (("inputs", InputConfig), ("heads", HeadConfig)):
            if key in values:
                values[key] = tuple(_nested(kind, part, f"{key} ") for part in values[key])
        return _nested(cls, values, "")


def _distinct(parts: tuple[Any, ...]) -> bool:
    return len({part.name for part in parts}) == len(parts)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _nested(kind: Any, document: Any, where: str) -> Any:
    """A configuration from plain values, or as it is if it has been made already."""
    if is_dataclass(document):
        return document
    known = {f.name for f in fields(kind)}
    for key in document:
        if key not in known:
            raise TaceError(f"unknown {where or 'model '}setting '{key}'; {hint(key, known)}")
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in document.items()})


PRESETS: dict[str, dict[str, Any]] = {
    "nano": {"channels": 16, "l_max": 2, "L_max": 1, "correlation": 3, "radial_hidden": (32, 32)},
    "small": {"channels": 32, "l_max": 3, "L_max": 1, "correlation": 3, "radial_hidden": (64, 64)},
    "medium": {"channels": 64, "l_max": 3, "L_max": 1, "correlation": 3, "radial_hidden": (64, 64, 64)},
    "large": {"channels": 128, "l_max": 3, "L_max": 2, "correlation": 3, "radial_hidden": (64, 64, 64)},
}


def preset(name: str, **settings: Any) -> TaceConfig:
    """A preset with the data's settings (elements, fidelities, cutoff_A, avg_neighbors) or overrides.

    Raises:
        TaceError: unknown preset or setting, with a suggestion.
    """
    if name not in PRESETS:
        raise TaceError(f"unknown preset '{name}'; {hint(name, PRESETS)}")
    return TaceConfig.from_json({**PRESETS[name], **settings})
