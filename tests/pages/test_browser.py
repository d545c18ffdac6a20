"""The gallery as a reader meets it, in Chromium."""

import io
import re

import numpy as np
import pytest
from PIL import Image

from mrg.datamodules.study import View
from mrg.metrics import RulesLabeler
from mrg.metrics.compare import compare_systems
from mrg.metrics.evaluation import CONSTANT_NORMAL, evaluate_systems
from mrg.pages.gallery import Gallery
from tests.pages.browser import needs_chromium, opened, shown_text

pytestmark = needs_chromium

HOSTILE = [
    "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>",
    "</script><script>window.hacked = 1</script>",
    "<!-- \"double\" 'single' `back` & &amp; </p> {{ 7 * 7 }} ${7 * 7}",
    "Edema and effusion. " * 500,
    "قلب متضخم. Cardiomegaly \u202eadeE\u202c.",
    "\U0001f9d1\u200d⚕️ \U0001fac1 Cardiomegaly \U0001f44d\U0001f3fd.",
]


def rows(studies, texts, with_reference=True):
    return [
        {
            "id": study.id,
            "prediction": text,
            "thinking": "Cardiomegaly first." if place % 2 else "",
            "completion": text,
            **({"target": study.report, "format": place != 3} if with_reference else {}),
        }
        for place, (study, text) in enumerate(zip(studies, texts, strict=True))
    ]


@pytest.fixture(scope="module")
def cohort():
    """45 synthetic studies: three pages."""
    from mrg.datamodules.demo import World, make_study

    return [make_study(World(lateral=0.5), 0, "test", index, 112) for index in range(45)]


@pytest.fixture(scope="module")
def gallery(cohort, tmp_path_factory):
    """Two policies: one writes the report of the next study, the other is right every third time."""
    texts = [study.report for study in cohort]
    after = texts[1:] + texts[:1]
    better = [own if place % 3 == 0 else other for place, (own, other) in enumerate(zip(texts, after, strict=True))]
    labeler = RulesLabeler()
    systems = {"constant normal": [CONSTANT_NORMAL] * len(texts), "one": better, "two": after}
    results = evaluate_systems(systems, texts, labeler, 0.3, {"one": 1.0}, [("one", "two")], num_resamples=50)
    file = tmp_path_factory.mktemp("gallery") / "gallery.html"
    views = {study.id: study.views for study in cohort}
    Gallery(
        {"one": rows(cohort, better), "two": rows(cohort, after)}, labeler, 0.3, views, results=results, title="Two"
    ).write(file)
    return file


def heading(page, place=0):
    return page.locator(".study h3").nth(place).inner_text()


def scores(page):
    return [int(text) for text in page.locator(".study section:nth-of-type(2) > .score b").all_inner_texts()]


def test_it_opens_with_the_worst_study_and_its_images(browser, gallery):
    with opened(browser, gallery) as page:
        assert page.locator(".study").count() == 20
        assert page.inner_text("#count") == "45 studies, 1 to 20 shown"
        shown = scores(page)
        assert shown == sorted(shown)
        assert shown[0] < shown[-1]
        widths = page.eval_on_selector_all(".study:first-child img", "list => list.map(i => i.naturalWidth)")
        assert widths
        assert set(widths) == {112}
        assert page.locator("header tbody tr", has_text="constant normal").count() == 1
        assert page.locator(".bars tbody tr").count() == 13


def test_filters_keep_what_they_say(browser, gallery):
    with opened(browser, gallery) as page:
        page.select_option("#size", "100000")
        page.select_option("#kind", "missed")
        matched = int(page.inner_text("#count").split()[0])
        assert 0 < matched < 45
        assert page.locator(".study").count() == matched
        assert page.locator(".study section:nth-of-type(2) .chips .missed").count() == matched
        # A filter shows as many studies as the number next to it.
        option = page.locator("#condition option", has_text="Cardiomegaly").first
        number = int(re.search(r"\((\d+)\)", option.inner_text())[1])
        page.select_option("#condition", "1")
        assert page.locator(".study").count() == number
        missed = page.locator(".study section:nth-of-type(2) .chips .missed").all_inner_texts()
        assert all("Cardiomegaly" in text for text in missed)
        page.click("button[type=reset]")
        page.locator("#count", has_text=re.compile("^45 studies")).wait_for()
        page.select_option("#size", "100000")
        page.fill("#low", "30")
        page.fill("#high", "99")
        shown = scores(page)
        assert shown
        assert 30 <= min(shown) <= max(shown) <= 99


