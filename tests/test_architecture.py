"""The rules of docs/architecture.md, read off the syntax trees of every module."""

from __future__ import annotations

import ast
import functools
import importlib
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
MODULES = sorted(
    path.relative_to(ROOT).as_posix()
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
)
TESTS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("tests", "tests/bench")
    for path in (ROOT / folder).glob("*.py")
)
LONGEST_MODULE, LONGEST_FUNCTION = 400, 60

# imports go one way: a package may import the packages to its right, never to its left
DIRECTION = ("alchemy", "alchemy_policies", "tace")
# the only files that may import a package
DOORS = {
    "dask": ("alchemy/executors*.py",),
    "distributed": ("alchemy/executors*.py",),
    "dask_jobqueue": ("alchemy/executors*.py",),
    "pyiron_base": ("alchemy/pyiron_*.py",),
    "pysqa": ("alchemy/pyiron_*.py",),
    # a labeler may read its own input
    "ruamel": ("alchemy/labelers/*.py", "tace/documents.py"),
    "yaml": (),
    "tables": (),
    "dill": (),
    "joblib": (),
    "cloudpickle": (),
    "shelve": (),
    "marshal": (),
    "policies": (),
    "templates": (),
}


@functools.cache
def tree(module: str) -> ast.Module:
    return ast.parse((ROOT / module).read_text(encoding="utf-8"), filename=module)


def import_name(module: str) -> str:
    """'policies/alchemy_policies/md.py' → 'alchemy_policies.md'."""
    package = next(p for p in PACKAGES if module.startswith(f"{p}/"))
    relative = Path(module).relative_to(Path(package).parent).with_suffix("")
    parts = relative.parts[:-1] if relative.name == "__init__" else relative.parts
    return ".".join(parts)


def imported(module: str) -> Iterator[tuple[str, int]]:
    """Dotted name and line of every import, in functions and by import_module('…') too."""
    own = import_name(module).split(".")
    if not module.endswith("__init__.py"):
        own = own[:-1]
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = own[: len(own) - node.level + 1] if node.level else []
            yield ".".join([*base, *(node.module or "").split(".")]).strip("."), node.lineno
    for name, call in calls(module):
        by_name = name.endswith(("import_module", "__import__")) and call.args
        if by_name and isinstance(call.args[0], ast.Constant):
            yield str(call.args[0].value), call.lineno


def dotted(node: ast.expr) -> str:
    """'torch.load' for the expression torch.load; '' for what is not a name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def calls(module: str) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Call):
            yield dotted(node.func), node


def keyword(call: ast.Call, name: str) -> object:
    """Literal value of a keyword; None if absent, Ellipsis if it is not a literal."""
    for k in call.keywords:
        if k.arg == name:
            return k.value.value if isinstance(k.value, ast.Constant) else ...
    return None


def test_modules_are_found():
    assert {import_name(m).split(".")[0] for m in MODULES} == {Path(p).name for p in PACKAGES}


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module):
    own = import_name(module).split(".")[0]
    later = DIRECTION[DIRECTION.index(own) :] if own in DIRECTION else (own,)
    forbidden = (set(DIRECTION) | {"tests", "conftest"}) - set(later)
    wrong = [
        f"{name} (line {n})" for name, n in imported(module) if name.split(".")[0] in forbidden
    ]
    assert not wrong, f"{module} imports {', '.join(wrong)}"


@pytest.mark.parametrize("module", MODULES)
def test_guarded_packages_have_one_door(module):
    wrong = [
        f"{name} (line {line})"
        for name, line in imported(module)
        if not any(fnmatch(module, door) for door in DOORS.get(name.split(".")[0], ("*",)))
    ]
    assert not wrong, f"{module} imports {', '.join(wrong)}"


@pytest.mark.parametrize("module", MODULES)
def test_only_the_store_opens_hdf5_for_writing(module):
    if fnmatch(module, "alchemy/store/*"):
        return
    for name, call in calls(module):
        if name.split(".")[-1] in ("to_hdf", "HDFStore"):
            pytest.fail(f"{module}:{call.lineno} writes HDF5")
        if name in ("h5py.File", "File"):
            mode = call.args[1] if len(call.args) > 1 else None
            mode = mode.value if isinstance(mode, ast.Constant) else (keyword(call, "mode") or mode)
            assert mode in (None, "r"), (
                f"{module}:{call.lineno} opens HDF5 with another mode than 'r'"
            )


@pytest.mark.parametrize("module", MODULES)
def test_nothing_is_executed_from_data(module):
    """No pickles, no eval, no exec; the name of pickle's exception may be caught."""
    for name, line in imported(module):
        assert not name.startswith("pickle."), f"{module}:{line} imports from pickle"
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Attribute) and dotted(node).startswith("pickle."):
            assert node.attr in ("UnpicklingError", "PicklingError"), (
                f"{module}:{node.lineno} pickles"
            )
        if isinstance(node, ast.ImportFrom) and node.module == "pickle":
            pytest.fail(f"{module}:{node.lineno} imports from pickle")
    for name, call in calls(module):
        where = f"{module}:{call.lineno}"
        assert name not in ("eval", "exec", "compile", "builtins.eval", "builtins.exec"), where
        if name == "torch.load":
            assert keyword(call, "weights_only") is True, (
                f"{where}: torch.load without weights_only"
            )
        if name in ("np.load", "numpy.load"):
            assert keyword(call, "allow_pickle") in (None, False), f"{where}: np.load of pickles"


