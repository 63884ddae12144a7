"""Training with the callback leaves the same bits behind as training without it, whatever else the Trainer does."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch.callbacks as lightning_callbacks
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Events
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    EarlyStopping,
    LearningRateFinder,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.tuner import Tuner
from models import UNPICKLE, Augmented, Classifier, Network, SpotStream, ZeroHead, detached, loader, split
from recorder import LAYER, MIDDLE, Case, Data, State, cb, compare, differences, one, shuffled, train, two
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.ops import StochasticDepth

from gradcam_callback import compute_cam

# What the tests look for in warnings they catch themselves.
pytestmark = pytest.mark.filterwarnings("ignore")


def begin_compiling_anew() -> None:
    """Otherwise the second of two trainings would find what the first one compiled."""
    torch._dynamo.reset()


@pytest.fixture(autouse=True)
def _switches_put_back() -> Iterator[None]:
    """A Trainer with `deterministic=True` leaves that on for all who come after it."""
    deterministic, benchmark = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = benchmark


# Data


def from_one_generator() -> Data:
    """The same, from the generator that everything else draws from too."""
    return loader(Augmented(32), shuffle=True), loader(Augmented(16), shuffle=True)


class Carrying(Augmented):
    """A data set with two generators of its own, one of torch and one of NumPy."""

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.torch_generator, self.numpy_generator = torch.Generator().manual_seed(5), np.random.default_rng(5)

    def __getitem__(self, index: int) -> Any:
        image, label = super().__getitem__(index)
        noise = torch.rand(1, generator=self.torch_generator) + self.numpy_generator.random()
        return image + 0.1 * noise.float(), label


def carrying() -> Data:
    return loader(Carrying(32), shuffle=True), loader(Carrying(16))


def fit_and_evaluate(trainer: Trainer, module: LightningModule, data: Data) -> None:
    trainer.fit(module, *data)
    trainer.validate(module, data[1], verbose=False)
    trainer.test(module, data[1], verbose=False)


# The recorder itself


def _draw_python(trainer: Trainer, module: LightningModule) -> None:
    random.random()


def _draw_numpy(trainer: Trainer, module: LightningModule) -> None:
    np.random.rand()


def _draw_torch(trainer: Trainer, module: LightningModule) -> None:
    torch.rand(1)


def _draw_from_a_loader(trainer: Trainer, module: LightningModule) -> None:
    torch.rand(1, generator=trainer.train_dataloader.generator)  # type: ignore[union-attr]


def _write_a_weight(trainer: Trainer, module: LightningModule) -> None:
    module.model.spare.weight.data[0, 0, 0, 0] += 1e-7


def _write_a_buffer(trainer: Trainer, module: LightningModule) -> None:
    module.model.norm.running_mean[0] += 1e-3


def _clear_gradients(trainer: Trainer, module: LightningModule) -> None:
    module.zero_grad()


def _freeze(trainer: Trainer, module: LightningModule) -> None:
    module.model.spare.requires_grad_(False)


def _change_a_mode(trainer: Trainer, module: LightningModule) -> None:
    module.model.drop.training = not module.model.drop.training


def _hook(trainer: Trainer, module: LightningModule) -> None:
    module.model.drop.register_full_backward_pre_hook(lambda *args: None)


def _hook_a_tensor(trainer: Trainer, module: LightningModule) -> None:
    module.model.spare.weight.register_hook(lambda gradient: None)


def _set_an_attribute(trainer: Trainer, module: LightningModule) -> None:
    module.model.spare.cache = 1


def _change_a_rate(trainer: Trainer, module: LightningModule) -> None:
    trainer.optimizers[0].param_groups[0]["lr"] = 0.04


def _log_a_metric(trainer: Trainer, module: LightningModule) -> None:
    module.log("mine", 1.0)


def _switch_gradients(trainer: Trainer, module: LightningModule) -> None:
    torch.set_grad_enabled(not torch.is_grad_enabled())


def _switch_autocast(trainer: Trainer, module: LightningModule) -> None:
    torch.set_autocast_cache_enabled(not torch.is_autocast_cache_enabled())


def _switch_cudnn(trainer: Trainer, module: LightningModule) -> None:
    torch.backends.cudnn.benchmark = not torch.backends.cudnn.benchmark


@pytest.mark.parametrize(
    ("vandalise", "named"),
    [
        (_draw_python, "generator/python"),
        (_draw_numpy, "generator/numpy"),
        (_draw_torch, "generator/torch"),
        (_draw_from_a_loader, "generator/train 0/loader.generator"),
        (_write_a_weight, "weight/model.spare.weight"),
        (_write_a_buffer, "buffer/model.norm.running_mean"),
        (_clear_gradients, "gradient/model.stem.weight"),
        (_freeze, "requires_grad/model.spare.weight"),
        (_change_a_mode, "mode/model.drop"),
        (_hook, "hooks/model.drop/_backward_pre_hooks"),
        (_hook_a_tensor, "tensor hooks/model.spare.weight"),
        (_set_an_attribute, "attribute/model.spare/cache"),
        (_change_a_rate, "optimizer/0/param_groups/0/lr"),
        (_log_a_metric, "metric/callback_metrics/mine"),
        (_switch_gradients, "switch/gradients"),
        (_switch_autocast, "switch/autocast cache"),
        (_switch_cudnn, "switch/cudnn"),
    ],
    ids=lambda given: given.__name__.strip("_") if callable(given) else given.split("/")[0],
)
def test_the_recorder_names_what_differs(
    tmp_path: Path, vandalise: Callable[[Trainer, LightningModule], None], named: str
) -> None:
    """A recorder that sleeps would let everything below pass."""

    class Vandal(Callback):
        def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if not trainer.sanity_checking:
                vandalise(trainer, pl_module)

    # A part of a step is in `.grad` when the validation comes.
    case = Case(settings={**MIDDLE, "max_epochs": 1})
    without = train(case, tmp_path / "without").moments
    cache = torch.is_autocast_cache_enabled()
    try:
        with_it = train(case, tmp_path / "with", [Vandal()]).moments
    finally:
        torch.set_grad_enabled(True)
        torch.set_autocast_cache_enabled(cache)

    found = differences(without, with_it)
    assert any(named in line for line in found), found
    assert found[0].startswith(("on_validation_epoch_end 2: ", "on_validation_end 2: "))


def test_the_recorder_reads_checkpoints(tmp_path: Path) -> None:
    class Saving(Callback):
        def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
            checkpoint["state_dict"]["model.fc.bias"] = checkpoint["state_dict"]["model.fc.bias"] + 1

    without, with_it = (
        train(Case(), tmp_path / name, ours).moments for name, ours in {"without": [], "with": [Saving()]}.items()
    )
    found = differences(without, with_it)
    assert found
    assert all(re.match(r"the files: file/kept/.*\.ckpt/state_dict/model\.fc\.bias", line) for line in found), found


# Models


class HalfFrozen(Classifier):
    """The batch normalisation is kept in evaluation mode, and the first convolution is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.model.stem.requires_grad_(False)

    def on_train_start(self) -> None:
        self.model.norm.eval()

    def on_train_epoch_start(self) -> None:
        self.model.norm.eval()


