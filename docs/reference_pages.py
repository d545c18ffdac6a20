"""Makes the reference of settings and that of `mrg.metrics` from signatures and docstrings when the site is built."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import docstring_parser
from mkdocs.structure.files import File, Files

SECTIONS = {
    "Training": {
        "model.init_args": "mrg.modules.base.ReportModule",
        "model.init_args of SFTModule": "mrg.modules.sft.SFTModule",
        "model.init_args of GRPOModule": "mrg.modules.grpo.GRPOModule",
        "model.init_args of FindingsModule": "mrg.modules.findings.FindingsModule",
        "model.init_args.optimizer": "mrg.modules.optimizer.OptimizerSettings",
        "model.init_args.lora": "mrg.modules.policy.lora.LoRA",
        "model.init_args.tiny": "mrg.modules.policy.tiny.Tiny",
    },
    "GRPO": {
        "model.init_args.rollout": "mrg.modules.settings.RolloutSettings",
        "model.init_args.rollout.servers": "mrg.modules.rollout.vllm_servers.Servers",
        "model.init_args.reward": "mrg.modules.settings.RewardSettings",
        "model.init_args.reward.corpus_f1": "mrg.modules.rl.corpus_f1.CorpusF1",
        "model.init_args.reward.scorers": "mrg.modules.rl.reward.WeightedScorer",
        "model.init_args.kl": "mrg.modules.settings.KLSettings",
        "model.init_args.loss": "mrg.modules.settings.LossSettings",
    },
    "Data": {
        "data.init_args": "mrg.datamodules.base.ReportDataModule",
        "data.init_args.augment": "mrg.datamodules.images.augment.Augmentation",
        "data.init_args of IUXRayDataModule": "mrg.datamodules.iu.IUXRayDataModule",
        "data.init_args of MIMICDataModule": "mrg.datamodules.mimic.MIMICDataModule",
        "data.init_args of TableDataModule": "mrg.datamodules.table.TableDataModule",
        "data.init_args.columns of TableDataModule": "mrg.datamodules.table.rows.Columns",
        "data.init_args of RexrankDataModule": "mrg.datamodules.rexrank.RexrankDataModule",
        "data.init_args of DemoDataModule": "mrg.datamodules.demo.DemoDataModule",
        "data.init_args.world of DemoDataModule": "mrg.datamodules.demo.World",
        "data.init_args of ImagesDataModule": "mrg.datamodules.own_images.ImagesDataModule",
    },
    "Gallery": {"gallery": "mrg.callbacks.gallery.GalleryWriter"},
}
"""Title of a section -> key of a group of settings -> the class whose arguments they are."""
FORMULAS = ("mrg.modules.rl.loss", "mrg.modules.rl.advantage", "mrg.modules.rl.corpus_f1")
"""Modules whose docstrings contain the formulas and their sources."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting.

    Args:
        name: Name of the argument.
        choices: Choices of a `Literal`, or the type.
        default: Default value as typed; empty if the setting is required.
        text: Its description.
    """

    name: str
    choices: str
    default: str
    text: str


def on_files(files: Files, config: Any) -> Files:
    """Add both pages if the navigation has them."""
    for name, page in (("settings.md", settings_page), ("metrics_api.md", metrics_page)):
        if name in str(config.nav):
            files.append(File.generated(config, name, content=page()))
    return files


def settings_page() -> str:
    """Markdown of the reference of settings."""
    lines = [
        "# Settings",
        "Each heading is a key of a configuration; the settings below it belong to the class that the heading links "
        "to. Set one in a file, or on the command line: `--model.init_args.rollout.group_size 8`. `python -m mrg fit "
        "--help` and `--model.help CLASS` print the same texts. The trainer's settings (`trainer.max_epochs`, ...) are "
        "[Lightning's](https://lightning.ai/docs/pytorch/stable/common/trainer.html).",
        "",
        "## Run",
        *_table(list(run_settings())),
    ]
    for title, groups in SECTIONS.items():
        lines += ["", f"## {title}"]
        for key, path in groups.items():
            kind = load(path)
            lines += ["", f"### `{key}`" if " of " not in key else f"### {key}"]
            summary = docstring_parser.parse(inspect.getdoc(kind) or "").short_description or ""
            lines += [f"{summary} ([{kind.__name__}](../{_file(kind)}))", "", *_table(list(settings_of(kind)))]
    lines += ["", "## Formulas"]
    for name in FORMULAS:
        module = importlib.import_module(name)
        lines += ["", f"### {name}", f"[Source](../{_file(module)}).", "", inspect.getdoc(module) or ""]
    return "\n".join(lines)


def run_settings() -> Iterator[Setting]:
    """The settings at the top level of a configuration."""
    from mrg.commands.lightning import MrgCLI

    class Recorder:
        def __init__(self) -> None:
            self.found: list[Setting] = []

        def add_argument(self, option: str, type: Any, default: Any, help: str) -> None:
            self.found.append(Setting(option.lstrip("-"), _choices(type), _shown(default), help))

        def add_class_arguments(self, *_: Any) -> None:
            """Leave out the settings of a class, which have a section."""

    recorder = Recorder()
    MrgCLI.add_arguments_to_parser(None, recorder)  # type: ignore[arg-type]
    yield from recorder.found


def settings_of(kind: type) -> Iterator[Setting]:
    """The settings of a class in the order of its arguments.

    Raises:
        ValueError: If an argument is not described.
    """
    texts = {param.arg_name: param.description for param in docstring_parser.parse(inspect.getdoc(kind) or "").params}
    fields = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
    factories = {field.name: field.default_factory for field in fields if callable(field.default_factory)}
    for name, parameter in inspect.signature(kind, eval_str=True).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            continue
        text = " ".join((texts.get(name) or "").split())
        if not text:
            raise ValueError(f"The argument {name} of {kind.__module__}.{kind.__name__} is not described.")
        default = factories[name]() if name in factories else parameter.default
        shown = "" if default is parameter.empty else _shown(default)
        yield Setting(name, _choices(parameter.annotation), shown, text)


def metrics_page() -> str:
    """Markdown of the reference of `mrg.metrics`."""
    metrics = importlib.import_module("mrg.metrics")
    lines = [
        "# mrg.metrics",
        "Everything that `from mrg.metrics import ...` offers. Texts are given as `preds`, then `target`; labels are "
        "(N, 14) tensors of the classes `BLANK`, `POSITIVE`, `NEGATIVE` and `UNCERTAIN` in the order of `CONDITIONS`. "
        "[The guide](metrics.md) explains what the scores mean.",
    ]
    values = {name: getattr(metrics, name) for name in metrics.__all__}
    for title, members in (
        ("Metrics and labelers", {k: v for k, v in values.items() if inspect.isclass(v)}),
        ("Functions", {k: v for k, v in values.items() if inspect.isfunction(v)}),
    ):
        lines += ["", f"## {title}"]
        for name, member in members.items():
            lines += ["", f"### {name}", "```python", f"{name}{_signature(member)}", "```", *_docs(member)]
            lines += [f"\n[Source](../{_file(member)})"]
    constants = {k: v for k, v in values.items() if not callable(v)}
    lines += ["", "## Constants", "", "| name | value |", "|---|---|"]
    for name, value in constants.items():
        lines.append(
            f"| `{name}` | {_cell(', '.join(map(str, value)) if isinstance(value, (tuple, dict)) else value)} |"
        )
    return "\n".join(lines)


def load(path: str) -> Any:
    """Import a class by its path."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _docs(member: Any) -> list[str]:
    parsed = docstring_parser.parse(inspect.getdoc(member) or "")
    lines = ["", parsed.short_description or ""]
    if parsed.long_description:
        lines += ["", parsed.long_description]
    if parsed.params:
        lines += ["", "| argument | meaning |", "|---|---|"]
        lines += [
            f"| `{param.arg_name}` | {_cell(' '.join((param.description or '').split()))} |" for param in parsed.params
        ]
    if parsed.returns and parsed.returns.description:
        lines += ["", f"**Returns:** {' '.join(parsed.returns.description.split())}"]
    for error in parsed.raises:
        lines += ["", f"**Raises {error.type_name}:** {' '.join((error.description or '').split())}"]
    for example in parsed.examples:
        lines += ["", "```pycon", example.description or "", "```"]
    return lines


