"""When a panel is written for the Images tab; the recording has every look in any case."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from conftest import Run
from lightning.pytorch import Callback
from models import STEPS, Classifier

from gradcam_callback import GradCAMCallback, read_run

MakeRun = Callable[..., Run]
LAYER = "model.stage"
PANEL = f"gradcam/{LAYER}"


def cb(panels: str, **options: Any) -> GradCAMCallback:
    return GradCAMCallback(**{"target_layers": LAYER, "probes": 4, "panels": panels, **options})


@pytest.mark.parametrize(
    ("panels", "steps"),
    [("every look", [STEPS, 2 * STEPS, 3 * STEPS]), ("last", [3 * STEPS]), ("never", [])],
)
def test_the_looks_that_become_panels(run: MakeRun, panels: str, steps: list[int]) -> None:
    fit = run(cb(panels)).fit()
    assert fit.events.steps(PANEL) == steps
    assert len(read_run(fit.folder)) == 3


def test_every_look_is_the_default(run: MakeRun) -> None:
    assert GradCAMCallback().settings.panels == "every look"


class Scripted(Classifier):
    """Predicts one class up to an epoch, and then another; at one of them the gradient is cut."""

    def __init__(self, changes_at: int, cut_at: int) -> None:
        super().__init__()
        self.changes_at, self.cut_at = changes_at, cut_at

    def forward(self, images: Any) -> Any:
        self.model.on_map = (lambda maps: maps.detach()) if self.current_epoch == self.cut_at else None
        logits = super().forward(images)
        return logits * 0 + logits.roll(1, 1) if self.current_epoch >= self.changes_at else logits

    def configure_optimizers(self) -> Any:
        import torch

        return torch.optim.SGD(self.parameters(), lr=0.0)


def test_something_changed_is_a_prediction_or_an_alert(run: MakeRun) -> None:
    fit = run(cb("when something changed"), Scripted(changes_at=2, cut_at=5), max_epochs=8).fit()
    changed = [0, 2, 5, 6]  # the first look, other predictions, an alert that is raised, and cleared
    assert fit.events.steps(PANEL) == [STEPS * (epoch + 1) for epoch in changed]
    assert len(read_run(fit.folder)) == 8


def test_the_last_panel_is_written_when_the_training_fails(run: MakeRun) -> None:
    class Fails(Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 2:
                raise KeyboardInterrupt

    fit = run(cb("last"), callbacks=[Fails()])
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit.fit()
    assert fit.events.steps(PANEL) == [2 * STEPS]


def test_never_still_refuses_impossible_statistics_before_the_first_step(run: MakeRun) -> None:
    with pytest.raises(ValueError, match="mean has 2 numbers"):
        run(cb("never", mean=[0.1, 0.2]), num_sanity_val_steps=1).fit()


def test_a_choice_that_is_not_possible() -> None:
    with pytest.raises(
        ValueError, match=r"panels.*'every look', 'when something changed', 'last', 'never'.*given: 'sometimes'"
    ):
        cb("sometimes")
