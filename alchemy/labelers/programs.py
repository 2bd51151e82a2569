"""Labelers whose code is a program with an input of its own: what they have in common.

write  the program's input files, structure.json, and input.yaml: all options, for the record
run    rung by rung of the ladder, until one converges: input, program, verdict, parse; output.json
read   output.json

An option is physics unless the class lists it in `path_options`: then, and only then, a rung of the
ladder may change it. Physics, the template and the data files (pseudopotentials, basis sets) are what
the fingerprint is made of; of the program's version only the record knows.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
import signal
import typing
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from ase import Atoms
from ase.geometry import find_mic
from pydantic import TypeAdapter, ValidationError

from alchemy.errors import EnvironmentProblemError, InputError
from alchemy.labelers import staging
from alchemy.labelers.base import (
    LabelFailureError,
    LabelResult,
    check_variables,
    render,
    template_text,
)
from alchemy.labelers.program_files import (
    check_room,
    clear,
    content_hash_of,
    last_lines,
    said_by,
    set_aside,
    significant,
    text_hash,
    write_files,
)
from alchemy.processes import Finished, find_executable, run_program
from alchemy.records import atoms_from_document, atoms_to_document, read_json, write_json_atomic
from tace.wording import hint

Rungs = dict[str, dict[str, Any]]  # name -> the options that it changes
FIRST = "as asked"
NOT_CONVERGED = "scf-not-converged"
GEOMETRY_TOLERANCE_A = 1e-3  # codes print positions with five to ten digits
OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
KILLS = 3  # by others, before it is taken as this structure's (out of memory)
# what every template may say about the structure
STRUCTURE_VARIABLES = (
    "charge", "multiplicity", "unpaired", "title", "symbols", "elements", "positions_A", "cell_A", "pbc",
)  # fmt: skip
_VERSIONS: dict[str, str] = {}  # command -> version in the output read last


@dataclass(frozen=True, kw_only=True)
class ProgramLabeler(ABC):
    """Template, command, limits and ladder. A subclass adds its options as fields, and five methods."""

    template: str | None = None  # a file; None: the package's own
    command: str | None = None  # words; {input} and {threads} are filled in; no shell sees it
    timeout_s: float | None = None  # of one rung
    retries: int = 3  # rungs of the ladder that may be climbed
    ladder: Rungs | None = None  # None: the class's own
    threads: int = 1
    net_force_eV_per_A_per_atom: float = 0.02

    name: ClassVar[str]
    periodic: ClassVar[bool]
    own_template: ClassVar[str]
    own_command: ClassVar[str]  # such as 'pw.x -in {input}'
    own_ladder: ClassVar[Rungs] = {}
    input_name: ClassVar[str]
    output_name: ClassVar[str]  # what the program writes to stdout
    path_options: ClassVar[tuple[str, ...]] = ()
    file_options: ClassVar[tuple[str, ...]] = ("template",)  # relative to the campaign's file
    structure_variables: ClassVar[tuple[str, ...]] = ()  # of the template, beside those of every code
    comment_marks: ClassVar[tuple[str, ...]] = ()  # lines of the template that begin so are not physics
    scratch: ClassVar[tuple[str, ...]] = ()  # globs of what is removed after each rung
    retryable: ClassVar[tuple[str, ...]] = (NOT_CONVERGED,)
    version_pattern: ClassVar[str] = ""  # with one group; searched in the program's output
    version_arguments: ClassVar[tuple[str, ...]] = ()  # that make the program say it; (): there are none

    # --- what a code adds -------------------------------------------------------------------------

    @abstractmethod
    def inputs(self, atoms: Atoms, values: Mapping[str, Any]) -> dict[str, str | Path]:
        """Input files by name: text, or the data file that a link of that name shall point to.

        `values` are all options of the class as this rung has them; see `rendered`.
        """

    @abstractmethod
    def verdict(self, directory: Path) -> None:
        """Raises LabelFailureError for anything but a converged and complete calculation."""

    @abstractmethod
    def parse(self, atoms: Atoms, directory: Path) -> LabelResult:
        """Numbers of the calculation; its geometry is compared with the structure's here."""

    def data_files(self) -> Mapping[str, Path]:
        """Pseudopotentials, basis sets and the like by what they are for; their content is physics."""
        return {}

    def environment(self) -> Mapping[str, str | None]:
        """Variables to set or (None) unset for the program."""
        return {}

    # --- the labeler ------------------------------------------------------------------------------

    def __post_init__(self) -> None:
        self._check_types()
        if self.retries < 0 or self.threads < 1 or (self.timeout_s or 1) <= 0:
            raise InputError(
                f"labeler '{self.name}': need retries ≥ 0, threads ≥ 1 and timeout_s > 0, not "
                f"{self.retries}, {self.threads} and {self.timeout_s}"
            )
        self._command_words()
        options = self.options()
        for rung, changes in self.rungs().items():
            for option in changes:
                if option not in options:
                    listed = hint(option, self.path_options, label="it may change")
                    raise InputError(
                        f"labeler '{self.name}', ladder, '{rung}': no option '{option}'; {listed}"
                    )
                if option not in self.path_options:
                    raise InputError(
                        f"labeler '{self.name}', ladder, '{rung}': '{option}' is physics; a repeated "
                        f"label must stay at its level of theory. A rung may change "
                        f"{', '.join(self.path_options)}"
                    )
            dataclasses.replace(self, ladder={}, **changes)  # of the right type, too

    def options(self) -> dict[str, Any]:
        """Options of this code, physics and path, without those that every program has."""
        common = {field.name for field in dataclasses.fields(ProgramLabeler)}
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in common
        }

    def rungs(self) -> Rungs:
        """What is tried after the options as asked, in this order."""
        return dict(self.own_ladder if self.ladder is None else self.ladder)

    def physics(self) -> dict[str, Any]:
        """Code, physics options, template and data files by content."""
        source = self.template or self.own_template
        variables = {*STRUCTURE_VARIABLES, *self.structure_variables, *self.options(), "threads"}
        check_variables(source, variables)
        chosen = {k: v for k, v in self.options().items() if k not in self.path_options}
        data = {what: content_hash_of(path) for what, path in sorted(self.data_files().items())}
        template = text_hash(significant(template_text(source), self.comment_marks))
        document = {"code": self.name, **chosen, "template": template, "data_files": data}
        return typing.cast(dict[str, Any], json.loads(json.dumps(document)))

    def code(self) -> str:
        """Program and version, as the output read last says, or the program itself when asked."""
        return f"{self.name} {_VERSIONS.get(self._key()) or self._asked_version() or '(version unknown)'}"

    def write_input(self, atoms: Atoms, directory: Path) -> None:
        """The first rung's files, structure.json and input.yaml (JSON, which is YAML)."""
        write_files(self.inputs(atoms, self.options()), directory)
        document = {"labeler": self.name, "command": self.command or self.own_command}
        write_json_atomic(
            directory / staging.INPUT, {**document, "options": self.options(), "physics": self.physics()}
        )
        write_json_atomic(directory / staging.STRUCTURE, atoms_to_document(atoms))

    def run(self, directory: Path) -> None:
        """output.json, with the rung that succeeded and the program's version."""
        atoms = atoms_from_document(read_json(directory / staging.STRUCTURE))
        for old in directory.glob("rung-*"):  # of a worker that was killed
            shutil.rmtree(old)
        facts: dict[str, Any] = {}
        staging.write_outcome(directory, lambda: self._climb(atoms, directory, facts), facts)

    def read(self, atoms: Atoms, directory: Path) -> LabelResult:
        """The result in output.json; raises LabelFailureError."""
        version = read_json(directory / staging.OUTPUT).get("version")
        if version:
            _VERSIONS[self._key()] = version
        return staging.read_stage(atoms, directory)

    # --- for subclasses ---------------------------------------------------------------------------

    def rendered(self, atoms: Atoms, values: Mapping[str, Any], **more: Any) -> str:
        """The template with the options, the structure, and what the code adds about it."""
        state = staging.structure_variables(atoms)
        return render(
            self.template or self.own_template,
            {
                **values,
                **state,
                "threads": self.threads,
                "unpaired": unpaired_electrons(atoms),
                "title": atoms.get_chemical_formula(),
                "symbols": list(atoms.symbols),
                "elements": sorted(set(atoms.symbols)),
                "positions_A": atoms.positions.tolist(),
                "cell_A": np.asarray(atoms.cell).tolist(),
                "pbc": atoms.pbc.tolist(),
                **more,
            },
        )

    # --- one rung after the other -----------------------------------------------------------------

    def _climb(self, atoms: Atoms, directory: Path, facts: dict[str, Any]) -> LabelResult:
        rungs = [(FIRST, {}), *list(self.rungs().items())[: self.retries]]
        tried = []
        for number, (rung, changes) in enumerate(rungs):
            facts["rung"] = rung
            clear(directory)
            try:
                write_files(self.inputs(atoms, {**self.options(), **changes}), directory)
                return self._once(atoms, directory)
            except LabelFailureError as failure:
                if failure.reason not in self.retryable:
                    raise
                tried.append((rung, changes, failure))
            finally:
                facts["version"] = self._version_in(directory / self.output_name) or facts.get("version")
                for pattern in self.scratch:
                    for path in directory.glob(pattern):
                        shutil.rmtree(path) if path.is_dir() else path.unlink()
            if number + 1 < len(rungs):
                set_aside(directory, directory / f"rung-{number}")
        last = tried[-1][2]
        told = "; ".join(f"{rung}{_shown(changes)}: {why.message}" for rung, changes, why in tried)
        raise LabelFailureError(last.reason, told)

    def _once(self, atoms: Atoms, directory: Path) -> LabelResult:
        finished = self._start(directory)
        stderr = directory / f"{self.output_name}.err"
        said = f"{last_lines(directory / self.output_name)}\n{last_lines(stderr)}".strip()
        if finished.timed_out:
            raise LabelFailureError(
                "out-of-time", f"{self.name} was stopped after timeout_s = {self.timeout_s:g} s"
            )
        if finished.code in (126, 127):
            raise EnvironmentProblemError(f"labeler '{self.name}': {self.command_line()}: {said}")
        if finished.code:
            check_room(directory, said)
        try:
            self.verdict(directory)
            if finished.code:
                raise LabelFailureError("engine-error", f"exit code {finished.code}: {said}")
            return self.parse(atoms, directory)
        except (LabelFailureError, InputError, EnvironmentProblemError, ImportError, MemoryError):
            raise
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                raise
            raise LabelFailureError("truncated-output", f"there is no {error.filename}; {said}") from error
        except Exception as error:  # a reader met what it was not made for
            raise LabelFailureError(
                "truncated-output", f"{type(error).__name__} while reading: {error}; {said}"
            ) from error

    def _start(self, directory: Path) -> Finished:
        """Again when others killed it: that says nothing of the structure, unless it comes each time."""
        for _ in range(KILLS):
            finished = run_program(
                self._arguments(),
                directory,
                stdout=directory / self.output_name,
                stderr=directory / f"{self.output_name}.err",
                threads=self.threads,
                timeout_s=self.timeout_s,
                environment=self.environment(),
            )
            if finished.timed_out or -finished.code not in OUTSIDE:
                return finished
        number = signal.Signals(-finished.code).name
        raise LabelFailureError(
            "program-killed", f"{self.name} was killed by {number} {KILLS} times (out of memory?)"
        )

    # --- command, version, types ------------------------------------------------------------------

    def command_line(self) -> str:
        """The command as the user knows it."""
        return self.command or self.own_command

    def _command_words(self) -> list[str]:
        try:
            words = shlex.split(self.command_line())
            filled = [w.format(input=self.input_name, threads=self.threads) for w in words]
        except (ValueError, LookupError) as error:
            raise InputError(
                f"labeler '{self.name}': command '{self.command_line()}': {error}; it may name "
                "{input} and {threads}"
            ) from error
        if not filled:
            raise InputError(f"labeler '{self.name}': the command is empty")
        return filled

    def _arguments(self) -> list[str]:
        words = self._command_words()
        remedy = f"install it, or name it by the option `command` (now: {self.command_line()})"
        try:
            return [find_executable(words[0], remedy=remedy), *words[1:]]
        except EnvironmentProblemError as error:
            raise EnvironmentProblemError(f"labeler '{self.name}': {error}") from error

    def _key(self) -> str:
        return f"{self.name} {self.command_line()}"

    def _version_in(self, output: Path) -> str | None:
        if not (self.version_pattern and output.is_file()):
            return None
        with output.open(encoding="utf-8", errors="replace") as file:
            head = file.read(100_000)
        found = re.search(self.version_pattern, head)
        return found.group(1) if found else None

    def _asked_version(self) -> str | None:
        """The program's own word, where it is the command's first (a launcher has another version)."""
        words = self._command_words()
        program = shutil.which(words[0])
        same = Path(words[0]).name == Path(shlex.split(self.own_command)[0]).name
        if not (program and same and self.version_arguments):
            return None
        said = said_by(program, self.version_arguments, Path(program).stat().st_mtime_ns)
        found = re.search(self.version_pattern, said)
        return found.group(1) if found else None

    def _check_types(self) -> None:
        hints = _hints(typing.cast(Any, type(self)))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            try:
                text = json.dumps(value, allow_nan=False)
                right = _adapter(hints[field.name]).validate_json(text, strict=True)
            except (ValidationError, TypeError, ValueError) as error:
                why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
                raise InputError(f"labeler '{self.name}': {field.name} is {value!r}: {why}") from error
            object.__setattr__(self, field.name, right)


