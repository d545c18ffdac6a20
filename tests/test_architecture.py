"""The house: which floor a module is on, and that imports only point to the same floor or to a lower one."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = (
    ("mrg", "mrg.errors", "mrg.log", "mrg.files", "mrg.strategy"),
    ("mrg.metrics",),
    ("mrg.datamodules",),
    ("mrg.modules",),
    ("mrg.run",),
    ("mrg.pages",),
    ("mrg.callbacks",),
    ("mrg.commands",),
    ("mrg.cli", "mrg.__main__"),
)


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted((ROOT / "mrg").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """Modules of the package that a file imports, in functions and for types alone, too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} & set(known) or {node.module}
    return (found & set(known)) - {name}


MODULES = modules()
GRAPH = {name: imports(name, path, MODULES) for name, path in MODULES.items()}


def floor(name: str) -> int:
    for index, rooms in enumerate(FLOORS):
        if name in rooms or any(name.startswith(f"{room}.") for room in rooms[: None if index else 0]):
            return index
    raise AssertionError(f"{name} is on no floor: add it to FLOORS")


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


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down(name):
    above = sorted(other for other in GRAPH[name] if floor(other) > floor(name))
    assert not above, f"{name} imports from a higher floor: {above}"
