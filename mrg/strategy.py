"""Strategies for several devices: FSDP2, and the checks of a trainer's strategy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy, Strategy

from mrg.errors import UserError


class FSDP2(ModelParallelStrategy):
    """FSDP2 over all processes: decoder layers are sharded, see `mrg.modules.policy.ranks`.

    Use it to train all weights, or for models whose frozen weights do not fit into memory next to the activations. Up
    to 8B with LoRA, DDP is faster because it never sends weights.

    Args:
        save_distributed_checkpoint: Write one file per rank instead of one file.
        **kwargs: Other arguments of Lightning's `ModelParallelStrategy`.
    """

    def __init__(self, save_distributed_checkpoint: bool = False, **kwargs: Any) -> None:
        super().__init__(
            data_parallel_size=1,
            tensor_parallel_size=1,
            save_distributed_checkpoint=save_distributed_checkpoint,
            **kwargs,
        )
        self.one_file_per_rank = save_distributed_checkpoint

    def setup_environment(self) -> None:
        """Shard over all processes, which are counted only now."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the trained weights; the frozen base is already on disk and is not gathered."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        options = StateDictOptions(
            full_state_dict=not self.one_file_per_rank, cpu_offload=True, ignore_frozen_params=True
        )
        assert self.model is not None
        return get_model_state_dict(self.model, options=options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Check that a checkpoint belongs to the policy before loading its weights."""
        path = Path(self.broadcast(checkpoint_path))
        known = path / "meta.pt" if path.is_dir() else path
        module = self.lightning_module
        assert module is not None
        meta: dict[str, Any] = torch.load(known, map_location="cpu", weights_only=True, mmap=True)
        module.on_load_checkpoint(meta)
        if not path.is_dir():
            return super().load_checkpoint(path, weights_only)
        self._load_parts(path)
        return meta

    def _load_parts(self, path: Path) -> None:
        """Read one file per rank, in which frozen weights are missing; the number of ranks may have changed."""
        from torch.distributed.checkpoint import state_dict as states
        from torch.distributed.checkpoint.state_dict_loader import load

        assert self.model is not None
        options = states.StateDictOptions(ignore_frozen_params=True, strict=False)
        trained = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        weights = states.get_model_state_dict(self.model, options=options)
        found: dict[str, Any] = {"state_dict": {name: value for name, value in weights.items() if name in trained}}
        for index, optimizer in enumerate(self.optimizers):
            found[f"optimizer_{index}"] = states.get_optimizer_state_dict(self.model, optimizer, options=options)
        load(found, checkpoint_id=path)
        states.set_model_state_dict(self.model, found["state_dict"], options=options)
        for index, optimizer in enumerate(self.optimizers):
            states.set_optimizer_state_dict(self.model, optimizer, found[f"optimizer_{index}"], options=options)


def check_strategy(strategy: Strategy, load_in_4bit: bool = False) -> None:
    """Refuse a strategy that the modules do not support, before anything is loaded.

    Args:
        strategy: Strategy of the trainer.
        load_in_4bit: Whether the frozen weights are stored in 4 bits.

    Raises:
        UserError: If it is not a single device, DDP or `FSDP2`, or is `FSDP2` with 4-bit weights.
    """
    if not isinstance(strategy, SingleDeviceStrategy | DDPStrategy | FSDP2):
        raise UserError(
            "Expected trainer.strategy to be 'auto', 'ddp' or mrg.strategy.FSDP2 (configs/strategy/fsdp.yaml), but got "
            f"{type(strategy).__name__}."
        )
    if isinstance(strategy, FSDP2) and load_in_4bit:
        raise UserError(
            "FSDP2 cannot shard 4-bit weights: set trainer.strategy to ddp, or model.init_args.load_in_4bit to false."
        )


def check_ranks(num_studies: int, world_size: int) -> None:
    """Refuse more processes than training studies.

    Raises:
        UserError: If there are more.
    """
    if num_studies < world_size:
        raise UserError(
            f"Expected at least {world_size} training studies, one per process, but the data contain {num_studies}: "
            "lower trainer.devices or num_nodes."
        )
