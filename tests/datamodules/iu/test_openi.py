import gzip
import logging
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from mrg.datamodules.errors import DataError, DataNotFoundError
from mrg.datamodules.iu.openi import NUM_REPORTS, read_openi
from mrg.datamodules.iu.record import IURecord
from tests.iu_collection import COLLECTION, Report, write_archive, write_openi, write_xml
from tests.refusals import refused

ONE = COLLECTION[0]
HEAD = '<?xml version="1.0" encoding="utf-8"?>\n'


def _refused(source: Path, error: type[Exception] = DataError) -> str:
    return refused(lambda: read_openi(source), error, source)


def _archive(tmp_path: Path, *contents: bytes) -> Path:
    file = tmp_path / "NLMCXR_reports.tgz"
    write_archive(file, {f"{index}.xml": content for index, content in enumerate(contents, start=1)})
    return file


def test_a_record_holds_what_the_file_says(tmp_path: Path) -> None:
    write_openi(tmp_path)
    records = {record.patient: record for record in read_openi(tmp_path / "NLMCXR_reports.tgz")}
    assert records["CXR1"] == IURecord(
        id="CXR1_1_IM-0001",
        patient="CXR1",
        images=("CXR1_1_IM-0001-3001", "CXR1_1_IM-0001-4001"),
        findings="The lungs are clear.",
        impression="No acute disease.",
        indication="Cough < 2 weeks & fever",
        mesh=("normal",),
    )
    assert (records["CXR5"].id, records["CXR5"].images) == ("CXR5", ())
    assert (records["CXR4"].findings, records["CXR7"].impression) == ("", "")
    assert records["CXR6"].id == "CXR6_IM-0060-1001"  # the last number alone goes
    assert records["CXR7"].mesh == ("a", "b/c")
    assert [record.normal for record in (records["CXR1"], records["CXR7"])] == [True, False]


def test_the_order_is_that_of_the_numbers(tmp_path: Path) -> None:
    write_openi(tmp_path)
    records = read_openi(tmp_path / "NLMCXR_reports.tgz")
    assert [record.patient for record in records] == [f"CXR{report.uid}" for report in COLLECTION]


def test_a_folder_at_any_depth_gives_the_same_and_the_archive_stays_packed(tmp_path: Path) -> None:
    write_openi(tmp_path)
    archive = tmp_path / "NLMCXR_reports.tgz"
    before = sorted(tmp_path.rglob("*"))
    packed = read_openi(archive)
    assert sorted(tmp_path.rglob("*")) == before
    with tarfile.open(archive) as members:
        members.extractall(tmp_path / "a" / "b", filter="data")
    (tmp_path / "a" / "b" / "ecgen-radiology" / "._1.xml").write_bytes(b"\0\5\26\7")  # what a Mac leaves
    (tmp_path / "a" / "readme.txt").write_text("no report")
    assert read_openi(tmp_path / "a") == packed


def test_another_number_of_reports_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        read_openi(_archive(tmp_path, write_xml(ONE).encode()))
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'NLMCXR_reports.tgz'} holds 1 reports, but the collection has 3955."
    ]


def test_nothing_there(tmp_path: Path) -> None:
    assert "NLMCXR_reports.tgz does not exist; copy it again (published at https://openi" in _refused(
        tmp_path / "NLMCXR_reports.tgz", DataNotFoundError
    )
    (tmp_path / "empty").mkdir()
    assert "empty holds no XML file; set `data.init_args.reports`" in _refused(tmp_path / "empty", DataNotFoundError)
    assert "holds no XML file" in _refused(_archive(tmp_path), DataNotFoundError)


def test_an_archive_cut_anywhere_is_never_read_as_whole(tmp_path: Path) -> None:
    write_openi(tmp_path)
    file = tmp_path / "NLMCXR_reports.tgz"
    whole = file.read_bytes()
    for cut in [*range(0, len(whole), 40), len(whole) - 1]:
        file.write_bytes(whole[:cut])
        message = _refused(file)
        assert "NLMCXR_reports.tgz is truncated or not a tar archive (" in message
        assert "; copy it again (published at" in message


