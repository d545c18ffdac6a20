import json
import math
import os
import shutil
import subprocess
import sys

import pytest
import torch

from mrg.metrics.nlg import NORMALIZATIONS, nlg_scores, normalize_reports

pytest.importorskip("pycocoevalcap")

# One odd report of each kind: equal, partly equal, nothing in common, nothing written, a protocol's signs, line breaks.
TARGET = [
    "The heart is normal in size . No pleural effusion or pneumothorax .",
    "Mild cardiomegaly . The lungs are clear .",
    "Small left effusion .",
    "No acute abnormality .",
    "Clear ||| lungs .",
    "1. Edema.\n2. No\teffusion.\r\n",
]
PREDS = [
    TARGET[0],
    "The heart is enlarged . The lungs are clear .",
    "Sternotomy wires",
    "",
    "Clear lungs ||| .",
    "1. Edema.\n\n2. Effusion.\u2028",
]
NAMES = ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr"]
WITHOUT_METEOR = [name for name in NAMES if name != "METEOR"]
DIRECT = """
import json, sys
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
preds, target = json.load(sys.stdin)
gts, res = ({i: [text] for i, text in enumerate(texts)} for texts in (target, preds))
scores = {}
for scorer in (Bleu(4), Rouge(), Cider(), Meteor()):
    corpus, reports = scorer.compute_score(gts, res)
    if isinstance(scorer, Bleu):
        scores.update({f"BLEU-{n + 1}": [corpus[n], list(reports[n])] for n in range(4)})
    else:
        name = {"Rouge": "ROUGE-L", "CIDEr": "CIDEr", "METEOR": "METEOR"}[scorer.method()]
        scores[name] = [float(corpus), list(map(float, reports))]
print("result", json.dumps(scores))
"""


@pytest.fixture
def java():
    if shutil.which("java") is None:
        pytest.skip("no java")


def direct(preds, target):
    """What pycocoevalcap gives by itself, in a process that cannot see this package's code."""
    answer = subprocess.run(
        [sys.executable, "-c", DIRECT], input=json.dumps([preds, target]), capture_output=True, text=True, check=True
    ).stdout
    return json.loads(answer.split("result", 1)[1])


@pytest.fixture
def processes(monkeypatch):
    """Every process that is started."""
    started = []

    class Recorded(subprocess.Popen):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    return started


def test_equal_to_pycocoevalcap_and_silent_and_closed(java, capfd, processes):
    scores = nlg_scores(PREDS, TARGET)
    assert capfd.readouterr() == ("", "")
    (meteor,) = processes
    assert meteor.returncode is not None
    assert all(pipe.closed for pipe in (meteor.stdin, meteor.stdout, meteor.stderr))
    assert list(scores.corpus) == list(scores.per_report) == NAMES

    one_line = [" ".join(text.split()) for text in (*PREDS, *TARGET)]
    # Its METEOR drops the sign from predictions itself, and takes it in a reference for the start of another one.
    one_line = [text.replace("||| ", "") for text in one_line]
    expected = direct(one_line[:6], one_line[6:])
    assert 0 < scores.corpus["METEOR"] < 1
    assert scores.corpus["METEOR"] == expected["METEOR"][0]
    assert scores.per_report["METEOR"].tolist() == expected["METEOR"][1]
    assert scores.per_report["METEOR"][[0, 3, 4]].tolist() == [1, 0, 1]

    without_sign = nlg_scores(one_line[:6], one_line[6:], meteor=False)
    assert list(without_sign.corpus) == WITHOUT_METEOR
    for name in WITHOUT_METEOR:
        assert without_sign.corpus[name] == pytest.approx(expected[name][0], abs=1e-15)
        assert without_sign.per_report[name].tolist() == pytest.approx(expected[name][1], abs=1e-15)
        assert without_sign.per_report[name].dtype == torch.float64


