"""Labelers that are programs: the ladder, the lock on physics, limits, orphans, messages."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from label_helpers import label, water
from program_helpers import ENGINE, TEMPLATE, FakeLabeler

from alchemy.errors import EnvironmentProblemError, InputError
from alchemy.labelers.base import LabelFailureError, fingerprint
from alchemy.labelers.programs import check_geometry
from alchemy.processes import run_program


@pytest.fixture
def fake(tmp_path):
    template = tmp_path / "fake.j2"
    template.write_text(TEMPLATE)
    return lambda **options: FakeLabeler(**{"template": str(template), **options})


@pytest.fixture
def root(tmp_path):
    (tmp_path / "labels").mkdir()
    return tmp_path / "labels"


def directory_of(root):
    (found,) = [path for path in root.iterdir() if path.is_dir()]
    return found


def is_running(pid):
    """Dead but not reaped is dead: nobody reaps in a container without init."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def eventually(condition, limit_s=10.0):
    until = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


# --- the way from structure to numbers ------------------------------------------------------------


def test_a_program_labels_a_structure_and_leaves_its_files(fake, root):
    record = label(water(), fake(threads=3), root)
    assert (record.status, record.code) == ("ok", "fake 4.2")
    step = np.diff(water().positions, axis=0)
    assert record.energy_eV == pytest.approx(0.5 * (step**2).sum(), abs=1e-12)  # order of the sum
    assert record.forces_eV_per_A[0] == pytest.approx(step[0], abs=1e-12)
    directory = directory_of(root)
    assert json.loads((directory / "output.json").read_text())["rung"] == "as asked"
    assert (directory / "threads").read_text() == "3"
    assert not (directory / "scratch.wfc").exists()
    assert "atom = O" in (directory / "fake.in").read_text()


def test_an_unconverged_run_climbs_the_ladder_and_the_record_says_so(fake, root):
    record = label(water(), fake(behaviour="hard"), root)
    directory = directory_of(root)
    assert record.status == "ok"
    assert json.loads((directory / "output.json").read_text())["rung"] == "gentlest"
    inputs = [directory / "rung-0", directory / "rung-1", directory]
    texts = [(place / "fake.in").read_text() for place in inputs]
    assert ["mixing = 0.7" in texts[0], "mixing = 0.3" in texts[1], "mixing = 0.1" in texts[2]] == [True] * 3
    # nothing but the path differs between the rungs
    assert len({re.sub(r"mixing = 0\.\d", "", text) for text in texts}) == 1
    assert "NOT CONVERGED" in (directory / "rung-0" / "fake.out").read_text()


def test_a_ladder_that_ends_is_a_failure_that_tells_what_was_tried(fake, root):
    record = label(water(), fake(behaviour="hard", retries=1), root)
    assert (record.status, record.reason) == ("failed", "scf-not-converged")
    assert record.message == "as asked: residual 0.1; gentle (mixing 0.3): residual 0.1"
    mine = fake(behaviour="hard", ladder={"mine": {"mixing": 0.15}})
    assert label(water(), mine, root, attempt=2).status == "ok"


def test_a_label_made_again_after_a_kill_reads_the_output_instead(fake, root):
    labeler = fake()
    label(water(), labeler, root)
    directory = directory_of(root)
    (directory / "record.json").unlink()  # the worker died between output and record
    (directory / "result.json").unlink()
    assert label(water(), labeler, root).status == "ok"
    assert not (directory / "result.json").exists()  # the program did not run


def test_what_a_killed_run_left_is_not_taken_for_an_output(fake, root):
    label(water(), fake(), root)
    directory = directory_of(root)
    for name in ("record.json", "output.json"):
        (directory / name).unlink()
    (directory / "rung-0").mkdir()
    record = label(water(), fake(behaviour="stop"), root)
    assert (record.reason, (directory / "result.json").exists()) == ("truncated-output", False)
    assert not (directory / "rung-0").exists()


