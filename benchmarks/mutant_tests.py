"""Run the tests of an area against mutants.

The tests run once, to record the lines that each of them executes. Then each mutant runs the tests that execute its
statement, the quickest first, in a fork of a process that has collected the tests: the mutated code is put into the
functions that are already imported. A mutant of code that runs at import runs in a fork of a process that has imported
the libraries but nothing of mrg. A mutant is killed if a test fails or takes several times its CPU time. Nothing is
written into the checkout.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import importlib
import json
import os
import resource
import signal
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mutation import ROOT, Mutant, Mutated, put_in_place

# Area -> patterns of its source files, and the folder of its tests.
AREAS = {
    "metrics": (["mrg/metrics/**/*.py"], "tests/metrics"),
    "rl": (["mrg/modules/rl/*.py"], "tests/modules/rl"),
    "prefix": (["mrg/modules/prefix/*.py"], "tests/modules/prefix"),
    "sections": (["mrg/datamodules/mimic/sections.py"], "tests/datamodules/mimic"),
}
MOST_SECONDS = 3
"""CPU time of a test from which it is left out."""
BUDGET = 10
"""CPU time of the tests of a mutant; the quickest are chosen."""
AT_IMPORT = 3
"""Exit code of a mutant that changes code which runs at import."""


class Area:
    """Sources and tests of an area, and the lines that each test executes.

    Args:
        name: Key of `AREAS`.
        folder: Folder for the record of the lines. A test runs again after a change of its file, of a source of which
            it executes lines, or of one that holds data alone.
    """

    def __init__(self, name: str, folder: Path) -> None:
        patterns, self.folder = AREAS[name]
        self.sources = sorted(str(p.relative_to(ROOT)) for one in patterns for p in ROOT.glob(one))
        self.record = folder / f"mutants-{name}.json"
        self.rows: dict[str, dict] = {}

    def digests(self, rows: dict[str, dict]) -> dict[str, str]:
        """For each test, a digest of its file, of the sources that it executes and of those that no test executes."""
        executed = {path for row in rows.values() for path in row["lines"]}
        files = {*self.sources, *(name.partition("::")[0] for name in rows)}
        known = {
            name: hashlib.sha256((ROOT / name).read_bytes()).hexdigest() for name in files if (ROOT / name).exists()
        }
        data = [path for path in self.sources if path not in executed]
        return {
            name: " ".join(known.get(path, "")[:8] for path in [name.partition("::")[0], *data, *sorted(row["lines"])])
            for name, row in rows.items()
        }

    def recorded(self) -> dict[str, dict]:
        """Rows of the tests that have not changed since their lines were recorded."""
        rows = json.loads(self.record.read_text()) if self.record.exists() else {}
        digests = self.digests(rows)
        return {name: row for name, row in rows.items() if digests[name] == row["digest"]}

    def load(self) -> None:
        """Read the record, without slow tests and those that fail in it, such as those that start processes."""
        rows = self.recorded()
        self.rows = {name: row for name, row in rows.items() if row["passed"] and row["seconds"] < MOST_SECONDS}
        for row in self.rows.values():
            row["lines"] = {path: set(lines) for path, lines in row["lines"].items()}

    def in_order(self, chosen: Callable[[str, dict], bool]) -> list[str]:
        """Chosen tests, the quickest file and its quickest test first."""
        files: dict[str, list[str]] = {}
        spent = 0.0
        for name in sorted((name for name, row in self.rows.items() if chosen(name, row)), key=self.time):
            spent += self.time(name)
            if spent < BUDGET:
                files.setdefault(name.partition("::")[0], []).append(name)
        return [name for names in sorted(files.values(), key=self.seconds) for name in names]

    def executing(self, mutant: Mutant) -> list[str]:
        """Tests that execute the mutant's statement."""
        wanted = set(range(mutant.lines[0], mutant.lines[1] + 1))
        return self.in_order(lambda _, row: bool(row["lines"].get(mutant.path, set()) & wanted))

    def of_file(self, mutant: Mutant) -> list[str]:
        """Tests that execute any line of the mutant's file."""
        return self.in_order(lambda _, row: mutant.path in row["lines"])

    def named(self, mutant: Mutant) -> list[str]:
        """Tests in the files that are named after the mutant's file."""
        return self.in_order(lambda name, _: f"/test_{Path(mutant.path).stem}" in name)

    def time(self, test: str) -> float:
        """CPU time of a test, in seconds."""
        return self.rows[test]["seconds"]

    def seconds(self, tests: list[str]) -> float:
        """CPU time of several tests."""
        return sum(map(self.time, tests))


