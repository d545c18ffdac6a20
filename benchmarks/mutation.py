"""Mutants of a source file: all small changes of its syntax tree that `variants` lists, and how they are imported.

Text that people read is left alone: docstrings, f-strings, the arguments of `raise`, and strings with white space. So
are annotations, assertions, and the `strict` of `zip`, which is one.
"""

from __future__ import annotations

import ast
import copy
import importlib.abc
import importlib.util
import types
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Operator -> what replaces it.
SWAPS: dict[type[ast.AST], tuple[type[ast.AST], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,), ast.NotIn: (ast.In,), ast.And: (ast.Or,), ast.Or: (ast.And,),
    ast.Add: (ast.Sub,), ast.Sub: (ast.Add,), ast.Mult: (ast.Div,), ast.Div: (ast.Mult,), ast.FloorDiv: (ast.Div,),
    ast.Mod: (ast.FloorDiv,), ast.Pow: (ast.Mult,), ast.BitAnd: (ast.BitOr,), ast.BitOr: (ast.BitAnd,),
}  # fmt: skip
LEFT_ALONE = (ast.JoinedStr, ast.Assert, ast.Import, ast.ImportFrom)


@dataclass(frozen=True)
class Mutant:
    """One change of a file.

    Args:
        path: Source file, relative to the root of the checkout.
        name: File, line, and the code before and after.
        tree: Syntax tree after the change, with the line numbers of the source.
        lines: First and last line of the statement that was changed; of a compound statement, its head.
    """

    path: str
    name: str
    tree: ast.Module
    lines: tuple[int, int]


def count(source: str) -> int:
    """Number of mutants of a source."""
    return sum(1 for _ in _changes(ast.parse(source)))


def mutant(path: str, source: str, number: int) -> Mutant:
    """Mutant of a source, by its number."""
    tree = ast.parse(source)
    old, new, head = next(change for i, change in enumerate(_changes(tree)) if i == number)
    text = difference(ast.unparse(old), ast.unparse(new))
    changed = ast.fix_missing_locations(_Replace(old, ast.copy_location(new, old)).visit(tree))
    return Mutant(path, f"{path}:{getattr(old, 'lineno', head[0])}: {text}", changed, head)


def difference(before: str, after: str) -> str:
    """The code before and after, with some of what surrounds the first difference."""
    before, after = (" ".join(text.split()) for text in (before, after))
    pairs = enumerate(zip_longest(before, after))
    first = max(0, next((i for i, (a, b) in pairs if a != b), 0) - 40)
    return "  ->  ".join(f"{'…' * bool(first)}{text[first : first + 90]}" for text in (before, after))


def head_of(node: ast.stmt) -> tuple[int, int]:
    """First and last line of a statement, without its body."""
    body = getattr(node, "body", None)
    last = max(node.lineno, body[0].lineno - 1) if body else node.end_lineno or node.lineno
    return node.lineno, last


