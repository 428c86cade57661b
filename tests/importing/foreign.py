"""Small data sets of our own text (CC0) in every format that the importer reads, and exports back into them."""

import json
import random

import datasets

from helpers.dataset import load_data
from helpers.importing.export import export_data

VALVES = [
    "ball valve",
    "gate valve",
    "check valve",
    "relief valve",
    "needle valve",
    "plug valve",
    "globe valve",
    "pinch valve",
    "poppet valve",
    "spool valve",
    "butterfly valve",
    "diaphragm valve",
]
PARTS = ["seat", "stem", "bonnet", "packing", "disc", "spring", "flange", "gasket", "yoke", "actuator"]
METALS = ["brass", "bronze", "cast iron", "carbon steel", "duplex steel", "monel", "titanium", "nickel", "zinc", "tin"]
FIRST, LAST = "青白云长东南西北石柳金银", ["石城", "沙镇"]
THINGS = ["茶叶", "瓷器", "丝绸", "竹器", "酱油", "陶罐", "纸伞", "铜镜", "木梳", "草帽"]
MONTHS = ["正月", "二月", "三月", "四月", "五月", "六月", "七月", "八月", "九月", "十月"]


def long_articles(seed=0):
    """Return SQuAD articles about made-up valves: one context of 600 words each, ten questions."""
    rng, articles = random.Random(seed), []
    for number, valve in enumerate(VALVES):
        text, qas = f"Maintenance notes for the {valve}, series {number + 1}. ", []
        for part in PARTS:
            torque, metal = rng.randint(10, 900), rng.choice(METALS)
            text += (
                f"The {part} of the {valve} is made of {metal}. A fitter who puts the {part} back lubricates its "
                "thread, aligns it with the mark on the body and tightens it in three passes, crosswise, until the "
                "wrench shows "
            )
            answer = f"{torque} newton metres"
            qas.append(
                {
                    "id": f"{number}-{part}",
                    "question": f"How tight is the {part} of the {valve} fastened?",
                    "answers": [{"text": answer, "answer_start": len(text)}],
                }
            )
            text += (
                f"{answer}. After a week of service the same torque is checked again on the {valve}, cold and without "
                "pressure, and the reading is written down in the log of the pump house. "
            )
        articles.append({"title": f"The_{valve.replace(' ', '_')}", "paragraphs": [{"context": text, "qas": qas}]})
    return articles


def chinese_articles(seed=0):
    """Return SQuAD articles about made-up towns, in Chinese: one context of 500 characters each, ten questions."""
    rng, articles = random.Random(seed), []
    for town in (first + last for first in FIRST for last in LAST):
        text, qas = f"{town}是一座古老的地方。", []
        for thing in THINGS:
            answer = f"{rng.randint(1000, 9999)}人"
            text += f"{town}的{thing}很有名，每年{rng.choice(MONTHS)}举行集市，约有"
            qas.append(
                {
                    "id": f"{town}-{thing}",
                    "question": f"{town}的{thing}集市有多少人前来购买？",
                    "answers": [{"text": answer, "answer_start": len(text)}],
                }
            )
            text += f"{answer}前来购买。老人们说，这门手艺已经传了许多代。"
        articles.append({"title": town, "paragraphs": [{"context": text, "qas": qas}]})
    return articles


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path


def lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def parts(data):
    """Return passages by id, and for each split (qid, text, answers, positives, given negative) of its questions."""
    passages = {row["_id"]: row for row in data.corpus}
    negative = {qid: pid for qid, _, pid in data.triples}
    asked = {
        split: [
            (qid, data.queries[qid].text, list(data.queries[qid].answers), sorted(pids), negative.get(qid))
            for qid, pids in qrels.items()
        ]
        for split, qrels in data.qrels.items()
    }
    return passages, asked


def export(form, folder, out):
    """Write an imported folder in a foreign format and return the paths to import, and options."""
    data = load_data(folder)
    passages, asked = parts(data)
    return EXPORTS[form](passages, asked, out)


def export_squad(passages, asked, out):
    paths = []
    for split, questions in asked.items():
        articles = {}
        for pid, row in passages.items():
            if row["split"] == split:
                articles.setdefault(row["title"], {})[pid] = {"context": row["text"], "qas": []}
        for qid, text, answers, (pid, *_), _ in questions:
            context = passages[pid]["text"]
            found = [{"text": answer, "answer_start": context.find(answer)} for answer in answers]
            articles[passages[pid]["title"]][pid]["qas"].append({"id": qid, "question": text, "answers": found})
        value = [{"title": title, "paragraphs": list(found.values())} for title, found in articles.items()]
        paths.append(write(out / f"{split}.json", {"version": "1.1", "data": value}))
    return paths, {}


