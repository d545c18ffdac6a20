"""RadGraph's weights: the archive of a DyGIE++ model (Wadden et al., 2019) as AllenNLP wrote it, and its encoder.

The archive, such as radgraph-xl.tar.gz, holds config.json, vocabulary/ and weights.th. The encoder's weights are in
weights.th; its config.json and tokenizer are not, because the original fetches them from the hub by name.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mrg.errors import NotFoundError, UserError, where_raised
from mrg.metrics.learned.encoder import Encoder, build_encoder

REPOSITORY = "StanfordAIMI/RRG_scorers"
REMEDY = (
    f"RadGraph's weights are radgraph.tar.gz, radgraph-xl.tar.gz and modern-radgraph-xl.tar.gz in the Hugging Face "
    f"repository {REPOSITORY} (the code is MIT; see the repository, and for the first one PhysioNet's RadGraph 1.0.0, "
    f"for the license of the weights); download one, `hf download {REPOSITORY} radgraph-xl.tar.gz --local-dir FOLDER`, "
    "and pass its path."
)
_ENCODER = "_embedder.token_embedder_bert._matched_embedder.transformer_model."
_FILES = ("config.json", "weights.th")


class Checkpoint(NamedTuple):
    """Content of an archive.

    Args:
        namespace: Name of the data set that the heads were trained on, such as `radgraph-xl`.
        encoder: The encoder with its weights.
        segment: Largest number of tokens that are encoded together, special ones included.
        max_width: Largest number of words of an entity.
        spans_per_word: Number of candidates for relations per word.
        labels: Names of the classes of entities, the first one "" for none.
        relations: Names of the types of relations.
        weights: Tensors of the heads by name.
    """

    namespace: str
    encoder: Encoder
    segment: int
    max_width: int
    spans_per_word: float
    labels: list[str]
    relations: list[str]
    weights: dict[str, Tensor]


def read_checkpoint(checkpoint: str | Path, encoder: str | Path | None, namespace: str | None = None) -> Checkpoint:
    """Read a .tar.gz archive or the folder with its files.

    Only tensors, JSON and lines of text are read, and nothing is unpacked to disk.

    Args:
        checkpoint: Archive or folder.
        encoder: Folder with the config.json and the tokenizer of the encoder; None if the archive names a folder.
        namespace: Name of the heads, if the checkpoint has several.

    Raises:
        NotFoundError: If a file is missing; the message says how to get it.
        UserError: If a file is damaged, or the checkpoint has parts that are not supported here.
    """
    path = Path(checkpoint).expanduser().absolute()
    files = _read_files(path)
    try:
        config = json.loads(files["config.json"])
        weights = torch.load(io.BytesIO(files["weights.th"]), map_location="cpu", weights_only=True)
        bert = config["model"]["embedder"]["token_embedders"]["bert"]
        modules = config["model"]["modules"]
        coreference = modules.get("coref", {}).get("coref_prop", 0) or config["model"]["loss_weights"].get("coref", 0)
        width, share = int(config["model"]["max_span_width"]), float(modules["relation"]["spans_per_word"])
    except Exception as error:  # torch raises many classes for a damaged file
        raise UserError(f"{path} is not a RadGraph checkpoint: {where_raised(error)}. {REMEDY}") from error
    if coreference:
        raise UserError(f"{path} propagates coreferences, which no published RadGraph does and `mrg` does not support.")
    name = _namespace(path, files, namespace)
    state = {str(key): value.float() for key, value in weights.items() if isinstance(value, Tensor)}
    built = build_encoder(
        bert["model_name"] if encoder is None else encoder, "RadGraph's encoder", _encoder_remedy(bert["model_name"]),
        {key.removeprefix(_ENCODER): value for key, value in state.items() if key.startswith(_ENCODER)},
    )  # fmt: skip
    labels = _lines(files[f"vocabulary/{name}__ner_labels.txt"])
    relations = _lines(files[f"vocabulary/{name}__relation_labels.txt"])
    heads = _heads(path, state, name, len(labels) - 1, len(relations))
    segment = min(int(bert.get("max_length") or built.max_tokens), built.max_tokens)
    return Checkpoint(name, built, segment, width, share, labels, relations, heads)


def _read_files(path: Path) -> dict[str, bytes]:
    """Name -> content of the needed files of a folder or an archive."""
    files: dict[str, bytes] = {}
    if path.is_dir():
        found = [path / name for name in _FILES if (path / name).is_file()] + sorted(path.glob("vocabulary/*.txt"))
        files = {file.relative_to(path).as_posix(): file.read_bytes() for file in found}
    elif path.is_file():
        try:
            with tarfile.open(path, "r:*") as archive:
                for member in archive:
                    name = member.name.removeprefix("./")
                    wanted = name in _FILES or (name.startswith("vocabulary/") and name.endswith(".txt"))
                    if wanted and (content := archive.extractfile(member)) is not None:
                        files[name] = content.read()
        except (tarfile.TarError, OSError, EOFError) as error:
            raise UserError(f"{path} cannot be read as an archive: {where_raised(error)}. {REMEDY}") from error
    else:
        raise NotFoundError(f"{path} does not exist: {REMEDY}")
    missing = [name for name in _FILES if name not in files]
    if missing:
        raise NotFoundError(f"{missing[0]} is not in {path}: {REMEDY}")
    return files


def _namespace(path: Path, files: Mapping[str, bytes], wanted: str | None) -> str:
    end = "__ner_labels.txt"
    names = [name.removeprefix("vocabulary/").removesuffix(end) for name in files if name.endswith(end)]
    names = [name for name in names if f"vocabulary/{name}__relation_labels.txt" in files]
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted not in names:
        listed = ", ".join(sorted(names)) or "none"
        got = "several: set it" if wanted is None and names else repr(wanted)
        raise UserError(f"Expected argument `namespace` to be one of the heads of {path} ({listed}), but got {got}.")
    return wanted


def _encoder_remedy(name: str) -> str:
    return (
        f"RadGraph needs config.json and the tokenizer of {name}; download them, "
        f"`hf download {name} --exclude '*.bin' '*.safetensors' --local-dir FOLDER`, and pass the folder as `encoder`."
    )


def _lines(content: bytes) -> list[str]:
    return content.decode("utf-8").removesuffix("\n").split("\n")


def _heads(
    path: Path, state: Mapping[str, Tensor], name: str, num_labels: int, num_relations: int
) -> dict[str, Tensor]:
    """Tensors of the heads under short names; the last layer of each has the size of its vocabulary."""
    ner, relation = f"{name}__ner_labels", f"{name}__relation_labels"
    places = {
        "ner": (f"_ner._ner_scorers.{ner}.0._module._linear_layers", f"_ner._ner_scorers.{ner}.1._module", num_labels),
        "mention": (
            f"_relation._mention_pruners.{relation}._scorer.0._module._linear_layers",
            f"_relation._mention_pruners.{relation}._scorer.1._module", 1,
        ),
        "relation": (
            f"_relation._relation_feedforwards.{relation}._linear_layers",
            f"_relation._relation_scorers.{relation}", num_relations,
        ),
    }  # fmt: skip
    found: dict[str, Tensor] = {}
    try:
        found["width"] = state["_endpoint_span_extractor._span_width_embedding.weight"]
        for head, (hidden, last, size) in places.items():
            layers = sum(key.startswith(f"{hidden}.") and key.endswith(".weight") for key in state)
            for index, place in enumerate([*(f"{hidden}.{layer}" for layer in range(layers)), last]):
                found |= {f"{head}.{index}.{kind}": state[f"{place}.{kind}"] for kind in ("weight", "bias")}
            rows = len(found[f"{head}.{layers}.weight"])
            if rows != size:
                raise UserError(f"{path}: the vocabulary has {size} classes for {head}, but the weights {rows}.")
    except KeyError as error:
        raise UserError(f"{path} is not a RadGraph checkpoint: it has no tensor {error.args[0]}. {REMEDY}") from error
    return found
