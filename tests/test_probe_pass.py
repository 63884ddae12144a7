"""A probe pass: its stages, when it asks for causes, and maps across cuts."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradcam_callback import Cause, compute_cam
from gradcam_callback.diagnosis import diagnoser as diagnosis
from gradcam_callback.diagnosis import passes
from gradcam_callback.engine import auto, explain
from gradcam_callback.engine.device_results import DeviceResults
from gradcam_callback.engine.layouts import CHANNELS_FIRST
from gradcam_callback.engine.replica import Replica, ReplicaOptions
from gradcam_callback.engine.request import CAMRequest
from gradcam_callback.execution.probe_pass import ProbePass
from gradcam_callback.execution.processes import ProcessGroup


class Switchable(nn.Module):
    """Detaches the first `cut` samples behind `stem`; goes through NumPy behind `stage` where `numpy` says so."""

    passes = 0  # of all of them, replicas as well

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.stage, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.Linear(6, 4)
        self.cut, self.numpy = 0, False

    def forward(self, images: Tensor) -> Tensor:
        Switchable.passes += 1
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


def test_a_healthy_pass_asks_for_no_cause(images: Tensor, asked: list[str]) -> None:
    seen = probe_pass("stem", "stage").run(Switchable(), images, ["predicted"])
    assert (seen.diagnoses, asked) == ({}, [])


def test_causes_are_asked_for_again_only_when_health_changes(images: Tensor, asked: list[str]) -> None:
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
    assert [watcher.select_auto(model, images, "predicted") for _ in range(2)] == ["stage", None]
    assert (watcher.layers, watcher.layouts) == (("stage",), {"stage": CHANNELS_FIRST})
    watcher.resolve(model)
    assert watcher.layers == ("stage",)
    watcher.resolve(nn.Sequential(nn.Conv2d(3, 3, 1)))
    assert (watcher.layers, watcher.layouts) == (("auto",), {})


def test_layouts_are_found_in_the_first_pass_and_kept(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3), act=nn.ReLU(), pool=nn.AdaptiveAvgPool2d(1)))
    model.append(nn.Flatten())
    watcher = probe_pass("act")  # nothing in it tells its layout, so the model is surveyed
    watcher.run(model, images, ["predicted"])
    assert watcher.layouts == {"act": CHANNELS_FIRST}

    monkeypatch.setattr(auto, "survey", lambda *_, **__: pytest.fail("surveyed again"))
    assert watcher.run(model, images, ["predicted"]).results[0].cams["act"].max() > 0


class Pickling(ProcessGroup):
    """Sends what this process gave, as if there were another."""

    def share(self, count: int) -> slice:
        return slice(0, count)

    def gather(self, job: Any) -> list[Any]:
        return [pickle.loads(pickle.dumps(job()))]


@pytest.mark.parametrize("layout", [None, lambda maps: maps], ids=["found", "a function"])
def test_layouts_that_cannot_be_sent_are_not(images: Tensor, layout: Any) -> None:
    watcher = ProbePass(CAMRequest.of("stem", layout=layout), processes=Pickling(0, 2))
    result = watcher.run(Switchable(), images, ["predicted"]).results[0]
    assert result.layouts == {"stem": "channels first" if layout is None else "custom"}
    torch.testing.assert_close(result.cams["stem"], compute_cam(Switchable(), images, "stem").cams["stem"])


def test_all_targets_cross_a_cut_in_one_pass(images: Tensor) -> None:
    model, watcher = Switchable(), probe_pass()
    whole = [compute_cam(model, images, "stem", target=target).cams["stem"] for target in (0, 2)]
    model.cut = 3
    watcher.run(model, images, [0, 2])  # the reason is known from here on
    Switchable.passes = 0
    seen = watcher.run(model, images, [0, 2])
    assert Switchable.passes == 2  # the pass itself, and the one across the cut
    for result, expected in zip(seen.results, whole, strict=True):
        torch.testing.assert_close(result.cams["stem"], expected, rtol=1e-5, atol=0)


# Stages


def as_drawn(results: DeviceResults) -> list[Tensor]:
    """Something of each kind that there is to draw."""
    return [maps for result in results.by_target for maps in result.cams.values()] + [
        results.by_target[0].scores.targets
    ]


@pytest.mark.parametrize("portion", [None, 2])
@pytest.mark.parametrize("cut", [0, 1, 3])
def test_what_is_rendered_are_the_final_maps_of_all_samples(images: Tensor, portion: int | None, cut: int) -> None:
    model, watcher = Switchable(), probe_pass("stem", "stage")
    model.cut, watcher._slices.size = cut, portion
    seen = watcher.run(model, images, [[0, 1, 2], 3], as_drawn)
    *maps, targets = seen.rendered
    final = [cam for result in seen.results for cam in result.cams.values()]
    for drawn, cam in zip(maps, final, strict=True):
        assert torch.equal(drawn, cam)
        assert drawn.isfinite().all()  # across the cut
    assert targets.tolist() == seen.results[0].targets.tolist() == [0, 1, 2]
    assert (seen.render_failure, seen.portion) == (None, portion)


def test_slices_change_nothing(images: Tensor) -> None:
    whole = probe_pass("stem", "stage").run(Switchable(), images, [[0, 1, 2]])
    sliced = probe_pass("stem", "stage")
    sliced._slices.size = 2
    [expected], [result] = whole.results, sliced.run(Switchable(), images, [[0, 1, 2]]).results
    for layer, maps in expected.cams.items():
        torch.testing.assert_close(result.cams[layer], maps)
        torch.testing.assert_close(result.health[layer].gradient_norm, expected.health[layer].gradient_norm)
        assert result.health[layer].state == expected.health[layer].state
    torch.testing.assert_close(result.probabilities, expected.probabilities)


def test_what_cannot_be_rendered_leaves_the_results(images: Tensor) -> None:
    def fail(_: DeviceResults) -> list[Tensor]:
        raise ValueError("no paint")

    seen = probe_pass().run(Switchable(), images, ["predicted"], fail)
    assert str(seen.render_failure) == "no paint"
    assert seen.rendered == ()
    assert seen.results[0].health["stem"].state == ("ok",) * 3


# Weights that forward writes to


@pytest.fixture
def modified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Replica, "modified_weights", lambda _: ("stem.weight", "stage.bias"))


@pytest.mark.usefixtures("modified")
@pytest.mark.parametrize("portion", [None, 1])
def test_weights_that_were_written_to_are_in_the_result(images: Tensor, portion: int | None) -> None:
    watcher = probe_pass()
    watcher._slices.size = portion
    assert watcher.run(Switchable(), images, ["predicted"]).modified_weights == ("stem.weight", "stage.bias")


@pytest.mark.usefixtures("modified")
def test_compute_cam_warns_of_weights_that_were_written_to(images: Tensor) -> None:
    with pytest.warns(UserWarning, match=r"'stem\.weight', 'stage\.bias' \(in 'stem', 'stage'\)") as caught:
        compute_cam(Switchable(), images, "stem")
    assert [warning.filename for warning in caught] == [__file__]


# Options of the replica


def test_each_pass_is_told_how_the_replica_is_made(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the choice of "auto", the diagnosis and what goes across a cut."""
    told: list[ReplicaOptions] = []
    for module in (auto, explain, passes):
        original = module.run_in_replica
        monkeypatch.setattr(
            module,
            "run_in_replica",
            lambda model, job, options, original=original: (told.append(options), original(model, job, options))[1],
        )
    model, options = Switchable(), ReplicaOptions()
    model.cut = 3
    watcher = ProbePass(CAMRequest.of("stem"), replica_options=options)
    watcher.run(model, images, ["predicted"])
    chooser = ProbePass(CAMRequest.of(), replica_options=options)
    chooser.select_auto(model, images, "predicted")
    assert len(told) >= 5
    assert all(given is options for given in told)
