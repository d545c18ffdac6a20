import random

import pytest
import torch

from mrg.metrics.conditions import BLANK, CONDITIONS, NEGATIVE, POSITIVE, UNCERTAIN
from mrg.metrics.labelers import phrases
from mrg.metrics.labelers.base import Labeler
from mrg.metrics.labelers.rules import RulesLabeler, without_skipped_sections

P, N, U = POSITIVE, NEGATIVE, UNCERTAIN
NOTHING_FOUND = {"No Finding": P}


@pytest.fixture(scope="module")
def labeler():
    return RulesLabeler()


def labels(labeler, text):
    """All labels of a text that are not blank."""
    return {name: label for name, label in zip(CONDITIONS, labeler([text])[0].tolist(), strict=True) if label != BLANK}


def denied(*conditions):
    return {**dict.fromkeys(conditions, N), **NOTHING_FOUND}


NEGATION = [
    ("No evidence of pneumothorax.", denied("Pneumothorax")),
    ("No definite pneumothorax.", denied("Pneumothorax")),
    ("No focal consolidation.", denied("Consolidation")),
    ("No vascular congestion.", denied("Edema")),
    ("Negative for pneumonia.", denied("Pneumonia")),
    ("Without a displaced rib fracture.", denied("Fracture")),
    ("Absence of edema.", denied("Edema")),
    ("The lungs are free of consolidation and edema.", denied("Consolidation", "Edema")),
    ("No effusion, pneumothorax or consolidation.", denied("Pleural Effusion", "Pneumothorax", "Consolidation")),
    (
        "There is no focal consolidation, pleural effusion, or pneumothorax.",
        denied("Pleural Effusion", "Pneumothorax", "Consolidation"),
    ),
    ("No pneumonia or effusion.", denied("Pneumonia", "Pleural Effusion")),
    ("No effusion\nor pneumothorax.", denied("Pleural Effusion", "Pneumothorax")),
    ("Neither effusion nor pneumothorax is seen.", denied("Pleural Effusion", "Pneumothorax")),
    ("Pneumothorax is not seen.", denied("Pneumothorax")),
    ("Effusion and pneumothorax are not identified.", denied("Pleural Effusion", "Pneumothorax")),
    ("Pneumonia is unlikely.", denied("Pneumonia")),
    ("Pneumonia is not likely.", denied("Pneumonia")),
    ("Nothing to suggest pneumonia.", denied("Pneumonia")),
    ("Rib fracture is absent.", denied("Fracture")),
    ("No effusion or visualized pneumothorax.", denied("Pleural Effusion", "Pneumothorax")),
    ("No effusion is seen or pneumothorax.", denied("Pleural Effusion", "Pneumothorax")),
    ("No catheter fracture.", denied("Support Devices")),
]
ANSWERED = [
    ("Effusion: none.", denied("Pleural Effusion")),
    ("Pneumothorax: no. Effusion: small.", {"Pneumothorax": N, "Pleural Effusion": P}),
    ("Pneumothorax: None Edema: None", denied("Pneumothorax", "Edema")),
    ("Pleura: Effusion: none. Pneumothorax: none.", denied("Pleural Effusion", "Pneumothorax")),
    ("Rib fracture: not seen.", denied("Fracture")),
    ("Edema: possible.", {"Edema": U}),
    ("Opacity: no change.", {"Lung Opacity": P}),
    ("Support devices: none. Lungs: left opacity.", {"Support Devices": N, "Lung Opacity": P}),
]
END_OF_NEGATION = [
    ("No effusion is seen, mild cardiomegaly.", {"Pleural Effusion": N, "Cardiomegaly": P}),
    ("No effusion, mild cardiomegaly.", {"Pleural Effusion": N, "Cardiomegaly": P}),
    ("No pneumothorax and small bilateral effusions.", {"Pneumothorax": N, "Pleural Effusion": P}),
    ("No pneumothorax but a left effusion.", {"Pneumothorax": N, "Pleural Effusion": P}),
    ("No pneumothorax; a left effusion is present.", {"Pneumothorax": N, "Pleural Effusion": P}),
    ("There is no pneumothorax, however there is atelectasis.", {"Pneumothorax": N, "Atelectasis": P}),
    ("No pneumonia. Left effusion.", {"Pneumonia": N, "Pleural Effusion": P}),
    ("Left effusion without pneumothorax.", {"Pleural Effusion": P, "Pneumothorax": N}),
    ("No effusion.\n\nCardiomegaly", {"Pleural Effusion": N, "Cardiomegaly": P}),
    ("1. No effusion\n2. Cardiomegaly", {"Pleural Effusion": N, "Cardiomegaly": P}),
    ("- No effusion\n- Cardiomegaly", {"Pleural Effusion": N, "Cardiomegaly": P}),
    ("No focal opacity to suggest pneumonia.", denied("Lung Opacity", "Pneumonia")),
    ("No effusion is seen, edema or atelectasis.", {"Pleural Effusion": N, "Edema": U, "Atelectasis": U}),
    ("Removal of the drain with new left effusion.", {"Support Devices": N, "Pleural Effusion": P}),
    ("Clearing of the edema with left atelectasis.", {"Edema": N, "Atelectasis": P}),
    ("No pneumothorax due to the biopsy.", denied("Pneumothorax")),
]
UNCERTAINTY = [
    ("Pneumonia cannot be excluded.", {"Pneumonia": U}),
    ("A small effusion cannot be entirely excluded.", {"Pleural Effusion": U}),
    ("Pneumonia is not excluded.", {"Pneumonia": U}),
    ("Cannot exclude pneumonia.", {"Pneumonia": U}),
    ("Can't exclude pneumonia.", {"Pneumonia": U}),
    ("Cannot rule out a rib fracture.", {"Fracture": U}),
    ("Possible pneumonia.", {"Pneumonia": U}),
    ("Probable left basilar atelectasis.", {"Atelectasis": U}),
    ("Questionable nodule in the left apex.", {"Lung Lesion": U}),
    ("Left effusion is suspected.", {"Pleural Effusion": U}),
    ("Pneumonia is possible.", {"Pneumonia": U}),
    ("These findings may represent edema.", {"Edema": U}),
    ("Appearance suggesting edema.", {"Edema": U}),
    ("Suspicious for malignancy.", {"Lung Lesion": U}),
    ("Left basilar opacity may represent pneumonia.", {"Lung Opacity": P, "Pneumonia": U}),
    ("Left basilar opacity, possibly atelectasis.", {"Lung Opacity": P, "Atelectasis": U}),
    ("Left basilar atelectasis or infiltrate.", {"Atelectasis": U, "Lung Opacity": U}),
    ("Atelectasis or pneumonia at the left base.", {"Atelectasis": U, "Pneumonia": U}),
    ("Atelectasis versus pneumonia at the left base.", {"Atelectasis": U, "Pneumonia": U}),
    ("Atelectasis vs pneumonia at the left base.", {"Atelectasis": U, "Pneumonia": U}),
    ("Atelectasis vs. pneumonia at the left base.", {"Atelectasis": U, "Pneumonia": U}),
    ("Vascular congestion.", {"Edema": U}),
    ("Possible pneumonia. No effusion.", {"Pneumonia": U, "Pleural Effusion": N}),
    ("Possible pneumonia. Cardiomegaly.", {"Pneumonia": U, "Cardiomegaly": P}),
    ("Left opacity may be due to pneumonia.", {"Lung Opacity": P, "Pneumonia": U}),
    ("Left opacity, possibly secondary to atelectasis.", {"Lung Opacity": P, "Atelectasis": U}),
    ("Left opacity due to atelectasis.", {"Lung Opacity": P, "Atelectasis": P}),
    ("Pneumonia is possible, but due to the effusion hard to see.", {"Pneumonia": U, "Pleural Effusion": P}),
    ("Left opacity, differential considerations include pneumonia.", {"Lung Opacity": P, "Pneumonia": U}),
    ("Left opacity. Pneumonia is another consideration.", {"Lung Opacity": P, "Pneumonia": U}),
    ("Atelectasis is favored over pneumonia.", {"Atelectasis": P, "Pneumonia": U}),
    ("Pneumonia is less likely.", {"Pneumonia": U}),
    ("Doubtful left effusion.", {"Pleural Effusion": U}),
    ("Correlate clinically for pneumonia.", {"Pneumonia": U}),
    ("Prominent pulmonary vasculature.", {"Edema": U}),
    ("The pulmonary vasculature is increased.", {"Edema": U}),
    ("Heart size and vascular congestion are within normal limits.", denied("Cardiomegaly", "Edema")),
    ("Vascular congestion with normal heart size.", {"Edema": U, "Cardiomegaly": N}),
]
POSITIVE_DESPITE_A_CUE = [
    ("Likely left basilar atelectasis.", {"Atelectasis": P}),
    ("Left basilar opacity, likely pneumonia.", {"Lung Opacity": P, "Pneumonia": P}),
    ("Left basilar opacity consistent with pneumonia.", {"Lung Opacity": P, "Pneumonia": P}),
    ("Left basilar opacity compatible with atelectasis.", {"Lung Opacity": P, "Atelectasis": P}),
    ("XXXX opacity in the left base.", {"Lung Opacity": P}),
    ("Opacity XXXX atelectasis.", {"Lung Opacity": P, "Atelectasis": P}),
    ("No XXXX pneumothorax.", denied("Pneumothorax")),
    ("XXXX.", NOTHING_FOUND),
    ("No ___ pneumothorax. Left effusion, ___.", {"Pneumothorax": N, "Pleural Effusion": P}),
    ("Left XXXX-a-XXXX in place.", {"Support Devices": P, "No Finding": P}),
    ("Left chest XXXX with tip in the vein.", {"Support Devices": P, "No Finding": P}),
    ("XXXX B-lines at both bases.", {"Edema": P}),
]
COMPARISON = [
    ("Unchanged cardiomegaly.", {"Cardiomegaly": P}),
    ("Stable left effusion.", {"Pleural Effusion": P}),
    ("The left effusion is unchanged.", {"Pleural Effusion": P}),
    ("No change in the left effusion.", {"Pleural Effusion": P}),
    ("No significant interval change in the left effusion.", {"Pleural Effusion": P}),
    ("The left effusion has improved.", {"Pleural Effusion": P}),
    ("The edema has not resolved.", {"Edema": P}),
    ("Improved edema.", {"Edema": P}),
    ("Resolving pneumonia.", {"Pneumonia": P}),
    ("Partially resolved left effusion.", {"Pleural Effusion": P}),
    ("Healed rib fracture.", {"Fracture": P}),
    ("The left effusion has resolved.", denied("Pleural Effusion")),
    ("Resolved pneumothorax.", denied("Pneumothorax")),
    ("Interval resolution of the pneumothorax.", denied("Pneumothorax")),
    ("The consolidation has cleared.", denied("Consolidation")),
    ("The pneumothorax is no longer seen.", denied("Pneumothorax")),
    ("The chest tube has been removed.", denied("Support Devices")),
    ("Interval removal of the left chest tube.", denied("Support Devices")),
    ("Stable chest with resolution of small effusion.", denied("Pleural Effusion")),
    ("Previously seen nodule is not visualized on today's study.", denied("Lung Lesion")),
    ("No new consolidation.", denied("Consolidation")),
    ("No new effusion or pneumothorax.", denied("Pleural Effusion", "Pneumothorax")),
]
HEART_AND_MEDIASTINUM = [
    ("Heart size is normal.", denied("Cardiomegaly")),
    ("The heart is normal in size.", denied("Cardiomegaly")),
    ("The heart is not enlarged.", denied("Cardiomegaly")),
    ("No cardiomegaly.", denied("Cardiomegaly")),
    ("Heart size is within normal limits.", denied("Cardiomegaly")),
    ("Heart size is at the upper limits of normal.", denied("Cardiomegaly")),
    ("The heart is enlarged.", {"Cardiomegaly": P}),
    ("The heart is mildly enlarged.", {"Cardiomegaly": P}),
    ("Large heart.", {"Cardiomegaly": P}),
    ("Prominent cardiac silhouette.", {"Cardiomegaly": P}),
    ("Heart size is borderline.", {"Cardiomegaly": U}),
    ("Borderline cardiomegaly.", {"Cardiomegaly": U}),
    ("The heart is possibly enlarged.", {"Cardiomegaly": U}),
    ("Heart size is stable.", NOTHING_FOUND),
    ("Heart size has increased.", {"Cardiomegaly": P}),
    ("The heart has slightly increased in size.", {"Cardiomegaly": P}),
    ("Interval increase in heart size.", {"Cardiomegaly": P}),
    ("The heart is larger than before.", {"Cardiomegaly": P}),
    ("Heart size has decreased.", NOTHING_FOUND),
    ("Heart size has not increased.", NOTHING_FOUND),
    ("No interval increase in heart size.", NOTHING_FOUND),
    ("The effusion has increased, heart size is normal.", {"Pleural Effusion": P, "Cardiomegaly": N}),
    ("Heart size is stable, the effusion has increased.", {"Pleural Effusion": P}),
    ("The heart is not borderline.", denied("Cardiomegaly")),
    ("The heart XXXX is large.", {"Cardiomegaly": P}),
    ("Heart size is XXXX.", NOTHING_FOUND),
    ("The cardiomediastinal silhouette is normal.", denied("Enlarged Cardiomediastinum")),
    ("The cardiomediastinal silhouette is enlarged.", {"Enlarged Cardiomediastinum": P}),
    ("The mediastinum is widened.", {"Enlarged Cardiomediastinum": P}),
    ("No mediastinal widening.", denied("Enlarged Cardiomediastinum")),
    (
        "Heart size and mediastinal contours are within normal limits.",
        denied("Cardiomegaly", "Enlarged Cardiomediastinum"),
    ),
    ("Normal heart size and mediastinal contour.", denied("Cardiomegaly", "Enlarged Cardiomediastinum")),
    (
        "The heart is enlarged and the mediastinum is normal.",
        {"Cardiomegaly": P, "Enlarged Cardiomediastinum": N},
    ),
    ("The heart is normal. The aorta is enlarged.", denied("Cardiomegaly")),
    ("The aorta is enlarged.", NOTHING_FOUND),
    ("Heart: enlarged.", {"Cardiomegaly": P}),
    ("Heart and mediastinum: normal.", denied("Cardiomegaly", "Enlarged Cardiomediastinum")),
    ("Mediastinum: The heart is enlarged.", {"Cardiomegaly": P}),
    ("Heart: Normal in size. Lungs: Left basilar opacity.", {"Cardiomegaly": N, "Lung Opacity": P}),
]
NAMES = [
    ("The lungs are clear.", NOTHING_FOUND),
    ("No acute osseous abnormality.", NOTHING_FOUND),
    ("Calcified granuloma in the left upper lobe.", NOTHING_FOUND),
    ("Emphysema.", NOTHING_FOUND),
    ("Nodular opacity in the left upper lobe.", {"Lung Lesion": P, "Lung Opacity": P}),
    ("Left upper lobe mass.", {"Lung Lesion": P}),
    ("Left lower lobe consolidation.", {"Consolidation": P}),
    ("Left lower lobe airspace disease.", {"Lung Opacity": P}),
    ("Apical scarring.", {"Lung Opacity": P}),
    ("Pulmonary fibrosis.", {"Pleural Other": P}),
    ("Left apical pleural thickening.", {"Pleural Other": P}),
    ("Left hydropneumothorax.", {"Pneumothorax": P, "Pleural Effusion": P}),
    ("Right PICC line and left pacemaker.", {"Support Devices": P, "No Finding": P}),
    ("Small pericardial effusion.", NOTHING_FOUND),
    ("Pericardial effusion and left pleural effusion.", {"Pleural Effusion": P}),
    ("No pericardial or pleural effusion.", denied("Pleural Effusion")),
    ("No mass effect.", NOTHING_FOUND),
    # Fluid and scars both blunt the angle: of studies with blunting alone a third were indexed as effusion.
    ("Blunting of the left costophrenic angle.", {"Pleural Effusion": U}),
    ("The left costophrenic angle is blunted.", {"Pleural Effusion": U}),
    ("Small left effusion blunting the costophrenic angle.", {"Pleural Effusion": P}),
    ("The costophrenic angles are sharp.", denied("Pleural Effusion")),
    ("No blunting of the costophrenic angles.", denied("Pleural Effusion")),
    ("The pleural spaces are clear.", denied("Pleural Effusion")),
    ("Pleura: clear.", denied("Pleural Effusion")),
    ("Old granulomatous infection.", NOTHING_FOUND),
    ("Changes of cystic fibrosis.", NOTHING_FOUND),
    ("Known thyroid mass.", NOTHING_FOUND),
    ("Fractured sternal wire.", {"Support Devices": P, "No Finding": P}),
    ("Broken ribs on the left.", {"Fracture": P}),
    ("Collapsed left lower lobe.", {"Atelectasis": P}),
    ("Left apical pleural capping.", {"Pleural Other": P}),
]
SECTIONS = [
    ("Indication: pneumonia. Findings: No effusion.", denied("Pleural Effusion")),
    ("INDICATION: Chest pain, edema.\nFINDINGS: Cardiomegaly.\nIMPRESSION: No pneumonia.",
     {"Cardiomegaly": P, "Pneumonia": N}),
    ("Comparison: none. Left effusion.", {"Pleural Effusion": P}),
    ("Reason for exam: rib fracture\n\nNo pneumothorax.", denied("Pneumothorax")),
    ("Findings: Pneumonia.", {"Pneumonia": P}),
    ("Impression: 1. Cardiomegaly. 2. No edema.", {"Cardiomegaly": P, "Edema": N}),
    ("Clinical history: pneumonia.", {}),
    ("Reason for study: edema. Findings: No effusion. Notification: the surgeon asked about pneumonia.",
     denied("Pleural Effusion")),
]  # fmt: skip
NOT_STATED = [
    ("Evaluate for pneumonia.", NOTHING_FOUND),
    ("Rule out pneumothorax.", NOTHING_FOUND),
    ("History of pneumonia.", NOTHING_FOUND),
    ("History of pneumonia. The heart is enlarged.", {"Cardiomegaly": P}),
    ("If there is concern for a rib fracture, rib views may help.", NOTHING_FOUND),
    ("If continued concern for pneumothorax, repeat. Left effusion.", {"Pleural Effusion": P}),
    ("Oblique views to exclude a nodule.", NOTHING_FOUND),
    ("Rib fractures may not be visible.", NOTHING_FOUND),
    ("Overlap could obscure a nodule.", NOTHING_FOUND),
]
NUMBERS = [
    ("There is a 1.5 cm nodule in the left lung.", {"Lung Lesion": P}),
    ("No 1.5 cm nodule or effusion.", denied("Lung Lesion", "Pleural Effusion")),
    ("No pneumothorax above 0.5 cm or effusion.", denied("Pneumothorax", "Pleural Effusion")),
    ("No .5 cm nodule or effusion.", denied("Lung Lesion", "Pleural Effusion")),
    ("No effusion. 2 cm nodule.", {"Pleural Effusion": N, "Lung Lesion": P}),
    ("No\n1.5 cm nodule.", denied("Lung Lesion")),
]
SPELLINGS = [
    ("Cardiomegally.", {"Cardiomegaly": P}),
    ("No effussion or pneumothroax.", denied("Pleural Effusion", "Pneumothorax")),
    ("Basilar atlectasis.", {"Atelectasis": P}),
    ("No consolidaton.", denied("Consolidation")),
    ("Left basilar opactiy.", {"Lung Opacity": P}),
    ("Old rib fracutre.", {"Fracture": P}),
    ("Pulmonary oedema.", {"Edema": P}),
    ("The cardiac silhoutte is enlarged.", {"Cardiomegaly": P}),
    ("The costophrenic anlge is blunted.", {"Pleural Effusion": U}),
    ("BILATERAL EFFUSIONS", {"Pleural Effusion": P}),
]
SEVERAL_MENTIONS = [
    ("No effusion. Possible effusion.", {"Pleural Effusion": U}),
    ("Possible effusion. No effusion.", {"Pleural Effusion": U}),
    ("Left effusion. Possible right effusion. No effusion.", {"Pleural Effusion": P}),
    ("No effusion. Left effusion.", {"Pleural Effusion": P}),
]
NO_FINDING = [
    ("", {}),
    (" \n\n ", {}),
    (".", {}),
    ("?!, ;", {}),
    ("Normal chest.", NOTHING_FOUND),
    ("Stable pacemaker. No effusion.", {"Support Devices": P, "Pleural Effusion": N, "No Finding": P}),
    ("The lungs are clear. Possible rib fracture.", {"Fracture": U}),
]
CASES = [
    *NEGATION, *ANSWERED, *END_OF_NEGATION, *UNCERTAINTY, *POSITIVE_DESPITE_A_CUE, *COMPARISON,
    *HEART_AND_MEDIASTINUM, *NAMES, *SECTIONS, *NOT_STATED, *NUMBERS, *SPELLINGS, *SEVERAL_MENTIONS, *NO_FINDING,
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), CASES, ids=[repr(text) for text, _ in CASES])
def test_sentences(labeler, text, expected):
    assert labels(labeler, text) == expected


