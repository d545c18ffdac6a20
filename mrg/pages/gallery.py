"""The gallery: each study's images, its reference and what was written, with every finding's verdict, on one page."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from markupsafe import Markup
from torch import Tensor

from mrg.datamodules.study import Study, View
from mrg.errors import UserError
from mrg.metrics.conditions import CLASSES, CONDITIONS, NEGATIVE, POSITIVE, UNCERTAIN
from mrg.metrics.labels import Labeler, as_labels
from mrg.metrics.mccs import mccs
from mrg.metrics.verdicts import ERRORS, VERDICTS, verdicts
from mrg.pages.evidence import MARKED, STATED, Piece, cut, evidence_of, label_kinds, verdict_kinds
from mrg.pages.page import write_page
from mrg.pages.pictures import Pictures, gather

MEANINGS = {
    "right": "both reports state it, equally surely",
    "uncertain": "both state it, only one of them as certain",
    "missed": "in the reference, not mentioned by the model",
    "invented": "stated by the model, not mentioned in the reference",
    "contradicted": "one report states it, the other denies it",
    "stated": "a finding",
    "possible": "a finding that is left open",
    "ruled out": "a finding that is denied",
}
"""The legend: what each kind of mark means; see `mrg.metrics.verdicts`."""


@dataclasses.dataclass
class Gallery:
    """What a page shows.

    Args:
        systems: Name -> one row per study, as in predictions.jsonl: `id`, `prediction`, `thinking`, `completion` and,
            where there is a reference, `target` and `format`. All have the same studies in the same order; the first
            system is the one that filters and order judge by at first.
        labeler: Reads the reports; its `evidence(text)`, where it has one, is what is marked.
        margin: Of MCCS.
        views: Study id -> its views; a study without any is shown without images.
        indications: Study id -> why the examination was made.
        max_views: The policy saw only the first so many views; 0: all.
        results: From `mrg.metrics.evaluation.evaluate_systems`, for the table and the bars on top.
        comparison: From `mrg.metrics.compare.compare_systems`: the first system minus the second.
        title: Of the page.
        max_studies: A longer list is cut to the first so many in the page's order.
        pictures: How images are shown.
    """

    systems: Mapping[str, Sequence[Mapping[str, Any]]]
    labeler: Labeler
    margin: float = 0.5
    views: Mapping[str, Sequence[View]] = dataclasses.field(default_factory=dict)
    indications: Mapping[str, str] = dataclasses.field(default_factory=dict)
    max_views: int = 0
    results: Mapping[str, Any] | None = None
    comparison: Mapping[str, Any] | None = None
    title: str = "Gallery"
    max_studies: int = 5000
    pictures: Pictures = dataclasses.field(default_factory=Pictures)

    def write(self, path: Path) -> None:
        """Write the page.

        Raises:
            ValueError: If there is no study, or the systems do not have the same ones.
        """
        rows = _aligned(self.systems)
        studies = self.studies()
        has_reference = "target" in rows[0]
        if has_reference:
            studies.sort(key=_changes_first if self.comparison else _worst_first)
        num_studies = len(studies)
        studies = studies[: self.max_studies]
        shown = gather([self.views.get(study["id"], ()) for study in studies], self.pictures, path.parent)
        for study, views in zip(studies, shown.views, strict=False):
            study["views"] = views
        data = {
            "conditions": CONDITIONS,
            "classes": CLASSES,
            "verdicts": VERDICTS,
            "errors": ERRORS,
            "systems": list(self.systems),
            "maxViews": self.max_views,
            "hasReference": has_reference,
            "hasEvidence": evidence_of(self.labeler) is not None,
            "sort": "order" if not has_reference else "changes" if self.comparison else "worst",
            "studies": studies,
        }
        kinds = MARKED if has_reference else tuple(STATED.values())
        script = _script()
        write_page(
            path,
            "gallery.html",
            title=self.title,
            data=data,
            pictures=[(f"picture-{study}-{view}", text) for (study, view), text in shown.embedded.items()],
            script=Markup(script),  # our own file, no data in it
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
            legend={kind: MEANINGS[kind] for kind in kinds},
            has_reference=has_reference,
            has_evidence=evidence_of(self.labeler) is not None,
            labeler=getattr(self.labeler, "name", type(self.labeler).__name__),
            results=self.results,
            comparison=self.comparison,
            systems=list(self.systems),
            conditions=CONDITIONS,
            said=None if has_reference else _said(studies),
            num_left_out=num_studies - len(studies),
            num_studies=num_studies,
            image_size=shown.image_size,
        )

    def studies(self) -> list[dict[str, Any]]:
        """The data of each study, in the order of the rows; see the script for how it is read."""
        rows = _aligned(self.systems)
        target = [row["target"] for row in rows] if "target" in rows[0] else None
        reference = None if target is None else as_labels(target, target, self.labeler)[0].cpu()
        studies = [
            {"id": row["id"], "place": place, "indication": self.indications.get(row["id"], ""), "outputs": []}
            for place, row in enumerate(rows)
        ]
        for study, labels in zip(studies, [] if reference is None else reference.tolist(), strict=False):
            study["labels"] = _digits(labels)
        found: list[Tensor] = []
        for own in self.systems.values():
            texts = [row["prediction"] for row in own]
            labels = as_labels(texts, texts, self.labeler)[0].cpu()
            found.append(labels)
            for study, output in zip(studies, self._outputs(own, labels, reference), strict=True):
                study["outputs"].append(output)
        if reference is not None:
            for other in range(1, len(found)):
                for study, change in zip(studies, changes(found[0], found[other], reference), strict=True):
                    study["outputs"][other]["change"] = change
        return studies

    def _outputs(
        self, rows: Sequence[Mapping[str, Any]], labels: Tensor, reference: Tensor | None
    ) -> list[dict[str, Any]]:
        """What one system wrote, study by study."""
        outputs: list[dict[str, Any]] = []
        for row, own in zip(rows, labels.tolist(), strict=True):
            output = {"labels": _digits(own), "thinking": row.get("thinking", ""), "completion": ""}
            if not row["prediction"].strip():
                output["completion"] = row.get("completion", "")
            outputs.append(output)
        if reference is None:
            for row, own, output in zip(rows, labels.tolist(), outputs, strict=True):
                output["report"] = self._cut(row["prediction"], own, label_kinds(own))
            return outputs
        table = verdicts(labels, reference).tolist()
        texts = [row["prediction"] for row in rows]
        scores = mccs(texts, [row["target"] for row in rows], self.margin, reduction="none", labeler=self.labeler)
        for i, (row, output) in enumerate(zip(rows, outputs, strict=True)):
            kinds = verdict_kinds(table[i])
            output["verdicts"] = _digits(table[i])
            output["mccs"] = round(float(scores[i]), 4)
            output["format"] = bool(row.get("format", True))
            output["report"] = self._cut(row["prediction"], labels[i].tolist(), kinds)
            output["target"] = self._cut(row["target"], reference[i].tolist(), kinds)
        return outputs

    def _cut(self, text: str, labels: Sequence[int], kinds: Sequence[str]) -> list[Piece]:
        evidence = evidence_of(self.labeler)
        return [text] if evidence is None else cut(text, evidence(text), labels, kinds)


def of_studies(studies: Mapping[str, Study]) -> dict[str, Any]:
    """What a `Gallery` shows of the studies besides reports."""
    return {
        "views": {name: study.views for name, study in studies.items()},
        "indications": {name: study.indication for name, study in studies.items()},
    }


def changes(preds: Tensor, other: Tensor, target: Tensor) -> list[dict[str, list[int]]]:
    """For each study the findings that one system alone has right, places in `CONDITIONS` without No Finding.

    As in `mrg.metrics.compare`, right is to state a finding, surely or as possible, exactly where the reference does.

    Args:
        preds: (N, 14) label classes of the one system.
        other: (N, 14) label classes of the other one.
        target: (N, 14) label classes of the references.

    Returns:
        N dicts: `gained`, right in `preds` alone, and `lost`, right in `other` alone.
    """
    stated = [torch.isin(labels[:, :13], torch.tensor([POSITIVE, UNCERTAIN])) for labels in (preds, other, target)]
    right, other_right = stated[0] == stated[2], stated[1] == stated[2]
    gained, lost = right & ~other_right, other_right & ~right
    return [
        {"gained": g.nonzero().flatten().tolist(), "lost": k.nonzero().flatten().tolist()}
        for g, k in zip(gained, lost, strict=True)
    ]


def _aligned(systems: Mapping[str, Sequence[Mapping[str, Any]]]) -> Sequence[Mapping[str, Any]]:
    """The first system's rows, after a look whether all have the same studies in the same order."""
    first: Sequence[Mapping[str, Any]] = next(iter(systems.values()), [])
    if not first:
        raise UserError("Expected a gallery to have at least one study, but got none.")
    ids = [row["id"] for row in first]
    for name, rows in systems.items():
        if [row["id"] for row in rows] != ids:
            raise UserError(f"Expected system {name!r} to have the same studies in the same order as the first one.")
    return first


