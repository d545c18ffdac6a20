"""The study of docs/iu_small.md: all systems of all seeds on the test split, paired intervals, baselines, one table.

python benchmarks/iu_small.py runs/iu_small_study --data.root FOLDER --nearest runs/nearest_image > output.txt

Reads the predictions that `python -m mrg ablate --config configs/iu_small_study.yaml` left. Constant reports are chosen
on the training split, so that nothing is tuned on the test split. The nearest image is
`python -m mrg test --config configs/iu_small.yaml --config configs/baselines/nearest_image.yaml`.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mrg.datamodules.iu import IUXRayDataModule
from mrg.datamodules.study import leakage_free
from mrg.metrics import CONDITIONS, THIRTEEN, RulesLabeler, ce_f1, mccs
from mrg.metrics.ce import report_counts
from mrg.metrics.conditions import stated
from mrg.metrics.constants import BestConstants
from mrg.metrics.evaluation import CONSTANT_NORMAL, most_frequent_report
from mrg.metrics.nlg import nlg_scores
from mrg.metrics.resampling import percentile_interval
from mrg.metrics.tables import informedness

ARMS = {
    "vision": "tower's head at its validation threshold",
    "sft": "SFT",
    "sft_continued": "SFT, continued",
    "sft_continued_2": "SFT, continued twice",
    "sft_balanced": "SFT, balanced",
    "grpo_mccs": "GRPO, MCCS",
    "grpo_corpus": "GRPO, corpus F1",
    "grpo_both": "GRPO, corpus F1 and MCCS",
    "grpo_continued": "GRPO from SFT, continued",
    "grpo_balanced": "GRPO, balanced",
    "grpo_direct": "GRPO, balanced, from SFT",
}
COMPARED = ("grpo_corpus", "grpo_both", "grpo_continued", "grpo_balanced", "grpo_direct")
"""Arms of which the paired differences from all others are printed."""
MARGIN = 0.3
SCORES = ("micro-13+", "macro-13+", "informedness", "MCCS")
BEST = {"micro-13+": "CE-F1 micro-13+", "macro-13+": "CE-F1 macro-13+", "MCCS": "MCCS"}
"""Score -> its name in `BestConstants`."""


class Sums:
    """Per-report counts of a system, from which the scores of any resample are sums.

    Args:
        preds: (N, 14) label classes of its reports.
        target: (N, 14) label classes of the references.
    """

    def __init__(self, preds: Tensor, target: Tensor) -> None:
        self.counts = report_counts(preds, target, "positive")[:, :, :13].double()  # (3, N, 13)
        self.similarity = mccs(preds, target, MARGIN, reduction="none")
        self.frequent = self.counts[[0, 2]].sum((0, 1)) >= 10

    def scores(self, weights: Tensor) -> dict[str, np.ndarray]:
        """Score -> (R,), for (R, N) weights of the reports."""
        tp, fp, fn = torch.einsum("rn,knc->krc", weights, self.counts)
        negative = weights.sum(1, keepdim=True) - tp - fn
        informed = (tp / (tp + fn) + (negative - fp) / negative - 1)[:, self.frequent]
        values = {
            "micro-13+": 2 * tp.sum(1) / (2 * tp + fp + fn).sum(1).clamp(min=1),
            "macro-13+": (2 * tp / (2 * tp + fp + fn).clamp(min=1)).mean(1),
            "informedness": informed.nanmean(1),
            "MCCS": weights @ self.similarity / weights.sum(1),
        }
        return {name: value.numpy() for name, value in values.items()}


def resamples(num_reports: int, num: int, seed: int = 0) -> Tensor:
    """(num, N): how often each report is drawn; the first row takes each once."""
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(num_reports, [1 / num_reports] * num_reports, size=num)
    return torch.from_numpy(np.vstack([np.ones(num_reports), drawn])).double()


def table(systems: dict[str, list[str] | Tensor], target: list[str], labeler: RulesLabeler, num: int) -> dict[str, Any]:
    """Scores with intervals, and the resamples behind them for paired differences; of labels, without NLG scores."""
    reference, weights = labeler(target), resamples(len(target), num)
    result: dict[str, Any] = {}
    for name, texts in systems.items():
        labels = texts if isinstance(texts, Tensor) else labeler(texts)
        words = [] if isinstance(texts, Tensor) else texts
        row: dict[str, Any] = {"distinct": len(set(words)) or 1}
        for score, values in Sums(labels, reference).scores(weights).items():
            low, high = percentile_interval(values[1:])
            row[score] = {"value": float(values[0]), "low": low, "high": high, "drawn": values[1:]}
        nlg = nlg_scores(words, target, meteor=False).corpus if words else {}
        row |= {score: float(nlg.get(score, "nan")) for score in ("BLEU-4", "ROUGE-L")}
        precision, recall = (ce_f1(labels, reference, "none", score=s).tolist() for s in ("precision", "recall"))
        informed = informedness(labels, reference).tolist()
        row["per_condition"] = {
            c: {"precision": precision[i], "recall": recall[i], "informedness": informed[i]}
            for i, c in enumerate(THIRTEEN)
        }
        result[name] = row
    return result


def difference(rows: dict[str, Any], a: str, b: str, score: str) -> dict[str, float]:
    """Paired difference a - b with its 95 % interval."""
    low, high = percentile_interval(rows[a][score]["drawn"] - rows[b][score]["drawn"])
    return {"value": rows[a][score]["value"] - rows[b][score]["value"], "low": low, "high": high}


def percent(cell: dict[str, float], sign: str = "") -> str:
    """`23.1 [20.0, 26.2]`."""
    value, low, high = (f"{100 * cell[key]:{sign}.1f}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def print_table(title: str, rows: dict[str, Any]) -> None:
    """As Markdown, in percent."""
    heads = ["system", *SCORES, "BLEU-4", "ROUGE-L", "distinct"]
    print(f"\n### {title}\n\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for name, row in rows.items():
        nlg = " | ".join(f"{100 * row[score]:.1f}" for score in ("BLEU-4", "ROUGE-L"))
        print(f"| {name} | {' | '.join(percent(row[score]) for score in SCORES)} | {nlg} | {row['distinct']} |")


def print_differences(rows: dict[str, Any]) -> None:
    """Paired differences of the compared arms from all other systems, in percent."""
    pairs = [p for p in itertools.product([ARMS[arm] for arm in COMPARED], rows) if p[0] in rows and p[0] != p[1]]
    for score in SCORES:
        print(f"\nPaired differences in {score}:")
        for a, b in pairs:
            print(f"- {a} - {b}: {percent(difference(rows, a, b, score), '+')}")


def mean_over_seeds(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean scores over seeds, of the systems that all seeds have.

    Resamples draw the same studies for each seed.
    """
    names = [name for name in seeds[0] if all(name in rows for rows in seeds)]
    return {
        name: {
            score: {
                "value": float(np.mean([rows[name][score]["value"] for rows in seeds])),
                "drawn": np.mean([rows[name][score]["drawn"] for rows in seeds], axis=0),
            }
            for score in SCORES
        }
        for name in names
    }


