"""Which layer "auto" takes, and how its output lies in space."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision.models as zoo
from test_explain import WithAuxiliary, net
from torch import Tensor, nn

from gradcam_callback import compute_cam
from gradcam_callback.engine.auto import EARLY, NOT_ALL, _gets_gradient, choose_layer
from gradcam_callback.engine.inputs import ModelInputs
from gradcam_callback.engine.layouts import CHANNELS_FIRST, CHANNELS_LAST, Layout, Tokens
from gradcam_callback.engine.request import CAMRequest
from gradcam_callback.engine.survey import survey


def chosen(model: nn.Module, images: Tensor, **options: Any) -> tuple[str, Layout]:
    [found] = choose_layer(model, images, CAMRequest.of(**options)).layouts.items()
    return found


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
def test_auto_is_the_last_layer_with_space(build: Callable[..., nn.Module], layer: str) -> None:
    torch.manual_seed(0)
    options = {"init_weights": False} if build is zoo.googlenet else {}
    model, images = build(num_classes=4, **options).eval(), torch.randn(1, 3, 64, 64)
    assert chosen(model, images) == (layer, CHANNELS_FIRST)
    assert list(compute_cam(model, images).cams) == [layer]


TINY = {"num_classes": 4, "pretrained": False}


@pytest.mark.parametrize(
    ("make", "layer", "layout"),
    [
        (
            lambda: timm.create_model("vit_tiny_patch16_224", img_size=64, embed_dim=24, depth=3, num_heads=2, **TINY),
            "blocks.1",  # behind it, only the class token reaches the score
            Tokens((4, 4), (0,)),
        ),
        (
            lambda: timm.create_model(
                *("vit_tiny_patch16_224",), img_size=64, embed_dim=24, depth=3, global_pool="avg", num_heads=2, **TINY
            ),
            "norm",  # does nothing: the tokens are pooled, and then normalised
            Tokens((4, 4), (0,)),
        ),
        (
            lambda: timm.create_model(
                *("swin_tiny_patch4_window7_224",), img_size=64, window_size=4, embed_dim=24, depths=(1, 1, 1), **TINY
            ),
            "norm",
            CHANNELS_LAST,
        ),
        (
            lambda: zoo.VisionTransformer(64, 16, num_layers=3, num_heads=2, hidden_dim=24, mlp_dim=48, num_classes=4),
            "encoder.layers.encoder_layer_1",  # although the weights of its head are zero
            Tokens((4, 4), (0,)),
        ),
    ],
    ids=["class token", "pooled tokens", "channels last", "a head of zeros"],
)
def test_auto_of_transformers(make: Callable[[], nn.Module], layer: str, layout: Layout) -> None:
    torch.manual_seed(0)
    assert chosen(make().eval(), torch.rand(1, 3, 64, 64)) == (layer, layout)


def test_a_branch_that_the_score_does_not_need_is_left_out() -> None:
    result = compute_cam(WithAuxiliary().eval(), torch.randn(4, 3, 12, 10), output="logits")
    assert list(result.cams) == ["stage"]


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_auto_asks_nothing_of_the_caller(guard: Any) -> None:
    with guard():
        assert chosen(net().requires_grad_(False).train(), torch.randn(4, 3, 12, 10))[0] == "stage"


def test_a_model_without_space_is_refused_with_what_was_seen() -> None:
    model = nn.Sequential(nn.Flatten(2), nn.Linear(120, 7), nn.Flatten(), nn.Linear(21, 2))
    seen = r"Seen, from the last: '1' returned a tensor of shape \(N, 3, 7\), where 3 tokens, and no layer before"
    with pytest.raises(ValueError, match=f'"auto" found no layer .*{seen}'):
        choose_layer(model, torch.randn(4, 3, 12, 10))


class Joined(nn.Module):
    """Two branches of one stem, joined in the forward of the model."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.one, self.two = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.stem(images).relu()
        return self.fc(torch.cat([self.one(maps), self.two(maps)], 1).relu().mean((2, 3)))


def test_auto_takes_no_branch_alone() -> None:
    assert chosen(Joined(), torch.randn(2, 3, 8, 8))[0] == "stem"


class Deep(nn.Module):
    """Ten layers of two branches that are joined in the end: the whole signal passes the stem alone."""

    def __init__(self, joined: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.one, self.two = ([nn.Conv2d(4, 4, 3, padding=1) for _ in range(5)] for _ in range(2))
        self.rest, self.fc, self.joined = nn.ModuleList(self.one + self.two), nn.Linear(8, 3), joined

    def forward(self, images: Tensor) -> Tensor:
        ways = []
        start = self.stem(images).relu() if self.joined else images.mean(1, keepdim=True).expand(-1, 4, -1, -1)
        for branch in (self.one, self.two):
            maps = start
            for layer in branch:
                maps = layer(maps).relu()
            ways.append(maps.mean((2, 3)))
        return self.fc(torch.cat(ways, 1))


@pytest.mark.parametrize(("joined", "remark"), [(True, EARLY), (False, NOT_ALL)])
def test_what_is_to_be_said_of_the_layer(joined: bool, remark: str, caplog: pytest.LogCaptureFixture) -> None:
    model = Deep(joined)
    if not joined:
        del model.stem
    assert choose_layer(model, torch.randn(2, 3, 8, 8)).remark == remark
    compute_cam(model, torch.randn(2, 3, 8, 8))
    assert [remark in record.message for record in caplog.records] == [True]
    assert choose_layer(Joined(), torch.randn(2, 3, 8, 8)).remark == ""


class Structured(nn.Module):
    """As in libraries: the backbone returns maps and what is pooled of them, and the head uses the latter."""

    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())

        def forward(self, images: Tensor) -> dict[str, Tensor]:
            maps = self.encoder(images)
            return {"last_hidden_state": maps, "pooled": maps.mean((2, 3))}

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone, self.fc = self.Backbone(), nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.backbone(images)["pooled"])


