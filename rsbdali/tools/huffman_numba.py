"""The coded data of a baseline JPEG, read to symbols and written again, by compiled loops (ITU T.81, annex F).

Symbols are uint32: extra bits << 11 | table << 8 | symbol, or RESTART. Tables: 0 to 3 for DC, 4 to 7 for AC.
Shapes: T tables, V values of 16 bits or of a symbol, U blocks of an MCU, S symbols.
"""

from typing import Any

import numpy as np

from rsbdali.pipelines.host.compiled import inner, kernel

RESTART = np.uint32(0xFFFFFFFF)
PLACE, BUFFER, BITS, BEYOND = 0, 1, 2, 3  # of a bit reader's state: next byte, bits read, how many, how many too many


@inner("i8(u1[::1], i8[::1])")
def _peek(data_B: np.ndarray, state: np.ndarray) -> int:
    """The next 16 bits; zeros behind a marker, counted in BEYOND. At least 31 are in the buffer then."""
    while state[BITS] <= 40:
        byte: Any = np.int64(data_B[state[PLACE]])
        if byte == 0xFF and data_B[state[PLACE] + 1] != 0:
            byte = 0
            state[BEYOND] += 8
        else:
            state[PLACE] += 2 if byte == 0xFF else 1
        state[BUFFER] = (state[BUFFER] << 8 | byte) & 0xFFFFFFFFFFFFFF
        state[BITS] += 8
    return (state[BUFFER] >> (state[BITS] - 16)) & 0xFFFF


@inner("i8(i8[::1], i8)")
def _take(state: np.ndarray, count: int) -> int:
    """`count` bits that `_peek` has read."""
    state[BITS] -= count
    return (state[BUFFER] >> state[BITS]) & ((1 << count) - 1)


@inner("i8(u1[::1], i8[::1])")
def _end_interval(data_B: np.ndarray, state: np.ndarray) -> Any:
    """Pass the marker behind an interval and return it; 0 where the bits do not end there."""
    _peek(data_B, state)
    left = state[BITS] - state[BEYOND]
    at = state[PLACE]
    if not 0 <= left < 8 or data_B[at] != 0xFF:
        return 0
    while data_B[at] == 0xFF and at + 1 < len(data_B):
        at += 1
    state[PLACE], state[BUFFER], state[BITS], state[BEYOND] = at + 1, 0, 0, 0
    return np.int64(data_B[at])


@kernel("i8(u1[::1], i8, u2[:, ::1], i8[:, ::1], i8, i8, i8, u4[::1], i8[:, ::1])")
def read_symbols(
    data_B: np.ndarray,
    start: int,
    lookup_TV: np.ndarray,
    block_U3: np.ndarray,
    mcus: int,
    old_interval: int,
    interval: int,
    symbol_S: np.ndarray,
    count_TV: np.ndarray,
) -> int:
    """Read all symbols of a scan, with DC differences for another restart interval.

    Args:
        data_B: the file and an end-of-image marker behind it.
        start: of the scan.
        lookup_TV: length << 8 | symbol of the code that 16 bits begin with; 0 for none.
        block_U3: component, DC table and AC table of each block of an MCU.
        mcus: of the image.
        old_interval: MCUs between restart markers, 0 for none.
        interval: the new one.
        symbol_S: receives the symbols.
        count_TV: receives how often each is there.

    Returns:
        Their number; 0 where the scan is damaged.
    """
    state, old_C, new_C = np.zeros(4, np.int64), np.zeros(4, np.int64), np.zeros(4, np.int64)
    state[PLACE] = start
    count = 0
    for mcu in range(mcus):
        if old_interval and mcu and mcu % old_interval == 0:
            if _end_interval(data_B, state) != 0xD0 + (mcu // old_interval - 1) % 8:
                return 0
            old_C[:] = 0
        if mcu and mcu % interval == 0:
            symbol_S[count] = RESTART
            count += 1
            new_C[:] = 0
        for u in range(len(block_U3)):
            c = block_U3[u, 0]
            code = np.int64(lookup_TV[block_U3[u, 1], _peek(data_B, state)])
            size: Any = code & 255
            if code == 0 or size > 15:
                return 0
            _take(state, code >> 8)
            extra = _take(state, size)
            old_C[c] += extra if size == 0 or extra >> (size - 1) else extra - (1 << size) + 1
            difference = old_C[c] - new_C[c]
            new_C[c] = old_C[c]
            size = 0
            while abs(difference) >> size:
                size += 1
            if size > 11:
                return 0
            extra = difference if difference >= 0 else difference + (1 << size) - 1
            symbol_S[count] = extra << 11 | block_U3[u, 1] << 8 | size
            count_TV[block_U3[u, 1], size] += 1
            count += 1
            k: Any = 1
            while k < 64:
                code = np.int64(lookup_TV[block_U3[u, 2], _peek(data_B, state)])
                symbol = code & 255
                if code == 0:
                    return 0
                _take(state, code >> 8)
                size = symbol & 15
                k = 64 if size == 0 and symbol < 0xF0 else k + (symbol >> 4) + 1
                if k > 64:
                    return 0
                symbol_S[count] = _take(state, size) << 11 | block_U3[u, 2] << 8 | symbol
                count_TV[block_U3[u, 2], symbol] += 1
                count += 1
        if state[BITS] < state[BEYOND]:
            return 0
    return count if _end_interval(data_B, state) == 0xD9 else 0


@inner("i8(i8[::1], u1[::1], i8)")
def _flush(state: np.ndarray, out_B: np.ndarray, at: int) -> int:
    """Write whole bytes, a zero behind each 0xFF; returns where the next one goes."""
    while state[BITS] >= 8:
        byte = _take(state, 8)
        out_B[at] = byte
        at += 1
        if byte == 0xFF:
            out_B[at] = 0
            at += 1
    return at


@inner("i8(i8[::1], u1[::1], i8, i8)")
def _end(state: np.ndarray, out_B: np.ndarray, at: int, marker: int) -> int:
    """Fill the last byte with ones, write a marker."""
    padding = -state[BITS] & 7
    state[BUFFER] = state[BUFFER] << padding | ((1 << padding) - 1)
    state[BITS] += padding
    at = _flush(state, out_B, at)
    out_B[at], out_B[at + 1] = 0xFF, marker
    return at + 2


@kernel("i8(u4[::1], u4[:, ::1], u1[::1])")
def write_symbols(symbol_S: np.ndarray, code_TV: np.ndarray, out_B: np.ndarray) -> int:
    """Write symbols and an end-of-image marker.

    Args:
        symbol_S: from `read_symbols`.
        code_TV: length << 16 | code of each symbol.
        out_B: receives the scan.

    Returns:
        Bytes written.
    """
    state = np.zeros(4, np.int64)
    at, number = 0, 0
    for s in range(len(symbol_S)):
        if symbol_S[s] == RESTART:
            at = _end(state, out_B, at, 0xD0 + number % 8)
            number += 1
            continue
        symbol = np.int64(symbol_S[s])
        code = np.int64(code_TV[symbol >> 8 & 7, symbol & 255])
        size, extra = code >> 16, symbol & 15
        state[BUFFER] = ((state[BUFFER] & 0xFF) << size | (code & 0xFFFF)) << extra | symbol >> 11
        state[BITS] += size + extra
        at = _flush(state, out_B, at)
    return _end(state, out_B, at, 0xD9)
