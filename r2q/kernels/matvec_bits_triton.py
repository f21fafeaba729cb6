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
choice of a layout. A warp takes 32 words of a row, four blocks, and makes the bits of their inputs.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from r2q.kernels.planes import AFFINE, FLOAT_ZERO, WORD, Planes
from r2q.kernels.planes_triton import INTERPRETED, eight, permute, signs, span_words, starts_early, tables

BLOCK = 8  # words whose bits one instruction takes of a row
_AFFINE, _FLOAT_ZERO = tl.constexpr(AFFINE), tl.constexpr(FLOAT_ZERO)


@dataclass(frozen=True)
class Strip:
    """How a product is shared: ``rows`` of the weight (16 or 32) at a time, their inputs over ``warps`` of a program.

    Attributes:
        resident: so many programs a multiprocessor take strips in turn, at most; 0: a program a strip.
        registers: of a thread, at most; 0: as the assembler likes.
    """

    rows: int = 16
    warps: int = 8
    resident: int = 0
    registers: int = 0


def pick_strip(weight: Planes, count: int) -> Strip:
    """What is fastest on an H100, of which a GPU has ``count`` multiprocessors; see benchmarks/NOTES.md."""
    rows, words = weight.codes.shape
    warps = triton.next_power_of_2(triton.cdiv(words, 32))
    if warps <= 8:
        return Strip(16, warps, (24 if span_words(weight, BLOCK) == BLOCK else 16) // warps)  # as registers allow
    if triton.cdiv(words, 256) * 256 > 1.5 * words:  # the last turn of eight warps would be half empty
        return Strip(16, 4)
    few = triton.cdiv(rows, 16) <= 2 * count  # two programs a multiprocessor: room to ask for more at a time
    return Strip(16, 8, registers=128 if few else 0)


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
def _larger(u, v, EARLY: tl.constexpr):  # type: ignore[no-untyped-def]
    """The larger ones of two pairs of unsigned integers of 16 bits."""
    if EARLY:  # cards that start early have the instruction, too
        out = tl.inline_asm_elementwise("max.u16x2 $0, $1, $2;", "=r,r,r", [u, v], dtype=tl.int32, is_pure=True, pack=1)
    else:
        out = tl.maximum(u >> 16 & 0xFFFF, v >> 16 & 0xFFFF) << 16 | tl.maximum(u & 0xFFFF, v & 0xFFFF)
    return out


@triton.jit
def _inverse(x, ASM: tl.constexpr):  # type: ignore[no-untyped-def]
    """1 / x, to a digit or two of the last."""
    if ASM:
        out = tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        out = 1 / x
    return out


@triton.jit
def _number(bits, DTYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The numbers (float32) whose 16 bits are the lower ones of ``bits``."""
    if DTYPE == tl.bfloat16:  # noqa: SIM300
        out = (bits << 16).to(tl.float32, bitcast=True)
    else:
        out = bits.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    return out


@triton.jit
def _integers(w, unit, DTYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Both numbers of ``w`` in so many to one, rounded; the lower 16 bits of an int32 each."""
    high = _number(w >> 16 & 0xFFFF, DTYPE)
    low = _number(w, DTYPE) * unit + 12582912.0  # 1.5 2^23: the integer is in the lower bits
    return low.to(tl.int32, bitcast=True), (high * unit + 12582912.0).to(tl.int32, bitcast=True)


@triton.jit
def _bits(  # type: ignore[no-untyped-def]
    x, start,
    THREADS: tl.constexpr, INSIDE: tl.constexpr, WORDS: tl.constexpr, EARLY: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Of the inputs from word ``start`` on, columns for the four blocks of a warp, even bits and odd, and the step.

    A thread takes two pieces of eight inputs. Their integers are four words, of which word c, after two exchanges,
    holds bits 2 c and 2 c + 1 of all eight in the lower half, and in the upper one bits 2 c + 8 and 2 c + 9.
    """
    WARPS: tl.constexpr = THREADS // 32
    DTYPE: tl.constexpr = x.dtype.element_ty
    i = tl.arange(0, 2 * THREADS)  # [half, warp, lane]
    piece = 2 * start + i % THREADS // 32 * 64 + i // THREADS * 32 + i % 32
    place = x.to(tl.pointer_type(tl.int32)) + 4 * piece[:, None] + tl.arange(0, 4)[None, :]
    w = tl.load(place) if INSIDE else tl.load(place, mask=(piece < 2 * WORDS)[:, None], other=0)
    w02, w13 = tl.split(tl.reshape(w, [2 * THREADS, 2, 2]))
    w0, w2 = tl.split(w02)
    w1, w3 = tl.split(w13)
    size01 = _larger(w0 & 0x7FFF7FFF, w1 & 0x7FFF7FFF, EARLY)
    size = _larger(size01, _larger(w2 & 0x7FFF7FFF, w3 & 0x7FFF7FFF, EARLY), EARLY)
    size = tl.max(tl.reshape(tl.maximum(size & 0xFFFF, size >> 16), [2, THREADS]), axis=0)
    size = tl.max(tl.reshape(size, [WARPS, 32]), axis=1)  # as integers: NaN is the largest
    step = _number(size, DTYPE) * (1 / 32767)
    step = tl.maximum(step.to(tl.int32, bitcast=True), 0x06000000)  # 2^-115, which has an inverse
    step = step.to(tl.float32, bitcast=True)
    step = tl.reshape(tl.broadcast_to(step[:, None], [WARPS, 32]), [THREADS])
    unit = tl.reshape(tl.broadcast_to(_inverse(step, ASM)[None, :], [2, THREADS]), [2 * THREADS])
    u0, u1 = _integers(w0, unit, DTYPE)
    u2, u3 = _integers(w1, unit, DTYPE)
    u4, u5 = _integers(w2, unit, DTYPE)
    u6, u7 = _integers(w3, unit, DTYPE)
    a0, a2 = _swap(permute(u0, u4, 0x5140, ASM), permute(u2, u6, 0x5140, ASM), 0x0F0F0F0F, 4, ASM)
    a1, a3 = _swap(permute(u1, u5, 0x5140, ASM), permute(u3, u7, 0x5140, ASM), 0x0F0F0F0F, 4, ASM)
    a0, a1 = _swap(a0, a1, 0x33333333, 2, ASM)
    a2, a3 = _swap(a2, a3, 0x33333333, 2, ASM)
    p = tl.join(tl.join(a0, a2), tl.join(a1, a3))
    p = tl.reshape(p, [2, WARPS, 2, 4, 2, 2, 4])  # [half, warp, block, lane, word, piece, column of four]
    p = tl.reshape(tl.permute(p, [1, 6, 3, 0, 2, 4, 5]), [WARPS, 1, 16, 16])
    p, q = tl.split(tl.reshape(tl.broadcast_to(p, [WARPS, 2, 16, 16]), [THREADS, 8, 2]))
    p, q = eight(p), eight(q)
    side = tl.where(tl.arange(0, THREADS) % 32 < 16, 0x5410, 0x7632)  # the lower columns, the upper
    out = ()
    for n in tl.static_range(0, 8, 2):
        u, v = permute(p[n], q[n], side, ASM), permute(p[n + 1], q[n + 1], side, ASM)
        out += (_planes(u, v, ASM),)
    return out, step


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
def _over_warps(x):  # type: ignore[no-untyped-def]
    """Sums of the rows of ``x [rows, warps]``, each by one thread."""
    if x.shape[1] == 8:
        x = eight(x)
        x = ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7]))
    else:
        x = tl.sum(x, axis=1)
    return x


@triton.jit
def _strip(  # type: ignore[no-untyped-def]
    x, columns, step, held, codes, first, second, out, start, rows, row_stride,
    IN: tl.constexpr, ROWS: tl.constexpr, THREADS: tl.constexpr, MORE: tl.constexpr, SEGMENT: tl.constexpr,
    GROUP: tl.constexpr, FORM: tl.constexpr, EARLY: tl.constexpr, ASM: tl.constexpr,
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
            columns, step = _bits(x, turn * THREADS, THREADS, INSIDE, WORDS, EARLY, ASM)
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
    found = tl.sum(tl.reshape(found, [THREADS // 32, 8, 4, ROWS // 8]), axis=2)
    found = _over_warps(tl.reshape(tl.permute(found, [2, 1, 0]), [ROWS, THREADS // 32]))
    place = start + tl.arange(0, ROWS)
    tl.store(out + place, found.to(out.dtype.element_ty), mask=place < rows)
    return held


@triton.jit
def _matvec_bits(  # type: ignore[no-untyped-def]
    x, codes, first, second, out, rows, row_stride,
    IN: tl.constexpr, ROWS: tl.constexpr, WARPS: tl.constexpr, MORE: tl.constexpr, SEGMENT: tl.constexpr,
    GROUP: tl.constexpr, FORM: tl.constexpr, EARLY: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    WORDS: tl.constexpr = IN // 16
    THREADS: tl.constexpr = 32 * WARPS
    INSIDE: tl.constexpr = WORDS % THREADS == 0
    thread, start = tl.arange(0, THREADS), tl.program_id(0) * ROWS
    held = _rows(
        codes, first, second, start + thread // 4 % 8, rows, thread // 32 * 32, row_stride,
        ROWS, INSIDE, WORDS, SEGMENT, GROUP, FORM,
    )  # fmt: skip
    if EARLY:  # this started while the kernel before ended; all but x is asked for
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()  # not before: x would wait for the codes that the next kernel asks for
    columns, step = _bits(x, 0, THREADS, INSIDE, WORDS, EARLY, ASM)  # dropped where a strip takes more than one turn
    if MORE:
        while start < rows:
            held = _strip(
                x, columns, step, held, codes, first, second, out, start, rows, row_stride,
                IN, ROWS, THREADS, MORE, SEGMENT, GROUP, FORM, EARLY, ASM,
            )  # fmt: skip
            start += ROWS * tl.num_programs(0)
    else:
        _strip(
            x, columns, step, held, codes, first, second, out, start, rows, row_stride,
            IN, ROWS, THREADS, MORE, SEGMENT, GROUP, FORM, EARLY, ASM,
        )  # fmt: skip


def matvec_bits(weight: Planes, x: torch.Tensor, strip: Strip | None = None) -> torch.Tensor:
    """See :func:`r2q.kernels.matvec.matvec`; one vector, ``x [1, in]``, of 16 bits."""
    rows, words = weight.codes.shape
    x = x if x.stride(-1) == 1 and x.data_ptr() % 16 == 0 else x.clone(memory_format=torch.contiguous_format)
    count = multiprocessors(x.device)
    strip = strip or pick_strip(weight, count)
    strips = triton.cdiv(rows, strip.rows)
    programs = min(strips, strip.resident * count or strips)
    out = torch.empty(1, rows, dtype=x.dtype, device=x.device)
    early = starts_early(x.device)
    options = {"launch_pdl": True} if early else {}
    if strip.registers:
        options["maxnreg"] = strip.registers
    _matvec_bits[(programs,)](
        x, weight.codes, weight.first, weight.second, out, rows, weight.row_stride,
        IN=words * WORD, ROWS=strip.rows, WARPS=strip.warps, MORE=strips > programs, SEGMENT=span_words(weight, BLOCK),
        GROUP=weight.group_words, FORM=weight.form, EARLY=early, ASM=not INTERPRETED,
        num_warps=strip.warps, num_stages=1, **options,
    )  # fmt: skip
    return out