def check_geometry(asked: Atoms, found: Atoms, *, tolerance_A: float = GEOMETRY_TOLERANCE_A) -> None:
    """Refuse numbers of another structure: order of the atoms, positions, cell where periodic.

    Raises:
        LabelFailureError: geometry-mismatch.
    """
    if list(asked.symbols) != list(found.symbols):
        what = f"{found.symbols} in the output, {asked.symbols} in the structure"
        raise LabelFailureError("geometry-mismatch", f"atoms differ or are in another order: {what}")
    if asked.pbc.any():
        cells = np.abs(np.asarray(asked.cell) - np.asarray(found.cell))[asked.pbc]
        if cells.max() > tolerance_A:
            raise LabelFailureError("geometry-mismatch", f"cells differ by {cells.max():.4f} Å")
    moved, distance = found.positions - asked.positions, np.zeros(len(asked))
    if len(asked):
        distance = find_mic(moved, asked.cell, asked.pbc)[1]
    if distance.max(initial=0.0) > tolerance_A:
        worst = int(distance.argmax())
        raise LabelFailureError(
            "geometry-mismatch",
            f"atom {worst} ({asked.symbols[worst]}) is {distance[worst]:.4f} Å from its place",
        )


def unpaired_electrons(atoms: Atoms) -> int:
    """2S of the structure; unset, a molecule has the lowest, a periodic structure no moment."""
    if atoms.pbc.any() and not atoms.info.get("multiplicity", 0):
        return 0
    return staging.unpaired_electrons(atoms)


@lru_cache(maxsize=64)  # by type: making one takes longer than using it
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


@lru_cache(maxsize=64)
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _shown(changes: Mapping[str, Any]) -> str:
    return f" ({', '.join(f'{k} {v}' for k, v in changes.items())})" if changes else ""
