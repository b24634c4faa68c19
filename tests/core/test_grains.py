"""Sums over grains: one tree, whoever adds; and the bits of one process on several, for every method."""

import hashlib
import math
import weakref
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from queue import Queue

import pytest
import test_training_loop as loop
import torch
import torch.multiprocessing as mp

from gcflow.distributed import World, halves
from gcflow.training import add_up, train

# Sums of such numbers differ with nearly every change of order.
SPREAD = 1e3


def values(grains, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [SPREAD ** torch.randn(size, generator=generator) for _ in range(grains)]


def tree_sum(tensors, grains):
    """As the definition says, with nothing in place."""
    if len(grains) == 1:
        return tensors[grains.start]
    first, second = halves(grains)
    return tree_sum(tensors, first) + tree_sum(tensors, second)


class Neighbour(World):
    """A process of a world whose processes are threads."""

    def __init__(self, rank, size, boxes):
        super().__init__(rank, size)
        object.__setattr__(self, "boxes", boxes)

    def _exchange(self, ours, theirs, distance):
        other = self.rank ^ distance
        self.boxes[self.rank, other].put(ours.clone())
        theirs.copy_(self.boxes[other, self.rank].get(timeout=60))


@pytest.mark.parametrize("grains", [1, 2, 3, 8, 13])
def test_gradients_are_added_along_the_tree_with_few_of_them_in_memory(grains):
    tensors, alive, most = values(grains, 50), weakref.WeakSet(), 0

    def gradient_of(grain):
        nonlocal most
        gradient = tensors[grain].clone()
        alive.add(gradient)
        most = max(most, len(alive))
        return gradient

    assert torch.equal(add_up(gradient_of, range(grains)), tree_sum(tensors, range(grains)))
    assert most <= math.ceil(math.log2(grains)) + 1


@pytest.mark.parametrize("length", [1, 5, 64, 101])
@pytest.mark.parametrize(("size", "grains"), [(2, 2), (2, 7), (4, 4), (4, 13), (8, 8), (8, 20)])
def test_processes_add_as_one_does_whatever_the_length(size, grains, length):
    tensors, boxes = values(grains, length, seed=length), defaultdict(Queue)
    for pair in ((rank, rank ^ (1 << bit)) for rank in range(size) for bit in range(3)):
        boxes[pair] = Queue()

    def process(rank):
        world = Neighbour(rank, size, boxes)
        buffer = add_up(lambda grain: tensors[grain].clone(), world.share(grains))
        world.add_up_(buffer)
        return buffer

    with ThreadPoolExecutor(size) as pool:
        sums = list(pool.map(process, range(size)))
    expected = tree_sum(tensors, range(grains))
    assert all(torch.equal(found, expected) for found in sums)
    plain = torch.stack(tensors).sum(0)
    assert length < 64 or grains == 2 or not torch.equal(plain, expected)


# Every method, on one of two networks in one of two precisions: the four take turns.
TURNS = [("MLP", "float32"), ("UNET", "bfloat16"), ("MLP", "bfloat16"), ("UNET", "float32")]
CASES = [(method, *TURNS[place % len(TURNS)]) for place, method in enumerate(loop.METHODS)]


def _train_all(rank, size, folder):
    torch.set_num_threads(1)
    if size > 1:
        address = f"file://{folder}/meet-{size}"
        torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=size)
    found = {}
    for method, network, precision in CASES:
        built = replace(getattr(loop, network), dropout=0.2)
        config = loop.run_config(
            method, network=built, batch=16, grain=2, steps=3, snapshot_every=3, precision=precision
        )
        state = train(config, loop.DATA, loop.start(config), None, None, loop.helpers(config), World(rank, size))
        content = hashlib.sha256()
        for name, tensor in sorted(state.tensors().items()):
            content.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
        found[method] = content.hexdigest()
    torch.save(found, f"{folder}/{size}-{rank}.pt")
    if size > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_every_method_ends_with_the_same_bits_on_one_two_and_four_processes(tmp_path):
    _train_all(0, 1, tmp_path)
    expected = torch.load(tmp_path / "1-0.pt")
    for size in (2, 4):
        mp.spawn(_train_all, args=(size, tmp_path), nprocs=size)
        for rank in range(size):
            assert torch.load(tmp_path / f"{size}-{rank}.pt") == expected, (size, rank)
