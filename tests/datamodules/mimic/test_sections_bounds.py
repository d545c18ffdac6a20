"""The edges of the rules for headers: how many words and letters, how similar, which of several, and where."""

import pytest

from mrg.datamodules.mimic.sections import parse_sections, section_name
from tests.datamodules.mimic.test_sections import report


def test_a_longer_header_has_at_most_six_words():
    assert section_name("FINAL IMPRESSION OF THE CURRENT STUDY") == ("impression", "longer header")
    assert section_name("THE FINAL IMPRESSION OF THE CURRENT STUDY") == ("", "")


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("HISTROY", ("history", "misspelled header")),  # similarity 12 / 14 = .857
        ("COMPARING", ("", "")),  # 16 / 19 = .842 to COMPARISON
        ("FINDI", ("", "")),  # 10 / 12 = .833 to FINDING
        ("INDCATN", ("", "")),  # 14 / 17 = .824 to INDICATION
        ("HISTRY", ("history", "misspelled header")),  # the shortest name that may be misspelled has seven letters
        ("DATES", ("", "")),  # 8 / 9 = .889 to DATE, which is too short
        ("EXAMS", ("", "")),
    ],
)
def test_how_similar_a_misspelled_header_is(header, found):
    assert section_name(header) == found


def test_the_last_indication_with_text_counts_and_comes_before_a_history():
    sections = parse_sections(report("INDICATION: Cough.", "INDICATION: Fever.", "INDICATION:", "FINDINGS: Clear."))
    assert sections.indication == "Fever."
    for lines in (["HISTORY: Smoker.", "INDICATION: Fever."], ["INDICATION: Fever.", "HISTORY: Smoker."]):
        assert parse_sections(report(*lines, "FINDINGS: Clear.")).indication == "Fever."
    assert parse_sections(report("INDICATION:", "HISTORY: Smoker.", "FINDINGS: Clear.")).indication == "Smoker."


def test_the_last_section_that_is_no_ending_is_the_body():
    sections = parse_sections(report("TECHNIQUE: Portable.", "EXAMINATION: Lungs are clear.", "COMMENT: By phone."))
    assert (sections.body, sections.source) == ("Lungs are clear.", "last section")
    sections = parse_sections(report("COMMENT: Seen with Dr. ___.", "NOTIFICATION: By phone."))
    assert (sections.body, sections.source) == ("By phone.", "last section")


def test_views_are_a_header_only_before_a_blank():
    """A time or a score after a colon is text; the name of a section needs no blank after its colon."""
    sections = parse_sections(report("IMPRESSION: Tube seen at", "PORTABLE CHEST 10:30 and later."))
    assert sections.impression == "Tube seen at PORTABLE CHEST 10:30 and later."
    sections = parse_sections(report("HISTORY: Fever.", "PORTABLE CHEST 10:30 The lungs are clear."))
    assert (sections.findings, sections.indication) == ("", "Fever. PORTABLE CHEST 10:30 The lungs are clear.")
    assert parse_sections(report("FINDINGS:Clear.", "IMPRESSION;Normal.")).impression == "Normal."


def test_views_head_the_findings_only_if_nothing_else_does():
    lines = ["CHEST, TWO VIEWS: A title.", "", "FINDINGS: Clear lungs.", "", "HISTORY: Fever."]
    for order in (lines, [lines[2], "", lines[4], "", lines[0]]):
        assert parse_sections(report(*order)).findings == "Clear lungs."


def test_views_directly_below_the_findings_replace_the_empty_header():
    sections = parse_sections(report("FINDINGS:", "", "CHEST, TWO VIEWS: Clear lungs."))
    assert (sections.findings, sections.rules) == ("Clear lungs.", ("view header",))
    sections = parse_sections(report("FINDINGS: Two films.", "", "CHEST, TWO VIEWS: Clear lungs."))
    assert sections.findings == "Two films. CHEST, TWO VIEWS: Clear lungs."
    assert sections.rules == ("subheading",)


@pytest.mark.parametrize("header", ["WET READ", "ADDENDUM"])
def test_an_unknown_header_belongs_to_the_addendum_or_the_preliminary_reading(header):
    """Otherwise its text would be the body of a report without findings."""
    sections = parse_sections(report("The lungs are clear.", "", f"{header}: Seen again.", "", "LINES: A tube."))
    assert (sections.body, sections.source) == ("The lungs are clear.", "whole report")


def test_text_of_the_final_report_wins_over_a_preliminary_reading_alone():
    final = report("CHEST RADIOGRAPH", " ", "The lungs are clear.")
    wet = "WET READ: 10:12 PM\n IMPRESSION: Pneumonia.\n " + "_" * 78 + "\n"
    assert parse_sections(wet + final).impression == ""
    # Without a preliminary reading, the sections before the title are the report's.
    assert parse_sections(wet.replace("WET READ: 10:12 PM\n", "") + final).impression == "Pneumonia."
    # A final report without any text does not replace it.
    assert parse_sections(wet + report("", "")).impression == "Pneumonia."


