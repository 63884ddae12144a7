"""The observer: reasons are asked for when the picture of health changes, and maps are drawn across cuts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradcam_callback import Cause, compute_cam
from gradcam_callback.diagnosis import diagnoser as diagnosis
from gradcam_callback.engine.request import CAMRequest
from gradcam_callback.execution.probe_pass import ProbePass


class Switchable(nn.Module):
    """Detaches the first `cut` samples behind `stem`; goes through NumPy behind `stage` where `numpy` says so."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.stage, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.Linear(6, 4)
        self.cut, self.numpy = 0, False

    def forward(self, images: Tensor) -> Tensor:
        maps = self.stem(images).relu()
        maps = torch.cat([maps[: self.cut].detach(), maps[self.cut :]])
        maps = self.stage(maps).relu()
        if self.numpy:
            maps = torch.from_numpy(maps.detach().numpy())
        return self.head(maps.mean((2, 3)))


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 9, 9, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The layers that a diagnosis was asked for, in order."""
    layers: list[str] = []
    original = diagnosis.diagnose

    def counted(model: nn.Module, images: Tensor, layer: str, **options: Any) -> Any:
        layers.append(layer)
        return original(model, images, layer, **options)

    monkeypatch.setattr(diagnosis, "diagnose", counted)
    return layers


def probe_pass(*layers: str, bridge: bool = True) -> ProbePass:
    return ProbePass(CAMRequest.of(layers or "stem"), bridge)


def test_a_healthy_look_asks_for_no_reason(images: Tensor, asked: list[str]) -> None:
    seen = probe_pass("stem", "stage").run(Switchable(), images, ["predicted"])
    assert (seen.diagnoses, asked) == ({}, [])


def test_reasons_are_asked_for_again_only_when_health_changes(images: Tensor, asked: list[str]) -> None:
    model, watcher = Switchable(), probe_pass("stem", "stage")
    for cut, total in ((3, 1), (3, 1), (1, 2), (1, 2), (0, 2), (3, 3)):
        model.cut = cut
        watcher.run(model, images, ["predicted", 1])
        assert asked == ["stem"] * total, f"with {cut} samples cut"


def test_the_map_across_a_cut_is_that_of_the_network_without_it(images: Tensor) -> None:
    model = Switchable()
    whole = compute_cam(model, images, "stem", target=2).cams["stem"]
    for cut in (1, 3):
        model.cut = cut
        seen = probe_pass().run(model, images, [2])
        assert seen.diagnoses["stem"].cause is Cause.DETACHED
        torch.testing.assert_close(seen.results[0].cams["stem"], whole, rtol=1e-5, atol=0)
        verdict = seen.results[0].health["stem"]
        assert verdict.bridged == tuple(probe < cut for probe in range(3))
        assert verdict.null_probes == tuple(range(cut))  # the alert stays


@pytest.mark.parametrize("portion", [None, 1])
def test_results_are_plain_tensors_wherever_they_were_made(images: Tensor, portion: int | None) -> None:
    model, watcher = Switchable(), probe_pass()
    model.cut, watcher._slices.size = 1, portion
    with torch.inference_mode():
        [result] = watcher.run(model, images, ["predicted"]).results
    made = [result.cams["stem"], result.scores, result.probabilities, result.health["stem"].gradient_norm]
    assert not any(tensor.requires_grad or tensor.is_inference() for tensor in made)


def test_without_bridge_a_cut_stays_a_row_of_nan(images: Tensor) -> None:
    model = Switchable()
    model.cut = 1
    [result] = probe_pass(bridge=False).run(model, images, ["predicted"]).results
    assert result.cams["stem"].isnan().all((1, 2)).tolist() == [True, False, False]
    assert result.health["stem"].bridged == ()
    assert result.health["stem"].cause is Cause.DETACHED


def test_what_left_torch_is_not_drawn(images: Tensor) -> None:
    model = Switchable()
    model.numpy = True
    seen = probe_pass().run(model, images, ["predicted"])
    assert seen.diagnoses["stem"].cause is Cause.LEFT_TORCH
    assert seen.results[0].cams["stem"].isnan().all()


def test_a_diagnosis_that_fails_leaves_the_maps(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(diagnosis, "diagnose", fail)
    model = Switchable()
    model.cut = 1
    seen = probe_pass().run(model, images, ["predicted"])
    assert str(seen.diagnosis_failure) == "broken on purpose"
    assert seen.results[0].cams["stem"].isnan().all((1, 2)).tolist() == [True, False, False]


def test_auto_chooses_once_and_again_for_another_model(images: Tensor) -> None:
    model, watcher = Switchable(), probe_pass("auto")
    assert (watcher.select_auto(model, images), watcher.select_auto(model, images)) == ("stage", None)
    watcher.resolve(model)
    assert watcher.layers == ("stage",)
    watcher.resolve(nn.Sequential(nn.Conv2d(3, 3, 1)))
    assert watcher.layers == ("auto",)


def test_all_targets_cross_a_cut_in_one_pass(images: Tensor) -> None:
    model, watcher = Switchable(), probe_pass()
    whole = [compute_cam(model, images, "stem", target=target).cams["stem"] for target in (0, 2)]
    model.cut = 3
    watcher.run(model, images, [0, 2])  # the reason is known from here on
    passes: list[int] = []
    model.register_forward_hook(lambda *_: passes.append(1))
    seen = watcher.run(model, images, [0, 2])
    assert len(passes) == 2  # the look itself, and the one across the cut
    for result, expected in zip(seen.results, whole, strict=True):
        torch.testing.assert_close(result.cams["stem"], expected, rtol=1e-5, atol=0)
