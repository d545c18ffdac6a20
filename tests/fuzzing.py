"""Properties of every parser for any input: a value or an error of ours, and what holds for all values.

`tests/test_fuzz.py` checks up to 1,000 inputs of each, `benchmarks/fuzz.py` 100,000.
"""

import csv
import dataclasses
import gzip
import io
import json
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from hypothesis import strategies as st
from PIL import Image

from mrg.datamodules.images import cache
from mrg.datamodules.images.read import read_image
from mrg.datamodules.iu.kaggle import read_kaggle
from mrg.datamodules.iu.openi import read_openi
from mrg.datamodules.iu.record import clean_target
from mrg.datamodules.mimic import index
from mrg.datamodules.mimic.sections import RULES, SOURCES, parse_sections
from mrg.datamodules.mimic.tables import ImageList
from mrg.datamodules.r2gen import read_items
from mrg.datamodules.rexrank import read_entries
from mrg.errors import UserError
from mrg.files import parse_json, parse_yaml, write_lines
from mrg.metrics import RulesLabeler, parse_completion
from mrg.metrics.predictions import read_predictions
from mrg.metrics.rows import read_rows
from mrg.modules.policy import vision_cache
from mrg.pages.run import run_page
from mrg.pages.tested_run import TestedRun
from mrg.pages.training_log import TrainingLog, read_scores
from mrg.run.checkpoint_file import check_ours, check_whole, fingerprint
from mrg.run.part_files import PartFiles
from tests.iu_collection import COLLECTION, write_xml

