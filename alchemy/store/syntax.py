"""Reading query text: limits, Python syntax, literals, symbols and formulas, and messages."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from ase.data import chemical_symbols

from alchemy.errors import QueryError
from tace.wording import nearest

MAX_CHARACTERS = 4096
MAX_NODES = 512
MAX_NESTING = 40
MAX_LIST = 256
MAX_NUMBER = 2.0**53

Z_OF = {symbol: z for z, symbol in enumerate(chemical_symbols) if z}
ALIASES = {"natoms": "n_atoms", "fmax": "max_force"}
HINTS: dict[type, str] = {
    ast.BitAnd: "write 'and'",
    ast.BitOr: "write 'or'",
    ast.Pow: "write x*x",
    ast.Invert: "write 'not'",
}


@dataclass
class Context:
    text: str
    kinds: Mapping[str, str]
    needs: set[str] = field(default_factory=set)
    texts: set[tuple[str, str]] = field(default_factory=set)  # (field, text it is compared with)

    def error(self, message: str, node: ast.AST) -> QueryError:
        indent = len(self.text) - len(self.text.lstrip())  # not seen by the parser
        offset = getattr(node, "col_offset", 0) + indent  # in UTF-8 bytes
        column = len(self.text.encode()[:offset].decode(errors="ignore")) + 1
        return QueryError(f"query: {message} (column {column})")


def resolve(name: str, kinds: Collection[str]) -> str:
    """The field of that name or alias. Raises QueryError with a suggestion."""
    if name in kinds:
        return name
    if ALIASES.get(name) in kinds:
        return ALIASES[name]
    if name in Z_OF:
        raise QueryError(f"query: unknown field {name!r}; write {name!r} in elements, in quotes")
    close = nearest(name, [*kinds, *(ALIASES if name in ALIASES else ())])
    tip = f"did you mean {close!r}?" if close else f"fields: {', '.join(sorted(kinds))}"
    raise QueryError(f"query: unknown field {name[:60]!r}; {tip}")


def parse(text: str) -> tuple[ast.expr, str]:
    if not isinstance(text, str):
        raise QueryError(f"query: should be text, not {type(text).__name__}")
    if len(text) > MAX_CHARACTERS:
        raise QueryError(f"query: {len(text)} characters; at most {MAX_CHARACTERS} are allowed")
    indent = len(text) - len(text.lstrip())
    clean = re.sub(r"\s", " ", text).strip() or "True"
    nesting = 0
    for column, character in enumerate(clean, indent + 1):
        nesting += (character in "([{") - (character in ")]}")
        if nesting > MAX_NESTING:
            raise QueryError(f"query: nested deeper than {MAX_NESTING} (column {column})")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python warns of odd literals; they are refused below
            tree = ast.parse(clean, mode="eval")
    except SyntaxError as error:
        column = (error.offset or 1) + indent
        raise QueryError(f"query: {_syntax_message(error, clean)} (column {column})") from None
    except (ValueError, RecursionError, MemoryError, OverflowError) as error:
        raise QueryError(f"query: cannot be read: {error}") from None
    _limit_size(tree)
    return tree.body, " " * indent + clean


def _syntax_message(error: SyntaxError, text: str) -> str:
    if re.search(r"(?<![=!<>])=(?!=)", text):
        return "invalid syntax; write '==' to compare"
    return error.msg.split(".")[0]


def _limit_size(tree: ast.AST) -> None:
    stack, nodes = [(tree, 0)], 0
    while stack:
        node, depth = stack.pop()
        nodes += 1
        if nodes > MAX_NODES or depth > MAX_NESTING + 8:
            raise QueryError(f"query: more than {MAX_NODES} parts or nested too deeply")
        stack += [(child, depth + 1) for child in ast.iter_child_nodes(node)]


def not_allowed(node: ast.expr, context: Context) -> QueryError:
    operator = getattr(node, "op", None)
    if type(operator) in HINTS:
        return context.error(f"operator not allowed; {HINTS[type(operator)]}", node)
    if isinstance(node, ast.Constant):
        return context.error(f"{node.value!r} alone is not a condition"[:120], node)
    return context.error(f"{type(node).__name__} is not allowed here", node)


def field_name(node: ast.Name, context: Context) -> str:
    try:
        name = resolve(node.id, context.kinds)
    except QueryError as error:
        raise context.error(str(error).removeprefix("query: "), node) from None
    context.needs.add(name)
    return name


def constant(node: ast.expr, context: Context) -> Any:
    """The value of a literal, or `...` when the node is not one."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        value = constant(node.operand, context)
        if isinstance(value, float):
            return -value if isinstance(node.op, ast.USub) else value
        return ...
    if not isinstance(node, ast.Constant):
        return ...
    if isinstance(node.value, (int, float)) and not isinstance(node.value, bool):
        if not abs(node.value) <= MAX_NUMBER:
            raise context.error("number larger than 2**53", node)
        return float(node.value)
    if node.value is None or isinstance(node.value, (bool, str)):
        return node.value
    raise context.error(f"a {type(node.value).__name__} is not allowed", node)


def symbol_of(node: ast.expr, context: Context) -> str:
    symbol = constant(node, context)
    if not isinstance(symbol, str):
        example = node.id if isinstance(node, ast.Name) and node.id in Z_OF else "Pd"
        raise context.error(f"a chemical symbol is written in quotes: {example!r}", node)
    if symbol not in Z_OF:
        close = nearest(symbol, Z_OF)
        tip = f"; did you mean {close!r}?" if close else ""
        raise context.error(f"unknown chemical symbol {symbol[:20]!r}{tip}", node)
    return symbol


def hill_formula(text: str, node: ast.expr, context: Context) -> str:
    """Any order of elements to Hill's: carbon, hydrogen, then the alphabet."""
    counts: dict[str, int] = {}
    parts = re.findall(r"([A-Z][a-z]?)([0-9]{0,9})", text)
    for symbol, number in parts:
        counts[symbol] = counts.get(symbol, 0) + int(number or 1)
    if "".join(s + n for s, n in parts) != text or not parts or not counts.keys() <= Z_OF.keys():
        raise context.error(f"{text[:40]!r} is not a chemical formula", node)
    first = [s for s in ("C", "H") if s in counts] if "C" in counts else []
    order = first + sorted(counts.keys() - set(first))
    return "".join(s + (str(counts[s]) if counts[s] > 1 else "") for s in order)
