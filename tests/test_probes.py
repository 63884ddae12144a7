from __future__ import annotations

import copy
import gc
import hashlib
import os
import pickle
import random
import socket
import weakref
from collections import Counter, defaultdict, namedtuple
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentError, ArgumentParser
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    Sampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    get_worker_info,
    random_split,
)
from torchvision import transforms as v1
from torchvision.datasets import FakeData, VisionDataset
from torchvision.transforms import v2

from gradcam_callback.probes import (
    CaptureContext,
    ImageProbes,
    ProbeSet,
    ProbeSource,
    TensorProbes,
    ValidationProbes,
    as_source,
    fingerprint,
)
from gradcam_callback.probes.selection import random_key

CLASSES = 3


def pixels(index: int) -> Tensor:
    """An image whose pixels tell its index."""
    return torch.full((3, 4, 5), float(index))


def found(probes: ProbeSet) -> list[int]:
    """Which samples the images are, read from their pixels."""
    return [int(image.flatten()[0]) for image in probes.images]


def labels_of(probes: ProbeSet) -> list[int] | None:
    return None if probes.labels is None else probes.labels.tolist()


class Numbered(Dataset[Any]):
    """Sample `i` is an image full of `i`, of class `i % 3`."""

    def __init__(self, length: int = 20, start: int = 0) -> None:
        self.length, self.start, self.loaded = length, start, 0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < self.length:
            raise IndexError(index)
        self.loaded += 1
        return pixels(index + self.start), (index + self.start) % CLASSES


class Shaped(Numbered):
    """The same, each sample made by a function of image and label."""

    def __init__(self, shape: Any, length: int = 20) -> None:
        super().__init__(length)
        self.shape = shape

    def __getitem__(self, index: int) -> Any:
        return self.shape(*super().__getitem__(index))


class Stream(IterableDataset[Any]):
    """Goes on where it stopped, as a data set that reads from a socket would."""

    def __init__(self, length: int = 20) -> None:
        self.length, self.position = length, 0

    def __iter__(self) -> Iterator[Any]:
        while self.position < self.length:
            self.position += 1
            yield pixels(self.position - 1), (self.position - 1) % CLASSES


def collect(batches: Any, source: ProbeSource | None = None, context: CaptureContext | None = None) -> ProbeSet:
    """What one process makes of these batches, all of the first loader."""
    collector = (source or ValidationProbes(n=4)).start(context or CaptureContext())
    for batch in batches:
        collector.add(batch, 0)
    return collector.finish(collector.samples())


def take(dataset: Any, source: ProbeSource | None = None, **settings: Any) -> ProbeSet:
    """Collect from a loader of this data set, as a validation reads it."""
    loader = DataLoader(dataset, **{"batch_size": 6, **settings})
    return collect(loader, source, CaptureContext(datasets=[dataset]))


def take_in_processes(
    count: int, dataset: Any, source: ProbeSource, positions: Any = None, batch_size: int = 2
) -> list[ProbeSet]:
    """What each of so many processes makes of a data set that is dealt out to them."""
    contexts = [CaptureContext([dataset], positions, rank, count) for rank in range(count)]
    collectors = [source.start(context) for context in contexts]
    for rank, collector in enumerate(collectors):
        is_stream = isinstance(dataset, IterableDataset)
        sampler = None if is_stream else DistributedSampler(dataset, count, rank, shuffle=False)
        for batch in DataLoader(copy.deepcopy(dataset), batch_size, sampler=sampler):
            collector.add(batch, 0)
    sent = pickle.loads(pickle.dumps([collector.samples() for collector in collectors]))
    return [collector.finish([sample for part in sent for sample in part]) for collector in collectors]


class TestChoice:
    def test_first_samples(self) -> None:
        probes = take(Numbered(), ValidationProbes())

        assert found(probes) == list(range(8))
        assert probes.indices == tuple(range(8))
        assert probes.names == tuple(f"#{i}" for i in range(8))
        assert labels_of(probes) == [0, 1, 2, 0, 1, 2, 0, 1]
        assert probes.notices == probes.missing == ()

    def test_positions_in_the_order_given(self) -> None:
        probes = take(Numbered(), ValidationProbes(indices=[12, 3]))

        assert found(probes) == [12, 3]
        assert probes.names == ("#12", "#3")
        assert probes.indices == (12, 3)

    def test_positions_count_what_passes(self) -> None:
        probes = take(Numbered(), ValidationProbes(indices=[2, 0]), sampler=[15, 11, 17])

        assert found(probes) == [17, 15]
        assert probes.indices == (2, 0)

    def test_position_that_never_passes(self) -> None:
        probes = take(Numbered(), ValidationProbes(indices=[31, 3, 20]))

        assert found(probes) == [3]
        assert probes.missing == (31, 20)

    def test_no_position_passes(self) -> None:
        probes = take(Numbered(), ValidationProbes(indices=[31, 20]))

        assert len(probes) == 0
        assert probes.missing == (31, 20)

    def test_seed_fixes_a_random_choice(self) -> None:
        first, again, other = (take(Numbered(500), ValidationProbes(n=6, seed=seed)) for seed in (1, 1, 2))

        assert first.indices == again.indices
        assert first.indices != other.indices
        assert found(first) == list(first.indices or ()) == sorted(set(first.indices or ()))
        assert len(first) == 6

    def test_random_choice_is_even(self) -> None:
        """Of 30 positions with 3 chosen, each is chosen in about 200 of 2000 seeds (standard deviation 13)."""
        chosen = Counter[int]()
        for seed in range(2000):
            chosen.update(sorted(range(30), key=lambda position, seed=seed: random_key(seed, position))[:3])

        assert set(chosen) == set(range(30))
        assert max(abs(times - 200) for times in chosen.values()) < 65

    def test_positions_of_an_earlier_run_are_taken_again(self) -> None:
        dataset = Numbered(50)
        for source in (ValidationProbes(n=5, seed=3), ValidationProbes(per_class=2), ValidationProbes(indices=[9, 4])):
            first = take(dataset, source)
            again = collect(DataLoader(dataset, 4), ValidationProbes(n=2), CaptureContext([dataset], first.indices))

            assert again.indices == first.indices
            assert again.fingerprint == first.fingerprint

    def test_positions_of_an_earlier_run_take_the_place_of_those_given(self) -> None:
        context = CaptureContext(positions=(4, 1))
        assert found(collect(DataLoader(Numbered()), ValidationProbes(indices=[2, 3]), context)) == [4, 1]

    def test_an_earlier_run_without_samples_has_chosen_nothing(self) -> None:
        dataset = Numbered()
        assert found(collect(DataLoader(dataset), ValidationProbes(n=2), CaptureContext([dataset], ()))) == [0, 1]

    def test_only_one_loader_counts(self) -> None:
        collector = ValidationProbes(n=3, dataloader_idx=1).start(CaptureContext([Numbered(), Numbered(start=100)]))
        for loader_idx, dataset in ((0, Numbered()), (1, Numbered(start=100)), (0, Numbered())):
            for batch in DataLoader(dataset, batch_size=2):
                collector.add(batch, loader_idx)

        assert found(collector.finish(collector.samples())) == [100, 101, 102]

    def test_loader_that_does_not_exist(self) -> None:
        with pytest.raises(ValueError, match=r"dataloader_idx=2.*there are 1"):
            ValidationProbes(dataloader_idx=2).start(CaptureContext([Numbered()]))

    def test_fewer_samples_than_asked(self) -> None:
        for source in (ValidationProbes(n=9), ValidationProbes(n=9, seed=1)):
            probes = take(Numbered(5), source)

            assert found(probes) == [0, 1, 2, 3, 4]
            assert probes.notices == ("9 probes were asked for and only 5 such samples passed; all are taken.",)

    @pytest.mark.parametrize("options", [{}, {"per_class": 1}, {"seed": 1}, {"n": 3, "per_class": 1, "seed": 1}])
    def test_empty_validation_is_no_error(self, options: dict[str, Any]) -> None:
        probes = take(Numbered(0), ValidationProbes(**options), sampler=[])

        assert len(probes) == 0
        assert probes.labels is None
        assert probes.notices == probes.missing == ()

    def test_images_that_differ_in_size(self) -> None:
        batches = [torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 5, 5), torch.zeros(1, 3, 6, 6)]

        with pytest.raises(ValueError, match=r"#0 is \(3, 4, 4\) of torch.float32, #1 is \(3, 5, 5\).*resize"):
            collect(batches, ValidationProbes(n=2))
        assert collect(batches, ValidationProbes(indices=[2])).images.shape == (1, 3, 6, 6)


