"""Hartree-Fock and density functionals for molecules through PySCF.

Choices, measured on urea, PBE/def2-SVP, one thread (PySCF 2.14.0):
- The gradient includes the response of the integration grid. Without it forces are not the slope of
  the energy: at grid level 1 they sum to 0.03 eV/Å, at level 2 to 0.003; with it to 1e-12, the
  finite difference is met ten times better, and PySCF's code for it is the faster one.
- Density fitting uses def2-universal-jkfit also for functionals without exchange: forces are within
  1 meV/Å of the exact integrals, 6 meV/Å with the smaller jfit set, for a few per cent of time.
- The SCF starts on a coarse grid and ends on the one asked for; this saves a fifth of the time and
  cannot change the answer.
- Convergence is of the orbital gradient too: at 1e-4 forces are within 0.1 meV/Å of the limit, with
  PySCF's default, 3e-4, within 2 meV/Å.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from ase import Atoms, units

from alchemy.errors import InputError
from alchemy.labelers import staging
from alchemy.labelers.base import LabelFailureError, LabelResult

MACRO_ITERATIONS = 50  # PySCF's own limit for this solver; the last rung, so not the user's cycles
SCHEMA: staging.Schema = {
    "physics": {
        "method": staging.TEXT,
        "basis": staging.TEXT,
        "ecp": (str, type(None)),
        "density_fit": staging.FLAG,
        "auxbasis": staging.TEXT,
        "grid_level": staging.COUNT,
        "grid_response": staging.FLAG,
        "conv_tol_hartree": staging.NUMBER,
        "conv_tol_gradient": staging.NUMBER,
        "attributes": (dict,),
    },
    "path": {
        "max_cycle": staging.COUNT,
        "retries": staging.COUNT,
        "coarse_grid_level": staging.OPTIONAL_INT,
        "threads": staging.COUNT,
        "max_memory_MB": staging.NUMBER,
    },
    "structure": {"charge": staging.COUNT, "multiplicity": staging.COUNT},
}


@dataclass(frozen=True)
class PyscfLabeler(staging.StagedLabeler):
    """'HF' or a functional; restricted for singlets, unrestricted otherwise."""

    method: str = "PBE"
    basis: str = "def2-SVP"
    density_fit: bool = True
    auxbasis: str = "def2-universal-jkfit"
    ecp: str | None = "auto"
    grid_level: int = 3
    conv_tol_hartree: float = 1e-7
    conv_tol_gradient: float = 1e-4
    max_cycle: int = 100
    retries: int = 2
    coarse_grid_level: int | None = 0
    threads: int = 1
    max_memory_MB: int = 4000

    name: ClassVar[str] = "pyscf"
    own_template: ClassVar[str] = "labelers/pyscf.yaml.j2"
    schema: ClassVar[staging.Schema] = SCHEMA
    periodic: ClassVar[bool] = False
    # 1e-11 with grid response; an edited template without it can reach 0.005 per atom at level 1
    net_force_eV_per_A_per_atom: ClassVar[float] = 5e-3

    def run(self, directory: Path) -> None:
        """output.json."""
        staging.run_stage(directory, compute, schema=SCHEMA)


def compute(atoms: Atoms, sections: Mapping[str, Any], directory: Path) -> LabelResult:
    """Energy, forces and dipole of one molecule."""
    if atoms.pbc.any():
        raise LabelFailureError(
            "periodic-not-supported", "the pyscf labeler treats molecules; this one is periodic"
        )
    try:
        from pyscf import lib
    except ImportError as error:
        raise staging.missing_package("pyscf", error) from error
    told = atoms.copy()
    told.info.update(sections["structure"])
    threads = sections["path"]["threads"]
    limited = staging.threads_limited(threads)
    with limited, lib.with_omp_threads(threads), _confined(directory):
        molecule = build_molecule(told, sections)
        solved = solve(molecule, sections)
        gradient = _gradient(solved, sections["physics"])
        neutral = sections["structure"]["charge"] == 0  # otherwise it depends on the origin
        dipole = np.asarray(solved.dip_moment(unit="AU", verbose=0)) if neutral else None
    return LabelResult(
        energy_eV=float(solved.e_tot) * units.Hartree,
        forces_eV_per_A=-gradient * (units.Hartree / units.Bohr),
        stress_eV_per_A3=None,
        energy_kind="total",
        dipole_eA=None if dipole is None else dipole * units.Bohr,
    )


@contextlib.contextmanager
def _confined(directory: Path) -> Iterator[None]:
    """PySCF's temporary files go into the label's directory, its advice on packages nowhere."""
    from pyscf.lib import param

    before, param.TMPDIR = param.TMPDIR, str(directory)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*basis-set-exchange.*")
            yield
    finally:
        param.TMPDIR = before


def build_molecule(atoms: Atoms, sections: Mapping[str, Any]) -> Any:
    """The PySCF molecule; an element without a basis is a failure of this structure."""
    from pyscf import gto
    from pyscf.lib.exceptions import BasisNotFoundError

    physics = sections["physics"]
    positions = atoms.positions / units.Bohr  # one Bohr radius for positions and forces
    molecule = gto.Mole(
        atom=list(zip(atoms.symbols, positions.tolist(), strict=True)),
        unit="Bohr",
        basis=physics["basis"],
        ecp=_ecp(atoms, physics),
        charge=sections["structure"]["charge"],
        spin=staging.unpaired_electrons(atoms),
        max_memory=sections["path"]["max_memory_MB"],
        verbose=0,
    )
    molecule.stdout = io.StringIO()
    for symbol in sorted(set(atoms.symbols)):
        try:
            gto.basis.load(physics["basis"], symbol)
        except (BasisNotFoundError, KeyError) as error:
            if not _is_basis(physics["basis"]):
                raise InputError(f"pyscf knows no basis set '{physics['basis']}'") from error
            raise LabelFailureError(
                "no-basis", f"basis set {physics['basis']} has no functions for {symbol}"
            ) from error
    # the defaults read sys.argv of whatever program we are in
    molecule.build(dump_input=False, parse_arg=False)
    return molecule


def _is_basis(name: str) -> bool:
    """Whether PySCF knows this set for anything at all."""
    from pyscf import gto
    from pyscf.lib.exceptions import BasisNotFoundError

    for symbol in ("H", "C", "Cu", "I"):
        with contextlib.suppress(BasisNotFoundError, KeyError):
            gto.basis.load(name, symbol)
            return True
    return False


def _ecp(atoms: Atoms, physics: Mapping[str, Any]) -> dict[str, str]:
    """Effective core potentials by element. def2 sets without theirs give nonsense from Rb on."""
    from pyscf import gto
    from pyscf.lib.exceptions import BasisNotFoundError

    if physics["ecp"] is None:
        return {}
    if physics["ecp"] != "auto":
        return dict.fromkeys(set(atoms.symbols), physics["ecp"])
    found = {}
    for symbol in set(atoms.symbols):
        with contextlib.suppress(BasisNotFoundError, KeyError, RuntimeError):
            if gto.basis.load_ecp(physics["basis"], symbol):
                found[symbol] = physics["basis"]
    return found


def mean_field(molecule: Any, sections: Mapping[str, Any], *, like: Any = None) -> Any:
    """RKS, UKS, RHF or UHF with every physics setting applied; shares the integrals of `like`."""
    from pyscf import dft, scf

    physics = sections["physics"]
    closed = molecule.spin == 0
    if physics["method"].upper() == "HF":
        solver = scf.RHF(molecule) if closed else scf.UHF(molecule)
    else:
        try:
            dft.libxc.parse_xc(physics["method"])
        except (KeyError, ValueError, NotImplementedError) as error:
            raise InputError(f"pyscf knows no functional '{physics['method']}'") from error
        solver = dft.RKS(molecule) if closed else dft.UKS(molecule)
        solver.xc = physics["method"]
        solver.grids.level = physics["grid_level"]
    if physics["density_fit"]:
        solver = solver.density_fit(auxbasis=physics["auxbasis"])
        if like is not None:
            solver.with_df = like.with_df
    solver.conv_tol = float(physics["conv_tol_hartree"])
    solver.conv_tol_grad = float(physics["conv_tol_gradient"])
    solver.max_cycle = sections["path"]["max_cycle"]
    solver.conv_check = False  # one more cycle after convergence: the gradient criterion suffices
    solver.chkfile = None
    for dotted, value in physics["attributes"].items():
        _set_attribute(solver, dotted, value)
    return solver


def _set_attribute(solver: Any, dotted: str, value: Any) -> None:
    *path, last = dotted.split(".")
    target = solver
    for part in path:
        target = getattr(target, part, None)
    if not hasattr(target, last) or callable(getattr(target, last)):
        raise InputError(f"physics.attributes: the mean-field object has no setting '{dotted}'")
    setattr(target, last, value)


def solve(molecule: Any, sections: Mapping[str, Any]) -> Any:
    """A converged SCF. The ladder changes the way, never the physics, then gives up."""
    solver = mean_field(molecule, sections)
    if sections["physics"]["density_fit"]:
        _store_fit(solver)
    solver.kernel(dm0=_coarse_density(solver, sections))
    tried = [f"{solver.cycles} cycles of DIIS"]
    for step in (_level_shifted, _second_order)[: sections["path"]["retries"]]:
        if solver.converged:
            break
        solver, what = step(solver, molecule, sections)
        tried.append(what)
    if not solver.converged:
        raise LabelFailureError(
            "scf-not-converged",
            f"{sections['physics']['method']}/{sections['physics']['basis']}, charge "
            f"{molecule.charge:+d}, {molecule.spin} unpaired electrons: not converged after "
            + ", ".join(tried),
        )
    return solver


def _store_fit(solver: Any) -> None:
    """Keep the fitted integrals, where they fit into memory, instead of redoing them each cycle.

    PySCF does this by itself only for exact exchange; for PBE it saves a fifth of urea's time.
    """
    from pyscf import df

    functions = df.addons.make_auxmol(solver.mol, solver.with_df.auxbasis).nao
    pairs = solver.mol.nao * (solver.mol.nao + 1) // 2
    if 8e-6 * pairs * functions < 0.5 * solver.max_memory:
        solver.with_df.build()


def _coarse_density(fine: Any, sections: Mapping[str, Any]) -> Any:
    """Density converged loosely on a coarse grid, or None to start from PySCF's guess."""
    physics, level = sections["physics"], sections["path"]["coarse_grid_level"]
    if level is None or physics["method"].upper() == "HF" or level >= physics["grid_level"]:
        return None
    solver = mean_field(fine.mol, sections, like=fine)
    solver.grids.level = level
    solver.conv_tol, solver.conv_tol_grad = 1e-4, 1e-2  # the grids differ by about that much
    solver.kernel()
    return solver.make_rdm1() if solver.converged else None


