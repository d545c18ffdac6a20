"""The docs build without a warning into a site that is whole and asks the network for nothing."""

import contextlib
import functools
import http.server
import importlib.util
import re
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

from tests.pages.browser import launched, needs_chromium

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("material") is None, reason='needs mkdocs-material: pip install -e ".[docs]"'
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return build(ROOT / "mkdocs.yml", tmp_path_factory.mktemp("site"))


def build(config, folder):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", f"--config-file={config}", f"--site-dir={folder}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


class Links(HTMLParser):
    """What a page loads, where its links lead, and what can be linked to."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.loads, self.leads, self.ids = [], [], set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids |= {given[name] for name in ("id", "name") if given.get(name)}
        if (tag == "a" and "href" in given) or given.get("rel") in ("canonical", "next", "prev"):
            self.leads.append(given["href"])
        else:
            self.loads += [given[name] for name in ("href", "src", "srcset", "data", "poster") if given.get(name)]


def pages(site):
    # The page of missing pages is served at any address, so its links start at the site's root.
    return [page for page in sorted(site.rglob("*.html")) if page.name != "404.html"]


def test_every_page_of_the_docs_is_in_the_navigation(site):
    links = {Path(urldefrag(link)[0]).name for link in Links(site / "index.html").leads}
    assert {page.stem for page in (ROOT / "docs").glob("*.md")} <= {Path(link).stem for link in links}


def test_links_lead_somewhere(site):
    parsed = {page: Links(page) for page in pages(site)}
    for page, found in parsed.items():
        for link in [*found.leads, *found.loads]:
            if re.match(r"(https?|mailto|data):", link):
                continue
            path, fragment = urldefrag(unquote(link))
            target = (page.parent / path).resolve() if path else page
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), (page.name, link)
            if fragment and target in parsed:
                assert fragment in parsed[target].ids, (page.name, link)


def test_nothing_is_loaded_from_elsewhere(site):
    for page in pages(site):
        assert [link for link in Links(page).loads if re.match(r"(https?:)?//", link)] == [], page.name
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet.name


def test_a_file_of_the_repository_is_shown(site):
    page = (site / "source" / "configs" / "demo.yaml.html").read_text(encoding="utf-8")
    assert "mrg.modules.grpo.GRPOModule" in page
    assert 'href="source/configs/demo.yaml.html"' in (site / "demo.html").read_text(encoding="utf-8")
    assert not list(site.glob("*.py"))


def test_a_link_to_a_missing_file_fails(tmp_path):
    (tmp_path / "docs").mkdir()
    for name in ("mkdocs.yml", "docs/reference_pages.py", "docs/source_pages.py"):
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    text = (tmp_path / "mkdocs.yml").read_text(encoding="utf-8")
    (tmp_path / "mkdocs.yml").write_text(text[: text.index("\nnav:")], encoding="utf-8")
    (tmp_path / "docs" / "index.md").write_text("# Start\n[config](../mkdocs.yml)\n", encoding="utf-8")
    build(tmp_path / "mkdocs.yml", tmp_path / "site")
    (tmp_path / "docs" / "index.md").write_text("# Start\n[config](../gone.yaml)\n", encoding="utf-8")
    with pytest.raises(AssertionError, match=r"gone\.yaml"):
        build(tmp_path / "mkdocs.yml", tmp_path / "site")


def test_commands_are_coloured_and_other_blocks_are_not(site):
    page = (site / "scale.html").read_text(encoding="utf-8")
    assert '<span class="c1"># one GPU' in page
    assert 'python<span class="w"> </span>-m' in page
    tree = (site / "data.html").read_text(encoding="utf-8")
    assert "  NLMCXR_reports.tgz  (or unpacked)    indiana_reports.csv" in tree


def test_the_reference_lists_every_setting_with_its_choices(site):
    page = (site / "settings.html").read_text(encoding="utf-8")
    text = re.sub(r"<[^>]+>", "", page)
    for name in ("group_size", "advantage_scale", "max_pixels", "val_samples", "id_pattern", "save_every", "from"):
        assert f"<code>{name}</code>" in page, name
    assert "grpo, bnpo, dr_grpo, dapo, gspo, cispo" in text
    assert "exp(ref - lp) - (ref - lp) - 1" in text
    assert 'href="source/mrg/modules/settings.py.html"' in page
    assert not re.search(r"<td>See ", page)
    metrics = (site / "metrics_api.html").read_text(encoding="utf-8")
    import mrg.metrics

    assert [name for name in mrg.metrics.__all__ if name not in metrics] == []


@pytest.fixture(scope="module")
def server(site):
    """The site's address, served as a reader would have it."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextlib.contextmanager
def opened(browser, address, **context):
    """A page that asks nobody but its own server and says nothing to the console."""
    requests, complaints = [], []
    page = browser.new_context(**context).new_page()
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
    page.goto(address, wait_until="networkidle")
    yield page
    server = address.rpartition("/")[0]
    assert len(requests) > 3
    assert [url for url in requests if not url.startswith((server, "data:", f"blob:{server}"))] == []
    assert complaints == []
    page.context.close()


@pytest.mark.slow
@needs_chromium
def test_pages_fit_a_phone_and_ask_for_nothing(site, server):
    with launched() as browser:
        for name in [page.stem for page in (ROOT / "docs").glob("*.md")]:
            phone = {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"}
            with opened(browser, f"{server}/{name}.html", **phone) as page:
                assert page.locator("h1").first.is_visible()
                images = page.locator("article img")
                assert all(images.nth(i).evaluate("image => image.naturalWidth > 0") for i in range(images.count()))
                # Tables and code scroll inside the page, which itself is no wider than a phone.
                assert page.evaluate("document.documentElement.scrollWidth") <= 390, name


@needs_chromium
def test_search_finds_a_page(server):
    with (
        launched() as browser,
        opened(browser, f"{server}/index.html", viewport={"width": 1280, "height": 800}) as page,
    ):
        page.locator("[data-md-component=search-query]").click()
        page.keyboard.type("no_prior")
        page.wait_for_selector(".md-search-result__item")
        assert "extending.html" in page.locator(".md-search-result__link").first.get_attribute("href")