class TestPerClass:
    def test_ordered_by_class(self) -> None:
        assert found(take(Numbered(), ValidationProbes(per_class=2))) == [0, 3, 1, 4, 2, 5]

    def test_n_is_the_most(self) -> None:
        probes = take(Numbered(), ValidationProbes(n=5, per_class=2))

        assert found(probes) == [0, 3, 1, 4, 2]
        assert probes.notices == ()

    def test_a_class_that_comes_late(self) -> None:
        labels = [2] * 8 + [1] * 8 + [0]
        dataset = TensorDataset(torch.stack([pixels(index) for index in range(17)]), torch.tensor(labels))

        assert found(take(dataset, ValidationProbes(n=4, per_class=2))) == [16, 8, 9, 0]

    def test_seed(self) -> None:
        first, again = (take(Numbered(300), ValidationProbes(per_class=2, seed=7)) for _ in range(2))

        assert first.indices == again.indices
        assert found(first) != [0, 3, 1, 4, 2, 5]
        assert labels_of(first) == [0, 0, 1, 1, 2, 2]

    def test_class_with_too_few_samples(self) -> None:
        dataset = Numbered(4)
        dataset.classes = ["ant", "bee", "cat", "dog"]
        probes = take(dataset, ValidationProbes(per_class=2))

        assert found(probes) == [0, 3, 1, 2]
        assert probes.notices == ("8 probes were asked for and only 4 such samples passed; all are taken.",)

    def test_one_hot(self) -> None:
        dataset = Shaped(lambda image, label: (image, torch.eye(CLASSES)[label]))

        assert found(take(dataset, ValidationProbes(per_class=1))) == [0, 1, 2]

    @pytest.mark.parametrize("shape", [lambda x, y: (x, y + 0.5), lambda x, y: (x, "ant"), lambda x, y: x])
    def test_labels_that_are_no_classes(self, shape: Any) -> None:
        with pytest.raises(ValueError, match=r"per_class: .*no class indices.*label_key"):
            take(Shaped(shape), ValidationProbes(per_class=1))


SOURCES = [
    ValidationProbes(n=7),
    ValidationProbes(n=7, seed=4),
    ValidationProbes(indices=[14, 3, 22, 4]),
    ValidationProbes(per_class=2),
    ValidationProbes(per_class=3, seed=4),
    ValidationProbes(n=4, per_class=3, seed=4),
]


class TestProcesses:
    @pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.describe())
    @pytest.mark.parametrize("count", [2, 3, 4])
    def test_same_choice_for_any_number_of_them(self, source: ProbeSource, count: int) -> None:
        """19 samples and up to 4 processes, so that the last ones are dealt out twice."""
        alone = take(Numbered(19), source)
        for probes in take_in_processes(count, Numbered(19), source):
            assert found(probes) == found(alone) == list(probes.indices or ())
            assert probes.fingerprint == alone.fingerprint
            assert (probes.names, probes.missing) == (alone.names, alone.missing)
            assert probes.notices == alone.notices

    def test_repeats_are_not_taken_twice(self) -> None:
        for probes in take_in_processes(4, Numbered(5), ValidationProbes(n=8)):
            assert found(probes) == [0, 1, 2, 3, 4]

    def test_oversampling_is_no_repeat(self) -> None:
        assert found(take(Numbered(3), ValidationProbes(n=5), sampler=[0, 1, 2, 0, 1])) == [0, 1, 2, 0, 1]

    def test_positions_of_an_earlier_run_with_another_number_of_processes(self) -> None:
        first = take_in_processes(3, Numbered(19), ValidationProbes(n=5, seed=2))[0]
        again = take_in_processes(2, Numbered(19), ValidationProbes(), positions=first.indices)[1]

        assert again.fingerprint == first.fingerprint

    def test_streams_are_not_dealt_out(self) -> None:
        """Each process reads them all; the first process's samples are taken, each once."""
        for probes in take_in_processes(2, Stream(20), ValidationProbes(n=5)):
            assert found(probes) == [0, 1, 2, 3, 4]

    def test_process_without_a_sample(self) -> None:
        one, other = (ValidationProbes(n=3).start(CaptureContext(rank=rank, world_size=2)) for rank in (0, 1))
        one.add((torch.zeros(2, 3, 4, 5), torch.zeros(2)), 0)

        assert other.samples() == []
        assert other.finish([*one.samples(), *other.samples()]).indices == (0, 2)

    def test_what_fails_in_one_is_said_when_samples_are_asked_for(self) -> None:
        collector = ValidationProbes(n=3).start(CaptureContext())
        collector.add({"photo": torch.zeros(2, 3, 4, 5)}, 0)

        assert collector.is_complete
        for _ in range(2):
            with pytest.raises(ValueError, match=r"image_key='image'.*'photo'"):
                collector.samples()


class Strict(Dataset[Any]):
    """May be asked for its length and for plain attributes, and is read by its loader alone."""

    classes = ("ant", "bee", "cat")

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __len__(self) -> int:
        self.asked.append("length")
        return 20

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("a sample was read")

    @property
    def dataset(self) -> Any:
        raise AssertionError("a file was opened")

    data = datasets = transform = transforms = dataset


