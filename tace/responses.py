"""What a model of a given configuration can predict, and the shape of each quantity."""

from __future__ import annotations

from .config import TaceConfig
from .errors import TaceError
from .quantities import LABELS, Scope

ALWAYS = ("energy", "forces", "stress", "hessian", "atomic_energies", "atomic_virials")
OF_FIELD = ("dipole", "polarization", "polarizability", "born_charges")


def available(config: TaceConfig) -> tuple[str, ...]:
    """Names of everything that the model predicts, directly or as a derivative."""
    names = dict.fromkeys(ALWAYS)
    names |= dict.fromkeys(head.name for head in config.heads)
    inputs = config.input_names
    if "electric_field" in inputs:
        names |= dict.fromkeys(OF_FIELD)
    if "magnetic_moments" in inputs:
        names["magnetic_forces"] = None
    if "collinear_moments" in inputs:
        names["collinear_forces"] = None
    if config.les is not None:
        names |= dict.fromkeys(("latent_charges", "born_charges"))
    return tuple(names)


def label_shape(name: str, config: TaceConfig) -> tuple[Scope, tuple[int, ...]]:
    """Scope and shape (per structure or per atom) of a quantity that is trained on.

    Raises:
        TaceError: the model does not predict it; says what would make it do so.
    """
    for head in config.heads:
        if head.name == name:
            rank = len(head.symmetry.split("=")[0])
            scope: Scope = "atom" if head.scope == "atom" else "structure"
            return scope, (3,) * rank
    if name not in available(config):
        raise TaceError(f"the model does not predict '{name}'; {_remedy(name)}")
    return LABELS[name].scope, LABELS[name].shape


def _remedy(name: str) -> str:
    if name in ("magnetic_forces", "collinear_forces"):
        needed = "magnetic_moments" if name[0] == "m" else "collinear_moments"
        return f"add '{needed}' to its inputs"
    if name == "charges":
        return "add a head {name: charges, scope: atom, charges: qeq}"
    if name in OF_FIELD:
        return f"add 'electric_field' to its inputs, or a head named '{name}'"
    return f"add a head named '{name}' with its scope and symmetry"
