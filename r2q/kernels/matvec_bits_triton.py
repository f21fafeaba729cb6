# mypy: disable-error-code="assignment"
"""One vector times a packed weight by counting bits: what is stored goes to the matrix units as it is.

The 512 inputs that a warp takes at a time become integers of 16 bits,

    x_k ~ step sum_j 2^j x_kj,      x_kj = 0 or 1,      step = max |x| / 32767,

bit 15 counting negatively. Then the sum of x over the inputs where a bit of the code is set is ``step sum_j 2^j n_j``,
and ``n_j``, the number of those with ``x_kj = 1``, is what the matrix units of compute capability 8 and 9 count for 16
rows, 8 columns and 128 inputs at once: two instructions a plane take the 16 bits of x as columns. With the sum of x
over all inputs, counted in the same way, these give the sums over signs of :mod:`r2q.kernels.matvec`; all are exact.

An input moves by at most 2^-16 of the largest of its 512: by less than 3.5e-4 of their norm, whatever they are, and by
3e-5 where they are alike. The rounding of a result to float16 is 4.9e-4.

A thread is (warp, eight, lane), as the matrix units have it: it holds words ``2 lane`` and ``2 lane + 1`` of a block of
eight in rows ``eight`` and ``eight + 8``, the same inputs of column ``eight``, and gets the counts of its two rows in
columns ``2 lane`` and ``2 lane + 1``. Tensors have one number a thread, in the order of threads, so that Triton has no
choice of a layout. A warp takes 32 words of a row, four blocks; a thread makes the bits of the inputs of one word.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from r2q.kernels.planes import AFFINE, FLOAT_ZERO, WORD, Planes
from r2q.kernels.planes_triton import INTERPRETED, eight, permute, signs, span_words, tables

BLOCK = 8  # words whose bits one instruction takes of a row
_AFFINE, _FLOAT_ZERO = tl.constexpr(AFFINE), tl.constexpr(FLOAT_ZERO)


@dataclass(frozen=True)
class Strip:
    """How a product is shared: ``rows`` of the weight (16 or 32) at a time, their inputs over ``warps`` of a program.

    At most ``resident`` programs a multiprocessor take strips in turn; 0: every strip has a program of its own.
    """

    rows: int = 16
    warps: int = 8
    resident: int = 0


def pick_strip(weight: Planes) -> Strip:
    """What is fastest on an H100; see benchmarks/NOTES.md."""
    rows, words = weight.codes.shape
    warps = triton.next_power_of_2(triton.cdiv(words, 32))
    if warps > 8:  # x anew at every turn
        return Strip(32 if rows >= 8192 else 16, 8)
    return Strip(16, warps, (24 if span_words(weight, BLOCK) == BLOCK else 16) // warps)  # as registers allow


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Of a GPU; one in the interpreter."""
    return 1 if INTERPRETED else torch.cuda.get_device_properties(device).multi_processor_count


def counts_bits(weight: Planes, device: torch.device) -> bool:
    """Whether this is the kernel for one vector: later matrix units count no bits, small groups take longer here."""
    return span_words(weight, BLOCK) >= 4 and torch.cuda.get_device_capability(device)[0] in (8, 9)


