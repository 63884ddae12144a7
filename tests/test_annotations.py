"""Labels of every kind, out of batches and up to the targets: a real Trainer, and what it draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Run, make_run
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from gradcam_callback import GradCAMCallback, ValidationProbes, read_run
from gradcam_callback.demo.shapes import Shapes, ShapesData
from gradcam_callback.probes.annotations import as_rows
from gradcam_callback.probes.source import CaptureContext

IMAGES = torch.rand(3, 3, 8, 10)


def collected(*batches: Any, keeps_batch: bool = False, **options: Any) -> Any:
    collector = ValidationProbes(**options).start(CaptureContext(keeps_batch=keeps_batch))
    for batch in batches:
        collector.add(batch, 0)
    return collector.finish(collector.samples())


@pytest.mark.parametrize(
    "change",
    [
        lambda masks: masks,
        lambda masks: masks.unsqueeze(1),
        lambda masks: masks.to(torch.uint8),
        lambda masks: list(masks),
    ],
    ids=["plain", "with a channel", "bytes", "list"],
)
def test_the_class_of_each_pixel(change: Callable[[Tensor], Any]) -> None:
    masks = torch.randint(0, 5, (3, 8, 10))
    probes = collected((IMAGES, change(masks)))
    assert torch.equal(probes.masks, masks)
    assert (probes.labels, probes.values, probes.notices) == (
        None,
        None,
        ("8 probes were asked for and only 3 such samples passed; all are taken.",),
    )


def test_a_mask_of_noughts_and_ones_may_be_of_floats() -> None:
    probes = collected({"image": IMAGES, "mask": (torch.rand(3, 1, 8, 10) > 0.5).float()}, n=3)
    assert probes.masks.dtype == torch.int64
    assert probes.masks.shape == (3, 8, 10)


def test_numbers_of_pixels_are_no_classes() -> None:
    probes = collected((IMAGES, torch.rand(3, 8, 10)), n=3)
    assert probes.masks is None
    assert "no class indices" in probes.notices[0]


def test_boxes_in_pixels() -> None:
    labels = [{"boxes": torch.tensor([[0.0, 1, 4, 5]] * n), "labels": torch.arange(n), "area": 3} for n in (1, 2)]
    probes = collected((IMAGES[:2], labels), n=2)
    assert [boxes.tolist() for boxes, _ in probes.boxes] == [[[0, 1, 4, 5]], [[0, 1, 4, 5]] * 2]
    assert [classes.tolist() for _, classes in probes.boxes] == [[0], [0, 1]]


def test_boxes_as_shares_of_the_image_beside_class_labels() -> None:
    labels = [{"boxes": torch.tensor([[0.5, 0.5, 0.2, 0.5]]), "class_labels": torch.tensor([4])}]
    probes = collected({"pixel_values": IMAGES[:1], "labels": labels}, n=1)
    [(boxes, classes)] = probes.boxes
    torch.testing.assert_close(boxes, torch.tensor([[4.0, 2.0, 6.0, 6.0]]))
    assert classes.tolist() == [4]


@pytest.mark.parametrize(
    "entry",
    ["abc", [{"box": 1}] * 3, torch.zeros(2, 8, 10), torch.zeros(3, 2, 8, 10), None],
    ids=["text", "no boxes", "too few", "two channels", "nothing"],
)
def test_what_is_no_label_of_any_kind(entry: Any) -> None:
    assert as_rows(entry, 3) is None


def test_the_batch_is_kept_where_a_target_asks_for_it() -> None:
    batches = [{"image": IMAGES, "weight": torch.arange(3.0) + start, "names": list("abc")} for start in (0, 3)]
    probes = collected(*batches, keeps_batch=True, indices=[4, 1])
    assert probes.batch["weight"].tolist() == [4, 1]
    assert probes.batch["names"] == ["b", "b"]
    assert torch.equal(probes.annotations.batch["image"], probes.images)
    assert collected(*batches, n=2).batch is None


# Through a Trainer


class Learner(LightningModule):
    def __init__(self, network: nn.Module, loss: Any) -> None:
        super().__init__()
        self.network, self.criterion = network, loss

    def forward(self, images: Tensor) -> Any:
        return self.network(images)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.criterion(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.training_step(batch, batch_idx)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Pooled(nn.Module):
    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.stage, self.head = nn.Conv2d(3, 6, 3, stride=4, padding=1), nn.Linear(6, outputs)

    def forward(self, images: Tensor) -> Tensor:
        numbers: Tensor = self.head(F.relu(self.stage(images)).mean((2, 3)))
        return numbers


def fitted(folder: Any, module: LightningModule, task: Any, target: Any, **options: Any) -> Run:
    callback = GradCAMCallback("network.stage", probes=3, target=target, **options)
    run = make_run(folder, callback, module, max_epochs=1, limit_train_batches=1, limit_val_batches=1)
    data = ShapesData(task, train=4, validation=4, batch_size=4)
    run.trainer.fit(module, data.train_dataloader(), data.val_dataloader())
    return run


def test_a_segmentation_over_the_label(tmp_path: Any) -> None:
    network = nn.Sequential()
    network.add_module("stage", nn.Conv2d(3, 8, 3, padding=1))
    network.add_module("head", nn.Conv2d(8, 4, 1))
    run = fitted(tmp_path, Learner(network, F.cross_entropy), "segmentation", {"segmentation": "label"})
    result, masks = run.callback.last_result, torch.stack([Shapes("segmentation", 3, seed=1)[i][1] for i in range(3)])
    assert result is not None
    classes = torch.stack([torch.bincount(mask.flatten(), minlength=4)[1:].argmax() + 1 for mask in masks])
    assert torch.equal(result.targets, classes)
    assert torch.equal(result.regions, masks == classes[:, None, None])
    assert run.events.steps("gradcam/network.stage") == [1]
    recording = read_run(run.folder)
    assert recording.classes[0, 0].tolist() == classes.tolist()
    assert recording.predictions[0].tolist() == result.predictions.tolist()
    assert np.isnan(recording.probabilities).all()  # shares of the pixels are none
    assert np.isnan(recording.prediction_probabilities).all()


def test_labels_that_some_have_and_others_not_are_no_nulls(tmp_path: Any) -> None:
    module = Learner(Pooled(3), F.binary_cross_entropy_with_logits)
    run = fitted(tmp_path, module, "multilabel", ["positive", 1], on_null="raise")
    flags = torch.stack([Shapes("multilabel", 3, seed=1)[i][1] for i in range(3)]).sum(1)
    assert flags.min() < flags.max()
    result = run.callback.last_result
    assert result is not None
    assert result.health["network.stage"].state == ("ok",) * 3
    assert run.events.values("gradcam/null_gradients") == [0]
    assert run.callback.alerts == []


def test_a_function_sees_the_batch_as_validation_does(tmp_path: Any) -> None:
    seen: list[Any] = []

    def error(output: Tensor, batch: Any) -> Tensor:
        """How far from the label."""
        seen.append(batch)
        return (output - batch[1]).square().sum(1)

    run = fitted(tmp_path, Learner(Pooled(1), F.mse_loss), "regression", error)
    samples = [Shapes("regression", 3, seed=1)[i] for i in range(3)]
    images, values = (torch.stack(column) for column in zip(*samples, strict=True))
    assert run.callback.alerts == []
    assert torch.equal(seen[-1][0], images)
    assert torch.equal(seen[-1][1], values)


@pytest.mark.parametrize(
    ("task", "target", "told"),
    [
        ("regression", "label", "the probes have no labels"),
        ("regression", "positive", "no labels of the kind"),
        ("multilabel", {"segmentation": "label"}, "needs the label of each pixel"),
        ("multilabel", {"detection": "label"}, "no labelled boxes"),
        ("multilabel", {"similarity": 3}, "no probe 3 to compare with"),
        ("multilabel", {"segmentation": 1}, "needs the logits of pixels"),
    ],
    ids=str,
)
def test_what_the_data_do_not_have_ends_the_run_before_the_first_step(
    tmp_path: Any, task: Any, target: Any, told: str
) -> None:
    loss = F.mse_loss if task == "regression" else F.binary_cross_entropy_with_logits
    module = Learner(Pooled(1 if task == "regression" else 3), loss)
    before = module.network.head.weight.clone()
    with pytest.raises(ValueError, match=told):
        fitted(tmp_path, module, task, target)
    assert torch.equal(module.network.head.weight, before)


def test_a_loader_of_boxes_is_read(tmp_path: Any) -> None:
    loader: DataLoader[Any] = ShapesData("detection", validation=3, batch_size=2).val_dataloader()
    probes = collected(*loader, n=3)
    assert [len(boxes) for boxes, _ in probes.boxes] == [
        len(Shapes("detection", 3, 1)[i][1]["boxes"]) for i in range(3)
    ]
