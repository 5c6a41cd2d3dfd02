"""JPEGs written again with restart markers, without loss: the same coefficients, coded anew (ITU T.81).

The coded data of a baseline JPEG is read to Huffman symbols; DC differences begin anew at each marker, and all is
written with tables made for these symbols. Quantization tables and the markers that decoders read (JFIF, Adobe) stay;
other metadata (EXIF, ICC profiles, comments) goes. What is not baseline, or damaged, is not written again.
"""

import heapq
import math
from collections.abc import Mapping
from functools import cache
from types import ModuleType
from typing import NamedTuple

import numpy as np

from rsbdali.data.intervals import Segment, frame_grid, segments
from rsbdali.pipelines.host.compiled import kernels

KEPT = frozenset({0xE0, 0xEE, 0xDB})  # JFIF, Adobe, quantization tables
FRAMES = frozenset({0xC0, 0xC1})
MOST_BLOCKS = 10  # of an MCU (T.81, B.2.3)
TABLES, CODE_BITS = 8, 16
RESERVED = 256  # a symbol for the code of ones alone, which no table may use


class _Scan(NamedTuple):
    """A file taken apart.

    Attributes:
        kept: segments before the frame header, frame header and scan header, as bytes.
        block_U3: int64, component, DC and AC table of each block of an MCU.
        columns, lines: MCUs of the image.
        mcu_width: pixels.
        interval: MCUs between restart markers, 0 for none.
        lookup_TV: uint16 (8, 65536), see `huffman_numba.read_symbols`.
        start: of the coded data.
    """

    kept: bytes
    frame: bytes
    scan: bytes
    block_U3: np.ndarray
    columns: int
    lines: int
    mcu_width: int
    interval: int
    lookup_TV: np.ndarray
    start: int


@cache
def find_loops() -> ModuleType:
    """The compiled loops.

    Raises:
        NumbaError: it does not work here.
    """
    return kernels("rsbdali.tools.huffman_numba")


