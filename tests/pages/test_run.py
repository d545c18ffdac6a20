"""The page of a run, from whatever its folder holds."""

import html.parser
import json
import math
import re

import pytest
import yaml

from mrg.cli import main
from mrg.metrics import RulesLabeler
from mrg.metrics.constants import BestConstants
from mrg.metrics.evaluation import CONSTANT_NORMAL, evaluate_systems
from mrg.pages.run import duration, find_warnings, run_page, sample_groups, write_run_page
from mrg.pages.run_charts import Line, describe, draw, latest, marks_note, run_charts, running_mean, unrewarded
from mrg.pages.training_log import TrainingLog
from tests.pages.browser import needs_chromium, opened, violations

HOSTILE = '<script>alert("x")</script> & \u202eright to left \U0001f600 </td>'


def log(tmp_path, scores=None, **changes):
    given = {"state": {}, "samples": [], "results": {}, "config": ""}
    return TrainingLog(folder=tmp_path, scores=scores or {}, **{**given, **changes})


class Elements(html.parser.HTMLParser):
    """Names of elements, their ids, their links, and their text."""

    def __init__(self, text):
        super().__init__()
        self.names, self.ids, self.links, self.text = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.ids += [value for key, value in attrs if key == "id"]
        self.links += [
            value for key, value in attrs if key in ("href", "src") and tag in ("a", "img", "link", "script")
        ]

    def handle_data(self, data):
        self.text += data


GRPO = {
    "reward/total": [(0, 0.4), (1, 0.6)],
    "reward/mccs": [(0, 0.2), (1, 0.5)],
    "reward/mccs_std": [(0, 0.2), (1, 0.5)],
    "val/mccs": [(1, 0.38)],
    "train/loss": [(0, 0.0), (1, 0.1)],
    "train/kl": [(0, 0.0), (1, math.nan)],
    "train/dead_groups": [(0, 0.5), (1, 0.25)],
    "train/missing": [(0, 0.0), (1, 0.0)],
    "seconds/rollout": [(0, 1.0), (1, 2.0)],
}
NORMAL = {"constant_normal": {"val/mccs": 0.34}}


def test_charts_are_those_that_the_run_has_scores_for(tmp_path):
    charts = {chart.title: str(chart.image) for chart in run_charts(log(tmp_path, GRPO, state=NORMAL))}
    assert list(charts) == [
        "Reward",
        "Validation",
        "Groups and completions",
        "KL to the reference",
        "Seconds per round",
    ]
    assert "total: 40 to 60 (between 40 and 60); mccs: 20 to 50" in charts["Reward"]
    assert "MCCS: 38 to 38 (between 38 and 38), constant normal 34" in charts["Validation"]
    assert "without any reward" not in charts["Groups and completions"]  # 0 all along
    sft = {"train/loss": [(9, 2.0)], "val/loss": [(9, 2.5)]}
    assert [chart.title for chart in run_charts(log(tmp_path, sft))] == ["Loss"]
    assert run_charts(log(tmp_path)) == []


def test_scores_with_weight_0_are_not_part_of_the_reward(tmp_path):
    reward = {"mccs_weight": 0.75, "ce_f1_weight": 0.0, "scorers": [{"scorer": "a.b:length", "weight": 0.0}]}
    config = yaml.safe_dump({"model": {"init_args": {"reward": reward}}})
    assert unrewarded(config) == {"reward/ce_f1", "reward/length"}
    scores = {f"reward/{name}": [(0, 0.2), (1, 0.4)] for name in ("total", "mccs", "ce_f1", "length")}
    charts = {chart.title: str(chart.image) for chart in run_charts(log(tmp_path, scores, config=config))}
    assert "total: 20 to 40" in charts["Reward"]
    assert "ce_f1" not in charts["Reward"]
    assert "ce_f1: 20 to 40" in charts["Not part of the reward"]
    assert "length: 20 to 40" in charts["Not part of the reward"]
    assert "mccs" not in charts["Not part of the reward"]
    for text in ("", "model: [", "model: {init_args: {reward: 3}}", "a: &a [*a]"):
        assert unrewarded(text) == set()


