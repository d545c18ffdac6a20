"""The gallery: images, reference and generated reports of each study, with a verdict on every finding, on one page."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from torch import Tensor

from mrg.datamodules.study import Study, View
from mrg.errors import UserError
from mrg.metrics.compare import changes
from mrg.metrics.conditions import CLASSES, CONDITIONS, NEGATIVE, POSITIVE, THIRTEEN, UNCERTAIN
from mrg.metrics.evaluation import COLUMNS
from mrg.metrics.imports import name_of
from mrg.metrics.labels import Labeler, label_together
from mrg.metrics.mccs import mccs
from mrg.metrics.remarks import remarks
from mrg.metrics.uncertainty import disagreements
from mrg.metrics.verdicts import ERRORS, VERDICTS, verdicts
from mrg.pages.images import ImageOptions, page_images
from mrg.pages.marks import MARKED, STATED, Piece, label_kinds, marked_text, verdict_kinds
from mrg.pages.page import read_template, write_page

_FIRST = 20
"""Number of studies on the first page."""


@dataclasses.dataclass
class Gallery:
    """The content of a page.

    Args:
        systems: Name -> one row per study, as in predictions.jsonl: `id`, `prediction`, `thinking`, `completion` and,
            if there is a reference, `target` and `format`; if the report was chosen from samples, `shares` and
            `probabilities` of the findings. All have the same studies in the same order; filters and
            order go by the first system at first.
        labeler: Labeler of the reports; if it has a method `evidence(text)`, the words that it returns are marked.
        margin: Margin of MCCS.
        views: Study id -> views; a study without any is shown without images.
        indications: Study id -> indication of the examination.
        max_views: Number of views that the policy saw; 0: all.
        results: Return value of `mrg.metrics.evaluation.evaluate_systems`, for the table and the bars at the top.
        comparison: Return value of `mrg.metrics.compare.compare_systems`: the first system minus the second.
        title: Title of the page.
        max_studies: Maximum number of studies, in the page's order.
        image_options: Size and form of the images.
        redact: Whether to leave out texts, images and ids, for a page that may be shared: labels and scores remain, and
            studies are numbered in the order of the rows.
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
    image_options: ImageOptions = dataclasses.field(default_factory=ImageOptions)
    redact: bool = False

    def write(self, path: Path) -> None:
        """Write the page.

        Raises:
            UserError: If there is no study, or the systems do not have the same ones.
        """
        rows = _aligned(self.systems)
        studies = _without_texts(self.studies()) if self.redact else self.studies()
        has_reference, has_evidence = "target" in rows[0], hasattr(self.labeler, "evidence")
        if has_reference:
            studies.sort(key=_changes_first if self.comparison else _worst_first)
        num_studies = len(studies)
        studies = studies[: self.max_studies]
        options = dataclasses.replace(self.image_options, images="none") if self.redact else self.image_options
        images = page_images([self.views.get(study["id"], ()) for study in studies], options, path.parent)
        for study, views in zip(studies, images.views, strict=True):
            study["views"] = views
        shared = {"systems": list(self.systems), "conditions": CONDITIONS}
        data = {
            **shared,
            "classes": CLASSES,
            "verdicts": VERDICTS,
            "errors": ERRORS,
            "maxViews": self.max_views,
            "hasReference": has_reference,
            "hasEvidence": has_evidence,
            "redacted": self.redact,
            "sort": "order" if not has_reference else "changes" if self.comparison else "worst",
            "studies": studies,
        }
        script = _script()
        write_page(
            path,
            "gallery.html",
            **shared,
            title=self.title,
            data=data,
            columns=[c for c in COLUMNS if c != "informedness" or (self.results or {}).get("informative")],
            images=[(f"image-{study}-{view}", text) for (study, view), text in images.embedded.items()],
            first=sum(study < _FIRST for study, _ in images.embedded),  # these are shown before the others are read
            script=Markup(script),  # our own file, no data in it
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
            legend=MARKED if has_reference else STATED,
            has_reference=has_reference,
            has_evidence=has_evidence,
            redacted=self.redact,
            labeler=name_of(self.labeler),
            results=self.results,
            remarks=remarks(self.results) if self.results else [],
            comparison=self.comparison,
            stated=None if has_reference else _num_stated(studies),
            num_left_out=num_studies - len(studies),
            num_studies=num_studies,
            image_size=images.image_size,
        )

    def studies(self) -> list[dict[str, Any]]:
        """Data of each study for the page's script, in the order of the rows."""
        rows = _aligned(self.systems)
        references = [[row["target"] for row in rows]] if "target" in rows[0] else []
        texts = [[row["prediction"] for row in own] for own in self.systems.values()]
        labels = [own.cpu() for own in label_together(self.labeler, *texts, *references)]
        reference = labels.pop() if references else None
        outputs = [
            self._outputs(own, labels[i], reference, labels[0] if i else None)
            for i, own in enumerate(self.systems.values())
        ]
        studies: list[dict[str, Any]] = []
        for place, (row, *of_study) in enumerate(zip(rows, *outputs, strict=True)):
            indication = self.indications.get(row["id"], "")
            studies.append({"id": row["id"], "place": place, "indication": indication, "outputs": of_study})
            if reference is not None:
                studies[-1]["labels"] = _digits(reference[place].tolist())
        return studies

    def _outputs(
        self, rows: Sequence[Mapping[str, Any]], labels: Tensor, reference: Tensor | None, first: Tensor | None
    ) -> list[dict[str, Any]]:
        """Reports of one system, study by study, and their changes to the first system, unless it is the first."""
        own = labels.tolist()
        outputs: list[dict[str, Any]] = [
            {
                "labels": _digits(own[i]),
                "thinking": row.get("thinking", ""),
                "completion": "" if row["prediction"].strip() else row.get("completion", ""),
            }
            for i, row in enumerate(rows)
        ]
        for row, output in zip(rows, outputs, strict=True):
            if "shares" in row:  # the report is one of several samples
                output["probabilities"] = [round(100 * row["probabilities"][name]) for name in THIRTEEN]
                output["disagree"] = disagreements(row["shares"])
        if reference is None:
            for i, output in enumerate(outputs):
                output["report"] = self._marked(rows[i]["prediction"], own[i], label_kinds(own[i]))
            return outputs
        scores = mccs(labels, reference, self.margin, reduction="none").tolist()
        indices, target = verdicts(labels, reference).tolist(), reference.tolist()
        for i, (row, output) in enumerate(zip(rows, outputs, strict=True)):
            kinds = verdict_kinds(indices[i])
            output["verdicts"] = _digits(indices[i])
            output["mccs"] = round(scores[i], 4) if row["prediction"].strip() else 0.0
            output["format"] = bool(row.get("format", True))
            output["report"] = self._marked(row["prediction"], own[i], kinds)
            output["target"] = self._marked(row["target"], target[i], kinds)
        if first is not None:
            for output, change in zip(outputs, changes(first, labels, reference), strict=True):
                output["change"] = change
        return outputs

    def _marked(self, text: str, labels: Sequence[int], kinds: Sequence[str]) -> list[Piece]:
        evidence = getattr(self.labeler, "evidence", None)
        return [text] if evidence is None else marked_text(text, evidence(text), labels, kinds)


