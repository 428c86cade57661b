"""Answer match, Hit@K and its uncertainty.

`has_answer` follows DPR (Karpukhin et al. 2020, https://arxiv.org/abs/2004.04906): both sides are NFD-normalised,
cut into tokens and lower-cased; an answer matches if its tokens stand side by side in the passage. An answer may
also be a `Pattern`, a regular expression that is searched in the text itself, without regard to case, as DPR does for
CuratedTREC. Differences from DPR's code, all deliberate: an empty answer matches everything there and nothing here, a
broken pattern is ignored there and an error here (a data set with either is rejected when it is loaded); and, unless
`strict_dpr` is on, a curly apostrophe equals a straight one, and scripts without spaces go by characters.
"""

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
import regex

from helpers.errors import DataError, shorten

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


PATTERN_SECONDS = 1.0  # that a pattern may search one passage: some patterns take years on some texts


class Pattern(str):
    """An answer that is a regular expression; everything else about it is like any other answer."""


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
    """Return what finds the tokens of `text`; DPR's own makes one of a Chinese clause, which no answer is equal to."""
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
    """Return `answers` as `holds` wants them, without those that hold no token and would match everything."""
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


def matches(pattern: regex.Pattern, text: str):
    """Yield the matches of an answer pattern in `text`; see `holds` for the error."""
    try:
        yield from pattern.finditer(text, timeout=PATTERN_SECONDS)
    except TimeoutError:
        raise DataError(f"the answer pattern {shorten(pattern.pattern)} took longer than {PATTERN_SECONDS:g} s on one "
                        f"passage ({shorten(text)}); nested repeats do that: write it simpler") from None  # fmt: skip


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
        return f"is no regular expression ({error}); mend it, or leave out the field 'regex'"
    return "matches a text without a character, so it would match everything; mend it" if everything else ""


def first_hits(
    rankings: Sequence[Sequence[int]], answers: Sequence[Sequence[str]], normalized_passages: Sequence[Normalized],
    strict_dpr: bool = False,
) -> np.ndarray:  # fmt: skip
    """Return, for each query, the rank (from 1) of its first passage that holds an answer, [Q]; inf if none.

    Parameters
    ----------
    rankings : for each query the indices of its passages, best first
    answers : for each query its answers
    normalized_passages : every passage of the corpus through `normalize`
    strict_dpr : as `normalize` was called with
    """
    pairs = zip(rankings, (_shortest(normalize_all(own, strict_dpr)) for own in answers), strict=True)
    return np.array([_first_hit(ranking, needles, normalized_passages) for ranking, needles in pairs], dtype=float)


def _shortest(needles: Iterable[str | regex.Pattern]) -> list[str | regex.Pattern]:
    """Return `needles` less those that hold another one: where they stand, it stands too."""
    texts = {one for one in needles if isinstance(one, str)}
    return [one for one in dict.fromkeys(needles) if one not in texts or not any(t in one for t in texts - {one})]


def _first_hit(
    ranking: Sequence[int], needles: list[str | regex.Pattern], normalized_passages: Sequence[Normalized]
) -> float:
    ranking = np.asarray(ranking).tolist()  # whole numbers of Python are the faster keys
    if not all(isinstance(needle, str) for needle in needles):
        found = (rank for rank, row in enumerate(ranking, start=1) if holds(needles, normalized_passages[row]))
        return next(found, math.inf)
    pairs = [(needle[:-1], needle) for needle in needles]
    for rank, index in enumerate(ranking, start=1):
        passage = normalized_passages[index]
        for begin, needle in pairs:  # a plain loop is faster than `any`; a search for a letter, than for a last space
            if begin in passage and needle in passage:
                return rank
    return math.inf


def first_relevant(rankings: Sequence[Sequence[int]], relevant: Sequence[set[int]]) -> np.ndarray:
    """Return, for each query, the rank (from 1) of its first judged passage, [Q]; inf if none."""
    ranks = np.full(len(rankings), np.inf)
    for number, (ranking, wanted) in enumerate(zip(rankings, relevant, strict=True)):
        ranks[number] = next((rank for rank, i in enumerate(ranking, start=1) if i in wanted), np.inf)
    return ranks


def hit_ranks(run, data, passages, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the rank of each question's first hit by answer match and by qrels, [Q] each.

    Parameters
    ----------
    run : a helpers.retrieval.Run over `passages`, a PassageIndex, which says whether titles count and how strictly
    data, split : the RetrievalData and the split that hold the answers and the qrels

    A question without an answer is never hit by answer match, one that the split does not judge never by qrels;
    `helpers.diagnosis.diagnose_run` says how many there are.

    Raises
    ------
    DataError : a question is not one of the data set
    """
    if unknown := [qid for qid in run.qids if qid not in data.queries]:
        raise DataError(f"{run.name}: queries.jsonl has no question {shorten(unknown[0])}; the run is of other data")
    relevant = [{passages.row[p] for p in data.qrels[split].get(q, ()) if p in passages.row} for q in run.qids]
    answers = [data.queries[qid].answers for qid in run.qids]
    by_answer = first_hits(run.rankings, answers, passages.normalized, passages.strict_dpr)
    return by_answer, first_relevant(run.rankings, relevant)


def hit_at_k(ranks: np.ndarray, k: int) -> float:
    """Return Hit@K: the share of queries whose first hit is among the first `k` passages.

    >>> hit_at_k(np.array([1, 7, np.inf, 2]), k=2)
    0.5
    """
    return float(np.mean(ranks <= k)) if len(ranks) else math.nan


def bootstrap_interval(
    values: np.ndarray, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean of `values`, [Q], over the queries.

    For one system `values` are its hits (0 or 1); for two, the difference of their hits on the same queries,
    which makes the interval a paired one. No query at all gives (nan, nan). Efron & Tibshirani 1993, chapter 13.
    """
    values = np.asarray(values, dtype=float)
    if not len(values):
        return math.nan, math.nan
    distinct, counts = np.unique(values, return_counts=True)  # few distinct values: draw counts, not rows
    drawn = np.random.default_rng(seed).multinomial(len(values), counts / len(values), size=draws)
    low, high = np.quantile(drawn @ distinct / len(values), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
