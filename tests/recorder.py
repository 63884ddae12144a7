"""Trains with the callback and without, and writes both down, bit by bit and at many moments, to compare them."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from models import Augmented, Classifier
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils.checkpoint import CheckpointFunction
from torch.utils.data import DataLoader

from gradcam_callback import GradCAMCallback

State = dict[str, str]
"""What is compared, by a name that says what it is: `gradient/model.stem.weight`. Values are short; data are hashed."""


def digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def bits(tensor: Tensor) -> str:
    """Type, shape and values of a tensor, to the last bit."""
    plain = tensor.detach().as_subclass(Tensor).cpu().contiguous()
    return f"{tensor.dtype} {tuple(tensor.shape)} {digest(plain.reshape(-1).view(torch.uint8).numpy().tobytes())}"


def flat(value: Any, path: str, folder: Path | None = None) -> Iterator[tuple[str, str]]:
    """Everything in a nested value, each with its path. Where a folder is given, its name does not count."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from flat(entry, f"{path}/{key}", folder)
    elif isinstance(value, (list, tuple)):
        yield f"{path}/length", str(len(value))
        for index, entry in enumerate(value):
            yield from flat(entry, f"{path}/{index}", folder)
    elif isinstance(value, Tensor):
        yield path, bits(value)
    elif isinstance(value, np.ndarray):
        yield path, f"{value.dtype} {value.shape} {digest(value.tobytes())}"
    elif isinstance(value, (bool, int, float, str, bytes, type(None), Path)):
        yield path, repr(value if folder is None else str(value).replace(str(folder), "<folder>"))
    else:
        yield path, type(value).__name__


