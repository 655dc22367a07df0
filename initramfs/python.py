"""The minimal Python of a board: interpreter, the modules that its applets can import, the libraries they need.

Everything is taken from unpacked Debian packages and wheels of the board's architecture; nothing of it runs here.
Modules are shipped compiled, as name.pyc where name.py would be: one file a module, no stat of a source.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from initramfs import closure, elf
from initramfs.closure import Module, Origin, Rules
from initramfs.problem import Problem, reason

STANDINS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "standin")
"""Modules of ours that are shipped instead of the ones of the same name: each says why."""
MAGIC = 3495
"""The number of a .pyc that Python 3.11 reads (Lib/importlib/_bootstrap_external.py)."""
INTERPRETER = "usr/bin/python3.11"
STDLIB = "usr/lib/python3.11"
PAYLOAD = "usr/lib/pycpu"
"""Where modules lie on a board: the standard library where the interpreter looks, everything else in our own folder."""
OWN = "pycpu"
"""The label of our own modules: they keep their docstrings, which are what --help prints."""

ALWAYS = (
    "encodings.aliases",
    "encodings.ascii",
    "encodings.utf_8",
    "encodings.latin_1",
    "encodings.idna",
    "os",
    "site",
    "codecs",
    "io",
    "abc",
    "stat",
    "posixpath",
    "_pyfuse3",
    "pyfuse3_asyncio",
)
"""What is imported by the interpreter itself or by a name that only exists at run time: codecs; the Python halves of
the pyfuse3 extension. The interpreter knows where its library is by os.pyc."""

RULES = Rules(
    extra={
        ("cryptography.hazmat.bindings._rust", "_cffi_backend"): "its OpenSSL bindings are cffi's",
        ("_ctypes", "ctypes"): "the extension's Python half",
        ("_asyncio", "asyncio"): "the extension asks for its Python half",
        ("datetime", "_strptime"): "datetime.strptime imports it from C",
        ("time", "_strptime"): "time.strptime imports it from C",
        ("logging", "traceback"): "for messages with an exception",
    },
    excluded={
        "_aix_support": "another system",
        "_bootsubprocess": "another system",
        "_osx_support": "another system",
        "_pydecimal": "the C one is there",
        "bdb": "debugger",
        "bz2": "shutil and zipfile do without",
        "cmd": "debugger",
        "code": "debugger",
        "codeop": "debugger",
        "decimal": "random's self-test, by way of statistics",
        "distutils": "platform asks it about compilers",
        "doctest": "tests",
        "ftplib": "urllib.request's ftp: URLs",
        "fractions": "random's self-test, by way of statistics",
        "http": "urllib.request's http: URLs",
        "importlib._bootstrap": "the interpreter has it built in",
        "importlib._bootstrap_external": "the interpreter has it built in",
        "importlib.metadata": "no project's metadata is shipped; click asks for versions with it",
        "importlib.resources": "no data files are shipped",
        "idlelib": "editor",
        "lzma": "shutil and zipfile do without",
        "pdb": "debugger",
        "plistlib": "another system",
        "readline": "an interactive Python",
        "rlcompleter": "an interactive Python",
        "pydoc": "help()",
        "pydoc_data": "help()",
        "statistics": "random's self-test",
        "ssl": "asyncio does without; ssh is all that a board speaks, and OpenSSL is 4.5 MB",
        "tarfile": "shutil's archives",
        "test": "tests",
        "tkinter": "windows",
        "turtledemo": "windows",
        "webbrowser": "click opens one on request",
        "zipfile": "shutil's archives",
        "zipimport": "the interpreter has it built in",
        "xmlrpc": "multiprocessing's other format",
        "unittest": "tests; multicall.lib.net stands in for what pyroute2 wants of it",
        "_uuid": "uuid makes its own",
        "_hashlib": "OpenSSL's hashes; hashlib has its own",
        "trio": "ninep.fuse stands in for what pyfuse3 wants of it",
    },
    bare={
        "pyroute2": "multicall.lib.net imports its submodules below an empty package",
    },
    scanned={"cryptography.hazmat.bindings._rust": "Rust imports its exceptions and key classes by name"},
)


class File(NamedTuple):
    """A file of the image: its path on the board without leading slash, contents, permissions, size report's row."""

    target: str
    content: bytes
    mode: int
    component: str


class Sources(NamedTuple):
    """Where the parts lie on this machine. `packages` are folders of unpacked Debian packages with their labels."""

    architecture: str
    packages: Sequence[Origin]
    wheels: Sequence[Origin]
    own: Sequence[Origin]


