"""R2Gen's annotation file, in which IU X-Ray and MIMIC-CXR are published, with checks of its content.

    {"train": [{"id", "report", "image_path": [...]}, ...], "val": [...], "test": [...]}

Source: Chen et al., EMNLP 2020. Copies are damaged in many ways (a split under a blank key, dead links, studies in two
splits), each of which changes results silently. Everything is therefore checked before any image is opened.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mrg.datamodules.errors import DataError, DataNotFoundError, first_names
from mrg.datamodules.study import SPLITS
from mrg.errors import UserError
from mrg.files import identifier, is_missing, parse_json

SOURCE = "https://github.com/cuhksz-nlp/R2Gen"

_ELSEWHERE = "set `data.init_args.root` to another folder"


@dataclasses.dataclass(frozen=True)
class Item:
    """One study of an annotation file.

    Args:
        id: Identifier of the study.
        report: Report as written; empty if it is a word for a missing value, see `is_missing`.
        image_path: Image paths as listed.
        patient: Value of `subject_id`; empty if there is none.
    """

    id: str
    report: str
    image_path: tuple[str, ...]
    patient: str = ""


def read_items(file: Path, empty_reports: Literal["raise", "keep"] = "raise") -> dict[str, list[Item]]:
    """Read and check the items of train, val and test, in the order of the file; other keys are ignored.

    Raises:
        DataNotFoundError: If the file or its folder is missing.
        DataError: If it is not valid JSON, lacks a split or a field, repeats an id, or has an item without images or
            with an empty report.
    """
    content = _load_json(file)
    _check_splits(content, file)
    items = {
        split: [
            _item(entry, f"File {file}, split {split!r}, item {index}") for index, entry in enumerate(content[split])
        ]
        for split in SPLITS
    }
    _check_ids(items, file)
    empty = [item.id for split in SPLITS for item in items[split] if not item.report.strip()]
    if empty and empty_reports == "raise":
        raise DataError(
            f"File {file}: {len(empty)} studies have an empty report: {first_names(empty)}; set "
            "`data.init_args.empty_reports` to drop to leave them out."
        )
    return items


def _load_json(file: Path) -> Mapping[str, Any]:
    if not file.parent.is_dir():
        finding = "is not a folder" if file.parent.exists() else "does not exist"
        raise DataNotFoundError(
            f"Folder {file.parent} {finding}; set `data.init_args.root` to the folder that holds {file.name} and the "
            f"images (published at {SOURCE})."
        )
    try:
        # Editors on Windows write a byte order mark, which the plain codec would pass on to the parser.
        content = parse_json(file.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, IsADirectoryError):
        raise DataNotFoundError(
            f"File {file} does not exist; set `data.init_args.root` to the folder that holds {file.name} (published at "
            f"{SOURCE})."
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"File {file} is not UTF-8 text (at byte {error.start}); copy it again, or {_ELSEWHERE}."
        ) from None
    except json.JSONDecodeError as error:
        raise DataError(
            f"File {file} is not valid JSON ({error.msg} at line {error.lineno}, column {error.colno}); copy it again, "
            f"or {_ELSEWHERE}."
        ) from None
    except UserError as error:
        raise DataError(f"File {file}: {error}.") from None
    if not isinstance(content, dict):
        raise DataError(
            f"File {file}: expected an object with the keys train, val and test, but got a {type(content).__name__}; "
            f"{_ELSEWHERE}, with the annotation published at {SOURCE}."
        )
    return content


def _check_splits(content: Mapping[str, Any], file: Path) -> None:
    absent = [split for split in SPLITS if split not in content]
    if absent:
        others = [key for key in content if key not in SPLITS]
        remedy = (
            f"rename the key {others[0]!r} to {absent[0]!r} if it holds that split"
            if len(absent) == len(others) == 1
            else f"take the file published at {SOURCE}"
        )
        raise DataError(
            f"File {file} has no split {' and no split '.join(map(repr, absent))}, only the keys {list(content)}; "
            f"{remedy}, or {_ELSEWHERE}."
        )
    for split in SPLITS:
        entries = content[split]
        if not isinstance(entries, list) or not entries:
            got = "an empty one" if entries == [] else f"a {type(entries).__name__}"
            raise DataError(
                f"File {file}: expected split {split!r} to be a list of studies, but got {got}; take the file "
                f"published at {SOURCE}, or {_ELSEWHERE}."
            )


def _item(entry: Any, where: str) -> Item:
    if not isinstance(entry, dict):
        raise DataError(f"{where}: expected an object, but got a {type(entry).__name__}; remove it.")
    for key in ("id", "report", "image_path"):
        if key not in entry:
            raise DataError(f"{where} has no {key!r}, only the keys {list(entry)}; add it or remove the item.")
    name, report, paths = entry["id"], entry["report"], entry["image_path"]
    if not isinstance(name, str) or not name.strip():
        raise DataError(f"{where}: expected 'id' to be a non-empty string, but got {name!r}; add it.")
    where += f" (id {name!r})"
    report = "" if is_missing(report) else report
    if not isinstance(report, str):
        got = repr(report) if isinstance(report, int | float) else f"a {type(report).__name__}"
        raise DataError(f"{where}: expected 'report' to be a string, but got {got}; add it or remove the item.")
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise DataError(f"{where}: expected 'image_path' to be a list of strings, but got {paths!r}; correct it.")
    if not paths:
        raise DataError(f"{where} has no images; add their paths to 'image_path' or remove the item.")
    return Item(id=name, report=report, image_path=tuple(paths), patient=identifier(entry.get("subject_id")))


def _check_ids(items: Mapping[str, Sequence[Item]], file: Path) -> None:
    split_of: dict[str, str] = {}
    for split in SPLITS:
        counts = Counter(item.id for item in items[split])
        repeated = [name for name, count in counts.items() if count > 1]
        if repeated:
            raise DataError(
                f"File {file}: {len(repeated)} ids occur more than once in split {split!r}: {first_names(repeated)}; "
                "keep one item for each."
            )
        for other in SPLITS[: SPLITS.index(split)]:
            shared = [name for name in counts if split_of.get(name) == other]
            if shared:
                raise DataError(
                    f"File {file}: {len(shared)} ids are in split {other!r} and in split {split!r}: "
                    f"{first_names(shared)}; keep each in one split."
                )
        split_of.update(dict.fromkeys(counts, split))
