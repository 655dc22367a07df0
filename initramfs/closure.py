"""Which Python modules a program can import, found by reading the sources: nothing is run, so any architecture will do.

Every import statement counts, those in functions too, except what cannot happen on a board: `if TYPE_CHECKING`, the
main part of a library, another system's branch. Names that are computed are invisible here: python.py's tables add
them, and take away what is only there for uses that a board has not; each with its reason.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from initramfs.problem import Problem

VERSION = (3, 11)
"""The Python of a board, for `if sys.version_info` in what it imports."""
SOURCE = ".py"
IMPORTERS = ("import_module", "importlib.import_module", "__import__")
FACTS = {"sys.platform": "linux", "os.name": "posix"}


class Module(NamedTuple):
    """A module that could be shipped: its dotted name, its file, whether it is a package, the origin it came from."""

    name: str
    path: str
    is_package: bool
    origin: str


class Origin(NamedTuple):
    """A folder that is, or goes into, the module path of a board; `label` is what a size report calls it.

    `only`, when given, names the packages in the folder that count: a repository holds more than what is shipped.
    """

    label: str
    folder: str
    only: tuple[str, ...] = ()


def index(origins: Iterable[Origin]) -> dict[str, Module]:
    """Return every module below the origins' folders by its name; the first origin that has a name wins."""
    found: dict[str, Module] = {}
    for origin in origins:
        for where, folders, files in os.walk(origin.folder):
            folders[:] = sorted(name for name in folders if _is_module_folder(name))
            package = os.path.relpath(where, origin.folder).replace(os.sep, ".")
            if package == "." and origin.only:
                folders[:], files = list(origin.only), []
            prefix = "" if package == "." else f"{package}."
            for file in sorted(files):
                stem, dot, suffix = file.partition(".")
                if not dot or not (suffix == "py" or suffix == "so" or suffix.endswith(".so")):
                    continue
                is_package = stem == "__init__"
                name = package if is_package else prefix + stem
                if stem.isidentifier() and name != ".":
                    found.setdefault(name, Module(name, os.path.join(where, file), is_package, origin.label))
    # Extensions of the standard library lie in a folder of the module path, not in a package.
    for name in [name for name in found if name.startswith("lib-dynload.")]:
        found.setdefault(name.partition(".")[2], found.pop(name))
    return found


def _is_module_folder(name: str) -> bool:
    return (name.isidentifier() and name != "__pycache__") or name == "lib-dynload"


def _decide(test: ast.expr) -> bool | None:
    """What a condition is on a board, when that is certain."""
    text = ast.unparse(test)
    if text in ("TYPE_CHECKING", "typing.TYPE_CHECKING", "__name__ == '__main__'"):
        return False
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        inner = _decide(test.operand)
        return None if inner is None else not inner
    if isinstance(test, ast.BoolOp):
        values = [_decide(value) for value in test.values]
        decisive = isinstance(test.op, ast.Or)
        if decisive in values:
            return decisive
        return None if None in values else not decisive
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        return _compare(ast.unparse(test.left), test.ops[0], test.comparators[0])
    match = re.fullmatch(r"sys\.platform\.startswith\('(\w+)'\)", text)
    return "linux".startswith(match[1]) if match else None


def _compare(left: str, operator: ast.cmpop, right: ast.expr) -> bool | None:
    try:
        value = ast.literal_eval(right)
    except ValueError:
        return None
    if left in FACTS:
        if isinstance(operator, ast.Eq):
            return bool(FACTS[left] == value)
        if isinstance(operator, ast.NotEq):
            return bool(FACTS[left] != value)
    if left == "sys.version_info" and isinstance(value, tuple):
        known = VERSION[: len(value)]
        if isinstance(operator, ast.GtE | ast.Gt):
            return bool(known >= value)
        if isinstance(operator, ast.Lt | ast.LtE):
            return bool(known < value)
    return None


