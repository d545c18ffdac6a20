"""Words that negate, hedge or end a statement, as one table in the format described in `phrases.py`."""

from __future__ import annotations

NEGATION_BEFORE = """
    no, not, without, w o, nor, neither, never, negative for, absence of, absent, free of, free from, clear of,
    denies, resolution of, interval resolution of, clearing of, removal of, interval removal of, resolved,
    rather than, instead of, no evidence of, without evidence of, cannot see, fails to show, lack of, lacks,
    interval clearing of, cleared, no longer, nothing to suggest, with resolution of, with interval resolution of,
    with clearing of"""
"""Deny what follows, to the end of the clause."""

NEGATION_AFTER = """
    is not seen, are not seen, was not seen, were not seen, not seen, not identified, not evident, not visualize,
    not demonstrated, not present, not noted, not appreciated, not detected, not apparent, not visible, not found,
    not observed, not suspected, not suggested, is absent, are absent, has resolved, have resolved, resolved,
    has cleared, have cleared, cleared, is resolved, are resolved, has been removed, have been removed, was removed,
    removed, is excluded, are excluded, is ruled out, are ruled out, ruled out, no longer seen, no longer identified,
    no longer present, no longer visualize, no longer evident, is no longer, are no longer, with interval resolution,
    with resolution, has completely resolved, have completely resolved, completely resolved, is unlikely,
    are unlikely, unlikely, is not likely, are not likely, not definitely seen, not definitely identified,
    is negative, are negative, not clearly identified, none, not seen on today, not visualize on today,
    not identified on today, not seen on the current, not visualize on the current, not identified on the current,
    no longer apparent, no longer visible, has disappeared, have disappeared, was withdrawn"""
"""Deny the findings named before, back to the start of the clause."""

UNCERTAINTY_BEFORE = """
    possible, possibly, probable, probably, presumably, presumed, questionable, question, question of, questioned,
    suspected, suspect, suspicious for, suspicion of, suspicion for, concerning for, concern for, worrisome for, may,
    might, could, may represent, may reflect, may be, could represent, could reflect, could be, might represent,
    might be, can represent, can be, suggest, suggestive of, suggestion of, perhaps, borderline, cannot exclude,
    can not exclude, can t exclude, cannot rule out, can not rule out, difficult to exclude, not exclude,
    cannot entirely exclude, cannot completely exclude, cannot definitely exclude, cannot definitively exclude,
    does not exclude, not entirely exclude, not rule out, cannot be certain, equivocal, equivocal for, uncertain,
    versus, differential includes, differential diagnosis includes, less likely, favor, favored, maybe, potential,
    potentially, raise the possibility of, raises the possibility of, raising the possibility of, possibility of,
    indeterminate, consider, unclear, correlate for, in the appropriate clinical setting,
    in the correct clinical setting, in the proper clinical setting, doubtful, low suspicion for,
    differential would include, differential considerations include, differential considerations,
    differential diagnosis, differential diagnoses, differential diagnosis is, considerations include,
    correlate clinically for, clinical correlation for, correlation for"""
"""Make what follows uncertain, to the end of the clause."""

UNCERTAINTY_AFTER = """
    cannot be excluded, can not be excluded, can t be excluded, cannot entirely be excluded, not excluded,
    cannot be entirely excluded, cannot be completely excluded, cannot completely be excluded, cannot be ruled out,
    can not be ruled out, cannot be definitively excluded, cannot be definitely excluded,
    cannot be confidently excluded, not be excluded, not entirely excluded, not completely excluded, is possible,
    are possible, is suspected, are suspected, is questioned, are questioned, is questionable, are questionable,
    is likely not, is considered, are considered, difficult to exclude, is difficult to exclude, not ruled out,
    cannot be confirmed, difficult to exclude, hard to exclude, would be a consideration, would be considered,
    would be considerations, could be considered, remains a consideration, remain a consideration, are considerations,
    are a consideration, remains possible, remain possible, remains a possibility, remain a possibility,
    is a differential consideration, may be present, could be present, might be present, is a consideration,
    should be considered, to be considered, can be considered, is suggested, are suggested, is not entirely excluded,
    is a possibility, is in the differential, are in the differential, not fully excluded, cannot be fully excluded,
    is another consideration, is also a consideration, is another possibility, is also possible, is less likely,
    are less likely, is considered less likely, is doubtful"""
"""Make the findings named before uncertain, back to the start of the clause."""

NOT_STATED = """
    rule out, r o, evaluate for, evaluation for, evaluation of, assess for, assessment for, history of, hx of, h o,
    looking for, screening for, if, if there is, if there are, if there is concern for, to exclude, to rule out,
    could obscure, may obscure, might obscure, sensitivity for, sensitivity to, sensitivity in, sensitive for,
    sensitive to, sensitive in, to detect, for detecting, in detecting, in the detection of, for the detection of,
    detection of, symptoms of, clinical signs of, clinical evidence of"""
"""Say why one looked, or what once was, not what is there: findings after them stay blank."""

NOT_STATED_AFTER = """
    may not be demonstrated, may not be visible, may not be seen, may not be visualize, may be missed,
    cannot be assessed, cannot be evaluated, is not assessed, are not assessed, is not evaluated, are not evaluated,
    not well assessed, not well evaluated, not adequately evaluated, not adequately assessed"""
"""Say what the image cannot show: the findings named before stay blank."""

CLAUSE_END = """
    but, however, although, though, yet, except, except for, aside from, apart from, other than, nevertheless,
    whereas, while, there is, there are, there has been, there have been, there was, there were, otherwise, despite,
    which, with exception of, with the exception of, unless, again seen is, again noted is"""
"""End every scope."""

CAUSE = "due to, secondary to, because of"
"""End every scope too, but not right after a word of doubt: "may be due to pneumonia"."""

VERBS = """
    is, are, was, were, has, have, had, remain, remains, appear, appears, demonstrate, demonstrates, show, shows,
    seen, noted, identified, present, visualize, demonstrated, reveal, reveals"""
"""End a list: what is named after a comma or "and" that follows them starts a new list."""

AFFIRMATION = """
    mild, mildly, moderate, moderately, severe, severely, stable, unchanged, persistent, again, chronic, small,
    minimal, minimally, redemonstrated, healed, healing"""
"""After a comma, "and" or "with", they start a new statement: "no pneumothorax, mild cardiomegaly"."""

UNCERTAINTY_ADJACENT = "suspected, questioned, questionable, possible, not excluded"
"""Make a finding directly before them uncertain: "effusions suspected"."""

EARLIER = """
    previously, previously noted, previously seen, previously described, previously identified, previously visualize,
    prior, previous"""
"""Say that a finding after them was seen on an earlier study."""

UNCERTAINTY_OF_EARLIER = """
    not well seen, not well visualize, not well demonstrated, not well identified, not well appreciated,
    not well defined, not as well seen, not as well visualize"""
"""Make findings before them uncertain that were seen on an earlier study, and state nothing of others."""

INSIDE = """
    entirely, completely, fully, totally, wholly, absolutely, definitely, definitively, confidently, reliably,
    strictly, readily, also, still, now, definite, strongly"""
"""Words that may stand inside a phrase of this table without being written in it."""
