"""A sharded model runs itself, and is as it was afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

from gradcam_callback.engine.replica import ReplicaOptions, isolated


@pytest.fixture
def mesh() -> Iterator[Any]:
    """A mesh of one process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)
        self.second.bias.requires_grad_(False)
        self.register_buffer("calls", torch.zeros(1))
        self.fail = False

    def forward(self, rows: Tensor) -> Tensor:
        self.calls += 1
        self.register_buffer("last", rows.detach())
        if self.fail:
            raise ZeroDivisionError
        return self.second(self.norm(self.first(rows)))


def sharded(mesh: Any) -> Network:
    model = Network()
    fully_shard(model.first, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def distributed(mesh: Any) -> Network:
    return parallelize_module(Network(), mesh, {"first": ColwiseParallel(output_layouts=Replicate())})


def state(model: nn.Module) -> dict[str, Any]:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {
        "modes": [module.training for module in model.modules()],
        "tensors": [(name, id(tensor), tensor.requires_grad) for name, tensor in tensors],
        "values": [getattr(tensor, "full_tensor", lambda t=tensor: t)().tolist() for _, tensor in tensors],
        # Of a buffer that is not written to: a graph that saved it can still go backward.
        "version": model.norm.running_mean._version,  # type: ignore[union-attr]
    }


needs_streams = pytest.mark.skipif(
    not hasattr(torch.cpu.Stream, "record_event"),
    reason="this version of torch runs no fully_shard on one CPU process",
)


@pytest.mark.parametrize("make", [pytest.param(sharded, marks=needs_streams), distributed])
@pytest.mark.parametrize("fail", [False, True])
def test_a_sharded_model_is_as_it_was(mesh: Any, make: Any, fail: bool) -> None:
    if make is sharded and fail and not hasattr(FSDPModule, "reset_iter_state"):
        pytest.skip("this version of torch cannot have FSDP2 begin anew")
    model, rows = make(mesh), torch.rand(5, 3)
    if make is sharded:
        model(rows).sum().backward()
    model.norm.eval()
    model.fail = fail
    before, prepared = state(model), []
    gradients = [weight.grad for weight in model.parameters()]
    try:
        with torch.no_grad(), isolated(model, ReplicaOptions(prepare=prepared.append)) as replica:
            assert replica.model is model
            assert not any(module.training for module in model.modules())
            assert not model(rows).requires_grad
            assert replica.modified_weights() == ()
    except ZeroDivisionError:
        assert fail
    assert state(model) == before
    assert all(weight.grad is gradient for weight, gradient in zip(model.parameters(), gradients, strict=True))
    assert prepared == []
    model.fail = False
    model(rows).sum().backward()  # and training goes on
