"""Which method of a LightningModule is called, and how it gets its images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from conftest import Run
from lightning.pytorch import LightningModule
from models import STEPS, Classifier
from torch import Tensor, nn

from gradcam_callback import GradCAMCallback
from gradcam_callback.entry_point import check_method

LAYER = "model.stage"


class Named(Classifier):
    """Its forward returns something else than what is to be explained."""

    def forward(self, images: Tensor) -> Any:
        raise AssertionError("not to be called")

    def classify(self, images: Tensor) -> Tensor:
        return self.model(images)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.classify(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("loss", nn.functional.cross_entropy(self.classify(batch[0]), batch[1]))


class ByKeyword(Classifier):
    def forward(self, *, pixel_values: Tensor) -> Tensor:
        return self.model(pixel_values)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(pixel_values=batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("loss", nn.functional.cross_entropy(self(pixel_values=batch[0]), batch[1]))


@pytest.mark.parametrize(("module", "options"), [(Named, {"forward": "classify"}), (ByKeyword, {})])
def test_a_training_with_another_way_in(
    run: Callable[..., Run], module: type[Classifier], options: dict[str, Any]
) -> None:
    fit = run(GradCAMCallback(LAYER, probes=4, **options), module(), max_epochs=1).fit()
    assert fit.alerts == []
    assert fit.events.steps(f"gradcam/{LAYER}") == [STEPS]


def test_a_method_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(ValueError, match=r"Named has no method 'clasify'. Its own methods: classify, training_step"):
        check_method(Named(), "clasify")


def test_a_module_without_forward_is_helped() -> None:
    class Bare(LightningModule):
        def classify(self, images: Tensor) -> Tensor:
            return images

    with pytest.raises(ValueError, match=r"Bare defines no forward.*with `forward` .*Its own methods: classify\."):
        check_method(Bare(), "forward")
    check_method(Bare(), "classify")


@pytest.mark.parametrize("given", [3, "", "a b", None])
def test_what_is_no_name_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="`forward` is the name of a method"):
        GradCAMCallback(forward=given)