# --- failures, each by its name -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("behaviour", "reason", "message"),
    [
        ("crash", "truncated-output", "the last line is missing"),
        ("stop", "truncated-output", "the last line is missing"),
        ("moved", "geometry-mismatch", r"atom 0 \(O\) is 0.0100 Å from its place"),
        ("segfault", "truncated-output", "last line"),
        ("killed", "program-killed", r"killed by SIGKILL 3 times \(out of memory\?\)"),
    ],
)
def test_failures_become_records_with_a_reason(behaviour, reason, message, fake, root):
    record = label(water(), fake(behaviour=behaviour), root)
    assert (record.status, record.reason) == ("failed", reason)
    assert re.search(message, record.message)
    assert not list(directory_of(root).glob("rung-*"))  # the ladder is for the SCF only


def test_a_program_that_somebody_kills_once_is_run_again(fake, root):
    assert label(water(), fake(behaviour="killed-once"), root).status == "ok"


def test_the_time_limit_ends_the_program_and_all_that_it_started(fake, root):
    labeler = fake(behaviour="sleep", timeout_s=1.0)
    record = label(water(), labeler, root)
    assert (record.reason, record.message) == ("out-of-time", "fake was stopped after timeout_s = 1 s")
    pids = (directory_of(root) / "pids").read_text().split()
    assert len(pids) == 2
    assert not any(is_running(pid) for pid in pids)


def test_nothing_stays_behind_when_the_program_ends(fake, root):
    assert label(water(), fake(behaviour="orphan"), root).status == "ok"
    assert not any(is_running(pid) for pid in (directory_of(root) / "pids").read_text().split())


def test_a_killed_worker_takes_its_programs_with_it(fake, root, tmp_path):
    from ase.io import write

    write(tmp_path / "water.xyz", water())
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path; from label_helpers import label, water\n"
        "from program_helpers import FakeLabeler\n"
        "label(water(), FakeLabeler(template=sys.argv[2], behaviour='sleep'), Path(sys.argv[3]))\n"
    )
    arguments = [str(ENGINE.parent), str(tmp_path / "fake.j2"), str(root)]
    worker = subprocess.Popen([sys.executable, "-c", script, *arguments])
    assert eventually(lambda: list(root.glob("*/pids")) and (directory_of(root) / "pids").read_text(), 60)
    pids = (directory_of(root) / "pids").read_text().split()
    assert all(is_running(pid) for pid in pids)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    assert eventually(lambda: not any(is_running(pid) for pid in pids))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"command": "no-such-program {input}"}, r"'no-such-program' is not in PATH.*option `command`"),
        ({"command": "/no/such/program {input}"}, "there is no program /no/such/program"),
        ({"command": f"sh -c 'exec missing-{os.getpid()}'"}, "not found"),
        ({"behaviour": "full"}, "No space left on device; make room"),
    ],
)
def test_what_is_wrong_around_us_stops_the_campaign_and_records_nothing(options, message, fake, root):
    with pytest.raises(EnvironmentProblemError, match=message):
        label(water(), fake(**options), root)
    assert not (directory_of(root) / "record.json").exists()
    assert not (directory_of(root) / "output.json").exists()


# --- the lock on physics --------------------------------------------------------------------------


def test_the_fingerprint_follows_physics_template_and_data(fake, tmp_path):
    plain = fingerprint(fake())
    same = fake(mixing=0.2, threads=4, retries=0, timeout_s=5.0, command="other {input}", behaviour="x")
    assert fingerprint(same) == plain
    assert fingerprint(fake(stiffness_eV_per_A2=2.0)) != plain

    def edited(old, new):
        assert old in TEMPLATE
        path = tmp_path / "mine.j2"
        path.write_text(TEMPLATE.replace(old, new))
        return fingerprint(fake(template=str(path)))

    assert edited("a comment of", "another comment of") == plain
    assert edited("{{ stiffness_eV_per_A2 }}", "{{ stiffness_eV_per_A2 }}\ndispersion = d3") != plain
    data = tmp_path / "X.upf"
    marks = []
    for content in ("one", "other"):
        data.write_text(content)
        marks.append(fingerprint(fake(data=str(data))))
    assert len({plain, *marks}) == 3
    (tmp_path / "elsewhere").mkdir()
    moved = data.rename(tmp_path / "elsewhere" / "Y.upf")
    assert fingerprint(fake(data=str(moved))) == marks[1]  # content counts, not the place
    with pytest.raises(InputError, match=r"gone\.upf cannot be read"):
        fake(data=str(tmp_path / "gone.upf")).physics()


