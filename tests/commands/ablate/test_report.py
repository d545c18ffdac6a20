import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from mrg.commands.ablate.configuration import Ablation, Arm
from mrg.commands.ablate.report import format_summary, plot_summary, summarize, t_interval, write_report

CONFIGS = Path(__file__).parents[3] / "configs"
ABLATION = Ablation(
    Path("unused"),
    seeds=(0, 1, 2),
    arms={"sft": Arm("demo_sft.yaml", label="SFT"), "mccs": Arm("demo.yaml", start="sft", label="MCCS reward")},
    base="sft",
    panels={"Reward": ["sft", "mccs"]},
    configs=CONFIGS,
)


def row(mccs, ce_f1, **more):
    return {"MCCS": mccs, "CE-F1 micro-13+": ce_f1, "distinct": 0.5, **more}


SEEDS = {
    0: {"constant normal": row(0.3, 0.0), "sft": row(0.4, 0.3, format=1.0), "mccs": row(0.5, 0.5, format=0.9)},
    1: {"constant normal": row(0.3, 0.0), "sft": row(0.5, 0.4, format=1.0), "mccs": row(0.6, 0.5, format=0.9)},
    2: {"constant normal": row(0.3, 0.0), "sft": row(0.6, 0.5, format=1.0)},  # its second arm failed
}


def test_t_intervals_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    for values in ([0.1, 0.4], [0.1, 0.2, 0.4], list(range(10))):
        low, high = stats.t.interval(0.95, len(values) - 1, loc=sum(values) / len(values), scale=stats.sem(values))
        assert t_interval(values) == pytest.approx(
            {"value": sum(values) / len(values), "low": low, "high": high}, rel=1e-4
        )
    assert t_interval([0.3]) == {"value": 0.3, "low": None, "high": None}


def test_differences_are_paired_by_seed():
    systems = summarize(ABLATION, SEEDS)["systems"]
    assert systems["sft"]["scores"]["MCCS"]["value"] == pytest.approx(0.5)
    # .1 in both seeds that have both, though the means of what is there differ by .05.
    assert systems["mccs"]["differences"]["MCCS"] == pytest.approx({"value": 0.1, "low": 0.1, "high": 0.1})
    ce_f1 = systems["mccs"]["differences"]["CE-F1 micro-13+"]
    assert ce_f1["value"] == pytest.approx(0.15)
    assert ce_f1["high"] - ce_f1["value"] == pytest.approx(12.7062 * 0.05)  # sd / sqrt(2) is .05


def test_table_names_what_is_missing():
    text = format_summary(ABLATION, summarize(ABLATION, SEEDS))
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert cells[0] == ["arm", "MCCS", "CE-F1 micro-13+", "MCCS - SFT", "CE-F1 micro-13+ - SFT", "distinct", "format"]
    assert cells[-1] == ["MCCS reward", "55.0 ± 63.5", "50.0 ± 0.0", "+10.0 ± 0.0", "+15.0 ± 63.5", "50", "90"]
    assert "Missing or failed runs: seed 2, mccs." in text
    assert "mean over 3 seeds; ± is the 95 % interval of Student's t over seeds" in text
    one = format_summary(ABLATION, summarize(ABLATION, {0: SEEDS[0]}))
    assert "mean over 1 seed; no intervals" in one
    assert "| MCCS reward     | 50.0 |" in one


def with_best(mccs, ce_f1):
    """The seeds with a best constant in each of them."""
    return {seed: {**rows, "best constant": {"MCCS": mccs, "CE-F1 micro-13+": ce_f1}} for seed, rows in SEEDS.items()}


def test_arms_are_compared_with_the_best_constant():
    """SFT has .4, .5 and .6: half of its interval is 4.3027 * .1 / sqrt(3) = .248. The other has .5 and .6: .635."""
    over = "(95 % intervals of the difference over seeds)"
    results = summarize(ABLATION, with_best(0.26, 0.1))
    assert results["remarks"] == [
        f"SFT does not beat the best constant report in MCCS {over}.",
        f"MCCS reward does not beat the best constant report in MCCS {over}.",
    ]
    results = summarize(ABLATION, with_best(0.24, 0.51))
    line = f"MCCS reward does not beat the best constant report in MCCS, CE-F1 micro-13+ {over}."
    assert results["remarks"] == [f"SFT does not beat the best constant report in CE-F1 micro-13+ {over}.", line]
    text = format_summary(ABLATION, results)
    assert "| best constant   | 24.0 ± 0.0 " in text
    assert f"\n\n{line}\n" in text
    one = {0: with_best(0.24, 0.3)[0]}
    line = "SFT does not beat the best constant report in CE-F1 micro-13+."
    assert summarize(ABLATION, one)["remarks"] == [line]
    assert summarize(ABLATION, SEEDS)["remarks"][0].startswith("The best constant report is not known: no arm was")


def test_figure(tmp_path):
    for number, seeds in enumerate((SEEDS, {0: SEEDS[0]})):
        plot_summary(ABLATION, summarize(ABLATION, seeds), tmp_path / f"{number}.svg")
        assert ET.parse(tmp_path / f"{number}.svg").getroot().tag.endswith("svg")


def test_nothing_to_report(tmp_path):
    ablation = Ablation(tmp_path, (0,), ABLATION.arms, "sft", {}, configs=CONFIGS)
    with pytest.raises(ValueError, match="a complete run in"):
        write_report(ablation)
