"""Take the pictures of the gallery and the run page in docs/images, in the system's Chromium.

    python docs/take_pictures.py RUNS/demo-1

The argument is the folder of a finished `python -m mrg demo`.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

IMAGES = Path(__file__).parent / "images"


def take(demo: Path) -> None:
    """Take gallery.png, gallery-phone.png and run_page.png.

    Args:
        demo: Folder of the demo's runs.
    """
    from playwright.sync_api import sync_playwright

    chromium = next(path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name)))
    gallery, run = ((demo / name).absolute().as_uri() for name in ("gallery.html", "grpo/index.html"))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium)
        page = browser.new_page(viewport={"width": 1200, "height": 860})
        page.goto(gallery)
        page.select_option("#sort", label="most changes first")
        name = page.locator(".study h2, .study h3").first.inner_text()
        page.evaluate("window.scrollTo(0, document.querySelector('.study').getBoundingClientRect().top - 340)")
        page.screenshot(path=IMAGES / "gallery.png")
        phone = browser.new_page(
            viewport={"width": 390, "height": 844}, device_scale_factor=1.5, color_scheme="dark", is_mobile=True
        )
        phone.goto(f"{gallery}#{name}")
        phone.screenshot(path=IMAGES / "gallery-phone.png")
        page = browser.new_page(viewport={"width": 1185, "height": 1480})
        page.goto(run)
        page.screenshot(path=IMAGES / "run_page.png")
        browser.close()


def main() -> None:
    """Take the pictures of a demo."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("demo", type=Path, help="folder of the demo, with gallery.html and grpo/index.html")
    take(parser.parse_args().demo)


if __name__ == "__main__":
    main()