class TestCollecting:
    """What passes by is left as it is, and no more of it is kept than needed."""

    @pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.describe())
    def test_no_generator_moves_and_no_data_set_is_read(self, source: ProbeSource) -> None:
        torch.manual_seed(3), random.seed(3), np.random.seed(3)
        before = torch.get_rng_state().tolist(), random.getstate(), np.random.get_state(legacy=False)["state"]["pos"]
        collector = source.start(CaptureContext([Strict()]))
        for start in range(0, 30, 6):
            collector.add((torch.stack([pixels(start + i) for i in range(6)]), torch.arange(6) % CLASSES), 0)
        probes = collector.finish(collector.samples())
        after = torch.get_rng_state().tolist(), random.getstate(), np.random.get_state(legacy=False)["state"]["pos"]

        assert probes.class_names == ("ant", "bee", "cat")
        assert before == after

    @pytest.mark.parametrize(
        ("source", "batches"),
        [
            (ValidationProbes(n=6), 1),
            (ValidationProbes(n=7), 2),
            (ValidationProbes(indices=[9, 3]), 2),
            (ValidationProbes(indices=[3, 40]), 5),
            (ValidationProbes(per_class=4), 2),
            (ValidationProbes(n=4, per_class=4), 2),
            (ValidationProbes(n=4, seed=1), None),
            (ValidationProbes(per_class=4, seed=1), None),
        ],
    )
    def test_is_complete_as_soon_as_nothing_more_can_be_wanted(self, source: ProbeSource, batches: int | None) -> None:
        dataset = Numbered(30)
        dataset.classes = ["ant", "bee", "cat"]
        collector = source.start(CaptureContext([dataset]))
        done = []
        for batch in DataLoader(dataset, batch_size=6):
            done.append(collector.is_complete)
            collector.add(batch, 0)
        wanted = 5 if batches is None or 40 in (getattr(source, "indices", None) or ()) else batches

        assert done == [place >= wanted for place in range(5)]
        assert collector.is_complete == (batches is not None and wanted < 5)

    @pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.describe())
    def test_no_sample_too_many_is_kept(self, source: ProbeSource) -> None:
        dataset = Numbered(60)
        dataset.classes = ["ant", "bee", "cat"]
        most = {"n": source.n, "per_class": 3 * (source.per_class or 0), "indices": len(source.indices or ())}
        most_kept = min(number for number in most.values() if number)
        collector = source.start(CaptureContext([dataset]))
        for batch in DataLoader(dataset, batch_size=6):
            collector.add(batch, 0)
            assert len(collector.samples()) <= most_kept
        assert len(collector.samples()) == most_kept

    def test_batches_are_not_kept_alive(self) -> None:
        class Batch(dict[str, Any]):
            @property
            def images(self) -> Any:
                try:
                    return self["photo"].missing
                except AttributeError as error:
                    raise ValueError("no such image") from error

            def __contains__(self, key: object) -> bool:
                return super().__contains__(key) or ("photo" in self.keys() and self.images)

        def give(collector: Any, **entries: Any) -> list[weakref.ref[Any]]:
            batch = Batch(entries)
            collector.add(batch, 0)
            return [weakref.ref(batch), *map(weakref.ref, entries.values())]

        gc.disable()
        try:
            collector = ValidationProbes(n=3).start(CaptureContext())
            gone = give(collector, image=torch.zeros(6, 3, 4, 5), label=torch.zeros(6))
            gone += give(ValidationProbes(n=3).start(CaptureContext()), image=torch.zeros(6), label=torch.zeros(6))
            gone += give(ValidationProbes(n=3).start(CaptureContext()), photo=torch.zeros(6, 3, 4, 5))
            assert [reference() for reference in gone] == [None] * 8
        finally:
            gc.enable()
        assert len(collector.samples()) == 3

    def test_copies_have_memory_of_their_own(self) -> None:
        images = torch.zeros(9, 3, 4, 5, requires_grad=True).to(memory_format=torch.channels_last)
        labels = torch.zeros(9)
        collector = ValidationProbes(n=4).start(CaptureContext())
        collector.add((images, labels), 0)
        with torch.no_grad():
            images.fill_(7), labels.fill_(1)
        for sample in collector.samples():
            assert not sample.image.any()
            assert sample.image.is_contiguous()
            assert sample.image.untyped_storage().nbytes() == 3 * 4 * 5 * 4
            assert sample.label is not None
            assert not sample.label.any()
            assert not sample.image.requires_grad
        probes = collector.finish(collector.samples())
        assert (probes.images.is_contiguous(), probes.images.requires_grad) == (True, False)

    @pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
    def test_images_are_free_of_the_context(self, context: Any) -> None:
        with context():
            collector = ValidationProbes(n=4).start(CaptureContext())
            collector.add((torch.rand(9, 3, 4, 5), torch.zeros(9)), 0)
            samples = collector.samples()
            probes = collector.finish(samples)
            own = TensorProbes(torch.zeros(1, 3, 4, 4)).start(CaptureContext()).finish([])

        for tensor in (probes.images, probes.labels, own.images, *(sample.image for sample in samples)):
            assert tensor is not None
            assert not tensor.is_inference()
        probes.images.requires_grad_(), own.images.requires_grad_()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.int64])
    def test_dtype_is_kept_and_subclasses_are_not(self, dtype: torch.dtype) -> None:
        class Own(Tensor):
            pass

        images = torch.ones(4, 3, 4, 5, dtype=dtype).as_subclass(Own)
        collector = ValidationProbes(n=4).start(CaptureContext())
        collector.add([images, images[:, 0, 0]], 0)

        for sample in collector.samples():
            assert type(sample.image) is Tensor
            assert sample.image.dtype == dtype
        assert collector.finish(collector.samples()).images.dtype == dtype
        if dtype.is_floating_point:
            assert type(TensorProbes(images).start(CaptureContext()).finish([]).images) is Tensor

    @pytest.mark.gpu
    def test_on_the_device(self) -> None:
        batches = [tuple(part.cuda() for part in batch) for batch in DataLoader(Numbered(), batch_size=6)]
        for source in SOURCES:
            probes, expected = collect(batches, source), take(Numbered(), source)

            assert probes.images.device.type == "cpu"
            assert probes.fingerprint == expected.fingerprint


class TestLoaders:
    """Batches of real loaders, of every kind that Lightning takes."""

    def test_stream(self) -> None:
        probes = take(Stream(), ValidationProbes(n=8), batch_size=3)

        assert found(probes) == list(range(8))
        assert labels_of(probes) == [0, 1, 2, 0, 1, 2, 0, 1]
        assert take(Stream(5), ValidationProbes(n=8), batch_size=3, drop_last=True).indices == (0, 1, 2)
        assert found(take(Stream(), ValidationProbes(indices=[11, 2]))) == [11, 2]
        assert found(take(Stream(), ValidationProbes(per_class=2))) == [0, 3, 1, 4, 2, 5]

    def test_workers_that_prepare_their_data_set(self) -> None:
        class Opened(Numbered):
            offset = None

            def __getitem__(self, index: int) -> Any:
                image, label = super().__getitem__(index)
                return image + self.offset, label

        def open_it(worker: int) -> None:
            get_worker_info().dataset.offset = 100

        probes = take(Opened(), ValidationProbes(n=3), num_workers=1, worker_init_fn=open_it)

        assert found(probes) == [100, 101, 102]

    def test_keys_that_are_no_numbers(self) -> None:
        class Keyed(Numbered):
            def __getitem__(self, key: Any) -> Any:
                return super().__getitem__(int(key.removeprefix("k")))

        class Keys(Sampler[str]):
            def __iter__(self) -> Iterator[str]:
                return iter(f"k{index}" for index in range(20))

        assert found(take(Keyed(), ValidationProbes(indices=[7, 5]), sampler=Keys())) == [7, 5]

    def test_ready_batches(self) -> None:
        class Table(Dataset[Any]):
            def __getitem__(self, indices: list[int]) -> Any:
                return torch.stack([pixels(index) for index in indices]), torch.tensor(indices) % CLASSES

        sampler = BatchSampler(SequentialSampler(range(10)), 4, drop_last=False)

        assert found(take(Table(), ValidationProbes(n=5), batch_size=None, sampler=sampler)) == [0, 1, 2, 3, 4]

    def test_batch_sampler_and_collate_fn(self) -> None:
        def collate(samples: list[Any]) -> Any:
            assert len(samples) == 3
            return torch.stack([image + 100 for image, _ in samples]), torch.tensor([label for _, label in samples])

        dataset = Numbered(12)
        loader = DataLoader(
            dataset, batch_sampler=BatchSampler(SequentialSampler(dataset), 3, True), collate_fn=collate
        )

        assert found(collect(loader, ValidationProbes(n=4))) == [100, 101, 102, 103]

    def test_any_iterable_of_batches(self) -> None:
        generator = ((torch.stack([pixels(2 * i), pixels(2 * i + 1)]), torch.tensor([0, 1])) for i in range(3))

        assert found(collect(generator, ValidationProbes(n=3))) == [0, 1, 2]


