"""The judgement on gradients that were made by hand: per probe, before anything is normalised."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gradcam_callback.causes import Cause
from gradcam_callback.engine import health
from gradcam_callback.engine.health import Examination, missing
from gradcam_callback.engine.health import examine as examine_with_scores
from gradcam_callback.engine.methods import METHODS, gradcam
from gradcam_callback.results import LayerHealth

NAN, INF = math.nan, math.inf
ONES = torch.ones(1, 2, 2, 2)


def judge(examinations: dict[str, Examination]) -> dict[str, LayerHealth]:
    return health.judge(examinations, health.pack(examinations.values()))


def examine(activation: Tensor, gradient: Tensor, cam: Tensor) -> Examination:
    """With scores that are fine."""
    return examine_with_scores(activation, gradient, cam, torch.ones(len(cam)))


def verdict(activation: Tensor, gradient: Tensor, cam: Tensor | None = None) -> LayerHealth:
    cam = gradcam(activation, gradient) if cam is None else cam
    return judge({"layer": examine(activation, gradient, cam)})["layer"]


def at(value: float, like: Tensor = ONES) -> Tensor:
    """One value among ones."""
    tensor = like.clone()
    tensor[0, 1, 0, 1] = value
    return tensor


@pytest.mark.parametrize(
    ("activation", "gradient", "state"),
    [
        (ONES, ONES, "ok"),
        (ONES, -ONES, "ok"),
        (ONES * 0, ONES, "ok"),
        (ONES, at(1.0, ONES * 0), "ok"),
        (ONES, ONES * 0, "zero"),
        (ONES, ONES * -0.0, "zero"),
        (ONES * 0, ONES * 0, "zero"),
        (ONES, at(NAN), "non_finite"),
        (ONES, at(INF), "non_finite"),
        (ONES, at(-INF), "non_finite"),
        (at(NAN), ONES, "non_finite"),
        (at(INF), ONES, "non_finite"),
        (at(-INF), ONES, "non_finite"),
        (at(NAN), ONES * 0, "non_finite"),
        (at(NAN), at(NAN), "non_finite"),
    ],
)
def test_one_verdict_and_no_map_without_a_usable_gradient(activation: Tensor, gradient: Tensor, state: str) -> None:
    found = examine(activation, gradient, torch.ones(1, 2, 2))
    health = judge({"layer": found})["layer"]
    assert health.state == (state,)
    assert health.null_probes == (() if state == "ok" else (0,))
    expected = torch.full((1, 2, 2), 1.0 if state == "ok" else NAN)
    torch.testing.assert_close(found.cam, expected, equal_nan=True)


def test_each_probe_is_judged_by_itself() -> None:
    gradient = torch.cat([ONES, ONES * 0, at(NAN), -ONES, ONES * 2, ONES])
    activation = torch.cat([ONES] * 5 + [at(INF)])
    found = examine(activation, gradient, gradcam(activation, gradient))
    health = judge({"layer": found})["layer"]
    assert health.state == ("ok", "zero", "non_finite", "ok", "ok", "non_finite")
    assert health.empty == (False, False, False, True, False, False)
    assert health.null_probes == (1, 2, 5)
    assert found.cam.flatten(1).isnan().all(1).tolist() == [False, True, True, False, False, True]
    assert found.cam[[0, 3, 4], 0, 0].tolist() == [2, 0, 4]
    torch.testing.assert_close(
        health.gradient_norm, torch.tensor([8**0.5, 0, NAN, 8**0.5, 32**0.5, 8**0.5]), equal_nan=True
    )
    assert (health.cause, health.detail) == (None, "")


def test_a_map_that_is_not_finite_is_no_map_although_the_gradient_is() -> None:
    assert verdict(ONES, ONES, at(INF)[:, 1]).state == ("non_finite",)
    assert verdict(ONES * 1e30, ONES * 1e30).state == ("non_finite",)  # their product is beyond single precision


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-30, 1.0, 1e30, 1e38])
def test_the_norm_of_tiny_and_huge_gradients_is_right(scale: float) -> None:
    """Squared, most of these are zero or infinite in single precision."""
    gradient = torch.tensor([3.0, 4.0, 0.0, -12.0]).view(1, 1, 2, 2) * (scale / 13 if scale > 1 else scale)
    health = verdict(torch.ones(1, 1, 2, 2), gradient, torch.ones(1, 2, 2))
    assert health.state == ("ok",)
    assert health.gradient_norm.item() == pytest.approx(gradient.double().norm().item(), rel=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_are_single_precision(scale: float, dtype: torch.dtype) -> None:
    gradient = (ONES * scale).to(dtype)
    found = examine(ONES.to(dtype), gradient, gradcam(ONES.to(dtype), gradient))
    assert found.cam.dtype == found.norm.dtype == torch.float32
    assert found.cam.max().item() == pytest.approx(2 * scale)
    assert found.norm.item() == pytest.approx(8**0.5 * scale)


def test_a_double_map_beyond_single_precision_is_not_drawn_as_infinity() -> None:
    gradient = ONES.double() * 1e300
    found = examine(ONES.double(), gradient, gradcam(ONES.double(), gradient))
    health = judge({"layer": found})["layer"]
    assert health.state == ("non_finite",)
    assert found.cam.isnan().all()


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.extra_forwards == 0])
@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e20])
def test_a_tiny_or_huge_gradient_is_neither_zero_nor_empty(name: str, scale: float) -> None:
    health = verdict(ONES, ONES * scale, METHODS[name].map(ONES, ONES * scale))
    assert health.state == ("ok",)
    assert health.empty == (False,)


def test_empty_is_not_null() -> None:
    health = verdict(ONES, -ONES)
    assert health.state == ("ok",)
    assert health.empty == (True,)
    assert health.null_probes == ()


def test_a_zero_gradient_is_not_called_empty_as_well() -> None:
    assert verdict(ONES, ONES * 0).empty == (False,)


def test_what_is_examined_is_not_changed() -> None:
    activation, gradient, cam = at(NAN), ONES.clone(), torch.ones(1, 2, 2)
    examine(activation, gradient, cam)
    assert gradient.tolist() == ONES.tolist()
    assert cam.tolist() == [[[1, 1], [1, 1]]]
    assert int(activation.isnan().sum()) == 1


@pytest.mark.parametrize(("score", "state"), [(1e30, "ok"), (-INF, "ok"), (NAN, "non_finite")])
def test_a_score_of_nan_explains_nothing_whatever_its_gradient(score: float, state: str) -> None:
    """Minus infinity is that of a class that was masked out."""
    activation = torch.cat([ONES, ONES])
    scores = torch.tensor([1.0, score])
    found = examine_with_scores(activation, activation, gradcam(activation, activation), scores)
    assert judge({"layer": found})["layer"].state == ("ok", state)
    assert found.cam[1].isnan().all() == (state != "ok")


# No gradient at all


@pytest.mark.parametrize(
    ("activation", "space"),
    [(None, (1, 1)), (torch.zeros(3, 2, 4, 5), (4, 5)), (torch.full((3, 2, 1, 7), NAN), (1, 7))],
)
def test_a_missing_gradient_is_a_row_of_nan_for_each_probe(activation: Tensor | None, space: tuple[int, int]) -> None:
    found = missing(activation, torch.zeros(3, 9, dtype=torch.float64), Cause.LAYER_NOT_CALLED, "It never ran.")
    health = judge({"layer": found})["layer"]
    assert found.cam.shape == (3, *space)
    assert found.cam.dtype == found.norm.dtype == torch.float32
    assert found.cam.isnan().all()
    assert health.gradient_norm.isnan().tolist() == [True] * 3
    assert health.state == ("none",) * 3
    assert health.empty == (False,) * 3
    assert health.null_probes == (0, 1, 2)
    assert health.cause is Cause.LAYER_NOT_CALLED
    assert health.detail == "It never ran."


def test_a_missing_gradient_has_no_cause_unless_one_is_known() -> None:
    health = judge({"layer": missing(None, torch.zeros(2, 1))})["layer"]
    assert health.cause is None
    assert health.detail == ""


def test_map_and_norm_of_a_missing_gradient_are_tensors_of_their_own() -> None:
    found = missing(None, torch.zeros(2, 1))
    found.norm.fill_(1)
    assert found.cam.isnan().all()


# All layers at once


def test_layers_keep_their_names_their_order_and_their_own_verdicts() -> None:
    gone = missing(None, torch.zeros(2, 1), Cause.NOT_ON_PATH, "beside")
    fine = torch.cat([ONES, ONES])
    half = torch.cat([-ONES, ONES * 0])
    verdicts = judge(
        {
            "c": examine(fine, fine, gradcam(fine, fine)),
            "a": gone,
            "b": examine(fine, half, gradcam(fine, half)),
        }
    )
    assert list(verdicts) == ["c", "a", "b"]
    assert [health.state for health in verdicts.values()] == [("ok", "ok"), ("none", "none"), ("ok", "zero")]
    assert [health.empty for health in verdicts.values()] == [(False, False), (False, False), (True, False)]
    assert [health.cause for health in verdicts.values()] == [None, Cause.NOT_ON_PATH, None]


def test_nothing_is_asked_of_the_device_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each such call waits for the device to finish all it was given."""
    waits: list[str] = []
    for name in ("tolist", "item", "cpu", "__bool__", "__float__", "__int__"):
        original = getattr(Tensor, name)

        def counted(self: Tensor, *args: object, name: str = name, original: object = original) -> object:
            waits.append(name)
            return original(self, *args)  # type: ignore[operator]

        monkeypatch.setattr(Tensor, name, counted)
    judge({str(i): examine(ONES, ONES, torch.ones(1, 2, 2)) for i in range(5)} | {"gone": missing(None, ONES)})
    assert waits == ["tolist"]  # of what is on the host by then