def test_damaged_bytes_in_an_archive(tmp_path: Path) -> None:
    write_openi(tmp_path)
    file = tmp_path / "NLMCXR_reports.tgz"
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2 : len(damaged) // 2 + 30] = bytes(30)
    file.write_bytes(bytes(damaged))
    _refused(file)
    file.write_bytes(gzip.compress(b"no archive, but long enough to be one" * 40))
    assert "is truncated or not a tar archive" in _refused(file)
    file.write_bytes(b"<html>404</html>")
    assert "is truncated or not a tar archive" in _refused(file)


@pytest.mark.parametrize(
    ("content", "finding"),
    [
        (write_xml(ONE)[:300].encode(), "is not well-formed XML ("),
        (b"", "is not well-formed XML (no element found: line 1, column 0)"),
        (write_xml(ONE).replace("clear", "cl\xe9ar").encode("latin-1"), "is not UTF-8 text (at byte "),
        (write_xml(ONE).replace("utf-8", "utf-99").encode(), "is not well-formed XML ("),
        (write_xml(ONE).replace("utf-8", "big5").encode(), "is not well-formed XML (multi-byte encodings are not"),
        (b"<html><body>404</body></html>", "expected <eCitation> with <uId id=\"CXR…\"/>, but got <html> with id ''"),
        (
            b'<eCitation><uId id="12"/></eCitation>',
            "but got <eCitation> with id '12'; remove the file or copy it again",
        ),
        (
            b'<eCitation><uId id="CXR1"/></eCitation>',
            "has no <AbstractText> with Label FINDINGS, IMPRESSION, INDICATION;",
        ),
        (write_xml(ONE).replace('Label="FINDINGS"', 'Label="FINDING"').encode(), "with Label FINDINGS; copy it again"),
        (write_xml(ONE).replace('<parentImage id="', '<parentImage name="').encode(), "has no id in a <parentImage>;"),
        (b" " * 1_000_001, "has 1000001 bytes, but a report has at most 1000000; remove it, or copy it again"),
    ],
)
def test_a_file_that_is_no_report(tmp_path: Path, content: bytes, finding: str) -> None:
    good = write_xml(COLLECTION[1]).encode()
    message = _refused(_archive(tmp_path, good, content))
    assert f"NLMCXR_reports.tgz, member ecgen-radiology/2.xml: {finding}" in message or finding in message
    folder = tmp_path / "xml"
    folder.mkdir()
    (folder / "1.xml").write_bytes(good)
    (folder / "2.xml").write_bytes(content)
    message = _refused(folder)
    assert f"File {folder / '2.xml'}: " in message
    assert finding in message


BILLION_LAUGHS = (
    '<!DOCTYPE x [<!ENTITY a0 "ha">'
    + "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
    + ']>\n<eCitation><uId id="CXR1"/>&a9;</eCitation>'
)


@pytest.mark.parametrize(
    "content",
    [
        BILLION_LAUGHS,
        '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>\n<eCitation>&a;</eCitation>',
        '<!DOCTYPE eCitation SYSTEM "http://127.0.0.1:9/x.dtd">\n<eCitation/>',
    ],
)
def test_entities_and_dtds_are_refused(tmp_path: Path, content: str) -> None:
    message = _refused(_archive(tmp_path, (HEAD + content).encode()))
    assert "member ecgen-radiology/1.xml: declares a DTD, which no report of the collection does; copy it" in message


def test_links_in_an_archive_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "NLMCXR_reports.tgz"
    with tarfile.open(file, "w:gz") as archive:
        link = tarfile.TarInfo("ecgen-radiology/1.xml")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert "member ecgen-radiology/1.xml: expected a file, but got a link or folder" in _refused(file)


def test_the_same_report_twice(tmp_path: Path) -> None:
    content = write_xml(ONE).encode()
    message = _refused(_archive(tmp_path, content, content))
    assert "member ecgen-radiology/2.xml: another file has the same report CXR1; keep one of them." in message


def test_text_beyond_ascii_and_within_elements(tmp_path: Path) -> None:
    report = Report(3, {}, findings="Größe 1,5 cm; Ödem.")
    content = write_xml(report).replace("Ödem", "<b>Ödem</b>").encode()
    assert read_openi(_archive(tmp_path, content))[0].findings == "Größe 1,5 cm; Ödem."


