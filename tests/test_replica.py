"""A replica computes what the model computes, and the model does not notice."""

from __future__ import annotations

import functools
import gc
import logging
import math
import os
import queue
import random
import socket
import threading
import traceback
import weakref
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import without_collector
from model_settings import SETTINGS, Model, read_only_map
from object_state import object_state
from torch import Tensor, nn
from torch._dynamo.utils import counters

from gradcam_callback.engine.copying import tensors
from gradcam_callback.engine.replica import Replica, ReplicaOptions, copy_structure, isolated, run_in_replica

IMAGES = torch.linspace(-1, 1, 2 * 3 * 6 * 6).reshape(2, 3, 6, 6)


def seeded(make: Any) -> Any:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    return make()


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def first_convolution(model: nn.Module) -> nn.Module:
    return next(module for module in model.modules() if isinstance(module, nn.Conv2d))


def in_eval_mode(model: nn.Module) -> list[Tensor]:
    """What two runs of a model itself give."""
    for module in model.modules():
        module.eval() if isinstance(module, torch.jit.ScriptModule) else vars(module).update(training=False)
    # With gradients on, as in a replica: torch has other kernels (for an LSTM, say) where they are off.
    with torch.set_grad_enabled(not any(weight.is_inference() for weight in model.parameters())):
        return seeded(lambda: [model(IMAGES).detach() for _ in range(2)])


@pytest.mark.parametrize("name", SETTINGS)
def test_a_replica_computes_what_the_model_computes_and_leaves_no_mark(name: str) -> None:
    expected = in_eval_mode(seeded(SETTINGS[name]))
    model, fired = seeded(SETTINGS[name]), []
    seeded(lambda: None)
    before = object_state(model)

    with isolated(model) as replica:
        assert not any(weight.requires_grad for weight in replica.model.parameters())
        first_convolution(replica.model).register_forward_hook(lambda *_: fired.append(1))
        given = [replica.model(IMAGES).detach() for _ in range(2)]

    assert len(fired) >= 2
    assert all(map(torch.equal, given, expected))
    assert object_state(model) == before
    assert replica.modified_weights() == ()
    assert all(map(torch.equal, in_eval_mode(model), expected))


# What a replica is


def test_weights_share_memory_and_require_no_gradient() -> None:
    model = Model()
    model.fc.weight.note = [1]  # type: ignore[attr-defined]
    with isolated(model) as replica:
        for (name, weight), (other, alias) in zip(
            model.named_parameters(), replica.model.named_parameters(), strict=True
        ):
            assert name == other
            assert alias is not weight
            assert alias.data_ptr() == weight.data_ptr()
            assert type(alias) is nn.Parameter
            assert not alias.requires_grad
        assert replica.model.fc.weight.note == [1]
        assert replica.model.fc.weight.note is not model.fc.weight.note
        assert replica.model.norm.running_mean.data_ptr() != model.norm.running_mean.data_ptr()
        assert not any(module.training for module in replica.model.modules())
    assert all(weight.requires_grad for weight in model.parameters())
    assert all(module.training for module in model.modules())


def test_what_lies_in_the_memory_of_a_weight_does_so_in_a_replica() -> None:
    """A cache of all weights in one piece, say: it would be copied whole, and no longer follow the weights."""
    model = Model()
    model.note = [model.fc.weight.detach()[1], model.fc.weight[0] * 1, model.fc.weight.detach().numpy()]
    with isolated(model) as replica:
        view, other, array = replica.model.note
        assert view.data_ptr() == model.fc.weight[1].data_ptr()
        assert other.data_ptr() != model.note[1].data_ptr()
        assert np.shares_memory(array, model.note[2])


def test_what_is_the_same_object_twice_is_so_in_a_replica() -> None:
    model = Model()
    model.other, model.note = model.fc, [model.fc.weight, model]
    model.conv.bias = model.norm.bias
    with isolated(model) as replica:
        made = replica.model
        assert made.other is made.fc
        assert made.note[0] is made.fc.weight
        assert made.note[1] is made
        assert made.conv.bias is made.norm.bias
        assert list(made.state_dict()) == list(model.state_dict())
        assert list(vars(made)) == list(vars(model))


def test_only_what_is_registered_is_put_into_eval_mode() -> None:
    """As by `eval()`: a teacher in a plain list keeps the mode that it is in."""
    model = Model(lambda m: setattr(m, "note", [nn.BatchNorm1d(4)]))
    with isolated(model) as replica:
        assert replica.model.note[0].training
        assert not replica.model.norm.training


