"""Every word the rule-based labeler knows, as one table to read, correct and extend.

How to read it: phrases are separated by commas or line ends and written in small letters and plain words. Hyphens,
slashes and apostrophes separate words ("follow-up" is `follow up`, "can't" is `can t`). The longest phrase at a place
wins, so `pericardial effusion` under `NOTHING` keeps that effusion out of Pleural Effusion. A word under `SPELLINGS` is
replaced by the word at its left before anything is looked up: add plurals and misspellings there and only there.
"""

from __future__ import annotations

SPELLINGS: dict[str, str] = {
    "angle": "angles anlge",
    "arthroplasty": "arthroplasties",
    "atelectasis": "atelectases atelectatic atelectasia atelectesis atelectaisis atlectasis ateletasis atelactasis",
    "blunting": "blunted blunt blunts blurring",
    "border": "borders margin margins",
    "cannot": "cant",
    "cardiomediastinal": "cardiomediastinum cardiomediastinalcardiomediastinal cardiomedistinal cardiomediastial",
    "cardiomegaly": "cardiomegally cardiomegly cardiomegaley cardiomeagly cardiomegalia cardiomagaly",
    "catheter": "catheters cath catether",
    "change": "changes changed",
    "congestion": "congested engorgement engorged",
    "consolidation": "consolidations consolidative consolidated consolidating consolidaton consolidatoin",
    "contour": "contours countour",
    "costophrenic": "costodiaphragmatic cp",
    "density": "densities",
    "defibrillator": "defibrillators aicd icd defib",
    "device": "devices",
    "doubtful": "doubt",
    "edema": "oedema edematous",
    "effusion": "effusions effussion effussions effusons efusion efusions effuson",
    "exclude": "excludes excluding",
    "favor": "favors favoring favour favours favouring",
    "fracture": "fractures fractured fx fxs fracutre",
    "hemothorax": "hemothoraces haemothorax",
    "hydropneumothorax": "hydropneumothoraces",
    "implant": "implants",
    "indeterminate": "indeterminant",
    "infection": "infections",
    "infiltrate": "infiltrates infiltration infiltrations infitrate infilitrate",
    "lead": "leads",
    "lesion": "lesions",
    "limits": "limit",
    "line": "lines",
    "marking": "markings",
    "mass": "masses masslike",
    "mediastinum": "mediastinums medistinum",
    "metastasis": "metastases metastatic mets",
    "nodule": "nodules noduls",
    "opacity": "opacities opacification opacifications opactiy opacites opacitites opacty opacified",
    "osseous": "osseus",
    "pacemaker": "pacemakers pacer pacers",
    "plaque": "plaques",
    "plate": "plates",
    "pneumonia": "pneumonias pneumonic pneumoniae pnuemonia pneumona bronchopneumonia pneumonitis",
    "pneumothorax": "pneumothoraces pneumothoraxes pneumothorases penumothorax pneumthorax pneumothroax ptx",
    "port": "ports portacath mediport infusaport",
    "process": "processes",
    "represent": "represents representing",
    "reflect": "reflects reflecting",
    "rod": "rods",
    "scar": "scars scarring scarred",
    "screw": "screws",
    "shadow": "shadows",
    "silhouette": "silhouettes sihouette silouette silhoutte silhouete",
    "space": "spaces",
    "structure": "structures",
    "sulcus": "sulci",
    "suggest": "suggests suggesting",
    "thickening": "thickened thickenings",
    "tube": "tubes tubing",
    "tumor": "tumors tumour tumours",
    "unremarkable": "unremarkble unremarable",
    "valve": "valves",
    "vasculature": "vascularity vasculaturity vasculatures",
    "versus": "vs vs.",
    "visualize": "visualized visualised",
    "widening": "widened wide widen",
}

