"""Mutants: one small change of a source file each, which the tests of its area must notice.

    python benchmarks/mutants.py --known                                # each mutant of `KNOWN` must be killed
    python benchmarks/mutants.py --sample 60 --seed 0 --out FOLDER rl   # a random sample of the mutants of an area

`mutation.py` makes the mutants, and `mutant_tests.py` runs the tests. This is no part of the test suite: a sample of 60
takes some minutes, and all mutants take a day.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import os
import random
import sys
import tempfile
from pathlib import Path

import mutation
from mutant_tests import AREAS, ROOT, Area, outcomes
from mutation import Mutant

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
    ("mrg/modules/rl/correction.py", "if not limit > 1", "if limit <= 1"),
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
    ("mrg/datamodules/mimic/sections.py", "return part.first < end", "return True"),
    ("mrg/datamodules/mimic/sections.py", "if _starts_sentence(text, mark.start()) else None", ""),
    ("mrg/datamodules/mimic/sections.py", "not any(letter.islower() for letter in last) or last", "last"),
    ("mrg/datamodules/mimic/sections.py", '".", ":", ";", "?", "!", "_", ")"', '".", ":", "?", "!", "_", ")"'),
]  # fmt: skip
LIBRARIES = (
    "numpy", "torch", "torchmetrics", "transformers", "lightning.pytorch", "peft", "sklearn.metrics", "trl", "datasets",
    "hypothesis", "matplotlib.pyplot", "scipy.stats",
)  # fmt: skip


def known(area: Area) -> list[Mutant]:
    """The mutants of `KNOWN` in an area."""
    found = []
    for path, before, after in KNOWN:
        if path in area.sources:
            source = (ROOT / path).read_text()
            if source.count(before) != 1:
                raise SystemExit(f"Expected {before!r} once in {path}, but found it {source.count(before)} times.")
            line = source[: source.index(before)].count("\n") + 1
            heads = [mutation.head_of(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt)]
            head = min((one for one in heads if one[0] <= line <= one[1]), key=lambda one: one[1] - one[0])
            tree = ast.parse(source.replace(before, after))
            found.append(Mutant(path, f"{path}:{line}: {before}  ->  {after}", tree, head))
    return found


def sampled(area: Area, size: int, seed: int, only: str) -> tuple[list[Mutant], int]:
    """A random sample of the mutants of an area, and the number of all."""
    sources = {path: (ROOT / path).read_text() for path in area.sources if only in path}
    places = [(path, i) for path, source in sources.items() for i in range(mutation.count(source))]
    random.Random(seed).shuffle(places)
    return [mutation.mutant(path, sources[path], i) for path, i in places[:size]], len(places)


def interval(killed: int, total: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson, 1927)."""
    z = 1.96
    middle, width = killed + z * z / 2, z * (killed * (total - killed) / total + z * z / 4) ** 0.5
    return (middle - width) / (total + z * z), (middle + width) / (total + z * z)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--known", action="store_true", help="Run the mutants of `KNOWN`.")
    parser.add_argument("--sample", type=int, default=60, help="Number of mutants of each area.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the sample.")
    parser.add_argument("--only", default="", help="Part of the paths of files; all files of the area by default.")
    parser.add_argument("--again", type=Path, help="Run the survivors of this mutants.json again.")
    parser.add_argument("--record", type=Path, default=Path(tempfile.gettempdir()), help="Folder for recorded lines.")
    parser.add_argument("--out", type=Path, help="Folder for AREA-SEED.json or AREA-known.json.")
    parser.add_argument("areas", nargs="*", choices=[*AREAS, []], help="All areas by default.")
    options = parser.parse_args()
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    for name in LIBRARIES:
        importlib.import_module(name)
    missed = 0
    for name in options.areas or AREAS:
        area = Area(name, options.record)
        mutants, total = (
            (known(area), None) if options.known else sampled(area, options.sample, options.seed, options.only)
        )
        if options.again is not None:
            survived = {row["mutant"] for row in json.loads(options.again.read_text())["mutants"] if row["survived"]}
            mutants = [one for one in mutants if one.name in survived]
        if not mutants:
            continue
        rows = []
        for mutant, outcome in zip(mutants, outcomes(area, mutants), strict=True):
            rows.append({"mutant": mutant.name, "outcome": outcome, "survived": outcome in ("survived", "no test")})
            print(f"{outcome:9}{mutant.name}", flush=True)
        survived = sum(row["survived"] for row in rows)
        missed += survived
        killed = len(rows) - survived
        low, high = interval(killed, len(rows))
        share = f"{100 * killed / len(rows):.0f} % [{100 * low:.0f}, {100 * high:.0f}]"
        print(f"{name}: {killed} of {len(rows)} mutants were killed, {share}", flush=True)
        if options.out is not None:
            options.out.mkdir(parents=True, exist_ok=True)
            result = {"area": name, "seed": options.seed, "total": total, "sampled": len(rows), "survived": survived}
            path = options.out / f"{name}-{'known' if options.known else options.seed}.json"
            path.write_text(json.dumps(result | {"mutants": rows}, indent=1) + "\n")
    raise SystemExit(bool(missed and options.known))


if __name__ == "__main__":
    main()
