"""Written questions: what is of no use is dropped for a reason that is counted; the cache takes passages too."""

import json

import pytest

from helpers.topics import expansion, questions
from helpers.topics.expansion import Generation
from helpers.topics.questions import PROMPT, clean, question, write_questions


@pytest.mark.parametrize(
    ("text", "asked", "fate"),
    [
        (" Which moon has lakes?\n\nAnswer: Titan", "Which moon has lakes?", "kept"),
        ('Question: "Which moon has lakes?"', "Which moon has lakes?", "kept"),
        ("Which moon has lakes? Which has none?", "Which moon has lakes?", "kept"),
        ("**Who was J. R. R. Tolkien?**", "Who was J. R. R. Tolkien?", "kept"),
        ("哪颗卫星有湖泊？", "哪颗卫星有湖泊？", "kept"),
        ("Titan has lakes.", "", "no question"),
        ("", "", "no question"),
        ("\n\n", "", "no question"),
        ("?", "", "no question"),
        ("What is it?", "", "too short or too long"),
        ("Who " + "really " * 40 + "did it?", "", "too short or too long"),
        ("What does this passage say about Titan?", "", "about the text itself"),
        ("What is the answer to this question?", "", "about the text itself"),
        ("Who is the author of the article on Titan?", "", "about the text itself"),
        ("Which passages lead through the ice of Titan?", "Which passages lead through the ice of Titan?", "kept"),
        ("Which teacher invented korfball in 1902?", "", "copied from the prompt"),
        ("Which animal is the largest rough diamond ever found?", "", "copied from the prompt"),
    ],
)
def test_what_a_written_text_is_good_for(text, asked, fate):
    assert question(text) == (asked, fate)


def test_every_text_has_one_fate_and_ambiguous_questions_go():
    written = {
        "p2": ["Which moon has lakes?", "which moon has lakes ?", "Titan has lakes."],
        "p1": ["Which moon has the tallest cliff?", "Who found the moon Miranda?", "Which moon has lakes of water?"],
        "p3": ["Which moon has lakes of water?", "What is the text about?", ""],
    }
    kept, fates = clean(written)
    assert kept == [
        ("p2", "Which moon has lakes?"),
        ("p1", "Which moon has the tallest cliff?"),
        ("p1", "Who found the moon Miranda?"),
    ]
    assert fates == {
        "kept": 3,
        "no question": 2,
        "about the text itself": 1,
        "the same for several passages": 2,
        "written twice for a passage": 1,
    }
    assert fates.total() == 9


class Parrot:
    """A writer that asks about the last word of its prompt's text."""

    def __init__(self):
        self.calls = []

    def write(self, prompts, settings, seed):
        self.calls.append(len(prompts))
        words = [prompt.split("\nQuestion:")[-2].split()[-1] for prompt in prompts]
        return [[f"Who has really seen {word}?"] * settings.samples for word in words]


def test_questions_are_written_once_and_kept_with_their_passages(tmp_path, monkeypatch):
    parrot = Parrot()
    monkeypatch.setattr(expansion, "load_writer", lambda *_: parrot)
    passages = {f"p{n}": f"A text about thing{n}" for n in range(20)}
    written = write_questions("parrot", passages, tmp_path / "q.jsonl")
    assert written == {f"p{n}": [f"Who has really seen thing{n}?"] for n in range(20)} and parrot.calls == [16, 4]
    assert write_questions("parrot", passages, tmp_path / "q.jsonl") == written and len(parrot.calls) == 2
    head, row, *_ = map(json.loads, (tmp_path / "q.jsonl").read_text(encoding="utf-8").splitlines())
    assert head["prompt"] == PROMPT and row["passage"] == passages[row["qid"]] and "question" not in row
    passages["p3"] = "A text about another"  # a passage that changed is written for again
    assert write_questions("parrot", passages, tmp_path / "q.jsonl")["p3"] == ["Who has really seen another?"]
    assert parrot.calls == [16, 4, 1]
    sampled = write_questions("parrot", passages, tmp_path / "q.jsonl", Generation(28, 0.7, 2))
    assert all(len(own) == 2 for own in sampled.values())


def test_the_examples_of_the_prompt_are_in_no_data_set_of_the_course(sample):
    texts = [row["text"] for row in sample.corpus]
    assert PROMPT.count("Text: ") == 3 and PROMPT.endswith("Text: {passage}\nQuestion:")
    for line in PROMPT.splitlines():
        if line.startswith("Text: ") and "{passage}" not in line:
            assert line.removeprefix("Text: ") not in texts
    assert not {query.text for query in sample.queries.values()} & {
        line.removeprefix("Question: ") for line in PROMPT.splitlines()
    }
    assert questions.question(PROMPT.splitlines()[3])[1] == "copied from the prompt"
