"""The labeler protocol, templates, and the way from a name in a campaign file to a labeler.

Labelers are staged (`write_input`, `run`, `read`): in-process codes and batch jobs look alike.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from ase import Atoms
from jinja2 import StrictUndefined, Template, TemplateError, UndefinedError, meta
from jinja2.sandbox import SandboxedEnvironment

from alchemy.errors import EnvironmentProblemError, InputError
from alchemy.identity import content_hash
from alchemy.plugins import find
from tace.wording import hint


class LabelFailureError(Exception):
    """This structure cannot be labelled. Becomes a failed record; `reason` is a short code."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)  # both in args: otherwise it does not unpickle
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


@dataclass(frozen=True)
class LabelResult:
    """Numbers of one label: eV, eV/Å (raw, no constraints applied), eV/Å³ (Voigt, ASE sign)."""

    energy_eV: float
    forces_eV_per_A: np.ndarray
    stress_eV_per_A3: np.ndarray | None
    energy_kind: str
    dipole_eA: np.ndarray | None
    total_moment_muB: float | None = None  # of the solution, where the code tells


class Labeler(Protocol):
    """One level of theory."""

    @property
    def name(self) -> str:
        """The name under which the user knows it."""

    @property
    def periodic(self) -> bool:
        """Whether it can treat periodic structures."""

    @property
    def net_force_eV_per_A_per_atom(self) -> float:
        """Above this |ΣF|/A the label is wrong, not noisy; depends on grids, so on the code."""

    def physics(self) -> dict[str, Any]:
        """JSON: everything that changes the number; hashed, it is the fingerprint."""

    def code(self) -> str:
        """Program and version, such as 'pyscf 2.14.0'."""

    def write_input(self, atoms: Atoms, directory: Path) -> None:
        """Render the template into `directory`."""

    def run(self, directory: Path) -> None:
        """Compute; writes only inside `directory`."""

    def read(self, atoms: Atoms, directory: Path) -> LabelResult:
        """Parse and judge the output; raises LabelFailureError."""


def installed_version(package: str) -> str:
    """Version of a program that came as a Python package, without importing it."""
    try:
        return version(package)
    except PackageNotFoundError as error:
        raise EnvironmentProblemError(
            f"the Python package '{package}' is not installed; try: pip install {package}"
        ) from error


def minor_release(package: str) -> str:
    """'2.14' of '2.14.0': a patch release is not meant to change numbers, a minor one may."""
    return ".".join(installed_version(package).split(".")[:2])


def render(template: str | Path, context: Mapping[str, Any]) -> str:
    """Render a template of `alchemy_templates` ('labelers/pyscf.yaml.j2') or a file of the user.

    Sandboxed: a template from a colleague's campaign can fill in text, not run code.
    """
    try:
        return _compiled(template_text(template)).render(dict(context))
    except UndefinedError as error:
        known = ", ".join(sorted(context))
        raise InputError(f"template {template}: {error.message}; variables: {known}") from error
    except TemplateError as error:
        line = getattr(error, "lineno", None)
        where = f" line {line}" if line else ""
        raise InputError(f"template {template}{where}: {error}") from error
    except TypeError as error:  # e.g. a filter applied to the wrong kind of value
        raise InputError(f"template {template}: {error}") from error


@lru_cache(maxsize=16)  # by text, so that an edited file is noticed
def _compiled(text: str) -> Template:
    return _environment().from_string(text)


def _environment() -> SandboxedEnvironment:
    return SandboxedEnvironment(
        undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False
    )


@lru_cache(maxsize=64)
def _variables(text: str) -> frozenset[str]:
    return frozenset(meta.find_undeclared_variables(_environment().parse(text)))


def check_variables(template: str | Path, known: Iterable[str]) -> None:
    """Refuse a template that names anything else, in whatever branch: before the first structure."""
    names = sorted(known)
    try:
        wanted = _variables(template_text(template))
    except TemplateError as error:
        line = getattr(error, "lineno", None)
        where = f" line {line}" if line else ""
        raise InputError(f"template {template}{where}: {error}") from error
    for name in sorted(wanted - set(names)):
        listed = hint(name, names, label="variables")
        raise InputError(f"template {template}: '{name}' is undefined; {listed}")


def template_text(template: str | Path) -> str:
    """Source of a template of `alchemy_templates`, or of a file of the user."""
    if isinstance(template, str):
        resource = files("alchemy_templates").joinpath(template)
        if resource.is_file():
            return resource.read_text(encoding="utf-8")
    try:
        return Path(template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"template {template} cannot be read: {error}") from error


def make_labeler(name: str, options: Mapping[str, Any], *, base_dir: Path) -> Labeler:
    """The labeler `name` with `options`; relative files (`template`, …) are looked up in `base_dir`."""
    factory = find("labelers", name)
    parameters = inspect.signature(factory).parameters
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for option in options:
        if option not in parameters and not open_ended:
            listed = hint(option, parameters, label="its options")
            raise InputError(f"labeler '{name}' has no option '{option}'; {listed}")
    values = dict(options)
    for option in getattr(factory, "file_options", ("template",)):
        if values.get(option) is not None:
            values[option] = str((base_dir / Path(str(values[option])).expanduser()).resolve())
    try:
        labeler: Labeler = factory(**values)
    except TypeError as error:
        raise InputError(f"labeler '{name}': {error}") from error
    labeler.physics()  # a wrong template or value is found here, not on a worker
    return labeler


def require_elements(labeler: Labeler, elements: Iterable[str]) -> None:
    """Refuse, before the first label, elements for which a labeler has no data (pseudopotentials).

    Labelers that can tell have a method `check_elements`; it raises InputError.
    """
    check = getattr(labeler, "check_elements", None)
    if check is not None:
        check(list(elements))


def fingerprint(labeler: Labeler) -> str:
    """32 hex digits that change when the level of theory does."""
    return content_hash(labeler.physics())
