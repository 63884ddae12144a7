"""Which layers "auto" takes into account."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision.models as zoo
from test_explain import WithAuxiliary, net
from torch import Tensor, nn

from gradcam_callback import compute_cam
from gradcam_callback.engine.auto import choose_layer, spatial_layers


def compiled(module: nn.Module) -> Any:
    return torch.compile(module, backend="eager")


IMAGES = torch.ones(2, 1, 4, 4)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 2, 1)
        self.never = nn.Conv2d(2, 2, 1)
        self.inner = nn.Sequential(nn.ReLU(), nn.Conv2d(2, 2, 1))
        self.windows = nn.Identity()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2, 3)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.inner(self.stem(images))
        self.windows(maps.repeat(2, 1, 1, 1))  # other rows than the batch
        maps = self.stem(maps[:, :1])  # runs again
        return self.fc(self.pool(maps).flatten(1))


def test_layers_are_seen_in_the_order_in_which_they_finish() -> None:
    model = Branching()
    with spatial_layers(model, IMAGES) as seen:
        assert seen == {}
        model(torch.ones(2, 1, 4, 4))
    assert list(seen) == ["inner.0", "inner.1", "inner", "stem"]
    assert all(module is model.get_submodule(name) for name, module in seen.items())


def test_no_hook_is_left_and_none_changes_the_order_of_the_users_hooks() -> None:
    model = Branching()
    handle = model.stem.register_forward_hook(lambda *_: None)
    with spatial_layers(model, IMAGES):
        assert all(module._forward_hooks for name, module in model.named_modules() if name)
    assert list(model.stem._forward_hooks) == [handle.id]
    with pytest.raises(RuntimeError, match="channels"), spatial_layers(model, IMAGES):
        model(torch.ones(2, 3, 4, 4))
    assert list(model.stem._forward_hooks) == [handle.id]
    assert not any(module._forward_hooks for module in model.modules() if module is not model.stem)


def test_the_watch_looks_and_does_not_touch() -> None:
    model = Branching().eval()
    images = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    logits = model(images)
    with spatial_layers(model, IMAGES):
        assert torch.equal(model(images), logits)


def test_a_scripted_child_is_passed_over() -> None:
    """It takes no hooks; a scripted preprocessing should not spoil the search in the rest."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(torch.jit.script(nn.Sequential(nn.ReLU())), nn.Conv2d(1, 2, 1))
    with spatial_layers(model, IMAGES) as seen:
        model(torch.ones(2, 1, 4, 4))
    assert list(seen)[-1] == "1"


def test_the_names_seen_in_a_compiled_model_are_those_of_the_model() -> None:
    model = Branching()
    model.inner = compiled(model.inner)
    with torch.compiler.set_stance("force_eager"), spatial_layers(model, IMAGES) as seen:
        model(torch.ones(2, 1, 4, 4))
    assert list(seen) == ["inner.0", "inner.1", "inner", "stem"]
    whole = compiled(nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU()))
    with torch.compiler.set_stance("force_eager"), spatial_layers(whole, IMAGES) as seen:
        whole(torch.ones(2, 1, 4, 4))
    assert list(seen) == ["0", "1"]


# Which one it is