@triton.jit
def _count(a0, a1, b, ASM: tl.constexpr):  # type: ignore[no-untyped-def]
    """Bits set in words of a row and of a column, summed over the lanes: two columns of row a0, two of row a1."""
    if ASM:
        c0, c1, c2, c3 = tl.inline_asm_elementwise(
            "{.reg .b32 z; mov.b32 z, 0; mma.sync.aligned.m16n8k128.row.col.s32.b1.b1.s32.and.popc "
            "{$0, $1, $2, $3}, {$4, $5}, {$6}, {z, z, z, z};}",
            "=r,=r,=r,=r,r,r,r", [a0, a1, b], dtype=(tl.int32, tl.int32, tl.int32, tl.int32), is_pure=True, pack=1,
        )  # fmt: skip
    else:
        WARPS: tl.constexpr = b.shape[0] // 32
        n = tl.reshape(tl.join(a0, a1), [WARPS, 8, 1, 4, 2]) & tl.reshape(b, [WARPS, 1, 8, 4, 1])
        n -= (n >> 1) & 0x55555555
        n = (n & 0x33333333) + ((n >> 2) & 0x33333333)
        n = (n + (n >> 4)) & 0x0F0F0F0F
        n = tl.sum((n & 255) + ((n >> 8) & 255) + ((n >> 16) & 255) + (n >> 24), axis=3)
        low, high = tl.split(tl.reshape(n, [b.shape[0], 2, 2]))  # [thread, column]
        c0, c1 = tl.split(low)
        c2, c3 = tl.split(high)
    return c0, c1, c2, c3


@triton.jit
def _merge(u, v, MASK: tl.constexpr, ASM: tl.constexpr):  # type: ignore[no-untyped-def]
    """The bits of ``u`` where ``MASK`` is set, else those of ``v``."""
    if ASM:
        out = tl.inline_asm_elementwise(
            "lop3.b32 $0, $1, $2, $3, 0xCA;", "=r,r,r,r", [MASK, u, v], dtype=tl.int32, is_pure=True, pack=1
        )
    else:
        out = (u & MASK) | (v & ~MASK)
    return out


@triton.jit
def _swap(u, v, MASK: tl.constexpr, SHIFT: tl.constexpr, ASM: tl.constexpr):  # type: ignore[no-untyped-def]
    """``u`` and ``v`` with the fields of u outside ``MASK`` and those of v inside it, ``SHIFT`` lower, exchanged."""
    return _merge(u, v << SHIFT, MASK, ASM), _merge(u >> SHIFT, v, MASK, ASM)


@triton.jit
def _planes(u, v, ASM: tl.constexpr):  # type: ignore[no-untyped-def]
    """The even and the odd bits of two words."""
    return _swap(u, v, 0x55555555, 1, ASM)


@triton.jit
def _transpose(p, MASK: tl.constexpr, SHIFT: tl.constexpr, ASM: tl.constexpr):  # type: ignore[no-untyped-def]
    """One of three steps after which word c holds in place i what stood in place c of word i.

    Places are of two bits, eight in each half of a word. The step exchanges fields of ``SHIFT`` bits between the first
    and the second four words, and puts these in turns.
    """
    a0, a1 = _swap(p[0], p[4], MASK, SHIFT, ASM)
    b0, b1 = _swap(p[1], p[5], MASK, SHIFT, ASM)
    c0, c1 = _swap(p[2], p[6], MASK, SHIFT, ASM)
    d0, d1 = _swap(p[3], p[7], MASK, SHIFT, ASM)
    return a0, a1, b0, b1, c0, c1, d0, d1