class Counting(Classifier):
    """Counts its forward passes in a buffer, in a number, and in a list; and keeps the last map."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))
        self.times, self.sizes, self.kept = 0, [], torch.zeros(1)

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        self.times += 1
        self.sizes.append(len(images))
        logits = super().forward(images)
        self.kept = logits.detach()
        return logits


class OwnGenerators(Classifier):
    """Draws noise from generators that it carries itself."""

    def __init__(self) -> None:
        super().__init__()
        self.of_torch, self.of_numpy = torch.Generator().manual_seed(1), np.random.default_rng(1)

    def forward(self, images: Tensor) -> Tensor:
        noise = torch.rand(images.shape, generator=self.of_torch, dtype=images.dtype)
        return super().forward(images + 0.1 * float(self.of_numpy.random()) * noise)


class Manual(Classifier):
    """Two optimizers, each with a schedule, stepped by hand; the second one only every other batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        images, labels = split(batch)
        for position, optimizer in enumerate(self.optimizers()):  # type: ignore[arg-type]
            self.toggle_optimizer(optimizer)
            self.manual_backward(F.cross_entropy(self(images), labels))
            if position == 0 or batch_idx % 2:
                optimizer.step()
                optimizer.zero_grad()
                self.lr_schedulers()[position].step()  # type: ignore[index, union-attr]
            self.untoggle_optimizer(optimizer)

    def configure_optimizers(self) -> Any:
        body = torch.optim.Adam([*self.model.stem.parameters(), *self.model.norm.parameters()], lr=0.01)
        head = torch.optim.SGD([*self.model.stage.parameters(), *self.model.fc.parameters()], lr=0.05, momentum=0.9)
        return [body, head], [torch.optim.lr_scheduler.StepLR(optimizer, 2) for optimizer in (body, head)]


