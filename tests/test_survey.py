"""What every layer returns, and how the score depends on it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradcam_callback.engine.inputs import ModelInputs
from gradcam_callback.engine.layouts import CHANNELS_FIRST
from gradcam_callback.engine.signal_graph import SignalGraph, signal_graph
from gradcam_callback.engine.survey import (
    LayerCall,
    Survey,
    _half_altered,
    altered,
    extra_tokens,
    follows_image,
    survey,
)
from gradcam_callback.engine.targets import ClassTarget, Scores

IMAGES = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def score(returned: Any) -> Scores:
    target = ClassTarget(0)
    return target.score(target.read(returned, None, IMAGES[:1]))


def surveyed(model: nn.Module, images: Tensor = IMAGES) -> Survey:
    return survey(model.eval().requires_grad_(False), images)


def graphed(model: nn.Module, *names: str) -> tuple[SignalGraph, list[LayerCall]]:
    """The graph, and the last call of some layers."""
    calls = [call for name in names if (call := surveyed(model).of(name))]
    assert len(calls) == len(names)
    return signal_graph(model, ModelInputs.of(IMAGES), score), calls


def compiled(module: nn.Module) -> Any:
    return torch.compile(module, backend="eager")


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
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


def test_calls_stand_in_the_order_in_which_they_finish_with_what_they_returned() -> None:
    calls = surveyed(Branching()).calls
    assert [(call.name, call.number) for call in calls] == [
        *[("stem", 0), ("inner.0", 0), ("inner.1", 0), ("inner", 0), ("windows", 0), ("stem", 1), ("pool", 0)],
        ("fc", 0),
    ]
    read = {call.name: (call.layout, call.grid, call.output) for call in calls}
    assert read["stem"] == (CHANNELS_FIRST, (4, 4), "a tensor of shape (N, 2, 4, 4)")
    assert read["pool"] == (CHANNELS_FIRST, (1, 1), "a tensor of shape (N, 2, 1, 1)")
    assert read["windows"][0] is None
    assert read["fc"] == (None, None, "a tensor of shape (N, 3)")


def test_a_call_is_found_by_its_number_and_else_the_last() -> None:
    found = surveyed(Branching())
    assert [call and call.number for call in (found.of("stem"), found.of("stem", 0), found.of("stem", -2))] == [1, 0, 0]
    assert found.of("stem", 2) is None
    assert found.of("never") is None


def test_no_hook_is_left_also_where_the_model_raises() -> None:
    model = Branching()
    handle = model.stem.register_forward_hook(lambda *_: None)
    surveyed(model)
    assert list(model.stem._forward_hooks) == [handle.id]
    with pytest.raises(RuntimeError, match="channels"):
        surveyed(model, torch.ones(1, 3, 4, 4))
    assert list(model.stem._forward_hooks) == [handle.id]
    assert not any(module._forward_hooks for module in model.modules() if module is not model.stem)


def test_a_scripted_child_is_passed_over() -> None:
    """It takes no hooks; a scripted preprocessing should not spoil the search in the rest."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(torch.jit.script(nn.Sequential(nn.ReLU())), nn.Conv2d(1, 2, 4), nn.Flatten())
    assert [call.name for call in surveyed(model).calls][-2:] == ["1", "2"]


def test_the_names_in_a_compiled_model_are_those_of_the_model() -> None:
    model = Branching()
    model.inner = compiled(model.inner)
    with torch.compiler.set_stance("force_eager"):
        assert [call.name for call in surveyed(model).calls][:4] == ["stem", "inner.0", "inner.1", "inner"]
        whole = compiled(nn.Sequential(nn.Conv2d(1, 2, 4), nn.Flatten()))
        assert [call.name for call in surveyed(whole).calls] == ["0", "1"]


# The graph


class Shortcut(nn.Module):
    """Two layers; what the second returns is joined with something else."""

    def __init__(self, join: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.fc = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 3)
        self.join = join

    def forward(self, images: Tensor) -> Tensor:
        first = self.first(images)
        second = self.second(first)
        return self.fc(self.join(images, first, second).mean((2, 3)))


@pytest.mark.parametrize(
    ("join", "first", "second"),
    [
        (lambda images, first, second: second, True, True),
        (lambda images, first, second: first + second, True, False),
        (lambda images, first, second: images + second, False, False),
        (lambda images, first, second: first, True, False),
        (lambda images, first, second: second.detach().relu(), True, True),
        (lambda images, first, second: F.relu(second, inplace=True), True, True),
        (lambda images, first, second: second + second.detach() * images.mean().item(), True, True),
    ],
    ids=["alone", "residual", "past both", "not used", "detached", "in place", "a number beside"],
)
def test_whether_the_whole_signal_passes_a_layer(join: Any, first: bool, second: bool) -> None:
    graph, calls = graphed(Shortcut(join), "first", "second")
    assert [graph.takes_all(call) for call in calls] == [first, second]


def test_what_is_computed_without_gradients_is_on_the_graph_too() -> None:
    class Frozen(Branching):
        def forward(self, images: Tensor) -> Tensor:
            with torch.no_grad():
                maps = self.stem(images)
            with torch.inference_mode():
                maps = self.inner(maps)
            return self.fc(maps.mean((2, 3)))

    graph, calls = graphed(Frozen(), "stem", "inner")
    assert [graph.takes_all(call) for call in calls] == [True, True]
    assert all(gradient is not None for gradient in graph.gradients(calls))


