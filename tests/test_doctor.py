"""The doctor: what it tries here, and what it says of nodes, stores and workers."""

from __future__ import annotations

import json

import pytest
from cluster_campaign import block, write_cluster_campaign
from emt_campaign import write_campaign

from alchemy import __version__
from alchemy.cli import main
from alchemy.config import load_campaign
from alchemy.config_cluster import Workers
from alchemy.doctor import label_request
from alchemy.doctor_cluster import judge
from alchemy.tasks import label
from alchemy.trials import node_facts, store_round_trip

NODE = {
    "host": "n1", "alchemy": __version__, "python": "3.11.7", "torch": "2.13.0+cpu", "cores": 4,
    "visible": "0", "gpus": [], "store": "",
}  # fmt: skip


def findings(capsys):
    return {row["what"]: row for row in json.loads(capsys.readouterr().out)}


def test_a_step_of_training_and_a_store_are_tried_where_the_campaign_is(tmp_path, capsys):
    assert main(["doctor", str(write_campaign(tmp_path)), "--json"]) == 0
    found = findings(capsys)
    assert found["training"]["ok"]
    assert "one step of nano on" in found["training"]["text"]
    assert found["store"]["text"].endswith(str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["campaign.yaml", "cu.xyz"]  # nothing stays


def test_a_folder_that_cannot_hold_a_store_is_said(tmp_path):
    assert store_round_trip(tmp_path) == ""
    assert "No such file" in store_round_trip(tmp_path / "gone")


@pytest.mark.parametrize("where", ["local", "inline"])
def test_a_batch_system_is_tried_for_campaigns_that_use_it(tmp_path, capsys, where):
    assert main(["doctor", str(write_campaign(tmp_path, where=where)), "--on", "slurm"]) == 2
    assert f"run.where: slurm; its run.where is {where}" in capsys.readouterr().err
    assert main(["doctor", "--on", "slurm"]) == 2
    assert "no campaign is named" in capsys.readouterr().err


def test_a_missing_batch_system_is_a_finding(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    path = write_cluster_campaign(tmp_path, block())
    assert main(["doctor", str(path), "--on", "slurm", "--json"]) == 3
    assert "sbatch, squeue, scancel not found in PATH" in findings(capsys)["Slurm"]["text"]


@pytest.mark.parametrize(
    ("change", "gpus", "said"),
    [
        ({}, 0, "job 7 on n1: Python 3.11.7, torch 2.13.0+cpu, 4 cores"),
        ({"gpus": ["H100", "H100"]}, 2, "4 cores, H100, H100"),
    ],
)
def test_a_node_that_has_what_is_asked_for_is_fine(change, gpus, said):
    ok, text = judge({**NODE, **change}, Workers.model_validate({"gpus": gpus}), "7")
    assert ok
    assert said in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "1 GPU asked for, and torch 2.13.0+cpu sees 0 (CUDA_VISIBLE_DEVICES=0)"),
        ({"alchemy": "0.0.1"}, f"alchemy 0.0.1 there, {__version__} here; see run.cluster.python"),
        ({"store": "Permission denied"}, "a store in the campaign's folder: Permission denied"),
    ],
)
def test_a_node_that_lacks_something_is_told_from_one_that_fits(change, said):
    ok, text = judge({**NODE, **change}, Workers.model_validate({"gpus": 1}), "7")
    assert not ok
    assert said in text


def test_facts_of_this_node_fit_a_worker_without_gpus(tmp_path):
    facts = node_facts(tmp_path)
    assert set(facts) == set(NODE)
    assert judge(facts, Workers(), "7")[0]


def test_the_label_of_a_trial_needs_no_folder_that_is_there_before(tmp_path):
    campaign = load_campaign(write_campaign(tmp_path))
    request = label_request(campaign, "emt", tmp_path)
    assert not (tmp_path / "labels").exists()
    assert label(request)["status"] == "ok"
