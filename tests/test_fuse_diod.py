"""The conformance suite through our FUSE mount over a foreign 9P server: diod, with what it lacks listed."""

import asyncio
import os
from pathlib import Path

import pytest

import conformance
from ninep.localfs import LocalFile
from test_9p import diod, mounted, needs_diod, needs_fuse, needs_root

# What diod 1.0.24 does otherwise than a local file system and the mount cannot mend. Strict: better is a failure too.
WITHOUT = {
    "extended_attributes": "an attribute without bytes is removed",
    "hard_links": "works on paths: a fid is lost with the name it was walked by, though the file has another",
    "renames": "works on paths: a fid below a renamed directory is lost",
    "renames_of_a_place": "works on paths: a fid is lost when its file is renamed",
    "unlinked_files_live_on": "works on paths: ENOENT after unlinking",
}


@needs_diod
@needs_fuse
@needs_root
@pytest.mark.interop
@pytest.mark.fuse
@pytest.mark.root
def test_conformance(tmp_path: Path) -> None:
    export = tmp_path / "export"
    export.mkdir()
    failed = {}

    async def one(check: conformance.Check, folder: Path) -> None:
        root = LocalFile.root(os.fsencode(folder))
        try:
            await asyncio.wait_for(check(root), 20)
        finally:
            await root.clunk()

    with diod(export) as (at, _), mounted(tmp_path / "mnt", at, "-a", str(export)) as mount:
        for check in conformance.CHECKS:
            folder = mount.mountpoint / check.__name__
            folder.mkdir()
            try:
                asyncio.run(one(check, folder))
            except (AssertionError, OSError, TimeoutError) as error:
                failed[check.__name__] = error
    assert set(failed) == set(WITHOUT), failed
