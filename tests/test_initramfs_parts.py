"""The small parts of the builder, each on its own: profiles, packing, packages, locks, imports, modules."""

import dataclasses
import lzma
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from initramfs import closure, compress, debian, elf, files, kernel, profile, pyc, python, report, wheel
from initramfs.problem import Problem

MINIMAL = """
architecture = "amd64"
kernel = "linux-image-amd64"
console = "ttyS0"
cmdline = "console=ttyS0"
"""


def test_the_profiles_of_the_repository_are_right() -> None:
    assert "qemu-x86_64" in profile.names()
    for name in profile.names():
        board = profile.load(name)
        assert board.name == name
        assert board.summary
        assert "init" in board.applets
        assert "cpud" in board.applets
        assert "cpu" not in board.applets


def test_a_profile_can_be_a_path(tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text(MINIMAL + 'budget = "2 MiB"\n')
    board = profile.load(str(tmp_path / "my.toml"))
    assert (board.name, board.budget, board.network) == ("my", 2 << 20, "dhcp")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("modlues = []", r"b\.toml: modlues: no such key\nhint: did you mean modules\?"),
        ('network = "wifi"', "network = 'wifi': must be one of dhcp, none"),
        ('memory_mib = "much"', "memory_mib = 'much': must be a whole number"),
        ('budget = "8 MB"', "must be a size"),
        ('modules = "9p"', "modules = '9p': must be a list"),
        ('applets = ["cpu"]', "not cpu"),
        ("console = ", "b.toml: "),
        ('compressor = "lzop"', "one of raw, gzip, xz"),
    ],
)
def test_what_is_wrong_in_a_profile_is_told(line: str, told: str) -> None:
    with pytest.raises(Problem, match=told):
        profile.parse("b", MINIMAL + line, "b.toml")


def test_what_a_profile_lacks_is_told() -> None:
    with pytest.raises(Problem, match=r"b\.toml: kernel is missing"):
        profile.parse("b", 'architecture = "amd64"', "b.toml")
    with pytest.raises(Problem, match=r"board nowhere: no such profile\nhint: there are .*qemu-x86_64"):
        profile.load("nowhere")


@pytest.mark.parametrize("name", [row.name for row in compress.TABLE])
@pytest.mark.parametrize("architecture", ["amd64", "arm64", "armhf"])
def test_compressors_are_undone_and_repeatable(name: str, architecture: str) -> None:
    content = Path(sys.executable).read_bytes()[:200_000]
    pack = compress.get(name).pack
    assert compress.unpack(pack(content, architecture, 6)) == content
    assert pack(content, architecture, 6) == pack(content, architecture, 6)
    assert compress.unpack(pack(b"", architecture, 6)) == b""


def test_xz_is_what_the_kernel_takes() -> None:
    packed = compress.get("xz").pack(b"x" * 1000, "amd64", 6)
    assert lzma.LZMADecompressor().decompress(packed) == b"x" * 1000
    assert struct.unpack(">H", packed[6:8])[0] == lzma.CHECK_CRC32


def test_only_debian_mirrors_are_taken_from_the_machine(tmp_path: Path) -> None:
    (tmp_path / "sources.list").write_text("# deb http://old/debian x\ndeb [arch=amd64] http://near/debian/ x main\n")
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d/other.list").write_text("deb https://example.org/node_20.x nodistro main\n")
    (tmp_path / "sources.list.d/sec.sources").write_text("Types: deb\nURIs: http://near/debian-security\nSuites: x\n")
    (tmp_path / "sources.list.d/off.disabled").write_text("deb http://wrong/debian x main\n")
    found = debian.mirrors(str(tmp_path))
    assert found == {"debian": "http://near/debian", "debian-security": "http://near/debian-security"}
    text = debian.sources(found)
    assert text.count(f"Signed-By: {debian.KEYRING}") == 2
    assert debian.mirrors(str(tmp_path / "nothing")) == debian.DEFAULT_MIRRORS


def test_the_lock_has_every_wheel_of_the_image() -> None:
    from initramfs import image

    pins = wheel.pins((image.LOCK / "payload.txt").read_text())
    debs, wheels = image.parts("amd64")
    for row in wheels:
        pin = pins[wheel.normal(row["name"])]
        assert pin.hashes
        assert "# via" not in pin.text
    for row in [*debs, *wheels]:
        assert set(row) >= {"name", "component", "reason"}


