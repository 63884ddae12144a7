"""Trainings of many kinds, one after the other, most without a picture to show; their weights are printed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from classifier import Classifier
from pictures import batches
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from transformers import BertConfig, BertForSequenceClassification

from gradcam_callback import GradCAMCallback


class Module(L.LightningModule):
    """A module whose loss is a function of the batch."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.network(*inputs, **named)

    def loss(self, batch: Any) -> torch.Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Text(Module):
    """Batches of tokens, in a dictionary."""

    def __init__(self) -> None:
        sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
        super().__init__(BertForSequenceClassification(BertConfig(**sizes, num_hidden_layers=1, num_labels=2)))

    def loss(self, batch: Any) -> torch.Tensor:
        return self(**batch).loss


class TextWithoutForward(L.LightningModule):
    """A model of words that calls its parts itself."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.lstm, self.head = nn.Embedding(50, 16), nn.LSTM(16, 16, batch_first=True), nn.Linear(16, 2)

    def training_step(self, batch, batch_idx):
        tokens, labels = batch
        return F.cross_entropy(self.head(self.lstm(self.words(tokens))[0][:, -1]), labels)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Adversarial(L.LightningModule):
    """Two networks that are trained against each other, and nothing is validated."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.discriminator = nn.Linear(4, 3 * 33 * 33), nn.Linear(3 * 33 * 33, 1)

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        return self.generator(noise).view(-1, 3, 33, 33)

    def training_step(self, batch, batch_idx):
        for optimizer, images, sign in zip(
            self.optimizers(), (self(torch.randn(8, 4)), batch[0]), (1, -1), strict=True
        ):
            optimizer.zero_grad()
            self.manual_backward(F.softplus(sign * self.discriminator(images.flatten(1))).mean())
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.Adam(part.parameters()) for part in (self.generator, self.discriminator)]


def tokens(named: bool) -> DataLoader[Any]:
    torch.manual_seed(1)
    words, labels = torch.randint(50, (16, 12)), torch.randint(2, (16,))
    if not named:
        return DataLoader(TensorDataset(words, labels), batch_size=8)
    samples = [{"input_ids": one, "labels": label} for one, label in zip(words, labels, strict=True)]
    return DataLoader(samples, batch_size=8)


def table() -> DataLoader[Any]:
    torch.manual_seed(1)
    return DataLoader(TensorDataset(torch.rand(16, 5), torch.randint(3, (16,))), batch_size=8)


def images_as_rows() -> Module:
    return Module(nn.Sequential(nn.Flatten(), nn.Linear(3 * 33 * 33, 3)))


KINDS: dict[str, tuple[Callable[[], L.LightningModule], Callable[[], list[Any]], dict[str, Any]]] = {
    "text": (Text, lambda: [tokens(True)] * 2, {}),
    "text_without_forward": (TextWithoutForward, lambda: [tokens(False)] * 2, {}),
    "table": (lambda: Module(nn.Linear(5, 3)), lambda: [table()] * 2, {}),
    "no_layer": (images_as_rows, lambda: [batches()] * 2, {}),
    "no_validation": (Classifier, lambda: [batches()], {}),
    "adversarial": (Adversarial, lambda: [batches()], {}),
    "no_sanity_check": (Text, lambda: [tokens(True)] * 2, {"num_sanity_val_steps": 0}),
    "own_callback": (Classifier, lambda: [batches()] * 2, {"callbacks": GradCAMCallback(probes=2)}),
    "images": (Classifier, lambda: [batches()] * 2, {}),
}


def run(kind: str) -> str:
    """Train one kind in a folder of its name; what the weights and the generator are afterwards."""
    make, data, settings = KINDS[kind]
    L.seed_everything(0)
    model = make()
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(max_epochs=2, accelerator="cpu", default_root_dir=kind, **quiet, **settings)
    trainer.fit(model, *data())
    total = sum(parameter.double().sum() for parameter in model.parameters()).item()
    return f"weights {total:.17g}, next random number {torch.rand(()).item():.17g}"


if __name__ == "__main__":
    for kind in KINDS:
        print(f"{kind}: {run(kind)}")