def add_restart_markers(encoded: bytes, interval_width: int) -> bytes | None:
    """A JPEG of the same pixels with restart markers.

    Args:
        encoded: the image.
        interval_width: pixels that an interval should be wide; the nearest that divides the line of MCUs is taken.

    Returns:
        None for what is no baseline JPEG of one scan, or is damaged.

    Raises:
        NumbaError: it does not work here.
    """
    scan = _take_apart(encoded)
    if scan is None:
        return None
    loops = find_loops()
    interval = choose_interval(scan.columns, interval_width / scan.mcu_width)
    data_B = np.frombuffer(bytearray(encoded + b"\xff\xd9"), np.uint8)
    mcus = scan.columns * scan.lines
    symbol_S = np.empty(8 * (len(encoded) - scan.start) + mcus + 64 * MOST_BLOCKS, np.uint32)
    count_TV = np.zeros((TABLES, 256), np.int64)
    count = loops.read_symbols(
        data_B, scan.start, scan.lookup_TV, scan.block_U3, mcus, scan.interval, interval, symbol_S, count_TV
    )
    if not count:
        return None
    lengths = {t: code_lengths(count_TV[t]) for t in range(TABLES) if count_TV[t].any()}
    code_TV = np.zeros((TABLES, 256), np.uint32)
    for t, length_V in lengths.items():
        for symbol, code, length in _codes(length_V):
            code_TV[t, symbol] = length << 16 | code
    bits = int((count_TV * ((code_TV >> 16) + (np.arange(256) & 15))).sum())
    out_B = np.empty(bits // 4 + 4 * (mcus // interval) + 16, np.uint8)  # twice the bytes: zeros behind ones
    out_B = out_B[: loops.write_symbols(symbol_S[:count], code_TV, out_B)]
    tables = b"".join(_table_segment(t, length_V) for t, length_V in lengths.items())
    restart = _segment(0xDD, interval.to_bytes(2, "big"))
    return b"".join((b"\xff\xd8", scan.kept, scan.frame, tables, restart, scan.scan, out_B.tobytes()))


def choose_interval(columns: int, wanted: float) -> int:
    """MCUs of an interval: what divides the line and is nearest to what is wanted, by their ratio.

    Where that would be less than half of it (a line of 47 MCUs divides by 1 only), markers would cost too much: the
    next larger one is taken, the whole line at last.
    """
    divisors = [d for d in range(1, columns + 1) if columns % d == 0 and (2 * d >= wanted or d == columns)]
    return min(divisors, key=lambda d: abs(math.log(d / wanted)))


def _take_apart(encoded: bytes) -> _Scan | None:
    if not encoded.startswith(b"\xff\xd8"):
        return None
    kept, tables, interval, frame = b"", dict[int, Mapping[int, tuple[int, int]]](), 0, None
    for segment in segments(encoded):
        if segment.marker in KEPT:
            kept += _segment(segment.marker, segment.body)
        elif segment.marker in FRAMES:
            if frame is not None:
                return None
            frame = segment
        elif segment.marker == 0xC4:
            tables |= _read_tables(segment.body)
        elif segment.marker == 0xDD:
            interval = int.from_bytes(segment.body, "big")
        elif segment.marker == 0xDA:
            return None if frame is None else _join(kept, tables, interval, frame, segment)
    return None


def _join(
    kept: bytes, tables: dict[int, Mapping[int, tuple[int, int]]], interval: int, frame: Segment, scan: Segment
) -> _Scan | None:
    grid, components = frame_grid(frame.body), frame.body[5]
    if grid is None or scan.body[0] != components or scan.body[-3:] != b"\x00\x3f\x00":
        return None
    rows: list[tuple[int, int, int]] = []
    for c in range(components):
        name, factors = frame.body[6 + 3 * c : 8 + 3 * c]
        if scan.body[1 + 2 * c] != name:
            return None
        dc, ac = divmod(scan.body[2 + 2 * c], 16)
        if dc not in tables or 4 + ac not in tables:
            return None
        rows += [(c, dc, 4 + ac)] * (factors >> 4) * (factors & 15)
    if len(rows) > MOST_BLOCKS:
        return None
    lookup_TV = np.zeros((TABLES, 1 << CODE_BITS), np.uint16)
    for t, table in tables.items():
        for symbol, (code, length) in table.items():
            first = code << (CODE_BITS - length)
            lookup_TV[t, first : first + (1 << (CODE_BITS - length))] = length << 8 | symbol
    return _Scan(
        kept,
        _segment(frame.marker, frame.body),
        _segment(scan.marker, scan.body),
        np.array(rows, np.int64),
        grid.columns,
        grid.lines,
        8 * grid.sampling[0],
        interval,
        lookup_TV,
        scan.end,
    )


def _read_tables(body: bytes) -> dict[int, Mapping[int, tuple[int, int]]]:
    """Huffman tables of a segment, by number: code and length of each symbol; impossible ones are left out."""
    found: dict[int, Mapping[int, tuple[int, int]]] = {}
    at = 0
    while at + 17 <= len(body):
        kind, number = divmod(body[at], 16)
        counts = body[at + 1 : at + 17]
        symbols = body[at + 17 : at + 17 + sum(counts)]
        at += 17 + sum(counts)
        lengths = [length for length, n in enumerate(counts, 1) for _ in range(n)]
        code_of = _canonical(lengths)
        fits = all(code < 1 << length for code, length in zip(code_of, lengths, strict=True))
        if kind < 2 and number < 4 and len(symbols) == len(lengths) and fits:
            found[4 * kind + number] = dict(zip(symbols, zip(code_of, lengths, strict=True), strict=True))
    return found


def _canonical(lengths: list[int]) -> list[int]:
    """Codes of ascending lengths (T.81, C.2)."""
    codes, code, last = [], 0, 0
    for length in lengths:
        code <<= length - last
        codes.append(code)
        code, last = code + 1, length
    return codes


def code_lengths(count_V: np.ndarray) -> dict[int, int]:
    """Lengths of an optimal prefix code of at most 16 bits, without the code of ones alone (T.81, K.2).

    Args:
        count_V: how often each symbol is there.

    Returns:
        The length of each symbol that is there, shortest first.
    """
    depth = {int(v): 0 for v in np.flatnonzero(count_V)} | {RESERVED: 0}
    # the reserved symbol is the rarest, so that it gets a longest code, of which the last is the one of ones
    heap: list[tuple[float, int, list[int]]] = [(float(count_V[v]), v, [v]) for v in depth if v != RESERVED]
    heapq.heapify(heap)
    heapq.heappush(heap, (0.5, RESERVED, [RESERVED]))
    while len(heap) > 1:
        (count, _, some), (more, tie, others) = heapq.heappop(heap), heapq.heappop(heap)
        for v in some + others:
            depth[v] += 1
        heapq.heappush(heap, (count + more, tie, some + others))
    in_order = sorted((v for v in depth if v != RESERVED), key=lambda v: (depth[v], v))
    return dict(zip(in_order, _at_most_16(list(depth.values())), strict=False))


def _at_most_16(depths: list[int]) -> list[int]:
    """Code lengths in ascending order, those above 16 made shorter (T.81, figure K.3); the reserved one is the last."""
    counts = [0] * (max(*depths, CODE_BITS) + 1)
    for depth in depths:
        counts[depth] += 1
    for length in range(len(counts) - 1, CODE_BITS, -1):
        while counts[length]:
            shorter = length - 2
            while not counts[shorter]:
                shorter -= 1
            counts[length] -= 2
            counts[length - 1] += 1
            counts[shorter + 1] += 2
            counts[shorter] -= 1
    return [length for length, count in enumerate(counts) for _ in range(count)]


def _codes(lengths: dict[int, int]) -> list[tuple[int, int, int]]:
    """Symbol, code and length."""
    return list(zip(lengths, _canonical(list(lengths.values())), lengths.values(), strict=True))


def _table_segment(table: int, lengths: dict[int, int]) -> bytes:
    counts = np.bincount(list(lengths.values()), minlength=CODE_BITS + 1)[1:]
    return _segment(0xC4, bytes([table // 4 << 4 | table % 4, *counts.tolist(), *lengths]))


def _segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + (2 + len(body)).to_bytes(2, "big") + body
