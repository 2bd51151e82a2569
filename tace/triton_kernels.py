"""The edge sum of an interaction layer in Triton; imported by `edge_triton` alone, where there is Triton.

    T(Y, W, s, g) = Σ G_p[m1,m2,m3] Y[e,m2] W[pair(e),p,c] s[sender(e),l1,m1,c] g[receiver(e),l3,m3,p,c]

over edges e, paths p = (l1, l2, l3), components and channels c. It is linear in each argument: `receive`
gives ∂T/∂g, `send` ∂T/∂s, `exchange` ∂T/∂Y and ∂T/∂W, and derivatives of these are the same functions of
other arguments. Every sum belongs to one program, which goes through the edges of one atom or of one pair:
nothing is added atomically, so that results do not depend on the order in which programs run.

A launch does the paths of one rank l1 whose l3 have tiles of one size. Components are padded to powers of
two, by couplings of zero. Of every path `table` says [path, first component of Y, how many, first row of g,
rows from one m3 to the next, how many m3], where a row of g is one of C channels.
"""

from __future__ import annotations

import triton
import triton.language as tl

COLUMNS = tl.constexpr(6)  # of a table


@triton.jit
def _components(to, row, step, count, c, channels, M: tl.constexpr):
    """Addresses [M, BLOCK] of some rows of C channels, and which of them are there."""
    m = tl.arange(0, M)
    places = to + (row + m * step)[:, None] * channels + c[None, :]
    return places, (m < count)[:, None] & (c < channels)[None, :]


@triton.jit
def _coupling(
    coupling, n, skip, count,
    ROWS: tl.constexpr, M1: tl.constexpr, M2: tl.constexpr, M3: tl.constexpr,
):
    """G [ROWS, M1, M3] of a path, in whose rows the components of Y begin after `skip`."""
    m2 = tl.arange(0, ROWS) - skip
    rows = (n * M2 + m2)[:, None, None] * M1 + tl.arange(0, M1)[None, :, None]
    there = ((m2 >= 0) & (m2 < count))[:, None, None]
    return tl.load(coupling + rows * M3 + tl.arange(0, M3)[None, None, :], mask=there, other=0.0)


@triton.jit
def _operator(g, y, at, count, M2: tl.constexpr):
    """Q [M1, M3] of an edge: its attribute in the coupling, shared by all channels."""
    m2 = tl.arange(0, M2)
    values = tl.load(y + at + m2, mask=m2 < count, other=0.0)
    return tl.sum(g * values[:, None, None], axis=0)


