"""A run folder read again: what was written, how it was scored, and where the images are."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mrg.datamodules.study import Study, View
from mrg.errors import UserError
from mrg.files import print_if_read, read_lines
from mrg.metrics.labelers.base import Labeler
from mrg.run.checkpoint_file import is_outdated


@dataclasses.dataclass
class Run:
    """A tested run.

    Args:
        folder: Holds predictions.jsonl and, where `test` wrote them, results.json and config.yaml.
        rows: Of predictions.jsonl.
        results: Of results.json; empty where there is none.
    """

    folder: Path
    rows: list[dict[str, Any]]
    results: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Run:
        """Read a run folder.

        Raises:
            ValueError: If it holds no predictions.
        """
        file = folder / "predictions.jsonl"
        if not file.is_file():
            raise UserError(f"{folder} holds no predictions.jsonl: run `test` there first.")
        results = folder / "results.json"
        return cls(folder, read_lines(file), json.loads(results.read_text("utf-8")) if results.is_file() else {})

    @property
    def max_views(self) -> int:
        """How many views of a study the policy saw; 0 where the configuration does not say."""
        model = _mapping(_mapping(self.config().get("model")).get("init_args"))
        return int(model.get("max_views") or 0)

    @property
    def is_outdated(self) -> bool:
        """Whether training has replaced the checkpoint since it was tested; see `mrg.run.checkpoint_file`."""
        return is_outdated(self.folder, self.results)

    def config(self) -> dict[str, Any]:
        """The run's configuration; empty where there is none."""
        from omegaconf import OmegaConf

        file = self.folder / "config.yaml"
        return _mapping(OmegaConf.to_container(OmegaConf.load(file))) if file.is_file() else {}

    def labeler(self) -> Labeler | None:
        """The labeler that the run's configuration names; None where it names none.

        Raises:
            ValueError: If it cannot be made.
        """
        from jsonargparse import ArgumentError, ArgumentParser

        settings = _mapping(_mapping(self.config().get("model")).get("init_args")).get("labeler")
        if not settings:
            return None
        parser = ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(Labeler, "labeler")
        try:
            made: Labeler = parser.instantiate_classes(parser.parse_object({"labeler": settings})).labeler
        except (ArgumentError, ImportError, ValueError, OSError) as error:
            raise UserError(" ".join(str(error).split())) from error
        return made

    def studies(self) -> dict[str, Study]:
        """The tested studies by id: from the files that the rows name or, where some are gone, from the data again.

        Studies whose reference is no longer the tested one are left out, as are all where there is no data any more.
        """
        found = {row["id"]: _from_files(row) for row in self.rows}
        if all(found.values()):
            return {name: study for name, study in found.items() if study}
        target = {row["id"]: row["target"] for row in self.rows}
        again = {study.id: study for study in self._read_data() if target.get(study.id) == study.report}
        return {name: study for name in target if (study := again.get(name) or found[name])}

    def _read_data(self) -> list[Study]:
        """The test split of the run's data module, made anew; empty where its source is not here."""
        from jsonargparse import ArgumentError, ArgumentParser

        from mrg.datamodules.base import ReportDataModule

        data = self.config().get("data")
        if not data:
            return []
        parser = ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(ReportDataModule, "data")
        try:
            module = parser.instantiate_classes(parser.parse_object({"data": data})).data
            module.setup()
        except (ArgumentError, ValueError, OSError) as error:
            print_if_read(f"No images: the data of {self.folder} cannot be read ({' '.join(str(error).split())}).")
            return []
        return list(module.splits["test"])


def _from_files(row: Mapping[str, Any]) -> Study | None:
    """The study of a row whose images are files that are still there."""
    files = [Path(name) for name in row.get("images", [])]
    if not files or not all(file.is_file() for file in files):
        return None
    positions = row.get("positions") or [""] * len(files)
    views = tuple(View(file, position) for file, position in zip(files, positions, strict=True))
    return Study(row["id"], views, row["target"])


def _mapping(value: object) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}
