"""What a round says of walks and labels that were in vain, and how numbers with units are shown."""

from types import SimpleNamespace

import pytest

from alchemy.sampling import Order, keys_of
from alchemy.stages.watch import watch_labels, watch_walks
from alchemy.status import _text


@pytest.fixture
def said():
    return []


@pytest.fixture
def context(said):
    return SimpleNamespace(progress=SimpleNamespace(message=said.append))


def walks(*outcomes):
    found = [{"outcome": o, "max_expected_error_eV_per_A": 4.0 + n} for n, o in enumerate(outcomes)]
    return {"walkers": found}


def test_walkers_that_were_all_too_unsure_are_told_with_their_least_error(context, said):
    documents = [walks("abort", "abort"), walks("abort", "finished"), walks()]
    watch_walks(context, [{"explorer": name} for name in ("md", "ts", "mine")], documents)
    assert len(said) == 1
    assert "md: all of 2 walkers aborted, as the expected error, 4 eV/A or more, exceeds" in said[0]


def test_labels_that_failed_are_told_with_their_reasons(context, said):
    facts = {"pbe": {"ok": 1, "failed": {"scf": 2, "out-of-time": 1}}, "xtb": {"ok": 3, "failed": {}}}
    assert watch_labels(context, facts) is facts
    assert said == ["3 of 4 pbe labels failed: 1 out-of-time, 2 scf"]


def test_large_errors_fit_the_table_of_status_in_whole():
    assert _text(10735.6, ".1f") == "10736"
    assert _text(75.44, ".1f") == "75.4"


def test_defaults_of_samplers_have_their_units():
    rows = {row["key"]: row["default"] for row in keys_of(Order("slab", {}, 0, (), None, None))}
    assert (rows["vacuum"], rows["repeat"], rows["bare"]) == ("8 A", "[1, 1]", "true")
