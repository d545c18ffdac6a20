"""`fit --from RUN`: the policy of another run as the start."""

import json
from pathlib import Path

import pytest
import yaml

from mrg.cli import main
from mrg.errors import UserError
from mrg.run.start import changed_inputs, policy_of

CONFIGS = Path(__file__).parents[2] / "configs"


def run_folder(runs, name, with_policy=True, **settings):
    folder = runs / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"name": name, "model": {"init_args": settings}}))
    if with_policy:
        (folder / "policy").mkdir()
        (folder / "policy" / "config.json").write_text("{}")
    return folder


def test_a_run_is_named_by_its_name_or_folder_and_a_policy_by_its_folder(tmp_path):
    run = run_folder(tmp_path, "iu_sft")
    for word in ("iu_sft", str(run), str(run / "policy")):
        assert policy_of(word, tmp_path) == run / "policy"


def test_mistakes_name_the_remedy(tmp_path):
    run = run_folder(tmp_path, "iu_sft", with_policy=False)
    with pytest.raises(UserError, match=r"has no policy to start from.*--resume auto.*mrg export"):
        policy_of("iu_sft", tmp_path)
    with pytest.raises(UserError, match=r"There is no run iu_stf.*did you mean 'iu_sft'"):
        policy_of("iu_stf", tmp_path)
    checkpoint = run / "checkpoints" / "best.ckpt"
    with pytest.raises(UserError, match=rf"is a checkpoint.*mrg export {run} --ckpt_path {checkpoint}"):
        policy_of(str(checkpoint), tmp_path)


def test_inputs_that_the_policy_has_not_learned_are_named(tmp_path):
    run = run_folder(tmp_path, "sft", prompt="Report:", think="absent", max_views=2)
    same = {"prompt": "Report:", "think": "absent", "max_views": 2, "margin": 0.3}
    assert changed_inputs(run / "policy", same) == []
    (line,) = changed_inputs(run / "policy", same | {"think": "required"})
    assert line == f"model.init_args.think is 'required', but {run / 'policy'} was trained with 'absent'."
    assert changed_inputs(tmp_path, same) == []


def test_the_chain_starts_from_the_policy_of_the_first_run(tmp_path, capsys):
    """Two runs in one folder; the configuration of the second one names the policy, so that it can be resumed."""
    quick = [
        f"--runs={tmp_path}", "--data.init_args.num_train=8", "--data.init_args.num_val=2",
        "--data.init_args.num_test=2", "--data.init_args.batch_size=4", "--model.init_args.max_new_tokens=4",
        "--trainer.max_steps=1", "--trainer.val_check_interval=1", "--trainer.enable_progress_bar=false",
        "--trainer.callbacks=null", "--gallery.write=false",
    ]  # fmt: skip
    main(["fit", f"--config={CONFIGS / 'demo_sft.yaml'}", *quick])
    main(["fit", f"--config={CONFIGS / 'demo.yaml'}", "--from=demo_sft", "--model.init_args.max_views=1", *quick])
    assert "model.init_args.max_views is 1, but" in capsys.readouterr().err
    saved = yaml.safe_load((tmp_path / "demo" / "config.yaml").read_text())
    assert saved["from"] == ""
    assert saved["model"]["init_args"]["policy"] == str(tmp_path / "demo_sft" / "policy")
    assert json.loads((tmp_path / "demo" / "policy" / "config.json").read_text())["model_type"] == "qwen2_5_vl"