class TestPreview:
    def batch(self, dataset: Any) -> Any:
        return next(iter(DataLoader(dataset, batch_size=6)))

    def test_first_images_of_a_batch(self) -> None:
        """No more than are asked for, and than there will be probes."""
        sources = {ValidationProbes(): 4, ValidationProbes(indices=[50]): 1, ValidationProbes(n=3, seed=1): 3}
        for source, count in sources.items():
            for loader_idx in (0, None):
                probes = source.start(CaptureContext([Numbered()])).preview(self.batch(Numbered()), loader_idx, 4)
                assert probes is not None
                assert found(probes) == [0, 1, 2, 3][:count]
                assert labels_of(probes) == [0, 1, 2, 0][:count]
                assert (probes.indices, probes.notices, probes.missing) == (None, (), ())

    def test_each_process_takes_its_own_batch(self) -> None:
        collector = ValidationProbes().start(CaptureContext([Numbered(4)], rank=1, world_size=2))
        probes = collector.preview(self.batch(Numbered(start=40)), 0, 4)

        assert probes is not None
        assert found(probes) == [40, 41, 42, 43]
        assert probes.names == ("#0", "#1", "#2", "#3")

    def test_leaves_the_collector_as_it_is(self) -> None:
        collector = ValidationProbes(n=3).start(CaptureContext([Numbered()]))
        collector.preview(self.batch(Numbered(start=40)), 0, 4)
        collector.preview({"other": 1}, None, 4)
        assert not collector.is_complete
        collector.add(self.batch(Numbered()), 0)

        assert found(collector.finish(collector.samples())) == [0, 1, 2]

    def test_other_loader(self) -> None:
        collector = ValidationProbes(dataloader_idx=1).start(CaptureContext())

        assert collector.preview(self.batch(Numbered()), 0, 4) is None
        assert collector.preview(self.batch(Numbered()), None, 4) is not None

    def test_training_batch_may_be_of_another_form(self) -> None:
        collector = ValidationProbes(per_class=1).start(CaptureContext())
        two_views = [[torch.zeros(6, 3, 4, 5)] * 2, torch.zeros(6)]

        assert collector.preview(two_views, None, 4) is None
        assert collector.preview((torch.zeros(6, 3, 4, 5), torch.rand(6)), None, 4) is not None
        with pytest.raises(ValueError, match="have to be images"):
            collector.preview(two_views, 0, 4)
        with pytest.raises(ValueError, match="per_class"):
            collector.preview((torch.zeros(6, 3, 4, 5), torch.rand(6)), 0, 4)

    def test_own_images_are_all_there_is(self) -> None:
        collector = TensorProbes(torch.zeros(2, 3, 4, 5)).start(CaptureContext())
        probes = collector.preview(self.batch(Numbered()), None, 1)

        assert collector.is_complete
        assert collector.samples() == []
        assert probes is collector.finish([])