@triton.jit
def _bits(x, word, INSIDE: tl.constexpr, WORDS: tl.constexpr, ASM: tl.constexpr):  # type: ignore[no-untyped-def]
    """Columns of x for the four blocks of a warp, the even bits and the odd of each, and the step."""
    THREADS: tl.constexpr = word.shape[0]
    k = 16 * word[:, None] + tl.arange(0, 8)[None, :]
    known = INSIDE | (word < WORDS)[:, None]
    x0 = tl.load(x + k, mask=known, other=0.0).to(tl.float32)
    x1 = tl.load(x + k + 8, mask=known, other=0.0).to(tl.float32)
    size = tl.maximum(x0.to(tl.int32, bitcast=True) & 0x7FFFFFFF, x1.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
    size = tl.max(tl.reshape(tl.max(size, axis=1), [THREADS // 32, 32]), axis=1)  # as integers: NaN is the largest
    largest = tl.maximum(size, 0x0D800000).to(tl.float32, bitcast=True)  # 2^-100: its inverse is finite
    largest = tl.reshape(tl.broadcast_to(largest[:, None], [THREADS // 32, 32]), [THREADS])
    unit = (32767.0 / largest)[:, None]
    v0 = (x0 * unit + 12582912.0).to(tl.int32, bitcast=True)  # 1.5 2^23: the integer is in the lower bits
    v1 = (x1 * unit + 12582912.0).to(tl.int32, bitcast=True)
    p = eight(permute(v0, v1, 0x5410, ASM))
    p = _transpose(_transpose(_transpose(p, 0x00FF00FF, 8, ASM), 0x0F0F0F0F, 4, ASM), 0x33333333, 2, ASM)
    p = tl.join(tl.join(tl.join(p[0], p[4]), tl.join(p[2], p[6])), tl.join(tl.join(p[1], p[5]), tl.join(p[3], p[7])))
    p = tl.reshape(p, [THREADS // 32, 4, 4, 2, 8])  # [warp, block, lane, word, column]: bits 2 column, 2 column + 1
    p = eight(tl.reshape(tl.permute(p, [0, 4, 2, 1, 3]), [THREADS, 8]))
    blocks = _planes(p[0], p[1], ASM), _planes(p[2], p[3], ASM), _planes(p[4], p[5], ASM), _planes(p[6], p[7], ASM)
    return blocks, largest / 32767.0


@triton.jit
def _sums(column, a0, a1, top, ASM: tl.constexpr):  # type: ignore[no-untyped-def]
    """A lane's part of the sums of x over the bits of two rows: of four bits of x, as if they were the lowest."""
    e0, e1, e2, e3 = _count(a0, a1, column[0], ASM)
    o0, o1, o2, o3 = _count(a0, a1, column[1], ASM)
    s0, s1 = e0 + 2 * o0 + 4 * e1 + top * o1, e2 + 2 * o2 + 4 * e3 + top * o3
    return s0.to(tl.float32), s1.to(tl.float32)


@triton.jit
def _add(y, stored, place, s, s0, s1, FORM: tl.constexpr):  # type: ignore[no-untyped-def]
    """``y`` and a group's part of a result, of the sums of x over all inputs and over the set bits of both planes."""
    z, h0, h1 = signs(stored[0], stored[1], place, FORM)
    y = y + h0 * (2.0 * s0 - s) + h1 * (2.0 * s1 - s)
    if FORM == _AFFINE or FORM == _FLOAT_ZERO:  # noqa: SIM109 (Triton knows no `in`); the others are symmetric
        y += z * s
    return y


@triton.jit
def _group(word, OFFSET: tl.constexpr, SEGMENT: tl.constexpr, GROUP: tl.constexpr):  # type: ignore[no-untyped-def]
    """The group, within its row, of the segment ``OFFSET`` words after ``word``, a multiple of 32."""
    segment = word // 32 * (32 // SEGMENT) + OFFSET // SEGMENT
    return segment if GROUP == SEGMENT else segment // (GROUP // SEGMENT)


@triton.jit
def _read(  # type: ignore[no-untyped-def]
    codes, first, second, row, word, row_stride,
    INSIDE: tl.constexpr, WORDS: tl.constexpr, SEGMENT: tl.constexpr, GROUP: tl.constexpr, FORM: tl.constexpr,
):  # fmt: skip
    """What a thread needs of a row: of each block two words and the tables of its segments."""
    pair = (word + 2 * (tl.arange(0, row.shape[0]) % 4))[:, None] + tl.arange(0, 2)[None, :]
    start = (row * row_stride).to(tl.int64)  # so that addresses of a row differ by a constant
    out = ()
    for i in tl.static_range(4):
        place = codes + row[:, None] * WORDS + (pair + 8 * i)
        held = (tl.load(place) if INSIDE else tl.load(place, mask=pair + 8 * i < WORDS, other=0),)
        for p in tl.static_range(8 // SEGMENT):
            known = INSIDE | (word + 8 * i + p * SEGMENT < WORDS)
            held += (tables(first, second, start + _group(word, 8 * i + p * SEGMENT, SEGMENT, GROUP), known, FORM),)
        out += (held,)
    return out


@triton.jit
def _rows(  # type: ignore[no-untyped-def]
    codes, first, second, row, rows, word, row_stride,
    ROWS: tl.constexpr, INSIDE: tl.constexpr, WORDS: tl.constexpr, SEGMENT: tl.constexpr, GROUP: tl.constexpr,
    FORM: tl.constexpr,
):  # fmt: skip
    """:func:`_read` of every eighth row from ``row`` on; the last one stands for those that are not there."""
    out = ()
    for n in tl.static_range(ROWS // 8):
        one = tl.minimum(row + 8 * n, rows - 1)
        out += (_read(codes, first, second, one, word, row_stride, INSIDE, WORDS, SEGMENT, GROUP, FORM),)
    return out


@triton.jit
def _zeros(N: tl.constexpr, THREADS: tl.constexpr):  # type: ignore[no-untyped-def]
    out = ()
    for _ in tl.static_range(N):
        out += (tl.zeros([THREADS], dtype=tl.float32),)
    return out


@triton.jit
def _strip(  # type: ignore[no-untyped-def]
    x, columns, step, held, codes, first, second, out, start, rows, row_stride,
    IN: tl.constexpr, ROWS: tl.constexpr, THREADS: tl.constexpr, MORE: tl.constexpr, SEGMENT: tl.constexpr,
    GROUP: tl.constexpr, FORM: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """The results of ``ROWS`` rows, and what is held of the first inputs of the program's next ones, if ``MORE``."""
    WORDS: tl.constexpr = IN // 16
    TURNS: tl.constexpr = (WORDS + THREADS - 1) // THREADS
    INSIDE: tl.constexpr = WORDS % THREADS == 0
    thread = tl.arange(0, THREADS)
    lane, row, word = thread % 4, start + thread // 4 % 8, thread // 32 * 32
    top, unit = tl.where(lane == 3, -8, 8), (1 << (4 * lane)).to(tl.float32)  # the lowest bit of a lane's two columns
    total = _zeros(ROWS // 8, THREADS)
    for turn in range(TURNS):
        if TURNS > 1:
            columns, step = _bits(x, thread + turn * THREADS, INSIDE, WORDS, ASM)
        y = _zeros(ROWS // 8, THREADS)
        for i in tl.static_range(4):
            even, odd = columns[i]
            for p in tl.static_range(8 // SEGMENT):
                own = lane // (SEGMENT // 2) == p  # whether a lane's words lie in the segment
                column = tl.where(own, even, 0), tl.where(own, odd, 0)
                ones = tl.full([THREADS], -1, tl.int32)
                s, _ = _sums(column, ones, ones, top, ASM)
                group = _group(word, 8 * i + p * SEGMENT, SEGMENT, GROUP)
                before = y
                y = ()
                for n in tl.static_range(0, ROWS // 8, 2):
                    low, high = held[n][i], held[n + 1][i]
                    even0, odd0 = _planes(*tl.split(low[0]), ASM)
                    even1, odd1 = _planes(*tl.split(high[0]), ASM)
                    s0, s1 = _sums(column, even0, even1, top, ASM)
                    t0, t1 = _sums(column, odd0, odd1, top, ASM)
                    place = (row + 8 * n) * row_stride + group
                    y0 = _add(before[n], low[1 + p], place, s, s0, t0, FORM)
                    y1 = _add(before[n + 1], high[1 + p], place + 8 * row_stride, s, s1, t1, FORM)
                    y += (y0, y1)
        before = total
        total = ()
        for n in tl.static_range(ROWS // 8):
            total += (before[n] + step * unit * y[n],)
        if TURNS > 1:
            word += THREADS
            held = _rows(codes, first, second, row, rows, word, row_stride, ROWS, False, WORDS, SEGMENT, GROUP, FORM)
    if MORE:
        ahead = ROWS * tl.num_programs(0)
        if start + ahead < rows:  # on its way while this is summed up
            held = _rows(
                codes, first, second, row + ahead, rows, thread // 32 * 32, row_stride,
                ROWS, INSIDE, WORDS, SEGMENT, GROUP, FORM,
            )  # fmt: skip
    found = tl.join(total[0], total[1])
    if ROWS == 32:
        found = tl.join(tl.join(total[0], total[2]), tl.join(total[1], total[3]))
    found = tl.sum(tl.sum(tl.reshape(found, [THREADS // 32, 8, 4, ROWS // 8]), axis=2), axis=0)
    place = start + tl.arange(0, 8)[:, None] + 8 * tl.arange(0, ROWS // 8)[None, :]
    tl.store(out + place, found.to(out.dtype.element_ty), mask=place < rows)
    return held


@triton.jit
def _matvec_bits(  # type: ignore[no-untyped-def]
    x, codes, first, second, out, rows, row_stride,
    IN: tl.constexpr, ROWS: tl.constexpr, WARPS: tl.constexpr, MORE: tl.constexpr, SEGMENT: tl.constexpr,
    GROUP: tl.constexpr, FORM: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    WORDS: tl.constexpr = IN // 16
    THREADS: tl.constexpr = 32 * WARPS
    INSIDE: tl.constexpr = WORDS % THREADS == 0
    thread, start = tl.arange(0, THREADS), tl.program_id(0) * ROWS
    if ASM:  # starts while the kernel before ends; all but x is asked for before the wait
        tl.extra.cuda.gdc_launch_dependents()
    held = _rows(
        codes, first, second, start + thread // 4 % 8, rows, thread // 32 * 32, row_stride,
        ROWS, INSIDE, WORDS, SEGMENT, GROUP, FORM,
    )  # fmt: skip
    if ASM:
        tl.extra.cuda.gdc_wait()
    columns, step = _bits(x, thread, INSIDE, WORDS, ASM)  # dropped where a strip takes more than one turn
    if MORE:
        while start < rows:
            held = _strip(
                x, columns, step, held, codes, first, second, out, start, rows, row_stride,
                IN, ROWS, THREADS, MORE, SEGMENT, GROUP, FORM, ASM,
            )  # fmt: skip
            start += ROWS * tl.num_programs(0)
    else:
        _strip(
            x, columns, step, held, codes, first, second, out, start, rows, row_stride,
            IN, ROWS, THREADS, MORE, SEGMENT, GROUP, FORM, ASM,
        )  # fmt: skip


def matvec_bits(weight: Planes, x: torch.Tensor, strip: Strip | None = None) -> torch.Tensor:
    """See :func:`r2q.kernels.matvec.matvec`; one vector, ``x [1, in]``."""
    rows, words = weight.codes.shape
    x = x if x.stride(-1) == 1 else x.contiguous()
    strip = strip or pick_strip(weight)
    strips = triton.cdiv(rows, strip.rows)
    programs = min(strips, strip.resident * multiprocessors(x.device) or strips)
    out = torch.empty(1, rows, dtype=x.dtype, device=x.device)
    asm = not INTERPRETED
    _matvec_bits[(programs,)](
        x, weight.codes, weight.first, weight.second, out, rows, weight.row_stride,
        IN=words * WORD, ROWS=strip.rows, WARPS=strip.warps, MORE=strips > programs, SEGMENT=span_words(weight, BLOCK),
        GROUP=weight.group_words, FORM=weight.form, ASM=asm,
        num_warps=strip.warps, num_stages=1, **({"launch_pdl": True} if asm else {}),
    )  # fmt: skip
    return out