@pytest.mark.parametrize(("word", "variants"), phrases.SPELLINGS.items())
def test_spellings_are_read_like_the_word_they_stand_for(labeler, word, variants):
    for variant in variants.split():
        for sentence in ("{} in the left lung.", "No {} in the left lung.", "Possible {}, enlarged heart."):
            assert labels(labeler, sentence.format(variant)) == labels(labeler, sentence.format(word)), variant


EVIDENCE = [
    (
        "Comparison: none. Heart size is normal. No 1.5 cm nodule or effusion.  Opacity may represent pneumonia",
        [
            ("Cardiomegaly", N, "Heart size is normal.", "normal", "Heart size"),
            ("Lung Lesion", N, "No 1.5 cm nodule or effusion.", "No", "nodule"),
            ("Pleural Effusion", N, "No 1.5 cm nodule or effusion.", "No", "effusion"),
            ("Lung Opacity", P, "Opacity may represent pneumonia", "Opacity", "Opacity"),
            ("Pneumonia", U, "Opacity may represent pneumonia", "may represent", "pneumonia"),
        ],
    ),
    (
        "1. Atelectasis vs. pneumonia\n2. The left effussion has resolved!",
        [
            ("Atelectasis", U, "Atelectasis vs. pneumonia", "vs.", "Atelectasis"),
            ("Pneumonia", U, "Atelectasis vs. pneumonia", "vs.", "pneumonia"),
            ("Pleural Effusion", N, "The left effussion has resolved!", "has resolved", "effussion"),
        ],
    ),
    (
        "Heart: ENLARGED.\n\nAtelectasis or pneumonia",
        [
            ("Cardiomegaly", P, "Heart: ENLARGED.", "ENLARGED", "Heart"),
            ("Atelectasis", U, "Atelectasis or pneumonia", "or", "Atelectasis"),
            ("Pneumonia", U, "Atelectasis or pneumonia", "or", "pneumonia"),
        ],
    ),
    ("No hydropneumothorax.", [
        ("Pneumothorax", N, "No hydropneumothorax.", "No", "hydropneumothorax"),
        ("Pleural Effusion", N, "No hydropneumothorax.", "No", "hydropneumothorax"),
    ]),
    (
        "Effusion: no. Vascular congestion. Heart size has increased",
        [
            ("Pleural Effusion", N, "Effusion: no.", "no", "Effusion"),
            ("Edema", U, "Vascular congestion.", "Vascular congestion", "Vascular congestion"),
            ("Cardiomegaly", P, "Heart size has increased", "has increased", "Heart size"),
        ],
    ),
    ("Rib fractures may not be visible.", []),
    ("Heart size is stable. The lungs are clear.", []),
    ("History of pneumonia. Indication: edema.", []),
    ("", []),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), EVIDENCE)
