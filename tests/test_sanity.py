"""Whether maps depend on the weights: these are randomised in a copy, from the score backwards."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from models import Network
from torch import Tensor, nn

from gradcam_callback import compute_cam
from gradcam_callback.check import print_checks
from gradcam_callback.cli import main
from gradcam_callback.engine.sanity import (
    THRESHOLD,
    LayerSanity,
    SanityResult,
    Stage,
    rank_correlation,
    sanity_check,
)
from gradcam_callback.engine.sanity.randomisation import own_weights, randomise

CONFIG = Path(__file__).parents[1] / "configs" / "shortcut.yaml"


class Net(nn.Module):
    """Three convolutions and a head, trained on nothing."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.third, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.third(self.second(self.first(images).relu()).relu()).relu()
        return self.head(maps.mean((2, 3)))


@pytest.fixture
def images() -> Tensor:
    return torch.randn(6, 3, 12, 12, generator=torch.Generator().manual_seed(1))


class Edges:
    """An edge filter of the image, whatever the network."""

    needs_gradient, extra_forwards = False, 1

    def map(self, activation: Tensor, gradient: None, rerun: Any) -> Tensor:
        grey = rerun.images.mean(1)
        return (grey - grey.roll(1, 2)).abs()


def test_rank_correlation_is_spearmans() -> None:
    stats = pytest.importorskip("scipy.stats")
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randint(5, (4, 6, 7), generator=generator).float() for _ in range(2))  # with many ties
    got = rank_correlation(one, other)
    for number in range(4):
        expected = stats.spearmanr(one[number].flatten(), other[number].flatten()).statistic
        assert float(got[number]) == pytest.approx(expected, abs=1e-6)


def test_maps_without_an_order_and_maps_that_are_none() -> None:
    some, flat = torch.rand(1, 4, 4), torch.ones(1, 4, 4)
    missing = torch.full((1, 4, 4), torch.nan)
    assert rank_correlation(flat, 3 * flat).item() == 1
    assert rank_correlation(flat, some).item() == 0
    assert rank_correlation(missing, some).isnan().item()


def test_a_map_of_the_network_depends_on_its_weights(images: Tensor) -> None:
    model = Net()
    before = copy.deepcopy(model.state_dict())
    result = sanity_check(model, images, ["second", "third"])
    assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in before.items())
    assert result.depends_on_weights
    for layer, found in result.layers.items():
        names = [name for stage in found.stages for name in stage.modules]
        assert names == ["head", "third", "second", "first"]  # from the score backwards
        assert found.verdict == "depends"
        assert found.similarity < THRESHOLD
        assert found.later == {"second": 2, "third": 1}[layer]


def test_each_step_is_the_map_of_a_network_with_these_weights_random(images: Tensor) -> None:
    model = Net().eval()
    result = sanity_check(model, images, "third", target=2, seed=5)
    original = compute_cam(model, images, "third", target=2).cams["third"]
    done: list[str] = []
    for stage in result.layers["third"].stages:
        done += stage.modules
        other = copy.deepcopy(model)
        randomise(other, done, seed=5)
        cams = compute_cam(other, images, "third", target=2).cams["third"]
        torch.testing.assert_close(stage.correlations, rank_correlation(original, cams))


def test_a_map_that_ignores_the_weights_is_said_to_be_none(images: Tensor) -> None:
    result = sanity_check(Net(), images, "third", method=Edges())
    assert not result.depends_on_weights
    assert result.layers["third"].similarity == 1
    assert "does not depend on the weights" in result.lines[0]


def test_no_map_is_no_map(images: Tensor) -> None:
    class Cut(Net):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images).detach()

    result = sanity_check(Cut(), images, "third")
    assert not result.depends_on_weights
    assert result.layers["third"].verdict == "null"
    assert "doctor" in result.lines[0]


def test_what_cannot_be_checked_is_refused(images: Tensor) -> None:
    with pytest.raises(ValueError, match="uses no weights"):
        sanity_check(nn.Sequential(nn.AvgPool2d(2), nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten()), images, "0")


def test_drawn_weights_have_the_size_of_the_trained_ones() -> None:
    model = Network()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    other = copy.deepcopy(model)
    randomise(other, list(own_weights(other)), seed=0)
    for name, weight in other.named_parameters():
        if before[name].ndim > 1:
            assert not torch.equal(weight, before[name])
            assert 0.5 < float(weight.square().mean() / before[name].square().mean()) < 2


# The command


def check(capsys: pytest.CaptureFixture[str], *more: str) -> tuple[object, str]:
    with pytest.raises(SystemExit) as end:
        main(["check", "--config", str(CONFIG), *more])
    return end.value.code, capsys.readouterr().out


@pytest.mark.usefixtures("few_digits", "one_thread")
def test_the_command_says_it_in_a_table_and_by_its_status(capsys: pytest.CaptureFixture[str]) -> None:
    status, out = check(capsys)
    assert "from the score" in out
    assert "network.head" in out
    depends = "The map depends on the weights" in out
    assert status == (0 if depends else 1)


@pytest.mark.usefixtures("few_digits", "one_thread")
def test_the_command_tells_a_map_that_ignores_the_weights(capsys: pytest.CaptureFixture[str]) -> None:
    callback = "--trainer.callbacks=gradcam_callback.GradCAMCallback"
    options = [callback, "--trainer.callbacks.target_layers=network.stages.3", "--trainer.callbacks.probes=4"]
    status, out = check(capsys, *options, f"--trainer.callbacks.method={__name__}.Brightness", "--json")
    [record] = json.loads(out)
    assert status == 1
    assert (record["layer"], record["verdict"], record["method"]) == ("network.stages.3", "ignores", "Brightness")
    assert record["similarity"] == 1
    assert [stage["similarity"] for stage in record["stages"]] == [1] * len(record["stages"])


class Brightness:
    """Where the image is bright, in the cells of the activation."""

    needs_gradient, extra_forwards = False, 1

    def map(self, activation: Tensor, gradient: None, rerun: Any) -> Tensor:
        grey = rerun.images.mean(1, keepdim=True)
        return nn.functional.adaptive_avg_pool2d(grey - grey.amin(), activation.shape[2:])[:, 0]


@pytest.mark.usefixtures("one_thread")
def test_a_bad_layer_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    callback = "--trainer.callbacks=gradcam_callback.GradCAMCallback"
    status, _ = check(capsys, callback, "--trainer.callbacks.target_layers=network.none")
    assert status == 2


@pytest.mark.usefixtures("few_digits", "one_thread")
@pytest.mark.parametrize("crash", [RuntimeError, AssertionError, KeyError])
def test_a_crash_is_no_verdict(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, crash: type[Exception]
) -> None:
    """Python's own exit status after an exception is 1, which means here that a map depends on no weight."""

    def fail(*_: object) -> None:
        raise crash("of the model")

    monkeypatch.setattr("gradcam_callback.demo.networks.ResidualNetwork.forward", fail)
    status, out = check(capsys)
    assert status == 2
    assert "weights" not in out


def test_brackets_in_names_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    found = LayerSanity((Stage(("heads[/b]",), torch.tensor([0.1])),), later=1, cells=64)
    print_checks([SanityResult({"net[bold]": found}, "a [red] cat", "Mine[0]")], as_json=False)
    out = capsys.readouterr().out
    for name in ("heads[/b]", "a [red] cat", "Mine[0]", "net[bold]"):
        assert name in out
