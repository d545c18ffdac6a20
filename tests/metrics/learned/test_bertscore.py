"""BERTScore against the values of the package bert_score 0.3.13 on transformers 4.57 for the same tiny encoders."""

import copy
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from mrg.errors import NotFoundError, UserError
from mrg.metrics import ReportScore, as_reward
from mrg.metrics.learned import bertscore
from mrg.metrics.learned.bertscore import BERTScore
from mrg.metrics.trl import RewardError
from tests.metrics.learned.lookalikes import write_bert

PREDS = ["No effusion. The lungs are clear.", "mild edema", "abc, left heart.", "the lungs are clear " * 20]
TARGET = [
    "The heart size is normal. No pneumothorax.", "No edema.", "no acute effusion : de", "the lungs are clear . " * 30,
]  # fmt: skip
# (encoder, layer, idf) -> precision, recall and F1 of each pair, scored one at a time by the package.
PACKAGE = {
    ("bert", 2, False): [
        [0.9694341, 0.9850734, 0.9771912], [0.9934252, 0.9342318, 0.9629197],
        [0.9774845, 0.9706613, 0.974061], [0.9961711, 0.9576404, 0.9765258],
    ],
    ("bert", 2, True): [
        [0.9658941, 0.9833701, 0.9745538], [0.9918528, 0.9672585, 0.9794012],
        [0.9784261, 0.9747216, 0.9765704], [0.9960432, 0.9843665, 0.9901705],
    ],
    ("bert", None, False): [
        [0.9908501, 0.9900869, 0.9904683], [0.9964502, 0.9791028, 0.9877004],
        [0.9883504, 0.9883014, 0.9883259], [0.9946324, 0.9537773, 0.9737765],
    ],
    ("roberta", 2, False): [
        [0.9691606, 0.9117971, 0.9396042], [0.9160858, 0.9214092, 0.9187398],
        [0.9212985, 0.949231, 0.9350562], [0.9858854, 0.9848254, 0.9853551],
    ],
    ("roberta", 2, True): [
        [0.9515654, 0.913139, 0.9319562], [0.8983276, 0.9533187, 0.9250066],
        [0.9185858, 0.9350953, 0.9267671], [0.9850543, 0.9892254, 0.9871355],
    ],
}  # fmt: skip


@pytest.fixture
def make(bert):
    def make(encoder=bert, device="cpu", **settings):
        return BERTScore(encoder, device=device, **settings)

    return make


@pytest.mark.parametrize(("name", "layer", "idf"), PACKAGE)
def test_equals_the_package(request, make, name, layer, idf):
    folder = request.getfixturevalue(name)
    expected = torch.tensor(PACKAGE[name, layer, idf], dtype=torch.float64)
    for part, values in zip(("precision", "recall", "f1"), expected.T, strict=True):
        score = make(folder, layer=layer, part=part, idf=TARGET if idf else None)
        torch.testing.assert_close(score(PREDS, TARGET), values, atol=2e-6, rtol=0)


def test_a_score_does_not_depend_on_other_pairs(make):
    score = make(cache_size=0)
    alone = torch.cat([score([p], [t]) for p, t in zip(PREDS, TARGET, strict=True)])
    for batch_tokens in (1, 60, 4096):
        together = make(cache_size=0, batch_tokens=batch_tokens)(PREDS, TARGET)
        torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


def test_texts_without_tokens_score_zero_and_equal_ones_one(make):
    score = make(layer=2)
    assert score(["", "no edema", " \n"], ["no edema", "", ""]).tolist() == [0.0, 0.0, 0.0]
    torch.testing.assert_close(score(["no edema"], ["No edema"]), torch.ones(1, dtype=torch.float64))
    assert score([], []).shape == (0,)


def test_idf_of_a_word_in_every_text_is_zero(make):
    score = make(layer=2, idf=["no edema", "no effusion"], part="precision")
    only, common = score(["edema", "no"], ["no edema", "no edema"])
    assert common == 0.0  # "no" has weight log(3/3)
    assert only > 0.5
    assert score.settings() | {"encoder": ""} == {
        "encoder": "", "layer": 2, "part": "precision", "idf": 5, "baseline": None, "name": "BERTScore precision idf",
    }  # fmt: skip