def test_text_search_and_nothing_found(browser, gallery, cohort):
    with opened(browser, gallery) as page:
        page.fill("#text", cohort[7].id)
        assert page.locator(".study h3").all_inner_texts() == [cohort[7].id]
        page.fill("#text", "no such words anywhere")
        assert page.locator(".study").count() == 0
        assert "No study matches these filters" in page.inner_text("#studies")
        assert page.inner_text("#count") == "0 of 45 studies"
        page.keyboard.press("Escape")
        page.click("#studies button")
        page.wait_for_selector(".study")
        assert page.input_value("#text") == ""


def test_order(browser, gallery):
    with opened(browser, gallery) as page:
        page.select_option("#sort", "best")
        shown = scores(page)
        assert shown == sorted(shown, reverse=True)
        assert shown[0] == 100
        page.select_option("#sort", "order")
        assert heading(page) == "test-00000"
        page.select_option("#sort", "changes")
        changes = [
            len(text.split(",")) if text else 0
            for text in page.locator(
                ".study:first-child .change .gained, .study:first-child .change .lost"
            ).all_inner_texts()
        ]
        assert sum(changes) > 2


def test_the_other_model_is_judged(browser, gallery):
    with opened(browser, gallery) as page:
        assert page.locator(".study:first-child section").count() == 3
        page.select_option("#judge", "1")
        assert "marked against two" in page.inner_text(".study:first-child")
        page.select_option("#show", "judged")
        assert page.locator(".study:first-child section").count() == 2
        assert "Generated: two" in page.inner_text(".study:first-child")
        shown = scores(page)
        assert shown == sorted(shown)


def test_keys_go_from_study_to_study_and_over_the_page(browser, gallery):
    with opened(browser, gallery) as page:
        ids = page.locator(".study h3").all_inner_texts()
        page.keyboard.press("j")
        assert page.locator(".study.current h3").inner_text() == ids[0]
        page.keyboard.press("ArrowRight")
        assert page.locator(".study.current h3").inner_text() == ids[1]
        assert page.url.endswith(f"#{ids[1]}")
        page.keyboard.press("k")
        assert page.locator(".study.current h3").inner_text() == ids[0]
        for _ in range(20):
            page.keyboard.press("j")
        assert page.inner_text("#count") == "45 studies, 21 to 40 shown"
        assert page.locator(".study.current h3").inner_text() == heading(page)
        top = page.locator(".study.current").bounding_box()["y"]
        assert 0 <= top < 200
        page.keyboard.press("/")
        page.keyboard.type("jk")  # letters in the search field are no keys
        assert page.input_value("#text") == "jk"


def test_a_link_leads_to_its_study_whatever_the_filters(browser, gallery, cohort):
    name = cohort[10].id
    with opened(browser, gallery, f"#{name}") as page:
        assert page.locator(".study.current h3").inner_text() == name
        assert 0 <= page.locator(".study.current").bounding_box()["y"] < 200
        page.fill("#text", cohort[20].id)
        assert page.locator(".study h3").all_inner_texts() == [name, cohort[20].id]
        assert "the filters exclude it" in page.inner_text("#notice")
        assert page.url.endswith(f"#{name}")
        page.evaluate(f"location.hash = '#{cohort[30].id}'")
        page.locator(".study.current h3", has_text=cohort[30].id).wait_for()
        page.evaluate("location.hash = '#nobody%'")
        page.locator("#notice", has_text="There is no study nobody%").wait_for()


def test_a_condition_of_the_table_filters(browser, gallery):
    with opened(browser, gallery) as page:
        page.locator("#scores > summary").click()
        page.locator(".pick", has_text="Fracture").click()
        assert page.input_value("#condition") == "11"
        assert "of 45 studies" in page.inner_text("#count")


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


def test_all_studies_are_printed_on_request(browser, gallery):
    with opened(browser, gallery) as page:
        page.evaluate("window.print = () => { window.printed = document.querySelectorAll('.study').length; }")
        page.click("#print")
        page.wait_for_function("window.printed")
        assert page.evaluate("window.printed") == 45
        assert page.locator(".study").count() == 20


