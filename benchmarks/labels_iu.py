"""Measure the rules labeler on the IU X-Ray reports against the MeSH terms assigned by indexers.

    python benchmarks/labels_iu.py DATA [--splits train] [--text findings+impression] [--output labels.json]

DATA contains `annotation.json` (R2Gen's reports and splits) and `NLMCXR_reports.tgz` (the XML reports of Open-I).

The terms say what is there, so the rules are read plainly (`convention="plain"`).

MeSH terms are a weak gold standard: the indexers read the whole report, assigned terms to about half of the hedged
findings ("Cardiomegaly/borderline"), and sometimes chose a related term. Each figure is therefore given

- for two texts: the findings, which are the reports of `annotation.json`, and findings plus impression;
- over two sets: "all" studies, and "named", which excludes studies that have the term although the text does not
  contain any name of the condition (`NAMES`, which is independent of the labeler). Studies without the term are never
  excluded, so every false positive counts in both sets;
- with uncertain labels read as positive, as negative, and ignored (CheXpert's U-Ones, U-Zeros and U-Ignore).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tarfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mrg.metrics.conditions import BLANK, CLASSES, CONDITIONS, NEGATIVE, POSITIVE, UNCERTAIN
from mrg.metrics.labelers.rules import RulesLabeler

SEVEN = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion", "Pneumonia", "Pneumothorax")
TERMS: dict[str, tuple[str, ...]] = {
    "Atelectasis": ("Pulmonary Atelectasis",),
    "Cardiomegaly": ("Cardiomegaly", "Cardiac Shadow/enlarged"),
    "Consolidation": ("Consolidation",),
    "Edema": ("Pulmonary Edema", "Pulmonary Congestion", "Heart Failure"),
    "Pleural Effusion": ("Pleural Effusion", "Hydropneumothorax", "Hemothorax", "Hemopneumothorax"),
    "Pneumonia": ("Pneumonia",),
    "Pneumothorax": ("Pneumothorax", "Hydropneumothorax", "Hemopneumothorax"),
    "Lung Opacity": ("Opacity", "Airspace Disease", "Infiltrate", "Density/lung", "Markings/lung", "Cicatrix/lung"),
    "Lung Lesion": ("Nodule", "Mass", "Opacity/round", "Density/round"),
    "Pleural Other": ("Thickening/pleura", "Cicatrix/pleura", "Calcinosis/pleura", "Pulmonary Fibrosis", "Fibrosis"),
    "Fracture": ("Fractures, Bone",),
    "Support Devices": ("Catheters, Indwelling", "Implanted Medical Device", "Tube, Inserted"),
}
"""Condition -> MeSH terms for it; a term with slashes requires all of its qualifiers, in any order.

