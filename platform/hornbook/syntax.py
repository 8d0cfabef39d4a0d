"""Python source as data: parsed without being run, and reduced to its shape for finding programs that differ in names only.

Sources come from models and the web: only `ast.parse` touches them here, which runs nothing, and a source made to exhaust
the parser (too long, too deep) is refused like one with a syntax error.
"""

from __future__ import annotations

import ast

MAX_CHARACTERS = 50_000
MAX_DEPTH = 100
"""Far beyond what people write; what is deeper would exhaust the recursion of whoever walks the tree."""

MAX_CONSTANT = 40

_BLOCKS = frozenset(("body", "orelse", "finalbody", "handlers"))
_NAMED: dict[type, tuple[str, ...]] = {
    ast.Attribute: ("attr",),
    ast.alias: ("name",),
    ast.ImportFrom: ("module",),
    ast.keyword: ("arg",),
}
"""The fields that name something outside of the program."""
_WALKED: dict[type, tuple[str, ...]] = {
    ast.FunctionDef: ("decorator_list", "args", "body"),
    ast.AsyncFunctionDef: ("decorator_list", "args", "body"),
    ast.AnnAssign: ("target", "value"),
}
"""The fields that say what a node does, where not all of them do: annotations do not."""


class NotPython(ValueError):
    """A text that cannot be parsed as Python; the message says why in one line."""


def parse_python(source: str) -> ast.Module:
    """Return the syntax tree of a source that nobody vouches for.

    Raises:
        NotPython: a syntax error, more than MAX_CHARACTERS, or nested deeper than MAX_DEPTH.
    """
    if len(source) > MAX_CHARACTERS:
        raise NotPython(f"{len(source):,} characters, more than {MAX_CHARACTERS:,}")
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise NotPython(f"line {error.lineno}: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError) as error:  # null bytes, lone surrogates; the parser's own limits
        raise NotPython(f"{type(error).__name__}: {error}"[:200]) from None
    level: list[ast.AST] = [tree]
    for _ in range(MAX_DEPTH):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
        if not level:
            return tree
    raise NotPython(f"nested deeper than {MAX_DEPTH} levels")


def without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    """Return the statements of a module, class or function after its docstring."""
    return body[1:] if body and _is_string(body[0]) else body


def shape(tree: ast.AST, constants: bool = True) -> list[str]:
    """Return a program's shape: its syntax tree's nodes in order, without docstrings, annotations and names of its own.

    Parameters become their position and other names that the program binds one word; names from outside (`len`, a module)
    and attributes stay, for they say what is done. With `constants`, the values of constants stay as well.

    Args:
        tree: from `parse_python`, whose limits keep this from recursing too deep.
    """
    parameters: dict[str, str] = {}
    bound: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bound.add(node.id)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            bound.add(node.name)
        if isinstance(node, ast.arguments):
            names = [*node.posonlyargs, *node.args, *filter(None, [node.vararg]), *node.kwonlyargs]
            parameters.update({name.arg: f"parameter{place}" for place, name in enumerate(names)})
    found: list[str] = []
    _gather(tree, found, parameters, bound, constants)
    return found


def _gather(node: ast.AST, found: list[str], parameters: dict[str, str], bound: set[str], constants: bool) -> None:
    kind = type(node)  # compared by identity, most frequent first: a sieve does this for every document
    if kind is ast.Name or kind is ast.arg:
        name = node.id if kind is ast.Name else node.arg  # type: ignore[attr-defined]
        found.append(parameters.get(name) or ("local" if name in bound else f"name_{name}"))
        return
    if kind is ast.Constant:
        value = node.value  # type: ignore[attr-defined]
        found.append(f"constant_{type(value).__name__}")
        if constants:
            found.append(f"value_{repr(value)[:MAX_CONSTANT].encode(errors='replace').hex()}")
        return
    text = "Assign" if kind is ast.AnnAssign else kind.__name__
    for field in _NAMED.get(kind, ()):
        text += f"_{getattr(node, field)}"
    found.append(text)
    for field in _WALKED.get(kind) or node._fields:
        value = getattr(node, field, None)
        if type(value) is list:
            if field == "body":
                value = without_docstring(value)
            for child in value:
                if isinstance(child, ast.AST):
                    _gather(child, found, parameters, bound, constants)
            if field in _BLOCKS and value:
                found.append(f"end_{field}")
        elif isinstance(value, ast.AST) and not isinstance(value, ast.expr_context):
            _gather(value, found, parameters, bound, constants)


def _is_string(statement: ast.stmt) -> bool:
    match statement:
        case ast.Expr(value=ast.Constant(value=str())):
            return True
    return False
