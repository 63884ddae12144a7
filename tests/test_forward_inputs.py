"""What forward gets of a batch: by the option, or where its signature and the batch agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from conftest import Run, make_run
from lightning.pytorch import LightningModule
from reference import reference_cam, relative_error
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

from gradcam_callback import GradCAMCallback, TensorProbes, ValidationProbes
from gradcam_callback.engine.inputs import IMAGES
from gradcam_callback.probes.forward_inputs import check_inputs, inputs_of, keys_given, needs_batch, remark_on
from gradcam_callback.probes.source import CaptureContext

PIXELS, TABLE, LABELS = torch.rand(3, 3, 8, 8), torch.rand(3, 5), torch.tensor([2, 0, 1])
OTHER = torch.rand(3, 3, 8, 8)


@dataclass
class Sample:
    image: Tensor
    table: Tensor


class Row(NamedTuple):
    label: Tensor
    table: Tensor
    image: Tensor


class Unlike(NamedTuple):
    x: Tensor
    features: Tensor
    truth: Tensor


def call(method: Callable[..., Any], batch: Any, option: Any = None, **source: Any) -> Any:
    """What a method gets of a batch that passes in a validation."""
    needs = {"keeps_batch": needs_batch(method, option), "given": keys_given(method, option)}
    collector = ValidationProbes(n=3, **source).start(CaptureContext(**needs))
    collector.add(batch, 0)
    inputs = inputs_of(method, option, collector.finish(collector.samples()))
    module = nn.Module()
    module.forward = method
    return inputs.call(module)


def seen(*args: Any, **kwargs: Any) -> dict[Any, str]:
    """Which entry each argument is."""
    known = {"pixels": PIXELS, "table": TABLE, "labels": LABELS, "other": OTHER}

    def name(value: Any) -> Any:
        if isinstance(value, list) and all(isinstance(one, Tensor) for one in value):
            return [name(torch.stack(value))]
        if isinstance(value, Tensor):
            return next(key for key, entry in known.items() if entry.shape == value.shape and torch.equal(entry, value))
        return value

    return {**{place: name(value) for place, value in enumerate(args)}, **{key: name(kwargs[key]) for key in kwargs}}


def one(images: Any) -> Any:
    return seen(images)


def keyword(*, image: Any, mask: Any = None) -> Any:
    return seen(image=image)


def optional(pixel_values: Any = None, table: Any = None, labels: Any = None) -> Any:
    return seen(pixel_values, table=table, labels=labels)


def several(*images: Any) -> Any:
    return seen(*images)


def anything(**batch: Any) -> Any:
    return seen(**batch)


def two(image: Any, table: Any) -> Any:
    return seen(image, table)


def described(data: Mapping[str, Any]) -> Any:
    return seen(**data)


def validation_step(sample: Any, number: int = 3) -> Any:
    return {**seen(sample[0]), "counts": number}


def branches(left: Any, right: Any) -> Any:
    return seen(left, right)


def with_labels(images: Any, targets: Any) -> Any:
    return seen(images, targets)


def predict_step(batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
    return {**seen(batch[0]), "counts": (batch_idx, dataloader_idx)}


@pytest.mark.parametrize(
    ("method", "batch", "wanted"),
    [
        (one, PIXELS, {0: "pixels"}),
        (one, (PIXELS, LABELS), {0: "pixels"}),
        (one, {"pixel_values": PIXELS, "labels": LABELS}, {0: "pixels"}),
        (one, [list(PIXELS), LABELS], {0: "pixels"}),
        (keyword, (PIXELS, LABELS), {"image": "pixels"}),
        (optional, (PIXELS, LABELS), {0: "pixels", "table": None, "labels": None}),
        (optional, {"pixel_values": PIXELS, "table": TABLE}, {0: "pixels", "table": "table", "labels": None}),
        (optional, {"pixel_values": PIXELS, "labels": LABELS}, {0: "pixels", "table": None, "labels": None}),
        (several, (PIXELS, LABELS), {0: "pixels"}),
        (anything, {"image": PIXELS, "table": TABLE}, {"image": "pixels", "table": "table"}),
        (anything, (PIXELS, LABELS), {"pixel_values": "pixels"}),
        (two, (PIXELS, TABLE, LABELS), {0: "pixels", 1: "table"}),
        (two, {"image": PIXELS, "table": TABLE, "label": LABELS}, {0: "pixels", 1: "table"}),
        (two, {"x": PIXELS, "table": TABLE, "label": LABELS}, {0: "pixels", 1: "table"}),
        (two, Sample(PIXELS, TABLE), {0: "pixels", 1: "table"}),
        (two, Row(LABELS, TABLE, PIXELS), {0: "pixels", 1: "table"}),
        (two, Unlike(PIXELS, TABLE, LABELS), {0: "pixels", 1: "table"}),
        (one, Sample(PIXELS, TABLE), {0: "pixels"}),
        (described, {"image": PIXELS, "table": TABLE}, {"image": "pixels", "table": "table"}),
        (branches, {"left": PIXELS, "right": OTHER, "label": LABELS}, {0: "pixels", 1: "other"}),
        (branches, {"image": LABELS, "right": OTHER, "left": PIXELS}, {0: "pixels", 1: "other"}),
        (validation_step, (PIXELS, LABELS), {0: "pixels", "counts": 0}),
        (branches, (PIXELS, OTHER), {0: "pixels", 1: "other"}),
        (branches, (PIXELS, OTHER, LABELS), {0: "pixels", 1: "other"}),
        (with_labels, (PIXELS, LABELS), {0: "pixels", 1: "labels"}),
        (predict_step, (PIXELS, LABELS), {0: "pixels", "counts": (0, 0)}),
    ],
)
def test_signature_and_batch_agree(method: Callable[..., Any], batch: Any, wanted: dict[Any, Any]) -> None:
    got = call(method, batch)
    assert {key: value[0] if value == ["pixels"] else value for key, value in got.items()} == wanted


@pytest.mark.parametrize(
    ("option", "batch", "wanted"),
    [
        ("view.image", {"view": {"image": PIXELS}, "table": TABLE}, {0: "pixels"}),
        (["view.image", "table"], {"view": {"image": PIXELS}, "table": TABLE}, {0: "pixels", 1: "table"}),
        ({"a": "table", "b": "image"}, Sample(PIXELS, TABLE), {"a": "table", "b": "pixels"}),
        ([1, 0], (PIXELS, OTHER, LABELS), {0: "other", 1: "pixels"}),
        (0, (PIXELS, LABELS), {0: "pixels"}),
        (["meta.pixels", "other"], {"meta": {"pixels": PIXELS}, "other": OTHER}, {0: "pixels", 1: "other"}),
        ({"mask": "image", "x": "view"}, {"image": OTHER, "view": PIXELS}, {"mask": "other", "x": "pixels"}),
        ("1", (LABELS, PIXELS), {0: "pixels"}),
    ],
)
def test_the_option_says_it(option: Any, batch: Any, wanted: dict[Any, str]) -> None:
    """The images are among what it names, wherever that is."""

    def method(*args: Any, **kwargs: Any) -> Any:
        return seen(*args, **kwargs)

    assert call(method, batch, option) == wanted


@pytest.mark.parametrize(
    ("batch", "wanted"),
    [
        (((PIXELS, TABLE), LABELS), {0: "pixels", 1: "table"}),
        (({"image": PIXELS, "table": TABLE}, LABELS), {0: "pixels", 1: "table"}),
        ({"view": {"image": PIXELS, "table": TABLE}, "table": LABELS}, {0: "pixels", 1: "table"}),
        ({"view": {"image": PIXELS}, "table": TABLE}, {0: "pixels", 1: "table"}),
    ],
    ids=["tuple", "mapping in a tuple", "nearer", "farther"],
)
def test_what_stands_beside_the_images_comes_first(batch: Any, wanted: dict[Any, str]) -> None:
    key = "view.image" if isinstance(batch, dict) else "0.image" if isinstance(batch[0], dict) else "0.0"
    assert call(two, batch, image_key=key) == wanted


def test_the_label_of_a_nested_batch_is_no_part_of_what_holds_the_images() -> None:
    collector = ValidationProbes(n=3, image_key="0.0").start(CaptureContext())
    collector.add(((PIXELS, TABLE), LABELS), 0)
    probes = collector.finish(collector.samples())
    assert torch.equal(probes.labels, LABELS)
    assert probes.notices == ()


@pytest.mark.parametrize(
    ("batch", "told"),
    [
        ((PIXELS, TABLE, LABELS), "which has 1 besides"),
        ({"image": PIXELS, "table": TABLE, "label": LABELS}, "which has 'table' besides"),
        ((PIXELS, LABELS), ""),
        ({"image": PIXELS, "label": LABELS}, ""),
        (PIXELS, ""),
    ],
    ids=["tuple", "mapping", "with a label", "with a named label", "tensor"],
)
def test_what_takes_anything_gets_the_images_and_a_notice(batch: Any, told: str) -> None:
    def forward(*args: Any, **kwargs: Any) -> Any:
        return seen(*args, **kwargs)

    assert call(forward, batch) == {0: "pixels"}
    collector = ValidationProbes(n=3).start(CaptureContext(remark=partial(remark_on, forward, None)))
    collector.add(batch, 0)
    notices = " ".join(collector.finish(collector.samples()).notices)
    assert ("`forward` takes any arguments" in notices) == bool(told)
    assert told in notices
    assert remark_on(forward, ".", batch) == remark_on(two, None, batch) == ""


def test_the_whole_batch_in_its_structure() -> None:
    given = call(lambda batch: batch, Sample(PIXELS, TABLE), ".")
    assert type(given) is Sample
    assert torch.equal(given.image, PIXELS)
    assert torch.equal(given.table, TABLE)


@pytest.mark.parametrize(
    ("method", "batch", "told"),
    [
        (two, (PIXELS, LABELS), r"`two` needs 'image', 'table', .*tuple with 2 entries.*`inputs: \{image: ..., table"),
        (two, {"image": PIXELS, "label": LABELS}, r"the batch has the keys 'image', 'label'"),
        (branches, PIXELS, "`branches` needs 'left', 'right'"),
    ],
)
def test_what_is_left_open_is_refused(method: Callable[..., Any], batch: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        call(method, batch)


def test_an_option_that_does_not_fit_the_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="inputs='meta' is not in the batch: the batch has the keys 'image', 'table'"):
        call(two, {"image": PIXELS, "table": TABLE}, ["image", "meta"])
    with pytest.raises(ValueError, match="are not the images that are shown"):
        call(one, {"image": PIXELS, "table": TABLE}, "table")


@pytest.mark.parametrize("given", [[], {}, 1.5, [True], {1: "image"}, [["image"]]], ids=str)
def test_what_is_no_option_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="`inputs` says which entries of a batch"):
        GradCAMCallback(inputs=given)
    with pytest.raises(ValueError, match="`inputs` says"):
        check_inputs(given)


def test_images_alone_do_not_do_where_more_is_needed() -> None:
    probes = TensorProbes(PIXELS).start(CaptureContext()).finish([])
    assert inputs_of(one, None, probes).args == (IMAGES,)
    with pytest.raises(ValueError, match="`two` gets more than images, and these probes are images alone"):
        inputs_of(two, None, probes)


# Through a Trainer


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stage, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(11, 3)

    def forward(self, image: Tensor, table: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.cat([F.relu(self.stage(image)).mean((2, 3)), table], dim=1))
        return logits


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stage, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 3)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        one, other = (F.relu(self.stage(images)).mean((2, 3)) for images in (left, right))
        logits: Tensor = self.head(one * other)
        return logits


class Learner(LightningModule):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        raise NotImplementedError

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.predict(batch), batch["label"] if isinstance(batch, dict) else batch[-1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.training_step(batch, batch_idx)

    def predict(self, batch: Any) -> Tensor:
        raise NotImplementedError

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class ByName(Learner):
    def forward(self, image: Tensor, table: Tensor) -> Tensor:
        return self.network(image, table)

    def predict(self, batch: Any) -> Tensor:
        return self(batch["image"], batch["table"])


class ByBatch(Learner):
    def predict(self, batch: Any) -> Tensor:
        return self.network(batch["view"]["image"], batch["table"])


class Pairs(Learner):
    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.network(left, right)

    def predict(self, batch: Any) -> Tensor:
        return self(batch[0], batch[1])


def rows(nested: bool = False) -> list[dict[str, Any]]:
    torch.manual_seed(1)
    samples = [{"image": torch.rand(3, 8, 8), "table": torch.rand(5), "label": i % 3} for i in range(6)]
    return [{"view": {"image": one.pop("image")}, **one} for one in samples] if nested else samples


def fitted(folder: Any, module: Learner, samples: list[Any], **options: Any) -> Run:
    callback = GradCAMCallback("network.stage", probes=options.pop("probes", 4), **options)
    run = make_run(folder, callback, module, max_epochs=1)
    loader: DataLoader[Any] = DataLoader(samples, batch_size=3)
    run.trainer.fit(module, loader, loader)
    return run


@pytest.mark.parametrize(
    ("module", "nested", "options"),
    [
        (ByName, False, {}),
        (ByName, True, {"inputs": ["view.image", "table"]}),
        (ByName, True, {"inputs": {"table": "table", "image": "view.image"}}),
        (ByBatch, True, {"forward": "predict", "probes": ValidationProbes(4, image_key="view.image")}),
    ],
    ids=["by name", "nested", "nested, by keyword", "the batch"],
)
def test_each_probe_keeps_what_stands_beside_its_image(
    tmp_path: Any, module: type[Learner], nested: bool, options: dict[str, Any]
) -> None:
    """The probes come from two batches of three, and the maps are those of each image with its own table."""
    if nested and module is ByName:
        module = type("Nested", (ByName,), {"predict": lambda self, b: self(b["view"]["image"], b["table"])})
    run = fitted(tmp_path, module(Network()), rows(nested), **options)
    assert run.callback.alerts == []
    result, batch = run.callback.last_result, default_collate(rows()[:4])
    assert result is not None
    plain = run.module.network
    assert isinstance(plain, nn.Module)

    class Filled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = plain

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.network(images, batch["table"])
            return logits

    wanted = reference_cam(Filled(), batch["image"], "network.stage")
    assert relative_error(result.cams["network.stage"], wanted).max() <= 1e-5
    assert run.events.steps("gradcam/network.stage") == [2]


def test_of_two_branches_the_one_with_the_shown_image_is_explained(tmp_path: Any) -> None:
    torch.manual_seed(2)
    samples = [(torch.rand(3, 8, 8), torch.rand(3, 8, 8), i % 3) for i in range(6)]
    run = fitted(tmp_path, Pairs(Siamese()), samples)
    assert run.callback.alerts == []
    result, (left, right, _) = run.callback.last_result, default_collate(samples[:4])
    assert result is not None
    network = run.module.network

    class Filled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.network(images, right)
            return logits

    wanted = reference_cam(Filled(), left, "network.stage", call=0)
    assert relative_error(result.cams["network.stage"], wanted).max() <= 1e-5
    assert (result.health["network.stage"].call, result.health["network.stage"].calls) == (0, 2)


def test_what_is_left_open_ends_the_run_before_the_first_step(tmp_path: Any) -> None:
    module = ByName(Network())
    module.predict = lambda batch: module(batch[0], torch.zeros(len(batch[0]), 5))  # type: ignore[method-assign]
    before = module.network.head.weight.clone()
    with pytest.raises(ValueError, match=r"`forward` needs 'image', 'table'.*Say it with `inputs`"):
        fitted(tmp_path, module, [(torch.rand(3, 8, 8), i % 3) for i in range(6)])
    assert torch.equal(module.network.head.weight, before)


class Single(Learner):
    """Its images go by the name of `pic`, or `weak` in training."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential())
        self.network.stage, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(F.relu(self.network.stage(x)).mean((2, 3)))
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if isinstance(batch, list):
            batch = {"pic": batch[0], "label": batch[1]}
        return super().training_step(batch.get("labeled", batch), batch_idx)

    def predict(self, batch: Any) -> Tensor:
        return self(batch["weak"] if "weak" in batch else batch["pic"])


