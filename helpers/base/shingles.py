"""Word shingles, by which texts are compared that are nearly the same, and their MinHash signatures (Broder 1997)."""

import zlib
from collections.abc import Sequence

import numpy as np

BANDS, ROWS = 16, 4  # a pair of Jaccard 0.8 shares a band with probability 1 - (1 - 0.8^4)^16 > 0.999
CHUNK = 5_000  # texts hashed at a time


def shingles(text: str, size: int) -> set[int]:
    """Return the hashes of every `size` words in a row of a normalised text; of a shorter one, of all it has."""
    words = text.split(" ")
    return {zlib.crc32(" ".join(words[at : at + size]).encode()) for at in range(max(1, len(words) - size + 1))}


def jaccard(one: set, other: set) -> float:
    """Return the share of both sets' elements that both have.

    >>> jaccard({1, 2, 3}, {2, 3, 4})
    0.5
    """
    return len(one & other) / max(1, len(one | other))


def overlap(one: set, other: set) -> float:
    """Return the share of the smaller set's elements that the other one has too: 1 for a text and a part of it.

    >>> overlap({1, 2}, {2, 3, 4})
    0.5
    """
    return len(one & other) / max(1, min(len(one), len(other)))


def word_triples(text: str) -> set[int]:
    """Return the shingles of three words of a normalised text, whatever its punctuation.

    >>> overlap(word_triples("it is , so they say , true"), word_triples("it is so they say"))
    1.0
    """
    return shingles(" ".join(word for word in text.split() if word[0].isalnum()), 3)


def hash_each(texts: Sequence[str]) -> np.ndarray:
    """Return a hash of each text, [N]: equal texts, equal hashes, within one process."""
    return np.fromiter(map(hash, texts), np.int64, len(texts)).view(np.uint64)


def signatures(texts: Sequence[str], size: int) -> np.ndarray:
    """Return the hash of each text, and of its shingles of `size` words 16 bands of a MinHash signature, [N, 17].

    Texts that share a band may be nearly the same, and `jaccard` says whether they are. They are hashed in chunks.
    """
    hashes = np.empty((len(texts), 1 + BANDS), np.uint64)
    for start in range(0, len(texts), CHUNK):
        chunk = texts[start : start + CHUNK]
        hashes[start : start + CHUNK, 0], hashes[start : start + CHUNK, 1:] = hash_each(chunk), _bands(chunk, size)
    return hashes


def _bands(texts: Sequence[str], size: int) -> np.ndarray:
    """Return the MinHash signature of each text as one number a band, [N, BANDS]."""
    sets = [np.fromiter(found, np.uint64, len(found)) for found in (shingles(text, size) for text in texts)]
    starts, hashes = np.cumsum([0, *map(len, sets)])[:-1], np.concatenate(sets)
    rng, keys = np.random.default_rng(0), np.zeros((len(texts), BANDS), np.uint64)
    with np.errstate(over="ignore"):
        for number in range(BANDS * ROWS):
            odd, plus = (int(n) for n in rng.integers(2**63, size=2))
            mixed = (hashes * np.uint64(odd | 1) + np.uint64(plus)) >> np.uint64(32)  # multiply and shift
            lowest = np.minimum.reduceat(mixed, starts)
            keys[:, number % BANDS] = keys[:, number % BANDS] * np.uint64(0x9E3779B97F4A7C15) + lowest
    return keys
