"""Images that are stored in a table itself, as features of `datasets` or as the bytes of files."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from mrg.datamodules.study import ImageReadError, View


@dataclasses.dataclass(frozen=True)
class TableView(View):
    """A view whose image stays in the table until it is looked at; `image` is the name that messages call it by.

    Args:
        rows: The `datasets.Dataset` in Arrow's format, which leaves images as they are stored.
        place: Row, column, and place in the row's list of images, or -1 where there is one image.
    """

    rows: Any = None
    place: tuple[int, str, int] = (0, "", -1)

    def read(self) -> Image.Image:
        """Read the image as any other file, through a copy on disk.

        Raises:
            ImageReadError: See `View.read`.
        """
        row, column, index = self.place
        value = self.rows[row].column(column)[0].as_py()
        value = value if index < 0 else value[index]
        data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
        if data is None:
            return View(Path(path or "")).read()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / (Path(path or "").name or "image")
            file.write_bytes(data)
            try:
                return View(file).read()
            except ImageReadError as error:
                raise type(error)(str(error).replace(str(file), str(self.image))) from None


class StoredImages:
    """The columns of a table that hold images.

    Args:
        rows: A `datasets.Dataset`.
        columns: The columns that may hold images; those that hold paths are left alone.
        title: The table's name, for messages.
    """

    def __init__(self, rows: Any, columns: Sequence[str], title: str) -> None:
        self.title = title
        self.counts: dict[str, list[int]] = {}
        for name in columns:
            feature = rows.features[name]
            inner = getattr(feature, "feature", None)
            if _holds_image(feature):
                self.counts[name] = _present(rows, name)
            elif inner is not None and _holds_image(inner):
                self.counts[name] = _lengths(rows, name)
        self.rows = rows.with_format("arrow")

    def views(self, column: str, row: int) -> list[View]:
        """The views of one row."""
        count = self.counts[column][row]
        places = [-1] if count < 0 else list(range(count))
        return [
            TableView(Path(f"{self.title}, row {row + 1}, {column}"), rows=self.rows, place=(row, column, place))
            for place in places
        ]


def _holds_image(feature: Any) -> bool:
    import datasets

    return isinstance(feature, datasets.Image) or getattr(feature, "dtype", "") in ("binary", "large_binary")


def _present(rows: Any, column: str) -> list[int]:
    """For each row -1, or 0 where it has no image."""
    blocks = rows.select_columns([column]).with_format("arrow").iter(batch_size=1000)
    return [-1 if there else 0 for block in blocks for there in block.column(0).is_valid().to_pylist()]


def _lengths(rows: Any, column: str) -> list[int]:
    """How many images each row has; Arrow knows without a look at any of them."""
    blocks = rows.select_columns([column]).with_format("arrow").iter(batch_size=1000)
    chunks = (chunk for block in blocks for chunk in block.column(0).chunks)
    return [length or 0 for chunk in chunks for length in chunk.value_lengths().to_pylist()]
