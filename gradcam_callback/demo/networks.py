"""Networks of the demo and of the example configurations: a small residual one, a frozen one, torchvision's by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

STAGES = "network.stages."  # what the names of a ResidualNetwork's stages begin with in a checkpoint


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut, after He et al., "Deep Residual Learning for Image Recognition" (2016).

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
        stride: 2 halves height and width, 1 keeps them.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )
        self.activation = nn.ReLU(inplace=True)

    def forward(self, features: Tensor) -> Tensor:
        """Map `(N, inputs, h, w)` to `(N, outputs, h / stride, w / stride)`."""
        activation: Tensor = self.activation(self.residual(features) + self.shortcut(features))
        return activation


class ResidualStages(nn.Sequential):
    """The convolutional part: stage 0 is a 5 x 5 convolution, each one after it a residual block.

    Args:
        in_channels: Channels of the image.
        widths: Channels that each stage gives; at least one number. Of fewer than 8, with images in channels-last
            order on a CPU without AVX-512, torch 2.15 writes beyond its memory in the backward pass of the shortcut.
        strides: By how much each stage shrinks height and width; as many numbers as `widths`.

    Raises:
        ValueError: `widths` and `strides` differ in length, or are empty.
    """

    def __init__(
        self, in_channels: int = 1, widths: Sequence[int] = (16, 32, 64, 128), strides: Sequence[int] = (2, 2, 2, 1)
    ) -> None:
        if not widths or len(widths) != len(strides):
            raise ValueError(
                f"Each stage needs a width and a stride: widths has {len(widths)} numbers, strides {len(strides)}."
            )
        stem = nn.Sequential(
            nn.Conv2d(in_channels, widths[0], kernel_size=5, stride=strides[0], padding=2, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(inplace=True),
        )
        steps = zip(widths[:-1], widths[1:], strides[1:], strict=True)
        super().__init__(stem, *(ResidualBlock(inputs, outputs, stride) for inputs, outputs, stride in steps))


class ResidualNetwork(nn.Module):
    """Residual stages, the mean over all places, and a linear layer.

    The layers to look at are `network.stages.0`, `network.stages.1` and so on, inside an `ImageClassifier`.

    Args:
        in_channels: Channels of the image.
        num_classes: How many classes to tell apart.
        widths: Channels that each stage gives; see `ResidualStages`.
        strides: By how much each stage shrinks height and width. Their product is how many pixels of the image one
            cell of the last map stands for: with the default, 8 x 8.

    Raises:
        ValueError: `widths` and `strides` differ in length, or are empty.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        widths: Sequence[int] = (16, 32, 64, 128),
        strides: Sequence[int] = (2, 2, 2, 1),
    ) -> None:
        super().__init__()
        self.stages = ResidualStages(in_channels, widths, strides)
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images `(N, C, H, W)` to logits `(N, num_classes)`."""
        logits: Tensor = self.head(self.stages(images).mean(dim=(2, 3)))
        return logits


class FrozenBackbone(nn.Module):
    """A backbone that is not trained, and a small convolutional head that is: the usual recipe for transfer learning.

    The backbone's parameters ask for no gradient, it stays in evaluation mode, and it runs under `torch.no_grad()`. So
    autograd never sees it, and still its layers can be explained.

    Args:
        backbone: Any module that maps images to feature maps `(N, channels, h, w)`.
        channels: Channels of those feature maps.
        num_classes: How many classes to tell apart.
        width: Channels of the head's one convolution.
        checkpoint: A checkpoint of an `ImageClassifier` with a `ResidualNetwork`, such as the demo's, whose stages
            give the backbone its weights. None leaves them as they are.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        ValueError: Its stages do not fit the backbone.
    """

    def __init__(
        self, backbone: nn.Module, channels: int, num_classes: int = 10, width: int = 128, checkpoint: str | None = None
    ) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        if checkpoint is not None:
            _load_stages(backbone, checkpoint)
        self.head = nn.Sequential(
            nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(width, num_classes),
        )
        self.train(self.training)

    def train(self, mode: bool = True) -> FrozenBackbone:
        """Switch the head; the backbone stays in evaluation mode, so that its BatchNorm statistics stay too."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Map images `(N, C, H, W)` to logits `(N, num_classes)`."""
        with torch.no_grad():
            features = self.backbone(images)
        logits: Tensor = self.head(features)
        return logits


def _load_stages(backbone: nn.Module, checkpoint: str) -> None:
    if not Path(checkpoint).is_file():
        raise FileNotFoundError(f"There is no checkpoint {checkpoint}. Train the demo first; its run folder holds one.")
    weights = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    stages = {name.removeprefix(STAGES): value for name, value in weights.items() if name.startswith(STAGES)}
    try:
        backbone.load_state_dict(stages)
    except RuntimeError as error:
        raise ValueError(f"The stages in {checkpoint} do not fit the backbone: {error}") from error


def torchvision_network(name: str, num_classes: int, weights: str | None = None) -> nn.Module:
    """Build one of torchvision's classification networks.

    Args:
        name: Such as "resnet18" or "efficientnet_b0".
        num_classes: How many classes to tell apart.
        weights: None starts from random weights. "DEFAULT", or a name such as "IMAGENET1K_V1", downloads trained ones
            and puts a new last layer on them.

    Raises:
        ValueError: There is no such network, it has no such weights, or its last layer is not linear and cannot be
            replaced.
    """
    possible = torchvision.models.list_models(module=torchvision.models)
    if name not in possible:
        raise ValueError(f"torchvision has no classification network {name!r}. It has: {', '.join(possible)}.")
    if weights is None:
        network: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
        return network
    known = ["DEFAULT", *torchvision.models.get_model_weights(name).__members__]
    if weights not in known:
        raise ValueError(f"{name} has no weights {weights!r}. It has: {', '.join(known)}; null for none.")
    network = torchvision.models.get_model(name, weights=weights)
    _replace_last_layer(network, name, num_classes)
    return network


def _replace_last_layer(network: nn.Module, name: str, num_classes: int) -> None:
    path, last = list(network.named_modules())[-1]
    if not isinstance(last, nn.Linear):
        raise ValueError(
            f"The last layer of {name} is {type(last).__name__}, not Linear, so it cannot be replaced by one for "
            f"{num_classes} classes. Choose another network, or weights: null."
        )
    parent, _, child = path.rpartition(".")
    setattr(network.get_submodule(parent), child, nn.Linear(last.in_features, num_classes))
