"""The methods on tensors so small that the maps can be worked out by hand; nothing is repaired in them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gradcam_callback.engine.methods import (
    METHODS,
    FormulaMethod,
    as_method,
    find_method,
    gradcam,
    gradcam_plus_plus,
    hirescam,
    layercam,
    xgradcam,
)

OF_GRADIENTS = [name for name, one in METHODS.items() if isinstance(one, FormulaMethod) and one.needs_gradient]

NAN, INF = math.nan, math.inf

# Two channels of two by two.
ACTIVATION = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[-1.0, 0.0], [1.0, 2.0]]]])
GRADIENT = torch.tensor([[[[1.0, 0.0], [0.0, -1.0]], [[2.0, 2.0], [2.0, 2.0]]]])


def channels(*values: list[float]) -> Tensor:
    """`(1, K, 1, w)` from a row of numbers for each channel."""
    return torch.tensor(values)[None, :, None, :]


# Worked out by hand. Means of the gradient: 0 and 2, so the second channel twice.
# Grad-CAM++: sums of the activation 10 and 2, so a = 1 / (2 + 10) where G is 1 (weight 1/12), and 1 / (2 + 2 * 2) = 1/6
# four times where G is 2 (weight 4 * 2 / 6 = 4/3).
# XGrad-CAM: sums of G A are 1 - 4 = -3 and 2 * 2 = 4; weights -3/10 and 4/2 = 2.
BY_HAND = {
    "gradcam": [[0.0, 0.0], [2.0, 4.0]],
    "gradcam++": [[0.0, 2 / 12], [3 / 12 + 4 / 3, 4 / 12 + 8 / 3]],
    "hirescam": [[0.0, 0.0], [2.0, 0.0]],
    "xgradcam": [[0.0, 0.0], [2.0 - 0.9, 4.0 - 1.2]],
    "layercam": [[0.0, 0.0], [2.0, 4.0]],
    "gradcam_elementwise": [[1.0, 0.0], [2.0, 4.0]],
}


@pytest.mark.parametrize("name", BY_HAND)
def test_map_by_hand(name: str) -> None:
    torch.testing.assert_close(METHODS[name].map(ACTIVATION, GRADIENT), torch.tensor([BY_HAND[name]]))


NEEDS: dict[str, tuple[bool, int | str]] = {
    "gradcam": (True, 0),
    "gradcam++": (True, 0),
    "hirescam": (True, 0),
    "xgradcam": (True, 0),
    "layercam": (True, 0),
    "gradcam_elementwise": (True, 0),
    "eigencam": (False, 0),
    "eigengradcam": (True, 0),
    "smooth_gradcam": (True, 16),
    "scorecam": (False, "per channel"),
    "ablationcam": (False, "per channel"),
    "gradient_rollout": (True, 1),
}


def test_every_method_declares_what_it_needs() -> None:
    assert {name: (method.needs_gradient, method.extra_forwards) for name, method in METHODS.items()} == NEEDS
    assert [method.name for method in METHODS.values()] == list(METHODS)


def random_pair(seed: int, samples: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (samples, 4, 3, 5)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


@pytest.mark.parametrize("name", OF_GRADIENTS)
def test_properties_of_every_method(name: str) -> None:
    method = METHODS[name].map
    for seed in range(5):
        activation, gradient = random_pair(seed)
        cam = method(activation, gradient)
        assert cam.shape == (3, 3, 5)
        assert cam.dtype == torch.float32
        assert (cam >= 0).all()
        # Each sample by itself; channels in any order; nothing written to.
        alone = torch.cat([method(activation[i : i + 1], gradient[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(cam, alone)
        order = torch.tensor([2, 0, 3, 1])
        torch.testing.assert_close(cam, method(activation[:, order], gradient[:, order]), rtol=1e-4, atol=1e-5)
        assert torch.equal(activation, random_pair(seed)[0])
        assert torch.equal(gradient, random_pair(seed)[1])
        # A channel that is silent, or that the score does not depend on, changes nothing.
        zero = torch.zeros(3, 1, 3, 5)
        some = torch.randn(3, 1, 3, 5, generator=torch.Generator().manual_seed(seed))
        for extra in ((zero, some), (some, zero)):
            wider = method(torch.cat([activation, extra[0]], 1), torch.cat([gradient, extra[1]], 1))
            torch.testing.assert_close(cam, wider, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in OF_GRADIENTS if name != "gradcam++"])
@pytest.mark.parametrize("factor", [1e-30, 0.5, 1e30])
def test_maps_grow_with_the_gradient(name: str, factor: float) -> None:
    activation, gradient = random_pair(0)
    expected = METHODS[name].map(activation.double(), gradient.double()) * factor
    torch.testing.assert_close(METHODS[name].map(activation, gradient * factor).double(), expected, rtol=1e-3, atol=0)


def test_gradcam_plus_plus_is_the_papers_equation() -> None:
    """`a = G^2 / (2 G^2 + G^3 sum A)`, as it is written there."""
    activation, gradient = (tensor.double() for tensor in random_pair(1))
    alpha = gradient**2 / (2 * gradient**2 + gradient**3 * activation.sum((2, 3), keepdim=True))
    weights = (alpha * gradient.clamp(min=0)).sum((2, 3), keepdim=True)
    torch.testing.assert_close(gradcam_plus_plus(activation, gradient), (weights * activation).sum(1).clamp(min=0))


def test_gradcam_plus_plus_of_a_small_gradient_is_half_its_sum() -> None:
    """Where `G sum A` vanishes beside 2. The square of such a gradient is zero in single precision."""
    cam = gradcam_plus_plus(channels([1.0, 3.0]), channels([1e-30, 2e-30]))
    torch.testing.assert_close(cam, 1.5e-30 * torch.tensor([[[1.0, 3.0]]]), rtol=1e-5, atol=0)


def test_on_a_constant_gradient_three_methods_agree() -> None:
    """Then the mean gradient is the gradient, and the weighted mean of it as well."""
    activation, _ = random_pair(2)
    gradient = torch.tensor([1.0, -2.0, 0.5, 3.0]).view(1, 4, 1, 1).expand_as(activation)
    torch.testing.assert_close(hirescam(activation, gradient), gradcam(activation, gradient))
    torch.testing.assert_close(xgradcam(activation, gradient), gradcam(activation, gradient), rtol=1e-4, atol=1e-5)


def test_layercam_is_hirescam_where_the_gradient_is_positive() -> None:
    activation, gradient = random_pair(3)
    assert torch.equal(layercam(activation, gradient.abs()), hirescam(activation, gradient.abs()))


# Denominators of zero


def test_xgradcam_gives_a_channel_that_sums_to_zero_no_weight() -> None:
    activation = channels([1.0, -1.0], [1.0, 1.0], [0.0, 0.0])
    gradient = channels([5.0, 1.0], [1.0, 3.0], [7.0, 7.0])
    assert xgradcam(activation, gradient).tolist() == [[[2.0, 2.0]]]


def test_gradcam_plus_plus_gives_a_place_with_a_denominator_of_zero_no_weight() -> None:
    """`2 + G sum A` is zero at the first place, and 2 + 4 * -2 = -6 at the second."""
    cam = gradcam_plus_plus(channels([-1.0, -1.0]), channels([1.0, 4.0]))
    torch.testing.assert_close(cam, torch.tensor([[[4 / 6, 4 / 6]]]))


@pytest.mark.parametrize("name", OF_GRADIENTS)
def test_a_map_of_nothing_is_zero(name: str) -> None:
    activation, gradient = random_pair(4)
    for pair in ((activation, torch.zeros_like(gradient)), (torch.zeros_like(activation), gradient)):
        assert METHODS[name].map(*pair).abs().max() == 0


# What is not finite stays so


@pytest.mark.parametrize("name", OF_GRADIENTS)
@pytest.mark.parametrize("where", ["activation", "gradient"])
@pytest.mark.parametrize("other", [1.0, 0.0, -1.0])
def test_nan_goes_in_and_comes_out(name: str, where: str, other: float) -> None:
    bad, good = channels([NAN, 1.0], [1.0, 1.0]), channels([other, 1.0], [1.0, 1.0])
    pair = (bad, good) if where == "activation" else (good, bad)
    assert METHODS[name].map(*pair).isnan().any()


@pytest.mark.parametrize("name", OF_GRADIENTS)
@pytest.mark.parametrize("activation", [0.0, 1.0])
def test_a_gradient_of_nan_alone_never_becomes_a_map(name: str, activation: float) -> None:
    cam = METHODS[name].map(channels([activation, activation]), channels([NAN, NAN]))
    assert cam.isnan().all()


@pytest.mark.parametrize("name", OF_GRADIENTS)
def test_one_bad_sample_spoils_only_its_own_map(name: str) -> None:
    activation, gradient = random_pair(5)
    clean = METHODS[name].map(activation, gradient)
    activation[1, 0, 0, 0] = NAN
    spoilt = METHODS[name].map(activation, gradient)
    assert torch.equal(spoilt[[0, 2]], clean[[0, 2]])
    assert spoilt[1].isnan().any()


# Names


@pytest.mark.parametrize("name", METHODS)
def test_methods_are_found_by_name(name: str) -> None:
    assert find_method(name) is METHODS[name]


@pytest.mark.parametrize(
    ("name", "meant"),
    [("GradCAM", "gradcam"), ("grad-cam", "gradcam"), ("gradcam+", "gradcam++"), ("LayerCam", "layercam")],
)
def test_an_unknown_method_is_answered_with_the_closest_and_with_all(name: str, meant: str) -> None:
    with pytest.raises(ValueError, match=r"Possible: 'gradcam', 'gradcam\+\+', 'hirescam'") as caught:
        find_method(name)
    message = str(caught.value)
    assert repr(name) in message
    assert message.endswith(f"Did you mean {meant!r}?")


def of_first_channel(activation: Tensor, gradient: Tensor) -> Tensor:
    """A user's own method."""
    return activation[:, 0] * gradient[:, 0]


