import jinja2
import pytest

from mrg.pages import page


@pytest.fixture
def templates(tmp_path, monkeypatch):
    environment = page._environment()
    own = jinja2.FileSystemLoader(tmp_path)
    monkeypatch.setattr(environment, "loader", jinja2.ChoiceLoader([own, environment.loader]))
    return tmp_path


def test_text_never_becomes_markup(templates):
    (templates / "t.txt").write_text("<p>{{ text }}</p>")
    assert page.render("t.txt", text="<script>\"'&") == "<p>&lt;script&gt;&#34;&#39;&amp;</p>"


def test_a_forgotten_value_is_an_error(templates):
    (templates / "t.html").write_text("{{ text }}")
    with pytest.raises(jinja2.UndefinedError, match="text"):
        page.render("t.html")


def test_an_old_page_stays_where_a_new_one_fails(templates, tmp_path):
    (templates / "t.html").write_text('{% extends "base.html" %}{% block body %}{{ text }}{% endblock %}')
    file = tmp_path / "page.html"
    page.write_page(file, "t.html", title="A & B", text="<b>")
    old = file.read_text()
    assert "<title>A &amp; B</title>" in old
    assert "&lt;b&gt;" in old
    assert "http" not in old
    with pytest.raises(jinja2.UndefinedError):
        page.write_page(file, "t.html", title="A")
    assert file.read_text() == old
    assert not list(tmp_path.glob(".*"))
