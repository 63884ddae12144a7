"""A replica computes what the model computes, and the model does not notice."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from model_settings import SETTINGS
from object_state import object_state
from torch import Tensor, nn

from gradcam_callback.engine.replica import isolated

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
        first_convolution(replica.model).register_forward_hook(lambda *_: fired.append(1))
        given = [replica.model(IMAGES).detach() for _ in range(2)]

    assert len(fired) >= 2
    assert all(map(torch.equal, given, expected))
    assert object_state(model) == before
    assert replica.modified_weights() == ()
    assert all(map(torch.equal, in_eval_mode(model), expected))
