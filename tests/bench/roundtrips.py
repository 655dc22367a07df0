"""How many round trips whole commands cost: (time with a delay - time without) / delay, through FUSE, cold.

usage: python3 tests/bench/roundtrips.py [--delay-ms 100] [NAME...]

A cpud of this machine behind a proxy that holds every byte back by half the delay in each direction, bandwidth
untouched. Connection, keys and environment are counted: it is what a person waits for.
"""

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent.parent.parent)]

from rig import Cpud, free_port  # noqa: E402

REFERENCE = {
    # u-root/cpu's 9P messages alone, each a round trip of its own (measured with its Go programs on v9fs)
    "true": 249,
    "python3": 1785,
    "git": 420,
    "ls500": 3938,
}

COMMANDS = {
    "true": ["/bin/true"],
    "python3": ["/usr/bin/python3", "-c", "pass"],
    "git": ["git", "--version"],
    "ls500": ["ls", "-l", "many"],
    "cp-to-board": ["cp", "-r", "tree", "/tmp/root/copy"],
    "cp-from-board": ["sh", "-c", "cp -r /usr/share/zoneinfo/Europe back"],
}


class Proxy:
    """A TCP proxy in a thread of its own that delays each direction by half of `delay_s`."""

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self.delay_s = 0.0
        self._target = target
        self._ready = threading.Event()
        threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True).start()
        self._ready.wait()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._accepted, "127.0.0.1", self.port, limit=1 << 20)
        self._ready.set()
        async with server:
            await server.serve_forever()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward_reader, onward_writer = await asyncio.open_connection("127.0.0.1", self._target, limit=1 << 20)
        await asyncio.gather(self._carry(reader, onward_writer), self._carry(onward_reader, writer))

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        delay_s = self.delay_s / 2
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def deliver() -> None:
            while True:
                due, data = await queue.get()
                await asyncio.sleep(max(0, due - loop.time()))
                if not data:
                    writer.close()
                    return
                writer.write(data)

        delivering = asyncio.create_task(deliver())
        try:
            while data := await reader.read(1 << 20):
                queue.put_nowait((loop.time() + delay_s, data))
        except OSError:
            pass
        queue.put_nowait((loop.time() + delay_s, b""))
        try:
            await delivering
        except OSError:
            pass


def prepare(folder: Path) -> None:
    (folder / "many").mkdir()
    for index in range(500):
        (folder / "many" / f"file-{index:03}").write_text("x" * index)
    (folder / "tree").mkdir()
    for index in range(200):
        part = folder / "tree" / f"d{index % 10}"
        part.mkdir(exist_ok=True)
        (part / f"f{index}").write_bytes(bytes(index * 17))


def seconds(board: Cpud, port: int, words: list[str]) -> float:
    argv = board.argv(*words, options=("-p", str(port)))
    start = time.monotonic()
    result = subprocess.run(argv, env=board.environment(), cwd=board.folder, capture_output=True, check=False)
    took = time.monotonic() - start
    if result.returncode:
        sys.exit(f"{' '.join(words)}: status {result.returncode}: {result.stderr.decode()}")
    return took


def measure(names: list[str], delay_s: float, repeat: int = 3) -> Iterator[tuple[str, float]]:
    """Round trips of each command: the time with the delay, without the median time without it, over the delay."""
    with tempfile.TemporaryDirectory(prefix="pycpu-bench-") as name:
        board = Cpud(Path(name))
        prepare(board.folder)
        proxy = Proxy(int(board.port))
        try:
            for command in names:
                times = {}
                for delay in (0.0, delay_s):
                    proxy.delay_s = delay
                    times[delay] = statistics.median(
                        seconds(board, proxy.port, COMMANDS[command]) for _ in range(repeat if not delay else 1)
                    )
                    subprocess.run(["rm", "-rf", board.folder / "back"], check=True)
                yield command, (times[delay_s] - times[0.0]) / delay_s
        finally:
            board.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--delay-ms", type=float, default=100)
    parser.add_argument("names", nargs="*", default=list(COMMANDS))
    given = parser.parse_args()
    print(f"{'command':<16}{'round trips':>12}{'reference':>12}")
    for name, count in measure(given.names, given.delay_ms / 1000):
        print(f"{name:<16}{count:>12.1f}{REFERENCE.get(name, '-'):>12}", flush=True)


if __name__ == "__main__":
    main()
