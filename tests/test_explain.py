"""The contract of `compute_cam` and of `CAMResult`: what comes back, what is refused, and what is left untouched."""

from __future__ import annotations

import contextlib
import copy
import random
import warnings
import weakref
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import without_collector
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gradcam_callback import CAMResult, Cause, compute_cam

Guard = Callable[[], contextlib.AbstractContextManager[None]]


class Net(nn.Module):
    """Convolution, batch normalisation, in-place ReLU, convolution, head; `on_map` stands between map and pooling."""

    def __init__(self, on_map: Callable[[Tensor], Tensor] = lambda maps: maps, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.stage = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(16, classes)
        self.spare = nn.Conv2d(3, 4, 1)
        self.on_map = on_map

    def forward(self, images: Tensor) -> Tensor:
        maps = self.stage(self.relu(self.norm(self.stem(images))))
        return self.fc(self.drop(F.relu(self.on_map(maps)).mean((2, 3))))


def net(on_map: Callable[[Tensor], Tensor] = lambda maps: maps, classes: int = 5) -> Net:
    torch.manual_seed(0)
    return Net(on_map, classes).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, 3, 12, 10, generator=torch.Generator().manual_seed(1))


# What comes back


def test_maps_are_float32_not_negative_and_have_the_layers_size(images: Tensor) -> None:
    model = net()
    result = compute_cam(model, images, ["stem", "stage"])
    assert isinstance(result, CAMResult)
    assert list(result.cams) == list(result.health) == ["stem", "stage"]
    for layer, space in {"stem": (12, 10), "stage": (6, 5)}.items():
        cams = result.cams[layer]
        assert cams.shape == (4, *space)
        assert cams.dtype == torch.float32
        assert (cams >= 0).all()
        assert (cams > 0).any()
        assert not cams.requires_grad
        assert result.health[layer].state == ("ok",) * 4
        assert result.health[layer].cause is None
        assert result.health[layer].gradient_norm.shape == (4,)
        assert (result.health[layer].gradient_norm > 0).all()
    assert result.input_size == (12, 10)


def test_targets_scores_predictions_and_probabilities_are_those_of_the_model(images: Tensor) -> None:
    model = net()
    logits = model(images)
    result = compute_cam(model, images, "stage", target=[4, 3, 2, 1])
    assert result.targets.tolist() == [4, 3, 2, 1]
    assert result.targets.dtype == result.predictions.dtype == torch.int64
    assert torch.equal(result.predictions, logits.argmax(1))
    torch.testing.assert_close(result.scores, logits[torch.arange(4), torch.tensor([4, 3, 2, 1])])
    torch.testing.assert_close(result.probabilities, logits.softmax(1))
    assert result.scores.dtype == result.probabilities.dtype == torch.float32


@pytest.mark.parametrize("guard", [contextlib.nullcontext, torch.no_grad, torch.inference_mode])
def test_results_are_plain_tensors_wherever_they_were_made(images: Tensor, guard: Guard) -> None:
    """A tensor of inference mode would fail in the caller's next step, far from here."""
    with guard():
        result = compute_cam(net(), images, "stage")
    tensors = [result.cams["stage"], result.scores, result.probabilities, result.health["stage"].gradient_norm]
    assert not any(tensor.requires_grad or tensor.is_inference() for tensor in tensors)


