"""Parsers of data sets: tables, annotations, archives, images, and what is cached of them."""

import gzip
import io
import json
import tarfile
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from mrg.datamodules.images import cache
from mrg.datamodules.images.read import read_image
from mrg.datamodules.iu.kaggle import read_kaggle
from mrg.datamodules.iu.openi import read_openi
from mrg.datamodules.mimic import index
from mrg.datamodules.mimic.tables import ImageList
from mrg.datamodules.r2gen import read_items
from mrg.datamodules.rexrank import read_entries
from mrg.metrics.predictions import read_predictions
from mrg.metrics.rows import read_rows
from tests.fuzzing.inputs import FOLDER, VALUES, Target, damaged, objects, ours, written
from tests.iu_collection import COLLECTION, write_xml

REPORTS = b"uid,MeSH,findings,impression,indication\n1,normal,Clear.,Normal.,Cough\n2,a;b,Large heart.,,\n"

PROJECTIONS = b"uid,filename,projection\n1,1_IM-0001-4001.dcm.png,Frontal\n2,2_IM-2.dcm.png,Lateral\n"

TABLE = b'id,prediction,target\n1,Clear.,No edema.\n2,"a, b",nan\n'

GZIP = b"\x1f\x8b"

SPLIT = b"dicom_id,study_id,subject_id,split\na,51,11,train\nb,51,11,train\nc,52,11,train\nd,53,12,test\n"

METADATA = (
    b"dicom_id,subject_id,study_id,ViewPosition,StudyDate,StudyTime\na,11,51,PA,21800506,94005.5\n"
    b"b,11,51,LATERAL,21800506,94006\nc,11,52,,,\nd,12,53,AP,21810506,1\n"
)

ITEM = {"id": "a", "report": "Clear.", "image_path": ["a.png"]}

ENTRY = {"image_path": ["a.png"], "frontal_lateral": ["PA"], "context": "Indication: x", "section_findings": "Clear."}

PIXELS = np.arange(72, dtype=np.uint8).reshape(6, 4, 3)

FORMS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "DDS", "TGA", "SGI", "PCX", "ICO")

INDEXED = [{"id": "51", "findings": "Clear."}, {"id": "52", "findings": "Edema."}]

MADE_FROM = {"split table": "a", "reports": "b"}


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


def check_index(content: bytes) -> None:
    """What is damaged is made again."""
    shard = index._open(written("shard.arrow", content), "made from", lambda rows: False)
    assert shard is None or shard.to_list() == INDEXED
    (FOLDER / "index").mkdir(exist_ok=True)
    written("index/index.json", content)
    assert index._prepare(FOLDER / "index", "MIMIC-CXR", MADE_FROM, lambda: 3) == 3


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


def _dicom() -> bytes:
    from tests.dicom_files import RAMP, write

    return write(FOLDER / "a.dcm", RAMP, WindowCenter=1000, WindowWidth=101).read_bytes()


def _cached() -> bytes:
    cache._save(FOLDER / "cache" / "a", PIXELS)
    return (FOLDER / "cache" / "a").read_bytes()


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


def data_targets() -> list[Target]:
    """Their properties."""
    study = objects(**ITEM) | VALUES
    annotation = st.fixed_dictionaries({split: st.lists(study, max_size=3) for split in ("train", "val", "test")})
    return [
        Target("CSV", damaged(TABLE), check_csv),
        Target("tables of Kaggle", damaged(REPORTS) | damaged(PROJECTIONS), check_kaggle),
        Target("tables of MIMIC-CXR", _tables(), check_mimic, 300),
        Target("XML of Open-I", damaged(write_xml(COLLECTION[0]).encode()), check_xml),
        Target("archives of Open-I", damaged(_archive()), check_archive),
        Target("annotations of R2Gen", annotation | VALUES, check_annotation),
        Target("files of ReXrank", st.dictionaries(st.text(max_size=3), objects(**ENTRY) | VALUES), check_rexrank),
        Target("images", st.one_of(*(damaged(_image(form)) for form in FORMS)), check_image),
        Target("DICOM", damaged(_dicom()), check_image),
        Target("cached pixels", damaged(_cached()), check_cache),
        Target("index of MIMIC-CXR", st.deferred(_shard), check_index, 300),
    ]
