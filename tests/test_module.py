"""Kernel modules: the order, what is told of a failure, and the system call itself."""

import errno
import os
from pathlib import Path

import pytest

from multicall.lib import module


def test_modules_go_in_in_order_and_a_failure_is_told(tmp_path: Path) -> None:
    (tmp_path / "b.ko").write_text("")
    tried: list[str] = []
    problems: list[str] = []

    def insert(path: str) -> bool:
        name = os.path.basename(path)
        tried.append(name)
        if name in ("a.ko", "b.ko"):
            raise OSError(errno.ENOENT, "x")
        if name == "c.ko":
            raise OSError(errno.ENOEXEC, "x")
        return name != "d.ko"

    loaded = module.insert_all(["a.ko", "b.ko", "c.ko", "d.ko", "e.ko"], problems.append, str(tmp_path), insert)
    assert tried == ["a.ko", "b.ko", "c.ko", "d.ko", "e.ko"]
    assert loaded == 2, "one that the kernel has already counts"
    assert problems == [
        "load module a.ko: No such file or directory",
        "load module b.ko: a symbol is missing: something that it depends on is not loaded",
        "load module c.ko: Exec format error",
    ]


def test_the_kernel_refuses_what_is_no_module(tmp_path: Path) -> None:
    (tmp_path / "x.ko").write_bytes(b"\x7fELF no")
    with pytest.raises(OSError, match=r"Exec format error|Operation not permitted|Function not implemented"):
        module.insert(str(tmp_path / "x.ko"))
    with pytest.raises(FileNotFoundError):
        module.insert(str(tmp_path / "y.ko"))
