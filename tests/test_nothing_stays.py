"""Nothing of a look stays behind: no tensor, no thread, no hook, no memory, however a validation ends."""

from __future__ import annotations

import gc
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run, without_collector
from lightning.pytorch import Callback, LightningModule, Trainer
from models import Classifier, Network, detached
from recorder import LAYER, cb, modules_state, one
from torch import Tensor, nn

from gradcam_callback import CAMResult
from gradcam_callback.engine import gradients

MakeRun = Callable[..., Run]

pytestmark = pytest.mark.filterwarnings("ignore")

WRITER = "gradcam-writer"


def writers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == WRITER]


# Tensors


class Gathering:
    """Weak references to the tensors of the probe passes: what the model computes, and what is taken from it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tensors: list[tuple[str, weakref.ref[Tensor]]] = []
        differentiate = gradients.differentiate

        def gathering(scores: Tensor, recordings: Any, **options: Any) -> Any:
            taken = differentiate(scores, recordings, **options)
            self.add("scores", scores)
            for recording in recordings.values():
                for leaf in recording.calls:
                    self.add("leaf", leaf)
            for pair in taken.values():
                self.add("activation", pair.activation)
                self.add("gradient", pair.gradient)
            return taken

        monkeypatch.setattr(gradients, "differentiate", gathering)

    def add(self, what: str, tensor: Tensor | None) -> None:
        if tensor is not None:
            self.tensors.append((what, weakref.ref(tensor)))

    def of_model(self, model: nn.Module) -> None:
        """Every output of every module, in batches of four: only the probes come in fours."""

        def hook(name: str) -> Callable[..., None]:
            def see(_module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
                if isinstance(output, Tensor) and len(output) == 4:
                    self.add(f"output of {name}", output)

            return see

        for name, module in model.named_modules():
            module.register_forward_hook(hook(name))

    def take_alive(self) -> list[str]:
        """What is alive of those gathered since this was last asked."""
        gathered, self.tensors = self.tensors, []
        assert gathered, "no tensor of a probe pass was seen"
        return [what for what, reference in gathered if reference() is not None]


@pytest.mark.parametrize(
    ("module", "epochs", "options"),
    [
        (Classifier, 50, {}),
        (Classifier, 5, {"layer": "auto"}),
        (Classifier, 5, {"target": ["predicted", "label"], "method": "gradcam++"}),
        (detached, 10, {}),
        (lambda: Classifier(Network(lambda maps: torch.from_numpy(maps.detach().numpy()))), 5, {}),
        (lambda: Classifier(Network(lambda maps: maps * 0)), 5, {}),
        (lambda: Classifier(Network(lambda maps: maps / 0)), 5, {}),
    ],
    ids=["healthy", "auto", "two targets", "detached", "through numpy", "zero", "non-finite"],
)
def test_no_tensor_of_a_probe_pass_is_alive_after_a_validation(
    run: MakeRun,
    monkeypatch: pytest.MonkeyPatch,
    module: Callable[[], Classifier],
    epochs: int,
    options: dict[str, Any],
) -> None:
    """Over many epochs: the first look finds reasons, the later ones know them."""
    gathering, alive = Gathering(monkeypatch), []

    class After(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
            alive.append(gathering.take_alive())

    model = module()
    gathering.of_model(model)
    with without_collector():
        run(cb(**options), model, max_epochs=epochs, callbacks=[After()]).fit(train=8, val=8)

    assert alive == [[]] * epochs


def test_of_the_results_only_the_last_lives(run: MakeRun) -> None:
    [callback], results, alive = one(), list[weakref.ref[CAMResult]](), []

    class After(Callback):
        def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            assert callback.last_result is not None
            results.append(weakref.ref(callback.last_result))
            alive.append(sum(reference() is not None for reference in results))

    with without_collector():
        run(callback, max_epochs=10, callbacks=[After()]).fit(train=8, val=8)

    assert len(results) == 10
    assert alive == [1] * 10


def test_no_tensor_of_a_graph_is_kept(run: MakeRun) -> None:
    result = run(cb(), max_epochs=1).fit().callback.last_result

    assert result is not None
    tensors = [result.cams[LAYER], result.scores, result.probabilities, result.health[LAYER].gradient_norm]
    assert not any(tensor.requires_grad or tensor.is_inference() for tensor in tensors)


@pytest.mark.parametrize("module", [Classifier, detached], ids=["healthy", "detached"])
def test_the_model_is_not_held(run: MakeRun, module: Callable[[], Classifier]) -> None:
    """Who keeps the callback for its results keeps no model and no data with it."""
    [callback], model = one(), module()
    look = run(callback, model, max_epochs=2).fit()
    reference = weakref.ref(model)
    del look, model, callback.log, callback.log_dict  # these two are Lightning's, and hold the model
    gc.collect()

    assert callback.last_result is not None
    assert reference() is None


# Threads


def test_no_writer_lives_on(run: MakeRun) -> None:
    alive = []

    class During(Callback):
        def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            alive.append(bool(writers()))

    look = run(cb(), max_epochs=1, callbacks=[During()])
    for step in (look.fit, look.validate, look.test):
        step()
        assert writers() == []
    assert alive == [True, True]


def test_there_is_one_writer_however_many_validations(run: MakeRun) -> None:
    most = []

    class During(Callback):
        def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            most.append(len(writers()))

    run(cb(), max_epochs=5, callbacks=[During()]).fit()

    assert most == [1] * 5


# Ends


class Ending(Classifier):
    """Ends a forward pass with an error: that of the training, of the validation, or of the probes."""

    def __init__(self, where: str, error: type[BaseException]) -> None:
        super().__init__()
        self.where, self.error = where, error

    def forward(self, images: Tensor) -> Tensor:
        self.model.stage(images.new_zeros(1, 4, 8, 8))  # inside the layer's hooks, too
        kinds = {"training": self.training, "probes": len(images) == 4}
        where = next((kind for kind, is_so in kinds.items() if is_so), "validation")
        if where == self.where and self.trainer.current_epoch == 1:
            raise self.error("it ends here")
        return super().forward(images)


@pytest.fixture
def _interrupts_put_back() -> Iterator[None]:
    """Lightning ignores Ctrl-C for good once it has come."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interrupts_put_back")
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt], ids=["error", "interrupt"])
@pytest.mark.parametrize("where", ["training", "validation", "probes"])
@pytest.mark.parametrize("layer", [LAYER, "auto"])
def test_no_hook_and_no_thread_stays_when_a_run_ends_early(
    run: MakeRun, where: str, error: type[BaseException], layer: str
) -> None:
    model = Ending(where, error)
    before = {name: value for name, value in modules_state(model) if "hooks/" in name or "requires_grad/" in name}
    look = run(cb(layer), model, max_epochs=2)
    ends = where != "probes" or error is KeyboardInterrupt
    if ends:
        # Of an interrupt, Lightning makes an exit; versions before that let `fit` return.
        with pytest.raises((RuntimeError, SystemExit)):
            look.fit(train=8, val=8)
    else:
        look.fit(train=8, val=8)

    assert {name: value for name, value in modules_state(model) if name in before} == before
    assert not [name for name, value in modules_state(model) if "hooks/" in name and name not in before]
    assert writers() == []
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()
    # What was seen before the end is on the disk.
    assert look.events.steps(f"gradcam/{LAYER}")[0] == 1
    assert [cause for *_, cause, _ in look.alerts] == ([] if ends else ["forward_failed"])


# Memory


def resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
@pytest.mark.slow
@pytest.mark.parametrize("module", [Classifier, detached], ids=["healthy", "detached"])
def test_memory_does_not_grow_over_two_hundred_validations(run: MakeRun, module: Callable[[], Classifier]) -> None:
    """The slope over the second half: what is set up once, caches and the like, is there by then."""
    objects, process = [], []

    class Weighing(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch % 10 == 0:
                gc.collect()
                objects.append(len(gc.get_objects()))
                process.append(resident())

    run(cb(), module(), max_epochs=200, callbacks=[Weighing()]).fit(train=8, val=8)

    def slope(sizes: list[int]) -> float:
        """A validation's share in the growth."""
        late = sizes[len(sizes) // 2 :]
        return float(np.polyfit(10 * np.arange(len(late)), late, 1)[0])

    assert len(objects) == 20
    # One kept panel would be two hundred kilobytes a validation, one kept graph some hundred objects.
    assert slope(objects) < 2
    assert slope(process) < 20_000
