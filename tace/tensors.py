"""Tensors of rank n with index symmetries, as sums of irreducible parts (spec §1.2, §9).

A tensor T of rank n is Σ_p M_p t_p, where t_p has 2w+1 components and M_p [3^n, 2w+1] is an isometry: for
every rotation R, (R⊗…⊗R) M_p = M_p D_w(R) with the D_w of `ict.stf_basis`. A symmetry of the indices only
mixes paths of the same weight w (Schur), so that the tensors that obey it are again such a sum.

A tensor of rank n has the parity (−1)^n under inversion, features of rank w have (−1)^w: a part with
w ≡ n mod 2 is natural, any other is a pseudo-tensor, which `pseudo_coupling` makes of two natural ones.

Everything here is float64 numpy, built once and cached.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from dataclasses import dataclass

import numpy as np

from .errors import TaceError
from .ict import stf_basis

MAX_RANK = 6  # 3^6 components; 141 irreducible parts
Path = tuple[int, ...]
Signed = tuple[tuple[int, ...], int]  # a permutation of the indices and the sign that goes with it

LEVI_CIVITA = np.zeros((3, 3, 3))
for _a, _b, _c in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
    LEVI_CIVITA[_a, _b, _c], LEVI_CIVITA[_a, _c, _b] = 1.0, -1.0
LEVI_CIVITA.setflags(write=False)


@functools.cache
def _step(j: int, to: int) -> np.ndarray:
    """U [2j+1, 3, 2·to+1]: an isometry from (STF tensor of rank j) ⊗ vector to rank `to`.

    The closed-form norms are those of spec §1.2.
    """
    old, new = stf_basis(j), stf_basis(to)
    if to == j + 1:
        return np.einsum("sm,sep->mep", old, new.reshape(3**j, 3, -1))
    open_one = old.reshape(3 ** (j - 1), 3, -1)
    if to == j:
        turned = np.einsum("sbm,cab->scam", open_one, LEVI_CIVITA).reshape(3**j, 3, -1)
        return np.einsum("sam,sp->map", turned, new) / math.sqrt((j + 1) / j)
    return np.einsum("sem,sp->mep", open_one, new) / math.sqrt((2 * j + 1) / (2 * j - 1))


@functools.cache
def decompositions(rank: int) -> tuple[tuple[Path, np.ndarray], ...]:
    """Every path p = (0, j_1, …, j_n = w) and its M_p [3^n, 2w+1].

    M_pᵀM_q = δ_pq and Σ_p M_pM_pᵀ = 1; the path (0, 1, …, n) gives `stf_basis(n)`. There are 1, 1, 3,
    7, 19, 51 of them for n = 0 … 5.

    Raises:
        TaceError: a rank above `MAX_RANK`.
    """
    if not 0 <= rank <= MAX_RANK:
        raise TaceError(f"tensors of rank {rank} are not supported; ranks go from 0 to {MAX_RANK}")
    if rank == 0:
        return (((0,), _frozen(np.ones((1, 1)))),)
    found = []
    for path, m in decompositions(rank - 1):
        j = path[-1]
        for to in (j - 1, j, j + 1) if j else (1,):
            longer = np.einsum("sm,mep->sep", m, _step(j, to)).reshape(3**rank, -1)
            found.append(((*path, to), _frozen(longer)))
    return tuple(found)


@dataclass(frozen=True)
class Block:
    """The parts of one weight: `isometries` [3^n, 2w+1] are orthonormal and orthogonal to each other."""

    weight: int
    isometries: tuple[np.ndarray, ...]
    natural: bool  # parity (−1)^w, as features have it


@functools.cache
def index_symmetry(formula: str) -> tuple[Block, ...]:
    """The irreducible parts of tensors that obey a symmetry of their indices, by ascending weight.

    Args:
        formula: '' (a number), 'i', 'ij', 'ij=ji', 'ij=-ji', 'ijkl=jikl=klij', …: every term is the first
            one with its letters in another order, and a minus where the sign changes.

    Raises:
        TaceError: a formula that cannot be read, or that only zero obeys.
    """
    group = _group(formula)
    rank = len(group[0][0])
    by_weight: dict[int, list[np.ndarray]] = {}
    for path, m in decompositions(rank):
        by_weight.setdefault(path[-1], []).append(m)
    blocks = []
    for weight, members in sorted(by_weight.items()):
        stack = np.stack(members, 1)  # [3^n, multiplicity, 2w+1]
        averaged = _average(stack, group)
        projector = np.einsum("spm,sqm->pq", stack, averaged) / (2 * weight + 1)
        columns = _range(projector)
        if columns:
            isometries = tuple(_frozen(np.einsum("spm,p->sm", stack, v)) for v in columns)
            blocks.append(Block(weight, isometries, (weight - rank) % 2 == 0))
    if not blocks:
        raise TaceError(f"index symmetry '{formula}': only a tensor of zeros obeys it")
    return tuple(blocks)


def rank_of(formula: str) -> int:
    """Number of indices of a formula of `index_symmetry`.

    Raises:
        TaceError: a formula that cannot be read.
    """
    return len(_terms(formula)[0][0])


@functools.cache
def pseudo_coupling(l1: int, l2: int, l3: int) -> np.ndarray:
    """G [2l1+1, 2l2+1, 2l3+1] of odd l1+l2+l3: contract k = (l1+l2−l3−1)/2 pairs, then ε_{cab}, then STF.

    z_{m3} = Σ G_{m1 m2 m3} x_{m1} y_{m2} turns like a tensor of rank l3 under rotations; of natural x and y
    its parity is −(−1)^{l3}. pseudo_coupling(1, 1, 1) is the cross product. Exchanging x and y with l1 = l2
    changes the sign where l3 is odd.
    """
    if not pseudo_allowed(l1, l2, l3):
        raise ValueError(f"no pseudo-tensor coupling {l1} x {l2} -> {l3}")
    k = (l1 + l2 - l3 - 1) // 2
    left = stf_basis(l1).reshape(3 ** (l1 - k - 1), 3, 3**k, 2 * l1 + 1)
    right = stf_basis(l2).reshape(3**k, 3, 3 ** (l2 - k - 1), 2 * l2 + 1)
    crossed = np.einsum("cab,uakm->uckbm", LEVI_CIVITA, left)
    product = np.einsum("uckbm,kbvn->ucvmn", crossed, right).reshape(3**l3, 2 * l1 + 1, 2 * l2 + 1)
    out = np.einsum("smn,sp->mnp", product, stf_basis(l3))
    out[np.abs(out) < 1e-14] = 0.0
    return _frozen(out)


def pseudo_allowed(l1: int, l2: int, l3: int) -> bool:
    """Triangle rule and odd l1 + l2 + l3; this leaves no way to a pseudo-scalar."""
    return abs(l1 - l2) <= l3 <= l1 + l2 and (l1 + l2 + l3) % 2 == 1


def _frozen(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array


def _terms(formula: str) -> list[tuple[str, int]]:
    """Letters and sign of every term, checked."""

    def wrong(why: str) -> TaceError:
        examples = "'ij=ji', 'ijk=-jik', 'ijkl=jikl=klij'"
        return TaceError(f"index symmetry '{formula}': {why}; examples are {examples}")

    if not formula:
        return [("", 1)]
    terms = []
    for text in formula.replace(" ", "").split("="):
        match = re.fullmatch(r"(-?)([a-z]+)", text)
        if match is None:
            raise wrong(f"'{text}' is not a row of small letters")
        terms.append((match[2], -1 if match[1] else 1))
    first, sign = terms[0]
    if sign < 0:
        raise wrong("the first term has no sign")
    if len(set(first)) < len(first):
        raise wrong("a letter stands twice in a term")
    if len(first) > MAX_RANK:
        raise wrong(f"more than {MAX_RANK} indices")
    for letters, _ in terms[1:]:
        if sorted(letters) != sorted(first):
            raise wrong(f"'{letters}' does not have the letters of '{first}'")
    return terms


def _group(formula: str) -> list[Signed]:
    """All signed permutations that follow from the formula, the identity first."""
    terms = _terms(formula)
    first = terms[0][0]
    generators = [(tuple(first.index(c) for c in letters), sign) for letters, sign in terms[1:]]
    group: dict[tuple[int, ...], int] = {tuple(range(len(first))): 1}
    frontier: list[Signed] = list(group.items())
    while frontier:
        grown = []
        for (p, s), (q, t) in itertools.product(frontier, generators):
            product = tuple(p[a] for a in q)
            if product not in group:
                group[product] = s * t
                grown.append((product, s * t))
            elif group[product] != s * t:
                raise TaceError(f"index symmetry '{formula}': only a tensor of zeros obeys it")
        frontier = grown
    return list(group.items())


def _average(stack: np.ndarray, group: list[Signed]) -> np.ndarray:
    """The part of tensors [3^n, ...] that obeys the symmetry: the mean over the group."""
    rank = len(group[0][0])
    tensor = stack.reshape(*[3] * rank, *stack.shape[1:])
    rest = tuple(range(rank, tensor.ndim))
    total = np.zeros_like(tensor)
    for permutation, sign in group:
        total += sign * tensor.transpose(*permutation, *rest)
    return (total / len(group)).reshape(stack.shape)


def _range(projector: np.ndarray) -> list[np.ndarray]:
    """Orthonormal columns that span what a projector leaves.

    Gram-Schmidt in the order of the paths, not eigenvectors: those of equal eigenvalues are a matter of
    the LAPACK at hand, and weights of a saved model refer to this basis.
    """
    columns: list[np.ndarray] = []
    for column in projector.T:
        for before in (*columns, *columns):  # twice is enough (Kahan)
            column = column - before * (before @ column)
        length = float(np.linalg.norm(column))
        if length > 1e-6:
            columns.append(column / length)
    return columns
