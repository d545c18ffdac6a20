"""The index of MIMIC-CXR: one row per study, gathered from tables, report files and image folders.

Nothing that is a choice of the user is in it: every view, every section, every study of the tables is. Filters are
applied to its columns when the data set is read, in a second or two, so that another choice needs no other index.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

from mrg.datamodules.annotation import DataNotFoundError, Item, read_items
from mrg.datamodules.mimic import sections, tables
from mrg.datamodules.mimic.sections import parse_sections
from mrg.datamodules.mimic.shards import digest, open_index
from mrg.datamodules.mimic.tables import ImageList

if TYPE_CHECKING:
    from datasets import Dataset, Features

NOT_UTF8 = "not UTF-8"
"""A rule beside those of `sections.RULES`: the file was read as Windows text instead."""

NO_FILE = "no file"
"""A source beside those of `sections.SOURCES`: the report is not there."""

NAME = "MIMIC-CXR"
_EXTENSIONS = (".jpg", ".png", ".jpeg", ".dcm")
_SHARD_ITEMS = 8192
_THREADS, _CHUNK = 8, 64

T = TypeVar("T")


def columns() -> Features:
    """The columns of the index; paths are relative to the folder that holds p10 to p19."""
    from datasets import Features, Value

    text, count = Value("string"), Value("int32")
    return Features(
        {
            "id": text,
            "patient": text,
            "split": text,
            "datetime": text,
            "images": [text],
            "positions": [text],
            "present": [Value("bool")],
            "findings": text,
            "impression": text,
            "indication": text,
            "body": text,
            "findings_words": count,
            "impression_words": count,
            "body_words": count,
            "source": text,
            "rules": [text],
        }
    )


def patients_folder(root: Path, setting: str, holds: str, published_at: str) -> Path:
    """The folder that holds p10 to p19: `root/files` or `root` itself.

    Raises:
        DataNotFoundError: If there is none; the message names the setting.
    """
    for folder in (root / "files", root):
        if folder.is_dir() and any(folder.glob("p1[0-9]")):
            return folder
    packed = root / "mimic-cxr-reports.zip"
    finding = (
        "does not exist" if not root.exists() else f"holds {packed.name}, which must be unpacked first"
        if packed.is_file() else "holds no files/p10 to files/p19"
    )  # fmt: skip
    raise DataNotFoundError(
        f"Folder {root} {finding}; set `data.init_args.{setting}` to the folder of the {holds} (published at "
        f"{published_at})."
    )


def open_official(folder: Path, reports: Path, images: Path, split_file: Path, metadata_file: Path) -> Dataset:
    """Open the index of the published folders and tables, after making what is missing of it.

    Args:
        folder: Where the index is kept.
        reports: Holds p10/p10000032/s50414267.txt and so on.
        images: Holds p10/p10000032/s50414267/<dicom_id>.jpg and so on; another extension is taken as well.
        split_file: See `ImageList`.
        metadata_file: See `ImageList`.

    Raises:
        AnnotationError: If a table cannot be used.
        ValueError: If the folder cannot be written.
    """
    _listing.cache_clear()
    listed = functools.lru_cache(ImageList)

    def make(shard: int) -> list[dict[str, Any]]:
        studies = list(listed(split_file, metadata_file).studies(shard))
        return list(_in_threads(lambda study: _study_row(study, reports, images), studies))

    made_from = {
        "folder of reports": str(reports.resolve()),
        "folder of images": str(images.resolve()),
        "split table": digest(split_file),
        "metadata table": digest(metadata_file),
        "version of mrg": _code(),
    }
    return open_index(
        folder,
        NAME,
        made_from,
        lambda: listed(split_file, metadata_file).num_shards,
        make,
        columns(),
        lambda shard: _has_arrived(shard, reports, images),
    )


def open_annotation(folder: Path, file: Path, images: Path) -> Dataset:
    """Open the index of R2Gen's annotation, after making what is missing of it.

    Args:
        folder: Where the index is kept.
        file: `{"train": [{"id", "study_id", "subject_id", "report", "image_path": [...], "split"}, ...], ...}`.
        images: The folder to which image paths are relative.

    Raises:
        DataNotFoundError: If the file is missing.
        AnnotationError: If it cannot be used.
        ValueError: If the folder cannot be written.
    """
    _listing.cache_clear()

    @functools.lru_cache
    def listed() -> list[tuple[str, Item]]:
        return [(split, item) for split, items in read_items(file).items() for item in items]

    def make(shard: int) -> list[dict[str, Any]]:
        items = listed()[shard * _SHARD_ITEMS :][:_SHARD_ITEMS]
        return list(_in_threads(lambda item: _item_row(*item, images), items))

    if not file.is_file():
        listed()  # says what is wrong
    made_from = {"annotation": digest(file), "folder of images": str(images.resolve()), "version of mrg": _code()}
    return open_index(
        folder,
        NAME,
        made_from,
        lambda: -(-len(listed()) // _SHARD_ITEMS),
        make,
        columns(),
        lambda shard: _has_arrived(shard, None, images),
    )


def report_path(patient: str, study: str) -> str:
    """The path of a report, relative to the folder that holds p10 to p19."""
    return f"p{patient[:2]}/p{patient}/s{study}.txt"


def _in_threads(make: Callable[[T], dict[str, Any]], items: Sequence[T]) -> Iterator[dict[str, Any]]:
    """Make rows in order, waiting for several files at a time: on a network disk the wait is most of the time."""
    chunks = [items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK)]
    with ThreadPoolExecutor(_THREADS) as threads:
        for rows in threads.map(lambda chunk: [make(item) for item in chunk], chunks):
            yield from rows


def _study_row(study: Mapping[str, Any], reports: Path, images: Path) -> dict[str, Any]:
    patient, name = study["patient"], study["id"]
    folder = f"p{patient[:2]}/p{patient}/s{name}"
    names = _listing(images / folder)
    found = [_find(dicom_id, names) for dicom_id in study["dicom_ids"]]
    row = {
        "id": name,
        "patient": patient,
        "split": study["split"],
        "datetime": study["datetime"],
        "images": [
            f"{folder}/{image or dicom_id + _EXTENSIONS[0]}"
            for image, dicom_id in zip(found, study["dicom_ids"], strict=True)
        ],
        "positions": study["positions"],
        "present": [image is not None for image in found],
    }
    return row | _report(reports / report_path(patient, name))


def _report(file: Path) -> dict[str, Any]:
    """The columns that come from a report."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return _texts("", "", "", "", NO_FILE, [])
    rules = []
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("cp1252", errors="replace")
        rules.append(NOT_UTF8)
    found = parse_sections(text)
    return _texts(found.findings, found.impression, found.indication, found.body, found.source, [*found.rules, *rules])


