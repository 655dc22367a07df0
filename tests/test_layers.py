"""The arrows between the packages, and the one home of each foreign package, held by reading every import."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent

MAY_IMPORT = {
    # part: what of ours it may import
    "ninep": {"ninep"},
    "multicall/lib": {"multicall", "multicall.lib", "ninep"},
    "multicall/tools": {"multicall", "multicall.applets", "multicall.lib", "ninep"},
    "multicall": {"multicall", "multicall.applets", "multicall.lib", "ninep"},
    "initramfs": {"initramfs", "multicall.applets", "multicall"},
}

HOMES = {
    # foreign package: the files that may import it
    "asyncssh": "multicall/lib/ssh*.py",
    "pyfuse3": "ninep/fuse.py",
    "pyroute2": "multicall/lib/net.py",
    "shiv": "initramfs/payload.py",
    "elftools": "initramfs/*.py",
    "click": "*.py",
    "pkg_resources": "nowhere",
    "setuptools": "nowhere",
}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def part_of(path: Path) -> str:
    folder = path.parent.relative_to(TOP).as_posix()
    return folder if folder in MAY_IMPORT else folder.split("/")[0]


def sources() -> list[Path]:
    return [path for part in ("ninep", "multicall", "initramfs") for path in sorted((TOP / part).rglob("*.py"))]


def test_arrows_point_one_way() -> None:
    wrong = []
    for path in sources():
        allowed = MAY_IMPORT[part_of(path)]
        for name in imports(path):
            if name.split(".")[0] not in ("ninep", "multicall", "initramfs", "tests", "build"):
                continue
            package = ".".join(name.split(".")[:2]) if name.startswith("multicall.") else name.split(".")[0]
            if package == "multicall.VERSION":
                package = "multicall"
            if package not in allowed:
                wrong.append(f"{path.relative_to(TOP)} imports {name}")
    assert not wrong


def test_foreign_packages_have_one_home() -> None:
    known = set(sys.stdlib_module_names) | {"ninep", "multicall", "initramfs", "__future__"}
    wrong = []
    for path in sources():
        relative = path.relative_to(TOP)
        for name in imports(path):
            package = name.split(".")[0]
            if package not in known and not relative.match(HOMES.get(package, "nowhere")):
                wrong.append(f"{relative} imports {package}")
    assert not wrong


def test_the_dispatcher_imports_only_the_table() -> None:
    tree = ast.parse((TOP / "multicall/__main__.py").read_text())
    top_level = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in top_level for alias in node.names}
    assert names == {"sys", "VERSION", "applets"}


def test_every_command_is_in_the_table_and_every_row_has_its_file() -> None:
    sys.path.insert(0, str(TOP))
    from multicall import applets

    modules = {applet.module for applet in applets.TABLE}
    files = {f"multicall.{path.stem}" for path in (TOP / "multicall").glob("*.py")}
    files -= {"multicall.__init__", "multicall.__main__", "multicall.applets"}
    files |= {f"multicall.tools.{path.stem}" for path in (TOP / "multicall/tools").glob("*.py")}
    files -= {"multicall.tools.__init__"}
    assert modules == files
    assert len({applet.name for applet in applets.TABLE}) == len(applets.TABLE)
