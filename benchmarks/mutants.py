"""Mutants: one small change of a source file each, which the tests of that file must notice.

    pip install cosmic-ray
    python benchmarks/mutants.py --known                              # each mutant of `KNOWN` must be killed
    python benchmarks/mutants.py --sample 100 --seed 0 --out FOLDER   # a random sample of all mutants

cosmic-ray makes the mutants. Its own runner starts Python, which imports torch, for each of them; here, each runs in a
fork of a process that has imported the libraries but nothing of mrg. A mutant is killed if a test fails or the tests
take `--limit` seconds. This is no part of the test suite: it takes hours for all mutants.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.abc
import importlib.util
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Source files -> the tests that must notice their mutants.
TESTS = {
    "mrg/metrics/ce.py": ["metrics/test_ce.py", "metrics/test_metric_objects.py", "metrics/test_plot.py"],
    "mrg/metrics/mccs.py": ["metrics/test_mccs.py", "metrics/test_metric_objects.py"],
    "mrg/metrics/conditions.py": ["metrics/test_conditions.py", "metrics/test_ce.py"],
    "mrg/metrics/constants.py": ["metrics/test_constants.py"],
    "mrg/metrics/finding_f1.py": ["metrics/test_finding_f1.py"],
    "mrg/metrics/format.py": ["metrics/test_format.py"],
    "mrg/metrics/labels.py": ["metrics/test_labels.py", "metrics/test_metric_objects.py"],
    "mrg/metrics/nlg.py": ["metrics/test_nlg.py"],
    "mrg/metrics/predictions.py": ["metrics/test_predictions.py"],
    "mrg/metrics/resampling.py": ["metrics/test_resampling.py", "metrics/test_compare.py"],
    "mrg/metrics/verdicts.py": ["metrics/test_verdicts.py"],
    "mrg/modules/rl/advantage.py": ["modules/rl/test_advantage.py"],
    "mrg/modules/rl/batch.py": ["modules/rl/test_batch.py"],
    "mrg/modules/rl/corpus_f1.py": ["modules/rl/test_corpus_f1.py"],
    "mrg/modules/rl/loss.py": [
        "modules/rl/test_loss.py", "modules/rl/test_loss_bounds.py", "modules/rl/test_loss_kl.py",
        "modules/rl/test_loss_correction.py",
    ],
    "mrg/modules/rl/monitor.py": ["modules/rl/test_monitor.py"],
    "mrg/modules/rl/reward.py": ["modules/rl/test_reward.py"],
    "mrg/modules/prefix/attention.py": ["modules/prefix/test_attention.py"],
    "mrg/modules/prefix/packing.py": ["modules/prefix/test_packing.py"],
    "mrg/datamodules/mimic/sections.py": [
        "datamodules/mimic/test_sections.py", "datamodules/mimic/test_sections_bounds.py",
    ],
}  # fmt: skip
# Mutants that once survived: file, text (which occurs once), and what replaces it.
KNOWN = [
    ("mrg/modules/rl/advantage.py", "(here.sum(1) >= 2)", "(here.sum(1) >= 1)"),
    ("mrg/modules/rl/advantage.py", "int(here.sum()) > 1", "int(here.sum()) > 0"),
    ("mrg/modules/rl/advantage.py", "groups.where(here, -torch.inf)", "groups"),
    ("mrg/modules/rl/advantage.py", "groups.where(here, torch.inf)", "groups"),
    ("mrg/modules/rl/advantage.py", "groups.where(here, -torch.inf)", "groups.where(here, 0.0)"),
    ("mrg/modules/rl/loss.py", "low & (advantages < 0)", "low & (advantages <= 0)"),
    ("mrg/modules/rl/loss.py", "high & (advantages > 0)", "high & (advantages >= 0)"),
    ("mrg/modules/rl/loss.py", "(ratio > dual_clip) & (advantages < 0)", "ratio > dual_clip"),
    ("mrg/modules/rl/loss.py", "per_token * weights.where(mask, 0.0)", "per_token * weights"),
    ("mrg/modules/rl/loss.py", "per_token.detach().where", "per_token.where"),
    ("mrg/modules/rl/loss.py", "if not value >= 0", "if value < 0"),
    ("mrg/modules/rl/loss.py", "not dual_clip >= 1 + clip_high", "dual_clip < 1 + clip_high"),
    ("mrg/modules/rl/loss.py", "if not limit > 1", "if limit <= 1"),
    ("mrg/metrics/ce.py", "[*options, *self.columns]", "options"),
    ("mrg/metrics/ce.py", "support = (counts[0] + counts[2])", "support = (counts[0] + counts[1])"),
    ("mrg/metrics/mccs.py", "min=1e-300", "min=1e-3"),
    ("mrg/metrics/mccs.py", "uncertain, EMPTY.index(empty), *self", "uncertain, *self"),
    ("mrg/metrics/mccs.py", "margin, uncertain, EMPTY.index(empty)", "margin, EMPTY.index(empty)"),
    ("mrg/datamodules/mimic/sections.py", "len(name.split()) <= 6", "len(name.split()) <= 5"),
    ("mrg/datamodules/mimic/sections.py", "len(name.split()) <= 6", "len(name.split()) <= 7"),
    ("mrg/datamodules/mimic/sections.py", "cutoff=0.85", "cutoff=0.8"),
    ("mrg/datamodules/mimic/sections.py", "len(name) > 6", "len(name) > 7"),
    ("mrg/datamodules/mimic/sections.py", "len(name) > 6", "len(name) > 3"),
    ("mrg/datamodules/mimic/sections.py", "in reversed(parts) if", "in parts if"),
    ("mrg/datamodules/mimic/sections.py", "in reversed(filled) if", "in filled if"),
    (
        "mrg/datamodules/mimic/sections.py",
        '"indication") or _last(parts, "history")', '"history") or _last(parts, "indication")',
    ),
    ("mrg/datamodules/mimic/sections.py", 'name and how != "view header"', "name"),
    ("mrg/datamodules/mimic/sections.py", "(plain or named)[-1]", "named[-1]"),
    ("mrg/datamodules/mimic/sections.py", '("wet read", "addendum") and how', '("wet read",) and how'),
    ("mrg/datamodules/mimic/sections.py", '("wet read", "addendum") and how', '("addendum",) and how'),
    ("mrg/datamodules/mimic/sections.py", 'final and any(part.name == "wet read" for part in parts)', "final"),
    ("mrg/datamodules/mimic/sections.py", "parts) and any(part.text for part in final)", "parts)"),
    ("mrg/datamodules/mimic/sections.py", "&'-]{1,60}?", "&'-]{1,59}?"),
    ("mrg/datamodules/mimic/sections.py", "&'-]{1,60}?", "&'-]{1,61}?"),
    ("mrg/datamodules/mimic/sections.py", "(?P<alone>[A-Z][A-Z /]{4,30}?)", "(?P<alone>[A-Z][A-Z /]{4,29}?)"),
    ("mrg/datamodules/mimic/sections.py", "(?P<alone>[A-Z][A-Z /]{4,30}?)", "(?P<alone>[A-Z][A-Z /]{4,31}?)"),
    ("mrg/datamodules/mimic/sections.py", "(?P<alone>[A-Z][A-Z /]{4,30}?)", "(?P<alone>[A-Z][A-Z /]{3,30}?)"),
    ("mrg/datamodules/mimic/sections.py", "(?P<inline>[A-Z][A-Z /]{4,30}?)", "(?P<inline>[A-Z][A-Z /]{4,29}?)"),
    ("mrg/datamodules/mimic/sections.py", "(?P<inline>[A-Z][A-Z /]{4,30}?)", "(?P<inline>[A-Z][A-Z /]{4,31}?)"),
    ("mrg/datamodules/mimic/sections.py", '.lstrip("\\ufeff")', ""),
    (
        "mrg/datamodules/mimic/sections.py",
        'how == "view header" and bool(_NOT_SPACE.search(text, start, end))', 'how == "view header"',
    ),
    ("mrg/datamodules/mimic/sections.py", "if _starts_sentence(text, mark.start()) else None", ""),
    ("mrg/datamodules/mimic/sections.py", "not any(letter.islower() for letter in last) or last", "last"),
    ("mrg/datamodules/mimic/sections.py", '".", ":", ";", "?", "!", "_", ")"', '".", ":", "?", "!", "_", ")"'),
]  # fmt: skip
LIBRARIES = ("numpy", "torch", "torchmetrics", "transformers", "lightning.pytorch", "peft", "sklearn.metrics", "pytest")


def mutants(path: str) -> list[tuple[str, str]]:
    """All mutants of a file: a description and the mutated source; docstrings and annotations are not mutated."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator, operator_names

    source, found, seen = (ROOT / path).read_text(), [], set()
    tree = get_ast(source)
    for name in operator_names():
        kind = get_operator(name)
        if kind.arguments() or name.endswith("NoOp"):
            continue
        operator = kind()
        count = sum(1 for node in ast_nodes(tree) for _ in operator.mutation_positions(node))
        for occurrence in range(count):
            mutated = mutate_code(source, operator, occurrence)
            if mutated is None or mutated in seen or (change := changed(source, mutated)) is None:
                continue
            seen.add(mutated)
            found.append((f"{path}:{change}", mutated))
    return found


