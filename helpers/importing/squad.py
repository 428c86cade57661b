"""SQuAD's format -> the course's BEIR layout: articles divided into splits, long paragraphs into passages.

SQuAD v1.1 and v2.0 (Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250) and the many sets that copy them. Each
training question gets a given negative: another passage of its article that holds none of its answers.
"""

import random
import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, groupby
from pathlib import Path

from helpers.answers import UNSPACED, answer_problem, holds, normalize, normalize_all
from helpers.base.checks import Place, Problems
from helpers.base.errors import DataError, SettingError, shorten
from helpers.base.files import json_items

Paragraph = tuple[str, str, list[dict]]  # article title, text, questions as {"id", "question", "answers", "starts"}
WORD = re.compile(f"[{UNSPACED}]|[^\\s{UNSPACED}]+")  # a character, where words have no spaces between them
PASSAGE_WORDS = 100  # as DPR cuts Wikipedia; two characters of an unspaced script count as a word
LONGEST_WORDS = 250  # paragraphs up to this length stay whole: 98% of SQuAD's
EMPTY_ANSWERS = "empty answers, left out"


def json_paragraphs(path: Path, problems: Problems) -> Iterator[Paragraph]:
    """Yield the paragraphs of a SQuAD JSON file; what is wrong with it goes to `problems`."""
    for number, article in enumerate(json_items(path, "data"), start=1):
        place = Place(path, f"article {number}")
        paragraphs = article.get("paragraphs") if isinstance(article, dict) else None
        if not isinstance(paragraphs, list) or not isinstance(article.get("title", ""), str):
            problems.error(
                place, "not an article of SQuAD's format: {'title': a string, 'paragraphs': a list}", article
            )
            continue
        for position, paragraph in enumerate(paragraphs, start=1):
            place = Place(path, f"article {number}, paragraph {position}")
            text = paragraph.get("context") if isinstance(paragraph, dict) else None
            if not isinstance(text, str) or not text.strip() or not isinstance(paragraph.get("qas"), list):
                problems.error(
                    place, "not a paragraph of SQuAD's format: {'context': a text, 'qas': a list}", paragraph
                )
                continue
            yield article.get("title", ""), text, list(_questions(paragraph["qas"], place, problems))


def _questions(qas: list, place: Place, problems: Problems) -> Iterator[dict]:
    for qa in qas:
        qa = qa if isinstance(qa, dict) else {}
        qid, question, answers = question_id(qa.get("id")), qa.get("question"), qa.get("answers", [])
        answers = [answers] if isinstance(answers, dict) else answers  # some copies have one, not a list
        right = isinstance(question, str) and question.strip() and qid and isinstance(answers, list)
        if not right or not all(isinstance(a, dict) and isinstance(a.get("text"), str) for a in answers):
            why = "it needs an 'id', a 'question' and 'answers' with a 'text' each"
            problems.error(place, f"not a question of SQuAD's format: {shorten(qa)}; {why}", qa)
        else:
            given = [] if qa.get("is_impossible") else answers
            answers = [a for a in given if not answer_problem(a["text"])]
            if len(answers) < len(given):
                problems.warn(EMPTY_ANSWERS, f"{place}, id {qid}", len(given) - len(answers))
            if answers:
                texts, starts = [a["text"] for a in answers], [a.get("answer_start") for a in answers]
                yield {"id": qid, "question": question, "answers": texts, "starts": starts}
            else:
                problems.warn("questions without an answer in their paragraph, left out", f"{place}, id {qid}")


def convert(
    sources: Mapping[str, Iterable[Paragraph]], seed: int = 0, longest: int = 0, problems=None, shares=None
) -> tuple:
    """Return (corpus, queries, qrels, triples) for `write_folder`.

    Parameters
    ----------
    sources : paragraphs by what their file is: "train", "dev", "test", or "" for `divide` to decide
    seed : draws the given negatives, and the splits where they are to be made
    longest : words of a paragraph that stays whole; 0: every paragraph does
    problems : told what got lost when paragraphs were cut, and which ids were changed
    shares : of train, dev and test, see `divide`
    """
    corpus, queries, triples = [], [], []
    qrels: dict[str, list[tuple]] = {"train": [], "dev": [], "test": []}
    articles = [
        (label, list(group))
        for label, paragraphs in sources.items()
        for _, group in groupby(paragraphs, key=lambda paragraph: paragraph[0] or object())
    ]
    numbers: Counter[str] = Counter()
    taken: set[str] = set()
    splits = divide([label for label, _ in articles], seed, shares)
    for (label, article), split in zip(articles, splits, strict=True):
        asked, start = [], len(corpus)
        for title, text, questions in article:
            spans = [_spans(text, question) for question in questions]
            pieces = split_text(text, [span for found in spans for span in found], longest)
            first = len(corpus) - start
            for begin, end in pieces:
                pid = f"{label or 'all'}-{numbers[label]:03d}-{len(corpus) - start:03d}"
                row = {"_id": pid, "title": title.replace("_", " "), "text": text[begin:end].strip(), "split": split}
                corpus.append(row)
            for question, found in zip(questions, spans, strict=True):
                asked.append((question, [first + at for at in _holding(pieces, found, question, text, problems)]))
        numbers[label] += 1
        passages = [(row["_id"], normalize(row["text"])) for row in corpus[start:]]
        for question, positives in asked:
            if not positives:
                continue
            qid, answers = question_id(question["id"]), unique(question["answers"])
            if qid in taken and problems:
                problems.warn("question ids used twice, e.g. by files that count from 0 each, made unique", qid)
            while qid in taken:
                qid = f"{label or 'all'}-{numbers[label] - 1}-{qid}"
            taken.add(qid)
            queries.append({"_id": qid, "text": question["question"].strip(), "answers": answers})
            qrels[split] += [(qid, passages[at][0], 1) for at in positives]
            if split == "train":
                needles = normalize_all(answers)
                others = [
                    pid for at, (pid, text) in enumerate(passages) if at not in positives and not holds(needles, text)
                ]
                if others:
                    triples.append((qid, passages[positives[0]][0], random.Random(f"{seed} {qid}").choice(others)))
    return corpus, queries, qrels, triples


