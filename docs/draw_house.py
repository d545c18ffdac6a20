"""Draw the floors and rooms of the package, and which room imports which, from its sources.

    python docs/draw_house.py [--check]

Writes docs/images/house.svg; `--check` only says whether it is up to date. A room is a folder of the package, a floor
is a row of rooms. Arrows point from the room that imports to the room that is imported. Two kinds are left out: arrows
to the ground floor, which every room may use, and arrows that a path over other rooms implies.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import textwrap
from collections import Counter
from collections.abc import Mapping
from html import escape
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "images" / "house.svg"

FLOORS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("command line", ("mrg.cli", "mrg.__main__"), "finds the command"),
    ("commands", ("mrg.commands",), "fit, test, compare, demo, …"),
    ("callbacks", ("mrg.callbacks",), "checkpoints, progress, results"),
    ("pages", ("mrg.pages",), "HTML pages"),
    ("run", ("mrg.run",), "the folder of a run, resuming"),
    ("modules", ("mrg.modules",), "policies and how they learn"),
    ("datamodules", ("mrg.datamodules",), "images and reports"),
    ("metrics", ("mrg.metrics",), "labels and scores"),
    ("ground floor", ("mrg", "mrg.errors", "mrg.files", "mrg.log", "mrg.strategy"), "for every room"),
)
"""Name, modules or packages, and content of each floor, from the top down. A floor imports from lower floors only."""

LOOSE = ("command line", "ground floor")  # their files lie in mrg/ itself

STYLE = """
svg { font-family: system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; }
.page { fill: #ffffff } .floor { fill: #eef2f5 } .room { fill: #ffffff; stroke: #6b7f8f; stroke-width: 1 }
.name { fill: #17212b; font-size: 13.5px; font-weight: 600 } .note { fill: #4a5a67; font-size: 12px }
.arrow { fill: none; stroke: #00796b; stroke-width: 1.4 } .head { fill: #00796b }
@media (prefers-color-scheme: dark) {
.page { fill: #1e2129 } .floor { fill: #2a2f3a } .room { fill: #363d4a; stroke: #8fa1b3 }
.name { fill: #f0f3f6 } .note { fill: #b9c4cf } .arrow { stroke: #64d8cb } .head { fill: #64d8cb }
}
"""
HEAD = (
    '<defs><marker id="head" viewBox="0 0 8 8" markerWidth="8" markerHeight="8" refX="1" refY="4" orient="auto" '
    'markerUnits="userSpaceOnUse"><path class="head" d="M0,0 L8,4 L0,8 z"/></marker></defs>'
)
WIDTH, LABEL, BOX, HEIGHT, GAP, ARC = 900, 136, 104, 48, 16, 24
"""Widths of the picture, of the floors' names and of a room; height of a room, gaps, and room for arcs, in pixels."""


def modules() -> dict[str, Path]:
    """Every module of the package and its file."""
    found = {}
    for path in sorted((ROOT / "mrg").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def imports(name: str, path: Path, known: Mapping[str, Path]) -> set[str]:
    """Modules of the package that a file imports, in functions and for types alone, too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise SystemExit(f"{path}:{node.lineno}: Expected an absolute import, but found a relative one.")
            found |= {f"{node.module}.{alias.name}" for alias in node.names} & set(known) or {str(node.module)}
    return (found & set(known)) - {name}


def floor(name: str) -> int:
    """Number of a module's floor from the top, 0 for the command line."""
    for index, (_, members, _) in enumerate(FLOORS):
        if name in members or any(name.startswith(f"{member}.") for member in members if member != "mrg"):
            return index
    raise SystemExit(f"{name} is on no floor: add it to FLOORS in docs/draw_house.py.")


def room(name: str, known: Mapping[str, Path]) -> str:
    """The room of a module: its folder, or the floor of a file that lies loose in `mrg/`."""
    folder = name if known[name].name == "__init__.py" else name.rpartition(".")[0]
    return FLOORS[floor(name)][0] if folder == "mrg" else folder.removeprefix("mrg.").replace(".", "/")


@dataclasses.dataclass
class House:
    """Rooms, their files, and imports between them.

    Args:
        files: Number of files of each room that hold any code.
        floors: Floor of each room.
        arrows: Number of imports from one room to another.
    """

    files: Counter[str]
    floors: dict[str, int]
    arrows: Counter[tuple[str, str]]

    @classmethod
    def read(cls) -> House:
        """Read the sources."""
        known = modules()
        rooms = {name: room(name, known) for name in known}
        files = Counter(rooms[name] for name, path in known.items() if path.stat().st_size)
        arrows = Counter(
            (rooms[name], rooms[other])
            for name, path in known.items()
            for other in imports(name, path, known)
            if rooms[name] != rooms[other]
        )
        return cls(files, {rooms[name]: floor(name) for name in known}, arrows)

    def shown(self) -> list[tuple[str, str]]:
        """Arrows that no path over other rooms implies, without those to the ground floor."""
        ground = len(FLOORS) - 1
        forward = {
            (a, b): count
            for (a, b), count in self.arrows.items()
            if self.floors[b] != ground and (count, a) > (self.arrows[b, a], b)  # of two rooms that import each other
        }
        below: dict[str, set[str]] = {a: {b for first, b in forward if first == a} for a in self.floors}

        def reached(start: str, without: str) -> set[str]:
            found, left = set(), list(below[start] - {without})
            while left:
                one = left.pop()
                if one not in found:
                    found.add(one)
                    left += below[one]
            return found

        return sorted((a, b) for a, b in forward if b not in reached(a, b))


def rows(house: House, arrows: list[tuple[str, str]]) -> list[list[str]]:
    """Rooms of each floor from left to right: what imports stands left of what is imported."""
    found = []
    for level in range(len(FLOORS)):
        left = sorted(name for name in house.floors if house.floors[name] == level)
        row: list[str] = []
        while left:
            free = [name for name in left if not any((other, name) in arrows for other in left)]
            # The one whose arrow is next, so that chains are not torn apart.
            row.append(min(free, key=lambda name: (not any((name, b) in arrows for b in left), name)))
            left.remove(row[-1])
        found.append(row)
    return found


class Picture:
    """Places rooms and writes the SVG."""

    def __init__(self, house: House) -> None:
        self.house, self.arrows = house, house.shown()
        self.rows = rows(house, self.arrows)
        self.x: dict[str, float] = {}
        self.y: dict[str, float] = {}
        self.tops: list[float] = []
        top = float(GAP)
        for row in self.rows:
            arcs = any(self.skips(a, b) for a, b in self.arrows if a in row and b in row)
            self.tops.append(top)
            y = top + GAP + (ARC if arcs else 0)
            width = len(row) * BOX + (len(row) - 1) * self.gap(row)
            for index, name in enumerate(row):
                self.x[name] = LABEL + (WIDTH - LABEL - width) / 2 + index * (BOX + self.gap(row))
                self.y[name] = y
            top = y + HEIGHT + GAP + 14
        self.height = top

    @staticmethod
    def gap(row: list[str]) -> float:
        """Between the rooms of a floor."""
        return min(40.0, (WIDTH - LABEL - 4 * GAP - len(row) * BOX) / max(1, len(row) - 1))

    def skips(self, a: str, b: str) -> bool:
        """Whether an arrow within a floor passes over another room."""
        row = self.rows[self.house.floors[a]]
        return row.index(b) != row.index(a) + 1

    def ends(self, a: str, b: str) -> tuple[float, float]:
        """Where an arrow leaves and enters: several at one side are spread over it, in the order of their rooms."""
        across = [(x, y) for x, y in self.arrows if self.house.floors[x] != self.house.floors[y]]
        out = sorted((self.x[y], y) for x, y in across if x == a)
        into = sorted((self.x[x], x) for x, y in across if y == b)
        start = self.x[a] + BOX * (out.index((self.x[b], b)) + 1) / (len(out) + 1)
        return start, self.x[b] + BOX * (into.index((self.x[a], a)) + 1) / (len(into) + 1)

    def arrow(self, a: str, b: str) -> str:
        """The line from a room to another."""
        if self.house.floors[a] == self.house.floors[b]:
            y = self.y[a]
            if not self.skips(a, b):
                return line(f"M{self.x[a] + BOX:.0f},{y + HEIGHT / 2:.0f} H{self.x[b] - 8:.0f}")
            start, stop = self.x[a] + BOX / 2, self.x[b] + BOX / 2
            row = self.rows[self.house.floors[a]]
            stop += 60 * (row.index(a) - row.index(b) + 1) / len(row)  # the nearest arrives rightmost: none cross
            high = y - ARC
            return line(f"M{start:.0f},{y:.0f} C{start:.0f},{high:.0f} {stop:.0f},{high:.0f} {stop:.0f},{y - 8:.0f}")
        start, stop = self.ends(a, b)
        points = [(start, self.y[a] + HEIGHT)]
        for level in range(self.house.floors[a] + 1, self.house.floors[b]):
            row, between = self.rows[level], (start + stop) / 2
            edges = [self.x[row[0]] - GAP, *(self.x[name] + BOX + self.gap(row) / 2 for name in row)]
            x = min(edges, key=lambda edge: abs(edge - between))
            points += [(x, self.tops[level] + 4), (x, self.y[row[0]] + HEIGHT + 4)]
        points.append((stop, self.y[b] - 8))
        path = f"M{points[0][0]:.0f},{points[0][1]:.0f}"
        for (x1, y1), (x2, y2) in pairwise(points):
            middle = (y1 + y2) / 2
            path += f" C{x1:.0f},{middle:.0f} {x2:.0f},{middle:.0f} {x2:.0f},{y2:.0f}"
        return line(path)

    def svg(self) -> str:
        """The whole picture."""
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.height:.0f}" role="img" '
            'aria-label="Rooms of the package by floor, and which imports which">',
            f"<style>{STYLE}</style>",
            HEAD,
            f'<rect class="page" width="{WIDTH}" height="{self.height:.0f}"/>',
        ]
        for (name, _, content), row, top in zip(FLOORS, self.rows, self.tops, strict=True):
            bottom = self.y[row[0]] + HEIGHT + GAP
            middle = (top + bottom) / 2
            lines = textwrap.wrap(content, 20)
            first = middle - 6 * len(lines) + 4
            parts.append(box("floor", GAP, top, WIDTH - 2 * GAP, bottom - top))
            parts.append(text(GAP + 12, first, "name", name))
            parts += [text(GAP + 12, first + 14 + 13 * index, "note", line) for index, line in enumerate(lines)]
        parts += [self.arrow(a, b) for a, b in self.arrows]
        for name in self.x:
            files = self.house.files[name]
            x, y = self.x[name], self.y[name]
            title = "mrg" if name in LOOSE else name.rpartition("/")[2]
            parts.append(box("room", x, y, BOX, HEIGHT))
            parts.append(text(x + BOX / 2, y + 20, "name", title, "middle"))
            parts.append(text(x + BOX / 2, y + 36, "note", f"{files} file{'s' * (files > 1)}", "middle"))
        return "\n".join([*parts, "</svg>"]) + "\n"


def line(path: str) -> str:
    """An arrow along a path."""
    return f'<path class="arrow" marker-end="url(#head)" d="{path}"/>'


def box(kind: str, x: float, y: float, width: float, height: float) -> str:
    """A rectangle with round corners."""
    return f'<rect class="{kind}" x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{height:.0f}" rx="5"/>'


def text(x: float, y: float, kind: str, content: str, anchor: str = "start") -> str:
    """A line of text."""
    return f'<text class="{kind}" x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">{escape(content)}</text>'


def main() -> None:
    """Draw, or check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail if the picture is out of date")
    picture = Picture(House.read()).svg()
    if not parser.parse_args().check:
        PICTURE.write_text(picture, encoding="utf-8")
    elif PICTURE.read_text(encoding="utf-8") != picture:
        raise SystemExit(f"{PICTURE.relative_to(ROOT)} is out of date: run `python docs/draw_house.py`.")


if __name__ == "__main__":
    main()
