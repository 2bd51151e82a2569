"""A program with an input of its own, as a labeler: the engine is a few lines of Python.

Its energy is that of springs between neighbours in the list; `mixing` decides whether it converges.
"""

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from ase import Atoms

from alchemy.labelers.base import LabelFailureError, LabelResult
from alchemy.labelers.programs import ProgramLabeler, check_geometry

ENGINE = Path(__file__).parent / "fake_engine.py"
TEMPLATE = """! a comment of the engine
{# a comment of Jinja #}
stiffness = {{ stiffness_eV_per_A2 }}
mixing = {{ mixing }}
behaviour = {{ behaviour }}
{% for symbol in symbols %}
atom = {{ symbol }} {{ positions_A[loop.index0] | join(' ') }}
{% endfor %}
"""


@dataclass(frozen=True, kw_only=True)
class FakeLabeler(ProgramLabeler):
    stiffness_eV_per_A2: float = 1.0
    mixing: float = 0.7
    behaviour: str = "work"
    data: str | None = None

    name: ClassVar[str] = "fake"
    periodic: ClassVar[bool] = False
    own_template: ClassVar[str] = str(Path(__file__).parent / "no-template-of-its-own")
    own_command: ClassVar[str] = f"{sys.executable} -S {ENGINE} {{input}}"
    own_ladder: ClassVar = {"gentle": {"mixing": 0.3}, "gentlest": {"mixing": 0.1}}
    input_name: ClassVar[str] = "fake.in"
    output_name: ClassVar[str] = "fake.out"
    path_options: ClassVar = ("mixing", "behaviour", "data")
    file_options: ClassVar = ("template", "data")
    comment_marks: ClassVar = ("!",)
    scratch: ClassVar = ("scratch*",)
    version_pattern: ClassVar[str] = r"FAKE version (\S+)"
    version_arguments: ClassVar = (str(ENGINE), "--version")

    def inputs(self, atoms, values):
        files = {self.input_name: self.rendered(atoms, values)}
        return {**files, "data": Path(self.data)} if self.data else files

    def data_files(self):
        return {"X": Path(self.data)} if self.data else {}

    def verdict(self, directory):
        text = (directory / self.output_name).read_text()
        if "NOT CONVERGED" in text:
            raise LabelFailureError("scf-not-converged", "residual 0.1")
        if "DONE" not in text:
            raise LabelFailureError("truncated-output", "the last line is missing")

    def parse(self, atoms, directory):
        found = json.loads((directory / "result.json").read_text())
        check_geometry(atoms, Atoms(found["symbols"], found["positions"]))
        forces = np.array(found["forces"])
        return LabelResult(found["energy"], forces, None, "total", None)


def needs_program(*names):
    """Skip, saying so, where one of the programs is not installed."""
    missing = [name for name in names if shutil.which(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


UPF_2 = """<UPF version="2.0.1">
<PP_INFO> functional="none of these" </PP_INFO>
<PP_HEADER generated='by "hand"' author=''
 element="{element}" pseudo_type="PAW" has_so="{so}" is_coulomb="{bare}" functional="{functional}"/>
</UPF>
"""
UPF_1 = """<PP_INFO>
 Element is not told here
</PP_INFO>
<PP_HEADER>
   0                   Version Number
  {element}                   Element
   US                  Ultrasoft pseudopotential
    T                  Nonlinear Core Correction
 {functional}    PBE  Exchange-Correlation functional
   11.00000000000      Z valence
</PP_HEADER>
"""


def write_upf(path, element, functional="SLA  PW   PBX  PBC", *, version=2, so=False, bare=False):
    text = UPF_1 if version == 1 else UPF_2
    text = text.format(element=element, functional=functional, so="FT"[so], bare="FT"[bare])
    path.write_text(text)
    return path
