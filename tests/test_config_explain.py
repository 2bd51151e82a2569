"""The campaign file told back: every default, the shipped campaigns, the schema, the hash."""

from __future__ import annotations

import copy
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from demo_campaign import GOOD, REPOSITORY, demo_folder
from ruamel.yaml import YAML

from alchemy.config import (
    Campaign,
    campaign_hash,
    campaign_warnings,
    json_schema,
    load_campaign,
    load_campaign_text,
)
from alchemy.config_explain import explain
from alchemy.config_init import INIT_KINDS, init_files
from alchemy.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return demo_folder(tmp_path)


def shipped() -> list[Path]:
    templates = sorted((REPOSITORY / "templates/alchemy_templates/campaigns").glob("*.yaml"))
    return [*templates, REPOSITORY / "runs/urea/campaign.yaml"]


@pytest.mark.parametrize("path", shipped(), ids=lambda path: path.stem)
def test_shipped_campaigns_are_valid_and_have_nothing_to_warn_of(path):
    text = path.read_text()
    assert max(map(len, text.splitlines())) <= 100
    assert campaign_warnings(load_campaign(path)) == []


@pytest.mark.parametrize("path", shipped(), ids=lambda path: path.stem)
def test_the_explained_campaign_is_the_same_campaign(path):
    campaign = load_campaign(path)
    again = load_campaign_text(explain(campaign), "explained.yaml", campaign.base_dir)
    assert again == campaign
    assert campaign_hash(again) == campaign_hash(campaign)


def test_an_explained_table_of_atomic_energies_reads_back(folder):
    table = "e0: {cheap: {H: -0.1 eV, O: -1.5e-7 eV}, dear: {H: -13.6 eV, O: -2041.25 eV}}"
    text = GOOD.replace("e0: compute", table).replace("GFN2-xTB", '"a: b # c", deep: {x: [1, ~]}')
    campaign = load_campaign_text(text, "c.yaml", folder)
    assert campaign.e0["cheap"]["O"] == -1.5e-7  # type: ignore[index]
    assert load_campaign_text(explain(campaign), "x", folder) == campaign


def test_every_key_is_explained_in_one_line(folder):
    def fields(schema: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        blocks = [schema, *schema["$defs"].values()]
        return [item for block in blocks for item in block.get("properties", {}).items()]

    for name, field in fields(json_schema()):
        if name != "path":  # a shorthand of `paths`
            assert 0 < len(field.get("description", "")) <= 90, name
    assert "[default]" in explain(load_campaign_text(GOOD, "c.yaml", folder))


def test_the_hash_follows_values_and_order_of_fidelities_but_not_the_spelling(folder):
    campaign = load_campaign_text(GOOD, "c.yaml", folder)

    def hashed(old: str, new: str) -> str:
        return campaign_hash(load_campaign_text(GOOD.replace(old, new), "c.yaml", folder))

    assert hashed("80 meV/A", "0.08 eV/Å") == campaign_hash(campaign)
    assert hashed("80 meV/A", "81 meV/A") != campaign_hash(campaign)
    lines = GOOD.splitlines(keepends=True)
    lines[5], lines[6] = lines[6], lines[5]
    swapped = load_campaign_text("".join(lines), "c.yaml", folder)
    assert campaign_hash(swapped) != campaign_hash(campaign)


def test_a_campaign_is_frozen_and_survives_pickling(folder):
    campaign = load_campaign_text(GOOD, "c.yaml", folder)
    with pytest.raises(ValueError, match="frozen"):
        campaign.seed = 4  # type: ignore[misc]
    again = pickle.loads(pickle.dumps(campaign))
    assert again == campaign
    assert again.base_dir == folder.resolve()


def violations(value: Any, schema: dict[str, Any], defs: dict[str, Any]) -> list[str]:
    """Enough of JSON schema for ours: an independent reading of what editors will be told."""
    if "$ref" in schema:
        return violations(value, defs[schema["$ref"].rsplit("/", 1)[1]], defs)
    found = []
    for word, least in (("anyOf", 1), ("oneOf", 1)):
        if word in schema:
            fits = [branch for branch in schema[word] if not violations(value, branch, defs)]
            if len(fits) < least or (word == "oneOf" and len(fits) > 1):
                found.append(f"{value!r} fits {len(fits)} of {word}")
    types = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float),
             "boolean": bool, "null": type(None)}  # fmt: skip
    wanted = schema.get("type")
    unfit = wanted and not isinstance(value, types[wanted])
    if unfit or (isinstance(value, bool) and wanted in ("integer", "number")):
        return [*found, f"{value!r} is not {wanted}"]
    if "const" in schema and value != schema["const"]:
        found.append(f"{value!r} is not {schema['const']!r}")
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{value!r} is none of {schema['enum']}")
    if "pattern" in schema and isinstance(value, str) and not re.search(schema["pattern"], value):
        found.append(f"{value!r} does not match {schema['pattern']}")
    if isinstance(value, dict):
        properties, extra = schema.get("properties", {}), schema.get("additionalProperties", True)
        found += [f"{key} is missing" for key in schema.get("required", []) if key not in value]
        for key, child in value.items():
            inner = properties.get(key, extra)
            if inner is False:
                found.append(f"{key} is unknown")
            elif isinstance(inner, dict):
                found += violations(child, inner, defs)
    if isinstance(value, list):
        found += [v for item in value for v in violations(item, schema.get("items", {}), defs)]
    return found


@pytest.mark.parametrize("path", shipped(), ids=lambda path: path.stem)
def test_the_json_schema_accepts_the_shipped_campaigns(path):
    schema = json_schema()
    data = YAML(typ="safe", pure=True).load(path.read_text())
    assert violations(data, schema, schema["$defs"]) == []
    explained = YAML(typ="safe", pure=True).load(explain(load_campaign(path)))
    assert violations(explained, schema, schema["$defs"]) == []
    broken = copy.deepcopy(data)
    broken["model"]["cutof"] = "5 A"
    broken["stop"]["rounds"] = "3"
    assert len(violations(broken, schema, schema["$defs"])) == 2


@pytest.mark.parametrize("kind", list(INIT_KINDS))
def test_init_writes_a_campaign_that_loads_where_it_lands(kind, tmp_path):
    for name, text in init_files(kind).items():
        (tmp_path / name).write_text(text)
    campaign = load_campaign(tmp_path / "campaign.yaml")
    assert isinstance(campaign, Campaign)
    with pytest.raises(InputError, match="did you mean 'metal'"):
        init_files("metall")


def test_loading_a_campaign_starts_neither_torch_nor_ase_nor_dask():
    code = (
        "import sys; from pathlib import Path; from alchemy.config import load_campaign;"
        "load_campaign(Path('runs/urea/campaign.yaml'));"
        "print([m for m in ('torch', 'ase', 'dask', 'distributed') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
