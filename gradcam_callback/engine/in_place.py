"""Run a sharded model itself, where it cannot be copied, and put back what a forward pass in eval mode changes."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn


def is_sharded(modules: Sequence[nn.Module]) -> bool:
    """Whether parameters are spread over processes (FSDP2, tensor parallelism), so that a copy is impossible."""
    distributed = sys.modules.get("torch.distributed.tensor")
    kind = getattr(distributed, "DTensor", None)
    sharded = kind is not None and any(isinstance(parameter, kind) for parameter in _parameters(modules))
    return sharded or bool(_fully_sharded(modules))


@contextmanager
def guarded(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Let a sharded model run in eval mode, in place.

    On the way out, also by an exception, these are as they were: modes (module by module), `requires_grad` flags,
    which buffers there are and their values, `.grad`, and the parameters in shards. Not put back: attributes that
    forward sets, hooks that it registers, what containers hold; and, in versions of torch without
    `FSDPModule.reset_iter_state`, where FSDP2 was when the model raised.
    """
    with _resharded(modules), _buffers_kept(modules), _modes_kept(modules), _flags_kept(modules):
        yield


def _fully_sharded(modules: Sequence[nn.Module]) -> list[Any]:
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return [module for module in modules if fsdp is not None and isinstance(module, fsdp.FSDPModule)]


@contextmanager
def _resharded(modules: Sequence[nn.Module]) -> Iterator[None]:
    """FSDP2 swaps parameters between shards and wholes. What is put back are the shards, so those have to be there."""
    sharded = _fully_sharded(modules)
    for module in sharded:
        module.reshard()
    gradients = [(parameter, parameter.grad) for parameter in _parameters(modules)]
    try:
        yield
    except BaseException:
        # Have FSDP2 begin anew: it would go on in the middle of the pass that an error ended. It drops gradients, too.
        for module in sharded:
            with suppress(RuntimeError, AttributeError):  # the outermost alone can, and not in each version of torch
                module.reset_iter_state()
        raise
    finally:
        for module in sharded:
            module.reshard()
        for parameter, gradient in gradients:
            parameter.grad = gradient


@contextmanager
def _buffers_kept(modules: Sequence[nn.Module]) -> Iterator[None]:
    kept = [(module._buffers, dict(module._buffers)) for module in modules if module._buffers]
    buffers = [buffer for _, held in kept for buffer in held.values() if buffer is not None]
    values = [(buffer, buffer.detach().clone()) for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for registered, held in kept:
                registered.clear()
                registered.update(held)
            for buffer, value in values:
                # Through an alias with a version of its own: a graph that saved the buffer can still go backward.
                buffer.data.copy_(value)


@contextmanager
def _modes_kept(modules: Sequence[nn.Module]) -> Iterator[None]:
    # Past `train()` and `__setattr__`, which a user's module may override and do more in.
    modes = [(module, module.training) for module in modules]
    try:
        for module, _ in modes:
            vars(module)["training"] = False
        yield
    finally:
        for module, mode in modes:
            vars(module)["training"] = mode


@contextmanager
def _flags_kept(modules: Sequence[nn.Module]) -> Iterator[None]:
    flags = [(parameter, parameter.requires_grad) for parameter in _parameters(modules) if parameter.is_leaf]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _parameters(modules: Sequence[nn.Module]) -> Iterator[Tensor]:
    return (tensor for module in modules for tensor in module._parameters.values() if tensor is not None)
