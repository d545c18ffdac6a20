"""What stays on a rank beside real tensors; what strategies share out; what a user is told."""

import dataclasses
from pathlib import Path

import pytest
import torch

from mrg.cli import main
from mrg.commands.size.activations import Training
from mrg.commands.size.geometry import PUBLISHED, geometry, read_geometry
from mrg.commands.size.memory import Plan, memory, trained_state
from mrg.modules.optimizer import optimizer_groups
from mrg.modules.policy.load import load_policy
from mrg.modules.policy.lora import LoRA
from mrg.modules.prefix.packing import Prompts
from mrg.modules.rollout.sampling import sample
from mrg.modules.rollout.static_cache import StaticDecoder
from tests.commands.size.models import build

CONFIGS = Path(__file__).parents[3] / "configs"
GIB = 2**30


def size(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rank", [4, 0])
@pytest.mark.parametrize("train_vision", [False, True])
def test_weights_adapter_gradients_and_adam_to_the_byte(dtype, rank, train_vision):
    """What is trained in float32, the rest in its own precision."""
    policy = build(64, 176, 4, 2, rank=rank, dtype=dtype, train_vision=train_vision)
    if not rank:
        policy.keep_reference()
    trained = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(optimizer_groups(policy.parameters()))
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moments = [x for state in optimizer.state.values() for name, x in state.items() if name != "step"]
    named = dict(policy.named_parameters())
    training = Training(dtype.itemsize, dtype == torch.bfloat16, rank, False)
    state = trained_state(geometry(policy.base.config), Plan(training, train_vision=train_vision))
    base = [p for name, p in named.items() if "lora_" not in name]
    assert state["decoder layers"] + state["embedding, head, vision"] == size(base)
    assert state.get("adapter", 0) == size(p for name, p in named.items() if "lora_" in name)
    assert state.get("copied reference", 0) == size(policy.reference_weights.values())
    assert state["gradients"] == size(p.grad for p in trained)
    assert state["AdamW"] == size(moments)


def test_compiled_decoding_keeps_its_tensors_to_the_byte():
    policy, decoder = build(64, 176, 4, 2, rank=4), StaticDecoder()
    longest = 70
    for prompts, places in ((3, 4), (5, 1)):
        embeds = torch.randn(prompts, longest, 64)
        mask = torch.ones(prompts, longest, dtype=torch.bool)
        positions = torch.arange(longest).expand(3, prompts, -1)
        sample(policy, Prompts(embeds, mask, positions, ~mask), places, 6, decoder=decoder)
    kept = size(x for cache in decoder.memories.values() for parts in cache.flat.values() for x in parts)
    shape = geometry(policy.base.config)
    plan = Plan(
        Training(4, False, 4), compile_decode=True, batch_size=3, group_size=4, eval_batch_size=5, max_new_tokens=6,
        text_tokens=longest, images=0,
    )  # fmt: skip
    assert memory(shape, plan).resident["KV cache"] == kept
    assert "KV cache" not in memory(shape, dataclasses.replace(plan, compile_decode=False)).resident
    assert "KV cache" not in memory(shape, dataclasses.replace(plan, quantized=True)).resident


def test_what_a_compiled_rollout_writes_is_counted_once():
    shape = read_geometry("3b")
    compiled = Plan(Training(), compile_decode=True, batch_size=64, text_tokens=64, images=0)
    eager = dataclasses.replace(compiled, compile_decode=False)
    written = 64 * 8 * 256 * 2 * shape.num_layers * shape.kv_width * 2
    assert memory(shape, eager).phases["rollout"] - memory(shape, compiled).phases["rollout"] == written


def test_only_decoder_layers_are_shared_out():
    shape = read_geometry("7b")
    plan = Plan(Training(), strategy="fsdp", world_size=8)
    state = trained_state(shape, plan)
    assert state["decoder layers"] == shape.decoder * 2 // 8
    assert state["embedding, head, vision"] == 2 * (shape.total - shape.decoder)
    assert state["AdamW"] == 2 * 4 * shape.adapter(16)
    whole = trained_state(shape, dataclasses.replace(plan, training=Training(rank=0)))
    outside = shape.total - shape.decoder - shape.vision
    assert whole["gradients"] == whole["copied reference"] == 4 * (shape.decoder // 8 + outside)
    assert whole["embedding, head, vision"] == 4 * outside + 2 * shape.vision  # the tower is frozen


def test_a_rollout_gathers_what_was_shared_out_and_servers_spare_it_only_where_nothing_is_validated():
    shape = read_geometry("32b")
    one, shared = (memory(shape, Plan(Training(), strategy=s, world_size=8)) for s in ("ddp", "fsdp"))
    missing = shape.decoder * 2 * 7 // 8
    assert shared.phases["rollout"] - one.phases["rollout"] == missing
    served = memory(shape, Plan(Training(), strategy="fsdp", world_size=8, servers=True))
    assert served.phases["rollout"] == 0
    assert served.largest == "validation"


def test_an_engine_in_the_process_takes_its_share_of_a_gpu_in_rollouts():
    shape = read_geometry("7b")
    plan = Plan(Training(), servers=True, colocate=0.4, engine_length=8192, gpu_memory=80 * GIB)
    column, whole = memory(shape, plan), 32 * GIB
    weights = 2 * 8_292_166_656  # in bfloat16
    assert column.engine == {"engine's weights": weights, "engine's KV cache, work": whole - weights}
    assert column.phases["rollout"] == whole
    assert column.total == sum(column.resident.values()) + max(column.phases.values())
    # Keys and values in bfloat16, of 28 layers with 4 heads of 128 numbers, for each token.
    assert column.engine_needs == weights + 8192 * 2 * 28 * 4 * 128 * 2
    assert column.fits(column.total)
    assert not column.fits(column.total - 1)
    small = memory(shape, dataclasses.replace(plan, colocate=0.19))  # 15.2 GiB, and the weights have 15.4
    assert small.engine == {"engine's weights": round(15.2 * GIB), "engine's KV cache, work": 0}
    assert not small.fits(80 * GIB)
    full = memory(shape, dataclasses.replace(plan, training=Training(4, False), colocate=0.5))
    assert full.engine["engine's weights"] == 2 * weights
    assert memory(shape, Plan(Training(), servers=True)).engine == {}


def test_monotonous_in_its_settings():
    """More of anything never takes less memory; checkpointing takes less."""
    shape = read_geometry("3b")
    base = Plan(Training(checkpointing=False))
    total = memory(shape, base).total
    for name in ("batch_size", "group_size", "max_new_tokens", "micro_batch_tokens", "images", "eval_batch_size"):
        more = dataclasses.replace(base, **{name: 2 * getattr(base, name)})
        assert memory(shape, more).total >= total, name
    assert memory(shape, dataclasses.replace(base, training=Training())).total < total
    four = memory(shape, dataclasses.replace(base, quantized=True))
    assert four.resident["decoder layers"] < 0.28 * memory(shape, base).resident["decoder layers"]


def test_weights_in_4_bits_are_those_that_are_loaded(tmp_path):
    """But for the two tables and the offset that every layer holds."""
    from bitsandbytes.nn import Linear4bit

    build(512, 1408, 8, 2, num_layers=2, rank=0).bfloat16().save(tmp_path)
    layers = load_policy(str(tmp_path), LoRA(4), load_in_4bit=True).base.model.language_model.layers
    real = 0
    for name, parameter in layers.named_parameters():
        real += 0 if ".lora_" in name else parameter.numel() * parameter.element_size()
    quantised = [module.weight.quant_state for module in layers.modules() if isinstance(module, Linear4bit)]
    for state in quantised:
        scales = (state.absmax, state.state2.absmax, state.code, state.state2.code, state.offset)
        real += sum(part.numel() * part.element_size() for part in scales)
    plan = Plan(Training(rank=4), quantized=True)
    predicted = trained_state(read_geometry(str(tmp_path)), plan)["decoder layers"]
    assert len(quantised) == 14
    assert predicted + 14 * 4 * (16 + 256 + 1) == pytest.approx(real, rel=1e-4)


def test_nothing_is_merged_into_4_bits_in_a_rollout():
    plan = Plan(Training(weights=4, autocast=False))
    shape = read_geometry("3b")
    whole, four = (memory(shape, dataclasses.replace(plan, quantized=four)) for four in (False, True))
    assert whole.phases["rollout"] - four.phases["rollout"] == 4 * shape.adapted


def table(capsys, *options, code=None):
    argv = ["size", f"--config={CONFIGS / 'iu.yaml'}", *options]
    if code is None:
        main(argv)
    else:
        with pytest.raises(SystemExit) as stop:
            main(argv)
        assert stop.value.code == code
    return capsys.readouterr()


def test_command_prints_a_column_for_each_number_of_gpus(capsys):
    out = table(capsys, "--geometry=7b").out
    assert "7b: 8,292,166,656 weights, LoRA of rank 16, bfloat16 weights, autocast, ddp, with" in out
    rows = {line[:36].strip(): line[36:].split() for line in out.splitlines()[3:]}
    assert rows["GiB per GPU, by number of GPUs"] == ["1", "2", "4", "8", "64"]
    shape = geometry(PUBLISHED["7b"])
    assert float(rows["decoder layers"][0]) == round(2 * shape.decoder / GIB, 2)
    assert rows["fits in 90% of 80 GiB"] == ["yes"] * 5


def told(out):
    """Change -> GiB of the last lines."""
    lines = [line.strip().rsplit(": ", 1) for line in out.splitlines() if line.startswith("  ")]
    return {text: float(size.split()[0]) for text, size in lines}


def test_command_says_what_to_lower(capsys):
    out = table(capsys, "--geometry=7b", "--memory=12", "--devices=4", code=1).out
    assert "It does not fit: the largest phase is policy. Peak after a single change on 4 GPUs:" in out
    ways = told(out)
    assert list(ways.values()) == sorted(ways.values())
    assert not any("gradient_checkpointing" in text for text in ways)  # it is on already
    # As the configuration with it says itself.
    low = table(capsys, "--geometry=7b", "--devices=4", f"--config={CONFIGS / 'memory' / 'qlora.yaml'}").out
    peak = float(next(line for line in low.splitlines() if line.startswith("peak")).split()[-1])
    assert ways["--config configs/memory/qlora.yaml (the base in 4 bits)"] == round(peak, 1)
    full = ["--model.init_args.lora=null", "--model.init_args.kl.reference=copy", "--geometry=7b", "--devices=1"]
    out = table(capsys, *full, "--memory=24", code=1).out
    assert "8,292,166,656 weights, all weights" in out
    assert {
        "model.init_args.lora (an adapter instead of all weights)",
        "model.init_args.kl.coef 0 (no copied reference)",
    } <= set(told(out))


def test_command_says_what_free_memory_may_be_spent_on(capsys):
    out = table(capsys, "--geometry=7b", "--devices=1").out
    ways = told(out)
    once = "model.init_args.gradient_checkpointing false (no recomputation)"
    out = table(capsys, "--geometry=7b", "--devices=1", "--model.init_args.gradient_checkpointing=false").out
    peak = float(next(line for line in out.splitlines() if line.startswith("peak")).split()[-1])
    assert ways[once] == round(peak, 1) > 60
    assert once not in told(table(capsys, "--geometry=7b", "--devices=1", "--memory=48").out)
    assert max(told(table(capsys, "--geometry=7b", "--devices=1", "--memory=24").out).values()) <= 0.9 * 24


def test_command_takes_the_keys_of_fit(capsys):
    few = table(capsys, "--geometry=3b", "--devices=1", "--model.init_args.micro_batch_tokens=1").out
    assert "passes of at most 2,793 tokens" in few
    fsdp = f"--config={CONFIGS / 'strategy' / 'fsdp.yaml'}"
    assert "autocast, fsdp" in table(capsys, "--geometry=3b", fsdp).out


def test_command_counts_an_engine_in_the_process(capsys):
    colocate = f"--config={CONFIGS / 'rollout' / 'colocate.yaml'}"
    out = table(capsys, "--geometry=7b", "--devices=1", colocate).out
    rows = {line[:36].strip(): line[36:].strip() for line in out.splitlines()}
    assert rows["+ rollout"] == "32.00"
    assert (rows["engine's weights"], rows["engine's KV cache, work"]) == ("15.45", "16.55")
    more = ["--model.init_args.rollout.colocate.memory=0.8", "--memory=48"]
    low = table(capsys, "--geometry=7b", "--devices=1", colocate, *more, code=1).out
    assert "the largest phase is rollout" in low
    assert "model.init_args.rollout.colocate.memory 0.4: 3" in low
    out = table(capsys, "--geometry=7b", colocate, "--memory=24", code=1).out
    assert (
        "The vLLM engine does not start: it needs more than 15.9 GiB for its weights and the KV cache of 8192 tokens. "
        "Raise model.init_args.rollout.colocate.memory (0.4 of 24 GiB), or use rollout.servers."
    ) in out
    assert out.count("       no") == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--geometry=7b", "--devices=0"], "Expected --devices to be above 0, but got 0."),
        (["--geometry=7b", "--trainer.precision=bf16-true"], "'bf16-mixed' or '32-true', but got 'bf16-true'."),
        (["--model.init_args.policy=tiny"], "A tiny policy fits any GPU: set model.init_args.policy"),
        (["--geometry=7b", "--model.init_args.max_pixels=0"], "model.init_args.max_pixels to be above 0"),
        (["--model.init_args.policy=/no/where"], "'/no/where' has no config.json"),
    ],
)
def test_bad_input_is_one_line(capsys, options, message):
    err = table(capsys, *options, code=2).err.strip()
    assert err.startswith("mrg: ")
    assert message in err
    assert "\n" not in err


def test_no_configuration_and_no_training(capsys):
    baseline = CONFIGS / "baselines" / "constant_normal.yaml"
    for argv, message in (
        (["size"], "requires a configuration"),
        (["size", f"--config={CONFIGS / 'iu.yaml'}", f"--config={baseline}", "--geometry=3b"], "is not trained"),
    ):
        with pytest.raises(SystemExit):
            main(argv)
        assert message in capsys.readouterr().err