def test_evidence(labeler, text, expected):
    got = [
        (e.condition, e.label, text[e.start : e.end], e.cue, text[e.mention_start : e.mention_end])
        for e in labeler.evidence(text)
    ]
    assert got == expected


def test_evidence_explains_the_row(labeler):
    """The strongest statement about a condition is its label, and a condition without evidence is blank."""
    for text, _ in CASES:
        found = {}
        for e in labeler.evidence(text):
            assert e.start <= e.mention_start < e.mention_end <= e.end, text
            assert e.cue in text[e.start : e.end], text
            found.setdefault(e.condition, set()).add(e.label)
        strongest = {
            condition: next(label for label in (P, U, N) if label in seen) for condition, seen in found.items()
        }
        row = labels(labeler, text)
        row.pop("No Finding", None)
        assert strongest == row, text


def findings(table, label):
    for condition, text in table.items():
        for phrase in text.replace("\n", ",").split(","):
            if phrase.strip():
                yield condition, " ".join(phrase.split()), label


@pytest.mark.parametrize(
    ("condition", "phrase", "label"),
    [*findings(phrases.FINDINGS, P), *findings(phrases.UNCERTAIN_FINDINGS, U)],
)
def test_every_phrase_of_the_table_is_read(labeler, condition, phrase, label):
    """Asserted, denied, doubted and written in capitals, whatever else the phrase may mean."""
    for text, expected in (
        (f"{phrase}.", label),
        (f"There is {phrase} today.", label),
        # "No increase" is no denial, see `phrases.NOTHING`.
        (f"NO {phrase.upper()}.", None if phrase.startswith("increase in") else N),
        (f"Possible {phrase}.", U),
    ):
        assert labels(labeler, text).get(condition) == expected, text


