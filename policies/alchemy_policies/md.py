"""Molecular dynamics on the committee's mean force, stopped where the committee loses its way.

Walkers of all temperatures and sizes move side by side: one session call per step. Member forces,
which cost a backward pass each, are asked for at checks only, unless a bias needs them. Walkers that
stop leave at once, so they can neither poison nor slow the others, and at the next check the first of those
that wait take their place. Each walker owns a random generator: its path depends neither on who walks
beside it nor on how many may.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase import Atoms

from .barostat import Barostat
from .base import Exploration, PolicyError, SessionFactory
from .bias import EnergyBias
from .calibration import Calibration
from .crew import Crew, Rules
from .guards import Guards
from .integrators import Bussi, Integrator, Langevin, Thermostat
from .walkers import Limits, Walker, make_walker, refuse_open_cells

ENSEMBLES, THERMOSTATS = ("nvt", "nve", "npt"), ("langevin", "bussi")


@dataclass(frozen=True, kw_only=True)
class MolecularDynamics:
    """Explorer. Starts are dealt to the walkers in a random order, each once before any twice."""

    label_above_eV_per_A: float  # expected error (worst decile) that is worth a label
    abort_above_eV_per_A: float  # expected error beyond which the trajectory means nothing
    energy_spread_above_eV_per_atom: float | None = None  # is worth a label too; None: no veto
    temperatures_K: tuple[float, ...] = (300.0, 600.0)
    ramp_to_K: float | None = None  # nvt: the bath goes there linearly, over `time_fs`; None: it stays
    time_fs: float = 1000.0
    timestep_fs: float = 0.5  # a C-H stretch takes 11 fs
    ensemble: str = "nvt"  # or "nve", "npt"
    thermostat: str = "langevin"  # or "bussi"; none with nve
    friction_per_fs: float = 0.01  # langevin
    tau_fs: float = 100.0  # bussi
    pressure_eV_per_A3: float = 0.0  # npt
    bias_height_eV: float = 0.0  # of the bias towards disagreement; 0: none
    bias_width_eV: float = 0.01  # spread of energies, per root of the number of atoms, where it is 63 % of it
    barostat_tau_fs: float = 1000.0  # npt: relaxation time of the volume, if the next is right
    compressibility_per_GPa: float = 0.05  # npt; metals 0.01, water 0.45
    walkers: int = 1  # per temperature
    check_every: int = 10
    batch_atoms: int = 1024  # atoms in one session call; a larger walker runs alone
    samples: int = 4  # frames offered per walker whatever their error: the pool must not be biased
    debounce: int = 2
    grace_fs: float = 25.0  # no label-stop before: it would only offer the start again
    guards: Guards = field(default_factory=Guards)

    def __post_init__(self) -> None:
        guards: Any = self.guards  # a campaign file gives a mapping, and a list of temperatures
        if isinstance(guards, Mapping):
            object.__setattr__(self, "guards", Guards(**guards))
        object.__setattr__(self, "temperatures_K", tuple(float(t) for t in self.temperatures_K))
        if self.ensemble not in ENSEMBLES:
            raise PolicyError(f"ensemble is 'nvt', 'nve' or 'npt', not {self.ensemble!r}")
        if self.thermostat not in THERMOSTATS:
            raise PolicyError(f"thermostat is 'langevin' or 'bussi', not {self.thermostat!r}")
        if not 0 < self.label_above_eV_per_A < self.abort_above_eV_per_A:
            raise PolicyError(
                f"need 0 < label_above < abort_above, got {self.label_above_eV_per_A} and "
                f"{self.abort_above_eV_per_A} eV/Å: between them a frame is worth a label"
            )
        at_least = {
            "time_fs": self.timestep_fs,
            "walkers": 1,
            "check_every": 1,
            "debounce": 1,
            "samples": 0,
            "friction_per_fs": 0,
            "grace_fs": 0,
            "batch_atoms": 1,
        }
        for name, least in at_least.items():
            if not getattr(self, name) >= least:
                raise PolicyError(f"{name} is {getattr(self, name)}, must be at least {least}")
        above_zero = ("timestep_fs", "tau_fs", "barostat_tau_fs", "compressibility_per_GPa")
        for name in above_zero:
            if not getattr(self, name) > 0:
                raise PolicyError(f"{name} is {getattr(self, name)}, must be positive")
        if self.energy_spread_above_eV_per_atom is not None and not self.energy_spread_above_eV_per_atom > 0:
            raise PolicyError(
                f"energy_spread_above_eV_per_atom is {self.energy_spread_above_eV_per_atom}, must be "
                "positive, or None"
            )
        if self.bias_height_eV:
            self._bias()  # refuses what makes no sense
        if not np.isfinite(self.pressure_eV_per_A3):
            raise PolicyError(f"pressure_eV_per_A3 is {self.pressure_eV_per_A3}, must be finite")
        if not self.temperatures_K or not all(t > 0 for t in self.temperatures_K):
            raise PolicyError(
                f"temperatures_K is {self.temperatures_K}: give one or more above zero"
            )
        if self.ramp_to_K is not None and not (self.ramp_to_K > 0 and self.ensemble == "nvt"):
            raise PolicyError(
                f"ramp_to_K is {self.ramp_to_K} with ensemble {self.ensemble}; it needs a temperature above "
                "zero and nvt"
            )

    def __call__(
        self,
        starts: Sequence[Atoms],
        session_factory: SessionFactory,
        calibration: Calibration,
        rng: np.random.Generator,
    ) -> Exploration:
        if not starts:
            raise PolicyError("molecular dynamics needs at least one start structure")
        rules = Rules(
            session_factory=session_factory,
            calibration=calibration,
            integrator=self._integrator(),
            limits=self._limits(),
            steps=self.steps,
            check_every=self.check_every,
            bias=self._bias() if self.bias_height_eV else None,
        )
        walkers = self._deal(starts, rng, rules.integrator)
        waiting = deque(walkers)
        crew, calls = Crew.at_start([], rules), 0
        while waiting or crew.walkers:
            if crew.at_a_check():
                crew, more = self._filled(crew, waiting)
                calls += more
            if crew.walkers:
                crew, more = crew.step()
                calls += more
        offers = [walker.offers[step] for walker in walkers for step in sorted(walker.offers)]
        return Exploration(tuple(offers), tuple(walker.report() for walker in walkers), calls)

    def _filled(self, crew: Crew, waiting: deque[Walker]) -> tuple[Crew, int]:
        """As many of the waiting as there is room for, in their order, and the calls for it."""
        calls = 0
        while waiting:
            newcomers: list[Walker] = []
            atoms = crew.atoms
            while waiting and (not atoms or atoms + len(waiting[0].start) <= self.batch_atoms):
                newcomers.append(waiting.popleft())
                atoms += len(newcomers[-1].start)
            if not newcomers:
                break
            calls += len(newcomers)  # some may stop where they start, and leave room again
            fit = Crew.at_start(newcomers, crew.rules).judge_starts()
            crew = crew.with_newcomers(fit)
        return crew, calls

    def _integrator(self) -> Integrator:
        bath: Thermostat | None = None
        if self.ensemble != "nve":
            langevin = self.thermostat == "langevin"
            bath = Langevin(self.friction_per_fs) if langevin else Bussi(self.tau_fs)
        barostat = None
        if self.ensemble == "npt":
            barostat = Barostat(
                self.pressure_eV_per_A3, self.barostat_tau_fs, self.compressibility_per_GPa
            )
        return Integrator(self.timestep_fs, bath, barostat)

    def _bias(self) -> EnergyBias:
        return EnergyBias(self.bias_height_eV, self.bias_width_eV)

    @property
    def steps(self) -> int:
        return round(self.time_fs / self.timestep_fs)

    def _limits(self) -> Limits:
        far_out = self.energy_spread_above_eV_per_atom
        checks = self.steps // self.check_every
        spaced = np.linspace(0, checks, self.samples + 2)[1:-1].round().astype(int)
        inner = {int(check) * self.check_every for check in spaced} - {0, self.steps}
        return Limits(
            label_above_eV_per_A=self.label_above_eV_per_A,
            abort_above_eV_per_A=self.abort_above_eV_per_A,
            debounce=self.debounce,
            first_label_step=round(self.grace_fs / self.timestep_fs),
            sample_steps=frozenset(inner),
            guards=self.guards,
            energy_spread_above_eV_per_atom=np.inf if far_out is None else far_out,
        )

    def _deal(
        self, starts: Sequence[Atoms], rng: np.random.Generator, integrator: Integrator
    ) -> list[Walker]:
        order = rng.permutation(len(starts))
        temperatures = [t for t in self.temperatures_K for _ in range(self.walkers)]
        streams = rng.spawn(len(temperatures))
        walkers = []
        for index, (temperature, stream) in enumerate(zip(temperatures, streams, strict=True)):
            start = int(order[index % len(order)])
            if integrator.barostat is not None:
                refuse_open_cells(start, starts[start])
            walkers.append(
                make_walker(
                    index,
                    (start, starts[start]),
                    temperature,
                    timestep_fs=self.timestep_fs,
                    conserving=integrator.conserving,
                    guards=self.guards,
                    rng=stream,
                    ramp=None if self.ramp_to_K is None else (self.ramp_to_K, self.steps),
                )
            )
        return walkers