def test_bleu_1_and_rouge_l_by_hand():
    """Longest common subsequences: "no effusion" of 2 and 3 words, "heart size normal" of 4 and 4."""
    preds, target = ["no effusion", "heart size normal heart"], ["no pleural effusion", "the heart size normal"]
    scores = nlg_scores(preds, target, meteor=False)
    # 2 + 3 of 6 words are in their reference ("heart" once), and 6 words answer 7.
    assert scores.corpus["BLEU-1"] == pytest.approx(5 / 6 * math.exp(1 - 7 / 6))
    assert scores.per_report["BLEU-1"].tolist() == pytest.approx([math.exp(1 - 3 / 2), 3 / 4])
    precision, recall, beta = 1, 2 / 3, 1.2
    first = (1 + beta**2) * precision * recall / (recall + beta**2 * precision)
    assert scores.per_report["ROUGE-L"].tolist() == pytest.approx([first, 3 / 4])
    assert scores.corpus["ROUGE-L"] == pytest.approx((first + 3 / 4) / 2)


def test_which_corpus_scores_are_means():
    scores = nlg_scores(PREDS, TARGET, meteor=False)
    for name in ("ROUGE-L", "CIDEr"):
        assert scores.corpus[name] == pytest.approx(float(scores.per_report[name].mean()))
    assert scores.corpus["BLEU-4"] != pytest.approx(float(scores.per_report["BLEU-4"].mean()), abs=0.01)


@pytest.mark.parametrize("normalization", ["none", "r2gen-iu", "r2gen-mimic"])
def test_nothing_written_scores_nothing(normalization):
    scores = nlg_scores(["", " \n", "edema"], ["edema", "", "edema"], normalization, meteor=False)
    for name in WITHOUT_METEOR:
        assert scores.per_report[name][:2].tolist() == [0, 0], name
    nothing = nlg_scores(["", "edema"], ["", " "], normalization, meteor=False)
    # Its BLEU adds 1e-15 to counts, so that the fourth root of no match at all is not quite 0.
    assert all(value == pytest.approx(0, abs=1e-8) for value in nothing.corpus.values())


def test_cider_needs_references_that_differ():
    assert nlg_scores(["edema"], ["edema"], meteor=False).corpus["CIDEr"] == 0
    assert nlg_scores(["edema"] * 2, ["edema"] * 2, meteor=False).corpus["CIDEr"] == 0
    # Only n-grams of one word exist here, one of the four orders of which CIDEr takes ten times the mean.
    assert nlg_scores(["edema", "mass"], ["edema", "mass"], meteor=False).corpus["CIDEr"] == pytest.approx(10 / 4)


@pytest.mark.parametrize(
    ("text", "iu", "mimic"),
    [
        ("Heart size is normal. Lungs are clear.", "heart size is normal . lungs are clear .", None),
        # Numbers of a list go, after a line break only in the cleaning for MIMIC-CXR.
        ("1. No edema. 2. Left-sided effusion.", "no edema . left-sided effusion .", None),
        ("1. Edema.\n2. Mass.", "edema 2 . mass .", "edema . mass ."),
        # The end of a larger number goes too, and decimal points are lost.
        ("Seen on 21. Nodule of 1.5 cm.", "seen on 2nodule of 15 cm .", None),
        # Underscores, brackets, quotes and slashes go, the hyphen stays.
        ('At ___ (today), "AP/lateral" x-ray: [normal]?', "at today aplateral x-ray normal .", None),
        ("Clear.... No mass", "clear . no mass .", None),
        ("  Clear  lungs \t ", "clear lungs .", None),
        ("", "", None),
    ],
)
def test_r2gen_cleaning(text, iu, mimic):
    assert normalize_reports([text], "r2gen-iu") == [iu]
    assert normalize_reports([text], "r2gen-mimic") == [iu if mimic is None else mimic]


def test_ptb_is_the_tokenizer_of_pycocoevalcap(java, capfd):
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    texts = [
        "The heart's size: 2.5 cm (normal). Don't worry; x-ray... \u00e9",
        "",
        'No "edema"/effusion!',
        "...",
        "Ok",
        "",
    ]
    got = normalize_reports(texts, "ptb")
    assert capfd.readouterr() == ("", "")
    expected = PTBTokenizer().tokenize({i: [{"caption": text}] for i, text in enumerate(texts)})
    assert got == [expected.get(i, [""])[0] for i in range(len(texts))]
    assert got[:2] == ["the heart 's size 2.5 cm -lrb- normal -rrb- do n't worry x-ray \u00e9", ""]
    assert normalize_reports(["", " "], "ptb") == ["", ""]


