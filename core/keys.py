r"""Keyed noise: every random number has an address, so a sample never depends on its neighbours.

A counter-based generator is a pure function: word = Philox4x32-10(key, counter) (Salmon, Moraes,
Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011). The key of a sample is drawn
from (seed, sample id); the counter holds what is being drawn,

    c0 = first entry coordinate  (16 bits) | second (16 bits)
    c1 = third entry coordinate  (16 bits) | block of four along the last axis (16 bits)
    c2 = step of the sampler,   c3 = name of the stream (CRC-32).

So the value at entry (i, j) of sample 17 at step 5 is the same number whatever the batch size, the
order of the batch, the padding, or the device it is computed on. Four words come from one call;
they fill four neighbours along the last axis, which is why the block number replaces the last
coordinate. Normals are Box-Muller pairs of those words.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["Keys", "philox"]

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> Tensor:
    """Philox4x32-10 on int64 tensors that hold 32-bit words.

    Parameters: four counter words and two key words, broadcastable against each other.
    Returns the four output words stacked on a new last axis, int64 in [0, 2**32).
    """
    # keys take part in the broadcast: the words are combined in place, in the full shape
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter, *key)[:4]
    k0, k1 = key
    for _ in range(_ROUNDS):
        # The product of two 32-bit words overflows int64 but wraps modulo 2**64, so its bits are
        # right. Only the words that are multiplied next must be clean of higher bits; the others
        # are masked once, at the end.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = (p1 >> 32).bitwise_xor_(c1).bitwise_xor_(k0).bitwise_and_(_MASK)
        c2 = (p0 >> 32).bitwise_xor_(c3).bitwise_xor_(k1).bitwise_and_(_MASK)
        c1, c3 = p1, p0
        k0, k1 = k0 + _WEYL[0], k1 + _WEYL[1]
    return torch.stack((c0, c1, c2, c3), dim=-1).bitwise_and_(_MASK)


@lru_cache(maxsize=256)
def _coordinates(lead: tuple[int, ...], blocks: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Counter words c0, c1 of every entry block, shape (*lead, blocks)."""
    if len(lead) > 3 or any(n >= 1 << 16 for n in (*lead, blocks)):
        raise ValueError(
            f"keyed noise addresses up to four entry axes of < 65536 (the last: < 262144); "
            f"got {(*lead, 4 * blocks)}"
        )
    axes = [torch.arange(n, device=device) for n in (*lead, blocks)]
    grid = torch.meshgrid(*axes, indexing="ij")
    first, second, third = (*grid[:-1], *[torch.zeros_like(grid[-1])] * 3)[:3]
    return (first << 16) | second, (third << 16) | grid[-1]


@dataclass(frozen=True)
class Keys:
    """One key a sample: the source of all randomness in sampling and training.

    ``ids`` (B,) int64 are the global numbers of the samples; two batches that contain sample 17 of
    the same seed give it the same noise. Indexing and ``to`` behave as for a tensor of shape (B,).
    """

    seed: int
    ids: Tensor
    _words: Tensor

    @classmethod
    def for_samples(cls, seed: int, ids: Tensor | range | list[int]) -> Keys:
        """Keys of the samples ``ids`` under ``seed`` (any Python integer; used modulo 2**64)."""
        if not isinstance(seed, int):
            raise ValueError(f"a seed is a whole number, got {seed!r}")
        ids = torch.as_tensor(list(ids) if isinstance(ids, range) else ids)
        if ids.ndim != 1:
            raise ValueError(f"sample ids must have shape (B,), got {tuple(ids.shape)}")
        if ids.numel() and (ids.is_floating_point() or ids.is_complex()):
            raise ValueError(f"sample ids must be integers, got {ids.dtype}")
        ids = ids.to(torch.int64)
        zero = torch.zeros_like(ids)
        seed_words = (zero + (seed & _MASK), zero + (seed >> 32 & _MASK))
        counter = (ids & _MASK, (ids >> 32) & _MASK, zero, zero)
        return cls(seed, ids, philox(counter, seed_words)[..., :2])

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Tensor | slice | list[int]) -> Keys:
        return Keys(self.seed, self.ids[index], self._words[index])

    def to(self, device: torch.device | str) -> Keys:
        return Keys(self.seed, self.ids.to(device), self._words.to(device))

    def words(self, stream: str, step: int | range, shape: tuple[int, ...]) -> Tensor:
        """Random 32-bit words, int64 (B, *shape); with a range of steps (S, B, *shape)."""
        shape = tuple(shape)
        lead, last = (shape[:-1], shape[-1]) if shape else ((), 1)
        blocks = -(-last // 4)
        device = self.ids.device
        c0, c1 = _coordinates(lead, blocks, device)
        c3 = torch.tensor(zlib.crc32(stream.encode()), device=device)
        ones = (1,) * (len(lead) + 1)
        k0, k1 = (w.view(-1, *ones) for w in self._words.unbind(-1))
        if isinstance(step, range):
            steps = torch.tensor(list(step), dtype=torch.int64, device=device)
            c2 = steps.view(-1, 1, *ones) & _MASK
        else:
            c2 = torch.tensor(step & _MASK, device=device)
        out = philox((c0.expand(len(self), *c0.shape), c1, c2, c3), (k0, k1))
        out = out.flatten(-2)[..., :last]
        return out if shape else out.squeeze(-1)

    def uniform(
        self,
        stream: str,
        step: int | range,
        shape: tuple[int, ...] = (),
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Uniform numbers strictly inside (0, 1), shape (B, *shape) or (S, B, *shape).

        ``dtype`` is float32 or float64 (ValueError otherwise): half precision would round to 1.
        """
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"uniform numbers are float32 or float64, not {dtype}")
        words = self.words(stream, step, shape)
        if dtype == torch.float64:
            return (words.to(dtype) + 0.5) * 2.0**-32
        # 23 bits and a half: the largest value is 1 - 2**-24, which float32 can hold; with one
        # more bit it would round to 1.
        return ((words >> 9).to(torch.float32) + 0.5).mul_(2.0**-23)

    def normal(
        self,
        stream: str,
        step: int | range,
        shape: tuple[int, ...] = (),
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Standard normal numbers (Box-Muller), shape (B, *shape) or (S, B, *shape)."""
        last = shape[-1] if shape else 1
        padded = (*shape[:-1], -(-last // 4) * 4)
        work = torch.float64 if dtype == torch.float64 else torch.float32
        u = ((self.words(stream, step, padded).to(torch.float64) + 0.5) * 2.0**-32).to(work)
        u = u.unflatten(-1, (-1, 2))
        radius = torch.log(u[..., 0]).mul_(-2.0).sqrt_()
        angle = u[..., 1] * (2.0 * math.pi)
        pair = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)
        out = pair.flatten(-2)[..., :last].to(dtype)
        return out if shape else out.squeeze(-1)
