"""Time paired significance tests of all scores against recomputing every score in each trial.

python benchmarks/significance.py --output benchmarks/results/significance.json
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import time
from pathlib import Path

import numpy as np
import scipy
import torch

from mrg.metrics import CONVENTIONS, ce_f1, mccs
from mrg.metrics.resampling import ReportSums, bootstrap, percentile_interval, randomization_p


def labels(num: int, seed: int) -> torch.Tensor:
    """(num, 14) random labels, about as rare as in reports."""
    weights = torch.tensor([0.6, 0.1, 0.25, 0.05])
    return torch.multinomial(weights, num * 14, True, generator=torch.Generator().manual_seed(seed)).view(num, 14)


def recomputed(a: torch.Tensor, b: torch.Tensor, target: torch.Tensor, num_trials: int) -> None:
    """Exchange reports and score both systems again, trial by trial."""
    rng = np.random.default_rng(0)
    for _ in range(num_trials):
        swap = torch.from_numpy(rng.random(len(a)) < 0.5)[:, None]
        for x in (torch.where(swap, b, a), torch.where(swap, a, b)):
            mccs(x, target)
            for setting in CONVENTIONS.values():
                ce_f1(x, target, **setting)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reports", type=int, default=4000)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument(
        "--peer-trials", type=int, default=10, help="trials with recomputed scores, scaled up to --trials"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    a, b, target = (labels(options.reports, seed) for seed in range(3))
    seconds: dict[str, list[float]] = {"both": [], "randomization": [], "recomputed": []}
    for _ in range(options.repeats):
        start = time.perf_counter()
        sums = [ReportSums(x, target) for x in (a, b)]
        drawn = bootstrap(sums, options.trials)
        for name in drawn[0]:
            percentile_interval(drawn[0][name] - drawn[1][name])
        middle = time.perf_counter()
        randomization_p(sums[0], sums[1], options.trials)
        end = time.perf_counter()
        seconds["both"].append(end - start)
        seconds["randomization"].append(end - middle)
        recomputed(a, b, target, options.peer_trials)
        seconds["recomputed"].append((time.perf_counter() - end) * options.trials / options.peer_trials)
    result = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {options.threads} threads",
        "versions": {"torch": torch.__version__, "numpy": np.__version__, "scipy": scipy.__version__},
        "reports": options.reports,
        "trials": options.trials,
        "scores": 1 + len(CONVENTIONS),
        "seconds": seconds,
        "ratio_to_recomputing": float(np.median(seconds["recomputed"]) / np.median(seconds["randomization"])),
    }
    for name, label in (
        ("both", "bootstrap intervals and randomization p, all scores"),
        ("randomization", "of which randomization"),
        ("recomputed", f"randomization, scores recomputed (scaled up from {options.peer_trials} trials)"),
    ):
        values = seconds[name]
        print(f"{label:<66}{min(values):9.2f} {np.median(values):9.2f} {max(values):9.2f} s (min, median, max)")
    print(f"{result['ratio_to_recomputing']:.0f} times faster")
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