def origins(sources: Sources) -> list[Origin]:
    """Return the folders with modules, the ones that win first."""
    found = [Origin(name, STANDINS, (name,)) for name in sorted(os.listdir(STANDINS))]
    for package in sources.packages:
        for folder in (STDLIB, "usr/lib/python3/dist-packages"):
            path = os.path.join(package.folder, folder)
            if os.path.isdir(path):
                found.append(Origin(package.label, path))
    return [*found, *sources.wheels, *sources.own]


def plan(sources: Sources, roots: Iterable[str]) -> dict[str, Module]:
    """Return the modules of an image by name, for what its applets' modules (`roots`) can import. Raises Problem."""
    modules = closure.index(origins(sources))
    wanted = [*roots]
    missing = [name for name in wanted if name not in modules]
    if missing:
        raise Problem(f"module {', '.join(missing)}: not in this repository", "multicall/applets.py names it")
    return closure.close([*wanted, *ALWAYS], modules, RULES)


def target(module: Module) -> str:
    """Return where a module lies on the board."""
    path = module.name.replace(".", "/")
    if module.is_package:
        path += "/__init__"
    if module.path.endswith(closure.SOURCE):
        return f"{STDLIB if module.origin == 'stdlib' else PAYLOAD}/{path}.pyc"
    if f"{os.sep}lib-dynload{os.sep}" in module.path:
        return f"{STDLIB}/lib-dynload/{os.path.basename(module.path)}"
    folder = os.path.dirname(path)
    return os.path.join(STDLIB if module.origin == "stdlib" else PAYLOAD, folder, os.path.basename(module.path))


def compile_all(modules: Sequence[Module]) -> list[File]:
    """Return the compiled form of source modules. Raises Problem."""
    magic = int.from_bytes(importlib.util.MAGIC_NUMBER[:2], "little")
    if magic != MAGIC:
        raise Problem(
            f"compile for Python 3.11 with Python {sys.version.split()[0]}: its bytecode is another",
            "run build.py with python3.11",
        )
    files = []
    with tempfile.TemporaryDirectory() as folder:
        outputs = [os.path.join(folder, str(number)) for number in range(len(modules))]
        jobs = [
            [module.path, f"/{target(module)[:-1]}", output, module.origin == OWN]
            for module, output in zip(modules, outputs, strict=True)
        ]
        worker = os.path.join(os.path.dirname(os.path.abspath(__file__)), "pyc.py")
        environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
        result = subprocess.run(
            [sys.executable, "-S", "-s", "-P", worker],
            input=json.dumps(jobs),
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            raise Problem(result.stderr.strip() or "compile modules: the compiler failed")
        for module, output in zip(modules, outputs, strict=True):
            with open(output, "rb") as file:
                files.append(File(target(module), file.read(), 0o644, module.origin))
    return files


def build(sources: Sources, roots: Iterable[str], progress: Callable[[str], None]) -> list[File]:
    """Return everything Python of an image: interpreter, modules, libraries. Raises Problem."""
    modules = plan(sources, roots)
    plain = [module for module in modules.values() if module.path.endswith(closure.SOURCE)]
    extensions = [module for module in modules.values() if not module.path.endswith(closure.SOURCE)]
    progress(f"compiling {len(plain)} modules")
    files = compile_all(plain)
    progress(f"stripping {len(extensions) + 1} programs and extensions, and their libraries")
    strip = elf.find_strip(sources.architecture)
    labels = {package.folder: package.label for package in sources.packages}
    interpreter = _find(sources, INTERPRETER)
    binaries = [(INTERPRETER, interpreter, labels[interpreter.removesuffix(f"/{INTERPRETER}")], 0o755)]
    binaries += [(target(module), module.path, module.origin, 0o644) for module in extensions]
    libraries = elf.library_index(labels, sources.architecture)
    needed = elf.closure([path for _target, path, _label, _mode in binaries], libraries)
    loader = elf.LOADERS[sources.architecture]
    for name, path in needed.items():
        label = next(label for folder, label in labels.items() if path.startswith(f"{os.path.realpath(folder)}/"))
        place = loader if name == os.path.basename(loader) else f"lib/{elf.TRIPLETS[sources.architecture]}/{name}"
        binaries.append((place, path, label, 0o755))
    for place, path, label, mode in binaries:
        if elf.machine(path) != elf.MACHINES[sources.architecture]:
            raise Problem(f"{path} is for {elf.machine(path)}, the board is {sources.architecture}")
        try:
            files.append(File(place, elf.stripped(path, strip), mode, label))
        except OSError as error:
            raise Problem(f"read {path}: {reason(error)}") from error
    return files


def _find(sources: Sources, path: str) -> str:
    for package in sources.packages:
        if os.path.isfile(os.path.join(package.folder, path)):
            return os.path.join(package.folder, path)
    raise Problem(f"no Debian package of the image has {path}")
