"""`python -m mrg.metrics FILE --scores`."""

import json

import pytest

from mrg.metrics.__main__ import main
from mrg.metrics.finding_f1 import FindingF1
from mrg.metrics.labelers.rules import RulesLabeler
from mrg.metrics.scores import named
from tests.metrics.test_judge import VALID, server, text_of  # noqa: F401
from tests.metrics.test_main import PREDS, TARGET, fails, rows
from tests.metrics.test_predictions import write


@pytest.fixture
def predictions(tmp_path):
    return write(tmp_path / "predictions.jsonl", rows(PREDS))


def result_of(predictions):
    return json.loads(predictions.with_name("predictions.jsonl.scores.json").read_text())


def test_one_table_and_one_json(predictions, tmp_path, capsys):
    train = write(tmp_path / "train.csv", [{"id": i, "report": text} for i, text in enumerate(TARGET)])
    main([str(predictions), "--train", str(train)])
    without = result_of(predictions)
    capsys.readouterr()
    main([str(predictions), "--train", str(train), "--scores", "finding,mccs,ce", "--trials", "1000"])
    printed, result = capsys.readouterr().out, result_of(predictions)
    assert result["systems"] == without["systems"]  # CE and MCCS as without --scores
    scores = result["scores"]
    assert scores["MCCS"]["systems"]["predictions"] == without["systems"]["predictions"]["scores"]["MCCS"]
    assert scores["CE-F1 micro-13+"]["best_constant"] == without["best_constant"]["scores"]["CE-F1 micro-13+"]
    side = scores["FindingF1 side"]
    # 2 correct, 1 hallucinated, 1 missed, as without sides; Effusion, Edema and Cardiomegaly in every report: 3 of 12.
    assert side["systems"]["predictions"]["value"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert side["best_constant"]["value"] == pytest.approx(2 * 3 / (12 + 3))
    assert side["systems"]["constant normal"] == {"value": 0, "low": 0, "high": 0}
    gaps = {gap["b"]: gap["value"] for gap in side["differences"]}
    assert gaps["best constant"] == pytest.approx(2 / 3 - 0.4)
    line = next(line for line in printed.splitlines() if line.startswith("FindingF1 side "))
    assert line.split()[2] == "66.7"
    assert "micro over 13 conditions, read by rules; side as in the reference." in " ".join(printed.split())
    assert "predictions does not beat best constant in MCCS" in " ".join(printed.split())
    assert max(map(len, printed.split("\n\nAll results")[0].splitlines())) <= 112


def test_a_second_run_computes_nothing_again(predictions, capsys, caplog, monkeypatch):
    main([str(predictions), "--scores", "mccs,finding"])
    first = capsys.readouterr().out
    assert result_of(predictions)["trials"] == 1000
    monkeypatch.setattr(FindingF1, "pair_counts", None)
    monkeypatch.setattr(RulesLabeler, "__call__", None)
    caplog.set_level("INFO")
    main([str(predictions), "--scores", "mccs,finding"])
    assert capsys.readouterr().out == first
    assert "finding, predictions: 4 of 4 are known from" in caplog.text
    assert "Score 2 of 2: finding finished in" in caplog.text


def test_changed_predictions_are_scored_again(predictions, capsys, caplog):
    main([str(predictions), "--scores", "finding"])
    write(predictions, rows([*PREDS[:3], "The lungs are clear."]))
    caplog.set_level("INFO")
    main([str(predictions), "--scores", "finding"])
    assert "finding, predictions: 3 of 4 are known from" not in caplog.text  # the 4th is that of another system
    assert result_of(predictions)["scores"]["FindingF1 side"]["systems"]["predictions"]["value"] == pytest.approx(0.8)


def test_a_judge_that_fails_keeps_the_finished_scores(predictions, capsys, caplog, monkeypatch, server):  # noqa: F811
    server.answers = lambda request: (404, "no such model")
    options = [str(predictions), "--scores", "judge,finding", "--judge", server.url, "tiny"]
    caplog.set_level("INFO")
    with pytest.raises(SystemExit):
        main(options)
    assert "reports have no score, first report 0: the server answers with status 404" in capsys.readouterr().err
    assert "Finished values are in" in caplog.text
    monkeypatch.setattr(FindingF1, "pair_counts", None)
    server.answers = lambda request: (200, json.dumps(VALID))
    main(options)
    result = result_of(predictions)
    assert result["scores"]["judge tiny"]["systems"]["predictions"]["value"] == 0.75
    assert (
        result["usage"]["judge"]["asked"] == 9
    )  # 3 systems, 3 different pairs each: two references are equal, one pair is in two systems
    assert "judge: " in capsys.readouterr().out


def test_a_study_without_a_score_is_left_out_and_named_and_never_zero(predictions, capsys, server):  # noqa: F811
    bad = PREDS[3]
    server.answers = lambda request: (200, "?" if bad in text_of(request).split("Candidate:")[1] else json.dumps(VALID))
    main([str(predictions), "--scores", "judge", "--judge", server.url, "tiny"])
    row, result = result_of(predictions)["scores"]["judge tiny"], result_of(predictions)
    assert row["systems"]["predictions"] == {"value": 0.75, "low": 0.75, "high": 0.75}
    assert (row["num_studies"], row["no_value"]) == (3, {"predictions": [3]})
    failure = result["failures"][0]
    assert (failure["id"], failure["system"]) == ("s3", "predictions")
    assert "the answer is not JSON: '?'" in failure["reason"]
    assert "judge tiny: reports without a score: predictions 1; 3 studies count." in capsys.readouterr().out


def test_mistakes_are_one_line_before_anything_is_computed(predictions, tmp_path, capsys, server):  # noqa: F811
    text = fails(capsys, predictions, "--scores", "ce,radgraf")
    assert "Expected --scores to name scores out of ce, mccs," in text
    assert "'radgraf' is not a score; did you mean 'radgraph'?" in text
    assert "at least one score" in fails(capsys, predictions, "--scores", ",")
    text = fails(capsys, predictions, "--scores", "radgraph,judge,radcliq")
    assert "radgraph cannot be computed: it needs --radgraph CHECKPOINT [ENCODER], see docs/metrics.md" in text
    assert "judge cannot be computed: it needs --judge URL MODEL" in text
    assert "radcliq cannot be computed: it needs --bertscore ENCODER, --radgraph CHECKPOINT [ENCODER] and" in text
    text = fails(capsys, predictions, "--scores", "judge", "--judge", "http://127.0.0.1:9", "tiny")
    assert "The judge's server http://127.0.0.1:9 does not answer (ConnectionError): start it." in text
    assert "leave out --compare" in fails(capsys, predictions, "--scores", "ce", "--compare", predictions)
    assert "write nlg among its names" in fails(capsys, predictions, "--scores", "ce", "--nlg")
    assert not predictions.with_name("predictions.jsonl.scores.json.values.jsonl").exists()


def test_a_missing_extra_is_named_before_anything_is_computed(predictions, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    text = fails(capsys, predictions, "--scores", "finding,nlg")
    assert "nlg cannot be computed: NLG scores need the package pycocoevalcap" in text
    monkeypatch.setitem(named._CLASSES, "bertscore", "mrg.metrics.none_of_these:BERTScore")
    text = fails(capsys, predictions, "--scores", "bertscore", "--bertscore", "weights")
    assert "bertscore cannot be computed: The module of score" in text


def test_a_score_with_weights(predictions, tmp_path, capsys, caplog):
    from mrg.metrics.learned.bertscore import BERTScore
    from mrg.metrics.learned.radgraph import RadGraphF1
    from mrg.metrics.learned.ratescore import RaTEScore
    from tests.metrics.learned.lookalikes import write_bert, write_ner, write_radgraph

    folder = str(write_bert(tmp_path / "bert"))
    options = [str(predictions), "--scores", "bertscore", "--bertscore", folder]
    main([*options, "2"])
    row = result_of(predictions)["scores"]["BERTScore F1"]
    expected = BERTScore(folder, 2)(PREDS, TARGET)
    assert row["systems"]["predictions"]["value"] == pytest.approx(float(expected.mean()))
    assert "BERTScore F1: mean over reports; encoder bert; layer 2; part f1." in capsys.readouterr().out
    caplog.set_level("INFO")
    main(options)  # another layer is another score
    assert "are known from" not in caplog.text
    main(options)
    assert "bertscore, predictions: 4 of 4 are known from" in caplog.text
    capsys.readouterr()
    assert "expected the layer of --bertscore to be a number, but got 'two'" in fails(capsys, *options, "two")
    assert "expected --bertscore ENCODER [LAYER], but got" in fails(capsys, *options, "1", "2")
    graphs = write_radgraph(tmp_path / "radgraph", tmp_path / "bert")
    main([str(predictions), "--scores", "radgraph", "--radgraph", str(graphs), folder])
    row = result_of(predictions)["scores"]["RadGraph F1 partial"]
    expected = RadGraphF1(graphs, folder)(PREDS, TARGET)
    assert row["systems"]["predictions"]["value"] == pytest.approx(float(expected.mean()))
    assert "level partial" in row["convention"]
    ner = write_ner(tmp_path / "ner")
    options_of_rate = [str(predictions), "--scores", "ratescore", "--ratescore", str(ner)]
    main([*options_of_rate, folder, "punctuation"])
    row = result_of(predictions)["scores"]["RaTEScore"]
    expected = RaTEScore(ner, folder, sentences="punctuation")(PREDS, TARGET)
    assert row["systems"]["predictions"]["value"] == pytest.approx(float(expected.mean()), abs=1e-6)
    capsys.readouterr()
    assert "expected --ratescore NER ENCODER [SPLITTER], but got" in fails(capsys, *options_of_rate)
    capsys.readouterr()
    missing = fails(capsys, *options[:-1], tmp_path / "none")
    assert "bertscore cannot be computed: " in missing
    assert "download it once" in missing


def test_radcliq_from_its_parts_and_lower_is_better(predictions, tmp_path, capsys, caplog):
    from mrg.metrics.labelers.chexbert import CheXbertLabeler
    from mrg.metrics.learned.radcliq import RadCliQ
    from mrg.metrics.learned.radgraph import RadGraphF1
    from tests.metrics.labelers.chexbert_lookalike import write_lookalike
    from tests.metrics.learned.lookalikes import write_bert, write_radgraph, write_roberta

    weights = tmp_path / "chexbert"
    weights.mkdir()
    write_lookalike(weights)
    bert = write_bert(tmp_path / "bert")
    graphs, roberta = write_radgraph(tmp_path / "graphs", bert), write_roberta(tmp_path / "roberta", layers=6)
    chexbert = str(weights / "chexbert.pth")
    options = [str(predictions), "--scores", "mccs,radcliq", "--chexbert", chexbert, "--tokenizer", str(weights)]
    options += ["--bertscore", str(roberta), "--radgraph", str(graphs), str(bert)]
    main(options)
    row = result_of(predictions)["scores"]["RadCliQ-v1"]
    scorer = RadCliQ(roberta, RadGraphF1(graphs, bert), CheXbertLabeler(chexbert, str(weights)))
    assert row["systems"]["predictions"]["value"] == pytest.approx(float(scorer(PREDS, TARGET).mean()), abs=1e-6)
    assert (row["higher_is_better"], row["percent"]) == (False, False)
    printed = " ".join(capsys.readouterr().out.split())
    assert "RadCliQ-v1 (lower is better)" in printed
    parts = f"bertscore roberta; radgraph {graphs.name}; radgraph_encoder bert; chexbert chexbert.pth"
    assert f"RadCliQ-v1: mean over reports; version v1; {parts}; lower is better." in printed
    beaten = [gap["b"] for gap in row["differences"] if gap["high"] < 0]
    lost = [line for line in printed.split("(95 %") if "RadCliQ-v1" in line and "not beat" in line]
    assert len(beaten) + len(lost) == 2
    caplog.set_level("INFO")
    main(options)
    assert "radcliq, predictions: 4 of 4 are known from" in caplog.text
    assert "labels: " in caplog.text  # those of CheXbert
