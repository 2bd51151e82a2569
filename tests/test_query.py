"""Laws of the query language: three-valued, total, safe and helpful."""

import ast
import contextlib
import itertools
import math
import random

import numpy as np
import pytest
from ase.data import chemical_symbols
from hypothesis import given, settings
from hypothesis import strategies as st

from alchemy.errors import QueryError
from alchemy.store.query import Codes, compile_query

KINDS = {
    "n_atoms": "number",
    "max_force": "number",
    "energy": "number",
    "periodic": "bool",
    "fidelity": "text",
    "status": "text",
    "formula": "formula",
    "elements": "elements",
}
FORMULAS = {"H2O": {"H": 2, "O": 1}, "CH4": {"C": 1, "H": 4}, "PdO": {"O": 1, "Pd": 1}}


def row(**values):
    """None is unset everywhere."""
    return dict.fromkeys(KINDS) | values


def example_rows(n, rng):
    def maybe(value):
        return None if rng.random() < 0.25 else value

    return [
        row(
            n_atoms=maybe(rng.randint(0, 3)),
            max_force=maybe(rng.choice([-1.0, 0.0, 0.5, 2.0, 1e300])),
            energy=maybe(rng.choice([-2.0, 0.0, 1.5])),
            periodic=maybe(rng.random() < 0.5),
            fidelity=maybe(rng.choice(["pbe", "gfn2"])),
            status=maybe(rng.choice(["ok", "failed"])),
            formula=(formula := maybe(rng.choice(list(FORMULAS)))),
            elements=FORMULAS.get(formula),
        )
        for _ in range(n)
    ]


class RowColumns:
    """The columns that the compiled query reads, made from the rows of the reference."""

    def __init__(self, rows):
        self.rows, self.n = rows, len(rows)

    def numbers(self, name):
        return np.array([math.nan if r[name] is None else r[name] for r in self.rows], float)

    def codes(self, name):
        words = sorted({r[name] for r in self.rows if r[name] is not None})
        vocabulary = {word: i for i, word in enumerate(words)}
        codes = [-1 if r[name] is None else vocabulary[r[name]] for r in self.rows]
        return Codes(np.array(codes, int), vocabulary)

    def elements(self):
        masks = np.zeros((self.n, 2), np.uint64)
        for mask, r in zip(masks, self.rows, strict=True):
            for symbol in r["elements"] or ():
                z = chemical_symbols.index(symbol)
                mask[z >> 6] |= np.uint64(1 << (z & 63))
        return masks

    def count(self, symbol):
        counts = [r["elements"] and r["elements"].get(symbol, 0) for r in self.rows]
        return np.array([math.nan if c is None else c for c in counts], float)


def matches(text, rows):
    return compile_query(text, KINDS).mask(RowColumns(rows)).tolist()


# The reference: one row at a time, None for unknown, written from the rules, not from the engine.


def finite(x):
    return x if x is not None and math.isfinite(x) else None


def term(node, r):
    match node:
        case ast.Constant(value=v):
            return v
        case ast.Name(id=name):
            return r[name]
        case ast.UnaryOp(operand=o):
            value = term(o, r)
            return None if value is None else -value
        case ast.BinOp(left=a, op=op, right=b):
            x, y = term(a, r), term(b, r)
            if x is None or y is None or (isinstance(op, ast.Div) and y == 0):
                return None
            if isinstance(op, ast.Add):
                return finite(x + y)
            if isinstance(op, ast.Sub):
                return finite(x - y)
            return finite(x * y) if isinstance(op, ast.Mult) else finite(x / y)
        case ast.Call(func=ast.Name(id="count"), args=[ast.Constant(value=symbol)]):
            return None if r["elements"] is None else r["elements"].get(symbol, 0)
        case ast.Call(func=ast.Name(id=name), args=[argument]):
            x = term(argument, r)
            if x is None or (name == "sqrt" and x < 0) or (name == "log10" and x <= 0):
                return None
            return {"abs": abs, "sqrt": math.sqrt, "log10": math.log10}[name](x)
        case ast.Set(elts=items) | ast.List(elts=items):
            return [term(item, r) for item in items]
    raise AssertionError(ast.dump(node))


def compare(left, op, right, r):
    x, y = term(left, r), term(right, r)
    if isinstance(op, (ast.Is, ast.IsNot)):
        return (x is None) == isinstance(op, ast.Is)
    if x is None or y is None:
        return None
    if isinstance(op, (ast.In, ast.NotIn)):
        return (x in y) == isinstance(op, ast.In)
    if isinstance(x, dict):
        x, y = set(x), set(y)
    return {
        ast.Eq: lambda: x == y,
        ast.NotEq: lambda: x != y,
        ast.Lt: lambda: x < y,
        ast.LtE: lambda: x <= y,
        ast.Gt: lambda: x > y,
        ast.GtE: lambda: x >= y,
    }[type(op)]()


