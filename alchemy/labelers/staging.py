"""The three stages of labelers whose code runs in this process.

write  input.yaml (rendered template) and structure.json (float64, shortest round-trip form)
run    reads both, computes, writes output.json in one step, whatever the outcome
read   parses output.json and gives the verdict
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from ase import Atoms
from ruamel.yaml import YAML, YAMLError

from alchemy.errors import EnvironmentProblemError, InputError
from alchemy.identity import charge_and_multiplicity, content_hash
from alchemy.labelers.base import (
    LabelFailureError,
    LabelResult,
    installed_version,
    minor_release,
    render,
)
from alchemy.records import (
    atoms_from_document,
    atoms_to_document,
    read_json,
    write_json_atomic,
    write_text_atomic,
)
from tace.wording import hint

INPUT, STRUCTURE, OUTPUT = "input.yaml", "structure.json", "output.json"

Kinds = tuple[type, ...]
Schema = Mapping[str, Mapping[str, Kinds]]  # section -> key -> types; every key is required
Compute = Callable[[Atoms, Mapping[str, Any], Path], LabelResult]

NUMBER: Kinds = (int, float)
OPTIONAL_INT: Kinds = (int, type(None))
COUNT: Kinds = (int,)
TEXT: Kinds = (str,)
FLAG: Kinds = (bool,)


@dataclass(frozen=True)
class StagedLabeler:
    """What labelers have in common that are a template, its schema and, in `run`, a function.

    The fields of a subclass are the options that its template reads; the program is the Python package
    of its name.
    """

    template: str | None = field(default=None, kw_only=True)

    name: ClassVar[str]
    own_template: ClassVar[str]
    schema: ClassVar[Schema]

    def physics(self) -> dict[str, Any]:
        """Code release and the physics section of the rendered template."""
        return {"code": f"{self.name} {minor_release(self.name)}", **self._section()}

    def code(self) -> str:
        """Program and version."""
        return f"{self.name} {installed_version(self.name)}"

    def write_input(self, atoms: Atoms, directory: Path) -> None:
        """input.yaml and structure.json."""
        template, options = self.template or self.own_template, self._options()
        write_stage(atoms, directory, template=template, options=options, schema=self.schema)

    def read(self, atoms: Atoms, directory: Path) -> LabelResult:
        """The verdict."""
        return read_stage(atoms, directory)

    def _section(self) -> dict[str, Any]:
        return physics_of(self.template or self.own_template, self._options(), self.schema)

    def _options(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key != "template"}


def structure_variables(atoms: Atoms) -> dict[str, int]:
    """What a template may say about the structure."""
    charge, multiplicity = charge_and_multiplicity(atoms)
    return {"charge": charge, "multiplicity": multiplicity}


def parse_input(text: str, schema: Schema, *, source: str) -> dict[str, dict[str, Any]]:
    """Sections of an input file, each key known, present and of the right type."""
    try:
        document = copy.deepcopy(_loaded(text))
    except YAMLError as error:
        raise InputError(f"{source} is not valid YAML: {error}") from error
    if not isinstance(document, dict):
        raise InputError(f"{source} must be a mapping with the sections {', '.join(schema)}")
    _check_keys(document, schema, where=source)
    for section, kinds in schema.items():
        if not isinstance(document[section], dict):
            raise InputError(f"{source}: '{section}' must be a mapping")
        _check_keys(document[section], kinds, where=f"{source}, {section}")
        for key, allowed in kinds.items():
            _check_type(document[section][key], allowed, where=f"{source}, {section}.{key}")
    return document


@lru_cache(maxsize=64)  # thousands of labels share few texts, and the pure parser takes 5 ms
def _loaded(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)


def _check_keys(found: Mapping[str, Any], known: Mapping[str, Any], *, where: str) -> None:
    for key in found:
        if key not in known:
            raise InputError(f"{where}: unknown key '{key}'; {hint(str(key), known, label='keys')}")
    missing = [key for key in known if key not in found]
    if missing:
        raise InputError(f"{where}: missing {', '.join(missing)}")


def _check_type(value: Any, allowed: Kinds, *, where: str) -> None:
    # bool is an int to Python, but `grid_level: yes` is a mistake
    right = isinstance(value, allowed) and not (isinstance(value, bool) and bool not in allowed)
    if not right:
        names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in allowed)
        raise InputError(f"{where} is {value!r}, which is not {names}")


def physics_of(template: str, options: Mapping[str, Any], schema: Schema) -> dict[str, Any]:
    """The physics section as rendered, so that editing a template changes the fingerprint."""
    text = render(template, {**options, "charge": 0, "multiplicity": 0})
    return parse_input(text, schema, source=f"template {template}")["physics"]


def write_stage(
    atoms: Atoms, directory: Path, *, template: str, options: Mapping[str, Any], schema: Schema
) -> None:
    """Write input.yaml and structure.json."""
    text = render(template, {**options, **structure_variables(atoms)})
    physics = parse_input(text, schema, source=f"template {template}")["physics"]
    if content_hash(physics) != content_hash(physics_of(template, options, schema)):
        raise InputError(
            f"template {template}: 'physics' depends on the structure, so its labels would be of "
            "several levels of theory; move charge and multiplicity to 'structure'"
        )
    write_text_atomic(directory / INPUT, text)
    write_json_atomic(directory / STRUCTURE, atoms_to_document(atoms))


def run_stage(directory: Path, compute: Compute, *, schema: Schema) -> None:
    """Compute what the two input files say; a failed calculation is an output too."""
    text = (directory / INPUT).read_text(encoding="utf-8")
    sections = parse_input(text, schema, source=str(directory / INPUT))
    structure = read_json(directory / STRUCTURE)
    calculate = partial(compute, atoms_from_document(structure), sections, directory)
    write_outcome(directory, calculate)


def write_outcome(
    directory: Path, calculate: Callable[[], LabelResult], facts: Mapping[str, Any] | None = None
) -> None:
    """output.json: the result or the failure, what it cost, and `facts` as they are at the end."""
    wall, cpu = time.perf_counter(), cpu_seconds()
    document: dict[str, Any]
    try:
        document = {"status": "ok", **_result_document(calculate())}
    except LabelFailureError as failure:
        document = {"status": "failed", "reason": failure.reason, "message": failure.message}
    document = {**(facts or {}), **document}
    document["input_hash"] = _input_hash(directory)
    document["wall_s"] = time.perf_counter() - wall
    document["cpu_s"] = cpu_seconds() - cpu
    write_json_atomic(directory / OUTPUT, document)


def read_stage(atoms: Atoms, directory: Path) -> LabelResult:
    """Parse output.json; raises LabelFailureError when it reports a failure or non-numbers."""
    document = read_json(directory / OUTPUT)
    if document["status"] != "ok":
        raise LabelFailureError(document["reason"], document["message"])
    result = LabelResult(
        energy_eV=float(document["energy_eV"]),
        forces_eV_per_A=np.asarray(document["forces_eV_per_A"], dtype=np.float64).reshape(-1, 3),
        stress_eV_per_A3=_array(document["stress_eV_per_A3"]),
        energy_kind=document["energy_kind"],
        dipole_eA=_array(document["dipole_eA"]),
        total_moment_muB=document.get("total_moment_muB"),
    )
    if len(result.forces_eV_per_A) != len(atoms):
        raise LabelFailureError(
            "wrong-shape", f"{len(result.forces_eV_per_A)} forces for {len(atoms)} atoms"
        )
    return result


def finished_cost(directory: Path) -> tuple[float, float] | None:
    """(wall_s, cpu_s) of an output that belongs to the input beside it; None: there is none."""
    path = directory / OUTPUT
    if not all((directory / name).exists() for name in (INPUT, STRUCTURE, OUTPUT)):
        return None
    document = read_json(path)
    if document.get("input_hash") != _input_hash(directory):
        return None
    return float(document["wall_s"]), float(document["cpu_s"])


def _input_hash(directory: Path) -> str:
    return content_hash([(directory / name).read_text("utf-8") for name in (INPUT, STRUCTURE)])


def _result_document(result: LabelResult) -> dict[str, Any]:
    return {
        "energy_eV": _numbers(result.energy_eV),
        "forces_eV_per_A": _numbers(result.forces_eV_per_A),
        "stress_eV_per_A3": _numbers(result.stress_eV_per_A3),
        "energy_kind": result.energy_kind,
        "dipole_eA": _numbers(result.dipole_eA),
        "total_moment_muB": _numbers(result.total_moment_muB),
    }


def _numbers(value: Any) -> Any:
    """JSON has no NaN: a non-finite number is kept as the string 'nan' or 'inf' for inspection."""
    if value is None:
        return None
    if np.ndim(value):
        return [_numbers(item) for item in value]
    return float(value) if np.isfinite(value) else str(float(value))


def _array(value: Any) -> np.ndarray | None:
    return None if value is None else np.asarray(value, dtype=np.float64)


def cpu_seconds() -> float:
    """CPU time of this process and of its finished children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def electrons(atoms: Atoms) -> int:
    """All electrons of the structure, its charge included."""
    charge, _ = charge_and_multiplicity(atoms)
    return int(atoms.numbers.sum()) - charge


