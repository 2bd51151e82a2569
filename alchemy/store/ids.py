"""Identities of 16 bytes: as text, and found by bisection in files that never change."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from alchemy.store.segment import Segment

NOTHING = np.zeros((0, 16), "u1")
_UNSET, _DIGITS = "0" * 32, "0123456789abcdef"
_MANY = 5000  # needles worth sorting first: on a million, bisection in order is twenty times as fast


def id_bytes(texts: Sequence[str | None]) -> np.ndarray:
    """u1 [n,16]; zeros where unset. Raises ValueError for what is not 32 hex digits."""
    filled = [text or _UNSET for text in texts]
    data = bytes.fromhex("".join(filled))
    if len(data) != 16 * len(filled) or {*map(len, filled)} - {32}:
        raise ValueError("uids and keys are 32 hex digits")
    return np.frombuffer(data, "u1").reshape(-1, 16)


def sound_ids(texts: Iterable[str]) -> tuple[list[str], np.ndarray]:
    """(those of the texts that are ids, their bytes, u1 [n,16])."""
    names = [*texts]
    if {*map(len, names)} - {32} or "".join(names).strip(_DIGITS):
        names = [name for name in names if is_id(name)]
    return names, id_bytes(names)


def id_texts(array: np.ndarray) -> list[str]:
    """32 hex digits per row of a u1 [n,16] array; '' for zeros."""
    digits = array.tobytes().hex()
    texts = [digits[i : i + 32] for i in range(0, len(digits), 32)]
    return ["" if text == _UNSET else text for text in texts]


def is_id(text: object) -> bool:
    """Whether it is 32 hex digits."""
    return isinstance(text, str) and len(text) == 32 and not text.strip(_DIGITS)


def begins(ids: np.ndarray, text: str) -> np.ndarray:
    """Which ids begin with these hex digits; none for another text."""
    digits = text.lower()
    if not digits or len(digits) > 32 or digits.strip("0123456789abcdef"):
        return np.zeros(len(ids), bool)
    low, high = (np.frombuffer(bytes.fromhex(digits.ljust(32, d)), "u1") for d in "0f")
    words = np.ascontiguousarray(ids).view(">u8")
    mask, wanted = ~(low ^ high).view(">u8"), low.view(">u8")
    found: np.ndarray = ((words & mask) == wanted).all(axis=1)
    return found


def prefixes(ids: np.ndarray) -> np.ndarray:
    """The first 8 bytes as numbers that sort as the bytes do."""
    return np.ascontiguousarray(ids).view(">u8")[:, 0].astype(np.uint64)


def texts16(ids: np.ndarray) -> np.ndarray:
    """The same bytes as an array that numpy compares and sorts row by row."""
    return np.ascontiguousarray(ids).view("S16").reshape(-1)


class Sorted(NamedTuple):
    """Rows of a file by the first 8 bytes of their ids."""

    keys: np.ndarray  # [n] u8, ascending
    rows: np.ndarray  # [n]


def sorted_ids(segment: Segment, path: str) -> Sorted:
    """Made once per file; merged files bring the order along, as `<path>_order`."""
    key = ("sorted", path)
    if key not in segment.derived:
        keys, order = prefixes(segment[path]), segment.get(f"{path}_order")
        if order is None:
            order = np.argsort(keys)
        segment.derived[key] = Sorted(keys[order], order)
    found: Sorted = segment.derived[key]
    return found


def matches(segment: Segment, path: str, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(place in `wanted`, row of the file) of every pair of equal ids, in no particular order."""
    ids = segment.get(path)
    if ids is None or not len(wanted):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    return pairs(ids, sorted_ids(segment, path), wanted)


def pairs(ids: np.ndarray, by_id: Sorted, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(place in `wanted`, row of `ids`) of every pair of equal ids, in no particular order."""
    own = prefixes(wanted)
    by = np.argsort(own) if len(own) > _MANY else np.arange(len(own))
    first = np.searchsorted(by_id.keys, own[by])
    there = first < len(by_id.keys)
    there[there] = by_id.keys[first[there]] == own[by[there]]
    by, first = by[there], first[there]  # of new rows there are none
    counts = np.searchsorted(by_id.keys, own[by], side="right") - first
    needles, found = np.repeat(by, counts), by_id.rows[_ranges(first, counts)]
    equal = (ids[found] == wanted[needles]).all(axis=1)  # eight bytes could agree by chance
    return needles[equal], found[equal]


def first_rows(n: int, needles: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The smallest row of each of n needles, −1 where it has none."""
    found = np.full(n, -1, np.int64)
    back = np.argsort(rows, kind="stable")[::-1]
    found[needles[back]] = rows[back]  # of equal places the last assignment stays
    return found


def _ranges(first: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """first[0], first[0]+1, … (counts[0] of them), first[1], …"""
    shift = np.repeat(first - np.cumsum(counts) + counts, counts)
    return shift + np.arange(len(shift))