def test_a_rung_may_not_change_physics(fake):
    with pytest.raises(InputError, match=r"'softer': 'stiffness_eV_per_A2' is physics.*mixing"):
        fake(ladder={"softer": {"stiffness_eV_per_A2": 0.5}})
    with pytest.raises(InputError, match="no option 'mixin'; did you mean 'mixing'"):
        fake(ladder={"gentle": {"mixin": 0.1}})
    with pytest.raises(InputError, match="mixing is 'soft'"):
        fake(ladder={"gentle": {"mixing": "soft"}})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixing": "much"}, "mixing is 'much': Input should be a valid number"),
        ({"threads": True}, "threads is True"),
        ({"threads": 0}, "threads ≥ 1"),
        ({"stiffness_eV_per_A2": float("nan")}, "stiffness_eV_per_A2 is nan"),
        ({"command": "fake {inptu}"}, "command 'fake {inptu}': 'inptu'; it may name"),
        ({"command": "fake 'open"}, "No closing quotation"),
        ({"command": "  "}, "the command is empty"),
    ],
)
def test_wrong_options_are_named_when_the_labeler_is_made(options, message, fake):
    with pytest.raises(InputError, match=message):
        fake(**options)


def test_a_template_with_an_unknown_variable_is_refused_before_the_first_label(fake, tmp_path):
    path = tmp_path / "mine.j2"
    path.write_text("{% if pbc[0] %}{{ mixng }}{% endif %}")  # a branch that molecules never take
    with pytest.raises(InputError, match=r"mine\.j2: 'mixng' is undefined; did you mean 'mixing'"):
        fake(template=str(path)).physics()
    path.write_text("{% if %}")
    with pytest.raises(InputError, match=r"mine\.j2 line 1"):
        fake(template=str(path)).physics()


# --- pieces ---------------------------------------------------------------------------------------


def test_outputs_of_another_structure_are_refused():
    asked = Atoms("CO", [[0, 0, 0], [0, 0, 1.1]], cell=[5, 5, 5], pbc=True)
    wrapped = asked.copy()
    wrapped.positions += [[5.0, 0, -5], [0, 1e-5, 0]]
    check_geometry(asked, wrapped)
    for change, message in (
        (lambda a: a.set_chemical_symbols(["O", "C"]), "another order"),
        (lambda a: a.positions.__iadd__(0.01), "atom . .* is 0.0173 Å"),
        (lambda a: a.set_cell([5, 5, 5.01]), "cells differ by 0.0100 Å"),
    ):
        other = asked.copy()
        change(other)
        with pytest.raises(LabelFailureError, match=message):
            check_geometry(asked, other)


def test_arguments_reach_the_program_as_they_are(tmp_path):
    out, err = tmp_path / "out", tmp_path / "err"
    nasty = "a b; touch owned $(touch owned) 'x\""
    script = "import sys, os; print(sys.argv[1]); print(sys.stdin.read()); print(os.environ.get('GONE'))"
    os.environ["GONE"] = "here"
    arguments = [sys.executable, "-c", script, nasty]
    done = run_program(arguments, tmp_path, stdout=out, stderr=err, environment={"GONE": None})
    assert (done.code, out.read_text()) == (0, f"{nasty}\n\nNone\n")
    assert not (tmp_path / "owned").exists()
    done = run_program([sys.executable, "-c", "raise SystemExit(7)"], tmp_path, stdout=out, stderr=err)
    assert (done.code, done.timed_out) == (7, False)
