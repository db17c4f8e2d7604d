"""The processes that share a training: which images each one takes, and what they tell each other.

A batch belongs to all of them together. Whatever the method decides about a batch (thresholds,
counts, anchors, keys) is decided about the whole, so a run does not depend on how many share it.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn

from u2pl.errors import UserError
from u2pl.mixing import Share

_PATIENCE = datetime.timedelta(days=2)  # others wait while the first one makes seeds or scores


@dataclass(frozen=True)
class World:
    """A process among those of a training; alone by default, where all of this does nothing.

    Attributes:
        rank: of this process, from 0.
        size: processes in all.
        device: index of this process's GPU on its machine.
        address: where the processes meet, as ``torch.distributed`` takes it; ``env://`` is what
            torchrun has set.
    """

    rank: int = 0
    size: int = 1
    device: int = 0
    address: str = "env://"

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files and the progress."""
        return self.rank == 0

    def share(self, count: int) -> Share:
        """Which images of the whole batch this process's ``count`` are."""
        return Share(first=self.rank * count, total=self.size * count)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the processes, in every one of them; no gradient flows."""
        return tensor if self.size == 1 else sum_of_all(tensor)

    def gather(self, tensor: Tensor) -> Tensor:
        """All processes' tensors of one shape, one below the other in the order of the ranks.

        Bools travel eight to a byte.
        """
        if self.size == 1:
            return tensor
        if tensor.dtype == torch.bool:
            packed = self.gather(pack_bits(tensor))
            whole = unpack_bits(packed.view(self.size, -1), tensor.numel())
            return whole.view(-1, *tensor.shape[1:])
        return torch.cat(of_all(tensor))

    def gather_halves(self, tensor: Tensor, num_labeled: int) -> Tensor:
        """Like :meth:`gather`, but the first ``num_labeled`` rows of all come before all others.

        So rows stand in the order in which one process alone would hold them.
        """
        if self.size == 1:
            return tensor
        parts = self.gather(tensor).view(self.size, *tensor.shape)
        labeled, others = parts[:, :num_labeled], parts[:, num_labeled:]
        return torch.cat([labeled.flatten(0, 1), others.flatten(0, 1)])

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its sum over the processes, in one message.

        Those without a gradient have none in any process, as all make the same step.
        """
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        distributed.all_reduce(flat)
        pieces = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, piece in zip(gradients, pieces, strict=True):
            gradient.copy_(piece.view_as(gradient))

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in any process; all wait for all."""
        if self.size == 1:
            return flag
        told = torch.tensor([int(flag)])
        distributed.all_reduce(told, group=_talk_group)
        return bool(told.item())

    def wait(self) -> None:
        """Go on when all are here."""
        self.any(False)


ALONE = World()
"""One process that trains by itself."""

# for words between the processes, on the CPU, so that no GPU is waited for
_talk_group: distributed.ProcessGroup | None = None


def of_all(tensor: Tensor) -> list[Tensor]:
    """All processes' tensors of one shape, by rank; no gradient flows."""
    ours, rank = tensor.detach().contiguous(), distributed.get_rank()
    parts = [torch.empty_like(ours) for _ in range(distributed.get_world_size())]
    if not _is_short_message(ours):
        distributed.all_gather(parts, ours)
        return parts
    others = [peer for peer in range(len(parts)) if peer != rank]
    parts[rank] = ours
    under_way = [distributed.irecv(parts[peer], peer) for peer in others]
    under_way += [distributed.isend(ours, peer) for peer in others]
    for message in under_way:
        assert message is not None, "of a process of the group"
        message.wait()
    return parts


def sum_of_all(tensor: Tensor) -> Tensor:
    """The sum over the processes, the same to the last bit in every one; no gradient flows."""
    if _is_short_message(tensor):
        first, *others = of_all(tensor)
        total = first.clone()
        for other in others:
            total += other
        return total
    total = tensor.detach().clone()
    distributed.all_reduce(total)
    return total


def _is_short_message(tensor: Tensor) -> bool:
    """Whether each process sends a tensor to each other by itself.

    On CPUs that takes 0.2 ms between two processes where gloo's all_reduce takes 1.4, and a step
    has a hundred such messages. Among many processes they would be too many.
    """
    is_short = not tensor.is_cuda and tensor.nbytes <= 2**16
    return is_short and distributed.get_world_size() <= 8


def pack_bits(mask: Tensor) -> Tensor:
    """Bools of any shape as bytes, eight to each, [ceil(n / 8)] uint8."""
    flat = mask.flatten()
    whole = nn.functional.pad(flat, (0, -len(flat) % 8)).view(-1, 8)
    return (whole << _places(mask.device)).sum(dim=1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, count: int) -> Tensor:
    """What :func:`pack_bits` was given, row by row.

    Args:
        packed: [R, ceil(count / 8)] uint8.
        count: bools of a row.

    Returns:
        [R, count] bool.

    >>> mask = torch.tensor([True, False, True])
    >>> unpack_bits(pack_bits(mask).unsqueeze(0), 3)
    tensor([[ True, False,  True]])
    """
    bits = packed.unsqueeze(-1) >> _places(packed.device) & 1
    return bits.flatten(1)[:, :count].bool()


def _places(device: torch.device) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)


@contextmanager
def joined(world: World) -> Iterator[None]:
    """Inside, the processes of a world can talk; where there is one alone nothing happens.

    Raises:
        UserError: where another process has ended, so that there is no one to go on with.
    """
    global _talk_group
    if world.size == 1:
        yield
        return
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if backend == "nccl":
        torch.cuda.set_device(world.device)
    distributed.init_process_group(
        backend,
        init_method=world.address,
        rank=world.rank,
        world_size=world.size,
        timeout=_PATIENCE,
    )
    try:
        _talk_group = distributed.new_group(backend="gloo", timeout=_PATIENCE)
        yield
    except RuntimeError as error:  # gloo and NCCL have no class of error of their own
        if not _is_about_another_process(error):
            raise
        raise UserError(
            f"Process {world.rank} of {world.size} has lost the others: one of them has ended. "
            "Look at its message; then go on from the last checkpoint with --resume."
        ) from None
    finally:
        _talk_group = None
        if distributed.is_initialized():
            distributed.destroy_process_group()


def _is_about_another_process(error: RuntimeError) -> bool:
    text = str(error)
    words = ("Connection closed by peer", "Connection reset by peer", "gloo", "NCCL", "Broken pipe")
    return isinstance(error, distributed.DistError) or any(word in text for word in words)