class TestBatches:
    pair = namedtuple("pair", "image label")
    twisted = namedtuple("twisted", "truth photo")

    @pytest.mark.parametrize(
        ("shape", "keys"),
        [
            (lambda x, y: (x, y), {}),
            (lambda x, y: [x, y], {}),
            (lambda x, y: (x, y, {"path": "a.png"}), {}),
            (lambda x, y: {"image": x, "label": y}, {}),
            (lambda x, y: {"photo": x, "truth": y}, {"image_key": "photo", "label_key": "truth"}),
            (lambda x, y: {0: x, 1: y}, {"image_key": 0, "label_key": 1}),
            (lambda x, y: (y, x), {"image_key": 1, "label_key": 0}),
            (lambda x, y: (y, x), {"image_key": 1}),
            (lambda x, y: (x, 0.5, y), {"label_key": -1}),
            (lambda x, y: (x, y, 100 * y), {"label_key": 1}),
            (lambda x, y: {"pixel_values": x, "labels": y}, {}),
            (lambda x, y: {"index": y, "A": {"image": x, "label": y}}, {"image_key": "A.image"}),
            (lambda x, y: {"x.y": x, "A": [0, {"z": y}]}, {"image_key": "x.y", "label_key": "A.1.z"}),
            (pair, {}),
            (lambda x, y: TestBatches.twisted(y, x), {"image_key": "photo", "label_key": "truth"}),
        ],
    )
    def test_kinds(self, shape: Any, keys: dict[str, Any]) -> None:
        probes = take(Shaped(shape), ValidationProbes(n=4, **keys))

        assert found(probes) == [0, 1, 2, 3]
        assert labels_of(probes) == [0, 1, 2, 0]
        assert probes.notices == ()

    @pytest.mark.parametrize(
        ("entries", "labels", "is_said"),
        [
            (lambda x, y, i: (x, i, y), [0, 1, 2, 0], True),  # the second one counts the samples
            (lambda x, y, i: (x, 50 + 2 * i, y), [0, 1, 2, 0], True),
            (lambda x, y, i: (x, 0.5, y), [0, 1, 2, 0], True),  # it is no class
            (lambda x, y, i: (x, y, y // 2), [0, 1, 2, 0], True),  # both may be
            (lambda x, y, i: (x, 0, y), [0, 0, 0, 0], True),
            (lambda x, y, i: (x, i, 50 + i), [0, 1, 2, 3], True),  # neither is likely: by custom the second one
            (lambda x, y, i: (x, y, i), [0, 1, 2, 0], False),
            (lambda x, y, i: (x, y, 0.5), [0, 1, 2, 0], False),
            (lambda x, y, i: (x, y, "a.png", {"width": 5}), [0, 1, 2, 0], False),
            (lambda x, y, i: {"image": x, "label": y, "target": y // 2}, [0, 1, 2, 0], True),
        ],
    )
    def test_several_entries_that_may_be_labels(self, entries: Any, labels: list[int], is_said: bool) -> None:
        class Several(Numbered):
            def __getitem__(self, index: int) -> Any:
                return entries(*super().__getitem__(index), index)

        probes = take(Several())

        assert labels_of(probes) == labels
        assert ["label_key" in notice for notice in probes.notices] == [True] * is_said

    def test_two_samples_are_enough_to_know_a_count(self) -> None:
        batch = (torch.zeros(2, 3, 4, 5), torch.tensor([0, 1]), torch.tensor([2, 1]))

        assert labels_of(collect([batch], ValidationProbes(n=2))) == [2, 1]

    def test_labels_of_some_are_no_labels(self) -> None:
        images = torch.zeros(2, 3, 4, 5)
        batches = [(images, torch.tensor([0, 1])), (images, torch.zeros(2, 4, 5)), (images, torch.zeros(2, 4, 5))]
        probes = collect(batches, ValidationProbes(n=6))

        assert probes.labels is None
        assert ["no class indices" in notice for notice in probes.notices] == [True]

    def test_labels_stay_in_the_entry_of_the_first_batch(self) -> None:
        first = (torch.zeros(3, 3, 4, 5), torch.tensor([0, 1, 2]), torch.tensor([2, 2, 1]))
        second = (torch.zeros(3, 3, 4, 5), torch.tensor([5, 3, 4]), torch.tensor([0, 0, 1]))

        assert labels_of(collect([first, second], ValidationProbes(n=6))) == [2, 2, 1, 0, 0, 1]

    def test_batch_that_makes_entries_when_asked(self) -> None:
        batch: defaultdict[str, Any] = defaultdict(list, photo=torch.zeros(4, 3, 4, 5))
        collect([batch], ValidationProbes(n=2, image_key="photo"))

        assert list(batch) == ["photo"]

    @pytest.mark.parametrize("slots", [False, True])
    def test_dataclass(self, slots: bool) -> None:
        @dataclass(slots=slots)
        class Batch:
            photo: Tensor
            label: Tensor

        def collate(samples: list[Any]) -> Batch:
            return Batch(torch.stack([x for x, _ in samples]), torch.tensor([y for _, y in samples]))

        probes = take(Numbered(), ValidationProbes(n=3, image_key="photo"), collate_fn=collate)
        attributes = "none" if slots else "'photo', 'label'"

        assert found(probes) == [0, 1, 2]
        assert probes.labels is not None
        with pytest.raises(ValueError, match="image_key='image'.*Batch, with the attributes " + attributes):
            take(Numbered(), ValidationProbes(n=3), collate_fn=collate)

    @pytest.mark.parametrize("shape", [lambda x, y: x, lambda x, y: (x,), lambda x, y: {"image": x}])
    def test_images_alone(self, shape: Any) -> None:
        probes = take(Shaped(shape))

        assert found(probes) == [0, 1, 2, 3]
        assert probes.labels is None

    def test_labels_under_another_key_are_pointed_at(self) -> None:
        probes = take(Shaped(lambda x, y: {"image": x, "truth": y}))

        assert probes.labels is None
        assert "'image', 'truth'" in probes.notices[0]
        assert "label_key" in probes.notices[0]

    @pytest.mark.parametrize(
        ("shape", "keys", "message"),
        [
            (lambda x, y: {"photo": x, "label": y}, {}, r"image_key='image'.*'photo', 'label'"),
            (lambda x, y: {"image": x, "label": y}, {"label_key": "truth"}, r"label_key='truth'.*'image', 'label'"),
            (lambda x, y: (x, y), {"image_key": 2}, r"image_key=2.*list with 2 entries"),
            (lambda x, y: (x, y), {"image_key": "photo"}, r"image_key='photo'.*by position"),
        ],
    )
    def test_missing_key(self, shape: Any, keys: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            take(Shaped(shape), ValidationProbes(n=2, **keys))

    def test_images_without_a_channel_axis(self) -> None:
        """The model gets them as they are; for a panel there is a channel."""
        probes = take(Shaped(lambda x, y: (x[0], y)))

        assert probes.images.shape == (4, 4, 5)
        assert probes.displayed.shape == (4, 1, 4, 5)
        assert torch.equal(probes.displayed[:, 0], probes.images)
        assert take(Numbered()).displayed.shape == (4, 3, 4, 5)

    @pytest.mark.parametrize(
        ("shape", "message"),
        [
            (lambda x, y: (x.flatten(), y), r"tensor \(6, 60\) of torch.float32"),
            (lambda x, y: (x[None, None], y), r"tensor \(6, 1, 1, 3, 4, 5\)"),
            (lambda x, y: ("a.png", y), "a tuple of 6, the first of them 'a.png'"),
            (lambda x, y: ((x, x), y), "list of 2, the first of them a tensor"),
        ],
    )
    def test_no_images(self, shape: Any, message: str) -> None:
        with pytest.raises(ValueError, match=f"have to be images.*{message}"):
            take(Shaped(shape))

    @pytest.mark.parametrize(
        "change",
        [
            lambda y: y,
            lambda y: np.int64(y),
            lambda y: torch.tensor(y, dtype=torch.uint8),
            lambda y: torch.tensor([y]),
            lambda y: torch.eye(CLASSES)[y],
            lambda y: torch.eye(CLASSES, dtype=torch.int64)[y],
            lambda y: torch.eye(CLASSES)[y].half() * 0.9 + 0.1 / 3,
        ],
    )
    def test_labels_that_are_classes(self, change: Any) -> None:
        labels = take(Shaped(lambda x, y: (x, change(y)))).labels

        assert labels is not None
        assert labels.dtype == torch.int64
        assert labels.tolist() == [0, 1, 2, 0]

    def test_labels_of_a_single_logit(self) -> None:
        labels = take(Shaped(lambda x, y: (x, torch.tensor([float(y > 0)])))).labels

        assert labels is not None
        assert labels.tolist() == [0, 1, 1, 0]

    @pytest.mark.parametrize(
        "change",
        [
            lambda y: torch.full((4, 5), 0.5),
            lambda y: -1,
            lambda y: "ant",
            lambda y: {"boxes": torch.zeros(2, 4)},
        ],
    )
    def test_labels_that_are_no_classes(self, change: Any) -> None:
        probes = take(Shaped(lambda x, y: (x, change(y))))

        assert probes.labels is None
        assert found(probes) == [0, 1, 2, 3]
        assert "no class indices" in probes.notices[0]
        assert (probes.values, probes.task) == (None, None)

    @pytest.mark.parametrize(
        ("change", "task"),
        [
            (lambda y: 0.5 + y, "regression"),
            (lambda y: torch.tensor([3.0, 4.0, 10.0, 12.0]), "regression"),
            (lambda y: torch.ones(CLASSES), "multilabel"),
            (lambda y: torch.ones(CLASSES, dtype=torch.int64), "multilabel"),
        ],
    )
    def test_labels_of_another_kind_are_kept_and_tell_the_task(self, change: Any, task: str) -> None:
        probes = take(Shaped(lambda x, y: (x, change(y))))

        assert probes.labels is None
        assert probes.values is not None
        numbered = Numbered(4)
        assert probes.values.tolist() == [torch.as_tensor(change(numbered[i][1])).tolist() for i in range(4)]
        assert probes.task == task
        assert probes.notices == ()


MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)


class Photos(VisionDataset):
    """PIL images, with torchvision's own handling of transforms."""

    classes: Sequence[Any] = ["ant", "bee"]

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Any:
        image: Any = Image.new("RGB", (5, 4), (index, 0, 0))
        return self.transforms(image, index % 2) if self.transforms else (image, index % 2)


class Wrapper(Dataset[Any]):
    """What people write to give a subset a transform of its own."""

    def __init__(self, data: Any, transform: Any = None) -> None:
        self.data, self.transform = data, transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        image, label = self.data[index]
        return (self.transform(image) if self.transform else image), label


def first_version(mean: Any = MEAN, std: Any = STD) -> Any:
    return v1.Compose([v1.ToTensor(), v1.Normalize(mean, std)])


def second_version(mean: Any = MEAN, std: Any = STD) -> Any:
    return v2.Compose([v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])


class TestDataSet:
    @pytest.mark.parametrize(
        "transform",
        [
            first_version(),
            second_version(),
            v1.Compose([v1.ToTensor(), v1.Compose([v1.Normalize(MEAN, STD)])]),
            v1.Compose([v1.ToTensor(), nn.Sequential(v2.Normalize(MEAN, STD))]),
            v1.Compose([v1.ToTensor(), v2.Normalize((0.9,) * 3, (0.9,) * 3), v2.Normalize(MEAN, STD)]),
            v1.Compose([v1.ToTensor(), v1.Normalize(torch.tensor(MEAN), np.array(STD))]),
        ],
    )
    def test_mean_and_std(self, transform: Any) -> None:
        probes = take(Photos(transform=transform))

        assert probes.mean == pytest.approx(MEAN)
        assert probes.std == pytest.approx(STD)

    @pytest.mark.parametrize(
        "dataset",
        [
            Photos(transforms=second_version()),
            Subset(Photos(transform=first_version()), [3, 1, 2, 4]),
            random_split(ConcatDataset([Photos(transform=second_version())] * 2), [5, 7])[0],
            Wrapper(Subset(Photos(), range(5)), first_version()),
            Wrapper(Wrapper(Photos(transform=first_version()))),
            Wrapper(Photos(transform=first_version((0.9,) * 3, (0.9,) * 3)), v1.Normalize(MEAN, STD)),
        ],
    )
    def test_mean_std_and_names_through_wrappers(self, dataset: Any) -> None:
        probes = take(dataset)

        assert probes.mean == MEAN
        assert probes.std == STD
        assert probes.class_names == ("ant", "bee")

    def test_real_torchvision_data_set(self) -> None:
        probes = take(FakeData(12, (3, 6, 6), 4, transform=second_version()), ValidationProbes(per_class=1))

        assert probes.mean == MEAN
        assert probes.class_names is None
        assert probes.labels is not None
        assert probes.labels.tolist() == sorted(set(probes.labels.tolist()))

    def test_one_number_stands_for_every_channel(self) -> None:
        assert take(Photos(transform=first_version((0.5,), (0.25,)))).mean == (0.5, 0.5, 0.5)

    @pytest.mark.parametrize("transform", [v1.ToTensor(), v1.Compose([v1.ToTensor(), v1.GaussianBlur(3)])])
    def test_no_normalisation(self, transform: Any) -> None:
        probes = take(Photos(transform=transform))

        assert probes.mean is None
        assert probes.std is None

    def test_numbers_of_a_noise_are_no_normalisation(self) -> None:
        class AddNoise:
            mean, std = 0.0, 1.0

            def __call__(self, image: Tensor) -> Tensor:
                return image + self.mean

        assert take(Photos(transform=v1.Compose([v1.ToTensor(), AddNoise()]))).mean is None

    def test_number_of_channels_that_does_not_fit(self) -> None:
        gray = Shaped(lambda x, y: (x[:1], y))
        gray.transform = v1.Normalize(MEAN, STD)

        assert take(gray).mean is None

    def test_synonyms_and_categories(self) -> None:
        dataset = Numbered()
        dataset.categories = [("tench", "Tinca tinca"), "goldfish"]

        assert take(Subset(dataset, range(9))).class_names == ("tench", "goldfish")

    def test_pixels_called_data_are_no_data_set(self) -> None:
        dataset = Numbered()
        dataset.data = torch.zeros(20, 4, 5)

        assert take(dataset).class_names is None

    def test_class_names_that_fail_are_none(self) -> None:
        class Broken(Numbered):
            @property
            def classes(self) -> Any:
                raise OSError("no such file")

        assert take(Broken()).class_names is None
        assert take(Wrapper(Broken())).class_names is None

    def test_transform_that_is_a_method(self, folder: Path) -> None:
        class Own(Numbered):
            def transform(self, image: Any) -> Tensor:
                return v2.functional.pil_to_tensor(image) + self.length

        assert found(ImageProbes(folder).start(CaptureContext([Own()])).finish([])) == [21, 22, 30]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images, 6 wide and 4 high, whose red tells their number; a text, a hidden file, a folder."""
    for number in (10, 2, 1):
        Image.new("RGB", (6, 4), (number, 0, 0)).save(tmp_path / f"cat {number}.PNG")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_text("no image")
    (tmp_path / "inner").mkdir()
    return tmp_path


class TestImageProbes:
    def test_folder_in_natural_order(self, folder: Path) -> None:
        probes = ImageProbes(str(folder), labels=[0, 1, 0]).start(CaptureContext()).finish([])

        assert probes.names == ("cat 1.PNG", "cat 2.PNG", "cat 10.PNG")
        assert probes.images.shape == (3, 3, 4, 6)
        assert torch.equal(probes.images[:, 0, 0, 0], torch.tensor([1, 2, 10]) / 255)
        assert probes.labels is not None
        assert probes.labels.tolist() == [0, 1, 0]
        assert probes.indices is None
        assert "no transform was given" in probes.notices[0]

    def test_list_keeps_its_order(self, folder: Path) -> None:
        probes = ImageProbes([folder / "cat 10.PNG", str(folder / "cat 2.PNG")]).start(CaptureContext()).finish([])

        assert probes.names == ("cat 10.PNG", "cat 2.PNG")

    def test_names_that_would_be_the_same(self, folder: Path) -> None:
        for name in ("a", "b"):
            (folder / name).mkdir()
            Image.new("RGB", (6, 4)).save(folder / name / "x.png")
        probes = ImageProbes([folder / "a/x.png", folder / "b/x.png"]).start(CaptureContext()).finish([])

        assert probes.names == ("a/x.png", "b/x.png")

    def test_upright_and_rgb(self, tmp_path: Path) -> None:
        image = Image.new("L", (6, 4), 0)
        image.putpixel((0, 0), 255)
        exif = Image.Exif()
        exif[0x0112] = 6  # lies on its side: to be turned by 90 degrees clockwise
        image.save(tmp_path / "a.png", exif=exif)

        image = ImageProbes(tmp_path / "a.png").start(CaptureContext()).finish([]).images[0]

        assert image.shape == (3, 6, 4)
        assert image[:, 0, 3].tolist() == [1, 1, 1], "the upper left corner has moved to the upper right"
        assert image.sum() == 3

    def test_own_transform(self, folder: Path) -> None:
        probes = ImageProbes(folder, transform=second_version()).start(CaptureContext()).finish([])

        expected = (torch.tensor([1.0, 2.0, 10.0]) / 255 - MEAN[0]) / STD[0]
        torch.testing.assert_close(probes.images[:, 0, 0, 0], expected)
        assert (probes.mean, probes.std) == (MEAN, STD)
        assert probes.notices == ()

    def test_borrowed_transform(self, folder: Path) -> None:
        dataset = Wrapper(Photos(transform=v1.ToTensor()), v1.Normalize(MEAN, STD))
        probes = ImageProbes(folder).start(CaptureContext([dataset])).finish([])

        assert torch.equal(
            probes.images, ImageProbes(folder, first_version()).start(CaptureContext()).finish([]).images
        )
        assert (probes.mean, probes.std) == (MEAN, STD)
        assert probes.class_names == ("ant", "bee")
        assert probes.notices == ()

    @pytest.mark.parametrize("is_borrowed", [True, False])
    def test_random_transform_is_repeatable_and_moves_nothing(self, folder: Path, is_borrowed: bool) -> None:
        class Noise:
            def __init__(self) -> None:
                self.calls, self.own = 0, torch.Generator().manual_seed(1)

            def __call__(self, image: Any) -> Tensor:
                self.calls += 1
                noise = random.random() + np.random.rand() + torch.rand(3, 4, 6, generator=self.own)
                return v2.functional.pil_to_tensor(image) + noise + torch.rand(3, 4, 6)

        transform = Noise()
        dataset = Photos(transform=transform)
        source = ImageProbes(folder, transform=None if is_borrowed else transform)
        prints = set()
        for round_ in range(2):
            torch.manual_seed(round_), random.seed(round_), np.random.seed(round_)
            before = torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[2]
            prints.add(source.start(CaptureContext([dataset])).finish([]).fingerprint)
            assert (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[2]) == before

        assert len(prints) == 1
        assert transform.calls == 0
        assert torch.equal(transform.own.get_state(), torch.Generator().manual_seed(1).get_state())

    def test_generators_are_put_back_when_a_transform_raises(self, folder: Path) -> None:
        def fail(image: Any) -> Any:
            raise RuntimeError(str(random.random() + np.random.rand() + float(torch.rand(1))))

        before = torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[2]
        with pytest.raises(ValueError, match="failed on"):
            ImageProbes(folder, transform=fail).start(CaptureContext())
        assert (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[2]) == before

    def test_sizes_that_differ(self, folder: Path) -> None:
        Image.new("RGB", (7, 7)).save(folder / "dog.png")
        with pytest.raises(ValueError, match=r"cat 1.PNG is \(3, 4, 6\).*dog.png is \(3, 7, 7\).*resize"):
            ImageProbes(folder).start(CaptureContext()).finish([])

    def test_missing_file(self, folder: Path) -> None:
        with pytest.raises(ValueError, match=r"dog\.png is no file or folder"):
            ImageProbes([folder / "cat 1.PNG", folder / "dog.png"])

    def test_folder_without_images(self, folder: Path) -> None:
        with pytest.raises(ValueError, match=r"no file in .*inner matches.*\.png"):
            ImageProbes(folder / "inner")

    def test_no_image(self, folder: Path) -> None:
        with pytest.raises(ValueError, match=r"notes\.txt is no image"):
            ImageProbes(folder / "notes.txt")

    def test_truncated_image(self, folder: Path) -> None:
        whole = folder / "noise.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(whole)
        (folder / "half.png").write_bytes(whole.read_bytes()[:3000])
        with pytest.raises(ValueError, match=r"half\.png is no image that can be read"):
            ImageProbes(folder / "half.png").start(CaptureContext()).finish([])

    def test_what_is_no_regular_file_is_passed_over_in_a_folder(self, folder: Path, monkeypatch: Any) -> None:
        os.mkfifo(folder / "pipe.png")
        (folder / "inner.png").mkdir()
        (folder / "broken.png").symlink_to(folder / "nowhere.png")
        (folder / "to a pipe.png").symlink_to(folder / "pipe.png")
        (folder / "good.png").symlink_to(folder / "cat 1.PNG")
        monkeypatch.chdir(folder)  # the path of a socket may not be long
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("socket.png")
            probes = ImageProbes(folder).start(CaptureContext()).finish([])

        assert probes.names == ("cat 1.PNG", "cat 2.PNG", "cat 10.PNG", "good.png")

    def test_what_is_no_regular_file_is_refused_by_name(self, folder: Path) -> None:
        os.mkfifo(folder / "pipe.png")
        (folder / "broken.png").symlink_to(folder / "nowhere.png")
        with pytest.raises(ValueError, match=r"pipe\.png is no regular file"):
            ImageProbes(folder / "pipe.png")
        with pytest.raises(ValueError, match=r"/dev/zero is no regular file"):
            ImageProbes("/dev/zero")
        with pytest.raises(ValueError, match=r"broken\.png is a link to nothing"):
            ImageProbes(folder / "broken.png")
        with pytest.raises(ValueError, match=r"cannot be read \(OSError.*too long"):
            ImageProbes(folder / ("x" * 300))

    def test_too_many(self, folder: Path) -> None:
        for number in range(254):
            (folder / f"{number}.png").hardlink_to(folder / "cat 1.PNG")
        with pytest.raises(ValueError, match=r"257 images.*256 at most"):
            ImageProbes(folder)

    def test_too_large(self, folder: Path, monkeypatch: Any) -> None:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
        with pytest.raises(ValueError, match=r"cat 1\.PNG is no image that can be read \(DecompressionBombError"):
            ImageProbes(folder)

    def test_nothing_given(self) -> None:
        with pytest.raises(ValueError, match="list is empty"):
            ImageProbes([])

    def test_given_twice(self, folder: Path) -> None:
        with pytest.raises(ValueError, match=r"more than once: .*cat 1\.PNG"):
            ImageProbes([folder, folder / "cat 1.PNG"])

    @pytest.mark.parametrize(
        ("labels", "error", "message"),
        [
            ([0, 1], ValueError, "3 files and 2 labels"),
            ([0, 1, -1], ValueError, r"labels\[2\].*at least 0, got -1"),
            ([0, 1, True], TypeError, r"labels\[2\].*True"),
            ("012", TypeError, "list of class indices"),
        ],
    )
    def test_wrong_labels(self, folder: Path, labels: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            ImageProbes(folder, labels=labels)

    def test_transform_that_is_none(self, folder: Path) -> None:
        with pytest.raises(TypeError, match="transform: expected a function"):
            ImageProbes(folder, transform="resize")  # type: ignore[arg-type]

    def test_transform_that_fails(self, folder: Path) -> None:
        with pytest.raises(ValueError, match=r"failed on .*cat 1\.PNG \(ZeroDivisionError"):
            ImageProbes(folder, transform=lambda image: 1 / 0).start(CaptureContext()).finish([])

    def test_transform_that_makes_no_tensor(self, folder: Path) -> None:
        with pytest.raises(ValueError, match=r"expected a tensor \(C, H, W\).*cat 1\.PNG"):
            ImageProbes(folder, transform=v1.Resize((4, 4))).start(CaptureContext()).finish([])

    def test_gray_transform_without_channel(self, folder: Path) -> None:
        gray = v1.Compose([v1.Grayscale(), v1.ToTensor(), lambda image: image[0]])

        assert ImageProbes(folder, transform=gray).start(CaptureContext()).finish([]).images.shape == (3, 1, 4, 6)


class TestTensorProbes:
    def test_images_labels_names(self) -> None:
        images = torch.rand(2, 3, 4, 4, requires_grad=True)
        source = TensorProbes(images, labels=torch.tensor([4, 1]), names=["left", "right"])
        expected = images.detach().clone()
        with torch.no_grad():
            images.zero_()
        probes = source.start(CaptureContext([Photos(transform=first_version())])).finish([])

        assert torch.equal(probes.images, expected)
        assert not probes.images.requires_grad
        assert probes.labels is not None
        assert probes.labels.tolist() == [4, 1]
        assert probes.names == ("left", "right")
        assert probes.class_names == ("ant", "bee")

    def test_normalisation_is_taken_from_the_data_set_unless_these_are_bytes(self) -> None:
        context = CaptureContext([Photos(transform=first_version())])
        images = torch.zeros(1, 3, 4, 4)

        assert TensorProbes(images).start(context).finish([]).mean == MEAN
        assert TensorProbes(images.byte()).start(context).finish([]).mean is None

    def test_sets_do_not_share_memory(self) -> None:
        source = TensorProbes(torch.zeros(1, 1, 2, 2, dtype=torch.uint8))
        source.start(CaptureContext()).finish([]).images.fill_(9)

        probes = source.start(CaptureContext()).finish([])
        assert not probes.images.any()
        assert probes.names == ("#0",)
        assert probes.labels is None

    @pytest.mark.parametrize(
        ("settings", "error", "message"),
        [
            ({"images": torch.zeros(4, 4)}, ValueError, r"expected a tensor \(N, C, H, W\).*\(4, 4\)"),
            ({"images": torch.zeros(0, 3, 4, 4)}, ValueError, "at least one image"),
            ({"images": [1, 2]}, ValueError, "expected a tensor"),
            (
                {"images": torch.zeros(2, 3, 4, 4, dtype=torch.int64)},
                ValueError,
                "floating point or uint8, got .*int64",
            ),
            ({"labels": [1]}, ValueError, "2 images and 1 labels"),
            ({"labels": torch.tensor([0.5, 1.5])}, TypeError, r"labels\[0\].*0\.5"),
            ({"names": ["a"]}, ValueError, "2 images and 1 names"),
        ],
    )
    def test_bad_input(self, settings: dict[str, Any], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            TensorProbes(**{"images": torch.zeros(2, 3, 4, 4), **settings})


class TestHooks:
    """Images of the user's own and the model's batch-transfer hooks."""

    def sources(self, folder: Path, **options: Any) -> list[ProbeSource]:
        return [ImageProbes(folder, labels=[2, 0, 1], **options), TensorProbes(torch.ones(3, 3, 4, 6), **options)]

    def test_passed_as_a_batch(self, folder: Path) -> None:
        seen: list[Any] = []

        def hooks(batch: Any) -> Any:
            seen.append(batch)
            batch[0].mul_(10)
            images = batch[0].half().to(memory_format=torch.channels_last) + torch.rand(1).half()
            return {"image": images, "label": batch[1] + 5}

        before = torch.get_rng_state().tolist()
        for source, labels in zip(self.sources(folder, through_hooks=True), ([2, 0, 1], None), strict=True):
            plain = source.start(CaptureContext()).finish([])
            probes = source.start(CaptureContext(apply_batch_hooks=hooks)).finish([])
            again = source.start(CaptureContext(apply_batch_hooks=hooks)).finish([])

            assert seen[-1][1].tolist() == (labels or [0, 0, 0])
            assert labels_of(probes) == labels
            assert probes.images.dtype == torch.float16
            assert probes.images.is_contiguous()
            assert ((probes.images - 10 * plain.images) > 0).all()
            assert again.fingerprint == probes.fingerprint
            assert "hooks" not in "".join(probes.notices + plain.notices)
        assert torch.get_rng_state().tolist() == before

    def test_not_passed_by_default_which_is_said(self, folder: Path) -> None:
        def hooks(batch: Any) -> Any:
            raise AssertionError

        for source in self.sources(folder):
            plain = source.start(CaptureContext()).finish([])
            probes = source.start(CaptureContext(apply_batch_hooks=hooks)).finish([])

            assert torch.equal(probes.images, plain.images)
            assert ["through_hooks: true" in notice for notice in probes.notices if notice not in plain.notices] == [
                True
            ]

    @pytest.mark.parametrize(
        ("hooks", "message"),
        [
            (lambda batch: batch["image"], r"\[images, labels\] \(TypeError.*TensorProbes"),
            (lambda batch: None, "image_key"),
            (lambda batch: (batch[0].repeat(2, 1, 1, 1), batch[1]), "made 6 images of 3"),
        ],
    )
    def test_hooks_that_give_no_images(self, folder: Path, hooks: Any, message: str) -> None:
        for source in self.sources(folder, through_hooks=True):
            with pytest.raises(ValueError, match=f"through_hooks: .*{message}"):
                source.start(CaptureContext(apply_batch_hooks=hooks))


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"n": 0}, ValueError, "n: .*at least 1, got 0"),
            ({"n": -3}, ValueError, "n: .*got -3"),
            ({"n": True}, TypeError, "n: .*True"),
            ({"n": 2.0}, TypeError, "n: .*2.0"),
            ({"n": 2, "indices": [1]}, ValueError, "Leave out n, per_class and seed"),
            ({"seed": 2, "indices": [1]}, ValueError, "Leave out n, per_class and seed"),
            ({"per_class": 2, "indices": [1]}, ValueError, "Leave out n, per_class and seed"),
            ({"indices": []}, ValueError, "list is empty"),
            ({"indices": 3}, TypeError, "expected a list"),
            ({"indices": "12"}, TypeError, "expected a list"),
            ({"indices": [1, -1]}, ValueError, r"indices\[1\].*at least 0, got -1"),
            ({"indices": [True]}, TypeError, r"indices\[0\].*True"),
            ({"indices": [4, 2, 4]}, ValueError, r"more than once: \[4\]"),
            ({"per_class": 0}, ValueError, "per_class: .*got 0"),
            ({"dataloader_idx": -1}, ValueError, "dataloader_idx: .*got -1"),
            ({"seed": -1}, ValueError, "seed: .*got -1"),
            ({"image_key": True}, TypeError, "image_key"),
            ({"label_key": 1.5}, TypeError, "label_key"),
        ],
    )
    def test_bad_options(self, options: dict[str, Any], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            ValidationProbes(**options)

    def test_numpy_numbers(self) -> None:
        source = ValidationProbes(n=np.int64(3))

        assert source.n == 3
        assert type(source.n) is int

    def test_short_forms(self) -> None:
        source = TensorProbes(torch.zeros(1, 3, 4, 4))

        assert as_source(source) is source
        assert as_source(5).describe() == ValidationProbes(n=5).describe()
        assert as_source([4, 2]).describe() == ValidationProbes(indices=(4, 2)).describe()
        assert as_source(range(3)).describe() == ValidationProbes(indices=[0, 1, 2]).describe()

    @pytest.mark.parametrize("probes", [True, "photos", None, 1.5, torch.zeros(1, 3, 4, 4)])
    def test_no_short_form(self, probes: Any) -> None:
        with pytest.raises(TypeError, match=r"a number, a list of positions or a probe source.*ImageProbes"):
            as_source(probes)

    def test_short_form_out_of_range(self) -> None:
        with pytest.raises(ValueError, match="at least 1, got 0"):
            as_source(0)


class TestDescribe:
    def test_says_what_was_configured(self) -> None:
        assert ValidationProbes(n=3, seed=1).describe() == (
            "ValidationProbes(n=3, indices=None, per_class=None, dataloader_idx=0, seed=1, "
            "image_key='image', label_key='label')"
        )

    def test_changes_with_the_tensor(self) -> None:
        zeros, again, ones = (
            TensorProbes(make(1, 3, 4, 4)).describe() for make in (torch.zeros, torch.zeros, torch.ones)
        )

        assert zeros == again
        assert zeros != ones

    def test_has_no_addresses(self, folder: Path) -> None:
        def make() -> str:
            return ImageProbes(folder, transform=lambda image: image).describe()

        assert make() == make()
        assert " at 0x" not in make()
        assert str(folder) in make()


class TestFingerprint:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint8])
    def test_every_dtype_and_layout(self, dtype: torch.dtype) -> None:
        images = torch.arange(96).reshape(2, 3, 4, 4).to(dtype)

        assert fingerprint(images, None) == fingerprint(images.to(memory_format=torch.channels_last), None)
        assert fingerprint(images, None) != fingerprint(images.flip(0), None)

    def test_is_the_sha_of_what_it_says(self) -> None:
        images, labels = torch.rand(2, 3, 4, 4), torch.tensor([5, 6])
        text = b"(2, 3, 4, 4) torch.float32" + images.numpy().tobytes() + b"(2,) torch.int64" + labels.numpy().tobytes()

        assert fingerprint(images, labels) == hashlib.sha256(text).hexdigest()

    def test_shape_dtype_and_labels_count(self) -> None:
        images = torch.zeros(2, 3, 4, 4)
        variants = [
            fingerprint(images, None),
            fingerprint(images.reshape(2, 3, 2, 8), None),
            fingerprint(images.view(torch.int32), None),
            fingerprint(images, torch.tensor([0, 1])),
            fingerprint(images, torch.tensor([1, 0])),
        ]

        assert len(set(variants)) == len(variants)

    def test_probe_set_carries_it(self) -> None:
        probes = take(Numbered())

        assert probes.fingerprint == fingerprint(probes.images, probes.labels)


# The oldest supported jsonargparse has only the name that the newest one deprecates.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
class TestYaml:
    @pytest.fixture
    def parser(self) -> ArgumentParser:
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--probes", type=int | Sequence[int] | ProbeSource, default=8)
        return parser

    def build(self, parser: ArgumentParser, probes: Any) -> Any:
        return parser.instantiate_classes(parser.parse_object({"probes": probes})).probes

    def test_short_forms(self, parser: ArgumentParser) -> None:
        assert self.build(parser, 4) == 4
        assert list(self.build(parser, [4, 2])) == [4, 2]

    def test_validation_probes(self, parser: ArgumentParser) -> None:
        options = {"n": 8, "per_class": 1, "image_key": 0, "label_key": "truth"}
        source = self.build(parser, {"class_path": "gradcam_callback.ValidationProbes", "init_args": options})

        assert isinstance(source, ValidationProbes)
        assert {name: getattr(source, name) for name in options} == options

    def test_image_probes(self, parser: ArgumentParser, folder: Path) -> None:
        normalise = {"class_path": "torchvision.transforms.v2.Normalize", "init_args": {"mean": MEAN, "std": STD}}
        steps = [{"class_path": "torchvision.transforms.v2.ToImage"}, normalise]
        transform = {"class_path": "torchvision.transforms.v2.Compose", "init_args": {"transforms": steps}}
        for files in (str(folder), [str(folder / "cat 1.PNG"), str(folder / "cat 2.PNG")]):
            options = {"files": files, "transform": transform}
            source = self.build(parser, {"class_path": "gradcam_callback.ImageProbes", "init_args": options})

            assert isinstance(source, ImageProbes)
            assert isinstance(source.transform, v2.Compose)
            assert len(source.files) == (1 if isinstance(files, str) else 2)

    def test_unknown_key(self, parser: ArgumentParser) -> None:
        with pytest.raises(ArgumentError, match="per_clas"):
            self.build(parser, {"class_path": "gradcam_callback.ValidationProbes", "init_args": {"per_clas": 1}})

    def test_wrong_type(self, parser: ArgumentParser) -> None:
        with pytest.raises(ArgumentError, match="eight"):
            self.build(parser, {"class_path": "gradcam_callback.ValidationProbes", "init_args": {"n": "eight"}})