def _digits(row: Sequence[int]) -> str:
    return "".join(map(str, row))


def _worst_first(study: Mapping[str, Any]) -> tuple[float, int, int]:
    output = study["outputs"][0]
    wrong = sum(VERDICTS[int(digit)] in ERRORS for digit in output["verdicts"][:13])
    return output["mccs"], -wrong, study["place"]


def _changes_first(study: Mapping[str, Any]) -> tuple[int, float, int]:
    first, second = study["outputs"][:2]
    return -sum(map(len, second["change"].values())), -abs(first["mccs"] - second["mccs"]), study["place"]


def _said(studies: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[int]]]:
    """Condition -> how many reports of the first system state it, leave it open and deny it."""
    rows = [study["outputs"][0]["labels"] for study in studies]
    return [
        (name, [sum(row[i] == str(label) for row in rows) for label in (POSITIVE, UNCERTAIN, NEGATIVE)])
        for i, name in enumerate(CONDITIONS)
    ]


def _script() -> str:
    """The page's script from its three files, in a scope of its own."""
    folder = Path(__file__).parent / "templates"
    parts = [
        (folder / name).read_text(encoding="utf-8") for name in ("gallery_data.js", "gallery_study.js", "gallery.js")
    ]
    return '"use strict";\n(() => {\n' + "\n".join(parts) + "})();\n"
