"""Measure how fast a gallery of many studies opens and how smoothly it scrolls in Chromium.

    python benchmarks/gallery.py --studies 2000 [--image_size 448]

Images are synthesized at 112 pixels and enlarged with added noise, so that their JPEG files are as large as those of
radiographs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from mrg.datamodules.demo import World, make_study
from mrg.datamodules.study import View
from mrg.metrics import RulesLabeler
from mrg.metrics.evaluation import CONSTANT_NORMAL, evaluate_systems
from mrg.pages.gallery import Gallery

SCROLL = """async () => {
  const times = [];
  let last = performance.now();
  const end = document.documentElement.scrollHeight - innerHeight;
  for (let y = 0; y < end; y += 120) {
    scrollTo(0, y);
    await new Promise(requestAnimationFrame);
    const now = performance.now();
    times.push(now - last);
    last = now;
  }
  times.sort((a, b) => a - b);
  const at = share => times[Math.floor((times.length - 1) * share)];
  return {frames: times.length, median: at(.5), p95: at(.95), max: at(1)};
}"""


def enlarge(pixels: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    image = np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)
    return (image + rng.normal(0, 6, image.shape)).clip(0, 255).astype(np.uint8)


def build(page: Path, num_studies: int, pixels: int) -> dict[str, float]:
    rng = np.random.default_rng(0)
    studies = [make_study(World(lateral=1), 0, "test", index, 112) for index in range(num_studies)]
    views = {s.id: [View(enlarge(v.image, pixels, rng), v.position) for v in s.views] for s in studies}
    target = [s.report for s in studies]
    written = [target[(i + 1) % num_studies] if i % 3 else text for i, text in enumerate(target)]
    rows = [
        {"id": s.id, "prediction": text, "thinking": "Edema", "target": s.report, "format": True}
        for s, text in zip(studies, written, strict=True)
    ]
    labeler = RulesLabeler()
    systems = {"constant normal": [CONSTANT_NORMAL] * num_studies, "model": written}
    results = evaluate_systems(systems, target, labeler, num_resamples=200)
    begun = time.monotonic()
    Gallery({"model": rows}, labeler, views=views, results=results, title="Benchmark").write(page)
    return {"write_seconds": time.monotonic() - begun, "megabytes": page.stat().st_size / 1e6}


def measure(page: Path) -> dict[str, object]:
    from playwright.sync_api import sync_playwright

    chromium = next(path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name)))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        opened = []
        for _ in range(3):
            tab = browser.new_page(viewport={"width": 1280, "height": 900})
            begun = time.monotonic()
            tab.goto(page.absolute().as_uri(), wait_until="commit")
            tab.wait_for_selector(".study img[src]")
            first = time.monotonic() - begun
            tab.wait_for_load_state("load")
            opened.append({"first_study_seconds": first, "loaded_seconds": time.monotonic() - begun})
            if len(opened) < 3:
                tab.close()
        filtered = tab.evaluate(
            """() => { const begun = performance.now(), kind = document.getElementById("kind");
            kind.value = "missed"; kind.dispatchEvent(new Event("input")); return performance.now() - begun; }"""
        )
        by_page = tab.evaluate(SCROLL)
        begun = time.monotonic()
        tab.select_option("#size", "100000")
        all_seconds = time.monotonic() - begun
        tab.evaluate("scrollTo(0, 0)")
        scroll_all = tab.evaluate(SCROLL.replace("y += 120", "y += 1200"))
        browser.close()
    return {
        "opened": opened,
        "filter_milliseconds": filtered,
        "scroll_page_of_20_milliseconds": by_page,
        "draw_all_seconds": all_seconds,
        "scroll_all_milliseconds": scroll_all,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--image_size", type=int, default=448, help="side of the images in pixels, before downscaling")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "gallery.html"
        result = {**vars(options), **build(page, options.studies, options.image_size), **measure(page)}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
