"""Entry-point lookup: built-in and third-party labelers and policies come through the same door."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from alchemy.errors import EnvironmentProblemError, PluginError
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


def _owner(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "an unknown distribution"
