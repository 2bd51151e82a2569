"""A level's labels come from one version of a program, unless the user accepted another, once.

The physics of a label is its fingerprint; the version stands beside it. A patch release is not meant to
change numbers, and sometimes does.
"""

from __future__ import annotations

import contextlib

from ..errors import EnvironmentProblemError, InputError
from ..identity import imported_fingerprint
from ..records import read_json, write_json_atomic
from ..store import Snapshot
from .context import Context

ACCEPTED = "accepted_codes"  # in campaign.json: fidelity -> versions


def require_known(context: Context, *, accept: bool = False, installed: bool = False) -> None:
    """Versions that labels were made with, against those that were accepted; the first of a level is.

    Args:
        accept: record whatever is new.
        installed: look also at what is installed here, before a label is made with it; a program that is
            only on other machines is judged by the first labels.

    Raises:
        InputError: a version that nobody accepted; it says which.
    """
    document = read_json(context.home.facts)
    known = {name: list(codes) for name, codes in document.get(ACCEPTED, {}).items()}
    before = {name: list(codes) for name, codes in known.items()}
    found = codes_in(context.store.snapshot())
    for name in context.fidelities:
        seen = sorted(found.get(name, {}))
        own = known.setdefault(name, [])
        if installed:
            with contextlib.suppress(EnvironmentProblemError):
                seen.append(context.labelers[name].code())
        if not own:
            own += seen[:1]
        for code in dict.fromkeys(seen):
            if code in own:
                continue
            if not accept:
                raise InputError(
                    f"fidelity '{name}': labels were made with {', '.join(own)}, and now with {code}; the "
                    "physics is the same, numbers may differ a little. 'alchemy run --accept-code-version' "
                    "accepts it once, or install the version from before"
                )
            own.append(code)
    if known != before:
        write_json_atomic(context.home.facts, {**document, ACCEPTED: known})


def codes_in(snapshot: Snapshot) -> dict[str, dict[str, int]]:
    """Good labels per fidelity and version of the program; imported ones have none."""
    names = ["fidelity", "code", "fingerprint"]
    table = snapshot.select("status == 'ok'", rows="labels", columns=names).columns
    found: dict[str, dict[str, int]] = {}
    for fidelity, code, mark in zip(*(table[name] for name in names), strict=True):
        if mark != imported_fingerprint(fidelity):
            own = found.setdefault(fidelity, {})
            own[code] = own.get(code, 0) + 1
    return found
