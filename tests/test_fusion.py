"""The mean over several layers: by hand, and in the panels of a training."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import Run
from models import STEPS, Faulty

from gradcam_callback import GradCAMCallback
from gradcam_callback.reporting.fusion import FUSED, fuse, with_fused
from gradcam_callback.results import CAMResult, GradientState, LayerHealth

OK, NONE, ABSENT = GradientState.OK, GradientState.NONE, GradientState.ABSENT


def test_each_layer_counts_the_same_however_large_its_numbers_are() -> None:
    coarse, fine = torch.rand(2, 2, 3), 1000 * torch.rand(2, 4, 6)
    enlarged = F.interpolate(coarse.unsqueeze(1), size=(4, 6), mode="bilinear").squeeze(1)
    wanted = [one / one.amax((1, 2), keepdim=True) for one in (enlarged, fine)]
    torch.testing.assert_close(fuse([coarse, fine]), sum(wanted) / 2)


def test_a_layer_without_a_map_is_left_out() -> None:
    one, other = torch.rand(3, 2, 2), torch.rand(3, 2, 2)
    one[0] = other[2] = one[1] = other[1] = math.nan
    fused = fuse([one, other])
    torch.testing.assert_close(fused[0], other[0] / other[0].amax())
    torch.testing.assert_close(fused[2], one[2] / one[2].amax())
    assert fused[1].isnan().all()


def test_a_map_of_zeros_is_a_layer_that_says_nothing() -> None:
    torch.testing.assert_close(fuse([torch.zeros(1, 2, 2), torch.ones(1, 2, 2)]), torch.full((1, 2, 2), 0.5))


@pytest.mark.parametrize(
    ("states", "bridged", "wanted"),
    [
        ([(OK, OK), (NONE, OK)], [(), ()], (OK, OK)),
        ([(NONE, NONE), (NONE, OK)], [(), ()], (NONE, OK)),
        ([(NONE, ABSENT), (NONE, ABSENT)], [(True, False), ()], (OK, ABSENT)),
    ],
)
def test_a_probe_is_fine_where_a_layer_has_a_map_of_it(states: Any, bridged: Any, wanted: Any) -> None:
    health = {
        str(place): LayerHealth(torch.ones(2), state, (False, False), bridged=crossed)
        for place, (state, crossed) in enumerate(zip(states, bridged, strict=True))
    }
    numbers = torch.zeros(2, dtype=torch.int64)
    cams = {name: torch.rand(2, 3, 3) for name in health}
    result = CAMResult(cams, numbers, numbers.float(), numbers, torch.rand(2, 2), health, (6, 6))
    fused = with_fused(result)
    assert fused.health[FUSED].state == wanted
    torch.testing.assert_close(fused.cams[FUSED], fuse(list(cams.values())))


def test_one_more_panel_and_no_scalar_more(run: Callable[..., Run]) -> None:
    callback = GradCAMCallback(["model.stem", "model.stage"], probes=4, fuse=True)
    fit = run(callback, Faulty([[], [0, 1]]), max_epochs=2).fit()
    images = {tag for tag in fit.events.images if tag.startswith("gradcam/")}
    assert images == {"gradcam/model.stem", "gradcam/model.stage", "gradcam/fused"}
    assert fit.events.steps("gradcam/fused") == [STEPS, 2 * STEPS]
    assert "gradcam/gradient_norm/fused" not in fit.events.scalars
    assert fit.callback.last_result is not None
    assert set(fit.callback.last_result.cams) == {"model.stem", "model.stage"}


def test_of_one_layer_there_is_nothing_to_fuse(run: Callable[..., Run]) -> None:
    fit = run(GradCAMCallback("model.stage", probes=4, fuse=True), max_epochs=1).fit()
    assert "gradcam/fused" not in fit.events.images
