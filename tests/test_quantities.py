"""Quantities: exact, in one unit, and never a bare number."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alchemy import quantities as q

KINDS = [q.LENGTH, q.TIME, q.WALL_TIME, q.TEMPERATURE, q.ENERGY, q.FORCE, q.PRESSURE]


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (q.FORCE, "80 meV/A", 0.08),
        (q.FORCE, "60 meV/Å", 0.06),
        (q.FORCE, "60meV/\u212b", 0.06),  # the Angstrom sign, not the letter
        (q.FORCE, "1 eV/A", 1.0),
        (q.WALL_TIME, "12 h", 43200.0),
        (q.WALL_TIME, "30 min", 1800.0),
        (q.TIME, "0.5 ps", 500.0),
        (q.TIME, " 2ns ", 2e6),
        (q.TEMPERATURE, "600 K", 600.0),
        (q.LENGTH, "5 A", 5.0),
        (q.LENGTH, "5 Å", 5.0),
        (q.LENGTH, "0.5 nm", 5.0),
        (q.LENGTH, "8e-2 Angstrom", 0.08),
        (q.ENERGY, "-13.6 eV", -13.6),
        (q.PRESSURE, "0.1 eV/Å³", 0.1),
        (q.PRESSURE, "0.1 eV/A^3", 0.1),
    ],
)
def test_a_quantity_is_the_same_float_as_the_literal(kind, text, value):
    assert kind.parse(text) == value  # exact: no round-off from the conversion factor


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (q.PRESSURE, "1 GPa", 0.006241509074),  # 1e9 Pa × 1e-30 m³/Å³ / 1.602176634e-19 J
        (q.PRESSURE, "-10 kbar", -0.006241509074),
        (q.ENERGY, "1 kcal/mol", 4.184 / 96.48533212),
        (q.ENERGY, "96.48533212 kJ/mol", 1.0),  # the Faraday constant
        (q.ENERGY, "1 Ha", 27.211386246),
        (q.FORCE, "1 Ha/Bohr", 51.42206747),  # CODATA 2022, atomic unit of force
        (q.FORCE, "1 kcal/mol/A", 4.184 / 96.48533212),
    ],
)
def test_other_units_have_the_tabulated_size(kind, text, value):
    assert kind.parse(text) == pytest.approx(value, rel=1e-9)  # the digits of the literature value


@pytest.mark.parametrize(
    ("kind", "found", "fragment"),
    [
        (q.TEMPERATURE, 600, 'found 600, a bare number; write "600 K"'),
        (q.FORCE, 0.08, 'a bare number; write "0.08 eV/A" or "0.08 meV/A"'),
        (q.WALL_TIME, "12", 'found "12", a bare number; write "12 h" or "12 min" or "12 s"'),
        (q.FORCE, "600 K", "which is a temperature; write a force such as"),
        (q.LENGTH, "2 ps", "which is a time; write a length such as"),
        (q.LENGTH, "3 eV*fs", "which is something else"),
        (q.FORCE, "80 mev/A", "unknown unit 'mev'; did you mean 'meV'?"),
        (q.FORCE, "80 meV/", "'meV/' is not a unit"),
        (q.TIME, "fast", "not a number and a unit; write a time such as"),
        (q.TIME, "", "not a number and a unit"),
        (q.LENGTH, "-5 A", "must be positive"),
        (q.TEMPERATURE, "0 K", "must be positive"),
        (q.LENGTH, True, "found true; write a length"),
        (q.LENGTH, None, "found nothing; write a length"),
        (q.LENGTH, ["5 A"], "found a list; write a length"),
        (q.LENGTH, "nan A", "not a number and a unit"),
        (q.LENGTH, "inf A", "not a number and a unit"),
        (q.LENGTH, "1e999 A", "too large"),
        (q.LENGTH, math.nan, "found nan"),
    ],
)
def test_a_wrong_quantity_says_what_was_found_and_what_works(kind, found, fragment):
    with pytest.raises(q.QuantityError) as caught:
        kind.parse(found)
    assert fragment in str(caught.value)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.unit)
@given(value=st.floats(min_value=1e-12, max_value=1e12))
def test_what_is_written_is_read_back_to_the_last_bit(kind, value):
    assert kind.parse(kind.text(value)) == value


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        (q.FORCE, 0.1, "100 meV/A"),
        (q.FORCE, 50.0, "50 eV/A"),
        (q.WALL_TIME, 43200.0, "12 h"),
        (q.WALL_TIME, 5400.0, "1.5 h"),
        (q.WALL_TIME, 3661.0, "3661 s"),
        (q.TIME, 0.5, "0.5 fs"),
        (q.TIME, 2000.0, "2 ps"),
    ],
)
def test_a_value_is_written_as_a_person_would(kind, value, text):
    assert kind.text(value) == text
