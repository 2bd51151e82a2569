"""How to train: the settings of a run, as plain values that a checkpoint compares."""

from __future__ import annotations

from dataclasses import dataclass, field

from .errors import TaceError

SCHEDULES = ("constant", "linear", "cosine", "plateau")
KINDS = ("mse", "mae", "huber", "l2")
COMPILE = ("auto", "on", "off")


@dataclass(frozen=True)
class TrainSettings:
    """How to train; weights multiply mean squared errors of the energy per atom (eV), the forces
    (eV/Å) and the virial per atom (eV): a stress in eV/Å³ is too small to be heard beside them.

    Forces teach the shape of the surface, and energies, one number for many atoms, are worth more the better
    that is known: their weight grows. Measured with 1 → 10 → 10…100: liquid water (64 frames, 500 steps)
    36 → 27 meV/atom and 306 → 292 meV/Å, dipeptides 23 → 12 → 8 meV/atom and 182 → 184 meV/Å, 3BPA the same.

    `clip_norm` 10 → 0.1: 3BPA (400 steps) 83 → 73 meV/Å, urea at three levels 115 → 107, and latent charges
    of ion pairs grow (their net force off by 55 % after 1500 steps → 0.3 %, the latter at 0.001).
    """

    steps: int = 2000
    batch_size: int = 8
    learning_rate: float = 2e-2
    schedule: str = "cosine"
    energy_weight: float = 10.0
    energy_growth: float = 10.0  # of the energy's weight, over the second half of the steps
    forces_weight: float = 10.0
    stress_weight: float = 1.0
    label_weights: dict[str, float] = field(default_factory=dict)  # of further quantities, by name
    loss_kinds: dict[str, str] = field(default_factory=dict)  # 'mae', 'huber' or 'l2' in place of 'mse'
    hessian_rows: int = 2  # of each structure and step, where Hessians are trained on
    fidelity_balance: float = 0.5  # 0: drawn as they come; 1: every fidelity equally often
    ema_decay: float = 0.99
    clip_norm: float = 0.1  # small: the first, large gradients do not set the step sizes of Adam for long
    amsgrad: bool = True
    validate_every: int = 100  # steps
    compile: str = "auto"  # steps as a compiled graph: where there is one or it pays for its building
    patience: int = 0  # validations without improvement before an early stop; 0: never
    seed: int = 0

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise TaceError(f"unknown schedule '{self.schedule}': use {', '.join(SCHEDULES)}")
        if self.compile not in COMPILE:
            raise TaceError(f"unknown compile '{self.compile}': use {', '.join(COMPILE)}")
        for name in ("steps", "batch_size", "learning_rate", "validate_every", "clip_norm", "energy_growth"):
            value = getattr(self, name)
            if not value > 0:
                raise TaceError(f"training setting {name} must be positive, got {value}")
        for name, kind in self.loss_kinds.items():
            if kind not in KINDS:
                raise TaceError(f"unknown loss '{kind}' for {name}: use {', '.join(KINDS)}")
        for name, weight in self.label_weights.items():
            if not weight >= 0:
                raise TaceError(f"training weight of {name} must not be negative, got {weight}")

    def weight(self, name: str, *, progress: float = 0.0) -> float:
        """Weight of a quantity in the loss when this share of the steps is done."""
        own = {
            "energy": self.energy_weight * self.energy_growth ** max(0.0, 2.0 * progress - 1.0),
            "forces": self.forces_weight,
            "stress": self.stress_weight,
        }
        return own[name] if name in own else self.label_weights.get(name, 1.0)