def test_normalisation_and_cut_change_what_is_compared():
    preds, target = ["Heart normal."], ["heart normal . no edema ."]
    as_is = nlg_scores(preds, target, meteor=False)
    cleaned = nlg_scores(preds, target, "r2gen-iu", meteor=False, max_tokens=3)
    assert as_is.corpus["ROUGE-L"] == 0  # "Heart" and "heart", "normal." and "normal"
    assert cleaned.corpus["ROUGE-L"] == 1
    assert cleaned.corpus["BLEU-2"] == pytest.approx(1)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="same length, but got 1 and 2"):
        nlg_scores(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="at least one report"):
        nlg_scores([], [])
    with pytest.raises(TypeError, match=r"`target\[1\]` to be a string, but got NoneType"):
        nlg_scores(["a", "b"], ["a", None])
    with pytest.raises(TypeError, match="put it in a list"):
        nlg_scores("edema", "edema")
    with pytest.raises(ValueError, match="'none', 'ptb', 'r2gen-iu', 'r2gen-mimic', but got 'r2gen'"):
        nlg_scores(["a"], ["a"], "r2gen")
    with pytest.raises(ValueError, match="`max_tokens` to be at least 1, but got 0"):
        nlg_scores(["a"], ["a"], max_tokens=0)
    assert NORMALIZATIONS == ("none", "ptb", "r2gen-iu", "r2gen-mimic")


def test_without_java(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"`java` on the PATH for METEOR.*leave it out: `meteor=False`"):
        nlg_scores(["a"], ["a"])
    with pytest.raises(RuntimeError, match=r"`java` on the PATH for the normalization 'ptb'"):
        nlg_scores(["a"], ["a"], "ptb", meteor=False)
    assert list(nlg_scores(["a"], ["a"], meteor=False).corpus) == WITHOUT_METEOR


@pytest.mark.skipif(os.name != "posix", reason="a shell script stands for Java")
def test_java_that_fails_is_reported_and_does_not_hang(monkeypatch, tmp_path):
    script = tmp_path / "java"
    script.write_text("#!/bin/sh\necho 'Could not reserve enough space' >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(RuntimeError, match="METEOR's Java process failed: Could not reserve enough space"):
        nlg_scores(["a"], ["a"])
    with pytest.raises(RuntimeError, match="Penn Treebank tokenizer failed: Could not reserve enough space"):
        nlg_scores(["a"], ["a"], "ptb", meteor=False)


def test_without_the_extra():
    code = """
import sys
sys.modules["pycocoevalcap"] = None  # as if it were not installed
from mrg.metrics.nlg import nlg_scores
for arguments in ((["a"], ["a"]), (["a"], ["a"], "ptb")):
    try:
        nlg_scores(*arguments)
    except ImportError as error:
        print(error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (
        result.stdout.splitlines()
        == ["NLG scores need the package pycocoevalcap: pip install -e '.[nlg]' in the checkout"] * 2
    )


def test_rouge_is_that_of_pycocoevalcap_with_double_blanks():
    """It splits at each blank: an empty word between two blanks is a word for it."""
    pycoco = pytest.importorskip("pycocoevalcap.rouge.rouge").Rouge()
    preds = ["The heart is  normal. No effusion.", "No edema.  Clear lungs.", " Small effusion.", "a\nb  c"]
    target = ["The heart is normal.  No pleural effusion.", "No edema. Lungs clear.", "Small  effusion.", "a b c"]
    gts, res = ({i: [text] for i, text in enumerate(texts)} for texts in (target, preds))
    expected = pycoco.compute_score(gts, res)[1]
    scores = nlg_scores(preds, target, meteor=False)
    assert scores.per_report["ROUGE-L"].tolist() == pytest.approx(list(expected), abs=1e-15)
    # By hand: 7 words with one empty, 8 with one empty; the longest common subsequence has 6 words.
    precision, recall = 6 / 7, 6 / 8
    assert float(scores.per_report["ROUGE-L"][0]) == pytest.approx(
        (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision)
    )
    single = nlg_scores([" ".join(text.split()) for text in preds], target, meteor=False)
    assert single.per_report["BLEU-4"].tolist() == scores.per_report["BLEU-4"].tolist()
    assert single.per_report["ROUGE-L"][0] != scores.per_report["ROUGE-L"][0]


def test_half_of_a_surrogate_pair_is_a_question_mark():
    assert normalize_reports(["a \ud800 b"], "none") == ["a ? b"]