def export_dpr(passages, asked, out):
    def context(pid):
        return {"title": passages[pid]["title"], "text": passages[pid]["text"], "passage_id": pid}

    paths = []
    for split, questions in asked.items():
        items = [
            {
                "question": text,
                "answers": answers,
                "positive_ctxs": [context(pid) for pid in pids],
                "hard_negative_ctxs": [context(negative)] if negative else [],
                "negative_ctxs": [],
            }
            for _, text, answers, pids, negative in questions
        ]
        paths.append(write(out / f"{split}.json", items))
    return paths, {}


def export_msmarco(passages, asked, out):
    write(out / "collection.tsv", "".join(f"{pid}\t{row['text']}\n" for pid, row in passages.items()))
    triples = []
    for split, questions in asked.items():
        write(out / f"queries.{split}.tsv", "".join(f"{q[0]}\t{q[1]}\n" for q in questions))
        write(out / f"qrels.{split}.tsv", "".join(f"{q[0]} 0 {pid} 1\n" for q in questions for pid in q[3]))
        triples += [f"{q[0]}\t{q[3][0]}\t{q[4]}\n" for q in questions if q[4]]
    write(out / "qidpidtriples.train.tsv", "".join(triples))
    return [out], {}


def export_beir(passages, asked, out):
    write(out / "corpus.jsonl", lines({k: v for k, v in row.items() if v or k != "split"} for row in passages.values()))
    questions = [question for found in asked.values() for question in found]
    write(out / "queries.jsonl", lines({"_id": q[0], "text": q[1], "answers": q[2]} for q in questions))
    for split, found in asked.items():
        rows = "".join(f"{q[0]}\t{pid}\t1\n" for q in found for pid in q[3])
        write(out / "qrels" / f"{split}.tsv", "query-id\tcorpus-id\tscore\n" + rows)
    rows = "".join(f"{q[0]}\t{q[3][0]}\t{q[4]}\n" for q in questions if q[4])
    write(out / "triples" / "train.tsv", "qid\tpos_pid\tneg_pid\n" + rows)
    return [out], {}


def export_qa(passages, asked, out):
    corpus = write(
        out / "corpus.jsonl", lines({k: row[k] for k in ("_id", "title", "text")} for row in passages.values())
    )
    paths = [
        write(out / f"{split}.jsonl", lines({"_id": q[0], "question": q[1], "answer": q[2]} for q in questions))
        for split, questions in asked.items()
    ]
    return paths, {"corpus": corpus}


def export_table(passages, asked, out):
    paths = []
    for split, questions in asked.items():
        rows = ["question\tpassage\ttitle\tanswers\tnegative\n"]
        for _, text, answers, (pid, *_), negative in questions:
            other = passages[negative]["text"] if negative else ""
            rows.append(f"{text}\t{passages[pid]['text']}\t{passages[pid]['title']}\t{'||'.join(answers)}\t{other}\n")
        paths.append(write(out / f"{split}.tsv", "".join(rows)))
    return paths, {}


def export_lists(passages, asked, out):
    """As `helpers.importing.export` writes them."""
    beir = export_beir(passages, asked, out.with_name(f"{out.name}-beir"))[0][0]
    export_data(beir, "flagembedding", out)
    return [out / f"{split}.jsonl" for split in asked], {}


def export_columns(passages, asked, out):
    beir = export_beir(passages, asked, out.with_name(f"{out.name}-beir"))[0][0]
    export_data(beir, "sentence-transformers", out, kind="parquet")
    return [out / f"{split}.parquet" for split in asked], {}


def export_hub(passages, asked, out):
    for split, questions in asked.items():
        order = list(passages)
        rows = [
            {
                "id": q[0],
                "title": passages[q[3][0]]["title"],
                "context": passages[q[3][0]]["text"],
                "question": q[1],
                "answers": {"text": q[2], "answer_start": [passages[q[3][0]]["text"].find(a) for a in q[2]]},
            }
            for q in sorted(questions, key=lambda q: order.index(q[3][0]))
        ]
        (out / "data").mkdir(parents=True, exist_ok=True)
        name = "validation" if split == "dev" else split
        datasets.Dataset.from_list(rows).to_parquet(out / "data" / f"{name}-00000-of-00001.parquet")
    return [out], {}


EXPORTS = {
    "squad": export_squad,
    "dpr": export_dpr,
    "msmarco": export_msmarco,
    "beir": export_beir,
    "qa": export_qa,
    "table": export_table,
    "flagembedding": export_lists,
    "sentence-transformers": export_columns,
    "hub": export_hub,
}