def _signature(member: Any) -> str:
    signature = inspect.signature(member)
    plain = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=plain, return_annotation=signature.empty))


def _table(settings: list[Setting]) -> list[str]:
    rows = [
        f"| `{s.name}` | {_cell(s.choices)} | {f'`{s.default}`' if s.default else 'required'} | {_cell(s.text)} |"
        for s in settings
    ]
    return ["| setting | type or choices | default | meaning |", "|---|---|---|---|", *rows]


def _choices(annotation: Any) -> str:
    """Choices or type of an annotation, for a reader."""
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{choice!r}`" if choice == "" else f"`{choice}`" for choice in get_args(annotation))
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(_choices(part) for part in get_args(annotation))
    if annotation is type(None):
        return "`null`"
    if get_origin(annotation) is not None:
        parts = ", ".join(_choices(part) for part in get_args(annotation) if part is not Ellipsis)
        return f"{get_origin(annotation).__name__} of {parts}"
    return str(getattr(annotation, "__name__", annotation))


def _shown(default: Any) -> str:
    if default is None:
        return "null"
    if isinstance(default, bool):
        return str(default).lower()
    if dataclasses.is_dataclass(default):
        return "its own defaults"
    return repr(default) if default == "" or not isinstance(default, str) else default


def _cell(text: Any) -> str:
    return str(text).replace("|", "\\|")


def _file(member: Any) -> str:
    root = Path(__file__).resolve().parents[1]
    return Path(inspect.getsourcefile(member) or "").resolve().relative_to(root).as_posix()
