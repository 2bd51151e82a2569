"""Run files: what `tace train` and `tace finetune` read, and the same from Python.

    data:  {train: train.extxyz, valid: 0.1}
    model: {preset: small, cutoff_A: 5.0}
    train: {steps: 2000}

`tace/example.yaml` has every key with a comment. Paths are relative to the run file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config import HeadConfig, InputConfig, TaceConfig, preset
from .documents import Document, Kind, Problem, read_document, read_value
from .errors import TaceError
from .quantities import INPUTS, LABELS
from .runfile_schema import FINETUNE_RUN, RUN
from .settings import TrainSettings
from .wording import describe, hint

if TYPE_CHECKING:
    from .runfile_train import RunResult

FINETUNE_RATE = 1e-3  # a tenth of that of a new model: weights start near a minimum
SPIN = "spin_multiplicity"
HEADS: dict[str, dict[str, Any]] = {  # what the name alone stands for
    "charges": {"scope": "atom", "charges": "qeq"},
    "dipole": {"symmetry": "i"},
    "polarization": {"symmetry": "i"},
    "polarizability": {"symmetry": "ij=ji"},
    "born_charges": {"scope": "atom", "symmetry": "ij"},
    "magnetic_forces": {"scope": "atom", "symmetry": "i"},
}
_DEFAULTS: dict[str, Any] = {"seed": 0, "threads": 1, "device": "auto"}


class RunFileError(TaceError):
    """What is wrong in a run file, one line for each problem."""


RUN_FILE = Kind(
    RunFileError, remedy="'tace example' prints a commented one", top="a run file starts with 'data:'"
)


@dataclass(frozen=True)
class RunFile:
    """A checked run; `plain` is what was written, `base` the folder that paths start from."""

    name: str
    plain: dict[str, Any]
    base: Path
    out: Path
    settings: TrainSettings
    init: Path | None = None  # a model to start from
    finetune: bool = False

    def block(self, name: str) -> dict[str, Any]:
        return dict(self.plain.get(name) or {})

    def value(self, name: str) -> Any:
        """`seed`, `threads` or `device`."""
        return self.plain.get(name, _DEFAULTS[name])

    @property
    def max_cpu_s(self) -> float | None:
        minutes = self.block("train").get("max_cpu_minutes")
        return None if minutes is None else 60.0 * minutes

    @property
    def check_labels(self) -> str:
        return str(self.block("checks").get("labels", "error"))

    @property
    def heads(self) -> tuple[HeadConfig, ...]:
        return heads_of(self.block("model").get("heads", ()))

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(_named(i)["name"] for i in self.block("model").get("inputs", ()))

    def path(self, text: str) -> Path:
        return self.base / Path(text).expanduser()


def read_runfile(
    path: Path,
    *,
    changes: Sequence[str] = (),
    out: Path | None = None,
    model: Path | None = None,
    finetune: bool = False,
) -> RunFile:
    """Read and check a run file; with `finetune` one for that, on top of `model`.

    Args:
        changes: `train.steps=500` and its like, applied to what the file says.
        out: where to write; None takes `out` of the file, or the file's name without suffix.

    Raises:
        RunFileError: missing, not YAML, or with keys or values that do not work; all are listed by line.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RunFileError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise RunFileError(f"{path} is a folder; give a run file such as {path / 'train.yaml'}") from None
    except UnicodeDecodeError:
        raise RunFileError(f"{path}: not a text file; a run file is YAML") from None
    document = with_changes(read_document(text, str(path), RUN_FILE), changes)
    return _checked(document, path.parent, out or path.with_suffix(""), out, model, finetune=finetune)


def run_from_config(
    config: Mapping[str, Any],
    *,
    base: Path | None = None,
    out: Path | None = None,
    model: Path | None = None,
    finetune: bool = False,
) -> RunFile:
    """The same from a mapping; paths are relative to `base`, by default the current folder."""
    document = Document("configuration", _copied(config), {}, RUN_FILE)
    where = Path(base) if base is not None else Path()
    return _checked(document, where, where / "run", out, model, finetune=finetune)


def train_from_config(
    config: Mapping[str, Any],
    *,
    base: Path | None = None,
    out: Path | None = None,
    restart: bool = False,
    say: Callable[[str], None] | None = None,
) -> RunResult:
    """Train as `tace train` does with a run file that holds `config`.

    Returns:
        the trained model, the report and the folder with everything that was written.

    Raises:
        TaceError: see `read_runfile` and `runfile_train.execute`.
    """
    from .runfile_train import execute

    return execute(run_from_config(config, base=base, out=out), restart=restart, say=say)