def fit_single(folder: Any, train: Callable[[Any], Any], **options: Any) -> Run:
    """With validation batches of `pic` and `label`, and no sanity check."""
    samples = [{"pic": torch.rand(3, 8, 8), "label": number % 3} for number in range(6)]
    callback = GradCAMCallback("network.stage", options.pop("probes", 2), **options)
    run = make_run(folder, callback, Single(), max_epochs=1)
    loaders: list[DataLoader[Any]] = [DataLoader(rows, batch_size=3) for rows in ([*map(train, samples)], samples)]
    run.trainer.fit(run.module, *loaders)
    return run


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"inputs": "image"}, "inputs='image' is not in the batch: the batch has the keys 'pic', 'label'"),
        ({"inputs": {"x": "view.image"}}, r"inputs='view\.image' is not in the batch"),
        ({"inputs": ["label", "image"]}, "inputs='image' is not in the batch"),
        ({"probes": ValidationProbes(2, image_key="img")}, "image_key='img' is not in the batch"),
    ],
    ids=["a key", "by keyword", "one of several", "image_key"],
)
def test_a_missing_image_key_ends_the_run_before_the_first_step(
    tmp_path: Any, options: dict[str, Any], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepped: list[int] = []
    monkeypatch.setattr(Single, "training_step", lambda self, batch, batch_idx: stepped.append(batch_idx))
    with pytest.raises(ValueError, match=told):
        fit_single(tmp_path, lambda one: one, **options)
    assert stepped == []


@pytest.mark.parametrize(
    "train",
    [
        lambda one: {"weak": one["pic"], "strong": one["pic"], "label": one["label"]},
        lambda one: {"labeled": one, "unlabeled": one["pic"]},
        lambda one: {"labeled": one},
        lambda one: (one["pic"], one["label"]),
    ],
    ids=["two views", "two sources", "one source", "a tuple"],
)
def test_a_training_batch_of_another_form_does_not_tell(tmp_path: Any, train: Callable[[Any], Any]) -> None:
    run = fit_single(tmp_path, train, inputs="pic")
    assert run.callback.alerts == []
    assert run.callback.last_result is not None
