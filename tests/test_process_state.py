"""What a probe pass changes of the process is as it was afterwards, whoever else runs one at the same time."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo
from torch import Tensor, nn
from torch._dynamo import eval_frame
from torch.utils.checkpoint import CheckpointFunction, checkpoint

from gradcam_callback.engine import process_state
from gradcam_callback.engine.process_state import (
    checkpoints_bypassed,
    compiled_code_eager,
    generators_kept,
    inference_as_no_grad,
)

# Generators


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def seed_and_fail() -> None:
    torch.manual_seed(7)
    raise ZeroDivisionError


def states() -> tuple[Any, Any, Any]:
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[union-attr]


def test_generators_of_the_process_are_put_back() -> None:
    before = states()
    with generators_kept():
        first = draw()
    assert states() == before
    with pytest.raises(ZeroDivisionError), generators_kept():
        seed_and_fail()
    assert states() == before
    assert draw() == first


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
def test_generators_of_the_accelerators_in_use_are_put_back(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device, held = getattr(torch, kind), {0: "first", 1: "second"}
    for other in ("cuda", "xpu"):
        monkeypatch.setattr(getattr(torch, other), "is_initialized", lambda in_use=other == kind: in_use)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: kind == "mps")
    monkeypatch.setattr(device, "device_count", lambda: len(held))
    monkeypatch.setattr(device, "get_rng_state", lambda index: held[index])
    monkeypatch.setattr(device, "set_rng_state", lambda state, index: held.update({index: state}))
    with generators_kept():
        held.update({0: "drawn", 1: "drawn"})
    assert held == {0: "first", 1: "second"}


# Patches


@contextmanager
def all_patches() -> Any:
    with compiled_code_eager(), checkpoints_bypassed(), inference_as_no_grad():
        yield


def patches() -> tuple[Any, ...]:
    block = torch.inference_mode
    return vars(CheckpointFunction).get("apply"), block.__enter__, block.__exit__, eval_frame._stance


def test_patches_within_patches_leave_nothing() -> None:
    before = patches()
    with all_patches():
        inside = patches()
        with pytest.raises(ZeroDivisionError), all_patches():
            raise ZeroDivisionError
        assert patches() == inside
    assert patches() == before
    assert all(one is not other for one, other in zip(inside, before, strict=True))


def run_threads(*jobs: Callable[[], object]) -> None:
    failures: list[BaseException] = []

    def attempt(job: Callable[[], object]) -> None:
        try:
            job()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=attempt, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []


def overlapping(context: Callable[[], AbstractContextManager[Any]]) -> None:
    """Two threads in one context: the first to enter is the first to leave."""
    second_entered, first_left = threading.Event(), threading.Event()
    first_entered = threading.Event()

    def first() -> None:
        with context():
            first_entered.set()
            assert second_entered.wait(60)
        first_left.set()

    def second() -> None:
        assert first_entered.wait(60)
        with context():
            second_entered.set()
            assert first_left.wait(60)

    run_threads(first, second)


def test_patches_of_two_threads_leave_nothing() -> None:
    before = patches()
    overlapping(all_patches)
    assert patches() == before


def test_patches_act_in_the_threads_that_asked_for_them() -> None:
    model, seen = nn.Linear(2, 2), {}
    point = torch.ones(1, 2, requires_grad=True)

    def look() -> None:
        with torch.inference_mode():
            seen[threading.current_thread() is threading.main_thread()] = torch.is_inference_mode_enabled()
        checkpoint(lambda rows: (runs.append(torch.is_grad_enabled()), model(rows))[1], point, use_reentrant=True)

    runs: list[bool] = []
    with checkpoints_bypassed(), inference_as_no_grad():
        look()
        run_threads(look)
    assert seen == {True: False, False: True}
    assert runs == [True, False]


def test_a_reentrant_block_runs_as_if_it_were_none() -> None:
    model, runs = nn.Linear(2, 2), []
    point = torch.ones(1, 2, requires_grad=True)

    def block(rows: Tensor) -> Tensor:
        runs.append(torch.is_grad_enabled())
        return model(rows)

    def gradient() -> list[Any]:
        [found] = torch.autograd.grad(checkpoint(block, point, use_reentrant=True).sum(), point)
        return found.tolist()

    with checkpoints_bypassed():
        with checkpoints_bypassed():
            inside = gradient()
        assert gradient() == inside
    assert runs == [True, True]
    checkpoint(block, point, use_reentrant=True).sum().backward()
    assert runs == [True, True, False, True]
    assert point.grad is not None
    assert point.grad.tolist() == inside


def test_a_checkpoint_is_one_again_while_another_thread_still_has_it_patched() -> None:
    runs: list[bool] = []
    point = torch.ones(1, 2, requires_grad=True)
    with process_state._CHECKPOINT_PATCH.held():
        with checkpoints_bypassed():
            pass
        checkpoint(lambda rows: (runs.append(torch.is_grad_enabled()), rows * 2)[1], point, use_reentrant=True)
    assert runs == [False]


def test_a_subclass_of_the_checkpoint_is_a_checkpoint_of_its_own() -> None:
    class Own(CheckpointFunction):
        pass

    with checkpoints_bypassed():
        assert Own.apply(lambda rows: rows * 2, False, torch.ones(1)).tolist() == [2]


def test_a_checkpoint_that_another_library_has_patched_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CheckpointFunction, "apply", staticmethod(lambda *_: "theirs"), raising=False)
    with checkpoints_bypassed():
        assert CheckpointFunction.apply(lambda: "ours", False) == "ours"
        theirs: list[Any] = []
        run_threads(lambda: theirs.append(CheckpointFunction.apply(lambda: "ours", False)))
        assert theirs == ["theirs"]
    assert CheckpointFunction.apply(lambda: "ours", False) == "theirs"


def test_the_stance_of_the_compiler_comes_back() -> None:
    with torch.compiler.set_stance("fail_on_recompile"):
        with compiled_code_eager():
            assert eval_frame._stance.stance == "force_eager"
        assert eval_frame._stance.stance == "fail_on_recompile"


def test_inference_mode_only_switches_gradients_off() -> None:
    entered: list[str] = []

    @contextmanager
    def entering(name: str) -> Any:
        entered.append(name)
        yield

    with ExitStack() as stack:
        stack.enter_context(inference_as_no_grad(lambda: entering("outer")))
        with inference_as_no_grad(lambda: entering("inner")), torch.inference_mode():
            assert not torch.is_inference_mode_enabled()
            assert not torch.is_grad_enabled()
        with torch.inference_mode(), torch.inference_mode(False):
            assert torch.is_grad_enabled()
        assert torch.is_grad_enabled()
    assert entered == ["inner", "outer", "outer"]
    with torch.inference_mode():
        assert torch.is_inference_mode_enabled()


def test_a_patch_that_fails_is_not_held() -> None:
    def refuse() -> Callable[[], None]:
        raise ZeroDivisionError

    patch = process_state.SharedPatch(refuse)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), patch.held():
            pass