FINDINGS: dict[str, str] = {
    "Enlarged Cardiomediastinum": """
        mediastinal widening, mediastinal enlargement, cardiomediastinal enlargement, mediastinal fullness""",
    "Cardiomegaly": """
        cardiomegaly, cardiac enlargement, increase in heart size, increased heart size, increasing heart size,
        increase in cardiac size, increased cardiac size, increase in size of the heart, heart size increased,
        increase in the size of the heart, cardiac size increased, ventricular enlargement, atrial enlargement,
        enlarged left ventricle, enlarged left atrium""",
    "Lung Opacity": """
        opacity, nodular opacity, infiltrate, airspace disease, air space disease, airspace process,
        air space process, alveolar disease, interstitial disease, interstitial lung disease, interstitial marking,
        interstitial prominence, interstitial change, interstitial pattern, interstitial thickening,
        reticular pattern, reticular marking, reticulation, lung marking, pulmonary marking, bronchovascular marking,
        increased density, increased marking, prominent marking, coarse marking, scar, parenchymal scar,
        fibrotic change, peribronchial thickening, peribronchial cuffing, bronchial wall thickening, haziness,
        ground glass, airspace density, air space density, alveolar density, patchy density, hazy density,
        streaky density, linear density, basilar density, retrocardiac density, ill defined density,
        interstitial density, infrahilar density, suprahilar density, perihilar density""",
    "Lung Lesion": """
        nodule, mass, nodular opacity, nodular density, cavitary lesion, cavitary mass, lung lesion,
        pulmonary lesion, mass lesion, nodular lesion, neoplasm, carcinoma, tumor, malignancy, lung cancer,
        lung metastasis, pulmonary metastasis, metastasis, metastasis disease""",
    "Edema": """
        edema, pulmonary edema, interstitial edema, alveolar edema, heart failure, congestive heart failure, chf,
        failure, kerley b line, b line, xxxx b line, septal line, fluid overload, volume overload""",
    "Consolidation": "consolidation, airspace consolidation, air space consolidation, alveolar consolidation",
    "Pneumonia": """
        pneumonia, infection, infectious process, infectious etiology, infectious disease, infectious change,
        infectious infiltrate""",
    "Atelectasis": """
        atelectasis, collapse, lobar collapse, lung collapse, collapsed lung, collapsed lobe,
        collapsed left upper lobe, collapsed left lower lobe, collapsed right upper lobe,
        collapsed right middle lobe, collapsed right lower lobe""",
    "Pneumothorax": "pneumothorax, hydropneumothorax, hemopneumothorax",
    "Pleural Effusion": """
        effusion, pleural effusion, pleural fluid, fluid in the fissure, fissural fluid, hydropneumothorax,
        hemothorax, hemopneumothorax, empyema, layering fluid, pleural or pericardial effusion,
        pericardial or pleural effusion, pericardial and pleural effusion, pleural and pericardial effusion""",
    "Pleural Other": """
        pleural thickening, fibronodular thickening, pleural capping, pleural cap, pleural scar,
        pleural parenchymal scar, pleuroparenchymal scar, pleural plaque, pleural calcification, fibrosis,
        fibrothorax, biapical thickening, apical thickening, thickening of the pleura, fissural thickening,
        apical capping, apical cap, pleural reaction, pleural fibrosis, pleural based thickening,
        pleural parenchymal thickening, pleural mass, pleural nodule, thickening of the fissure""",
    "Fracture": "fracture, broken rib, broken ribs",
    "Support Devices": """
        pacemaker, picc, picc line, catheter, tube, central line, venous line, arterial line, subclavian line,
        jugular line, ij line, dialysis line, line and tube, support device, support line, monitoring device, device,
        port, port a cath, power port, defibrillator, hardware, screw, plate, rod, arthroplasty, prosthesis,
        prosthetic valve, artificial valve, mechanical valve, valve replacement, valve prosthesis, aortic valve,
        mitral valve, pacing lead, pacemaker lead, lead, pulse generator, generator, cannula, stimulator,
        neurostimulator, intra aortic balloon pump, balloon pump, drain, coil, fixation, spinal fusion hardware,
        catheter fracture, lead fracture, wire fracture, screw fracture, hardware fracture, fracture wire,
        fracture sternal wire, fracture lead, xxxx a xxxx, chest xxxx tip, chest xxxx with tip,
        chest xxxx with the tip""",
}
"""Condition -> phrases that assert it where nothing around them says otherwise."""

