"""The model card of an exported policy, and the script that writes its reports."""

import json
import runpy

import pytest
import yaml
from PIL import Image

from mrg.cli import main
from mrg.commands.export.model_card import lineage
from tests.commands.export.conftest import train


def predicted(home, name):
    config, output = home / "runs" / name / "config.yaml", home / f"{name}.jsonl"
    images = [str(home / f"{index}.png") for index in range(3)]
    main(["predict", f"--config={config}", "--images", *images, "--output", str(output)])
    return [json.loads(line) for line in output.read_text().splitlines()]


@pytest.mark.parametrize(("name", "adapter"), [("demo_sft", False), ("demo", False), ("demo", True)])
def test_the_script_writes_the_reports_of_predict(home, name, adapter):
    folder = home / f"{name}-{adapter}"
    config = home / "runs" / name / "config.yaml"
    main(["export", f"--config={config}", f"--output={folder}", f"--adapter={str(adapter).lower()}"])
    script = runpy.run_path(str(folder / "write_report.py"))
    rows = predicted(home, name)
    assert all(len(row["prediction"].split()) > 5 for row in rows)
    for index, row in enumerate(rows):
        completion = script["complete"]([str(home / f"{index}.png")])
        assert completion == row["completion"]
        assert script["report_of"](completion) == row["prediction"]
    assert (folder / "write_report.py").read_text().strip() in (folder / "README.md").read_text()
    # Pillow alone would turn 16 bits into white, and transparent pixels into their hidden colours.
    for mode, name in (("I;16", "deep.png"), ("LA", "clear.png")):
        Image.new(mode, (64, 64)).save(folder / name)
        with pytest.raises(ValueError, match=rf"{name} to be an opaque 8-bit image, but its mode is {mode}"):
            script["read"](folder / name)
    for paths in ([], ["0.png"] * 3):
        with pytest.raises(ValueError, match=rf"1 to 2 images of one study, but got {len(paths)}"):
            script["complete"](paths)


def test_the_card_states_what_was_trained_on_what_and_how_well(home):
    folder = home / "card"
    main(["export", f"--config={home / 'runs' / 'demo' / 'config.yaml'}", f"--output={folder}"])
    card = (folder / "README.md").read_text()
    results = json.loads((home / "runs" / "demo" / "results.json").read_text())
    head = yaml.safe_load(card.split("---")[1])
    assert head["library_name"] == "transformers"
    assert "base_model" not in head
    assert "not for clinical use" in card
    for line in (
        "| base model | random weights |",
        "| training | demo_sft (supervised fine-tuning (SFT)), then GRPO |",
        "| trained weights | LoRA of rank 32, alpha 64 |",
        f"| training data | {results['protocol']['data_description']} |",
        "| image size | 3,136 to 12,544 pixels per image |",
        "| decoding | greedy |",
        "| largest number of new tokens | 60 |",
        "```text\nReport:\n```",
        "6 studies, labeler rules, MCCS margin 0.3; 95 % bootstrap intervals over studies.",
    ):
        assert line in card, line
    row = next(line for line in card.splitlines() if line.startswith("constant normal "))
    assert "[" in row
    training_report = results["best_constant"]["reports"]["MCCS"]
    assert " ".join(training_report.split()[:6]) not in " ".join(card.split())


def test_results_of_another_checkpoint_are_not_in_the_card(home):
    run = home / "runs" / "demo"
    results = json.loads((run / "results.json").read_text())
    before = (run / "results.json").read_bytes()
    results["protocol"]["fingerprint"] = "0" * 8
    (run / "results.json").write_text(json.dumps(results))
    main(["export", f"--config={run / 'config.yaml'}", f"--output={home / 'other'}"])
    (run / "results.json").write_bytes(before)
    card = (home / "other" / "README.md").read_text()
    assert "Not tested: the results of the run belong to another checkpoint." in card
    assert "95 % bootstrap" not in card


def test_a_convolutional_policy_is_prepared_by_its_processor(home):
    runs = home / "cnn"
    tiny = "{hidden_size: 64, num_layers: 2, cnn: [8, 16, 24, 32]}"
    train(runs, f"--model.init_args.tiny={tiny}", "--model.init_args.max_pixels=16384")
    main(["export", f"--config={runs / 'demo_sft' / 'config.yaml'}", f"--output={home / 'fast'}"])
    script = runpy.run_path(str(home / "fast" / "write_report.py"))
    images = [str(home / f"{index}.png") for index in range(3)]
    output = home / "fast.jsonl"
    main(["predict", f"--config={runs / 'demo_sft' / 'config.yaml'}", "--images", *images, "--output", str(output)])
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [script["complete"]([image]) for image in images] == [row["completion"] for row in rows]
    assert all(len(row["completion"]) > 40 for row in rows)


def test_lineage_ends_at_the_policy_that_no_run_trained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, source, kind in (("sft", "hub/model-7B", "SFTModule"), ("grpo", "runs/sft/policy", "GRPOModule")):
        (tmp_path / "runs" / name / "policy").mkdir(parents=True)
        config = {"name": name, "model": {"class_path": f"mrg.{kind}", "init_args": {"policy": source}}}
        (tmp_path / "runs" / name / "config.yaml").write_text(yaml.safe_dump(config))
    assert lineage("hub/model-7B") == [("", "hub/model-7B", "")]
    assert lineage("runs/grpo/policy") == [
        ("grpo", "runs/sft/policy", "GRPO"),
        ("sft", "hub/model-7B", "supervised fine-tuning (SFT)"),
        ("", "hub/model-7B", ""),
    ]
