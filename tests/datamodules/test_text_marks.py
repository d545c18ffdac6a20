"""Tokens that mark images or turns, in the texts of a study's prompt."""

import dataclasses

import pytest

from mrg.datamodules.collate import StudyCollator
from mrg.datamodules.errors import TextError
from mrg.datamodules.study import Study
from mrg.modules.policy.load import load_policy
from mrg.modules.sft import SFTModule
from tests.families import QWEN, pictures
from tests.family_checkpoints import BUILDERS, save_checkpoint
from tests.modules.test_grpo import SETTINGS, FixedData, trainer

MARKS = {
    "llava": ("<image>", "</s>"), "fast_vlm": ("<image>", "<|im_end|>"),
    "internvl": ("<IMG_CONTEXT>", "<img>", "<|im_end|>"),
    "gemma3": ("<start_of_image>", "<image_soft_token>", "<end_of_turn>"),
    "qwen": ("<|image_pad|>", "<|vision_start|>", "<|im_end|>", "<|video_pad|>"),
}  # fmt: skip


@pytest.mark.parametrize("kind", [*QWEN, *sorted(BUILDERS)])
def test_a_mark_is_an_error_that_names_the_study(tmp_path, kind):
    processor = load_policy(save_checkpoint(kind, tmp_path)).processor
    (view,) = pictures((56, 56))
    plain = Study("plain", (view,), "Clear.", indication="<b>Cough</b> & <unk> fever < 3 days.")
    collator = StudyCollator(processor, "Findings: <think></think>", use_indication=True, use_prior=True)
    assert len(collator([plain])) == 1
    for mark in MARKS[kind.partition("-")[0].partition("2_")[0].partition("3_")[0]]:
        odd = dataclasses.replace(plain, id="odd", indication=f"Cough. {mark}")
        with pytest.raises(TextError, match=r"Study odd: its indication contains '\S+', a token of the policy"):
            collator([plain, odd])
        prior = dataclasses.replace(plain, id="later", prior=dataclasses.replace(plain, report=f"{mark} Clear."))
        with pytest.raises(TextError, match="Study later: its prior report contains"):
            collator([prior])
        assert len(StudyCollator(processor, "Findings:")([odd, prior])) == 2  # texts that are not in the prompt
        with pytest.raises(ValueError, match=r"model.init_args.prompt to be plain text, but it contains the token"):
            StudyCollator(processor, f"{mark} Findings:")


def test_such_a_study_can_be_skipped(policy, studies, tmp_path):
    policy.save(tmp_path)
    odd = dataclasses.replace(studies[0], id="odd", indication="Cough <|image_pad|>.")
    settings = {**SETTINGS, "use_indication": True}
    with pytest.raises(ValueError, match=r"Study odd: its indication.* To skip such studies, set --data.init_args.on_"):
        trainer(0).test(SFTModule(policy=str(tmp_path), **settings), FixedData([odd, *studies]), verbose=False)
    module, data = SFTModule(policy=str(tmp_path), **settings), FixedData([odd, *studies], on_error="skip")
    trainer(0).test(module, data, verbose=False)
    assert [row["id"] for row in module.predictions] == [study.id for study in studies[:2]]
    assert list(data.skipped["test"]) == ["odd"]
