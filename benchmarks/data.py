"""Time StudyCollator against a plain loop around transformers' processor, on the same images.

    python benchmarks/data.py [--threads 1] [--repeats 3] [--num 6] [--size 2000] [--output data.json]
    python benchmarks/data.py --iu ../shared/data/iu_xray [--num 200]

Without --iu, images are synthetic: a smooth body with detector noise, as 8-bit PNG, 16-bit PNG (12 bits used), JPEG,
and uncompressed 12-bit DICOM if pydicom is installed. With --iu, they are the first images of that folder.

(a) plain loop: Image.open and the processor for each study; (b) StudyCollator; (c) StudyCollator filling an empty pixel
cache; (d) StudyCollator reading from the full cache. All process one study at a time in one process, with the same
Qwen2.5-VL processor at --max-pixels. Each repeat runs all of them in turn. Files are in the system's page cache, so the
times cover decoding and arithmetic, not the disk. The plain loop is wrong for 16-bit PNG, which it clips, and for
DICOM, which it cannot open and for which it uses pydicom's pixel array without a window. "x plain" is the speedup over
(a): from the fastest repeats, followed by the median of the repeats' ratios. Before timing, (b) is compared with (a)
where (a) is right, and (d) with (b) in all cases: all values must be equal.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import itertools
import json
import platform
import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import transformers
from PIL import Image

import mrg
from mrg.datamodules.collate import StudyCollator
from mrg.datamodules.study import Study, View
from mrg.modules.policy.processor import build_processor

PROMPT = "Write the findings section of the radiology report for this chest X-ray study."
PLAIN, OURS, FILLING, KEPT = "plain loop", "StudyCollator", "filling the cache", "from the cache"


def draw(size: int, seed: int) -> np.ndarray:
    """(size, size) 12-bit image as uint16: smooth shapes, and noise that grows with the signal."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    lungs = np.exp(-(((abs(x) - 0.42) / 0.25) ** 2) - ((y + 0.1) / 0.6) ** 2)
    body = 2600 * (1 - np.exp(-(((x**2 + y**2) / 0.9) ** 4))) * 0.2 + 2300 - 1600 * lungs + 120 * np.sin(17 * y)
    return np.clip(body + rng.normal(0, 1, body.shape) * np.sqrt(body.clip(1)) * 0.4, 0, 4095).astype(np.uint16)


def write_dicom(path: Path, pixels: np.ndarray) -> None:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = (
        ComputedRadiographyImageStorage,
        ExplicitVRLittleEndian,
    )
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = FileDataset(None, {}, b"\0" * 128, meta)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME1", 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    data.WindowCenter, data.WindowWidth = 2048, 4096
    data.Rows, data.Columns = pixels.shape
    data.PixelData = pixels.tobytes()
    data.save_as(path, enforce_file_format=True)


