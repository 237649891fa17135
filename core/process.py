r"""A process: named parts, each a space with a path from noise to data.

One state may mix points, pair values and tokens. Every part says where its entries live (`Space`),
how they travel from noise (t = 0) to data (t = 1), and what the network predicts for it:

    continuous parts   x_t = beta(t) x_1 + sigma(t) x_0,      x_0 ~ N(0, I) of the space
    token parts        x_t = x_1 with probability kappa(t), else the mask token

A process draws the prior and the bridge between noise and data; `core.sample` runs it backwards.
A process of a single unnamed part works on plain tensors; otherwise a state is a dict of tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from driftworks.core.ctmc import Masking
from driftworks.core.keys import Keys
from driftworks.core.paths import Path
from driftworks.core.predict import check, interpolate, per_sample
from driftworks.core.spaces import Space
from driftworks.errors import UserError

__all__ = ["Bridge", "Masks", "Part", "Process", "State"]

State = Tensor | dict[str, Tensor]
Masks = Tensor | Mapping[str, Tensor | None] | None


@dataclass(frozen=True)
class Part:
    """One component of a state.

    ``path`` is a `Path` for real spaces and a `Masking` schedule for tokens. ``predicts`` names
    what the network returns for this part (`predict.PARAMETRISATIONS`); token parts always return
    logits (..., classes). Raises `UserError` for another name and for a path of the other kind.
    """

    space: Space
    path: Path | Masking
    predicts: str = "denoised"

    def __post_init__(self) -> None:
        if self.space.discrete:
            object.__setattr__(self, "predicts", "logits")
        else:
            check(self.predicts)
        if self.space.discrete != isinstance(self.path, Masking):
            raise UserError(
                f"{type(self.space).__name__} cannot follow {type(self.path).__name__}: "
                "tokens need a Masking schedule, real spaces a Path"
            )


@dataclass(frozen=True)
class Bridge:
    """A draw of x_t between noise and data, and what a loss needs to know about it.

    ``x_t``, ``x_0``, ``x_1`` are states; ``t`` (B,); ``hidden`` holds, for each token part, the
    entries that are masked at t (bool).
    """

    x_t: State
    x_0: State
    x_1: State
    t: Tensor
    mask: Masks
    hidden: dict[str, Tensor] = field(default_factory=dict)


class Process:
    """A mapping of part names to parts, or one part for plain tensors."""

    def __init__(self, parts: Mapping[str, Part] | Part):
        self.single = isinstance(parts, Part)
        self.parts: dict[str, Part] = {"x": parts} if isinstance(parts, Part) else dict(parts)

    def __repr__(self) -> str:
        return f"Process({self.parts})"

    def items(self) -> Iterable[tuple[str, Part]]:
        return self.parts.items()

    def unpack(self, state: State) -> dict[str, Tensor]:
        """A state as a dict of parts; ValueError that names the parts it lacks."""
        if isinstance(state, Tensor):
            if not self.single:
                raise ValueError(f"this process needs a dict with parts {', '.join(self.parts)}")
            return {"x": state}
        missing = self.parts.keys() - state.keys()
        if missing:
            raise ValueError(f"state lacks the parts {', '.join(sorted(missing))}")
        return state

    def pack(self, parts: dict[str, Tensor]) -> State:
        return parts["x"] if self.single else parts

    def mask_of(self, name: str, mask: Masks) -> Tensor | None:
        """The mask of one part: shared when ``mask`` is a tensor, looked up when it is a dict."""
        return mask.get(name) if isinstance(mask, Mapping) else mask

    def prior(self, keys: Keys, like: State, mask: Masks = None) -> State:
        """The state at t = 0, shaped and typed as ``like``: sigma(0) noise, or mask tokens."""
        shapes, out = self.unpack(like), {}
        for name, part in self.items():
            x, m = shapes[name], self.mask_of(name, mask)
            noise = part.space.noise(keys, f"prior/{name}", 0, x, m)
            out[name] = noise if isinstance(part.path, Masking) else noise * part.path.sigma(0.0)
        return self.pack(out)

    def bridge(
        self,
        x_1: State,
        t: Tensor,
        keys: Keys,
        mask: Masks = None,
        x_0: Mapping[str, Tensor] | Tensor | None = None,
        step: int = 0,
    ) -> Bridge:
        """Draw x_t for data ``x_1`` at times ``t`` (B,).

        ``x_0`` may supply the noise of some or all continuous parts (an alignment with the data, a
        coupling); the rest is drawn from ``keys`` at ``step``. Both must lie in their spaces, with
        zeros where the mask is False. Raises ValueError for noise of a part that is not there.
        """
        data = self.unpack(x_1)
        given = {} if x_0 is None else self.unpack(x_0) if isinstance(x_0, Tensor) else x_0
        if not given.keys() <= self.parts.keys():
            unknown = ", ".join(sorted(given.keys() - self.parts.keys()))
            raise ValueError(f"x_0 names unknown parts {unknown}; parts: {', '.join(self.parts)}")
        x_t, noise, hidden = {}, {}, {}
        for name, part in self.items():
            x, m = data[name], self.mask_of(name, mask)
            stream = f"bridge/{name}"
            if isinstance(part.path, Masking):
                u = part.space.uniform(keys, stream, step, x)  # type: ignore[attr-defined]
                hide = u >= per_sample(part.path.kappa(t), u)
                entries = part.space.entry_mask(m, x)
                hidden[name] = hide if entries is None else hide & entries
                noise[name] = part.space.noise(keys, stream, step, x, m)
                x_t[name] = torch.where(hidden[name], noise[name], x)
            else:
                e = given.get(name)
                noise[name] = part.space.noise(keys, stream, step, x, m) if e is None else e
                x_t[name] = interpolate(part.path, x, noise[name], t)
        return Bridge(self.pack(x_t), self.pack(noise), x_1, t, mask, hidden)
