"""Measure time and memory of indexing MIMIC-CXR on synthetic trees of two sizes, extrapolated to all 227,835 studies.

python benchmarks/mimic_index.py --folder /tmp/mimic_tree --studies 5000 20000
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

FULL_STUDIES, FULL_IMAGES = 227_835, 377_110
SENTENCES = (
    "The heart is mildly enlarged.", "There is no pleural effusion or pneumothorax.", "The lungs are well inflated.",
    "A right internal jugular catheter ends\n in the mid SVC.", "Patchy opacity at the left base may be atelectasis.",
    "No displaced rib fracture is seen on\n this examination.", "Compared with ___, the edema has improved.",
    "Mediastinal contours are unchanged since\n the prior radiograph.", "Sternal wires are intact.",
)  # fmt: skip


def report(draw: random.Random) -> str:
    """A report in one of the dataset's forms, about as long as a real one."""
    text = "\n \n ".join(" ".join(draw.choices(SENTENCES, k=4)) for _ in range(3))
    head = " " * 33 + "FINAL REPORT\n"
    form = draw.random()
    if form < 0.6:
        return (
            f"{head} EXAMINATION:  CHEST (PA AND LAT)\n \n INDICATION:  ___ year old with cough  // pneumonia?\n \n "
            f"TECHNIQUE:  Chest PA and lateral\n \n COMPARISON:  ___\n \n FINDINGS: \n \n {text}\n \n IMPRESSION: \n \n"
            f" 1.  {SENTENCES[0]}\n 2.  {SENTENCES[4]}\n"
        )
    if form < 0.8:
        return f"{head} HISTORY:  Fever.\n \n IMPRESSION:  {text}\n"
    return f"{head} REASON FOR EXAMINATION:  Fever.\n \n {text}\n"


def write_tree(root: Path, num_studies: int) -> int:
    """Write `num_studies` studies, 3.5 per patient, with empty image files; returns the number of images."""
    draw = random.Random(0)
    split_rows, metadata_rows, written = [], [], 0
    patient = 10_000_000
    while written < num_studies:
        # Spread over p10 to p19, as in the published dataset.
        patient += max(1, int(2 * 10_000_000 / (num_studies / 3.5) * draw.random()))
        split = draw.choices(("train", "validate", "test"), (0.978, 0.008, 0.014))[0]
        for _ in range(min(num_studies - written, draw.choice((1, 2, 3, 4, 5, 6)))):
            study = 50_000_000 + written * 40 + draw.randrange(40)
            folder = root / "files" / f"p{patient // 1_000_000}" / f"p{patient}" / f"s{study}"
            folder.mkdir(parents=True)
            folder.with_suffix(".txt").write_text(report(draw))
            for view in ("PA", "LATERAL")[: 1 + (draw.random() < FULL_IMAGES / FULL_STUDIES - 1)]:
                dicom = "-".join(f"{draw.getrandbits(32):08x}" for _ in range(5))
                (folder / f"{dicom}.jpg").touch()
                split_rows.append((dicom, study, patient, split))
                date = f"21{draw.randrange(50, 99)}{draw.randrange(1, 13):02}{draw.randrange(1, 28):02}"
                metadata_rows.append((dicom, patient, study, view, date, f"{draw.randrange(240000)}.515"))
            written += 1
    columns = ("dicom_id", "subject_id", "study_id", "ViewPosition", "StudyDate", "StudyTime")
    _write_csv(root / "mimic-cxr-2.0.0-split.csv.gz", ("dicom_id", "study_id", "subject_id", "split"), split_rows)
    _write_csv(root / "mimic-cxr-2.0.0-metadata.csv.gz", columns, metadata_rows)
    return len(split_rows)


def _write_csv(file: Path, columns: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
    with gzip.open(file, "wt", newline="", compresslevel=1) as lines:
        writer = csv.writer(lines)
        writer.writerow(columns)
        writer.writerows(rows)


def measure(root: Path, index: Path) -> dict[str, float]:
    """Seconds and peak memory of building the index and of opening it again, measured in a separate process."""
    script = f"""
import json, resource, time
import lightning, torch, datasets
from mrg.datamodules.mimic import MIMICDataModule
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
seconds, busy = [], []
for _ in range(2):
    start = time.perf_counter()
    cpu = time.process_time()
    data = MIMICDataModule({str(root)!r}, index={str(index)!r}, prior=True)
    data.setup()
    seconds.append(time.perf_counter() - start)
    busy.append(time.process_time() - cpu)
built = peak()
start = time.perf_counter()
reports = data.train_reports()
seconds.append(time.perf_counter() - start)
start = time.perf_counter()
count = sum(1 for study in data.splits["train"])
seconds.append(time.perf_counter() - start)
print(data.describe())
print(json.dumps({{"imports_mib": before, "peak_mib": built, "build_s": seconds[0], "build_cpu_s": busy[0],
    "open_s": seconds[1],
    "reports_s": seconds[2], "iterate_s": seconds[3]}}))
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    print(run.stdout.rsplit("\n", 2)[0])
    result: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="folder for the trees, which are removed afterwards")
    parser.add_argument("--studies", type=int, nargs="+", default=[5000, 20_000])
    parser.add_argument("--keep", action="store_true", help="keep the trees for another run")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rows = []
    for count in options.studies:
        root, index = options.folder / f"tree-{count}", options.folder / f"index-{count}"
        start = time.perf_counter()
        if not root.is_dir():
            write_tree(root, count)
        print(f"{count:,} studies: written in {time.perf_counter() - start:.0f} s", flush=True)
        shutil.rmtree(index, ignore_errors=True)
        result = measure(root, index)
        scale = FULL_STUDIES / count
        rows.append({"studies": count, **result, "extrapolated_build_s": result["build_s"] * scale})
        print(
            f"{count:>9,} studies: built in {result['build_s']:.1f} s ({1e6 * result['build_s'] / count:.0f} us each; "
            f"{result['build_cpu_s']:.1f} s of CPU), opened in {result['open_s']:.1f} s, all training reports in "
            f"{result['reports_s']:.1f} s, all training studies in {result['iterate_s']:.1f} s; peak "
            f"{result['peak_mib']:.0f} MiB, {result['imports_mib']:.0f} of them imports; all {FULL_STUDIES:,}: "
            f"{result['build_s'] * scale:.0f} s",
            flush=True,
        )
        if not options.keep:
            shutil.rmtree(root)
            shutil.rmtree(index)
    if options.output:
        options.output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
