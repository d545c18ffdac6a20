"""CheXbertLabeler against a plain loop over reports, on random weights in the published file's layout."""

import copy
import pickle
import re
import subprocess
import sys
import threading

import pytest
import torch
from jsonargparse import ArgumentParser

from mrg.metrics import CEF1, CONDITIONS, MCCS
from mrg.metrics.labelers import chexbert
from mrg.metrics.labelers.chexbert_network import CheXbertNetwork
from mrg.metrics.labels import Labeler
from tests.metrics.labelers.chexbert_lookalike import (
    ODD,
    WORDS,
    one_at_a_time,
    prefixed,
    random_text,
    random_weights,
)


@pytest.fixture(scope="module")
def texts():
    generator = torch.Generator().manual_seed(1)
    return [random_text(generator) for _ in range(200)] + ODD


@pytest.fixture(scope="module")
def expected_scores(folder, texts):
    return one_at_a_time(folder, texts)


@pytest.fixture(scope="module")
def expected(texts, expected_scores):
    """Labels: argmax over each head; with our one departure, that an empty report mentions nothing."""
    labels = [[scores.argmax().item() for scores in row] for row in expected_scores]
    return torch.tensor([row if text.strip() else [0] * 14 for text, row in zip(texts, labels, strict=True)])


@pytest.fixture
def passes(monkeypatch):
    """Number of tokens of each report of each forward pass."""
    seen = []
    original = CheXbertNetwork.scores

    def scores(self, sequences):
        seen.append([len(sequence) for sequence in sequences])
        return original(self, sequences)

    monkeypatch.setattr(CheXbertNetwork, "scores", scores)
    return seen


@pytest.mark.parametrize("batch_tokens", [1, 300, 4096])
def test_every_label_equals_the_plain_loop(make, texts, expected, batch_tokens):
    labels = make(batch_tokens=batch_tokens)(texts)
    assert labels.dtype == torch.int64
    assert labels.shape == (len(texts), len(CONDITIONS))
    assert torch.equal(labels, expected)
    for index in range(14):
        assert len(expected[:, index].unique()) >= (3 if index < 13 else 2), "the look-alike's labels must vary"


def test_scores_are_those_of_transformers_whatever_the_batch(make, texts, expected_scores):
    labeler = make()
    labeler(["no"])
    network, some = labeler._shared.network, slice(170, None)
    ids = labeler._shared.tokenizer([chexbert.prepare(text) for text in texts[some]], truncation=True, max_length=512)
    expected = torch.stack([torch.cat(row) for row in expected_scores[some]])
    assert expected.std() > 4
    for scores in (network.scores(ids["input_ids"]), torch.cat([network.scores([one]) for one in ids["input_ids"]])):
        torch.testing.assert_close(scores, expected, rtol=0, atol=1e-4)


def test_order_and_company_do_not_matter(make, texts, expected):
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(2))
    assert torch.equal(make()([texts[i] for i in order]), expected[order])
    alone = make(cache_size=0)
    assert torch.equal(torch.cat([alone([text]) for text in texts[:30]]), expected[:30])


def test_batches_hold_at_most_their_tokens_longest_first(make, texts, passes):
    make(batch_tokens=256)(texts)
    assert all(sum(lengths) <= 256 or len(lengths) == 1 for lengths in passes)
    lengths = [length for batch in passes for length in batch]
    assert lengths == sorted(lengths, reverse=True)
    assert max(lengths) == 512


def test_equal_texts_are_labelled_once(make, passes):
    """Eight completions of one study, two of them equal, and its reference eight times: one pool of eight texts."""
    completions = [f"mild edema {word}" for word in WORDS[:7]] + [f"mild edema {WORDS[0]}"]
    labels = make()([*completions, *["no effusion"] * 7, "no \n effusion "])
    assert sum(map(len, passes)) == 8
    assert torch.equal(labels[8:], labels[8].expand(8, -1))
    assert torch.equal(labels[0], labels[7])


def test_known_texts_are_not_labelled_again(make, passes):
    labeler = make()
    first = labeler(["no effusion", "mild edema"])
    assert torch.equal(labeler(["mild  edema", "no effusion", "heart"])[:2], first.flip(0))
    assert list(map(len, passes)) == [2, 1]


