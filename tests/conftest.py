"""What the tests share: where things are, and processes that are sure to end."""

import os
import sys
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP))

# What a person has in the environment must not decide a test.
for name in ("SSH_AUTH_SOCK", "PYTHONWARNINGS", "PYTHONPATH", "SHIV_ROOT"):
    os.environ.pop(name, None)
