"""Pictures for the programs here: noise with a bright square whose third of the picture tells the class."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset


class Squares(Dataset[Any]):
    """Sample `i` is of class `i % 3`: a picture, and its class or the mask of the square."""

    classes = ("left", "middle", "right")

    def __init__(self, length: int, size: int = 33, *, masks: bool = False) -> None:
        self.length, self.size, self.masks = length, size, masks

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        generator = torch.Generator().manual_seed(index)
        image = 0.3 * torch.rand(3, self.size, self.size, generator=generator)
        label, third = index % 3, self.size // 3
        mask = torch.zeros(self.size, self.size, dtype=torch.long)
        mask[third : 2 * third, label * third : (label + 1) * third] = 1
        return image + 0.7 * mask, mask if self.masks else label


def batches(length: int = 24, **settings: Any) -> DataLoader[Any]:
    return DataLoader(Squares(length, **settings), batch_size=8)
