"""The one time of everything that is made: SOURCE_DATE_EPOCH, as reproducible-builds.org specifies it."""

import os

from initramfs.problem import Problem

VARIABLE = "SOURCE_DATE_EPOCH"


def get(default: int) -> int:
    """Return the time that made files have, in seconds since 1970. Raises Problem when the environment's is none."""
    text = os.environ.get(VARIABLE, str(default))
    if not text.isdecimal() or int(text) > 0xFFFFFFFF:
        raise Problem(f"{VARIABLE}={text}: must be seconds since 1970")
    return int(text)