def test_real_reports(iu_xml: list[IURecord]) -> None:
    assert len(iu_xml) == NUM_REPORTS == 3955
    assert Counter(len(record.images) for record in iu_xml) == {0: 104, 1: 446, 2: 3208, 3: 181, 4: 15, 5: 1}
    assert sum(not record.findings for record in iu_xml) == 530
    assert sum(not record.impression for record in iu_xml) == 34
    assert sum(not record.indication for record in iu_xml) == 90
    assert sum(bool(record.findings) and len(record.images) >= 2 for record in iu_xml) == 2955
    assert sum(record.normal for record in iu_xml) == 1391
    assert sum(record.normal for record in iu_xml if record.images) == 1379
    assert len({record.id for record in iu_xml}) == 3955


def test_a_section_that_occurs_twice_is_joined_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = write_xml(ONE)
    more = '<AbstractText Label="FINDINGS">No effusion.</AbstractText></Abstract>'
    with caplog.at_level(logging.WARNING):
        (record,) = read_openi(_archive(tmp_path, text.replace("</Abstract>", more).encode()))
    assert record.findings == "The lungs are clear. No effusion."
    assert "1 reports have a section twice, whose texts are joined: CXR1." in caplog.records[0].getMessage()


def _header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size, entry.type = size, kind
    return entry.tobuf(tarfile.GNU_FORMAT)


def _packed(tmp_path: Path, *parts: bytes, zeros: int = 0) -> Path:
    """An archive of these bytes, then zeros."""
    file = tmp_path / "bomb.tgz"
    with gzip.open(file, "wb", compresslevel=1) as out:
        for part in parts:
            out.write(part)
        for _ in range(zeros // 2**20):
            out.write(bytes(2**20))
    return file


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_name_or_header_of_gigabytes_is_not_read(tmp_path: Path, kind: bytes) -> None:
    archive = _packed(tmp_path, _header("././@LongLink", 3 * 2**30, kind), zeros=2**22)
    assert "has a name or header of 3221225472 bytes at byte 512, but at most 1000000 are read" in _refused(archive)


def test_a_member_of_gigabytes_is_not_unpacked(tmp_path: Path) -> None:
    archive = _packed(tmp_path, _header("images.bin", 4 * 2**30), zeros=2**22)
    assert "unpacks to more than 200000000 bytes" in _refused(archive)
    archive = _packed(tmp_path, _header("1.xml", 4 * 2**30), zeros=2**22)
    assert "member 1.xml: has 4294967296 bytes, but a report has at most 1000000" in _refused(archive)


def test_zeros_after_the_archive_are_not_read_without_end(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("mrg.datamodules.iu.openi._MAX_UNPACKED", 8_000_000)
    assert "unpacks to more than 8000000 bytes" in _refused(_packed(tmp_path, bytes(1024), zeros=2**24))


def test_an_archive_of_many_members_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("mrg.datamodules.iu.openi._MAX_MEMBERS", 100)
    archive = _packed(tmp_path, *(_header(f"folder{n}", 0) for n in range(101)), bytes(1024))
    assert "holds more than 100 files and folders" in _refused(archive)


@pytest.mark.parametrize("name", ["CXR" + "9" * 5000, "CXR" + "\u0661" * 3, "CXR-1", "CXR1 "])
def test_an_id_is_a_number_of_few_digits(tmp_path: Path, name: str) -> None:
    content = write_xml(ONE).replace(f'id="CXR{ONE.uid}"', f'id="{name}"').encode()
    message = _refused(_archive(tmp_path, content))
    assert "expected <eCitation> with <uId" in message
    assert len(message) < 500


def test_thousands_of_sections_are_refused(tmp_path: Path) -> None:
    many = '<AbstractText Label="FINDINGS">a' * 5000 + "</AbstractText>" * 5000
    content = f'<eCitation><uId id="CXR1"/>{many}</eCitation>'.encode()
    assert "has 5000 sections, but a report has four" in _refused(_archive(tmp_path, content))
    nested = "<a>" * 20_000 + "</a>" * 20_000
    assert "has no <AbstractText>" in _refused(
        _archive(tmp_path, f'<eCitation><uId id="CXR1"/>{nested}</eCitation>'.encode())
    )
