"""The R2Gen annotation file, in which several data sets are published: read it, check it, find its images.

`{"train": [{"id", "report", "image_path": [...]}, ...], "val": [...], "test": [...]}`; source: Chen et al., EMNLP 2020.
Published copies are damaged in many ways (a split under a blank key, dead links, studies in two splits), and each way
changes results without a sign. So everything is checked here, before any image is opened.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from mrg.errors import NotFoundError, UserError

SPLITS = ("train", "val", "test")
SOURCE = "https://github.com/cuhksz-nlp/R2Gen"

_EXTENSIONS = (".png", ".jpg", ".jpeg")
_NUM_LISTED = 5

_log = logging.getLogger(__name__)


class AnnotationError(UserError):
    """An annotation whose content cannot be used; the message is one line with file, finding and remedy."""


class DataNotFoundError(NotFoundError):
    """A folder or file of a data set that is not there; the message is one line with path, setting and remedy."""


@dataclasses.dataclass(frozen=True)
class Item:
    """One study of an annotation file: its id, its report as written, its image paths as listed, and its patient."""

    id: str
    report: str
    image_path: tuple[str, ...]
    patient: str = ""


def read_items(file: Path, empty_reports: Literal["raise", "drop", "keep"] = "raise") -> dict[str, list[Item]]:
    """Read and check the items of train, val and test, in the order of the file; other keys are ignored.

    Args:
        file: The annotation file.
        empty_reports: Whether an empty report is an error, its study is left out (with one warning), or is kept.

    Raises:
        DataNotFoundError: If the file or its folder is missing.
        AnnotationError: If it is not valid JSON, lacks a split or a field, or has an id twice, an item without images,
            or an empty report (unless these are dropped or kept).
    """
    if empty_reports not in ("raise", "drop", "keep"):
        raise UserError(
            f"Expected argument `empty_reports` to be 'raise', 'drop' or 'keep', but got {empty_reports!r}."
        )
    content = _load_json(file)
    _check_splits(content, file)
    items = {
        split: [
            _item(entry, f"File {file}, split {split!r}, item {index}") for index, entry in enumerate(content[split])
        ]
        for split in SPLITS
    }
    _check_ids(items, file)
    return _handle_empty_reports(items, file, empty_reports)


class ImageFinder:
    """Finds listed images below a folder, where need be with another extension (.png, .jpg, .jpeg) or another case.

    Looks into one listing per folder: a system call for each image and extension is slow on network disks.

    Args:
        folder: The folder to which image paths are relative.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.num_found = 0
        self.missing: list[str] = []
        self._listings: dict[str, dict[str, str]] = {}

    def find(self, name: str, *others: str) -> Path:
        """Return the path of an image; where there is none, note its name in `missing` and return the listed path.

        Args:
            name: Its path as listed.
            *others: Other names under which it is published, looked for in turn.
        """
        for path in map(PurePosixPath, (name, *others)):
            listing = self._listing(str(path.parent))
            candidates = [path.name, *(path.stem.lower() + suffix for suffix in (path.suffix.lower(), *_EXTENSIONS))]
            found = next((listing[candidate] for candidate in candidates if candidate in listing), None)
            if found is not None:
                self.num_found += 1
                return self.folder / path.parent / found
        self.missing.append(name)
        return self.folder / name

    def check(self, file: Path, source: str = SOURCE) -> None:
        """Raise `DataNotFoundError` with the number and the first of the missing images, if there are any.

        Args:
            file: What lists the images.
            source: Where they are published.
        """
        if self.missing:
            raise DataNotFoundError(
                f"{len(self.missing)} of the {self.num_found + len(self.missing)} images listed in {file} are not in "
                f"{self.folder}: {first_names(self.missing)}; set `data.init_args.root` to the folder that holds "
                f"{self.folder.name}/, or complete the images from {source}."
            )

    def _listing(self, parent: str) -> dict[str, str]:
        if parent not in self._listings:
            try:
                with os.scandir(self.folder / parent) as entries:
                    names = sorted(entry.name for entry in entries if entry.is_file())
            except (FileNotFoundError, NotADirectoryError):
                names = []
            # Names as they are come last, so that they win over lower-cased ones.
            self._listings[parent] = {name.lower(): name for name in names} | {name: name for name in names}
        return self._listings[parent]


def first_names(names: Sequence[str]) -> str:
    """The first of many names, for an error of one line."""
    return ", ".join(names[:_NUM_LISTED]) + (", …" if len(names) > _NUM_LISTED else "")


