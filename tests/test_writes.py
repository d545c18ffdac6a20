"""Commands write into the folders that they are given, and run where everything else is read-only."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import errno, json, os, sys, tempfile
from pathlib import Path

runs, denied = Path(sys.argv[1]), []
free = (str(runs), tempfile.gettempdir(), "/dev/", "/proc/self/")


def read_only(event, arguments):
    if event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        return
    places = {"open": 1, "os.mkdir": 1, "os.remove": 1, "os.rmdir": 1, "os.rename": 2, "os.symlink": 2, "os.link": 2}
    for path in arguments[: places.get(event, 0)]:
        if isinstance(path, (str, bytes, os.PathLike)):
            path = os.path.abspath(os.fsdecode(path))
            if not path.startswith(free):
                denied.append(path)
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)


sys.addaudithook(read_only)
from mrg.cli import main
from mrg.metrics.__main__ import main as score
from tests.callbacks.runs import fit_arguments

main(["fit", *fit_arguments(runs)])
main(["test", f"--config={runs / 'run' / 'config.yaml'}"])
score([str(runs / "run" / "predictions.jsonl"), "--trials=20"])
(runs / "denied.json").write_text(json.dumps(denied))
"""


@pytest.mark.slow
def test_a_read_only_home_and_working_folder(tmp_path):
    runs, home, temporary = (tmp_path / name for name in ("runs", "home", "temporary"))
    for folder in (runs, home, temporary):
        folder.mkdir()
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("XDG_", "HF_", "MPL", "TORCHINDUCTOR_", "TRITON_"))
    }
    environment |= {"HOME": str(home), "TMPDIR": str(temporary), "PYTHONDONTWRITEBYTECODE": "1"}
    root = str(Path(__file__).parents[1])
    environment["PYTHONPATH"] = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(runs)], cwd=home, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert {"results.json", "predictions.jsonl", "index.html", "predictions.jsonl.scores.json"} <= set(
        os.listdir(runs / "run")
    )
    # Matplotlib asks for its own caches, and does without.
    denied = json.loads((runs / "denied.json").read_text())
    assert [path for path in denied if "matplotlib" not in path and path not in _parents(home)] == []
    assert list(home.rglob("*")) == []


def _parents(home):
    """The folders of caches that libraries make in a home."""
    return [str(home / ".cache"), str(home / ".config")]