def test_gradients_are_those_of_autograd_as_maps() -> None:
    model = Shortcut(lambda images, first, second: second.relu())
    graph, calls = graphed(model, "first")
    [gradient] = graph.gradients(calls)

    leaf = model.first(IMAGES).detach().requires_grad_()
    (expected,) = torch.autograd.grad(model.fc(model.second(leaf).relu().mean((2, 3)))[:, 0].sum(), leaf)
    torch.testing.assert_close(gradient, expected)


def test_what_is_returned_beside_other_things_is_told() -> None:
    class Pair(nn.Module):
        def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
            return maps * 2, maps.mean((2, 3))

    model = Branching()
    model.inner = nn.Sequential(Pair())
    model.forward = lambda images: model.fc(model.inner(model.stem(images))[1])
    graph, _ = graphed(model, "inner")
    assert graph.alone == {("stem", 0)}


# The other image


@pytest.mark.parametrize(
    "images",
    [torch.rand(1, 3, 5, 6), torch.zeros(1, 1, 4, 4), torch.rand(1, 5, 6)],
    ids=["rgb", "even", "without channels"],
)
def test_the_other_image_differs_in_every_pixel(images: Tensor) -> None:
    other = altered(images)
    assert other.shape == images.shape
    assert bool((other != images).all())
    assert torch.equal(other, altered(images))


def test_the_other_image_of_whole_numbers_has_the_same_ones() -> None:
    images = torch.arange(48, dtype=torch.uint8).view(1, 3, 4, 4)
    assert torch.equal(altered(images).flatten(2).sort().values, images.flatten(2))
    assert not torch.equal(altered(images), images)


# Cells follow the image


def test_the_halves_of_an_image_are_altered() -> None:
    image = torch.rand(1, 3, 4, 6)
    changed = [(copy != image).all(1)[0] for copy in _half_altered(image, altered(image), 2)]
    rows, columns = torch.arange(4)[:, None].expand(4, 6), torch.arange(6).expand(4, 6)
    assert all(map(torch.equal, changed, [columns < 3, columns >= 3, rows < 2, rows >= 2]))


def follows(image: Tensor, layer: Callable[[Tensor], Tensor]) -> bool:
    other = altered(image)
    changes = [(layer(copy) - layer(image)).abs().sum((0, 1)) for copy in (*_half_altered(image, other, 2), other)]
    return follows_image(*changes)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("shape", [(4, 4), (5, 7), (1, 6), (6, 1), (2, 2), (1, 1)])
def test_maps_that_follow_the_image_are_told_from_those_that_do_not(shape: tuple[int, int]) -> None:
    image = torch.rand(1, 3, 70, 70)

    def maps(images: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(images, shape)

    assert follows(image, maps)
    assert follows(image, lambda images: maps(images) + 0.3 * images.mean((2, 3), keepdim=True))
    if max(shape) > 1:
        assert not follows(image, lambda images: maps(images).flip(2, 3))
        assert follows(image, lambda images: images.mean((2, 3), keepdim=True).expand(-1, -1, *shape))  # tells nothing
    if shape == (4, 4):
        assert not follows(image, lambda images: maps(images).transpose(2, 3))
        assert not follows(image, lambda images: unrolled(maps(images)))


def unrolled(maps: Tensor) -> Tensor:
    """Windows of 2 x 2 cells, one after the other."""
    windows = maps.unflatten(3, (2, 2)).unflatten(2, (2, 2)).permute(0, 1, 3, 5, 2, 4)
    return windows.reshape(maps.shape)


def test_a_guess_does_not_follow_where_all_cells_change_alike() -> None:
    assert follows_image(*[torch.ones(4, 4)] * 5)
    assert not follows_image(*[torch.ones(4, 4)] * 5, strictly=True)


class Transposed(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.transpose(1, 2)


def test_only_the_layers_that_are_asked_for_are_put_to_the_test() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 4, 4), nn.Flatten(2), Transposed(), nn.Linear(5, 5), nn.Linear(5, 5))
    images = torch.rand(1, 3, 16, 16)
    assert [call.follows for call in survey(model, images).calls] == [True] * 5
    assert [call.follows for call in survey(model, images, ["3"]).calls] == [True, None, None, True, None]


# Extra tokens


class Mixing(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + tokens.mean(1, keepdim=True)


class WithClassToken(nn.Module):
    """Joins tokens in its own forward; the first layer that returns so many has mixed them already."""

    def __init__(self, before: int, after: int, table: bool = False) -> None:
        super().__init__()
        self.embed, self.mixing, self.fc = nn.Conv2d(3, 16, 4, 4), Mixing(), nn.Linear(16, 3)
        self.before, self.after = torch.randn(1, before, 16), torch.randn(1, after, 16)
        self.table = nn.Identity() if table else None

    def forward(self, images: Tensor) -> Tensor:
        cells = self.embed(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.before.expand(len(cells), -1, -1), cells, self.after.expand(len(cells), -1, -1)], 1)
        if self.table is not None:
            tokens = tokens + self.table(torch.ones_like(tokens))
        return self.fc(self.mixing(tokens).mean(1))


@pytest.mark.parametrize("table", [False, True])
@pytest.mark.parametrize(("before", "after"), [(0, 0), (1, 0), (0, 1), (2, 3)])
def test_extra_tokens_are_those_that_do_not_come_from_the_image(before: int, after: int, table: bool) -> None:
    image, count = torch.rand(1, 3, 16, 16), 16 + before + after
    pair = (ModelInputs.of(image), ModelInputs.of(altered(image)))
    found = extra_tokens(WithClassToken(before, after, table), *pair)
    assert found == {count: (*range(before), *range(before + 16, count))}
