"""Passages on the page: always escaped, with the answers marked."""

import html
import unicodedata
from collections.abc import Iterable, Sequence

import matplotlib.pyplot as plt
from IPython.display import HTML, display

from helpers.answers import APOSTROPHES, matches, normalize_all, token_pattern


def highlight(text: str, answers: Iterable[str]) -> str:
    """Return `text` as HTML with every answer that `has_answer` finds in a <mark>.

    >>> highlight("Tea & Peking duck", ["peking"])
    'Tea &amp; <mark>Peking</mark> duck'
    """
    text = unicodedata.normalize("NFD", text)
    folded = text.translate(APOSTROPHES)  # one character for one, so that positions stay the same
    pattern = token_pattern(folded)
    spans = [match.span() for match in pattern.finditer(folded)]
    tokens = [folded[start:end].lower() for start, end in spans]
    found: list[tuple[int, int]] = []
    for needle in normalize_all(answers):
        if isinstance(needle, str):
            wanted = needle.split()
            starts = [n for n in range(len(tokens)) if tokens[n : n + len(wanted)] == wanted]
            found += [(spans[n][0], spans[n + len(wanted) - 1][1]) for n in starts]
        else:
            found += [match.span() for match in matches(needle, folded) if match.group()]
    pieces, end = [], 0
    for start, stop in sorted(found):
        if pieces and not pattern.search(folded, end, start):  # one mark over what overlaps or touches
            start = end
            pieces[-1] = pieces[-1].removesuffix("</mark>")
        else:
            pieces += [html.escape(text[end:start]), "<mark>"]
        end = max(end, stop)
        pieces.append(html.escape(text[start:end]) + "</mark>")
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


def side_by_side(columns: dict[str, Sequence[tuple[str, dict]]], answers: Iterable[str] = ()) -> HTML:
    """Return the tables of `show_passages` for several systems; `columns` maps a name to its pairs."""
    answers, style = list(answers), f"text-align:left;vertical-align:top;width:{100 // len(columns)}%"
    tables = [
        f'<td style="{style}"><b>{html.escape(name)}</b>{show_passages(pairs, answers).data}</td>'
        for name, pairs in columns.items()
    ]
    return HTML(f"<table><tr>{''.join(tables)}</tr></table>")


def show_figure(alt: str) -> None:
    """Show the current figure, in place of `plt.show()`; `alt` says what it shows to readers who cannot see it."""
    figure = plt.gcf()
    display(figure, metadata={"image/png": {"alt": alt}})
    plt.close(figure)
