"""Compare the rules labeler with CheXbert's labels of the IU X-Ray training reports.

    python benchmarks/labels_chexbert.py DATA [--convention plain]

DATA holds `annotation.json` (R2Gen's form and splits) and `chexbert_labels_train.csv`: `id`, then one column per
condition with 0 blank, 1 positive, 2 negative, 3 uncertain. Phrases were chosen on one half of the reports (those whose
id has an even CRC-32); the other half was used for figures only.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import zlib
from pathlib import Path

import torch
from torch import Tensor

from mrg.metrics import ccs, ce_f1, convention
from mrg.metrics.conditions import CLASSES, CONDITIONS
from mrg.metrics.labelers.rules import CONVENTIONS, RulesLabeler

SCORES = ("micro-14", "micro-14+", "micro-13", "micro-13+", "micro-5", "micro-5+", "macro-14+")


def agreement(labels: Tensor, expected: Tensor) -> dict[str, float]:
    """Scores of labels against CheXbert's.

    Args:
        labels: (N, 14) label classes.
        expected: (N, 14) label classes of CheXbert.

    Returns:
        The F1 of each convention of `SCORES`; `classes`, the share of equal label classes; and `cosine`, the mean
        cosine similarity of the label vectors over 13 conditions.
    """
    result = {name: float(ce_f1(labels, expected, **convention(name))) for name in SCORES}
    result["classes"] = float((labels == expected).double().mean())
    result["cosine"] = float(ccs(labels, expected).mean())
    return result


def read(folder: Path) -> tuple[list[str], list[str], Tensor]:
    """Ids, reports and CheXbert's labels (N, 14) of the training split.

    Raises:
        FileNotFoundError: If one of the two files is missing.
    """
    annotation, table = folder / "annotation.json", folder / "chexbert_labels_train.csv"
    if not annotation.is_file() or not table.is_file():
        raise FileNotFoundError(f"Expected {annotation} and {table}: give the folder of the IU X-Ray data.")
    reports = {item["id"]: item["report"] for item in json.loads(annotation.read_text())["train"]}
    with table.open(newline="") as file:
        rows = {row["id"]: [int(row[name]) for name in CONDITIONS] for row in csv.DictReader(file)}
    return list(rows), [reports[name] for name in rows], torch.tensor(list(rows.values()))


def main() -> None:
    """Print the table of agreement, and the differing labels by condition."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the IU X-Ray data")
    parser.add_argument("--convention", choices=CONVENTIONS, default="chexbert", help="reading (default: chexbert)")
    options = parser.parse_args()
    try:
        ids, texts, expected = read(options.data)
    except FileNotFoundError as error:
        sys.exit(str(error))
    labels = RulesLabeler(convention=options.convention)(texts)
    half = torch.tensor([zlib.crc32(name.encode()) % 2 for name in ids])
    print(f"{'':<14}{'all':>9}{'chosen on':>11}{'held out':>10}")
    columns = [agreement(labels[rows], expected[rows]) for rows in (half >= 0, half == 0, half == 1)]
    for name in columns[0]:
        print(f"{name:<14}{columns[0][name]:>9.3f}{columns[1][name]:>11.3f}{columns[2][name]:>10.3f}")
    print(f"\n{'condition':<28}{'positive':>9}{'uncertain':>10}{'F1':>7}{'F1 +':>7}{'equal':>7}   CheXbert -> rules")
    f1 = [ce_f1(labels, expected, "none", 14, reading) for reading in ("negative", "positive")]
    for column, name in enumerate(CONDITIONS):
        theirs, ours = expected[:, column], labels[:, column]
        pairs = {(a, b): int(((theirs == a) & (ours == b)).sum()) for a in range(4) for b in range(4) if a != b}
        changes = ", ".join(f"{CLASSES[a]} -> {CLASSES[b]} {n}" for (a, b), n in pairs.items() if n)
        values = (
            f"{float(f1[0][column]):>7.3f}{float(f1[1][column]):>7.3f}{float((theirs == ours).double().mean()):>7.3f}"
        )
        print(f"{name:<28}{int((theirs == 1).sum()):>9}{int((theirs == 3).sum()):>10}{values}   {changes}")


if __name__ == "__main__":
    main()
