"""What counts as a map among the things that layers return, and what only looks like one."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradcam_callback import compute_cam
from gradcam_callback.engine.layouts import CHANNELS_FIRST, describe_output

MAP = torch.zeros(2, 3, 4, 5)
Pair = namedtuple("Pair", "first second")


@pytest.mark.parametrize(
    "output",
    [
        MAP,
        (MAP, torch.zeros(2)),
        [None, "text", MAP],
        {"features": torch.zeros(2, 3), "maps": MAP},
        OrderedDict(maps=MAP, later=torch.zeros(2, 3, 1, 1)),
        Pair(torch.zeros(2, 3, 4), MAP),
        {"deep": (Pair(1, [MAP]), torch.zeros(2, 1, 1, 1))},
        (torch.zeros(2, 3, 4, 5, dtype=torch.int64), MAP),
        (torch.zeros(2, 3, 4, 5, 6), MAP),
    ],
    ids=lambda output: describe_output(output)[:60],
)
def test_the_first_map_is_found_wherever_it_lies(output: Any) -> None:
    assert CHANNELS_FIRST.find_activation(output) is MAP


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_maps_are_of_any_floating_type(dtype: torch.dtype) -> None:
    assert CHANNELS_FIRST.find_activation(MAP.to(dtype)) is not None


@pytest.mark.parametrize(
    "output",
    [
        None,
        "text",
        (),
        {},
        torch.zeros(2, 3),
        torch.zeros(2, 9, 3),
        torch.zeros(2, 3, 4, 5, 6),
        MAP.long(),
        MAP.bool(),
        MAP.to(torch.complex64),
        [torch.zeros(2, 3), {"a": "b"}],
    ],
    ids=lambda output: describe_output(output)[:60],
)
def test_what_has_no_space_is_no_map(output: Any) -> None:
    assert CHANNELS_FIRST.find_activation(output) is None


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (torch.zeros(2, 3), "a tensor of shape (2, 3)"),
        ((torch.zeros(2), "x"), "tuple of a tensor of shape (2,), an object of type str"),
        ([], "list of nothing"),
        (None, "an object of type NoneType"),
    ],
)
def test_an_output_is_described_in_words(output: Any, words: str) -> None:
    assert describe_output(output) == words


# What only looks like a map


class LayerNorm2d(nn.LayerNorm):
    """Turns the axes round and back, as in ConvNeXt."""

    def forward(self, maps: Tensor) -> Tensor:
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("layer", "shape", "image", "trusted"),
    [
        (nn.Conv2d(1, 1, 1), (2, 4, 4, 96), (64, 64), True),  # its kind is enough
        (nn.Identity(), (2, 96, 4, 4), (64, 64), True),
        (nn.Identity(), (2, 4, 4, 96), (64, 64), False),
        (nn.Sequential(nn.Conv2d(1, 1, 1)), (2, 16, 16, 24), (64, 64), False),  # an embedding that turns it round
        (nn.Identity(), (2, 3, 5, 96), (96, 160), False),
        (nn.Identity(), (2, 96, 3, 5), (96, 160), True),
        (nn.Identity(), (2, 32, 1, 40), (32, 320), True),  # a text line, its height pooled away
        (nn.Identity(), (2, 64, 9, 12), (64, 64), True),
        (nn.Linear(1, 1), (2, 8, 8, 8), (64, 64), False),
        (nn.LayerNorm(8), (2, 8, 8, 8), (64, 64), False),
        (LayerNorm2d(8), (2, 8, 8, 8), (64, 64), True),
    ],
)
def test_a_map_with_the_channels_last_is_doubted(
    layer: nn.Module, shape: tuple[int, ...], image: tuple[int, int], trusted: bool
) -> None:
    assert (CHANNELS_FIRST.doubt(layer, torch.zeros(shape), image) == "") == trusted


def test_a_layer_with_the_channels_last_is_refused_with_the_reason() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.block, self.fc = nn.Conv2d(3, 24, 4, 4), nn.Identity(), nn.Linear(24, 3)

        def forward(self, images: Tensor) -> Tensor:
            return self.fc(self.block(self.stem(images).permute(0, 2, 3, 1)).relu().mean((1, 2)))

    model, images = Last(), torch.randn(2, 3, 16, 16)
    with pytest.raises(ValueError, match=r"'block' returned a tensor of shape \(2, 4, 4, 24\), which fits .* last"):
        compute_cam(model, images, "block")
    assert list(compute_cam(model, images).cams) == ["stem"]
