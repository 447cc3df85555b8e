"""Triton kernels over the entries (row, latent) of a stack, and over the rows of its parameters.

Rows are those of all members one after the other (row k B + b), and so are latents (k F + f). Numbers are summed in
fp32 in an order that follows from shapes and entries alone, without atomics: a result does not change from run to run.
Written for CUDA; what the tests run is Triton's interpreter, and `make gpu-check` the same on a device.
"""

import triton
import triton.language as tl


@triton.jit
def _read(m, offset, row, member, latents, start, BLOCK: tl.constexpr):
    """Return some latents of a row, m there, and integers in the order of m + offset: NaN highest, 0 for 0."""
    columns = start + tl.arange(0, BLOCK)
    inside = columns < latents
    values = tl.load(m + row * latents + columns, mask=inside, other=0.0).to(tl.float32)
    z = values + tl.load(offset + member * latents + columns, mask=inside, other=0.0)
    bits = z.to(tl.int32, bitcast=True)
    keys = tl.where(z != z, 2147483647, bits ^ ((bits >> 31) & 2147483647))
    return columns, values, tl.where(inside, keys, -2147483648)


@triton.jit
def count_kernel(m, offset, counts, rows, latents, BLOCK: tl.constexpr):
    """counts[r + 1] = in how many places of row r m + offset > 0 or NaN; counts[0] = 0."""
    row = tl.program_id(0).to(tl.int64)
    total = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, latents, BLOCK):
        _, _, keys = _read(m, offset, row, row // rows, latents, start, BLOCK)
        total += (keys > 0).to(tl.int32)
    tl.store(counts + row + 1, tl.sum(total, 0))
    tl.store(counts, 0, mask=row == 0)


@triton.jit
def largest_kernel(m, offset, ks, cuts, ties, rows, latents, BLOCK: tl.constexpr, ONE: tl.constexpr):
    """cuts[r] = key of the k-th largest of row r, bit by bit; ties[r] = how many with this key belong to the k.

    ONE: a row fits a block, and stays in registers.
    """
    row = tl.program_id(0).to(tl.int64)
    member = row // rows
    k = tl.load(ks + member)
    cut = tl.full((), -2147483648, tl.int32)
    bit = tl.full((), 0, tl.int32)
    above = tl.full((), 0, tl.int32)
    _, _, keys = _read(m, offset, row, member, latents, 0, BLOCK)
    for turn in range(33):  # the sign, 31 bits, and last what lies above the cut
        candidate = tl.where(turn == 0, 0, tl.where(turn == 32, cut + 1, cut | bit))
        above = tl.sum((keys >= candidate).to(tl.int32), 0)
        if not ONE:
            for start in range(BLOCK, latents, BLOCK):
                _, _, later = _read(m, offset, row, member, latents, start, BLOCK)
                above += tl.sum((later >= candidate).to(tl.int32), 0)
        cut = tl.where((turn < 32) & (above >= k), candidate, cut)
        bit = tl.where(turn == 0, 1073741824, bit >> 1)
    above = tl.where(cut == 2147483647, 0, above)  # nothing lies above NaN
    tl.store(cuts + row, cut)
    tl.store(ties + row, k - above)


@triton.jit
def write_kernel(
    m, offset, starts, cuts, ties, columns_out, rows_out, m_out, rows, latents, SELECT: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the entries of row r from starts[r] on: where m + offset > 0 or NaN, or (SELECT) the row's largest."""
    row = tl.program_id(0).to(tl.int64)
    member = row // rows
    place = tl.load(starts + row)
    cut = tl.full((), 0, tl.int32)
    left = tl.full((), 0, tl.int32)
    if SELECT:
        cut = tl.load(cuts + row)
        left = tl.load(ties + row)
    for start in range(0, latents, BLOCK):
        columns, values, keys = _read(m, offset, row, member, latents, start, BLOCK)
        found = keys > cut
        if SELECT:
            equal = (keys == cut).to(tl.int32)
            found = found | ((equal == 1) & (tl.cumsum(equal, 0) <= left))
            left -= tl.sum(equal, 0)
        ones = found.to(tl.int32)
        at = place + tl.cumsum(ones, 0) - 1
        tl.store(columns_out + at, (member * latents + columns).to(tl.int32), mask=found)
        tl.store(rows_out + at, tl.zeros((BLOCK,), tl.int32) + row.to(tl.int32), mask=found)
        tl.store(m_out + at, values, mask=found)
        place += tl.sum(ones, 0)


@triton.jit
def decode_kernel(
    W, b_dec, target, starts, columns, f, e_out, squares, dots, rows, targets, D, TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """e = f W + b_dec - target of a row, ||e||^2, and <e, W's row> of each of its entries, from e in fp32."""
    row = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(starts + row), tl.load(starts + row + 1)
    d, i = tl.arange(0, BLOCK), tl.arange(0, TILE)
    inside = d < D
    e = tl.zeros((BLOCK,), tl.float32)
    for at in range(begin, end, TILE):
        real = at + i < end
        column = tl.load(columns + at + i, mask=real, other=0).to(tl.int64)
        places = W + column[:, None] * D + d[None, :]
        directions = tl.load(places, mask=real[:, None] & inside[None, :], other=0.0).to(tl.float32)
        e += tl.sum(tl.load(f + at + i, mask=real, other=0.0)[:, None] * directions, 0)
    e += tl.load(b_dec + (row // rows) * D + d, mask=inside, other=0.0)
    e -= tl.load(target + (row % targets) * D + d, mask=inside, other=0.0)
    tl.store(e_out + row * D + d, e.to(e_out.dtype.element_ty), mask=inside)
    tl.store(squares + row, tl.sum(e * e, 0))
    for at in range(begin, end, TILE):
        real = at + i < end
        column = tl.load(columns + at + i, mask=real, other=0).to(tl.int64)
        places = W + column[:, None] * D + d[None, :]
        directions = tl.load(places, mask=real[:, None] & inside[None, :], other=0.0).to(tl.float32)
        tl.store(dots + at + i, tl.sum(directions * e[None, :], 1), mask=real)


@triton.jit
def _weighted_rows(G, rows, order, weights, begin, end, D, TILE: tl.constexpr, BLOCK: tl.constexpr):
    """Return the sum of weight times row of G over the entries begin to end, in the order by column."""
    d, i = tl.arange(0, BLOCK), tl.arange(0, TILE)
    total = tl.zeros((BLOCK,), tl.float32)
    for at in range(begin, end, TILE):
        real = at + i < end
        row = tl.load(rows + at + i, mask=real, other=0).to(tl.int64)
        weight = tl.load(weights + tl.load(order + at + i, mask=real, other=0), mask=real, other=0.0)
        mask = real[:, None] & (d < D)[None, :]
        total += tl.sum(weight[:, None] * tl.load(G + row[:, None] * D + d[None, :], mask=mask, other=0.0), 0)
    return total


@triton.jit
def parts_kernel(
    G, starts, columns, rows, order, weights, parts, entries, D, SPAN: tl.constexpr, TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums over SPAN entries in the order by column: of the first latent among them, and of one that begins later.

    Only those of latents with more than SPAN entries are made; such a latent is the first or the last of a span.
    """
    part = tl.program_id(0)
    begin = part * SPAN
    end = tl.minimum(begin + SPAN, entries)
    d = tl.arange(0, BLOCK)
    for side in tl.static_range(2):
        column = tl.load(columns + tl.load(order + (begin if side == 0 else end - 1)))
        low, high = tl.load(starts + column), tl.load(starts + column + 1)
        wanted = (high - low > SPAN) & ((low > begin) if side else (low <= begin))
        first = tl.maximum(low, begin)
        stop = tl.where(wanted, tl.minimum(high, end), first)
        total = _weighted_rows(G, rows, order, weights, first, stop, D, TILE, BLOCK)
        tl.store(parts + (part * 2 + side).to(tl.int64) * D + d, total, mask=d < tl.where(wanted, D, 0))


@triton.jit
def accumulate_kernel(
    G, starts, rows, order, weights, parts, out, D, SPAN: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr
):
    """out[c] = sum of weight times row of G over the entries of latent c; of its parts where they are many."""
    column = tl.program_id(0).to(tl.int64)
    low, high = tl.load(starts + column), tl.load(starts + column + 1)
    long = high - low > SPAN
    d = tl.arange(0, BLOCK)
    inside = d < D
    total = _weighted_rows(G, rows, order, weights, low, tl.where(long, low, high), D, TILE, BLOCK)
    first = low // SPAN
    for part in range(first, tl.where(long, (high - 1) // SPAN + 1, first)):
        side = tl.where(part * SPAN < low, 1, 0)
        total += tl.load(parts + (part * 2 + side).to(tl.int64) * D + d, mask=inside, other=0.0)
    tl.store(out + column * D + d, total, mask=inside)


@triton.jit
def segments_kernel(
    values, starts, order, out, segments, ORDERED: tl.constexpr, COUNT: tl.constexpr, TILE: tl.constexpr
):
    """out[s] = sum of values[starts[s]] to values[starts[s + 1] - 1]; ORDERED: in the order by column."""
    s = tl.program_id(0) * COUNT + tl.arange(0, COUNT)
    inside = s < segments
    low = tl.load(starts + s, mask=inside, other=0)
    size = tl.load(starts + s + 1, mask=inside, other=0) - low
    total = tl.zeros((COUNT,), tl.float32)
    for done in range(0, tl.max(size, 0), TILE):
        i = done + tl.arange(0, TILE)
        real = i[None, :] < size[:, None]
        places = low[:, None] + i[None, :]
        if ORDERED:
            places = tl.load(order + places, mask=real, other=0)
        total += tl.sum(tl.load(values + places, mask=real, other=0.0), 1)
    tl.store(out + s, total, mask=inside)


@triton.jit
def project_kernel(grad, directions, D, BLOCK: tl.constexpr):
    """Take off a row of the gradient what is along its direction."""
    place = tl.program_id(0).to(tl.int64) * D + tl.arange(0, BLOCK)
    inside = tl.arange(0, BLOCK) < D
    g = tl.load(grad + place, mask=inside, other=0.0)
    direction = tl.load(directions + place, mask=inside, other=0.0)
    tl.store(grad + place, g - tl.sum(g * direction, 0) * direction, mask=inside)


@triton.jit
def unit_kernel(directions, D, BLOCK: tl.constexpr):
    """Set a row to norm 1."""
    place = tl.program_id(0).to(tl.int64) * D + tl.arange(0, BLOCK)
    inside = tl.arange(0, BLOCK) < D
    direction = tl.load(directions + place, mask=inside, other=0.0)
    norm = tl.sqrt(tl.sum(direction * direction, 0))
    tl.store(directions + place, direction / tl.maximum(norm, 1e-12), mask=inside)


@triton.jit
def adam_kernel(
    values, grad, mean, square, factors, size, length, beta1, beta2, epsilon, UNIT: tl.constexpr, BLOCK: tl.constexpr
):
    """Adam on `length` of a member's `size` numbers, with the member's row of factors; UNIT: these end with norm 1.

    The factors are rate / (1 - beta1^t), (1 - beta2^t)^(-1/2), what the gradient is multiplied by, and whether the
    member is trained at all.
    """
    member = tl.program_id(1).to(tl.int64)
    i = tl.arange(0, BLOCK)
    within = tl.program_id(0).to(tl.int64) * length + i
    rate, root = tl.load(factors + member * 4), tl.load(factors + member * 4 + 1)
    shrink, trained = tl.load(factors + member * 4 + 2), tl.load(factors + member * 4 + 3)
    mask = (i < length) & (within < tl.where(trained > 0, size, 0))
    place = member * size + within
    g = tl.load(grad + place, mask=mask, other=0.0) * shrink
    m = beta1 * tl.load(mean + place, mask=mask, other=0.0) + (1 - beta1) * g
    v = beta2 * tl.load(square + place, mask=mask, other=0.0) + (1 - beta2) * g * g
    w = tl.load(values + place, mask=mask, other=0.0)
    w -= rate * m / (tl.sqrt(v) * root + epsilon)
    if UNIT:
        w /= tl.maximum(tl.sqrt(tl.sum(tl.where(mask, w * w, 0.0), 0)), 1e-12)
    tl.store(mean + place, m, mask=mask)
    tl.store(square + place, v, mask=mask)
    tl.store(values + place, w, mask=mask)
