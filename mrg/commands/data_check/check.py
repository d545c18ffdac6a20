"""What should be known of a data set before a model is trained on it: `check_splits`, and its table and page.

Everything here is a function of studies by split, so that any data module, or none, can be checked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mrg.commands.data_check.facts import RememberingLabeler, collect
from mrg.commands.data_check.images import Progress, check_images
from mrg.commands.data_check.labels import measure_prevalence, measure_shift, score_baselines
from mrg.commands.data_check.remarks import remark
from mrg.commands.data_check.reports import count_repeats, count_reports, measure_leakage
from mrg.datamodules.study import Study
from mrg.errors import UserError
from mrg.metrics.labels import Labeler

__all__ = ["check_splits"]


def check_splits(
    splits: Mapping[str, Sequence[Study]],
    labeler: Labeler,
    margin: float = 0.5,
    read_images: bool = True,
    num_workers: int = 0,
    progress: Progress = lambda items, description, total: items,
) -> dict[str, Any]:
    """Check studies and their images.

    Args:
        splits: Studies by split; a sequence may make each study when it is asked for.
        labeler: Labels the references and baselines; it sees each text once.
        margin: Of MCCS.
        read_images: Read every image completely; otherwise only look whether it is there.
        num_workers: Processes that read images.
        progress: Shows how far the reading is.

    Returns:
        A dict that json can write, equal for equal studies: `counts`, `images`, `reports`, `repeats`, `leakage`,
        `labels` and `baselines` as described where each is made, and `remarks`, the sentences to read first.

    Raises:
        ValueError: If there is no study at all.
    """
    if not any(len(studies) for studies in splits.values()):
        raise UserError(f"Expected at least one study to check, but the splits {', '.join(splits)} are empty.")
    remembering = RememberingLabeler(labeler)
    facts = collect(splits, remembering)
    result: dict[str, Any] = {
        "counts": {
            split: {
                "studies": len(part),
                "images": sum(number * count for number, count in part.num_views.items()),
                "patients": len({patient for patient in part.patients if patient >= 0}),
                "without_patient": sum(patient < 0 for patient in part.patients),
                "views": dict(part.views.most_common()),
                "num_views": {str(number): part.num_views[number] for number in sorted(part.num_views)},
                "repeated_ids": part.repeated_ids,
            }
            for split, part in facts.items()
        },
        "reports": count_reports(facts),
        "repeats": count_repeats(facts, splits),
        "leakage": measure_leakage(facts),
        "labels": {
            "labeler": remembering.name,
            "prevalence": measure_prevalence(facts),
            "shift": measure_shift(facts),
        },
        "baselines": score_baselines(facts, splits, remembering, margin),
        "images": check_images(splits, read_images, num_workers, progress),
    }
    return {"remarks": remark(result), **result}
