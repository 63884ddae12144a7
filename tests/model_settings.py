"""What people put on modules, and what their `forward` does with it: a small model of each kind.

The output of each model depends on what it holds, and most of them change it when they run.
"""

from __future__ import annotations

import enum
import functools
import io
import itertools
import random
import sys
import tempfile
import threading
import types
import warnings
import weakref
from collections import Counter, OrderedDict, UserDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torch.nn.utils.prune
import torchmetrics
from lightning.fabric.utilities.data import AttributeDict
from torch import Tensor, nn

Init = Callable[[Any], object]
Act = Callable[[Any, Tensor], Any]


class Model(nn.Module):
    """A convolution, a norm, a linear layer.

    Args:
        init: Puts something on the model.
        act: Does something with it, given the feature vectors `(N, 4)`, and returns what they are multiplied by.
    """

    def __init__(self, init: Init = lambda model: None, act: Act = lambda model, vectors: 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout()
        self.fc = nn.Linear(4, 2)
        self.note: Any = None
        self.act = act
        init(self)

    def features(self, images: Tensor) -> Tensor:
        return self.drop(F.relu(self.norm(self.conv(images)))).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        vectors = self.features(images)
        return self.fc(vectors * self.act(self, vectors))


SETTINGS: dict[str, Callable[[], nn.Module]] = {}


def setting(name: str, init: Init = lambda model: None, act: Act = lambda model, vectors: 1) -> None:
    SETTINGS[name] = lambda: Model(init, act)


def holding(name: str, make: Callable[[], Any], act: Callable[[Any], Any]) -> None:
    """A model whose attribute `note` is what `make` returns; `act` is given it."""
    setting(name, lambda model: setattr(model, "note", make()), lambda model, _: act(model.note))


def maker(name: str) -> Callable[[Any], Any]:
    def register(make: Any) -> Any:
        SETTINGS[name] = make
        return make

    return register


def last(*values: Any) -> Any:
    """The last of several expressions."""
    return values[-1]


# Attributes and containers

setting("nothing")
setting("a counter", lambda m: setattr(m, "calls", 0), lambda m, _: last(setattr(m, "calls", m.calls + 1), m.calls))
setting("a new attribute", act=lambda m, _: last(setattr(m, "calls", getattr(m, "calls", 0) + 1), m.calls))
setting("a new buffer", act=lambda m, v: last(m.register_buffer("mean", v.mean().detach()), m.mean))
setting("a new child", act=lambda m, v: last(m.add_module("extra", nn.ReLU()), m.extra(v)))
setting("a mode that changes", act=lambda m, _: last(m.train(), 1 + m.drop.training))
holding("a list", lambda: [1], lambda held: last(held.append(len(held)), sum(held)))
holding("a list of lists", lambda: [[1], []], lambda held: last(held[1].append(2), len(held[1])))
holding("a list that holds itself", list, lambda held: last(held.append(held), len(held[0])))
holding("a dict", lambda: {"calls": 0}, lambda held: last(held.update(calls=held["calls"] + 1), held["calls"]))
holding("a dict of dicts", lambda: {"a": {}}, lambda held: last(held["a"].update({len(held["a"]): 1}), len(held["a"])))
holding("a dict with objects as keys", lambda: {Point(1, []): 2}, lambda held: last(*map(Point.grow, held)))
holding("a set", lambda: {0}, lambda held: last(held.add(len(held)), len(held)))
holding("a set of objects", lambda: {Point(1, [])}, lambda held: last(*map(Point.grow, held)))
holding("a tuple with a list in it", lambda: ([], 1), lambda held: last(held[0].append(1), len(held[0])))
holding("a frozenset of objects", lambda: frozenset([Point(1, [])]), lambda held: last(*map(Point.grow, held)))
holding("a deque", lambda: deque([1, 2], maxlen=2), lambda held: last(held.append(sum(held)), sum(held)))
holding("a defaultdict", lambda: defaultdict(list), lambda held: last(held["a"].append(1), len(held["a"])))
holding(
    "an OrderedDict", lambda: OrderedDict(a=1, b=2), lambda held: last(held.move_to_end("a"), next(iter(held.values())))
)
holding("a Counter", lambda: Counter("ab"), lambda held: last(held.update("a"), held["a"]))
holding("a UserDict", lambda: UserDict(a=1), lambda held: last(held.update(a=held["a"] + 1), held["a"]))
holding(
    "hyperparameters",
    lambda: AttributeDict(calls=0),
    lambda held: last(setattr(held, "calls", held.calls + 1), held.calls),
)
holding(
    "a subclass of list",
    lambda: Refusing([1]),
    lambda held: last(list.append(held, 1), setattr(held, "calls", held.calls + 1), len(held) + held.calls),
)
holding(
    "a named tuple", lambda: namedtuple("Pair", "a b")([], 1), lambda held: last(held.a.append(1), len(held.a) + held.b)
)
holding(
    "a structure of torch's",
    lambda: torch.max(torch.ones(2, 2), 1),
    lambda held: last(held.values.add_(1), held.values.sum()),
)
holding("a bytearray", lambda: bytearray(1), lambda held: last(held.append(1), len(held)))
holding("a long list", lambda: list(range(10_000)), lambda held: last(held.append(1), len(held) / 10_000))
holding(
    "a long list of tensors",
    lambda: [torch.ones(1)] * 2 + [torch.ones(1) for _ in range(5_000)],
    lambda held: last(held[0].add_(1), held[1]),
)
holding("a StringIO", io.StringIO, lambda held: last(held.write("a"), len(held.getvalue())))


# Objects


class Refusing(list):
    """May not be changed by the methods that would be used to fill it."""

    calls = 0

    def append(self, item: Any) -> None:
        raise TypeError("refused")

    extend = __setitem__ = append


@dataclass
class Plain:
    calls: int = 0
    held: list[int] = field(default_factory=list)

    def count(self) -> int:
        self.calls += 1
        self.held.append(1)
        return self.calls + len(self.held)


@dataclass(frozen=True)
class Point:
    x: int
    held: list[int] = field(hash=False)

    def grow(self) -> int:
        self.held.append(1)
        return len(self.held)


class Slotted:
    __slots__ = ("__own", "calls", "empty")

    def __init__(self) -> None:
        self.calls = 0
        self.__own = [1]

    def count(self) -> int:
        self.calls += 1
        self.__own.append(1)
        return self.calls + len(self.__own)


class Locked(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def count(self) -> int:
        with self.lock:
            return super().count()


class Evasive(Plain):
    """Answers for any attribute, and minds when one is set."""

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, *args: Any) -> Any:
        raise AssertionError("this is no special method")

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "fixed":
            raise TypeError("refused")
        super().__setattr__(name, value)


class Pickled(Plain):
    """Says itself how it is pickled."""

    def __getstate__(self) -> Any:
        return {"state": (self.calls, self.held, self)}

    def __setstate__(self, state: Any) -> None:
        self.calls, self.held, _ = state["state"]


class Reduced(Plain):
    def __reduce__(self) -> Any:
        return Reduced, (self.calls, self.held)


class WithArguments:
    """Is made with arguments, and keeps what it has in slots."""

    __slots__ = ("calls",)

    def __new__(cls, calls: list[int]) -> Any:
        made = super().__new__(cls)
        made.calls = calls
        return made

    def __getnewargs__(self) -> Any:
        return ([],)

    def count(self) -> int:
        self.calls.append(1)
        return len(self.calls)


class CopiedItself(Plain):
    def __deepcopy__(self, memo: Any) -> Any:
        return CopiedItself(self.calls, list(self.held))


class Mode(enum.Enum):
    FAST = 1


class Scaling(Plain):
    def __call__(self, _module: nn.Module = None, _args: Any = None, output: Any = 1) -> Any:
        return output * self.count()


holding("a dataclass", Plain, Plain.count)
holding("a frozen dataclass", lambda: Point(1, []), Point.grow)
holding("an object with slots", Slotted, Slotted.count)
holding("an object with a lock", Locked, Locked.count)
holding("an object that answers for any attribute", Evasive, Plain.count)
holding("an object with a state of its own", Pickled, Plain.count)
holding("an object with a reduction", Reduced, Plain.count)
holding("an object that is made with arguments", lambda: WithArguments([1]), WithArguments.count)
holding("an object that copies itself", CopiedItself, Plain.count)
holding("an object in a list in a dict", lambda: {"a": [Plain()]}, lambda held: held["a"][0].count())
holding(
    "a namespace",
    lambda: types.SimpleNamespace(calls=0),
    lambda held: last(setattr(held, "calls", held.calls + 1), held.calls),
)
holding("an enum", lambda: Mode.FAST, lambda held: 1 + (held is Mode.FAST))
holding("a path", lambda: Path("a"), lambda held: len(held.parts))
holding("a logger and a lock", lambda: [threading.RLock(), Plain()], lambda held: held[1].count())

# Iterators and generators of random numbers

holding("a counter of itertools", itertools.count, next)
holding("a counter of itertools with a step", lambda: itertools.count(3, 2), next)
holding("an iterator", lambda: iter([1, 2, 3, 4, 5, 6]), next)
if sys.version_info < (3, 14):  # from then on nobody can copy the iterators of itertools, but for a counter
    holding("a cycle", lambda: itertools.cycle([1, 2, 3]), next)
holding("an enumeration", lambda: enumerate([5, 6, 7, 8, 9]), lambda held: sum(next(held)))
holding(
    "a generator of torch in a dict",
    lambda: {"g": torch.Generator().manual_seed(3)},
    lambda held: torch.rand((), generator=held["g"]),
)
holding("a generator of NumPy", lambda: [np.random.default_rng(3)], lambda held: float(held[0].random()))
holding("an old generator of NumPy", lambda: np.random.RandomState(3), lambda held: float(held.rand()))
holding("a generator of Python", lambda: [random.Random(3)], lambda held: held[0].random())
holding("a method of a generator", lambda: random.Random(3).random, lambda held: held())
holding("a method of a generator of NumPy", lambda: np.random.default_rng(3).random, lambda held: float(held()))
holding(
    "the process's generators",
    lambda: (torch.default_generator, random._inst, np.random.mtrand._rand),  # type: ignore[attr-defined]
    # Each with the generator itself and by way of the module: it is one row of numbers.
    lambda held: (
        torch.rand((), generator=held[0])
        + 2 * torch.rand(())
        + held[1].random()
        + 2 * random.random()
        + float(held[2].rand())
        + 2 * np.random.rand()
    ),
)
setting("random numbers", act=lambda m, v: torch.rand(()) + random.random() + np.random.rand())

# Tensors and arrays


def add_one(held: Tensor) -> Tensor:
    held.add_(1)
    return held.detach().sum().real


def buffer(make: Callable[[], Tensor]) -> Init:
    return lambda model: model.register_buffer("count", make())


def count_views(held: Any) -> Any:
    held[0].add_(1)
    return held[1].sum()


def count_array(held: Any) -> float:
    held += 1
    return float(held.sum())


def read_only_map() -> np.memmap:
    path = Path(tempfile.mkdtemp()) / "table.npy"
    np.save(path, np.arange(4.0, dtype=np.float32))
    return np.load(path, mmap_mode="r")


def tensor_over_read_only_memory() -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of it
        return torch.from_numpy(read_only_map())


def writable_map() -> np.memmap:
    return np.memmap(Path(tempfile.mkdtemp()) / "table", np.float32, "w+", shape=(2,))


def of_inference(make: Callable[[], Any]) -> Any:
    with torch.inference_mode():
        return make()


def with_attribute() -> Tensor:
    tensor = torch.zeros(2)
    tensor.calls = [0]  # type: ignore[attr-defined]
    return tensor


class Named(Tensor):
    """A subclass that does nothing, and minds being asked."""


class Grown(nn.Parameter):
    """A subclass of Parameter."""


def weight_subclass(model: Any) -> None:
    model.fc.weight = Grown(model.fc.weight.detach())
    model.fc.weight.scales = [2.0]


def share_memory(model: Any) -> None:
    model.note = np.zeros(2, np.float32)
    model.other = torch.from_numpy(model.note)


def keep_view(model: Any) -> None:
    model.note = model.fc.weight.detach()[0]


def keep_graph(model: Any) -> None:
    model.note = model.fc.weight * 2


setting("a buffer", buffer(lambda: torch.zeros(2)), lambda m, _: add_one(m.count))
setting(
    "a buffer that is replaced",
    buffer(lambda: torch.zeros(2)),
    lambda m, _: last(setattr(m, "count", m.count + 1), m.count.sum()),
)
setting("a buffer through data", buffer(lambda: torch.zeros(2)), lambda m, _: last(m.count.data.add_(1), m.count.sum()))
setting(
    "a buffer through NumPy",
    buffer(lambda: torch.zeros(2)),
    lambda m, _: last(np.add(m.count.numpy(), 1, out=m.count.numpy()), m.count.sum()),
)
setting(
    "a buffer that grows",
    buffer(lambda: torch.zeros(2)),
    lambda m, _: last(m.count.resize_(len(m.count) + 1).fill_(1), m.count.sum()),
)
setting(
    "a buffer with a history",
    buffer(lambda: torch.zeros(4)),
    lambda m, v: last(m.count.mul_(0.9).add_(v.mean(0)), m.count.detach().sum()),
)
setting("a buffer without values", buffer(lambda: torch.zeros(0)), lambda m, _: 1 + m.count.sum())
setting("an expanded buffer", buffer(lambda: torch.ones(1).expand(3)), lambda m, _: m.count.sum())
setting("a transposed buffer", buffer(lambda: torch.arange(6.0).reshape(2, 3).t()), lambda m, _: add_one(m.count))
setting(
    "a sparse buffer",
    buffer(lambda: torch.eye(2).to_sparse()),
    lambda m, _: last(m.count.mul_(2), m.count.to_dense().sum()),
)
setting(
    "a quantized buffer",
    buffer(lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)),
    lambda m, _: m.count.dequantize().sum(),
)
setting(
    "a conjugated buffer",
    buffer(lambda: torch.tensor([1 + 2j]).conj()),
    lambda m, _: last(m.count.add_(1j), m.count.imag.sum()),
)
setting("a negated buffer", buffer(lambda: torch.tensor([1 + 2j]).conj().imag), lambda m, _: add_one(m.count))
setting(
    "a buffer of a class of its own",
    buffer(lambda: torch.zeros(2).as_subclass(Named)),
    lambda m, _: add_one(m.count).as_subclass(Tensor),
)
setting(
    "a buffer in two places",
    lambda m: last(m.register_buffer("count", torch.zeros(2)), m.fc.register_buffer("count", m.count)),
    lambda m, _: last(add_one(m.count), m.fc.count.sum()),
)
setting(
    "batch statistics that are written in eval mode",
    act=lambda m, v: last(
        F.batch_norm(v, m.norm.running_mean, m.norm.running_var, training=True), m.norm.running_mean.sum()
    ),
)
holding("a tensor in a list", lambda: [torch.zeros(2)], lambda held: add_one(held[0]))
holding("a tensor with an attribute", with_attribute, lambda held: last(held.calls.append(1), len(held.calls)))
holding(
    "two views of one memory",
    lambda: torch.zeros(4).split(2),
    lambda held: last(add_one(held[0]), held[1].sum() + 1),
)
holding("a tensor and a view of it", lambda: (lambda whole: [whole, whole[1:]])(torch.zeros(3)), count_views)
holding(
    "a tensor that requires a gradient",
    lambda: torch.ones(2, requires_grad=True),
    lambda held: last(held.data.add_(1), held.detach().sum()),
)
holding("a parameter in a list", lambda: [nn.Parameter(torch.ones(2))], lambda held: held[0].detach().sum())
holding("a tensor made in inference mode", lambda: of_inference(lambda: torch.ones(2)), lambda held: held.sum())
holding("an array", lambda: np.zeros(2), count_array)
holding("a view of an array", lambda: np.zeros((2, 3), order="F")[:, 1], count_array)
holding(
    "two views of one array",
    lambda: (lambda whole: [whole[:2], whole[1:]])(np.zeros(3)),
    lambda held: last(count_array(held[0]), 1 + float(held[1].sum())),
)
holding("an array of objects", lambda: np.array([Plain(), None]), lambda held: held[0].count())
holding("an array of records", lambda: np.zeros(2, [("a", "f4"), ("b", "i4")]), lambda held: count_array(held["a"]))
holding("a masked array", lambda: np.ma.masked_array([1.0, 2.0], [0, 1]), count_array)
holding("an array that cannot be written to", read_only_map, lambda held: float(held.sum()))
holding("a tensor over memory that cannot be written to", tensor_over_read_only_memory, lambda held: held.sum())
holding("an array in a file", writable_map, count_array)
setting("an array and a tensor in one memory", share_memory, lambda m, _: last(count_array(m.note), m.other.sum()))
setting(
    "a tensor and its array",
    lambda m: last(setattr(m, "other", torch.zeros(2)), setattr(m, "note", m.other.numpy())),
    lambda m, _: last(count_array(m.note), m.other.sum()),
)
setting("a view of a weight", keep_view, lambda m, _: m.note.sum())
setting("a tensor with a graph", keep_graph, lambda m, _: m.note.detach().sum())
setting(
    "a weight of a class of its own",
    weight_subclass,
    lambda m, _: m.fc.weight.scales[0] + isinstance(m.fc.weight, Grown),
)
setting(
    "a flag that is switched on", lambda m: m.fc.requires_grad_(False), lambda m, _: last(m.fc.requires_grad_(True), 2)
)
setting("a weight that is exchanged", act=lambda m, _: last(setattr(m.fc.weight, "data", m.fc.weight.data * 2), 1))
setting(
    "a weight that is replaced",
    act=lambda m, _: last(setattr(m.fc, "weight", nn.Parameter(m.fc.weight.detach() * 2)), 1),
)
SETTINGS["all made in inference mode"] = lambda: of_inference(Model)


