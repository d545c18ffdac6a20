"""The examples of docs/extending.md as a user would have them: files of their own, named by a configuration."""

import contextlib
import csv
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mrg.cli import main
from mrg.modules.policy.families import FAMILIES
from tests.callbacks.runs import FEW, fit_arguments, grpo_arguments
from tests.family_checkpoints import BUILDERS, VISION, save_family
from tests.modules.policy import test_more_families as more_families
from tests.test_configs import assert_within

ROOT = Path(__file__).parent.parent
EXAMPLES = ("my_reward", "my_data", "my_labeler", "my_score", "my_family")


@pytest.fixture
def example(tmp_path, monkeypatch):
    """A folder with each example as `<name>.py` and `<name>.yaml`, from which modules are imported."""
    name, files = "", []
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    for language, block in re.findall(r"```(python|yaml)\n(.*?)```", page, re.DOTALL):
        title = re.match(r"# (\w+)\.py\n", block)
        name = title[1] if title else name
        if title or language == "yaml":
            files.append(f"{name}.{'py' if title else 'yaml'}")
            (tmp_path / files[-1]).write_text(block, encoding="utf-8")
    assert files == [f"{name}.{end}" for name in EXAMPLES for end in ("py", "yaml")]
    monkeypatch.syspath_prepend(tmp_path)
    known = dict(FAMILIES)
    yield tmp_path
    FAMILIES.clear()
    FAMILIES.update(known)
    for name in EXAMPLES:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_configuration_takes_it(example, name):
    out = io.StringIO()
    given = [f"--config={ROOT / 'configs' / 'iu.yaml'}", f"--config={example / name}.yaml"]
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as stop:
        main(["fit", *given, "--print_config"])
    assert stop.value.code == 0
    assert_within(yaml.safe_load((example / f"{name}.yaml").read_text()), yaml.safe_load(out.getvalue()))


def test_the_folder_of_the_command_is_searched(example):
    command = [sys.executable, "-m", "mrg", "fit", f"--config={ROOT / 'configs' / 'iu.yaml'}", "--config=my_data.yaml"]
    done = subprocess.run([*command, "--print_config"], cwd=example, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "class_path: my_data.FolderDataModule" in done.stdout


def write_folder(root, studies):
    """Studies in the layout of the example."""
    for index, study in enumerate(studies):
        folder = root / ("train", "train", "val", "test")[index % 4]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index}.txt").write_text(study.report + "\n", encoding="utf-8")
        study.views[0].load().save(folder / f"{index}.png")


def test_reward_data_labeler_and_score_train_together(example, studies, capsys):
    write_folder(example / "my_data", studies)
    # Settings of the synthetic data only.
    drawn = [option for option in FEW if "num_" in option]
    sft = [option for option in fit_arguments(example, "--name=sft") if option not in drawn]
    data = [f"--config={example / 'my_data.yaml'}", f"--data.init_args.root={example / 'my_data'}"]
    data += [f"--config={example / 'my_labeler.yaml'}", "--data.init_args.num_workers=0"]
    main(["fit", *sft, *data])
    assert "SFTModule on FolderDataModule (train 4, val 2, test 2)" in capsys.readouterr().err
    grpo = [option for option in grpo_arguments(example) if option not in drawn]
    parts = [f"--config={example / name}.yaml" for name in ("my_reward", "my_score")]
    # Files come first, so that single options override them.
    main(["fit", grpo[0], *parts, *grpo[1:], *data])
    with (example / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    rewards = [float(row["reward/no_prior"]) for row in rows if row["reward/no_prior"]]
    assert len(rewards) == 3
    assert all(0 <= reward <= 1 for reward in rewards)
    for name in ("val/relative_length", "val/micro_14"):
        assert len([row for row in rows if row[name]]) == 1, name
    assert "(val/micro_14" in capsys.readouterr().out
    assert "labeler german" in printed_by_test(example / "run", capsys)


def printed_by_test(run, capsys):
    """What `test` prints of a run."""
    main(["test", f"--config={run / 'config.yaml'}"])
    return capsys.readouterr().out


def vip_llava(corpus):
    from transformers import VipLlavaConfig

    tokenizer, image, processor, llava = BUILDERS["llava"](corpus)
    vision = {"model_type": "clip_vision_model", "projection_dim": 32, **VISION}
    config = VipLlavaConfig(
        text_config=llava.text_config.to_dict(),
        vision_config=vision,
        image_token_index=llava.image_token_id,
        vision_feature_layer=[-2, -1],
        image_seq_length=16,
    )
    return tokenizer, image, processor, config


def test_family_is_exact_and_trains(example, studies, tmp_path_factory, monkeypatch, capsys):
    monkeypatch.setitem(BUILDERS, "vipllava", vip_llava)
    folder = save_family("vipllava", tmp_path_factory.mktemp("vipllava"), [study.report for study in studies])
    short = [f"--model.init_args.policy={folder}", "--model.init_args.max_new_tokens=8"]
    with pytest.raises(SystemExit):
        main(["fit", *grpo_arguments(example), *short])
    assert "is of type 'vipllava'; supported are qwen2_vl" in capsys.readouterr().err
    main(["fit", *grpo_arguments(example, f"--config={example / 'my_family.yaml'}", "--name=known", *short)])
    assert "VipLlavaGRPO on DemoDataModule" in capsys.readouterr().err
    by_views = sorted(studies, key=lambda study: len(study.views))
    four = [by_views[-2], by_views[0], by_views[-1], by_views[1]]
    saved = tmp_path_factory.mktemp("saved")
    more_families.test_shared_repeated_and_own_forward_agree({"vipllava": folder}, four, "vipllava", saved)
    more_families.test_greedy_tokens_are_those_of_generate({"vipllava": folder}, four, "vipllava")