_HELD = tempfile.TemporaryDirectory(prefix="mrg-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
FOLDER = Path(_HELD.name)
LABELER = RulesLabeler()


@dataclasses.dataclass(frozen=True)
class Target:
    """A parser: inputs, a function that fails where one breaks a property, and the number of inputs in the suite."""

    name: str
    inputs: st.SearchStrategy[Any]
    check: Callable[[Any], None]
    quick: int = 1000


def pieces(*words: str) -> st.SearchStrategy[str]:
    """Texts of words that mean something to a parser, and of any characters between them."""
    part = st.sampled_from(words) | st.text(max_size=4)
    return st.lists(part, max_size=14).map("".join)


def damaged(whole: bytes) -> st.SearchStrategy[bytes]:
    """Copies with some bytes changed, removed, repeated or cut off at the end."""
    place = st.integers(0, len(whole) - 1)
    edit = st.tuples(st.sampled_from(["set", "set", "drop", "copy", "cut"]), place, st.integers(0, 255))

    def apply(edits: list[tuple[str, int, int]]) -> bytes:
        content = bytearray(whole)
        for kind, where, value in edits:
            if kind == "drop":
                del content[where : where + value % 16]
            elif kind == "copy":
                content[where:where] = content[max(0, where - value) : where]
            elif kind == "cut":
                del content[where:]
            elif where < len(content):
                content[where] = value
        return bytes(content)

    return st.lists(edit, max_size=8).map(apply)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["nan", "a.png"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def objects(**fields: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Objects in which each field has a usual value, any other, or is missing."""
    usual = {key: st.just(value) | VALUES for key, value in fields.items()}
    return st.fixed_dictionaries({}, optional=usual)


def ours(read: Callable[[], Any], *errors: type[Exception]) -> Any:
    """The value, or None for an error of one line that a user may read."""
    try:
        return read()
    except (UserError, *errors) as error:
        message = str(error)
    assert message
    assert "\n" not in message or errors
    return None


def written(name: str, content: bytes | str) -> Path:
    file = FOLDER / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return file


def check_completion(text: str) -> None:
    parsed = parse_completion(text)
    assert parsed == parse_completion(f" \n{text}\t")
    assert not any(tag in parsed.report for tag in ("<think>", "</think>", "<report>", "</report>"))
    if parsed.well_formed:
        assert parsed.thinking
        assert parsed.report
        assert parse_completion(f"<think>{parsed.thinking}</think><report>{parsed.report}</report>") == parsed


def check_sections(text: str) -> None:
    found = parse_sections(text)
    assert found.source in SOURCES
    assert set(found.rules) <= set(RULES)
    assert (found.source == "empty") == (not (found.findings or found.impression or found.body))
    if "\r" not in text:
        assert parse_sections(text.replace("\n", "\r\n")) == found


def check_deidentified(text: str) -> None:
    assert clean_target(text) == text
    for how in ("drop_token", "drop_sentence"):
        assert "XXXX" not in clean_target(text, how)  # type: ignore[arg-type]


def check_labels(texts: list[str]) -> None:
    """The row of a report depends on nothing but its words."""
    labels = LABELER(texts)
    assert labels.shape == (len(texts), 14)
    assert set(labels.flatten().tolist()) <= {0, 1, 2, 3}
    assert LABELER(texts[::-1]).tolist() == labels.flip(0).tolist()
    assert [LABELER([text])[0].tolist() for text in texts] == labels.tolist()
    assert LABELER([f"  {text}\n" for text in texts]).tolist() == labels.tolist()


def check_json(text: str) -> None:
    value = ours(lambda: parse_json(text), json.JSONDecodeError)
    json.dumps(value, ensure_ascii=False).encode()
    for name in ("a.json", "a.jsonl"):
        for read in (read_rows, read_predictions):
            ours(lambda read=read, name=name: read(written(name, text)))


def check_round_trip(rows: list[dict[str, str]]) -> None:
    names = ("id", "prediction", "target")
    rows = [{**row, "id": str(number)} for number, row in enumerate(rows)]
    write_lines(FOLDER / "b.jsonl", rows)
    assert read_rows(FOLDER / "b.jsonl") == rows
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, names)
    table.writeheader()
    table.writerows(rows)
    assert read_rows(written("b.csv", text.getvalue())) == rows


def check_csv(content: bytes) -> None:
    rows = ours(lambda: read_rows(written("a.csv", content)))
    assert rows is None or len({tuple(row) for row in rows}) <= 1
    ours(lambda: read_predictions(written("a.csv", content)))
    ours(lambda: read_predictions(written("a.tsv", content)))


def check_kaggle(content: bytes) -> None:
    ours(lambda: read_kaggle(written("indiana_reports.csv", content), None))
    ours(lambda: read_kaggle(written("r.csv", REPORTS), written("p.csv", content)))


def check_mimic(files: tuple[bytes, bytes]) -> None:
    """Each image of the split table is in one study, and no study is in two."""
    names = (f"{name}.csv{'.gz' * content.startswith(GZIP)}" for name, content in zip("ab", files, strict=True))
    tables = [written(name, content) for name, content in zip(names, files, strict=True)]
    listed = ours(lambda: ImageList(*tables))
    found = listed and ours(lambda: [study for shard in range(listed.num_shards) for study in listed.studies(shard)])
    if found is not None:
        assert len({(study["patient"], study["id"]) for study in found}) == len(found) == listed.num_studies
        assert sum(len(study["dicom_ids"]) for study in found) == len(listed._table)


def check_yaml(text: str) -> None:
    value = ours(lambda: parse_yaml(text), yaml.YAMLError)
    assert len(repr(value)) < 50_000_000


def check_xml(content: bytes) -> None:
    folder = FOLDER / "xml"
    folder.mkdir(exist_ok=True)
    (folder / "1.xml").write_bytes(content)
    for record in ours(lambda: read_openi(folder)) or []:
        assert record.patient.startswith("CXR")


def check_archive(content: bytes) -> None:
    ours(lambda: read_openi(written("reports.tar", content)))


def check_annotation(value: Any) -> None:
    items = ours(lambda: read_items(written("annotation.json", json.dumps(value))))
    assert items is None or all(item.image_path for split in items.values() for item in split)


def check_rexrank(value: Any) -> None:
    ours(lambda: read_entries(written("rexrank.json", json.dumps(value))))


def check_image(content: bytes) -> None:
    image = ours(lambda: read_image(written("image", content)))
    assert image is None or image.mode in ("L", "RGB")


def check_cache(content: bytes) -> None:
    pixels = cache._load(written("pixels", content))
    assert pixels is None or (pixels.shape == PIXELS.shape and (pixels == PIXELS).all())


def check_vision_cache(content: bytes) -> None:
    parts = vision_cache._load(written("embedded.pt", content))
    assert parts is None or [part.tolist() for part in parts] == [part.tolist() for part in EMBEDDED]


def check_index(content: bytes) -> None:
    """What is damaged is made again."""
    shard = index._open(written("shard.arrow", content), "made from", lambda rows: False)
    assert shard is None or shard.to_list() == INDEXED
    (FOLDER / "index").mkdir(exist_ok=True)
    written("index/index.json", content)
    assert index._prepare(FOLDER / "index", "MIMIC-CXR", MADE_FROM, lambda: 3) == 3


def check_scores(content: bytes) -> None:
    scores = ours(lambda: read_scores([written("metrics.csv", content)])) or {}
    assert all(step == int(step) for series in scores.values() for step, _ in series)


def check_run(files: tuple[Any, Any]) -> None:
    folder = FOLDER / "run"
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text("name: run\n")
    (folder / "run.json").write_text(json.dumps(files[0]))
    (folder / "samples.jsonl").write_text(json.dumps(files[1]))
    ours(lambda: run_page(TrainingLog.read(folder)))


def check_tested(files: tuple[Any, Any]) -> None:
    folder = FOLDER / "tested"
    folder.mkdir(exist_ok=True)
    (folder / "predictions.jsonl").write_text(json.dumps(files[0]))
    (folder / "results.json").write_text(json.dumps(files[1]))
    run = ours(lambda: TestedRun.read(folder))
    if run is not None:
        assert (run.reports, run.target) == ([files[0]["prediction"]], [files[0]["target"]])
        assert run.format is None or 0 <= run.format <= 1
        ours(run.predictions)


def check_parts(content: bytes) -> None:
    folder = FOLDER / "parts"
    folder.mkdir(exist_ok=True)
    parts = PartFiles(folder, "predictions", IDENTITY)
    parts.file.write_bytes(content)
    for row in ours(parts.resume) or []:
        assert isinstance(row["id"], str)
    parts.write([{"id": "new", "prediction": "Clear."}])
    found = ours(parts.resume)
    assert found is None or found[-1] == {"id": "new", "prediction": "Clear."}


def check_checkpoint(content: bytes) -> None:
    file = written("a.ckpt", content)
    assert isinstance(fingerprint(file), str)
    ours(lambda: check_whole(file))
    ours(lambda: check_ours(file))


def _image(form: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(out, form)
    return out.getvalue()


def _archive() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for report in COLLECTION[:2]:
            content = write_xml(report).encode()
            entry = tarfile.TarInfo(f"{report.uid}.xml")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def _checkpoint() -> bytes:
    out = io.BytesIO()
    torch.save({"identity": "a", "state_dict": {"weight": torch.arange(4.0)}}, out)
    return out.getvalue()


def _dicom() -> bytes:
    from tests.dicom_files import RAMP, write

    return write(FOLDER / "a.dcm", RAMP, WindowCenter=1000, WindowWidth=101).read_bytes()


def _cached() -> bytes:
    cache._save(FOLDER / "cache" / "a", PIXELS)
    return (FOLDER / "cache" / "a").read_bytes()


def _embedded() -> bytes:
    vision_cache._save(FOLDER / "embedded.pt", EMBEDDED)
    return (FOLDER / "embedded.pt").read_bytes()


def _shard() -> st.SearchStrategy[bytes]:
    from datasets import Features, Value

    features = Features({"id": Value("string"), "findings": Value("string")})
    index._write(FOLDER / "shard.arrow", INDEXED, features, "made from")
    index._prepare(FOLDER / "new", "MIMIC-CXR", MADE_FROM, lambda: 3)
    return damaged((FOLDER / "shard.arrow").read_bytes()) | damaged((FOLDER / "new" / "index.json").read_bytes())


def _tables() -> st.SearchStrategy[tuple[bytes, bytes]]:
    """One table or both, compressed or not."""

    def either(table: bytes) -> st.SearchStrategy[bytes]:
        return st.just(table) | damaged(table) | damaged(gzip.compress(table, mtime=0))

    return st.tuples(either(SPLIT), either(METADATA))


def _parts() -> bytes:
    parts = PartFiles(FOLDER, "example", IDENTITY)
    for batch in ("ab", "cd"):
        parts.write([{"id": name, "prediction": f"Report {name}."} for name in batch])
    return parts.file.read_bytes()


PIXELS = np.arange(72, dtype=np.uint8).reshape(6, 4, 3)
IDENTITY = {"policy": "tiny"}
REPORTS = b"uid,MeSH,findings,impression,indication\n1,normal,Clear.,Normal.,Cough\n2,a;b,Large heart.,,\n"
PROJECTIONS = b"uid,filename,projection\n1,1_IM-0001-4001.dcm.png,Frontal\n2,2_IM-2.dcm.png,Lateral\n"
TABLE = b'id,prediction,target\n1,Clear.,No edema.\n2,"a, b",nan\n'
GZIP = b"\x1f\x8b"
SPLIT = b"dicom_id,study_id,subject_id,split\na,51,11,train\nb,51,11,train\nc,52,11,train\nd,53,12,test\n"
METADATA = (
    b"dicom_id,subject_id,study_id,ViewPosition,StudyDate,StudyTime\na,11,51,PA,21800506,94005.5\n"
    b"b,11,51,LATERAL,21800506,94006\nc,11,52,,,\nd,12,53,AP,21810506,1\n"
)
EMBEDDED = [torch.arange(6.0).reshape(2, 3), torch.ones(2, 3)]
INDEXED = [{"id": "51", "findings": "Clear."}, {"id": "52", "findings": "Edema."}]
MADE_FROM = {"split table": "a", "reports": "b"}
METRICS = b"step,epoch,val/mccs\n1,0,0.5\n2,0,nan\n3,1,\n"
STATE = {"state": "running", "seconds": 3.5, "studies": {"train": 8}, "policy": "a", "started": "2026-01-01"}
SAMPLE = {"round": 1, "id": "a", "completion": "x", "reward": 0.5, "truncated": False, "target": "y"}
ROW = {"id": "a", "prediction": "Clear.", "target": "Clear.", "format": True, "labels": [0] * 14}
RESULTS = {
    "protocol": {"baselines": {"constant normal": "Clear."}, "checkpoint": "a.ckpt", "fingerprint": "0"},
    "best_constant": {"num_reports": 1, "total": 1, "labeler": "rules", "margin": 0.5, "rows": {}, "reports": {}},
    "systems": {"model": {"scores": {}}},
}
ITEM = {"id": "a", "report": "Clear.", "image_path": ["a.png"]}
ENTRY = {"image_path": ["a.png"], "frontal_lateral": ["PA"], "context": "Indication: x", "section_findings": "Clear."}
SENTENCES = (
    "No pleural effusion. ", "Small left effusion", "edema", "without ", "cannot exclude ", "Heart size is normal.",
    ", ", " or ", ". ", "\n- ", "pneumothorax ", "no ", "; ", "XXXX", "1.5 cm ", "(", ")", "**", "<br>", "There is ",
)  # fmt: skip
YAML = (
    "a: ", "b: ", "- ", "\n", "  ", "&x ", "*x", "[", "]", "{", "}", ", ", "<<: ", "'", '"', "1e5", "!!set ", "|",
    "# ",
)  # fmt: skip
JSON = (
    '{"', '":', '"', ",", "{", "}", "[", "]", "1", "null", "NaN", "\\ud83d", "\\ude00", "id", "target", "\n",
    "9" * 400,
)  # fmt: skip
TAGS = ("<think>", "</think>", "<report>", "</report>", " ", "\n", "Clear.", "nan")
HEADERS = (
    "FINDINGS:", "IMPRESSION:", "\n", "\n\n", " ", "INDICATION:", "CHEST, TWO VIEWS:", "FINAL REPORT", "___", "_" * 12,
    "WET READ:", "ADDENDUM:", "Clear.", "findings:", ". ", "HEART:", "\r", "10:30", "FINDINGS AND IMPRESSION:",
)  # fmt: skip
FORMS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "DDS", "TGA", "SGI", "PCX", "ICO")


def targets() -> list[Target]:
    """All parsers."""
    row = st.fixed_dictionaries({"prediction": st.text(max_size=8), "target": st.text(max_size=8)})
    safe = row.filter(lambda found: not any(0xD800 <= ord(c) < 0xE000 for text in found.values() for c in text))
    study = objects(**ITEM) | VALUES
    annotation = st.fixed_dictionaries({split: st.lists(study, max_size=3) for split in ("train", "val", "test")})
    return [
        Target("completions", pieces(*TAGS), check_completion),
        Target("sections of MIMIC-CXR", pieces(*HEADERS), check_sections),
        Target("de-identified targets", pieces(*SENTENCES), check_deidentified),
        Target("labels", st.lists(pieces(*SENTENCES), min_size=1, max_size=3), check_labels),
        Target("JSON and JSON lines", pieces(*JSON), check_json),
        Target("JSON lines and CSV, written and read", st.lists(safe, min_size=1, max_size=3), check_round_trip),
        Target("CSV", damaged(TABLE), check_csv),
        Target("tables of Kaggle", damaged(REPORTS) | damaged(PROJECTIONS), check_kaggle),
        Target("tables of MIMIC-CXR", _tables(), check_mimic, 300),
        Target("YAML", pieces(*YAML), check_yaml),
        Target("XML of Open-I", damaged(write_xml(COLLECTION[0]).encode()), check_xml),
        Target("archives of Open-I", damaged(_archive()), check_archive),
        Target("annotations of R2Gen", annotation | VALUES, check_annotation),
        Target("files of ReXrank", st.dictionaries(st.text(max_size=3), objects(**ENTRY) | VALUES), check_rexrank),
        Target("images", st.one_of(*(damaged(_image(form)) for form in FORMS)), check_image),
        Target("DICOM", damaged(_dicom()), check_image),
        Target("cached pixels", damaged(_cached()), check_cache),
        Target("cached embeddings", damaged(_embedded()), check_vision_cache, 300),
        Target("index of MIMIC-CXR", st.deferred(_shard), check_index, 300),
        Target("metrics.csv", damaged(METRICS), check_scores),
        Target("run.json and samples.jsonl", st.tuples(objects(**STATE), objects(**SAMPLE)), check_run),
        Target("predictions.jsonl and results.json", st.tuples(objects(**ROW), objects(**RESULTS)), check_tested, 300),
        Target("part files", damaged(_parts()), check_parts),
        Target("checkpoints", damaged(_checkpoint()), check_checkpoint),
    ]
