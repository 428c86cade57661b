"""Questions that nobody asked: a language model writes one for each passage, and what is no use is filtered out.

Generated questions as training data: InPars, Bonifacio et al. 2022, https://arxiv.org/abs/2202.05144. Kept only if
retrieval finds their passage again ("round trip"): Promptagator, Dai et al. 2022, https://arxiv.org/abs/2209.11755.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from helpers.answers import normalize
from helpers.base.shingles import word_triples
from helpers.topics.expansion import Generation, expand

PROMPT = """Read the text and write one short question that it answers. Name what the question is about; \
do not write "the text".

Text: Korfball was devised in Amsterdam in 1902 by Nico Broekhuysen, a schoolteacher. Teams of four men and four women \
throw a ball into a basket 3.5 metres above the ground.
Question: Which teacher invented korfball in 1902?

Text: The Cullinan is the largest rough diamond ever found. It weighed 3,106 carats when a mine manager saw it in 1905 \
in the wall of a pit near Pretoria.
Question: How heavy was the Cullinan diamond when it was found?

Text: {passage}
Question:"""
POINTS = re.compile(
    r"\b(th(e|is|ese) (\w+ )?(text|passage|sentence|paragraph|question|article|author|answer)s?)\b", re.I
)
EXAMPLES = word_triples(normalize(PROMPT))
LENGTH = range(4, 31)  # words of a question


def write_questions(
    writer_name: str,
    passages: Mapping[str, str],
    path: str | Path,
    settings: Generation | None = None,
    device: str = "auto",
) -> dict[str, list[str]]:
    """Return passage id -> what the model wrote for it; every text is cached in `path`, see `helpers.topics.expansion`.

    `settings` say how long a question may be, and with a temperature how many are written for each passage; without
    any it is one, the likeliest.
    """
    written = expand(writer_name, passages, PROMPT, settings or Generation(max_new_tokens=28), path, device)
    return {pid: own["texts"] for pid, own in written.items()}


def question(text: str) -> tuple[str, str]:
    """Return the question that a written text begins with, "" if it is of no use, and "kept" or the reason.

    >>> question("Which moon has lakes?\\n\\nAnswer: Titan")
    ('Which moon has lakes?', 'kept')
    >>> question("What is the text about?")
    ('', 'about the text itself')
    """
    first = " ".join((text.strip().split("\n") or [""])[0].split()).strip("\"'“”* ")
    found = re.match(r"(?:Question: *)?[\"'“”*]*(.+?[?？؟])(?=\W|$)", first)
    if not found:
        return "", "no question"
    asked = found[1]
    if POINTS.search(asked):
        return "", "about the text itself"
    if len(word_triples(normalize(asked)) & EXAMPLES) > 1:
        return "", "copied from the prompt"
    if len(asked.split()) not in LENGTH and asked.isascii():  # other scripts may have no spaces
        return "", "too short or too long"
    return asked, "kept"


def clean(written: Mapping[str, Sequence[str]]) -> tuple[list[tuple[str, str]], Counter]:
    """Return (passage id, question) of what can be used, each once, and how many texts had which fate.

    A question that was written for several passages is dropped: no single one of them answers it.
    """
    found, fates = defaultdict(dict), Counter()
    for pid, texts in written.items():
        for text in texts:
            asked, fate = question(text)
            if asked:
                found[normalize(asked)].setdefault(pid, asked)
            else:
                fates[fate] += 1
    kept = []
    for pids in found.values():
        if len(pids) > 1:
            fates["the same for several passages"] += len(pids)
        else:
            kept += pids.items()
    order = {pid: number for number, pid in enumerate(written)}
    total = sum(map(len, written.values()))
    fates["written twice for a passage"] = total - fates.total() - len(kept)
    fates["kept"] = len(kept)
    return sorted(kept, key=lambda pair: order[pair[0]]), +fates
