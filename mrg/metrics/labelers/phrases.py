"""The phrases of the rules labeler: plain regular expressions that a radiologist can read and extend."""

from __future__ import annotations

MENTIONS: dict[str, str] = {
    "Enlarged Cardiomediastinum": r"wid(?:ened|ening)[\w ]{0,24}mediastin\w*|mediastin\w* (?:is |are |appears )?(?:widened|enlarged)"
    r"|enlarged (?:cardio)?mediastin\w*(?: silhouette| contour)?|(?:cardio)?mediastinal silhouette is (?:mildly |moderately )?enlarged"
    r"|mediastinal (?:widening|enlargement)|(?:cardio ?)?mediastin(?:um|al)[\w ]{0,30}?(?= (?:is|are|appears?|remains?|within) )",
    "Cardiomegaly": r"cardiomegal\w*|cardiac enlargement|enlarge(?:d|ment)(?: of)? (?:the )?(?:heart|cardiac)(?: silhouette)?"
    r"|(?:heart|cardiac)(?: size| silhouette)?[\w ]{0,14} enlarged|(?:heart|cardiac)(?: size| silhouette| contours?)?",
    "Lung Opacity": r"opaci\w+|airspace (?:disease|opacit\w+)|infiltrat\w+|(?:basilar|lung|focal|retrocardiac) densit\w+",
    "Lung Lesion": r"nodul\w+|\bmass(?:es)?\b|lung lesions?|granulomas?",
    "Edema": r"o?edema|vascular congestion",
    "Consolidation": r"consolidat\w+",
    "Pneumonia": r"pneumonias?\b|bronchopneumonia",
    "Atelectasis": r"atelecta\w+|\bcollapse\b",
    "Pneumothorax": r"pneumothora\w+",
    "Pleural Effusion": r"eff?usions?|pleural fluid|blunting[\w ]{0,20}costophrenic[\w ]{0,10}|costophrenic (?:angles? )?(?:is |are )?blunt\w*",
    "Pleural Other": r"pleural (?:thickening|plaques?|scarring)|fibrothorax",
    "Fracture": r"fractur\w+",
    "Support Devices": r"pacemakers?|catheters?|picc\b|\bet tube|endotracheal tube|\bport\b|central (?:venous )?line"
    r"|\bicd\b|aicd|sternotomy wires|tracheostomy|(?:ng|nasogastric|chest|enteric) tubes?|pacer",
}
"""Condition to what names it. A bare organ ("heart size") counts only with a word of NORMAL or ENLARGED in its clause."""

ORGAN: dict[str, str] = {
    "Enlarged Cardiomediastinum": r"(?:cardio ?)?mediastin(?:um|al)[\w ]*",
    "Cardiomegaly": r"(?:heart|cardiac)(?: size| silhouette| contours?)?",
}
"""Conditions whose mention may be the organ alone."""

NORMAL = r"\b(?:normal|unremarkable|within normal limits|not (?:enlarged|widened)|upper limits of normal|intact|stable in size)\b"
ENLARGED = r"\b(?:enlarged|widened|prominent|borderline|large)\b"

NEGATION_BEFORE = r"\b(?:no|not|without|negative for|free of|absence of|denies|clear of|nor|resolution of|resolved|never|ruled? out)\b"
NEGATION_AFTER = (
    r"^[\w ,]{0,40}?\b(?:(?:is|are|was|were) (?:not|no longer) (?:seen|identified|present|evident|visualized|demonstrated|appreciated)"
    r"|(?:has|have) (?:completely )?(?:resolved|cleared)|not (?:seen|identified|evident)|(?:is|are) absent|unlikely)\b"
)
UNCERTAIN_BEFORE = (
    r"\b(?:possibl[ey]|questionable|question of|may (?:represent|reflect|be)|might|could (?:represent|reflect|be)|suspicio\w+"
    r"|suggest\w*|cannot (?:be )?(?:exclude|rule out)|can(?:not|'t) exclude|concern(?:ing)? for|versus|vs|probabl[ey]|borderline"
    r"|not exclude|equivocal)\b"
)
UNCERTAIN_AFTER = (
    r"^[\w ,]{0,40}?\b(?:can ?not be (?:excluded|ruled out)|not excluded|is (?:possible|suspected|questioned)|may be present"
    r"|difficult to exclude|versus|vs)\b"
)
SCOPE_END = r"\b(?:but|however|although|though|except|aside from|apart from|otherwise)\b|[;:]"
"""A negation or a doubt does not reach across these."""

CONTRARY = r"\bno (?:change|interval change|significant change)\b|\bnot (?:only|significantly changed)\b|\bwithout (?:change|interval change)\b"
"""Phrases that hold a negation word and negate nothing."""