def test_the_grad_of_weights_and_their_hooks_are_left_alone() -> None:
    model, heard = Model(), []
    model(IMAGES).sum().backward()
    model.fc.weight.register_hook(heard.append)
    gradients = {name: (weight.grad, weight.grad.clone()) for name, weight in model.named_parameters()}
    with isolated(model) as replica:
        assert all(weight.grad is None for weight in replica.model.parameters())
        point = IMAGES.clone().requires_grad_()
        replica.model.zero_grad(set_to_none=False)
        replica.model(point).sum().backward()
        assert point.grad is not None
    assert heard == []
    for name, weight in model.named_parameters():
        assert weight.grad is gradients[name][0]
        assert torch.equal(weight.grad, gradients[name][1])


@pytest.mark.parametrize("inner", [nullcontext, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("outer", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_gradients_are_on_and_inference_mode_is_off_whatever_the_caller_did(outer: Any, inner: Any) -> None:
    def modes() -> tuple[bool, bool]:
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    model = Model()
    with outer(), inner():
        before = modes()
        with isolated(model) as replica:
            inside = modes()
            assert not any(tensor.is_inference() for tensor in replica.model.state_dict().values())
            torch.set_grad_enabled(False)  # as a model may do for good
        assert modes() == before
    assert inside == (True, False)


def test_a_replica_within_a_replica() -> None:
    model = SETTINGS["a buffer"]()
    before = object_state(model)
    with isolated(model) as outer:
        outer.model(IMAGES)
        with isolated(outer.model) as inner:
            inner.model(IMAGES)
            assert inner.model.count.tolist() == [2, 2]
        assert outer.model.count.tolist() == [1, 1]
    assert object_state(model) == before


def test_a_lazy_module_is_initialised_in_the_replica_only() -> None:

    def make() -> nn.Module:
        return nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(2))

    model, twin = make(), make()
    before = object_state(model)
    with isolated(model) as replica:
        replica.model(IMAGES)
        assert type(replica.model[0]) is nn.Conv2d
    assert object_state(model) == before
    assert torch.equal(seeded(lambda: model(IMAGES)), seeded(lambda: twin(IMAGES)))


def test_modules_nested_a_thousand_times() -> None:
    model = nn.Sequential()
    for _ in range(1000):
        model = nn.Sequential(model)
    made = copy_structure(model)
    depth = 0
    while len(made):
        made, depth = made[0], depth + 1
    assert depth == 1000


def test_a_parallel_wrapper_is_passed_by() -> None:
    """Its forward would exchange buffers with other processes, and one process alone would wait for them."""

    class Wrapper(nn.parallel.DistributedDataParallel):
        def __init__(self, module: nn.Module) -> None:
            nn.Module.__init__(self)
            self.module = module

    model = Wrapper(Model())
    with isolated(model) as replica:
        fired: list[int] = []
        replica.model.module.conv.register_forward_hook(lambda *_: fired.append(1))
        assert torch.equal(replica.model(IMAGES), replica.model.module(IMAGES))
    assert fired == [1, 1]


# Options


def test_a_substitute_stands_for_an_object_wherever_it_is() -> None:
    class Trainer:
        step = 3

    trainer, view = Trainer(), SimpleNamespace(step=4)
    model = Model(lambda m: setattr(m, "note", [trainer, weakref.proxy(trainer), lambda: trainer.step]))
    with isolated(model, ReplicaOptions(substitutes=((trainer, view),))) as replica:
        held = replica.model.note
        assert (held[0].step, held[1].step, held[2]()) == (4, 4, 4)
    assert model.note[2]() == 3


def test_shared_types_are_shared_and_prepare_is_told_the_replica() -> None:
    class Logger:
        pass

    class Own(Logger):
        pass

    prepared = []
    model = Model(lambda m: setattr(m, "note", [Own(), {}]))
    options = ReplicaOptions(shared_types=(Logger,), prepare=prepared.append)
    with isolated(model, options) as replica:
        assert prepared == [replica.model]
        assert replica.model.note[0] is model.note[0]
        assert replica.model.note[1] is not model.note[1]


# What is shared


def open_file() -> Any:
    return open(os.devnull)


class Removing:
    """Removes what it has when it dies."""

    removed: ClassVar[list[int]] = []

    def __del__(self) -> None:
        self.removed.append(1)


class Raising:
    def __reduce_ex__(self, _protocol: Any) -> Any:
        raise ZeroDivisionError


@pytest.mark.parametrize(
    "make",
    [
        *(
            threading.Lock,
            threading.Event,
            threading.local,
            queue.Queue,
            open_file,
            Removing,
            Raising,
            object,
            socket.socket,
        ),
        lambda: (number for number in range(3)),
        lambda: torch.utils.data.TensorDataset(torch.ones(2)),
        lambda: torch.utils.data.DataLoader([1, 2]),
        lambda: iter(torch.utils.data.DataLoader([1, 2])),
        lambda: torch.utils.data.RandomSampler([1, 2]),
        lambda: torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1),
        lambda: logging.getLogger("of a user"),
        lambda: F.relu,
        lambda: nn.Linear,
        lambda: math,
        lambda: np.float32(1),
        read_only_map,
        lambda: tuple(range(5000)),
    ],
)
def test_what_cannot_or_must_not_be_copied_is_shared(make: Any) -> None:
    held = make()
    made = copy_structure({"held": [held], "beside": [1]})
    assert made["held"][0] is held or type(held) is object
    assert made["beside"] == [1]


def test_the_files_of_an_image_folder_are_not_copied_one_by_one() -> None:
    files = [(f"{number}.png", [number]) for number in range(5000)]
    made = copy_structure(files)
    assert made is not files
    assert all(one is other for one, other in zip(made, files, strict=True))


def test_a_large_table_is_shared_and_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "_LARGEST_COPY", 100)
    model = Model(lambda m: setattr(m, "note", [torch.zeros(26), np.zeros(26), torch.zeros(2)]))
    model.register_buffer("bank", torch.zeros(26))
    with isolated(model) as replica:
        table, array, small = replica.model.note
        assert table.data_ptr() == model.note[0].data_ptr()
        assert array is model.note[1]
        assert small.data_ptr() != model.note[2].data_ptr()
        assert replica.model.bank.data_ptr() != model.bank.data_ptr()
        table.add_(1)
        assert replica.modified_weights() == ("Tensor(26,)",)


