"""Invented studies in the published folder layouts."""

import dataclasses
import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

REPORTS = ("The heart is enlarged. No pneumothorax.", "Small left pleural effusion.", "The lungs are clear.")


def write_iu_tree(root: Path, num_views: int = 1) -> dict[str, Any]:
    """Eight, two and three studies in the R2Gen layout, images of unequal sizes; returns the annotation."""
    rng = np.random.default_rng(0)
    content: dict[str, Any] = {}
    for split, count in (("train", 8), ("val", 2), ("test", 3)):
        content[split] = []
        for index in range(count):
            name = f"{split}{index}"
            (root / "images" / name).mkdir(parents=True)
            views = [f"{name}/{view}.png" for view in range(num_views)]
            for view, path in enumerate(views):
                pixels = rng.integers(0, 255, (90 + 20 * view, 80 + 10 * index), dtype=np.uint8)
                Image.fromarray(pixels).save(root / "images" / path)
            content[split].append({"id": name, "report": REPORTS[index % 3], "image_path": views, "split": split})
    write_annotation(root, content)
    return content


def write_annotation(root: Path, content: object) -> None:
    """Replace the annotation file."""
    (root / "annotation.json").write_text(json.dumps(content))


@dataclasses.dataclass
class MIMICStudy:
    """One study of a synthetic MIMIC-CXR: images as (dicom id, ViewPosition)."""

    patient: int
    study: int
    split: str
    date: str
    time: str
    images: tuple[tuple[str, str], ...]
    report: str


def mimic_report(**sections: str) -> str:
    """A report in the form of the data set; `_` in a name is a space."""
    head = " " * 33 + "FINAL REPORT\n"
    return head + "".join(f" {name.upper().replace('_', ' ')}:  {text}\n \n" for name, text in sections.items())


MIMIC_STUDIES = (
    MIMICStudy(10000032, 50000003, "train", "21800506", "94005.515", (("a1", "LATERAL"), ("a2", "AP"), ("a3", "PA")),
               mimic_report(indication="Cough.", findings="The heart is enlarged.", impression="Mild cardiomegaly.")),
    MIMICStudy(10000032, 50000001, "train", "21800506", "213014.531", (("b1", "AP"),),
               mimic_report(history="Fever.", findings="The heart is still enlarged.", impression="No change.")),
    MIMICStudy(10000032, 50000002, "train", "21800701", "1", (("c1", "PA"), ("c2", "LL")),
               mimic_report(indication="Pain.", impression="Small left pleural effusion.")),
    MIMICStudy(10000032, 50000004, "train", "21800801", "120000", (("d1", "LATERAL"),),
               mimic_report(findings="The spine is normal.", impression="Normal spine.")),
    MIMICStudy(11000015, 50000005, "train", "21810101", "70000.0", (("e1", "PA"),), mimic_report(findings="As above.")),
    MIMICStudy(11000015, 50000006, "train", "21810102", "70000.0", (("f1", "PA"),),
               mimic_report(comparison="None.") + " The lungs are clear.\n"),
    MIMICStudy(11000015, 50000007, "train", "21810103", "70000.0", (("g1", "PA"), ("g2", "PA")),
               mimic_report(findings="Stable left effusion.", impression="No change.")),
    MIMICStudy(12000001, 50000008, "validate", "21500101", "10.5", (("h1", "AP"),),
               mimic_report(findings="No pneumothorax is seen.", impression="No pneumothorax.")),
    MIMICStudy(19000001, 50000009, "test", "21500101", "235959.999", (("i1", "PA"), ("i2", "LATERAL")),
               mimic_report(indication="Cough.", findings_and_impression="The lungs are clear.")),
    MIMICStudy(19000001, 50000010, "test", "21500102", "0", (("j1", "PA"), ("j2", "LATERAL")),
               mimic_report(indication="Cough.", findings="The lungs are clear.", impression="Normal chest.")),
)  # fmt: skip


def write_mimic_tree(
    reports: Path, images: Path, studies: Sequence[MIMICStudy] = MIMIC_STUDIES, packed: bool = True
) -> None:
    """Synthetic studies as the two releases lay them out: reports in one root, images and tables in another."""
    rng = np.random.default_rng(0)
    split_rows, metadata_rows = ["dicom_id,study_id,subject_id,split"], [",".join(_METADATA)]
    for study in studies:
        folder = Path("files", f"p{study.patient // 1_000_000}", f"p{study.patient}", f"s{study.study}")
        (images / folder).mkdir(parents=True, exist_ok=True)
        (reports / folder.parent).mkdir(parents=True, exist_ok=True)
        (reports / folder.with_suffix(".txt")).write_text(study.report)
        for dicom, position in study.images:
            pixels = rng.integers(0, 255, (96, 80), dtype=np.uint8)
            Image.fromarray(pixels).save(images / folder / f"{dicom}.jpg")
            split_rows.append(f"{dicom},{study.study},{study.patient},{study.split}")
            metadata_rows.append(f"{dicom},{study.patient},{study.study},{position},96,80,{study.date},{study.time}")
    for kind, rows in (("split", split_rows), ("metadata", metadata_rows[:1] + metadata_rows[:0:-1])):
        file = images / f"mimic-cxr-2.0.0-{kind}.csv"
        content = ("\n".join(rows) + "\n").encode()
        (file.with_suffix(".csv.gz") if packed else file).write_bytes(gzip.compress(content) if packed else content)


_METADATA = ("dicom_id", "subject_id", "study_id", "ViewPosition", "Rows", "Columns", "StudyDate", "StudyTime")
