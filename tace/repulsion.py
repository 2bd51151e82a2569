"""Screened nuclear repulsion of Ziegler, Biersack and Littmark (ZBL), switched off at the bond length.

Per pair, V(r) = k_e Z_i Z_j / r · φ(r/a) · f(r/r_max), with φ(x) = Σ_k c_k exp(−b_k x), the screening length
a = 0.4543·0.529 Å / (Z_i^0.3 + Z_j^0.3), f the polynomial envelope of `radial.py`, and r_max the sum of the
covalent radii. Source: spec §14, which follows MACE (arXiv:2206.07697, its released code). The textbook
(Ziegler et al. 1985) has 0.8854 and the exponent 0.23 in the screening length, and is some ten times stronger
at a bond length; trained potentials use the weaker one because the model need only be pushed the right way
where it has no data. Units: Å, eV.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from ase.data import chemical_symbols, covalent_radii
from torch import Tensor

from .errors import TaceError
from .radial import envelope
from .units import COULOMB

COEFFICIENTS = (0.1818, 0.5099, 0.2802, 0.02817)  # c_k: they sum to 1.00007, almost the bare nuclei at r = 0
DECAYS = (3.2, 0.9423, 0.4028, 0.2016)  # b_k
SCREENING_A = 0.4543 * 0.529
EXPONENT = 0.3
LAST_RADIUS = 96  # ase.data holds measured radii up to curium and a placeholder beyond


def zbl_energies(lengths: Tensor, species_i: Tensor, species_j: Tensor, numbers: Tensor, *, p: int) -> Tensor:
    """[P] eV: the whole energy of each pair, which the directed edges i→j and j→i share evenly.

    Args:
        lengths: [P] float64, Å, positive.
        species_i, species_j: [P] indices into `numbers`.
        numbers: [Z] integer atomic numbers.
        p: power of the envelope.
    """
    z_i, z_j = numbers.index_select(0, species_i), numbers.index_select(0, species_j)
    radii = torch.as_tensor(covalent_radii, dtype=lengths.dtype, device=lengths.device)
    r_max = radii.index_select(0, z_i) + radii.index_select(0, z_j)
    z_i, z_j = z_i.to(lengths.dtype), z_j.to(lengths.dtype)
    x = lengths * ((z_i**EXPONENT + z_j**EXPONENT) / SCREENING_A)
    screening = torch.zeros_like(lengths)
    for coefficient, decay in zip(COEFFICIENTS, DECAYS, strict=True):
        screening = screening + coefficient * torch.exp(-decay * x)
    return COULOMB * z_i * z_j / lengths * screening * envelope(lengths / r_max, 1.0, p)


def check_cutoff(numbers: Sequence[int], cutoff_A: float) -> None:
    """Make sure that the pair list reaches the repulsion of every pair of these elements.

    Raises:
        TaceError: two covalent radii exceed the cutoff, so that their repulsion would end in a jump, or an
            element has no covalent radius.
    """
    for number in numbers:
        if number > LAST_RADIUS:
            raise TaceError(
                f"zbl: no covalent radius is known for {chemical_symbols[number]} ({number}); "
                f"leave the element out or set zbl to false"
            )
    largest = max(numbers, key=lambda number: covalent_radii[number])
    reach = 2.0 * float(covalent_radii[largest])  # no pair of different elements is wider
    if reach > cutoff_A:
        name = chemical_symbols[largest]
        raise TaceError(
            f"zbl: the repulsion of {name}–{name} reaches to the sum of their covalent radii, {reach:.2f} Å, "
            f"beyond cutoff_A = {cutoff_A:g}; raise cutoff_A to at least {reach:.2f} or set zbl to false"
        )
