"""What the gallery shows in Chromium: hostile reports, no texts, no references, a comparison."""

from mrg.metrics import RulesLabeler
from mrg.metrics.compare import compare_systems
from mrg.pages.gallery import Gallery
from tests.pages.browser import needs_chromium, opened, shown_text
from tests.pages.galleries import heading, rows

pytestmark = needs_chromium

HOSTILE = [
    "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>",
    "</script><script>window.hacked = 1</script>",
    "<!-- \"double\" 'single' `back` & &amp; </p> {{ 7 * 7 }} ${7 * 7}",
    "Edema and effusion. " * 500,
    "قلب متضخم. Cardiomegaly \u202eadeE\u202c.",
    "\U0001f9d1\u200d⚕️ \U0001fac1 Cardiomegaly \U0001f44d\U0001f3fd.",
]


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
