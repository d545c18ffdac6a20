"""Rows of the MIMIC-CXR index: one per study, gathered from tables, report files and image folders.

Rows do not depend on any setting: they have every view and every section. Filters are applied to their columns when the
data set is read, in a second or two, so that other settings need no other index.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

from mrg.datamodules.errors import DataNotFoundError
from mrg.datamodules.images.read import split_suffix
from mrg.datamodules.mimic import sections, tables
from mrg.datamodules.mimic.index import digest, open_index
from mrg.datamodules.mimic.sections import parse_sections
from mrg.datamodules.mimic.tables import ImageList
from mrg.datamodules.r2gen import Item, read_items

if TYPE_CHECKING:
    from datasets import Dataset, Features

NOT_UTF8 = "not UTF-8"
"""Rule in addition to `sections.RULES`: the report was decoded as Windows-1252."""

NO_FILE = "no file"
"""Source in addition to `sections.SOURCES`: the report file does not exist."""

NAME = "MIMIC-CXR"
_EXTENSIONS = (".jpg", ".png", ".jpeg", ".dcm")
_SHARD_ITEMS = 8192
_THREADS, _CHUNK = 8, 64

T = TypeVar("T")


def columns() -> Features:
    """Columns of the index; paths are relative to the folder that holds p10 to p19."""
    from datasets import Features, Value

    texts = ("id", "patient", "split", "datetime", "findings", "impression", "indication", "body", "source")
    lists = {"images": "string", "positions": "string", "present": "bool", "rules": "string"}
    counts = ("findings_words", "impression_words", "body_words")
    return Features(
        {name: Value("string") for name in texts}
        | {name: [Value(kind)] for name, kind in lists.items()}
        | {name: Value("int32") for name in counts}
    )


def patients_folder(root: Path, setting: str, holds: str, published_at: str) -> Path:
    """Find the folder that holds p10 to p19: `root/files` or `root` itself.

    Raises:
        DataNotFoundError: If neither does; the message names the setting.
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
    """Open the index of the published folders and tables, after building missing parts.

    Args:
        folder: Folder of the index.
        reports: Folder with p10/p10000032/s50414267.txt and so on.
        images: Folder with p10/p10000032/s50414267/<dicom_id>.jpg and so on; other extensions are accepted.
        split_file: Split table, see `ImageList`.
        metadata_file: Metadata table, see `ImageList`.

    Raises:
        DataError: If a table cannot be used.
        UserError: If the folder cannot be written.
    """
    _listing.cache_clear()
    listed = functools.lru_cache(ImageList)

    def make(shard: int) -> list[dict[str, Any]]:
        studies = list(listed(split_file, metadata_file).studies(shard))
        return list(_in_threads(lambda study: _study_row(study, reports, images), studies))

    return open_index(
        folder,
        NAME,
        {
            "folder of reports": str(reports.resolve()),
            "folder of images": str(images.resolve()),
            "split table": digest(split_file),
            "metadata table": digest(metadata_file),
            "version of mrg": _code(),
        },
        lambda: listed(split_file, metadata_file).num_shards,
        make,
        columns(),
        lambda shard: _is_stale(shard, reports, images),
    )


def open_annotation(folder: Path, file: Path, images: Path) -> Dataset:
    """Open the index of R2Gen's annotation, after building missing parts.

    Args:
        folder: Folder of the index.
        file: `{"train": [{"id", "study_id", "subject_id", "report", "image_path": [...], "split"}, ...], ...}`.
        images: Folder to which image paths are relative.

    Raises:
        DataNotFoundError: If the file is missing.
        DataError: If it cannot be used.
        UserError: If the folder cannot be written.
    """
    _listing.cache_clear()

    @functools.lru_cache
    def listed() -> list[tuple[str, Item]]:
        return [(split, item) for split, items in read_items(file, "keep").items() for item in items]

    def make(shard: int) -> list[dict[str, Any]]:
        items = listed()[shard * _SHARD_ITEMS :][:_SHARD_ITEMS]
        return list(_in_threads(lambda item: _item_row(*item, images), items))

    if not file.is_file():
        listed()  # raises the error
    return open_index(
        folder,
        NAME,
        {"annotation": digest(file), "folder of images": str(images.resolve()), "version of mrg": _code()},
        lambda: -(-len(listed()) // _SHARD_ITEMS),
        make,
        columns(),
        lambda shard: _is_stale(shard, None, images),
    )


def report_path(patient: str, study: str) -> str:
    """Path of a report, relative to the folder that holds p10 to p19."""
    return f"p{patient[:2]}/p{patient}/s{study}.txt"


def _in_threads(make: Callable[[T], dict[str, Any]], items: Sequence[T]) -> Iterator[dict[str, Any]]:
    """Make rows in order, several at a time, because on a network disk most of the time is spent waiting."""
    chunks = [items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK)]
    with ThreadPoolExecutor(_THREADS) as threads:
        for rows in threads.map(lambda chunk: [make(item) for item in chunk], chunks):
            yield from rows


def _study_row(study: Mapping[str, Any], reports: Path, images: Path) -> dict[str, Any]:
    report = report_path(study["patient"], study["id"])
    folder = report.removesuffix(".txt")
    names = _listing(images / folder)
    found = [_find(dicom_id, names) for dicom_id in study["dicom_ids"]]
    paths = [image or dicom_id + _EXTENSIONS[0] for image, dicom_id in zip(found, study["dicom_ids"], strict=True)]
    row = {name: study[name] for name in ("id", "patient", "split", "datetime", "positions")}
    row |= {"images": [f"{folder}/{path}" for path in paths], "present": [image is not None for image in found]}
    return row | _report(reports / report)


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
    texts = {"findings": findings, "impression": impression, "body": body}
    counts = {f"{name}_words": len(text.split()) for name, text in texts.items()}
    return {**texts, **counts, "indication": indication, "source": source, "rules": rules}


def _item_row(split: str, item: Item, images: Path) -> dict[str, Any]:
    paths = [PurePosixPath(path) for path in item.image_path]
    found = [_find(split_suffix(path.name)[0], _listing(images / path.parent)) for path in paths]
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
    """The names in a folder, with one system call for all images of a study; empty if it does not exist."""
    try:
        return frozenset(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()


def _find(stem: str, names: frozenset[str]) -> str | None:
    return next((stem + extension for extension in _EXTENSIONS if stem + extension in names), None)


def _is_stale(shard: Dataset, reports: Path | None, images: Path) -> bool:
    """Whether a file that was missing when a shard was built exists now."""
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
            # Not from the cache of listings, which is filled while shards are built.
            if any(_find(split_suffix(path.name)[0], _listing.__wrapped__(images / path.parent)) for path in missing):
                return True
    return False


def _code() -> str:
    """Hash of the code that determines the content of a row."""
    files = [Path(module.__file__ or "") for module in (sections, tables)] + [Path(__file__)]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
