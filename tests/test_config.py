"""The campaign file: every mistake gets its message, line and key; values arrive as they are meant."""

from __future__ import annotations

import re
from importlib.metadata import EntryPoint
from itertools import pairwise
from pathlib import Path

import pytest
from demo_campaign import GOOD, demo_folder

from alchemy import config_fields
from alchemy.config import campaign_warnings, load_campaign, load_campaign_text
from alchemy.config_explain import explain
from alchemy.errors import ConfigError

# (text in GOOD, what a user wrote instead, line of the message, the message after `file:line: `)
BROKEN = [
    # keys
    ("seed: 3", "sead: 3", 4, "sead: unknown key; did you mean 'seed'?"),
    ("preset: nano", "preste: nano", 9, "model.preste: unknown key; did you mean 'preset'?"),
    ("label_above", "label_abov", 20, "stop_md.label_abov: unknown key; did you mean 'label_ab"),
    ("cutoff: 4.5 A", "cutoff_A: 4.5 A", 9, "model.cutoff_A: unknown key; did you mean 'cutoff'?"),
    ("rounds: 2", "bugdet: 2", 22, "stop.bugdet: unknown key; did you mean 'budget'?"),
    ("rounds: 2", "budget: 2", 22, 'stop.budget: found 2; write "2 min", or {cpu: 200 h'),
    ("rounds: 2", "budget: 2 K", 22, 'stop.budget: found "2 K", which is a temperature'),
    ("rounds: 2", "budget: {disk: 2 h}", 22, "stop.budget.disk: found '2 h'; write a size such as"),
    ("{where: local}", "{where: inline, overlap: true}", 23, "run.overlap: true needs workers beside"),
    ("count: 10", "cuont: 10", 13, "start[1].rattle.cuont: unknown key; did you mean 'count'?"),
    ("count: 10, ", "", 13, "start[1].rattle.count: missing; add 'count:' (Rattled copies in all"),
    ("name: demo\n", "", 1, "name: missing; add 'name:' (Names the campaign"),
    ("alchemy: 1\n", "", 1, "alchemy: missing; add 'alchemy:'"),
    ("seed: 3", "name: again", 4, "name: given twice, first in line 2; keep one"),
    ("seed: 3", "7: 3", 4, '7: a key must be text; write "7":'),
    ("seed: 3", "[a, b]: 3", 1, "a key must be text, not a list or mapping"),
    ("  - md: {T", "  - grow: {count: 4}\n  - md: {T", 19, "no such explorer; write 'reico: {method: grow"),
    # types
    ("seed: 3", "seed: '3'", 4, "seed: found '3'; must be a whole number"),
    ("seed: 3", "seed: 3.5", 4, "seed: found 3.5; must be a whole number"),
    ("seed: 3", "seed: true", 4, "seed: found true; must be a whole number"),
    ("seed: 3", "seed:", 4, "seed: found nothing; must be a whole number"),
    ("seed: 3", "seed: 2026-01-01", 4, 'seed: found 2026-01-01, a YAML date; put it in "quotes"'),
    ("{preset: nano, committee: 3, cutoff: 4.5 A}", "nano", 9, "model: found 'nano'; must be a ma"),
    ("{preset: nano, committee: 3, cutoff: 4.5 A}", "", 9, "model: found nothing; must be a map"),
    ("elements: [H, O]", "elements: H", 3, "elements: found 'H'; must be a list, such as [a, b]"),
    ("[300 K, 600 K]", "300 C", 19, 'explore[0].md.T: found "300 C": unknown unit'),
    ("[300 K, 600 K]", "[]", 19, "explore[0].md.T: found an empty list; must have at least 1"),
    ("  - md: {T", "    md: {T", 18, "explore: found a mapping; must be a list"),
    ("name: demo", "name: 7", 2, "name: found 7; must be text"),
    ("target: true", "target: 1", 7, "fidelities.dear.target: found 1; must be true or false"),
    # values
    ("alchemy: 1", "alchemy: 2", 1, "alchemy: found 2; must be 1"),
    ("name: demo", "name: my demo/1", 2, "such as 'my-demo-1'"),
    ("committee: 3", "committee: 1", 9, "model.committee: found 1; must be at least 2"),
    ("seed: 3", "seed: -3", 4, "seed: found -3; must be at least 0"),
    ("rounds: 2", "rounds: -1", 22, "stop.rounds: found -1; must be at least 1"),
    ("per_round: 5", "random: 1.5", 21, "select.random: found 1.5; must be at most 1"),
    ("per_round: 5", "random: .nan", 21, "select.random: found nan; must be a finite number"),
    ("per_round: 5", "dedup: -.inf", 21, "select.dedup: found -inf; must be a finite number"),
    ("method: PBE", "level: .inf", 7, "fidelities.dear.level: found inf; must be a finite"),
    ("preset: nano", "preset: smal", 9, "model.preset: found 'smal'; did you mean 'small'?"),
    ("preset: nano", "preset: 3", 9, "model.preset: found 3; must be nano or small or medium or"),
    ("{where: local}", "{workers: lots}", 23, "run.workers: found 'lots'; known: auto; a number w"),
    ("{where: local}", "{gpus: -1}", 23, "run.gpus: found -1; must be at least 0"),
    ("e0: compute", "e0: computed", 8, "e0: found 'computed'; did you mean 'compute'?"),
    ("[H, O]", "[H, XX]", 3, "elements[1]: found 'XX', not an element symbol"),
    ("[H, O]", "[H, cl]", 3, "elements[1]: found 'cl', not an element symbol; did you mean 'Cl'?"),
    ("[H, O]", "[H, false]", 3, "elements[1]: found false; write an element symbol"),
    ("[H, O]", "[H, H]", 3, "elements: found H twice; keep one"),
    ("[H, O]", "[]", 3, "elements: found an empty list"),
    # quantities
    ("cutoff: 4.5 A", "cutoff: 4.5", 9, 'model.cutoff: found 4.5, a bare number; write "4.5 A"'),
    ("[300 K, 600 K]", "[300 K, 600]", 19, "explore[0].md.T[1]: found 600, a bare number; write "),
    ("80 meV/A", "80 meV", 20, "stop_md.label_above: found \"80 meV\", which is an energy; write "),
    ("80 meV/A", "80 mev/A", 20, "unknown unit 'mev'; did you mean 'meV'?"),
    ("12 h", "600 K", 22, "stop.wall: found \"600 K\", which is a temperature; write a time such"),
    ("0.08 A", "-0.08 A", 13, "start[1].rattle.stdev: found \"-0.08 A\"; must be positive"),
    # names
    ("label: [dear]", "label: [dera]", 17, "test[0].label.dera: found 'dera', no such fidelity; d"),
    ("with: cheap", "with: chaep", 16, "test[0].md.with: found 'chaep', no such fidelity; did you"),
    ("stdev: 0.08 A", "stdev: 0.08 A, relax_with: x", 13, "relax_with: found 'x', no such fidelit"),
    ("per_round: 5", "per_round: {pbe: 5}", 21, "select.per_round.pbe: found 'pbe', no such fidel"),
    ("labels: 40", "labels: {pbe: 4}", 22, "stop.labels.pbe: found 'pbe', no such fidelity"),
    ("labeler: tblite", "labeler: tblit", 6, "no such labeler; did you mean 'tblite'?"),
    ("labeler: tblite, ", "", 6, "fidelities.cheap.labeler: missing; add 'labeler:'"),
    ("per_round: 5", "method: calibrate", 21, "no such selector; did you mean 'calibrated'?"),
    ("  - md: {T", "  - mb: {T", 19, "explore[0]: found 'mb', no such explorer; did you mean 'md'"),
    ("method: GFN2-xTB", "target: true", 7, "fidelities.dear.target: found a second target"),
    # items
    ("  - files: {path: a.xyz}\n    l", "  - l", 11, "start[0]: found no source of structures; ad"),
    ("[cheap]\n", "[cheap]\n    files: {path: a.xyz}\n", 13, "start[1]: found files and rattle in"),
    ("    label: [cheap]\n", "", 13, "start[1].label: missing; add 'label:'"),
    ("label: [cheap]", "label: cheap", 14, "start[1].label: found 'cheap'; write {pbe: 12}"),
    ("label: [cheap]", "label: []", 14, "start[1].label: found an empty mapping; must have at lea"),
    ("label: [cheap]", "label: {cheap: al}", 14, "start[1].label.cheap: found 'al'; did you mean"),
    ("label: [cheap]", "label: {cheap: 0}", 14, "start[1].label.cheap: found 0; must be at least "),
    ("label: [cheap]", "label: {cheap: 11}", 14, "found 11, but the item makes 10 structures"),
    ("path: a.xyz", "path: b.xyz", 11, "start[0].files.paths[0]: found 'b.xyz', no such file in"),
    ("path: a.xyz", "paths: [a.xyz, x/b.xyz]", 11, "start[0].files.paths[1]: found 'x/b.xyz', but"),
    ("path: a.xyz", "path: a.xyz, index: first", 11, "start[0].files.index: found 'first'; write "),
    ("path: a.xyz", 'path: "a\\0.xyz"', 11, "which cannot be read"),
    ("path: a.xyz", "path: ~nobody-here/a.xyz", 11, "which cannot be read"),
    # between blocks
    ("80 meV/A", "2 eV/A", 20, "stop_md.label_above: found 2 eV/A, not below abort_above (1 eV/A)"),
    ("time: 2 ps", "time: 0.1 fs", 19, "explore[0].md.time: found 0.1 fs, less than one step"),
    ("time: 2 ps", "time: 2 fs", 19, "explore[0].md.check_every: found 10, but the walk has only "),
    # settings of dynamics that would do nothing
    ("2 ps}", "2 ps, ensemble: nve, thermostat: bussi}", 19, "md.thermostat: has no effect: ensemble nve"),
    ("2 ps}", "2 ps, ensemble: nve, friction_per_fs: 0.1}", 19, "md.friction_per_fs: has no effect: e"),
    ("2 ps}", "2 ps, tau: 50 fs}", 19, "explore[0].md.tau: has no effect: it belongs to thermostat bussi, "),
    ("2 ps}", "2 ps, thermostat: bussi, friction_per_fs: 0.1}", 19, "belongs to thermostat langevin"),
    ("2 ps}", "2 ps, pressure: 1 GPa}", 19, "md.pressure: has no effect: ensemble nvt has no barostat"),
    ("2 ps}", "2 ps, barostat_tau: 2 ps}", 19, "md.barostat_tau: has no effect: ensemble nvt has no"),
    ("2 ps}", "2 ps, compressibility_per_GPa: 1.0}", 19, "compressibility_per_GPa: has no effect: ens"),
    ("2 ps}", "2 ps, ensemble: npt, barostat_tau: 2 fs}", 19, "barostat_tau: found 2 fs, which is 4 steps"),
    ("2 ps}", "2 ps, ensemble: nve, ramp_to: 900 K}", 19, "md.ramp_to: has no effect: a ramp is for nvt"),
    ("2 ps}", "2 ps, ensemble: npt, pressure: 1}", 19, 'md.pressure: found 1, a bare number; write "1 GPa"'),
    ("2 ps}", "2 ps, ensemble: npt, pressure: 1 fs}", 19, 'found "1 fs", which is a time; write a pressure'),
    ("2 ps}", "2 ps, ensemble: npv}", 19, "explore[0].md.ensemble: found 'npv'; did you mean 'nvt'?"),
    ("2 ps}", "2 ps, thermostat: nose}", 19, "explore[0].md.thermostat: found 'nose'; known: langevin, b"),
    ("2 ps}", "2 ps, batch_atoms: 0}", 19, "explore[0].md.batch_atoms: found 0; must be at least 1"),
    ("1 eV/A}", "1 eV/A, guards: {max_volume_factor: 1}}", 20, "max_volume_factor: found 1; must be gr"),
    ("cheap: all, dear: 2", "cheap: all", 10, "start: no item labels the target 'dear'"),
    ("e0: compute", "e0: {cheap: {H: -1 eV}}", 8, "e0.cheap.O: missing; element O needs its energ"),
    ("e0: compute", "e0: {cheap: {H: -1 eV}}", 8, "e0.dear: missing; the fidelity 'dear' needs"),
    ("e0: compute", "e0: {cheap: {H: -1}}", 8, "e0.cheap.H: found -1, a bare number; write \"-1 e"),
    ("e0: compute", "e0: {cheap: {Hh: 1 eV}}", 8, "e0.cheap.Hh: found 'Hh', not an element symbol"),
    ("e0: compute", "e0: {cheap: {C: 1 eV}}", 8, "e0.cheap.C: found an energy of C; elements: H, "),
    # the machine
    ("local", "tcp://10.0.0.7:8786", 23, "run.where: found 'tcp://10.0.0.7:8786'; tcp:// is not e"),
    ("local", "tcp://localhost", 23, "an address needs host and port: tcp://host:8786"),
    ("local", "tls://host:port", 23, "not an address; write tls://host:8786"),
    ("local", "lokal", 23, "run.where: found 'lokal'; did you mean 'local'?"),
    # syntax
    ("seed: 3", "\tseed: 3", 4, "the line is indented by a tab, use spaces"),
    ("[H, O]", "[H, O", 4, "not YAML: "),
    ("name: demo", "name: demo: two", 2, "text that contains ': ' needs quotes"),
    ("seed: 3", "seed: !!python/name:os.system x", 4, "not YAML: could not determine a constructo"),
    ("alchemy: 1", "%YAML 1.1\n---\nalchemy: 1", 1, "found a %YAML directive; remove it"),
    ("seed: 3", "seed: &a [*a]", 1, "nested too deeply"),
    ("seed: 3", "seed: *nowhere", 4, "not YAML: found undefined alias"),
    ("seed: 3", "seed: 3\n---\nname: two", 5, "not YAML: expected a single document"),
]  # fmt: skip


