"""The files that `alchemy init` writes: a commented campaign and its start structures."""

from __future__ import annotations

from importlib.resources import files

from alchemy.errors import InputError
from tace.wording import hint

INIT_KINDS: dict[str, str] = {
    "molecule": "a urea molecule, GFN2-xTB below PBE; needs tblite and PySCF",
    "metal": "bulk copper with ASE's EMT potential, about a minute, no other program",
}
_START_FILES = {"molecule": "urea.xyz", "metal": "copper.xyz"}


def init_files(kind: str) -> dict[str, str]:
    """File names and contents of a new campaign of that kind; `campaign.yaml` is the first."""
    if kind not in INIT_KINDS:
        raise InputError(f"no template '{kind}'; {hint(kind, tuple(INIT_KINDS))}")
    folder = files("alchemy_templates") / "campaigns"
    names = {"campaign.yaml": f"{kind}.yaml", _START_FILES[kind]: _START_FILES[kind]}
    return {name: (folder / source).read_text(encoding="utf-8") for name, source in names.items()}
