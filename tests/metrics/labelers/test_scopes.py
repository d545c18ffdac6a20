"""Words that open, keep and end the scope of a cue, one by one."""

import pytest

from mrg.metrics.labelers.rules import RulesLabeler
from tests.metrics.labelers.sentences import N, P, U, denied, labels

OPENING = (
    ", or and with of in on at to the a an by for is are was were than above below over under about from between since"
)
CONTINUING = "Or And With Of Is Are Was Were Than"
FILLERS = "a an the some also"
SHOWING = "show shows demonstrate demonstrates reveal reveals"


@pytest.fixture(scope="module")
def labeler():
    return RulesLabeler(convention="plain")


def test_a_line_that_ends_in_an_opening_word_goes_on(labeler):
    words = [("today", P), (".", P), (":", P), *((word, U) for word in OPENING.split())]
    for word, label in [*words, ("no", N), ("without", N), ("not", N), ("nor", N)]:
        found = labels(labeler, f"Possible effusion {word}\nEdema")
        assert found == {"Pleural Effusion": U, "Edema": label}, word


def test_a_line_that_ends_in_a_heading_goes_on(labeler):
    assert labels(labeler, "Assess for heart:\nEdema") == {"No Finding": P}


def test_a_line_that_starts_with_a_continuing_word_goes_on(labeler):
    for word, label in [("Today", P), ("Nor", N), *((word, U) for word in CONTINUING.split())]:
        found = labels(labeler, f"Possible effusion\n{word} edema")
        assert found == {"Pleural Effusion": U, "Edema": label}, word
    assert labels(labeler, "POSSIBLE EFFUSION\n, EDEMA") == {"Pleural Effusion": U, "Edema": U}
    assert labels(labeler, "POSSIBLE EFFUSION\nEDEMA") == {"Pleural Effusion": U, "Edema": P}


def test_fillers_before_a_word_that_affirms(labeler):
    for word, label in [("other", N), *((word, P) for word in FILLERS.split())]:
        found = labels(labeler, f"No pneumothorax, {word} small effusion.")
        assert (found["Pneumothorax"], found["Pleural Effusion"]) == (N, label), word
        found = labels(labeler, f"No pneumothorax or edema, {word} the small effusion.")
        assert (found["Edema"], found["Pleural Effusion"]) == (N, label), word


def test_what_comes_of_a_change_is_not_part_of_it(labeler):
    for words in ("Removal", "Resolution", "Clearing", "Interval removal"):
        assert labels(labeler, f"{words} of the edema with a left effusion.") == {"Edema": N, "Pleural Effusion": P}
    assert labels(labeler, "Absence of edema with a left effusion.") == denied("Edema", "Pleural Effusion")


def test_what_a_structure_shows_is_no_state_of_it(labeler):
    for word in SHOWING.split():
        assert labels(labeler, f"The lungs {word} an enlarged heart.") == {"Cardiomegaly": P}, word
        found = labels(labeler, f"The mediastinum and lungs {word} an enlarged heart.")
        assert found == {"Enlarged Cardiomediastinum": P}, word
    assert labels(labeler, "The lungs are at an enlarged heart.") == {"No Finding": P}