class Scaled:
    """Another, with an option and a budget."""

    needs_gradient, extra_forwards = False, 3

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def map(self, activation: Tensor, gradient: None, rerun: object) -> Tensor:
        return activation.sum(1) * self.factor


def test_a_users_own_method_comes_as_a_function_or_by_its_dotted_name() -> None:
    for given in (of_first_channel, f"{__name__}.of_first_channel"):
        method = as_method(given)
        assert (method.name, method.needs_gradient, method.extra_forwards) == ("of_first_channel", True, 0)
        assert method.map(ACTIVATION, GRADIENT).tolist() == [[[1.0, 0.0], [0.0, 0.0]]]


def test_a_users_own_class_declares_what_it_needs() -> None:
    for given in (Scaled(2.0), {"class_path": f"{__name__}.Scaled", "init_args": {"factor": 2.0}}):
        method = as_method(given)
        assert (method.name, method.needs_gradient, method.extra_forwards) == ("Scaled", False, 3)
        assert method.map(ACTIVATION, None, None).tolist() == [[[0.0, 4.0], [8.0, 12.0]]]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("no.such.function", "'no.such.function' could not be imported: ModuleNotFoundError"),
        (f"{__name__}.ACTIVATION", "There is no method"),
        ({"class_path": f"{__name__}.Scaled"}, "could not be imported: TypeError"),
        ({"name": "gradcam"}, "A method of several entries has `class_path` and `init_args`"),
    ],
    ids=str,
)
def test_what_is_no_method_is_refused_with_the_reason(given: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        as_method(given)  # type: ignore[arg-type]


def test_a_budget_that_is_no_number_is_refused() -> None:
    method = Scaled(1.0)
    method.extra_forwards = "many"  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"`extra_forwards` .* or 'per channel'; 'Scaled' has 'many'"):
        as_method(method)


@pytest.mark.parametrize("name", ["", None, 3, ["gradcam"]], ids=repr)
def test_what_is_no_name_is_refused_with_those_that_are(name: object) -> None:
    with pytest.raises((ValueError, TypeError), match="Possible: 'gradcam'"):
        find_method(name)  # type: ignore[arg-type]
