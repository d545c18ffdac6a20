"""IU X-Ray as published by Open-I: one XML file per report, packed in `NLMCXR_reports.tgz` or unpacked.

    <eCitation>
      <uId id="CXR12"/>
      ... <AbstractText Label="FINDINGS">...</AbstractText>   and COMPARISON, INDICATION, IMPRESSION; each may be empty
      <MeSH><major>normal</major></MeSH>
      <parentImage id="CXR12_IM-0001-3001"/>                  any number of images, without extension

Source: Demner-Fushman et al., JAMIA 2016; https://openi.nlm.nih.gov/faq#collection. The archive is read in one pass
without unpacking it to disk. DTDs and entities are refused (defusedxml), because no report needs them.
"""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from mrg.datamodules.errors import DataError, DataNotFoundError, first_names
from mrg.datamodules.iu.record import IURecord, make_record
from mrg.log import log

OPENI_SOURCE = "https://openi.nlm.nih.gov/faq#collection"
NUM_REPORTS = 3955

_SECTIONS = ("FINDINGS", "IMPRESSION", "INDICATION")
_MAX_BYTES = 1_000_000  # the largest report of the collection has 9 kB
_MAX_UNPACKED = 200_000_000  # the collection has 15 MB
_MAX_MEMBERS = 50_000
_MAX_SECTIONS = 100
_REMEDY = f"copy it again (published at {OPENI_SOURCE})"


def read_openi(source: Path) -> list[IURecord]:
    """Read all reports in the order of their numbers.

    Args:
        source: `NLMCXR_reports.tgz` or another tar archive of the XML files, or a folder with them at any depth.

    Raises:
        DataNotFoundError: If `source` is missing or holds no XML file.
        DataError: If the archive is damaged, or a file is not a report of the collection.
    """
    records: dict[str, IURecord] = {}
    joined: list[str] = []
    for where, content in _read_folder(source) if source.is_dir() else _read_archive(source):
        record = _record(_parse(content, where), where, joined)
        if record.patient in records:
            raise DataError(f"{where}: another file has the same report {record.patient}; keep one of them.")
        records[record.patient] = record
    if not records:
        raise DataNotFoundError(
            f"{source} holds no XML file; set `data.init_args.reports` to NLMCXR_reports.tgz or to the folder that it "
            f"was unpacked to (published at {OPENI_SOURCE})."
        )
    if joined:
        log.warning(
            f"{source}: {len(joined)} reports have a section twice, whose texts are joined: {first_names(joined)}."
        )
    if len(records) != NUM_REPORTS:
        log.warning(f"{source} holds {len(records)} reports, but the collection has {NUM_REPORTS}.")
    return sorted(records.values(), key=lambda record: int(record.patient.removeprefix("CXR")))


def _read_folder(folder: Path) -> Iterator[tuple[str, bytes]]:
    for file in sorted(folder.rglob("*.[xX][mM][lL]")):
        if not file.name.startswith("._") and file.is_file():
            where = f"File {file}"
            _check_size(file.stat().st_size, where)
            yield where, file.read_bytes()


