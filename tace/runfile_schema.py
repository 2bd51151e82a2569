"""Which keys a run file may hold and what their values may be; every problem is collected, none raised."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, get_args, get_origin, get_type_hints

from .config import PRESETS, HeadConfig, InputConfig, LesConfig, TaceConfig
from .documents import Loc, Problem
from .quantities import INPUTS
from .settings import COMPILE, TrainSettings
from .wording import describe, hint

Check = Callable[[Any, Loc], list[Problem]]
OF_DATA = ("elements", "fidelities", "avg_neighbors")  # settings of a model that the data give
DTYPES = ("float32", "float64")


# ------------------------------------------------------------------ values
def _must(value: Any, loc: Loc, good: bool, what: str) -> list[Problem]:
    return [] if good else [Problem(loc, f"found {describe(value)}; must be {what}")]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def number(low: float | None = None, *, above: float | None = None, high: float | None = None) -> Check:
    """A number ≥ low, > above and ≤ high."""
    limits = [f"at least {low:g}"] if low is not None else []
    limits += [f"more than {above:g}"] if above is not None else []
    limits += [f"at most {high:g}"] if high is not None else []
    what = " ".join(["a number", ", ".join(limits)]).strip()

    def check(value: Any, loc: Loc) -> list[Problem]:
        good = _is_number(value) and (low is None or value >= low)
        good = good and (above is None or value > above) and (high is None or value <= high)
        return _must(value, loc, good, what)

    return check


def integer(low: int = 0) -> Check:
    def check(value: Any, loc: Loc) -> list[Problem]:
        good = isinstance(value, int) and not isinstance(value, bool) and value >= low
        return _must(value, loc, good, f"a whole number, at least {low}")

    return check


def whole(value: Any, loc: Loc) -> list[Problem]:
    good = isinstance(value, int) and not isinstance(value, bool)
    return _must(value, loc, good, "a whole number")


def text(value: Any, loc: Loc) -> list[Problem]:
    good = isinstance(value, str) and bool(value)
    return _must(value, loc, good, 'text; put numbers and true/false in "quotes"')


def boolean(value: Any, loc: Loc) -> list[Problem]:
    return _must(value, loc, isinstance(value, bool), "true or false")


def choice(*words: str) -> Check:
    def check(value: Any, loc: Loc) -> list[Problem]:
        if isinstance(value, str) and value in words:
            return []
        tail = hint(value, words) if isinstance(value, str) else f"must be {' or '.join(words)}"
        return [Problem(loc, f"found {describe(value)}; {tail}")]

    return check


def listing(each: Check) -> Check:
    def check(value: Any, loc: Loc) -> list[Problem]:
        if not isinstance(value, list):
            return _must(value, loc, False, "a list, such as [a, b]")
        return [p for n, item in enumerate(value) for p in each(item, (*loc, n))]

    return check


def one_or_more(each: Check) -> Check:
    """One value or a list that is not empty."""

    def check(value: Any, loc: Loc) -> list[Problem]:
        if not isinstance(value, list):
            return each(value, loc)
        return listing(each)(value, loc) if value else _must(value, loc, False, "a file or a list of files")

    return check


def table(each: Check, known: Collection[str] = ()) -> Check:
    """A mapping with free keys, or with some of the known ones."""

    def check(value: Any, loc: Loc) -> list[Problem]:
        if not isinstance(value, dict):
            return _must(value, loc, False, "a mapping of 'key: value'")
        found = []
        for key, item in value.items():
            if known and key not in known:
                found.append(Problem((*loc, key), f"unknown; {hint(key, known)}"))
            else:
                found += each(item, (*loc, key))
        return found

    return check


def block(
    keys: Mapping[str, Check], needed: Sequence[str] = (), refused: Mapping[str, str] | None = None
) -> Check:
    """A mapping with these keys; `refused` ones are told why."""

    def check(value: Any, loc: Loc) -> list[Problem]:
        if not isinstance(value, dict):
            return _must(value, loc, False, "a mapping of 'key: value'")
        found = [Problem((*loc, key), f"missing; add '{key}:'") for key in needed if key not in value]
        for key, item in value.items():
            if key in (refused or {}):
                found.append(Problem((*loc, key), (refused or {})[key]))
            elif key not in keys:
                found.append(Problem((*loc, key), f"unknown key; {hint(key, keys)}"))
            else:
                found += keys[key](item, (*loc, key))
        return found

    return check


@dataclass(frozen=True)
class Either:
    """Different checks for a mapping, text, a list, true or false and a number."""

    what: str
    mapping: Check | None = None
    words: Check | None = None
    items: Check | None = None
    switch: Check | None = None
    amount: Check | None = None

    def __call__(self, value: Any, loc: Loc) -> list[Problem]:
        kinds = ((dict, self.mapping), (str, self.words), (list, self.items), (bool, self.switch))
        for kind, check in (*kinds, ((int, float), self.amount)):
            if isinstance(value, kind):
                return check(value, loc) if check else _must(value, loc, False, self.what)
        return _must(value, loc, False, self.what)


def of_dataclass(kind: type, **special: Check) -> dict[str, Check]:
    """Checks of the fields by their types; ranges are left to the dataclass."""
    hints = get_type_hints(kind)
    simple = {int: whole, float: number(), str: text, bool: boolean}
    found: dict[str, Check] = {}
    for f in fields(kind):
        kind_of = hints[f.name]
        if f.name in special:
            found[f.name] = special[f.name]
        elif kind_of in simple:
            found[f.name] = simple[kind_of]
        elif get_origin(kind_of) is tuple and get_args(kind_of)[0] in simple:
            found[f.name] = listing(simple[get_args(kind_of)[0]])
        elif get_origin(kind_of) is dict:
            found[f.name] = table(simple[get_args(kind_of)[1]])
    return found


# ------------------------------------------------------------------ the blocks
_KEY = Either(
    "the name of a key, or {key: …, unit: …}",
    words=text,
    mapping=block(
        {
            "key": text,
            "unit": text,
            "sign": choice("ase", "vasp"),
            "order": choice("ase", "vasp"),
            "transpose": boolean,
            "mask": text,
        }
    ),
)
SOURCE = Either(
    "a file, or {file: …, fidelity: …}",
    words=text,
    mapping=block(
        {
            "file": text,
            "fidelity": text,
            "fidelity_key": text,
            "keys": table(_KEY),
            "units": table(text),
            "weight": number(above=0),
            "index": text,
            "options": table(lambda value, loc: []),
        },
        needed=("file",),
    ),
)
_E0 = Either(
    "'fit', a file of single atoms, or energies of every fidelity",
    words=text,
    mapping=table(Either("a number, or energies such as {H: -13.6}", mapping=table(number()), words=text,
                         amount=number())),
)  # fmt: skip
DATA = block(
    {
        "train": one_or_more(SOURCE),
        "valid": Either(
            "a share such as 0.1, or files", amount=number(0, high=0.9), words=text, mapping=SOURCE,
            items=listing(SOURCE),
        ),
        "test": one_or_more(SOURCE),
        "fidelities": listing(text),
        "fidelity_key": text,
        "keys": table(_KEY),
        "labels": listing(text),
        "e0_eV": _E0,
        "force_cap_eV_per_A": number(above=0),
        "split_seed": integer(),
    },
    needed=("train",),
)  # fmt: skip
_INPUT = Either(
    "the name of an input, or {name: …, scale: …}",
    words=choice(*INPUTS),
    mapping=block(of_dataclass(InputConfig, name=choice(*INPUTS)), needed=("name",)),
)
_HEAD = Either(
    "the name of a quantity, or {name: …, symmetry: …}",
    words=text,
    mapping=block(of_dataclass(HeadConfig, symmetry=lambda v, loc: _must(v, loc, isinstance(v, str), "text"),
                               charges=choice("qeq", "uniform", "free")), needed=("name",)),
)  # fmt: skip
MODEL = block(
    {
        **of_dataclass(
            TaceConfig,
            les=Either("true, false or its settings", switch=boolean, mapping=block(of_dataclass(LesConfig))),
            inputs=listing(_INPUT),
            heads=listing(_HEAD),
        ),
        "preset": choice(*PRESETS),
        "dtype": choice(*DTYPES),
        "init": text,
    },
    refused=dict.fromkeys(OF_DATA, "comes from the data; leave it out"),
)
TRAIN = block({**of_dataclass(TrainSettings, compile=choice(*COMPILE)), "max_cpu_minutes": number(above=0)},
              refused={"seed": "is a key of the run file itself; write 'seed:' beside 'train:'"})  # fmt: skip
FINETUNE = block(
    {
        "freeze": listing(text),
        "replay": block(
            {"data": one_or_more(SOURCE), "fraction": number(above=0, high=0.95)}, needed=("data",)
        ),
    }
)
_COMMON = {
    "data": DATA,
    "train": TRAIN,
    "checks": block({"labels": choice("error", "warn", "off")}),
    "seed": integer(),
    "threads": integer(1),
    "device": text,
    "out": text,
}
RUN = block({**_COMMON, "model": MODEL}, needed=("data",))
_GIVEN = ("preset", "init", *(f.name for f in fields(TaceConfig)))
FINETUNE_RUN = block(
    {
        **_COMMON,
        "finetune": FINETUNE,
        "model": block(
            {"dtype": choice(*DTYPES)},
            refused=dict.fromkeys(_GIVEN, "is that of the model which is fine-tuned; leave it out"),
        ),
    },
    needed=("data",),
)
