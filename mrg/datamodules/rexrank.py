"""ReXrank's benchmark files: studies by id in, the same studies with a model's reports out.

    {study_id: {"image_path": [...], "key_image_path": "...", "frontal_lateral": [...], "context": "...",
                "section_findings": "...", "section_impression": "...", "report": "..."}}

`test` scores the studies with a reference. `predict` writes `rexrank.json`, with every study and key of the file plus
`model_prediction`, which ReXrank's own scripts and `python -m mrg.metrics` read.
Source: Zhang et al., 2024 (https://github.com/rajpurkarlab/ReXrank).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from mrg.datamodules.base import ReportDataModule, check_choices
from mrg.datamodules.errors import DataError, DataNotFoundError, first_names
from mrg.datamodules.images.read import ImageFinder
from mrg.datamodules.study import Study, View, all_as_test, pair_positions
from mrg.datamodules.table.rows import text
from mrg.errors import UserError
from mrg.files import identifier, is_missing, parse_json, write_json
from mrg.log import log

REFERENCES = {"findings": "section_findings", "impression": "section_impression", "both": "report"}
"""Section that a model writes -> key of its reference; `report` has both sections with their names."""

_TYPES = {
    **dict.fromkeys(("image_path", "frontal_lateral"), (True, "a text or a list of texts")),
    **dict.fromkeys(("key_image_path", "context", *REFERENCES.values()), (False, "a text")),
}
"""Key -> whether its value may be a list, and its type in words."""

_INDICATION = re.compile(r"Indication:(.*?)(?:Comparison:|$)", re.DOTALL)


class RexrankDataModule(ReportDataModule):
    """Data module of a benchmark file of ReXrank, all of which is test.

    Args:
        file: Name of the file in `root`.
        root: Folder with the file.
        images: Folder in `root` to which image paths are relative.
        reference: Section that the policy writes and is compared with: `"findings"`, `"impression"` or `"both"`.
        key_image_first: Put the key image first, so that a policy with few views sees it.
        **kwargs: Arguments of `ReportDataModule`.
    """

    def __init__(
        self,
        file: str,
        root: str = ".",
        images: str = "images",
        reference: Literal["findings", "impression", "both"] = "findings",
        key_image_first: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_choices(RexrankDataModule.__init__, locals())
        self.root = Path(root).expanduser()
        self.file, self.images = self.root / file, self.root / images
        self.reference, self.key_image_first = reference, key_image_first
        self.entries: dict[str, dict[str, Any]] = {}
        self._unpaired: list[str] = []

    def read(self) -> dict[str, list[Study]]:
        """Read all studies; those without a reference are predicted but not scored.

        Raises:
            DataNotFoundError: If the file or an image is missing.
            DataError: If the file is not in ReXrank's format.
        """
        self.entries = read_entries(self.file)
        finder, self._unpaired = ImageFinder(self.images), []
        studies = [self._study(name, entry, finder) for name, entry in self.entries.items()]
        if not self.checking:
            finder.check(self.file, "set data.init_args.root and data.init_args.images")
        if self._unpaired:
            log.warning(
                f"File {self.file}: {len(self._unpaired)} studies have more or fewer positions in frontal_lateral than "
                f"images, so that the positions of their views are unknown: {first_names(self._unpaired)}."
            )
        scored = [study for study in studies if study.report]
        self.removed[f"no {REFERENCES[self.reference]}"] = len(studies) - len(scored)
        return all_as_test(scored if self.checking else studies)

    def describe(self) -> str:
        """Describe in one line the file and its reference."""
        return f"{super().describe()} from {self.file}, {len(self.entries)} studies, reference {self.reference}"

    def write_predictions(self, rows: list[dict[str, Any]], folder: Path) -> None:
        """Write predict.jsonl, and `rexrank.json` for submission."""
        super().write_predictions(rows, folder)
        submission = {row["id"]: {**self.entries[row["id"]], "model_prediction": row["prediction"]} for row in rows}
        write_json(folder / "rexrank.json", submission)
        print(f"{len(rows)} of {len(self.entries)} studies for ReXrank: {folder / 'rexrank.json'}", flush=True)
        if empty := [row["id"] for row in rows if not row["prediction"].strip()]:
            log.warning(f"The submission has {len(empty)} empty reports, which score 0: {first_names(empty)}.")
        if lacking := [name for name in self.entries if name not in submission]:
            log.warning(f"The submission lacks {len(lacking)} studies of the file: {first_names(lacking)}.")
        print(f"Score it: python -m mrg.metrics {folder / 'rexrank.json'} --target {REFERENCES[self.reference]}")

    def _study(self, name: str, entry: Mapping[str, Any], finder: ImageFinder) -> Study:
        paths, positions = entry["image_path"], entry.get("frontal_lateral")
        paths = [paths] if isinstance(paths, str) else list(paths)
        words = positions if isinstance(positions, list) else [positions]
        # Relative paths of MIMIC-CXR start with a slash in these files.
        listed = [View(finder.find(path.lstrip("/"))) if (path := text(value)) else None for value in paths]
        views, agree = pair_positions(listed, list(map(text, words)))
        if not agree:
            self._unpaired.append(name)
        if self.key_image_first:
            pairs = zip(filter(None, map(text, paths)), views, strict=True)
            # Stable: the others keep their order.
            views = [view for _, view in sorted(pairs, key=lambda pair: pair[0] != entry.get("key_image_path"))]
        found = _INDICATION.search(text(entry.get("context")))
        return Study(
            id=name,
            views=tuple(views),
            report=text(entry.get(REFERENCES[self.reference])),
            indication=text(found[1]) if found else "",
            patient=identifier(entry.get("subject_id")),
        )


def read_entries(file: Path) -> dict[str, dict[str, Any]]:
    """Read the studies of a file by id, unchanged.

    Raises:
        DataNotFoundError: If the file does not exist.
        DataError: If it is not JSON in ReXrank's format.
    """
    try:
        content = parse_json(file.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, IsADirectoryError):
        raise DataNotFoundError(
            f"File {file} does not exist; set data.init_args.root and data.init_args.file (published at "
            "https://github.com/rajpurkarlab/ReXrank/tree/main/data)."
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"File {file} is not JSON in UTF-8 ({error}); copy it again.") from None
    except UserError as error:
        raise DataError(f"File {file}: {error}.") from None
    if not isinstance(content, dict) or not content or not all(isinstance(entry, dict) for entry in content.values()):
        raise DataError(f"File {file}: expected an object of studies by id, as published by ReXrank.")
    without = [name for name, entry in content.items() if not entry.get("image_path")]
    if without:
        raise DataError(f"File {file}: {len(without)} studies have no image_path: {first_names(without)}; correct it.")
    for name, entry in content.items():
        for key, value in entry.items():
            if key in _TYPES and not _is_of(value, *_TYPES[key]):
                raise DataError(
                    f"File {file}, study {name}: expected {key} to be {_TYPES[key][1]}, but got a "
                    f"{type(value).__name__}; correct it."
                )
    return content


def _is_of(value: Any, several: bool, _: str) -> bool:
    """Whether a value is text or missing, or a list of such values if there may be several."""
    values = value if several and isinstance(value, list) else [value]
    return all(isinstance(item, str) or is_missing(item) for item in values)
