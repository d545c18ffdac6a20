"""A compiled step writes what the eager one writes, or is not used; compilers here are real, or real with a fault."""

import contextlib
import logging
import re

import lightning as L
import pytest
import torch

from mrg.log import log
from mrg.modules.grpo import GRPOModule
from mrg.modules.policy.load import load_policy
from mrg.modules.policy.lora import LoRA
from mrg.modules.rollout import compiled as compiled_decoding
from mrg.modules.rollout.compiled import CompiledDecoder, Expected, relative_difference, unsupported
from mrg.modules.rollout.kv_cache import KVCache, prefill
from mrg.modules.rollout.static_cache import Size, StaticAttention, StaticDecoder, StaticKVCache
from tests.families import QWEN
from tests.family_checkpoints import BUILDERS, WINDOW, save_family
from tests.modules.rollout.test_static_cache import NUM_TOKENS, assert_same, ending_policy, prompts_for, write
from tests.modules.test_grpo import SETTINGS, FixedData, Shortness, weights
from tests.nested import nested

LOGGED = []
"""Messages of the package's logger during a test."""


@pytest.fixture(autouse=True)
def only_expected_warnings():
    handler = logging.Handler()
    handler.emit = lambda record: LOGGED.append(record.getMessage())
    LOGGED.clear()
    log.addHandler(handler)
    yield
    log.removeHandler(handler)
    assert not [line for line in LOGGED if "Decoding is" in line]


@contextlib.contextmanager
def warned(pattern):
    """Within this context one warning about decoding is expected."""
    LOGGED.clear()
    yield
    (line,) = [line for line in LOGGED if "Decoding is" in line]
    assert re.search(pattern, line)
    assert "\n" not in line
    LOGGED.clear()


def small_policy(dtype=torch.float32):
    return ending_policy(dtype=dtype, num_hidden_layers=2)


def num_graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def move_adapter(policy, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) / 10)


def checked_steps(decoder):
    return sum(decoder.num_checked.values())


# Traced as one graph without breaks; by the second also made functional, as compilers get it.
@pytest.mark.parametrize(("family", "backend"), [*((f, "eager") for f in QWEN), ("qwen2_5_vl", "aot_eager")])
def test_greedy_and_sampled(family, backend):
    policy, decoder = ending_policy(family, num_hidden_layers=2), CompiledDecoder(backend)
    prompts = prompts_for(policy, slice(0, 2))
    before = num_graphs()
    for temperature, seed in ((0.0, 0), (1.0, 1)):
        settings = {"group_size": 2, "temperature": temperature, "seed": seed}
        assert_same(write(policy, prompts, decoder, **settings), write(policy, prompts, **settings))
    assert not decoder.refused
    assert num_graphs() - before == len(decoder.steps) <= 3
    assert checked_steps(decoder) >= 3


@pytest.mark.parametrize("kind", ["gemma3", "internvl", "llava"])
def test_other_families(kind, studies, tmp_path):
    assert kind in BUILDERS
    torch.manual_seed(1)
    policy = load_policy(save_family(kind, tmp_path, [study.report for study in studies]), LoRA(4)).double().eval()
    prompts = prompts_for(policy, slice(0, 2))
    decoder = CompiledDecoder("eager")
    settings = {"group_size": 1, "temperature": 0.0, "num_tokens": WINDOW + 4}
    assert_same(write(policy, prompts, decoder, **settings), write(policy, prompts, **settings))
    assert not decoder.refused
    assert decoder.steps


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_by_the_compiler_of_this_machine(dtype):
    """Inductor: its own kernels. The adapter changes between rollouts, merged into weights (float32) or beside them."""
    policy, decoder = small_policy(dtype), CompiledDecoder()
    prompts = prompts_for(policy)
    before = num_graphs()
    for seed in range(4):
        rollout = write(policy, prompts, decoder, group_size=2, temperature=1.0, seed=seed)
        assert not decoder.refused
        expected = write(policy, prompts, group_size=2, temperature=1.0, seed=seed)
        if dtype == torch.float32:
            assert_same(rollout, expected, 1e-3)
        else:  # tokens may differ where two are almost as likely
            again = policy.logps(prompts, rollout.completion_ids, rollout.completion_mask).logps
            assert (again - rollout.old_logps)[rollout.completion_mask].abs().mean() < 0.1
        move_adapter(policy, seed)
    assert num_graphs() - before == len(decoder.steps) <= 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # merged into weights, or beside them