UNCERTAIN_FINDINGS: dict[str, str] = {
    "Edema": """
        vascular congestion, pulmonary congestion, pulmonary vascular congestion, pulmonary venous congestion,
        venous congestion, central vascular congestion, vascular prominence, pulmonary vascular prominence,
        prominent pulmonary vasculature, prominent vasculature, prominent central vasculature,
        prominent central pulmonary vasculature, prominence of the pulmonary vasculature,
        prominence of the central vasculature, prominence of the vasculature, prominence of pulmonary vasculature,
        prominence of central vasculature, prominence of the central pulmonary vasculature, vasculature is prominent,
        pulmonary vasculature is prominent, pulmonary vasculature is mildly prominent, prominent pulmonary vessels,
        increased pulmonary vasculature, pulmonary vasculature is increased, indistinct vascular margination,
        indistinct central vascular margination, prominent vascular marking, vascular marking are prominent,
        vascular marking are mildly prominent, vascular indistinctness, indistinct pulmonary vasculature,
        cephalization, congestion of the pulmonary vasculature, congestion"""
}
"""Phrases that only hint at a condition: uncertain where asserted, negative where denied (as the CheXpert labeler)."""

ANATOMY: dict[str, str] = {
    "heart": """
        heart, heart size, cardiac size, cardiac silhouette, cardiac contour, cardiac shadow, heart silhouette,
        heart contour, heart shadow, cardiac, cardiac xxxx, heart xxxx, cardiothymic silhouette,
        cardiopulmonary silhouette""",
    "mediastinum": """
        mediastinum, superior mediastinum, upper mediastinum, mediastinal contour, mediastinal silhouette,
        mediastinal size, mediastinal width, mediastinal configuration, mediastinal shadow, mediastinal structure,
        mediastinal xxxx, mediastinal border, mediastinal and, cardiomediastinal, cardiomediastinal silhouette,
        cardiomediastinal contour, cardiomediastinal size, cardio mediastinal, cardio mediastinal silhouette,
        cardio mediastinal contour""",
    "angle": "costophrenic, costophrenic angle, costophrenic sulcus, costophrenic recess, costophrenic xxxx",
    "pleura": "pleural space, pleural cavity, pleural cavities, pleura, pleural surface",
    "other": """
        aorta, aortic, thoracic aorta, hila, hilum, hilar, artery, arteries, pulmonary arteries, pulmonary artery,
        lymph node, lymph nodes, lung, lungs, lung volume, lung volumes, bones, osseous, osseous structure, bony,
        bony structure, spine, ribs, thyroid, diaphragm, hemidiaphragm, trachea, pulmonary vasculature, vasculature,
        soft tissues, abdomen, xxxx xxxx, heart border, cardiac border, cardiac apex, cardiac device, upper abdomen,
        airways, central airways, fissure, chest, examination, study""",
}
"""Structures that say nothing by themselves; a word of `STATES` in the same clause makes them a statement."""

