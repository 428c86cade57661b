"""Code search as a data set: the first sentence of a docstring is the question, its function the passage.

The way of Husain et al. 2019, CodeSearchNet (https://arxiv.org/abs/1909.09436), made from any wheel of Python files.
Neither text nor questions are of the kind that the course trains on, so it shows what a training costs elsewhere.
"""

import ast
import re
import textwrap
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

LEAST_WORDS = 4  # of a question; shorter ones, like "Returns the graph.", describe many functions


def code_search(wheel: str | Path) -> tuple[list[dict], list[dict], dict[str, list[tuple[str, str, int]]]]:
    """Return corpus, queries and qrels, as `helpers.importing.sources.write_folder` takes them.

    A passage is the source of a function, its docstring and tests left out. Functions with the same first sentence are
    relevant to one and the same question. Questions go to dev and test by their module, in turn.
    """
    functions: dict[str, list[str]] = defaultdict(list)  # question -> ids of passages, in the order of the files
    corpus, split_of = [], {}
    with zipfile.ZipFile(wheel) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".py") and "/tests/" not in name)
        for number, name in enumerate(names):
            for function, question, source in documented(archive.read(name).decode("utf-8")):
                pid = f"{name.removesuffix('.py').replace('/', '.')}.{function}"
                split = split_of.setdefault(question, ("test", "dev")[number % 2])
                corpus.append({"_id": pid, "title": "", "text": source, "split": split})
                functions[question].append(pid)
    queries, qrels = [], {"dev": [], "test": []}
    for number, (question, pids) in enumerate(functions.items()):
        queries.append({"_id": f"c{number:04d}", "text": question})
        qrels[split_of[question]] += [(queries[-1]["_id"], pid, 1) for pid in pids]
    return corpus, queries, qrels


def documented(code: str) -> Iterator[tuple[str, str, str]]:
    """Yield the qualified name, first sentence and source without docstring of every documented function."""
    lines, seen = code.splitlines(), set()

    def walk(node: ast.AST, prefix: str) -> Iterator[tuple[str, str, str]]:
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            name = f"{prefix}{child.name}"
            sentence = first_sentence(ast.get_docstring(child) or "")
            is_function = not isinstance(child, ast.ClassDef)
            if is_function and len(child.body) > 1 and len(sentence.split()) >= LEAST_WORDS and name not in seen:
                seen.add(name)  # a second definition of the same name, as under `if`, would have the same id
                doc = child.body[0]
                source = lines[child.lineno - 1 : doc.lineno - 1] + lines[doc.end_lineno : child.end_lineno]
                yield name, sentence, textwrap.dedent("\n".join(source))
            yield from walk(child, f"{name}.")

    yield from walk(ast.parse(code), "")


def first_sentence(docstring: str) -> str:
    """Return the first sentence of a docstring on one line, without the marks of reStructuredText.

    >>> first_sentence("Return the `k` best\\n   edges of a graph.  More follows.")
    'Return the k best edges of a graph.'
    """
    paragraph = " ".join(docstring.strip().split("\n\n")[0].split())
    return re.split(r"(?<=[.!?])\s(?=[A-Z])", paragraph)[0].replace("`", "")