class Lines:
    """Trace function that collects the lines of some files that are executed."""

    def __init__(self, sources: list[str]) -> None:
        self.sources, self.lines = {str(ROOT / name) for name in sources}, set()

    def __call__(self, frame, event, arg):
        return self.line if frame.f_code.co_filename in self.sources else None

    def line(self, frame, event, arg):
        self.lines.add((frame.f_code.co_filename, frame.f_lineno))
        return self.line


class Collected:
    """Plugin of pytest that runs tests with mutants in place of running each test once."""

    def __init__(self, area: Area, mutants: list[Mutant], outcomes: Path) -> None:
        self.area, self.mutants, self.outcomes = area, mutants, outcomes
        self.lines, self.shared, self.failed = Lines(area.sources), {}, False

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        sys.settrace(None)
        at_import, self.lines.lines = self.lines.lines, set()
        self.items = {item.nodeid: item for item in session.items}
        if set(self.items) - set(self.area.recorded()) and forked(self.record_lines, None, quiet=False) != "survived":
            raise SystemExit("The lines of the tests were not recorded: the process ended before the last test.")
        self.area.load()
        left_out = set(self.items) - set(self.area.rows)
        print(f"{len(self.items)} tests; left out: {sorted(left_out) or 'none'}", flush=True)
        files = {str(ROOT / name) for name in self.area.sources}
        functions = [one for one in gc.get_objects() if isinstance(one, types.FunctionType)]
        self.functions = [one for one in functions if one.__code__.co_filename in files]
        gc.freeze()
        files_of = {name: str(getattr(module, "__file__", "")) for name, module in sys.modules.items()}
        libraries = [name for name, file in files_of.items() if not file.startswith(str(ROOT))]
        self.outcomes.with_name("libraries").write_text("\n".join(libraries))
        with self.outcomes.open("w") as out:
            for mutant in self.mutants:
                tests = list(dict.fromkeys([*self.area.executing(mutant), *self.area.named(mutant)]))
                lines = {(str(ROOT / mutant.path), line) for line in range(mutant.lines[0], mutant.lines[1] + 1)}
                work = functools.partial(self.run_mutant, mutant, tests)
                now = tests and not lines & at_import
                print(forked(work, self.area.seconds(tests)) if now else "at import", file=out, flush=True)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.failed |= report.failed

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef, request) -> Iterator[None]:
        """Lines of a fixture with a wider scope count for all tests of the file."""
        kept = self.lines.lines
        if fixturedef.scope != "function":
            self.lines.lines = self.shared.setdefault(request.node.nodeid.partition("::")[0], set())
        try:
            return (yield)
        finally:
            self.lines.lines = kept

    def run(self, tests: list[str]) -> Iterator[str]:
        """Run tests, and yield the name of each."""
        items = [self.items[name] for name in tests]
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
            yield item.nodeid

    def run_mutant(self, mutant: Mutant, tests: list[str]) -> int:
        if not put_in_place(mutant, self.functions):
            return AT_IMPORT
        return int(any(self.failed for _ in self.run(tests)))

    def record_lines(self) -> int:
        """Run all tests and write the record: whether a test passed, its CPU time and its lines."""
        caches = [one for one in gc.get_objects() if isinstance(one, functools._lru_cache_wrapper)]
        caches = [one for one in caches if (getattr(one, "__module__", "") or "").startswith("mrg")]
        rows = self.area.recorded()
        sys.addaudithook(refuse_processes)
        threading.settrace(self.lines)
        sys.settrace(self.lines)
        new: dict[str, dict] = {}
        start = sum(os.times()[:4])
        for name in self.run([name for name in self.items if name not in rows]):
            seconds, lines = sum(os.times()[:4]) - start, self.lines.lines
            new[name] = {"passed": not self.failed, "seconds": seconds, "lines": lines}
            self.lines.lines, self.failed = set(), False
            for cache in caches:  # else, only the first test executes the lines of a function with a cache
                cache.cache_clear()
            start = sum(os.times()[:4])
        sys.settrace(None)
        for name, row in new.items():
            file, found = name.partition("::")[0], {}
            for path, line in sorted(row["lines"] | self.shared.get(file, set())):
                found.setdefault(str(Path(path).relative_to(ROOT)), []).append(line)
            row |= {"lines": found}
        rows |= new
        for name, digest in self.area.digests(rows).items():
            rows[name]["digest"] = digest
        self.area.record.write_text(json.dumps(rows))
        return 0


