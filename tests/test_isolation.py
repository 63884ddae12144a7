"""The wall: what holds inside it, and that nothing is left of a run once it is gone."""

from __future__ import annotations

import contextlib
import copy
import itertools
import pickle
import random
import warnings
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gradcam_callback.engine.isolation import isolated

Guard = Callable[[], contextlib.AbstractContextManager[Any]]


class Doing(nn.Module):
    """Forward does one thing to the module, then applies a layer."""

    def __init__(self, act: Callable[[Any], Any] = lambda module: None) -> None:
        super().__init__()
        self.act = act
        self.fc = nn.Linear(2, 2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.norm = nn.BatchNorm1d(2)
        self.note: Any = "before"
        self.register_buffer("count", torch.zeros(2))
        self.register_buffer("last", torch.ones(1))

    def forward(self, rows: Tensor) -> Tensor:
        self.act(self)
        return self.fc(rows)


def run(model: nn.Module, columns: int = 2) -> None:
    """One forward inside the wall."""
    with isolated(model):
        model(torch.linspace(-1, 1, 3 * columns).reshape(3, columns))


def trace(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that a run could leave a mark on, with objects by identity and tensors by value."""
    parameters = {
        name: (id(p), id(p.grad), p.requires_grad, p._version, p.data_ptr(), p.detach().tolist())
        for name, p in model.named_parameters(remove_duplicate=False)
    }
    buffers = {
        name: (id(b), b.requires_grad, tuple(b.shape), b.tolist())
        for name, b in model.named_buffers(remove_duplicate=False)
    }
    modules = {
        name: (id(module), module.training, sorted(vars(module)), list(module._forward_hooks))
        for name, module in model.named_modules(remove_duplicate=False)
    }
    # As lists: the order of parameters and buffers is that of the optimizer and of the checkpoint.
    return {key: list(value.items()) for key, value in locals().items() if key != "model"}


# Inside


@pytest.mark.parametrize(
    "guard", [contextlib.nullcontext, torch.no_grad, torch.inference_mode, lambda: torch.inference_mode(False)]
)
@pytest.mark.parametrize("outer", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_gradients_are_on_and_inference_mode_is_off_whatever_the_caller_did(guard: Guard, outer: Guard) -> None:
    def modes() -> tuple[bool, bool]:
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    with outer(), guard():
        before = modes()
        with isolated(nn.Linear(1, 1)):
            inside = modes()
            torch.set_grad_enabled(False)  # as a model may do for good
        after = modes()
    assert inside == (True, False)
    assert after == before


def test_modes_are_put_back_module_by_module() -> None:
    """A BatchNorm that its user keeps in evaluation mode stays there, in a model that trains, and the other way."""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Sequential(nn.Dropout(), nn.ReLU())).train()
    for modes in itertools.product([True, False], repeat=6):
        for module, mode in zip(model.modules(), modes, strict=True):
            module.training = mode
        with isolated(model):
            assert not any(module.training for module in model.modules())
        assert tuple(module.training for module in model.modules()) == modes


def test_a_mode_that_forward_changes_is_put_back() -> None:
    model = Doing(lambda module: module.train()).eval()
    run(model)
    assert not any(module.training for module in model.modules())


def test_train_and_setattr_of_the_user_are_not_called() -> None:
    """They may do more than set a flag: freeze, switch teachers, start a warm-up."""

    class Watched(nn.Linear):
        def train(self, mode: bool = True) -> nn.Module:
            raise AssertionError("train() was called")

        def __setattr__(self, name: str, value: Any) -> None:
            if name == "training" and hasattr(self, "weight"):
                raise AssertionError("__setattr__ was called")
            super().__setattr__(name, value)

    model = nn.Sequential(Watched(2, 2))
    with isolated(model):
        assert not model[0].training
    assert model[0].training


def test_a_getattr_of_the_user_is_no_obstacle() -> None:
    class Delegating(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Doing()

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(self._modules["inner"], name)

        def forward(self, rows: Tensor) -> Tensor:
            return self.inner(rows)

    model = Delegating()
    before = trace(model)
    run(model)
    assert trace(model) == before


def test_no_parameter_requires_a_gradient_and_each_flag_comes_back() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    for flags in itertools.product([True, False], repeat=4):
        for parameter, flag in zip(model.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)
        with isolated(model):
            assert not any(parameter.requires_grad for parameter in model.parameters())
            assert not model(torch.ones(1, 2)).requires_grad
        assert tuple(parameter.requires_grad for parameter in model.parameters()) == flags


def test_tied_parameters_stay_tied() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    with isolated(model):
        assert model[1].weight is model[0].weight
        assert not model[0].weight.requires_grad
    assert model[1].weight is model[0].weight
    assert model[0].weight.requires_grad


def test_a_module_used_in_two_places_is_kept_once() -> None:
    shared = Doing(lambda module: module.count.add_(1))
    model = nn.Sequential(shared, shared)
    before = trace(model)
    run(model)
    assert trace(model) == before


def test_parameters_swapped_in_by_functional_call_are_no_obstacle() -> None:
    """They have a history, and the flag of such a tensor cannot be changed."""

    class Isolating(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 1)

        def forward(self, rows: Tensor) -> Tensor:
            with isolated(self.fc):
                return self.fc(rows)

    model = Isolating()
    weight = torch.ones(1, 2, requires_grad=True)
    torch.func.functional_call(model, {"fc.weight": weight * 2}, torch.ones(1, 2)).backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[2, 2]]


@pytest.mark.parametrize("model", [nn.Identity(), nn.Sequential(), nn.ReLU()], ids=repr)
def test_a_model_without_parameters_is_no_obstacle(model: nn.Module) -> None:
    run(model)
    assert model.training


# Nothing is left


def test_a_run_that_does_nothing_leaves_nothing() -> None:
    model = Doing().train()
    model(torch.ones(3, 2)).sum().backward()
    before = trace(model)
    run(model)
    assert trace(model) == before


def put_note(module: Any) -> None:
    module.note, module.brand_new = "after", torch.ones(1)


def take_note(module: Any) -> None:
    del module.note


def add_parameter(module: Any) -> None:
    module.scale = nn.Parameter(torch.ones(1))


def replace_parameter(module: Any) -> None:
    module.fc.weight = nn.Parameter(module.fc.weight.detach() * 2)


def replace_child(module: Any) -> None:
    module.fc = nn.Linear(2, 2)


def add_child(module: Any) -> None:
    module.extra = nn.Linear(2, 2)


def add_buffer(module: Any) -> None:
    module.register_buffer("brand_new", torch.ones(1), persistent=False)


def replace_buffer(module: Any) -> None:
    module.count = module.count + 1


def register_again(module: Any) -> None:
    count = module.count
    del module.count
    module.register_buffer("count", count + 1)


def count_in_place(module: Any) -> None:
    module.count += 1


def count_through_a_view(module: Any) -> None:
    module.count[0] += 1


def count_through_data(module: Any) -> None:
    module.count.data.add_(1)


def count_through_numpy(module: Any) -> None:
    module.count.numpy()[0] += 1


def exchange_data(module: Any) -> None:
    module.count.data = torch.ones(2)


def grow(module: Any) -> None:
    module.count.resize_(3).fill_(1)


def count_with_a_history(module: Any) -> None:
    """A running mean of features: under the caller's `no_grad` it has no history, inside the wall it has one."""
    module.count.mul_(0.9).add_(torch.ones(2, requires_grad=True) * 2)


def unfreeze(module: Any) -> None:
    module.frozen.requires_grad_(True)


def freeze(module: Any) -> None:
    module.fc.requires_grad_(False)


def hook_in(module: Any) -> None:
    module.fc.register_forward_hook(lambda *_: None)


def batch_statistics(module: Any) -> None:
    """The buffers of a module of torch's own, written although it is in evaluation mode."""
    F.batch_norm(torch.ones(3, 2), module.norm.running_mean, module.norm.running_var, training=True)


def train_the_norm(module: Any) -> None:
    module.norm.train()
    module.norm(torch.tensor([[0.0, 1], [2, 3]]))


def clip_weights(module: Any) -> None:
    """A constraint that forward puts on its weights, as in networks for EEG."""
    module.fc.weight.data = torch.renorm(module.fc.weight.data, 2, 0, 0.01)


MARKS = [
    *(put_note, take_note, add_parameter, replace_parameter, add_child, replace_child, hook_in),
    *(add_buffer, replace_buffer, register_again, count_in_place, count_through_a_view, count_through_data),
    *(count_through_numpy, exchange_data, grow, count_with_a_history, batch_statistics, train_the_norm),
    *(unfreeze, freeze, clip_weights),
]


@pytest.mark.parametrize("act", MARKS)
def test_whatever_forward_does_to_the_module_is_taken_back(act: Callable[[Any], None]) -> None:
    model = Doing(act)
    before = trace(model)
    run(model)
    assert trace(model) == before


CONTAINERS: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "list": ([1], lambda held: held.append(2)),
    "emptied list": ([1], lambda held: held.clear()),
    "list of as many": ([1], lambda held: held.__setitem__(0, 2)),
    "dict": ({"a": 1}, lambda held: held.update(b=2)),
    "dict with another key": ({"a": 1}, lambda held: held.update(b=held.pop("a"))),
    "dict with another value": ({"a": 1}, lambda held: held.update(a=2)),
    "set": ({1}, lambda held: held.add(2)),
    "deque": (deque([1, 2], maxlen=2), lambda held: held.append(3)),
    "defaultdict": (defaultdict(list), lambda held: held["a"].append(1)),
    "OrderedDict": (OrderedDict(a=1), lambda held: held.update(b=2)),
    "Counter": (Counter("a"), lambda held: held.update("ab")),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_what_forward_gathers_in_a_container_is_taken_out(name: str) -> None:
    """A list that keeps each batch's features would keep their graphs as well."""
    container, change = CONTAINERS[name]
    container = copy.deepcopy(container)
    before = copy.deepcopy(container)
    model = Doing(lambda module: change(module.note))
    model.note = container
    run(model)
    assert model.note is container
    assert container == before
    assert type(container) is type(before)


@pytest.mark.parametrize("act", [put_note, add_parameter, replace_buffer, count_in_place, grow, freeze])
def test_it_is_taken_back_when_the_model_raises(act: Callable[[Any], None]) -> None:
    model = nn.Sequential(Doing(act), nn.Linear(3, 2))  # the second does not fit the first
    before = trace(model)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        run(model)
    assert trace(model) == before
    assert torch.is_grad_enabled()


def test_an_interrupt_is_no_excuse() -> None:
    def interrupted(module: Any) -> None:
        count_in_place(module)
        raise KeyboardInterrupt

    model = Doing(interrupted)
    before = trace(model)
    with pytest.raises(KeyboardInterrupt), torch.no_grad():
        run(model)
    assert trace(model) == before


def test_an_untouched_buffer_keeps_its_version() -> None:
    """Autograd compares versions: a graph that saved the buffer could not go backward any more."""
    model = Doing(lambda module: module.last.add_(1))
    weight = torch.ones(2, requires_grad=True)
    score = (weight * model.count).sum()
    version = model.count._version
    run(model)
    assert model.count._version == version
    score.backward()
    assert weight.grad is not None


def test_an_embedding_that_renormalises_its_weights_gets_them_back() -> None:
    model = nn.Embedding(3, 4, max_norm=0.1)
    weights = model.weight.detach().clone()
    with isolated(model):
        model(torch.tensor([0, 1]))
    assert torch.equal(model.weight, weights)


class Counting(nn.Linear):
    def __init__(self) -> None:
        super().__init__(2, 2)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, rows: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(rows)


def test_a_counting_module_with_parametrized_weights_is_put_back() -> None:
    """Parametrizing a module makes a new class of it, which belongs to torch."""
    model = nn.utils.parametrizations.weight_norm(Counting())
    run(model)
    assert model.calls == 0


def test_a_statistic_that_a_hook_keeps_on_a_layer_of_torch_is_put_back() -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("mean", torch.zeros(2))
    model.register_forward_hook(lambda layer, _args, output: layer.mean.copy_(output.mean(0)))
    run(model)
    assert model.mean.tolist() == [0, 0]


@pytest.mark.parametrize(
    "wrap",
    [
        nn.utils.spectral_norm,
        nn.utils.parametrizations.spectral_norm,
        nn.utils.weight_norm,
        nn.utils.parametrizations.weight_norm,
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
def test_normalised_weights_and_batch_statistics_stay_as_they_are_in_training(wrap: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(wrap(nn.Linear(2, 2)), nn.BatchNorm1d(2)).train()
    model(torch.randn(4, 2))
    before = trace(model)
    run(model)
    assert trace(model) == before
    model(torch.randn(4, 2)).sum().backward()  # and training goes on
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_grads_and_hooks_on_parameters_are_left_alone() -> None:
    model, heard = nn.Linear(2, 2), []
    model.weight.register_hook(lambda gradient: heard.append(gradient))
    model(torch.ones(1, 2)).sum().backward()
    gradient, values = model.weight.grad, model.weight.grad.clone()
    heard.clear()
    with isolated(model):
        point = torch.ones(1, 2, requires_grad=True)
        model(point).sum().backward()
    assert point.grad is not None
    assert heard == []
    assert model.weight.grad is gradient
    assert torch.equal(gradient, values)
    model(torch.ones(1, 2)).sum().backward()
    assert len(heard) == 1


def test_the_optimizer_goes_on_with_the_same_bits() -> None:
    torch.manual_seed(0)
    disturbed, rows = Doing(count_in_place), torch.randn(4, 2)
    left_alone = copy.deepcopy(disturbed)
    for model in (disturbed, left_alone):
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            if model is disturbed:
                run(model)
            (model(rows) ** 2).sum().backward()
            optimizer.step()
    assert disturbed.state_dict().keys() == left_alone.state_dict().keys()
    for ours, theirs in zip(disturbed.state_dict().values(), left_alone.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("act", [put_note, replace_buffer, count_in_place, count_with_a_history])
def test_the_model_can_be_copied_and_pickled_afterwards(act: Callable[[Any], None]) -> None:
    model = Doing(act)
    run(model)
    model.act = None  # no lambda, for pickle's sake
    copy.deepcopy(model)
    pickle.loads(pickle.dumps(model))


def test_one_mark_that_cannot_be_taken_away_does_not_leave_the_others() -> None:
    class Stubborn(nn.Parameter):
        def requires_grad_(self, requires_grad: bool = True) -> Any:
            if requires_grad:
                raise ZeroDivisionError("never again")
            return super().requires_grad_(requires_grad)

    model = nn.Sequential(Doing(count_in_place), Doing(put_note))
    model[0].fc.weight = Stubborn(torch.ones(2, 2))
    before = trace(model)
    with pytest.raises(ZeroDivisionError, match="never again"):
        run(model)
    model[0].fc.weight.__class__ = nn.Parameter
    model[0].fc.weight.requires_grad_(True)
    assert trace(model) == before


def test_buffers_that_cannot_be_written_to_are_no_obstacle() -> None:
    model = Doing()
    model.register_buffer("expanded", torch.ones(1).expand(3))
    model.register_buffer("strided", torch.arange(6.0).reshape(2, 3).t())
    model.register_buffer("empty", torch.ones(0))
    model.register_buffer("flags", torch.ones(2, dtype=torch.bool))
    model.register_buffer("sparse", torch.eye(2).to_sparse())
    model.act = lambda module: (module.strided.add_(1), module.flags.logical_not_())
    run(model)
    assert model.strided.tolist() == [[0, 3], [1, 4], [2, 5]]
    assert model.flags.tolist() == [True, True]
    assert model.expanded.tolist() == [1, 1, 1]
    assert model.sparse.to_dense().tolist() == [[1, 0], [0, 1]]


def test_checkpointing_goes_on_afterwards() -> None:
    """Inside the wall, a reentrant block runs as if it were none."""
    model, runs = nn.Linear(2, 2), []
    point = torch.ones(1, 2, requires_grad=True)

    def block(rows: Tensor) -> Tensor:
        runs.append(torch.is_grad_enabled())
        return model(rows)

    def gradient() -> list[Any]:
        [found] = torch.autograd.grad(checkpoint(block, point, use_reentrant=True).sum(), point)
        return found.tolist()

    with isolated(model):
        with isolated(model):
            inside = gradient()
        assert gradient() == inside
    assert runs == [True, True]
    checkpoint(block, point, use_reentrant=True).sum().backward()
    assert runs == [True, True, False, True]
    assert point.grad is not None
    assert point.grad.tolist() == inside
    assert model.weight.grad is not None


def test_walls_within_walls() -> None:
    model = Doing(count_in_place)
    model.norm.eval()
    before = trace(model)
    with isolated(model):
        run(model)
        assert not any(module.training for module in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())
        with isolated(model.norm):
            model(torch.ones(3, 2))
    assert trace(model) == before


def test_lazy_modules_are_refused_or_run_but_never_left_half_way() -> None:
    """Their parameters have no shape yet; what torch says of it (call forward once) is good advice."""
    model = nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(2))
    with contextlib.suppress(ValueError):
        run(model)
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model(torch.ones(1, 2)).shape == (1, 2)


# Tensors made in inference mode


@pytest.fixture
def of_inference() -> Any:
    """A model whose parameters, buffers and cache were made in inference mode, as a checkpoint may be loaded there."""

    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)
            self.norm = nn.BatchNorm1d(2)
            self.register_buffer("calls", torch.zeros(1))
            self.cache = torch.full((2,), 3.0)

        def forward(self, rows: Tensor) -> Tensor:
            self.calls += 1
            return self.norm(self.fc(rows)) * self.cache * self.calls

    with torch.inference_mode():
        return Cached()


def test_tensors_made_in_inference_mode_can_be_used_and_are_put_back(of_inference: Any) -> None:
    model = of_inference
    held = [*model.parameters(), *model.buffers(), model.cache]
    flags = [tensor.requires_grad for tensor in held]
    point = torch.ones(1, 2, requires_grad=True)
    with isolated(model):
        inside = [*model.parameters(), *model.buffers(), model.cache]
        assert not any(tensor.is_inference() or tensor.requires_grad for tensor in inside)
        assert [type(tensor) for tensor in inside] == [type(tensor) for tensor in held]
        model(point).sum().backward()
    scale = 3 / torch.sqrt(torch.tensor(1 + 1e-5))
    torch.testing.assert_close(point.grad, scale * model.fc.weight.sum(0, keepdim=True))
    after = [*model.parameters(), *model.buffers(), model.cache]
    assert all(new is old for new, old in zip(after, held, strict=True))
    assert [tensor.requires_grad for tensor in after] == flags
    assert model.calls.item() == 0


# Generators


@pytest.mark.parametrize(
    ("make", "draw"),
    [
        (lambda: torch.Generator().manual_seed(1), lambda own: torch.rand(1, generator=own).item()),
        (lambda: np.random.default_rng(1), lambda own: own.random()),
        (lambda: np.random.RandomState(1), lambda own: own.rand()),
        (lambda: random.Random(1), lambda own: own.random()),
    ],
    ids=["torch", "numpy", "numpy of old", "python"],
)
def test_a_generator_of_the_models_own_is_put_back(make: Any, draw: Any) -> None:
    model = Doing(lambda module: draw(module.own))
    model.own = make()
    run(model)
    assert draw(model.own) == draw(make())


def test_generators_are_put_back_also_after_an_exception() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    def states() -> tuple[Any, Any, Any]:
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[union-attr]

    before = states()
    with isolated(nn.ReLU()):
        first = draw()
    assert states() == before
    model = Doing(lambda _: (draws.append(draw()), torch.manual_seed(7)))
    draws: list[Any] = []
    before = states()  # another: initialising the model has drawn
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        run(model, columns=3)
    assert states() == before
    assert draws == [draw()]
    assert draws != [first]


# Scripted and compiled


@pytest.fixture
def scripted() -> Iterator[Any]:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)
            self.norm = nn.BatchNorm1d(2)
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, rows: Tensor) -> Tensor:
            self.calls += 1
            return self.norm(self.fc(rows))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield nn.Sequential(torch.jit.script(Inner()), nn.ReLU()).train()


def test_a_scripted_child_is_in_evaluation_mode_inside_and_back_in_training_afterwards(scripted: Any) -> None:
    scripted[0].norm.eval()
    statistics = scripted[0].norm.running_mean.clone()
    modes = [module.training for module in scripted.modules()]
    with isolated(scripted):
        assert not any(module.training for module in scripted.modules())
        assert not any(parameter.requires_grad for parameter in scripted.parameters())
        scripted(torch.ones(3, 2))
    assert [module.training for module in scripted.modules()] == modes
    assert all(parameter.requires_grad for parameter in scripted.parameters())
    assert torch.equal(scripted[0].norm.running_mean, statistics)


def test_the_buffers_of_a_scripted_child_are_put_back(scripted: Any) -> None:
    run(scripted)
    assert scripted[0].calls.item() == 0


@pytest.fixture
def compiled() -> Iterator[Any]:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = torch.compile(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), backend="eager")
            self.fc = nn.Linear(2, 1)

        def forward(self, rows: Tensor) -> Tensor:
            return self.fc(self.part(rows))

    torch._dynamo.reset()
    yield Outer()
    torch._dynamo.reset()


def test_hooks_fire_in_compiled_children_and_nothing_is_compiled_again(compiled: Any) -> None:
    from torch._dynamo.utils import counters

    def statistics() -> dict[str, dict[str, int]]:
        return {key: dict(counters[key]) for key in ("stats", "frames", "recompiles")}

    rows, fired = torch.ones(3, 2), []
    for mode in (True, False):
        compiled.train(mode)(rows)
    keys, before = list(compiled.state_dict()), statistics()
    with isolated(compiled):
        handle = compiled.part._orig_mod[0].register_forward_hook(lambda *_: fired.append(True))
        compiled(rows)
        handle.remove()
    assert fired == [True]
    assert statistics() == before
    for mode in (True, False):
        compiled.train(mode)(rows)
    assert statistics() == before
    assert list(compiled.state_dict()) == keys


def test_hooks_fire_in_a_model_that_was_compiled_in_place() -> None:
    model, fired = nn.Sequential(nn.Linear(2, 2), nn.ReLU()), []
    model.compile(backend="eager")
    model(torch.ones(3, 2))
    with isolated(model), isolated(model):
        model[0].register_forward_hook(lambda *_: fired.append(True))
        model(torch.ones(3, 2))
    assert fired == [True]


def test_the_callers_compiler_stance_comes_back(compiled: Any) -> None:
    rows = torch.ones(3, 2)
    with torch.compiler.set_stance("fail_on_recompile"):
        run(compiled)  # eagerly: there is nothing compiled to fall back on
        with pytest.raises(Exception, match=r"recompil|fail_on_recompile"):
            compiled(rows)


def test_a_plain_tensor_that_forward_writes_to_is_put_back() -> None:
    """A statistic that its author forgot to register, and the graph that would be kept with it."""

    class Keeping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.seen = nn.Conv2d(3, 2, 1), torch.zeros(2)

    model = Keeping()
    seen = model.seen
    with isolated(model):
        model.seen.add_(model.conv(torch.rand(1, 3, 4, 4)).requires_grad_().mean((0, 2, 3)))
        model.seen = model.seen * 2
    assert model.seen is seen
    assert torch.equal(seen, torch.zeros(2))
    assert seen.grad_fn is None
    assert not seen.requires_grad
