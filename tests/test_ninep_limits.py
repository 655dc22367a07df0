"""What a peer may make us keep has a limit, the limit a name, and the name a reason beside it."""

import re
from pathlib import Path

NINEP = Path(__file__).resolve().parent.parent / "ninep"
LIMIT = re.compile(r"^([A-Z_]+_(?:MAX|MIN|SIZE|S)|WINDOW|MAX_NAMES|HIGH_WATER|[A-Z]+_SIZE_MAX) = (.*)$", re.M)

# The limit of each thing that a peer decides the number or size of; each is met in a test of the module's.
KNOWN = {
    "codec": {"MSIZE_MIN", "MSIZE_MAX", "VERSION_SIZE"},
    "message": {"MAX_NAMES", "ERRNO_MAX"},
    "file": {"NAME_MAX"},
    "server": {"FIDS_MAX", "XATTR_FIDS_MAX", "XATTR_SIZE_MAX", "OUTSTANDING_MAX", "HELD_MAX", "FLUSH_SIZE"},
    "client": {"OUTSTANDING_MAX", "TAGS_MAX", "CLUNKS_MAX", "CLUNKS_WAITING_MAX"},
    "remote": {"WINDOW", "XATTR_SIZE_MAX", "IOUNIT_MIN"},
    "stream": {"HIGH_WATER", "LINGER_S"},
    "fifo": {"OPENS_MAX"},
    "fusetree": {"FILES_MAX"},
}


def test_limits_have_a_reason() -> None:
    for module, names in KNOWN.items():
        found = dict(LIMIT.findall((NINEP / f"{module}.py").read_text()))
        assert names <= found.keys(), f"ninep/{module}.py has no {names - found.keys()}"
        for name in names - {"MSIZE_MAX"}:  # which is MSIZE_DEFAULT
            assert "  # " in found[name], f"ninep/{module}.py: {name} has no reason"
