"""`mrg audit`, on synthetic studies."""

import json

import pytest

from mrg.cli import main

DATA = ["--data.init_args.num_train", "12", "--data.init_args.num_val", "2", "--data.init_args.num_test", "2"]


def test_table_and_cheapest_exploit(tmp_path, capsys):
    output = tmp_path / "audit.json"
    main(["audit", "--config", "configs/demo.yaml", *DATA, "--studies", "6", "--output", str(output)])
    printed = capsys.readouterr().out
    assert "6 training studies, labeler rules" in printed
    assert "Cheapest exploit: " in printed
    saved = json.loads(output.read_text())
    assert saved["copied"] == "the most similar image"
    assert [row["name"] for row in saved["rows"]][-1] == "perfect"
    assert saved["rows"][-1]["of_perfect"] == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "`audit` requires a configuration: pass --config FILE."),
        (["--config", "configs/demo.yaml", "--studies", "1"], "Expected --studies to be at least 2, but got 1."),
        (["--config", "configs/demo_sft.yaml", *DATA], "SFTModule has no reward: pass a configuration of GRPO."),
    ],
)
def test_errors(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["audit", *argv])
    assert stop.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
