"""The last lines of a run."""

import json
import re
import shlex

from mrg.cli import main
from tests.callbacks.runs import fit_arguments
from tests.command_line import failure


def test_a_run_without_a_score_says_what_it_left_and_what_to_run(tmp_path, capsys):
    main(["fit", *fit_arguments(tmp_path, "--trainer.max_steps=2")])
    run = tmp_path / "run"
    last = run / "checkpoints" / "round-00000002.ckpt"
    lines = capsys.readouterr().out.splitlines()
    first = lines.index(
        "No score was computed because no validation was due (trainer.val_check_interval, trainer.limit_val_batches), "
        "so there is no best checkpoint and no policy."
    )
    assert lines[first + 1] == f"Last checkpoint: {last}"
    assert lines[first + 4 :] == [f"Page: {run / 'index.html'}", f"Metrics: {run / 'metrics.csv'}"]
    commands = [line.partition(" with: ") for line in lines[first + 2 : first + 4]]
    assert [title for title, _, _ in commands] == ["Score it", "Write its policy"]
    assert not (run / "policy").exists()
    for _, _, command in commands:
        python, _, module, *argv = shlex.split(command)
        assert (python, module) == ("python", "mrg")
        main(argv)
    assert "val/mccs" in capsys.readouterr().out
    assert (run / "policy" / "config.json").is_file()
    code, text = failure(capsys, ["test", *fit_arguments(tmp_path)])
    assert (code, text.endswith(f"To use its last one, pass --ckpt_path {last}.")) == (2, True)


def test_predictions_that_are_all_empty_are_a_warning(tmp_path, capsys):
    """Eight tokens are too few for a report."""
    main(["fit", *fit_arguments(tmp_path)])
    capsys.readouterr()
    main(["predict", *fit_arguments(tmp_path)])
    out, err = capsys.readouterr()
    assert f"4 reports: {tmp_path / 'run' / 'predict.jsonl'}" in out
    assert (
        "Warning: All 4 reports are empty: no completion has a <report> section with text. Look at the key "
        "`completion`; completions may be truncated, see model.init_args.max_new_tokens.\n"
    ) in err


def test_a_test_says_how_many_completions_are_truncated_and_without_a_report(tmp_path, capsys):
    main(["fit", *fit_arguments(tmp_path)])
    main(["test", *fit_arguments(tmp_path)])
    assert (
        "Warning: 4 of 4 completions were truncated at model.init_args.max_new_tokens (8), and 4 of 4 have no report "
        "and are scored as empty.\n"
    ) in capsys.readouterr().err
    completions = json.loads((tmp_path / "run" / "results.json").read_text())["protocol"]["completions"]
    assert completions == {"count": 4, "truncated": 4, "empty": 4}


def test_a_run_that_stopped_early_says_so(tmp_path, capsys):
    stopping = "{class_path: lightning.pytorch.callbacks.EarlyStopping, init_args: "
    stopping += "{monitor: val/mccs, mode: max, patience: 1}}"
    options = [f"--trainer.callbacks=[{stopping}]", "--trainer.max_steps=5", "--trainer.val_check_interval=1"]
    main(["fit", *fit_arguments(tmp_path, *options)])
    line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("Early stopping"))
    assert line.startswith("Early stopping ended the run at step 2 of 5: Monitored metric val/mccs did not improve")


def test_what_is_trained_is_said_once(tmp_path, capsys):
    main(["fit", *fit_arguments(tmp_path, "--trainer.log_every_n_steps=50", "--trainer.num_sanity_val_steps=0")])
    printed = capsys.readouterr()
    weights = re.search(r"Policy with (\S+) million weights, of which (\S+) million are trained", printed.err)
    assert float(weights[1]) >= float(weights[2])  # rounded alike
    assert ("Metrics: " in printed.out) == (tmp_path / "run" / "metrics.csv").exists()
    assert printed.err.count("DemoDataModule (train 8, val 4, test 4)") == 1
    assert "No score" not in printed.out
    assert "Early stopping" not in printed.err
