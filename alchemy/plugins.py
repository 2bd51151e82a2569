"""Entry-point lookup: built-in and third-party labelers and policies come through the same door."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from alchemy.errors import AlchemyError, EnvironmentProblemError, InputError, PluginError
from tace.errors import TaceError
from tace.wording import hint


def _group(kind: str) -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=f"alchemy.{kind}"))


def installed(kind: str) -> list[str]:
    """Names in entry-point group `alchemy.<kind>`, sorted."""
    return sorted({point.name for point in _group(kind)})


def find(kind: str, name: str) -> Any:
    """Load entry point `name` of group `alchemy.<kind>`; no other plugin is imported."""
    points = _group(kind)
    # an editable install can list one distribution twice: only different targets or owners clash
    hits = {(_owner(point), point.value): point for point in points if point.name == name}
    if not hits:
        listed = hint(name, (point.name for point in points), label="installed")
        raise PluginError(f"there is no '{name}' in alchemy.{kind}; {listed}")
    if len(hits) > 1:
        owners = ", ".join(sorted(f"{owner} ({target})" for owner, target in hits))
        raise PluginError(
            f"'{name}' in alchemy.{kind} is defined more than once: {owners}; uninstall one"
        )
    (point,) = hits.values()
    try:
        return point.load()
    except ImportError as error:
        raise EnvironmentProblemError(
            f"'{name}' of alchemy.{kind} ({point.value}) cannot be imported: {error}"
        ) from error
    except AttributeError as error:
        raise PluginError(
            f"'{name}' of alchemy.{kind} points to {point.value}, which does not exist: {error}"
        ) from error


def construct(kind: str, name: str, options: Mapping[str, Any]) -> Any:
    """What entry point `name` makes of its options.

    Raises:
        PluginError, EnvironmentProblemError: as `find`.
        InputError: it does not take them.
    """
    factory = find(kind, name)
    parameters = inspect.signature(factory).parameters
    if not any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values()):
        for option in options:
            if option not in parameters:
                raise InputError(f"{name}.{option}: {name} has no such option; {hint(option, parameters)}")
    try:
        return factory(**options)
    except (TypeError, ValueError, TaceError) as error:
        raise InputError(f"{name} does not accept its options: {error}") from error


@contextmanager
def blamed_on(kind: str, made: object) -> Iterator[None]:
    """An exception of another package's code names it, and is no bug of ours.

    Raises:
        EnvironmentProblemError: in place of any exception, unless `made` is one of alchemy_policies.
    """
    try:
        yield
    except (AlchemyError, TaceError):
        raise
    except Exception as error:
        module = getattr(made, "__module__", "")
        if module.partition(".")[0] == "alchemy_policies":
            raise
        label = getattr(made, "__name__", type(made).__name__)
        raise EnvironmentProblemError(
            f"{kind} {label} of {module} failed: {type(error).__name__}: {error}"
        ) from error


def _owner(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "an unknown distribution"