def _statements(body: Sequence[ast.AST]) -> Iterator[ast.Import | ast.ImportFrom | ast.Call]:
    """Yield the imports, and the calls that could be imports, that can run on a board."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If):
            known = _decide(node.test)
            if known is not False:
                yield from _statements(node.body)
            if known is not True:
                yield from _statements(node.orelse)
        else:
            if isinstance(node, ast.Call):
                yield node
            yield from _statements(list(ast.iter_child_nodes(node)))


def imports(source: bytes, name: str, is_package: bool, path: str = "") -> list[tuple[str, tuple[str, ...]]]:
    """Return what a source imports: (module, names taken from it); relative ones made absolute. Raises Problem."""
    try:
        tree = ast.parse(source, path or name)
    except (SyntaxError, ValueError) as error:
        raise Problem(f"read {path or name}: {error}") from error
    package = name if is_package else name.rpartition(".")[0]
    found: list[tuple[str, tuple[str, ...]]] = []
    for node in _statements([tree]):
        if isinstance(node, ast.Import):
            found += [(alias.name, ()) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".") if package else []
            base = base[: len(base) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found.append((module, tuple(alias.name for alias in node.names)))
        else:
            found += [(name, ()) for name in _named(node)]
    return found


def _named(call: ast.Call) -> Iterator[str]:
    """Yield the module that a call imports by a name that stands in the source."""
    if ast.unparse(call.func) in IMPORTERS and call.args:
        name = call.args[0]
        if isinstance(name, ast.Constant) and isinstance(name.value, str):
            yield name.value


def names_in(content: bytes, package: str, modules: Mapping[str, Module]) -> set[str]:
    """Return the modules of a package whose dotted names occur in a binary, such as those a Rust extension asks for.

    Texts lie in it end to end, so the longest beginning that is a module is taken.
    """
    found = set()
    for match in re.finditer(re.escape(package.encode()) + rb"(?:\.[a-z_0-9]+)+", content):
        name = match[0].decode()
        while name:
            if name in modules:
                found.add(name)
                break
            name = name[:-1]
    return found


class Rules(NamedTuple):
    """What reading the sources cannot know. Every row's value is the reason."""

    extra: Mapping[tuple[str, str], str]
    "(importer, module): imported by a name that is computed, or by an extension"
    excluded: Mapping[str, str]
    "module, with all below it: not shipped, the import fails on the board and that is what its importer expects"
    bare: Mapping[str, str]
    "package: shipped, but what its own __init__ imports is not followed"
    scanned: Mapping[str, str]
    "extension module: the names of its package's modules are found in its bytes"


def close(roots: Iterable[str], modules: Mapping[str, Module], rules: Rules) -> dict[str, Module]:
    """Return the modules that the roots can import, by name. What is in no origin is taken to be built in."""
    found: dict[str, Module] = {}
    queue = sorted(roots)
    while queue:
        name = queue.pop()
        if name in found or name not in modules or is_excluded(name, rules.excluded):
            continue
        module = modules[name]
        found[name] = module
        if "." in name:
            queue.append(name.rpartition(".")[0])
        queue += [target for importer, target in rules.extra if importer == name]
        queue += _wanted_by(module, modules, rules)
    return dict(sorted(found.items()))


def _wanted_by(module: Module, modules: Mapping[str, Module], rules: Rules) -> list[str]:
    if module.name in rules.bare:
        return []
    with open(module.path, "rb") as file:
        content = file.read()
    if not module.path.endswith(SOURCE):
        return sorted(names_in(content, module.name.partition(".")[0], modules)) if module.name in rules.scanned else []
    wanted = []
    for target, names in imports(content, module.name, module.is_package, module.path):
        wanted.append(target)
        for name in names:
            if name == "*":
                continue
            if f"{target}.{name}" in modules:
                wanted.append(f"{target}.{name}")
        # "import a.b.c" also imports a and a.b; `close` adds parents of what exists.
        while "." in target and target not in modules:
            target = target.rpartition(".")[0]
            wanted.append(target)
    return wanted


def is_excluded(name: str, excluded: Mapping[str, str]) -> bool:
    """Whether a module, or a package it is in, is a row of `excluded`."""
    parts = name.split(".")
    return any(".".join(parts[: count + 1]) in excluded for count in range(len(parts)))
