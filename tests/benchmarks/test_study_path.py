"""One study from the disk to the optimizer step, traced."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
MOST_FILES = 37


def test_the_path_of_a_study_is_short_and_documented():
    command = [sys.executable, "benchmarks/study_path.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    files = re.findall(r"^ *\d+  (\S+) ", done.stdout, re.MULTILINE)
    assert done.stdout.splitlines()[-1] == f"{len(files)} files from the disk to the optimizer step"
    steps = ["mrg/datamodules/iu/__init__.py", "mrg/datamodules/collate.py", "mrg/modules/grpo.py"]
    steps += [
        "mrg/modules/rollout/sampling.py",
        "mrg/modules/rl/reward.py",
        "mrg/metrics/mccs.py",
        "mrg/modules/rl/loss.py",
    ]
    assert [file for file in files if file in steps] == steps
    assert len(files) <= MOST_FILES, f"A study passes through {len(files)} files: {files}"
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = page.partition("## The path of one study")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(mrg/[\w/]+\.py)`", section))
    assert named == set(files), "docs/architecture.md, The path of one study: name exactly the files on the path"
    assert f"{len(files)} in all" in section
