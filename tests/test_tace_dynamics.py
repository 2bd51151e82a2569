"""Long runs of a trained model: what a potential must keep over many steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk
from ase.md.verlet import VelocityVerlet
from scipy.special import erf

from tace.calculator import TaceCalculator
from tace.committee import Committee
from tace.config import LesConfig, preset
from tace.data import Labelled, make_samples
from tace.model import Tace
from tace.reference import set_statistics, statistics
from tace.settings import TrainSettings
from tace.train import fit


def salt(atoms: Atoms) -> tuple[float, np.ndarray]:
    """Born–Mayer repulsion and screened charges of ±0.8 e, all within the minimum images' reach."""
    charges = np.where(atoms.numbers == 11, 0.8, -0.8)
    vectors = atoms.get_all_distances(mic=True, vector=True)
    r = np.linalg.norm(vectors, axis=2) + np.eye(len(atoms))
    k = units.Hartree * units.Bohr
    fade = np.exp(-((r / 5.0) ** 4))
    wall = 1500.0 * np.exp(-r / 0.32)
    qq = k * charges[:, None] * charges[None] * erf(r / 1.5) / r
    slope_qq = k * charges[:, None] * charges[None] * (
        2 / 1.5 / np.sqrt(np.pi) * np.exp(-((r / 1.5) ** 2)) / r - erf(r / 1.5) / r**2
    )
    energy = (wall + qq) * fade
    slope = (-wall / 0.32 + slope_qq) * fade - energy * 4 * r**3 / 5.0**4
    off = 1 - np.eye(len(atoms))
    forces = ((slope * off / r)[:, :, None] * vectors).sum(1)
    return float(0.5 * (energy * off).sum()), forces


@pytest.fixture(scope="module")
def model() -> Tace:
    rng = np.random.default_rng(3)
    frames = []
    for _ in range(24):
        atoms = bulk("NaCl", "rocksalt", a=5.64 * rng.uniform(0.97, 1.03), cubic=True)
        atoms.rattle(0.25, rng=rng)
        energy, forces = salt(atoms)
        frames.append(Labelled(atoms, "default", energy, forces))
    config = preset("nano", elements=(11, 17), cutoff_A=4.5, les=LesConfig())
    found = statistics(frames, config, {"default": {11: 0.0, 17: 0.0}})
    model = Tace(config, seed=1)
    set_statistics(model, found)
    samples = make_samples(frames, config)
    fit(model, samples, [], settings=TrainSettings(steps=250, batch_size=4, learning_rate=0.01))
    return model


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_energy_and_momentum_are_conserved_over_three_picoseconds(model):
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    atoms.calc = TaceCalculator(Committee([model]))
    rng = np.random.default_rng(0)
    sigma = np.sqrt(atoms.get_masses() * units.kB * 300.0)[:, None]
    momenta = rng.normal(size=(len(atoms), 3)) * sigma
    atoms.set_momenta(momenta - momenta.mean(0))
    energies = []
    dynamics = VelocityVerlet(atoms, timestep=1.0 * units.fs)
    dynamics.attach(lambda: energies.append(atoms.get_total_energy()), interval=10)
    torch.set_num_threads(1)
    dynamics.run(3_000)
    t = np.arange(len(energies)) * 0.01  # ps
    drift = np.polyfit(t, energies, 1)[0] / len(atoms)
    # float32 forces round at 1e-6 of their size: a random walk of the energy well below this
    assert abs(drift) < 1e-5
    assert np.std(energies) / len(atoms) < 1e-3  # the step's own error, bounded
    # 3000 kicks by a net force of float32 sums, 1e-6 eV/Å each
    assert np.abs(atoms.get_momenta().sum(0)).max() < 1e-3
