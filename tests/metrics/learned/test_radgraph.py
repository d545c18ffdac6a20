"""RadGraph F1 against the package radgraph 0.1.18, one report at a time, for the same invented checkpoint.

radgraph_package.json holds what the package gave on transformers 4.57, on which it still runs.
"""

import io
import json
import tarfile
from pathlib import Path

import pytest
import torch

from mrg.errors import NotFoundError, UserError
from mrg.metrics import ReportScore, as_reward
from mrg.metrics.learned.radgraph import LEVELS, RadGraphF1
from mrg.metrics.learned.radgraph_network import Entity, split_words
from tests.metrics.learned.lookalikes import LABELS, write_radgraph

PACKAGE = json.loads((Path(__file__).parent / "radgraph_package.json").read_text())
TEXTS, OTHERS = PACKAGE["texts"], PACKAGE["others"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory, bert):
    """Folders with the content of radgraph-xl.tar.gz and radgraph.tar.gz."""
    parent = tmp_path_factory.mktemp("radgraph")
    return {name: write_radgraph(parent / name, bert, name) for name in ("radgraph-xl", "radgraph")}


@pytest.fixture
def make(folders):
    def make(checkpoint=folders["radgraph-xl"], encoder=None, device="cpu", **settings):
        return RadGraphF1(checkpoint, encoder, device=device, **settings)

    return make


def plain(graphs):
    return [[[e.text, LABELS.index(e.label), [list(pair) for pair in e.relations]] for e in graph] for graph in graphs]


@pytest.mark.parametrize("name", ["radgraph-xl", "radgraph"])
def test_entities_relations_and_scores_equal_the_package(make, folders, name):
    score = make(folders[name], batch_tokens=100)
    assert plain(score.graphs(TEXTS)) == PACKAGE[name]  # together
    assert [plain(make(folders[name]).graphs([text]))[0] for text in TEXTS[:4]] == PACKAGE[name][:4]  # and alone
    for level, expected in zip(
        ("simple", "partial", "complete"), zip(*PACKAGE[f"{name} f1"], strict=True), strict=True
    ):
        score.level = level
        assert score(OTHERS, TEXTS).tolist() == pytest.approx(expected, abs=1e-9)


def entity(text, label="present", *relations):
    return Entity(text, label, relations)


def test_levels_by_hand():
    target = [entity("left", "anatomy"), entity("Effusion", "present", ("located_at", 0)), entity("edema", "absent")]
    pred = [entity("left", "anatomy"), entity("effusion", "present", ("located_at", 0)), entity("edema", "absent")]
    found = {level: LEVELS[level](pred, target) for level in LEVELS}
    # simple and partial: 2 of 3 on both sides, as "Effusion" has a capital; complete: relations in lower case, 3 of 3
    # combined: entities 2/3, and the only relations start at different texts.
    assert found == pytest.approx({"simple": 2 / 3, "partial": 2 / 3, "complete": 1.0, "combined": 1 / 3})
    pred[1] = entity("Effusion")  # without its relation
    found = {level: LEVELS[level](pred, target) for level in LEVELS}
    assert found == pytest.approx({"simple": 1.0, "partial": 2 / 3, "complete": 2 / 3, "combined": 0.5})


def test_reports_without_entities_score_zero(make):
    score = make()
    assert score.graphs(["", " \n", "effusion"]) == [(), (), ()]
    assert score(["", "effusion", TEXTS[0]], [TEXTS[0], "effusion", ""]).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("namespace", "text", "words"),
    [
        ("radgraph", "No 5% (left-sided) effusion/edema.", "No 5% ( left-sided ) effusion / edema ."),
        ("radgraph-xl", "No 5% (left-sided) effusion/edema.", "No 5 % ( left - sided ) effusion / edema ."),
        ("radgraph-xl", 'A "big" one (75%), or (more).\nEnd', 'A " big " one ( 75 % ), or ( more ) . End'),
    ],
)
def test_words(namespace, text, words):
    assert split_words(text, namespace) == words.split(" ")


def test_marks_behind_a_slash_are_read_without_it(make):
    """The reader splits no slash from a mark, and its network has the mark alone."""
    assert split_words("Edema /. Or /?", "radgraph-xl") == ["Edema", "/.", "Or", "/?"]
    network = make()._network()
    assert network._pieces(["Edema", "/.", "/?"]) == network._pieces(["Edema", ".", "?"])


def test_an_archive_equals_its_folder(make, folders, tmp_path):
    archive = tmp_path / "radgraph-xl.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folders["radgraph-xl"], arcname=".")
    score = make(archive)
    assert plain(score.graphs(TEXTS[:4])) == PACKAGE["radgraph-xl"][:4]
    assert score.settings() == {
        "name": "RadGraph F1 partial", "checkpoint": str(archive), "encoder": None, "level": "partial",
        "namespace": "radgraph-xl",
    }  # fmt: skip


def test_each_text_is_annotated_once(make, monkeypatch):
    score, seen = make(), []
    score(TEXTS[:1], TEXTS[1:2])
    network = score._shared.network
    monkeypatch.setattr(network, "graphs", lambda texts, tokens: seen.extend(texts) or [[] for _ in texts])
    score([*TEXTS[:2], "new"], ["new", *TEXTS[:2]])
    assert seen == ["new"]


