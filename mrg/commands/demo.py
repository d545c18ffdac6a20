"""`python -m mrg demo`: SFT, GRPO from it, test of both, one table; offline, on a CPU, on drawn images.

Each stage is a command that a user could type (`fit`, `test`) with a file of `configs/`; this module chains them and
compares what they wrote. `--full` adds SFT continued for as long as GRPO took, and repeats it all with other seeds.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).parents[2] / "configs"
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
    parser.add_argument("--quick", action="store_true", help="a minute: shows every stage, learns little")
    parser.add_argument("--full", action="store_true", help="also SFT continued for GRPO's time, with several seeds")
    parser.add_argument("--seed", type=int, default=0, help="of the world, the weights and the rollouts")
    parser.add_argument("--num_seeds", type=int, default=3, help="with --full: seed, seed + 1, ...")
    parser.add_argument("--runs", type=str, default="", help="folder of the demo's runs; a new one in runs/ by default")
    options = parser.parse_args(list(args))
    if not (CONFIGS / "demo.yaml").is_file():
        from mrg.errors import UserError

        raise UserError(f"The demo needs the repository's configs/ beside the package, but {CONFIGS} does not exist.")
    folder = Path(options.runs) if options.runs else _new_folder(Path("runs"))
    if options.full:
        run_study(folder, range(options.seed, options.seed + options.num_seeds), options.quick)
    else:
        Demo(folder, options.seed, options.quick).run()


def _new_folder(runs: Path) -> Path:
    """The first free `runs/demo-<n>`: an earlier demo's results stay."""
    return next(path for n in range(1, 10**6) if not (path := runs / f"demo-{n}").exists())


@dataclasses.dataclass
class Demo:
    """One seed's runs.

    Args:
        folder: Holds the runs and results.json.
        seed: Of the world, the weights and the rollouts.
        quick: Take few steps on little data.
        started: Clock at the start.
        seconds: Time of each fit, filled in as they end.
    """

    folder: Path
    seed: int = 0
    quick: bool = False
    started: float = dataclasses.field(default_factory=time.monotonic)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    def run(self, continued: bool = False) -> dict[str, Any]:
        """Train and test; returns the results that the table shows."""
        self.say("SFT: a tiny vision-language model learns to write reports, word by word.")
        self.fit_and_test(SFT, "sft", "demo_sft.yaml", QUICK["fit"])
        self.say("GRPO: it writes 8 reports for each study and learns from the clinical reward they earn.")
        policy = f"--model.init_args.policy={self.folder / 'sft' / 'policy'}"
        seed = f"--model.init_args.rollout.seed={self.seed}"
        self.fit_and_test(GRPO, "grpo", "demo.yaml", QUICK["grpo"], policy, seed)
        if continued:
            self.continue_sft(policy)
        self.say("All policies on the held-out studies, beside what saying nothing would earn:")
        results = self.compare()
        page = self.write_gallery(results)
        self.say(f"Done: {self.folder / 'results.json'}, and in each run's folder predictions.jsonl and metrics.csv.")
        print(f"Open {page} in a browser: every study, what each policy wrote, what is right, missed and invented.")
        return results

    def write_gallery(self, results: Mapping[str, Any]) -> Path:
        """One page with all policies side by side, judged by GRPO's at first; returns its path."""
        from mrg.metrics import RulesLabeler
        from mrg.pages.gallery import Gallery, of_studies
        from mrg.pages.runs import Run
        from mrg.run.folder import PAGE

        runs = {title: Run.read(self.folder / name) for title, name in FOLDERS.items() if title in self.seconds}
        gallery = Gallery(
            {title: runs[title].rows for title in sorted(runs, key=[GRPO, SFT, CONTINUED].index)},
            RulesLabeler(),
            results["margin"],
            **of_studies(runs[SFT].studies()),
            max_views=runs[SFT].max_views,
            results=results,
            title=f"{GRPO} beside {SFT}, on drawn radiographs",
        )
        gallery.write(self.folder / PAGE)
        return self.folder / PAGE

    def continue_sft(self, policy: str) -> None:
        """SFT from SFT's policy, for as many steps as fit into GRPO's time, validations included.

        As strong as it can be made: all weights, a new warm-up and fall of the rate to 0 over just these steps, and as
        many validations by the same score as GRPO has to choose its best checkpoint from.
        """
        with (self.folder / "sft" / "metrics.csv").open(encoding="utf-8") as file:
            done = 1 + max(int(row["step"]) for row in csv.DictReader(file))
        steps = max(5, round(done * self.seconds[GRPO] / self.seconds[SFT]))
        self.say(f"SFT continued for {steps} steps, which take as long as GRPO's {self.seconds[GRPO]:.0f} seconds.")
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
        """One line with the time so far."""
        print(f"\n[{time.monotonic() - self.started:4.0f} s] {text}", flush=True)

    def fit_and_test(self, title: str, name: str, config: str, quick: list[str], *options: str) -> None:
        """`python -m mrg fit`, then `test` on its best checkpoint."""
        from mrg.commands.lightning import run

        shared = [f"--seed_everything={self.seed}", f"--data.init_args.seed={self.seed}", f"--runs={self.folder}"]
        if self.quick:
            shared += [*QUICK["data"], *quick]
        begun = time.monotonic()
        run(["fit", f"--config={CONFIGS / config}", f"--name={name}", *shared, *options])
        self.seconds[title] = time.monotonic() - begun
        # Its own table comes again, beside the others, at the end.
        with contextlib.redirect_stdout(io.StringIO()):
            run(["test", f"--config={self.folder / name / 'config.yaml'}", "--trainer.enable_progress_bar=false"])

    def compare(self) -> dict[str, Any]:
        """All policies in one table, with paired differences."""
        from mrg.files import read_lines, write_json
        from mrg.metrics import RulesLabeler
        from mrg.metrics.evaluation import evaluate_systems, format_table

        rows = {title: read_lines(self.folder / FOLDERS[title] / "predictions.jsonl") for title in self.seconds}
        tested = json.loads((self.folder / "sft" / "results.json").read_text(encoding="utf-8"))
        systems = {title: [text] * len(rows[SFT]) for title, text in tested["protocol"]["baselines"].items()}
        systems |= {title: [row["prediction"] for row in part] for title, part in rows.items()}
        results = evaluate_systems(
            systems,
            [row["target"] for row in rows[SFT]],
            RulesLabeler(),
            margin=tested["margin"],
            formats={title: sum(row["format"] for row in part) / len(part) for title, part in rows.items()},
            differences=[(GRPO, SFT), *[pair for pair in [(CONTINUED, SFT), (GRPO, CONTINUED)] if CONTINUED in rows]],
        )
        results = {"seed": self.seed, "seconds": self.seconds, "protocol": self.protocol(), **results}
        write_json(self.folder / "results.json", results)
        print(format_table(results), flush=True)
        return results

    def protocol(self) -> dict[str, Any]:
        """What all policies were tested on, and which checkpoint of which policy each one is."""
        tested = {
            title: json.loads((self.folder / FOLDERS[title] / "results.json").read_text(encoding="utf-8"))["protocol"]
            for title in self.seconds
        }
        own = ("policy", "checkpoint", "fingerprint")
        shared = {key: value for key, value in tested[SFT].items() if key not in own}
        return {**shared, "systems": {title: {key: part[key] for key in own} for title, part in tested.items()}}