def test_running_out_of_memory_is_no_reason_to_share(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(tensors.TensorCopier, "tensor", refuse)
    with pytest.raises(torch.OutOfMemoryError), isolated(Model()):
        pass


# What it does not shield, as its documentation says

CALLS = [0]


class Global(Model):
    made = 0

    def forward(self, images: Tensor) -> Tensor:
        CALLS[0] += 1
        type(self).made += 1
        return super().forward(images)

    @functools.lru_cache  # noqa: B019
    def cached(self) -> None:
        pass


def test_state_of_the_process_is_not_shielded() -> None:
    CALLS[0], Global.made = 0, 0
    with isolated(Global()) as replica:
        replica.model(IMAGES)
        replica.model.cached()
    assert CALLS == [1]
    assert Global.made == 1
    assert Global.cached.cache_info().currsize == 1


def test_what_python_cannot_copy_is_not_shielded() -> None:
    model = Model(lambda m: setattr(m, "note", (number for number in range(3))))
    with isolated(model) as replica:
        next(replica.model.note)
    assert next(model.note) == 1


def test_a_weight_that_is_written_in_place_is_named() -> None:
    def clip(model: Any, _: Tensor) -> int:
        with torch.no_grad():
            model.fc.weight.clamp_(-0.1, 0.1)
            model.note[0].weight[0].zero_()
        return 1

    model = Model(lambda m: setattr(m, "note", [nn.Linear(2, 2)]), clip)
    with isolated(model) as replica:
        replica.model(IMAGES)
        assert replica.modified_weights() == ("fc.weight", "Parameter(2, 2)")
    assert model.fc.weight.abs().max() <= 0.1


def test_a_weight_that_is_written_through_data_is_not_noticed() -> None:
    model = Model(act=lambda m, _: (m.fc.weight.data.zero_(), 1)[1])
    with isolated(model) as replica:
        replica.model(IMAGES)
        assert replica.modified_weights() == ()
    assert not model.fc.weight.any()


# Gradients of weights


class InnerLoop(Model):
    """Adapts its head to the images that it is given, by a step of gradient descent."""

    def forward(self, images: Tensor) -> Tensor:
        with torch.enable_grad():
            vectors = self.features(images)
            weight = self.fc.weight
            (gradient,) = torch.autograd.grad(F.linear(vectors, weight).logsumexp(1).mean(), [weight])
            return F.linear(vectors, weight - gradient, self.fc.bias)


class Adapting(Model):
    """As above, with an optimizer, in place, and for good."""

    def forward(self, images: Tensor) -> Tensor:
        with torch.enable_grad():
            optimizer = torch.optim.SGD([weight for weight in self.fc.parameters() if weight.requires_grad], 0.1)
            optimizer.zero_grad()
            super().forward(images).logsumexp(1).mean().backward()
            optimizer.step()
        return super().forward(images)


@pytest.mark.parametrize("kind", [InnerLoop, Adapting])
def test_a_model_that_differentiates_with_respect_to_its_weights(kind: type[Model]) -> None:
    def make() -> Model:
        model = kind()
        model.fc.bias.requires_grad_(False)
        return model

    expected = seeded(make).eval()(IMAGES).detach()
    model, tries = seeded(make), []
    model.fc.weight.grad = torch.ones(2, 4)
    before = object_state(model)

    def job(replica: Replica) -> Tensor:
        tries.append(replica.modified_weights)
        return replica.model(IMAGES).detach()

    assert torch.equal(run_in_replica(model, job), expected)
    assert len(tries) == 2
    assert object_state(model) == before


def test_other_errors_are_raised_at_once() -> None:
    tries = []

    def job(replica: Replica) -> None:
        tries.append(replica)
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        run_in_replica(Model(), job)
    assert len(tries) == 1


def test_a_gradient_that_is_missing_for_good_is_told() -> None:
    model = InnerLoop().requires_grad_(False)
    with pytest.raises(RuntimeError, match="does not require grad"):
        run_in_replica(model, lambda replica: replica.model(IMAGES))


# Afterwards


class Cyclic(Model):
    """Holds itself, and its activations, by way of cycles."""

    def forward(self, images: Tensor) -> Tensor:
        self.note = [self, lambda: self, self.features(images).requires_grad_()]
        self.conv.parent = [self]
        ALIVE.append(weakref.ref(self.note[2]))
        if self.calls:
            raise ZeroDivisionError
        return super().forward(images)


ALIVE: list[weakref.ref[Any]] = []


@pytest.mark.parametrize("calls", [0, 1])
def test_nothing_keeps_a_replica_alive(calls: int) -> None:
    model = Cyclic(lambda m: setattr(m, "calls", calls))
    ALIVE.clear()
    with without_collector():
        with suppress(ZeroDivisionError), isolated(model) as replica:
            ALIVE.append(weakref.ref(replica.model))
            replica.model(IMAGES)
        del replica
        assert len(ALIVE) == 2
        assert all(reference() is None for reference in ALIVE)
    assert model.note is None


def test_what_was_copied_is_held_by_the_copy_alone() -> None:
    with without_collector():
        made = copy_structure({"a": [Model()], "b": (lambda held: lambda: held)(Model())})
        references = [weakref.ref(made["a"][0]), weakref.ref(made["b"]())]
        del made
        assert [reference() for reference in references] == [None, None]


def test_a_finalizer_of_a_replica_is_not_run() -> None:
    model = SETTINGS["a finalizer"]()
    model.note = open_file()
    with isolated(model) as replica:
        assert replica.model.note is model.note
    del replica
    gc.collect()
    assert not model.note.closed


def test_the_modules_of_a_traceback_can_be_named() -> None:
    def fail(module: nn.Module, _args: Any) -> None:
        raise ZeroDivisionError

    model = nn.Sequential(nn.ReLU(), nn.Sequential(nn.ReLU()))
    model[1][0].register_forward_pre_hook(fail)
    with pytest.raises(ZeroDivisionError) as caught, isolated(model) as replica:
        replica.model(IMAGES)
    called = [frame.f_locals["self"] for frame, _ in traceback.walk_tb(caught.tb) if "self" in frame.f_locals]
    names = {id(module): name for name, module in replica.model.named_modules()}
    assert names[id(called[-1])] == "1.0"


# Compiled code


def test_a_replica_neither_compiles_nor_makes_the_model_compile_again() -> None:
    def counts() -> dict[str, Any]:
        return {key: dict(counters[key]) for key in ("stats", "frames", "recompiles")}

    model = torch.compile(SETTINGS["a compiled function"](), backend="eager")
    torch._dynamo.reset()
    for mode in (True, False, True):
        model.train(mode)(IMAGES)
    before = counts()
    with isolated(model) as replica:
        replica.model(IMAGES)
        plain = replica.model._orig_mod.note  # as it was before it was compiled
        assert plain.__self__ is replica.model._orig_mod
    assert counts() == before
    for mode in (True, False):
        model.train(mode)(IMAGES)
    assert counts() == before
