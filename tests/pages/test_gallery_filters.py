"""Filters, order, search, links and keys of the gallery, in Chromium."""

import re

from tests.pages.browser import needs_chromium, opened
from tests.pages.galleries import heading, scores

pytestmark = needs_chromium


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
