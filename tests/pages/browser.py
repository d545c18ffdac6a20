"""Pages opened in a real Chromium; tests that use it are skipped, with the reason, where there is none."""

import contextlib
import shutil
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason=f"needs a browser: none of {', '.join(NAMES)} is on the PATH (apt install chromium)"
)


@contextlib.contextmanager
def launched():
    """A browser."""
    playwright = pytest.importorskip("playwright.sync_api", reason='needs Playwright: pip install -e ".[dev]"')
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(browser, file: Path, fragment="", **context):
    """A page in a window of its own; fails if it asked the network for anything or the console complained.

    Args:
        browser: From `launched`.
        file: The page.
        fragment: After the `#`.
        **context: Of Playwright's `new_context`, such as `viewport` or `color_scheme`.
    """
    requests, complaints = [], []
    window = browser.new_context(**context)
    page = window.new_page()
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
    page.goto(file.absolute().as_uri() + fragment)
    yield page
    window.close()
    assert requests, "not even the page itself was asked for: this check sees nothing"
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    assert complaints == []


def shown_text(page, selector):
    """The text of an element as a reader sees it: without the signs and the words for screen readers."""
    return page.eval_on_selector(
        selector,
        """element => { const copy = element.cloneNode(true);
        copy.querySelectorAll(".hidden").forEach(part => part.remove()); return copy.textContent; }""",
    )


def violations(page):
    """What axe-core finds against WCAG 2.2 A and AA, as text; empty if it finds nothing."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason='needs axe: pip install -e ".[dev]"')
    found = axe.Axe().run(page)
    return found.generate_report() if found.violations_count else ""
