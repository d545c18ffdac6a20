"""Configurations that would do something else than they say."""

from types import SimpleNamespace

import pytest

from mrg.cli import main
from mrg.commands.configuration import check_limits, replaced_lists
from mrg.errors import UserError
from tests.callbacks.runs import fit_arguments
from tests.command_line import failure

SCORERS = "model: {{init_args: {{reward: {{scorers: [{{scorer: 'a:{}', weight: 0.1}}]}}}}}}\n"


@pytest.fixture
def files(tmp_path):
    made = [tmp_path / f"{name}.yaml" for name in ("one", "two", "three", "none")]
    for path, name in zip(made, ("f", "g", "f", ""), strict=True):
        path.write_text(SCORERS.format(name) if name else "model: {init_args: {reward: {scorers: []}}}\n")
    return made


def test_a_list_that_replaces_another_is_named(files):
    one, two, same, none = files
    line = "The list model.init_args.reward.scorers of {} replaces that of {}; it does not extend it. Repeat the "
    line += "entries that you want to keep."
    assert replaced_lists([one, two]) == [line.format(two, one)]
    assert replaced_lists([one, two, one]) == [line.format(two, one), line.format(one, two)]
    assert replaced_lists([one, same]) == replaced_lists([two]) == replaced_lists([]) == []
    assert replaced_lists([one, none]) == []  # an empty list removes it, as it says
    two.write_text(SCORERS.format("f") + "data: {init_args: {size: [1, 2]}}\n")
    one.write_text(SCORERS.format("f") + "data: {init_args: {size: [1, 3]}}\n")
    assert replaced_lists([one, two]) == []  # numbers are one value


def test_a_command_says_so(files, tmp_path, capsys):
    one, two, *_ = files
    stopping = "class_path: lightning.pytorch.callbacks.EarlyStopping, init_args: {{monitor: a, patience: {}}}"
    for path, patience in ((one, 1), (two, 2)):
        path.write_text(f"trainer: {{callbacks: [{{{stopping.format(patience)}}}]}}\n")
    arguments = fit_arguments(tmp_path, f"--config={one}", f"--config={two}", "--ckpt_path=none")
    code, text = failure(capsys, ["validate", *arguments])
    assert code == 2
    assert f"Warning: The list trainer.callbacks of {two} replaces that of {one}; it does not" in text


@pytest.mark.parametrize(
    ("command", "option", "instead"),
    [
        ("test", "limit_test_batches=2", "limit_test"),
        ("test", "limit_test_batches=0.5", "limit_test"),
        ("predict", "limit_predict_batches=1", "limit_test"),
        ("validate", "limit_val_batches=1", "limit_val"),
        ("fit", "limit_val_batches=1", "limit_val"),
    ],
)
def test_a_score_of_the_first_batches_is_refused(tmp_path, capsys, command, option, instead):
    key, _, value = option.partition("=")
    code, text = failure(capsys, [command, *fit_arguments(tmp_path, f"--trainer.{option}")])
    assert (code, text) == (
        2,
        f"mrg: trainer.{key} ({value}) would score the first studies only, as if they were all: set "
        f"data.init_args.{instead}, a random subset whose size is part of the results.",
    )
    assert not (tmp_path / "run").exists()


def test_limits_that_change_nothing():
    for value in (None, 1.0):
        check_limits("test", SimpleNamespace(limit_test_batches=value, limit_val_batches=1, fast_dev_run=False))
    check_limits("fit", SimpleNamespace(limit_val_batches=0, limit_test_batches=1, fast_dev_run=2))
    with pytest.raises(UserError, match="fast_dev_run would score a few batches as if they were all"):
        check_limits("test", SimpleNamespace(fast_dev_run=1))


def test_the_subset_is_part_of_the_results(tmp_path, capsys):
    main(["fit", *fit_arguments(tmp_path)])
    main(["test", f"--runs={tmp_path}", "--data.init_args.limit_test=2"])
    assert "\n2 studies, labeler rules" in f"\n{capsys.readouterr().out}"
