import json
import shutil

import pytest

from mrg.cli import main
from mrg.metrics.conditions import THIRTEEN
from mrg.modules.consensus import Consensus
from tests.callbacks.runs import fit_arguments
from tests.command_line import failure

SAMPLED = ("--samples=3", "--sample_temperature=1.5")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder of runs with one of three steps, whose calibration has been fitted."""
    folder = tmp_path_factory.mktemp("runs")
    main(["fit", *fit_arguments(folder)])
    main(["validate", *fit_arguments(folder, *SAMPLED)])
    return folder


def test_validate_fits_a_calibration_that_test_uses(run, capsys):
    state = json.loads((run / "run" / "calibration.json").read_text())
    assert (state["num_samples"], state["temperature"], state["num_studies"]) == (3, 1.5, 4)
    assert list(state["counts"]) == list(THIRTEEN)
    assert list(state["choices"]) == ["greedy", "mccs", "ce_f1", "likelihood", "medoid"]
    assert state["calibration"]["method"] == "platt"
    main(["test", *fit_arguments(run, *SAMPLED, "--choose=medoid")])
    printed = capsys.readouterr().out
    assert "model - greedy, MCCS: " in printed
    assert "Probabilities of findings, calibrated: ECE " in printed
    assert "Cost per study: 3 samples 24 tokens and " in printed
    results = json.loads((run / "run" / "results.json").read_text())
    assert {"model", "greedy"} < set(results["systems"])
    own = results["uncertainty"]
    assert (own["choose"], own["num_samples"], own["cost"]["studies"]) == ("medoid", 3, 4)
    points = ["f1", "precision=.5", "precision=.8", "recall=.8"]
    assert list(own["choices"]) == ["greedy", "mccs", "ce_f1", "likelihood", "medoid", *points]
    for system, name in (("model", "medoid"), ("greedy", "greedy")):  # the table and the choices agree
        assert own["choices"][name]["MCCS"]["value"] == results["systems"][system]["scores"]["MCCS"]["value"]
        recall = results["systems"][system]["recall"]["micro-13+"]
        assert own["choices"][name]["recall"]["value"] == recall
    assert "Every choice from the same samples. To select one, use the table of `validate`" in printed
    assert list(own["scores"]) == ["shares", "calibrated"]
    assert "<svg" in (run / "run" / "uncertainty.svg").read_text()
    row = json.loads((run / "run" / "predictions.jsonl").read_text().splitlines()[0])
    assert len(row["sample_labels"]) == 3
    assert set(row["shares"]) == set(row["probabilities"]) == set(THIRTEEN)
    assert row["shares"] != row["probabilities"]


def test_predict_writes_the_probabilities(run, capsys):
    main(["predict", *fit_arguments(run, *SAMPLED, "--operating_point=recall=.9")])
    assert "Cost per study: 3 samples" in capsys.readouterr().out
    rows = [json.loads(line) for line in (run / "run" / "predict.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    assert set(rows[0]["probabilities"]) == set(THIRTEEN)
    assert "greedy" in rows[0]


def test_a_calibration_of_other_samples_is_refused(run, capsys):
    code, text = failure(capsys, ["predict", *fit_arguments(run, "--samples=4", "--sample_temperature=1.5")])
    assert code == 2
    assert "calibration.json was fitted to other samples: num_samples 3 (now 4)." in text


def test_a_calibration_of_another_starting_policy_or_of_the_first_part_is_refused(run, tmp_path, monkeypatch, capsys):
    policy = shutil.copytree(run / "run" / "policy", tmp_path / "policy")
    start = fit_arguments(
        tmp_path, *SAMPLED, "--name=start", "--starting_policy=true", f"--model.init_args.policy={policy}",
        "--data.init_args.eval_batch_size=2",
    )  # fmt: skip
    main(["validate", *start])
    write, written = Consensus.write, []

    def once(self, *args):
        if written:
            raise RuntimeError("out of memory")
        written.append(True)
        return write(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Consensus, "write", once)
        with pytest.raises(RuntimeError):
            main(["predict", *start])
    file = tmp_path / "start" / "calibration.json"
    fitted = file.read_text()
    file.write_text(fitted + "\n")
    code, text = failure(capsys, ["predict", *start, "--resume=auto"])
    assert (code, "cannot be resumed: it was written with another samples." in text) == (2, True), text
    file.write_text(fitted)
    weights = policy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + bytes(4))
    code, text = failure(capsys, ["predict", *start])
    assert (code, "calibration.json was fitted to other samples: fingerprint " in text) == (2, True), text


def test_options_that_contradict_each_other(run, capsys):
    for command, options, message in (
        ("test", ["--choose=mccs"], "Expected --samples to be at least 2 for --choose"),
        ("test", ["--samples=2", "--sample_temperature=0"], "Expected --sample_temperature to be above 0, but got 0"),
        ("test", ["--samples=2", "--choose=mccs", "--operating_point=f1"], "are mutually exclusive"),
        ("fit", ["--samples=2", "--overwrite=true"], "with validate, test or predict: fit decodes greedily"),
    ):
        code, text = failure(capsys, [command, *fit_arguments(run, *options)])
        assert (code, message in text) == (2, True), text


def test_thresholds_and_samples_that_are_not_there(run, capsys):
    options = ["--name=other", "--starting_policy=true", f"--model.init_args.policy={run / 'run' / 'policy'}"]
    code, text = failure(capsys, ["test", *fit_arguments(run, *options, "--samples=2", "--operating_point=f1")])
    assert code == 2
    assert "--operating_point needs thresholds from the validation split: run `validate --samples 2`" in text
    baseline = "--model={class_path: mrg.modules.baselines.ConstantNormal}"
    code, text = failure(capsys, ["test", *fit_arguments(run)[:1], baseline, "--name=constant", "--samples=2"])
    assert (code, "ConstantNormal does not sample its reports: leave out --samples." in text) == (2, True), text
