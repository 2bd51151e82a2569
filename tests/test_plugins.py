"""Entry points: found by name, and every mistake names its remedy."""

from dataclasses import dataclass
from importlib.metadata import EntryPoint

import pytest
from alchemy_policies.stops import Rounds

from alchemy import plugins
from alchemy.errors import EnvironmentProblemError, InputError, PluginError


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


@dataclass
class Never:
    """A stop rule of another package."""

    rounds: int = 3

    def __post_init__(self):
        if self.rounds < 1:
            raise ValueError("rounds must be positive")

    def __call__(self, history):
        return history[self.rounds]


def test_options_that_a_plugin_does_not_take_are_named(monkeypatch):
    install(monkeypatch, Owned("never", f"{__name__}:Never", "mine"))
    assert plugins.construct("stops", "never", {"rounds": 2}).rounds == 2
    with pytest.raises(InputError, match=r"never\.round: never has no such option; did you mean 'rounds'"):
        plugins.construct("stops", "never", {"round": 2})
    with pytest.raises(InputError, match="never does not accept its options: rounds must be positive"):
        plugins.construct("stops", "never", {"rounds": 0})


def test_an_exception_of_another_packages_rule_names_it_and_one_of_ours_is_a_bug():
    said = r"stop rule Never of .*: IndexError: list index"
    with pytest.raises(EnvironmentProblemError, match=said), plugins.blamed_on("stop rule", Never()):
        Never()([])
    with pytest.raises(IndexError), plugins.blamed_on("stop rule", Rounds(3)):
        [][0]