def _texts(findings: str, impression: str, indication: str, body: str, source: str, rules: list[str]) -> dict[str, Any]:
    return {
        "findings": findings,
        "impression": impression,
        "indication": indication,
        "body": body,
        "findings_words": len(findings.split()),
        "impression_words": len(impression.split()),
        "body_words": len(body.split()),
        "source": source,
        "rules": rules,
    }


def _item_row(split: str, item: Item, images: Path) -> dict[str, Any]:
    paths = [PurePosixPath(path) for path in item.image_path]
    found = [_find(path.stem, _listing(images / path.parent)) for path in paths]
    row = {
        "id": item.id,
        "patient": item.patient,
        "split": split,
        "datetime": "",
        "images": [
            str(path if image is None else path.parent / image) for path, image in zip(paths, found, strict=True)
        ],
        "positions": [""] * len(paths),
        "present": [image is not None for image in found],
    }
    return row | _texts(item.report, "", "", "", "findings alone", [])


@functools.lru_cache(maxsize=64)
def _listing(folder: Path) -> frozenset[str]:
    """The names in a folder, one system call for all images of a study; none where it is not there."""
    try:
        return frozenset(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()


def _find(stem: str, names: frozenset[str]) -> str | None:
    return next((stem + extension for extension in _EXTENSIONS if stem + extension in names), None)


def _has_arrived(shard: Dataset, reports: Path | None, images: Path) -> bool:
    """Whether a file that was missing when a shard was made is there now."""
    import pyarrow.compute as pc

    columns = shard.data
    if pc.all(pc.list_flatten(columns["present"])).as_py() and not pc.any(pc.equal(columns["source"], NO_FILE)).as_py():
        return False
    kept = ["id", "patient", "images", "present", "source"]
    for rows in shard.select_columns(kept).iter(batch_size=1000):
        for name, patient, paths, present, source in zip(*(rows[column] for column in kept), strict=True):
            if source == NO_FILE and reports is not None and (reports / report_path(patient, name)).is_file():
                return True
            missing = (Path(path) for path, there in zip(paths, present, strict=True) if not there)
            if any(_find(path.stem, _fresh(images / path.parent)) for path in missing):
                return True
    return False


def _fresh(folder: Path) -> frozenset[str]:
    return _listing.__wrapped__(folder)


def _code() -> str:
    """What of this package decides the content of a row."""
    files = [Path(module.__file__ or "") for module in (sections, tables)] + [Path(__file__)]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