def test_case_and_white_space_do_not_matter(labeler):
    for text, expected in CASES:
        variants = [text.upper(), text.lower(), f"  {text} ", text.replace(" ", "  "), text.replace(" ", "\t")]
        if ":" not in text:
            variants.append(text.replace(" ", "\n"))
        for variant in variants:
            assert labels(labeler, variant) == expected, variant


def test_sentences_are_read_one_by_one(labeler):
    """The labels of "A. B." are those of A and of B, the stronger where both speak of a condition."""
    texts = [text for text, _ in CASES if text.endswith(".") and ":" not in text and "\n" not in text]
    rng = random.Random(0)
    for _ in range(2000):
        first, second = rng.choices(texts, k=2)
        alone = labeler([first, second])[:, :13].tolist()
        expected = [max(pair, key=(BLANK, N, U, P).index) for pair in zip(*alone, strict=True)]
        assert labeler([f"{first} {second}"])[0, :13].tolist() == expected, (first, second)


def test_skipped_sections_keep_every_place():
    text = "Indication: edema. Findings: No effusion."
    assert without_skipped_sections(text) == " " * len("Indication: edema.") + " Findings: No effusion."
    assert without_skipped_sections("Findings: No effusion.") == "Findings: No effusion."


def test_form(labeler):
    assert isinstance(labeler, Labeler)
    for texts in ([], [""], ("Effusion.", "No effusion.", "")):
        rows = labeler(texts)
        assert rows.dtype == torch.int64
        assert rows.shape == (len(texts), 14)
    first = labeler(["Effusion."])
    first[:] = 9  # the caller's own: must not reach the cache
    assert labels(labeler, "Effusion.") == {"Pleural Effusion": P}


