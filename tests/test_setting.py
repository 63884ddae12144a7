"""What kind of run it is: processes, strategies, and where there can be no maps."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Run
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from models import STEPS, Classifier, loader

from gradcam_callback import GradCAMCallback
from gradcam_callback import trainer_context as setting
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
    assert setting.ranks_of(trainer_with(strategy, size)) == expected
    assert setting.obstacle(trainer_with(strategy, size)) is None


def test_fsdp_1_is_an_obstacle() -> None:
    reason = setting.obstacle(trainer_with(FSDPStrategy()))
    assert reason is not None
    assert "flat parameter" in reason


@pytest.mark.parametrize(("stage_3", "refused"), [(True, True), (False, False)])
def test_deepspeed_is_an_obstacle_in_stage_3(monkeypatch: pytest.MonkeyPatch, stage_3: bool, refused: bool) -> None:
    class DeepSpeed(DDPStrategy):
        """The real one cannot be made without the package."""

        zero_stage_3 = stage_3

    monkeypatch.setattr(setting, "DeepSpeedStrategy", DeepSpeed)
    assert (setting.obstacle(trainer_with(DeepSpeed())) is not None) is refused
    assert setting.ranks_of(trainer_with(DeepSpeed())).sharded  # not told apart from those that shard weights


def test_an_obstacle_is_said_before_training_and_the_training_goes_on(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setting, "obstacle", lambda trainer: "its weights are on the moon")
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