# Functions


def closure(model: Any) -> None:
    calls = 0

    def count() -> int:
        nonlocal calls
        calls += 1
        return calls

    model.note = count


def two_closures(model: Any) -> None:
    calls = [0]
    model.note = lambda: calls.append(1)
    model.other = lambda: len(calls)


def recursive(model: Any) -> None:
    calls = [0]

    def count(depth: int) -> int:
        calls.append(1)
        return count(depth - 1) if depth else len(calls)

    model.note = functools.wraps(Model.features)(count)


def default_argument(model: Any) -> None:
    def count(*, calls: list[int] = []) -> int:  # noqa: B006
        calls.append(1)
        return len(calls)

    model.note = count


def forward_by_hand(model: Any) -> None:
    before = model.forward

    def forward(images: Tensor) -> Tensor:
        model.calls = getattr(model, "calls", 0) + 1
        return before(images) * model.calls

    model.forward = forward


def keep_mean(model: Any) -> Callable[..., None]:
    def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
        model.note = output.detach().mean()

    return hook


def remove_hook(model: Any) -> None:
    model.note = model.conv.register_forward_hook(lambda _module, _args, output: output * 2)


def scale(module: nn.Module, _args: Any, output: Tensor) -> Tensor:
    return output * 2


class Hooked(Plain):
    def hook(self, _module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        return output * self.count()


setting("a closure that counts", closure, lambda m, _: m.note())
setting("two closures over one list", two_closures, lambda m, _: last(m.note(), m.other()))
setting("a closure over itself", recursive, lambda m, _: m.note(2))
setting("a function with a default that counts", default_argument, lambda m, _: m.note())
setting(
    "a lambda over the model",
    lambda m: setattr(m, "note", lambda: last(setattr(m, "n", getattr(m, "n", 0) + 1), m.n)),
    lambda m, _: m.note(),
)
setting("a forward that was put on", forward_by_hand)
setting("a forward that is a partial call", lambda m: setattr(m, "forward", functools.partial(Model.forward, m)))
setting("a forward that is a method", lambda m: setattr(m, "forward", m.forward))
setting("a partial call", lambda m: setattr(m, "note", functools.partial(Plain.count, Plain())), lambda m, _: m.note())
setting("a method of a child", lambda m: setattr(m, "note", m.fc.forward), lambda m, v: m.note(v).sum())
setting(
    "a method of a list",
    lambda m: last(setattr(m, "kept", []), setattr(m, "note", m.kept.append)),
    lambda m, _: last(m.note(1), len(m.kept)),
)
setting(
    "a cached function",
    lambda m: setattr(m, "note", functools.lru_cache(lambda n: last(setattr(m, "n", n), n))),
    lambda m, _: m.note(3),
)
holding("a callable object", Scaling, lambda held: held())
setting("a hook", lambda m: m.conv.register_forward_hook(scale))
setting(
    "a hook that is a closure over the model", lambda m: m.conv.register_forward_hook(keep_mean(m)), lambda m, _: m.note
)
setting("a hook that is a method", lambda m: m.conv.register_forward_hook(Hooked().hook))
setting(
    "a hook that is an object",
    lambda m: m.conv.register_forward_hook(Scaling()),
)
setting(
    "a hook with keywords",
    lambda m: m.conv.register_forward_hook(lambda _m, _a, _k, out: out * 2, with_kwargs=True, always_call=True),
)
setting("a hook that forward takes off", remove_hook, lambda m, _: last(m.note.remove(), 2))
setting("a hook that forward puts on", act=lambda m, _: last(m.conv.register_forward_hook(scale), 2))
setting("a hook on a weight", lambda m: m.fc.weight.register_hook(lambda gradient: gradient * 2))
setting(
    "a weak reference to a module",
    lambda m: setattr(m, "note", weakref.ref(m.fc)),
    lambda m, _: last(setattr(m.note(), "calls", getattr(m.fc, "calls", 0) + 1), m.fc.calls),
)
setting(
    "a weak reference to an object",
    lambda m: last(setattr(m, "note", [weakref.ref(kept := Plain())]), setattr(m, "other", kept)),
    lambda m, _: last(m.note[0]().count(), m.other.calls),
)
setting(
    "a proxy of the model",
    lambda m: object.__setattr__(m.fc, "parent", weakref.proxy(m)),
    lambda m, _: last(setattr(m.fc.parent, "calls", getattr(m, "calls", 0) + 1), m.calls),
)
setting(
    "a dict with weak keys",
    lambda m: setattr(m, "note", weakref.WeakKeyDictionary({m.fc: [1]})),
    lambda m, _: last(m.note[m.fc].append(1), len(m.note[m.fc])),
)
setting(
    "a dict with weak values",
    lambda m: setattr(m, "note", weakref.WeakValueDictionary({"fc": m.fc})),
    lambda m, v: m.note["fc"](v).sum(),
)
setting("a weak set", lambda m: setattr(m, "note", weakref.WeakSet([m.fc])), lambda m, _: 1 + (m.fc in m.note))

# Modules


class OwnAttributes(Model):
    """Has `__getattr__`, `__setattr__`, `train`, `__deepcopy__` and `__getstate__` do more than they should."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._modules["fc"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "training" and "fc" in self.__dict__.get("_modules", {}):
            raise AssertionError("__setattr__ was called")
        super().__setattr__(name, value)

    def __deepcopy__(self, memo: Any) -> Any:
        raise AssertionError("__deepcopy__ was called")

    def __getstate__(self) -> Any:
        raise AssertionError("__getstate__ was called")


class WithSlots(Model):
    __slots__ = ("calls",)

    def __init__(self) -> None:
        super().__init__(lambda m: setattr(m, "calls", [1]), lambda m, _: last(m.calls.append(1), len(m.calls)))


class Finalized(Model):
    """Closes what it holds when it dies."""

    def __init__(self) -> None:
        super().__init__(lambda m: setattr(m, "note", io.BytesIO(b"a")), lambda m, _: 1 + len(m.note.getvalue()))

    def __del__(self) -> None:
        self.note.close()


class OfLstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.lstm = nn.LSTM(4, 3, num_layers=2, batch_first=True, dropout=0.5)

    def forward(self, images: Tensor) -> Tensor:
        return self.lstm(self.conv(images).flatten(2).transpose(1, 2))[0][:, -1]


class MovingAverage(nn.Module):
    """A parametrization with a state."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, weight: Tensor) -> Tensor:
        self.calls += 1
        return weight * self.calls


def normalised(wrap: Callable[[nn.Module], nn.Module]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = Model(lambda m: [wrap(m.conv), wrap(m.fc)])
            model(torch.rand(2, 3, 6, 6))
        return model

    return make


def teacher(model: Any) -> None:
    model.note = [Model()]


def tie(model: Any) -> None:
    model.other = nn.Linear(4, 2)
    model.other.weight = model.fc.weight


def quietly(make: Callable[[], Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()


def compiled(**options: Any) -> Any:
    return functools.partial(torch.compile, backend="eager", **options)


def run_traced(m: Any) -> None:
    m.note = quietly(lambda: torch.jit.trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval(), torch.rand(2, 4)))
    m.note.register_forward_hook(scale)


SETTINGS["attributes that do more"] = OwnAttributes
SETTINGS["slots"] = WithSlots
SETTINGS["a finalizer"] = Finalized
SETTINGS["an LSTM"] = OfLstm
if not torch.cuda.is_available():  # or it would move the model there
    SETTINGS["data parallel"] = lambda: nn.DataParallel(
        Model(buffer(lambda: torch.zeros(2)), lambda m, _: add_one(m.count))
    )
SETTINGS["a graph module"] = lambda: torch.fx.symbolic_trace(
    nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
)
for name, wrap in {
    "old weight norm": nn.utils.weight_norm,
    "weight norm": nn.utils.parametrizations.weight_norm,
    "old spectral norm": nn.utils.spectral_norm,
    "pruning": lambda m: nn.utils.prune.l1_unstructured(m, "weight", 1),
    "spectral norm": nn.utils.parametrizations.spectral_norm,
    "a parametrization with a state": lambda m: nn.utils.parametrize.register_parametrization(
        m, "weight", MovingAverage()
    ),
}.items():
    SETTINGS[name] = normalised(wrap)
setting("a teacher in a list", teacher, lambda m, _: m.note[0](torch.ones(2, 3, 6, 6)).detach().sum())
setting(
    "a module that holds itself",
    lambda m: setattr(m, "note", [m]),
    lambda m, _: last(setattr(m.note[0], "calls", getattr(m, "calls", 0) + 1), m.calls),
)
setting(
    "a child that holds its parent",
    lambda m: object.__setattr__(m.fc, "parent", m),
    lambda m, _: last(setattr(m.fc.parent, "calls", getattr(m, "calls", 0) + 1), m.calls),
)
setting("tied weights", tie, lambda m, v: m.other(v).sum())
setting("a module in two places", lambda m: setattr(m, "other", m.norm), lambda m, _: 1 + (m.other is m.norm))
setting(
    "lists and dicts of modules",
    lambda m: setattr(m, "note", nn.ModuleDict({"a": nn.ModuleList([nn.Linear(4, 1)])})),
    lambda m, v: m.note["a"][0](v),
)
setting(
    "lists and dicts of parameters",
    lambda m: setattr(m, "note", nn.ParameterDict({"a": nn.ParameterList([torch.ones(1)])})),
    lambda m, v: m.note["a"][0] + 1,
)
setting(
    "an embedding with max_norm",
    lambda m: setattr(m, "note", nn.Embedding(3, 4, max_norm=0.1)),
    lambda m, _: m.note(torch.tensor([0, 1])),
)
setting(
    "metrics",
    lambda m: setattr(m, "note", [torchmetrics.MeanMetric()]),
    lambda m, v: last(m.note[0].update(v.detach().mean()), m.note[0].compute()),
)
setting(
    "metrics that are children",
    lambda m: setattr(m, "note", torchmetrics.MetricCollection([torchmetrics.MeanMetric(), torchmetrics.SumMetric()])),
    lambda m, v: last(m.note.update(v.detach().mean()), m.note.compute()["SumMetric"]),
)
setting(
    "a scripted child",
    lambda m: setattr(m, "note", quietly(lambda: torch.jit.script(nn.BatchNorm1d(4)))),
    lambda m, v: m.note(v),
)
setting("a traced child", run_traced, lambda m, v: m.note(v))
setting(
    "a scripted function",
    lambda m: setattr(m, "note", quietly(lambda: torch.jit.script(doubled))),
    lambda m, v: m.note(v),
)
setting("a compiled child", lambda m: setattr(m, "fc", compiled()(m.fc)))
setting("a child that was compiled in place", lambda m: m.conv.compile(backend="eager"))
setting(
    "a compiled function",
    lambda m: setattr(m, "note", compiled()(m.features)),
    lambda m, _: m.note(torch.ones(2, 3, 6, 6)),
)
SETTINGS["a compiled model"] = lambda: compiled()(Model(buffer(lambda: torch.zeros(2)), lambda m, _: add_one(m.count)))


def doubled(values: Tensor) -> Tensor:
    return values * 2
