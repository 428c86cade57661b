"""Opening a run: parameters checked, device chosen, data loaded, run folder made; a notebook starts with its topic."""

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from helpers.base.devices import choose_device, choose_precision
from helpers.base.errors import DataError, ModelError, SettingError
from helpers.base.files import display_path, resolve, told
from helpers.dataset import PassageIndex, RetrievalData, load_data
from helpers.encoder import Encoder, load_encoder, save_memory
from helpers.importing.sources import find_data
from helpers.negatives import MiningSettings, Pool, load_pool, mine_pool
from helpers.profiles import read_metadata
from helpers.retrieval import BM25
from helpers.running.parameters import check_parameters
from helpers.strategies import bm25_strategy
from helpers.topics.small_vectors import MatryoshkaEncoder
from helpers.training import TrainingSettings


@dataclass(frozen=True)
class CourseRun:
    """What a notebook works with: its checked parameters, its data, and the folder that it reads and writes.

    Attributes
    ----------
    parameters : name -> value, as the notebook's parameters cell declares them
    folder : `run_dir` as an absolute path; it exists
    device : "cuda" or "cpu"
    data : the data set that `data` names
    """

    parameters: dict[str, Any]
    folder: Path
    device: str
    data: RetrievalData

    @property
    def models(self) -> Path:
        """The folder of the run's models."""
        return self.folder / "models"

    @cached_property
    def training(self) -> PassageIndex:
        """The passages to mine and to train on: none that belongs to dev or test."""
        return self._index(self.data.training_corpus())

    @cached_property
    def passages(self) -> PassageIndex:
        """The passages that are searched, by the parameter `eval_corpus`."""
        return self._index(self.data.evaluation_corpus(self.parameters.get("eval_corpus", "all")))

    @cached_property
    def dev_passages(self) -> PassageIndex:
        """The passages that dev is searched over: all of `passages`, or by the parameter `dev_passages` fewer."""
        count = self.parameters.get("dev_passages", 0)
        if count == 0 or count >= len(self.passages):
            return self.passages
        return fewer_passages(self.data, self.passages, list(self.questions("dev")), count, self.parameters["seed"])

    def _index(self, corpus) -> PassageIndex:
        return PassageIndex(corpus, *(self.parameters.get(name, False) for name in ("match_title", "strict_dpr")))

    def questions(self, split: str, limit: int | None = None) -> dict[str, str]:
        """Return question id -> text of a split: `limit` of them, drawn with `seed`; 0: all.

        Without a limit the parameter `<split>_questions` decides, if the notebook has one.
        """
        limit = self.parameters.get(f"{split}_questions", 0) if limit is None else limit
        qids = self.data.split_queries(split, limit, self.parameters["seed"])
        return {qid: self.data.queries[qid].text for qid in qids}

    def encoder(self) -> Encoder:
        """Return a fresh encoder, loaded as the parameters say."""
        names = ("prefixes", "max_length", "device", "dimensions")
        options = {name: self.parameters[name] for name in names if name in self.parameters}
        cuts = self.parameters.get("matryoshka", [])
        encoder_class = MatryoshkaEncoder if cuts else Encoder
        encoder = load_encoder(self.parameters["model_name"], encoder_class=encoder_class, **options)
        if cuts:
            encoder.set_cuts(cuts)
        less, rank = self.parameters.get("gradient_checkpointing", False), self.parameters.get("lora_rank", 0)
        return self._precise(save_memory(encoder, less, rank))

    def trained(self, name: str) -> Encoder:
        """Load the model that notebook 03 left in `models/<name>`.

        Raises
        ------
        ModelError : there is none, or it was trained on other data
        """
        folder, here = self.models / name, self.data.fingerprint
        where, metadata = display_path(folder), read_metadata(folder)
        if not metadata:
            raise ModelError(f"{where} holds no trained model; run notebook 03 with the same run_dir first")
        if (there := metadata.get("data")) != here:
            raise ModelError(
                f"{where} was trained on other data (fingerprint {there}, here {here}); "
                "run notebooks 02 and 03 again, or choose another run_dir"
            )
        dimensions = self.parameters.get("dimensions", 0)
        return self._precise(load_encoder(str(folder), device=self.device, dimensions=dimensions))

    def _precise(self, encoder: Encoder) -> Encoder:
        encoder.precision = self.parameters.get("precision", "fp32")
        return encoder

    def pool(self) -> Pool:
        """Return the run's pool of hard negatives; one is mined with BM25 if notebook 02 has left none."""
        path = self.folder / "pool.jsonl"
        if not (path.exists() or path.is_symlink()):
            mining, rank = MiningSettings(seed=self.parameters["seed"]), bm25_strategy(self.data, self.training)
            qids = list(self.questions("train"))
            mine_pool(self.data, self.training, rank, qids, mining, {"strategy": "bm25"}).save(path)
        return load_pool(path, self.data)


def fewer_passages(
    data: RetrievalData, passages: PassageIndex, qids: Sequence[str], count: int, seed: int = 0
) -> PassageIndex:
    """Return `count` of the passages, over which the dev questions `qids` are searched faster than over all.

    They are the questions' positives, the first 10 passages of BM25 for each, as the hardest, and others at random.
    Scores over fewer passages are higher: compare them only with each other.

    Raises
    ------
    SettingError : `count` is too small for the first two
    """
    hardest = BM25(passages.texts).search([data.queries[qid].text for qid in qids], 10)[0]
    needed = {row for rows in hardest for row in rows.tolist()}
    needed |= passages.rows_of(pid for qid in qids for pid in data.qrels["dev"].get(qid, ()))
    if count < len(needed):
        raise SettingError(f"dev_passages={count}, but positives and BM25's first 10 are {len(needed)} already")
    drawn = random.Random(seed).sample(range(len(passages)), min(count + len(needed), len(passages)))
    others = [row for row in drawn if row not in needed][: count - len(needed)]
    corpus = passages.corpus.select(sorted([*needed, *others]))
    return PassageIndex(corpus, passages.match_title, passages.strict_dpr)


def open_run(notebook: str, namespace: dict[str, Any]) -> CourseRun:
    """Open the run of a notebook; everything that can be checked before hours of compute is checked here.

    Parameters
    ----------
    notebook : its file name without `.ipynb`
    namespace : the notebook's `globals()`

    Raises
    ------
    SettingError : a parameter has a wrong name or type, or the device is unavailable or lacks the precision
    DataError : the data set is broken, or the run folder cannot be made or written
    """
    return course_run(check_parameters(notebook, namespace))


def course_run(parameters: dict[str, Any]) -> CourseRun:
    """Open the run that checked parameters describe; see `open_run`."""
    device = choose_device(parameters.get("device", "auto"))
    if "precision" in parameters:
        parameters = {**parameters, "precision": choose_precision(parameters["precision"], device)}
    data = load_data(find_data(parameters["data"]))
    name = parameters["run_dir"]
    try:
        folder = resolve(name)
    except (OSError, RuntimeError) as error:
        raise DataError(f"run_dir={name!r}: {error}; choose another folder") from error
    with told(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise DataError(f"{folder} cannot be written; choose another run_dir, or check its permissions")
    return CourseRun(parameters, folder, device, data)


def training_settings(parameters: dict[str, Any]) -> TrainingSettings:
    """Return the settings of a training from those parameters that are fields of `TrainingSettings`."""
    names = [field.name for field in fields(TrainingSettings) if field.name in parameters]
    return TrainingSettings(**{name: parameters[name] for name in names})
