"""The status: the numbers of the JSON, for machines and for people."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from alchemy.errors import InputError
from alchemy.status import render_status, status


def round_tree(index: int, **more: Any) -> dict[str, Any]:
    return {
        "round": index,
        "target": "pbe",
        "fidelities": ["gfn2", "pbe"],
        "train": {
            "members": 4,
            "labels": {"gfn2": 90 + index, "pbe": 12 + 4 * index},
            "cpu_s": 30.0,
        },
        "test": {"pbe": {"frames": 12, "force_rmse_eV_per_A": 0.25 / (index + 1)}},
        "baselines": {"gfn2": {"force_rmse_eV_per_A": 0.4}},
        "stop": None,
    } | more


def bought(index: int) -> dict[str, Any]:
    return {
        "explore": {
            "candidates": 64,
            "force_calls": 900,
            "outcomes": {"finished": 8},
            "cpu_s": 5.0,
        },
        "select": {"picked": [{"uid": "ab" * 16}] * 4, "rejected": {"budget": 60}},
        "label": {
            "gfn2": {"ok": 1, "failed": {}, "cpu_s": 0.5},
            "pbe": {"ok": 4, "failed": {"scf-not-converged": 1}, "cpu_s": 20.0},
        },
        "fresh": {
            "pbe": {
                "frames": 4,
                "force_rmse_eV_per_A": 0.31,
                "coverage_90": 0.875,
                "random": {"frames": 1, "force_rmse_eV_per_A": 0.2},
            }
        },
        "cost": {
            "labels_cpu_s": {"gfn2": 1.0, "pbe": 100.0 + 20 * index},
            "cumulative_labels": {"gfn2": 91 + index, "pbe": 16 + 4 * index},
        },
    }


def campaign(directory: Path, *trees: dict[str, Any]) -> Path:
    for tree in trees:
        folder = directory / "rounds" / f"{tree['round']:03d}"
        folder.mkdir(parents=True)
        (folder / "round.json").write_text(json.dumps(tree))
    (directory / "campaign.json").write_text(json.dumps({"name": "urea", "target": "pbe"}))
    return directory


def shown(summary: dict[str, Any], width: int = 120) -> str:
    console = Console(width=width, record=True, color_system=None)
    with console.capture() as capture:
        console.print(render_status(summary))
    return " ".join(capture.get().split())


STOP = {"rule": "rounds", "message": "2 rounds were asked for", "exit_code": 0}


def test_the_summary_repeats_the_numbers_of_the_json(tmp_path: Path) -> None:
    summary = status(
        campaign(
            tmp_path,
            round_tree(0, **bought(0)),
            round_tree(1, **bought(1)),
            round_tree(2, stop=STOP),
        )
    )
    assert summary["name"] == "urea" and summary["target"] == "pbe"
    assert summary["rounds_done"] == 3 and summary["current_round"] == 2
    assert summary["labels"] == {"gfn2": 92, "pbe": 20}
    assert summary["labels_cpu_s"] == {"gfn2": 1.0, "pbe": 120.0}
    assert summary["train_cpu_s"] == 90.0 and summary["explore_cpu_s"] == 10.0
    assert summary["failed"] == {"pbe": {"scf-not-converged": 2}}
    assert summary["baselines_meV_per_A"] == {"gfn2": 400.0}
    assert summary["stop"] == STOP
    row = summary["rounds"][1]
    assert (row["target_labels"], row["all_labels"]) == (16, 107)
    assert row["test_force_rmse_meV_per_A"] == pytest.approx(125.0)
    assert row["fresh_force_rmse_meV_per_A"] == pytest.approx(310.0)
    assert row["fresh_random_force_rmse_meV_per_A"] == pytest.approx(200.0)
    assert (row["coverage_90"], row["candidates"], row["picked"]) == (0.875, 64, 4)
    assert row["label_cpu_s"] == pytest.approx(20.5)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_people_see_the_same_numbers_and_the_stop_line(tmp_path: Path) -> None:
    text = shown(status(campaign(tmp_path, round_tree(0, **bought(0)), round_tree(1, stop=STOP))))
    for word in (
        "250.0",
        "125.0",
        "310.0",
        "88%",
        "64",
        "20.5",
        "gfn2 alone 400.0 meV/Å",
        "1 failed pbe labels (scf-not-converged 1)",
        "stopped by rounds: 2 rounds were asked for (exit code 0)",
    ):
        assert word in text


def test_a_running_round_is_not_done_and_shows_its_finished_stages(tmp_path: Path) -> None:
    directory = campaign(tmp_path, round_tree(0, **bought(0)), round_tree(1))
    stages = {"stages": {"train": {"members": 4}, "explore": {}}}
    (directory / "rounds" / "001" / "state.json").write_text(json.dumps(stages))
    summary = status(directory)
    assert [row["done"] for row in summary["rounds"]] == [True, False]
    assert summary["rounds_done"] == 1 and summary["stop"] is None
    assert summary["stages_finished"] == ["train", "explore"]
    assert "not stopped: round 1; finished stages: train, explore" in shown(summary)


def test_a_round_that_has_only_state_is_the_current_one(tmp_path: Path) -> None:
    folder = tmp_path / "rounds" / "000"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps({"stages": {"start": {}}}))
    summary = status(tmp_path)
    assert summary["current_round"] == 0 and summary["rounds_done"] == 0
    assert "finished stages: start" in shown(summary)


def test_unknown_numbers_are_null_and_a_dash(tmp_path: Path) -> None:
    tree = round_tree(0, test={"pbe": {"force_rmse_eV_per_A": math.nan}}, train=None, label=None)
    summary = status(campaign(tmp_path, tree))
    row = summary["rounds"][0]
    assert row["test_force_rmse_meV_per_A"] is None and row["target_labels"] is None
    json.dumps(summary, allow_nan=False)
    assert "–" in shown(summary) and "nan" not in shown(summary)


def test_names_are_text_and_not_markup(tmp_path: Path) -> None:
    stop = {"rule": "[red]x[/red]", "message": "[/]", "exit_code": 4}
    tree = round_tree(0, stop=stop, target="[b]pbe", fidelities=["[b]pbe"])
    text = shown(status(campaign(tmp_path, tree)))
    assert "[red]x[/red]: [/] (exit code 4)" in text and "[b]pbe" in text


def test_a_directory_that_is_no_campaign_is_an_input_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match="not a campaign"):
            status(path)


def test_a_campaign_before_its_first_round_has_a_status(tmp_path: Path) -> None:
    (tmp_path / "rounds").mkdir()
    summary = status(tmp_path)
    assert summary["rounds"] == [] and summary["current_round"] is None
    assert "no round has begun" in shown(summary)
