"""Every page in four states in Chromium: on a desktop, dark, on a phone and on paper."""

import pytest

from mrg.commands.data_check import check_splits
from mrg.commands.data_check.page import write_check_page
from mrg.commands.data_check.samples import show_samples
from mrg.metrics import RulesLabeler
from mrg.metrics.compare import compare_systems
from mrg.metrics.evaluation import CONSTANT_NORMAL, evaluate_systems
from mrg.metrics.leaderboard import leaderboard
from mrg.metrics.leaderboard_page import write_page
from mrg.pages.gallery import Gallery
from tests.commands.data_check.studies import splits
from tests.pages.browser import needs_chromium, opened, violations
from tests.pages.galleries import rows

pytestmark = needs_chromium

PAPER = 718
"""Width of A4 with margins of 1 cm, in CSS pixels."""
FONT_SIZES = "list => list.map(p => parseFloat(getComputedStyle(p).fontSize))"


@pytest.fixture
def gallery_of_three(cohort, tmp_path):
    """With the table of results and the bars of each condition."""
    studies = cohort[:3]
    texts = [study.report for study in studies]
    labeler, systems = RulesLabeler(), {"constant normal": [CONSTANT_NORMAL] * 3, "model": texts[1:] + texts[:1]}
    results = evaluate_systems(systems, texts, labeler, num_resamples=20)
    page = Gallery({"model": rows(studies, systems["model"])}, labeler, results=results)
    page.views = {study.id: study.views for study in studies}
    page.write(tmp_path / "g.html")
    return tmp_path / "g.html"


@pytest.fixture
def comparison(cohort, tmp_path):
    cohort = cohort[:3]
    texts = [study.report for study in cohort]
    after = texts[1:] + texts[:1]
    result = compare_systems(texts, after, texts, RulesLabeler(), [s.id for s in cohort], num_trials=20)
    systems = {"A run": rows(cohort, texts), "B run": rows(cohort, after)}
    Gallery(systems, RulesLabeler(), comparison=result, views={s.id: s.views for s in cohort}).write(
        tmp_path / "c.html"
    )
    return tmp_path / "c.html"


@pytest.fixture
def data_check(tmp_path):
    """Seven studies and an unreadable image."""
    (tmp_path / "bad.png").write_bytes(b"no image")
    studies = splits()
    first = studies["train"][0]
    studies["train"].append(type(first)(first.id, (type(first.views[0])(tmp_path / "bad.png"),), first.report))
    result = {"mrg": "1", "name": "mine", "data": {"description": "7 studies", "removed": {}, "config": {"root": "x"}}}
    result |= check_splits(studies, RulesLabeler())
    write_check_page(tmp_path / "check.html", result, show_samples(result["samples"], studies, True))
    return tmp_path / "check.html"


@pytest.fixture
def ranking(cohort, tmp_path):
    """Four systems, one of which has a long name."""
    texts = [study.report for study in cohort]
    systems = {
        name: texts[by:] + texts[:by] for by, name in enumerate(("right", "next", "a model with a long name", "x"))
    }
    write_page(leaderboard(systems, texts, RulesLabeler(), num_resamples=20), tmp_path / "ranking.html")
    return tmp_path / "ranking.html"


@pytest.mark.parametrize("name", ["gallery_of_three", "comparison", "whole", "data_check", "ranking"])
def test_in_four_states(browser, request, name):
    file = request.getfixturevalue(name)
    for scheme in ("light", "dark"):
        with opened(browser, file, color_scheme=scheme, viewport={"width": 1280, "height": 900}) as page:
            page.eval_on_selector_all("details", "list => list.forEach(details => details.open = true)")
            assert page.evaluate("document.documentElement.scrollWidth") == 1280
            assert violations(page) == ""
    with opened(browser, file, viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert min(page.eval_on_selector_all("p", FONT_SIZES)) >= 12
    with opened(browser, file, color_scheme="dark", viewport={"width": PAPER, "height": 1000}) as page:
        page.emulate_media(media="print", color_scheme="dark")
        assert page.evaluate("document.documentElement.scrollWidth") == PAPER
        shown = page.eval_on_selector_all("img", "list => list.map(image => image.complete && image.naturalWidth)")
        assert all(shown), "images that are missing on paper"
        assert page.eval_on_selector_all(".wide", "list => list.filter(e => e.scrollWidth > e.clientWidth).length") == 0
        assert page.evaluate("getComputedStyle(document.body).color") == "rgb(27, 31, 36)"  # dark ink
