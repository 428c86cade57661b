"""Passages on the page: always escaped, answers marked."""

import html
import unicodedata
from collections.abc import Iterable

from IPython.display import HTML

from helpers.evaluation import APOSTROPHES, normalize_all, token_pattern


def highlight(text: str, answers: Iterable[str]) -> str:
    """Return `text` as HTML with every answer that `has_answer` finds in a <mark>.

    >>> highlight("Tea & Peking duck", ["peking"])
    'Tea &amp; <mark>Peking</mark> duck'
    """
    text = unicodedata.normalize("NFD", text)
    folded = text.translate(APOSTROPHES)  # one character for one, so that places stay the same
    spans = [match.span() for match in token_pattern(folded).finditer(folded)]
    tokens = [folded[start:end].lower() for start, end in spans]
    marked: set[int] = set()
    for answer in normalize_all(answers):
        wanted = answer.split()
        for start in range(len(tokens) - len(wanted) + 1):
            if tokens[start : start + len(wanted)] == wanted:
                marked.update(range(start, start + len(wanted)))
    pieces, end = [], 0
    for number, (start, stop) in enumerate(spans):
        joined = number in marked and number - 1 in marked  # one mark over neighbouring tokens
        gap, token = html.escape(text[end:start]), html.escape(text[start:stop])
        if number in marked:
            token = f"{gap if joined else ''}{token}"
            if joined:
                pieces[-1] = pieces[-1].removesuffix("</mark>") + token + "</mark>"
            else:
                pieces += [gap, f"<mark>{token}</mark>"]
        else:
            pieces += [gap, token]
        end = stop
    return "".join(pieces) + html.escape(text[end:])


def show_passages(rows: Iterable[tuple[str, dict]], answers: Iterable[str] = ()) -> HTML:
    """Return a table of (label, corpus row) pairs with the answers marked in the texts."""
    answers = list(answers)
    lines = [
        f'<tr><th style="text-align:left;vertical-align:top">{html.escape(label)}</th>'
        f'<td style="text-align:left"><b>{html.escape(row["title"])}</b> {highlight(row["text"], answers)}</td></tr>'
        for label, row in rows
    ]
    return HTML(f"<table>{''.join(lines)}</table>")
