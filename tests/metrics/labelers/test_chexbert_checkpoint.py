"""Where CheXbert's weights come from, and one clear line for every file that is not theirs."""

import logging

import pytest
import torch
from safetensors.torch import load_file, save_file

from mrg.metrics.labelers.chexbert import CheXbertLabeler
from mrg.metrics.labelers.chexbert_checkpoint import _first, _reason, convert_checkpoint, find_checkpoint
from tests.metrics.labelers.chexbert_lookalike import (
    ODD,
    VOCABULARY,
    WORDS,
    prefixed,
    published,
    random_weights,
)

TEXTS = [*ODD, *(f"mild {word} no {word}" for word in WORDS)]


def fails(make, message, error=ValueError, **arguments):
    with pytest.raises(error, match=message) as caught:
        make(**arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_files_of_every_form_give_the_same_labels(make, folder, tmp_path, monkeypatch):
    target = convert_checkpoint(folder, tmp_path)
    assert target == tmp_path / "chexbert.safetensors"
    assert [path.name for path in tmp_path.iterdir()] == ["chexbert.safetensors"]
    assert not any("pooler" in name or "position_ids" in name for name in load_file(target))
    assert target.stat().st_size < (folder / "chexbert.pth").stat().st_size
    old, bare = tmp_path / "old.pth", tmp_path / "bare.pth"
    torch.save(published(random_weights()), old, _use_new_zipfile_serialization=False)
    torch.save(random_weights(), bare)
    expected = make()(TEXTS)
    for checkpoint in (target, str(tmp_path), old, bare):
        assert torch.equal(make(checkpoint)(TEXTS), expected)
    monkeypatch.chdir(folder)
    assert torch.equal(make("chexbert.pth", ".")(TEXTS), expected)


def test_a_folder_prefers_the_converted_file(folder, tmp_path):
    (tmp_path / "chexbert.pth").touch()
    assert find_checkpoint(tmp_path).name == "chexbert.pth"
    convert_checkpoint(folder, tmp_path / "chexbert.safetensors")
    assert find_checkpoint(tmp_path).name == "chexbert.safetensors"


def test_a_failed_conversion_leaves_what_was_there(folder, tmp_path, monkeypatch):
    target = tmp_path / "chexbert.safetensors"
    target.write_text("old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        convert_checkpoint(folder, target)
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
    assert target.read_text() == "old"


@pytest.mark.parametrize("cached", [True, False])
def test_the_hub_is_asked_only_for_what_its_cache_lacks(folder, monkeypatch, cached):
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked = []

    def download(repository, file, local_files_only=False):
        asked.append((repository, file, local_files_only))
        if local_files_only and not cached:
            raise LocalEntryNotFoundError("not in the cache")
        return str(folder / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    CheXbertLabeler(device="cpu")(["no effusion"])
    wanted = [("StanfordAIMI/RRG_scorers", "chexbert.pth"), ("bert-base-uncased", "vocab.txt")]
    assert asked == [(*pair, local) for pair in wanted for local in ([True] if cached else [True, False])]


def test_the_hubs_own_lines_are_kept_from_the_terminal(monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    logger, heard = logging.getLogger("huggingface_hub.utils._http"), []

    def download(*args, local_files_only=False):
        if not local_files_only:
            heard.append((logger.isEnabledFor(logging.WARNING), logger.isEnabledFor(logging.ERROR)))
        raise LocalEntryNotFoundError("not in the cache")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(FileNotFoundError, match="could not be fetched"):
        CheXbertLabeler()
    assert heard == [(False, True)]
    assert logger.isEnabledFor(logging.WARNING)


def test_missing_weights_say_how_to_get_them_and_what_works_without(make, tmp_path, monkeypatch):
    def download(*args, **kwargs):
        raise OSError("Name or service not known\nand much more")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    for checkpoint, reason in (
        (tmp_path / "no.pth", rf"{tmp_path}/no.pth does not exist"),
        ("no.pth", "/no.pth does not exist"),
        ("models/chexbert.pth", "/models/chexbert.pth does not exist"),
        (tmp_path, f"Neither chexbert.safetensors nor chexbert.pth is in {tmp_path}"),
        ("StanfordAIMI/RRG_scorers", r"could not be fetched .* \(OSError: Name or service not known\)"),
    ):
        message = fails(make, reason, FileNotFoundError, checkpoint=checkpoint)
        for part in ("StanfordAIMI/RRG_scorers", "chexbert.pth", "non-commercial", "academic licence", "RulesLabeler"):
            assert part in message


def test_a_missing_or_wrong_tokenizer_is_named(make, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *a, **k: (_ for _ in ()).throw(OSError("offline")))
    fails(make, "vocab.txt could not be fetched .* bert-base-uncased", FileNotFoundError, tokenizer="bert-base-uncased")
    fails(make, "Neither vocab.txt nor tokenizer.json is in", FileNotFoundError, tokenizer=tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY[:30]) + "\n")
    fails(make, f"has 30 tokens, but the CheXbert checkpoint has {len(VOCABULARY)}", tokenizer=tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join([*VOCABULARY, VOCABULARY[-1]]) + "\n")  # a number beyond the last row
    fails(make, "repeats or skips a number", tokenizer=tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    fails(make, "could not be read", tokenizer=tmp_path)


def test_damaged_files(make, folder, tmp_path):
    whole = (folder / "chexbert.pth").read_bytes()
    for content in (b"", b"<html>Not found</html>", whole[:1000], whole[: len(whole) // 2]):
        (tmp_path / "chexbert.pth").write_bytes(content)
        message = fails(make, f"{len(content):,} bytes.* is not a file that PyTorch can read", checkpoint=tmp_path)
        assert "weights_only" not in message
    (tmp_path / "chexbert.pth").unlink()
    whole = convert_checkpoint(folder, tmp_path).read_bytes()
    for content in (b"", b"<html>", whole[:-1000]):
        (tmp_path / "chexbert.safetensors").write_bytes(content)
        fails(make, "cannot be read as safetensors", checkpoint=tmp_path)


class RunsCode:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_code_in_a_file_is_not_run(make, tmp_path):
    for new_format in (True, False):
        path, trace = tmp_path / "chexbert.pth", tmp_path / "trace"
        torch.save({"model_state_dict": RunsCode(str(trace))}, path, _use_new_zipfile_serialization=new_format)
        fails(make, "Python objects besides tensors and is not loaded", checkpoint=path)
        assert not trace.exists()


def without(state, part):
    return {name: tensor for name, tensor in state.items() if part not in name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {}, "another checkpoint, not CheXbert's: it lacks bert.embeddings.* it holds no tensor"),
        (lambda s: {"visual.weight": torch.zeros(2)}, r"another checkpoint.* found visual.weight\."),
        (lambda s: without(s, "linear_heads"), "another checkpoint.* it lacks linear_heads.0.weight; found bert"),
        (lambda s: without(s, "linear_heads.13"), "lacks linear_heads.13.weight, linear_heads.13.bias"),
        (lambda s: without(s, "layer.1."), r"lacks bert.encoder.layer.1.attention.self.query.weight, .* and 13 more"),
        (lambda s: without(s, "position_embeddings"), "lacks bert.embeddings.position_embeddings.weight"),
        (lambda s: {**s, "linear_heads.14.weight": torch.zeros(4, 128)}, "holds linear_heads.14.weight besides"),
        (
            lambda s: {**s, "linear_heads.13.weight": torch.zeros(4, 128)},
            r"linear_heads.13.weight is of shape \(4, 128\) instead of \(2, 128\)",
        ),
        (
            lambda s: {n: t[..., :96] if t.shape[-1] == 128 and "linear_heads.0" in n else t for n, t in s.items()},
            r"linear_heads.0.weight is of shape \(4, 96\) instead of \(4, 128\)",
        ),
        (lambda s: {**s, "bert.embeddings.word_embeddings.weight": "text"}, "is not a tensor, but str"),
    ],
)
def test_wrong_checkpoints(make, tmp_path, change, message):
    state = change(random_weights())
    torch.save({"model_state_dict": prefixed(state)}, tmp_path / "chexbert.pth")
    fails(make, message, checkpoint=tmp_path)
    if all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "chexbert.safetensors")
        fails(make, message, checkpoint=tmp_path)


def small_file(state, path):
    torch.save({"model_state_dict": prefixed(state)}, path)
    assert path.stat().st_size < 3_000_000
    return path


@pytest.mark.parametrize("index", ["999999", "9" * 5000, "\u0663", "-1", "01"])
def test_a_file_cannot_ask_for_layers_that_it_does_not_hold(make, tmp_path, index):
    state = random_weights()
    state[f"bert.encoder.layer.{index}.attention.self.query.weight"] = torch.zeros(1)
    fails(make, "is not a CheXbert checkpoint", checkpoint=small_file(state, tmp_path / "a.pth"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_file_cannot_ask_for_memory_that_it_does_not_hold(make, tmp_path, dtype):
    name = "bert.embeddings.word_embeddings.weight"
    state = random_weights() | {name: torch.zeros(1, 128, dtype=dtype).expand(100_000_000, 128)}
    path = small_file(state, tmp_path / "a.pth")
    fails(make, r"word_embeddings.weight is of shape \(100000000, 128\), but the file holds", checkpoint=path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("bert.embeddings.position_embeddings.weight", torch.tensor(1.0), r"is of shape \(\) instead of"),
        ("bert.embeddings.position_embeddings.weight", torch.zeros(0, 128), "position embeddings has 0 rows"),
        ("bert.embeddings.token_type_embeddings.weight", torch.zeros(0, 128), "token type embeddings has 0 rows"),
        ("bert.embeddings.word_embeddings.weight", torch.zeros(5, 0), "hidden size 0"),
        ("bert.embeddings.LayerNorm.bias", torch.zeros(128, dtype=torch.int64), "torch.int64, not of floating point"),
        ("bert.embeddings.LayerNorm.bias", torch.zeros(128, dtype=torch.complex64), "not of floating point"),
        ("bert.embeddings.LayerNorm.bias", torch.zeros(128).to_sparse(), "layout torch.sparse_coo"),
    ],
)
def test_odd_tensors_are_one_line(make, tmp_path, name, value, message):
    fails(make, message, checkpoint=small_file(random_weights() | {name: value}, tmp_path / "a.pth"))


def test_other_contents_of_a_checkpoint(make, tmp_path):
    for content in (torch.zeros(3), [1, 2], {"model_state_dict": [1]}):
        torch.save(content, tmp_path / "chexbert.pth")
        fails(make, "is not a CheXbert checkpoint: it should hold a dictionary of tensors", checkpoint=tmp_path)


def test_conversion_needs_a_target_that_can_be_written(folder, tmp_path):
    with pytest.raises(ValueError, match=r"end with \.safetensors"):
        convert_checkpoint(folder, tmp_path / "weights.bin")
    with pytest.raises(FileNotFoundError, match="for `target` does not exist"):
        convert_checkpoint(folder, tmp_path / "no" / "chexbert.safetensors")


def test_views_into_one_storage_are_converted(tmp_path):
    """As in a checkpoint of tied or sliced weights, which safetensors refuses."""
    state = random_weights()
    both = torch.cat([state["linear_heads.0.weight"], state["linear_heads.1.weight"]]).T.contiguous().T
    state |= {"linear_heads.0.weight": both[:4], "linear_heads.1.weight": both[4:]}
    torch.save({"model_state_dict": state}, tmp_path / "tied.pth")
    written = convert_checkpoint(tmp_path / "tied.pth", tmp_path)
    found = load_file(written)
    assert all(torch.equal(found[name], value) for name, value in state.items() if name in found)
    assert "linear_heads.1.weight" in found


def test_at_most_three_names_are_listed():
    assert (_first(["a"]), _first(["a", "b", "c"]), _first(list("abcd"))) == ("a", "a, b, c", "a, b, c and 1 more")


def test_a_reason_is_the_first_sentence_or_the_class_alone():
    assert _reason(ValueError("One. Two")) == "ValueError: One"
    assert _reason(ValueError()) == "ValueError"
