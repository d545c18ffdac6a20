"""What the README and the docs show runs as shown."""

import ast
import importlib.util
import json
import pkgutil
import re
import statistics
from pathlib import Path

import pytest

from mrg.metrics import CONDITIONS, RulesLabeler
from mrg.metrics.evaluation import evaluate_systems, format_table
from mrg.modules.policy.families import FAMILIES

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def python_blocks(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def known_families():
    """A page that makes a family known does so for itself alone."""
    known = dict(FAMILIES)
    yield
    FAMILIES.clear()
    FAMILIES.update(known)


@pytest.mark.usefixtures("known_families")
@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page)], ids=lambda page: page.name)
def test_python_blocks_run(page, capsys):
    """In order, as one program; what a comment says that a line prints is what it prints."""
    blocks = [block for block in python_blocks(page) if not block.startswith("# not executed")]
    namespace = {}
    for block in blocks:
        exec(compile(block, page.name, "exec"), namespace)
    printed = capsys.readouterr().out.splitlines()
    shown = re.findall(r"^print\(.*\)  # (.*)$", "".join(blocks), re.MULTILINE)
    assert shown
    assert [line for line in printed if line in shown] == shown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_files_exist(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / target).exists(), target
    for config in re.findall(r"configs/\w+\.yaml", text):
        assert (ROOT / config).exists(), config
    for file in re.findall(r"`((?:mrg|tests|docs|benchmarks|configs)/[\w./-]+\.\w+)", text):
        assert (ROOT / file).exists(), file
    for file in re.findall(r"`((?:policy|prefix|rollout|rl)/\w+\.py)`", text):
        assert (ROOT / "mrg" / "modules" / file).exists(), file


TABLE = re.compile(r"^(\d+) studies, labeler rules, MCCS margin ([\d.]+);.*?^\n", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if TABLE.search(page.read_text(encoding="utf-8"))], ids=lambda page: page.name
)
def test_lines_above_tables_are_as_printed(page):
    results = evaluate_systems({"model": ["Edema."]}, ["Edema."], RulesLabeler(), num_resamples=2)
    for shown in TABLE.finditer(page.read_text(encoding="utf-8")):
        num_studies, margin = int(shown[1]), float(shown[2])
        counts = re.sub(r"\s+", " ", shown[0])
        support = {name: int(re.search(rf"\b{name} (\d+)", counts)[1]) for name in CONDITIONS}
        empty = float(re.search(r"([\d.]+) %\.\s*$", shown[0])[1]) / 100
        stated = {"num_studies": num_studies, "margin": margin, "support": support, "empty_references": empty}
        assert format_table({**results, **stated}).partition("\n\n")[0] == shown[0].rstrip("\n")


def test_readme_and_speed_page_show_the_times_of_the_log():
    log = json.loads((ROOT / "benchmarks" / "results" / "speed-2026-11-26" / "grpo_step.json").read_text())
    sides = [log["results"][side] for side in ("trl", "mrg")]
    trl, own = (statistics.median(side["seconds"]) for side in sides)
    memory = [side["peak_mb"] - side["base_mb"] for side in sides]
    row = (
        f"| 1,294 (1,224), 200, 8 | no | {trl:.2f} s | {own:.2f} s | **{trl / own:.1f}x** | {log['ideal']:.1f}x | "
        f"{memory[0]:,.0f} MB | {memory[1]:,.0f} MB |"
    )
    assert row in (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    short = f"A step takes {own:.1f} s, compared with {trl:.1f} s in TRL, and uses a quarter of the memory"
    assert short in " ".join(PAGES[0].read_text(encoding="utf-8").split())
    assert round(memory[1] / memory[0], 2) == 0.24


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_of_the_package_exist(page):
    for name in sorted(set(re.findall(r"\bmrg(?:\.\w+)+", page.read_text(encoding="utf-8")))):
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError):
            pytest.fail(f"{page.name} names {name}, which does not exist")


@pytest.mark.parametrize("script", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.name)
def test_benchmarks_import_what_exists(script):
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("mrg", "tests"):
            module = importlib.import_module(node.module)
            for alias in node.names:
                known = hasattr(module, alias.name) or importlib.util.find_spec(f"{node.module}.{alias.name}")
                assert known, f"{script.name}:{node.lineno}: {node.module}.{alias.name} does not exist"
