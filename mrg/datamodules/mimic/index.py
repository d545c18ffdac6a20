"""An index on disk: rows that take minutes to gather, in Arrow shards, each written completely or not at all.

    folder/index.json                          fingerprint of what the rows were made from, and a checksum
    folder/shard-<fingerprint>-00000.arrow     one shard of rows, memory-mapped by `datasets`, and a checksum at its end

An interrupted build is resumed from its complete shards. If the fingerprint differs, the index is rebuilt. Two
processes that build the same index do the work twice, without harm. The fingerprint is in the name and in the header of
each shard, so that a process never reads the shards of another that builds from other files in the same folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrg.errors import UserError
from mrg.files import write_json
from mrg.log import log

if TYPE_CHECKING:
    from datasets import Dataset, Features

_NAME = "index.json"
_PROGRESS_SECONDS = 20.0
_CHECKSUM = 16


def digest(file: Path) -> str:
    """Hash of a file's content."""
    state = hashlib.blake2b(digest_size=16)
    with file.open("rb") as lines:
        while block := lines.read(1 << 20):
            state.update(block)
    return state.hexdigest()


def open_index(
    folder: Path,
    name: str,
    fingerprint: Mapping[str, str],
    count: Callable[[], int],
    make: Callable[[int], Sequence[Mapping[str, Any]]],
    features: Features,
    is_stale: Callable[[Dataset], bool] = lambda shard: False,
) -> Dataset:
    """Open an index, after building missing shards; logs where it is.

    Args:
        folder: Folder of the index.
        name: Name of the data set, for messages.
        fingerprint: What the rows are made from, by name; if it differs from that on disk, all shards are rebuilt.
        count: Returns the number of shards; called only for a new index.
        make: Gathers the rows of a shard.
        features: Columns of the rows.
        is_stale: Whether an existing shard must be rebuilt.

    Returns:
        The memory-mapped rows of all shards in order.

    Raises:
        UserError: If the folder cannot be written.
    """
    from datasets import concatenate_datasets

    start = time.monotonic()
    try:
        num_shards = _prepare(folder, name, fingerprint, count)
        made_from = _made_from(fingerprint)
        shards, num_made, shown = [], 0, start
        for number in range(num_shards):
            file = folder / f"shard-{made_from}-{number:05d}.arrow"
            shard = _open(file, made_from, is_stale)
            if shard is None:
                _write(file, make(number), features, made_from)
                num_made += 1
                shard = _open(file, made_from, lambda shard: False)
            if shard is None:
                raise UserError(f"Index shard {file} cannot be read after it was written; is the disk full?")
            shards.append(shard)
            if time.monotonic() - shown > _PROGRESS_SECONDS:
                shown = time.monotonic()
                log.info(f"{name}: {number + 1} of {num_shards} shards after {shown - start:.0f} s")
    except OSError as error:
        raise UserError(
            f"The index of {name} cannot be written to {folder} ({error.strerror or error}); set "
            "`data.init_args.index` to a folder that can be written."
        ) from None
    table = concatenate_datasets(shards)
    made = f", {num_made} of {num_shards} shards built in {time.monotonic() - start:.0f} s" if num_made else ""
    log.info(f"{name}: index of {len(table):,} rows in {folder}{made}.")
    return table


def _prepare(folder: Path, name: str, fingerprint: Mapping[str, str], count: Callable[[], int]) -> int:
    """Create the folder, clear it if it holds another index, and return the number of shards."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / _NAME
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        num_shards, old = int(found["num_shards"]), dict(found["made_from"])
        if found["checksum"] != _made_from(old | {"num_shards": num_shards}):
            raise ValueError
    except FileNotFoundError:
        num_shards, old = 0, {}
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        log.info(f"{name}: rebuilding the index in {folder}, whose {_NAME} is damaged or of an earlier version.")
        num_shards, old = 0, {}
    if old == fingerprint:
        return num_shards
    if old:
        differing = [key for key in {**fingerprint, **old} if old.get(key) != fingerprint.get(key)]
        log.info(f"{name}: rebuilding the index in {folder}, which was made from another {' and '.join(differing)}.")
    for shard in folder.glob("shard-*.arrow"):
        shard.unlink()
    num_shards = count()
    checksum = _made_from({**fingerprint, "num_shards": num_shards})
    write_json(file, {"made_from": dict(fingerprint), "num_shards": num_shards, "checksum": checksum})
    return num_shards


def _made_from(fingerprint: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(sorted(fingerprint.items())).encode(), digest_size=8).hexdigest()


def _open(file: Path, made_from: str, is_stale: Callable[[Dataset], bool]) -> Dataset | None:
    from datasets import Dataset

    if not file.is_file():
        return None
    content = memoryview(file.read_bytes())
    if content[-_CHECKSUM:] != _checksum(content[:-_CHECKSUM]):
        return None  # Arrow takes damaged texts as they are, and may crash on damaged offsets
    shard = Dataset.from_file(str(file))
    header = json.loads((shard.data.schema.metadata or {}).get(b"huggingface", b"{}"))
    return None if header.get("fingerprint") != made_from or is_stale(shard) else shard


def _write(file: Path, rows: Sequence[Mapping[str, Any]], features: Features, made_from: str) -> None:
    from datasets.arrow_writer import ArrowWriter

    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        with ArrowWriter(path=str(temporary), features=features, fingerprint=made_from) as writer:
            writer.write_batch({column: [row[column] for row in rows] for column in features})
            writer.finalize()
        checksum = _checksum(temporary.read_bytes())
        with temporary.open("ab") as end:
            end.write(checksum)  # readers of Arrow's streams stop before it
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def _checksum(content: bytes | memoryview) -> bytes:
    return hashlib.blake2b(content, digest_size=_CHECKSUM).digest()
