"""Labelers that are set by name on a command line."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mrg.errors import RunError, UserError, UserTypeError
from mrg.metrics.conditions import NUM_CONDITIONS
from mrg.metrics.imports import import_named, name_of
from mrg.metrics.labels import Labeler


class NamedLabeler(Labeler):
    """A labeler set on a command line, whose return value is checked.

    Args:
        labeler: Reports in, (N, 14) label classes out; see `Labeler`.
        path: Name on the command line, for messages.
    """

    def __init__(self, labeler: Labeler, path: str) -> None:
        self.labeler, self.path, self.name = labeler, path, name_of(labeler)
        if callable(evidence := getattr(labeler, "evidence", None)):
            self.evidence = evidence  # marked in the gallery

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Label reports.

        Raises:
            RunError: If the labeler fails.
            UserError: If its return value is not a tensor (N, 14) of label classes.
        """
        try:
            labels = self.labeler(texts)
        except Exception as error:
            raise RunError(f"The labeler {self.path} failed: {type(error).__name__}: {error}") from error
        shape = (len(texts), NUM_CONDITIONS)
        if not isinstance(labels, Tensor) or tuple(labels.shape) != shape or labels.dtype.is_floating_point:
            got = f"{tuple(labels.shape)} {labels.dtype}" if isinstance(labels, Tensor) else type(labels).__name__
            raise UserError(f"Expected the labeler {self.path} to return a tensor {shape} of integers, but got {got}.")
        if labels.numel() and not bool(torch.isin(labels, torch.arange(4, device=labels.device)).all()):
            low, high = (int(value) for value in labels.aminmax())
            raise UserError(f"Expected the labeler {self.path} to return label classes 0..3, but got {low}..{high}.")
        return labels.long().cpu()


def load_labeler(path: str) -> Labeler:
    """Import a labeler by name.

    Args:
        path: `"package.module:name"` or, as in a configuration, `"package.module.name"`: a class without required
            arguments, or a callable object.

    Raises:
        ValueError: If `path` has another form, or the module has no such name.
        ImportError: If the module cannot be imported; the message gives the reason.
        UserTypeError: If it is not callable, or a class that needs arguments.
    """
    if ":" not in path and "." in path:
        path = ":".join(path.rsplit(".", 1))
    found = import_named(path, "labeler", "Class")
    if isinstance(found, type):
        try:
            found = found()
        except TypeError as error:
            raise UserTypeError(
                f"The labeler {path} cannot be created without arguments ({error}): create it in a module, "
                "`labeler = ...`, and pass 'module:labeler'."
            ) from error
    if not callable(found):
        raise UserTypeError(f"Expected labeler {path!r} to be callable with reports, but got {type(found).__name__}.")
    return NamedLabeler(found, path)
