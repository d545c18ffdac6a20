"""What accompanies an exported policy: a model card, and a script that writes reports with it.

Choices: scores are taken from the results.json of the run, and only if they belong to the exported checkpoint. The
script uses transformers' own generation and image processing, so that it also documents the inputs exactly. The card
has no text of a report, because exported folders are shared.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

import mrg
from mrg.datamodules.base import ReportDataModule
from mrg.files import read_config, write_text
from mrg.metrics.evaluation import format_table
from mrg.modules.base import ReportModule
from mrg.run.checkpoint_file import fingerprint

SCRIPT = "write_report.py"
"""Name of the script in the exported folder."""
METHODS = {"SFTModule": "supervised fine-tuning (SFT)", "GRPOModule": "GRPO", "FindingsModule": "findings labels"}


def write_card(
    folder: Path, module: ReportModule, data: ReportDataModule | None, checkpoint: Path | None, adapter: bool
) -> None:
    """Write README.md and `write_report.py` next to an exported policy.

    Args:
        folder: Folder of the exported policy.
        module: Module with the policy.
        data: Data of the run; None leaves them out of the card.
        checkpoint: Checkpoint that was exported; None for a policy as it was loaded.
        adapter: Whether only the adapter was exported.
    """
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), keep_trailing_newline=True)
    processor, family = module.policy.processor, module.policy.base.config.model_type
    steps = lineage(module.source)
    inputs = {name: getattr(module, name) for name in ("max_views", "use_indication", "use_prior", "think")}
    script = environment.get_template(f"{SCRIPT}.jinja").render(
        **inputs,
        prompt=json.dumps(module.prompt, ensure_ascii=False),
        max_study_pixels=module.max_study_pixels,
        base=json.dumps(_address(module.source)) if adapter else "",
        qwen=hasattr(processor.image_processor, "merge_size"),
        torchvision=family == "internvl",
    )
    write_text(folder / SCRIPT, script)
    results, missing = _results(checkpoint)
    protocol = results["protocol"] if results else {}
    exact = not module.policy.merge_note()
    base = steps[-1][1]
    facts = {
        "base model": "random weights" if base == "tiny" else f"`{base}`",
        "training": ", then ".join([*(f"{name} ({how})" for name, _, how in reversed(steps[:-1])), _method(module)]),
        "trained weights": _trained(module),
        "training data": protocol.get("data_description") or (f"`{type(data).__name__}`" if data else "unknown"),
    }
    generation = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    settings = {
        "image size": _image_size(module),
        "decoding": "sampling" if generation.get("do_sample") else "greedy",
        "largest number of new tokens": generation.get("max_new_tokens"),
        "tokens that are never generated": f"{len(generation.get('suppress_tokens') or [])} (generation_config.json)",
    }
    card = environment.get_template("README.md.jinja").render(
        **inputs,
        title=folder.absolute().name,
        adapter=adapter,
        hub_base="" if base == "tiny" or Path(base).exists() else base,
        version=mrg.__version__,
        prompt=module.prompt,
        facts=facts,
        settings=settings,
        results=format_table(results) if results else "",
        protocol=f"Test data: {protocol.get('data_description', '')}",
        no_results=missing,
        note="the same as `mrg predict --images`." if exact else "as `mrg predict --images` does, except for rounding.",
        script=script.strip(),
    )
    write_text(folder / "README.md", card)


def lineage(source: str) -> list[tuple[str, str, str]]:
    """Trace a policy through the runs that trained it, the latest first, back to a policy that no run has trained.

    Args:
        source: `model.init_args.policy` of a run: a hub id, a folder, or `"tiny"`.

    Returns:
        (name of the run, policy that it started from, method) of each run; the last entry is ("", base model, "").
    """
    steps: list[tuple[str, str, str]] = []
    while len(steps) < 20 and (file := Path(source).parent / "config.yaml").is_file() and Path(source).is_dir():
        config = read_config(file)
        kind = str(config["model"]["class_path"]).rpartition(".")[2]
        source = str(config["model"]["init_args"].get("policy", "tiny"))
        steps.append((str(config.get("name", file.parent.name)), source, METHODS.get(kind, kind)))
    return [*steps, ("", source, "")]


def _address(source: str) -> str:
    return str(Path(source).absolute()) if Path(source).is_dir() else source


def _method(module: ReportModule) -> str:
    kind = type(module).__name__
    return METHODS.get(kind, kind)


def _trained(module: ReportModule) -> str:
    parts = [f"LoRA of rank {module.lora.rank}, alpha {module.lora.alpha:g}" if module.lora else "language model"]
    return ", ".join([*parts, *(["vision tower"] if module.train_vision or module.source == "tiny" else [])])


def _image_size(module: ReportModule) -> str:
    size = dict(module.policy.processor.image_processor.size)
    if "longest_edge" in size and "shortest_edge" in size:
        study = f"; {module.max_study_pixels:,} for all images of a study" if module.max_study_pixels else ""
        return f"{size['shortest_edge']:,} to {size['longest_edge']:,} pixels per image{study}"
    return ", ".join(f"{name} {value}" for name, value in size.items() if value)


def _results(checkpoint: Path | None) -> tuple[dict[str, Any] | None, str]:
    """Results of the run on its test split, or the reason why there are none for this checkpoint."""
    remedy = "`mrg test` scores the policy; export it again afterwards to have the scores here."
    file = checkpoint.parents[1] / "results.json" if checkpoint and len(checkpoint.parents) > 1 else None
    if checkpoint is None or file is None or not file.is_file():
        return None, f"Not tested. {remedy}"
    results: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if results["protocol"].get("fingerprint") != fingerprint(checkpoint):
        return None, f"Not tested: the results of the run belong to another checkpoint. {remedy}"
    if results["best_constant"]:
        results["best_constant"]["reports"] = {}  # the text of a training report; its conditions are shown instead
    return results, ""
