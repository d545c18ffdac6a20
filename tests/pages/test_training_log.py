import json
import math

import pytest

from mrg.pages.training_log import TrainingLog, metrics_files, read_scores, thinned


def write(path, *rows):
    path.write_text("\n".join(rows) + "\n")
    return path


def test_missing_cells_and_columns_and_nan(tmp_path):
    file = write(
        tmp_path / "metrics.csv", "step,reward/total,val/mccs,epoch", "0,0.5,,0", "1,nan,,0", "1,,0.25,0", "2,x,,0"
    )
    scores = read_scores([file])
    assert set(scores) == {"reward/total", "val/mccs"}
    assert scores["reward/total"][0] == (0, 0.5)
    assert math.isnan(scores["reward/total"][1][1])
    assert scores["val/mccs"] == [(1, 0.25)]


def test_a_row_that_is_being_written_is_left_out(tmp_path):
    file = tmp_path / "metrics.csv"
    file.write_text("step,loss,val\n0,1.5,2\n1,1.")
    assert read_scores([file])["loss"] == [(0, 1.5)]


def test_a_resumed_run_goes_on_where_its_last_checkpoint_was(tmp_path):
    write(tmp_path / "metrics-1.csv", "step,loss", "0,1", "1,2", "2,3")
    write(tmp_path / "metrics-2.csv", "step,loss,kl", "2,30,5", "3,40,6")
    write(tmp_path / "metrics-10.csv", "step,loss", "4,50")
    write(tmp_path / "metrics.csv", "step,loss", "3,400")
    assert [path.name for path in metrics_files(tmp_path)] == [
        "metrics-1.csv",
        "metrics-2.csv",
        "metrics-10.csv",
        "metrics.csv",
    ]
    scores = read_scores(metrics_files(tmp_path))
    assert scores["loss"] == [(0, 1), (1, 2), (2, 30), (3, 400)]
    assert scores["kl"] == [(2, 5)]


def test_an_overwritten_run_shows_nothing_of_the_old_one(tmp_path):
    write(tmp_path / "metrics-1.csv", "step,loss,old", "0,1,1", "9,2,1")
    write(tmp_path / "metrics.csv", "step,loss", "0,7")
    assert read_scores(metrics_files(tmp_path)) == {"loss": [(0, 7)]}


def test_empty_files(tmp_path):
    write(tmp_path / "metrics-1.csv", "step,loss")
    (tmp_path / "metrics.csv").write_text("")
    assert read_scores(metrics_files(tmp_path)) == {}


def test_thinned_keeps_the_mean():
    series = [(step, float(step % 7)) for step in range(1000)]
    few = thinned(series, 100)
    assert len(few) == 100
    assert sum(value for _, value in few) / 100 == pytest.approx(sum(value for _, value in series) / 1000)
    assert few[-1][0] == 999
    assert thinned(series[:5]) == series[:5]
    assert thinned([(0, math.nan), (1, 2.0), (2, math.nan), (3, math.nan)], 2)[0] == (1, 2.0)


def test_last_is_a_mean_of_finite_values(tmp_path):
    write(tmp_path / "metrics.csv", "step,loss", "0,9", "1,1", "2,nan", "3,3")
    log = TrainingLog.read(tmp_path)
    assert (log.last("loss"), log.last("loss", 2), log.last("kl")) == (3, 2, None)


def test_a_sample_that_is_being_written_is_left_out(tmp_path):
    write(tmp_path / "metrics.csv", "step,loss")
    (tmp_path / "samples.jsonl").write_text(json.dumps({"round": 0}) + '\n{"round": 1, "comp')
    assert TrainingLog.read(tmp_path).samples == [{"round": 0}]


def test_no_run(tmp_path):
    with pytest.raises(ValueError, match=r"to be a run's folder, but it has no config\.yaml"):
        TrainingLog.read(tmp_path)
