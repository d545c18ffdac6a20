"""The gallery in Chromium on a phone, on paper, with every fold open, and as axe-core reads it."""

import pytest

from tests.pages.browser import needs_chromium, opened, violations

pytestmark = needs_chromium


def test_texts_are_aligned(browser, gallery):
    with opened(browser, gallery) as page:
        tops = page.eval_on_selector_all(
            ".study:first-child section > .report", "list => list.map(e => Math.round(e.getBoundingClientRect().top))"
        )
        assert len(tops) == 3
        assert len(set(tops)) == 1
        image = page.locator(".study img").first.bounding_box()
        assert image["y"] < 720 * 0.75  # on the first screen
        assert image["width"] > 300


def test_thinking_and_labels_are_folded_and_open(browser, gallery):
    with opened(browser, gallery) as page:
        page.select_option("#sort", "order")
        study = page.locator(".study").nth(1)
        assert not study.get_by_text("Cardiomegaly first.").first.is_visible()
        study.locator("summary", has_text="Thinking").first.click()
        assert study.get_by_text("Cardiomegaly first.").first.is_visible()
        study.locator("summary", has_text="Labels").click()
        assert study.locator("tbody tr").count() == 14
        study.locator(".views button").first.click()
        assert page.locator("#zoom img").is_visible()
        page.keyboard.press("Escape")
        assert not page.locator("#zoom img").is_visible()


def test_all_studies_are_printed_on_request(browser, gallery):
    with opened(browser, gallery) as page:
        page.evaluate("window.print = () => { window.printed = document.querySelectorAll('.study').length; }")
        page.click("#print")
        page.wait_for_function("window.printed")
        assert page.evaluate("window.printed") == 45
        assert page.locator(".study").count() == 20


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_and_labels(browser, gallery, scheme):
    """WCAG 2.2 A and AA as far as axe-core can tell, with every fold open."""
    with opened(browser, gallery, color_scheme=scheme) as page:
        page.keyboard.press("j")
        page.keyboard.press("o")
        assert violations(page) == ""
        page.keyboard.press("Escape")
        page.eval_on_selector_all("details", "list => list.forEach(details => details.open = true)")
        assert violations(page) == ""
        page.fill("#text", "no such words anywhere")
        assert violations(page) == ""


def test_a_phone_scrolls_down_only(browser, gallery):
    with opened(browser, gallery, viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        assert not page.locator("#filters").is_visible()
        page.locator("#fold > summary").tap()
        assert page.locator("#filters").is_visible()
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        page.locator("#next").tap()
        assert page.locator(".study.current").count() == 1


def test_print_has_the_studies_and_not_the_controls(browser, gallery):
    with opened(browser, gallery, color_scheme="dark") as page:
        page.emulate_media(media="print", color_scheme="dark")
        assert not page.locator("#filters").is_visible()
        assert not page.locator("#bar").is_visible()
        assert page.locator(".legend").is_visible()
        assert page.locator(".study .report").first.is_visible()
        assert page.evaluate("getComputedStyle(document.body).color") == "rgb(27, 31, 36)"  # on white paper
