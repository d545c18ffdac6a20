"""`python -m mrg demo`: SFT, GRPO from it, a test of both, one table; offline, on a CPU, on synthetic images.

Each stage is a command that a user could type (`fit`, `test`) with a file of `configs/`; this module runs them and
compares their results. `--full` adds SFT continued for as long as GRPO took, and repeats all stages with other seeds.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrg.commands.configs import CONFIGS

if TYPE_CHECKING:
    from mrg.pages.tested_run import TestedRun

QUICK = {
    "fit": ["--trainer.max_steps=20", "--trainer.val_check_interval=20", "--trainer.callbacks=null"],
    "grpo": ["--trainer.max_steps=4", "--trainer.val_check_interval=4"],
    "data": ["--data.init_args.num_train=320", "--data.init_args.num_val=16", "--data.init_args.num_test=64"],
}
SFT, GRPO, CONTINUED = "SFT", "GRPO from SFT", "SFT continued"
FOLDERS = {SFT: "sft", GRPO: "grpo", CONTINUED: "continued"}


def main(args: Sequence[str]) -> None:
    """Parse the demo's own options and run it."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="python -m mrg demo", description="SFT, GRPO from it, one table; offline, on a CPU.")
    parser.add_argument("--quick", action="store_true", help="one minute: every stage for a few steps; learns nothing")
    parser.add_argument("--full", action="store_true", help="add SFT continued for GRPO's time, over several seeds")
    parser.add_argument("--seed", type=int, default=0, help="seed of the data, the weights and the rollouts")
    parser.add_argument("--num_seeds", type=int, default=3, help="number of seeds with --full: seed, seed + 1, ...")
    parser.add_argument("--runs", type=str, default="", help="folder of the demo's runs (default: a new one in runs/)")
    options = parser.parse_args(list(args))
    folder = Path(options.runs) if options.runs else _new_folder(Path("runs"))
    if options.full:
        run_study(folder, range(options.seed, options.seed + options.num_seeds), options.quick)
    else:
        Demo(folder, options.seed, options.quick).run()


def _new_folder(runs: Path) -> Path:
    """The first free folder `runs/demo-<n>`, so that the results of earlier demos are kept."""
    return next(path for n in range(1, 10**6) if not (path := runs / f"demo-{n}").exists())


