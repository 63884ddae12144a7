"""From what layers return to maps, and what may be given for a layout."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradcam_callback import compute_cam
from gradcam_callback.engine.layouts import (
    CHANNELS_FIRST,
    CHANNELS_LAST,
    CustomLayout,
    Tokens,
    as_layout,
    describe_output,
)

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


# To maps


def test_channels_that_are_last_come_second() -> None:
    activation = torch.arange(2 * 4 * 5 * 3.0).view(2, 4, 5, 3)
    maps = CHANNELS_LAST.to_maps(activation)
    assert maps.shape == (2, 3, 4, 5)
    assert maps[1, 2, 3, 4] == activation[1, 3, 4, 2]


@pytest.mark.parametrize("extras", [(), (0,), (0, 1, 2), (6,), (0, 7), (2, 4)])
def test_tokens_become_rows_and_columns_without_the_extra_ones(extras: tuple[int, ...]) -> None:
    layout, count = Tokens((2, 3), extras), 6 + len(extras)
    activation = torch.arange(2 * count * 4.0).view(2, count, 4)
    cells = [position for position in range(count) if position not in extras]
    maps = layout.to_maps(activation)
    assert maps.shape == (2, 4, 2, 3)
    for number, position in enumerate(cells):
        assert torch.equal(maps[:, :, number // 3, number % 3], activation[:, position])
    assert layout.find_activation((MAP, activation)) is activation
    assert layout.find_activation(torch.zeros(2, count + 1, 4)) is None


def test_tokens_in_the_last_axis_become_rows_and_columns() -> None:
    activation = torch.arange(2 * 4 * 7.0).view(2, 4, 7)
    layout = Tokens((2, 3), (0,), axis=2)
    assert layout.find_activation(activation) is activation
    assert torch.equal(layout.to_maps(activation), activation[:, :, 1:].unflatten(2, (2, 3)))


# What may be given


def rows(tokens: Tensor) -> Tensor:
    return tokens.transpose(1, 2).unflatten(2, (2, 3))


def name_of(given: Any) -> str:
    return str(getattr(given, "__name__", given))


@pytest.mark.parametrize(
    ("given", "layout"),
    [
        (None, None),
        ("tokens", "tokens"),
        ("nchw", CHANNELS_FIRST),
        ("nhwc", CHANNELS_LAST),
        ({"grid": [2, 3]}, Tokens((2, 3))),
        ({"grid": [2, 3], "extras": 2}, Tokens((2, 3), (0, 1))),
        ({"grid": (2, 3), "extras": [6, 0]}, Tokens((2, 3), (0, 6))),
        (rows, CustomLayout(rows)),
        (Tokens((2, 3)), Tokens((2, 3))),
        ("torch.nn.functional.pixel_shuffle", CustomLayout(nn.functional.pixel_shuffle)),
    ],
    ids=name_of,
)
def test_a_layout_is_given_by_a_name_a_grid_or_a_function(given: Any, layout: Any) -> None:
    assert as_layout(given) == layout


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("nwhc", r"no layout 'nwhc'. Possible: \"nchw\""),
        ("torch.nn.no_such_thing", "no layout"),
        (3, "no layout 3"),
        ({"grid": [2, 2, 2, 2]}, "grid of whole numbers"),
        ({"grid": [2, 0]}, "grid of whole numbers"),
        ({"gird": [2, 3]}, "grid of whole numbers"),
        ({"grid": [2, 3], "extras": -1.5}, "`extras` is how many"),
    ],
    ids=str,
)
def test_what_is_no_layout_is_refused_with_what_is_possible(given: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        as_layout(given)


class Sequence(nn.Module):
    """Tokens of a grid that no shape tells: 2 x 3 cells of an image of 8 x 8."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.mix, self.fc = nn.AdaptiveAvgPool2d((2, 3)), nn.Linear(3, 5), nn.Linear(5, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.mix(self.embed(images).flatten(2).transpose(1, 2)).relu().mean(1))


@pytest.mark.parametrize("layout", [{"grid": [2, 3]}, rows, "tokens", None], ids=name_of)
def test_a_given_layout_is_used_and_gives_the_same_map(layout: Any) -> None:
    model, images = Sequence(), torch.rand(2, 3, 8, 8)
    [cam] = compute_cam(model, images, "mix", target=1, layout=layout).cams.values()

    leaf = model.mix(model.embed(images).flatten(2).transpose(1, 2)).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(model.fc(leaf.relu().mean(1))[:, 1].sum(), leaf)
    expected = (gradient.mean(1, keepdim=True) * leaf).sum(2).relu().view(2, 2, 3).detach()
    torch.testing.assert_close(cam, expected)


class Turning(nn.Module):
    """A block that ends with the channels last, although there is a convolution in it."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 5, 3, padding=1)

        def forward(self, images: Tensor) -> Tensor:
            return self.conv(images).permute(0, 2, 3, 1)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.block, self.fc = self.Block(), nn.Linear(5, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.block(images).relu().mean((1, 2)))


def test_a_block_of_convolutions_that_ends_with_the_channels_last_is_read_so() -> None:
    model, images = Turning(), torch.rand(2, 3, 6, 8)
    result = compute_cam(model, images, ["block", "block.conv"], target=1)
    assert result.layouts == {"block": "channels last", "block.conv": "channels first"}
    torch.testing.assert_close(result.cams["block"], result.cams["block.conv"])
    assert result.cams["block"].max() > 0


def test_a_function_that_makes_no_maps_is_refused() -> None:
    with pytest.raises(ValueError, match=r"of a tensor of shape \(2, 6, 5\) it made a tensor of shape \(2, 30\)"):
        compute_cam(Sequence(), torch.rand(2, 3, 8, 8), "mix", layout=lambda tokens: tokens.flatten(1))


def test_a_given_layout_needs_a_named_layer() -> None:
    with pytest.raises(ValueError, match="Name the layer in `target_layers`"):
        compute_cam(Sequence(), torch.rand(2, 3, 8, 8), layout={"grid": [2, 3]})
