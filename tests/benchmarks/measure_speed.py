"""How fast this project is beside what people would use otherwise: both sides in turn, in one process.

    make bench                                                   all of it; more than 20 minutes on two CPU cores
    python -m tests.benchmarks.measure_speed encoding mask       some of it

A first round does not count. Writes a list of {work, rival, ratio_median, ratio_min, ratio_max, target, …} to
runs/bench.json after every piece of work, and a plot beside it at the end. A ratio is the rival's time over ours, so
above 1 we are faster.
"""

import argparse
import gc
import re
import statistics
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from helpers.base.files import ROOT, write_json
from tests.benchmarks.common import machine, spread
from tests.benchmarks.duels import DUELS, Duel, threads


def run(duel: Duel, rounds: int) -> dict:
    """Return the result of a duel: ratios round by round, the median seconds of both, and the MB that they took."""
    pairs = [(with_memory(duel.theirs), with_memory(duel.ours)) for _ in range(rounds + 1)][1:]
    theirs, ours = zip(*pairs, strict=True)
    about = {"work": duel.work, "rival": duel.rival, "target": duel.target, "rounds": rounds, **duel.more}
    about |= spread([seconds for seconds, _ in theirs], [seconds for seconds, _ in ours])
    for side, measured in (("", ours), ("rival_", theirs)):
        seconds, megabytes = (statistics.median(column) for column in zip(*measured, strict=True))
        about |= {f"{side}seconds": seconds, f"{side}megabytes": round(megabytes, 1)}
    return about


def with_memory(work: Callable[[], float]) -> tuple[float, float]:
    """Return the seconds that `work` returns, and how many MB more it took at its peak; 0 without Linux."""
    status, forget = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def megabytes(name: str) -> float:
        return int(re.search(rf"{name}:\s+(\d+) kB", status.read_text())[1]) / 1024

    if not forget.exists():
        return work(), 0.0
    gc.collect()
    forget.write_text("5")  # from here on, VmHWM is the highest memory
    before = megabytes("VmRSS")
    seconds = work()
    return seconds, megabytes("VmHWM") - before


def draw(results: list[dict], path: Path) -> None:
    """Save a plot: each work's median ratio, its spread as a line, its target as a tick."""
    figure, axes = plt.subplots(figsize=(9, 0.45 * len(results) + 1.2), layout="constrained")
    for place, row in enumerate(reversed(results)):
        colour = "tab:blue" if row["ratio_median"] >= row["target"] else "tab:orange"
        axes.plot([row["ratio_min"], row["ratio_max"]], [place, place], color=colour, linewidth=2)
        axes.plot(row["ratio_median"], place, "o", color=colour)
        axes.plot(row["target"], place, "|", color="black", markersize=16)
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xticks([1, 2, 5, 10, 20, 50, 100, 200], [1, 2, 5, 10, 20, 50, 100, 200])
    axes.set_yticks(
        range(len(results)), [f"{row['work']}\nagainst {row['rival']}" for row in reversed(results)], fontsize=7
    )
    axes.set_xlabel("times as fast (line: least to largest; tick: asked)", fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Run the duels that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="name", help=f"some of {', '.join(DUELS)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "bench.json")
    options = parser.parse_args()
    if unknown := set(options.names) - set(DUELS):
        parser.error(f"{', '.join(unknown)}: no such work; use some of {', '.join(DUELS)}")
    print(f"{machine()}, {threads()} threads, AVX512: {torch.cpu.get_capabilities().get('avx512_f', False)}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    results = []
    for name in options.names or DUELS:
        results.append({"machine": machine(), **run(DUELS[name](), options.rounds)})
        write_json(options.out, results)
        row = results[-1]
        ratio = f"{row['ratio_median']:.2f} ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})"
        print(f"{row['work']}: {ratio} times as fast as {row['rival']}; asked {row['target']:g}", flush=True)
        gc.collect()
    draw(results, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
