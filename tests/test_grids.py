"""Which layout an activation has, from the shapes of one pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradcam_callback.engine.grids import Evidence, GridReader, ObservedMaps, Reading, watching
from gradcam_callback.engine.layouts import CHANNELS_FIRST, CHANNELS_LAST, Layout, Tokens

CONV, ANY, LINEAR = nn.Conv2d(1, 1, 1), nn.Identity(), nn.Linear(1, 1)


class LayerNorm2d(nn.LayerNorm):
    """Turns the axes round and back, as in ConvNeXt."""


def read(reader: GridReader, layer: nn.Module, *shape: int) -> Layout | str:
    """What is read of an activation of this shape, of one image; or the reason why nothing is."""
    reading = reader.read(layer, torch.rand(1, *shape))
    assert (reading.layout is None) == bool(reading.reason)
    return reading.layout or reading.reason


def after(*grids: tuple[int, int], image: tuple[int, int] = (64, 64), extras: Any = None) -> GridReader:
    """A reader that has seen convolutions with these grids."""
    reader = GridReader(image, extras or {})
    for h, w in grids:
        assert reader.read(CONV, torch.rand(1, 7, h, w)) == Reading(CHANNELS_FIRST, Evidence.KIND)
    return reader


@pytest.mark.parametrize(
    ("layer", "shape", "grids", "layout"),
    [
        (CONV, (4, 4, 96), [], CHANNELS_FIRST),  # its kind is enough
        (ANY, (96, 4, 4), [(8, 8)], CHANNELS_FIRST),
        (ANY, (4, 4, 96), [(8, 8)], CHANNELS_LAST),
        (ANY, (96, 8, 8), [(16, 16), (8, 8), (4, 4)], CHANNELS_FIRST),  # on the way up again
        (ANY, (96, 9, 9), [(16, 16), (8, 8)], None),
        (LINEAR, (8, 8, 8), [(8, 8)], CHANNELS_LAST),
        (nn.LayerNorm(8), (8, 8, 8), [(8, 8)], CHANNELS_LAST),
        (LayerNorm2d(8), (96, 8, 8), [(8, 8)], CHANNELS_FIRST),
        (ANY, (6, 5, 5), [(5, 5)], CHANNELS_FIRST),
        (ANY, (3, 65, 65), [(8, 8)], None),  # attention between 64 cells and a class token
        (ANY, (3, 65, 32), [(8, 8)], None),  # its keys
        (ANY, (3, 1, 401), [(20, 20)], None),  # attention of one token
        (ANY, (96, 6, 4), [(13, 10)], CHANNELS_FIRST),  # pooled without padding
        (ANY, (3, 16, 16, 16), [(16, 16)], None),
        (ANY, (8,), [(16, 16)], None),
        (ANY, (96, 32, 32), [], CHANNELS_FIRST),  # nothing to compare with but the image
        (ANY, (32, 32, 96), [], CHANNELS_LAST),
        (ANY, (96, 32, 20), [], None),
    ],
)
def test_maps_are_read_by_kind_and_by_the_grids_before(
    layer: nn.Module, shape: tuple[int, ...], grids: Any, layout: Layout | None
) -> None:
    found = read(after(*grids), layer, *shape)
    assert found == layout if layout else isinstance(found, str)


def test_grids_keep_the_proportion_of_the_image() -> None:
    reader = after((24, 32), image=(96, 128))
    assert read(reader, ANY, 12, 16, 40) == CHANNELS_LAST
    assert read(reader, ANY, 40, 6, 8) == CHANNELS_FIRST
    assert isinstance(read(reader, ANY, 40, 6, 3), str)


@pytest.mark.parametrize(
    ("count", "grids", "extras", "layout"),
    [
        (64, [(8, 8)], (), Tokens((8, 8))),
        (65, [(8, 8)], (0,), Tokens((8, 8), (0,))),
        (69, [(8, 8)], (0, 1, 2, 3, 4), Tokens((8, 8), (0, 1, 2, 3, 4))),
        (65, [(8, 8)], (64,), Tokens((8, 8), (64,))),
        (16, [(8, 8)], (), Tokens((4, 4))),  # merged by twos
        (7, [(8, 8)], (), None),
        (64, [(16, 16), (8, 8), (4, 4)], (), Tokens((8, 8))),
        (16, [], (), Tokens((4, 4))),  # of the image
        (65, [(8, 8)], (), None),  # one is no cell, and nothing tells which
        (60, [(8, 8)], (), None),
        (66, [(8, 8)], (0,), None),
    ],
)
def test_tokens_are_cells_of_a_grid_and_what_does_not_come_from_the_image(
    count: int, grids: Any, extras: tuple[int, ...], layout: Layout | None
) -> None:
    found = read(after(*grids, extras={count: extras}), ANY, count, 24)
    assert found == layout if layout else isinstance(found, str)


def test_tokens_of_an_oblong_image_lie_in_its_rows() -> None:
    assert read(after((6, 8), image=(96, 128)), ANY, 48, 24) == Tokens((6, 8))


@pytest.mark.parametrize(
    ("layer", "shape", "extras", "expected"),
    [
        (ANY, (24, 64), (), Reading(Tokens((8, 8), axis=2), Evidence.GUESS)),
        (ANY, (16, 64), (), Reading(Tokens((8, 8), axis=2), Evidence.GUESS)),  # not a quarter of them
        (nn.LayerNorm(64), (16, 64), (), Reading(Tokens((4, 4)), Evidence.SHAPE)),
        (nn.Linear(64, 64), (64, 64), (), Reading(Tokens((8, 8)), Evidence.SHAPE)),
        (ANY, (64, 64), (), Reading(Tokens((8, 8)), Evidence.GUESS)),
        (ANY, (65, 64), (0,), Reading(Tokens((8, 8), (0,)), Evidence.SHAPE)),  # a class token tells the axis
        (ANY, (5, 5, 5), (), Reading(CHANNELS_FIRST, Evidence.GUESS)),
    ],
)
def test_what_may_be_read_in_two_ways_is_a_guess(
    layer: nn.Module, shape: tuple[int, ...], extras: tuple[int, ...], expected: Reading
) -> None:
    reader = after((5, 5), (16, 16), (8, 8), extras={shape[0]: extras})
    assert reader.read(layer, torch.rand(1, *shape)) == expected


def test_a_shape_that_was_read_is_read_alike_again() -> None:
    reader = after((8, 8))
    assert reader.read(nn.LayerNorm(8), torch.rand(1, 8, 8, 8)) == Reading(CHANNELS_LAST, Evidence.SHAPE)
    assert reader.read(ANY, torch.rand(1, 8, 8, 8)) == Reading(CHANNELS_LAST, Evidence.SHAPE)


def test_the_shape_of_a_convolutions_maps_and_their_size_around_one_are_evidence() -> None:
    reader = after((8, 8))
    assert reader.read(ANY, torch.rand(1, 7, 8, 8)) == Reading(CHANNELS_FIRST, Evidence.KIND)
    assert reader.read(ANY, torch.rand(1, 14, 8, 8)) == Reading(CHANNELS_FIRST, Evidence.SHAPE)
    assert reader.read(nn.Sequential(CONV), torch.rand(1, 14, 8, 8)) == Reading(CHANNELS_FIRST, Evidence.KIND)


def test_why_a_shape_is_not_read_is_said() -> None:
    reader = after((8, 8), extras={66: (0,)})
    assert read(reader, ANY, 66, 24) == "where 65 of 66 tokens are cells, and no layer before has as many"
    assert read(reader, ANY, 3, 65, 65) == (
        "where neither 65 x 65 nor 3 x 65 is a grid that fits the image and the layers before"
    )
    assert reader.read(ANY, torch.rand(4, 16, 4, 4)).reason == "which has more than one entry for an image"


# Maps that are decided in the pass itself


class Turned(nn.Module):
    """Convolutions, then the channels last."""

    def __init__(self, turn: bool) -> None:
        super().__init__()
        self.conv, self.turn = nn.Conv2d(3, 6, 1), turn

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images)
        return maps.movedim(1, -1) if self.turn else maps.relu()


@pytest.mark.parametrize("turn", [False, True])
def test_maps_of_the_size_that_a_convolution_in_the_layer_returned_are_taken(turn: bool) -> None:
    layer = Turned(turn)
    layout = ObservedMaps.of(layer)
    with watching([layout, CHANNELS_FIRST]):
        output = layer(torch.rand(2, 3, 4, 5))
    assert not layer.conv._forward_hooks
    found = layout.find_activation(output)
    assert found is None if turn else found is output


def test_what_may_be_either_way_is_not_decided_in_the_pass() -> None:
    layer = Turned(turn=False)
    layout = ObservedMaps.of(layer)
    with watching([layout]):
        output = layer(torch.rand(2, 3, 6, 6))  # as many channels as rows
    assert layout.find_activation(output) is None


def test_only_layers_with_convolutions_or_the_like_are_looked_at() -> None:
    assert [ObservedMaps.may_be(layer) for layer in (CONV, Turned(False), LINEAR, nn.Sequential(LINEAR, ANY))] == [
        *(True, True, False, False)
    ]
    assert ObservedMaps.of(CONV) == CHANNELS_FIRST