def changed(source: str, mutated: str) -> str | None:
    """The first line that differs, before and after; None where an annotation such as `int | None` was changed."""
    import ast

    try:
        trees = [ast.parse(text) for text in (source, mutated)]
    except SyntaxError:
        return None
    for tree in trees:
        for node in ast.walk(tree):
            for field in ("annotation", "returns"):
                if hasattr(node, field):
                    setattr(node, field, None)
    if ast.dump(trees[0]) == ast.dump(trees[1]):
        return None
    pairs = zip(source.splitlines(), mutated.splitlines(), strict=False)
    for number, (before, after) in enumerate(pairs, 1):
        if before != after:
            return f"{number}: {before.strip()}  ->  {after.strip()}"
    return "the end"


class Mutated(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Imports one module from a mutated source."""

    def __init__(self, path: str, source: str) -> None:
        self.name, self.path, self.source = path.removesuffix(".py").replace("/", "."), str(ROOT / path), source

    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_file_location(name, self.path, loader=self) if name == self.name else None

    def get_filename(self, fullname: str) -> str:
        return self.path

    def get_data(self, path: str) -> bytes:
        return self.source.encode()

    def path_stats(self, path: str):
        raise OSError  # no cached bytecode


def run(path: str, source: str, limit: int, verbose: bool = False) -> str:
    """Run the tests of a file with a mutated source: `killed`, `survived`, or `time` if they took too long."""
    child = os.fork()
    if child == 0:
        if not verbose:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1), os.dup2(null, 2)
        os.setpgid(0, 0)
        sys.meta_path.insert(0, Mutated(path, source))
        import pytest

        tests = [f"{ROOT}/tests/{name}" for name in TESTS[path]]
        options = ["-x", "-q", "-p", "no:cacheprovider", "-o", "addopts=-m 'not slow'", "--rootdir", str(ROOT)]
        os._exit(int(pytest.main([*options, *tests])))
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return "survived" if os.waitstatus_to_exitcode(status) == 0 else "killed"
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "time"


def chosen(options: argparse.Namespace) -> list[tuple[str, str, str]]:
    """Mutants to run: file, description, source."""
    if options.known:
        found = []
        for path, before, after in KNOWN:
            source = (ROOT / path).read_text()
            if source.count(before) != 1:
                raise SystemExit(f"Expected {before!r} once in {path}, but found it {source.count(before)} times.")
            found.append((path, f"{path}: {before}  ->  {after}", source.replace(before, after)))
        return found
    files = [path for path in TESTS if not options.files or any(name in path for name in options.files)]
    found = [(path, *mutant) for path in files for mutant in mutants(path)]
    print(f"{len(found)} mutants in {len(files)} files", flush=True)
    return random.Random(options.seed).sample(found, min(options.sample, len(found)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--known", action="store_true", help="Run the mutants of `KNOWN`.")
    parser.add_argument("--sample", type=int, default=100, help="Number of mutants.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the sample.")
    parser.add_argument("--limit", type=int, default=300, help="Seconds for the tests of one mutant.")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="Start no mutant after this time.")
    parser.add_argument("--out", type=Path, help="Folder for mutants.json.")
    parser.add_argument("files", nargs="*", help="Parts of paths; all files by default.")
    options = parser.parse_args()
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    for name in LIBRARIES:
        importlib.import_module(name)
    selected, outcomes, start = chosen(options), [], time.monotonic()
    for path in dict.fromkeys(path for path, _, _ in selected):
        if run(path, (ROOT / path).read_text(), options.limit, verbose=True) != "survived":
            raise SystemExit(f"The tests of {path} fail without a mutant.")
    for path, name, source in selected:
        if time.monotonic() - start > options.seconds:
            break
        outcomes.append({"mutant": name, "outcome": run(path, source, options.limit)})
        print(f"{outcomes[-1]['outcome']:9}{name}", flush=True)
    survived = [row["mutant"] for row in outcomes if row["outcome"] == "survived"]
    print(f"{len(outcomes) - len(survived)} of {len(outcomes)} mutants were killed")
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        settings = {"known": options.known, "seed": options.seed, "selected": len(selected)}
        result = {**settings, "run": len(outcomes), "survived": survived, "mutants": outcomes}
        (options.out / "mutants.json").write_text(json.dumps(result, indent=1) + "\n")
    raise SystemExit(bool(survived and options.known))


if __name__ == "__main__":
    main()