@pytest.mark.parametrize(("letters", "found"), [(61, True), (62, False)])
def test_a_header_in_capitals_has_at_most_61_characters(letters, found):
    header = "IMPRESSION OF A" + "B" * (letters - 15)
    sections = parse_sections(report("INDICATION: Fever.", f"{header}: Clear."))
    assert (sections.impression == "Clear.") is found


@pytest.mark.parametrize(("letters", "found"), [(31, True), (32, False)])
@pytest.mark.parametrize("line", ["FINDINGS / IMPRESSION{}", "Sentence. FINDINGS / IMPRESSION{}: Clear."])
def test_a_header_without_a_line_or_a_colon_of_its_own_has_at_most_31_characters(letters, found, line):
    sections = parse_sections(report("INDICATION: Fever.", line.format(" " + "B" * (letters - 22)), "Clear."))
    assert (sections.source == "joint section") is found


def test_a_header_without_a_colon_has_at_least_five_characters():
    sections = parse_sections(report("FINDINGS: Clear.", "EXAM", "More."))
    assert sections.findings == "Clear. EXAM More."


@pytest.mark.parametrize("text", ["FINDINGS: Clear.", "Findings: Clear."])
def test_a_byte_order_mark_before_a_header(text):
    assert parse_sections("\ufeff" + text).findings == "Clear."


@pytest.mark.parametrize(
    ("before", "starts"),
    [
        ("PORTABLE CHEST", True),
        ("", True),
        ("Cough.", True),
        ("Cough:", True),
        ("Cough;", True),
        ("Cough?", True),
        ("Cough!", True),
        ("Seen by ___", True),
        ("(chest)", True),
        ("Cough", False),
        ("Cough,", False),
    ],
)
def test_small_letters_are_a_header_only_where_a_sentence_starts(before, starts):
    sections = parse_sections(report("INDICATION: Fever", before, "Findings: Clear."))
    assert sections.findings == ("Clear." if starts else "")


def test_the_spellings_of_each_section():
    spellings = {
        "findings": "FINDINGS, FINDING",
        "impression": "IMPRESSION, IMPRESSIONS, CONCLUSION, CONCLUSIONS",
        "indication": "INDICATION, INDICATIONS, CLINICAL INDICATION, REASON FOR EXAM, REASON FOR EXAMINATION",
        "history": "HISTORY, CLINICAL HISTORY, PATIENT HISTORY, CLINICAL INFORMATION",
        "comparison": "COMPARISON, COMPARISONS, COMPARISON EXAM, COMPARISON FILM, COMPARISON STUDY, REFERENCE EXAM",
        "technique": "TECHNIQUE, TECHNIQUES",
        "examination": "EXAMINATION, EXAM, TYPE OF EXAMINATION, TYPE OF EXAM",
        "recommendations": "RECOMMENDATION, RECOMMENDATIONS, RECOMMENDATION(S)",
        "notification": "NOTIFICATION, NOTIFICATIONS",
        "wet read": "WET READ, WETREAD, PRELIMINARY REPORT",
        "addendum": "ADDENDUM, FINAL ADDENDUM",
        "comment": "COMMENT, COMMENTS",
        "date": "DATE",
    }
    for section, headers in spellings.items():
        for header in headers.split(", "):
            assert section_name(header) == (section, "")
            assert section_name(f" {header.lower()} -,") == (section, "")  # read off without what surrounds it


@pytest.mark.parametrize("section", ["impression", "findings", "history", "comparison", "addendum"])
def test_longer_headers_name_the_section_that_they_contain(section):
    assert section_name(f"OTHER {section.upper()} NOTES") == (section, "longer header")


@pytest.mark.parametrize(
    "views",
    [
        "CHEST", "PORTABLE", "RIBS", "BONE WINDOW", "FRONTAL AND", "FRONTAL UPRIGHT", "FRONTAL SEMI", "ONE VIEW",
        "TWO VIEWS", "PA VIEW", "AP VIEWS", "FRONTAL VIEW", "LATERAL VIEWS", "PA AND LAT", "AP AND LAT",
        "LATERAL AND PA", "LATERAL AND AP",
    ],
)  # fmt: skip
def test_views_that_head_the_findings(views):
    assert section_name(views) == ("findings", "view header")


@pytest.mark.parametrize("header", ["Date", "Comment", "Comments", "Recommendation", "Notifications"])
def test_small_letters_of_these_are_text(header):
    sections = parse_sections(report("FINDINGS: Clear.", f"{header}: none."))
    assert sections.findings == f"Clear. {header}: none."
    assert parse_sections(report("FINDINGS: Clear.", f"{header.upper()}: none.")).findings == "Clear."


@pytest.mark.parametrize("header", ["NOTIFICATION", "RECOMMENDATIONS", "DATE", "COMMENT", "ADDENDUM", "WET READ"])
def test_the_body_is_not_an_ending(header):
    sections = parse_sections(report("TECHNIQUE: Lungs are clear.", f"{header}: By phone."))
    assert (sections.body, sections.source) == ("Lungs are clear.", "last section")