def test_the_cache_forgets_the_least_recently_used(make, passes):
    labeler = make(cache_size=2)
    for text in ("left", "right", "left", "heart", "left", "right"):
        labeler([text])
    assert len(passes) == 4  # left, right, heart; then right again, which heart had pushed out
    labeler([*WORDS, *WORDS])
    assert len(labeler._shared.cache) == 2
    none = make(cache_size=0)
    assert torch.equal(none(["left", "left"]), none(["left", "left"]))
    assert not none._shared.cache


def test_long_texts_are_cut_at_512_tokens(make):
    long = "heart size is normal . " * 102
    labels = make()([long, long + "mild edema", long.rsplit("heart", 2)[0]])
    assert torch.equal(labels[0], labels[1])
    assert make()._read()["bert.embeddings.position_embeddings.weight"].shape[0] == 512


def test_empty_calls_and_what_is_no_text(make, passes):
    labeler = make()
    assert labeler([]).shape == (0, 14)
    assert labeler(["", " \n"]).tolist() == [[0] * 14] * 2
    assert passes == []
    with pytest.raises(TypeError, match=r"Expected `texts\[1\]` to be a string, but got NoneType."):
        labeler(["no", None])
    with pytest.raises(TypeError, match="put it in a list"):
        labeler("no effusion")


