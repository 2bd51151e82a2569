"""Calls of the `tace` command, and the folder of a run that it made."""

from __future__ import annotations

from pathlib import Path

from tace_runs import folder, run_file

from tace.cli import main


def trained(path: Path) -> Path:
    """A folder with data, a run file that asks for a dipole too, and the finished run."""
    folder(path)
    model = {"heads": ["dipole"]}
    train = {"steps": 120, "validate_every": 30, "learning_rate": 0.01, "energy_growth": 1.0}
    train["label_weights"] = {"dipole": 1.0}
    run_file(path / "train.yaml", model=model, train=train)
    assert main(["train", str(path / "train.yaml")]) == 0
    return path


def told(capsys, *arguments, code: int = 2) -> str:
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == code
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def said(capsys, *arguments) -> str:
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 0
    return capsys.readouterr().out