def test_a_redacted_page_has_no_texts(browser, cohort, tmp_path):
    listed = rows(cohort, [study.report for study in cohort])
    views = {study.id: study.views for study in cohort}
    Gallery({"model": listed}, RulesLabeler(), views=views, redact=True).write(tmp_path / "g.html")
    with opened(browser, tmp_path / "g.html") as page:
        assert page.locator(".study").count() == 20
        assert page.locator(".study .report, .study img").count() == 0
        assert page.locator(".study:first-child tbody tr").count() == 14
        page.fill("#text", "1")
        assert page.locator(".study").count() > 0


def test_hostile_reports_are_text(browser, cohort, tmp_path):
    studies = cohort[: len(HOSTILE)]
    listed = [
        {"id": text[:60], "prediction": text, "thinking": text, "completion": text, "target": text, "format": True}
        for text in HOSTILE
    ]
    views = {row["id"]: study.views for row, study in zip(listed, studies, strict=True)}
    indications = {row["id"]: row["prediction"] for row in listed}
    Gallery({"<b>model</b>": listed}, RulesLabeler(), 0.5, views, indications, title=HOSTILE[1]).write(
        tmp_path / "g.html"
    )
    with opened(browser, tmp_path / "g.html") as page:
        page.select_option("#sort", "order")
        for place, text in enumerate(HOSTILE):
            study = f".study:nth-child({place + 1})"
            assert shown_text(page, f"{study} h3") == text[:60]
            assert shown_text(page, f"{study} section:nth-of-type(1) .report") == text
            assert shown_text(page, f"{study} section:nth-of-type(2) > .report") == text
            assert shown_text(page, f"{study} details .report") == text
        assert page.title() == HOSTILE[1]
        assert page.evaluate("window.hacked") is None
        assert page.locator("#studies script, #studies b b, #studies img[src='x']").count() == 0
        # Read from right to left where the text is.
        directions = page.eval_on_selector_all(".study .report", "list => list.map(p => getComputedStyle(p).direction)")
        assert "rtl" in directions
        page.evaluate(f"location.hash = encodeURIComponent({HOSTILE[1][:60]!r})")
        page.wait_for_selector(".study.current")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_and_labels(browser, gallery, scheme):
    """WCAG 2.2 A and AA as far as axe-core can tell, with every fold open."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason='needs axe: pip install -e ".[dev]"')
    with opened(browser, gallery, color_scheme=scheme) as page:
        page.keyboard.press("j")
        page.keyboard.press("o")
        found = axe.Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
        page.keyboard.press("Escape")
        page.eval_on_selector_all("details", "list => list.forEach(details => details.open = true)")
        found = axe.Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
        page.fill("#text", "no such words anywhere")
        assert axe.Axe().run(page).violations_count == 0


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


def test_without_references(browser, cohort, tmp_path):
    listed = rows(cohort, [study.report for study in cohort], with_reference=False)
    views = {study.id: study.views for study in cohort}
    Gallery({"model": listed}, RulesLabeler(), views=views).write(tmp_path / "g.html")
    with opened(browser, tmp_path / "g.html") as page:
        assert page.locator(".study").count() == 20
        assert heading(page) == "test-00000"
        assert "Reference" not in page.inner_text("#studies")
        assert page.locator(".study mark.stated").count() > 0
        page.select_option("#kind", "possible")
        assert 0 < int(page.inner_text("#count").split()[0]) < 45


def test_a_comparison(browser, cohort, tmp_path):
    texts = [study.report for study in cohort]
    after = texts[1:] + texts[:1]
    comparison = compare_systems(texts, after, texts, RulesLabeler(), [s.id for s in cohort], num_trials=20)
    systems = {"A run": rows(cohort, texts), "B run": rows(cohort, after)}
    Gallery(systems, RulesLabeler(), comparison=comparison).write(tmp_path / "g.html")
    with opened(browser, tmp_path / "g.html") as page:
        assert page.input_value("#sort") == "changes"
        chips = page.locator(".study:first-child .change .mark").all_inner_texts()
        assert len(chips) == 2
        assert "now found: " in chips[0]
        assert "no longer hallucinated: " in chips[1]
        assert page.locator(".study .chips .lost").count() == 0  # A is always right
        page.select_option("#kind", "lost")
        assert "No study matches" in page.inner_text("#studies")
        page.select_option("#kind", "cleared")
        page.select_option("#size", "100000")
        assert page.locator(".study").count() == page.locator(".study .change .cleared").count() > 0