def draw_files(folder: Path, num: int, size: int) -> dict[str, list[Path]]:
    kinds = {"PNG, 8 bits": "8.png", "PNG, 16 bits": "16.png", "JPEG": "jpg"}
    if importlib.util.find_spec("pydicom"):
        kinds["DICOM, 12 bits"] = "dcm"
    files: dict[str, list[Path]] = {kind: [] for kind in kinds}
    for index in range(num):
        pixels = draw(size, index)
        for kind, suffix in kinds.items():
            path = folder / f"{index}.{suffix}"
            if suffix == "dcm":
                write_dicom(path, pixels)
            else:
                image = Image.fromarray(pixels if suffix == "16.png" else (pixels // 16).astype(np.uint8))
                image.save(path, **({"quality": 90} if suffix == "jpg" else {}))
            files[kind].append(path)
    return files


class PlainLoop:
    """The usual loop around transformers' processor."""

    def __init__(self, processor: Any, prompt: Callable[[Study], str]) -> None:
        self.processor, self.prompt = processor, prompt

    def __call__(self, study: Study) -> Any:
        images = [self.open(Path(str(view.image))) for view in study.views]
        text = [self.prompt(study)]
        return self.processor(images=images, text=text, padding=True, return_tensors="pt")

    @staticmethod
    def open(path: Path) -> Image.Image:
        if path.suffix == ".dcm":
            import pydicom

            return Image.fromarray((pydicom.dcmread(path).pixel_array // 16).astype(np.uint8)).convert("RGB")
        return Image.open(path).convert("RGB")


def check(studies: Sequence[Study], plain: PlainLoop | None, ours: StudyCollator, kept: StudyCollator) -> None:
    """Fill the cache and compare the methods' outputs."""
    for study in studies:
        one = ours([study])
        for other in (kept([study]), kept([study])):
            assert torch.equal(other.pixel_values, one.pixel_values), study.id
            assert torch.equal(other.prompt_ids, one.prompt_ids), study.id
        if plain is not None:
            reference = plain(study)
            assert torch.equal(one.pixel_values, reference["pixel_values"]), study.id
            assert torch.equal(one.prompt_ids, reference["input_ids"]), study.id


def time_files(files: Sequence[Path], processor: Any, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Seconds of each method in each repeat, and size of the cache."""
    views = [files[i : i + options.views] for i in range(0, len(files), options.views)]
    studies = [Study(str(i), tuple(View(path) for path in paths), "") for i, paths in enumerate(views)]
    cache, empty = folder / "kept", folder / "empty"
    ours = StudyCollator(processor, PROMPT, max_views=options.views)
    plain = PlainLoop(processor, lambda study: ours.prompt_text(ours.content(study)))
    kept = StudyCollator(processor, PROMPT, max_views=options.views, pixel_cache=str(cache))
    right = files[0].suffix != ".dcm" and Image.open(files[0]).mode != "I;16"
    check(studies, plain if right else None, ours, kept)
    seconds: dict[str, list[float]] = {name: [] for name in (PLAIN, OURS, FILLING, KEPT)}
    for _ in range(options.repeats):
        shutil.rmtree(empty, ignore_errors=True)
        filling = StudyCollator(processor, PROMPT, max_views=options.views, pixel_cache=str(empty))
        methods: dict[str, Callable[[Study], Any]] = {
            PLAIN: plain,
            OURS: lambda study: ours([study]),
            FILLING: lambda study, filling=filling: filling([study]),  # type: ignore[misc]
            KEPT: lambda study: kept([study]),
        }
        for name, method in methods.items():
            start = time.perf_counter()
            for study in studies:
                method(study)
            seconds[name].append(time.perf_counter() - start)
    entries = [file.stat().st_size for file in cache.rglob("*") if file.is_file()]
    shutil.rmtree(cache)
    return {
        "images": len(files),
        "bytes_per_file": round(statistics.mean(path.stat().st_size for path in files)),
        "bytes_per_kept_image": round(statistics.mean(entries)),
        "equal_to_plain": right,
        "methods": {name: compare(values, seconds[PLAIN], len(files)) for name, values in seconds.items()},
    }


def compare(values: list[float], plain: list[float], num: int) -> dict[str, Any]:
    return {
        "seconds": [round(value, 4) for value in values],
        "images_per_s": round(num / min(values), 2),
        "faster_best": round(min(plain) / min(values), 2),
        "faster_median": round(statistics.median(a / b for a, b in zip(plain, values, strict=True)), 2),
    }


def show(kind: str, row: dict[str, Any]) -> None:
    print(
        f"\n{kind}: {row['images']} images of {row['bytes_per_file'] / 1e3:,.0f} kB, "
        f"{row['bytes_per_kept_image'] / 1e3:,.0f} kB cached per image"
        + ("" if row["equal_to_plain"] else " (the plain loop's pixels are wrong)")
    )
    print(f"{'':20}{'images/s':>10}{'x plain':>9}{'(median)':>10}")
    for name, method in row["methods"].items():
        print(f"{name:20}{method['images_per_s']:10.1f}{method['faster_best']:9.2f}{method['faster_median']:10.2f}")


def hardware() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else [platform.processor()]
    return {"cpu": f"{len(names)} x {names[0]}", "threads": torch.get_num_threads()}


def parse(args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time StudyCollator against a plain loop.")
    parser.add_argument("--iu", type=Path, help="IU X-Ray folder (default: synthetic images)")
    parser.add_argument("--num", type=int, default=6, help="number of images per format")
    parser.add_argument("--size", type=int, default=2000, help="side of a synthetic image in pixels")
    parser.add_argument("--views", type=int, default=2, help="images per study")
    parser.add_argument("--max-pixels", type=int, default=512 * 512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    return parser.parse_args(args)


def main(args: Sequence[str] | None = None) -> None:
    options = parse(args)
    torch.set_num_threads(options.threads)
    processor = build_processor([PROMPT] * 8, 1024, options.max_pixels)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.iu:
            found = (path for path in (options.iu / "images").rglob("*") if path.suffix.lower() in (".png", ".jpg"))
            kinds = {"IU X-Ray": sorted(itertools.islice(found, options.num))}
            if not kinds["IU X-Ray"]:
                raise SystemExit(f"Found no images in {options.iu / 'images'}.")
        else:
            kinds = draw_files(folder, options.num, options.size)
        time.sleep(0.1)  # a file that was just written is not cached
        results = {
            "date": datetime.date.today().isoformat(),
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "mrg": mrg.__version__}
            | {"transformers": transformers.__version__, "pillow": PIL.__version__, "numpy": np.__version__},
            "hardware": hardware(),
            "settings": {k: v for k, v in vars(options).items() if k not in ("iu", "output")},
            "files": {kind: time_files(files, processor, options, folder) for kind, files in kinds.items()},
        }
    print(results["hardware"])
    for kind, row in results["files"].items():
        show(kind, row)
    if options.output:
        options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