class _Replace(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return self.new if node is self.old else self.generic_visit(node)


def _changes(tree: ast.Module) -> Iterator[tuple[ast.AST, ast.AST, tuple[int, int]]]:
    """Node, replacement, and lines of the statement, in a fixed order."""
    modules = {(a.asname or a.name).split(".")[0] for n in tree.body if isinstance(n, ast.Import) for a in n.names}

    def visit(node: ast.AST, head: tuple[int, int]) -> Iterator[tuple[ast.AST, ast.AST, tuple[int, int]]]:
        if isinstance(node, LEFT_ALONE) or (isinstance(node, ast.keyword) and node.arg == "strict"):
            return
        if isinstance(node, ast.stmt):
            head = head_of(node)
        for new in variants(node, modules):
            yield node, new, head
        if isinstance(node, ast.Raise) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            return
        for field, value in ast.iter_fields(node):
            if field not in ("annotation", "returns"):
                for child in value if isinstance(value, list) else [value]:
                    if isinstance(child, ast.AST):
                        yield from visit(child, head)

    for statement in tree.body:
        if not (isinstance(statement, ast.If) and "__name__" in ast.unparse(statement.test)):
            yield from visit(statement, head_of(statement))


def variants(node: ast.AST, modules: set[str]) -> Iterator[ast.AST]:
    """Replacements of a node; `modules` are names of imported modules."""
    match node:
        case ast.Compare(ops=[op, *rest]):
            for other in SWAPS[type(op)]:
                yield ast.Compare(node.left, [other(), *rest], node.comparators)
        case ast.BinOp() | ast.AugAssign() if type(node.op) in SWAPS:
            changed = copy.copy(node)
            changed.op = SWAPS[type(node.op)][0]()
            yield changed
        case ast.BoolOp(op=op, values=values):
            yield ast.BoolOp(SWAPS[type(op)][0](), values)
            for i in range(len(values)):
                rest = values[:i] + values[i + 1 :]
                yield ast.BoolOp(op, rest) if len(rest) > 1 else rest[0]
        case ast.UnaryOp(operand=operand) if not isinstance(operand, ast.Constant):
            yield operand
        case ast.Constant(value=value):
            yield from (ast.Constant(other) for other in _constants(value))
        case ast.If() | ast.IfExp():
            for value in (True, False):
                changed = copy.copy(node)
                changed.test = ast.Constant(value)
                yield changed
        case ast.comprehension(ifs=[_, *rest]):
            yield ast.comprehension(node.target, node.iter, rest, node.is_async)
        case ast.Call():
            yield from _calls(node, modules)
        case ast.Continue():
            yield ast.Break()
        case ast.Break():
            yield ast.Continue()
        case ast.Raise():
            yield ast.Pass()
        case ast.Expr(value=ast.Call()):
            yield ast.Pass()


def _constants(value: object) -> Iterator[object]:
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, value - 1)
    elif isinstance(value, float):
        yield from (value + 1, value * 0.9) if value else (1.0,)
    elif isinstance(value, str) and not any(letter.isspace() for letter in value):
        yield f"XX{value}"


def _calls(node: ast.Call, modules: set[str]) -> Iterator[ast.AST]:
    """The object of a method in place of the call, and the call without each of its keywords."""
    inner = node.func.value if isinstance(node.func, ast.Attribute) else None
    if inner is not None and not (isinstance(inner, ast.Name) and inner.id in modules):
        yield inner
    for i, keyword in enumerate(node.keywords):
        if keyword.arg not in (None, "strict"):
            yield ast.Call(node.func, node.args, node.keywords[:i] + node.keywords[i + 1 :])


class Mutated(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Imports one module with a mutant."""

    def __init__(self, mutant: Mutant) -> None:
        self.name, self.tree = mutant.path.removesuffix(".py").replace("/", "."), mutant.tree
        self.path = str(ROOT / mutant.path)

    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_file_location(name, self.path, loader=self) if name == self.name else None

    def get_filename(self, fullname: str) -> str:
        return self.path

    def get_data(self, path: str) -> bytes:
        return Path(path).read_bytes()

    def source_to_code(self, data, path, *, _optimize=-1):
        return compile(self.tree, self.path, "exec", dont_inherit=True)

    def path_stats(self, path: str):
        raise OSError  # no cached bytecode


def put_in_place(mutant: Mutant, functions: list[types.FunctionType]) -> bool:
    """Put mutated code into imported functions; False if code that runs at import differs."""
    path = str(ROOT / mutant.path)
    trees = (ast.parse((ROOT / mutant.path).read_text()), mutant.tree)
    old, new = (list(_codes(compile(tree, path, "exec", dont_inherit=True))) for tree in trees)
    changed = [(a[0], b[0]) for a, b in zip(old, new, strict=False) if _own(a[-1]) != _own(b[-1])]
    if len(old) != len(new) or not changed or any(a is None for a, _ in changed):
        return False
    found = False
    for before, after in changed:
        for function in functions:
            code = function.__code__
            if code.co_filename == path and (code.co_qualname, code.co_firstlineno) == (
                before.co_qualname,
                before.co_firstlineno,
            ):
                if code.co_freevars != after.co_freevars:
                    return False
                function.__code__, found = after, True
    return found


def _codes(code: types.CodeType, top: types.CodeType | None = None) -> Iterator[tuple]:
    """Outermost function, None for code that runs at import, and code: of all code in a module."""
    top = code if top is None and code.co_flags & 1 else top  # CO_OPTIMIZED: of a function
    yield top, code
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield from _codes(const, top)


def _own(code: types.CodeType) -> tuple:
    """Code without the functions in it, their names or lines."""
    consts = [repr(const) for const in code.co_consts if not isinstance(const, types.CodeType)]
    return code.co_code, code.co_names, code.co_varnames, code.co_freevars, code.co_exceptiontable, consts
