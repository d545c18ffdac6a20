"""Invented reports in the forms that MIMIC-CXR has."""

import pytest

from mrg.datamodules.mimic.sections import RULES, SOURCES, parse_sections, section_name
from tests.linear import assert_linear_time

FULL = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___ year old woman with cough  // ? pneumonia

 TECHNIQUE:  Chest PA and lateral.

 COMPARISON:  ___

 FINDINGS:

 The heart is mildly
 enlarged.  There is no effusion.

 A catheter ends at ___ cm.

 IMPRESSION:

 1.  Mild cardiomegaly.
 2.  No pneumonia.
"""


def report(*lines):
    return "\n".join([" " * 33 + "FINAL REPORT", *(f" {line}" for line in lines)]) + "\n"


def test_a_full_report():
    sections = parse_sections(FULL)
    assert sections.findings == "The heart is mildly enlarged. There is no effusion. A catheter ends at ___ cm."
    assert sections.impression == "1. Mild cardiomegaly. 2. No pneumonia."
    assert sections.indication == "___ year old woman with cough // ? pneumonia"
    assert (sections.source, sections.rules, sections.body) == ("findings and impression", (), "")


@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_line_ends_and_a_byte_order_mark_change_nothing(end):
    assert parse_sections("\ufeff" + FULL.replace("\n", end)) == parse_sections(FULL)


@pytest.mark.parametrize(
    ("header", "section", "rule"),
    [
        ("FINDINGS", "findings", ""),
        ("FINDING", "findings", ""),
        ("IMPRESSION", "impression", ""),
        ("CONCLUSION", "impression", ""),
        ("REASON FOR EXAMINATION", "indication", ""),
        ("CLINICAL INFORMATION", "history", ""),
        ("RECOMMENDATION(S)", "recommendations", ""),
        ("REFERENCE EXAM", "comparison", ""),
        ("WETREAD", "wet read", ""),
        ("FINDIGNS", "findings", "misspelled header"),
        ("FINDNGS", "findings", "misspelled header"),
        ("IMPRESION", "impression", "misspelled header"),
        ("MPRESSION", "impression", "misspelled header"),
        ("NDICATION", "indication", "misspelled header"),
        ("COMPARRISON", "comparison", "misspelled header"),
        ("FINDINGS AND IMPRESSION", "impression", "joint"),
        ("FINDINGS/IMPRESSION", "impression", "joint"),
        ("IMPRESSION / FINDINGS", "impression", "joint"),
        ("PRELIMINARY IMPRESSION", "impression", "longer header"),
        ("CHEST, TWO VIEWS", "findings", "view header"),
        ("PORTABLE AP RADIOGRAPH", "findings", "view header"),
        ("PA AND LATERAL VIEWS", "findings", "view header"),
        ("LINES AND TUBES", "", ""),
        ("LUNGS", "", ""),
    ],
)
def test_the_section_that_a_header_names(header, section, rule):
    assert section_name(header) == (section, rule)


def test_a_misspelled_header_counts():
    sections = parse_sections(report("INDICATION: Cough.", "", "FINDIGNS: Clear lungs.", "", "IMPRESION: Normal."))
    assert (sections.findings, sections.impression) == ("Clear lungs.", "Normal.")
    assert sections.rules == ("misspelled header",)
    sections = parse_sections(report("NDICATION: Cough.", "", "FINDINGS: Clear lungs."))
    assert (sections.indication, sections.impression) == ("Cough.", "")


def test_small_letters_at_the_start_of_a_line_after_a_sentence():
    sections = parse_sections(report("Indication: Cough.", "Findings: Clear lungs.", "impression:", "No pneumonia."))
    assert (sections.indication, sections.findings, sections.impression) == ("Cough.", "Clear lungs.", "No pneumonia.")
    assert sections.rules == ("lower case",)


def test_the_word_within_a_sentence_is_no_header():
    lines = ["FINDINGS: The lungs are clear. These FINDINGS: stable, and the following", "findings: none are new."]
    sections = parse_sections(report(*lines, "", "IMPRESSION: No change. Other Findings: none."))
    assert sections.findings == (
        "The lungs are clear. These FINDINGS: stable, and the following findings: none are new."
    )
    assert sections.impression == "No change. Other Findings: none."
    assert sections.rules == ()


def test_a_header_in_capitals_behind_a_sentence_on_one_line():
    sections = parse_sections(report("COMPARISON: None.  FINDINGS: Clear lungs.  IMPRESSION: Normal chest."))
    assert (sections.findings, sections.impression) == ("Clear lungs.", "Normal chest.")
    assert sections.rules == ("within a line",)


def test_headers_without_a_colon_or_without_a_space():
    sections = parse_sections(report("INDICATION", "Cough.", "FINDINGS", "Clear lungs.", "IMPRESSION:1. Normal."))
    assert (sections.indication, sections.findings, sections.impression) == ("Cough.", "Clear lungs.", "1. Normal.")
    assert sections.rules == ("no colon",)


@pytest.mark.parametrize("header", ["FINDINGS AND IMPRESSION", "FINDINGS/IMPRESSION", "Findings and impression"])
def test_a_joint_section_is_the_impression(header):
    sections = parse_sections(report("INDICATION: Cough.", "", f"{header}: Clear lungs."))
    assert (sections.findings, sections.impression, sections.source) == ("", "Clear lungs.", "joint section")


def test_impression_twice_takes_the_last_that_has_text():
    lines = ["IMPRESSION: Old reading.", "", "IMPRESSION:", "New reading.", "", "IMPRESSION:"]
    sections = parse_sections(report("FINDINGS: Clear lungs.", "", *lines))
    assert sections.impression == "New reading."
    assert sections.rules == ("repeated section",)


def test_only_an_impression_or_only_findings():
    sections = parse_sections(report("HISTORY: Fever.", "", "IMPRESSION: No pneumonia."))
    assert (sections.findings, sections.impression, sections.source) == ("", "No pneumonia.", "impression alone")
    assert sections.indication == "Fever."
    sections = parse_sections(report("INDICATION: Fever.", "", "FINDINGS: No pneumonia.", "", "IMPRESSION:", ""))
    assert (sections.findings, sections.impression, sections.source) == ("No pneumonia.", "", "findings alone")


def test_subheadings_stay_in_the_findings():
    lines = [
        "FINDINGS:",
        "",
        "LINES AND TUBES: None.",
        "LUNGS: Clear.",
        "PORTABLE CHEST: Rotated.",
        "",
        "IMPRESSION: Normal.",
    ]
    sections = parse_sections(report(*lines))
    assert sections.findings == "LINES AND TUBES: None. LUNGS: Clear. PORTABLE CHEST: Rotated."
    assert sections.rules == ("subheading",)


def test_notification_and_recommendation_end_the_impression():
    sections = parse_sections(report("IMPRESSION: A nodule.", "", "RECOMMENDATION(S): CT.", "NOTIFICATION: By phone."))
    assert sections.impression == "A nodule."


def test_a_header_of_views_heads_the_findings_unless_it_is_a_title():
    sections = parse_sections(report("HISTORY: Fever.", "", "CHEST, 2 VIEWS: The lungs are clear."))
    assert (sections.findings, sections.rules) == ("The lungs are clear.", ("view header",))
    sections = parse_sections(report("CHEST, PA AND LATERAL:", "", "HISTORY: Fever.", "", "FINDINGS: Clear lungs."))
    assert sections.findings == "Clear lungs."
    sections = parse_sections(report("PORTABLE CHEST: ___ at 10:30.", "", "FINDINGS: Clear lungs."))
    assert sections.findings == "Clear lungs."


def test_a_preliminary_reading_yields_to_the_final_report():
    wet = ["WET READ: ___ ___ ___ 10:12 PM", "  IMPRESSION: Pneumonia.", " " + "_" * 78]
    sections = parse_sections("\n".join(wet) + "\n" + report("FINDINGS: Clear lungs."))
    assert (sections.findings, sections.impression) == ("Clear lungs.", "")
    assert "wet read" in sections.rules
    sections = parse_sections("\n".join(wet) + "\n" + report("CHEST RADIOGRAPH", " ", "The lungs are clear."))
    assert (sections.body, sections.impression) == ("The lungs are clear.", "")
    sections = parse_sections(" WET READ: ___ 10:12 PM\n  No pneumonia.\n")
    assert (sections.body, sections.source) == ("___ 10:12 PM No pneumonia.", "last section")


def test_an_addendum_is_not_part_of_the_report():
    after = report("FINDINGS: Clear lungs.", "", "IMPRESSION: Normal.", "", "ADDENDUM: Rib 5 is broken.")
    before = (
        " " * 30
        + "FINAL ADDENDUM\n ADDENDUM: Rib 5 is broken.\n "
        + "_" * 78
        + "\n"
        + after.replace("ADDENDUM", "NOTE")
    )
    for text in (after, before):
        sections = parse_sections(text)
        assert sections.findings == "Clear lungs."
        assert sections.impression.startswith("Normal.")
        assert "addendum" in sections.rules
    assert parse_sections(after).impression == "Normal."


@pytest.mark.parametrize(
    ("text", "body", "source"),
    [
        (report("INDICATION: Fever.", " ", "Clear.", " ", "No effusion."), "Clear. No effusion.", "last paragraphs"),
        (report("CHEST RADIOGRAPH", " ", "The lungs are clear."), "The lungs are clear.", "last paragraphs"),
        (report("The lungs are clear.", " ", "No effusion."), "The lungs are clear. No effusion.", "whole report"),
        (report("INDICATION: Fever. The lungs are clear."), "Fever. The lungs are clear.", "last section"),
        (report("COMPARISON: Lungs stay clear.", "", "NOTIFICATION: Phone."), "Lungs stay clear.", "last section"),
        (report("PROCEDURE: Chest film.", "", "The lungs are clear."), "The lungs are clear.", "last paragraphs"),
        ("the lungs are clear", "the lungs are clear", "whole report"),
        (report("___"), "___", "whole report"),
        (report("", " " + "_" * 78, ""), "", "empty"),
        ("", "", "empty"),
    ],
)  # fmt: skip
def test_a_report_with_neither_section_keeps_its_text(text, body, source):
    sections = parse_sections(text)
    assert (sections.body, sections.source) == (body, source)
    assert (sections.findings, sections.impression) == ("", "")


def test_every_text_has_one_source_and_known_rules():
    texts = [FULL[start:end] for start in range(0, len(FULL), 7) for end in range(start, len(FULL), 11)]
    for text in texts:
        sections = parse_sections(text)
        assert sections.source in SOURCES
        assert set(sections.rules) <= set(RULES)
        assert (sections.source == "empty") == (not any((sections.findings, sections.impression, sections.body)))


def test_a_long_line_of_capitals_takes_no_time():
    text = report("FINDINGS: " + "NO EFFUSION OR " * 20_000 + ": END.", "A" * 100_000)
    assert parse_sections(text).findings.endswith("A")


@pytest.mark.parametrize(("prefix", "suffix"), [("", ""), ("FINDINGS: a\n", ""), ("A", "x")])
def test_work_is_linear(prefix, suffix):
    lines = ("FINDINGS: a\n", "HEART: a\n", "Findings: a\n", "CHEST: a\n", "FINAL REPORT\n", "WET READ: ", "AA\n")
    for unit in (" ", "\t", "\n", "_", "A", "A ", "a: ", ". A", "___ ", "\n \n", ". FINDINGS: ", *lines):
        assert_linear_time(parse_sections, unit, prefix, suffix)


def test_a_blank_before_many_headers_is_read_once():
    assert_linear_time(lambda text: parse_sections("FINDINGS:" + "\n" * len(text) + "x\n" + text), "CHEST: y\n")


def test_a_view_after_a_blank_is_a_header_and_after_text_a_subheading():
    assert parse_sections("FINDINGS:\n\n \nCHEST: Clear.").findings == "Clear."
    assert parse_sections("FINDINGS:\n\n No change.\nCHEST: Clear.").findings == "No change. CHEST: Clear."
