"""Checks of a data set before training: counts, images, leakage between splits, findings and baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mrg.commands.data_check.images import Progress, check_images
from mrg.commands.data_check.labels import measure_prevalence, measure_shift, score_baselines
from mrg.commands.data_check.messages import check_messages
from mrg.commands.data_check.reports import count_repeats, count_reports, measure_leakage
from mrg.commands.data_check.samples import pick_samples
from mrg.commands.data_check.statistics import collect_statistics
from mrg.datamodules.study import Study
from mrg.errors import UserError
from mrg.metrics.labels import CachingLabeler, Labeler


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
        splits: Studies by split; a sequence may make each study on access.
        labeler: Labels the references and baselines; it is called once per text.
        margin: Margin of MCCS.
        read_images: Decode every image, instead of only checking that it exists.
        num_workers: Number of processes that read images.
        progress: Wraps the images to show progress.

    Returns:
        A dict that can be written as JSON: `messages`, the errors, warnings and notes; and `counts`, `reports`,
        `repeats`, `leakage`, `labels`, `samples`, `baselines` and `images`, as described in the functions that compute
        them.

    Raises:
        UserError: If there are no studies.
    """
    if not any(len(studies) for studies in splits.values()):
        raise UserError(f"Expected at least one study to check, but the splits {', '.join(splits)} are empty.")
    caching = CachingLabeler(labeler)
    statistics = collect_statistics(splits, caching)
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
            for split, part in statistics.items()
        },
        "reports": count_reports(statistics),
        "repeats": count_repeats(statistics, splits),
        "leakage": measure_leakage(statistics),
        "labels": {
            "labeler": caching.name,
            "prevalence": measure_prevalence(statistics),
            "shift": measure_shift(statistics),
        },
        "samples": pick_samples(statistics),
        "baselines": score_baselines(statistics, splits, caching, margin),
        "images": check_images(splits, read_images, num_workers, progress),
    }
    return {"messages": check_messages(result), **result}
