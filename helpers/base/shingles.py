"""Word shingles, by which texts are compared that are nearly the same (Broder 1997)."""

import zlib


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