def test_heatmaps_are_enlarged_and_scaled_to_one(images: Tensor) -> None:
    result = compute_cam(net(), images, ["stem", "stage"])
    for size, expected in [(None, (12, 10)), ((24, 30), (24, 30)), ((3, 2), (3, 2))]:
        for layer, heatmaps in result.heatmaps(size).items():
            assert heatmaps.shape == (4, *expected), layer
            assert heatmaps.dtype == torch.float32
            assert heatmaps.min() >= 0
            torch.testing.assert_close(heatmaps.amax((1, 2)), torch.ones(4))
    plain = F.interpolate(result.cams["stage"][:, None], (12, 10), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(result.heatmaps()["stage"], plain / plain.amax((1, 2), keepdim=True))


def test_an_empty_map_is_no_null() -> None:
    """Every channel speaks against the class: the gradient is fine, the map zero, and that is said."""
    model = net()
    with torch.no_grad():
        model.stage.weight.abs_()
        model.stage.bias.fill_(5.0)
        model.fc.weight[2] = -model.fc.weight[2].abs()
    result = compute_cam(model, torch.rand(2, 3, 12, 12), "stage", target=2)
    assert result.health["stage"].state == ("ok", "ok")
    assert result.health["stage"].empty == (True, True)
    assert result.health["stage"].null_probes == ()
    assert torch.equal(result.cams["stage"], torch.zeros(2, 6, 6))
    assert torch.equal(result.heatmaps()["stage"], torch.zeros(2, 12, 12))


# Gradients that are not there


def assert_null(result: CAMResult, layer: str, states: tuple[str, ...]) -> None:
    """Rows of NaN exactly where the state is not ok, in the maps and in the heatmaps."""
    health, cams = result.health[layer], result.cams[layer]
    assert health.state == states
    null = torch.tensor([state != "ok" for state in states])
    assert torch.equal(cams.flatten(1).isnan().all(1), null)
    assert torch.equal(cams.flatten(1).isnan().any(1), null)
    assert torch.equal(result.heatmaps()[layer].flatten(1).isnan().all(1), null)
    assert health.null_probes == tuple(null.nonzero()[:, 0].tolist())
    assert not any(empty for empty, state in zip(health.empty, states, strict=True) if state != "ok")


CUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "detach": lambda maps: maps.detach(),
    "data": lambda maps: maps.data,
    "numpy": lambda maps: torch.from_numpy(maps.detach().numpy()),
    "comparison": lambda maps: (maps > 0).float(),
    "no_grad": torch.no_grad()(lambda maps: maps * 2),
    "inference_mode": torch.inference_mode()(lambda maps: maps * 2),
}


@pytest.mark.parametrize("cut", CUTS)
def test_a_cut_graph_is_nan_and_none(images: Tensor, cut: str) -> None:
    result = compute_cam(net(CUTS[cut]), images, ["stem", "stage"])
    for layer in ("stem", "stage"):
        assert_null(result, layer, ("none",) * 4)
        assert result.health[layer].gradient_norm.isnan().all()


def test_a_cut_between_two_layers_takes_only_the_earlier_one(images: Tensor) -> None:
    model = net()
    model.relu.register_forward_hook(lambda module, args, output: output.detach())
    result = compute_cam(model, images, ["stem", "stage"])
    assert_null(result, "stem", ("none",) * 4)
    assert_null(result, "stage", ("ok",) * 4)


@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "hirescam", "xgradcam", "layercam"])
def test_a_zero_head_is_nan_and_zero(images: Tensor, method: str) -> None:
    model = net()
    nn.init.zeros_(model.fc.weight)
    result = compute_cam(model, images, ["stem", "stage"], method=method)
    for layer in ("stem", "stage"):
        assert_null(result, layer, ("zero",) * 4)
        assert torch.equal(result.health[layer].gradient_norm, torch.zeros(4))


def test_only_the_dead_image_is_zero(images: Tensor) -> None:
    """One image whose map is negative everywhere dies in the ReLU; its neighbours do not care."""
    model = net(lambda maps: maps - torch.tensor([0.0, 0.0, 1e6, 0.0])[:, None, None, None])
    assert_null(compute_cam(model, images, "stage"), "stage", ("ok", "ok", "zero", "ok"))


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "hirescam", "xgradcam", "layercam"])
def test_one_bad_image_spoils_only_its_own_row(images: Tensor, method: str, poison: float) -> None:
    model = net()
    clean = compute_cam(model, images, "stage", target=1, method=method).cams["stage"]
    images[2, 0, 3, 3] = poison
    result = compute_cam(model, images, "stage", target=1, method=method)
    assert_null(result, "stage", ("ok", "ok", "non_finite", "ok"))
    others = [0, 1, 3]
    torch.testing.assert_close(result.cams["stage"][others], clean[others])