def _level_shifted(last: Any, molecule: Any, sections: Mapping[str, Any]) -> tuple[Any, str]:
    """Shifted virtual orbitals damp oscillation; the last word is without the shift."""
    shifted = mean_field(molecule, sections, like=last)
    shifted.level_shift, shifted.damp = 0.3, 0.3
    shifted.max_cycle = 2 * sections["path"]["max_cycle"]
    shifted.kernel()
    final = mean_field(molecule, sections, like=last)
    final.kernel(dm0=shifted.make_rdm1())
    return final, f"{shifted.cycles} with level shift and {final.cycles} without"


def _second_order(last: Any, molecule: Any, sections: Mapping[str, Any]) -> tuple[Any, str]:
    """Quadratically convergent solver from the last density."""
    fresh = mean_field(molecule, sections, like=last)
    newton = fresh.newton()
    newton.max_cycle = MACRO_ITERATIONS
    newton.kernel(dm0=last.make_rdm1())
    # gradients and dipoles come from the plain object, so that every path ends in the same code
    for name in ("mo_coeff", "mo_occ", "mo_energy", "e_tot", "converged"):
        setattr(fresh, name, getattr(newton, name))
    return fresh, f"{MACRO_ITERATIONS} iterations of the second-order solver"


def _gradient(solver: Any, physics: Mapping[str, Any]) -> np.ndarray:
    gradient = solver.nuc_grad_method()
    gradient.verbose = 0
    if physics["method"].upper() != "HF":
        gradient.grid_response = physics["grid_response"]
    if physics["density_fit"]:
        gradient.auxbasis_response = True  # of the fitting functions; PySCF's default, and needed
    return np.asarray(gradient.kernel())
