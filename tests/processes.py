"""What the processes of a distributed run do, by name. Started by `tests/test_processes.py`, twice at the same time.

    torchrun --nproc-per-node 2 tests/processes.py FOLDER NAME...

Each process leaves what it saw as `FOLDER/NAME/rank0.pt`, `rank1.pt`.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from conftest import make_run
from lightning.pytorch.strategies import ModelParallelStrategy
from models import Classifier, Network, Spots, detached
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, IterableDataset, SubsetRandomSampler, default_collate

from gradcam_callback import GradCAMCallback, GradCAMWatch, GradientNullError

LAYER = "model.stage"
DDP = {"strategy": "ddp_find_unused_parameters_true", "devices": 2, "max_epochs": 2}


SEEN: list[int] = []
"""The size of each batch that the network of the scene has run on; a global, which a replica shares."""


class Sharded(Classifier):
    """The network sharded as its user would: each part with weights, then the whole."""

    def __init__(self, on_map: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.model.on_map = on_map

    def configure_model(self) -> None:
        mesh = self.device_mesh["data_parallel"]
        for part in (self.model.stem, self.model.stage, self.model.fc):
            fully_shard(part, mesh=mesh)
        fully_shard(self.model, mesh=mesh)


class Picky(Classifier):
    """Raises in one process when it is shown the probes: a batch of another size than all others."""

    def __init__(self, rank: int, error: Callable[[str], Exception], at_most: int = 0) -> None:
        super().__init__()
        self.rank, self.error, self.at_most = rank, error, at_most

    def forward(self, images: Tensor) -> Tensor:
        if self.global_rank == self.rank and self.at_most < len(images) < 8:
            raise self.error("no space in here")
        return super().forward(images)


class Crops(Spots):
    """Spots cut to different heights, lower and lower, so that the probes of each process are padded to another one."""

    def __getitem__(self, index: int) -> Any:
        image, label = super().__getitem__(index)
        return image[:, : 16 - 2 * (index % 5)], label


def crops(length: int) -> DataLoader[Any]:
    """Batches with a list of images."""
    return DataLoader(
        Crops(length),
        8,
        collate_fn=lambda rows: [[image for image, _ in rows], default_collate([label for _, label in rows])],
    )


class Padding(Classifier):
    """Takes a list of images, and pads them to the highest of them."""

    def forward(self, images: list[Tensor]) -> Tensor:
        assert isinstance(images, list)
        height = max(image.shape[1] for image in images)
        return super().forward(torch.stack([F.pad(image, (0, 0, 0, height - image.shape[1])) for image in images]))


class ShardedStream(IterableDataset[Any]):
    """Each process reads samples of its own."""

    def __iter__(self) -> Iterator[Any]:
        rank = torch.distributed.get_rank()
        return iter([Spots()[index] for index in range(8 * rank, 8 * rank + 8)])


def fit(
    folder: Path,
    callback: GradCAMCallback | None,
    module: Classifier,
    val: Any = 16,
    train: Any = 48,
    **settings: Any,
) -> dict[str, Any]:
    """Train, and return what this process has seen of it."""
    torch.manual_seed(1)
    SEEN.clear()
    unseen = GradCAMCallback(LAYER)
    run = make_run(folder, callback or unseen, module, **{**DDP, **settings})
    if callback is None:
        run.trainer.callbacks.remove(unseen)
    module.model.register_forward_pre_hook(lambda _, args: SEEN.append(len(args[0])))
    error = None
    try:
        run.fit(train, val)
    except GradientNullError as raised:
        error = str(raised)
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    whole = {name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in tensors.items()}
    result = run.callback.last_result
    return {
        "weights": {name: tensor.detach().clone() for name, tensor in whole.items()},
        "metrics": dict(run.trainer.callback_metrics),
        "alerts": run.alerts,
        "messages": [alert.message for alert in run.callback.alerts],
        "warnings": run.our_warnings(),
        "images": None if run.callback.probes is None else run.callback.probes.images,
        "cams": None if result is None else dict(result.cams),
        "heatmaps": None if result is None else result.heatmaps(),
        "sizes": None if result is None else result.sizes,
        "targets": None if result is None else result.targets,
        "states": None if result is None else [str(state) for state in result.health[LAYER].state],
        "seen": list(SEEN),
        "error": error,
    }


def loop(folder: Path, wrap: Callable[[Network], nn.Module], looks: bool = True) -> dict[str, Any]:
    """A loop without a Trainer, with a look after each of three steps, in every process."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    torch.manual_seed(0)
    network = Network()
    model = wrap(network)
    SEEN.clear()
    network.register_forward_pre_hook(lambda _, args: SEEN.append(len(args[0])))
    probes = torch.stack([Spots()[index][0] for index in range(5)])
    watch = GradCAMWatch(model, probes, folder, target_layers="stage") if looks else None
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(3):
        images, labels = default_collate([Spots()[8 * step + torch.distributed.get_rank()]] * 8)
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        if watch is not None:
            watch.look(step)
    if watch is not None:
        watch.close()
    result = None if watch is None else watch.last_result
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    whole = {name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in tensors.items()}
    return {
        "weights": {name: tensor.detach().clone() for name, tensor in whole.items()},
        "cams": None if result is None else dict(result.cams),
        "images": probes,
        "seen": list(SEEN),
    }


