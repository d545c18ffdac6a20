"""Metrics as rewards of TRL's GRPOTrainer.

Choices:

- A reward that fails stops the run and names the completion and its study; it never becomes 0.
- A scorer may return None for a report to which it does not apply; TRL then leaves the reward out of its sum.
- A completion without a report, or with an empty one, scores 0.0 without being passed to the scorer, whose value for an
  empty report may be arbitrary (RaTEScore gives it .5).
- A completion that is a word for a missing value (see `is_missing`) is an empty report. If the reference is missing,
  the reward is None. Both are counted, and the first of each is logged.
- TRL calls a reward with keyword arguments: prompts, completions, completion_ids, its own state, and every other column
  of the dataset. Only the completions, the column of references and an id are read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torchmetrics import Metric

from mrg.errors import ExtensionError, MrgError, UserError, UserTypeError, where_raised
from mrg.files import is_missing
from mrg.log import log
from mrg.metrics.format import format_score, parse_completion
from mrg.metrics.imports import name_of
from mrg.metrics.labels import Scorer
from mrg.metrics.scorer import optional_scores

_NOT_COLUMNS = ("prompts", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments")
_ID_COLUMNS = ("study_id", "id")


class RewardError(ExtensionError):
    """A reward failed on the completion and study in the message; training stops, as a reward of 0 would mislead it."""


class ReportReward:
    """Reward function for TRL from a metric or a scorer; it can be pickled if the metric can.

    Args:
        metric: Object with `scores(preds, target)`, such as `MCCS` and `CEF1(average="example")` with a labeler or
            `ReportScore`, or a callable from two lists of strings to N numbers.
        target: Name of the dataset's column of reference reports.
        think: None if the whole completion is the report; `"required"` or `"absent"` if it has the format of
            `parse_completion`, of which only the report section is scored.
        name: Name under which TRL logs the reward; that of the metric by default.

    Attributes:
        num_empty: Number of completions so far whose report was empty.
        num_without_reference: Number of completions so far whose reference was missing.

    Raises:
        UserTypeError: If the metric is none of these.
        UserError: If smaller values of the metric are better, or `think` is unknown.

    Example:
        >>> from mrg.metrics import MCCS, RulesLabeler
        >>> reward = as_reward(MCCS(labeler=RulesLabeler()))
        >>> reward(completions=["No effusion.", ""], target=["No pleural effusion."] * 2)
        [1.0, 0.0]
    """

    def __init__(
        self, metric: Metric | Scorer, target: str = "target", think: str | None = None, name: str | None = None
    ) -> None:
        if isinstance(metric, type) or not callable(getattr(metric, "scores", metric)):
            raise UserTypeError(f"Expected argument `metric` to be a metric or a scorer, but got {metric!r}.")
        if isinstance(metric, Metric) and not hasattr(metric, "scores"):
            raise UserTypeError(
                f"Expected argument `metric` to score each report, but {type(metric).__name__} has no method `scores`."
            )
        if getattr(metric, "higher_is_better", True) is False:
            raise UserError(f"Expected a metric with higher_is_better=True, but that of {name_of(metric)} is False.")
        if isinstance(metric, Metric) and getattr(metric, "labeler", 0) is None:
            raise UserError(f"Expected {name_of(metric)} to have a labeler, as a reward scores strings.")
        if (average := getattr(metric, "average", "example")) != "example":
            raise UserError(f"Expected `average` to be 'example' for scores per report, but it is {average!r}.")
        if think is not None:
            parse_completion("", think)  # an unknown setting raises here and not in the first step
        self.metric, self.target, self.think = metric, target, think
        self.__name__ = name or name_of(metric)
        self.num_empty = self.num_without_reference = 0

    def __call__(self, completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """Reward N completions.

        Args:
            completions: N strings, or N lists of messages, of which the last one by the assistant counts.
            columns: TRL's other arguments: the columns of the dataset, N values each.

        Returns:
            N rewards; None if the scorer returned it, or if there is no reference.

        Raises:
            UserError: If the column of references is missing or has another length.
            RewardError: If the metric fails on a report or its value is not finite.
        """
        reports = [self._report(index, completion, columns) for index, completion in enumerate(completions)]
        target = self._references(len(reports), columns)
        empty = [index for index, report in enumerate(reports) if is_missing(report)]
        without = [index for index, reference in enumerate(target) if is_missing(reference)]
        self._count(empty, without, columns)
        written = sorted(set(range(len(reports))) - {*empty, *without})
        rewards: list[float | None] = [None if is_missing(reference) else 0.0 for reference in target]
        for index, score in zip(written, self._scores(reports, target, written, columns), strict=True):
            rewards[index] = score
        return rewards

    def _count(self, empty: Sequence[int], without: Sequence[int], columns: dict[str, Any]) -> None:
        """Count empty completions and missing references, and log the first of each."""
        if empty and not self.num_empty:
            log.warning(f"Reward `{self.__name__}`: completion {empty[0]}{_study(empty[0], columns)} is empty: 0.")
        if without and not self.num_without_reference:
            place = f"completion {without[0]}{_study(without[0], columns)}"
            log.warning(f"Reward `{self.__name__}`: {place} has no reference in `{self.target}`: its reward is None.")
        self.num_empty += len(empty)
        self.num_without_reference += len(without)

    def _report(self, index: int, completion: Any, columns: dict[str, Any]) -> str:
        try:
            text = completion_text(completion)
        except UserTypeError as error:
            raise self._error(index, columns, error) from error
        return text if self.think is None else parse_completion(text, self.think).report

    def _references(self, num_completions: int, columns: dict[str, Any]) -> list[str]:
        if self.target not in columns:
            given = ", ".join(sorted(set(columns) - set(_NOT_COLUMNS))) or "none"
            raise UserError(
                f"Expected the dataset to have a column `{self.target}` of reference reports, but its columns besides "
                f"the prompt are: {given}. Rename one, or name it: `as_reward(..., target=…)`."
            )
        target = list(columns[self.target])
        if len(target) != num_completions:
            raise UserError(
                f"Expected the column `{self.target}` to hold {num_completions} reports, but got {len(target)}."
            )
        for index, reference in enumerate(target):
            if not isinstance(reference, str):
                reason = f"the column `{self.target}` holds {type(reference).__name__}, not a string."
                raise self._error(index, columns, reason)
        return target

    def _scores(
        self, reports: Sequence[str], target: Sequence[str], written: Sequence[int], columns: dict[str, Any]
    ) -> list[float | None]:
        """Score the reports in one call; if that fails, one by one, to find the one that fails."""
        scorer = getattr(self.metric, "scores", self.metric)

        def score(indices: Sequence[int]) -> list[float | None]:
            preds, references = ([side[index] for index in indices] for side in (reports, target))
            return optional_scores(scorer, preds, references, self.__name__)

        try:
            scores = score(written)
        except Exception as error:
            for index in written:
                try:
                    score([index])
                except Exception as alone:
                    raise self._error(index, columns, alone) from alone
            raise RewardError(
                f"Reward `{self.__name__}` failed on {len(written)} completions, each of which can be scored alone: "
                f"{_reason(error)}"
            ) from error
        for index, value in zip(written, scores, strict=True):
            if value is not None and not math.isfinite(value):
                raise self._error(index, columns, f"its value is {value}, not a finite number.")
        return scores

    def _error(self, index: int, columns: dict[str, Any], reason: Exception | str) -> RewardError:
        """Error that names the completion, its study if the dataset has an id, and the reason."""
        place = f"completion {index}{_study(index, columns)}"
        return RewardError(f"Reward `{self.__name__}` failed on {place}: {_reason(reason)}")


as_reward = ReportReward


def _study(index: int, columns: dict[str, Any]) -> str:
    """Name of a completion's study in parentheses; empty if the dataset has no ids."""
    return next((f" (study {columns[name][index]})" for name in _ID_COLUMNS if name in columns), "")


