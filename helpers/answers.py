"""Answer match: does a passage hold an answer of the question?

`has_answer` follows DPR (Karpukhin et al. 2020, https://arxiv.org/abs/2004.04906): both sides are NFD-normalised,
cut into tokens and lower-cased; an answer matches if its tokens stand side by side in the passage. An answer may
also be a `Pattern`, a regular expression that is searched in the text itself, ignoring case, as DPR does for
CuratedTREC. Differences from DPR's code, all deliberate: an empty answer matches everything there and nothing here; a
broken pattern is ignored there and an error here (a data set with either is rejected when it is loaded); and unless
`strict_dpr` is on, a curly apostrophe equals a straight one, and scripts without spaces are compared by characters.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

import numpy as np
import regex

from helpers.base.errors import DataError, shorten

TOKENS = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")
# Thai, Lao, Burmese, Khmer, Japanese, Chinese: no spaces between words, so that each character is a token of its own
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3041-\u30ff\u3400-\u9fff\uf900-\ufaff\uff66-\uff9f"
    "\U00020000-\U0003ffff"
)
CHARACTERS = regex.compile(
    rf"[[{UNSPACED}]--[\p{{Z}}\p{{C}}]]\p{{M}}*|[\p{{L}}\p{{N}}\p{{M}}--[{UNSPACED}]]+|[^\p{{Z}}\p{{C}}]", regex.V1
)
CURLY = "‘’ʼ"
APOSTROPHES = str.maketrans(dict.fromkeys(CURLY, "'"))
PATTERN_SECONDS = 1.0  # the longest that a pattern may search one passage: some patterns take years on some texts


class Pattern(str):
    """An answer that is a regular expression."""


class Normalized(str):
    """A text as `has_answer` reads it: lower-case tokens, each between two spaces; `text` is what patterns search."""

    text: str


def normalize(text: str, strict_dpr: bool = False) -> Normalized:
    """Return `text` as lower-case tokens, each between two spaces, ready for `has_answer`.

    No token holds a space, so a run of tokens is a substring exactly if it is a contiguous sub-list.

    >>> normalize("Café au lait?") == normalize("CAFE\\u0301 au lait ?")
    True
    """
    text = _characters(text, strict_dpr)
    normalized = Normalized(f" {' '.join(token_pattern(text, strict_dpr).findall(text))} ".lower())
    normalized.text = text
    return normalized


def token_pattern(text: str, strict_dpr: bool = False) -> regex.Pattern:
    """Return what finds the tokens of `text`; DPR's own takes a whole Chinese clause as one token."""
    spaced = strict_dpr or text.isascii() or not re.search(f"[{UNSPACED}]", text)
    return TOKENS if spaced else CHARACTERS


def _characters(text: str, strict_dpr: bool) -> str:
    text = unicodedata.normalize("NFD", text)
    for curly in "" if strict_dpr else CURLY:  # on text that is not ASCII, str.translate takes many times as long
        text = text.replace(curly, "'")
    return text


def has_answer(answers: Iterable[str], normalized_passage: Normalized) -> bool:
    """Return whether any of `answers` (raw, or a `Pattern`) stands in a passage that went through `normalize`.

    >>> has_answer(["U.S."], normalize("The U.S. Navy")), has_answer(["US"], normalize("The U.S. Navy"))
    (True, False)
    >>> has_answer([Pattern("19[0-9]{2}")], normalize("The 1912 census"))
    True
    """
    return holds(normalize_all(answers), normalized_passage)


def normalize_all(answers: Iterable[str], strict_dpr: bool = False) -> list[str | regex.Pattern]:
    """Return `answers` as `holds` needs them, without those that have no token and would match everything."""
    needles = [_compile(a, strict_dpr) if isinstance(a, Pattern) else normalize(a, strict_dpr) for a in answers]
    return [needle for needle in needles if not isinstance(needle, str) or needle.strip()]


def holds(needles: Iterable[str | regex.Pattern], normalized_passage: Normalized) -> bool:
    """Return whether any of `needles`, which come from `normalize_all`, stands in a passage.

    Raises
    ------
    DataError : a pattern took longer than a second on this one passage
    """
    for needle in needles:
        if isinstance(needle, str):
            found = needle in normalized_passage
        else:
            found = next(matches(needle, normalized_passage.text), None)
        if found:
            return True
    return False


def which_hold(needles: Sequence[Sequence[str | regex.Pattern]], passages: Sequence[Normalized]) -> np.ndarray:
    """Return what `holds` says of each list of needles and each passage, [Q, P] of bool, for whole batches at a time.

    A needle is only looked for in the passages that have the rarest of its tokens.
    """
    found = np.zeros((len(needles), len(passages)), dtype=bool)
    wanted = {token for own in needles for needle in own if isinstance(needle, str) for token in needle.split(" ")}
    having: dict[str, list[int]] = {token: [] for token in wanted}
    for number, passage in enumerate(passages):
        for token in wanted.intersection(passage.split(" ")):
            having[token].append(number)
    for own, row in zip(needles, found, strict=True):
        for needle in own:
            if isinstance(needle, str):
                rarest = min((having[token] for token in needle.split(" ")), key=len)
                row[[number for number in rarest if needle in passages[number]]] = True
            else:
                row |= np.array([holds([needle], passage) for passage in passages], dtype=bool)
    return found


def matches(pattern: regex.Pattern, text: str) -> Iterator[regex.Match]:
    """Yield the matches of an answer pattern in `text`; raises the same error as `holds`."""
    try:
        yield from pattern.finditer(text, timeout=PATTERN_SECONDS)
    except TimeoutError:
        raise DataError(
            f"the answer pattern {shorten(pattern.pattern)} took longer than {PATTERN_SECONDS:g} s on one passage "
            f"({shorten(text)}); nested repeats do that: write it more simply"
        ) from None


@lru_cache(maxsize=10_000)
def _compile(pattern: str, strict_dpr: bool = False) -> regex.Pattern:
    return regex.compile(_characters(pattern, strict_dpr), regex.IGNORECASE | regex.MULTILINE)


def answer_problem(answer: str) -> str:
    """Return what is wrong with an answer of a data set and what to do, or ""."""
    if not isinstance(answer, Pattern):
        return "" if normalize(answer).strip() else "is empty: it would match everything; remove it"
    try:
        everything = _compile(answer).search("", timeout=PATTERN_SECONDS)
    except regex.error as error:
        return f"is no regular expression ({error}); fix it, or leave out the field 'regex'"
    return "matches a text without a character, so it would match everything; fix it" if everything else ""
