"""Phrases that CheXbert labels differently from the plain reading; written as described in `phrases.py`.

The entries are derived from CheXbert's labels of real reports, and each raises the agreement with them. They are used
by `RulesLabeler(convention="chexbert")`, the default.
"""

from __future__ import annotations

OTHER_FINDINGS = """
    degenerative, degenerative change, degenerative disease, degenerative disc disease, osteophyte, osteophytosis,
    spurring, spur, scoliosis, kyphosis, kyphoscoliosis, curvature, dextroscoliosis, levoscoliosis, scoliotic,
    dextrocurvature, levocurvature, kyphotic, osteopenia, osteopenic, demineralization, osteoporosis,
    compression deformity, wedging, loss of height, height loss, arthritis, arthritic, arthropathy, sclerosis,
    sclerotic, hyperostosis, deformity, dislocation, subluxation, separation, bony abnormality, bony finding,
    granuloma, granulomatous, granulomatous infection, calcification, calcified, calcific, atherosclerosis,
    atherosclerotic, arteriosclerosis, arteriosclerotic, tortuous, tortuosity, ectasia, ectatic, unfolded, unfolding,
    uncoiled, aneurysm, aneurysmal, sternotomy, sternotomy fracture, thoracotomy, postoperative, post operative, cabg,
    bypass, lobectomy, mastectomy, suture, staple, stent, resection, hyperinflation, hyperinflated, hyperexpansion,
    hyperaeration, hyperaerated, hyperlucent, hyperlucency, flattening, flattened, emphysema, emphysematous, copd,
    obstructive pulmonary disease, air trapping, air bronchogram, honeycombing, bulla, bullous, bleb, bronchiectasis,
    bronchitis, hypoventilation,
    hypoventilatory, hypoaeration, shallow, crowding, bronchovascular crowding, hernia, eventration, elevation,
    elevated, adenopathy, lymphadenopathy, mediastinal adenopathy, mediastinal lymphadenopathy,
    mediastinal calcification, mediastinal clip, lucency, density, cyst, cystic, cystic fibrosis, foreign body,
    pectus, dextrocardia, situs inversus, right sided aortic arch, mediastinal shift, deviation, distortion,
    volume loss, loss of volume, goiter, pericardial effusion, pneumomediastinum, subcutaneous emphysema, free air,
    free intraperitoneal air, cavity, cavitation, thyroid mass, respiratory failure, blunting, pectoral, breast mass,
    soft tissue density, epicardial fat, pericardial fat, fat pad, aortic valve calcification,
    mitral valve calcification, airspace density, air space density, alveolar density, patchy density, hazy density,
    streaky density, linear density, basilar density, retrocardiac density, ill defined density, interstitial density,
    infrahilar density, suprahilar density, perihilar density, increased density, vascular prominence,
    pulmonary vascular prominence, prominent pulmonary vasculature, prominent vasculature,
    prominent central vasculature, prominent central pulmonary vasculature, prominence of the pulmonary vasculature,
    prominence of the central vasculature, prominence of the vasculature, prominence of pulmonary vasculature,
    prominence of central vasculature, prominence of the central pulmonary vasculature, vasculature is prominent,
    pulmonary vasculature is prominent, pulmonary vasculature is mildly prominent, prominent pulmonary vessels,
    increased pulmonary vasculature, pulmonary vasculature is increased, prominent vascular marking,
    vascular marking are prominent, vascular marking are mildly prominent, interstitial prominence,
    peribronchial cuffing, peribronchial thickening, bronchial wall thickening, haziness, fibrotic change,
    fissural thickening, thickening of the fissure, aortic valve, mitral valve, prosthetic valve, artificial valve,
    mechanical valve, valve replacement, valve prosthesis, prosthesis, arthroplasty, fixation"""
"""Findings outside the conditions that make No Finding blank when asserted. In the plain reading, densities and
thickened bronchi are Lung Opacity, prominent vessels an uncertain Edema, and valves and joints Support Devices."""

FINDINGS: dict[str, str] = {"Lung Lesion": "nodular opacity", "Cardiomegaly": "borderline cardiomegaly"}
"""Condition -> phrases that assert it and no other condition."""

UNSTATED = "xxxx a xxxx, chest xxxx tip, chest xxxx with tip, chest xxxx with the tip, closure device"
"""Names of devices that assert nothing: de-identified ones, and closure devices."""

DENIED_AS: dict[str, str] = {
    "Consolidation": "infiltrate",
    "Fracture": "bony abnormality, bony finding",
}
"""Condition -> phrases whose denial by "no" is one of the condition; another denial of them states nothing."""

CERTAIN = "scar, parenchymal scar"
"""Findings that remain positive when hedged."""

CALCIFIED = "calcified"
"""Words that turn the nodule after them into a finding other than a Lung Lesion."""

OUTLINES = "cardiac contour"
"""Names of the heart that also refer to the mediastinum when they are normal."""

STATES: dict[str, tuple[str, str]] = {
    "enlarged": ("heart", "borderline enlarged, borderline large, is upper limits of normal, is upper limits normal"),
    "abnormal": ("other", "enlarged, enlargement, dilated, prominent, prominence, fullness, increased"),
    "normal": ("outline", "normal, unremarkable, within normal limits, within limits of normal, in normal limits"),
}
"""Additions to `phrases.STATES`."""