def with_changes(document: Document, changes: Sequence[str]) -> Document:
    """The document with `train.steps=500` and its like applied; values are YAML.

    Raises:
        RunFileError: no '=', an empty key, or a value in the way.
    """
    data, lines = _copied(document.data), dict(document.lines)
    for change in changes:
        key, sign, text = change.partition("=")
        parts = key.strip().split(".")
        if not sign or not all(parts):
            raise RunFileError(f"--set {change}: write it as train.steps=500")
        try:
            value = read_value(text)
        except ValueError as error:
            raise RunFileError(f"--set {change}: '{text}' is {error}") from None
        place = data
        for part in parts[:-1]:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise RunFileError(f"--set {change}: '{part}' is {describe(place)} in {document.name}")
        place[parts[-1]] = value
        lines = {loc: line for loc, line in lines.items() if loc[: len(parts)] != tuple(parts)}
        lines[tuple(parts)] = 0  # told without a line
    return replace(document, data=data, lines=lines)


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _copied(v) for k, v in value.items()}
    return [_copied(v) for v in value] if isinstance(value, list) else value


# ------------------------------------------------------------------ checks
def _checked(
    document: Document, base: Path, default: Path, out: Path | None, model: Path | None, *, finetune: bool
) -> RunFile:
    problems = (FINETUNE_RUN if finetune else RUN)(document.data, ())
    if problems:
        raise document.error(problems)
    plain = document.data
    train = {k: v for k, v in (plain.get("train") or {}).items() if k != "max_cpu_minutes"}
    if finetune:
        train = {"learning_rate": FINETUNE_RATE, **train}
    settings = TrainSettings()
    try:
        settings = TrainSettings(**train, seed=plain.get("seed", 0))
    except TaceError as error:
        problems.append(Problem(_place("train", train, str(error)), str(error)))
    problems += _model_problems(plain.get("model") or {})
    if not finetune:  # heads of the model that is fine-tuned may have any name
        problems += _key_problems(plain)
    if problems:
        raise document.error(problems)
    own = (plain.get("model") or {}).get("init")
    start = model if model is not None else (base / Path(own).expanduser() if own else None)
    where = out or (base / Path(plain["out"]).expanduser() if "out" in plain else default)
    return RunFile(document.name, plain, base, where, settings, start, finetune)


def _model_problems(given: Mapping[str, Any]) -> Iterable[Problem]:
    """What no data could make possible, told before any is read."""
    try:
        inputs = [filled(i, scale=1.0, values=(1,)) for i in given.get("inputs", ())]
        config_of(given, inputs, elements=(1,))
    except TaceError as error:
        yield Problem(_place("model", given, str(error)), str(error))


def _place(block: str, given: Mapping[str, Any], message: str) -> tuple[str, ...]:
    """The key that a message of a dataclass speaks of."""
    for word in re.findall(r"\w+", message):
        if word in given:
            return (block, word)
    return (block,)


def _key_problems(plain: Mapping[str, Any]) -> Iterable[Problem]:
    data, model = plain["data"], plain.get("model") or {}
    heads = [_named(h)["name"] for h in model.get("heads", ())]
    known = {*INPUTS, *LABELS, "virial", *heads}
    places = [("data", "keys")]
    for part in ("train", "valid", "test"):
        sources = data.get(part)
        for n, source in enumerate(sources if isinstance(sources, list) else [sources]):
            where = ("data", part, n) if isinstance(sources, list) else ("data", part)
            if isinstance(source, dict):
                places += [(*where, "keys"), (*where, "units")]
    for place in places:
        value: Any = plain
        for step in place:
            value = value.get(step, {}) if isinstance(value, dict) else value[step]
        for name in value:
            if name not in known:
                yield Problem((*place, name), f"there is no quantity '{name}'; {hint(name, known)}")


# ------------------------------------------------------------------ the model block
def _named(part: Any) -> dict[str, Any]:
    return {"name": part} if isinstance(part, str) else dict(part)


def heads_of(parts: Iterable[Any]) -> tuple[HeadConfig, ...]:
    """Heads from their names or settings; a usual name brings its symmetry and scope."""
    given = [_named(part) for part in parts]
    return tuple(HeadConfig(**{**HEADS.get(p["name"], {}), **p}) for p in given)


def filled(part: Any, *, scale: float, values: Sequence[int]) -> InputConfig:
    """An input with what the data say of it where the run file says nothing."""
    given = {"scale": scale, **_named(part)}
    if given["name"] == SPIN:
        given = {"values": tuple(values), **given, "scale": 1.0}
        given["values"] = tuple(given["values"])
    return InputConfig(**given)


def config_of(given: Mapping[str, Any], inputs: Sequence[InputConfig], **facts: Any) -> TaceConfig:
    """The configuration that a `model` block asks for, with what the data say."""
    settings = {k: v for k, v in given.items() if k not in ("preset", "dtype", "init", "inputs", "heads")}
    les = settings.pop("les", None)
    if les:
        settings["les"] = {} if les is True else les
    return preset(
        given.get("preset", "small"),
        **{**settings, "inputs": tuple(inputs), "heads": heads_of(given.get("heads", ())), **facts},
    )