def test_half_a_surrogate_pair_is_ignored_like_other_unusable_characters(make):
    labels = make()(["no \ud83d effusion", "no effusion", "no \U0001f642 effusion"])
    assert torch.equal(labels[0], labels[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "float16"}, "Expected argument `dtype` to be float32 or bfloat16, but got 'float16'."),
        ({"batch_tokens": 0}, "Expected argument `batch_tokens` to be an integer of at least 1, but got 0."),
        ({"batch_tokens": 1.5}, "Expected argument `batch_tokens` to be an integer of at least 1, but got 1.5."),
        ({"cache_size": -1}, "Expected argument `cache_size` to be an integer of at least 0, but got -1."),
    ],
)
def test_settings_out_of_range(make, settings, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make(**settings)


def test_scores_that_are_not_finite_stop_the_call(make, tmp_path):
    state = random_weights()
    state["linear_heads.3.bias"][1] = float("nan")
    torch.save({"model_state_dict": prefixed(state)}, tmp_path / "chexbert.pth")
    labeler = make(tmp_path)
    with pytest.raises(RuntimeError, match="scores are not finite"):
        labeler(["no effusion"])


@pytest.mark.parametrize("capability", ["DEFAULT", "AVX512"])  # products by F.linear, and by oneDNN's packed one
def test_autocast_and_defaults_of_a_training_run_do_not_reach_the_scores(make, texts, monkeypatch, capability):
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    labeler = make()
    labeler(["no"])
    network, ids = labeler._shared.network, [[2, 7, 9, 11, 3], [2, 8, 3]]
    plain = network.scores(ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(network.scores(ids), plain)
        assert torch.is_autocast_enabled("cpu")
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            assert torch.equal(network.scores(ids), plain)
            assert torch.equal(make()(texts[:9]), labeler(texts[:9]))
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("precision", ["medium", "high", "highest"])
def test_products_are_of_full_precision_and_the_setting_is_put_back(make, monkeypatch, precision):
    seen = set()
    original = CheXbertNetwork._linear

    def linear(self, x, name):
        seen.add(torch.get_float32_matmul_precision())
        return original(self, x, name)

    monkeypatch.setattr(CheXbertNetwork, "_linear", linear)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        make()(["no effusion"])
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == {"highest"}


def test_precision_set_by_backend_is_put_back(make):
    matmul = getattr(torch.backends.mkldnn, "matmul", None)
    if not hasattr(matmul, "fp32_precision"):
        pytest.skip("this PyTorch has one setting for all")
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        make()(["no effusion"])
        assert matmul.fp32_precision == "bf16"
    finally:
        matmul.fp32_precision = before


def test_labels_are_ordinary_tensors(make):
    labels = make()(["no effusion"])
    assert not labels.is_inference()
    assert not labels.requires_grad
    labels += 1


def test_a_metric_that_holds_it_has_no_weights_of_it(make, texts, expected):
    labeler = make()
    metric = CEF1(labeler=labeler)
    assert isinstance(labeler, Labeler)
    assert not isinstance(labeler, torch.nn.Module)
    assert list(metric.parameters()) == []
    assert metric.state_dict() == {}
    metric.train()
    metric.update(texts[:50], texts[50:100])
    again, copied = CEF1(), metric.clone()
    again.update(expected[:50], expected[50:100])
    assert metric.compute() == again.compute()
    copied.update(texts[:50], texts[50:100])
    assert copied.labeler._shared is labeler._shared
    assert len(pickle.dumps(MCCS(labeler=labeler))) < 10_000


def test_it_can_be_named_in_a_configuration(folder, texts, expected):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--labeler", type=Labeler)
    name = "mrg.metrics.labelers.chexbert.CheXbertLabeler"
    init_args = {"checkpoint": str(folder), "tokenizer": str(folder), "device": "cpu", "batch_tokens": 512}
    config = parser.parse_object({"labeler": {"class_path": name, "init_args": init_args}})
    assert torch.equal(parser.instantiate_classes(config).labeler(texts[:9]), expected[:9])


def test_copies_share_the_weights_even_before_they_are_used(make, passes):
    labeler = make()
    copies = [copy.copy(labeler), copy.deepcopy(labeler), copy.deepcopy({"labeler": labeler})["labeler"]]
    rows = [one(["mild edema"]) for one in [*copies, labeler]]
    assert len(passes) == 1
    assert all(torch.equal(row, rows[0]) for row in rows)
    assert copies[1] is not labeler
    copies[1].to("cpu")
    assert copies[1]._shared is not labeler._shared
    assert torch.equal(copies[1](["mild edema"]), rows[0])


def test_a_pickle_holds_settings_alone(make, texts, expected):
    labeler = make(batch_tokens=64, cache_size=5)
    labeler(texts[:20])
    content = pickle.dumps(labeler)
    assert len(content) < 1000
    again = pickle.loads(content)
    assert (again.batch_tokens, again.cache_size, again.name) == (64, 5, "chexbert")
    assert torch.equal(again(texts), expected)


def test_calls_from_threads_give_the_labels_of_one(make, texts, expected):
    labeler, results = make(cache_size=20), {}
    calls = [threading.Thread(target=lambda i=i: results.update({i: labeler(texts[i::4])})) for i in range(4)]
    for call in calls:
        call.start()
    for call in calls:
        call.join()
    assert all(torch.equal(results[i], expected[i::4]) for i in range(4))


def test_bfloat16_is_an_option_and_says_so(make, texts, expected):
    labeler = make(dtype="bfloat16")
    labels = labeler(texts)
    assert labeler.name == "chexbert-bfloat16"
    assert all(bias.dtype == torch.bfloat16 for _, bias in labeler._shared.network._pairs.values())
    assert 0.8 < (labels == expected).float().mean() < 1


def test_weights_that_are_not_packed_give_the_same_labels(make, texts, expected, monkeypatch):
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "DEFAULT")
    labeler = make()
    assert torch.equal(labeler(texts), expected)
    assert not any(weight.is_mkldnn for weight, _ in labeler._shared.network._pairs.values())


def test_the_device_is_the_current_gpu_of_the_first_call(make, monkeypatch):
    chosen = []
    labeler = make(device=None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 3)

    def network(weights, device, dtype):
        chosen.append(device)
        return CheXbertNetwork(weights, torch.device("cpu"), dtype)

    monkeypatch.setattr(chexbert, "CheXbertNetwork", network)
    labeler(["no effusion"])
    for device in ("cuda:1", "cuda", "cpu"):
        labeler.to(device)(["no effusion"])
    assert list(map(str, chosen)) == ["cuda:3", "cuda:1", "cuda:3", "cpu"]


@pytest.mark.parametrize(("device", "reason"), [("gpu", "a device such as cpu"), ("cuda:1", "at hand")])
def test_a_device_that_is_not_there_fails_at_once(make, monkeypatch, device, reason):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match=f"Expected argument `device` to be {reason}.*, but got '{device}'"):
        make(device=device)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_labels_on_a_gpu(make, texts, expected):
    labeler = make(device=None)
    assert torch.equal(labeler(texts), expected)
    assert labeler._shared.network.device.type == "cuda"
    assert torch.equal(labeler.to("cpu")(texts), expected)


def test_import_is_light():
    code = """
import sys, torch, torchmetrics
before = set(sys.modules)
import mrg.metrics.labelers.chexbert
print(sorted({name.partition(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "['mrg']"