@pytest.mark.parametrize("module", MODULES)
def test_modules_and_functions_are_short(module):
    lines = len((ROOT / module).read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST_MODULE, f"{module} has {lines} lines"
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= LONGEST_FUNCTION, f"{module}: {node.name} has {length} lines"


def test_test_modules_are_short():
    lines = {module: len((ROOT / module).read_text(encoding="utf-8").splitlines()) for module in TESTS}
    assert {"tests/test_architecture.py", "tests/bench/harness.py"} <= lines.keys()
    long = {module: length for module, length in lines.items() if length > LONGEST_MODULE}
    assert not long, f"longer than {LONGEST_MODULE} lines: {long}; split them by subject"


@pytest.mark.parametrize("module", MODULES)
def test_modules_say_what_they_are(module):
    if tree(module).body:
        assert ast.get_docstring(tree(module)), f"{module} has no docstring"


def declared(module: str) -> list[str] | None:
    for node in tree(module).body:
        if isinstance(node, ast.Assign) and [dotted(t) for t in node.targets] == ["__all__"]:
            return ast.literal_eval(node.value)
    return None


@pytest.mark.parametrize("module", [m for m in MODULES if declared(m) is not None])
def test_all_is_exact_where_it_is_declared(module):
    names = declared(module)
    assert names is not None
    assert len(set(names)) == len(names), "a name is listed twice"
    loaded = importlib.import_module(import_name(module))
    missing = [name for name in names if not hasattr(loaded, name)]
    assert not missing, f"{module} does not have {missing}"
    public: set[str] = set()
    own = import_name(module).split(".")[0] + "."
    for node in tree(module).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            public.add(node.name)
        elif isinstance(node, ast.ImportFrom) and module.endswith("__init__.py"):
            inside = node.level or f"{node.module}.".startswith(own)
            public.update(alias.asname or alias.name for alias in node.names if inside)
    public = {name for name in public if not name.startswith("_")}
    assert public <= set(names), f"{module} hides {sorted(public - set(names))} from __all__"


def test_the_wheel_holds_the_packages_that_exist():
    for package in PACKAGES:
        assert (ROOT / package / "__init__.py").is_file(), package
    names = [Path(package).name for package in PACKAGES]
    assert len(set(names)) == len(names)
    assert not (ROOT / "policies/__init__.py").exists(), "the directory would be a second identity"
    assert not (ROOT / "templates/__init__.py").exists(), "the directory would be a second identity"


def test_templates_hold_data_and_no_code():
    code = [m for m in MODULES if import_name(m).split(".")[0] == "alchemy_templates"]
    for module in code:
        body = tree(module).body
        assert all(isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant) for n in body), (
            module
        )


ENTRY_POINTS = {
    f"{group}: {name}": target
    for group, table in {
        "scripts": PROJECT["project"]["scripts"],
        **PROJECT["project"]["entry-points"],
    }.items()
    for name, target in table.items()
}


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_entry_points_name_something_that_exists(name):
    """Without importing it: an optional dependency may be absent."""
    module, attribute = ENTRY_POINTS[name].split(":")
    files = [m for m in MODULES if import_name(m) == module]
    assert files, f"there is no module {module}"
    bound: set[str] = set()
    for node in tree(files[0]).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.Assign):
            bound.update(dotted(t) for t in node.targets)
        elif isinstance(node, ast.ImportFrom):
            bound.update(alias.asname or alias.name for alias in node.names)
    assert attribute in bound, f"{module} does not define {attribute}"