def _reason(error: Exception | str) -> str:
    """Message of our own errors; type, message, file and line of those of the user's code."""
    return where_raised(error) if isinstance(error, Exception) and not isinstance(error, MrgError) else str(error)


class FormatReward:
    """Reward function for TRL: 1 for a completion in the valid format, otherwise 0; see `format_score`.

    MRG-R1 adds it to MCCS with `GRPOConfig(reward_weights=[0.75, 0.25])`.

    Args:
        think: `"required"`, or `"absent"` if the policy writes the report alone.
        name: Name under which TRL logs the reward.

    Raises:
        UserError: If `think` is unknown.
    """

    def __init__(self, think: str = "required", name: str = "format") -> None:
        parse_completion("", think)  # an unknown setting raises here
        self.think = think
        self.__name__ = name

    def __call__(self, completions: Sequence[Any], **columns: Any) -> list[float]:
        """Reward N completions, strings or lists of messages: 1.0 for the valid format, otherwise 0.0.

        Raises:
            UserTypeError: If a completion is neither.
        """
        rewards: list[float] = format_score([completion_text(c) for c in completions], self.think).tolist()
        return rewards


format_reward = FormatReward


def completion_text(completion: Any) -> str:
    """Text of a completion in one of TRL's forms.

    Args:
        completion: String, or list of messages `{"role": …, "content": …}`. The last one by the assistant counts; its
            content is a string, a list of parts of which those of type "text" count, or None.

    Raises:
        UserTypeError: If it has another form.
    """
    if isinstance(completion, str):
        return completion
    try:
        replies = [message for message in completion if message.get("role", "assistant") == "assistant"]
        content = replies[-1].get("content") if replies else None
        if isinstance(content, list):
            return "".join([part["text"] for part in content if part["type"] == "text"])
    except (TypeError, AttributeError, KeyError) as error:
        raise UserTypeError(
            f"Expected a completion to be a string or a list of messages, but got {completion!r}."
        ) from error
    if content is not None and not isinstance(content, str):
        raise UserTypeError(
            f"Expected the content of a message to be a string or a list of parts, but got {content!r}."
        )
    return content or ""
