"""Targets that the policy can write whole: tokens that are never sampled, and lengths."""

import dataclasses
import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mrg.metrics import parse_completion
from mrg.modules.completion import Lengths, check_targets, encode_targets
from mrg.modules.policy.load import load_policy
from mrg.modules.sft import SFTModule
from tests.family_checkpoints import save_checkpoint
from tests.modules.test_grpo import SETTINGS, FixedData, trainer
from tests.nested import nested

KINDS = ("qwen2_5_vl", "llava", "internvl", "gemma3")


def mark_special(folder, tokens):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"extra_special_tokens": tokens}, replace_extra_special_tokens=False)
    tokenizer.save_pretrained(folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    assert {x["content"] for x in content["added_tokens"] if x["special"]} >= set(tokens)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("token", ["<unk>", "<image>", "</s>", "<|im_end|>", "<end_of_turn>", "<|vision_end|>"])
def test_marks_in_a_report_are_text(tmp_path, kind, token):
    """No row has a banned token, or ends before its end; the decoded text is the target."""
    policy = load_policy(save_checkpoint(kind, tmp_path))
    text = f"<report>The heart {token} is big.</report>"
    (ids,) = encode_targets(policy, [text])
    assert not set(ids) & set(policy.banned_ids)
    assert ids.index(policy.eos_id) == len(ids) - 1
    assert policy.processor.tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("kind", KINDS)
def test_tags_that_are_special_tokens_are_taught_as_text(tmp_path, kind, caplog):
    folder = tmp_path / "policy"
    save_checkpoint(kind, folder)
    before = load_policy(str(folder)).base.config.text_config.vocab_size
    mark_special(folder, ["<think>", "</report>"])
    if len(AutoTokenizer.from_pretrained(folder)) > before:
        pytest.skip("no free rows")
    caplog.clear()
    policy = load_policy(str(folder))
    assert "<think>, </report> are special tokens of the policy" in caplog.text
    text = "<think>Edema</think><report>Edema.</report>"
    assert set(policy.processor.tokenizer(text, add_special_tokens=False)["input_ids"]) & set(policy.banned_ids)
    (ids,) = encode_targets(policy, [text])
    assert not set(ids) & set(policy.banned_ids)
    assert parse_completion(policy.processor.tokenizer.decode(ids, skip_special_tokens=True)).well_formed


def word_level(folder, corpus):
    """Replace the tokenizer of a tiny LLaVA by one of whole words, in which other words are `<unk>`."""
    old = AutoTokenizer.from_pretrained(folder)
    words = Tokenizer(models.WordLevel(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    trained = trainers.WordLevelTrainer(special_tokens=["<unk>", "<s>", "</s>", "<image>", "<pad>"])
    words.train_from_iterator(corpus, trained)
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    new = PreTrainedTokenizerFast(tokenizer_object=words, **names)
    new.chat_template = old.chat_template
    new.save_pretrained(folder)


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_unknown_word_stops_before_training(studies, tmp_path, split):
    folder = save_checkpoint("llava", tmp_path)
    word_level(folder, ["USER: Report: ASSISTANT:", *[f"<report>{study.report}</report>" for study in studies]])

    class Data(FixedData):
        def read(self):
            odd = [*studies[:2], dataclasses.replace(studies[2], id="odd", report="Scoliosis was zzz.")]
            return {"train": studies, "val": studies, "test": studies} | {split: odd}

    settings = {**SETTINGS, "max_pixels": 0}
    module = SFTModule(policy=folder, **settings)
    with pytest.raises(ValueError, match="target of study odd needs the token '<unk>', which is never sampled"):
        trainer(1).fit(module, Data(studies, batch_size=2))
    trainer(1).fit(SFTModule(policy=folder, **settings), FixedData(studies, batch_size=2))


def test_special_tags_have_a_finite_loss(policy, studies, tmp_path):
    policy.save(tmp_path)
    mark_special(tmp_path, ["<report>", "</report>"])
    module = SFTModule(**nested(policy=str(tmp_path), **{**SETTINGS, "max_new_tokens": 150}))
    lightning = trainer(2)
    lightning.fit(module, FixedData(studies, batch_size=4))
    assert float(lightning.callback_metrics["train/loss"]) < 10
    assert module.patience.bad_steps == 0
    assert torch.isfinite(module.policy.base.lm_head.weight).all()


def test_truncated_targets_are_counted_before_training(policy, studies, tmp_path, caplog):
    policy.save(tmp_path)
    tokenizer = policy.processor.tokenizer
    lengths = sorted(len(tokenizer(f"<report>{study.report}</report>")["input_ids"]) + 1 for study in studies)
    assert lengths[5] < lengths[6]
    for limit, count in ((lengths[-1], 0), (lengths[-1] - 1, sum(n == lengths[-1] for n in lengths)), (lengths[5], 2)):
        caplog.clear()
        module = SFTModule(policy=str(tmp_path), **{**SETTINGS, "max_new_tokens": limit})
        trainer(1).fit(module, FixedData(studies, batch_size=2))
        expected = (
            f"{count} of 8 training targets ({100 * count / 8:.1f} %) are truncated at model.init_args.max_new_tokens "
            f"({limit}) and lose their end; the longest has {lengths[-1]} tokens."
        )
        assert (expected in caplog.text) == bool(count)
        assert ("are truncated" in caplog.text) == bool(count)
    texts = module.target_texts([study.report for study in studies])
    assert check_targets(policy, texts, [], lengths[5]) == Lengths(8, 2, lengths[-1])
