"""Base class of supervised and reinforcement training: a policy, and greedy evaluation by clinical scores.

A checkpoint contains what is trained and the module's arguments, but neither the frozen weights, which are on disk
already, so that loading one loads the policy first, nor the labeler, which belongs to evaluation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import lightning as L
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric

from mrg.datamodules.collate import THINK_PROMPT, Batch, StudyCollator
from mrg.datamodules.study import Study
from mrg.errors import UserError
from mrg.metrics import CEF1, MCCS, RulesLabeler, parse_completion
from mrg.metrics.labels import Labeler, label_together, run_labeler
from mrg.modules.arguments import build_module, plain_arguments, read_checkpoint, saved_shapes
from mrg.modules.checks import check_choice, check_counts, check_lora, check_text_inputs, check_trainer
from mrg.modules.completion import predicted, target_text, tested
from mrg.modules.consensus import Consensus
from mrg.modules.optimizer import OptimizerSettings
from mrg.modules.policy.load import DType, LanguageModel, check_checkpoint, check_frozen, load_policy, policy_digest
from mrg.modules.policy.lora import LoRA
from mrg.modules.policy.policy import Policy, SharedPrefix
from mrg.modules.policy.quantization import check_device
from mrg.modules.policy.ranks import shard
from mrg.modules.policy.tiny import Tiny, tiny_policy
from mrg.modules.rl.monitor import Patience
from mrg.modules.rollout.compiled import CompiledDecoder
from mrg.modules.rollout.sampling import sample
from mrg.strategy import check_ranks, check_strategy

if TYPE_CHECKING:
    from typing_extensions import Self


class ReportModule(L.LightningModule):
    """A policy that is evaluated by the reports it writes.

    Args:
        policy: `"tiny"` for a small model with random weights, a hub id, or a local folder.
        tiny: Shape of the policy if `policy` is `"tiny"`.
        lora: Shape of the LoRA adapter; None trains all weights of the language model.
        language_model: `"smollm2"` replaces the policy's by SmolLM2-135M and trains a new projector; empty keeps it.
        train_vision: Train the vision tower as well.
        dtype: Precision of frozen weights: `"auto"` takes the checkpoint's.
        gradient_checkpointing: Recompute activations in the backward pass, to save memory.
        load_in_4bit: Hold the frozen language model in 4 bits (QLoRA).
        vision_cache: Folder with the image embeddings of a frozen vision tower; empty for no cache.
        shared_prefix: `"auto"` reads a prompt once for all of its completions if the model allows it; `"required"`
            rejects models that do not; `"off"` reads it once per completion in the loss.
        max_pixels: Pixel budget of an image; 0 keeps the checkpoint's.
        max_study_pixels: Pixel budget of a study, divided equally among its views, for a Qwen-VL; 0 sets none.
        pixel_cache: Folder with preprocessed images, for later epochs and runs; empty for no cache.
        prompt: Text of the user's message after the images.
        think: Whether a completion must have a think section (`"required"`) or must not (`"absent"`).
        use_indication: Put the indication into the prompt.
        use_prior: Put the images and the report of the prior study into the prompt, if there is one.
        max_views: Largest number of views per study; the first ones are used.
        max_new_tokens: Largest number of tokens of a completion.
        max_prompt_length: Largest number of tokens of a prompt; 0 sets no limit.
        compile_decode: Compile the decoding steps with `torch.compile`: takes minutes at the start of a run and saves
            time per token where kernel launches dominate, as on a GPU.
        optimizer: Optimizer, learning rate schedule and gradient clipping.
        patience: Number of consecutive steps without a finite loss and gradient, or of consecutive rounds of dead
            groups only, after which training stops.
        margin: Margin of MCCS, in training and in evaluation.
        labeler: Labeler for rewards and scores; `RulesLabeler` by default.

    Raises:
        UserError: If settings are out of range or contradict each other.
    """

    labeler: Labeler
    trained = True
    """Whether there are weights to train, to save in checkpoints and to export."""
    policy: Policy
    """The policy; `setup` and `load_from_checkpoint` load it."""
    consensus: Consensus | None = None  # how reports are chosen from samples; None for greedy decoding
    intact = False
    """Whether a round that failed has changed nothing on any rank, so that the state before it can be saved."""

    def __init__(
        self,
        policy: str = "tiny",
        tiny: Tiny | None = None,
        lora: LoRA | None = None,
        language_model: LanguageModel = "",
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
        think: Literal["required", "absent"] = "required",
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
        self.save_hyperparameters(ignore=["labeler"], logger=False)
        check_choice("think", think, ("required", "absent"))
        check_frozen(train_vision, vision_cache, load_in_4bit, lora, language_model)
        check_counts(max_views=max_views, max_new_tokens=max_new_tokens, patience=patience)
        check_counts(0, max_study_pixels=max_study_pixels)
        check_lora(lora, policy, language_model)
        self.source, self.tiny, self.lora, self.language_model = policy, tiny, lora, language_model
        self.train_vision, self.dtype_name, self.max_pixels = train_vision, dtype, max_pixels
        self.gradient_checkpointing, self.load_in_4bit = gradient_checkpointing, load_in_4bit
        self.vision_cache, self.shared_prefix = vision_cache, shared_prefix
        self.max_study_pixels, self.pixel_cache, self.max_views = max_study_pixels, pixel_cache, max_views
        self.prompt, self.think, self.use_indication, self.use_prior = prompt, think, use_indication, use_prior
        self.max_new_tokens, self.max_prompt_length = max_new_tokens, max_prompt_length
        self.decoder = CompiledDecoder() if compile_decode else None
        self.optimizer_settings, self.margin, self.patience = optimizer, margin, Patience(patience)
        # Frozen weights are not in checkpoints; `on_load_checkpoint` checks that nothing else is missing.
        self.strict_loading = False
        # Not a submodule: a labeler's weights are not the policy's.
        object.__setattr__(self, "labeler", RulesLabeler() if labeler is None else labeler)
        micro, macro = CEF1(labeler=self.labeler), CEF1(average="macro", labeler=self.labeler)
        mccs = MCCS(margin=margin, labeler=self.labeler)
        self.scores = nn.ModuleDict({"mccs": mccs, "ce_f1": micro, "ce_f1_macro": macro})
        # Means over studies or tokens. Lightning's means of logged floats are wrong if ranks have different numbers of
        # studies, because it rounds the mean of their counts to an integer.
        self.means = nn.ModuleDict({"format": MeanMetric()})
        self.predictions: list[dict[str, Any]] = []
        self.truncated: list[bool] = []  # of the last batch; a baseline's are never
        self.num_scored, self.identity = 0, ""

    def setup(self, stage: str) -> None:
        """Load the policy and give the data module its collator."""
        check_trainer(self.trainer, stage)
        check_strategy(self.trainer.strategy, self.load_in_4bit)
        if self.load_in_4bit:
            check_device(self.trainer.strategy.root_device)
        data = getattr(self.trainer, "datamodule", None)
        if data is None:
            raise UserError("Expected the trainer to be given a data module (`data:` in the configuration).")
        if not hasattr(self, "policy"):
            reports = data.train_reports() if self.source == "tiny" else []
            self.policy = self.load(reports, Path(self.trainer.default_root_dir) / "policy")
            if self.vision_cache:
                self.policy.keep_images(Path(self.vision_cache))
        data.setup()
        if stage == "fit":
            check_ranks(len(data.splits["train"]), self.trainer.world_size)
        if stage != "predict":
            check_text_inputs(data, self.use_indication, self.use_prior)
        data.collator = self._collator()

    def _collator(self) -> StudyCollator:
        return StudyCollator(
            self.policy.processor, self.prompt, self.use_indication, self.max_views, self.max_prompt_length,
            self.use_prior, self.max_study_pixels, self.pixel_cache,
        )  # fmt: skip

    def configure_model(self) -> None:
        """Shard the policy over ranks if the strategy is FSDP2."""
        if self.device_mesh is not None and not self.policy.sharded:
            self._identity()  # needs whole weights
            shard(self.policy, self.device_mesh["data_parallel"])

    def load(self, reports: Sequence[str] = (), saved: Path | None = None) -> Policy:
        """Build or load the policy that the settings name.

        Args:
            reports: Training reports, from which the tokenizer of a tiny policy is made.
            saved: Folder in which `fit` saved the policy of the run, for a tiny policy if there are no reports.

        Raises:
            UserError: If a tiny policy has neither.
        """
        if self.source == "tiny" and reports:
            # The words of the prompt are part of the corpus, so that they take few tokens.
            corpus = [*self.target_texts(reports), *[f"user\n{self.prompt}", "assistant\n"] * len(reports)]
            policy = tiny_policy(corpus, self.tiny, self.max_pixels or 112 * 112)
            policy.shared_prefix = self.shared_prefix
            return policy
        if self.source == "tiny":
            if saved is None or not (saved / "config.json").is_file():
                raise UserError(
                    "The tokenizer of a tiny policy is made from training reports, which these data do not have, and "
                    f"{saved} holds no policy: let `fit` finish, or use the data of the run."
                )
            return load_policy(str(saved), train_vision=True, shared_prefix=self.shared_prefix)
        return load_policy(
            self.source, self.lora, self.train_vision, self.dtype_name, self.max_pixels, self.gradient_checkpointing,
            self.load_in_4bit, self.shared_prefix, self.language_model,
        )  # fmt: skip

    def target_texts(self, reports: Sequence[str]) -> list[str]:
        """Completions that supervised training teaches for these reference reports."""
        labels: Iterable[Any] = run_labeler(self.labeler, reports) if reports else ()
        return [target_text(text, row, self.think) for text, row in zip(reports, labels, strict=True)]

    def configure_optimizers(self) -> Any:
        """AdamW with a linear warm-up, then a constant or linearly decaying learning rate."""
        return self.optimizer_settings.build(self.parameters())

    @torch.no_grad()
    def write(self, batch: Batch) -> list[str]:
        """Write the completion of each study of a batch, by greedy decoding or as a consensus of samples."""
        prompts = self.policy.embed(batch)
        if self.consensus:
            rollout = self.consensus.write(self.policy, prompts, batch.study_id, self.max_new_tokens, self.decoder)
        else:
            rollout = sample(self.policy, prompts, 1, self.max_new_tokens, temperature=0.0, decoder=self.decoder)
        self.truncated = rollout.truncated.tolist()
        return rollout.texts

    def _evaluate(self, batch: Batch, stage: str) -> None:
        texts = self.write(batch)
        parsed = [parse_completion(text, self.think) for text in texts]
        reports = [p.report for p in parsed]
        self.num_scored += batch.num_counted
        labels = label_together(self.labeler, reports, batch.target) if batch.counts else []
        # Each report is labeled once per batch, for the scores as for the record. MCCS of an empty report is 0 by text.
        known = (CEF1, MCCS) if all(text.strip() for text in (*reports, *batch.target)) else (CEF1,)
        for name, metric in self.scores.items():
            assert isinstance(metric, Metric)
            if batch.counts:
                metric.update(*(labels if isinstance(metric, known) else (reports, batch.target)))
            # Logged in any case: all ranks must log the same.
            self.log(f"{stage}/{name}", metric, batch_size=batch.num_counted, prog_bar=name != "ce_f1_macro")
        self._log_mean(stage, "format", sum(p.well_formed for p in parsed) / len(parsed), batch.num_counted, batch)
        if stage == "test" and batch.counts:
            cut = self.truncated or [False] * len(batch)
            self.predictions += [tested(*row) for row in zip(batch.studies, texts, parsed, *labels, cut, strict=True)]

    def _log_mean(self, stage: str, name: str, value: float | Tensor, weight: float, batch: Batch, **more: Any) -> None:
        metric = self.means[name]
        assert isinstance(metric, MeanMetric)
        metric.update(value, weight)
        self.log(f"{stage}/{name}", metric, batch_size=batch.num_counted, **more)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Write reports by greedy decoding, and score them."""
        self._evaluate(batch, "val")

    def on_validation_epoch_start(self) -> None:
        """Reset the number of scored studies."""
        self.num_scored = 0

    def on_validation_epoch_end(self) -> None:
        """Check that there was something to score: a checkpoint is chosen by it."""
        if not self.trainer.sanity_checking:
            self._check_scored("val")

    def _check_scored(self, split: str) -> None:
        count = torch.tensor(float(self.num_scored), device=self.device)
        if not float(self.trainer.strategy.reduce(count, reduce_op="sum")):
            first = next(iter(self.trainer.datamodule.skipped[split].values()), None)  # type: ignore[attr-defined]
            reason = "" if first is None else f": {first.reason}"
            raise UserError(f"No study of split {split!r} could be scored{reason}")

    def on_test_start(self) -> None:
        """Reset the predictions."""
        self.predictions, self.num_scored = [], 0

    def on_test_epoch_end(self) -> None:
        """Check that there was something to score."""
        self._check_scored("test")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Write reports by greedy decoding, score and record them."""
        self._evaluate(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, str]]:
        """Write reports by greedy decoding: one record per study."""
        texts = self.write(batch)
        if not batch.counts:
            return []
        pairs = zip(batch.studies, texts, strict=True)
        return [predicted(study, text, parse_completion(text, self.think)) for study, text in pairs]

    @torch.no_grad()
    def write_reports(self, studies: Sequence[Study]) -> list[str]:
        """Write reports by greedy decoding, outside of a trainer.

        Args:
            studies: N studies with images; other fields need not be filled.

        Returns:
            N reports, empty if a completion has no report section.
        """
        completions = self.write(self._collator()(list(studies)).to(self.device))
        return [parse_completion(text, self.think).report for text in completions]

    def _identity(self) -> str:
        """Fingerprint of what a checkpoint depends on without holding it: the tokenizer and the frozen weights."""
        self.identity = self.identity or policy_digest(self.named_parameters(), self.policy.processor.tokenizer)
        return self.identity

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save what is trained and plain values of the arguments."""
        saved = saved_shapes(self, self.policy.adapts_norms)
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in saved}
        checkpoint["identity"] = self._identity()
        checkpoint["patience"] = self.patience.state_dict()
        checkpoint[self.CHECKPOINT_HYPER_PARAMS_KEY] = plain_arguments(self.hparams)
        if self.lora is not None:
            checkpoint["lora_alpha"] = self.lora.alpha

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint belongs to this policy, and restore the counts of `patience`.

        Raises:
            UserError: If trained weights are missing or unexpected, or another tokenizer was used.
        """
        saved = saved_shapes(self, self.policy.adapts_norms)
        check_checkpoint(checkpoint, self.source, saved, self._identity(), self.lora)
        self.patience.load_state_dict(checkpoint.get("patience", {}))

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, map_location: Any = None, *args: Any, **kwargs: Any) -> Self:
        """Load a checkpoint of a run as a module that writes reports.

        Args:
            checkpoint_path: File such as `runs/NAME/checkpoints/best.ckpt`; a tiny policy needs `runs/NAME/policy`.
            map_location: Device of the module; the CPU by default.
            *args: Not used.
            **kwargs: Arguments that differ from those in the checkpoint, and the labeler if it is not the default one.

        Raises:
            UserError: If the checkpoint is sharded or holds no arguments, or does not fit the policy.
        """
        checkpoint = read_checkpoint(path := Path(checkpoint_path))
        module = build_module(cls, checkpoint[cls.CHECKPOINT_HYPER_PARAMS_KEY], kwargs)
        module.policy = module.load(saved=path.parents[1] / "policy" if len(path.parents) > 1 else None)
        module.on_load_checkpoint(checkpoint)
        module.load_state_dict(checkpoint["state_dict"], strict=False)
        return module.to(map_location or "cpu").eval()
