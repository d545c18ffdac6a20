"""Every supported family: prompts read once, prompts read once per completion, and the model's own forward agree."""

import inspect
import json

import pytest
import torch
import transformers
from tokenizers import AddedToken

from mrg.datamodules.collate import StudyCollator
from mrg.modules.policy.load import load_policy
from mrg.modules.policy.lora import LoRA
from mrg.modules.rollout.kv_cache import prefill
from mrg.modules.rollout.sampling import sample
from tests.families import QWEN, family_policy, unequal_studies

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
LENGTHS = torch.tensor([7, 4, 1, 6, 2, 5])
MASK = torch.arange(7) < LENGTHS[:, None]
IDS = torch.randint(10, 300, MASK.shape, generator=torch.Generator().manual_seed(0))
TRAINED = {"lora": {"lora": LoRA(4)}, "language": {}, "vision": {"train_vision": True}}


QWEN_MODELS = ("Qwen2VLModel", "Qwen2_5_VLModel", "Qwen3VLModel")
ROPE_ARGUMENTS = ["input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask"]


@pytest.mark.parametrize(
    ("model", "method", "arguments"),
    [(model, "get_rope_index", ROPE_ARGUMENTS) for model in QWEN_MODELS]
    + [(model, "get_image_features", ["pixel_values", "image_grid_thw"]) for model in QWEN_MODELS]
    + [(model, "get_image_features", ["pixel_values"]) for model in ("Gemma3Model", "LlavaModel", "InternVLModel")],
)
def test_transformers_still_has(model, method, arguments):
    function = getattr(getattr(transformers, model), method, None)
    where = f"transformers {transformers.__version__}: {model}.{method}"
    assert function, f"{where}, which mrg/modules/policy/families.py calls, is gone: adapt it there."
    taken = inspect.signature(function).parameters
    missing = [argument for argument in arguments if argument not in taken]
    assert not missing, f"{where} does not take {missing}, which mrg/modules/policy/families.py passes: adapt it there."


def batch_for(policy, studies=None):
    return StudyCollator(policy.processor, "Report:", use_indication=True)(studies or unequal_studies())


def backward(policy, shared_prefix="required"):
    """Log-probabilities, entropies and the gradients of all that is trained, for a random weight per token."""
    policy.shared_prefix = shared_prefix
    policy.zero_grad()
    logps, entropy = policy.logps(policy.embed(batch_for(policy)), IDS, MASK, 0.8)
    factor = torch.randn(MASK.shape, generator=torch.Generator().manual_seed(1), dtype=logps.dtype)
    (logps * factor).sum().backward()
    return logps.detach(), entropy, {n: p.grad for n, p in policy.named_parameters() if p.grad is not None}


def assert_same(one, other, tolerance=1e-6):
    """Values within the tolerance, each parameter's gradient within it relative to its norm."""
    assert (one[0] - other[0]).abs().max() < tolerance
    assert (one[1] - other[1]).abs().max() < tolerance
    assert one[2].keys() == other[2].keys()
    for name, grad in other[2].items():
        if grad.norm() > 1e-9:  # a bias on keys moves no attention: its gradient is rounding
            assert (one[2][name] - grad).norm() < tolerance * grad.norm(), name


@pytest.mark.parametrize("trained", list(TRAINED))
@pytest.mark.parametrize("family", QWEN)
def test_a_prompt_read_once_equals_one_read_per_completion(family, trained):
    policy = family_policy(family, **TRAINED[trained])
    once, repeated = backward(policy), backward(policy, shared_prefix="off")
    assert_same(once, repeated)
    names = {n for n, p in policy.named_parameters() if p.requires_grad and p.grad is not None}
    assert names >= {n for n, p in policy.named_parameters() if p.requires_grad and "lora_A" in n}
    assert any(".visual." in n for n in names) == (trained == "vision")
    if family == "qwen3_vl" and trained == "vision":
        assert any("deepstack" in n for n in names)