def _load_json(file: Path) -> Mapping[str, Any]:
    if not file.parent.is_dir():
        finding = "is not a folder" if file.parent.exists() else "does not exist"
        raise DataNotFoundError(
            f"Folder {file.parent} {finding}; set `data.init_args.root` to the folder that holds {file.name} and the "
            f"images (published at {SOURCE})."
        )
    try:
        # Editors on Windows put a byte order mark in front, which the plain codec would hand to the parser.
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, IsADirectoryError):
        raise DataNotFoundError(
            f"File {file} does not exist; set `data.init_args.root` to the folder that holds {file.name} (published at "
            f"{SOURCE})."
        ) from None
    except UnicodeDecodeError as error:
        raise AnnotationError(
            f"File {file} is not UTF-8 text (at byte {error.start}); copy it again or set `data.init_args.root` to "
            "another folder."
        ) from None
    except json.JSONDecodeError as error:
        raise AnnotationError(
            f"File {file} is not valid JSON ({error.msg} at line {error.lineno}, column {error.colno}); copy it again "
            "or set `data.init_args.root` to another folder."
        ) from None
    if not isinstance(content, dict):
        raise AnnotationError(
            f"File {file}: expected an object with the keys train, val and test, but got a {type(content).__name__}; "
            f"set `data.init_args.root` to the folder of an annotation as published at {SOURCE}."
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
        raise AnnotationError(
            f"File {file} has no split {' and no split '.join(map(repr, absent))}, only the keys {list(content)}; "
            f"{remedy}, or set `data.init_args.root` to another folder."
        )
    for split in SPLITS:
        entries = content[split]
        if not isinstance(entries, list) or not entries:
            got = "an empty one" if entries == [] else f"a {type(entries).__name__}"
            raise AnnotationError(
                f"File {file}: expected split {split!r} to be a list of studies, but got {got}; take the file "
                f"published at {SOURCE}, or set `data.init_args.root` to another folder."
            )


def _item(entry: Any, where: str) -> Item:
    if not isinstance(entry, dict):
        raise AnnotationError(f"{where}: expected an object, but got a {type(entry).__name__}; remove it.")
    for key in ("id", "report", "image_path"):
        if key not in entry:
            raise AnnotationError(f"{where} has no {key!r}, only the keys {list(entry)}; add it or remove the item.")
    name, report, paths = entry["id"], entry["report"], entry["image_path"]
    if not isinstance(name, str) or not name.strip():
        raise AnnotationError(f"{where}: expected 'id' to be a string that is not empty, but got {name!r}; add it.")
    where += f" (id {name!r})"
    if not isinstance(report, str):
        raise AnnotationError(
            f"{where}: expected 'report' to be a string, but got {report!r}; add it or remove the item."
        )
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise AnnotationError(f"{where}: expected 'image_path' to be a list of strings, but got {paths!r}; correct it.")
    if not paths:
        raise AnnotationError(f"{where} has no images; add their paths to 'image_path' or remove the item.")
    return Item(id=name, report=report, image_path=tuple(paths), patient=str(entry.get("subject_id", "")))


def _check_ids(items: Mapping[str, Sequence[Item]], file: Path) -> None:
    split_of: dict[str, str] = {}
    for split in SPLITS:
        counts = Counter(item.id for item in items[split])
        repeated = [name for name, count in counts.items() if count > 1]
        if repeated:
            raise AnnotationError(
                f"File {file}: {len(repeated)} ids occur more than once in split {split!r}: {first_names(repeated)}; "
                "keep one item for each."
            )
        for other in SPLITS[: SPLITS.index(split)]:
            shared = [name for name in counts if split_of.get(name) == other]
            if shared:
                raise AnnotationError(
                    f"File {file}: {len(shared)} ids are in split {other!r} and in split {split!r}: "
                    f"{first_names(shared)}; keep each in one split."
                )
        split_of.update(dict.fromkeys(counts, split))


def _handle_empty_reports(items: Mapping[str, list[Item]], file: Path, empty_reports: str) -> dict[str, list[Item]]:
    empty = [item.id for split in SPLITS for item in items[split] if not item.report.strip()]
    if not empty or empty_reports == "keep":
        return dict(items)
    if empty_reports == "raise":
        raise AnnotationError(
            f"File {file}: {len(empty)} studies have an empty report: {first_names(empty)}; set "
            "`data.init_args.empty_reports` to drop in order to leave them out."
        )
    kept = {split: [item for item in items[split] if item.report.strip()] for split in SPLITS}
    for split in SPLITS:
        if not kept[split]:
            raise AnnotationError(
                f"File {file}: all {len(items[split])} studies of split {split!r} have an empty report; set "
                "`data.init_args.root` to another folder."
            )
    _log.warning("File %s: %d studies with an empty report are left out: %s.", file, len(empty), first_names(empty))
    return kept