Congestion and heart failure are Edema by the CheXpert labeler's list of mentions; so are scars and markings Lung
Opacity, and fibrosis Pleural Other. Calcified granulomas have separate terms and do not count as Lung Lesion; crowded
bronchovascular markings do not count as Lung Opacity, nor monitor leads (Medical Device) as Support Devices. Blunted
costophrenic angles have a separate term, Costophrenic Angle, which does not count as Pleural Effusion."""

NAMES: dict[str, str] = {
    "Atelectasis": r"at\w*lect|collaps",
    "Cardiomegaly": r"cardi[ao]|heart|atri|ventric",
    "Consolidation": r"consolid",
    "Edema": r"edema|congest|failure|\bchf\b|vascular|vasculat|fluid|kerley|septal|engorge",
    "Pleural Effusion": r"eff?us|fluid|pleura|thora|costophrenic|empyema",
    "Pneumonia": r"pneumoni|infect",
    "Pneumothorax": r"p\w*thora|ptx",
    "Lung Opacity": r"opaci|airspace|air.space|infiltrat|densit|marking|scar|interstiti|reticul|haz|streak|cuff|fibro",
    "Lung Lesion": r"nodul|mass|lesion|tumor|cancer|metasta|neoplas|maligna|carcinoma",
    "Pleural Other": r"pleur|thicken|fibro|\bcap",
    "Fracture": r"fractur|\bfx",
    "Support Devices": r"cathet|line|tub(e|ing)|device|pace|icd|picc|port|lead|screw|rod|hardware|stimul|valve|plate"
    r"|fixat|generat|prosth|arthropl",
}
"""Condition -> regular expression for its names in lower-case text."""

TEXTS = ("findings", "findings+impression")
READINGS = ("positive", "negative", "ignored")
MICRO = "micro over the seven"


class Study(NamedTuple):
    """One study: its texts by kind (see `TEXTS`), and its MeSH terms with their qualifiers."""

    texts: dict[str, str]
    terms: list[str]


Table = dict[int, tuple[int, int]]
"""Label class -> number of studies with it that have the term, and that do not."""


def figures(tables: list[Table], uncertain: str) -> dict[str, float]:
    """Support, counts, precision, recall and F1 (0 / 0 is 0) of one condition, or of several combined.

    Args:
        tables: One table per condition.
        uncertain: Treatment of uncertain labels: "positive", "negative", or "ignored".
    """
    present = (POSITIVE, UNCERTAIN) if uncertain == "positive" else (POSITIVE,)
    absent = (BLANK, NEGATIVE, UNCERTAIN) if uncertain == "negative" else (BLANK, NEGATIVE)
    tp, fp = (sum(table[label][i] for table in tables for label in present) for i in (0, 1))
    fn = sum(table[label][0] for table in tables for label in absent)
    precision, recall, f1 = tp / max(tp + fp, 1), tp / max(tp + fn, 1), 2 * tp / max(2 * tp + fp + fn, 1)
    return {"support": tp + fn, "tp": tp, "fp": fp, "fn": fn, "precision": precision, "recall": recall, "f1": f1}


def read_studies(folder: Path) -> dict[str, list[Study]]:
    """Split -> its studies, in the order of `annotation.json`.

    Raises:
        FileNotFoundError: If one of the two files is missing.
        ValueError: If a study of the annotation has no report in the archive.
    """
    annotation, archive = folder / "annotation.json", folder / "NLMCXR_reports.tgz"
    if not annotation.is_file() or not archive.is_file():
        raise FileNotFoundError(
            f"Expected {annotation} and {archive}, but at least one is missing: pass the folder of the IU X-Ray data."
        )
    reports: dict[str, ElementTree.Element] = {}
    with tarfile.open(archive) as members:
        for member in members:
            file = members.extractfile(member) if member.name.endswith(".xml") else None
            if file is not None:
                root = ElementTree.parse(file).getroot()
                reports |= {number.get("id", ""): root for number in root.iter("uId")}
    splits: dict[str, list[Study]] = {}
    for split, items in json.loads(annotation.read_text()).items():
        for item in items:
            report = reports.get(item["id"].split("_")[0])
            if report is None:
                raise ValueError(f"Study {item['id']} of {annotation} has no report in {archive}.")
            splits.setdefault(split, []).append(_study(item["report"], report))
    return splits


def _study(findings: str, root: ElementTree.Element) -> Study:
    sections = {section.get("Label"): section.text or "" for section in root.iter("AbstractText")}
    both = f"{findings}\n\nImpression: {sections.get('IMPRESSION', '')}"
    return Study(
        {"findings": findings, "findings+impression": both}, [major.text or "" for major in root.iter("major")]
    )


def has_term(study: Study, condition: str) -> bool:
    """Whether the study has a term for the condition."""
    for wanted in TERMS[condition]:
        head, *qualifiers = wanted.split("/")
        for term in study.terms:
            found, *rest = (part.strip() for part in term.split("/"))
            if found == head and set(qualifiers) <= set(rest):
                return True
    return False


def compare(labeler: RulesLabeler, studies: list[Study], text: str) -> dict[str, dict[str, Table]]:
    """Set of studies ("all", "named") -> condition -> table."""
    texts = [study.texts[text] for study in studies]
    labels = labeler(texts)
    tables: dict[str, dict[str, Table]] = {"all": {}, "named": {}}
    for condition, name in NAMES.items():
        stated = labels[:, CONDITIONS.index(condition)]
        truth = torch.tensor([has_term(study, condition) for study in studies])
        named = torch.tensor([bool(re.search(name, text.lower())) for text in texts])
        for over, kept in (("all", torch.ones_like(named)), ("named", named | ~truth)):
            tables[over][condition] = {
                label: (int((kept & truth & (stated == label)).sum()), int((kept & ~truth & (stated == label)).sum()))
                for label in range(len(CLASSES))
            }
    return tables


def silence(labeler: RulesLabeler, studies: list[Study], text: str) -> tuple[int, int]:
    """Number of blank labels where the text does not name the condition, and number of all labels there."""
    texts = [study.texts[text] for study in studies]
    labels = labeler(texts)
    silent = torch.tensor([[not re.search(name, text.lower()) for name in NAMES.values()] for text in texts])
    blank = labels[:, [CONDITIONS.index(condition) for condition in NAMES]] == BLANK
    return int((silent & blank).sum()), int(silent.sum())


def normal_share(labeler: RulesLabeler, studies: list[Study], text: str) -> tuple[int, int]:
    """Number of studies indexed as normal that are labelled No Finding, and number of all studies indexed as normal."""
    texts = [study.texts[text] for study in studies if "normal" in study.terms]
    return int(labeler(texts)[:, CONDITIONS.index("No Finding")].sum()), len(texts)


def reports_per_second(texts: list[str], repeats: int = 5) -> float:
    """Distinct reports per second on one thread, without a cache; best of `repeats` runs."""
    threads, distinct = torch.get_num_threads(), list(dict.fromkeys(texts))
    torch.set_num_threads(1)
    labeler, best = RulesLabeler(cache_size=0, convention="plain"), float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        labeler(distinct)
        best = min(best, time.perf_counter() - start)
    torch.set_num_threads(threads)
    return len(distinct) / best


def summary(tables: dict[str, Table]) -> dict[str, dict[str, Any]]:
    """All figures per condition and for the seven combined, for each treatment of "uncertain"."""
    groups = {condition: [table] for condition, table in tables.items()}
    groups[MICRO] = [tables[condition] for condition in SEVEN]
    rows: dict[str, dict[str, Any]] = {}
    for name, group in groups.items():
        rows[name] = {reading: figures(group, reading) for reading in READINGS}
        rows[name]["uncertain"] = [sum(table[UNCERTAIN][i] for table in group) for i in (0, 1)]
    return rows


def _print_table(title: str, rows: dict[str, dict[str, Any]]) -> None:
    columns = "support    tp    fp    fn  precision  recall     F1"
    print(f"\n{title}\n{'uncertain:':<22}{READINGS[0]:<50}   indexed   {READINGS[1]:<9} {READINGS[2]}")
    print(f"{'condition':<22}{columns}          F1        F1")
    for condition, row in rows.items():
        first, others = row[READINGS[0]], [f"{row[reading]['f1']:.3f}" for reading in READINGS[1:]]
        numbers = f"{first['support']:>7}{first['tp']:>6}{first['fp']:>6}{first['fn']:>6}"
        ratio = f"{row['uncertain'][0]}/{sum(row['uncertain'])}"
        print(f"{condition:<22}{numbers}{first['precision']:>11.3f}{first['recall']:>8.3f}{first['f1']:>7.3f}", end="")
        print(f"{ratio:>10}   {others[0]}     {others[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the IU X-Ray data")
    parser.add_argument(
        "--splits", default="train", help='splits, joined by "+" into one table, such as val+test (default: train)'
    )
    parser.add_argument("--text", choices=TEXTS, help="text to label (default: both)")
    parser.add_argument("--output", type=Path, help="JSON file for all figures")
    arguments = parser.parse_args()
    if arguments.output and not arguments.output.absolute().parent.is_dir():
        sys.exit(f"Expected the folder of --output to exist, but got {arguments.output}.")
    try:
        splits = read_studies(arguments.data)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))
    if unknown := set(arguments.splits.split("+")) - set(splits):
        sys.exit(f'Expected --splits to be of {", ".join(splits)}, joined by "+", but got {", ".join(unknown)}.')
    studies = [study for split in arguments.splits.split("+") for study in splits[split]]
    labeler = RulesLabeler(convention="plain")
    result: dict[str, Any] = {"splits": arguments.splits, "studies": len(studies)}
    for text in [arguments.text] if arguments.text else TEXTS:
        result[text] = {}
        for over, tables in compare(labeler, studies, text).items():
            result[text][over] = summary(tables)
            _print_table(f"{arguments.splits} ({len(studies)} studies), {text}, {over}", result[text][over])
        clean, normal = normal_share(labeler, studies, text)
        speed = reports_per_second([study.texts[text] for study in studies])
        blank, silent = silence(labeler, studies, text)
        result[text] |= {"normal": normal, "normal with No Finding": clean, "reports per second": round(speed)}
        result[text] |= {"not named": silent, "not named and blank": blank}
        print(f"\n{blank} of {silent} labels are blank where the text does not name the condition.")
        print(
            f"{clean} of {normal} studies indexed as normal are labelled No Finding.  {speed:,.0f} distinct reports/s."
        )
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
