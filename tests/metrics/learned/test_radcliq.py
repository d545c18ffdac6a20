"""RadCliQ from its parts: the published linear model, BLEU-2 of fast_bleu, and pickles of coefficients."""

import copy
import pickle

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression
from sklearn.preprocessing import MinMaxScaler
from transformers import BertModel, BertTokenizer

from mrg.errors import NotFoundError, UserError, UserTypeError
from mrg.metrics import CheXbertLabeler, ReportScore, RulesLabeler, as_reward
from mrg.metrics.labels import CachingLabeler
from mrg.metrics.learned.bertscore import BERTScore
from mrg.metrics.learned.radcliq import BASELINE, V1, RadCliQ, bleu_2
from mrg.metrics.learned.radgraph import RadGraphF1
from tests.metrics.labelers.chexbert_lookalike import SIZES, write_lookalike
from tests.metrics.learned.lookalikes import write_radgraph, write_roberta

PREDS = ["no effusion", "The  lungs are clear.", "effusion heart size is normal", ""]
TARGET = ["No effusion.", "the lungs are clear . no effusion", "heart size is normal mild edema", "no effusion"]


@pytest.fixture(scope="module")
def parts(tmp_path_factory, bert):
    """BERTScore, RadGraph F1 and CheXbert with invented weights."""
    folder = tmp_path_factory.mktemp("radcliq")
    write_lookalike(folder)
    radgraph = RadGraphF1(write_radgraph(folder / "radgraph", bert, "radgraph"), device="cpu")
    bertscore = BERTScore(write_roberta(folder / "roberta", layers=6), 5, device="cpu")
    return bertscore, radgraph, CheXbertLabeler(folder / "chexbert.pth", folder, "cpu")


def test_v1_by_hand():
    # (1 - mean) / scale of each part, times its coefficient; 4e-12 of BLEU-2 does not count.
    best = -0.377083683 * 0.46207688 / 0.30282584 - 0.3703001 * 0.38242744 / 0.22430938
    assert V1.score((1.0,) * 4) == pytest.approx(best - 0.252616218 * 0.23520579 / 0.25394391, abs=1e-9)
    assert V1.score(V1.mean) == pytest.approx(0.0, abs=1e-9)
    assert V1.score((1.0,) * 4) < V1.score((0.5,) * 4) < V1.score((0.0,) * 4)  # lower is better


def test_bleu_2_equals_fast_bleu():
    preds = ["No effusion. The lungs are clear.", "no edema", "edema", "clear lungs no effusion"]
    target = ["The lungs are clear. No effusion or pneumothorax.", "no edema", "mild edema", "no effusion"]
    pairs = [*zip(preds, target, strict=True), ("the lungs the lungs the lungs are", "the lungs are clear.")]
    # Values of fast-bleu 0.0.90 with weights (1/2, 1/2).
    expected = [0.6582067954, 1.0, 0.1163336938, 0.4082482905, 0.377964473]
    assert [bleu_2(*pair) for pair in pairs] == pytest.approx(expected, abs=1e-9)
    assert bleu_2("", "no edema") == bleu_2("clear", "no edema") == 0.0


def test_parts_come_from_the_scores_they_name(parts):
    bertscore, radgraph, chexbert = parts
    found = RadCliQ(*parts).parts(PREDS, TARGET)
    combined = RadGraphF1(radgraph.checkpoint, level="combined", device="cpu")
    assert torch.equal(found[:, 0], combined(PREDS, TARGET))
    spaced = bertscore([pred.replace("  ", " ") for pred in PREDS], TARGET)
    torch.testing.assert_close(found[:, 1], (spaced - BASELINE) / (1 - BASELINE))
    assert found[:, 3].tolist() == [bleu_2(*pair) for pair in zip(PREDS, TARGET, strict=True)]
    state = torch.load(chexbert.checkpoint)["model_state_dict"]
    bert = BertModel(SIZES).eval()
    bert.load_state_dict(
        {key[12:]: value for key, value in state.items() if key.startswith("module.bert.")}, strict=False
    )
    tokenizer = BertTokenizer.from_pretrained(chexbert.tokenizer)
    with torch.no_grad():
        rows = [bert(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, 0] for text in [*PREDS, *TARGET]]
    cosines = torch.cosine_similarity(torch.stack(rows[:4]), torch.stack(rows[4:]))
    torch.testing.assert_close(found[:, 2].float(), cosines, atol=1e-5, rtol=0)


def test_score_and_reward_have_opposite_directions(parts):
    score, reward = RadCliQ(*parts), RadCliQ(*parts, reward=True)
    values = score(PREDS, TARGET)
    expected = [V1.score(tuple(row)) for row in score.parts(PREDS, TARGET).tolist()]
    assert values.tolist() == pytest.approx(expected)
    assert not score.higher_is_better
    metric = ReportScore(score, score.name, score.higher_is_better)
    metric.update(PREDS, TARGET)
    assert (metric.name, float(metric.compute())) == ("RadCliQ-v1", pytest.approx(float(values.mean())))
    with pytest.raises(UserError, match=r"higher_is_better=True, but that of RadCliQ-v1 is False"):
        as_reward(score)
    worst, best = V1.score((0.0,) * 4), V1.score((1.0,) * 4)
    paid = as_reward(reward)(completions=PREDS, target=TARGET)
    assert paid[:3] == pytest.approx([max((worst - value) / (worst - best), 0.0) for value in expected[:3]])
    assert paid[3] == 0.0
    assert reward.name == "RadCliQ-v1 reward"


