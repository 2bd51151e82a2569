"""Shared fixtures: one thread, float64 generators, small structures; no heavy imports."""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from slurm_fixture import slurm, slurm_cluster  # noqa: F401  (fixtures)

if TYPE_CHECKING:
    from ase import Atoms

    from alchemy.store import Store

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # read by torch and BLAS when they load; inherited by workers


def pytest_collection_finish() -> None:
    """If a plugin loaded torch before this file, it has not seen the variables."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_draws(request: pytest.FixtureRequest) -> None:
    """What draws from torch's own generator (gradcheck does) draws the same in whatever order tests run."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture
def rng() -> np.random.Generator:
    """float64 numbers, the same in every run."""
    return np.random.default_rng(20250917)


@pytest.fixture
def rotation(rng: np.random.Generator) -> Callable[[bool], np.ndarray]:
    """Random orthogonal matrices: `rotation(improper)` has determinant −1 if improper, else +1."""

    def make(improper: bool) -> np.ndarray:
        q, r = np.linalg.qr(rng.standard_normal((3, 3)))
        q = q * np.sign(np.diag(r))
        return q * np.linalg.det(q) * (-1.0 if improper else 1.0)

    return make


@pytest.fixture
def structure() -> Callable[[str], Atoms]:
    """A fresh copy of a structure of H, C and O by name.

    'water', 'ethanol': rattled molecules; 'crystal': triclinic, so small that atoms see their own
    images at 4 Å; 'carbon': the same with one element; 'slab' and 'wire': two and one periodic
    axes; 'atom': one O.
    """
    return _structure


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store in the folder of the test; it does not wait for the disk."""
    from alchemy.store import Store

    return Store(tmp_path / "store.h5", durability="nofsync")


@pytest.fixture
def filled(store: Store) -> Store:
    """A store of eight commits with every kind of row."""
    from store_helpers import fill

    fill(store)
    return store


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command of alchemy: (exit code, standard output, standard error)."""
    from alchemy.cli import main

    def call(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return call


TRICLINIC = np.array([[3.6, 0.2, -0.3], [0.9, 3.9, 0.4], [-0.7, 1.1, 4.3]])


def _structure(name: str) -> Atoms:
    from ase import Atoms
    from ase.build import molecule

    if name in ("water", "ethanol"):
        atoms = molecule({"water": "H2O", "ethanol": "CH3CH2OH"}[name])
        atoms.rattle(0.1, seed=1)
        return atoms
    if name == "crystal":
        where = [[0.03, 0.05, 0.02], [0.52, 0.47, 0.11], [0.09, 0.55, 0.58], [0.6, 0.02, 0.66]]
        return Atoms("CHOH", scaled_positions=where, cell=TRICLINIC, pbc=True)
    if name == "carbon":
        where = [[0.0, 0.0, 0.0], [0.27, 0.24, 0.26]]
        return Atoms("C2", scaled_positions=where, cell=TRICLINIC, pbc=True)
    if name == "slab":
        where = [[0.1, 0.2, 0.0], [1.4, 1.7, 0.9], [2.2, 0.4, 2.1], [0.3, 2.6, -1.2]]
        return Atoms(
            "COHH", positions=where, cell=[[3.1, 0.0, 0], [0.8, 3.4, 0], [0, 0, 0]], pbc=[1, 1, 0]
        )
    if name == "wire":
        where = [[0.1, 0.2, 0.0], [1.2, 0.9, 0.5], [2.1, -0.6, -0.4]]
        return Atoms(
            "COH", positions=where, cell=[[3.3, 0.4, 0.2], [0, 0, 0], [0, 0, 0]], pbc=[1, 0, 0]
        )
    if name == "atom":
        return Atoms("O", positions=[[0.3, -0.2, 0.1]])
    raise KeyError(name)