def predictions(folder: Path, ids: list[str]) -> list[str]:
    """The reports of a run, in the order of the ids."""
    lines = (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    found = {row["id"]: row["prediction"] for row in map(json.loads, lines)}
    return [found[name] for name in ids]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="folder of the study")
    parser.add_argument("--data.root", dest="root", required=True, help="IU X-Ray")
    parser.add_argument("--nearest", type=Path, help="run of the nearest-image baseline")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--output", type=Path, default=Path("iu_small.json"))
    args = parser.parse_args()
    labeler = RulesLabeler()
    data = IUXRayDataModule(root=args.root, deidentified="drop_token")
    data.setup()
    train, test = data.splits["train"], data.splits["test"]
    reports = [study.report for study in train]
    best = BestConstants.of(reports, labeler, MARGIN)
    assert best is not None
    ids = [study.id for study in test]
    constants: dict[str, list[str] | Tensor] = {
        "constant normal": [CONSTANT_NORMAL] * len(ids),
        "most frequent report": [most_frequent_report(reports)] * len(ids),
    }
    for score, key in BEST.items():
        constants[f"best constant, {score}"] = torch.tensor(best.rows[key]).expand(len(ids), -1)
        print(f"best constant, {score}: {'a training report' if key in best.reports else best.describe(key)}")
    if args.nearest:
        constants["nearest image"] = predictions(args.nearest, ids)
    free = {study.id for study in leakage_free(test, train)}
    target = [study.report for study in test]
    output: dict[str, Any] = {"seeds": {}}
    drawn: list[dict[str, Any]] = []
    for folder in sorted(args.runs.glob("seed*")):
        systems = dict(constants)
        for arm, title in ARMS.items():
            if (folder / arm / "predictions.jsonl").is_file():
                systems[title] = predictions(folder / arm, ids)
        rows = table(systems, target, labeler, args.resamples)
        print_table(f"{folder.name}, {len(test)} test studies", rows)
        print_differences(rows)
        drawn.append(rows)
        cases = stated(labeler(target)).sum(0).tolist()
        for title in (ARMS[arm] for arm in ("grpo_corpus", "grpo_direct") if ARMS[arm] in rows):
            print(f"\n| {title} | cases | precision | recall | informedness |\n|---|---|---|---|---|")
            for i, c in enumerate(CONDITIONS[:13]):
                values = rows[title].get("per_condition", {}).get(c, {})
                print(f"| {c} | {cases[i]} | {' | '.join(f'{100 * v:.0f}' for v in values.values())} |")
        keep = [i for i, name in enumerate(ids) if name in free]
        part = {name: x[keep] if isinstance(x, Tensor) else [x[i] for i in keep] for name, x in systems.items()}
        print_table(
            f"{folder.name}, the {len(keep)} test reports that are not verbatim in training",
            table(part, [target[i] for i in keep], labeler, args.resamples),
        )
        kept = {
            name: row | {score: {k: row[score][k] for k in ("value", "low", "high")} for score in SCORES}
            for name, row in rows.items()
        }
        output["seeds"][folder.name] = kept
    print(f"\n### Mean of {len(drawn)} seeds")
    print_differences(mean_over_seeds(drawn))
    args.output.write_text(json.dumps(output, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