def unpaired_electrons(atoms: Atoms) -> int:
    """2S; where the multiplicity is unset, the lowest that fits. Impossible ones are refused."""
    charge, multiplicity = charge_and_multiplicity(atoms)
    number = electrons(atoms)
    if number < 0:
        raise LabelFailureError("bad-charge", f"charge {charge:+d} leaves {number} electrons")
    if multiplicity == 0:
        return number % 2
    unpaired = multiplicity - 1
    if unpaired < 0 or unpaired > number or (number - unpaired) % 2:
        raise LabelFailureError(
            "bad-multiplicity", f"multiplicity {multiplicity} does not fit {number} electrons"
        )
    return unpaired


@contextlib.contextmanager
def environment(**values: str) -> Iterator[None]:
    """Environment variables for libraries that read them once, when they are loaded."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def threads_limited(number: int) -> Iterator[None]:
    """At most `number` threads in BLAS and OpenMP libraries that are already loaded.

    Idle BLAS threads spin: one urea label took 4.8 CPU seconds instead of 2.1 on two cores. Where
    threadpoolctl is missing, it is up to whoever starts the worker to set OMP_NUM_THREADS.
    """
    try:
        limits = importlib.import_module("threadpoolctl").threadpool_limits
    except ImportError:
        yield
        return
    with limits(limits=number):
        yield


def missing_package(package: str, error: ImportError) -> EnvironmentProblemError:
    """What to raise when the code itself is not there."""
    return EnvironmentProblemError(
        f"the Python package '{package}' cannot be imported ({error}); try: pip install {package}"
    )
