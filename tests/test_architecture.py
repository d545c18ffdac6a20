"""The house: imports point down and in no circle, files and functions are short, private hooks are in one file each."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("draw_house", ROOT / "docs" / "draw_house.py")
house = importlib.util.module_from_spec(spec)
sys.modules["draw_house"] = house  # dataclasses look their module up
spec.loader.exec_module(house)

MODULES = house.modules()
GRAPH = {name: house.imports(name, path, MODULES) for name, path in MODULES.items()}
TREES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in MODULES.values()}

MOST_LINES = 39_300
MOST_FILE_LINES = 350
MOST_FUNCTION_LINES = 60

# Where private parts of other libraries are used: one file for each part.
PRIVATE = {
    "lightning": {"mrg/callbacks/training_loop.py"},
    "LightningCLI": {"mrg/commands/parser.py"},
    "torchmetrics": {"mrg/metrics/metric.py"},
    "torch": {
        "mrg/metrics/labelers/chexbert_network.py",
        "mrg/modules/prefix/attention.py",
        "mrg/modules/rollout/static_cache.py",
    },
}


def cycles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Strongly connected components of more than one module (Tarjan, 1972)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in order:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], order[other])
        if low[node] == order[node]:
            part = set()
            while node not in part:
                part.add(stack.pop())
            if len(part) > 1:
                found.append(part)

    for node in sorted(graph):
        if node not in order:
            visit(node)
    return found


def test_no_import_cycles():
    assert cycles(GRAPH) == []


def test_cycles_are_found():
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [{"b", "c"}]


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down(name):
    above = sorted(other for other in GRAPH[name] if house.floor(other) < house.floor(name))
    assert not above, f"{name} imports from a higher floor: {above}"


def test_picture_is_up_to_date():
    command = [sys.executable, ROOT / "docs" / "draw_house.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def num_lines(path: str) -> int:
    return len((ROOT / path).read_text(encoding="utf-8").splitlines())


def test_the_package_is_small():
    total = sum(map(num_lines, TREES))
    assert total <= MOST_LINES, f"mrg has {total} lines: what became superfluous?"


@pytest.mark.parametrize("path", TREES)
def test_files_and_functions_are_short(path):
    assert num_lines(path) <= MOST_FILE_LINES, f"{path} has {num_lines(path)} lines"
    for node in ast.walk(TREES[path]):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = node.end_lineno - node.lineno + 1
            assert lines <= MOST_FUNCTION_LINES, f"{path}:{node.lineno}: {node.name} has {lines} lines"


def private(name: object) -> bool:
    documented = ("_exit", "_replace")  # of `os` and of named tuples
    return isinstance(name, str) and name.startswith("_") and not name.endswith("__") and name not in documented


def private_uses(tree: ast.AST) -> list[str]:
    """Private attributes of other objects than `self`, and private names that are imported."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            names = [] if own else [node.attr]
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [part for alias in node.names for part in alias.name.split(".")]
            names += (getattr(node, "module", "") or "").split(".")
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr", "delattr"):
            names = [argument.value for argument in node.args[1:2] if isinstance(argument, ast.Constant)]
        else:
            continue
        if any(map(private, names)):
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


def test_private_uses_are_found():
    source = (
        "import torch._dynamo\nself._own\nother._field\ngetattr(loop, '_state', None)\nsuper()._hook\nx.__class__\n"
    )
    lines = [line.partition(":")[0] for line in private_uses(ast.parse(source))]
    assert sorted(lines) == ["line 1", "line 3", "line 4", "line 5"]


@pytest.mark.parametrize("path", TREES)
def test_private_parts_of_libraries_are_used_in_listed_files(path):
    found = private_uses(TREES[path])
    if not any(path in files for files in PRIVATE.values()):
        assert not found, f"{path} uses private names, which belong into a file of PRIVATE: {found}"


def test_files_of_private_hooks_have_some():
    for files in PRIVATE.values():
        for path in files:
            assert private_uses(TREES[path]), f"{path} uses no private names any more: take it out of PRIVATE"