@pytest.mark.parametrize("cache_size", [0, 1, 7, 65_536])
def test_rows_depend_on_the_text_alone(labeler, cache_size):
    texts = [text for text, _ in CASES]
    alone = {text: labeler([text])[0] for text in texts}
    labeler = RulesLabeler(cache_size)
    drawn = random.Random(cache_size).choices(texts, k=400)
    for size in (1, 5, 394):
        batch, drawn = drawn[:size], drawn[size:]
        assert torch.equal(labeler(batch), torch.stack([alone[text] for text in batch]))
        assert len(labeler._cache) <= cache_size


def test_the_least_recently_used_text_is_forgotten():
    labeler = RulesLabeler(cache_size=2)
    for text in ("Edema.", "Effusion.", "Edema.", "Pneumonia."):
        labeler([text])
    assert set(labeler._cache) == {"Edema.", "Pneumonia."}


def test_bad_input(labeler):
    with pytest.raises(TypeError, match="got one string: put it in a list"):
        labeler("No effusion.")
    for texts, message in (([None], r"texts\[0\].*NoneType"), (["Edema.", "", 3], r"texts\[2\].*int")):
        with pytest.raises(TypeError, match=message):
            labeler(texts)
    with pytest.raises(TypeError, match="list"):
        labeler.evidence(["Edema."])
    with pytest.raises(ValueError, match="at least 0, but got -1"):
        RulesLabeler(cache_size=-1)
