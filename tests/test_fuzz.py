"""The fuzz targets: every stored input again, and then a while of new ones."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fuzz import seeds, targets

HERE = Path(__file__).resolve().parent / "fuzz"
TIME_S = int(os.environ.get("PYCPU_FUZZ_S", "10"))
RSS_LIMIT_MB = 1024  # Python, asyncio and atheris take 60
INPUT_TIME_LIMIT_S = 10  # for one input, which takes milliseconds: more is a hang
INPUT_SIZE_MAX = 8192  # bytes; more than int() takes digits
CORPUS_SIZE_MAX = 64 << 10

STORED = sorted((*HERE.glob("corpus/*/*"), *HERE.glob("crashers/*/*")))


@pytest.mark.parametrize("path", STORED, ids=lambda p: "-".join(p.parts[-3:]))
def test_stored(path: Path) -> None:
    targets.TARGETS[path.parent.name](path.read_bytes())


def test_the_corpus_is_made_from_real_messages() -> None:
    made = seeds.corpus()
    assert {str(path.relative_to(seeds.CORPUS)) for path in HERE.glob("corpus/*/*")} == made.keys()
    for name, content in made.items():
        if not name.startswith("client/"):  # those depend on the order of the client's requests: see the next test
            assert (seeds.CORPUS / name).read_bytes() == content, f"{name}: run tests/fuzz/seeds.py"
    assert sum(map(len, made.values())) < CORPUS_SIZE_MAX
    assert {name.split("/")[0] for name in made} == targets.TARGETS.keys()


def test_good_inputs_get_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """An input that the targets' own frame already refuses would test nothing."""
    seen: set[str] = set()
    monkeypatch.setattr(targets, "trace", lambda line: seen.add(f"{line[:2]} {line.split()[2]}"))
    for path in HERE.glob("corpus/*/*"):
        if path.parent.name in ("server", "client"):
            targets.TARGETS[path.parent.name](path.read_bytes())
    for word in ("Rread", "Rreaddir", "Rxattrwalk", "Rlcreate", "Rflush", "Rwalk", "Rlock", "Rclunk"):
        assert f"-> {word}" in seen, f"no story of the server's comes to {word}"
    for word in ("Rgetattr", "Rreadlink", "Rread", "Rxattrcreate", "Rwalk"):
        assert f"<- {word}" in seen, f"no story of the client's comes to {word}"


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("atheris"), reason="atheris has wheels for x86-64 only")
@pytest.mark.parametrize("name", targets.TARGETS)
def test_new_inputs(name: str, tmp_path: Path) -> None:
    for folder in ("found", "artifacts"):
        (tmp_path / folder).mkdir()
    command = [
        *(sys.executable, HERE / "run.py", name),
        f"-max_total_time={TIME_S}",
        f"-timeout={INPUT_TIME_LIMIT_S}",
        f"-rss_limit_mb={RSS_LIMIT_MB}",
        f"-max_len={INPUT_SIZE_MAX}",
        f"-artifact_prefix={tmp_path}/artifacts/",
        *(tmp_path / "found", HERE / "corpus" / name),
    ]
    crashers = HERE / "crashers" / name
    if crashers.exists():
        command.append(crashers)
    result = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIME_S + 60, check=False)
    artifacts = {path.name: path.read_bytes().hex() for path in (tmp_path / "artifacts").iterdir()}
    assert result.returncode == 0 and not artifacts, f"{artifacts}\n{result.stderr[-6000:]}"
    assert "Done " in result.stderr, result.stderr[-2000:]
