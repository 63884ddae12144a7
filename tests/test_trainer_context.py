"""What kind of run it is: processes, strategies, and where there can be no maps."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import Run
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
)
from lightning.pytorch.trainer.states import RunningStage
from models import STEPS, Classifier, loader
from torch import Tensor

from gradcam_callback import GradCAMCallback, trainer_context
from gradcam_callback.execution.processes import ProcessGroup

LAYER = "model.stage"


def trainer_with(strategy: Any, size: int = 2) -> Any:
    return SimpleNamespace(strategy=strategy, global_rank=size - 1, world_size=size)


@pytest.mark.parametrize(
    ("strategy", "size", "expected"),
    [
        (SingleDeviceStrategy(), 1, ProcessGroup(0, 1)),
        (DDPStrategy(), 2, ProcessGroup(1, 2)),
        (DDPStrategy(start_method="spawn"), 2, ProcessGroup(1, 2)),
        (DDPStrategy(), 1, ProcessGroup(0, 1)),
        (ModelParallelStrategy(), 2, ProcessGroup(1, 2, sharded=True)),
        (ModelParallelStrategy(), 1, ProcessGroup(0, 1)),
    ],
    ids=["one device", "ddp", "ddp_spawn", "ddp alone", "fsdp2", "fsdp2 alone"],
)
def test_processes_of_a_strategy(strategy: Any, size: int, expected: ProcessGroup) -> None:
    assert trainer_context.processes_of(trainer_with(strategy, size)) == expected
    assert trainer_context.unsupported_reason(trainer_with(strategy, size)) is None


def test_fsdp_1_is_refused() -> None:
    reason = trainer_context.unsupported_reason(trainer_with(FSDPStrategy()))
    assert reason is not None
    assert "flat parameter" in reason


@pytest.mark.parametrize(("stage_3", "refused"), [(True, True), (False, False)])
def test_deepspeed_is_refused_in_stage_3(stage_3: bool, refused: bool) -> None:
    class DeepSpeed(DeepSpeedStrategy):
        """The real one cannot be made without the package."""

        zero_stage_3 = stage_3

        def __init__(self) -> None:
            """Not as DeepSpeed."""

    assert (trainer_context.unsupported_reason(trainer_with(DeepSpeed())) is not None) is refused
    assert trainer_context.processes_of(
        trainer_with(DeepSpeed())
    ).sharded  # not told apart from those that shard weights


def test_an_unsupported_strategy_is_said_before_training_and_the_training_goes_on(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_context, "unsupported_reason", lambda trainer: "its weights are on the moon")
    fit = run(GradCAMCallback(LAYER, probes=4)).fit()

    assert fit.alerts == [("raised", "strategy", "unsupported_strategy", 0)]
    [warning] = fit.our_warnings()
    assert warning.startswith("There are no Grad-CAM maps under this strategy: its weights are on the moon. Use DDP")
    assert fit.events.ours() == {"gradcam/alerts"}
    assert fit.events.steps("gradcam/alerts") == [0]
    assert fit.trainer.global_step == 3 * STEPS


def test_processes_that_are_spawned(run: Callable[..., Run]) -> None:
    """Everything that a spawned process needs has to be pickled, the callback too."""
    look = run(
        GradCAMCallback(LAYER, probes=3), strategy="ddp_spawn_find_unused_parameters_true", devices=2, max_epochs=1
    )
    look.fit(48, 16)

    assert look.events.steps(f"gradcam/{LAYER}") == [STEPS]
    assert look.events.values("gradcam/null_gradients") == [0]
    assert look.trainer.callback_metrics["gradcam/null_gradients"] == 0


def test_lightning_itself_refuses_fsdp_1_without_a_gpu() -> None:
    with pytest.raises(Exception, match="GPU"):
        Trainer(strategy="fsdp", accelerator="cpu", devices=2, logger=False).fit(Classifier(), loader(24))


# What a replica sees of the Trainer


class Talkative(Classifier):
    """Logs, counts on the trainer, and asks it about everything, in `forward`."""

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        trainer = self.trainer
        trainer.calls = getattr(trainer, "calls", 0) + 1
        trainer.callback_metrics["forward"] = torch.tensor(1.0)
        if not trainer.sanity_checking:
            self.log("norm", logits.norm())
            self.log_dict({"mean": logits.mean()})
            self.logger.experiment.add_scalar("direct", logits.sum(), self.global_step)
            self.loggers[0].log_metrics({"again": 1.0}, step=self.global_step)
        return logits * (1 + 1e-3 * trainer.calls) + 0 * self.current_epoch + torch.zeros((), device=self.device)


def test_what_forward_logs_reaches_nobody_in_a_probe_pass(run: Callable[..., Run]) -> None:
    without = run(GradCAMCallback(LAYER, probes=2), Talkative(), folder="without", max_epochs=2)
    without.trainer.callbacks.remove(without.callback)
    without.fit()
    with_it = run(GradCAMCallback(LAYER, probes=2), Talkative(), folder="with", max_epochs=2).fit()

    assert with_it.callback.alerts == []
    assert with_it.events.steps(f"gradcam/{LAYER}") == [STEPS, 2 * STEPS]
    assert with_it.trainer.calls == without.trainer.calls
    for tag in ("norm_step", "norm_epoch", "direct", "again", "val_loss"):
        assert with_it.events.scalars.get(tag) == without.events.scalars.get(tag), tag
    assert with_it.events.steps("direct") != []


@pytest.mark.parametrize("sanity", [0, 1])
def test_a_dry_run_looks_like_a_validation_to_the_model(run: Callable[..., Run], sanity: int) -> None:
    seen = []

    class Asking(Classifier):
        def forward(self, images: Tensor) -> Tensor:
            assert isinstance(self.trainer, Trainer)
            if self.trainer is not fit.trainer:
                stage = self.trainer.state.stage
                seen.append((self.trainer.training, self.trainer.validating, self.trainer.sanity_checking, stage))
            return super().forward(images)

    fit = run(GradCAMCallback(LAYER, probes=2), Asking(), num_sanity_val_steps=sanity, max_epochs=1)
    fit.fit()

    assert len(seen) == 5  # a look at the output, in three passes; the dry run, and the one validation
    assert set(seen) == {(False, True, False, RunningStage.VALIDATING)}
