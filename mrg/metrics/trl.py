"""Metrics as rewards of TRL's GRPOTrainer.

Choices:

- A reward that fails stops the run and names the completion and its study; it never becomes 0.
- A scorer may return None for a report to which it does not apply; TRL then leaves the reward out of its sum.
- A completion without a report, or with an empty one, earns 0.0 before anything is scored: a scorer must not decide
  what silence is worth (RaTEScore gives it .5).
- TRL calls a reward with keyword arguments: prompts, completions, completion_ids, its own state, and every other column
  of the dataset. Only the completions, the column of references and an id are read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torchmetrics import Metric

from mrg.errors import RunError, UserError, UserTypeError
from mrg.metrics.format import format_score, parse_completion
from mrg.metrics.labels import Scorer
from mrg.metrics.named import name_of
from mrg.metrics.scorer import optional_scores

_NOT_COLUMNS = ("prompts", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments")
_ID_COLUMNS = ("study_id", "id")


class RewardError(RunError):
    """A reward failed; the message names the completion and its study. Training stops: a 0 would teach wrongly."""


def as_reward(
    metric: Metric | Scorer, target: str = "target", think: str | None = None, name: str | None = None
) -> ReportReward:
    """Make a reward function for TRL from a metric or a scorer.

    Args:
        metric: An object with `scores(preds, target)`, such as `MCCS` and `CEF1(average="example")` with a labeler or
            `ReportScore`, or a callable from two lists of strings to N numbers.
        target: The dataset's column of reference reports.
        think: None where the whole completion is the report; `"required"` or `"absent"` where it has the format of
            `parse_completion`, of which only the report section is scored.
        name: Under which TRL logs the reward; that of the metric by default.

    Raises:
        TypeError: If the metric is none of these.
        ValueError: If smaller values of the metric are better, or `think` is unknown.

    Example:
        >>> from mrg.metrics import MCCS, RulesLabeler
        >>> reward = as_reward(MCCS(labeler=RulesLabeler()))
        >>> reward(completions=["No effusion.", ""], target=["No pleural effusion."] * 2)
        [1.0, 0.0]
    """
    return ReportReward(metric, target, think, name)


def format_reward(think: str = "required", name: str = "format") -> FormatReward:
    """Make a reward function for TRL that pays 1 for a completion in the format, otherwise 0; see `format_score`.

    MRG-R1 adds it to MCCS as `GRPOConfig(reward_weights=[0.75, 0.25])`.

    Args:
        think: `"required"`, or `"absent"` where the policy writes the report alone.
        name: Under which TRL logs the reward.

    Raises:
        ValueError: If `think` is unknown.
    """
    return FormatReward(think, name)


class ReportReward:
    """What `as_reward` returns: a plain object, so that it can be pickled where its metric can."""

    def __init__(self, metric: Any, target: str = "target", think: str | None = None, name: str | None = None) -> None:
        if isinstance(metric, type) or not callable(getattr(metric, "scores", metric)):
            raise UserTypeError(f"Expected argument `metric` to be a metric or a scorer, but got {metric!r}.")
        if isinstance(metric, Metric) and not hasattr(metric, "scores"):
            raise UserTypeError(
                f"Expected argument `metric` to score each report, but {type(metric).__name__} has no method `scores`."
            )
        if getattr(metric, "higher_is_better", True) is False:
            raise UserError(f"Expected a metric of which more is better, but {name_of(metric)} says otherwise.")
        if isinstance(metric, Metric) and getattr(metric, "labeler", 0) is None:
            raise UserError(f"Expected {name_of(metric)} to have a labeler: a reward is paid for strings.")
        if getattr(metric, "average", "example") != "example":
            raise UserError(f"Expected `average` to be 'example' for scores per report, but it is {metric.average!r}.")
        if think is not None:
            parse_completion("", think)  # raises now and not in the first step where the setting is unknown
        self.metric, self.target, self.think = metric, target, think
        self.__name__ = name or name_of(metric)

    def __call__(self, completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """Reward N completions.

        Args:
            completions: N strings, or N lists of messages, of which the last one by the assistant counts.
            columns: What TRL passes besides: the columns of the dataset, N values each.

        Returns:
            N rewards; None where the scorer returned it.

        Raises:
            ValueError: If the column of references is missing or has another length.
            RewardError: If the metric fails on a report or its value is not finite.
        """
        reports = [self._report(index, completion, columns) for index, completion in enumerate(completions)]
        target = self._references(len(reports), columns)
        written = [index for index, report in enumerate(reports) if report.strip()]
        rewards: list[float | None] = [0.0] * len(reports)
        for index, score in zip(written, self._scores(reports, target, written, columns), strict=True):
            rewards[index] = score
        return rewards

    def _report(self, index: int, completion: Any, columns: dict[str, Any]) -> str:
        try:
            text = completion_text(completion)
        except TypeError as error:
            raise RewardError(self._message(index, columns, error)) from error
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
                error = f"the column `{self.target}` holds {type(reference).__name__}, not a string."
                raise RewardError(self._message(index, columns, error))
        return target

    def _scores(
        self, reports: Sequence[str], target: Sequence[str], written: Sequence[int], columns: dict[str, Any]
    ) -> list[float | None]:
        """Score the written reports together, and one by one where that fails, to say which one it was."""
        scorer = getattr(self.metric, "scores", self.metric)
        try:
            preds = [reports[index] for index in written]
            scores = optional_scores(scorer, preds, [target[index] for index in written], self.__name__)
        except Exception as error:
            for index in written:
                try:
                    optional_scores(scorer, [reports[index]], [target[index]], self.__name__)
                except Exception as alone:
                    raise RewardError(self._message(index, columns, alone)) from alone
            message = (
                f"Reward `{self.__name__}` failed on {len(written)} completions, each of which can be scored alone"
            )
            raise RewardError(f"{message}: {error}") from error
        for index, score in zip(written, scores, strict=True):
            if score is not None and not math.isfinite(score):
                raise RewardError(self._message(index, columns, f"its value is {score}, not a finite number."))
        return scores

    def _message(self, index: int, columns: dict[str, Any], reason: object) -> str:
        """Which completion failed, of which study where the dataset says it, and why."""
        study = next((f" (study {columns[name][index]})" for name in _ID_COLUMNS if name in columns), "")
        return f"Reward `{self.__name__}` failed on completion {index}{study}: {reason}"


class FormatReward:
    """What `format_reward` returns."""

    def __init__(self, think: str = "required", name: str = "format") -> None:
        parse_completion("", think)  # raises where the setting is unknown
        self.think = think
        self.__name__ = name

    def __call__(self, completions: Sequence[Any], **columns: Any) -> list[float]:
        """Reward N completions, strings or lists of messages: 1.0 for one in the format, otherwise 0.0.

        Raises:
            TypeError: If a completion is neither.
        """
        rewards: list[float] = format_score([completion_text(c) for c in completions], self.think).tolist()
        return rewards


def completion_text(completion: Any) -> str:
    """The text of a completion in one of TRL's forms.

    Args:
        completion: A string, or a list of messages `{"role": …, "content": …}`. The last one by the assistant counts;
            its content is a string, a list of parts of which those of type "text" count, or None.

    Raises:
        TypeError: If it is something else.
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