def test_weights_that_change_between_rollouts_are_read(dtype):
    policy, decoder = small_policy(dtype), CompiledDecoder("eager")
    prompts, seen = prompts_for(policy), set()
    before = num_graphs()
    for seed in range(4):
        rollout = write(policy, prompts, decoder, seed=0)
        assert_same(rollout, write(policy, prompts, seed=0), 1e-3)
        seen.add(tuple(rollout.texts))
        move_adapter(policy, seed)
    assert not decoder.refused
    assert len(seen) == 4
    assert num_graphs() - before == len(decoder.steps) <= 3  # compiled once per size, not once per rollout


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_an_adapter_that_is_cast_once_a_rollout_is_read(backend):
    """Under autocast, as in bf16-mixed; the trained adapter changes, and its cast with it, where it stands."""
    policy, decoder = small_policy(torch.bfloat16), CompiledDecoder(backend)
    prompts, seen = prompts_for(policy), set()
    before = num_graphs()
    for seed in range(4):
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            rollout = write(policy, prompts, decoder, seed=0)
            again = policy.logps(prompts, rollout.completion_ids, rollout.completion_mask, 0.7).logps
        assert (again - rollout.old_logps)[rollout.completion_mask].abs().mean() < 0.1
        seen.add(tuple(rollout.texts))
        move_adapter(policy, seed)
    assert not decoder.refused
    assert len(seen) == 4
    assert num_graphs() - before == len(decoder.steps) <= 3


def test_merged_weights_keep_their_addresses():
    policy = small_policy()
    addresses = [p.data_ptr() for p in policy.parameters()]
    for seed in range(2):
        with policy.merged():
            assert [p.data_ptr() for p in policy.parameters()] == addresses
        assert [p.data_ptr() for p in policy.parameters()] == addresses
        move_adapter(policy, seed)


def assert_refused(policy, decoder, pattern, seed=0):
    """Rollouts with a faulty compiler: right from the first on, and eager after it."""
    prompts = prompts_for(policy)
    with warned(pattern):
        first = write(policy, prompts, decoder, seed=seed)
    assert_same(first, write(policy, prompts, seed=seed), 1e-3)
    assert decoder.refused
    reading = prefill(policy, prompts)[1]
    assert isinstance(decoder.start(policy, reading, 4, NUM_TOKENS), KVCache)
    assert not decoder.memories  # their memory is given back
    assert_same(write(policy, prompts, decoder, seed=1), write(policy, prompts, seed=1), 1e-3)


def test_a_compiler_that_fails():
    def failing(graph, inputs):
        raise RuntimeError("no compiler was found\nand much more about it")

    pattern = (
        r"^Decoding is not compiled: at 3 prompts of 4 completions torch.compile failed with .*no compiler was found"
    )
    assert_refused(small_policy(), CompiledDecoder(failing), pattern)


def test_a_compiler_that_fails_at_the_second_size():
    calls = []

    def failing(graph, inputs):
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("out of registers")
        return graph

    assert_refused(small_policy(), CompiledDecoder(failing), "at 3 prompts of 2 completions .*out of registers", seed=3)


def test_a_step_that_differs():
    def wrong(graph, inputs):
        return lambda *args: tuple(1.01 * x for x in graph(*args))

    assert_refused(
        small_policy(), CompiledDecoder(wrong), r"differs from the eager one by 0\.01 of its size, more than 0\.001"
    )


def test_attention_that_differs_where_it_is_compiled(monkeypatch):
    """The keys that a step writes are compared in each layer."""
    attend = StaticAttention.attend

    def other(self, layer, query, key, value, scale, window=None):
        if torch.compiler.is_compiling():
            scale = 2 * scale
        return attend(self, layer, query, key, value, scale, window)

    monkeypatch.setattr(StaticAttention, "attend", other)
    assert_refused(
        small_policy(), CompiledDecoder("eager"), "at 3 prompts of 4 completions .*differs from the eager one by"
    )


def test_a_graph_that_fails_in_its_replay_alone():
    """CUDA graphs replay from a size's third step on."""

    def replayed(graph, inputs):
        calls = []

        def run(*args):
            calls.append(1)
            return tuple(x.flip(0) if len(calls) > 2 else x for x in graph(*args))

        return run

    assert_refused(small_policy(), CompiledDecoder(replayed), "differs from the eager one by")


def test_a_step_that_writes_where_it_must_not():
    def stray(graph, inputs):
        caches = [i for i, x in enumerate(inputs) if x.ndim == 4]

        def run(*args):
            result = graph(*args)
            for index in caches:
                args[index][:, :, 0] = 7.0
            return result

        return run

    assert_refused(small_policy(torch.float64), CompiledDecoder(stray), "changes keys or values of other tokens")


def test_weights_of_an_earlier_rollout_are_noticed():
    """A graph that holds on to the weights it was made with: found in the first step after they change."""

    def frozen(graph, inputs):
        kept = {i: x.detach().clone() for i, x in enumerate(inputs) if isinstance(x, torch.nn.Parameter)}
        assert kept
        return lambda *args: graph(*[kept.get(i, x) for i, x in enumerate(args)])

    policy, decoder = small_policy(), CompiledDecoder(frozen)
    prompts = prompts_for(policy)
    for seed in range(4):
        assert_same(write(policy, prompts, decoder, seed=seed), write(policy, prompts, seed=seed), 1e-3)
    assert not decoder.refused
    move_adapter(policy, 0)
    assert_refused(policy, decoder, "differs from the eager one by")


