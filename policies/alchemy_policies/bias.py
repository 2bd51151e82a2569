"""A bias that drives dynamics to where the members of a committee disagree about the energy.

Kulichenko et al., Nat. Comput. Sci. 3, 230 (2023), eqs. 1-3 (UDD), with s² = Σ_k (E_k − Ē)²/K of K members,
N atoms, height h and width w, and the stress of the bias beside its force, as dynamics at a pressure needs
(Zaverkin et al., npj Comput. Mater. 10, 83 (2024)):

    E_b = h (exp(−s²/(N w²)) − 1)
    F_b = −∂E_b/∂r = −c Σ_k (E_k − Ē) F_k        c = 2 h exp(−s²/(N w²)) / (K N w²)
    σ_b = (1/V) ∂E_b/∂ε = −c Σ_k (E_k − Ē) σ_k

The bias is bounded, −h ≤ E_b ≤ 0, and so is its force: far from what is known it fades, and the walker is
left to the committee's own forces and to the thresholds that end it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tace.prediction import CommitteePrediction

from .base import PolicyError


@dataclass(frozen=True)
class Push:
    """What a bias adds."""

    energies_eV: np.ndarray  # [S]
    forces_eV_per_A: np.ndarray  # [A,3]
    stresses_eV_per_A3: np.ndarray | None  # [S,6]


@dataclass(frozen=True)
class EnergyBias:
    """Its height, and the spread of energies per root of the number of atoms that gives 63 % of it."""

    height_eV: float
    width_eV: float

    def __post_init__(self) -> None:
        if not (np.isfinite(self.height_eV) and self.height_eV > 0):
            raise PolicyError(f"the height of the bias is {self.height_eV} eV, must be positive")
        if not (np.isfinite(self.width_eV) and self.width_eV > 0):
            raise PolicyError(f"the width of the bias is {self.width_eV} eV, must be positive")

    def __call__(self, said: CommitteePrediction) -> Push:
        """The bias of each structure.

        Raises:
            PolicyError: forces of the members were not asked for, or there is one member.
        """
        if said.forces is None or len(said.energies) < 2:
            raise PolicyError("a bias on the spread needs forces of two or more members")
        sizes = np.asarray(said.n_atoms)
        off = said.energies - said.energies.mean(0)  # [K,S]
        scale = sizes * self.width_eV**2
        fading = np.exp(-(off**2).mean(0) / scale)
        weight = -2 * self.height_eV * fading / (len(off) * scale) * off  # [K,S]
        forces = np.einsum("ka,kad->ad", np.repeat(weight, sizes, axis=1), said.forces)
        stresses = None if said.stresses is None else np.einsum("ks,ksd->sd", weight, said.stresses)
        return Push(self.height_eV * (fading - 1), forces, stresses)