def whole(network: Network) -> nn.Module:
    return DistributedDataParallel(network, find_unused_parameters=True)


def sharded(network: Network) -> nn.Module:
    for part in (network.stem, network.stage, network.fc):
        fully_shard(part)
    return fully_shard(network)


def cb(probes: Any = 5, **options: Any) -> GradCAMCallback:
    return GradCAMCallback(options.pop("target_layers", LAYER), probes, **options)


def fsdp() -> dict[str, Any]:
    return {"strategy": ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)}


ON_REQUEST: dict[str, Any] = {
    "method": "scorecam",
    "regions": [[0, 0, 8, 8]] * 5,
    "faithfulness": {"steps": 3, "percentiles": [50]},
}
"""What runs the model more often than once."""


def refusing_probes(maps: Tensor) -> Tensor:
    """Raises in the middle of the network when it is shown the probes."""
    if len(maps) < 8:
        raise RuntimeError("no probes in here")
    return maps


def out_of_memory(text: str) -> Exception:
    return torch.OutOfMemoryError(text)


SCENES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "ddp": lambda folder: fit(folder, cb(target=["predicted", "label"]), Classifier()),
    "ddp_no_logger": lambda folder: fit(folder, cb(), Classifier(), logger=False),
    "ddp_without": lambda folder: fit(folder, None, Classifier()),
    "ddp_auto": lambda folder: fit(folder, cb(target_layers="auto"), Classifier()),
    "ddp_one_probe": lambda folder: fit(folder, cb(1), Classifier()),
    "ddp_detached": lambda folder: fit(folder, cb(), detached()),
    "ddp_raise": lambda folder: fit(folder, cb(on_null="raise"), detached()),
    "ddp_forward_fails": lambda folder: fit(folder, cb(), Picky(1, RuntimeError)),
    "ddp_memory": lambda folder: fit(folder, cb(7), Picky(1, out_of_memory, at_most=2)),
    "ddp_subset": lambda folder: fit(
        folder, cb(4), Classifier(), DataLoader(Spots(24), 8, sampler=SubsetRandomSampler(range(12, 24)))
    ),
    "ddp_stream": lambda folder: fit(folder, cb(), Classifier(), DataLoader(ShardedStream(), 8)),
    "ddp_positions_of_stream": lambda folder: fit(folder, cb([3]), Classifier(), DataLoader(ShardedStream(), 8)),
    "ddp_lists": lambda folder: fit(folder, cb(), Padding(), crops(16), crops(48)),
    "ddp_methods": lambda folder: fit(folder, cb(**ON_REQUEST), Classifier()),
    "ddp_loop": lambda folder: loop(folder, whole),
    "ddp_loop_without": lambda folder: loop(folder, whole, looks=False),
    "fsdp_loop": lambda folder: loop(folder, sharded),
    "fsdp_loop_without": lambda folder: loop(folder, sharded, looks=False),
    "fsdp_methods": lambda folder: fit(folder, cb(**ON_REQUEST), Sharded(), **fsdp()),
    "fsdp": lambda folder: fit(folder, cb(target=["predicted", "label"]), Sharded(), **fsdp()),
    "fsdp_without": lambda folder: fit(folder, None, Sharded(), **fsdp()),
    "fsdp_auto": lambda folder: fit(folder, cb(target_layers="auto"), Sharded(), num_sanity_val_steps=2, **fsdp()),
    "fsdp_forward_fails": lambda folder: fit(folder, cb(), Sharded(refusing_probes), **fsdp()),
    "fsdp_detached": lambda folder: fit(folder, cb(), Sharded(Tensor.detach), **fsdp()),
}


def main() -> None:
    folder, *names = sys.argv[1:]
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in names:
        try:
            seen = SCENES[name](Path(folder, name))
        except Exception as error:
            seen = {"raised": f"{type(error).__name__}: {error}"}
        place = Path(folder, name, f"rank{torch.distributed.get_rank()}.pt")
        place.parent.mkdir(exist_ok=True)
        torch.save(seen, place)
    # Or threads of the process group may outlive the interpreter, which now and then aborts the process.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
