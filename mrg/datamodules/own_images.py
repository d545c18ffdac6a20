"""One's own images, without references: files, folders and patterns -> studies to predict."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from mrg.datamodules.annotation import DataNotFoundError
from mrg.datamodules.base import ReportDataModule
from mrg.datamodules.splits import all_as_test
from mrg.datamodules.study import Study, View
from mrg.datamodules.table.rows import first
from mrg.errors import UserError
from mrg.files import write_lines

SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom", ".tif", ".tiff", ".bmp", ".webp", ".pgm")
"""What is taken from a folder; a file that is named itself may be called anything."""


def find_images(names: Sequence[str]) -> list[Path]:
    """The files that are meant, each once, in the order of the names; those of a folder or pattern sorted.

    Args:
        names: Files, folders, whose own files are taken but not those of the folders in them, and patterns of `glob`.

    Raises:
        DataNotFoundError: If a name stands for no file.
    """
    found: dict[Path, None] = {}
    lost = []
    for name in names:
        path = Path(name).expanduser()
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.is_file() and file.suffix.lower() in SUFFIXES)
            if not files:
                raise DataNotFoundError(
                    f"Folder {path} holds no image ({', '.join(SUFFIXES)}); for those of the folders in it, give a "
                    f"pattern such as '{path}/**/*.dcm'."
                )
        elif path.exists():
            files = [path]
        else:
            matches = map(Path, glob.glob(str(path), recursive=True)) if glob.has_magic(str(path)) else ()
            files = sorted(file for file in matches if file.is_file())
            if not files:
                lost.append(name)
        found.update(dict.fromkeys(files))
    if lost:
        raise DataNotFoundError(f"{len(lost)} of the images do not exist: {first(lost)}; check --images.")
    return list(found)


class ImagesDataModule(ReportDataModule):
    """Images to write reports for.

    Args:
        images: See `find_images`.
        as_one_study: Whether all of the images are views of one study, or each is a study of its own.
        indication: Why the examination was made, for a policy that reads it.
        output: The JSON lines to write; empty for `images.jsonl` in the run's folder.
        on_error: See `ReportDataModule`: an image that cannot be read does not cost the reports of the others.
        **kwargs: See `ReportDataModule`.
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
            raise UserError("Expected at least one image, folder or pattern behind --images.")
        if output and (Path(output).is_dir() or not Path(output).absolute().parent.is_dir()):
            raise UserError(f"{output} cannot be written: name a file in a folder that exists with --output.")
        self.images, self.as_one_study = images, as_one_study
        self.indication, self.output = indication, output

    def read(self) -> dict[str, list[Study]]:
        """Look the images up; none is opened yet.

        Raises:
            DataNotFoundError: If a name stands for no file.
        """
        files = find_images(self.images)
        groups = [files] if self.as_one_study else [[file] for file in files]
        # Starting a process takes longer than reading a few images.
        self.num_workers = min(self.num_workers, len(files) // 16)
        return all_as_test(
            [
                Study(", ".join(map(str, group)), tuple(map(View, group)), "", indication=self.indication)
                for group in groups
            ]
        )

    def predict_dataloader(self) -> Any:
        """See `ReportDataModule`.

        Raises:
            ValueError: If the policy would not look at all of the images.
        """
        most, num = getattr(self.collator, "max_views", 0), len(self.splits["test"][0].views)
        if most and num > most:
            raise UserError(
                f"{num} images are one study, but the policy reads only the first {most}: give fewer, or pass "
                f"--model.init_args.max_views={num}."
            )
        return super().predict_dataloader()

    def keep_predictions(self, rows: list[dict[str, Any]], folder: Path) -> None:
        """Print each report under the names of its files, and write them all as JSON lines."""
        images = {study.id: [str(view.image) for view in study.views] for study in self.splits["test"]}
        for row in rows:
            print(f"\n{row['id']}\n{row['prediction'] or '(No report; the whole completion is in the file below.)'}")
        output = Path(self.output) if self.output else folder / "images.jsonl"
        write_lines(output, [{"id": row["id"], "images": images[row["id"]], **row} for row in rows])
        print(f"\n{len(rows)} {'report' if len(rows) == 1 else 'reports'}: {output}", flush=True)

    def keep_finished(self, rows: list[dict[str, Any]], folder: Path) -> None:
        """As `keep_predictions`: the reports of one's own images are worth having one by one."""
        print(f"\nStopped after {len(rows)} of {len(self.splits['test'])} studies.")
        self.keep_predictions(rows, folder)