def test_which_marks_end_a_first_paragraph_that_is_a_sentence():
    for mark in (".", "?", "!"):
        sections = parse_sections(report(f"The lungs are clear{mark}", "", "No effusion."))
        assert (sections.body, sections.source) == (f"The lungs are clear{mark} No effusion.", "whole report")
    sections = parse_sections(report("TITLE", "", "Clear.", "", "No effusion."))
    assert (sections.body, sections.source) == ("Clear. No effusion.", "last paragraphs")
    sections = parse_sections(report("TECHNIQUE: Portable.", "", "Clear.", "", "No effusion."))
    assert (sections.body, sections.source) == ("Clear. No effusion.", "last paragraphs")


def test_a_divider_needs_ten_underscores_and_a_line():
    """The de-identification token has three; a divider ends a section."""
    for line, text in (("_" * 9, True), ("_" * 10, False), ("Seen " + "_" * 10, True)):
        sections = parse_sections(report("FINDINGS: Clear.", line, "No effusion."))
        assert sections.findings == (f"Clear. {line} No effusion." if text else "Clear.")
    assert parse_sections("FINDINGS: Clear.\n\tFINAL REPORT \nNo effusion.").findings == "Clear."


def test_rules_are_listed_in_their_order():
    lines = ["CHEST, TWO VIEWS: Title.", "FINDINGS: Clear.", "FINDINGS: Clear lungs.", "FINDIGNS: Clear heart."]
    assert parse_sections(report(*lines)).rules == ("misspelled header", "view header", "repeated section")
    sections = parse_sections(report("WET READ: None.", "FINDINGS: Clear.", "ADDENDUM: None."))
    assert sections.rules == ("wet read", "addendum")
    assert parse_sections(report("OTHER HISTORY: Fever.", "FINDINGS: Clear.")).rules == ("longer header",)
    assert len({sections, parse_sections(report("WET READ: None.", "FINDINGS: Clear.", "ADDENDUM: None."))}) == 1


def test_the_line_before_small_letters_is_read_from_its_first_character():
    assert parse_sections("INDICATION: Fever\nx\nFindings: Clear.").findings == ""
    assert parse_sections("INDICATION: Fever\nX\nFindings: Clear.").findings == "Clear."
    assert parse_sections("Findings: Clear.").findings == "Clear."


def test_the_title_of_the_final_report_divides_with_and_without_a_line():
    """A section of the final report replaces those before its title; a mere line replaces nothing."""
    wet = "WET READ: Seen.\nIMPRESSION: Pneumonia.\n"
    assert parse_sections(wet + "FINAL REPORT\nFINDINGS: Clear.").impression == ""
    before = "FINDINGS: Old.\n\nIMPRESSION: Old.\n"
    line = "_" * 78 + "\n"
    for title in ("FINAL REPORT\n", line + "FINAL REPORT\n"):
        sections = parse_sections(f"{before}{title}FINDINGS: Clear.")
        assert (sections.findings, sections.impression) == ("Clear.", "")
        sections = parse_sections(f"{before}{title}IMPRESSION: Normal.")
        assert (sections.findings, sections.impression) == ("", "Normal.")
    sections = parse_sections(f"{before}{line}FINDINGS: Clear.")
    assert (sections.findings, sections.impression) == ("Clear.", "Old.")


def test_two_headers_of_views_are_a_repeated_section():
    sections = parse_sections(report("CHEST: Rotated.", "HISTORY: Fever.", "PORTABLE CHEST: Clear."))
    assert (sections.findings, sections.rules) == ("Clear.", ("view header", "repeated section"))
    sections = parse_sections(report("CHEST: Rotated.", "HISTORY: Fever.", "FINDINGS: Clear."))
    assert (sections.findings, sections.rules) == ("Clear.", ("view header",))


def test_an_unknown_header_is_part_of_the_text():
    sections = parse_sections(report("PROCEDURE: The lungs are clear."))
    assert (sections.body, sections.source) == ("PROCEDURE: The lungs are clear.", "last section")


def test_sections_under_unknown_headers_are_used_as_by_the_published_parser_and_counted():
    parts = ("LUNGS: Clear.", "HEART: Enlarged.", "BONES: Intact.")
    sections = parse_sections(report("INDICATION: Fever.", *parts))
    assert (sections.body, sections.source) == ("BONES: Intact.", "last section")
    assert sections.rules == ("several unknown headers",)
    # A known header at the end hides all of them, one that ends a report does not.
    assert parse_sections(report(parts[0], "COMPARISON: None.")).rules == ("several unknown headers",)
    assert parse_sections(report(parts[0], "NOTIFICATION: By phone.")).rules == ()
    assert parse_sections(report(*parts, "IMPRESSION: Cardiomegaly.")).rules == ()
    assert parse_sections(report("INDICATION: Fever.", "LUNGS: Clear.")).rules == ()
