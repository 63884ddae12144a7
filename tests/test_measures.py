"""Measures of maps against plain sums over the enlarged pictures, and regions from wherever they come."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import make_run
from models import Classifier, Spots, loader
from torch import Tensor

from gradcam_callback import GradCAMCallback, TensorProbes, read_run
from gradcam_callback.measures import BORDER, Regions, RegionWeights, border_energy, cover, drift, focus
from gradcam_callback.probes import ProbeSet
from gradcam_callback.probes.probe_set import make_probe_set
from gradcam_callback.probes.regions import check_regions, find_regions
from gradcam_callback.results import enlarge

LAYER = "model.stage"


def maps(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


# Drift


def test_drift_is_one_minus_the_cosine() -> None:
    one, other = maps(2, 3, 4, 5), maps(2, 3, 4, 5, seed=1)
    cosine = F.cosine_similarity(torch.from_numpy(one).flatten(2), torch.from_numpy(other).flatten(2), dim=2)
    np.testing.assert_allclose(drift(one, other), 1 - cosine.numpy(), atol=1e-6)
    np.testing.assert_allclose(drift(one, 7 * one), 0, atol=1e-6)
    left, right = np.zeros((1, 1, 2, 2)), np.zeros((1, 1, 2, 2))
    left[..., 0], right[..., 1] = 1, 1
    assert drift(left, right) == 1
    assert np.isnan(drift(left, 0 * left))


# Focus and border


def test_focus_is_1_at_one_cell_and_0_everywhere() -> None:
    even, single = np.ones((1, 1, 4, 6)), np.zeros((1, 1, 4, 6))
    single[..., 2, 3] = 5
    half = np.zeros((1, 1, 4, 6))
    half[..., :3] = 2
    shares = cover((4, 6), 1)
    np.testing.assert_allclose(focus(even, shares), 0, atol=1e-6)
    assert focus(single, shares) == 1
    np.testing.assert_allclose(focus(half, shares), 1 - math.log(12) / math.log(24), rtol=1e-6)
    assert np.isnan(focus(0 * even, shares))


@pytest.mark.parametrize("side", [1, 2, 5, 7, 14, 64])
def test_the_border_of_an_even_map_has_its_share_of_the_area(side: int) -> None:
    shares, inner = cover((side, side), 1), cover((side, side), 1, margin=BORDER)
    np.testing.assert_allclose(border_energy(np.ones((1, 1, side, side)), shares, inner), 7 / 16, rtol=1e-6)


def test_border_energy_counts_parts_of_cells() -> None:
    """Of 4 cells a side the outer ones lie half in the border."""
    corner, middle = np.zeros((1, 1, 4, 4)), np.zeros((1, 1, 4, 4))
    corner[..., 0, 0], middle[..., 1, 2] = 1, 1
    shares, inner = cover((4, 4), 1), cover((4, 4), 1, margin=BORDER)
    assert border_energy(corner, shares, inner) == 0.75
    assert border_energy(middle, shares, inner) == 0


def test_what_lies_outside_of_the_image_does_not_count() -> None:
    extents = np.array([[0, 0, 2, 4]], np.float32)
    given = np.ones((1, 1, 4, 4))
    given[..., 2:, :] = 1000
    shares, inner = cover((4, 4), 1, extents), cover((4, 4), 1, extents, BORDER)
    assert shares.sum() == 8
    np.testing.assert_allclose(border_energy(given, shares, inner), 7 / 16, rtol=1e-6)
    np.testing.assert_allclose(focus(given, shares), 0, atol=1e-6)


# Regions


@pytest.mark.parametrize("extents", [None, [[0.0, 0.0, 5.0, 4.0], [0.5, 1.0, 4.5, 6.0]]], ids=["whole", "a part"])
def test_energy_inside_is_that_of_the_enlarged_pictures(extents: Any) -> None:
    given, size = maps(3, 2, 5, 6), (40, 33)
    masks = tuple(maps(*size, seed=seed) > 0.7 for seed in (1, 2))
    known = None if extents is None else np.array(extents, np.float32)
    weights = RegionWeights.of(Regions(masks), (5, 6), known)
    for target in range(3):
        parts = None if known is None else torch.from_numpy(known)
        pictures = enlarge(torch.from_numpy(given[target]), size, parts).numpy()
        expected = [picture[mask].sum() / picture.sum() for picture, mask in zip(pictures, masks, strict=True)]
        np.testing.assert_allclose(weights.energy_inside(given)[target], expected, rtol=1e-4)


def test_the_pointing_game_asks_where_the_largest_value_is() -> None:
    given = np.zeros((1, 4, 4, 4), np.float32)
    given[0, 0, 1, 2] = given[0, 1, 3, 0] = given[0, 2, 1, 2] = 1
    mask = np.zeros((32, 32), bool)
    mask[8:16, 16:24] = True
    weights = RegionWeights.of(Regions((mask, mask, None, mask)), (4, 4))
    np.testing.assert_array_equal(weights.pointing_game(given), [[1, 0, np.nan, np.nan]])
    np.testing.assert_array_equal(np.isnan(weights.energy_inside(given)), [[False, False, True, True]])


def test_of_equal_cells_the_middle_one_points() -> None:
    """An enlarged map is level within half a cell of the border."""
    mask = np.zeros((8, 8), bool)
    mask[1, 1] = True
    level = np.zeros((1, 1, 8, 8), np.float32)
    level[..., :3, :3] = 1
    weights = RegionWeights.of(Regions((mask,)), (8, 8))
    assert weights.pointing_game(level).item() == 1
    level[..., 1, 1] = 0  # a ring: its middle is none of its cells
    assert weights.pointing_game(level).item() == 0


def test_the_pointing_game_leaves_out_what_is_no_image() -> None:
    given = np.zeros((1, 1, 4, 4), np.float32)
    given[..., 3, 3], given[..., 1, 1] = 9, 1
    mask = np.zeros((20, 20), bool)
    mask[10:, 10:] = True
    weights = RegionWeights.of(Regions((mask,)), (4, 4), np.array([[0, 0, 2, 2]], np.float32))
    assert weights.pointing_game(given) == 1


def test_signals_and_volumes() -> None:
    mask = np.zeros(30, bool)
    mask[:15] = True
    given = np.ones((1, 1, 6), np.float32)
    np.testing.assert_allclose(RegionWeights.of(Regions((mask,)), (6,)).energy_inside(given), 0.5, rtol=1e-6)
    cube = np.zeros((8, 8, 8), bool)
    cube[:2] = True
    weights = RegionWeights.of(Regions((cube,)), (2, 2, 2))
    even = np.ones((1, 1, 2, 2, 2), np.float32)
    np.testing.assert_allclose(weights.energy_inside(even), 0.25, rtol=1e-6)


# Where regions come from


def probe_set(**more: Any) -> ProbeSet:
    return make_probe_set(None, torch.zeros(2, 3, 8, 10), None, ["#0", "#1"], **more)


BOXES = [[1.0, 2.0, 4.0, 6.0], [0.0, 0.0, 10.0, 8.0]]


def masks_of(option: Any, probes: ProbeSet) -> list[int | None]:
    regions = find_regions(option, probes)
    assert regions is not None
    return [None if mask is None else int(mask.sum()) for mask in regions.masks]


def test_regions_from_the_batch_the_labels_a_list_and_a_file(tmp_path: Path) -> None:
    boxes = torch.tensor(BOXES)
    mask = torch.zeros(2, 1, 8, 10)
    mask[0, 0, :3], mask[1, 0, 0, 0] = 1, 1
    batch = {"image": None, "box": boxes, "more": {"boxes": boxes[:, None]}, "mask": mask}
    assert masks_of("box", probe_set(batch=batch)) == [12, 80]
    assert masks_of("more.boxes", probe_set(batch=batch)) == [12, 80]
    assert masks_of("more", probe_set(batch=batch)) == [12, 80]
    assert masks_of("mask", probe_set(batch=batch)) == [30, 1]
    assert masks_of(1, probe_set(batch=[None, list(boxes)])) == [12, 80]
    assert masks_of("labels", probe_set(boxes=[(boxes[:1], None), (boxes, None)])) == [12, 80]
    assert masks_of("labels", probe_set(masks=mask[:, 0].long())) == [30, 1]
    assert masks_of(BOXES, probe_set()) == [12, 80]
    assert masks_of([BOXES[0], None], probe_set()) == [12, None]
    assert masks_of([mask[0, 0].bool(), mask[1, 0].numpy()], probe_set()) == [30, 1]
    file = tmp_path / "boxes.json"
    file.write_text(json.dumps({"#1": [BOXES[0], BOXES[1]], "#0": BOXES[0]}))
    assert masks_of({"file": str(file)}, probe_set()) == [12, 80]
    file.write_text(json.dumps(BOXES))
    assert masks_of({"file": str(file)}, probe_set()) == [12, 80]


def test_boxes_and_masks_of_torchvision() -> None:
    tv_tensors = pytest.importorskip("torchvision.tv_tensors")
    box = tv_tensors.BoundingBoxes([BOXES[0]], format="XYXY", canvas_size=(8, 10))
    wide = tv_tensors.BoundingBoxes([[1.0, 2.0, 3.0, 4.0]], format="XYWH", canvas_size=(8, 10))
    assert masks_of([box, wide], probe_set()) == [12, 12]
    assert masks_of([tv_tensors.Mask(torch.ones(1, 8, 10)), None], probe_set()) == [80, None]


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("labels", "needs labels that are boxes or masks"),
        ("bbox", "regions='bbox' is not in the batch: the batch has the keys 'image'"),
        ([BOXES[0]], "gives 1 regions for 2 probes"),
        ([[1.0, 2.0], BOXES[0]], "The region of probe #0 is a box"),
        (["left", BOXES[0]], "given: 'left'"),
        ([torch.ones(4, 4, 4), None], r"of the size of the image, \(8, 10\); given: a tensor \(4, 4, 4\)"),
    ],
    ids=str,
)
def test_regions_that_cannot_be_found_are_refused(option: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        find_regions(option, probe_set(batch={"image": None}))


def test_options_that_are_no_regions_are_refused(tmp_path: Path) -> None:
    for option in (1.5, True, {"box": "box"}):
        with pytest.raises(ValueError, match="`regions` says where the thing is"):
            check_regions(option)
    with pytest.raises(ValueError, match="which there is not"):
        GradCAMCallback(regions={"file": str(tmp_path / "none.json")})
    (tmp_path / "names.json").write_text('{"a.png": [0, 0, 1, 1]}')
    with pytest.raises(ValueError, match=r"The probes are #0, #1; the file has a\.png"):
        find_regions({"file": str(tmp_path / "names.json")}, probe_set())


# In a run


class Boxed(Spots):
    """Spots with the box of the spot, or of the opposite corner."""

    def __init__(self, where: str = "box", **options: int) -> None:
        super().__init__(**options)
        self.where = where

    def __getitem__(self, index: int) -> Any:
        image, label = super().__getitem__(index)
        third = self.size // 3
        box = torch.tensor([third, label * third, 2 * third, (label + 1) * third]).float()
        return {"image": image, "label": label, "box": box}


class Dictionaries(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step((batch["image"], batch["label"]), batch_idx)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        super().validation_step((batch["image"], batch["label"]), batch_idx)

    test_step = validation_step


def test_measures_are_in_the_scalars_and_in_the_recording(tmp_path: Path) -> None:
    callback = GradCAMCallback([LAYER], probes=4, target=["predicted", 1], regions="box")
    data = loader(Boxed(length=12))
    run = make_run(tmp_path, callback, Dictionaries()).fit(data, data)
    assert callback.alerts == []
    recording, events = read_run(tmp_path), run.events
    assert set(recording.measures) == {"drift", "focus", "border_energy", "energy_inside", "pointing_game"}
    found = recording.maps[LAYER]
    for name, values in ((name, of_layers[LAYER]) for name, of_layers in recording.measures.items()):
        assert values.shape == (3, 2, 4)
        first = values[:, 0]
        expected = np.nanmedian(first[1:], axis=1) if name == "drift" else np.nanmean(first, axis=1)
        np.testing.assert_allclose(events.values(f"gradcam/{name}/{LAYER}"), expected, rtol=1e-5)
    np.testing.assert_allclose(
        recording.measures["drift"][LAYER][1:], [drift(found[1], found[0]), drift(found[2], found[1])], atol=1e-5
    )
    np.testing.assert_allclose(recording.measures["focus"][LAYER][2], focus(found[2], cover((8, 8), 4)), atol=1e-5)
    assert callback.probes is not None
    regions = find_regions("box", callback.probes)
    assert regions is not None
    weights = RegionWeights.of(regions, (8, 8))
    np.testing.assert_allclose(
        recording.measures["energy_inside"][LAYER][2], weights.energy_inside(found[2]), atol=1e-5
    )


def test_other_callbacks_see_the_measures(tmp_path: Path) -> None:
    run = make_run(tmp_path, GradCAMCallback([LAYER], probes=4)).fit()
    for name in ("drift", "worst_drift", "focus", "border_energy"):
        assert 0 <= float(run.trainer.callback_metrics[f"gradcam/{name}/{LAYER}"]) <= 1


def test_regions_that_are_not_in_the_batch_are_refused_before_the_first_step(tmp_path: Path) -> None:
    run = make_run(tmp_path, GradCAMCallback([LAYER], probes=4, regions="bbox"), Dictionaries(), num_sanity_val_steps=1)
    data = loader(Boxed(length=12))
    with pytest.raises(ValueError, match="regions='bbox' is not in the batch"):
        run.fit(data, data)
    assert run.trainer.global_step == 0


def test_regions_that_fail_later_are_an_alert(tmp_path: Path) -> None:
    images, _ = next(iter(loader(4)))
    callback = GradCAMCallback([LAYER], probes=TensorProbes(images), regions=[[0, 0, 4, 4]])
    make_run(tmp_path, callback).fit()
    [alert] = callback.alerts
    assert "gives 1 regions for 4 probes" in alert.message
    assert "drift" in read_run(tmp_path).measures


# The alert


def trained(folder: Path, boxes: list[list[float]], **options: Any) -> Any:
    """Trained until it is right about the probes, which look at the spots."""
    images, labels = next(iter(loader(6)))
    probes = TensorProbes(images, labels)
    callback = GradCAMCallback([LAYER], probes=probes, regions=boxes, **options)
    module = Classifier()
    return make_run(folder, callback, module, max_epochs=25).fit(48, 12)


def spots() -> list[list[float]]:
    return [[5, 5 * (i % 3), 10, 5 * (i % 3) + 5] for i in range(6)]


def elsewhere() -> list[list[float]]:
    return [[0, 11, 4, 16] if i % 3 == 0 else [12, 0, 16, 4] for i in range(6)]


def test_a_model_that_is_right_and_looks_elsewhere_is_told(tmp_path: Path) -> None:
    run = trained(tmp_path / "elsewhere", elsewhere())
    told = [alert for alert in run.callback.alerts if alert.cause and alert.cause.value == "looks_elsewhere"]
    assert told
    assert told[0].status.value == "raised"
    assert told[0].finding.subject == f"regions/{LAYER}"
    for word in ("rightly predicted probes miss their region", "of the energy", "of the image", "lies in the"):
        assert word in told[0].message
    assert any("miss their region" in str(warning.message) for warning in run.warnings)
    statuses = [alert.status.value for alert in told]
    assert all(one != other for one, other in pairwise(statuses))  # and not again in every look
    record, *_ = [alert for alert in read_run(tmp_path / "elsewhere").alerts if alert["status"] == "raised"]
    assert (record["cause"], record["subject"]) == ("looks_elsewhere", f"regions/{LAYER}")


def test_a_model_that_looks_at_the_thing_is_left_alone(tmp_path: Path) -> None:
    """On the way there it may look elsewhere; that is over in the end."""
    alerts = trained(tmp_path, spots()).callback.alerts
    assert {str(alert.cause) for alert in alerts} <= {"looks_elsewhere"}
    assert [alert.status.value for alert in alerts][-1:] in ([], ["cleared"])