def test_first_steps_do_not_flatten_a_chart():
    fall = [(0, 10.0), *((step, 1 + 0.2 * math.cos(step)) for step in range(1, 101))]
    assert "first steps up to 10" in draw("Loss", [Line("training", fall)], False, (0, 100))
    assert "first steps" not in draw("Loss", [Line("training", fall[1:])], False, (1, 100))
    even = [(step, float(step)) for step in range(100)]
    assert "first steps" not in draw("Loss", [Line("training", even)], False, (0, 99))


def test_steps_at_which_the_reward_rose_and_another_score_fell_are_marked(tmp_path):
    rising = {
        "reward/total": [(step, 0.4 + step / 100) for step in range(9)],
        "val/mccs": [(2, 0.4), (5, 0.3), (8, 0.2)],
    }
    marked = {**rising, "train/kl": [(0, 0.1)], "val/reward_diverges": [(5, 0.0), (8, 1.0)]}
    text = "Red lines (8): the reward rose while a validation score that is not part of it fell."
    charts = {chart.title: chart for chart in run_charts(log(tmp_path, marked))}
    for title in ("Reward", "Validation"):
        assert charts[title].note.endswith(text)
        assert text in charts[title].image
        assert "&#34;warned&#34;: [8]" in charts[title].image
    assert not any(text in chart.image for chart in (charts["KL to the reference"], *run_charts(log(tmp_path, rising))))
    plain = run_charts(log(tmp_path, {**rising, "val/reward_diverges": [(8, 0.0)]}))
    assert not any("Red lines" in chart.note for chart in plain)
    assert marks_note(range(7)).startswith(" Red lines (0, 1, 2, 3, 4 and 2 more)")


def test_running_mean():
    """Over 5 neighbours of 40 values; fewer at the ends, and without those that are missing."""
    values = [float(i) for i in range(40)]
    means = running_mean(values)
    assert means[0] == 1.0  # 0, 1, 2
    assert means[20] == 20.0
    assert means[39] == 38.0  # 37, 38, 39
    assert running_mean([math.nan] * 40)[3] != running_mean([math.nan] * 40)[3]
    assert running_mean([math.nan, 4.0, math.nan])[0] == 4.0


def test_one_point_or_none_that_is_finite_can_be_drawn():
    for series in ([(3, 0.5)], [(3, math.nan)], [(0, math.inf), (1, 2.0)]):
        assert "<svg" in draw("A", [Line("b", series)], True, (0, 3))
    assert describe("A", [Line("b", [(3, math.nan)])]) == "A, steps 3 to 3. b: no finite value."


def test_a_running_page_refreshes_and_a_finished_one_does_not(tmp_path):
    running = run_page(log(tmp_path, GRPO, state={"state": "running", "step": 2, "num_steps": 4, "seconds": 90}))
    assert 'http-equiv="refresh"' in running
    assert "1 min 30 s so far" in running
    assert "Step 2 of 4" in running
    finished = run_page(log(tmp_path, GRPO, state={"state": "finished", "step": 4, "num_steps": None}))
    assert 'http-equiv="refresh"' not in finished
    assert "Step 4" in finished


def test_text_of_the_run_never_becomes_markup(tmp_path):
    sample = {"round": 3, "id": HOSTILE, "completion": HOSTILE, "target": HOSTILE, "reward": None, "truncated": True}
    text = run_page(log(tmp_path, state={"state": "stopped", "error": HOSTILE}, samples=[sample], config=HOSTILE))
    page = Elements(text)
    assert page.names.count("script") == 1  # ours
    assert page.text.count(HOSTILE) == 5


def test_page_is_one_file_whose_links_are_its_neighbours(tmp_path):
    (tmp_path / "gallery.html").write_text("x")
    (tmp_path / "metrics.csv").write_text("step,loss\n0,1\n1,2\n")
    page = Elements(write_run_page(tmp_path).read_text())
    assert page.links == ["data:,", "gallery.html", "metrics.csv"]
    assert len(page.ids) == len(set(page.ids))