def refuse_processes(event: str, arguments: tuple) -> None:
    """Audit hook that makes tests fail which start another program: they take long, and Python has no mutant there."""
    if event == "subprocess.Popen":
        raise RuntimeError("no other processes")


class Only:
    """Plugin of pytest that selects tests by name, in order."""

    def __init__(self, names: list[str]) -> None:
        self.order = {name: i for i, name in enumerate(names)}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((item for item in items if item.nodeid in self.order), key=lambda i: self.order[i.nodeid])


def outcomes(area: Area, mutants: list[Mutant]) -> Iterator[str]:
    """Outcome of each mutant: `killed`, `time`, `survived`, or `no test` if none executes any line of the file."""
    with tempfile.TemporaryDirectory() as folder:
        first, base = Path(folder) / "outcomes.txt", str(Path(folder) / "tests")
        collected = Collected(area, mutants, first)

        def work() -> int:
            sys.settrace(collected.lines)
            return run_pytest([str(ROOT / area.folder)], collected, base)

        if forked(work, None, quiet=False) != "survived":
            raise SystemExit("No mutant was run: see the error above.")
        area.load()
        for name in first.with_name("libraries").read_text().split():  # so that forks import mrg alone
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        if "mrg" in sys.modules:
            raise SystemExit("Expected no library to import mrg, as no mutant of code that runs at import is noticed.")
        for mutant, outcome in zip(mutants, first.read_text().splitlines(), strict=True):
            if outcome == "at import":
                named = area.named(mutant)
                rest = [name for name in area.of_file(mutant) if name not in named]
                outcome = in_new_process(area, mutant, named, base) if named else "survived"
                yield in_new_process(area, mutant, rest, base) if outcome == "survived" and rest else outcome
            else:
                yield outcome


def in_new_process(area: Area, mutant: Mutant, tests: list[str], base: str) -> str:
    """Import mrg with a mutant and run tests."""
    files = list(dict.fromkeys(str(ROOT / name.partition("::")[0]) for name in tests))

    def work() -> int:
        sys.meta_path.insert(0, Mutated(mutant))
        return run_pytest(files, Only(tests), base)

    return forked(work, 60 + area.seconds(tests)) if tests else "no test"


def run_pytest(files: list[str], plugin: object, base: str) -> int:
    options = ["-x", "-qq", "-s", "-p", "no:cacheprovider", "-o", "addopts=-m 'not slow'", "--rootdir", str(ROOT)]
    return int(pytest.main([*options, f"--basetemp={base}", *files], plugins=[plugin]))


def forked(work: Callable[[], int], seconds: float | None, quiet: bool = True) -> str:
    """Run in a fork: `killed`, `survived`, `at import`, or `time` after too much of it; None sets no limit."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setpgid(0, 0)
            if quiet:
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, 1), os.dup2(null, 2)
            if seconds is not None:
                limit = int(30 + 3 * seconds)
                resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
            code = work()
        finally:
            os._exit(code)
    asleep = 0.0
    while asleep < 60:  # a deadlock takes no CPU time
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return {0: "survived", AT_IMPORT: "at import", -signal.SIGXCPU: "time"}.get(code, "killed")
        state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
        asleep = asleep + 0.02 if state == "S" and seconds is not None else 0.0
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "time"
