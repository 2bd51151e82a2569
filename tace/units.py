"""Units: their exact sizes in eV, Å, fs, K, e and μ_B, and the factor from any unit to any other.

Every unit is an exact fraction, so that `"80 meV/A"` is the same float as 0.08. One volt is one eV per e,
so that it needs no size of its own. Two equivalences are known besides plain dimensions: temperatures are
energies (k_B T), and a polarisability may be given as a volume, α/(4πε0); in atomic units the two agree,
because e²/(4πε0) is one hartree times one bohr.
Constants: h, e, k_B, N_A and c as fixed by the SI of 2019; hartree, bohr and the atomic unit of time from
CODATA 2022.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

from .errors import TaceError
from .wording import nearest

Dimension = tuple[int, int, int, int, int, int]  # powers of energy, length, time, temperature, charge, moment

_PASCAL_A3 = Fraction("6.241509074460763e-12")  # eV/Å³ in one Pa: 1e-30 m³ / 1.602176634e-19 J
_PER_MOL = Fraction("6.02214076e23")
_JOULE = Fraction(10**19) / Fraction("1.602176634")
_SECOND = Fraction(10**15)
_HARTREE = Fraction("27.211386245981")
_BOHR = Fraction("0.529177210544")
COULOMB = 14.399645478425668  # e²/(4π ε0) in eV Å, CODATA 2018: models are trained with it, so it stays
_BOLTZMANN = Fraction("1.380649e-23") * _JOULE  # eV/K
_DEBYE = Fraction(10**8) / (299792458 * Fraction("1.602176634"))  # e·Å in 1e-21/c C·m

_ENERGY, _LENGTH, _TIME = (1, 0, 0, 0, 0, 0), (0, 1, 0, 0, 0, 0), (0, 0, 1, 0, 0, 0)
_TEMPERATURE, _CHARGE, _MOMENT = (0, 0, 0, 1, 0, 0), (0, 0, 0, 0, 1, 0), (0, 0, 0, 0, 0, 1)
_PRESSURE, _DIPOLE, _VOLTAGE = (1, -3, 0, 0, 0, 0), (0, 1, 0, 0, 1, 0), (1, 0, 0, 0, -1, 0)
_VOLUME, _POLARIZABILITY = (0, 3, 0, 0, 0, 0), (-1, 2, 0, 0, 2, 0)
_NUMBER = (0, 0, 0, 0, 0, 0)


def _sizes(dimension: Dimension, **sizes: str | Fraction) -> dict[str, tuple[Fraction, Dimension]]:
    return {symbol: (Fraction(size), dimension) for symbol, size in sizes.items()}


UNITS: dict[str, tuple[Fraction, Dimension]] = {
    **_sizes(_ENERGY, eV="1", meV="1e-3", keV="1e3", Ha=_HARTREE, Hartree=_HARTREE, mHa=_HARTREE / 1000),
    **_sizes(_ENERGY, Ry="13.6056931229905", J=_JOULE, kJ=_JOULE * 1000, kcal=_JOULE * 4184),
    **_sizes(_NUMBER, mol=_PER_MOL),
    **_sizes(_LENGTH, A="1", Å="1", Angstrom="1", pm="1e-2", nm="10", Bohr=_BOHR),
    **_sizes(_TIME, fs="1", ps="1e3", ns="1e6", us="1e9", ms="1e12", s=_SECOND),
    **_sizes(_TIME, min=_SECOND * 60, h=_SECOND * 3600, d=_SECOND * 86400),
    **_sizes(_TEMPERATURE, K="1"),
    **_sizes(_PRESSURE, Pa=_PASCAL_A3, kPa=_PASCAL_A3 * 10**3, MPa=_PASCAL_A3 * 10**6),
    **_sizes(_PRESSURE, GPa=_PASCAL_A3 * 10**9, bar=_PASCAL_A3 * 10**5, kbar=_PASCAL_A3 * 10**8),
    **_sizes(_CHARGE, e="1"),
    **_sizes(_DIPOLE, D=_DEBYE, Debye=_DEBYE),
    **_sizes(_VOLTAGE, V="1", mV="1e-3"),
    **_sizes(_MOMENT, mu_B="1", muB="1", μB="1"),
}

DIMENSION_NAMES: dict[Dimension, str] = {
    _NUMBER: "a number",
    _ENERGY: "an energy",
    _LENGTH: "a length",
    _TIME: "a time",
    _TEMPERATURE: "a temperature",
    (1, -1, 0, 0, 0, 0): "a force",
    _PRESSURE: "a pressure",
    (1, -2, 0, 0, 0, 0): "a force constant",
    _VOLUME: "a volume",
    _CHARGE: "a charge",
    _DIPOLE: "a dipole moment",
    _VOLTAGE: "a voltage",
    (1, -1, 0, 0, -1, 0): "an electric field",
    _POLARIZABILITY: "a polarisability",
    _MOMENT: "a magnetic moment",
    (1, 0, 0, 0, 0, -1): "an energy per magnetic moment",
}

# the unit of each dimension in Hartree's system; there is none of temperature
_ATOMIC = (_HARTREE, _BOHR, Fraction("0.024188843265864"), None, Fraction(1), Fraction(2))
_ATOMIC_NAMES = ("a.u.", "au", "atomic units")
_EQUIVALENT = {
    (_TEMPERATURE, _ENERGY): _BOLTZMANN,
    (_VOLUME, _POLARIZABILITY): 1 / (_HARTREE * _BOHR),  # 4πε0 in e/(V·Å)
}
_FACTOR = re.compile(r"\s*([*/])\s*([^\W\d]+)(?:(?:\^|\*\*)?(-?\d))?\s*")


class UnitError(TaceError):
    """The text is not a unit, or not one of the kind that was asked for."""


def plain(text: str) -> str:
    """Typographic forms made plain: · − ³ and the Ångström and micro signs."""
    # NFKC turns the Angstrom sign U+212B into Å, and ³ into 3, which `_FACTOR` takes as a power.
    return unicodedata.normalize("NFKC", text).replace("·", "*").replace("−", "-")


def parse_unit(unit: str) -> tuple[Fraction, Dimension]:
    """`eV/Å^3` → its size in eV, Å, fs, K, e and μ_B, and its dimension; `/` binds one factor only.

    Raises:
        UnitError: the text is not a unit; the nearest one is named.
    """
    rest, factor, powers = "*" + plain(unit).strip(), Fraction(1), [0] * 6
    rest = rest.replace("ea0", "e*Bohr").replace("a0", "Bohr").replace("*1/", "/")
    while rest:
        match = _FACTOR.match(rest)
        if match is None:
            raise UnitError(f"'{unit}' is not a unit")
        operator, symbol, power_text = match.groups()
        if symbol not in UNITS:
            raise UnitError(f"unknown unit '{symbol}'{_meant(symbol)}")
        power = int(power_text or 1) * (1 if operator == "*" else -1)
        size, dimension = UNITS[symbol]
        factor *= size**power
        powers = [p + power * d for p, d in zip(powers, dimension, strict=True)]
        rest = rest[match.end() :]
    return factor, (powers[0], powers[1], powers[2], powers[3], powers[4], powers[5])


def conversion(unit: str, target: str) -> float:
    """What a number in `unit` is multiplied by to be in `target`; both may be "" for a pure number.

    "a.u." stands for the atomic unit of whatever `target` measures. Kelvin become energies by k_B, and
    a volume becomes a polarisability by 4πε0.

    Raises:
        UnitError: either text is not a unit, or they measure different things.
    """
    size, dimension = parse_unit(target) if target.strip() else (Fraction(1), _NUMBER)
    if unit.strip().casefold() in _ATOMIC_NAMES:
        return float(_atomic_size(dimension, target) / size)
    own, found = parse_unit(unit) if unit.strip() else (Fraction(1), _NUMBER)
    if found != dimension:
        own *= _EQUIVALENT.get((found, dimension), 0)
        if not own:
            raise UnitError(
                f"'{unit}' is {_describe(found)} but {_describe(dimension)} is needed, "
                + (f"such as '{target}'" if target.strip() else "which has no unit")
            )
    return float(own / size)


def _atomic_size(dimension: Dimension, target: str) -> Fraction:
    total = Fraction(1)
    for power, size in zip(dimension, _ATOMIC, strict=True):
        if power and size is None:
            raise UnitError(f"there is no atomic unit of '{target}'; name the unit")
        total *= (size or 1) ** power
    return total


def _describe(dimension: Dimension) -> str:
    return DIMENSION_NAMES.get(dimension, "something else")


def _meant(symbol: str) -> str:
    near = nearest(symbol, UNITS)
    return f"; did you mean '{near}'?" if near else ""