def divide(labels: Sequence[str], seed: int = 0, shares: Sequence[float] | None = None) -> list[str]:
    """Return the split of each article (or question); `labels` are what is known: "train", "dev", "test" or "".

    Where nothing says which are for dev and test, a tenth is drawn for each. Where only test is missing, every second
    one of dev is for test, as the course does with SQuAD. Where only dev is missing, a tenth of train is. `shares` are
    those of train, dev and test where all three are to be drawn.

    >>> divide(["train", "dev", "dev", "dev"])
    ['train', 'dev', 'test', 'dev']
    """
    splits, have = [label or "train" for label in labels], set(labels)
    train = [number for number, split in enumerate(splits) if split == "train"]
    random.Random(seed).shuffle(train)
    tenth = max(1, len(train) // 10)
    dev, test = (max(1, round(len(train) * share / sum(shares))) for share in shares[1:]) if shares else (tenth, tenth)
    if shares and not have <= {""}:
        raise SettingError("splits: the names of the files say already what is for training; leave it out")
    if have <= {"", "train"}:
        if len(labels) < 3:
            raise DataError(f"the questions are about {len(labels)} article(s); three are needed at least, one a split")
        for split, drawn in (("dev", train[:dev]), ("test", train[dev : dev + test])):
            for number in drawn:
                splits[number] = split
    elif "test" not in have:
        for number in [number for number, split in enumerate(splits) if split == "dev"][1::2]:
            splits[number] = "test"
    elif "dev" not in have and len(train) > 1:
        for number in train[:tenth]:
            splits[number] = "dev"
    return splits


def split_text(
    text: str, spans: Iterable[tuple[int, int]] = (), longest: int = LONGEST_WORDS, size: int = PASSAGE_WORDS
) -> list[tuple[int, int]]:
    """Return begin and end of the passages of a text, of about equal length and at most `size` words each.

    A text of up to `longest` words (0: of any length) is one passage. No cut goes through a span, unless it is longer
    than a passage.

    >>> [text[begin:end] for text in ["a b c d e f"] for begin, end in split_text(text, [(2, 5)], longest=3, size=2)]
    ['a ', 'b c ', 'd ', 'e f']
    """
    words = [match.span() for match in WORD.finditer(text)]
    costs = [0.0, *accumulate(0.5 if re.match(f"[{UNSPACED}]", text[begin]) else 1.0 for begin, _ in words)]
    if not longest or costs[-1] <= longest:
        return [(0, len(text))]
    starts = [begin for begin, _ in words]
    blocks: list[list[int]] = []  # first word and word after the last of each span; overlapping ones as one
    for begin, end in sorted(spans):
        first, last = max(0, bisect_right(starts, begin) - 1), bisect_left(starts, end)
        if blocks and first < blocks[-1][1]:
            blocks[-1][1] = max(blocks[-1][1], last)
        else:
            blocks.append([first, last])
    cuts, at = [0], 0
    while costs[-1] - costs[at] > size:
        left = costs[-1] - costs[at]
        cut = max(at + 1, bisect_right(costs, costs[at] + left / -(-left // size)) - 1)  # equal shares
        first, last = blocks[max(0, bisect_left(blocks, [cut]) - 1)] if blocks else (0, 0)
        if first < cut < last:  # inside a span: cut before it, else after it, else through it
            cut = first if first > at else last if costs[last] - costs[at] <= size else cut
        cuts.append(starts[cut])
        at = cut
    return list(zip(cuts, [*cuts[1:], len(text)], strict=True))


def _spans(text: str, question: dict) -> list[tuple[int, int]]:
    """Return where the answers of a question are in its paragraph; a wrong `answer_start` is corrected by searching."""
    spans = []
    for answer, start in zip(
        question["answers"], question.get("starts") or [None] * len(question["answers"]), strict=True
    ):
        right = isinstance(start, int) and text[start : start + len(answer)] == answer and start >= 0
        begin = start if right else text.find(answer)
        if begin >= 0 and answer.strip():
            begin += len(answer) - len(answer.lstrip())
            spans.append((begin, begin + len(answer.strip())))
    return spans


def _holding(pieces: list[tuple[int, int]], spans, question: dict, text: str, problems: Problems | None) -> list[int]:
    """Return the numbers of the passages that hold an answer whole; of a paragraph that was not cut, the only one."""
    if len(pieces) == 1:
        return [0]
    found = {n for n, (begin, end) in enumerate(pieces) for first, last in spans if begin <= first and last <= end}
    if not found:
        needles = normalize_all(question["answers"])
        found = {n for n, (begin, end) in enumerate(pieces) if holds(needles, normalize(text[begin:end]))}
    if not found and problems:
        problems.warn("questions whose answer no passage holds whole, left out", question["id"])
    return sorted(found)


def question_id(value: object) -> str:
    """Return the id of a question as text without spaces, which run files could not hold; "" if it has none.

    >>> [question_id(value) for value in ("LEASE 7__Parties", 0, None)]
    ['LEASE_7__Parties', '0', '']
    """
    return "" if value is None else "_".join(str(value).split())


def unique(answers: Iterable[str]) -> list[str]:
    """Return the stripped, non-empty answers, each once, in order."""
    return list(dict.fromkeys(answer.strip() for answer in answers if answer.strip()))
