import xml.etree.ElementTree as ET

from mrg.pages.charts import new_figure, svg


def chart(title="a < b & c"):
    figure = new_figure()
    axes = figure.add_subplot()
    axes.plot([0, 1], [1, 2])
    axes.set_title(title)
    return svg(figure, 'Reward by "step" <i>')


def test_a_chart_is_one_element_that_says_what_it_shows():
    root = ET.fromstring(chart())
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.get("aria-label") == 'Reward by "step" <i>'
    assert "a < b & c" in "".join(root.itertext())
    assert "currentColor" in chart()


def test_equal_figures_give_equal_text():
    assert chart() == chart()