SOURCE = b"""
import os.path, sys
from typing import TYPE_CHECKING
from . import sibling
from ..other import thing
if TYPE_CHECKING:
    import never
if sys.platform == "win32":
    import winreg
else:
    import posix
if sys.version_info >= (3, 12) or not sys.platform.startswith("linux"):
    import later
try:
    import maybe
except ImportError:
    pass
def function():
    import inside
    return import_module("named")
if __name__ == "__main__":
    import doctest
"""


def test_imports_that_can_happen_on_a_board() -> None:
    found = dict(closure.imports(SOURCE, "top.package.module", is_package=False))
    assert set(found) == {
        "os.path", "sys", "typing", "top.package", "top.other", "posix", "maybe", "inside", "named",
    }  # fmt: skip
    assert found["top.package"] == ("sibling",)
    assert found["top.other"] == ("thing",)


def test_a_closure_is_what_can_be_reached(tmp_path: Path) -> None:
    texts = {
        "start.py": "import pack.one\nfrom pack import two, NAME\nimport heavy\n",
        "pack/__init__.py": "import pack_needs\n",
        "pack/one.py": "",
        "pack/two.py": "",
        "pack/three.py": "",
        "pack_needs.py": "",
        "heavy.py": "import heavier\n",
        "heavier.py": "",
        "extra.py": "",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    modules = closure.index([closure.Origin("here", str(tmp_path))])
    rules = closure.Rules(extra={("pack.one", "extra"): ""}, excluded={"heavy": ""}, bare={}, scanned={})
    assert set(closure.close(["start"], modules, rules)) == {
        "start", "pack", "pack.one", "pack.two", "pack_needs", "extra",
    }  # fmt: skip
    bare = rules._replace(bare={"pack": ""})
    assert "pack_needs" not in closure.close(["start"], modules, bare)


def test_compiled_modules_run_without_their_sources(tmp_path: Path) -> None:
    source = b'"""Doc."""\n\n\ndef double(x: int) -> int:\n    """Twice."""\n    assert x, "none"\n    return 2 * x\n'
    (tmp_path / "module.pyc").write_bytes(pyc.compiled(source, "/usr/lib/module.py", False))
    (tmp_path / "kept.pyc").write_bytes(pyc.compiled(source, "/usr/lib/kept.py", True))
    check = (
        "import module, kept; assert (module.double(2), module.__doc__, kept.double.__doc__) == (4, None, 'Twice.')\n"
        "try: module.double(0)\nexcept AssertionError as e: print(e.__traceback__.tb_next.tb_frame.f_code.co_filename)"
    )
    result = subprocess.run(
        [sys.executable, "-S", "-c", check], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "/usr/lib/module.py"
    assert pyc.compiled(source, "/x.py", False) == pyc.compiled(source, "/x.py", False)


def test_where_modules_lie_on_a_board() -> None:
    def module(name: str, path: str, is_package: bool = False, origin: str = "stdlib") -> closure.Module:
        return closure.Module(name, path, is_package, origin)

    assert python.target(module("json", "/a/json/__init__.py", True)) == "usr/lib/python3.11/json/__init__.pyc"
    assert python.target(module("_json", "/a/lib-dynload/_json.x.so")) == "usr/lib/python3.11/lib-dynload/_json.x.so"
    assert python.target(module("multicall.cpud", "/a/cpud.py", origin="pycpu")) == "usr/lib/pycpu/multicall/cpud.pyc"
    assert python.target(module("a._b", "/x/_b.abi3.so", origin="crypto")) == "usr/lib/pycpu/a/_b.abi3.so"


def test_elf_of_this_machine() -> None:
    host = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "armhf"}.get(os.uname().machine)
    if host is None:
        pytest.skip(f"no board has this machine's architecture, {os.uname().machine}")
    program = os.path.realpath("/bin/sh")
    assert elf.machine(program) == elf.MACHINES[host]
    needed = elf.needed(program)
    assert "libc.so.6" in needed
    found = elf.closure([program], elf.library_index(["/"], host))
    assert set(needed) <= set(found)
    with pytest.raises(Problem, match=r"needs libc\.so\.6: no package"):
        elf.closure([program], {})
    with pytest.raises(Problem, match="read /etc/passwd"):
        elf.needed("/etc/passwd")


def module_file(path: Path, *texts: str) -> None:
    """A kernel module as far as we read it: an ELF file whose .modinfo has these texts."""
    object_file = path.with_suffix(".o")
    section = path.with_suffix(".section")
    section.write_bytes(b"".join(text.encode() + b"\0" for text in texts))
    subprocess.run(["ld", "-r", "-b", "binary", "-o", object_file, os.devnull], check=True)
    subprocess.run(["objcopy", "--add-section", f".modinfo={section}", object_file, path], check=True)


def test_modules_come_after_what_they_need(tmp_path: Path) -> None:
    home = tmp_path / "lib/modules/6.1-x"
    (home / "kernel").mkdir(parents=True)
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot/vmlinuz-6.1-x").write_bytes(b"kernel")
    module_file(home / "kernel/low.ko", "license=GPL", "depends=")
    module_file(home / "kernel/mid-dle.ko", "depends=low,inside")
    module_file(home / "kernel/top.ko", "depends=mid-dle", "softdep=pre: soft absent post: late")
    module_file(home / "kernel/soft.ko", "depends=low")
    (home / "modules.builtin").write_text("kernel/inside.ko\n")
    found = kernel.find(str(tmp_path), ["top", "inside", "low"])
    assert found.release == "6.1-x"
    assert [row.name for row in found.modules] == ["low", "soft", "mid_dle", "top"]
    assert found.modules[2].target == "lib/modules/6.1-x/kernel/mid-dle.ko"
    with pytest.raises(Problem, match="module tpo: this kernel has none\nhint: similar: top"):
        kernel.find(str(tmp_path), ["tpo"])


def test_shares_add_up_to_the_file() -> None:
    assert (
        report.shares({"a": 3, "b": 3, "c": 1}, 1000) == {"a": 429, "b": 428, "c": 142}
        or sum(report.shares({"a": 3, "b": 3, "c": 1}, 1000).values()) == 1000
    )
    rows = (report.Row("python", 2, 2048, 700), report.Row(report.MODULES, 1, 1024, 300))
    made = report.Report("b", rows, 3072, 1000, budget=600, largest=(("a", 1),))
    assert made.without_modules == 700
    assert not made.fits()
    assert "over its budget" in made.text()
    assert dataclasses.replace(made, budget=700).fits()
    assert report.parse(made.json()) == made


def test_the_system_part_of_an_image() -> None:
    board = profile.load("qemu-x86_64")
    found = kernel.Kernel("6.1", "/vmlinuz", (kernel.Module("9p", "/x", "lib/modules/6.1/9p.ko"),), 7)
    entries = {item.entry.name.decode(): item.entry for item in files.system(board, found)}
    # Python as process 1 needs urandom; the binds of a session need real directories.
    assert entries["dev/urandom"].rdev == (1, 9)
    for name in ("lib", "lib64", "bin", "sbin", "usr/bin", "etc", "home", "proc", "sys", "dev", "tmp", "run", "root"):
        assert entries[name].mode & 0o170000 == 0o040000
    for name in board.applets:
        assert entries[f"usr/bin/{name}"].content == b"/usr/lib/pycpu/launch"
    assert "usr/bin/cpu" not in entries
    assert entries["init"].content == b"usr/lib/pycpu/launch"


def test_init_understands_what_the_image_tells_it() -> None:
    import json

    from multicall.lib import board as on_board

    board = dataclasses.replace(profile.load("qemu-x86_64"), cpud=("-d",))
    found = kernel.Kernel("6.1", "/vmlinuz", (kernel.Module("9p", "/x", "lib/modules/6.1/9p.ko"),), 7)
    problems: list[str] = []
    told = on_board.parse(json.dumps(files.settings(board, found)), problems.append)
    assert problems == []
    assert told.modules == ("/lib/modules/6.1/9p.ko",)
    assert told.network.mode == "dhcp"
    assert told.console == ("/dev/ttyS0",)
    assert told.cpud == ("-pk", "/etc/cpud/authorized_keys", "-hk", "/etc/cpud/host_key", "-d")
    assert told.build_time == 7
