"""Your own images, without references: files, folders and patterns to predict reports for."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from mrg.datamodules.base import ReportDataModule
from mrg.datamodules.errors import DataNotFoundError, first_names
from mrg.datamodules.images.read import SUFFIXES
from mrg.datamodules.study import Study, View, all_as_test
from mrg.errors import UserError, counted
from mrg.files import write_lines


def find_images(names: Sequence[str]) -> list[Path]:
    """Find image files, each once, in the order of the names; those of a folder or pattern are sorted.

    Args:
        names: Files, folders (without their subfolders), and patterns of `glob`.

    Raises:
        DataNotFoundError: If a name matches no file.
    """
    found: dict[Path, None] = {}
    missing = []
    for name in names:
        path = Path(name).expanduser()
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.is_file() and file.suffix.lower() in SUFFIXES)
            if not files:
                raise DataNotFoundError(
                    f"Folder {path} holds no image ({', '.join(SUFFIXES)}); for images in its subfolders, pass a "
                    f"pattern such as '{path}/**/*.dcm'."
                )
        elif path.exists():
            files = [path]
        else:
            matches = map(Path, glob.glob(str(path), recursive=True)) if glob.has_magic(str(path)) else ()
            files = sorted(file for file in matches if file.is_file())
            if not files:
                missing.append(_printable(path))
        found.update(dict.fromkeys(files))
    if missing:
        raise DataNotFoundError(
            f"{counted(len(missing), 'image does', 'images do')} not exist: {first_names(missing)}; check --images."
        )
    return list(found)


def _printable(path: Path) -> str:
    """A path as text that can be printed and written: bytes that are not UTF-8 as their escapes."""
    return os.fsencode(path).decode(errors="backslashreplace")


class ImagesDataModule(ReportDataModule):
    """Data module of images to write reports for.

    Args:
        images: Files, folders (without their subfolders), and patterns such as `folder/**/*.dcm`.
        as_one_study: Whether all images are views of one study, instead of one study each.
        indication: Reason for the examination, for a policy that uses it.
        output: JSON lines file to write; empty for `images.jsonl` in the run's folder.
        on_error: What to do if an image cannot be read: `"skip"` and count it, or `"raise"` an error.
        **kwargs: Arguments of `ReportDataModule`.
    """

    def __init__(
        self,
        images: list[str],
        as_one_study: bool = False,
        indication: str = "",
        output: str = "",
        on_error: Literal["raise", "skip"] = "skip",
        **kwargs: Any,
    ) -> None:
        super().__init__(on_error=on_error, **kwargs)
        if not images:
            raise UserError("Expected at least one image, folder or pattern after --images.")
        if output and (Path(output).is_dir() or not Path(output).absolute().parent.is_dir()):
            raise UserError(f"{output} cannot be written: set --output to a file in an existing folder.")
        self.images, self.as_one_study = images, as_one_study
        self.indication, self.output = indication, output

    def read(self) -> dict[str, list[Study]]:
        """Find the images; none is opened.

        Raises:
            DataNotFoundError: If a name matches no file.
        """
        files = find_images(self.images)
        groups = [files] if self.as_one_study else [[file] for file in files]
        # Starting a worker takes longer than reading a few images.
        self.num_workers = min(self.num_workers, len(files) // 16)
        return all_as_test(
            [
                Study(", ".join(map(_printable, group)), tuple(map(View, group)), "", indication=self.indication)
                for group in groups
            ]
        )

    def describe(self) -> str:
        """Describe the number of studies in one line."""
        self.setup()
        return f"{type(self).__name__} (train 0, val 0, test {len(self.to_predict())})"

    def predict_dataloader(self) -> Any:
        """Batches of the studies.

        Raises:
            UserError: If the policy reads fewer images than the study has.
        """
        most, num = getattr(self.collator, "max_views", 0), len(self.to_predict()[0].views)
        if most and num > most:
            raise UserError(
                f"The study has {num} images, but the policy reads only the first {most}: pass fewer, or set "
                f"--model.init_args.max_views={num}."
            )
        return super().predict_dataloader()

    def write_predictions(self, rows: list[dict[str, Any]], folder: Path) -> None:
        """Print each report with the names of its files, and write all of them as JSON lines."""
        images = {
            study.id: [_printable(view.image) for view in study.views if isinstance(view.image, Path)]
            for study in self.to_predict()
        }
        for row in rows:
            print(f"\n{row['id']}\n{row['prediction'] or '(No report; the file below holds the complete output.)'}")
        output = Path(self.output) if self.output else folder / "images.jsonl"
        write_lines(output, [{"id": row["id"], "images": images[row["id"]], **row} for row in rows])
        print(f"\n{counted(len(rows), 'report')}: {output}", flush=True)

    def write_partial_predictions(self, rows: list[dict[str, Any]], folder: Path) -> None:
        """Write the predictions of an interrupted `predict`, because each is useful by itself."""
        print(f"\nStopped after {len(rows)} of {len(self.to_predict())} studies.")
        self.write_predictions(rows, folder)
