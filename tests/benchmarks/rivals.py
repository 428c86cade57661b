"""sentence-transformers' trainer and encoder, as the comparisons run them."""

import time
from pathlib import Path

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.losses import MultipleNegativesRankingLoss
from transformers import TrainerCallback

from helpers.batches import TrainingRows
from helpers.encoder import Encoder


def columns_of(rows: TrainingRows, encoder: Encoder) -> dict[str, list[str]]:
    """Return the texts of all rows as sentence-transformers trains on them, with the encoder's prefixes."""
    drawn = [rows[number] for number in range(len(rows))]
    query, passage = encoder.profile.query_prefix, encoder.profile.passage_prefix
    texts = rows.passages.texts
    columns = {
        "anchor": [query + rows.queries[row.qid].text for row in drawn],
        "positive": [passage + texts[row.positive] for row in drawn],
    }
    for place in range(rows.hard_negatives):
        columns[f"negative_{place + 1}"] = [passage + texts[row.pool[place]] for row in drawn]
    return columns


def trainer_seconds(
    model: SentenceTransformer,
    columns: dict[str, list[str]],
    folder: Path,
    batch: int,
    steps: int,
    precision: str,
    skip: int = 1,
) -> float:
    """Return the seconds that sentence-transformers' trainer takes for `steps` steps, from the end of step `skip`."""
    marks = {}

    class Clock(TrainerCallback):
        def on_step_end(self, _arguments, state, _control, **_more):
            if state.global_step in (skip, steps):
                if model.device.type == "cuda":
                    torch.cuda.synchronize()
                marks[state.global_step] = time.perf_counter()

    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch,
        max_steps=steps,
        learning_rate=2e-5,
        weight_decay=0.01,
        warmup_steps=0.1,
        max_grad_norm=1.0,
        bf16=precision == "bf16",
        save_strategy="no",
        report_to="none",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=model.device.type == "cpu",
        seed=0,
    )
    loss = MultipleNegativesRankingLoss(model, scale=20.0)
    trainer = SentenceTransformerTrainer(
        model, arguments, train_dataset=Dataset.from_dict(columns), loss=loss, callbacks=[Clock()]
    )
    trainer.train()
    return marks[steps] - marks[skip]