def test_baseline_maps_unrelated_texts_to_zero(make):
    raw, rescaled = make()(PREDS, TARGET), make(baseline=0.8)(PREDS, TARGET)
    torch.testing.assert_close(rescaled, (raw - 0.8) / 0.2)


def test_encodes_each_text_once_and_remembers_pairs(make, monkeypatch):
    score, encoded = make(), []
    tokens = bertscore._tokens
    monkeypatch.setattr(bertscore, "_tokens", lambda encoder, texts: encoded.extend(texts) or tokens(encoder, texts))
    first = score(["no edema", "clear", "no edema"], ["clear", "clear", "clear"])
    assert sorted(encoded) == ["clear", "no edema"]
    assert torch.equal(score(["no edema"], ["clear"]), first[:1])
    assert len(encoded) == 2
    score(["clear"], ["no edema"])  # another pair
    assert len(encoded) == 4


def test_an_old_folder_without_settings_of_the_tokenizer_is_read(make, tmp_path):
    legacy = make(write_bert(tmp_path / "old", legacy=True))
    torch.testing.assert_close(legacy(PREDS, TARGET), make()(PREDS, TARGET), atol=1e-6, rtol=0)


def test_copies_share_and_pickles_read_again(make):
    score = make(layer=2)
    values = score(PREDS[:2], TARGET[:2])
    assert copy.deepcopy(score)._shared is score._shared
    again = pickle.loads(pickle.dumps(score))
    assert again._shared.network is None
    assert torch.equal(again(PREDS[:2], TARGET[:2]), values)
    assert torch.equal(score.to("cpu")(PREDS[:2], TARGET[:2]), values)


def test_autocast_of_a_training_run_does_not_change_scores(make):
    with torch.autocast("cpu", torch.bfloat16):
        inside = make()(PREDS, TARGET)
    assert torch.equal(inside, make()(PREDS, TARGET))


def test_as_metric_and_as_reward(make):
    score = make(layer=2)
    values = score(PREDS, TARGET)
    metric = ReportScore(score, score.name, score.higher_is_better)
    metric.update(PREDS, TARGET)
    assert metric.name == "BERTScore F1"
    assert torch.equal(metric.compute(), values.mean())
    reward = as_reward(score)
    assert reward(completions=["", *PREDS[1:]], target=TARGET) == [0.0, *values[1:].tolist()]


def test_a_failing_reward_names_the_study(make, bert, tmp_path):
    weights = load_file(bert / "model.safetensors")
    broken = write_bert(tmp_path / "broken")
    word = "embeddings.word_embeddings.weight"
    row = (broken / "vocab.txt").read_text().split("\n").index("edema")
    weights[word][row] = float("nan")
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    reward = as_reward(make(broken))
    with pytest.raises(RewardError, match=r"failed on completion 1 \(study s7\): BERTScore F1 of report 0 is nan"):
        reward(completions=["clear", "edema"], target=["clear", "clear"], study_id=["s6", "s7"])


def test_missing_files_are_named_with_their_source(make, bert, tmp_path):
    with pytest.raises(NotFoundError, match=r"nowhere, the folder of .*, does not exist: .*Apache-2.0.*hf download"):
        make(tmp_path / "nowhere")
    with pytest.raises(NotFoundError, match=r"config\.json is not in"):
        make(tmp_path)
    (tmp_path / "config.json").write_text((bert / "config.json").read_text())
    with pytest.raises(NotFoundError, match=r"No weights \(model.safetensors or pytorch_model.bin\) are in"):
        make(tmp_path)
    weights = load_file(bert / "model.safetensors")
    weights.pop("encoder.layer.1.output.dense.weight")
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "vocab.txt").write_text((bert / "vocab.txt").read_text())
    with pytest.raises(UserError, match=r"lack encoder.layer.1.output.dense.weight, one of 1 missing tensors"):
        make(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"The encoder of BERTScore in .* could not be read: SafetensorError"):
        make(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer": 4}, "Expected argument `layer` to be from 1 to 3"),
        ({"part": "f2"}, "Expected argument `part` to be one of"),
        ({"baseline": 1.0}, "Expected argument `baseline` to be below 1"),
        ({"idf": []}, "Expected argument `idf` to hold at least one text"),
        ({"batch_tokens": 0}, "Expected argument `batch_tokens`"),
    ],
)
def test_wrong_settings(make, settings, message):
    with pytest.raises(UserError, match=message):
        make(**settings)
