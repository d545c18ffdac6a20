"""Time and memory of commands on large data, each alone in a process of its own.

    python benchmarks/load.py metrics --num 300000 1000000 --out FOLDER
    python benchmarks/load.py check --num 50000 --out FOLDER

Reports are synthetic, of the length of those of MIMIC-CXR's findings, and all distinct. Images are 8 pixels wide: what
is measured is the number of studies. For the index of MIMIC-CXR see benchmarks/mimic_index.py.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.mimic_index import SENTENCES  # noqa: E402


def report(draw: random.Random, number: int) -> str:
    """A report of six sentences that occurs once."""
    return " ".join([*draw.choices(SENTENCES, k=5), f"A nodule of {number} micrometers is unchanged."])


def write_predictions(folder: Path, num: int) -> Path:
    """JSON lines with `num` studies; a third of the predictions are equal to their reference."""
    draw, path = random.Random(0), folder / "predictions.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number in range(num):
            target = report(draw, number)
            preds = target if draw.random() < 1 / 3 else report(draw, num + number)
            file.write(json.dumps({"id": str(number), "prediction": preds, "target": target}) + "\n")
    return path


def write_table(folder: Path, num: int) -> list[str]:
    """A CSV file with `num` studies of two thirds as many patients, and their images; returns options of a check."""
    from PIL import Image

    draw = random.Random(0)
    images = folder / "images"
    images.mkdir()
    with (folder / "studies.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["study_id", "patient_id", "image_path", "view_position", "indication", "findings", "impression"])
        for number in range(num):
            pixels = number.to_bytes(8, "little") * 8  # no two images are equal
            Image.frombytes("L", (8, 8), pixels).save(images / f"{number}.png")
            patient = draw.randrange(2 * num // 3)
            rows.writerow([number, patient, f"{number}.png", "PA", "Cough.", report(draw, number), "A nodule."])
    return [f"--data.init_args.root={folder}"]


def measure(kind: str, num: int, trials: int) -> dict[str, float | int | str]:
    """Run one command; returns its seconds, its largest memory and the end of what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        if kind == "metrics":
            path = write_predictions(Path(folder), num)
            command = ["mrg.metrics", str(path), "--trials", str(trials)]
            size = path.stat().st_size
        else:
            options = write_table(Path(folder), num)
            command = ["mrg", "data", "check", "--config", "data/table", *options, f"--output={folder}/check"]
            size = (Path(folder) / "studies.csv").stat().st_size
        start = time.monotonic()
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, "-m", *command], env=environment, capture_output=True, text=True)
        seconds = time.monotonic() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 1):  # 1: the check found errors, such as patients in two splits
        raise SystemExit(done.stderr)
    print(done.stdout[-1500:], done.stderr[-600:], sep="\n")
    return {
        "kind": kind, "num": num, "file_mb": round(size / 1e6, 1), "seconds": round(seconds, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1), "peak_mb": round(used.ru_maxrss / 1024),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kind", choices=["metrics", "check"])
    parser.add_argument("--num", type=int, nargs="+", default=[100_000], help="Numbers of studies, ascending.")
    parser.add_argument("--trials", type=int, default=1000, help="Bootstrap samples of mrg.metrics.")
    parser.add_argument("--out", type=Path, help="Folder for KIND.json.")
    options = parser.parse_args()
    rows = []
    for num in options.num:
        rows.append(measure(options.kind, num, options.trials))
        print(json.dumps(rows[-1]), flush=True)
        if options.out is not None:
            options.out.mkdir(parents=True, exist_ok=True)
            (options.out / f"{options.kind}.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
