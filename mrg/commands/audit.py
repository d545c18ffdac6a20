"""`python -m mrg audit --config FILE`: what the reward of a configuration pays to reports that ignore the image."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mrg.commands.arguments import OneLineParser
from mrg.errors import UserError
from mrg.files import write_json


def main(args: Sequence[str]) -> None:
    """Print the table and the cheapest exploit, and write them as JSON if asked for.

    Raises:
        UserError: If the configuration has no reward, or there are fewer than two training studies.
    """
    parser = OneLineParser(
        "audit",
        __doc__,
        epilog="All options of `fit` are accepted, for example --model.init_args.reward.mccs_weight 0.5.",
        allow_abbrev=False,
    )
    parser.add_argument("--studies", type=int, default=1000, help="training studies, evenly spaced (default: 1000)")
    parser.add_argument(
        "--images", choices=("true", "false"), default="true",
        help="copy the report of the study with the most similar image (default), or of the study before",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, help="JSON file to write")
    options, rest = parser.parse_known_args(list(args))
    if not any(word.split("=")[0] in ("-c", "--config") for word in rest):
        raise UserError("`audit` requires a configuration: pass --config FILE.")
    if options.studies < 2:
        raise UserError(f"Expected --studies to be at least 2, but got {options.studies}.")
    from mrg.modules.rewarded import RewardedModule
    from mrg.modules.rl.audit import audit, format_audit, verdict

    module, data = _built(rest)
    if not isinstance(module, RewardedModule):
        raise UserError(f"{type(module).__name__} has no reward: pass a configuration of GRPO.")
    data.setup()
    whole = data.splits["train"]
    studies = [whole[i] for i in range(0, len(whole), max(1, -(-len(whole) // options.studies)))]
    copied = _nearest_reports(studies) if options.images == "true" and len(studies) > 1 else None
    rows = audit(module.reward, [s.report for s in studies], [s.id for s in studies], copied)
    how = "the most similar image" if copied else "the study before"
    print(f"{data.describe()}: {len(studies):,} training studies, labeler {module.labeler.name}.\n")
    print(format_audit(rows, module.reward.weights))
    print(f"\ncopied: the report of {how}.", *verdict(rows), sep="\n")
    if options.output:
        write_json(
            options.output,
            {"studies": len(studies), "copied": how, "rows": [dataclasses.asdict(row) for row in rows],
             "verdict": verdict(rows)},
        )  # fmt: skip


def _built(argv: Sequence[str]) -> tuple[Any, Any]:
    """Module and data module of a configuration; no policy is loaded."""
    from mrg.commands.lightning import MrgCLI, run

    class Builder(MrgCLI):
        typed, only_parses = "audit", True

        def instantiate_classes(self) -> None:
            self.built = self.parser.instantiate_classes(self.config)["fit"]

    built = run(["fit", *argv], Builder).built  # type: ignore[attr-defined]
    return built.model, built.data


def _nearest_reports(studies: Sequence[Any]) -> list[str]:
    """Report of the other study whose frontal image is most similar, for each study."""
    import torch

    from mrg.modules.image_features import PixelCollator, pixel_rows

    rows = pixel_rows(PixelCollator(32)(list(studies)))  # (N, D)
    similar = (rows @ rows.T).fill_diagonal_(-torch.inf)
    return [studies[i].report for i in similar.argmax(1).tolist()]
