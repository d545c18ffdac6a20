"""The viewer of the gallery, in Chromium: window and level, zoom, views, keyboard."""

import io

import numpy as np
import pytest
from PIL import Image

from mrg.datamodules.study import View
from mrg.metrics import RulesLabeler
from mrg.pages.gallery import Gallery
from tests.pages.browser import needs_chromium, opened

pytestmark = needs_chromium


def grey(page, selector):
    """Middle pixel of an element as it is shown."""
    shown = Image.open(io.BytesIO(page.locator(selector).screenshot())).convert("L")
    return shown.getpixel((shown.width // 2, shown.height // 2))


def test_the_viewer_with_the_keyboard_alone(browser, gallery):
    with opened(browser, gallery) as page:
        page.keyboard.press("j")
        page.keyboard.press("Enter")
        name = page.inner_text("#zoom-title")
        assert page.locator("#stage img").count() == 1
        assert "Reference" in page.inner_text("#beside")
        box = page.locator("#stage").bounding_box()
        assert box["width"] > 800
        assert box["height"] > 550
        for key in ("+", "ArrowLeft", "[", "."):
            page.keyboard.press(key)
        assert "zoom 1.3×, window 95, level 45" in page.inner_text("#state")
        style = page.get_attribute("#stage img", "style")
        assert "scale(1.25)" in style
        assert "translate(60px, 0px)" in style
        page.keyboard.press("r")
        assert "zoom 1.0×, window 100, level 50" in page.inner_text("#state")
        page.keyboard.press("j")
        assert page.inner_text("#zoom-title") != name
        page.keyboard.press("Escape")
        assert not page.locator("#zoom").is_visible()
        assert page.locator(".study.current h3").inner_text() != name


def test_window_and_level_are_exact(browser, tmp_path):
    """Shown grey = (grey - level + window / 2) / window, for windows inside and beyond the range of grey values."""
    views = {"a": (View(np.full((64, 64), 102, np.uint8)), View(np.full((64, 64), 204, np.uint8), "lateral"))}
    row = {"id": "a", "prediction": "Edema.", "target": "Edema.", "format": True}
    Gallery({"model": [row]}, RulesLabeler(), views=views).write(tmp_path / "g.html")
    with opened(browser, tmp_path / "g.html") as page:
        page.locator(".views button").first.click()
        for level, window in ((50, 100), (40, 40), (25, 80), (70, 150)):
            for name, value in (("level", level), ("window", window)):
                page.locator(f"#{name}").fill(str(value))
            shown = (0.4 - level / 100) / (window / 100) + 0.5
            assert grey(page, "#stage img") == pytest.approx(255 * min(1, max(0, shown)), abs=3)
        page.locator("#reset").click()
        page.locator("#invert").click()
        assert grey(page, "#stage img") == pytest.approx(255 - 102, abs=3)
        page.keyboard.press("v")
        assert grey(page, "#stage img") == pytest.approx(255 - 204, abs=3)
        page.keyboard.press("b")
        assert page.locator("#stage img").count() == 2
        page.mouse.move(200, 400)
        page.mouse.wheel(0, -400)
        assert "scale(2.7" in page.get_attribute("#stage .pane:first-child img", "style")
        assert "scale(1)" in page.get_attribute("#stage .pane:last-child img", "style")