def test_a_gradient_of_nan_is_non_finite(images: Tensor) -> None:
    """The activation is finite and the score is too; only the way back divides zero by zero."""
    model = net(lambda maps: maps + (maps * 0).pow(0.5))
    assert torch.isfinite(model(images)).all()
    assert_null(compute_cam(model, images, "stage"), "stage", ("non_finite",) * 4)


def test_a_layer_that_was_not_called_has_rows_of_nan_and_a_cause(images: Tensor) -> None:
    result = compute_cam(net(), images, ["spare", "stage"])
    assert result.cams["spare"].shape == (4, 1, 1)
    assert_null(result, "spare", ("none",) * 4)
    assert result.health["spare"].cause is Cause.LAYER_NOT_CALLED
    assert_null(result, "stage", ("ok",) * 4)


def test_a_scripted_layer_has_rows_of_nan_and_a_cause(images: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = net(torch.jit.script(nn.Sequential(nn.ReLU())))
    result = compute_cam(model, images, ["on_map", "stage"])
    assert result.health["on_map"].cause is Cause.HOOK_BYPASSED
    assert result.health["on_map"].state == ("none",) * 4
    assert result.cams["on_map"].isnan().all()
    assert result.health["stage"].state == ("ok",) * 4
    assert list(compute_cam(model, images).cams) == ["stage"]  # and "auto" passes it over


def test_a_layer_in_an_inference_mode_block_that_goes_on_is_explained(images: Tensor) -> None:
    model = net()

    def forward(images: Tensor) -> Tensor:
        return model.fc(model.stage(model.stem(images)).relu_().mean((2, 3)))

    def guarded(images: Tensor) -> Tensor:
        with torch.inference_mode():
            maps = model.stage(model.stem(images).repeat(1, 1, 1, 1)).relu_()
        return model.fc(maps.mean((2, 3)))

    model.forward = guarded  # type: ignore[method-assign]
    found = compute_cam(model, images, "stage", target=1)
    assert compute_cam(model, images, ["stem", "stage"]).health["stage"].state == ("ok",) * 4
    model.forward = forward  # type: ignore[method-assign]
    torch.testing.assert_close(found.cams["stage"], compute_cam(model, images, "stage", target=1).cams["stage"])


@pytest.mark.parametrize("layer", ["stem", "relu", "stage"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_blocks_give_the_maps_of_the_plain_network(images: Tensor, layer: str, reentrant: bool) -> None:
    """Before the block, in it, and behind it."""
    plain, model = net(), net()

    def forward(images: Tensor) -> Tensor:
        maps = model.stem(images)
        maps = checkpoint(lambda maps: model.relu(model.norm(maps)), maps, use_reentrant=reentrant)
        return model.fc(checkpoint(model.stage, maps, use_reentrant=reentrant).relu().mean((2, 3)))

    model.forward = forward  # type: ignore[method-assign]
    expected = compute_cam(plain, images, layer)
    found = compute_cam(model, images, layer)
    assert found.health[layer].state == ("ok",) * 4
    torch.testing.assert_close(found.cams[layer], expected.cams[layer])


def test_a_layer_beside_the_path_is_none_and_the_others_keep_their_own_gradient(images: Tensor) -> None:
    """In grad-cam the list of gradients shifts, and one layer gets the gradient of another."""
    torch.manual_seed(0)
    model = WithAuxiliary().eval()
    result = compute_cam(model, images, ["stem", "auxiliary", "stage"])
    assert_null(result, "auxiliary", ("none",) * 4)
    for layer in ("stem", "stage"):
        alone = compute_cam(model, images, layer)
        torch.testing.assert_close(result.cams[layer], alone.cams[layer])


class Skip(nn.Module):
    """A block under `no_grad` that a second layer lies in, and a way around that layer inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stage, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.stem(images)
        with torch.no_grad():
            maps = self.stage(maps) + maps
        return self.fc(maps.mean((2, 3)))


def test_half_a_gradient_is_not_taken_for_a_whole_one(images: Tensor) -> None:
    """Opening the block for `stage` must not give `stem` the gradient of the way around, and of that alone."""
    model = Skip().eval()
    assert_null(compute_cam(model, images, "stem"), "stem", ("none",) * 4)
    assert_null(compute_cam(model, images, ["stem", "stage"]), "stem", ("none",) * 4)


# What is refused


def test_a_layer_without_space_is_refused_with_its_shape(images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"(?s)fc.*\(4, 5\)"):
        compute_cam(net(), images, "fc")


def test_a_layer_with_other_rows_than_the_batch_is_refused(images: Tensor) -> None:
    """Two views of each image, folded into one batch: eight maps for four images would be a wrong answer."""

    class TwoViews(Net):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(torch.cat([images, images.flip(3)])).view(2, 4, -1).mean(0)

    with pytest.raises(ValueError, match="8"):
        compute_cam(TwoViews().eval(), images, "stage")


# What forward may return


class Reply(nn.Module):
    """A network whose forward wraps the logits."""

    def __init__(self, wrap: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.wrap = net(), wrap

    def forward(self, images: Tensor) -> Any:
        return self.wrap(self.inner(images), images.mean())


Named = namedtuple("Named", ["loss", "logits"])


@dataclass
class Record:
    loss: Tensor
    logits: Tensor


@pytest.mark.parametrize(
    ("wrap", "output"),
    [
        pytest.param(lambda logits, loss: {"loss": loss, "logits": logits}, "logits", id="dict"),
        pytest.param(lambda logits, loss: Record(loss, logits), "logits", id="dataclass"),
        pytest.param(lambda logits, loss: Named(loss, logits), "logits", id="namedtuple by name"),
        pytest.param(lambda logits, loss: Named(loss, logits), 1, id="namedtuple by index"),
        pytest.param(lambda logits, loss: (loss, logits), 1, id="tuple"),
        pytest.param(lambda logits, loss: [loss, logits], -1, id="list from the end"),
        pytest.param(lambda logits, loss: {"a": [logits * 2]}, lambda reply: reply["a"][0] / 2, id="callable"),
        pytest.param(lambda logits, loss: {"loss": loss, "logits": logits}, None, id="dict found"),
        pytest.param(lambda logits, loss: Record(loss, logits), None, id="dataclass found"),
        pytest.param(lambda logits, loss: Named(loss, logits), None, id="namedtuple found"),
        pytest.param(lambda logits, loss: (logits, loss), None, id="tuple found"),
    ],
)
def test_the_logits_are_taken_from_what_forward_returns(images: Tensor, wrap: Any, output: Any) -> None:
    model = Reply(wrap).eval()
    result = compute_cam(model, images, "inner.stage", target=3, output=output)
    plain = compute_cam(model.inner, images, "stage", target=3)
    torch.testing.assert_close(result.cams["inner.stage"], plain.cams["stage"])
    torch.testing.assert_close(result.scores, plain.scores)


class WithAuxiliary(nn.Module):
    """An auxiliary branch with space in it that runs last, and on which the score does not depend."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stage = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3)
        self.fc, self.auxiliary = nn.Linear(16, 5), nn.Conv2d(16, 2, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.stage(self.stem(images).relu()).relu()
        return {"logits": self.fc(maps.mean((2, 3))), "mask": self.auxiliary(maps)}


# The model is left as it was found


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that a probe pass could change, values copied and identities noted."""
    return {
        "modes": {name: module.training for name, module in model.named_modules()},
        "flags": {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        "parameters": {name: (id(value), value.detach().clone()) for name, value in model.named_parameters()},
        "versions": {name: value._version for name, value in model.named_parameters()},
        "grads": {
            name: None if value.grad is None else (id(value.grad), value.grad.clone())
            for name, value in model.named_parameters()
        },
        "buffers": {name: (id(value), value.clone()) for name, value in model.named_buffers()},
        "hooks": {
            name: {key: len(value) for key, value in vars(module).items() if "hooks" in key}
            for name, module in model.named_modules()
        },
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "methods": {name: module.forward.__func__ for name, module in model.named_modules()},
        "generators": (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()),
        "switches": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_num_threads()),
    }


def assert_same(before: Any, after: Any, path: str = "") -> None:
    if isinstance(before, dict):
        assert before.keys() == after.keys(), path
        for key in before:
            assert_same(before[key], after[key], f"{path}/{key}")
    elif isinstance(before, tuple):
        for index, (left, right) in enumerate(zip(before, after, strict=True)):
            assert_same(left, right, f"{path}/{index}")
    elif isinstance(before, Tensor):
        assert torch.equal(before, after), path
    elif isinstance(before, np.ndarray):
        assert np.array_equal(before, after), path
    else:
        assert before == after, path


class Busy(Net):
    """Leaves traces whenever it runs: statistics, a counter, plain attributes, and numbers from all generators."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.last: Any = "nothing yet"
        self.fail = False

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        self.last = images
        noise = torch.rand(()) + float(np.random.rand()) + random.random()
        logits = super().forward(images + 0 * noise)
        if self.fail:
            raise RuntimeError("the model's own trouble")
        return logits


def half_way() -> Busy:
    """A model in the middle of training: mixed modes, mixed flags, gradients of half a step."""
    torch.manual_seed(3)
    model = Busy().train()
    model.norm.eval()
    model.stem.requires_grad_(False)
    model(torch.randn(4, 3, 12, 12)).sum().backward()
    model.last = "nothing yet"
    return model


@pytest.mark.parametrize("fail", [False, True], ids=["returns", "raises"])
@pytest.mark.parametrize("guard", [contextlib.nullcontext, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("layers", ["auto", "stage", ["stem", "norm", "stage"]])
def test_the_model_is_left_as_it_was_found(images: Tensor, layers: Any, guard: Guard, fail: bool) -> None:
    model = half_way()
    model.fail = fail
    pixels, identity = images.clone(), images._version
    with guard():
        before = snapshot(model)
        with pytest.raises(RuntimeError, match="own trouble") if fail else contextlib.nullcontext():
            compute_cam(model, images, layers)
        assert_same(before, snapshot(model))
    assert torch.equal(images, pixels)
    assert images._version == identity
    assert not images.requires_grad
    assert images.grad is None
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def test_inputs_that_forward_changes_in_place_are_put_back(images: Tensor) -> None:
    """Or the probes of the next epoch would be other pixels."""

    class Normalising(Net):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images.sub_(0.5))

    model, before = Normalising().eval(), images.clone()
    for layers in ("stage", "auto"):
        result = compute_cam(model, images, layers)
        assert torch.equal(images, before)
        torch.testing.assert_close(result.scores, model(before.clone()).amax(1))


def test_refusals_leave_the_model_as_it_was_found_too(images: Tensor) -> None:
    model = half_way()
    before = snapshot(model)
    for arguments in [
        {"target_layers": "nowhere"},
        {"target_layers": "fc"},
        {"target": 99},
        {"method": "none"},
        {"output": "none"},
    ]:
        with pytest.raises((ValueError, TypeError)):
            compute_cam(model, images, **{"target_layers": "stage", **arguments})
        assert_same(before, snapshot(model))


KEPT: list[weakref.ref[Tensor]] = []


def keep(_module: nn.Module, _args: Any, output: Tensor) -> None:
    KEPT.append(weakref.ref(output))


def test_no_activation_is_kept_alive(images: Tensor) -> None:
    model = net()
    model.stage.register_forward_hook(keep)
    KEPT.clear()
    with without_collector():  # no cycle may be needed to let go
        result = compute_cam(model, images, ["stem", "stage"])
        assert [reference() for reference in KEPT] == [None]
    assert result.cams["stage"].grad_fn is None


def test_a_layer_shared_under_two_names_is_found_under_both(images: Tensor) -> None:
    model = net()
    model.alias = model.stage
    result = compute_cam(model, images, ["stage", "alias"])
    assert torch.equal(result.cams["stage"], result.cams["alias"])


def test_the_model_may_keep_its_own_hooks(images: Tensor) -> None:
    """A user's hook that changes the layer's output is part of the function that is explained."""
    model = net()
    twin = copy.deepcopy(model)
    model.stage.register_forward_hook(lambda module, args, output: output * 2)
    with torch.no_grad():
        twin.stage.weight.mul_(2)
        twin.stage.bias.mul_(2)
    torch.testing.assert_close(
        compute_cam(model, images, "stage").cams["stage"], compute_cam(twin, images, "stage").cams["stage"]
    )
