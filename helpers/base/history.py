"""What a training's history says: the best dev score so far, and what looks wrong."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class BestScore:
    """The best dev score so far, and how many evaluations ago it was found."""

    value: float = -math.inf
    age: int = 0

    def add(self, score: float) -> bool:
        """Take in the next score; return whether it is better than all before it (an equal score is not)."""
        better = score > self.value
        self.value, self.age = (score, 0) if better else (self.value, self.age + 1)
        return better


def diagnose(history: Sequence[dict], window: int = 20, contrastive: bool = True, ended: bool = True) -> list[str]:
    """Return a sentence for each thing that looks wrong in a training's history; none if all is well.

    A contrastive loss that stays at `chance`, the mean of ln(candidates), has learnt nothing; one at 0 had nothing to
    learn. Both are looked for in the last `window` steps. Whether training helped is said once it has `ended`.
    """
    last = [entry for entry in history if "loss" in entry][-window:]
    scores = [entry["dev"] for entry in history if "dev" in entry]
    found = []
    if contrastive and len(last) == window:
        loss, chance = (sum(entry[name] for entry in last) / window for name in ("loss", "chance"))
        if loss < 1e-4:
            found.append(
                f"the loss is {loss:.1e}: the positives can be told without reading. Are there negatives? "
                "Look at in_batch, hard_negatives, batch_size and masks"
            )
        if abs(loss - chance) < 0.02 * chance:
            found.append(
                f"the loss stays at {loss:.2f}, guessing gives {chance:.2f}: all texts get one vector "
                "(learning_rate too high), nothing moves (too low), or the positives are wrong"
            )
    if ended and len(scores) > 1 and max(scores) == scores[0]:
        after = max(scores[1:])
        verdict = "made dev worse" if after < scores[0] else "did not make dev better"
        found.append(
            f"training {verdict} ({scores[0]:.3f} before, at best {after:.3f} after): the model before it was kept; "
            "lower learning_rate, or look at the negatives"
        )
    return found
