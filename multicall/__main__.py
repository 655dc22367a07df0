"""argv[0] -> a row of the table -> its module -> main(). Imports nothing but the table: every command starts fast."""

import sys

from multicall import VERSION, applets


def usage() -> str:
    """Return the text that names every command, a line each."""
    rows = "\n".join(f"  {applet.name:<10} {applet.summary}" for applet in applets.TABLE)
    head = f"pycpu {VERSION}: one program, many names. Call it by a link with the command's name, or"
    return f"{head}\n\n  cpu.pyz COMMAND [ARGUMENTS]\n\n{rows}\n"


def main() -> int:
    """Run the command this process was called as, else the one named by its first argument. Returns an exit status."""
    name = sys.argv[0].rpartition("/")[2]
    argv = [name, *sys.argv[1:]]
    applet = applets.find(name)
    if applet is None and len(sys.argv) > 1:
        argv = sys.argv[1:]
        applet = applets.find(argv[0])
    if applet is None:
        asked = len(sys.argv) > 1 and sys.argv[1] in ("-h", "--help", "help")
        (sys.stdout if asked else sys.stderr).write(usage())
        return 0 if asked else 127
    from importlib import import_module

    status: int = import_module(applet.module).main(argv)
    return status


if __name__ == "__main__":
    sys.exit(main())
