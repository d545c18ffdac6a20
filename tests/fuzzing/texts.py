"""Parsers of texts: completions, reports, labels, JSON and YAML."""

import csv
import io
import json

import yaml
from hypothesis import strategies as st

from mrg.datamodules.iu.record import clean_target
from mrg.datamodules.mimic.sections import RULES, SOURCES, parse_sections
from mrg.files import parse_json, parse_yaml, write_lines
from mrg.metrics import RulesLabeler, parse_completion
from mrg.metrics.predictions import read_predictions
from mrg.metrics.rows import read_rows
from tests.fuzzing.inputs import FOLDER, Target, ours, pieces, written

LABELER = RulesLabeler()

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


def check_yaml(text: str) -> None:
    value = ours(lambda: parse_yaml(text), yaml.YAMLError)
    assert len(repr(value)) < 50_000_000


def text_targets() -> list[Target]:
    """Their properties."""
    row = st.fixed_dictionaries({"prediction": st.text(max_size=8), "target": st.text(max_size=8)})
    safe = row.filter(lambda found: not any(0xD800 <= ord(c) < 0xE000 for text in found.values() for c in text))
    return [
        Target("completions", pieces(*TAGS), check_completion),
        Target("sections of MIMIC-CXR", pieces(*HEADERS), check_sections),
        Target("de-identified targets", pieces(*SENTENCES), check_deidentified),
        Target("labels", st.lists(pieces(*SENTENCES), min_size=1, max_size=3), check_labels),
        Target("JSON and JSON lines", pieces(*JSON), check_json),
        Target("JSON lines and CSV, written and read", st.lists(safe, min_size=1, max_size=3), check_round_trip),
        Target("YAML", pieces(*YAML), check_yaml),
    ]
