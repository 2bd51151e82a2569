"""The query language: a subset of Python expressions, compiled to numpy functions, never evaluated.

    fidelity == 'pbe' and max_force > 2 and 'Pd' in elements and not split == 'test'

Logic has three values: a comparison with an unset value is neither true nor false, `not` of it
neither, and only rows that are true match; `x is None` asks for unset. Arithmetic without a finite
result is unset.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from alchemy.store.ids import begins
from alchemy.store.syntax import (
    MAX_LIST,
    Z_OF,
    Context,
    constant,
    field_name,
    hill_formula,
    not_allowed,
    parse,
    symbol_of,
)

FUNCTIONS = {"abs": np.abs, "sqrt": np.sqrt, "log10": np.log10}
ARITHMETIC = {ast.Add: np.add, ast.Sub: np.subtract, ast.Mult: np.multiply, ast.Div: np.divide}
RELATIONS: dict[type[ast.cmpop], Any] = {
    ast.Eq: np.equal,
    ast.NotEq: np.not_equal,
    ast.Lt: np.less,
    ast.LtE: np.less_equal,
    ast.Gt: np.greater,
    ast.GtE: np.greater_equal,
}
MIRROR: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.Gt,
    ast.LtE: ast.GtE,
    ast.Gt: ast.Lt,
    ast.GtE: ast.LtE,
}


class Codes(NamedTuple):
    """A text column: code of each row, −1 when unset, and the code of each text."""

    codes: np.ndarray
    vocabulary: dict[str, int]

    def same(self, text: str) -> np.ndarray:
        found: np.ndarray = self.codes == self.vocabulary.get(text, -2)
        return found

    def unset(self) -> np.ndarray:
        return self.codes < 0


class Ids(NamedTuple):
    """A column of identities, u1 [n,16]; zeros when unset, 32 hex digits in a query."""

    ids: np.ndarray

    def same(self, text: str) -> np.ndarray:
        """An abbreviated identity equals none: `data show` finds those."""
        whole = begins(self.ids, text) if len(text) == 32 else np.zeros(len(self.ids), bool)
        return whole & ~self.unset()

    def unset(self) -> np.ndarray:
        words = np.ascontiguousarray(self.ids).view(np.uint64)
        return (words[:, 0] | words[:, 1]) == 0


class Columns(Protocol):
    """What a query reads: n rows; NaN in `numbers`, 0 in `elements` = unset."""

    n: int

    def numbers(self, name: str) -> np.ndarray: ...  # [n]; 0 and 1 for true/false fields
    def codes(self, name: str) -> Codes | Ids: ...
    def elements(self) -> np.ndarray: ...  # [n,2] u8, bit Z
    def count(self, symbol: str) -> np.ndarray: ...  # [n] atoms of that element


class Truth(NamedTuple):
    """Which rows are true and which are false; the others are unknown."""

    true: np.ndarray
    false: np.ndarray


Test = Callable[[Columns], Truth]
Number = Callable[[Columns], Any]


@dataclass(frozen=True)
class Query:
    """A compiled expression: the fields it reads, a function to a mask of matching rows, and the texts
    that fields are compared with.
    """

    needs: frozenset[str]
    mask: Callable[[Columns], np.ndarray]
    texts: frozenset[tuple[str, str]] = frozenset()


def compile_query(text: str, kinds: Mapping[str, str]) -> Query:
    """Compile for fields of the given kinds: 'number', 'bool', 'text', 'formula', 'elements'.

    An empty text matches every row. Raises QueryError, and nothing else, for any text.
    """
    body, clean = parse(text)
    context = Context(clean, kinds)
    test = _test(body, context)

    def mask(columns: Columns) -> np.ndarray:
        with np.errstate(all="ignore"):
            return test(columns).true

    return Query(frozenset(context.needs), mask, frozenset(context.texts))


def _test(node: ast.expr, context: Context) -> Test:
    if isinstance(node, ast.BoolOp):
        return _combine([_test(v, context) for v in node.values], isinstance(node.op, ast.And))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return _negate(_test(node.operand, context))
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        value = node.value
        return lambda c: Truth(np.full(c.n, value), np.full(c.n, not value))
    if isinstance(node, ast.Name):
        name = field_name(node, context)
        if context.kinds[name] != "bool":
            raise context.error(f"{name!r} is not true or false; compare it with something", node)
        return _flag(name, True)
    if isinstance(node, ast.Compare):
        left, tests = node.left, []
        for operator, right in zip(node.ops, node.comparators, strict=True):
            tests.append(_comparison(left, operator, right, context=context))
            left = right
        return _combine(tests, True)
    raise not_allowed(node, context)


def _combine(tests: list[Test], conjunction: bool) -> Test:
    if len(tests) == 1:
        return tests[0]

    def test(columns: Columns) -> Truth:
        true, false = tests[0](columns)
        for other in tests[1:]:
            t, f = other(columns)
            true, false = (true & t, false | f) if conjunction else (true | t, false & f)
        return Truth(true, false)

    return test


def _negate(test: Test) -> Test:
    return lambda c: Truth(*reversed(test(c)))


def _flag(name: str, wanted: bool) -> Test:
    def test(columns: Columns) -> Truth:
        values = columns.numbers(name)
        truth = Truth(values == 1, values == 0)
        return truth if wanted else Truth(truth.false, truth.true)

    return test


def _comparison(left: ast.expr, operator: ast.cmpop, right: ast.expr, *, context: Context) -> Test:
    if isinstance(operator, (ast.Is, ast.IsNot)):
        test = _is_none(left, right, context)
        return _negate(test) if isinstance(operator, ast.IsNot) else test
    if isinstance(operator, (ast.In, ast.NotIn)):
        test = _membership(left, right, context)
        return _negate(test) if isinstance(operator, ast.NotIn) else test
    kind = type(operator)
    if _kind(left, context) is None and _kind(right, context) is not None:
        left, right, kind = right, left, MIRROR.get(kind, kind)
    return _relation(left, kind, right, context=context)


def _kind(node: ast.expr, context: Context) -> str | None:
    return context.kinds[field_name(node, context)] if isinstance(node, ast.Name) else None


def _is_none(left: ast.expr, right: ast.expr, context: Context) -> Test:
    if not isinstance(left, ast.Name) or constant(right, context) is not None:
        raise context.error("'is' works as: field is None, field is not None", left)
    name, kind = field_name(left, context), _kind(left, context)

    def test(columns: Columns) -> Truth:
        if kind in ("text", "formula"):
            unset: Any = columns.codes(name).unset()
        elif kind == "elements":
            unset = ~_known(columns.elements())
        else:
            unset = np.isnan(columns.numbers(name))
        return Truth(unset, ~unset)

    return test


def _membership(left: ast.expr, right: ast.expr, context: Context) -> Test:
    if _kind(right, context) == "elements":
        symbol = symbol_of(left, context)
        context.needs.add("elements")
        z = Z_OF[symbol]

        def test(columns: Columns) -> Truth:
            mask = columns.elements()
            there = (mask[:, z >> 6] >> np.uint64(z & 63) & np.uint64(1)).astype(bool)
            return Truth(there, ~there & _known(mask))

        return test
    if not isinstance(left, ast.Name) or not isinstance(right, (ast.List, ast.Tuple, ast.Set)):
        message = "'in' works as: 'Pd' in elements, field in ['a', 'b'], field in [1, 2]"
        raise context.error(message, left)
    if len(right.elts) > MAX_LIST:
        raise context.error(f"a list has at most {MAX_LIST} members", right)
    tests = [_relation(left, ast.Eq, item, context=context) for item in right.elts]
    if not tests:
        raise context.error("the list is empty", right)
    return _combine(tests, False)


def _relation(
    left: ast.expr, operator: type[ast.cmpop], right: ast.expr, *, context: Context
) -> Test:
    kind = _kind(left, context)
    if constant(right, context) is None:
        raise context.error("write 'is None' or 'is not None'", right)
    if kind == "elements":
        return _element_sets(operator, right, context)
    if kind in ("text", "formula", "bool"):
        assert isinstance(left, ast.Name)
        if operator not in (ast.Eq, ast.NotEq):
            raise context.error(f"{left.id!r} works only with == != in", left)
        make = _same_flag if kind == "bool" else _same_text
        test = make(left, right, context)
        return test if operator is ast.Eq else _negate(test)
    a, b, compare = _number(left, context), _number(right, context), RELATIONS[operator]

    def test_numbers(columns: Columns) -> Truth:
        x, y = np.broadcast_to(a(columns), columns.n), np.broadcast_to(b(columns), columns.n)
        known = np.isfinite(x) & np.isfinite(y)
        true = compare(x, y) & known
        return Truth(true, known & ~true)

    return test_numbers


def _same_flag(left: ast.Name, right: ast.expr, context: Context) -> Test:
    value = constant(right, context)
    if not isinstance(value, bool):
        raise context.error(f"{left.id!r} is True or False", right)
    return _flag(field_name(left, context), value)


def _same_text(left: ast.Name, right: ast.expr, context: Context) -> Test:
    name, value = field_name(left, context), constant(right, context)
    if not isinstance(value, str):
        raise context.error(f"{name!r} is text; compare it with text in quotes", right)
    if context.kinds[name] == "formula":
        value = hill_formula(value, right, context)
    context.texts.add((name, value))

    def test(columns: Columns) -> Truth:
        column = columns.codes(name)
        same = column.same(value)
        return Truth(same, ~(same | column.unset()))

    return test


def _element_sets(operator: type[ast.cmpop], right: ast.expr, context: Context) -> Test:
    if not isinstance(right, (ast.Set, ast.List, ast.Tuple)) or not right.elts:
        raise context.error("compare elements with a set: elements == {'Pd', 'O'}", right)
    wanted = np.zeros(2, np.uint64)
    for item in right.elts:
        z = Z_OF[symbol_of(item, context)]
        wanted[z >> 6] |= np.uint64(1 << (z & 63))

    def test(columns: Columns) -> Truth:
        there = columns.elements()
        above, below = ~_known(wanted & ~there), ~_known(there & ~wanted)
        true = {
            ast.Eq: above & below,
            ast.NotEq: ~(above & below),
            ast.GtE: above,
            ast.LtE: below,
            ast.Gt: above & ~below,
            ast.Lt: below & ~above,
        }[operator]
        known = _known(there)
        return Truth(true & known, ~true & known)

    return test


def _known(masks: np.ndarray) -> np.ndarray:
    """Whether any bit is set; `any` over rows of two takes ten times as long."""
    found: np.ndarray = (masks[:, 0] | masks[:, 1]) != 0
    return found


def _number(node: ast.expr, context: Context) -> Number:
    value = constant(node, context)
    if isinstance(value, float):
        return lambda _: value
    if value is not ...:
        raise context.error(f"{value!r} is not a number"[:120], node)
    if isinstance(node, ast.Name):
        name = field_name(node, context)
        if context.kinds[name] != "number":
            raise context.error(f"{name!r} is not a number", node)
        return lambda c: c.numbers(name)
    if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        a, b = _number(node.left, context), _number(node.right, context)
        apply = ARITHMETIC[type(node.op)]
        return lambda c: _finite(apply(a(c), b(c)))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        operand, sign = _number(node.operand, context), -1 if isinstance(node.op, ast.USub) else 1
        return lambda c: sign * operand(c)
    if isinstance(node, ast.Call):
        return _call(node, context)
    raise not_allowed(node, context)


def _call(node: ast.Call, context: Context) -> Number:
    name = node.func.id if isinstance(node.func, ast.Name) else "that"
    if name not in (*FUNCTIONS, "count") or len(node.args) != 1 or node.keywords:
        known = "abs(x), sqrt(x), log10(x), count('Pd')"
        message = f"{name[:40]!r} cannot be called; there are {known}"
        raise context.error(message, node)
    if name == "count":
        symbol = symbol_of(node.args[0], context)
        if "elements" not in context.kinds:
            raise context.error("these rows have no elements to count", node)
        context.needs.add("elements")
        return lambda c: c.count(symbol)
    argument, apply = _number(node.args[0], context), FUNCTIONS[name]
    return lambda c: _finite(apply(argument(c)))


def _finite(values: Any) -> Any:
    """Unset where the result is not finite, so that x/0 does not come back through 1/(x/0)."""
    return np.where(np.isfinite(values), values, np.nan)