def run_study(folder: Path, seeds: Sequence[int], quick: bool = False) -> None:
    """The demo with SFT continued for several seeds; writes study.json and study.md."""
    from mrg.files import write_json

    studies = [Demo(folder / f"seed{seed}", seed, quick).run(continued=True) for seed in seeds]
    write_json(folder / "study.json", studies)
    text = study_table(studies)
    (folder / "study.md").write_text(text, encoding="utf-8")
    print(f"\n{text}\n{folder / 'study.json'}, {folder / 'study.md'}", flush=True)


def study_table(studies: Sequence[Mapping[str, Any]], scores: Sequence[str] = ("MCCS", "CE-F1 micro-13+")) -> str:
    """Markdown: one block of rows for each seed, in percent points with 95 % intervals."""
    lines = ["| seed | policy | " + " | ".join(scores) + " | distinct | format | fit seconds |"]
    lines.append("|" + "---|" * (5 + len(scores)))

    def cell(score: Mapping[str, float], sign: str = "") -> str:
        value, low, high = (f"{100 * score[key]:{sign}.1f}" for key in ("value", "low", "high"))
        return f"{value} [{low}, {high}]"

    for study in studies:
        for name, row in study["systems"].items():
            seconds = f"{study['seconds'][name]:.0f}" if name in study["seconds"] else ""
            rate = "" if row["format"] is None else f"{100 * row['format']:.0f} %"
            values = " | ".join(cell(row["scores"][score]) for score in scores)
            lines.append(
                f"| {study['seed']} | {name} | {values} | {100 * row['distinct']:.0f} % | {rate} | {seconds} |"
            )
        pairs = dict.fromkeys((gap["a"], gap["b"]) for gap in study["differences"])
        for a, b in pairs:
            gaps = {gap["score"]: gap for gap in study["differences"] if (gap["a"], gap["b"]) == (a, b)}
            values = " | ".join(f"**{cell(gaps[score], '+')}**" for score in scores)
            lines.append(f"| {study['seed']} | {a} - {b} | {values} | | | |")
    return "\n".join(lines) + "\n"
