"""A folder of documents -> passages with titles: .txt, .md, .html and .pdf, cut between sentences, with an overlap.

Documents alone are no data set yet, since nobody has asked anything; notebook 12 lets a language model write questions.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import mistune
from bs4 import BeautifulSoup
from pypdf import PdfReader

from helpers.base.checks import Place, Problems
from helpers.base.errors import DataError, SettingError
from helpers.base.files import read_pieces, resolve, told
from helpers.importing.squad import PASSAGE_WORDS, UNSPACED, WORD, divide, question_id, split_text

PIECE = 2**20  # bytes read at a time
NO_TEXT = ["script", "style", "noscript", "template", "nav", "aside", "footer", "form", "svg", "head"]
BLOCKS = "address article blockquote dd div dl dt figcaption h1 h2 h3 h4 h5 h6 header hr li main ol p pre section tr ul"
BETWEEN_SENTENCES = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+|(?<=[。！？])|\n\s*\n")


@dataclass(frozen=True)
class Document:
    """A document's name (its path in the folder), its title, and its text, with a blank line between paragraphs."""

    name: str
    title: str
    text: str


def read_documents(folder: str | Path, problems: Problems) -> list[Document]:
    """Return the documents of a folder and of the folders in it, in the order of their names.

    Parameters
    ----------
    problems : told which files were left out: those of other kinds, and those without text, such as scanned pages

    Raises
    ------
    DataError : there is no such folder or nothing to read in it, or it names the files that cannot be read
    """
    folder = resolve(folder)
    with told(folder):
        if not folder.is_dir():
            raise DataError(
                f"{folder} is not a folder; put the documents ({', '.join(READERS)}) into one and name that"
            )
        paths = sorted(path for path in folder.rglob("*") if path.is_file() and not _hidden(path.relative_to(folder)))
    documents = []
    for path in paths:
        name, read = path.relative_to(folder).as_posix(), READERS.get(path.suffix.lower())
        if read is None:
            problems.warn(f"files of other kinds than {', '.join(READERS)}, left out", name)
            continue
        try:
            title, text = read(path)
        except DataError as error:
            problems.error(Place(path, "whole file"), str(error).removeprefix(f"{path}: "))
            continue
        paragraphs = [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text)]
        text = "\n\n".join(filter(None, paragraphs))
        if not any(map(str.isalnum, text)):
            problems.warn("files without text, left out; scanned pages need OCR first", name)
            continue
        stem = path.stem.replace("_", " ").replace("-", " ").strip()
        documents.append(Document(name, " ".join(title.split()) or stem, text))
    problems.stop()
    if not documents:
        found = "; ".join(problems.warned()) or "it is empty"
        raise DataError(f"{folder} holds no document that can be read ({found})")
    return documents


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _bytes(path: Path) -> bytes:
    """Return a file's bytes, as UTF-8 if they were UTF-16."""
    return b"".join(read_pieces(path, lambda file: file.readline(PIECE)))


def _text_file(path: Path) -> tuple[str, str]:
    """Return no title and the text; a file of the older encodings is refused, since they cannot be told apart."""
    try:
        return "", _bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason}); save it as UTF-8") from error


def _markdown_file(path: Path) -> tuple[str, str]:
    _, text = _text_file(path)
    front = re.match(r"---\n(.*?)\n---\n", text, re.S)  # the settings that site generators keep at the top
    given = front and re.search(r"^title:\s*[\"']?(.+?)[\"']?\s*$", front[1], re.M)
    title, text = _page(mistune.html(text[front.end() :] if front else text))
    return (given[1] if given else title), text


def _html_file(path: Path) -> tuple[str, str]:
    return _page(_bytes(path))


def _page(source: str | bytes) -> tuple[str, str]:
    """Return title and text of HTML, without menus, scripts and the like; bytes are decoded as they themselves say."""
    soup = BeautifulSoup(source, "html.parser")
    heading = soup.find("h1")
    title = heading or soup.title
    name = title.get_text(" ") if title else ""
    for tag in [*soup.find_all(NO_TEXT), *([heading] if heading else [])]:
        tag.decompose()
    for string in soup.find_all(string=True):
        string.replace_with(type(string)(" ".join(["", *string.split(), ""]) if string.strip() else " "))
    for tag in soup.find_all(BLOCKS.split()):
        tag.insert_before("\n\n")
        tag.insert_after("\n\n")
    for tag in soup.find_all(["br", "td", "th"]):
        tag.insert_after(" ")
    return name, soup.get_text()


