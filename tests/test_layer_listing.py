"""The list of layers: what they return, which one "auto" takes, and why not the others."""

from __future__ import annotations

import pytest
import torch
from test_auto import Joined, Segmenting, Structured, Transformer
from torch import Tensor, nn

from gradcam_callback.engine.auto import choose_layer
from gradcam_callback.engine.layer_listing import list_layers
from gradcam_callback.engine.request import CAMRequest


@pytest.mark.parametrize("make", [Joined, Structured, lambda: Transformer(4)], ids=["joined", "structured", "tokens"])
def test_the_chosen_layer_is_the_one_that_auto_takes_and_possible(make: type[nn.Module]) -> None:
    model, images = make(), torch.rand(2, 3, 16, 16)
    [chosen] = [layer for layer in list_layers(model, images) if layer.chosen]
    assert choose_layer(model, images).layers == (chosen.name,)
    assert chosen.reason == ""
    assert chosen.gradient is not None
    assert chosen.gradient > 0


def test_what_each_layer_returns_is_told_and_why_it_is_not_taken() -> None:
    listed = {layer.name: layer for layer in list_layers(Transformer(4), torch.rand(1, 3, 16, 16))}
    keys, attention = listed["attention.keys"], listed["attention"]
    assert (keys.kind, keys.output, keys.layout, keys.cells, keys.gradient) == (
        *("Identity", "a tensor of shape (N, 2, 16, 4)", "", None, None),
    )
    assert keys.reason.startswith("where neither 16 x 4 nor 2 x 16 is a grid")
    assert (attention.layout, attention.cells, attention.chosen) == ("tokens", (4, 4), True)


def test_reasons_of_the_graph() -> None:
    joined = {layer.name: layer.reason for layer in list_layers(Joined(), torch.rand(1, 3, 8, 8))}
    assert joined == {
        "stem": "",
        "one": "a part of the signal goes past it",
        "two": "a part of the signal goes past it",
    }
    request = CAMRequest.of(output=lambda maps: maps.mean((2, 3)))
    maps = {layer.name: layer.reason for layer in list_layers(Segmenting(), torch.rand(1, 3, 8, 8), request)}
    assert maps == {"features": "", "classifier": "it is the prediction itself"}


def test_a_structure_whose_other_parts_the_score_may_come_from_is_not_taken() -> None:
    listed = {layer.name: layer.reason for layer in list_layers(Structured(), torch.rand(1, 3, 8, 8))}
    assert listed["backbone"] == "it returns more than one tensor"
    assert listed["backbone.encoder"] == ""


def test_calls_of_a_layer_that_runs_more_than_once_are_numbered() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, images: Tensor) -> Tensor:
            return self.conv(self.conv(images)).mean((2, 3))

    listed = list_layers(Twice(), torch.rand(1, 3, 8, 8))
    assert [(layer.name, layer.chosen) for layer in listed] == [("conv#0", False), ("conv#1", True)]


def test_a_model_in_which_auto_finds_nothing_has_no_chosen_layer() -> None:
    model = nn.Sequential(nn.Flatten(2), nn.Linear(64, 7), nn.Flatten(), nn.Linear(21, 2))
    listed = list_layers(model, torch.rand(1, 3, 8, 8))
    assert [layer.chosen for layer in listed] == [False] * len(listed) != []
