"""A tested run, read from its folder: predictions, results, labeler and images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mrg.datamodules.study import Study, View
from mrg.errors import UserError
from mrg.files import check_yaml
from mrg.log import log
from mrg.metrics.constants import BestConstants
from mrg.metrics.labels import Labeler
from mrg.metrics.predictions import Predictions, read_predictions
from mrg.metrics.rows import read_rows
from mrg.pages.training_log import read_object, reading
from mrg.run.checkpoint_file import is_outdated


@dataclasses.dataclass
class TestedRun:
    """A tested run.

    Args:
        folder: Folder with predictions.jsonl and, if `test` wrote them, results.json and config.yaml.
        rows: Rows of predictions.jsonl.
        results: Content of results.json; empty if there is none.
    """

    __test__ = False  # not a test case of pytest

    folder: Path
    rows: list[dict[str, Any]]
    results: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> TestedRun:
        """Read a run folder.

        Raises:
            UserError: If it has no predictions, or a file is damaged.
        """
        file = folder / "predictions.jsonl"
        if not file.is_file():
            raise UserError(f"{folder} holds no predictions.jsonl: run `test` there first.")
        rows = read_rows(file)
        for number, row in enumerate(rows, 1):
            if wrong := [key for key in ("id", "prediction", "target") if not isinstance(row.get(key), str)]:
                raise UserError(f"{file}, row {number}: expected {wrong[0]} to be a text; run `test` again.")
        run = cls(folder, rows, read_object(folder / "results.json"))
        with reading(folder / "results.json"):  # before work is done whose page would need them
            _ = run.baselines, run.best_constants, run.is_outdated
        return run

    def predictions(self) -> Predictions:
        """Studies with a reference.

        Raises:
            UserError: If there is none, or a report is not a text.
        """
        return read_predictions(self.folder / "predictions.jsonl")

    @property
    def reports(self) -> list[str]:
        """Generated reports, in the order of the rows."""
        return [row["prediction"] for row in self.rows]

    @property
    def target(self) -> list[str]:
        """Reference reports, in the order of the rows."""
        return [row["target"] for row in self.rows]

    @property
    def format(self) -> float | None:
        """Share of completions in the valid format; None if the rows do not record it."""
        recorded = [bool(row["format"]) for row in self.rows if "format" in row]
        return sum(recorded) / len(recorded) if recorded and len(recorded) == len(self.rows) else None

    @property
    def baselines(self) -> dict[str, str]:
        """Name -> report of the baselines that the run was tested with; empty if results.json does not list them."""
        return dict(self.results.get("protocol", {}).get("baselines") or {})

    @property
    def best_constants(self) -> BestConstants | None:
        """Best constants that the run was tested with; None if results.json does not list them."""
        return BestConstants.read(self.results.get("best_constant"))

    @property
    def max_views(self) -> int:
        """Number of views of a study that the policy saw; 0 if the configuration does not set it."""
        return int(self._model().get("max_views") or 0)

    @property
    def is_outdated(self) -> bool:
        """Whether training has replaced the tested checkpoint; see `mrg.run.checkpoint_file`."""
        return is_outdated(self.folder, self.results)

    def config(self) -> dict[str, Any]:
        """Configuration of the run; empty if there is none."""
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException
        from yaml import YAMLError

        file = self.folder / "config.yaml"
        if not file.is_file():
            return {}
        with reading(file):
            try:
                check_yaml(file.read_text(encoding="utf-8"))
                return _mapping(OmegaConf.to_container(OmegaConf.load(file)))
            except (YAMLError, OmegaConfBaseException) as error:
                raise UserError(" ".join(str(error).split())) from error

    def labeler(self) -> Labeler | None:
        """Make the labeler of the run's configuration; None if it sets none.

        Raises:
            UserError: If it cannot be made.
        """
        settings = self._model().get("labeler")
        if not settings:
            return None
        try:
            made: Labeler = _instantiate(Labeler, settings)
        except (ImportError, ValueError, OSError) as error:
            raise UserError(" ".join(str(error).split())) from error
        return made

    def studies(self) -> dict[str, Study]:
        """Tested studies by id, from the image files in the rows or, if some are gone, from the run's data.

        Studies whose reference has changed are left out, as are all studies if the data are gone.
        """
        with reading(self.folder / "predictions.jsonl"):
            found = {row["id"]: _from_files(row) for row in self.rows}
        if all(found.values()):
            return {name: study for name, study in found.items() if study}
        target = {row["id"]: row.get("target") for row in self.rows}
        again = {study.id: study for study in self._read_data() if target.get(study.id) == study.report}
        return {name: study for name in target if (study := again.get(name) or found[name])}

    def _model(self) -> dict[str, Any]:
        return _mapping(_mapping(self.config().get("model")).get("init_args"))

    def _read_data(self) -> list[Study]:
        """Test split of the run's data module; empty if its source is gone."""
        from mrg.datamodules.base import ReportDataModule

        data = self.config().get("data")
        if not data:
            return []
        try:
            module = _instantiate(ReportDataModule, data)
            module.setup()
        except (ImportError, ValueError, OSError) as error:
            log.warning(f"No images: the data of {self.folder} cannot be read ({' '.join(str(error).split())}).")
            return []
        return list(module.splits["test"])


def _instantiate(base: type, settings: Any) -> Any:
    """Make an object from the `class_path` and `init_args` of a configuration.

    Raises:
        UserError: If the settings are not those of a subclass.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(base, "value")
    try:
        return parser.instantiate_classes(parser.parse_object({"value": settings})).value
    except ArgumentError as error:
        raise UserError(str(error)) from error


def _from_files(row: Mapping[str, Any]) -> Study | None:
    """Study of a row, if all its image files exist."""
    files = [Path(name) for name in row.get("images", [])]
    if not files or not all(file.is_file() for file in files):
        return None
    positions = row.get("positions") or [""] * len(files)
    views = tuple(View(file, position) for file, position in zip(files, positions, strict=True))
    return Study(row["id"], views, row.get("target", ""))


def _mapping(value: object) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}
