"""docs/labelers.md: what it shows is accepted."""

import inspect
import re
from importlib.resources import files
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from alchemy.plugins import find, installed

TEXT = (Path(__file__).parent.parent / "docs" / "labelers.md").read_text(encoding="utf-8")
SHOWN = [
    (name, dict(options))
    for block in re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    for name, options in YAML(typ="safe").load(block)["fidelities"].items()
]


@pytest.mark.parametrize(("name", "options"), SHOWN, ids=[options["labeler"] for _, options in SHOWN])
def test_the_options_of_the_examples_exist_and_are_of_the_right_type(name, options):
    factory = find("labelers", options.pop("labeler"))
    assert set(options) <= set(inspect.signature(factory).parameters)
    made = factory(**options)  # without physics(): data files may be missing on this machine
    assert {key: getattr(made, key) for key in options} == options


def test_every_labeler_and_template_is_listed():
    rows = re.findall(r"^\| `(\w+)` \|.*\| (.*) \|$", TEXT, re.MULTILINE)
    listed = dict(rows[: len(installed("labelers"))])
    assert set(listed) == set(installed("labelers"))
    for name, told in listed.items():
        own = getattr(find("labelers", name), "own_template", None)
        if own is not None:
            assert Path(own).name in told
            assert files("alchemy_templates").joinpath(own).is_file()