def test_a_policy_that_has_diverged_is_no_fault_of_the_compiler():
    policy, decoder = small_policy(), CompiledDecoder("eager")
    prompts = prompts_for(policy)
    norm = policy.base.model.language_model.norm.weight
    value = norm.detach().clone()
    with torch.no_grad():
        norm.fill_(torch.nan)
    write(policy, prompts, decoder)
    assert not decoder.refused
    with torch.no_grad():
        norm.copy_(value)
    assert_same(write(policy, prompts, decoder), write(policy, prompts), 1e-3)


def test_only_so_many_sizes_are_compiled(monkeypatch):
    monkeypatch.setattr(compiled_decoding, "MAX_SIZES", 1)
    policy, decoder = small_policy(), CompiledDecoder("eager")
    prompts = prompts_for(policy)
    with warned("Decoding is compiled for 1 sizes; other sizes use the eager step"):
        rollouts = [write(policy, prompts, decoder, size) for size in (4, 2)]
    for size, rollout in zip((4, 2), rollouts, strict=True):
        assert_same(rollout, write(policy, prompts, None, size), 1e-3)
    assert len(decoder.steps) == 1
    with torch.no_grad():
        assert isinstance(decoder.start(policy, prefill(policy, prompts)[1], 4, NUM_TOKENS), StaticKVCache)


def test_where_steps_are_not_compiled():
    policy = small_policy()
    assert unsupported(policy) == ""
    prompts = prompts_for(policy)
    decoder = CompiledDecoder()
    policy.base.is_loaded_in_4bit = True
    with warned("^Decoding is not compiled: the policy's base is in 4 bits.$"):
        rollout = write(policy, prompts, decoder)
    assert_same(rollout, write(policy, prompts))
    assert_same(write(policy, prompts, decoder, seed=1), write(policy, prompts, seed=1))  # said once
    policy.base.is_loaded_in_4bit = False
    policy.sharded = policy.gathered = True
    assert unsupported(policy) == "the policy's layers are sharded over ranks"
    policy.sharded = policy.gathered = False
    policy.base.lm_head.to("meta")
    assert unsupported(policy) == "device meta is neither a CPU nor a CUDA GPU"


def test_comparison_by_hand():
    expected = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    assert relative_difference(expected, expected) == 0
    assert relative_difference(torch.tensor([[3.0, 4.5], [0.0, 1.0]]), expected) == pytest.approx(0.5 / 26**0.5)
    assert relative_difference(torch.tensor([[3.0, 4.0], [0.0, 3.0]]), expected) == pytest.approx(2 / 5)  # of one row
    assert not relative_difference(torch.tensor([[3.0, 4.0], [0.0, torch.nan]]), expected) <= 1
    half = relative_difference(torch.tensor([[1.0, 0.5]]).bfloat16(), torch.tensor([[1.0, 0.0]]).bfloat16())
    assert half == pytest.approx(0.5)


def test_after_a_comparison_the_table_is_as_the_eager_step_left_it():
    policy, decoder = small_policy(), StaticDecoder()
    prompts = prompts_for(policy)
    write(policy, prompts, decoder)
    view = decoder.memories[(4, NUM_TOKENS)].view(Size(3, 4))
    token, step = torch.arange(12) + 20, torch.tensor([5])
    position = prompts.next_position.repeat_interleave(4).expand(3, -1)
    with torch.no_grad():
        expected = Expected(policy, view, token, position, step)
        left = [x.clone() for pair in (*view.rows.values(), *view.prompts.values()) for x in pair]
        for keys, values in view.rows.values():
            keys.normal_()
            values[:, :, 5] += 1
        with pytest.raises(compiled_decoding.DifferentError, match="keys or values of other tokens"):
            expected.compare(expected.logits)
    now = [x for pair in (*view.rows.values(), *view.prompts.values()) for x in pair]
    assert all(torch.equal(a, b) for a, b in zip(now, left, strict=True))


def test_a_run_with_compiled_decoding_is_the_run_without(policy, studies, tmp_path):
    """Rounds, resampling, and evaluation in inference mode between them."""
    policy.save(tmp_path / "policy")
    results = []
    for compiled in (False, True):
        torch.manual_seed(0)
        module = GRPOModule(**nested(
            policy=str(tmp_path / "policy"), group_size=4, lora=LoRA(4), learning_rate=1e-3, warmup_steps=1,
            resample_dead=1, compile_decode=compiled, **SETTINGS,
        ))  # fmt: skip
        assert (module.decoder is not None) == compiled
        if compiled:
            module.decoder = CompiledDecoder("eager")
        module.reward = Shortness()
        trainer = L.Trainer(
            max_steps=4, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, val_check_interval=1, num_sanity_val_steps=1,
        )  # fmt: skip
        trainer.fit(module, FixedData(studies, batch_size=4))
        results.append((weights(module), trainer.callback_metrics["val/mccs"], module.decoder))
    (plain, score, _), (compiled, other, decoder) = results
    assert not decoder.refused
    assert set(decoder.memories) == {(4, 10), (1, 10)}
    assert len(decoder.steps) <= 6
    assert torch.equal(score, other)
    for name, value in plain.items():
        assert torch.allclose(value, compiled[name], atol=2e-4), name
