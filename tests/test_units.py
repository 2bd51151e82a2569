"""Units: exact sizes, products and quotients, and conversions that refuse what does not fit."""

from __future__ import annotations

import ase.units
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tace.quantities import INPUTS, LABELS
from tace.units import DIMENSION_NAMES, UNITS, UnitError, conversion, parse_unit


@given(
    first=st.sampled_from(sorted(UNITS)),
    second=st.sampled_from(sorted(UNITS)),
    power=st.integers(1, 3),
)
def test_units_multiply_and_divide_as_their_sizes_do(first, second, power):
    (a, dim_a), (b, dim_b) = parse_unit(first), parse_unit(second)
    product, dim_product = parse_unit(f"{first}*{second}")
    ratio, dim_ratio = parse_unit(f"{first}/{second}^{power}")
    assert product == a * b
    assert ratio * b**power == a
    assert dim_product == tuple(x + y for x, y in zip(dim_a, dim_b, strict=True))
    assert dim_ratio == tuple(x - power * y for x, y in zip(dim_a, dim_b, strict=True))
    assert parse_unit(f"{first}/{first}") == (1, (0,) * 6)


@given(first=st.sampled_from(sorted(UNITS)), second=st.sampled_from(sorted(UNITS)))
def test_there_and_back_is_one(first, second):
    if parse_unit(first)[1] == parse_unit(second)[1]:
        assert conversion(first, second) * conversion(second, first) == pytest.approx(1, rel=1e-15)
        # two correctly rounded floats: half a unit in the last place each


@pytest.mark.parametrize("quantity", [*INPUTS.values(), *LABELS.values()], ids=lambda q: q.name)
def test_every_unit_of_the_tables_is_known(quantity):
    assert conversion(quantity.unit, quantity.unit) == 1
    assert parse_unit(quantity.unit)[1] in DIMENSION_NAMES if quantity.unit else True


@pytest.mark.parametrize(
    ("unit", "target", "factor"),
    [
        ("kcal/mol/A", "eV/A", ase.units.kcal / ase.units.mol),
        ("kJ/mol", "eV", ase.units.kJ / ase.units.mol),
        ("Ha/Bohr", "eV/A", ase.units.Hartree / ase.units.Bohr),
        ("Ry/Bohr", "eV/A", ase.units.Rydberg / ase.units.Bohr),
        ("Ha/a0^2", "eV/A^2", ase.units.Hartree / ase.units.Bohr**2),
        ("kbar", "eV/A^3", 0.1 * ase.units.GPa),
        ("GPa", "eV/A^3", ase.units.GPa),
        ("Debye", "e*A", ase.units.Debye),
        ("e*Bohr", "e*A", ase.units.Bohr),
        ("ea0", "e*A", ase.units.Bohr),
        ("a.u.", "e*A", ase.units.Bohr),
        ("a.u.", "eV", ase.units.Hartree),
        ("a.u.", "eV/A", ase.units.Hartree / ase.units.Bohr),
        ("a.u.", "V/A", 51.4220675112),  # CODATA 2022: 5.14220675112e11 V/m
        ("a.u.", "mu_B", 2.0),  # eħ/m_e is two Bohr magnetons
        ("a.u.", "e*A^2/V", 0.010290858),  # CODATA: 1.64877727212e-41 C²m²/J, over 1.602176634e-39
        ("Bohr^3", "e*A^2/V", 0.010290858),
        ("A^3", "e*A^2/V", 0.0694461548),  # 1 / 14.399645 V Å, Coulomb's constant
        ("K", "eV", 8.617333262e-5),
        ("mV/A", "V/A", 1e-3),
        ("V/nm", "V/A", 0.1),
        ("meV/μB", "eV/mu_B", 1e-3),
        ("1/A", "1/nm", 10.0),
        ("", "", 1.0),
    ],
)
def test_conversions_have_the_size_of_the_literature(unit, target, factor):
    assert conversion(unit, target) == pytest.approx(factor, rel=2e-7)  # ASE holds CODATA 2014


@pytest.mark.parametrize(
    ("unit", "target", "fragment"),
    [
        ("eV", "eV/A", "'eV' is an energy but a force is needed, such as 'eV/A'"),
        ("eV/A", "K", "'eV/A' is a force but a temperature is needed"),
        ("eV", "K", "'eV' is an energy but a temperature is needed"),  # only K → eV is meant by anyone
        ("Debye", "e", "'Debye' is a dipole moment but a charge"),
        ("e", "", "but a number is needed, which has no unit"),
        ("", "eV", "'' is a number but an energy is needed"),
        ("debye", "e*A", "unknown unit 'debye'; did you mean 'Debye'?"),
        ("kcal/mol/", "eV", "is not a unit"),
        ("a.u.", "K", "no atomic unit of 'K'"),
    ],
)
def test_a_unit_that_does_not_fit_is_refused_with_what_would(unit, target, fragment):
    with pytest.raises(UnitError) as caught:
        conversion(unit, target)
    assert fragment in str(caught.value)


def test_a_field_times_a_dipole_is_an_energy():
    """V, e and Å belong to one system: no hidden factor between the electric labels and eV."""
    assert np.prod([conversion(u, t) for u, t in (("V/A*e*A", "eV"), ("e*A^2/V*V^2/A^2", "eV"))]) == 1
