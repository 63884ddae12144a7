"""Faults to put into a network, one function each, and look-alikes that do no harm.

The line to blame ends with the comment `# ends here`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gradcam_callback.causes import Cause

Fault = Callable[[Tensor], Tensor]
MARK = "# ends here"
FINE = 2.0**40  # steps of one: activations of random weights are small, and must not all be rounded to zero
CUTS: dict[Fault, Cause] = {}
OTHERS: dict[Fault, Cause] = {}
HARMLESS: list[Fault] = []


def line_of(fault: Fault) -> int:
    """The number of its marked line."""
    lines, start = inspect.getsourcelines(fault)
    [line] = [start + number for number, text in enumerate(lines) if text.rstrip().endswith(MARK)]
    return line


def ends(shelf: dict[Fault, Cause], cause: Cause) -> Callable[[Fault], Fault]:
    def put(fault: Fault) -> Fault:
        shelf[fault] = cause
        return fault

    return put


def harmless(function: Fault) -> Fault:
    HARMLESS.append(function)
    return function


# Cuts: the values go on unchanged, or nearly so, and without a gradient.


@ends(CUTS, Cause.DETACHED)
def detach(x: Tensor) -> Tensor:
    return x.detach()  # ends here


@ends(CUTS, Cause.DETACHED)
def data(x: Tensor) -> Tensor:
    return x.data  # ends here


@ends(CUTS, Cause.DETACHED)
def detach_in_place(x: Tensor) -> Tensor:
    return x.detach_()  # ends here


@ends(CUTS, Cause.DETACHED)
def detach_a_view(x: Tensor) -> Tensor:
    return x.view_as(x).detach_()  # ends here


@ends(CUTS, Cause.DETACHED)
def view_of_detached(x: Tensor) -> Tensor:
    return x.detach().view_as(x)  # ends here


@ends(CUTS, Cause.REQUIRES_GRAD_OFF)
def requires_grad_off(x: Tensor) -> Tensor:
    return x.requires_grad_(False)  # ends here


@ends(CUTS, Cause.REQUIRES_GRAD_OFF)
def requires_grad_off_on_a_view(x: Tensor) -> Tensor:
    x = x.view_as(x)
    x.requires_grad = False  # ends here
    return x


@ends(CUTS, Cause.NO_GRAD)
def no_grad_block(x: Tensor) -> Tensor:
    with torch.no_grad():
        return x * 1.5  # ends here


@ends(CUTS, Cause.NO_GRAD)
def view_in_a_no_grad_block(x: Tensor) -> Tensor:
    with torch.no_grad():
        return x[:, :]  # ends here


@ends(CUTS, Cause.INFERENCE_MODE)
def inference_block(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return x * 1.5  # ends here


@ends(CUTS, Cause.INFERENCE_MODE)
def view_in_an_inference_block(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return x.view_as(x)  # ends here


@ends(CUTS, Cause.LEFT_TORCH)
def shared_with_numpy(x: Tensor) -> Tensor:
    return torch.from_numpy(x.detach().numpy())  # ends here


@ends(CUTS, Cause.LEFT_TORCH)
def computed_in_numpy(x: Tensor) -> Tensor:
    array = x.detach().cpu().numpy()  # ends here
    return torch.from_numpy(array * 2)


@ends(CUTS, Cause.LEFT_TORCH)
def copied(x: Tensor) -> Tensor:
    return torch.tensor(x.detach())  # ends here


# Other faults.


@ends(OTHERS, Cause.DETACHED)
def detach_then_in_place(x: Tensor) -> Tensor:
    x = x.detach()  # ends here
    return F.relu(x.add_(1), inplace=True)


@ends(OTHERS, Cause.NON_DIFFERENTIABLE)
def compared(x: Tensor) -> Tensor:
    return (x > 0).float()  # ends here


@ends(OTHERS, Cause.NON_DIFFERENTIABLE)
def argmax(x: Tensor) -> Tensor:
    best = x.argmax(1)  # ends here
    return F.one_hot(best, x.shape[1]).movedim(-1, 1).float()


class Forgetful(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1.5

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> None:
        return None


@ends(OTHERS, Cause.CUSTOM_FUNCTION)
def custom_function(x: Tensor) -> Tensor:
    return Forgetful.apply(x)  # ends here


@ends(OTHERS, Cause.INPLACE_MODIFIED)
def changed_after_save(x: Tensor) -> Tensor:
    gate = x.sigmoid()
    return gate.mul_(2)  # ends here


@ends(OTHERS, Cause.ZERO_GRADIENT)
def rounded(x: Tensor) -> Tensor:
    return (x * FINE).round() / FINE  # ends here


@ends(OTHERS, Cause.ZERO_GRADIENT)
def multiplied_by_zero(x: Tensor) -> Tensor:
    return x * 0 + 0.5  # ends here


@ends(OTHERS, Cause.ZERO_GRADIENT)
def clamped(x: Tensor) -> Tensor:
    return x.clamp(1e3, 1e4) / 1e3  # ends here


@ends(OTHERS, Cause.NON_FINITE)
def logarithm(x: Tensor) -> Tensor:
    return torch.log(-x.abs())  # ends here


# Look-alikes.


@harmless
def bookkeeping(x: Tensor) -> Tensor:
    seen = x.detach().mean().mul_(0.9)
    with torch.no_grad():
        seen += x.amax().item()
    return x


@harmless
def straight_through(x: Tensor) -> Tensor:
    return x + ((x * FINE).round() / FINE - x).detach()


@harmless
def masked(x: Tensor) -> Tensor:
    return x * (x > -1e6).float()


@harmless
def copy_written_in_place(x: Tensor) -> Tensor:
    scale = x.detach().clone().abs_().clamp_(0.5, 1.5)
    return x * scale


@harmless
def detached_alias_written_in_place(x: Tensor) -> Tensor:
    x = x * 1.5
    x.detach().mul_(1.5)
    x.data.add_(0.01)
    return x


@harmless
def view_written_without_gradients(x: Tensor) -> Tensor:
    x = x * 1.5
    with torch.no_grad():
        x.view_as(x).clamp_(-1e3, 1e3)
    return x


# In-place operations, as they follow a cut.


def _imul(x: Tensor) -> Tensor:
    x *= 2
    return x


def _set(x: Tensor) -> Tensor:
    x[:, 0] = x[:, 1] + 0.5
    return x


def _through_a_view(x: Tensor) -> Tensor:
    x.view(-1).mul_(2)
    return x


def _first_row(x: Tensor) -> Tensor:
    x[0].add_(1)
    return x


IN_PLACE: dict[str, Fault] = {
    "relu": lambda x: F.relu(x, inplace=True),
    "hardswish": lambda x: F.hardswish(x, inplace=True),
    "add_": lambda x: x.add_(1),
    "imul": _imul,
    "clamp_": lambda x: x.clamp_(-0.5, 0.5),
    "dropout": lambda x: F.dropout(x, 0.5, training=True, inplace=True),
    "copy_": lambda x: x.copy_(x * 2),
    "masked_fill_": lambda x: x.masked_fill_(x < 0, 0),
    "set": _set,
    "through_a_view": _through_a_view,
    "first_row": _first_row,
    "two": lambda x: F.relu(x.mul_(1.5), inplace=True),
}