def _pdf_file(path: Path) -> tuple[str, str]:
    """Return the title that a PDF says it has, and the text of its pages, with the words that line ends cut in two."""
    try:
        pages = PdfReader(path)
        if pages.is_encrypted and not pages.decrypt(""):
            raise DataError(f"{path}: it needs a password; save it without one")
        text = "\n".join(page.extract_text() for page in pages.pages)
        title = (pages.metadata and pages.metadata.title) or ""
    except DataError:
        raise
    except Exception as error:  # what a damaged PDF makes of a reader is not limited to the errors it knows
        raise DataError(f"{path}: not a PDF that can be read ({error}); open it and print it into a new one") from error
    return title, re.sub(r"(?<=[a-z])-\n(?=[a-z])", "", text).encode("utf-8", "replace").decode("utf-8")


READERS: dict[str, Callable[[Path], tuple[str, str]]] = {
    ".txt": _text_file,
    ".md": _markdown_file,
    ".html": _html_file,
    ".htm": _html_file,
    ".pdf": _pdf_file,
}


def cut(text: str, size: int = PASSAGE_WORDS, overlap: int = 20) -> list[str]:
    """Return the passages of a text: at most `size` words each, cut between sentences where that is possible.

    A passage begins with the last sentences of the one before, as many as `overlap` words hold, so that a fact whose
    sentences a cut would separate stands together somewhere. Two characters of an unspaced script count as a word.

    >>> cut("One two. Three. Four five six. Seven.", size=4, overlap=1)
    ['One two. Three.', 'Three. Four five six.', 'Seven.']
    """
    if not 0 <= overlap < size:
        raise SettingError(f"size={size}, overlap={overlap}: overlap is a number of words below size")
    ends = [match.end() for match in BETWEEN_SENTENCES.finditer(text)]
    spans = []  # of sentences, or of the parts of one that is too long
    for begin, end in zip([0, *ends], [*ends, len(text)], strict=True):
        spans += [(begin + a, begin + b) for a, b in split_text(text[begin:end], (), size, size) if a < b]
    words = [_words(text[begin:end]) for begin, end in spans]
    passages, start, end = [], 0, 0
    while end < len(spans):
        held, end = sum(words[start:end]), max(end, start)
        while end < len(spans) and (end == start or held + words[end] <= size):
            held += words[end]
            end += 1
        passages.append(" ".join(text[spans[start][0] : spans[end - 1][1]].split()))
        first, start, back = start, end, 0.0
        while end < len(spans) and start > first + 1:
            back += words[start - 1]
            if back > overlap or back + words[end] > size:
                break
            start -= 1
    return [passage for passage in passages if passage]


def _words(text: str) -> float:
    found = Counter(bool(re.match(f"[{UNSPACED}]", word)) for word in WORD.findall(text))
    return found[False] + found[True] / 2


def document_rows(
    documents: Sequence[Document],
    size: int = PASSAGE_WORDS,
    overlap: int = 20,
    seed: int = 0,
    shares: Sequence[float] = (80, 10, 10),
) -> list[dict]:
    """Return corpus rows, `_id`, `title`, `text` and `split`: a document is of one split as a whole.

    `shares` are those of train, dev and test. Raises a DataError if there are fewer than three documents.
    """
    rows, taken = [], Counter()
    for document, split in zip(documents, divide([""] * len(documents), seed, shares), strict=True):
        name = question_id(document.name)
        taken[name] += 1  # "a b.txt" beside "a_b.txt"
        name = name if taken[name] == 1 else f"{name}~{taken[name]}"
        for number, text in enumerate(cut(document.text, size, overlap)):
            rows.append({"_id": f"{name}-{number:03d}", "title": document.title, "text": text, "split": split})
    return rows
