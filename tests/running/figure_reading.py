"""Numbers, read from prose, outputs and results files, and compared; for test_figures.py, which says by which rules."""

import html
import json
import re
from functools import cache
from itertools import pairwise
from typing import NamedTuple

from helpers.base.files import ROOT

RESULTS = sorted((ROOT / "data" / "results").glob("*.json"))

NO_FIGURES = (  # blanked before figures are sought, in this order
    r"```.*?```",
    r"\$\$.*?\$\$",
    r"`[^`\n]*`",
    r"\$[^$]{1,300}\$",
    r"\[\d\d · [^\]]*\]",  # a link to a notebook
    r"\]\([^)]*\)",
    r"<[^>]*>",
    r"https?://\S+",
    r"\| needs \| leaves behind \| time \|\n[^\n]*\n[^\n]*",  # times of one machine, masked in outputs too
    r"(?m)^#+ \d\d ·",
    r"(?m)^\s*\d+\. |\*\*\d+\.\*\*",  # list items and exercises
    r"(?<![\d,.])(?:19|20)\d\d(?![\d,.]\d|%)",  # a year: the house writes counts with a comma
    r"[Nn]otebooks? \d\d(?:(?:,| and| to) \d\d)*|(?<![\d.])0\d\b(?!\.)",
    r"\w+@\d+(?:/\d+)*",
    r"(?:95|80|50)%(?= (?:bootstrap )?intervals?)",
)
FIGURE = re.compile(r"(?<![\w.@/#^_\\-])(?<!\d,)([+−-]?)(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?( ?%)?(?![\w/@^]|\.\d|-\w)")
UNIT = re.compile(r" (?:points?|s|ms|seconds|minutes|hours|GB|MB|kB|TB|bytes|times)\b")
PRINTED = re.compile(r"(?<![\w.])([+−-]?)(\d{1,3}(?:,\d{3})+|\d[\d_]*)(\.\d+)?(e[+-]?\d+)?(?:\.(?!\d))?(%?)")
ENDS = r"[+−-]?[\d.,]+%?(?:, | to )[+−-]?[\d.,]*\d%?"
INTERVAL = re.compile(rf"[(\[]{ENDS}(?:[)\]]|, [a-z])|interval (?:from )?{ENDS}|from [+−]\S+ to [+−]\S+")
NAMED = re.compile(r"([\w-]+)\.json|(?:measure|benchmark)_(\w+)")


class Figure(NamedTuple):
    """A figure in prose, with the digits behind its point and the place where it stands."""

    text: str
    value: float
    places: int
    percent: bool
    start: int


class Source(NamedTuple):
    """A number in an output, in code or in a results file; `line` tells neighbours from strangers."""

    value: float
    places: int
    percent: bool
    line: tuple
    end: bool = False  # of an interval


def number(sign: str, whole: str, decimals: str | None, power: str | None = "") -> float:
    value = float(re.sub("[,_]", "", whole) + (decimals or "") + (power or ""))
    return -value if sign in ("-", "−") else value


def figures(prose: str) -> list[tuple[Figure, ...]]:
    """Return the figures of a Markdown cell, the two ends of an interval together."""
    for pattern in NO_FIGURES:
        prose = re.sub(pattern, lambda match: re.sub(r"[^\n]", " ", match.group()), prose, flags=re.DOTALL)
    found = []
    for match in FIGURE.finditer(prose):
        sign, whole, decimals, percent = match.groups()
        value, places = number(sign, whole, decimals), len(decimals or " ") - 1
        figure = Figure(match.group(), value, places, bool(percent), match.start())
        if sign or decimals or percent or value >= 10 or UNIT.match(prose, match.end()):
            found.append(figure)
    spans = [match.span() for match in INTERVAL.finditer(prose)]
    pairs = [tuple(one for one in found if start <= one.start < end) for start, end in spans]
    pairs = [pair for pair in pairs if len(pair) == 2]
    paired = {one.start for pair in pairs for one in pair}
    return sorted([*pairs, *((one,) for one in found if one.start not in paired)], key=lambda group: group[0].start)


