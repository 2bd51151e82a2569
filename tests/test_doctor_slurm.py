"""`alchemy doctor --on slurm` and the batch jobs of labels: partitions tried by one-minute jobs. -m slurm."""

from __future__ import annotations

import json

import pytest
from batch_helpers import CAMPAIGN, Place
from slurm_fixture import Slurm

pytestmark = pytest.mark.slurm

TWO = """\
fidelities:
  emt: {labeler: ase, calculator: alchemy_moody.Moody, target: true}
  other: {labeler: ase, calculator: ase.calculators.emt.EMT}
"""


def doctor(place: Place, code: int) -> dict[tuple[str, bool | None], str]:
    found, said = place.call("doctor", "campaign.yaml", "--on", "slurm", "--json")
    assert found == code, said
    return {(row["what"], row["ok"]): row["text"] for row in json.loads(said)}


def test_every_partition_of_labels_is_tried_with_a_label_at_each_of_its_levels(slurm: Slurm, tmp_path):
    place = Place(tmp_path)
    labels = "{where: slurm, partition: debug, fidelities: {other: {partition: short, memory: 100 MB}}}"
    begin = CAMPAIGN.index("fidelities:\n")
    text = CAMPAIGN[:begin] + TWO + CAMPAIGN[CAMPAIGN.index("model:\n") :]
    place.campaign.write_text(text.replace("LABELS", labels), encoding="utf-8")
    before = sorted(path.name for path in tmp_path.iterdir())
    found = doctor(place, 0)
    assert " on " in found["label job, debug", True]
    assert " on " in found["label job, short", True]
    number = found["label job, short", True].split()[1]
    job = slurm.job(number)
    assert (job["Partition"], job["TimeLimit"]) == ("short", "00:01:00")
    assert f"Cu2 in job {number} on" in found["other", True]
    assert "Cu2 in job" in found["emt", True]
    slurm.wait(lambda: slurm.queue() == {}, timeout_s=20)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert [name for name in left if name not in (*before, "computed", "__pycache__")] == []


@pytest.mark.parametrize(
    ("labels", "title", "words"),
    [
        ("{where: slurm, partition: nosuch}", "label job, nosuch", ("invalid partition", "run.labels (emt)")),
        ("{where: slurm, nodes: 3, tasks: 3}", "label job", ("will never start", "PartitionNodeLimit")),
        ("{where: slurm, setup: wrong.sh}", "label job", ("before its first label", "nosuchmodule")),
        ("{where: slurm, memory: 900 GB}", "label job", ("sbatch:", "run.labels (emt)")),
    ],
)
def test_what_is_wrong_with_a_partition_is_said_in_the_scheduler_s_words(
    slurm: Slurm, tmp_path, labels, title, words
):
    (tmp_path / "wrong.sh").write_text("nosuchmodule load pbe\n")
    found = doctor(Place(tmp_path, labels), 3)
    for word in words:
        assert word.lower() in found[title, False].lower(), found
    slurm.wait(lambda: slurm.queue() == {}, timeout_s=20)  # nothing of ours waits for ever


def test_a_label_that_dies_or_takes_too_long_for_the_trial_is_told_from_a_partition_that_does_not_work(
    slurm: Slurm, tmp_path
):
    place = Place(tmp_path, "{where: slurm, partition: debug}")
    setup = tmp_path / "die.sh"
    setup.write_text(f"echo die > {tmp_path}/mood\n")  # only where the job runs
    place.labels("{where: slurm, partition: debug, setup: die.sh}")
    found = doctor(place, 3)
    assert ("label job, debug", True) in found
    assert "killed by SIGKILL" in found["emt", False]
    place.mood("")
    setup.write_text(f"echo sleep 120 > {tmp_path}/mood\n")
    process = place.start("doctor", "campaign.yaml", "--on", "slurm", "--json")
    slurm.wait(lambda: "RUNNING" in slurm.queue().values(), timeout_s=60)
    slurm.wait(lambda: "sleep" in (tmp_path / "mood").read_text())
    slurm.out_of_time(next(iter(slurm.queue())))
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    rows = {(row["what"], row["ok"]): row["text"] for row in json.loads(said)}
    assert "does not fit into the minute of the trial" in rows["emt", None]
