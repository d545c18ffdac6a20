"""The mutants of small sources, by hand."""

import ast
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import mutant_tests
import mutants as mutants_script
import mutation


def mutants(source):
    """The source after each change, formatted by `ast.unparse`."""
    made = [mutation.mutant("file.py", source, i) for i in range(mutation.count(source))]
    return [ast.unparse(one.tree) for one in made]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a < b", ["a <= b", "a >= b"]),
        ("a is not b", ["a is b"]),
        ("a - b", ["a + b"]),
        ("a //= b", ["a /= b"]),
        ("a and b", ["a or b", "b", "a"]),
        ("a or b or c", ["a and b and c", "b or c", "a or c", "a or b"]),
        ("not a", ["a"]),
        ("-1", ["-2", "-0"]),
        ("x = 0.5", ["x = 1.5", "x = 0.45"]),
        ("x = 0.0", ["x = 1.0"]),
        ("x = True", ["x = False"]),
        ("f('word', 'a sentence')", ["pass", "f('XXword', 'a sentence')"]),
        ("x = a if b else c", ["x = a if True else c", "x = a if False else c"]),
        ("x = [a for a in b if a if c]", ["x = [a for a in b if c]"]),
        ("x = y.clip(a, low=b, **c)", ["x = y", "x = y.clip(a, **c)"]),
        ("import torch\nx = torch.ones(a)", []),
        ("raise ValueError('a' + str(1))", ["pass"]),
        ("x = zip(a, b, strict=True)", []),
        ('"""Documentation."""', []),
        ("def f(a: int | None) -> int | str:\n    assert a > 1, f'{a - 1}'", []),
        ("if __name__ == '__main__':\n    main()", []),
    ],
)
def test_the_mutants_of_a_source(source, expected):
    assert mutants(source) == expected


def test_a_mutant_names_the_change_and_the_lines_of_its_statement():
    source = "def f(a):\n    if (a and\n            b > c):\n        return 1\n"
    names = {(one.name, one.lines) for one in (mutation.mutant("m.py", source, i) for i in range(9))}
    assert ("m.py:3: b > c  ->  b >= c", (2, 3)) in names
    assert ("m.py:4: 1  ->  0", (4, 4)) in names
    assert len(names) == mutation.count(source) == 9
    assert mutation.mutant("m.py", source, 0).tree.body[0].lineno == 1


def test_a_long_change_is_shortened_to_its_surroundings():
    before = "x" * 100
    text = mutation.difference(f"{before} + y", f"{before} - y")
    assert text == f"…{'x' * 39} + y  ->  …{'x' * 39} - y"


def test_a_test_runs_again_after_a_change_of_what_it_executes(tmp_path, monkeypatch):
    """Of three sources one is executed by each test, and one holds data alone."""
    monkeypatch.setattr(mutant_tests, "ROOT", tmp_path)
    monkeypatch.setitem(mutant_tests.AREAS, "some", (["*.py"], "tests"))
    (tmp_path / "tests").mkdir()
    for name in ("a.py", "b.py", "data.py", "tests/test_a.py", "tests/test_b.py"):
        (tmp_path / name).write_text(name)
    area = mutant_tests.Area("some", tmp_path)
    rows = {f"tests/test_{name}.py::test": {"lines": {f"{name}.py": [1]}} for name in "ab"}
    for name, digest in area.digests(rows).items():
        rows[name]["digest"] = digest
    area.record.write_text(json.dumps(rows))
    assert area.recorded() == rows
    for changed, kept in (("a.py", "b"), ("tests/test_b.py", "a"), ("data.py", "")):
        (tmp_path / changed).write_text("changed")
        assert list(area.recorded()) == [f"tests/test_{name}.py::test" for name in kept]
        (tmp_path / changed).write_text(changed)


def test_known_mutants_are_still_in_the_sources():
    for path, before, after in mutants_script.KNOWN:
        assert (mutation.ROOT / path).read_text().count(before) == 1, (path, before)
        assert before != after