def truth(node, r):
    match node:
        case ast.BoolOp(op=op, values=values):
            found = [truth(v, r) for v in values]
            decisive = isinstance(op, ast.Or)
            if decisive in found:
                return decisive
            return None if None in found else not decisive
        case ast.UnaryOp(op=ast.Not(), operand=o):
            value = truth(o, r)
            return None if value is None else not value
        case ast.Compare(left=left, ops=ops, comparators=rights):
            pairs = zip([left, *rights], ops, rights, strict=False)
            found = [compare(a, op, b, r) for a, op, b in pairs]
            return False if False in found else None if None in found else True
        case ast.Name(id=name):
            return r[name]
        case ast.Constant(value=bool(v)):
            return v
    raise AssertionError(ast.dump(node))


def random_number(rng, depth):
    if depth == 0 or rng.random() < 0.4:
        names = ["n_atoms", "max_force", "energy", "0", "1", "-2", "0.5", "count('H')"]
        return rng.choice([*names, "count('Pd')"])
    if rng.random() < 0.3:
        function = rng.choice(["abs", "sqrt", "log10", "-"])
        return f"{function}({random_number(rng, depth - 1)})"
    a, b = random_number(rng, depth - 1), random_number(rng, depth - 1)
    return f"({a} {rng.choice('+-*/')} {b})"


def random_query(rng, depth=3):
    if depth and rng.random() < 0.6:
        if rng.random() < 0.3:
            return f"not ({random_query(rng, depth - 1)})"
        join = rng.choice([" and ", " or "])
        return "(" + join.join(random_query(rng, depth - 1) for _ in range(rng.randint(2, 3))) + ")"
    relation = rng.choice(["==", "!=", "<", "<=", ">", ">="])
    numbers = [random_number(rng, 2) for _ in range(3)]
    return rng.choice(
        [
            f"{numbers[0]} {relation} {numbers[1]}",
            f"{numbers[0]} < {numbers[1]} <= {numbers[2]}",
            f"n_atoms {rng.choice(['in', 'not in'])} [0, 2, -1]",
            "periodic",
            f"periodic {rng.choice(['==', '!='])} True",
            f"fidelity {rng.choice(['==', '!='])} 'pbe'",
            f"status {rng.choice(['in', 'not in'])} ['ok', 'unheard of']",
            f"formula {rng.choice(['==', '!='])} 'H2O'",
            f"'H' {rng.choice(['in', 'not in'])} elements",
            f"elements {relation} {{'H', 'O'}}",
            f"{rng.choice(list(KINDS))} is {rng.choice(['', 'not '])}None",
        ]
    )


def test_compiled_queries_agree_with_a_row_by_row_interpreter():
    rng = random.Random(7)
    rows = example_rows(40, rng)
    for _ in range(400):
        text = random_query(rng)
        tree = ast.parse(text, mode="eval").body
        assert matches(text, rows) == [truth(tree, r) is True for r in rows], text


TOKENS = [
    *KINDS, "and", "or", "not", "in", "is", "None", "True", "(", ")", "[", "]", "{", "}", "'Pd'",
    "'a'", "1", "2.5", "1e999", "9**9**9", "==", "!=", "<", ">=", "=", ":=", "+", "-", "*", "/",
    "count", "abs", "sqrt", ".", ",", "lambda", ":", "for", "if", "else", "f'{1}'", "b'x'", "1j",
    "...", "await", "yield", "@", "&", "|", "~", "\\", "\0", "\n", "\t", "#", "é", "𝐞", "\ud800",
    "__import__", "fmax",
]  # fmt: skip


@pytest.mark.parametrize("texts", [4000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_any_text_compiles_or_raises_a_query_error(texts):
    rng = random.Random(texts)
    columns = RowColumns(example_rows(5, rng))
    accepted = 0
    for _ in range(texts):
        text = " ".join(rng.choices(TOKENS, k=rng.randint(1, 9)))
        with contextlib.suppress(QueryError):
            query = compile_query(text, KINDS)
            assert query.mask(columns).shape == (5,), text
            accepted += 1
    assert accepted > 20, "the fuzz should also reach texts that compile"


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_arbitrary_unicode_raises_nothing_but_query_errors(text):
    with contextlib.suppress(QueryError):
        compile_query(text, KINDS)


@pytest.mark.parametrize(
    "text",
    [
        "(" * 3000,
        "-" * 4000 + "1 > 0",
        "not " * 900 + "periodic",
        "periodic" + " and periodic" * 320,
        "n_atoms + " * 400 + "1 > 0",
        "n_atoms in [" + "1," * 300 + "]",
        "x" * 5000,
        "n_atoms < 10**10",
        "n_atoms < 99999999999999999999",
        "max_force < 1e400",
    ],
)
def test_expensive_texts_are_refused(text):
    with pytest.raises(QueryError):
        compile_query(text, KINDS)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "fidelity.__class__",
        "().__class__.__bases__[0].__subclasses__()",
        "[x for x in (1,)]",
        "(lambda: 1)() == 1",
        "f'{n_atoms}' == 'a'",
        "n_atoms if periodic else 1",
        "(n_atoms := 3) > 1",
        "elements[0] == 1",
        "abs(*[1]) > 0",
        "abs(x=1) > 0",
        "eval('1') == 1",
        "getattr(n_atoms, 'x') == 1",
        "periodic()",
        "'{}'.format(1) == '1'",
        "n_atoms @ n_atoms > 1",
        "n_atoms ** 2 > 1",
        "n_atoms % 2 == 1",
    ],
)
def test_nothing_of_python_but_the_subset_is_accepted(text):
    with pytest.raises(QueryError):
        compile_query(text, KINDS)