def printed(text: str, name: object) -> list[Source]:
    """Return the numbers of an output or of code in their order."""
    found = []
    for at, line in enumerate(text.split("\n")):
        ends = [match.span() for match in INTERVAL.finditer(line)]
        for match in PRINTED.finditer(line):
            sign, whole, decimals, power, percent = match.groups()
            places = 9 if power else max(0, len(decimals or "") - 1)
            end = any(low <= match.start() < high for low, high in ends)
            found.append(Source(number(sign, whole, decimals, power), places, bool(percent), (name, at), end))
    return found


def output_text(cell: dict) -> str:
    """Return what a cell printed; of a table every row is a line."""
    texts = []
    for output in cell.get("outputs", ()):
        data = output.get("data", {})
        page = re.sub(r"\s+|<style.*?</style>", " ", "".join(data.get("text/html", "")), flags=re.DOTALL)
        texts.append("".join(output.get("text", "" if page else data.get("text/plain", ""))))
        texts.append(html.unescape(re.sub(r"<[^>]+>", " ", re.sub(r"</tr>|</p>|<br ?/?>", "\n", page))))
    return "\n".join(texts)


@cache
def results(name: str) -> tuple[Source, ...]:
    """Return the numbers of a results file, shares as percentages too; a list or a mapping is a line."""
    found, ways = [], [((name,), json.loads((ROOT / "data" / "results" / name).read_text(encoding="utf-8")))]
    while ways:
        line, value = ways.pop()
        for factor in (1, 100):
            for key, one in value.items() if isinstance(value, dict) else enumerate(value):
                if isinstance(one, dict | list) and factor == 1:
                    ways.append(((*line, key), one))
                elif isinstance(one, float) and (factor == 1 or abs(one) <= 1):
                    found.append(Source(factor * one, 9, False, (*line, factor)))
                elif isinstance(one, int) and factor == 1:
                    found.append(Source(one, 0, False, (*line, factor)))
    return tuple(found)


def agrees(figure: Figure, source: Source, rounded: bool = True) -> bool:
    """Tell whether a figure is a printed number: as it is, a share as a percentage, or with fewer decimals."""
    if (figure.text[0] == "+" and source.value < 0) or (figure.text[0] in "-−" and source.value > 0):
        return False
    shares = figure.percent and not source.percent and source.places >= 2 and abs(source.value) <= 1
    for factor, places in ((1, source.places), (100, source.places - 2))[: 1 + shares]:
        gap = abs(abs(figure.value) - abs(factor * source.value))
        longer = places > figure.places and (figure.places or (figure.percent and (source.percent or factor == 100)))
        if places >= figure.places and gap <= (0.5 * 10**-figure.places if rounded and longer else 0) + 1e-9:
            return True
    return False


def stands_in(group: tuple[Figure, ...], sources: list[Source], rounded: bool = True) -> bool:
    """Tell whether a figure, or both ends of an interval beside each other, are among the sources."""
    if len(group) == 1:
        return any(agrees(group[0], source, rounded) for source in sources if not source.end)
    low, high = group
    for one, two in pairwise(sources):
        ends = ((one, two), (two, one))  # a loss turns them round
        if one.line == two.line and any(agrees(low, a, rounded) and agrees(high, b, rounded) for a, b in ends):
            return True
    return False


def named_results(text: str) -> list[Source]:
    """Return the numbers of the results files that a cell names, by their own name or by that of the script."""
    names = {file or way.replace("_", "-") for file, way in NAMED.findall(text)}
    stems = {path.stem for path in RESULTS for name in names if path.stem == name or path.stem.startswith(f"{name}-")}
    return [one for stem in sorted(stems) for one in results(f"{stem}.json")]


@cache
def sizes() -> list[Source]:
    """Return the whole numbers from 1,000 up of all results files: the sizes of data sets and trainings."""
    return [one for path in RESULTS for one in results(path.name) if one.value >= 1000 and not one.places]
