"""Explorations for tests: walkers that show what a script says, and starts that differ."""

from __future__ import annotations

import numpy as np
from alchemy_policies.calibration import Calibration
from alchemy_policies.md import MolecularDynamics
from ase.build import bulk, molecule

from tace.prediction import CommitteePrediction

WATER = molecule("H2O")
PLAIN = Calibration.uncalibrated()


def options(**changes):
    """Thresholds that nothing reaches, unless a test lowers them."""
    base = {
        "label_above_eV_per_A": 1e3,
        "abort_above_eV_per_A": 1e4,
        "temperatures_K": (300.0,),
        "time_fs": 50.0,
        "grace_fs": 0.0,
    }
    return MolecularDynamics(**(base | changes))


LABEL = {"label_above_eV_per_A": 0.1, "abort_above_eV_per_A": 10.0, "samples": 0}


class Scripted:
    """A weak harmonic well; what walker w shows at its n-th force call is up to `script`.

    script(tag, call) -> dict with any of force, spread, energy. The tag is the atoms' charge, which
    travels with a walker; each session knows its walkers by it.
    """

    def __init__(self, homes, script=lambda tag, call: {}):
        self.homes, self.script = homes, script
        self.calls, self.batches = {}, []

    def __call__(self, frames):
        tags = [atoms.info["charge"] for atoms in frames]
        sizes = np.array([len(atoms) for atoms in frames])
        homes = np.concatenate([self.homes[tag] for tag in tags])

        def session(positions_A, member_forces):
            self.batches.append((tuple(tags), member_forces))
            assert np.isfinite(positions_A).all(), "a broken walker was still propagated"
            mean = -2.0 * (positions_A - homes)
            spread, energies = np.zeros(len(mean)), np.zeros(len(tags))
            for n, (tag, end) in enumerate(zip(tags, np.cumsum(sizes), strict=True)):
                rows = slice(end - sizes[n], end)
                self.calls[tag] = self.calls.get(tag, -1) + 1
                says = self.script(tag, self.calls[tag])
                mean[rows] = says.get("force", mean[rows])
                spread[rows] = says.get("spread", 0.01)
                energies[n] = says.get("energy", ((positions_A - homes)[rows] ** 2).sum())
            scatter = np.array([1.0, -1.0, 0.0])[:, None, None] * spread[:, None]
            return CommitteePrediction(
                n_atoms=sizes,
                energies=np.tile(energies, (3, 1)),
                mean_forces=mean,
                forces=mean + scatter * np.array([1.0, 0, 0]) if member_forces else None,
            )

        return session


def crowd(count):
    starts = []
    for tag in range(count):
        atoms = WATER.copy()
        atoms.info["charge"] = tag
        starts.append(atoms)
    return starts, dict.fromkeys(range(count), WATER.positions)


def explore(explorer, starts, factory, *, seed=0):
    return explorer(starts, factory, PLAIN, np.random.default_rng(seed))


def crystals():
    """Two cells of other sizes, each with a volume of its own kind."""
    rng = np.random.default_rng(6)
    copper = bulk("Cu", "fcc", 3.6, cubic=True)
    salt = bulk("NaCl", "rocksalt", 5.6)  # two atoms in a skew cell
    for atoms in (copper, salt):
        atoms.rattle(0.01, rng=rng)
    return [copper, salt]


NPT = {"ensemble": "npt", "barostat_tau_fs": 100.0, "compressibility_per_GPa": 0.0125}