def test_samples_are_the_latest_groups_best_first(tmp_path):
    rows = [
        {"round": number, "id": "a", "completion": f"{number}/{k}", "reward": k / 10, "mccs": None, "target": "t"}
        for number in range(6)
        for k in range(3)
    ]
    groups = sample_groups(rows, most=2)
    assert [group["round"] for group in groups] == [5, 4]
    assert [row["text"] for row in groups[0]["rows"]] == ["5/2", "5/1", "5/0"]
    assert groups[0]["heads"] == ["reward", "mccs"]
    assert groups[0]["rows"][0]["scores"] == ["20", "–"]
    assert sample_groups([]) == []


def test_results_of_the_test(tmp_path):
    score = {"value": 0.5, "low": 0.4, "high": 0.6}
    results = {"num_studies": 7, "margin": 0.3, "systems": {"model": {"scores": {"MCCS": score}, "distinct": 0.25}}}
    text = Elements(run_page(log(tmp_path, results=results))).text
    assert "50.0 [40.0, 60.0]" in text
    assert "7 studies" in text


def test_the_test_is_compared_with_the_best_constant_and_remarked_on(tmp_path):
    """Half of the studies have Edema, so that stating it always earns 2 * 1 / (2 + 1)."""
    target, labeler = ["Edema.", "The lungs are clear."] * 100, RulesLabeler()
    best = BestConstants.of(target, labeler)
    systems = {"constant normal": [CONSTANT_NORMAL] * 200, "model": ["The lungs are clear."] * 200}
    results = evaluate_systems(systems, target, labeler, num_resamples=20, best=best)
    (table,) = re.findall(r"<h2>Test</h2>(.*)<h2>Curves</h2>", run_page(log(tmp_path, results=results)), re.DOTALL)
    rows = [re.findall(r"<t[dh][^>]*>([^<]*)</t[dh]>", row) for row in table.split("<tr>")]
    assert rows[1] == ["system", "MCCS", "CE-F1 micro-13+", "CE-F1 macro-13+", "informedness", "distinct"]
    assert [row[0] for row in rows[2:]] == ["constant normal", "model", "best constant"]
    assert rows[2][2].startswith("0.0 [")
    assert rows[4][2].startswith("66.7 [")
    assert rows[4][4] == "0.0 [0.0, 0.0]"
    text = Elements(table).text
    assert "model does not beat the best constant report in MCCS, CE-F1 micro-13+, CE-F1 macro-13+" in text
    assert "model finds nothing: none of its reports states one of the 13 conditions." in text
    assert "model writes 1 of 200 distinct reports, fewer than 1 %." in text
    assert "CE-F1 micro-13+: Edema" in text


def test_curves_are_compared_with_the_best_constant(tmp_path):
    state = {**NORMAL, "best_constant": {"val/mccs": 0.45, "val/ce_f1": 0.2}}
    scores = {"val/mccs": [(1, 0.38)], "val/ce_f1": [(1, 0.1)]}
    given = log(tmp_path, scores, state=state)
    (chart,) = run_charts(given)
    assert "MCCS: 38 to 38 (between 38 and 38), best constant 45" in str(chart.image)
    assert "CE-F1: 10 to 10 (between 10 and 10), best constant 20" in str(chart.image)
    assert [row["note"] for row in latest(given)] == [
        "best 38.0, constant normal 34.0, best constant 45.0", "best 10.0, best constant 20.0"
    ]  # fmt: skip
    assert find_warnings(given) == [
        "Validation MCCS (38.0 %) is not above that of the best constant report (45.0 %).",
        "Validation CE-F1 (10.0 %) is not above that of the best constant report (20.0 %).",
    ]