def test_other_settings_of_the_parts_do_not_matter(parts, tmp_path):
    bertscore, radgraph, chexbert = parts
    expected = RadCliQ(*parts)(PREDS, TARGET)
    others = BERTScore(bertscore.encoder, device="cpu"), RadGraphF1(radgraph.checkpoint, level="simple", device="cpu")
    score = RadCliQ(*others, CachingLabeler(chexbert))
    assert torch.equal(score(PREDS, TARGET), expected)
    from_paths = RadCliQ(bertscore.encoder, radgraph.checkpoint, chexbert, device="cpu")
    assert torch.equal(from_paths(PREDS, TARGET), expected)
    paths = {"bertscore": bertscore.encoder, "radgraph": radgraph.checkpoint, "chexbert": chexbert.checkpoint}
    expected = {"name": "RadCliQ-v1", "version": "v1", **{name: str(path) for name, path in paths.items()}}
    assert from_paths.settings() == {**expected, "radgraph_encoder": None, "coefficients": None}


def test_pairs_are_computed_once_and_copies_share(parts, monkeypatch):
    score = RadCliQ(*parts)
    expected = score(PREDS, TARGET)
    monkeypatch.setattr(score, "_compute", lambda pairs: pytest.fail("computed again") if pairs else [])
    assert torch.equal(score(PREDS, TARGET), expected)
    assert torch.equal(copy.deepcopy(score)(PREDS, TARGET), expected)
    monkeypatch.undo()
    again = pickle.loads(pickle.dumps(score))
    torch.testing.assert_close(again(PREDS, TARGET), expected)
    torch.testing.assert_close(score.to("cpu")(PREDS, TARGET), expected)


def write_pickles(folder, seed=0):
    """A model and a normalizer of scikit-learn, as in the authors' repository."""
    values = np.random.default_rng(seed).random((30, 4))
    scaler = MinMaxScaler().fit(values)
    model = LinearRegression().fit(scaler.transform(values), values.sum(1) * 2 + 1)
    for name, value in (("composite_metric_model", model), ("normalizer", scaler)):
        (folder / f"{name}.pkl").write_bytes(pickle.dumps(value, protocol=3))
    return model, scaler


def test_v0_equals_the_pickled_model(parts, tmp_path):
    model, scaler = write_pickles(tmp_path)
    score = RadCliQ(*parts, version="v0", coefficients=tmp_path)
    expected = model.predict(scaler.transform(score.parts(PREDS, TARGET).numpy()))
    assert score(PREDS, TARGET).tolist() == pytest.approx(expected.tolist())
    assert score.name == "RadCliQ-v0"


class Code:
    def __reduce__(self):
        return print, ("run",)


def test_coefficients_that_are_missing_or_could_run_code(parts, tmp_path, capsys):
    with pytest.raises(NotFoundError, match=r"composite_metric_model\.pkl is not in .*rajpurkarlab/CXR-Report-Metric"):
        RadCliQ(*parts, version="v0", coefficients=tmp_path)
    write_pickles(tmp_path)
    fewer = MinMaxScaler().fit(np.arange(6.0).reshape(2, 3))
    whole = (tmp_path / "normalizer.pkl").read_bytes()
    (tmp_path / "normalizer.pkl").write_bytes(pickle.dumps(fewer, protocol=3))
    with pytest.raises(UserError, match="coefficients of 4 scores, but got 4 and 3"):
        RadCliQ(*parts, version="v0", coefficients=tmp_path)
    (tmp_path / "normalizer.pkl").write_bytes(whole)
    (tmp_path / "normalizer.pkl").write_bytes(pickle.dumps(Code()))
    with pytest.raises(UserError, match=r"it holds builtins\.print, which could run code"):
        RadCliQ(*parts, version="v0", coefficients=tmp_path)
    (tmp_path / "normalizer.pkl").write_bytes(b"damaged")
    with pytest.raises(UserError, match="could not be read: UnpicklingError"):
        RadCliQ(*parts, version="v0", coefficients=tmp_path)
    assert capsys.readouterr().out == ""


def test_wrong_arguments(parts, tmp_path):
    with pytest.raises(UserError, match="Expected argument `version` to be 'v1', or 'v0' with `coefficients`"):
        RadCliQ(*parts, version="v0")
    with pytest.raises(UserTypeError, match="`chexbert` to be a CheXbertLabeler, but got RulesLabeler"):
        RadCliQ(*parts[:2], RulesLabeler())
    with pytest.raises(NotFoundError, match="nowhere, the folder of BERTScore, does not exist"):
        RadCliQ(tmp_path / "nowhere", *parts[1:])
