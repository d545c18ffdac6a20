"""Many texts and numbers in little memory: texts compressed and told apart by their hashes, equal rows held once."""

from __future__ import annotations

import hashlib
import marshal
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np

_BLOCK = 4096


class PackedTexts(Sequence[str]):
    """A list of texts that takes a quarter of its memory or less; one block of it is unpacked at a time.

    Args:
        texts: The texts.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._blocks: list[bytes] = []
        self._last: list[str] = []  # of fewer than `_BLOCK` texts
        self._cached: tuple[int, list[str]] = (-1, [])
        for text in texts:
            self.append(text)

    def append(self, text: str) -> None:
        """Add a text."""
        self._last.append(text)
        if len(self._last) == _BLOCK:
            self._blocks.append(zlib.compress(marshal.dumps(self._last), 1))
            self._last = []

    def plain(self) -> Sequence[str]:
        """The texts as a list if they are few, otherwise these."""
        return list(self) if len(self._blocks) < 8 else self

    def __len__(self) -> int:
        return _BLOCK * len(self._blocks) + len(self._last)

    def __iter__(self) -> Iterator[str]:
        for block in self._blocks:
            yield from marshal.loads(zlib.decompress(block))
        yield from self._last

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        number = place // _BLOCK
        if number == len(self._blocks):
            return self._last[place % _BLOCK]
        if self._cached[0] != number:
            self._cached = number, marshal.loads(zlib.decompress(self._blocks[number]))
        return self._cached[1][place % _BLOCK]


class Gathered:
    """A matrix (N, K) that holds each of its distinct rows once.

    Args:
        table: (D, K) the distinct rows; if they are bytes of 0 and 1, (D, K / 8, rounded up), the bits of these.
        place: (N,) the row of each report among them.
        width: K.
    """

    def __init__(self, table: np.ndarray, place: np.ndarray, width: int) -> None:
        self.table, self.place = table, place
        self.shape, self.dtype = (len(place), width), table.dtype

    def __len__(self) -> int:
        return len(self.place)

    def __getitem__(self, rows: slice) -> np.ndarray:
        found: np.ndarray = self.table[self.place[rows]]
        return np.unpackbits(found, axis=1, count=self.shape[1]) if found.dtype == np.uint8 else found


Matrix = np.ndarray | Gathered
"""Numbers of N reports, (N, K); both kinds have a length, a shape, a type and slices of rows."""


def digest_text(text: str) -> bytes:
    """A hash of 16 bytes."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def distinct(*sides: Sequence[str]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Find the distinct texts of several lists, by hashes of 16 bytes.

    Returns:
        For each list, the ascending indices of the texts that no list before it has and that occur there first; the
        texts at all of them, in this order, are the U distinct ones. And for each list, (N,) int32, the numbers of its
        texts among the U.
    """
    hashes, firsts, rows = zip(*map(_distinct, map(_hashes, sides)), strict=True)
    _, chosen, numbers = _distinct(np.concatenate(hashes))
    offsets = np.cumsum([0, *map(len, hashes[:-1])])
    new = [
        first[chosen[(start <= chosen) & (chosen < start + len(first))] - start]
        for first, start in zip(firsts, offsets, strict=True)
    ]
    return new, [numbers[row + offset] for row, offset in zip(rows, offsets, strict=True)]


def pick(texts: Sequence[str], indices: np.ndarray) -> Iterator[str]:
    """The texts at ascending indices, read in order."""
    wanted = iter(indices.tolist())
    index = next(wanted, -1)
    for number, text in enumerate(texts):
        if number == index:
            yield text
            index = next(wanted, -1)


def _hashes(texts: Sequence[str]) -> np.ndarray:
    """(N, 2) uint64."""
    joined, last, name = bytearray(), None, b""
    for text in texts:
        if text is not last:  # a constant is one object
            last, name = text, digest_text(text)
        joined += name
    return np.frombuffer(joined, np.uint64).reshape(-1, 2)


def _distinct(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct rows (U, 2) in the order in which they occur, (U,) where each is first, and (N,) which each row is."""
    order = np.lexsort(hashes.T).astype(np.int32)  # stable: equal rows stay in their order
    ordered = hashes[order]
    starts = np.ones(len(hashes), bool)
    starts[1:] = (ordered[1:] != ordered[:-1]).any(1)
    first = order[starts]
    rank = np.empty(len(first), np.int32)
    rank[np.argsort(first)] = np.arange(len(first), dtype=np.int32)
    rows = np.empty(len(hashes), np.int32)
    rows[order] = rank[np.cumsum(starts) - 1]
    first = np.sort(first)
    return hashes[first], first, rows
