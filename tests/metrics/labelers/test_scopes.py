"""Words that open, keep and end the scope of a cue, one by one."""

import pytest

from mrg.metrics.labelers.rules import RulesLabeler
from tests.metrics.labelers.sentences import N, P, U, denied, labels

OPENING = (
    ", or and with of in on at to the a an by for is are was were than above below over under about from between since"
).split()


@pytest.fixture(scope="module")
def labeler():
    return RulesLabeler(convention="plain")


@pytest.mark.parametrize(("word", "label"), [("today", P), (".", P), (":", P), *((word, U) for word in OPENING)])
def test_a_line_that_ends_in_an_opening_word_goes_on(labeler, word, label):
    assert labels(labeler, f"Possible effusion {word}\nEdema") == {"Pleural Effusion": U, "Edema": label}


@pytest.mark.parametrize("word", ["no", "without", "not", "nor"])
def test_a_line_that_ends_in_a_denial_goes_on(labeler, word):
    assert labels(labeler, f"Possible effusion {word}\nEdema") == {"Pleural Effusion": U, "Edema": N}


def test_a_line_that_ends_in_a_heading_goes_on(labeler):
    assert labels(labeler, "Assess for heart:\nEdema") == {"No Finding": P}


@pytest.mark.parametrize(
    ("word", "label"), [("Today", P), *((word, U) for word in "Or And With Of Is Are Was Were Than".split())]
)
def test_a_line_that_starts_with_a_continuing_word_goes_on(labeler, word, label):
    assert labels(labeler, f"Possible effusion\n{word} edema") == {"Pleural Effusion": U, "Edema": label}


def test_other_continuing_words(labeler):
    assert labels(labeler, "Possible effusion\nNor edema") == {"Pleural Effusion": U, "Edema": N}
    assert labels(labeler, "POSSIBLE EFFUSION\n, EDEMA") == {"Pleural Effusion": U, "Edema": U}
    assert labels(labeler, "POSSIBLE EFFUSION\nEDEMA") == {"Pleural Effusion": U, "Edema": P}


@pytest.mark.parametrize(("word", "label"), [("other", N), *((word, P) for word in "a an the some also".split())])
def test_fillers_before_a_word_that_affirms(labeler, word, label):
    found = labels(labeler, f"No pneumothorax, {word} small effusion.")
    assert (found["Pneumothorax"], found["Pleural Effusion"]) == (N, label)
    found = labels(labeler, f"No pneumothorax or edema, {word} the small effusion.")
    assert (found["Edema"], found["Pleural Effusion"]) == (N, label)


@pytest.mark.parametrize("word", ["Removal", "Resolution", "Clearing", "Interval removal"])
def test_what_comes_of_a_change_is_not_part_of_it(labeler, word):
    assert labels(labeler, f"{word} of the edema with a left effusion.") == {"Edema": N, "Pleural Effusion": P}
    assert labels(labeler, "Absence of edema with a left effusion.") == denied("Edema", "Pleural Effusion")


@pytest.mark.parametrize("word", ["show", "shows", "demonstrate", "demonstrates", "reveal", "reveals"])
def test_what_a_structure_shows_is_no_state_of_it(labeler, word):
    assert labels(labeler, f"The lungs {word} an enlarged heart.") == {"Cardiomegaly": P}
    assert labels(labeler, "The lungs are at an enlarged heart.") == {"No Finding": P}
    assert labels(labeler, f"The mediastinum and lungs {word} an enlarged heart.") == {"Enlarged Cardiomediastinum": P}
