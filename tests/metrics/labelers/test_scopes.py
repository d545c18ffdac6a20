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


def test_a_line_ends_where_two_words_follow_a_statement(labeler):
    """One more word may belong to a phrase that the line break parts: "no acute / edema"."""
    assert labels(labeler, "Within normal limits today\nHeart") == denied("Cardiomegaly")
    assert labels(labeler, "Within normal limits today again\nHeart") == {"No Finding": P}
    assert labels(labeler, "No acute\nEdema") == denied("Edema")
    assert labels(labeler, "No acute distress\nEdema") == {"Edema": P}
    assert labels(labeler, "No evidence of acute\nEdema") == denied("Edema")
    assert labels(labeler, "Cannot exclude an\nEdema") == {"Edema": U}
    assert labels(labeler, "Evaluate for the worse\nEdema") == {"No Finding": P}
    assert labels(labeler, "Evaluate for pneumonia\nEdema") == {"Edema": P}
    assert labels(labeler, "Heart is stable\nEnlarged mediastinum") == {"Enlarged Cardiomediastinum": P}


def test_a_state_belongs_to_the_structure_before_a_separator(labeler):
    found = labels(labeler, "Heart enlarged, mediastinum.")
    assert found == {"Cardiomegaly": P}
    assert labels(labeler, "Enlarged heart, mediastinum.") == {"Cardiomegaly": P, "Enlarged Cardiomediastinum": P}
    assert labels(labeler, "Heart enlarged and mediastinum stable.") == {"Cardiomegaly": P}


def test_states_that_contradict_each_other(labeler):
    assert labels(labeler, "Heart normal to mildly enlarged.") == {"Cardiomegaly": U}
    assert labels(labeler, "Heart stable and enlarged.") == {"Cardiomegaly": P}
    assert labels(labeler, "The heart is not enlarged.") == denied("Cardiomegaly")
    assert labels(labeler, "Heart possibly enlarged.") == {"Cardiomegaly": U}
    assert labels(labeler, "Heart possibly normal.") == denied("Cardiomegaly")


def test_a_long_list_is_not_revisited(labeler):
    """A cue reaches 32 findings back, so that work is linear."""
    names = ["edema", *["effusion"] * 31]
    assert labels(labeler, f"{' '.join(names)} not seen.") == denied("Edema", "Pleural Effusion")
    assert labels(labeler, f"{' '.join(['edema', *names])} not seen.")["Edema"] == P
    structures = ["heart", *["mediastinum"] * 31]
    assert labels(labeler, f"{' '.join(structures)} normal.") == denied("Cardiomegaly", "Enlarged Cardiomediastinum")
    assert labels(labeler, f"{' '.join(['heart', 'trachea', *structures[1:]])} normal.") == denied(
        "Enlarged Cardiomediastinum"
    )


def test_a_cue_after_denied_findings_denies_what_follows(labeler):
    assert labels(labeler, "No effusion resolved edema.") == denied("Pleural Effusion", "Edema")
    assert labels(labeler, "Effusion resolved edema.") == {"Pleural Effusion": N, "Edema": P}


def test_versus_doubts_the_last_finding_before_it_alone(labeler):
    found = labels(labeler, "Effusion with atelectasis versus pneumonia.")
    assert found == {"Pleural Effusion": P, "Atelectasis": U, "Pneumonia": U}