STATES: dict[str, tuple[str, str]] = {
    "enlarged": (
        "heart mediastinum",
        """enlarged, enlargement, large, dilated, increased in size, prominent, prominence, fullness, bulky, big,
        abnormally large, not normal""",
    ),
    "increased": (
        "heart",
        """has increased, have increased, has increased in size, is increased, is increased in size, has enlarged,
        has slightly increased, has mildly increased, has markedly increased, has significantly increased,
        has further increased, is larger, is slightly larger, appears larger, has become larger, appears increased,
        remains increased""",
    ),
    "borderline": (
        "heart mediastinum",
        "borderline, borderline enlarged, borderline in size, borderline size, borderline large, borderline prominent",
    ),
    "widened": ("mediastinum", "widening"),
    "blunted": ("angle", "blunting"),
    "normal": (
        "heart mediastinum angle pleura other",
        """normal, unremarkable, within normal limits, within limits of normal, in normal limits, within normal,
        upper limits of normal, upper limits normal, upper normal, top normal, top limits of normal, high normal,
        within this, limits of normal, nonenlarged, non enlarged, not remarkable, normal in size,
        near top normal limits, upper normal limits, wnl""",
    ),
    "clear": ("angle pleura other", "clear, sharp, preserved, intact, maintained, free"),
    "unchanged": (
        "",
        """stable, unchanged, similar, constant, grossly stable, not changed, not significantly changed,
        not increased, not increased in size, not significantly increased, has not increased, is not increased,
        has not significantly increased, has not increased in size, is not larger, without change,
        without significant change""",
    ),
}
"""Word of state -> the structures it speaks of, and its phrases. Enlarged, widened and increased are abnormal,
borderline and blunted leave it open. A phrase that opens with a verb speaks only of what stands before it."""

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
    cannot be confirmed, may be present, could be present, might be present, is a consideration,
    should be considered, to be considered, can be considered, is suggested, are suggested, is not entirely excluded,
    is a possibility, is in the differential, are in the differential, not fully excluded, cannot be fully excluded,
    is another consideration, is also a consideration, is another possibility, is also possible, is less likely,
    are less likely, is considered less likely, is doubtful"""
"""Make the findings named before uncertain, back to the start of the clause."""

NOT_STATED = """
    rule out, r o, evaluate for, evaluation for, evaluation of, assess for, assessment for, history of, hx of, h o,
    looking for, screening for, if, if there is, if there are, if there is concern for, to exclude, to rule out,
    could obscure, may obscure, might obscure"""
"""Say why one looked, or what once was, not what is there: findings after them stay blank."""

NOT_STATED_AFTER = """
    may not be demonstrated, may not be visible, may not be seen, may not be visualize, may be missed,
    cannot be assessed, cannot be evaluated, is not assessed, are not assessed, is not evaluated, are not evaluated,
    not well assessed, not well evaluated, not adequately evaluated, not adequately assessed"""
"""Say what the image cannot show: the findings named before stay blank."""

NOTHING = """
    pericardial effusion, joint effusion, knee effusion, suprapatellar effusion, pericardial fluid,
    soft tissue edema, subcutaneous edema, laryngeal edema, vertebral collapse, vertebral body collapse, mass effect,
    body mass, breast mass, clear margin, not seen on, not identified on, not visualize on, not evident on,
    not present on, not well seen, not well visualize, not included, not demonstrated on, not definitely seen on,
    not as well, not definitely, not well, not fully, not seen previously, not present in, excluded from,
    excluded on, partially excluded, without correction, no change, no significant change, no interval change,
    no significant interval change, no increase, no interval increase, no significant increase, no decrease,
    no further, without interval change, without significant interval change, no progression, no worsening,
    no interval worsening, not only, not obviously, near resolution, near complete resolution,
    nearly complete resolution, partial resolution, partially resolved, nearly resolved, near completely resolved,
    incompletely resolved, incomplete resolution, not completely resolved, not yet resolved, not resolved,
    partial clearing, monitor lead, cardiac monitor lead, ekg lead, ecg lead, telemetry lead, nipple shadow,
    nipple marker, large volume, upper limits, sternotomy fracture, respiratory failure, renal failure,
    sinus infection, mediastinal lymph nodes, mediastinal lymph node, mediastinal clips, mediastinal shift,
    mediastinal calcifications, mediastinal calcification, mediastinal adenopathy, mediastinal lymphadenopathy,
    soft tissue density, epicardial fat, pericardial fat, bronchovascular crowding, heart disease, cardiac surgery,
    cardiac disease, cardiac catheterization, granulomatous infection, prior infection, previous infection,
    old infection, remote infection, cystic fibrosis, aortic valve calcification, mitral valve calcification,
    thyroid mass, thyroid nodule, pericardial mass, none of, no appreciable change, not appreciably change, free air,
    free intraperitoneal air"""
"""Phrases that would be misread if taken apart; they are skipped whole."""

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
"""End a list: what is named after a comma or "and" that follows them starts anew."""

AFFIRMATION = """
    mild, mildly, moderate, moderately, severe, severely, stable, unchanged, persistent, again, chronic, small,
    minimal, minimally, redemonstrated, healed, healing"""
"""After a comma, "and" or "with", they start a new statement: "no pneumothorax, mild cardiomegaly"."""

SKIPPED_SECTIONS = """
    indication, indications, history, clinical history, clinical information, clinical indication, clinical data,
    reason for exam, reason for the exam, reason for examination, reason for study, notification, comparison,
    comparisons, technique, examination, exam, procedure, views, wet read"""
"""Headings (followed by a colon) of sections that do not describe the image; skipped up to the next heading."""

READ_SECTIONS = (
    "findings, finding, impression, conclusion, report, chest, heart, lungs, pleura, bones, mediastinum, lines"
)
"""Headings of sections that are read."""
