"""Eq. 16: a first-in-first-out queue of negative keys for each class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from u2pl.contrast.sampling import first_members, sample_without_replacement


class NegativeQueues(nn.Module):
    """One ring of teacher features a class, all in one buffer [P: 30 000 keys, background 50 000].

    Buffers, so they move with the module, are saved in its state dict and live on its device.
    A queue holds what was pushed and nothing else: an empty one is empty, not noise.

    Args:
        capacities: keys each class's queue holds, C of them.
        feature_size: D.
        dtype: how keys are stored; bfloat16 halves the memory.

    Attributes:
        keys: [Σ capacities, D], class after class.
        num_keys: [C] int64, how many keys each queue holds.
        heads: [C] int64, where each queue writes next.

    Raises:
        ValueError: for no class or a capacity below 1.

    >>> queues = NegativeQueues([4, 4], feature_size=2)
    >>> mask = torch.tensor([[True, False, True], [False, False, False]])
    >>> queues.push(torch.eye(3)[:, :2], mask)
    >>> queues.num_keys
    tensor([2, 0])
    """

    keys: Tensor
    num_keys: Tensor
    heads: Tensor
    capacities: Tensor
    offsets: Tensor

    def __init__(
        self,
        capacities: Sequence[int],
        feature_size: int,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if not capacities or min(capacities) < 1:
            raise ValueError(f"Expected a capacity of at least 1 for each class, got {capacities}.")
        sizes = torch.tensor(list(capacities), dtype=torch.long)
        self.smallest_capacity = int(min(capacities))
        self.register_buffer("keys", torch.zeros(int(sizes.sum()), feature_size, dtype=dtype))
        self.register_buffer("num_keys", torch.zeros(len(sizes), dtype=torch.long))
        self.register_buffer("heads", torch.zeros(len(sizes), dtype=torch.long))
        self.register_buffer("capacities", sizes, persistent=False)
        self.register_buffer("offsets", sizes.cumsum(0) - sizes, persistent=False)

    @torch.no_grad()
    def push(
        self,
        features: Tensor,
        mask: Tensor,
        *,
        max_keys: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Add a random subset of each class's negatives; the oldest keys give way.

        Args:
            features: [K, D], teacher features of all pixels.
            mask: [C, K] bool, which of them are negatives of each class.
            max_keys: at most so many a class; None takes what fits. Never more than the smallest
                queue holds.
            generator: source of randomness, on the features' device.
        """
        index, chosen = self.choose(mask, max_keys=max_keys, generator=generator)
        self.push_chosen(features[index], chosen)

    def choose(
        self,
        mask: Tensor,
        *,
        max_keys: int | None = None,
        generator: torch.Generator | None = None,
        order: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Say which keys :meth:`push` would take, without pushing them.

        Where several processes share a batch, each calls this with the mask of all its pixels and
        a generator in one state, gives the features it has, and pushes the sum of what all gave.

        Args:
            mask, max_keys, generator: as for :meth:`push`.
            order: [K] int64, a random order of the pixels, where it is drawn already.

        Returns:
            Indices [C, S] int64 into the K pixels, and their validity [C, S] bool.
        """
        limit = self.smallest_capacity if max_keys is None else max_keys
        limit = min(limit, self.smallest_capacity)
        if order is not None:
            return first_members(mask, limit, order=order)
        return sample_without_replacement(mask, limit, generator=generator)

    def clear(self) -> None:
        """Forget all keys."""
        self.num_keys.zero_()
        self.heads.zero_()

    @torch.no_grad()
    def push_chosen(self, keys: Tensor, chosen: Tensor) -> None:
        """Add keys that :meth:`choose` has named.

        Args:
            keys: [C, S, D].
            chosen: [C, S] bool, True for the first few of each row; the others are not pushed.
        """
        order = torch.arange(keys.shape[1], device=keys.device)
        slot = (self.heads.unsqueeze(1) + order) % self.capacities.unsqueeze(1)
        slot = slot + self.offsets.unsqueeze(1)  # [C, S], distinct: S is at most any capacity
        new = keys.to(self.keys.dtype)
        # rewriting the old key where nothing was chosen keeps every shape fixed
        self.keys[slot] = torch.where(chosen.unsqueeze(2), new, self.keys[slot])
        pushed = chosen.sum(dim=1)
        self.heads.copy_((self.heads + pushed) % self.capacities)
        self.num_keys.copy_(torch.minimum(self.num_keys + pushed, self.capacities))

    def sample(
        self, num_anchors: int, num_negatives: int, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw keys at random, N for each of M anchors of every class, repeats allowed.

        Args:
            num_anchors: M.
            num_negatives: N.
            generator: source of randomness, on the queues' device.

        Returns:
            [C, M, N, D] in the storage dtype; zeros for a class whose queue is empty
            (``num_keys`` tells).
        """
        shape = (len(self.capacities), num_anchors, num_negatives)
        draw = torch.rand(shape, generator=generator, device=self.keys.device)
        return self.keys[self.rows_at(draw)]

    def rows_at(self, draw: Tensor) -> Tensor:
        """Rows of ``keys`` at given places of the queues, as shares of the keys that they hold.

        Args:
            draw: [C, ...] float32 in [0, 1).

        Returns:
            Like ``draw``, int64; of an empty queue its first row, which is zeros.
        """
        shape = (-1, *(1 for _ in draw.shape[1:]))
        held = self.num_keys.view(shape)
        index = (draw * held).long().minimum((held - 1).clamp_min(0))
        return index + self.offsets.view(shape)
