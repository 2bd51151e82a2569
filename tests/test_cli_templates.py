"""`alchemy templates`: what there is, its text, and a copy to edit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alchemy import cli
from alchemy.cli_templates import KINDS


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    def runner(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(["templates", *arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return runner


def test_every_template_is_listed_with_a_line_that_says_what_it_is(run) -> None:
    code, out, _ = run("list", "--json")
    rows = json.loads(out)
    assert code == 0
    assert {("labelers", "pyscf"), ("labelers", "tblite"), ("campaigns", "metal")} <= {
        (row["kind"], row["name"]) for row in rows
    }
    assert {row["kind"] for row in rows} <= set(KINDS)
    for row in rows:
        assert len(row["what"].split()) >= 4, row
    code, out, _ = run("list")
    assert code == 0 and all(row["what"] in out for row in rows)


def test_a_copy_is_what_show_prints_and_says_which_key_to_point_to_it(run, tmp_path: Path) -> None:
    copied = tmp_path / "new" / "mine.j2"
    code, said, _ = run("copy", "tblite", "--to", str(copied))
    assert code == 0
    assert "'template:'" in said and str(copied) in said
    for name in ("tblite", "labelers/tblite", "tblite.yaml.j2"):
        assert run("show", name)[1] == copied.read_text()


def test_a_copy_into_a_folder_keeps_the_file_name(run, tmp_path: Path) -> None:
    assert run("copy", "campaigns/metal", "--to", str(tmp_path))[0] == 0
    assert (tmp_path / "metal.yaml").is_file()


def test_a_file_that_exists_is_overwritten_only_with_force(run, tmp_path: Path) -> None:
    mine = tmp_path / "mine.j2"
    mine.write_text("edited")
    code, _, error = run("copy", "pyscf", "--to", str(mine))
    assert code == 2 and "--force" in error
    assert mine.read_text() == "edited"
    assert run("copy", "pyscf", "--to", str(mine), "--force")[0] == 0
    assert mine.read_text() == run("show", "pyscf")[1]


def test_an_unknown_name_is_answered_with_the_nearest(run) -> None:
    code, _, error = run("show", "tblit")
    assert code == 2 and "'tblite'" in error