VALUES = [True, False, None]


@pytest.mark.parametrize(("a", "b"), list(itertools.product(VALUES, repeat=2)))
def test_unknown_follows_kleene_logic(a, b):
    """A row matches only if the condition is true whatever the unset values are (OPTIMADE)."""
    worlds = [
        (x, y)
        for x in ([a] if a is not None else [True, False])
        for y in ([b] if b is not None else [True, False])
    ]
    rows = [row(periodic=a, status=None if b is None else "ok" if b else "failed")]
    for text, law in {
        "periodic and status == 'ok'": lambda x, y: x and y,
        "periodic or status == 'ok'": lambda x, y: x or y,
        "not periodic and not status == 'ok'": lambda x, y: not x and not y,
        "not (periodic or status == 'ok')": lambda x, y: not (x or y),
        "periodic == False or status != 'ok'": lambda x, y: not x or not y,
    }.items():
        assert matches(text, rows) == [all(law(x, y) for x, y in worlds)], text


@pytest.mark.parametrize("name", sorted(KINDS))
def test_only_is_none_finds_unset_values(name):
    rows = [row()]
    assert matches(f"{name} is None", rows) == [True]
    assert matches(f"{name} is not None", rows) == [False]


def test_results_that_are_not_finite_are_unset():
    rows = [row(energy=0.0)]
    for text in ["1/energy > 0", "not 1/energy > 0", "1/(1/energy) == 0", "log10(energy) < 0"]:
        assert matches(text, rows) == [False], text


def test_an_empty_query_matches_every_row():
    assert matches("  \n ", [row(), row()]) == [True, True]


def test_a_formula_may_be_written_in_any_order():
    rows = [row(formula="H2O"), row(formula="CH4")]
    assert matches("formula == 'OHH'", rows) == [True, False]
    assert matches("formula in ['H4C', 'Pd']", rows) == [False, True]


def test_aliases_are_the_names_of_ase():
    query = compile_query("natoms > 1 and fmax > 2", KINDS)
    assert query.needs == {"n_atoms", "max_force"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fidelty == 'pbe'", ["unknown field 'fidelty'", "did you mean 'fidelity'?", "(column 1)"]),
        ("n_atoms > 3 and  maxforce > 2", ["did you mean 'max_force'?", "(column 18)"]),
        ("'é' in elements or nope_such > 1", ["unknown chemical symbol 'é'", "(column 1)"]),
        ("fidelity != 'é' and qqqqqq > 1", ["unknown field 'qqqqqq'; fields: ", "(column 21)"]),
        ("   'pd' in elements", ["did you mean 'Pd'?", "(column 4)"]),
        ("fidelity = 'pbe'", ["write '=='"]),
        ("periodic & periodic", ["write 'and'"]),
        ("fidelity == None", ["'is None'"]),
        ("fidelity > 'pbe'", ["'fidelity' works only with == != in"]),
        ("fidelity == 3", ["text in quotes"]),
        ("n_atoms", ["'n_atoms' is not true or false"]),
        ("max_force > 'a'", ["'a' is not a number", "(column 13)"]),
        ("Pd in elements", ["written in quotes: 'Pd'"]),
        ("'Pd'", ["'Pd' alone is not a condition"]),
        ("elements == 'Pd'", ["elements == {'Pd', 'O'}"]),
        ("(n_atoms > 3", ["never closed", "(column 1)"]),
        ("fidelity in []", ["the list is empty"]),
        ("foo(1) > 2", ["'foo' cannot be called"]),
        ("formula == 'Xq2'", ["not a chemical formula"]),
    ],
)
def test_messages_say_where_and_what_would_work(text, words):
    with pytest.raises(QueryError) as caught:
        compile_query(text, KINDS)
    for word in words:
        assert word in str(caught.value)
