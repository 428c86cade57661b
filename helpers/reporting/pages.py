"""Tables and pictures as a page for people: Markdown for a repository, HTML in a single file."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from helpers.base.files import atomic_path, write_text

Part = str | tuple[str, pd.DataFrame] | tuple[str, bytes]  # a heading, a captioned table, or a file name and its PNG
STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#111;"
    "background:#fff}table{border-collapse:collapse;margin:1rem 0}td,th{border:0;border-bottom:1px solid #ccc;"
    "padding:.3rem .8rem;text-align:right}td{white-space:nowrap}th:first-child{text-align:left}img{max-width:100%}"
)


def write_pages(folder: Path, name: str, title: str, parts: Sequence[Part]) -> None:
    """Write `name`.md, `name`.html and the pictures beside them; all text is escaped."""
    markdown, page = [f"# {title}"], [f"<h1>{html.escape(title)}</h1>"]
    for part in parts:
        if isinstance(part, str):
            markdown.append(f"## {part}")
            page.append(f"<h2>{html.escape(part)}</h2>")
        elif isinstance(part[1], bytes):
            with atomic_path(folder / part[0]) as temporary:
                temporary.write_bytes(part[1])
            label = Path(part[0]).stem.replace("_", " ")
            markdown.append(f"![{label}]({part[0]})")
            page.append(f'<img alt="{label}" src="data:image/png;base64,{base64.b64encode(part[1]).decode()}">')
        else:
            markdown.append(f"{_cell(part[0])}\n\n{_markdown(part[1])}" if part[0] else _markdown(part[1]))
            page.append(html_table(*part))
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
    write_text(folder / f"{name}.md", "\n\n".join(markdown) + "\n")
    write_text(folder / f"{name}.html", f"{head}<style>{STYLE}</style>{''.join(page)}</html>\n")


def html_table(caption: str, table: pd.DataFrame) -> str:
    """Return a captioned table as HTML."""
    return f"<p>{html.escape(caption)}</p>{table.to_html()}"


def settings_table(settings: dict) -> pd.DataFrame:
    """Return nested settings as a table with dotted names, e.g. training.epochs."""
    return pd.DataFrame({"value": pd.Series(flat(settings), dtype=object).map(str)}).rename_axis("setting")


def flat(settings: dict, prefix: str = "") -> dict:
    """Return nested settings as one dict with dotted names."""
    found = {}
    for name, value in settings.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def _markdown(table: pd.DataFrame) -> str:
    lines = [[table.index.name or "", *table.columns], ["---"] * (1 + len(table.columns))]
    lines += [[name, *row] for name, row in zip(table.index, table.to_numpy(), strict=True)]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(value: object) -> str:
    return html.escape(str(value), quote=False).replace("|", "\\|").replace("\n", " ")
