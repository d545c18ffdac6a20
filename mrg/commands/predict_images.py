"""`python -m mrg predict --images ...`: a run's policy on one's own images."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

DATA = "mrg.datamodules.own_images.ImagesDataModule"


def parser() -> argparse.ArgumentParser:
    """The options that stand for settings of the data module."""
    result = argparse.ArgumentParser("python -m mrg predict", add_help=False, allow_abbrev=False)
    own = result.add_argument_group("your own images, in the place of --data; without --config by the latest run")
    own.add_argument(
        "--images", nargs="+", action="extend", default=[], metavar="FILE", help="files, folders and patterns"
    )
    own.add_argument(
        "--as_one_study",
        nargs="?",
        const="true",
        metavar="true|false",
        help="all of the images are views of one study (default: each is a study of its own)",
    )
    own.add_argument("--indication", metavar="TEXT", help="why the examination was made, for a policy that reads it")
    own.add_argument("--output", metavar="FILE", help="JSON lines to write (default: images.jsonl in the run's folder)")
    return result


def with_images(args: Sequence[str]) -> list[str]:
    """The options of `predict` with `--images` and what belongs to it put as settings of the data module."""
    own, others = parser().parse_known_args(list(args))
    settings = [f"--data.init_args.images={json.dumps(own.images)}"]
    # The run's own setting was for its training data.
    if not any(word.partition("=")[0] in ("--data.init_args.on_error", "--data.on_error") for word in others):
        settings.append("--data.init_args.on_error=skip")
    for name in ("as_one_study", "indication", "output"):
        value = getattr(own, name)
        if value is not None:
            settings.append(f"--data.init_args.{name}={value}")
    # The run may have been tested on a part of its data; of these images none may be left out.
    return [*others, f"--data={DATA}", "--data.init_args.limit_test=0", *settings]
