"""The commands: one zipapp, many names. See applets.py for the table."""

VERSION = "0.1.0"
