"""The private parts of Lightning that `mrg` relies on, and the loops that take the place of a trainer's own."""

import lightning as L
import pytest
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel
from lightning.pytorch.strategies import ModelParallelStrategy

from mrg.callbacks.training_loop import (
    PRIVATE,
    EpochLoop,
    RoundLoop,
    cluster_environment,
    dump_checkpoint,
    install,
    take_sigterm,
)
from mrg.run.checkpoints import EPOCH, ROUND, UNVALIDATED


def make_trainer(*callbacks, **options):
    given = {"limit_train_batches": 4, "limit_val_batches": 1, "max_epochs": 2, "val_check_interval": 2, **options}
    return L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, callbacks=[*callbacks],
        enable_model_summary=False, **given,
    )  # fmt: skip


@pytest.mark.parametrize(("owner", "name"), [(owner, name) for owner, names in PRIVATE.items() for name in names])
def test_lightning_has_the_private_attributes(owner, name):
    trainer = make_trainer()
    objects = {"trainer": trainer, "fit_loop": trainer.fit_loop, "epoch_loop": trainer.fit_loop.epoch_loop}
    assert name in dir(objects[owner]), (
        f"Lightning {L.__version__} has no {owner}.{name} any more: adapt mrg/callbacks/training_loop.py before "
        "raising the bound in pyproject.toml."
    )


@pytest.mark.parametrize("name", ["_data_parallel_size"])
def test_the_strategy_has_the_private_attributes(name):
    strategy = ModelParallelStrategy()
    assert hasattr(strategy, name), (
        f"Lightning's ModelParallelStrategy has no {name} any more: adapt FSDP2 in mrg/strategy.py before raising the "
        "bound in pyproject.toml."
    )


class Boundaries(Callback):
    """Notes what happens in which order."""

    def __init__(self):
        self.seen = []

    def setup(self, trainer, pl_module, stage):
        self.loop = install(trainer, self.seen.append, lambda: self.seen.append("ready"), lambda: None)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(f"batch {self.loop.num_rounds}")

    def on_validation_end(self, trainer, pl_module):
        self.seen.append("validated")


def test_boundaries_of_a_plain_trainer():
    boundaries = Boundaries()
    trainer = make_trainer(boundaries, num_sanity_val_steps=0)
    before = trainer.fit_loop
    kinds = type(before), type(before.epoch_loop)
    trainer.fit(BoringModel(), BoringDataModule())
    epoch = [ROUND, UNVALIDATED, "validated", ROUND, ROUND, UNVALIDATED, "validated", EPOCH]
    assert [event for event in boundaries.seen if not event.startswith("batch")] == ["ready", *epoch, *epoch]
    # A round has not been counted when its batch ends; at the boundary it has.
    assert [event for event in boundaries.seen if event.startswith("batch")] == [f"batch {n}" for n in range(8)]
    assert boundaries.loop.num_rounds == 8
    assert boundaries.loop.is_last
    assert (type(trainer.fit_loop), type(trainer.fit_loop.epoch_loop)) == (EpochLoop, RoundLoop)
    assert (type(before), type(before.epoch_loop)) == kinds


def test_what_is_read_from_a_trainer():
    boundaries = Boundaries()
    trainer = make_trainer(boundaries, accumulate_grad_batches=3)
    trainer.fit(BoringModel(), BoringDataModule())
    content = dump_checkpoint(trainer)
    assert content["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["completed"] == 8
    assert set(content["state_dict"]) == {"layer.weight", "layer.bias"}
    assert isinstance(cluster_environment(trainer), LightningEnvironment)
    assert take_sigterm(trainer) is False