@dataclasses.dataclass
class Demo:
    """The runs of one seed.

    Args:
        folder: Folder of the runs and of results.json.
        seed: Seed of the data, the weights and the rollouts.
        quick: Whether to take few steps on little data.
        started: Clock at the start.
        seconds: Title -> duration of each fit that has ended.
    """

    folder: Path
    seed: int = 0
    quick: bool = False
    started: float = dataclasses.field(default_factory=time.monotonic)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    def run(self, continued: bool = False) -> dict[str, Any]:
        """Train and test; returns the results in the table."""
        if self.quick:
            print("--quick: a few steps of each stage on little data, to see that it runs. Nothing is learned.")
        self.say("SFT: a tiny vision-language model learns to write reports, token by token.")
        self.fit_and_test(SFT, "sft", "demo_sft.yaml", QUICK["fit"])
        self.say("GRPO: the model samples 8 reports for each study and learns from their clinical reward.")
        policy = f"--model.init_args.policy={self.folder / 'sft' / 'policy'}"
        seed = f"--model.init_args.rollout.seed={self.seed}"
        self.fit_and_test(GRPO, "grpo", "demo.yaml", QUICK["grpo"], policy, seed)
        if continued:
            self.continue_sft(policy)
        self.say("All policies and the baselines on the test split:")
        results = self.compare()
        page = self.write_gallery(results)
        self.say(
            f"Results: {self.folder / 'results.json'}; predictions.jsonl and metrics.csv are in the folder of each run."
        )
        print(
            f"Open {page} in a browser: each study with the reports of all policies and their correct, missed and "
            "hallucinated findings."
        )
        return results

    def write_gallery(self, results: Mapping[str, Any]) -> Path:
        """Write one page with all policies side by side, GRPO first; returns its path."""
        from mrg.metrics import RulesLabeler
        from mrg.pages.gallery import Gallery, of_studies
        from mrg.run.folder import PAGE

        runs = self.runs()
        gallery = Gallery(
            {title: runs[title].rows for title in (GRPO, SFT, CONTINUED) if title in runs},
            RulesLabeler(),
            results["margin"],
            **of_studies(runs[SFT].studies()),
            max_views=runs[SFT].max_views,
            results=results,
            title=f"{GRPO} and {SFT} on synthetic radiographs",
        )
        gallery.write(self.folder / PAGE)
        return self.folder / PAGE

    def runs(self) -> dict[str, TestedRun]:
        """Title -> run, for those that have been tested."""
        from mrg.pages.tested_run import TestedRun

        return {title: TestedRun.read(self.folder / FOLDERS[title]) for title in self.seconds}

    def continue_sft(self, policy: str) -> None:
        """Continue SFT from its policy for as many steps as fit into GRPO's time, validations included.

        The strongest comparison possible: all weights, a new warm-up and decay of the learning rate to 0 over these
        steps, and as many validations by the same score as GRPO, to choose the best checkpoint.
        """
        with (self.folder / "sft" / "metrics.csv").open(encoding="utf-8") as file:
            done = 1 + max(int(row["step"]) for row in csv.DictReader(file))
        steps = max(5, round(done * self.seconds[GRPO] / self.seconds[SFT]))
        self.say(f"SFT continued: {steps} steps, as many as fit into the {self.seconds[GRPO]:.0f} seconds of GRPO.")
        options = [
            "--monitor=val/mccs",
            "--model.init_args.train_vision=true",
            f"--model.init_args.optimizer.decay_steps={steps}",
            f"--model.init_args.optimizer.warmup_steps={min(50, steps // 2)}",
            f"--trainer.val_check_interval={steps // 5}",
            "--trainer.callbacks=null",
        ]
        self.fit_and_test(CONTINUED, "continued", "demo_sft.yaml", [], policy, f"--trainer.max_steps={steps}", *options)

    def say(self, text: str) -> None:
        """Print a line with the time so far."""
        print(f"\n[{time.monotonic() - self.started:4.0f} s] {text}", flush=True)

    def fit_and_test(self, title: str, name: str, config: str, quick: list[str], *options: str) -> None:
        """Run `python -m mrg fit`, then `test` on its best checkpoint."""
        from mrg.commands.lightning import run

        shared = [f"--seed_everything={self.seed}", f"--data.init_args.seed={self.seed}", f"--runs={self.folder}"]
        if self.quick:
            shared += [*QUICK["data"], *quick]
        begun = time.monotonic()
        run(["fit", f"--config={CONFIGS / config}", f"--name={name}", *shared, *options])
        self.seconds[title] = time.monotonic() - begun
        # The table at the end has its results, too.
        with contextlib.redirect_stdout(io.StringIO()):
            run(["test", f"--config={self.folder / name / 'config.yaml'}", "--trainer.enable_progress_bar=false"])

    def compare(self) -> dict[str, Any]:
        """Print all policies in one table, with paired differences; returns the results."""
        from mrg.files import write_json
        from mrg.metrics import RulesLabeler
        from mrg.metrics.evaluation import evaluate_systems, format_table

        runs = self.runs()
        target = runs[SFT].target
        systems = {title: [text] * len(target) for title, text in runs[SFT].baselines.items()}
        results = evaluate_systems(
            systems | {title: run.reports for title, run in runs.items()},
            target,
            RulesLabeler(),
            margin=runs[SFT].results["margin"],
            formats={title: run.format for title, run in runs.items() if run.format is not None},
            differences=[(GRPO, SFT), *([(CONTINUED, SFT), (GRPO, CONTINUED)] if CONTINUED in runs else [])],
            best=runs[SFT].best_constants,
        )
        # The protocol that all policies share, and the policy and checkpoint of each.
        protocols = {title: run.results["protocol"] for title, run in runs.items()}
        own = ("policy", "checkpoint", "fingerprint")
        protocol = {key: value for key, value in protocols[SFT].items() if key not in own}
        protocol["systems"] = {title: {key: part[key] for key in own} for title, part in protocols.items()}
        results = {"seed": self.seed, "seconds": self.seconds, "protocol": protocol, **results}
        write_json(self.folder / "results.json", results)
        print(format_table(results), flush=True)
        if self.quick:
            print("--quick trains for a few steps on little data: these scores show that all stages run, nothing else.")
        return results


def run_study(folder: Path, seeds: Sequence[int], quick: bool = False) -> None:
    """Run the demo with SFT continued for several seeds; writes study.json and study.md."""
    from mrg.files import write_json, write_text

    studies = [Demo(folder / f"seed{seed}", seed, quick).run(continued=True) for seed in seeds]
    write_json(folder / "study.json", studies)
    text = study_table(studies)
    write_text(folder / "study.md", text)
    print(f"\n{text}\n{folder / 'study.json'}, {folder / 'study.md'}", flush=True)


def study_table(studies: Sequence[Mapping[str, Any]], scores: Sequence[str] = ("MCCS", "CE-F1 micro-13+")) -> str:
    """Markdown table with a block of rows for each seed, in percent with 95 % intervals."""
    from mrg.metrics.evaluation import format_span

    lines = ["| seed | policy | " + " | ".join(scores) + " | distinct | format | fit seconds |"]
    lines.append("|" + "---|" * (5 + len(scores)))

    for study in studies:
        for name, row in study["systems"].items():
            seconds = f"{study['seconds'][name]:.0f}" if name in study["seconds"] else ""
            rate = "" if row["format"] is None else f"{100 * row['format']:.0f} %"
            values = " | ".join(format_span(row["scores"][score]) for score in scores)
            lines.append(
                f"| {study['seed']} | {name} | {values} | {100 * row['distinct']:.0f} % | {rate} | {seconds} |"
            )
        pairs = dict.fromkeys((gap["a"], gap["b"]) for gap in study["differences"])
        for a, b in pairs:
            gaps = {gap["score"]: gap for gap in study["differences"] if (gap["a"], gap["b"]) == (a, b)}
            values = " | ".join(f"**{format_span(gaps[score], sign='+')}**" for score in scores)
            lines.append(f"| {study['seed']} | {a} - {b} | {values} | | | |")
    return "\n".join(lines) + "\n"
