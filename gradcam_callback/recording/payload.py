"""One record as bytes: a header in JSON, and arrays. Whatever cannot be read is refused with a reason.

The layout of the bytes is documented in `docs/recording.md`.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

MAGIC = b"GCR"
VERSION = 1
LARGEST = 1 << 28  # bytes of one record, opened; the compressed bytes do not tell what they grow to
LARGEST_RUN = 1 << 31  # bytes of all records of a run, opened
LARGEST_HEADER = 1 << 24  # bytes; JSON takes many times as much memory once it is read
DEEPEST = 16  # lists and dictionaries inside one another

_START = len(MAGIC) + 1
_LENGTH = struct.Struct("<I")
_TYPES = {name: np.dtype(name).newbyteorder("<") for name in ("uint8", "int32", "int64", "float32", "float64")}


class UnreadableError(ValueError):
    """A record cannot be read; the message says why."""


@dataclass
class Room:
    """How many bytes the records that are opened may still take together."""

    left: int = LARGEST_RUN


def pack(header: Mapping[str, Any], arrays: Mapping[str, Array]) -> bytes:
    """A record as bytes.

    Args:
        header: What JSON can hold. The name "arrays" is taken.
        arrays: By name, of the types that `docs/recording.md` lists.
    """
    listed = [[name, array.dtype.name, list(array.shape)] for name, array in arrays.items()]
    text = json.dumps({**header, "arrays": listed}, ensure_ascii=False, separators=(",", ":"))
    head = text.encode("utf-8", "backslashreplace")
    blocks = [np.ascontiguousarray(array, _TYPES[array.dtype.name]).tobytes() for array in arrays.values()]
    body = b"".join([_LENGTH.pack(len(head)), head, *blocks])
    return MAGIC + bytes([VERSION]) + zlib.compress(body)


def unpack(payload: bytes, room: Room | None = None) -> tuple[dict[str, Any], dict[str, Array]]:
    """The header and the arrays of a record. The arrays can be read only.

    Args:
        payload: As `pack` returned it.
        room: For this record and others; None: for this one alone.

    Raises:
        UnreadableError: It is no record, of a newer schema, cut short, or too large.
    """
    if payload[: len(MAGIC)] != MAGIC or len(payload) < _START:
        raise UnreadableError("it is no record of this package")
    if payload[len(MAGIC)] > VERSION:
        raise UnreadableError(f"it is of schema {payload[len(MAGIC)]}, and this version reads {VERSION}: update it")
    body = _inflated(payload[_START:], room or Room())
    if len(body) < _LENGTH.size:
        raise UnreadableError("it is too short")
    end = _LENGTH.size + _LENGTH.unpack_from(body)[0]
    if end > min(len(body), LARGEST_HEADER):
        raise UnreadableError("its header is cut short, or larger than any header may be")
    try:
        header = json.loads(body[_LENGTH.size : end].decode(), parse_float=_finite, parse_constant=_finite)
        _check_depth(header, DEEPEST)
        return header, _arrays(header.pop("arrays"), memoryview(body)[end:])
    except UnreadableError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise UnreadableError(f"its header is damaged ({type(error).__name__}: {error})") from error


def _check_depth(value: Any, left: int) -> None:
    """Refuse what is nested so deep that it could not be written again, or only by chance."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if inner and not left:
        raise UnreadableError(f"its header is nested more than {DEEPEST} deep")
    for one in inner:
        _check_depth(one, left - 1)


def _finite(text: str) -> float:
    """A number of the header; what JavaScript could not read is refused here."""
    number = float(text)
    if not math.isfinite(number):
        raise UnreadableError(f"its header holds the number {text}")
    return number


def _inflated(compressed: bytes, room: Room) -> bytes:
    decompressor = zlib.decompressobj()
    if room.left <= 0:  # which `decompress` would take for "without a limit"
        raise UnreadableError("the records before it take all the memory that a run may take")
    try:
        body = decompressor.decompress(compressed, min(LARGEST, room.left))
    except zlib.error as error:
        raise UnreadableError(f"it is damaged ({error})") from error
    if not decompressor.eof:
        raise UnreadableError("it is cut short, or larger than any record may be")
    room.left -= len(body)
    return body


def _arrays(listed: Any, block: memoryview) -> dict[str, Array]:
    arrays, start = {}, 0
    for name, type_name, shape in listed:
        dtype = _TYPES[type_name]
        if not all(isinstance(size, int) and size >= 0 for size in shape):
            raise UnreadableError(f"the array {name!r} has the shape {shape}")
        size = math.prod(shape) * dtype.itemsize  # Python's integers do not overflow
        if start + size > len(block):
            raise UnreadableError(f"the array {name!r} is cut short")
        arrays[name] = np.frombuffer(block[start : start + size], dtype).reshape(shape)
        start += size
    return arrays