def _read_archive(archive: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with archive.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            stream = _Bounded(gzip.GzipFile(fileobj=file) if packed else file, f"File {archive}")
            for member, members in _xml_members(stream):
                where = f"File {archive}, member {member.name}"
                content = members.extractfile(member) if member.isfile() else None
                if content is None:
                    raise DataError(f"{where}: expected a file, but got a link or folder; {_REMEDY}.")
                _check_size(member.size, where)
                yield where, content.read()
            while stream.read(_MAX_BYTES):  # up to the checksum, which follows the end of the tar archive
                pass
    except FileNotFoundError:
        raise DataNotFoundError(f"File {archive} does not exist; {_REMEDY}.") from None
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise DataError(f"File {archive} is truncated or not a tar archive ({error}); {_REMEDY}.") from None


class _Bounded(io.RawIOBase):
    """A stream that reads little at once and not without end: a small archive can hold names and files of gigabytes.

    Args:
        stream: Stream of the unpacked archive.
        where: Its description, for the message.
    """

    def __init__(self, stream: IO[bytes] | gzip.GzipFile, where: str) -> None:
        self.stream, self.where = stream, where

    def read(self, size: int = -1) -> bytes:
        """Read bytes."""
        place = self.stream.tell()
        if size > _MAX_BYTES:
            raise DataError(
                f"{self.where}: has a name or header of {size} bytes at byte {place}, but at most {_MAX_BYTES} are "
                f"read; {_REMEDY}."
            )
        self._check(place)
        return self.stream.read(min(size, _MAX_BYTES) if size >= 0 else _MAX_BYTES)

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        """Skip to a place; what is between is unpacked."""
        assert whence == io.SEEK_SET  # as tarfile does
        self._check(place)
        return self.stream.seek(place)

    def tell(self) -> int:
        """Number of bytes so far."""
        return self.stream.tell()

    def _check(self, place: int) -> None:
        if place > _MAX_UNPACKED:
            raise DataError(
                f"{self.where}: unpacks to more than {_MAX_UNPACKED} bytes, but the reports of the collection have 15 "
                f"million; {_REMEDY}."
            )


def _xml_members(stream: _Bounded) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    with tarfile.open(fileobj=stream, mode="r:") as members:
        for number, member in enumerate(members, 1):
            if number > _MAX_MEMBERS:
                raise DataError(f"{stream.where}: holds more than {_MAX_MEMBERS} files and folders; {_REMEDY}.")
            name = PurePosixPath(member.name)
            # macOS adds a file `._1.xml` with other content for each one.
            if name.suffix.lower() == ".xml" and not name.name.startswith("._"):
                yield member, members


def _check_size(size: int, where: str) -> None:
    if size > _MAX_BYTES:
        raise DataError(f"{where}: has {size} bytes, but a report has at most {_MAX_BYTES}; remove it, or {_REMEDY}.")


def _parse(content: bytes, where: str) -> Element:
    try:
        root: Element = fromstring(content, forbid_dtd=True)
    except DefusedXmlException as error:
        kind = "a DTD" if "DTD" in type(error).__name__ else "entities"
        raise DataError(f"{where}: declares {kind}, which no report of the collection does; {_REMEDY}.") from None
    except (ParseError, ValueError, LookupError) as error:
        finding = f"is not well-formed XML ({error})"
        try:
            content.decode("utf-8")
        except UnicodeDecodeError as wrong:
            finding = f"is not UTF-8 text (at byte {wrong.start})"
        raise DataError(f"{where}: {finding}; {_REMEDY}.") from None
    return root


def _record(root: Element, where: str, joined: list[str]) -> IURecord:
    """The record of a report; one with a section that occurs twice is added to `joined`."""
    identity = root.find("uId")
    patient = "" if identity is None else identity.get("id", "")
    if root.tag != "eCitation" or not re.fullmatch(r"CXR[0-9]{1,9}", patient):
        raise DataError(
            f'{where}: expected <eCitation> with <uId id="CXR…"/>, but got <{root.tag[:40]}> with id {patient[:40]!r}; '
            f"remove the file or {_REMEDY}."
        )
    texts: dict[str, str] = {}
    elements = list(root.iter("AbstractText"))
    if len(elements) > _MAX_SECTIONS:
        raise DataError(f"{where}: has {len(elements)} sections, but a report has four; {_REMEDY}.")
    for element in elements:
        name, text = element.get("Label", ""), "".join(element.itertext())
        if name in texts:
            joined.append(patient)
            text = " ".join(filter(str.strip, (texts[name], text)))
        texts[name] = text
    absent = [name for name in _SECTIONS if name not in texts]
    images = [element.get("id", "") for element in root.iter("parentImage")]
    if absent or "" in images:
        what = f"<AbstractText> with Label {', '.join(absent)}" if absent else "id in a <parentImage>"
        raise DataError(f"{where}: has no {what}; {_REMEDY}.")
    return make_record(
        patient,
        list(dict.fromkeys(images)),
        {name.lower(): texts[name] for name in _SECTIONS},
        [element.text or "" for element in root.iterfind("MeSH/major")],
    )
