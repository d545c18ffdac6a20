"""`python -m mrg predict --images FILE ...`: reports for your own images."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

DATA = "mrg.datamodules.own_images.ImagesDataModule"


def parser() -> argparse.ArgumentParser:
    """Create the parser of the options that replace settings of the data module."""
    result = argparse.ArgumentParser("python -m mrg predict", add_help=False, allow_abbrev=False)
    own = result.add_argument_group(
        "your own images, instead of --data; without --config and --name, the latest run writes the reports"
    )
    own.add_argument(
        "--images", nargs="+", action="extend", default=[], metavar="FILE", help="files, folders and patterns"
    )
    own.add_argument(
        "--as_one_study",
        nargs="?",
        const="true",
        metavar="true|false",
        help="all images are views of one study (default: each image is a study)",
    )
    own.add_argument("--indication", metavar="TEXT", help="indication of the examination, for a policy that reads it")
    own.add_argument("--output", metavar="FILE", help="JSON lines to write (default: images.jsonl in the run's folder)")
    return result


def with_images(args: Sequence[str]) -> list[str]:
    """Return the arguments of `predict` with `--images` and its options replaced by settings of the data module."""
    own, others = parser().parse_known_args(list(args))
    settings = [f"--data.init_args.images={json.dumps(own.images)}"]
    # The setting of the run is for its training data.
    if not any(word.partition("=")[0] in ("--data.init_args.on_error", "--data.on_error") for word in others):
        settings.append("--data.init_args.on_error=skip")
    for name in ("as_one_study", "indication", "output"):
        value = getattr(own, name)
        if value is not None:
            settings.append(f"--data.init_args.{name}={value}")
    # The run may have been tested on a part of its data; here every image counts.
    return [*others, f"--data={DATA}", "--data.init_args.limit_test=0", *settings]