def test_reading_leaves_the_seed_of_a_run_alone(make):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    make()
    assert torch.equal(torch.rand(2), expected)


def test_as_metric_and_as_reward(make):
    score = make(level="complete")
    values = score(OTHERS, TEXTS)
    metric = ReportScore(score, score.name, score.higher_is_better)
    metric.update(OTHERS, TEXTS)
    assert float(metric.compute()) == pytest.approx(float(values.mean()))
    assert as_reward(score)(completions=OTHERS, target=TEXTS) == values.tolist()
    assert as_reward(score).__name__ == "RadGraph F1 complete"


def test_what_is_missing_is_named_with_its_source(make, folders, bert, tmp_path):
    with pytest.raises(
        NotFoundError, match=r"nowhere does not exist: RadGraph's weights are .*hf download StanfordAIMI/RRG_scorers "
    ):
        make(tmp_path / "nowhere")
    with pytest.raises(NotFoundError, match=r"config\.json is not in"):
        make(tmp_path)
    with pytest.raises(NotFoundError, match=r"the folder of RadGraph's encoder, does not exist: .*hf download"):
        make(encoder=tmp_path / "encoder")


def copied(folders, tmp_path, **files):
    """The files of a checkpoint with other content."""
    (tmp_path / "vocabulary").mkdir()
    for path in folders["radgraph-xl"].rglob("*.*"):
        if path.is_file():
            content = files.get(path.name.replace(".", "_"), path.read_bytes())
            (tmp_path / path.relative_to(folders["radgraph-xl"])).write_bytes(content)
    return tmp_path


def test_other_checkpoints_are_refused(make, folders, tmp_path, bert):
    config = json.loads((folders["radgraph-xl"] / "config.json").read_text())
    config["model"]["modules"]["coref"]["coref_prop"] = 1
    changed = copied(folders, tmp_path, config_json=json.dumps(config).encode())
    with pytest.raises(UserError, match="propagates coreferences"):
        make(changed)
    (changed / "config.json").write_text("{}")
    with pytest.raises(UserError, match="is not a RadGraph checkpoint: KeyError: 'model'"):
        make(changed)
    (changed / "config.json").write_bytes((folders["radgraph-xl"] / "config.json").read_bytes())
    state = torch.load(changed / "weights.th")
    dropped = {key: value for key, value in state.items() if "_relation_scorers" not in key}
    torch.save(dropped, changed / "weights.th")
    with pytest.raises(UserError, match=r"has no tensor _relation\._relation_scorers\.radgraph-xl__relation_labels"):
        make(changed)
    key = next(key for key in state if key.endswith("layer.1.output.dense.bias"))
    torch.save({name: value for name, value in state.items() if name != key}, changed / "weights.th")
    with pytest.raises(UserError, match=r"does not fit the weights, which differ in encoder\.layer\.1\.output"):
        make(changed)
    buffer = io.BytesIO()
    torch.save({"code": torch.nn.Linear(1, 1)}, buffer)
    (changed / "weights.th").write_bytes(buffer.getvalue())
    with pytest.raises(UserError, match="is not a RadGraph checkpoint: UnpicklingError"):
        make(changed)
    (changed / "vocabulary" / "radgraph-xl__relation_labels.txt").write_text("modify\n")
    torch.save(state, changed / "weights.th")
    with pytest.raises(UserError, match="the vocabulary has 1 classes for relation, but the weights 3"):
        make(changed)
    with pytest.raises(UserError, match=r"Expected argument `namespace` to be one of the heads of .* \(radgraph-xl\)"):
        make(namespace="other")
    with pytest.raises(UserError, match="Expected argument `level` to be one of simple, partial, complete, combined"):
        make(level="all")


def test_a_checkpoint_without_heads_or_with_several(make, folders, tmp_path):
    changed = copied(folders, tmp_path)
    (changed / "vocabulary" / "radgraph-xl__relation_labels.txt").rename(changed / "vocabulary" / "b__ner_labels.txt")
    with pytest.raises(UserError, match=r"one of the heads of .* \(none\), but got None\."):
        make(changed)
    for name in ("radgraph-xl", "b"):
        (changed / "vocabulary" / f"{name}__relation_labels.txt").write_text("modify\n")
    with pytest.raises(UserError, match=r"one of the heads of .* \(b, radgraph-xl\), but got several: set it\."):
        make(changed)
    (tmp_path / "x.tar.gz").write_bytes(b"\x1f\x8b damaged")
    with pytest.raises(UserError, match=r"x\.tar\.gz cannot be read as an archive: "):
        make(tmp_path / "x.tar.gz")


def test_words_of_what_earlier_steps_have_escaped():
    text = "a\\nb\\fc\\u2122d\ne \\\"f x). y%. z.' w%, v%)"
    assert " ".join(split_words(text, "radgraph-xl")) == "a b c d e `` f x ) . y % . z . ' w % , v % )"
    assert " ".join(split_words("a/b,c:d.e!f?g(h)", "radgraph")) == "a / b , c : d . e ! f ? g ( h )"
