"""Entry points: found by name, and every mistake names its remedy."""

from importlib.metadata import EntryPoint

import pytest

from alchemy import plugins
from alchemy.errors import EnvironmentProblemError, PluginError


class Owned:
    """An entry point with a distribution; the real one is set by the metadata reader."""

    def __init__(self, name, value, owner):
        self.name, self.value, self._point = name, value, EntryPoint(name, value, "alchemy.x")
        self.dist = type("Distribution", (), {"name": owner})

    def load(self):
        return self._point.load()


def install(monkeypatch, *points):
    monkeypatch.setattr(plugins, "entry_points", lambda group: list(points))


def test_the_built_in_labelers_are_found_by_name():
    assert {"ase", "emt", "pyscf", "tblite"} <= set(plugins.installed("labelers"))
    assert plugins.find("labelers", "emt").__name__ == "EmtLabeler"


def test_an_unknown_name_is_answered_with_the_nearest_and_all_installed():
    with pytest.raises(PluginError, match=r"no 'pyscff'.*did you mean 'pyscf'\?.*installed: .*emt"):
        plugins.find("labelers", "pyscff")
    with pytest.raises(PluginError, match=r"no 'zzz' in alchemy\.nothing; installed: none"):
        plugins.find("nothing", "zzz")


def test_a_name_defined_by_two_distributions_names_both(monkeypatch):
    install(monkeypatch, Owned("a", "json:loads", "one"), Owned("a", "json:dumps", "two"))
    with pytest.raises(
        PluginError, match=r"more than once: one \(json:loads\), two \(json:dumps\)"
    ):
        plugins.find("x", "a")


def test_one_distribution_seen_twice_is_not_a_clash(monkeypatch):
    install(monkeypatch, Owned("a", "json:loads", "one"), Owned("a", "json:loads", "one"))
    assert plugins.find("x", "a").__name__ == "loads"


def test_only_the_wanted_plugin_is_imported(monkeypatch):
    install(monkeypatch, Owned("a", "json:loads", "one"), Owned("b", "no_such_module:x", "two"))
    assert plugins.find("x", "a")
    with pytest.raises(EnvironmentProblemError, match="no_such_module"):
        plugins.find("x", "b")


def test_a_plugin_that_points_nowhere_is_named(monkeypatch):
    install(monkeypatch, Owned("a", "json:nothing", "one"))
    with pytest.raises(PluginError, match="json:nothing"):
        plugins.find("x", "a")
