"""State of the whole process that a probe pass changes for its duration: generators, and three patches of torch.

Several threads may run probe passes at once, and one probe pass may run within another. So each patch is applied by the
first that needs it and taken back by the last, under one lock, and it acts only in the threads that asked for it (the
stance of the compiler excepted: torch has one for all threads).
"""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch.utils.checkpoint import CheckpointFunction

_LOCK = threading.RLock()


class SharedPatch:
    """A patch that is in force as long as anyone holds it.

    Args:
        apply: Applies the patch and returns what takes it back.
    """

    def __init__(self, apply: Callable[[], Callable[[], object]]) -> None:
        self._apply = apply
        self._holders = 0
        self._take_back: Callable[[], object] = lambda: None

    @contextmanager
    def held(self) -> Iterator[None]:
        """The patch is in force inside."""
        with _LOCK:
            if not self._holders:
                self._take_back = self._apply()
            self._holders += 1
        try:
            yield
        finally:
            with _LOCK:
                self._holders -= 1
                if not self._holders:
                    self._take_back()


class _ThreadState(threading.local):
    def __init__(self) -> None:
        self.checkpoints_bypassed = 0
        # What `inference_mode` blocks are entered within, the innermost pass last.
        self.inference_contexts: list[Callable[[], AbstractContextManager[Any]]] = []


_thread = _ThreadState()


# Generators


@contextmanager
def generators_kept() -> Iterator[None]:
    """Put back the process-wide generators of Python, NumPy and torch (CPU, and the accelerators in use)."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    with ExitStack() as stack:
        for kind in ("cuda", "xpu", "mps"):
            devices = _devices_in_use(kind)
            if devices:
                stack.enter_context(torch.random.fork_rng(devices, device_type=kind))
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            torch.set_rng_state(cpu)


def _devices_in_use(kind: str) -> list[int]:
    device = getattr(torch, kind)
    # Metal is initialised wherever it is available.
    in_use = torch.backends.mps.is_available() if kind == "mps" else device.is_initialized()
    return list(range(device.device_count())) if in_use else []


# Compiled code


def compiled_code_eager() -> AbstractContextManager[None]:
    """Compiled code runs eagerly inside: hooks put on later do not fire in it.

    Where nothing was compiled, the slow import of the compiler is spared.
    """
    return _EAGER_STANCE.held() if "torch._dynamo" in sys.modules else nullcontext()


def _force_eager() -> Callable[[], object]:
    stance: Any = torch.compiler.set_stance("force_eager")  # type: ignore[no-untyped-call, unused-ignore]
    return lambda: stance.__exit__(None, None, None)


_EAGER_STANCE = SharedPatch(_force_eager)


# Activation checkpoints


@contextmanager
def checkpoints_bypassed() -> Iterator[None]:
    """Run reentrant checkpoints as if they were none.

    Such a checkpoint runs its block without gradients, and gives its result a gradient only if an input asks for one.
    Here none does, so a layer inside would have no gradient. What comes before the layer stores nothing anyway.
    """
    with _CHECKPOINT_PATCH.held():
        _thread.checkpoints_bypassed += 1
        try:
            yield
        finally:
            _thread.checkpoints_bypassed -= 1


def _patch_checkpoints() -> Callable[[], object]:
    own = vars(CheckpointFunction).get("apply")

    def apply(cls: Any, function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
        if _thread.checkpoints_bypassed:
            return function(*args)
        applied = super(CheckpointFunction, cls).apply if own is None else own.__get__(None, cls)
        return applied(function, preserve_rng_state, *args)

    def take_back() -> None:
        if own is None:
            del CheckpointFunction.apply
        else:
            CheckpointFunction.apply = own

    CheckpointFunction.apply = classmethod(apply)  # type: ignore[assignment, method-assign, unused-ignore]
    return take_back


_CHECKPOINT_PATCH = SharedPatch(_patch_checkpoints)


# Inference mode


@contextmanager
def inference_as_no_grad(entering: Callable[[], AbstractContextManager[Any]] = nullcontext) -> Iterator[None]:
    """While a model runs, its `inference_mode` is a second `no_grad`, in this thread.

    A tensor made in inference mode can never carry a gradient again. While a model is explained, such a block of its
    own therefore only switches gradients off. It computes the same values, it can be bridged, and a layer that runs in
    it can switch gradients on again.

    Args:
        entering: A context within which each such block switches gradients off.
    """
    with _INFERENCE_PATCH.held():
        _thread.inference_contexts.append(entering)
        try:
            yield
        finally:
            _thread.inference_contexts.pop()


def _patch_inference_mode() -> Callable[[], object]:
    block = torch.inference_mode
    real_enter, real_leave = block.__enter__, block.__exit__

    def enter(self: Any) -> None:
        if not _thread.inference_contexts:
            return real_enter(self)
        self._gradients_before = torch.is_grad_enabled()
        with _thread.inference_contexts[-1]():
            torch._C._set_grad_enabled(not self.mode)

    def leave(self: Any, *error: Any) -> None:
        before = vars(self).pop("_gradients_before", None)
        if before is None:
            return real_leave(self, *error)
        torch._C._set_grad_enabled(before)

    def take_back() -> None:
        block.__enter__, block.__exit__ = real_enter, real_leave  # type: ignore[method-assign]

    block.__enter__, block.__exit__ = enter, leave  # type: ignore[method-assign]
    return take_back


_INFERENCE_PATCH = SharedPatch(_patch_inference_mode)