class Scheduled(Classifier):
    """AdamW, and a schedule that looks at the validation."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.02)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}


def spectral(old: bool) -> Classifier:
    classifier = Classifier()
    normed = nn.utils.spectral_norm if old else nn.utils.parametrizations.spectral_norm
    classifier.model.stage = normed(classifier.model.stage)
    return classifier


def stochastic_depth() -> Classifier:
    return Classifier(Network(StochasticDepth(0.5, "row")))


class Backboned(Classifier):
    """With a `backbone`, as BackboneFinetuning wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(self.model.stem, self.model.norm)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return torch.optim.SGD(trained, lr=0.05, momentum=0.9)


class Failing(Classifier):
    """Raises in the validation of the second epoch."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        if self.current_epoch == 1 and batch_idx == 1:
            raise RuntimeError("the model's own")
        super().validation_step(batch, batch_idx)


class FailingForProbes(Classifier):
    """Raises for a batch of four, which only the probes are; after it has written to everything in reach."""

    def forward(self, images: Tensor) -> Tensor:
        if len(images) != 4:
            return super().forward(images)
        torch.rand(1)
        self.model.norm.running_mean += 1
        self.model.drop.train()
        self.model.spare.requires_grad_(False)
        torch.set_grad_enabled(False)
        raise RuntimeError("no batches of four")


class Tunable(Classifier):
    """With a learning rate and a batch size to be found."""

    def __init__(self) -> None:
        super().__init__()
        self.lr = 0.01

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class Batches(LightningDataModule):
    """With a batch size to be found."""

    def __init__(self) -> None:
        super().__init__()
        self.batch_size = 4

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Augmented(32), self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Augmented(16), self.batch_size)


def compiled_child(backend: str = "eager") -> Classifier:
    begin_compiling_anew()
    return Classifier(torch.compile(Network(), backend=backend))  # type: ignore[arg-type]


def compiled_in_place(backend: str = "eager") -> Classifier:
    begin_compiling_anew()
    classifier = Classifier()
    classifier.model.compile(backend=backend)
    return classifier


def compiled(backend: str = "eager") -> Any:
    begin_compiling_anew()
    return torch.compile(Classifier(), backend=backend)


# The matrix

CASES = {
    "plain": Case(ours=two),
    "half frozen": Case(HalfFrozen, ours=two),
    "detached": Case(detached, ours=two, alerts=True),
    "generators of its own": Case(OwnGenerators),
    "zero head": Case(lambda: ZeroHead(held=False), ours=two, alerts=True),
    "one generator for all": Case(data=from_one_generator),
    "generators in the data": Case(data=carrying),
    "two workers": Case(data=lambda: shuffled(num_workers=2)),
    "persistent workers": Case(data=lambda: shuffled(num_workers=2, persistent_workers=True)),
    "half a step": Case(ours=two, settings=MIDDLE),
    "half a step, batch norm in eval": Case(HalfFrozen, settings=MIDDLE),
    "manual": Case(Manual, settings={"val_check_interval": 1}),
    "schedule": Case(Scheduled, settings={"max_epochs": 3}),
    "stochastic depth": Case(stochastic_depth),
    "spectral norm": Case(lambda: spectral(False), settings=MIDDLE),
    "spectral norm of old": Case(lambda: spectral(True), settings=MIDDLE),
    "counting": Case(Counting, settings=MIDDLE),
    "bf16-mixed": Case(settings={"precision": "bf16-mixed"}),
    "bf16-true": Case(settings={"precision": "bf16-true"}),
    "inference mode": Case(settings={"inference_mode": True}, do=fit_and_evaluate),
    "no inference mode": Case(settings={"inference_mode": False}, do=fit_and_evaluate),
    "deterministic": Case(settings={"deterministic": True}),
    "clipped by norm": Case(settings={"gradient_clip_val": 0.1, **MIDDLE}),
    "overfit": Case(settings={"overfit_batches": 2}),
    "fast_dev_run": Case(settings={"fast_dev_run": 2}),
    "no validation": Case(settings={"limit_val_batches": 0}, alerts=True, looks=False),
    "every second epoch": Case(settings={"check_val_every_n_epoch": 2, "max_epochs": 4}),
    "max_steps": Case(settings={"max_steps": 5, "max_epochs": -1, "val_check_interval": 2}),
    "compiled child": Case(compiled_child, layer="model._orig_mod.stage"),
    "compiled in place": Case(compiled_in_place),
    "fails for probes": Case(FailingForProbes, alerts=True, looks=False),
    "finetuning": Case(Backboned, others=lambda: [BackboneFinetuning(1)], settings={"max_epochs": 3}),
}


# Too long for every day, or close to one of the above.
SLOW = {
    "part of an epoch": Case(settings={"val_check_interval": 0.25}),
    "half a step, one generator": Case(data=from_one_generator, settings=MIDDLE),
    "detached, half a step": Case(detached, settings=MIDDLE, alerts=True),
    "64-true": Case(settings={"precision": "64-true"}),
    "anomaly detection": Case(settings={"detect_anomaly": True}),
    "finetuning, ours last": Case(Backboned, others=lambda: [BackboneFinetuning(1)], ours_first=False),
    "clipped by value": Case(settings={"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"}),
    "no sanity check": Case(settings={"num_sanity_val_steps": 0}),
    "compiled, eager": Case(compiled),
    "compiled, inductor": Case(lambda: compiled("inductor")),
    "compiled child, aot_eager": Case(lambda: compiled_child("aot_eager"), layer="model._orig_mod.stage"),
    "compiled child, inductor": Case(lambda: compiled_child("inductor"), layer="model._orig_mod.stage"),
}


@pytest.mark.parametrize(
    "case",
    [*CASES.values(), *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW.values())],
    ids=[*CASES, *SLOW],
)
def test_training_leaves_the_same_bits_behind(tmp_path: Path, case: Case) -> None:
    compare(case, tmp_path)


def test_the_compiler_is_not_asked_more_often(tmp_path: Path) -> None:
    """A look in between must not make what was compiled invalid, nor compile anything itself."""
    asked: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        asked.append(1)
        return graph.forward

    def training(folder: Path, ours: Sequence[Callback]) -> int:
        asked.clear()
        begin_compiling_anew()
        case = Case(lambda: Classifier(torch.compile(Network(), backend=backend)))  # type: ignore[arg-type]
        train(case, folder, ours)
        return len(asked)

    without = training(tmp_path / "without", [])
    assert without > 0
    assert training(tmp_path / "with", one("model._orig_mod.stage")) == without


def test_a_stateful_stream_is_not_moved(tmp_path: Path) -> None:
    def epochs(name: str, ours: list[Callback]) -> list[int]:
        data, seen = SpotStream(16), []

        class Count(Classifier):
            def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
                seen.append(batch[0].sum().item())

        train(Case(Count, data=lambda: (loader(24), DataLoader(data, 8))), tmp_path / name, ours)
        return [data.opened, *seen]

    assert epochs("with", [cb()]) == epochs("without", [])


# Other callbacks


class Standing(Callback):
    """Logs what our callback would, so that there is something to watch without it."""

    def __init__(self, nulls: float) -> None:
        self.nulls = nulls

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.log("gradcam/null_gradients", self.nulls, logger=False)


@pytest.mark.parametrize(("module", "nulls"), [(Classifier, 0.0), (detached, 8.0)], ids=["healthy", "detached"])
@pytest.mark.parametrize("ours_first", [True, False], ids=["ours first", "ours last"])
def test_what_watches_our_metric_stops_and_keeps_by_it(
    tmp_path: Path, module: Callable[[], Classifier], nulls: float, ours_first: bool
) -> None:
    def watching() -> list[Callback]:
        stopping = EarlyStopping("gradcam/null_gradients", patience=1)
        return [stopping, ModelCheckpoint(monitor="gradcam/null_gradients", mode="min", save_top_k=2)]

    case = Case(module, others=watching, settings={"max_epochs": 4, "num_sanity_val_steps": 0}, ours_first=ours_first)
    without = train(case, tmp_path / "without", [Standing(nulls)])
    with_it = train(case, tmp_path / "with", one())

    assert differences(without.moments, with_it.moments) == []
    assert with_it.trainer.current_epoch == 2
    assert with_it.trainer.callback_metrics["gradcam/null_gradients"].item() == nulls


SLOWLY = pytest.mark.slow
ORDERS = pytest.mark.parametrize("ours_first", [True, False], ids=["ours first", "ours last"])


@ORDERS
def test_stochastic_weight_averaging(tmp_path: Path, ours_first: bool) -> None:
    def averaging() -> list[Callback]:
        return [StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1)]

    compare(Case(others=averaging, settings={"max_epochs": 3}, ours_first=ours_first), tmp_path)


needs_weight_averaging = pytest.mark.skipif(
    not hasattr(lightning_callbacks, "WeightAveraging"), reason="this version of Lightning has no WeightAveraging"
)


@needs_weight_averaging
@ORDERS
@pytest.mark.parametrize(
    "module", [Classifier, pytest.param(Counting, marks=SLOWLY), HalfFrozen], ids=["plain", "counting", "half frozen"]
)
def test_weight_averaging(tmp_path: Path, module: Callable[[], LightningModule], ours_first: bool) -> None:
    case = Case(module, others=lambda: [lightning_callbacks.WeightAveraging()], settings=MIDDLE, ours_first=ours_first)
    compare(case, tmp_path)


@needs_weight_averaging
@ORDERS
def test_the_order_decides_whose_map_is_drawn(tmp_path: Path, ours_first: bool) -> None:
    """In front of WeightAveraging the averaged weights are still there; behind it the current ones are back."""

    class Keeping(Callback):
        """Keeps the weights that the training goes on with."""

        def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            current.load_state_dict(pl_module.state_dict())

    current, averaged, [callback] = Classifier(), Classifier(), one()
    others = [lightning_callbacks.WeightAveraging(), Keeping()]
    training = train(Case(others=lambda: others, ours_first=ours_first), tmp_path, [callback])
    averaged.load_state_dict(training.module.state_dict())  # what is left when the training is over

    assert callback.probes is not None
    assert callback.last_result is not None
    drawn = callback.last_result.cams[LAYER]
    of_averaged, of_current = (compute_cam(m, callback.probes.images, LAYER).cams[LAYER] for m in (averaged, current))
    expected, other = (of_averaged, of_current) if ours_first else (of_current, of_averaged)
    torch.testing.assert_close(drawn, expected, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(drawn, other, rtol=1e-3)


class ActivationCounter(Callback):
    """Counts what it sees through a hook on the model, as callbacks that log activations do."""

    def __init__(self) -> None:
        self.seen, self.handle = 0, None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.handle is None:
            self.handle = pl_module.model.stage.register_forward_hook(self._count)

    def _count(self, *args: Any) -> None:
        self.seen += 1


def test_a_hook_bound_to_another_callback_does_not_count_our_passes(tmp_path: Path) -> None:
    def seen(name: str, ours: list[Callback]) -> int:
        counter = ActivationCounter()
        train(Case(others=lambda: [counter]), tmp_path / name, ours)
        return counter.seen

    assert seen("with", one()) == seen("without", []) > 0


def test_our_callback_may_hang_on_the_module(tmp_path: Path) -> None:
    [callback] = one()
    module = Classifier()
    module.watcher = callback
    train(Case(lambda: module), tmp_path, [callback])
    assert callback.last_result is not None
    assert callback.alerts == []


# Tuning


def find_rate(trainer: Trainer, module: Any, data: Data) -> None:
    found = Tuner(trainer).lr_find(module, *data, num_training=12)
    assert found is not None
    module.found = repr(found.suggestion())
    module.losses = list(map(float, found.results["loss"]))
    trainer.fit(module, *data)


def find_batch_size(trainer: Trainer, module: Any, data: Data) -> None:
    batches = Batches()
    module.found = Tuner(trainer).scale_batch_size(module, datamodule=batches, max_trials=2, steps_per_trial=1)
    trainer.fit(module, datamodule=batches)


def rate_finder() -> list[Callback]:
    return [LearningRateFinder(num_training_steps=12)]


def batch_size_finder() -> list[Callback]:
    return [BatchSizeFinder(max_trials=2, steps_per_trial=1)]


def fit_batches(trainer: Trainer, module: LightningModule, data: Data) -> None:
    trainer.fit(module, datamodule=Batches())


@pytest.mark.parametrize(
    "case",
    [
        Case(Tunable, do=find_rate),
        pytest.param(Case(Tunable, do=find_batch_size), marks=SLOWLY),
        Case(Tunable, others=rate_finder),
        Case(Tunable, others=rate_finder, ours_first=False),
        Case(Tunable, others=batch_size_finder, do=fit_batches),
        pytest.param(Case(Tunable, others=batch_size_finder, do=fit_batches, ours_first=False), marks=SLOWLY),
    ],
    ids=["rate", "batch size", "rate, callback", "rate, ours last", "batch size, callback", "batch size, ours last"],
)
def test_tuning_finds_the_same(tmp_path: Path, case: Case) -> None:
    """What was found is an attribute of the module, or the rate in the optimizer, and so among what is compared."""
    _, with_it = compare(case, tmp_path)

    # One look an epoch at the steps of the training proper, and none in the trials.
    events = Events.read(tmp_path / "with")
    steps = events.steps(f"gradcam/{LAYER}")
    # Lightning 2.5 counts an epoch too many after it has looked for a rate.
    assert len(steps) == with_it.trainer.global_step // with_it.trainer.num_training_batches
    assert steps[-1] == with_it.trainer.global_step


@pytest.mark.parametrize("tune", ["lr_find", "scale_batch_size"])
def test_nothing_is_written_while_only_tuning(tmp_path: Path, tune: str) -> None:
    [callback] = one()

    def only_tune(trainer: Trainer, module: Any, data: Data) -> None:
        if tune == "lr_find":
            Tuner(trainer).lr_find(module, *data, num_training=12)
        else:
            Tuner(trainer).scale_batch_size(module, datamodule=Batches(), max_trials=2, steps_per_trial=1)

    train(Case(Tunable, do=only_tune), tmp_path, [callback])

    assert Events.read(tmp_path).ours() == set()
    assert not list(tmp_path.rglob("gradcam"))
    assert (callback.last_result, callback.alerts) == (None, [])


def test_tuning_does_not_carry_the_probes_of_an_earlier_training_over(tmp_path: Path) -> None:
    """The finder saves a checkpoint and loads it again, which is no resumed training."""
    [callback] = one()
    train(Case(data=lambda: (loader(24), loader(24))), tmp_path / "first", [callback])
    case = Case(Tunable, lambda: (loader(24), loader(2)), rate_finder, ours_first=False)
    train(case, tmp_path / "second", [callback])

    assert callback.probes is not None
    assert callback.probes.indices == (0, 1)
    assert callback.alerts == []


# Going on


@pytest.mark.parametrize(
    "case",
    ["plain", "half a step", *(pytest.param(name, marks=SLOWLY) for name in ("one generator for all", "counting"))],
)
def test_a_training_resumed_in_the_middle_of_an_epoch(tmp_path: Path, case: str) -> None:
    first = CASES[case]
    compare(first, tmp_path)
    [[middle]] = [[path.name for path in (tmp_path / "with" / "kept").glob("*step=3.ckpt")]]
    loops = torch.load(tmp_path / "with" / "kept" / middle, weights_only=False)["loops"]["fit_loop"]
    assert loops["epoch_loop.batch_progress"]["current"]["processed"] == 3  # of four

    def resumed(name: str, checkpoint: Path, ours: Sequence[Callback]) -> dict[str, State]:
        def go_on(trainer: Trainer, module: LightningModule, data: Data) -> None:
            trainer.fit(module, *data, ckpt_path=checkpoint, **UNPICKLE)

        return train(Case(first.module, first.data, settings=first.settings, do=go_on), tmp_path / name, ours).moments

    [callback] = one()
    without = resumed("resumed without", tmp_path / "without" / "kept" / middle, [])
    assert differences(without, resumed("resumed with", tmp_path / "with" / "kept" / middle, [callback])) == []
    assert callback.last_result is not None
    # The validation is shuffled and augmented: at the same positions there are other images now.
    assert [str(alert.cause) for alert in callback.alerts] in ([], ["probes_changed"])
    # And a checkpoint of the one is good for the other.
    assert differences(without, resumed("now without", tmp_path / "with" / "kept" / middle, [])) == []
    assert differences(without, resumed("now with", tmp_path / "without" / "kept" / middle, one())) == []


def test_a_model_that_raises_ends_as_it_would_without_us(tmp_path: Path) -> None:
    without = train(Case(Failing), tmp_path / "without", expected=RuntimeError)
    with_it = train(Case(Failing), tmp_path / "with", one(), expected=RuntimeError)

    assert str(with_it.error) == str(without.error) == "the model's own"
    assert differences(without.moments, with_it.moments) == []
    assert any(moment.startswith("on_exception") for moment in with_it.moments)
