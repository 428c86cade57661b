"""What a training's history says: the best dev score so far, and what looks wrong."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


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


def diagnose(
    history: Sequence[dict],
    window: int = 20,
    contrastive: bool = True,
    ended: bool = True,
    clip_norm: float | None = None,
    smallest: float | None = None,
) -> list[str]:
    """Return a sentence for each sign of trouble in a training's history, and what to change; none if all is well.

    - Loss: a contrastive one that stays at `chance`, the mean of ln(candidates), in the last `window` steps has learnt
      nothing; one at 0 had nothing to learn.
    - Dev: the model before training had the best score. Said once training has `ended`, as are the last two.
    - Memorising: since dev was best, the batches lost a third of their errors, while dev fell by more than a standard
      error of a difference, or from each evaluation to the next three times, which luck does once in 24.
    - Dev too small: all trained checkpoints lie closer together than dev can show.
    - Clipping: the gradient's norm was above `clip_norm` at 95% of the steps.

    Parameters
    ----------
    clip_norm : that of `TrainingSettings`; None: clipping is not looked at
    smallest : smallest difference of the dev score that its questions show, by
        `helpers.reporting.significance.smallest_difference`, 2.8 standard errors; None: unknown, so that nothing is
        said of dev's size, and memorising only if dev fell three times
    """
    steps = [entry for entry in history if "loss" in entry]
    scores = [entry["dev"] for entry in history if "dev" in entry]
    found = [*_loss_signs(steps[-window:], window)] if contrastive else []
    if ended and len(scores) > 1 and max(scores) == scores[0]:
        after = max(scores[1:])
        verdict = "made dev worse" if after < scores[0] else "did not make dev better"
        found.append(
            f"training {verdict} ({scores[0]:.3f} before, at best {after:.3f} after): the model before it was kept; "
            "lower learning_rate, or look at the negatives"
        )
    found += _memorising(history, window, smallest)
    if ended and smallest is not None:
        found += _dev_too_small([entry["dev"] for entry in steps if "dev" in entry], smallest)
    if ended and clip_norm is not None:
        norms = [entry["gradient_norm"] for entry in steps if entry.get("gradient_norm") is not None]
        found += _clipping(norms, clip_norm) if len(norms) >= window else []
    return found


def _loss_signs(last: Sequence[dict], window: int) -> list[str]:
    """Return what the loss of the last `window` steps says."""
    found = []
    if len(last) == window:
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
    return found


def _memorising(history: Sequence[dict], window: int, smallest: float | None) -> list[str]:
    """Return whether batches became easier while dev fell; means are of `window` steps, or of as many as there are."""
    scored = [entry for entry in history if "dev" in entry]
    if not scored:
        return []
    best, last = max(scored, key=lambda entry: entry["dev"]), scored[-1]
    before, after = (
        [entry["accuracy"] for entry in history if "accuracy" in entry and (entry["step"] <= best["step"]) == early]
        for early in (True, False)
    )
    if not before or not after:
        return []
    before, after = (statistics.fmean(values[-window:]) for values in (before, after))
    falls = [earlier["dev"] > later["dev"] for earlier, later in pairwise(scored[-4:])]
    steadily = len(falls) == 3 and all(falls)
    clearly = smallest is not None and best["dev"] - last["dev"] > smallest / 2.8
    if not (steadily or clearly) or 1 - after > 2 / 3 * (1 - before):
        return []
    return [
        f"memorising: since dev was best ({best['dev']:.3f}, step {best['step']}) the positive ranks first for "
        f"{after:.0%} of a batch instead of {before:.0%}, but dev fell to {last['dev']:.3f}. The best model was kept; "
        "for a better one, train on more questions or lower learning_rate; patience or fewer epochs save time"
    ]


def _dev_too_small(scores: Sequence[float], smallest: float) -> list[str]:
    """Return whether the dev scores of the checkpoints after the start are too close together to choose by."""
    spread = max(scores, default=0) - min(scores, default=0)
    if len(scores) < 2 or spread >= smallest:
        return []
    times = f"about {math.ceil((smallest / spread) ** 2):,} times as many" if spread else "far more"
    return [
        f"dev is too small to choose by: its questions show differences from {100 * smallest:.1f} points up, and the "
        f"{len(scores)} checkpoints lie within {100 * spread:.1f}. Take them for equally good, or choose by {times} "
        "dev questions"
    ]


def _clipping(norms: Sequence[float], clip_norm: float) -> list[str]:
    """Return whether nearly every gradient was clipped."""
    clipped = sum(norm > clip_norm for norm in norms)
    if clipped < 0.95 * len(norms):
        return []
    usual, rare = statistics.median(norms), statistics.quantiles(norms, n=20)[-1]
    return [
        f"{clipped} of {len(norms)} gradients were clipped (median norm {usual:.1f}, clip_norm {clip_norm:g}). Change "
        "nothing if the loss falls: AdamW divides by the gradient's usual size, so its steps hardly depend on it. If "
        "the norm grows or the loss jumps, lower learning_rate, for clipping hides it; to clip nothing but outliers, "
        f"set clip_norm to {rare:.0f}"
    ]
