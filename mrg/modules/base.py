"""What supervised and reinforcement training share: a policy, its processor, greedy evaluation by clinical scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric

from mrg.datamodules.collate import THINK_PROMPT, Batch, StudyCollator
from mrg.errors import UserError
from mrg.metrics import CEF1, MCCS, RulesLabeler, parse_completion
from mrg.metrics.labelers.base import Labeler
from mrg.modules.completion import predicted, tested
from mrg.modules.policy.fsdp import optimizer_groups, shard
from mrg.modules.policy.load import DType, check_checkpoint, check_frozen, load_policy, policy_digest
from mrg.modules.policy.lora import LoRA
from mrg.modules.policy.policy import Policy, SharedPrefix
from mrg.modules.policy.quantization import check_device
from mrg.modules.policy.tiny import Tiny, tiny_policy
from mrg.modules.rl.monitor import Patience
from mrg.modules.rollout.compiled import CompiledDecoder
from mrg.modules.rollout.sampling import sample
from mrg.modules.settings import (
    OptimizerSettings,
    check_choice,
    check_counts,
    check_lora,
    check_text_inputs,
    check_trainer,
)
from mrg.modules.target import target_text
from mrg.strategy import check_ranks, check_strategy


class ReportModule(L.LightningModule):
    """A policy that is judged by the reports it writes.

    Args:
        policy: `"tiny"` for a small model from random weights, a hub id, or a local folder.
        tiny: Shape of the policy where `policy` is `"tiny"`.
        lora: Shape of the adapter; `None` trains all weights of the language model.
        train_vision: Train the vision tower as well.
        dtype: See `load_policy`.
        gradient_checkpointing: See `load_policy`.
        load_in_4bit: See `load_policy`.
        vision_cache: Folder in which image embeddings of a frozen vision tower are kept; empty keeps none.
        shared_prefix: `"auto"`, `"required"` or `"off"`: see `Policy`.
        max_pixels: Pixel budget of one image; 0 keeps the checkpoint's own.
        max_study_pixels: Pixel budget of a study, of which each of its views gets the same share, for a Qwen-VL; 0 sets
            none.
        pixel_cache: Folder in which shrunk pixels are kept from epoch to epoch and run to run; empty keeps none.
        prompt: The user's text after the images.
        think: Whether a completion must hold a think section: `"required"` or `"absent"`.
        use_indication: Put the indication into the prompt.
        use_prior: Put the images and the report of an earlier study into the prompt, where the data has one.
        max_views: Use only the first so many views of a study.
        max_new_tokens: Longest completion.
        max_prompt_length: Longest prompt in tokens; 0 sets no limit.
        compile_decode: Compile the steps of rollouts and of evaluation, see `CompiledDecoder`: minutes at the start of
            a run, for less time per token where launches bound it, as on a GPU.
        optimizer: Optimizer, learning rate schedule and gradient clipping.
        patience: Steps in a row without a finite gradient, which are left out, or in GRPO rounds of dead groups alone,
            after which training stops.
        margin: Margin of MCCS, in training and in evaluation.
        labeler: Labels reports for rewards and scores; `RulesLabeler` by default.
    """

    labeler: Labeler
    trained = True
    """Whether it has weights to train, to keep in checkpoints and to export."""

    def __init__(
        self,
        policy: str = "tiny",
        tiny: Tiny | None = None,
        lora: LoRA | None = None,
        train_vision: bool = False,
        dtype: DType = "auto",
        gradient_checkpointing: bool = False,
        load_in_4bit: bool = False,
        vision_cache: str = "",
        shared_prefix: SharedPrefix = "auto",
        max_pixels: int = 0,
        max_study_pixels: int = 0,
        pixel_cache: str = "",
        prompt: str = THINK_PROMPT,
        think: str = "required",
        use_indication: bool = False,
        use_prior: bool = False,
        max_views: int = 2,
        max_new_tokens: int = 256,
        max_prompt_length: int = 0,
        compile_decode: bool = False,
        optimizer: OptimizerSettings = OptimizerSettings(),
        patience: int = 10,
        margin: float = 0.5,
        labeler: Labeler | None = None,
    ) -> None:
        super().__init__()
        check_choice("think", think, ("required", "absent"))
        check_frozen(train_vision, vision_cache, load_in_4bit, lora)
        check_counts(
            {
                "max_views": (max_views, 1),
                "max_new_tokens": (max_new_tokens, 1),
                "max_study_pixels": (max_study_pixels, 0),
                "patience": (patience, 1),
            }
        )
        check_lora(lora)
        if policy == "tiny" and lora is not None:
            raise UserError(
                "A tiny policy starts from random weights and takes no adapter: set model.init_args.policy to a "
                "trained folder, for example runs/demo_sft/policy, or model.init_args.lora to null (and for GRPO "
                "kl.reference to 'copy', or kl.coef to 0)."
            )
        self.source, self.tiny, self.lora = policy, tiny, lora
        self.train_vision, self.dtype_name, self.max_pixels = train_vision, dtype, max_pixels
        self.gradient_checkpointing, self.load_in_4bit = gradient_checkpointing, load_in_4bit
        self.vision_cache = vision_cache
        self.max_study_pixels, self.pixel_cache = max_study_pixels, pixel_cache
        self.shared_prefix = shared_prefix
        self.prompt, self.think, self.use_indication, self.max_views = prompt, think, use_indication, max_views
        self.use_prior = use_prior
        self.max_new_tokens, self.max_prompt_length = max_new_tokens, max_prompt_length
        self.decoder = CompiledDecoder() if compile_decode else None
        self.optimizer_settings, self.margin = optimizer, margin
        self.patience = Patience(patience)
        # Frozen weights are not in the checkpoint; `on_load_checkpoint` checks that nothing else is missing.
        self.strict_loading = False
        # Not a submodule: a labeler's weights are not the policy's.
        object.__setattr__(self, "labeler", RulesLabeler() if labeler is None else labeler)
        self.policy: Policy | None = None
        self.identity = ""
        self.scores = nn.ModuleDict(
            {
                "mccs": MCCS(margin=margin, labeler=self.labeler),
                "ce_f1": CEF1(labeler=self.labeler),
                "ce_f1_macro": CEF1(average="macro", labeler=self.labeler),
            }
        )
        # Means over studies. Lightning's own, of logged floats, are wrong where ranks have unequally many: it takes the
        # mean of their counts as a whole number.
        self.means = nn.ModuleDict({"format": MeanMetric()})
        # Whether a round that failed has changed nothing, on any rank: the state after the one before can be saved.
        self.intact = False
        self.predictions: list[dict[str, Any]] = []
        self.num_scored = 0

    def setup(self, stage: str) -> None:
        """Load the policy and give the data module its collator."""
        check_trainer(self.trainer, stage)
        check_strategy(self.trainer.strategy, self.load_in_4bit)
        if self.load_in_4bit:
            check_device(self.trainer.strategy.root_device)
        data = getattr(self.trainer, "datamodule", None)
        if data is None:
            raise UserError("Expected the trainer to be given a data module (`data:` in the configuration).")
        if self.policy is None:
            reports = data.train_reports() if self.source == "tiny" else []
            self.policy = self.load(reports) if reports or self.source != "tiny" else self._load_saved()
            if self.vision_cache:
                self.policy.keep_images(Path(self.vision_cache))
        data.setup()
        if stage == "fit":
            check_ranks(len(data.splits["train"]), self.trainer.world_size)
        if stage != "predict":
            check_text_inputs(data, self.use_indication, self.use_prior)
        data.collator = StudyCollator(
            self.policy.processor,
            self.prompt,
            self.use_indication,
            self.max_views,
            self.max_prompt_length,
            self.use_prior,
            self.max_study_pixels,
            self.pixel_cache,
        )

    def configure_model(self) -> None:
        """Share the policy out over ranks where the strategy is FSDP2."""
        if self.device_mesh is not None and not self.writer.sharded:
            self._identity()  # needs whole weights
            shard(self.writer, self.device_mesh["data_parallel"])

    def _load_saved(self) -> Policy:
        """The run's tiny policy as `fit` saved it: without training reports there is no other way to its tokenizer.

        Raises:
            ValueError: If the run did not save one.
        """
        folder = Path(self.trainer.default_root_dir) / "policy"
        if not (folder / "config.json").is_file():
            raise UserError(
                f"The tokenizer of a tiny policy is made from training reports, which these data do not have, and "
                f"{folder} holds no policy: let `fit` finish, or use the run's own data."
            )
        return load_policy(str(folder), train_vision=True, shared_prefix=self.shared_prefix)

    def load(self, reports: list[str]) -> Policy:
        """Build or load the policy that the settings name."""
        if self.source == "tiny":
            # The prompt's words are part of the corpus, so that they cost few tokens.
            corpus = [*self.target_texts(reports), *[f"user\n{self.prompt}", "assistant\n"] * len(reports)]
            policy = tiny_policy(corpus, self.tiny, self.max_pixels or 112 * 112)
            policy.shared_prefix = self.shared_prefix
            return policy
        return load_policy(
            self.source,
            self.lora,
            self.train_vision,
            self.dtype_name,
            self.max_pixels,
            self.gradient_checkpointing,
            self.load_in_4bit,
            self.shared_prefix,
        )

    def target_texts(self, reports: Sequence[str]) -> list[str]:
        """The completions that supervision teaches for these references."""
        return [target_text(text, row, self.think) for text, row in zip(reports, self.labeler(reports), strict=True)]

    @property
    def writer(self) -> Policy:
        """The policy, once it is set up."""
        assert self.policy is not None, "setup() loads the policy"
        return self.policy

    def configure_optimizers(self) -> Any:
        """AdamW with a linear warm-up, then a constant or linearly decaying learning rate."""
        settings = self.optimizer_settings
        parameters = optimizer_groups(self.parameters(), settings.weight_decay)
        optimizer = torch.optim.AdamW(parameters, settings.learning_rate, betas=(0.9, 0.99))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, settings.scale)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _write(self, batch: Batch) -> list[str]:
        with torch.no_grad():
            prompts = self.writer.embed(batch)
        return sample(self.writer, prompts, 1, self.max_new_tokens, temperature=0.0, decoder=self.decoder).texts

    def _evaluate(self, batch: Batch, stage: str) -> None:
        texts = self._write(batch)
        parsed = [parse_completion(text, self.think) for text in texts]
        reports = [p.report for p in parsed]
        self.num_scored += batch.num_counted
        for name, metric in self.scores.items():
            assert isinstance(metric, Metric)
            if batch.counts:
                metric.update(reports, batch.target)
            # Logged in any case: all ranks must log the same.
            self.log(f"{stage}/{name}", metric, batch_size=batch.num_counted, prog_bar=name != "ce_f1_macro")
        self._log_mean(stage, "format", sum(p.well_formed for p in parsed) / len(parsed), batch)
        if stage == "test" and batch.counts:
            labels = self.labeler(reports)
            self.predictions += [
                tested(study, text, part, row)
                for study, text, part, row in zip(batch.studies, texts, parsed, labels, strict=True)
            ]

    def _log_mean(self, stage: str, name: str, value: float | Tensor, batch: Batch, **options: Any) -> None:
        metric = self.means[name]
        assert isinstance(metric, MeanMetric)
        metric.update(value, batch.num_counted)
        self.log(f"{stage}/{name}", metric, batch_size=batch.num_counted, **options)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Write greedily and score."""
        self._evaluate(batch, "val")

    def on_validation_epoch_start(self) -> None:
        """Count studies from 0."""
        self.num_scored = 0

    def on_validation_epoch_end(self) -> None:
        """Refuse to score nothing: a checkpoint would be chosen by it."""
        if not self.trainer.sanity_checking:
            self._check_scored("val")

    def _check_scored(self, split: str) -> None:
        count = torch.tensor(float(self.num_scored), device=self.device)
        if not float(self.trainer.strategy.reduce(count, reduce_op="sum")):
            first = next(iter(self.trainer.datamodule.skipped[split].values()), None)  # type: ignore[attr-defined]
            reason = "" if first is None else f": {first.reason}"
            raise UserError(f"No study of split {split!r} could be scored{reason}")

    def on_test_start(self) -> None:
        """Forget the predictions of an earlier test."""
        self.predictions = []
        self.num_scored = 0

    def on_test_epoch_end(self) -> None:
        """Refuse to report a test of nothing."""
        self._check_scored("test")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Write greedily, score and keep."""
        self._evaluate(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, str]]:
        """Write greedily: one dict per study."""
        texts = self._write(batch)
        if not batch.counts:
            return []
        return [
            predicted(study, text, parse_completion(text, self.think))
            for study, text in zip(batch.studies, texts, strict=True)
        ]

    def _identity(self) -> str:
        """What a checkpoint's weights depend on without holding it: the tokenizer and the frozen weights."""
        if self.identity:
            return self.identity
        self.identity = policy_digest(self.named_parameters(), self.writer.processor.tokenizer)
        return self.identity

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is trained: the frozen base of a large policy is on disk already."""
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}
        checkpoint["identity"] = self._identity()
        checkpoint["patience"] = self.patience.state_dict()
        if self.lora is not None:
            checkpoint["lora_alpha"] = self.lora.alpha

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint belongs to this policy, and take up how long its run has gone nowhere.

        Raises:
            ValueError: If trained weights are missing, foreign, or made with another tokenizer.
        """
        shapes = {name: p.shape for name, p in self.named_parameters() if p.requires_grad}
        check_checkpoint(checkpoint, self.source, shapes, self._identity(), self.lora)
        self.patience.load_state_dict(checkpoint.get("patience", {}))