@pytest.mark.parametrize("family", QWEN)
def test_logps_equal_the_models_own_forward_of_each_completion_alone(family):
    policy = family_policy(family, LoRA(4)).eval()
    got = policy.logps(policy.embed(batch_for(policy)), IDS, MASK).logps
    assert got[~MASK].abs().max() == 0
    for row, length in enumerate(LENGTHS.tolist()):
        one = batch_for(policy, unequal_studies()[row // 2 : row // 2 + 1])
        whole = torch.cat([one.prompt_ids, IDS[row : row + 1, :length]], 1)
        with torch.no_grad():
            logits = policy.model(
                input_ids=whole,
                attention_mask=torch.ones_like(whole),
                mm_token_type_ids=(whole == policy.base.config.image_token_id).int(),
                pixel_values=one.pixel_values,
                image_grid_thw=one.image_grid_thw,
            ).logits[0, -length - 1 : -1]
        logits[:, policy.banned_ids] = -torch.inf
        expected = logits.log_softmax(-1).gather(1, IDS[row, :length, None])[:, 0]
        assert (got[row, :length] - expected).abs().max() < 1e-6


@pytest.mark.parametrize("shared_prefix", ["required", "off"])
@pytest.mark.parametrize("trained", ["lora", "vision"])
@pytest.mark.parametrize("family", QWEN)
def test_gradient_checkpointing_changes_nothing(family, trained, shared_prefix):
    plain, saving = (family_policy(family, checkpointing=on, **TRAINED[trained]) for on in (False, True))
    assert saving.base.model.language_model.layers[0].gradient_checkpointing
    assert saving.base.model.language_model.layers[0].training
    assert_same(backward(saving, shared_prefix), backward(plain, shared_prefix), 1e-9)


@pytest.mark.parametrize("family", QWEN)
def test_studies_in_other_company_and_order_keep_their_logps(family):
    policy = family_policy(family).eval()
    prompts = policy.embed(batch_for(policy))
    whole = policy.logps(prompts, IDS, MASK).logps
    for order in ([2, 0], [1], [1, 2, 0]):
        rows = (torch.tensor(order)[:, None] * 2 + torch.arange(2)).flatten()
        part = policy.logps(prompts.rows(torch.tensor(order)), IDS[rows], MASK[rows]).logps
        assert (part - whole[rows]).abs().max() < 1e-6


@pytest.mark.parametrize("family", QWEN)
def test_gradients_collected_at_leaves_reach_the_vision_tower(family):
    """Two passes over parts of the studies, whose gradients go back through the vision tower at once."""
    policy = family_policy(family, train_vision=True)
    whole = backward(policy)[2]
    policy.zero_grad(set_to_none=True)
    prompts = policy.embed(batch_for(policy))
    leaves = prompts.detached()
    factor = torch.randn(MASK.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for order in ([2], [0, 1]):
        rows = (torch.tensor(order)[:, None] * 2 + torch.arange(2)).flatten()
        logps = policy.logps(leaves.rows(torch.tensor(order)), IDS[rows], MASK[rows], 0.8).logps
        (logps * factor[rows]).sum().backward()
    prompts.send_back(leaves, torch.Tensor.backward)
    split = {n: p.grad for n, p in policy.named_parameters() if p.grad is not None}
    zero = torch.zeros(1)
    assert_same((zero, zero, split), (zero, zero, whole))


@pytest.mark.parametrize("family", QWEN)
def test_what_is_sampled_has_the_logps_of_the_loss(family):
    policy = family_policy(family, LoRA(4), dtype=torch.float32).eval()
    prompts = policy.embed(batch_for(policy))
    rollout = sample(policy, prompts, 3, 12, 0.8, torch.Generator().manual_seed(0))
    logps = policy.logps(prompts, rollout.completion_ids, rollout.completion_mask, 0.8).logps
    assert (logps - rollout.old_logps).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", QWEN)
def test_autocast_and_bfloat16_weights(family, dtype):
    """Sampling, loss and backward run, and agree about each other as far as the precision goes."""
    policy = family_policy(family, LoRA(4), dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
        once, repeated = backward(policy), backward(policy, shared_prefix="off")
        policy.shared_prefix = "required"
        prompts = policy.eval().embed(batch_for(policy))
        rollout = sample(policy, prompts, 3, 12, generator=torch.Generator().manual_seed(0))
        logps = policy.logps(prompts, rollout.completion_ids, rollout.completion_mask).logps
    assert (logps - rollout.old_logps).abs()[rollout.completion_mask].mean() < 0.01
    assert (once[0] - repeated[0]).abs().mean() < 0.05
    norm = sum(grad.norm() ** 2 for grad in repeated[2].values()) ** 0.5
    assert sum((once[2][n] - grad).norm() ** 2 for n, grad in repeated[2].items()) ** 0.5 < 0.1 * norm


@pytest.mark.parametrize("lora", [None, LoRA(4)])
@pytest.mark.parametrize("family", QWEN)
def test_a_saved_policy_loads_again(family, lora, tmp_path):
    policy = family_policy(family, lora, dtype=torch.float32).eval()
    policy.save(tmp_path)
    loaded = load_policy(str(tmp_path)).eval()
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == family
    batch, again = batch_for(policy), batch_for(loaded)
    assert torch.equal(batch.prompt_ids, again.prompt_ids)
    assert torch.equal(batch.pixel_values, again.pixel_values)
    assert loaded.banned_ids == policy.banned_ids
    expected = policy.logps(policy.embed(batch), IDS, MASK).logps
    assert (loaded.logps(loaded.embed(again), IDS, MASK).logps - expected).abs().max() < 1e-4


MARKS = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
]  # fmt: skip
"""Special tokens of all published Qwen-VL checkpoints."""
WORDS = {"qwen2_vl": [], "qwen2_5_vl": ["<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>"]}
WORDS["qwen2_5_vl"] += ["<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"]
WORDS["qwen3_vl"] = [*WORDS["qwen2_5_vl"], "<tool_response>", "</tool_response>", "<think>", "</think>"]
"""Added tokens that are not special: text."""


@pytest.mark.parametrize("end", ["<|im_end|>", "<|endoftext|>"], ids=["instruct", "base"])
@pytest.mark.parametrize("family", QWEN)
def test_neither_padding_nor_another_end_is_sampled(family, end, tmp_path):
    """A chat model ends with `<|im_end|>` and pads with `<|endoftext|>`, by which a base model does both."""
    policy = family_policy(family, dtype=torch.float32, vocab_size=400)
    tokenizer = policy.processor.tokenizer
    known = tokenizer.get_vocab()
    tokenizer.add_tokens([AddedToken(name, special=True) for name in MARKS if name not in known])
    tokenizer.add_tokens([AddedToken(name, special=False) for name in WORDS[family] if name not in known])
    tokenizer.eos_token, tokenizer.pad_token = end, "<|endoftext|>"
    policy.base.generation_config.eos_token_id = [known["<|im_end|>"], known["<|endoftext|>"]]
    policy.save(tmp_path)
    loaded = load_policy(str(tmp_path)).eval()
    names = loaded.processor.tokenizer.convert_ids_to_tokens
    assert names(loaded.eos_id) == end
    assert names(loaded.pad_id) == "<|endoftext|>"
    num_tokens = len(loaded.processor.tokenizer)
    assert {names(i) for i in loaded.banned_ids if i < num_tokens} == set(MARKS) - {end}
    assert set(range(num_tokens, 400)) <= set(loaded.banned_ids)
    other = known["<|endoftext|>" if end == "<|im_end|>" else "<|im_end|>"]
    prompts = loaded.embed(batch_for(loaded))
    with torch.no_grad():
        # Along the state that writes the first token, so that its logit is far above all others.
        loaded.base.lm_head.weight[other] = 50 * prefill(loaded, prompts)[0].mean(0)
    rollout = sample(loaded, prompts, 4, 8, generator=torch.Generator().manual_seed(0))
    assert other not in rollout.completion_ids[rollout.completion_mask]
    logps = loaded.logps(prompts, rollout.completion_ids, rollout.completion_mask).logps
    assert (logps - rollout.old_logps).abs().max() < 1e-4
    loaded.banned_ids = [i for i in loaded.banned_ids if i != other]
    assert other in sample(loaded, prompts, 4, 1).completion_ids