# Each line refers eight times to the one before it.
BOMB = [f"{n}: &{n} [{', '.join([f'*{p}'] * 8)}]\n" for p, n in pairwise("abcdefgh")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return demo_folder(tmp_path)


def complaint(text: str, folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_campaign_text(text, "c.yaml", folder)
    return str(caught.value)


@pytest.mark.parametrize(("good", "bad", "line", "fragment"), BROKEN, ids=lambda v: str(v)[:40])
def test_a_mistake_is_told_with_file_line_key_and_remedy(folder, good, bad, line, fragment):
    assert good in GOOD
    rows = complaint(GOOD.replace(good, bad, 1), folder).splitlines()
    assert any(row.startswith(f"c.yaml:{line}: ") and fragment in row for row in rows), rows


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("", "c.yaml:1: the file is empty; 'alchemy init' writes"),
        ("# only a comment\n", "c.yaml:1: the file is empty"),
        ("\n- alchemy: 1\n", "c.yaml:2: found a list; a campaign is a mapping"),
        ("hello\n", "c.yaml:1: found 'hello'; a campaign is a mapping"),
        ("a: \x07\n", "c.yaml:1: not YAML: "),
        ("a: " + "[" * 500, "c.yaml:1: nested too deeply"),
        ("a: &a [1]\n" + "".join(BOMB), "more than 50000 values"),
    ],
    ids=["empty", "comment", "list", "word", "control character", "brackets", "alias bomb"],
)  # fmt: skip
def test_a_file_that_is_no_campaign_at_all_is_told_so(folder, text, fragment):
    assert fragment in complaint(text, folder)


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file(folder):
    text = GOOD.replace("seed: 3", "seed: x").replace("4.5 A", "4.5").replace("[dear]", "[dera]")
    text = text.replace("per_round: 5", "per_round: {nope: 5}").replace("local", "tcp://8.8.8.8:1")
    rows = complaint(text, folder).splitlines()
    assert [row.split(":")[1] for row in rows] == ["4", "9", "17", "21", "23"]