@triton.jit
def receive(
    y, w, s, out, coupling, table, sender, pair, sign,
    slots, channels, y_row, w_row, s_row, g_row,
    L1: tl.constexpr, M1: tl.constexpr, M2: tl.constexpr, M3: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program: an atom, a path and a block of channels of the sums over neighbours."""
    atom, n = tl.program_id(0).to(tl.int64), tl.program_id(1)
    path = tl.load(table + n * COLUMNS)
    y_at, y_count = tl.load(table + n * COLUMNS + 1), tl.load(table + n * COLUMNS + 2)
    g_at, g_step = tl.load(table + n * COLUMNS + 3), tl.load(table + n * COLUMNS + 4)
    c = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    g = _coupling(coupling, n, 0, y_count, M2, M1, M2, M3)
    total = tl.zeros((M1, M3, BLOCK), dtype=out.dtype.element_ty)
    for k in range(slots):
        slot = atom * slots + k
        if tl.load(sign + slot) != 0.0:
            q = _operator(g, y, slot * y_row + y_at, y_count, M2)
            row = tl.load(pair + slot) * w_row + path * channels
            weight = tl.load(w + row + c, mask=c < channels, other=0.0)
            first = tl.load(sender + slot) * s_row + L1 * L1
            place, there = _components(s, first, 1, 2 * L1 + 1, c, channels, M1)
            x = tl.load(place, mask=there, other=0.0) * weight[None, :]
            total += q[:, :, None] * x[:, None, :]
    to, there = _components(
        out, atom * g_row + g_at, g_step, tl.load(table + n * COLUMNS + 5), c, channels, M3
    )
    tl.store(to, tl.sum(total, axis=0), mask=there)


@triton.jit
def send(
    y, w, g, out, coupling, table, reverse, pair, sign,
    slots, channels, y_row, w_row, s_row, g_row, paths,
    L1: tl.constexpr, M1: tl.constexpr, M2: tl.constexpr, M3: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program: an atom and a block of channels; what the edges that it sends give is added to `out`."""
    atom = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((M1, M3, BLOCK), dtype=out.dtype.element_ty)
    for n in range(paths):
        path = tl.load(table + n * COLUMNS)
        y_at, y_count = tl.load(table + n * COLUMNS + 1), tl.load(table + n * COLUMNS + 2)
        g_at, g_step = tl.load(table + n * COLUMNS + 3), tl.load(table + n * COLUMNS + 4)
        g_count = tl.load(table + n * COLUMNS + 5)
        tensor = _coupling(coupling, n, 0, y_count, M2, M1, M2, M3)
        for k in range(slots):
            own = atom * slots + k
            if tl.load(sign + own) != 0.0:
                slot = tl.load(reverse + own)
                q = _operator(tensor, y, slot * y_row + y_at, y_count, M2)
                row = tl.load(pair + slot) * w_row + path * channels
                weight = tl.load(w + row + c, mask=c < channels, other=0.0)
                first = slot // slots * g_row + g_at
                place, there = _components(g, first, g_step, g_count, c, channels, M3)
                x = tl.load(place, mask=there, other=0.0) * weight[None, :]
                total += q[:, :, None] * x[None, :, :]
    to, there = _components(out, atom * s_row + L1 * L1, 1, 2 * L1 + 1, c, channels, M1)
    tl.store(to, tl.load(to, mask=there, other=0.0) + tl.sum(total, axis=1), mask=there)


@triton.jit
def _product(
    s, g, s_at, g_at, g_step, g_count, c, channels,
    L1: tl.constexpr, M1: tl.constexpr, M3: tl.constexpr,
):  # fmt: skip
    """s·g of an edge [M1, M3, BLOCK]."""
    left, there = _components(s, s_at + L1 * L1, 1, 2 * L1 + 1, c, channels, M1)
    right, also = _components(g, g_at, g_step, g_count, c, channels, M3)
    x = tl.load(left, mask=there, other=0.0)[:, None, :]
    return x * tl.load(right, mask=also, other=0.0)[None, :, :]


@triton.jit
def _add_to_row(to, at, values, width, WIDTH: tl.constexpr):
    place = to + at + tl.arange(0, WIDTH)
    there = tl.arange(0, WIDTH) < width
    tl.store(place, tl.load(place, mask=there, other=0.0) + values, mask=there)


@triton.jit
def exchange(
    y, w, s, g, to_y, to_w, coupling, table, sender, pair,
    pair_slots, pairs, slots, channels,
    y_row, w_row, s_row, g_row, paths,
    L1: tl.constexpr, M1: tl.constexpr, M2: tl.constexpr, M3: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK: tl.constexpr, NEED_Y: tl.constexpr, NEED_W: tl.constexpr,
):  # fmt: skip
    """A program: a pair, and with it both of its edges. Slopes of Y are added, those of W written.

    What is not asked for is neither read nor written. A dummy pair is the pair of no slot.
    """
    one = tl.program_id(0).to(tl.int64)
    slot0, slot1 = tl.load(pair_slots + one), tl.load(pair_slots + pairs + one)
    if tl.load(pair + slot0) == one:
        s0, s1 = tl.load(sender + slot0) * s_row, tl.load(sender + slot1) * s_row
        y0 = tl.zeros((WIDTH,), dtype=s.dtype.element_ty)
        y1 = tl.zeros((WIDTH,), dtype=s.dtype.element_ty)
        for n in range(paths):
            path = tl.load(table + n * COLUMNS)
            y_at, y_count = tl.load(table + n * COLUMNS + 1), tl.load(table + n * COLUMNS + 2)
            g_at, g_step = tl.load(table + n * COLUMNS + 3), tl.load(table + n * COLUMNS + 4)
            g_count = tl.load(table + n * COLUMNS + 5)
            g0, g1 = slot0 // slots * g_row + g_at, slot1 // slots * g_row + g_at
            row = one * w_row + path * channels
            h0 = tl.zeros((M1, M3), dtype=s.dtype.element_ty)
            h1 = tl.zeros((M1, M3), dtype=s.dtype.element_ty)
            if NEED_W:
                tensor = _coupling(coupling, n, 0, y_count, M2, M1, M2, M3)
                q0 = _operator(tensor, y, slot0 * y_row + y_at, y_count, M2)
                q1 = _operator(tensor, y, slot1 * y_row + y_at, y_count, M2)
            for start in range(0, channels, BLOCK):
                c = start + tl.arange(0, BLOCK)
                x0 = _product(s, g, s0, g0, g_step, g_count, c, channels, L1, M1, M3)
                x1 = _product(s, g, s1, g1, g_step, g_count, c, channels, L1, M1, M3)
                if NEED_W:
                    both = q0[:, :, None] * x0 + q1[:, :, None] * x1
                    tl.store(to_w + row + c, tl.sum(tl.sum(both, axis=0), axis=0), mask=c < channels)
                if NEED_Y:
                    weight = tl.load(w + row + c, mask=c < channels, other=0.0)[None, None, :]
                    h0 += tl.sum(x0 * weight, axis=2)
                    h1 += tl.sum(x1 * weight, axis=2)
            if NEED_Y:
                whole = _coupling(coupling, n, y_at, y_count, WIDTH, M1, M2, M3)
                y0 += tl.sum(tl.sum(whole * h0[None, :, :], axis=2), axis=1)
                y1 += tl.sum(tl.sum(whole * h1[None, :, :], axis=2), axis=1)
        if NEED_Y:
            _add_to_row(to_y, slot0 * y_row, y0, y_row, WIDTH)
            _add_to_row(to_y, slot1 * y_row, y1, y_row, WIDTH)
