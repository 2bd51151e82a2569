"""The report: true to the JSON, whole in one file, safe to open."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest

from alchemy.errors import InputError
from alchemy.report import write_report

ELEMENTS = {"H": 1, "C": 6, "N": 7, "O": 8}
VOID = {"meta", "br", "link", "img", "hr", "input", "use", "path", "rect"}


def round_tree(
    index: int,
    *,
    last: bool = False,
    fidelities: tuple[str, ...] = ("gfn2", "pbe"),
    rng: np.random.Generator | None = None,
) -> dict[str, Any]:
    """A full round.json of a campaign whose error falls with the square root of its labels."""
    rng = rng or np.random.default_rng([7, index])
    target, cheap = fidelities[-1], fidelities[:-1]
    labels = {target: 8 + 6 * index} | dict.fromkeys(cheap, 90 + 20 * index)
    rmse = 0.9 / math.sqrt(labels[target]) * (0.55 if cheap else 1.0)
    forces = rng.normal(0, 1.5, 432)
    energies = rng.normal(-3.2, 0.05, 12)
    tree: dict[str, Any] = {
        "round": index,
        "target": target,
        "fidelities": list(fidelities),
        "stop": None,
        "train": {"members": 4, "labels": labels, "cpu_s": 40.0, "wall_s": 21.0},
        "test": {
            name: {
                "frames": 12,
                "force_rmse_eV_per_A": rmse * scale,
                "force_mae_eV_per_A": 0.7 * rmse * scale,
                "energy_rmse_eV_per_atom": 0.03 * rmse * scale,
                "force_rmse_by_element_eV_per_A": {
                    e: rmse * scale * f for e, f in zip(ELEMENTS, (0.7, 1.3, 1.1, 1.0), strict=True)
                },
            }
            for name, scale in zip(fidelities[::-1], (1.0, 0.6), strict=False)
        },
        "baselines": {name: {"force_rmse_eV_per_A": 0.412} for name in cheap},
        "parity": {
            name: {
                "force": np.c_[forces, forces + rng.normal(0, rmse, 432)].tolist(),
                "energy": np.c_[energies, energies + rng.normal(0, 0.004, 12)].tolist(),
            }
            for name in fidelities
        },
        "cost": {
            "labels_cpu_s": {target: 210.0 + 120 * index} | dict.fromkeys(cheap, 9.0 + 2 * index),
            "cumulative_labels": labels,
        },
    }
    if last:
        tree["stop"] = {
            "rule": "rounds",
            "message": f"{index} rounds were asked for",
            "exit_code": 0,
        }
        return tree
    spread = rng.lognormal(-2.2, 0.6, 300)
    error = spread * 1.1 * rng.lognormal(0, 0.5, 300)
    tree |= {
        "explore": {
            "candidates": 64,
            "force_calls": 12000,
            "cpu_s": 55.0,
            "outcomes": {"finished": 3 + index, "label-stop": 5 - index, "exploded": index % 2},
        },
        "select": {
            "picked": [
                {
                    "uid": f"{index:02d}{k:02d}" + "ab" * 14,
                    "fidelities": list(fidelities),
                    "why": "random" if k == 5 else "error",
                    "expected_error_eV_per_A": 0.31 - 0.03 * k,
                }
                for k in range(6)
            ],
            "rejected": {"near-duplicate": 12, "below-threshold": 40 + index},
        },
        "label": {
            target: {"ok": 5, "failed": {"scf-not-converged": 1}, "cpu_s": 120.0, "wall_s": 60.0}
        }
        | {name: {"ok": 20, "failed": {}, "cpu_s": 2.0, "wall_s": 2.0} for name in cheap},
        "fresh": {
            target: {
                "frames": 5,
                "force_rmse_eV_per_A": 1.5 * rmse,
                "coverage_90": 0.84 + 0.02 * index,
                "random": {"frames": 1, "force_rmse_eV_per_A": 1.1 * rmse},
            }
        },
        "calibration": {
            "elements": {
                e: {"expected": 1.18, "bound_90": 2.2, "atoms": 75, "frames": 8, "pooled": True}
                for e in ELEMENTS
            },
            "note": "fewer than 50 frames of H, C, N, O: pooled over elements",
            "pairs": {
                "spread_eV_per_A": spread.tolist(),
                "error_eV_per_A": error.tolist(),
                "number": rng.choice(list(ELEMENTS.values()), 300).tolist(),
            },
        },
    }
    tree["cost"]["labels_cpu_s"][target] += 120
    for name in cheap:
        tree["cost"]["labels_cpu_s"][name] += 2
    tree["cost"]["cumulative_labels"] = {target: labels[target] + 5} | {
        n: labels[n] + 20 for n in cheap
    }
    return tree


def write_campaign(directory: Path, trees: list[dict[str, Any]], **meta: Any) -> Path:
    for position, tree in enumerate(trees):
        folder = directory / "rounds" / f"{position:03d}"
        folder.mkdir(parents=True)
        (folder / "round.json").write_text(json.dumps(tree))
    (directory / "rounds").mkdir(parents=True, exist_ok=True)
    (directory / "campaign.json").write_text(
        json.dumps(
            {
                "name": "urea in water",
                "elements": list(ELEMENTS),
                "seed": 7,
                "created_utc": "2026-11-22T06:30:00Z",
                "fidelities": {"gfn2": {"labeler": "tblite"}, "pbe": {"labeler": "pyscf"}},
                "target": "pbe",
            }
            | meta
        )
    )
    return directory


def full_campaign(directory: Path, rounds: int = 5, **meta: Any) -> Path:
    trees = [round_tree(i, last=i == rounds - 1) for i in range(rounds)]
    return write_campaign(directory, trees, **meta)


class Page(HTMLParser):
    """Tags balance, ids are unique, and what the page would load or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), f"<{tag} {name}> runs a script"
            self.links += [value or ""] if name in ("src", "href", "xlink:href", "data") else []
            self.ids += [value or ""] if name == "id" else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def read(path: Path) -> tuple[str, Page]:
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert not page.open
    return text, page


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished campaign with its report, which no test changes."""
    directory = full_campaign(tmp_path_factory.mktemp("full") / "c")
    write_report(directory)
    return directory


def test_the_report_is_one_file_that_loads_and_runs_nothing(tmp_path: Path) -> None:
    path = write_report(full_campaign(tmp_path / "c"), beside=[full_campaign(tmp_path / "d", 3)])
    text, page = read(path)
    assert path == tmp_path / "c" / "report.html"
    assert "script" not in page.tags and "link" not in page.tags and "img" not in page.tags
    assert all(link.startswith("#") for link in page.links)
    assert not re.search(r"https?:|@import|url\((?!#)", text)
    assert len(text.encode()) < 2_000_000
    assert [p.name for p in path.parent.iterdir() if p.name.startswith(".")] == []


def test_every_reference_inside_the_drawings_is_resolved_and_unique(full: Path) -> None:
    text, page = read(full / "report.html")
    assert len(page.ids) == len(set(page.ids))
    used = {link[1:] for link in page.links} | set(re.findall(r"url\(#([^)]+)\)", text))
    assert used <= set(page.ids)
    variables = set(re.findall(r"var\(--(\w+)\)", text)) - {"c"}
    assert variables <= set(re.findall(r"--(\w+):", text))
    assert "a1b2" not in re.sub(r'(id|href)="[^"]*"|url\([^)]*\)|<code>.*?</code>', "", text)


def test_the_numbers_of_the_json_are_in_the_report(full: Path) -> None:
    _, page = read(full / "report.html")
    for path in sorted(full.glob("rounds/*/round.json")):
        tree = json.loads(path.read_text())
        assert f"{1000 * tree['test']['pbe']['force_rmse_eV_per_A']:.1f}" in page.text
        for name in ELEMENTS:
            value = tree["test"]["pbe"]["force_rmse_by_element_eV_per_A"][name]
            assert f"{1000 * value:.1f}" in page.text
        for fresh in tree.get("fresh", {}).values():
            assert f"{1000 * fresh['force_rmse_eV_per_A']:.1f} (5)" in page.text
            assert f"{1000 * fresh['random']['force_rmse_eV_per_A']:.1f} (1)" in page.text
        for pick in tree.get("select", {}).get("picked", []):
            assert pick["uid"][:8] in page.text
    for word in (
        "near-duplicate",
        "scf-not-converged",
        "label-stop",
        "tblite",
        "pooled over elements",
    ):
        assert word in page.text


def test_the_verdict_says_why_it_stopped_and_compares_the_error(full: Path) -> None:
    _, page = read(full / "report.html")
    # 0.55·0.9/√8 and 0.55·0.9/√32 eV/Å: labels quadrupled, error halved; gfn2 is at 412 meV/Å.
    assert "Stopped by the rule “rounds”: 4 rounds were asked for." in page.text
    assert "on the fixed test set (12 frames) is 87.5 meV/Å." in page.text
    assert "2.0 times lower than in round 0 (175.0 meV/Å)" in page.text
    assert "4.7 times lower than gfn2 itself (412.0 meV/Å)" in page.text


def test_an_error_that_rose_is_not_sold_as_progress(tmp_path: Path) -> None:
    trees = [round_tree(0), round_tree(1, last=True)]
    trees[1]["test"]["pbe"]["force_rmse_eV_per_A"] = 0.5
    trees[1]["stop"] = {"rule": "wall", "message": "no time left", "exit_code": 4}
    _, page = read(write_report(write_campaign(tmp_path / "c", trees)))
    assert "2.9 times higher than in round 0" in page.text
    assert "1.2 times higher than gfn2 itself" in page.text
    assert "no time left (exit code 4)" in page.text
    assert "no gain" in page.text


@pytest.mark.parametrize(
    "hostile", ["<script>alert(1)</script>", "a & $b$ \"c\" 'd' \\frac{", "化学 _x"]
)
def test_text_from_the_campaign_is_shown_and_never_obeyed(tmp_path: Path, hostile: str) -> None:
    trees = [
        round_tree(0, fidelities=("gfn2", hostile)),
        round_tree(1, fidelities=("gfn2", hostile)),
    ]
    trees[0]["label"][hostile]["failed"] = {hostile: 2}
    trees[0]["select"]["rejected"] = {hostile: 3}
    trees[0]["explore"]["outcomes"] = {hostile: 3}
    trees[0]["select"]["picked"][0]["why"] = hostile
    trees[0]["calibration"]["note"] = hostile
    first = write_campaign(tmp_path / "c", trees, name=hostile, elements=[hostile])
    other = write_campaign(tmp_path / "d", [round_tree(0)], name=hostile)
    text, page = read(write_report(first, beside=[other]))
    assert "<script" not in text and "script" not in page.tags
    assert re.sub(r"\s+", " ", hostile) in page.text


def test_whatever_is_missing_leaves_a_report(tmp_path: Path) -> None:
    """Every key of the first level, and every null or NaN in its place, is 'not done yet'."""
    full = round_tree(0, fidelities=("pbe",))
    names = list(full)
    for first, second in zip(names[::2], [*names[1::2], names[0]], strict=False):
        pair = (first, second)
        trees = [
            *(
                {k: v for k, v in full.items() if k not in gone}
                for gone in (pair, (first,), (second,))
            ),
            full | dict.fromkeys(pair),
            full | dict.fromkeys(pair, math.nan),
        ]
        if "round" not in pair:
            trees = [tree | {"round": i} for i, tree in enumerate(trees)]
        _, page = read(write_report(write_campaign(tmp_path / first, trees)))
        assert "Not stopped: round 4 " in page.text
    _, page = read(write_report(write_campaign(tmp_path / "nothing", [{}, {"round": 1}])))
    assert "Not stopped: round 1 " in page.text


def test_an_unknown_number_is_a_dash_and_not_zero(tmp_path: Path) -> None:
    tree = json.loads(json.dumps(round_tree(0)))
    tree["test"]["pbe"] = {"frames": 12, "force_rmse_eV_per_A": math.nan}
    tree["fresh"]["pbe"] = {"frames": 0, "force_rmse_eV_per_A": None, "coverage_90": None}
    _, page = read(write_report(write_campaign(tmp_path / "c", [tree])))
    assert "No committee has met the fixed test set yet." in page.text
    assert " nan" not in page.text.lower() and "None" not in page.text.replace("None.", "")


def test_a_campaign_without_rounds_and_one_with_one_level_are_reported(tmp_path: Path) -> None:
    _, page = read(write_report(write_campaign(tmp_path / "empty", [])))
    assert "No round has begun." in page.text
    trees = [round_tree(i, last=i == 2, fidelities=("pbe",)) for i in range(3)]
    single = write_campaign(tmp_path / "single", trees, fidelities={"pbe": {"labeler": "pyscf"}})
    _, page = read(write_report(single))
    assert "gfn2" not in page.text and "itself" not in page.text


def test_campaigns_beside_are_compared_at_the_error_that_all_reached(tmp_path: Path) -> None:
    both = full_campaign(tmp_path / "both", name="two levels")
    trees = [round_tree(i, last=i == 4, fidelities=("pbe",)) for i in range(5)]
    alone = write_campaign(tmp_path / "alone", trees, name="pbe alone")
    _, page = read(write_report(both, beside=[alone]))
    # pbe alone ends at 0.9/√32 = 159.1 meV/Å, where two levels are in round 1 with 14 pbe labels.
    assert "best error that every campaign reached" in page.text and "159.1 meV/Å" in page.text
    assert "14 (round 1)" in page.text and "32 (round 4)" in page.text
    assert "two levels" in page.text and "pbe alone" in page.text


def test_the_same_campaign_gives_the_same_bytes_and_leaves_matplotlib_alone(
    tmp_path: Path, full: Path
) -> None:
    before = dict(matplotlib.rcParams)
    first = (full / "report.html").read_bytes()
    with matplotlib.rc_context({"font.size": 31, "axes.facecolor": "red"}):
        second = write_report(full, output=tmp_path / "b.html").read_bytes()
    assert first == second
    assert dict(matplotlib.rcParams) == before


def test_many_points_are_thinned_and_said_to_be(tmp_path: Path) -> None:
    tree = round_tree(0)
    values = np.linspace(-3, 3, 30_000)
    tree["parity"] = {name: {"force": np.c_[values, values].tolist()} for name in ("gfn2", "pbe")}
    text, page = read(write_report(write_campaign(tmp_path / "c", [tree])))
    assert len(text.encode()) < 2_000_000
    assert "30000 points, every 25th drawn" in page.text


def test_a_directory_that_is_no_campaign_is_refused_and_not_written_to(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a campaign"):
        write_report(tmp_path)
    with pytest.raises(InputError, match="not a campaign"):
        write_report(tmp_path / "absent")
    assert list(tmp_path.iterdir()) == []
    damaged = write_campaign(tmp_path / "c", [round_tree(0)])
    (damaged / "rounds" / "000" / "round.json").write_text("{")
    with pytest.raises(InputError, match=r"round\.json"):
        write_report(damaged)