def modules_state(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Of each module: mode, hooks of every kind, attributes; of each parameter and buffer: values, flag, gradient."""
    for name, module in model.named_modules():
        yield f"mode/{name}", str(module.training)
        for attribute, value in vars(module).items():
            if attribute.endswith("hooks") and isinstance(value, dict):
                yield f"hooks/{name}/{attribute}", str(len(value))
            elif attribute == "_torchdynamo_wrapper_id":
                continue  # an address
            elif not (isinstance(value, nn.Module) or (isinstance(value, dict) and attribute.startswith("_"))):
                # Counters, caches, and what spectral_norm leaves; an object is told by its type.
                yield from flat(value, f"attribute/{name}/{attribute}")
        yield f"attributes/{name}", " ".join(sorted(vars(module)))
        yield f"children/{name}", " ".join(module._modules)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        yield f"weight/{name}", bits(parameter)
        yield f"requires_grad/{name}", str(parameter.requires_grad)
        yield f"gradient/{name}", "None" if parameter.grad is None else bits(parameter.grad)
        yield f"tensor hooks/{name}", str(len(parameter._backward_hooks or ()))
        yield f"accumulation hooks/{name}", str(len(parameter._post_accumulate_grad_hooks or ()))
    for name, buffer in model.named_buffers(remove_duplicate=False):
        yield f"buffer/{name}", f"{bits(buffer)} {buffer.requires_grad} {buffer.is_inference()}"
    for attribute, value in vars(torch_module).items():
        if attribute.startswith("_global") and attribute.endswith("hooks"):
            yield f"hooks/of all modules/{attribute}", str(len(value))


def generators_state(loaders: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The generators of Python, NumPy and torch, and those that data loaders carry."""
    yield "generator/python", digest(repr(random.getstate()).encode())
    yield from flat(np.random.get_state(legacy=False), "generator/numpy")
    yield "generator/torch", bits(torch.get_rng_state())
    for index in range(torch.cuda.device_count()):
        yield f"generator/cuda {index}", bits(torch.cuda.get_rng_state(index))
    for kind, several in loaders.items():
        for index, loader in enumerate(CombinedLoader(several).flattened if several is not None else ()):
            owners = {"loader": loader, "sampler": getattr(loader, "sampler", None), "data": loader.dataset}
            for owner, thing in owners.items():
                for attribute, value in vars(thing).items() if hasattr(thing, "__dict__") else ():
                    if isinstance(value, torch.Generator):
                        yield f"generator/{kind} {index}/{owner}.{attribute}", bits(value.get_state())
                    elif isinstance(value, np.random.Generator):
                        yield f"generator/{kind} {index}/{owner}.{attribute}", repr(value.bit_generator.state)


def switches() -> Iterator[tuple[str, str]]:
    """What is switched on and off for all of torch."""
    cudnn = torch.backends.cudnn
    found = {
        "gradients": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "autocast type": torch.get_autocast_dtype("cpu"),
        "autocast on cuda": torch.is_autocast_enabled("cuda"),
        "autocast cache": torch.is_autocast_cache_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "deterministic, warnings only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "cudnn": (cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32),
        "matmul precision": torch.get_float32_matmul_precision(),
        "anomaly detection": torch.is_anomaly_enabled(),
        "default type": torch.get_default_dtype(),
        "function modes": torch._C._len_torch_function_stack(),
        "threads": torch.get_num_threads(),
        "checkpointing patched": "apply" in vars(CheckpointFunction),
    }
    return ((f"switch/{name}", str(value)) for name, value in found.items())


def trainer_state(trainer: Trainer) -> Iterator[tuple[str, str]]:
    """Optimizers, schedulers, loops, and every metric that is not ours."""
    for index, optimizer in enumerate(trainer.optimizers):
        yield from flat(optimizer.state_dict(), f"optimizer/{index}")
    for index, config in enumerate(trainer.lr_scheduler_configs):
        yield from flat(config.scheduler.state_dict(), f"scheduler/{index}")
    for kind in ("callback_metrics", "logged_metrics", "progress_bar_metrics"):
        for name, value in getattr(trainer, kind).items():
            if not name.startswith("gradcam/"):
                yield from flat(value, f"metric/{kind}/{name}")
    yield from flat(trainer.fit_loop.state_dict(), "loop")
    yield "trainer/stage", str(trainer.state.stage)
    yield "trainer/should_stop", str(trainer.should_stop)
    yield "trainer/steps", f"{trainer.global_step} in epoch {trainer.current_epoch}"


def files_state(folder: Path) -> Iterator[tuple[str, str]]:
    """What is in the checkpoints of a folder, but for our callbacks' own state."""
    for path in sorted(folder.rglob("*.ckpt")):
        checkpoint = torch.load(path, weights_only=False)
        states = checkpoint.get("callbacks", {})
        checkpoint["callbacks"] = {
            key: state for key, state in states.items() if GradCAMCallback.__name__ not in str(key)
        }
        for name, value in flat(checkpoint, f"file/{path.relative_to(folder)}", folder):
            yield name.replace(str(folder), "<folder>"), value


class Recorder(Callback):
    """Writes down the state of the training at many moments; to be the last of the callbacks.

    Attributes:
        moments: The name of the moment ("on_after_backward 3") to the state.
    """

    def __init__(self) -> None:
        self.moments: dict[str, State] = {}
        self._count: Counter[str] = Counter()

    def record(self, moment: str, trainer: Trainer, pl_module: LightningModule) -> None:
        self._count[moment] += 1
        loaders = {"train": trainer.train_dataloader, "val": trainer.val_dataloaders, "test": trainer.test_dataloaders}
        self.moments[f"{moment} {self._count[moment]}"] = {
            **dict(switches()),  # first: what follows must not be what changes them
            **dict(generators_state(loaders)),
            **dict(modules_state(pl_module)),
            **dict(trainer_state(trainer)),
        }

    def finish(self, trainer: Trainer, folder: Path) -> None:
        """Write down what is there when all is over."""
        self.record("the end", trainer, trainer.lightning_module)
        self.moments["the files"] = dict(files_state(folder))

    # One hook a moment. They are few lines each, and spelled out because Lightning looks hooks up by their names.

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.record("on_fit_start", trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.record("on_train_start", trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.record("on_train_batch_start", trainer, pl_module)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.record("on_after_backward", trainer, pl_module)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.record("on_before_optimizer_step", trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.record("on_train_batch_end", trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.record("on_validation_start", trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.record("on_validation_epoch_end", trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.record("on_validation_end", trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.record("on_test_start", trainer, pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.record("on_test_epoch_end", trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.record("on_test_end", trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.record("on_train_epoch_end", trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.record("on_train_end", trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.record(f"on_exception {exception!r}", trainer, pl_module)


def differences(without: Mapping[str, State], with_it: Mapping[str, State], most: int = 8) -> Sequence[str]:
    """What differs and when, the earliest first; none where the two are the same."""
    if list(without) != list(with_it):
        first = next((pair for pair in zip(without, with_it, strict=False) if pair[0] != pair[1]), "one ends earlier")
        return [f"the course of events: {first}"]
    found = []
    for moment, expected in without.items():
        given = with_it[moment]
        for name in (*expected, *(given.keys() - expected.keys())):
            before, after = expected.get(name, "not there"), given.get(name, "not there")
            if before != after:
                found.append(f"{moment}: {name}: {before} without, {after} with")
    return found[:most]


# Two trainings

LAYER = "model.stage"
Data = tuple[Any, Any]


def cb(layer: str = LAYER, probes: Any = 4, **options: Any) -> GradCAMCallback:
    return GradCAMCallback(target_layers=layer, probes=probes, **options)


def one(layer: str = LAYER) -> list[GradCAMCallback]:
    return [cb(layer, target=["predicted", "label"])]


def two(layer: str = LAYER) -> list[GradCAMCallback]:
    """Two of ours, as different from each other as can be."""
    return [*one(layer), cb("auto", method="layercam")]


MIDDLE = {"accumulate_grad_batches": 3, "val_check_interval": 2}
"""Four batches, an optimizer step after three, a validation after two, when `.grad` holds a part of that step."""


def shuffled(**settings: Any) -> Data:
    """Augmented at random and shuffled, for the training and for the validation, from generators of their own."""
    first, second = torch.Generator().manual_seed(3), torch.Generator().manual_seed(4)
    return (
        DataLoader(Augmented(32), 8, shuffle=True, generator=first, **settings),
        DataLoader(Augmented(16), 8, shuffle=True, generator=second, **settings),
    )


def fit(trainer: Trainer, module: LightningModule, data: Data) -> None:
    trainer.fit(module, *data)


@dataclass(frozen=True)
class Case:
    """A training.

    Attributes:
        module: Makes the model.
        data: Makes the loaders.
        others: Makes the user's own callbacks.
        settings: Of the Trainer.
        do: What is done with it.
        layer: The target layer.
        ours: Makes our callbacks, for that layer.
        ours_first: Whether our callbacks stand before the user's.
        alerts: Whether there are alerts.
        looks: Whether there is a look at all.
    """

    module: Callable[[], LightningModule] = Classifier
    data: Callable[[], Data] = shuffled
    others: Callable[[], list[Callback]] = list
    settings: dict[str, Any] = field(default_factory=dict)
    do: Callable[[Trainer, Any, Data], None] = fit
    layer: str = LAYER
    ours: Callable[[str], list[GradCAMCallback]] = one
    ours_first: bool = True
    alerts: bool = False
    looks: bool = True


@dataclass
class Training:
    """What came of it."""

    trainer: Trainer
    module: LightningModule
    moments: dict[str, State]
    error: BaseException | None


def train(
    case: Case, folder: Path, ours: Sequence[Callback] = (), expected: type[BaseException] | None = None
) -> Training:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    recorder = Recorder()
    kept = ModelCheckpoint(folder / "kept", save_top_k=-1, every_n_train_steps=3)
    others = case.others()
    callbacks = [*ours, *others] if case.ours_first else [*others, *ours]
    settings: dict[str, Any] = {
        "default_root_dir": folder,
        "logger": TensorBoardLogger(folder, name="", version=""),
        "callbacks": [*callbacks, kept, recorder],
        "max_epochs": 2,
        "accelerator": "cpu",
        "num_sanity_val_steps": 1,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(**(settings | case.settings))
    module, error = case.module(), None
    try:
        case.do(trainer, module, case.data())
    except BaseException as raised:
        if expected is None or not isinstance(raised, expected):
            raise
        error = raised
    recorder.finish(trainer, folder)
    return Training(trainer, module, recorder.moments, error)


def compare(case: Case, folder: Path, ours: Sequence[GradCAMCallback] | None = None) -> tuple[Training, Training]:
    """Train with ours and without, and hold the two against each other."""
    ours = case.ours(case.layer) if ours is None else ours
    without, with_it = train(case, folder / "without"), train(case, folder / "with", ours)

    assert differences(without.moments, with_it.moments) == []
    for callback in ours:
        assert (callback.last_result is not None) == case.looks
        assert bool(callback.alerts) == case.alerts, [str(alert) for alert in callback.alerts]
    return without, with_it