@pytest.mark.parametrize(
    ("build", "layer"),
    [
        (zoo.resnet18, "layer4"),
        (zoo.resnet50, "layer4"),
        (zoo.efficientnet_b0, "features"),
        (zoo.mobilenet_v2, "features"),
        (zoo.mobilenet_v3_small, "features"),
        (zoo.densenet121, "features"),
        (zoo.googlenet, "inception5b"),
        (zoo.shufflenet_v2_x0_5, "conv5"),
        (zoo.convnext_tiny, "features"),
        (zoo.swin_t, "permute"),  # there the channels come first again
    ],
)
def test_auto_is_the_last_layer_with_space(
    build: Callable[..., nn.Module], layer: str, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    options = {"init_weights": False} if build is zoo.googlenet else {}
    model, images = build(num_classes=4, **options).eval(), torch.randn(1, 3, 64, 64)
    assert list(compute_cam(model, images).cams) == [choose_layer(model, images)] == [layer]
    assert caplog.text == ""


def test_a_branch_that_the_score_does_not_need_is_left_out() -> None:
    result = compute_cam(WithAuxiliary().eval(), torch.randn(4, 3, 12, 10), output="logits")
    assert list(result.cams) == ["stage"]


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_auto_asks_nothing_of_the_caller(guard: Any) -> None:
    with guard():
        assert choose_layer(net().requires_grad_(False).train(), torch.randn(4, 3, 12, 10)) == "stage"


def test_a_model_without_space_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(360, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(ValueError, match='"auto" found no layer'):
        choose_layer(model, torch.randn(4, 3, 12, 10))


# What only looks like a map


class Attention(nn.Module):
    """Tokens in two heads; `weights` takes the attention `(N, 2, T, T)`, `keys` what is compared `(N, 2, T, d)`."""

    def __init__(self) -> None:
        super().__init__()
        self.keys, self.weights = nn.Identity(), nn.Dropout(0.1)

    def forward(self, tokens: Tensor) -> Tensor:
        heads = self.keys(tokens.unflatten(2, (2, -1)).transpose(1, 2))
        weights = self.weights((heads @ heads.transpose(2, 3)).softmax(3))
        return (weights @ heads).transpose(1, 2).flatten(2)


class Transformer(nn.Module):
    def __init__(self, grid: int, last: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.attention, self.fc = nn.Conv2d(3, 8, 4, 4), Attention(), nn.Linear(8, 3)
        self.mix, self.grid, self.last = nn.Linear(8, 8), grid, last

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.attention(self.embed(images).flatten(2).transpose(1, 2))
        if self.last:
            tokens = self.mix(tokens.unflatten(1, (self.grid, self.grid))).flatten(1, 2)
        return self.fc(tokens.mean(1))


@pytest.mark.parametrize("last", [False, True], ids=["tokens", "channels last"])
@pytest.mark.parametrize("grid", [2, 4, 8])
def test_attention_and_channels_last_are_passed_over_and_that_is_said(
    grid: int, last: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert choose_layer(Transformer(grid, last), torch.randn(2, 3, 4 * grid, 4 * grid)) == "embed"
    assert "passes over what comes behind 'embed', from 'attention.keys' on" in caplog.text


class Pairwise(nn.Module):
    """Returns the attention itself, and has parts of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.softmax = nn.Softmax(-1)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.softmax(tokens @ tokens.transpose(1, 2)).unsqueeze(1)


@pytest.mark.parametrize("side", [16, 32])
def test_attention_is_passed_over_even_where_it_has_the_sides_of_a_map_or_their_proportion(side: int) -> None:
    """Sixteen tokens, as many as the first map has rows; or four times as many as the last one."""

    class Hybrid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            stem = nn.Conv2d(3, 8, 3, padding=1) if side == 16 else nn.Identity()
            self.embed = nn.Sequential(stem, nn.LazyConv2d(8, side // 4, side // 4))
            self.attention, self.pairs, self.fc = Attention(), Pairwise(), nn.Linear(8, 3)

        def forward(self, images: Tensor) -> Tensor:
            tokens = self.embed(images).flatten(2).transpose(1, 2)
            if side == 32:
                return self.fc((self.pairs(tokens).squeeze(1) @ tokens).mean(1))
            return self.fc(self.attention(tokens).mean(1))

    model, images = Hybrid(), torch.randn(2, 3, side, side)
    model(images)
    assert choose_layer(model, images) == "embed"


class Block(nn.Module):
    """A convolution, and what is done to its map without a module of its own."""

    def __init__(self, then: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.then = nn.Conv2d(3, 6, 3, padding=1), then

    def forward(self, maps: Tensor) -> Tensor:
        return self.then(self.conv(maps))


@pytest.mark.parametrize(
    "then",
    [
        lambda maps: F.max_pool2d(maps, 2),
        lambda maps: F.max_pool2d(maps.relu(), 3, 2),
        lambda maps: torch.cat([maps, -maps], 1).relu(),
        lambda maps: F.avg_pool2d(torch.cat([maps, -maps], 1), 2),
    ],
    ids=["pooled", "pooled unevenly", "joined", "joined and pooled"],
)
def test_a_block_that_pools_or_joins_maps_without_a_module_is_one_that_returns_maps(
    then: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model = nn.Sequential(Block(then), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(3))
    images = torch.randn(2, 3, 13, 10)
    model(images)
    assert choose_layer(model, images) == "0"
    assert caplog.text == ""


def test_an_activation_by_itself_behind_a_sum_is_a_map() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.act = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True)

        def forward(self, images: Tensor) -> Tensor:
            return self.act(self.one(images) + self.two(images)).mean((2, 3))

    assert choose_layer(Residual(), torch.randn(2, 3, 8, 8)) == "act"


def test_layers_of_its_own_kinds_alone_are_taken_at_their_word() -> None:
    class Scale(nn.Module):
        def forward(self, maps: Tensor) -> Tensor:
            return F.avg_pool2d(maps, 2) * 3

    model = nn.Sequential(Scale(), nn.Flatten(), nn.Linear(3 * 16, 3))
    assert choose_layer(model, torch.randn(2, 3, 8, 8)) == "0"