def test_auto_takes_no_module_whose_maps_the_score_does_not_come_from() -> None:
    assert chosen(Structured(), torch.randn(2, 3, 8, 8))[0] == "backbone.encoder"


class Segmenting(nn.Module):
    """Returns a map a class, which `output` reduces."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features, self.classifier = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images).relu())


def test_auto_does_not_take_the_prediction_itself() -> None:
    assert chosen(Segmenting(), torch.randn(2, 3, 8, 8), output=lambda maps: maps.mean((2, 3)))[0] == "features"


@pytest.mark.parametrize("cut", ["detach", "no_grad", "numpy"])
def test_auto_of_a_score_without_a_gradient_is_the_layer_whose_gradient_is_missing(cut: str) -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stage, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

        def forward(self, images: Tensor) -> Tensor:
            maps = self.stage(images)
            if cut == "numpy":
                return self.fc(torch.from_numpy(maps.detach().numpy()).mean((2, 3)))
            with torch.set_grad_enabled(cut != "no_grad"):
                pooled = maps.mean((2, 3))
            return self.fc(pooled.detach() if cut == "detach" else pooled)

    assert chosen(Cut(), torch.randn(2, 3, 8, 8))[0] == "stage"


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


@pytest.mark.parametrize("grid", [2, 4, 8])
def test_tokens_are_taken_and_attention_is_not(grid: int) -> None:
    images = torch.randn(2, 3, 4 * grid, 4 * grid)
    assert chosen(Transformer(grid), images) == ("attention", Tokens((grid, grid)))
    assert chosen(Transformer(grid, last=True), images) == ("mix", CHANNELS_LAST)


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
    assert chosen(model, images)[0] == ("attention" if side == 16 else "embed")


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
    then: Any,
) -> None:
    model = nn.Sequential(Block(then), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(3))
    images = torch.randn(2, 3, 13, 10)
    model(images)
    assert chosen(model, images) == ("0", CHANNELS_FIRST)


def test_an_activation_by_itself_behind_a_sum_is_a_map() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.act = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True)

        def forward(self, images: Tensor) -> Tensor:
            return self.act(self.one(images) + self.two(images)).mean((2, 3))

    assert chosen(Residual(), torch.randn(2, 3, 8, 8))[0] == "act"


def test_layers_of_its_own_kinds_alone_are_taken_at_their_word() -> None:
    class Scale(nn.Module):
        def forward(self, maps: Tensor) -> Tensor:
            return F.avg_pool2d(maps, 2) * 3

    model = nn.Sequential(Scale(), nn.Flatten(), nn.Linear(3 * 16, 3))
    assert chosen(model, torch.randn(2, 3, 8, 8))[0] == "0"


class ClassToken(nn.Module):
    """Its score is read from a token that is no cell, behind the last mixing."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.mix, self.norm, self.fc = (
            nn.Conv2d(3, 8, 4, 4),
            nn.Identity(),
            nn.LayerNorm(8),
            nn.Linear(8, 3),
        )
        self.token = torch.randn(1, 1, 8)

    def forward(self, images: Tensor) -> Tensor:
        cells = self.embed(images).flatten(2).transpose(1, 2)
        tokens = self.mix(torch.cat([self.token.expand(len(cells), -1, -1), cells], 1))
        return self.fc(self.norm(tokens + tokens.mean(1, keepdim=True))[:, 0])


@pytest.mark.parametrize(("layer", "gets"), [("mix", True), ("norm", False)])
def test_a_gradient_of_the_class_token_alone_is_none_of_the_cells(layer: str, gets: bool) -> None:
    model, images = ClassToken(), torch.rand(1, 3, 16, 16)
    call = survey(model, images).of(layer)
    assert call is not None
    assert call.layout == Tokens((4, 4), (0,))
    assert _gets_gradient(model, ModelInputs.of(images), CAMRequest.of(), call) is gets
    assert chosen(model, images)[0] == "mix"


# Cells follow the image


class Reordered(nn.Module):
    """Tokens in another order than that of the rows, as where windows are unrolled."""

    def __init__(self, order: list[int]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.mix, self.fc = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 8), nn.Linear(8, 3)
        self.order = order

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.mix(self.embed(images).flatten(2).transpose(1, 2)[:, self.order]).relu().mean(1))


@pytest.mark.parametrize(
    ("order", "follows"),
    [
        (list(range(16)), True),
        ([4 * row + column for column in range(4) for row in range(4)], False),  # columns for rows
        ([0, 2, 8, 10, 1, 3, 9, 11, 4, 6, 12, 14, 5, 7, 13, 15], False),  # by their place in a window
        (list(range(15, -1, -1)), False),
    ],
    ids=["rows", "columns", "windows", "backward"],
)
def test_tokens_in_another_order_are_refused(order: list[int], follows: bool) -> None:
    model, images = Reordered(order), torch.randn(2, 3, 16, 16)
    assert chosen(model, images)[0] == ("mix" if follows else "embed")
    for name in ("mix", "mix#0", "mix#-1") if not follows else ():
        with pytest.raises(ValueError, match=rf"'{name}' returned a tensor of shape .*if its cells followed the image"):
            compute_cam(model, images, name)
