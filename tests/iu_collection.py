"""A synthetic collection in the three layouts in which IU X-Ray is published."""

import csv
import dataclasses
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from PIL import Image

from mrg.datamodules.iu import IUXRayDataModule
from mrg.datamodules.study import Study

FORMS = ("annotation", "openi", "kaggle")


@dataclasses.dataclass(frozen=True)
class Report:
    """`images` are the ends of the names with their projection: `{"IM-0001-1001": "Frontal"}`, "" where not listed."""

    uid: int
    images: dict[str, str]
    findings: str = "The lungs are clear."
    impression: str = "No acute disease."
    indication: str = "Cough."
    mesh: tuple[str, ...] = ("normal",)

    @property
    def stems(self) -> list[str]:
        """Names in the XML; those of the first study repeat its number."""
        return sorted(f"CXR{self.uid}_{'1_' if self.uid == 1 else ''}{name}" for name in self.images)


COLLECTION = (
    Report(1, {"IM-0001-3001": "Lateral", "IM-0001-4001": "Frontal"}, indication="Cough < 2 weeks & fever"),
    Report(2, {"IM-0020-2001": "Lateral", "IM-0020-12012": "Frontal", "IM-0020-3001": "Frontal"}, "Heart large. XXXX."),
    Report(3, {"IM-0030-1001": "Frontal"}),
    Report(4, {"IM-0040-1001": "Frontal", "IM-0040-2001": "Lateral"}, findings=""),
    Report(5, {}),
    Report(6, {"IM-0060-1001-0001": "Frontal", "IM-0060-1001-0002": "", "IM-0060-2001": "Lateral"}, "Small effusion."),
    Report(
        7, {"IM-0070-1001": "Frontal", "IM-0070-1002": "Frontal"}, impression="", indication="XXXX.", mesh=("a", "b/c")
    ),
    Report(10, {"IM-0100-1001": "Frontal", "IM-0100-2001": "Lateral"}, "THE lungs  are clear.", indication="+ smoker"),
)
"""Studies 1, 2, 6, 7 and 10 have findings and two images; 4 has no findings, 3 and 5 too few images."""

SPLITS = {"train": (10, 1, 2), "val": (6,), "test": (7,)}


def write_xml(report: Report) -> str:
    """A report in the layout of Open-I, shortened to what is between the parts that matter."""
    labels = {"COMPARISON": "None.", "INDICATION": report.indication, "FINDINGS": report.findings}
    sections = "\n".join(
        f'<AbstractText Label="{label}">{escape(section)}</AbstractText>'
        if section
        else f'<AbstractText Label="{label}"/>'
        for label, section in {**labels, "IMPRESSION": report.impression}.items()
    )
    mesh = "".join(f"<major>{escape(term)}</major>" for term in report.mesh)
    images = "\n".join(
        f'<parentImage id="{stem}"><figureId>F1</figureId><caption>PA and Lateral</caption></parentImage>'
        for stem in report.stems
    )
    return (
        f'<?xml version="1.0" encoding="utf-8"?>\n<eCitation>\n<meta type="rr"/>\n<uId id="CXR{report.uid}"/>\n'
        f"<MedlineCitation><Article><Abstract>\n{sections}\n</Abstract></Article></MedlineCitation>\n"
        f"<MeSH>{mesh}<automatic>other</automatic></MeSH>\n{images}\n</eCitation>\n"
    )


def write_archive(file: Path, members: dict[str, bytes]) -> None:
    """A gzipped tar archive of the members below `ecgen-radiology/`."""
    with tarfile.open(file, "w:gz") as archive:
        folder = tarfile.TarInfo("ecgen-radiology")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in members.items():
            entry = tarfile.TarInfo(f"ecgen-radiology/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def _write_image(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), 90).save(file)


def write_openi(root: Path, reports: Sequence[Report] = COLLECTION, images: str = "NLMCXR_png") -> None:
    """The archive of XML files and the folder of PNG files."""
    root.mkdir(exist_ok=True)
    write_archive(root / "NLMCXR_reports.tgz", {f"{r.uid}.xml": write_xml(r).encode() for r in reports})
    for report in reports:
        for stem in report.stems:
            _write_image(root / images / f"{stem}.png")


def write_tables(root: Path, reports: Sequence[Report] = COLLECTION) -> None:
    """The two tables, in which a report without images does not occur, and a spreadsheet has been at work."""
    root.mkdir(exist_ok=True)
    with (root / "indiana_reports.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["uid", "MeSH", "Problems", "image", "indication", "comparison", "findings", "impression"])
        for r in reports:
            if r.images:
                indication = "#NAME?" if r.indication.startswith("+") else r.indication
                mesh = ";".join(r.mesh)
                writer.writerow([r.uid, mesh, mesh, "PA and Lateral", indication, "None.", r.findings, r.impression])
    write_projections(root, reports)


def write_projections(root: Path, reports: Sequence[Report] = COLLECTION) -> None:
    """The table of projections, not in the order of the names."""
    rows = [f"{r.uid},{r.uid}_{name}.dcm.png,{kind}" for r in reports for name, kind in r.images.items() if kind]
    (root / "indiana_projections.csv").write_text("\n".join(["uid,filename,projection", *reversed(rows)]) + "\n")


def write_kaggle(root: Path, reports: Sequence[Report] = COLLECTION) -> None:
    """The two tables and the folder of images."""
    write_tables(root, reports)
    for report in reports:
        for name, kind in report.images.items():
            if kind:
                _write_image(root / "images" / "images_normalized" / f"{report.uid}_{name}.dcm.png")


def write_annotation(root: Path, reports: Sequence[Report] = COLLECTION) -> None:
    """R2Gen's annotation without its images."""
    root.mkdir(exist_ok=True)
    by_uid = {report.uid: report for report in reports}
    content = {
        split: [
            {
                "id": name,
                "report": by_uid[uid].findings,
                "image_path": [f"{name}/0.png", f"{name}/1.png"],
                "split": split,
            }
            for uid in uids
            for name in [by_uid[uid].stems[0].rsplit("-", 1)[0]]
        ]
        for split, uids in SPLITS.items()
    }
    (root / "annotation.json").write_text(json.dumps(content))


def write_r2gen(root: Path, reports: Sequence[Report] = COLLECTION) -> None:
    """R2Gen's annotation and its folders of numbered images."""
    write_annotation(root, reports)
    for items in json.loads((root / "annotation.json").read_text()).values():
        for item in items:
            for path in item["image_path"]:
                _write_image(root / "images" / path)


def data_of(root: Path, **settings: Any) -> IUXRayDataModule:
    data = IUXRayDataModule(str(root), **{"variant": "any", "num_workers": 0, **settings})
    data.setup()
    return data


def ids_of(data: IUXRayDataModule) -> dict[str, list[str]]:
    return {split: [study.id for study in studies] for split, studies in data.splits.items()}


def comparable(study: Study) -> tuple[Any, ...]:
    positions = tuple(view.position for view in study.views)
    return study.id, study.patient, positions, study.report, study.indication