def of_studies(studies: Mapping[str, Study]) -> dict[str, Any]:
    """Arguments of `Gallery` that come from the studies."""
    return {
        "views": {name: study.views for name, study in studies.items()},
        "indications": {name: study.indication for name, study in studies.items()},
    }


def _aligned(systems: Mapping[str, Sequence[Mapping[str, Any]]]) -> Sequence[Mapping[str, Any]]:
    """Check that all systems have the same studies in the same order; returns the rows of the first."""
    first: Sequence[Mapping[str, Any]] = next(iter(systems.values()), [])
    if not first:
        raise UserError("Expected a gallery to have at least one study, but got none.")
    ids = [row["id"] for row in first]
    for name, rows in systems.items():
        if [row["id"] for row in rows] != ids:
            raise UserError(f"Expected system {name!r} to have the same studies in the same order as the first one.")
    return first


def _without_texts(studies: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Labels and scores of studies, numbered in the order of the rows, without any text of a report and without ids."""
    kept = ("labels", "verdicts", "mccs", "format", "change")
    return [
        {
            **{key: study[key] for key in ("place", "labels") if key in study},
            "id": str(study["place"] + 1),
            "outputs": [{key: output[key] for key in kept if key in output} for output in study["outputs"]],
        }
        for study in studies
    ]


def _digits(row: Sequence[int]) -> str:
    return "".join(map(str, row))


def _worst_first(study: Mapping[str, Any]) -> tuple[float, int, int]:
    output = study["outputs"][0]
    num_errors = sum(VERDICTS[int(digit)] in ERRORS for digit in output["verdicts"][:13])
    return output["mccs"], -num_errors, study["place"]


def _changes_first(study: Mapping[str, Any]) -> tuple[int, float, int]:
    first, second = study["outputs"][:2]
    return -sum(map(len, second["change"].values())), -abs(first["mccs"] - second["mccs"]), study["place"]


def _num_stated(studies: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[int]]]:
    """Condition -> numbers of reports of the first system in which it is positive, uncertain and negative."""
    rows = [study["outputs"][0]["labels"] for study in studies]
    return [
        (name, [sum(row[i] == str(label) for row in rows) for label in (POSITIVE, UNCERTAIN, NEGATIVE)])
        for i, name in enumerate(CONDITIONS)
    ]


def _script() -> str:
    """The page's script from its files, in one scope."""
    files = ("gallery_data.js", "gallery_study.js", "gallery_viewer.js", "gallery.js")
    return '"use strict";\n(() => {\n' + "\n".join(map(read_template, files)) + "})();\n"