@pytest.mark.parametrize(
    ("scores", "part"),
    [
        ({"train/dead_groups": [(0, 0.9)]}, "90 % of the groups have equal rewards"),
        ({"train/truncated": [(0, 0.3)]}, "30 % of the completions are truncated"),
        ({"train/nothing_found": [(0, 0.6)]}, "60 % of the completions state no finding"),
        ({"val/mccs": [(0, 0.5), (1, 0.3)]}, "MCCS (30.0 %) is not above that of the constant normal report (34.0 %)"),
    ],
)
def test_warnings(tmp_path, scores, part):
    (warning,) = find_warnings(log(tmp_path, scores, state=NORMAL))
    assert part in warning
    assert find_warnings(log(tmp_path, {key: [(0, 0.5)] for key in ("val/mccs",)}, state=NORMAL)) == []


def test_durations():
    assert [duration(s) for s in (0, 59.6, 61, 7_384, 200_000)] == [
        "0 s",
        "1 min 0 s",
        "1 min 1 s",
        "2 h 3 min",
        "2 d 7 h",
    ]


def test_command(tmp_path, capsys):
    (tmp_path / "metrics.csv").write_text("step,loss\n0,1\n")
    (tmp_path / "run.json").write_text(json.dumps({"state": "finished"}))
    main(["page", str(tmp_path)])
    assert capsys.readouterr().out == f"{tmp_path / 'index.html'}\n"
    with pytest.raises(SystemExit) as stop:
        main(["page", str(tmp_path / "nowhere")])
    assert stop.value.code == 2
    assert "to be a run's folder" in capsys.readouterr().err


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_and_labels(browser, whole, scheme):
    with opened(browser, whole, color_scheme=scheme) as page:
        page.eval_on_selector_all("details", "list => list.forEach(details => details.open = true)")
        assert violations(page) == ""


@needs_chromium
def test_values_are_read_with_the_pointer_and_with_the_keyboard(browser, whole):
    with opened(browser, whole) as page:
        plot = page.locator(".plot").first
        assert not page.locator(".tip").first.is_visible()
        box = plot.bounding_box()
        plot.hover(position={"x": 0.95 * box["width"], "y": box["height"] / 2})
        assert plot.locator(".tip").inner_text() == "step 1\ntotal: 20"
        page.mouse.move(0, 0)
        plot.focus()
        page.keyboard.press("Home")
        assert plot.locator(".tip").inner_text() == "step 0\ntotal: 10"
        page.keyboard.press("ArrowRight")
        assert "total: 20" in plot.locator(".tip").inner_text()
        page.get_by_role("button", name="Enlarge Reward").click()
        assert page.locator("#large svg").bounding_box()["width"] > 2 * box["width"]
        page.keyboard.press("End")
        assert page.locator("#large .tip").inner_text() == "step 1\ntotal: 20"
        page.keyboard.press("Escape")
        assert not page.locator("#large").is_visible()


@needs_chromium
def test_a_marked_step_says_why(browser, tmp_path):
    rows = "step,reward/total,val/mccs,val/reward_diverges\n0,0.1,,\n2,0.2,,\n3,,0.3,1\n"
    (tmp_path / "metrics.csv").write_text(rows)
    with opened(browser, write_run_page(tmp_path)) as page:
        plot = page.locator(".plot").first
        plot.focus()
        page.keyboard.press("End")
        expected = "step 3\ntotal: 20 (step 2)\nwarning: reward rises, other score falls"
        assert plot.locator(".tip").inner_text() == expected
        page.keyboard.press("ArrowLeft")
        assert plot.locator(".tip").inner_text() == "step 2\ntotal: 20"


@needs_chromium
def test_a_phone_scrolls_down_only_and_charts_have_the_texts_colour(browser, whole):
    with opened(browser, whole, viewport={"width": 360, "height": 740}, is_mobile=True, color_scheme="dark") as page:
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        colours = "e => [getComputedStyle(e).fill, getComputedStyle(document.body).color]"
        shown, text = page.eval_on_selector("figure svg text", colours)
        assert shown == text
