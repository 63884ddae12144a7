"""What the records do by themselves: enlarge and scale maps, tell null probes, and stay as they are."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from gradcam_callback.causes import Cause
from gradcam_callback.errors import BadInputError
from gradcam_callback.probes.probe_set import ProbeSet
from gradcam_callback.results import CAMResult, GradientState, LayerHealth

NAN = math.nan


def result(*cams: Tensor, size: tuple[int, int] = (4, 6)) -> CAMResult:
    n = len(cams[0])
    classes = torch.zeros(n, dtype=torch.int64)
    maps = {f"layer{position}": cam for position, cam in enumerate(cams, 1)}
    return CAMResult(maps, classes, torch.zeros(n), classes, torch.full((n, 2), 0.5), {}, size)


# Heatmaps


@pytest.mark.parametrize(("size", "expected"), [(None, (4, 6)), ((9, 5), (9, 5)), ((2, 2), (2, 2)), ((1, 3), (1, 3))])
def test_heatmaps_have_the_size_of_the_inputs_or_the_one_asked_for(
    size: tuple[int, int] | None, expected: tuple[int, int]
) -> None:
    heatmaps = result(torch.rand(3, 2, 2), torch.rand(3, 7, 1)).heatmaps(size)
    assert list(heatmaps) == ["layer1", "layer2"]
    for heatmap in heatmaps.values():
        assert heatmap.shape == (3, *expected)
        assert heatmap.dtype == torch.float32


def test_a_heatmap_is_bilinear_with_the_pixels_centres_in_place() -> None:
    """Two pixels become four: their centres lie at -1/4, 1/4, 3/4, 5/4 of the way, and the outer ones stay."""
    [heatmap] = result(torch.tensor([[[0.0, 8.0]]])).heatmaps((1, 4)).values()
    torch.testing.assert_close(heatmap, torch.tensor([[[0.0, 0.25, 0.75, 1.0]]]))


def test_at_its_own_size_a_heatmap_is_the_map_by_its_maximum() -> None:
    cam = torch.tensor([[[0.0, 1.0], [2.0, 4.0]]])
    assert torch.equal(result(cam).heatmaps((2, 2))["layer1"], cam / 4)


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-20, 1.0, 1e20, 3e38])
def test_heatmaps_reach_from_zero_to_one_whatever_the_scale(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        cam = torch.rand(2, 3, 3, generator=generator) * scale
        [heatmap] = result(cam).heatmaps((7, 5)).values()
        assert heatmap.isfinite().all()
        assert (heatmap >= 0).all()
        assert heatmap.amax((1, 2)).tolist() == [1, 1]


def test_each_probe_is_scaled_by_itself_and_null_probes_stay_null() -> None:
    rows = torch.tensor([[1.0, 2.0], [0.0, 0.0], [NAN, NAN], [100.0, 50.0]])
    cams = rows[:, None, :].expand(4, 2, 2)
    heatmaps = result(cams).heatmaps((2, 2))["layer1"]
    assert heatmaps[0].tolist() == [[0.5, 1], [0.5, 1]]
    assert heatmaps[1].tolist() == [[0, 0], [0, 0]]
    assert heatmaps[2].isnan().all()
    assert heatmaps[3].tolist() == [[1, 0.5], [1, 0.5]]


def test_a_map_of_one_pixel_is_flat() -> None:
    assert result(torch.tensor([[[3.0]], [[0.0]], [[NAN]]])).heatmaps()["layer1"].amax((1, 2)).tolist()[:2] == [1, 0]


def test_maps_are_not_changed_by_their_heatmaps() -> None:
    cam = torch.rand(2, 3, 3)
    before, record = cam.clone(), result(cam)
    for size in (None, (3, 3)):
        record.heatmaps(size)["layer1"].zero_()
    assert torch.equal(record.cams["layer1"], before)


# States and verdicts


def test_states_are_words() -> None:
    assert [str(state) for state in GradientState] == ["ok", "none", "zero", "non_finite", "absent"]
    assert f"{GradientState.NON_FINITE}" == "non_finite"
    assert GradientState("zero") is GradientState.ZERO
    assert GradientState.OK == "ok"
    assert json.dumps({"state": GradientState.NONE}) == '{"state": "none"}'


def test_null_probes_are_all_but_the_healthy_ones() -> None:
    states = (GradientState.OK, GradientState.ZERO, GradientState.OK, GradientState.NONE, GradientState.NON_FINITE)
    health = LayerHealth(torch.zeros(5), states, (True,) + (False,) * 4)
    assert health.null_probes == (1, 3, 4)
    assert LayerHealth(torch.zeros(0), (), ()).null_probes == ()


def test_a_verdict_has_no_cause_unless_one_is_known() -> None:
    health = LayerHealth(torch.zeros(1), (GradientState.OK,), (False,))
    assert (health.cause, health.detail) == (None, "")


# As records


def test_bad_input_is_a_value_error() -> None:
    assert issubclass(BadInputError, ValueError)


RECORDS = [
    result(torch.rand(2, 3, 3)),
    LayerHealth(torch.zeros(1), (GradientState.NONE,), (False,), Cause.DETACHED, "why"),
    ProbeSet(torch.zeros(2, 1, 3, 3), None, ("0", "1"), (0, 1), None, None, None, "f00d"),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_records_are_frozen_and_can_be_copied_and_pickled(record: Any) -> None:
    name = dataclasses.fields(record)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(record, name, None)
    for twin in (copy.deepcopy(record), pickle.loads(pickle.dumps(record)), dataclasses.replace(record)):
        assert type(twin) is type(record)
        assert repr(twin) == repr(record)


def test_a_probe_set_is_as_long_as_its_images() -> None:
    assert len(RECORDS[2]) == 2


def test_results_are_compared_by_identity() -> None:
    """Tensors cannot be: `==` of two results would raise."""
    first, second = result(torch.ones(2, 1, 1)), result(torch.ones(2, 1, 1))
    assert first == first
    assert first != second
    assert len({first, second}) == 2
    assert LayerHealth(torch.ones(2), (), ()) != LayerHealth(torch.ones(2), (), ())
