"""The same model in full Cartesian tensors: slow, plain, and independent of the compact form.

Features of rank l are [A, C, 3, ..., 3]. Contractions are einsums over Cartesian indices, the
symmetric traceless projection subtracts traces explicitly (spec §1.1), neighbours are found by
trying every image, messages are gathered and added edge by edge. Only the parameters and the list
of product paths (which fixes what each weight multiplies) are taken from the compact model.
"""

# ruff: noqa: E741  (l is the rank of a tensor)
from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from tace.model import Tace
from tace.paths import Levels


def disjoint_pairs(slots: Sequence[int], k: int) -> Iterator[tuple[tuple[int, int], ...]]:
    """Every set of k disjoint unordered pairs of the slots."""
    if k == 0:
        yield ()
        return
    for n, first in enumerate(slots):
        for second in slots[n + 1 :]:
            rest = [s for s in slots[n + 1 :] if s != second]
            for others in disjoint_pairs(rest, k - 1):
                yield ((first, second), *others)


def subtract_traces(tensor: np.ndarray) -> np.ndarray:
    """P(T) of a rank-n tensor [3, ..., 3]: symmetrise, then a_k Σ_pairs δ…δ tr^k, spec §1.1."""
    n = tensor.ndim
    permuted = [np.transpose(tensor, order) for order in itertools.permutations(range(n))]
    symmetric = sum(permuted) / len(permuted)
    result = np.zeros_like(symmetric)
    for k in range(n // 2 + 1):
        a_k = (-1.0) ** k / math.prod(2 * n - 1 - 2 * q for q in range(k))
        for pairs in disjoint_pairs(range(n), k):
            free = [s for s in range(n) if s not in {s for pair in pairs for s in pair}]
            left = list(range(n))
            for a, b in pairs:
                left[b] = left[a]
            operands: list[object] = [symmetric, left]
            for a, b in pairs:
                operands += [np.eye(3), [n + a, n + b]]
            out = list(range(n))
            for a, b in pairs:
                out[a], out[b] = n + a, n + b
            assert len(free) == n - 2 * k
            result = result + a_k * np.einsum(*operands, out)
    return result


@functools.cache
def projector(rank: int) -> np.ndarray:
    """[3^l, 3^l]: `subtract_traces` applied to every unit tensor."""
    size = 3**rank
    columns = [subtract_traces(e.reshape((3,) * rank)).reshape(-1) for e in np.eye(size)]
    return np.stack(columns, axis=1)


def project(tensor: Tensor, rank: int) -> Tensor:
    """P over the last `rank` axes."""
    matrix = torch.from_numpy(projector(rank))
    flat = tensor.reshape(*tensor.shape[: tensor.ndim - rank], 3**rank)
    return (flat @ matrix.T).reshape(tensor.shape)


def contract(x: Tensor, y: Tensor, ranks: tuple[int, int, int], norm: str = "cartesian") -> Tensor:
    """[N, C, 3^l1] and [N, C, 3^l2] → P(X ·_k Y)·normaliser, [N, C, 3^l3]; C of y may be 1."""
    return project(contract_whole(x, y, ranks, norm), ranks[2])


def contract_whole(x: Tensor, y: Tensor, ranks: tuple[int, int, int], norm: str) -> Tensor:
    """X ·_k Y·normaliser without the projection: last k slots of X, first k of Y."""
    l1, l2, l3 = ranks
    k = (l1 + l2 - l3) // 2
    letters = "abdefghijklm"
    left, right = letters[:l1], letters[l1 - k : l1 - k + l2]
    out = letters[: l1 - k] + letters[l1 : l1 - k + l2]
    return torch.einsum(f"nc{left},nc{right}->nc{out}", x, y) * _normaliser(ranks, norm)


@functools.cache
def part_projector(path: tuple[int, ...]) -> np.ndarray:
    """D_p [3^n, 3^n] of a parentage path (0, j_1, …, j_n): j_m is the angular momentum of the first m slots.

    The projector onto j of the first m slots is a Lagrange polynomial of their Casimir operator J², whose
    eigenvalues are j(j+1) with j = 0 … m; those of different m commute.
    """
    rank = len(path) - 1
    turns = np.zeros((3, 3, 3))
    for a in range(3):
        turns[a, (a + 1) % 3, (a + 2) % 3], turns[a, (a + 2) % 3, (a + 1) % 3] = -1.0, 1.0
    result = np.eye(3**rank)
    for m, j in enumerate(path[1:], start=1):
        casimir = np.zeros((3**rank, 3**rank))
        for turn in turns:
            total = sum(
                np.kron(np.kron(np.eye(3**slot), turn), np.eye(3 ** (rank - slot - 1))) for slot in range(m)
            )
            casimir -= total @ total
        for other in set(range(m + 1)) - {j}:
            result = result @ (casimir - other * (other + 1) * np.eye(3**rank))
            result = result / (j * (j + 1) - other * (other + 1))
    return result


@functools.cache
def _normaliser(ranks: tuple[int, int, int], norm: str) -> float:
    l1, l2, l3 = ranks
    k = (l1 + l2 - l3) // 2
    if norm == "cartesian":
        return 3.0 ** (-k / 2)
    left = projector(l1).reshape(3 ** (l1 - k), 3**k, -1)
    right = projector(l2).reshape(3**k, 3 ** (l2 - k), -1)
    product = np.einsum("akm,kbn->abmn", left, right).reshape(3**l3, -1)
    return math.sqrt((2 * l3 + 1) / float(((projector(l3) @ product) ** 2).sum()))


def angular(unit: Tensor, l_max: int) -> list[Tensor]:
    """E_l = (2l−1)!!/l!·P(r̂ ⊗ … ⊗ r̂) of directed edges: [E, 1, 3, ..., 3]."""
    attributes = []
    for l in range(l_max + 1):
        power = torch.ones_like(unit[:, 0])
        for _ in range(l):
            power = power.unsqueeze(-1) * unit.reshape(-1, *[1] * (power.ndim - 1), 3)
        factor = math.prod(range(1, 2 * l, 2)) / math.factorial(l)
        attributes.append(factor * project(power, l).unsqueeze(1))
    return attributes


def directed_edges(atoms: Atoms, cutoff: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Receiver i, sender j, shift S of every |x_i − x_j − S·h| < cutoff, by trying every image."""
    cell, x = np.asarray(atoms.cell), atoms.positions
    diameter = np.linalg.norm(np.ptp(x, axis=0)) + cutoff
    inverse = np.linalg.pinv(cell * atoms.pbc[:, None])
    reach = [
        math.ceil(diameter * np.linalg.norm(inverse[:, a])) if atoms.pbc[a] else 0 for a in range(3)
    ]
    i, j, s = [], [], []
    for shift in itertools.product(*(range(-n, n + 1) for n in reach)):
        vectors = x[:, None] - x[None] - np.array(shift) @ cell
        near = np.linalg.norm(vectors, axis=2) < cutoff
        if not any(shift):
            np.fill_diagonal(near, False)
        a, b = np.nonzero(near)
        i.append(a)
        j.append(b)
        s.append(np.tile(shift, (len(a), 1)))
    return np.concatenate(i), np.concatenate(j), np.concatenate(s)


def _channels(x: Tensor, weight: Tensor) -> Tensor:
    return torch.einsum("an...,nc->ac...", x, weight)


def _by_element(x: Tensor, weight: Tensor, species: Tensor) -> Tensor:
    return torch.einsum("an...,anc->ac...", x, weight[species])


def _radial(model: Tace, r: Tensor) -> tuple[Tensor, Tensor]:
    """Enveloped Bessel functions [E, n] and the envelope [E], from the printed formulas."""
    c, p = model.config.cutoff_A, model.config.envelope_p
    u = r / c
    f = (
        1
        - (p + 1) * (p + 2) / 2 * u**p
        + p * (p + 2) * u ** (p + 1)
        - p * (p + 1) / 2 * u ** (p + 2)
    )
    n = torch.arange(1, model.config.n_radial + 1, dtype=r.dtype)
    return math.sqrt(2 / c) * torch.sin(n * math.pi * r[:, None] / c) / r[:, None] * f[:, None], f


def _mlp(network: torch.nn.Module, x: Tensor) -> Tensor:
    weights = [layer.weight for layer in network.layers]
    for w in weights[:-1]:
        x = x @ w
        x = x * torch.sigmoid(x)
    return x @ weights[-1]


def triads(l_in: int, l_max: int) -> list[tuple[int, int, int]]:
    """(l1, l2, l3) of the interaction in the order of its weights: by l3, then l1, then l2."""
    return [
        (l1, l2, l3)
        for l3 in range(l_max + 1)
        for l1 in range(l_in + 1)
        for l2 in range(l_max + 1)
        if abs(l1 - l2) <= l3 <= l1 + l2 and (l1 + l2 + l3) % 2 == 0
    ]


def _atomic_basis(
    model: Tace, part: torch.nn.Module, h: Sequence[Tensor], edges: tuple, radial: Tensor
) -> list[Tensor]:
    receiver, sender, attributes = edges
    config, (atoms, c) = model.config, h[0].shape[:2]
    paths = [p for p in triads(len(h) - 1, config.l_max) if p[2] < len(part.down)]
    weights = _mlp(part.radial, radial).reshape(len(receiver), len(paths), c)
    sent = [_channels(x, up.weight) for x, up in zip(h, part.up, strict=True)]
    collected: list[list[Tensor]] = [[] for _ in part.down]
    for n, (l1, l2, l3) in enumerate(paths):
        message = contract(sent[l1][sender], attributes[l2], (l1, l2, l3), config.coupling_norm)
        message = message * weights[:, n].reshape(-1, c, *[1] * l3)
        total = torch.zeros(atoms, c, *[3] * l3, dtype=message.dtype)
        collected[l3].append(total.index_add(0, receiver, message))
    return [
        _channels(torch.cat(parts, 1), down.weight) / config.avg_neighbors
        for parts, down in zip(collected, part.down, strict=True)
    ]


def _whole_atomic_basis(
    model: Tace, part: torch.nn.Module, h: Sequence[Tensor], edges: tuple, radial: Tensor
) -> list[Tensor]:
    """A with its lower weights, [A, C, 3, ..., 3]; every irreducible part has its own radial weight."""
    receiver, sender, attributes = edges
    config, (atoms, c) = model.config, h[0].shape[:2]
    weights = _mlp(part.radial, radial).reshape(len(receiver), len(part.parts), c)
    sent = [_channels(x, up.weight) for x, up in zip(h, part.up, strict=True)]
    collected: list[list[Tensor]] = [[] for _ in attributes]
    for n, (l1, l2, l3) in enumerate(triads(len(h) - 1, config.l_max)):
        x = sent[l1][sender] * part.scale[n].reshape(c, *[1] * l1)
        collected[l3].append(
            contract_whole(x, attributes[l2], (l1, l2, l3), config.coupling_norm)
        )
    result = []
    for l, (messages, down) in enumerate(zip(collected, part.down, strict=True)):
        message = _channels(torch.cat(messages, 1), down.weight)
        flat = message.reshape(*message.shape[:2], 3**l)
        total, rest = torch.zeros_like(flat), flat
        for n, (rank, path, _) in enumerate(part.parts):
            if rank == l:
                own = flat @ torch.from_numpy(part_projector(path)).T
                total, rest = total + weights[:, n, :, None] * own, rest - own
        # the model leaves out parts that no contraction reaches; what is left of a message must be round-off
        assert rest.detach().abs().sum() <= 1e-12 * (1.0 + flat.detach().abs().sum())
        summed = torch.zeros(atoms, c, 3**l, dtype=flat.dtype).index_add(0, receiver, total)
        result.append(summed.reshape(atoms, c, *[3] * l) / config.avg_neighbors)
    return result


def _gated(kind: str, gate: torch.nn.Module, a: Sequence[Tensor]) -> list[Tensor]:
    atoms, c = a[0].shape
    if kind == "norm":
        out = [a[0] * torch.sigmoid(a[0])]
        for l in range(1, len(a)):
            square = (a[l].reshape(atoms, c, -1) ** 2).sum(2)
            factor = torch.sigmoid(gate.slope[l - 1] * square + gate.offset[l - 1])
            out.append(a[l] * factor.reshape(atoms, c, *[1] * l))
        return [_channels(x, linear.weight) for x, linear in zip(out, gate.out, strict=True)]
    factors = (a[0] @ gate.gates.weight).reshape(atoms, len(a), c)
    factors = factors * torch.sigmoid(factors)
    return [
        _channels(x, linear.weight) * factors[:, l].reshape(atoms, c, *[1] * l)
        for l, (x, linear) in enumerate(zip(a, gate.out, strict=True))
    ]


def _products(levels: Levels, a: Sequence[Tensor], ranks: Sequence[int], norm: str) -> list[Tensor]:
    """Every order of the product basis by output rank, [A, n_l·C, 3, ..., 3]: STF, whatever A is."""
    values, collected = list(a), {l: [project(a[l], l)] for l in ranks}
    for level in levels[1:]:
        values = [contract(values[p.parent], a[p.l2], (p.l1, p.l2, p.l3), norm) for p in level]
        for l in ranks:
            collected[l] += [v for v, p in zip(values, level, strict=True) if p.l3 == l]
    return [torch.cat(collected[l], 1) for l in ranks]


def _mixed(model: Tace, x: Tensor, weight: Tensor, species: Tensor) -> Tensor:
    if model.config.mixing == "coupled":
        return _by_element(x, weight, species)
    _, paths, c = weight.shape
    by_path = x.reshape(len(x), paths, c, *x.shape[2:])
    return torch.einsum("apc...,apc->ac...", by_path, weight[species])


def layer_features(
    model: Tace, t: int, h: Sequence[Tensor], edges: tuple, around: tuple[Tensor, Tensor]
) -> list[Tensor]:
    """Features of layer t by rank of its outputs, [A, C, 3, ..., 3]; `around`: species, radial basis."""
    config, layer, (species, radial) = model.config, model.layers[t], around
    basis = _whole_atomic_basis if config.weights == "all" else _atomic_basis
    a = basis(model, layer.interaction, h, edges, radial)
    if config.gate != "none":
        a = _gated(config.gate, layer.gate, a)
    products = _products(layer.product.levels, a, layer.outputs, config.coupling_norm)
    new = [
        _channels(_mixed(model, x, mix.weight, species), out.weight)
        for x, mix, out in zip(products, layer.mix, layer.out, strict=True)
    ]
    if t > 0 or config.n_layers == 1:  # no self-connection in the first of several layers
        new = [
            x + _by_element(project(a[l], l), connect.weight, species)
            for l, x, connect in zip(layer.outputs, new, layer.self_connection, strict=True)
        ]
    if config.residual and t > 0:
        new = [x + h[l] if l < len(h) else x for l, x in zip(layer.outputs, new, strict=True)]
    return new


def energy(model: Tace, atoms: Atoms, positions: Tensor, cell: Tensor, fidelity: int) -> Tensor:
    """Energy of one structure, eV."""
    config = model.config
    species = torch.tensor([config.elements.index(z) for z in atoms.numbers])
    i, j, s = (torch.from_numpy(e) for e in directed_edges(atoms, config.cutoff_A))
    vectors = positions[i] - positions[j] - s.to(cell.dtype) @ cell
    r = torch.linalg.norm(vectors, dim=1)
    radial, f = _radial(model, r)
    edges = (i, j, angular(vectors / r[:, None], config.l_max))

    h0 = model.embedding[species]
    if len(config.fidelities) > 1:
        u = model.fidelity_table[fidelity] @ model.fidelity_mix.weight
        h0 = h0 + u * torch.sigmoid(u)
    h, readout = [h0], torch.zeros(len(atoms), dtype=positions.dtype)
    for t, linear in enumerate(model.energy_readout.linear):
        h = layer_features(model, t, h, edges, (species, radial))
        readout = readout + (h[0] @ linear.weight)[:, 0]
    hidden = h[0] @ model.energy_readout.hidden.weight
    readout = readout + (hidden * torch.sigmoid(hidden) @ model.energy_readout.hidden_out[0].weight)[:, 0]
    density = torch.zeros(len(atoms), dtype=positions.dtype).index_add(0, i, f)
    e0, scale, shift = (t[fidelity, species] for t in (model.e0_eV, model.scale_eV, model.shift_eV))
    return (e0 + scale * readout + shift * (1 - torch.exp(-4.0 * density))).sum()


def evaluate(
    model: Tace, atoms: Atoms, fidelity: int = 0
) -> tuple[float, np.ndarray, np.ndarray | None]:
    """Energy (eV), forces [A,3] (eV/Å), and stress [3,3] (eV/Å³) if all three axes are periodic."""
    x = torch.tensor(atoms.positions, requires_grad=True)
    strain = torch.zeros(3, 3, dtype=x.dtype, requires_grad=True)
    deform = torch.eye(3, dtype=x.dtype) + 0.5 * (strain + strain.T)
    value = energy(model, atoms, x @ deform, torch.tensor(np.array(atoms.cell)) @ deform, fidelity)
    if not value.requires_grad:
        zero = np.zeros((3, 3))
        return float(value), np.zeros_like(atoms.positions), zero if atoms.pbc.all() else None
    slope, virial = torch.autograd.grad(value, [x, strain], materialize_grads=True)
    stress = virial.numpy() / abs(np.linalg.det(atoms.cell)) if atoms.pbc.all() else None
    return float(value.detach()), -slope.numpy(), stress