def test_one_mistake_is_told_once(folder):
    for good, bad, *_ in BROKEN:
        if good.startswith(("seed: 3", "preset", "cutoff")) and "e0" not in bad:
            assert len(complaint(GOOD.replace(good, bad, 1), folder).splitlines()) == 1, bad


def test_a_missing_or_unreadable_file_is_bad_input(tmp_path):
    with pytest.raises(ConfigError, match="no such file; 'alchemy init' writes one"):
        load_campaign(tmp_path / "campaign.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe5\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_campaign(tmp_path / "latin.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_campaign(tmp_path)


def test_values_arrive_in_the_units_of_their_names(folder):
    campaign = load_campaign_text(GOOD, "c.yaml", folder)
    assert campaign.model.cutoff_A == 4.5
    assert campaign.stop_md.label_above_eV_per_A == 0.08
    assert campaign.stop.wall_s == 43200.0
    walk = campaign.explore[0].md
    assert walk is not None
    assert (walk.T_K, walk.time_fs, walk.timestep_fs) == ((300.0, 600.0), 2000.0, 0.5)
    assert campaign.start[1].rattle is not None
    assert campaign.start[1].rattle.stdev_A == 0.08
    assert campaign.resolve("a.xyz") == folder.resolve() / "a.xyz"


def test_shorthands_mean_what_they_are_short_for(folder):
    campaign = load_campaign_text(GOOD, "c.yaml", folder)
    assert campaign.start[0].files is not None
    assert campaign.start[0].files.paths == (Path("a.xyz"),)
    assert campaign.start[1].label == {"cheap": "all"}
    assert campaign.select.per_round == {"dear": 5}
    assert campaign.stop.labels == {"dear": 40}
    assert campaign.fidelities["cheap"].options == {"method": "GFN2-xTB"}
    one = load_campaign_text(GOOD.replace("[300 K, 600 K]", "300 K"), "c.yaml", folder).explore[0].md
    assert one is not None and one.T_K == (300.0,)
    bare = load_campaign_text(GOOD.replace("select: {per_round: 5}\n", ""), "c.yaml", folder)
    assert bare.select.per_round == {"dear": 10}


def test_the_last_fidelity_is_the_target_unless_one_says_so(folder):
    assert load_campaign_text(GOOD, "c.yaml", folder).fidelity_names == ("cheap", "dear")
    assert load_campaign_text(GOOD.replace(", target: true", ""), "c", folder).target == "dear"
    moved = GOOD.replace(", target: true", "").replace("GFN2-xTB}", "GFN2-xTB, target: true}")
    campaign = load_campaign_text(moved, "c.yaml", folder)
    assert campaign.target == "cheap"
    assert campaign.select.per_round == {"cheap": 5}


def test_nobelium_and_yttrium_stay_elements(folder):
    campaign = load_campaign_text(GOOD.replace("[H, O]", "[No, Y, N]"), "c.yaml", folder)
    assert campaign.elements == ("No", "Y", "N")
    assert load_campaign_text(explain(campaign), "x", folder) == campaign


def test_anchors_and_merges_are_allowed(folder):
    text = GOOD.replace("  - md: {T", "  - md: &walk {T") + ""
    text = text.replace("stop_md:", "  - md: {<<: *walk, ensemble: nve}\nstop_md:")
    campaign = load_campaign_text(text, "c.yaml", folder)
    assert [item.md.ensemble for item in campaign.explore if item.md] == ["nvt", "nve"]
    broken = text.replace("time: 2 ps", "time: 2")
    rows = complaint(broken, folder).splitlines()
    assert [row[:9] for row in rows] == ["c.yaml:19", "c.yaml:19"]  # where the anchor stands


@pytest.mark.parametrize("where", ["inline", "tcp://127.0.0.1:8786", "tcp://[::1]:1", "tls://h:1"])
def test_loopback_or_tls_addresses_are_accepted(folder, where):
    text = GOOD.replace("where: local", f'where: "{where}"')
    assert load_campaign_text(text, "c.yaml", folder).run.where == where


@pytest.fixture
def with_hop(monkeypatch):
    """Another package's explorer and stop rule, both called 'hop'."""
    real = config_fields.entry_points
    hops = [EntryPoint("hop", "nowhere:Hop", f"alchemy.{kind}") for kind in ("explorers", "stops")]

    def listed(group):
        return [*real(group=group), *(hop for hop in hops if hop.group == group)]

    monkeypatch.setattr(config_fields, "entry_points", listed)
    config_fields.installed.cache_clear()
    yield
    config_fields.installed.cache_clear()


def test_another_packages_explorer_gets_its_options_unread(folder, with_hop):
    text = GOOD.replace("  - md: {T", "  - hop: {hops: 4, T: 300 K}\n  - md: {T")
    campaign = load_campaign_text(text, "c.yaml", folder)
    assert [item.kind for item in campaign.explore] == ["hop", "md"]
    assert campaign.explore[0].options == {"hops": 4, "T": "300 K"}
    assert load_campaign_text(explain(campaign), "x", folder) == campaign


def test_another_packages_stop_rule_stands_among_ours_by_its_name(folder, with_hop):
    campaign = load_campaign_text(GOOD.replace("rounds: 2", "rounds: 2, hop: {n: 4}"), "c.yaml", folder)
    assert campaign.stop.plugins == {"hop": {"n": 4}}
    assert load_campaign_text(explain(campaign), "x", folder) == campaign
    bad = GOOD.replace("rounds: 2", "rounds: 2, hop: 4")
    assert "hop: found 4; write its options as {option: value}" in complaint(bad, folder)


def test_warnings_name_what_is_allowed_and_probably_not_meant(folder):
    assert campaign_warnings(load_campaign_text(GOOD, "c.yaml", folder)) == []
    text = re.sub(r"test:\n.*\n.*\n", "", GOOD).replace("rounds: 2", "force_rmse: 10 meV/A")
    found = campaign_warnings(load_campaign_text(text, "c.yaml", folder))
    assert [line.split(":")[0].split()[0] for line in found] == ["test", "select.threshold"]
    quota = GOOD.replace("per_round: ", "quota: {mdd: 0.5, failed: 0.2, md: 0.9}, per_round: ")
    (line,) = campaign_warnings(load_campaign_text(quota, "c.yaml", folder))
    assert line == "select.quota.mdd: no explorer and no reason is called so; did you mean 'md'?"
