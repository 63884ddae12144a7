"""Copies of tensors, arrays and generators: weights share the memory of their originals, all else has its own."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

Array: TypeAlias = np.ndarray[Any, Any]

# What takes up more than this and is no buffer is data, not state: it is shared, as a data set is.
_LARGEST_COPY = 256 * 2**20  # bytes


class TensorCopier:
    """Copies tensors so that those which shared memory share it again.

    Attributes:
        own_weights: Whether weights get memory of their own and require a gradient where their originals do. Otherwise
            they are aliases that require none.
        aliased: The weights that share their memory with an alias, and their versions at that time. A detached alias
            shares the version counter, so what is written to it in place shows in the original.
    """

    def __init__(self, own_weights: bool = False) -> None:
        self.aliased: list[tuple[Tensor, int]] = []
        self.own_weights = own_weights
        self._shared_storages: set[int] = set()  # those of aliased weights
        self._storages: dict[int, torch.UntypedStorage] = {}  # original to copy, by the storage's identity
        self._addresses: dict[int, torch.UntypedStorage] = {}  # and by the address, for arrays of NumPy

    def weight(self, weight: Tensor, *, own_memory: bool = False) -> Tensor:
        """A parameter for a replica: of the same class, and by default an alias without a gradient."""
        flag = self.own_weights and weight.requires_grad
        if is_lazy(weight):
            return _lazy_like(weight, flag)
        # Autograd refuses to save a tensor that was made in inference mode, and it has no version to watch.
        if own_memory or self.own_weights or weight.is_inference():
            data = weight.detach().clone()
        else:
            data = weight.detach()
            self.aliased.append((weight, weight._version))
            if weight.layout is torch.strided:
                self._shared_storages.add(weight.untyped_storage()._cdata)
        if type(data) is Tensor:
            kind = type(weight)
            return torch.Tensor._make_subclass(kind, data, flag) if kind is not Tensor else data.requires_grad_(flag)
        parameter = data.requires_grad_(flag)  # of a tensor class that is no subclass of Parameter
        parameter._is_param = True
        return parameter

    def tensor(self, tensor: Tensor, *, is_buffer: bool = False) -> Tensor:
        """A tensor without history, in memory of its own, or in that of a weight if the original lies there."""
        copied = self._tensor(tensor, is_buffer)
        if self.own_weights and tensor.requires_grad and tensor.is_leaf:
            copied.requires_grad_()
        return copied

    def _tensor(self, tensor: Tensor, is_buffer: bool) -> Tensor:
        kind = type(tensor)
        if is_lazy(tensor):
            return _lazy_like(tensor, False)
        plain = tensor if kind is Tensor else tensor.as_subclass(Tensor)
        if hasattr(kind, "__tensor_flatten__") or not _has_plain_memory(plain):
            return tensor.detach().clone()
        copied = self._strided(plain, is_buffer)
        return copied if kind is Tensor else copied.as_subclass(kind)

    def _strided(self, tensor: Tensor, is_buffer: bool) -> Tensor:
        storage = tensor.untyped_storage()
        identity = storage._cdata
        if identity in self._shared_storages:
            return tensor.detach()
        own = self._storages.get(identity) or self._addresses.get(storage.data_ptr())
        if own is None:
            size = storage.nbytes()
            if size > _LARGEST_COPY and not is_buffer:
                self.aliased.append((tensor, tensor._version))
                return tensor.detach()
            if _is_whole(tensor, size):
                copied = tensor.detach().clone()
                self._remember(storage, copied.untyped_storage())
                return copied
            own = storage.clone()  # type: ignore[no-untyped-call]
            self._remember(storage, own)
        copied = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        copied.set_(own, tensor.storage_offset(), tensor.size(), tensor.stride())
        copied = copied.conj() if tensor.is_conj() else copied
        return torch._neg_view(copied) if tensor.is_neg() else copied

    def _remember(self, storage: torch.UntypedStorage, copied: torch.UntypedStorage) -> None:
        self._storages[storage._cdata] = copied
        if address := storage.data_ptr():  # none on the device "meta"
            self._addresses[address] = copied

    def array(self, array: Array) -> Array:
        """An array of numbers in memory of its own. One that cannot be written to is shared, and so is a large one."""
        owner = array
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        if not owner.flags.writeable or owner.nbytes > _LARGEST_COPY:
            return array
        if not owner.flags.forc or not owner.nbytes:
            whole: Array = array.copy(order="K")
            return whole
        start, memory = self._memory_of(owner)
        offset = array.__array_interface__["data"][0] - start
        copied: Array = np.ndarray(array.shape, array.dtype, _bytes(memory), offset, array.strides)
        copied.flags.writeable = array.flags.writeable
        return copied

    def _memory_of(self, owner: Array) -> tuple[int, torch.UntypedStorage]:
        """Where the memory of an array begins, and the copy of it."""
        if isinstance(owner.base, Tensor):
            return owner.base.untyped_storage().data_ptr(), self._strided(owner.base, False).untyped_storage()
        address = owner.__array_interface__["data"][0]
        if address not in self._addresses:
            memory = self._addresses[address] = torch.UntypedStorage(owner.nbytes)  # type: ignore[no-untyped-call]
            _bytes(memory)[:] = (owner if owner.flags.c_contiguous else owner.T).reshape(-1).view(np.uint8)
        return address, self._addresses[address]


def _lazy_like(tensor: Any, flag: bool) -> Tensor:
    """A tensor of a lazy module, which has no shape yet."""
    made: Tensor = type(tensor)(flag, device=tensor.device, dtype=tensor.dtype)
    return made


def _has_plain_memory(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_quantized and not tensor.is_nested


def _is_whole(tensor: Tensor, size: int) -> bool:
    """Whether a tensor is all that there is in its memory, in order, and stands for the values that are there."""
    return (
        tensor.numel() * tensor.element_size() == size
        and tensor.is_contiguous()
        and not tensor.is_conj()
        and not tensor.is_neg()
    )


def _bytes(storage: torch.UntypedStorage) -> Array:
    return torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
