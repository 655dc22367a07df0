"""Run on a board, and beside it, by test_qemu_programs.py: takes locks as told, a word of answer for each line.

usage: on_board_lock.py FILE, then lines: (flock|fcntl) (try|wait|drop) [START LENGTH]
"""

import fcntl
import sys


def main() -> None:
    with open(sys.argv[1], "r+b") as file:
        print("ready", flush=True)
        for line in sys.stdin:
            kind, verb, *numbers = line.split()
            how = {"try": fcntl.LOCK_EX | fcntl.LOCK_NB, "wait": fcntl.LOCK_EX, "drop": fcntl.LOCK_UN}[verb]
            start, length = map(int, numbers or (0, 0))
            try:
                if kind == "flock":
                    fcntl.flock(file, how)
                else:
                    fcntl.lockf(file, how, length, start)
            except BlockingIOError:
                print("held", flush=True)
            else:
                print("done", flush=True)


main()
