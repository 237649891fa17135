r"""A process: named parts, each a space with a path from noise to data.

One state may mix points, pair values and tokens. Every part says where its entries live (`Space`),
how they travel from noise (t = 0) to data (t = 1), and what the network predicts for it:

    continuous parts   x_t = beta(t) x_1 + sigma(t) x_0,      x_0 ~ N(0, I) of the space
    token parts        x_t = x_1 with probability kappa(t), else the mask token or a random class
    rotations          x_t on a geodesic to x_1, or x_1 turned by the heat kernel (`core.frames`)

A process draws the prior and the bridge between noise and data; `core.sample` runs it backwards.
A process of a single unnamed part works on plain tensors; otherwise a state is a dict of tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from driftworks.core.frames import Rotations
from driftworks.core.keys import Keys
from driftworks.core.paths import Path
from driftworks.core.predict import check, interpolate
from driftworks.core.spaces import Space
from driftworks.errors import UserError

__all__ = ["Bridge", "Masks", "Part", "Process", "Route", "State"]

State = Tensor | dict[str, Tensor]
Masks = Tensor | Mapping[str, Tensor | None] | None


class Route(Protocol):
    """What leads a space from noise to data where x_t is no sum of the two: tokens, rotations."""

    def accepts(self, space: Space, predicts: str) -> str:
        """The name of what the network predicts; `UserError` if this is not the space's route."""
        ...

    def prior(
        self, space: Any, keys: Keys, stream: str, like: Tensor, mask: Tensor | None
    ) -> Tensor:
        """The state at t = 0, shaped as ``like``."""
        ...

    def bridge(
        self, space: Any, x_1: Tensor, t: Tensor, keys: Keys, stream: str, step: int,
        mask: Tensor | None, x_0: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """x_t, the noise it came from, and the entries (bool) a loss should ask about."""
        ...


@dataclass(frozen=True)
class Part:
    """One component of a state.

    ``path`` is a `Path` for real spaces, and for others their own `Route`: `ctmc.Masking` or
    `ctmc.Replacing` for tokens, `frames.Geodesic` or `frames.Heat` for rotations. ``predicts``
    names what the network returns for this part (`predict.PARAMETRISATIONS`, and for rotations
    those of the route); token parts always return logits (..., classes). Raises `UserError` for
    another name and for a path of the other kind.
    """

    space: Space
    path: Path | Route
    predicts: str = "denoised"

    def __post_init__(self) -> None:
        if not isinstance(self.space, Space) or not (
            isinstance(self.path, Path) or hasattr(self.path, "accepts")
        ):
            raise UserError(
                f"a part is a space and a path, such as Part(Flat(), Path.linear()); got "
                f"{self.space!r} and {self.path!r}"
            )
        if not isinstance(self.path, Path):
            object.__setattr__(self, "predicts", self.path.accepts(self.space, self.predicts))
            return
        check(self.predicts)
        if self.space.discrete or isinstance(self.space, Rotations):
            raise UserError(
                f"{type(self.space).__name__} cannot follow {type(self.path).__name__}: "
                "tokens need a Masking or Replacing schedule, rotations Geodesic or Heat"
            )


@dataclass(frozen=True)
class Bridge:
    """A draw of x_t between noise and data, and what a loss needs to know about it.

    ``x_t``, ``x_0``, ``x_1`` are states; ``t`` (B,); ``hidden`` holds, for each token part, the
    entries (bool) that the network is to find: the masked ones at t, or, where noise looks like
    data, all that exist.
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
        if not self.parts or not all(isinstance(part, Part) for part in self.parts.values()):
            raise UserError(f"a process is made of parts, Part(space, path), got {parts!r}")

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
            stream = f"prior/{name}"
            if isinstance(part.path, Path):
                out[name] = part.space.noise(keys, stream, 0, x, m) * part.path.sigma(0.0)
            else:
                out[name] = part.path.prior(part.space, keys, stream, x, m)
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
        zeros where the mask is False. Raises ValueError for noise of a part that is not there, and
        `UserError` unless there is one key a sample.
        """
        data = self.unpack(x_1)
        for name, x in data.items():
            if len(x) != len(keys):
                raise UserError(f"part {name!r} has {len(x)} samples; there are {len(keys)} keys")
        given = {} if x_0 is None else self.unpack(x_0) if isinstance(x_0, Tensor) else x_0
        if not given.keys() <= self.parts.keys():
            unknown = ", ".join(sorted(given.keys() - self.parts.keys()))
            raise ValueError(f"x_0 names unknown parts {unknown}; parts: {', '.join(self.parts)}")
        x_t, noise, hidden = {}, {}, {}
        for name, part in self.items():
            x, m = data[name], self.mask_of(name, mask)
            stream = f"bridge/{name}"
            e = given.get(name)
            if not isinstance(part.path, Path):
                x_t[name], noise[name], asked = part.path.bridge(
                    part.space, x, t, keys, stream, step, m, e
                )
                if asked is not None:
                    hidden[name] = asked
            else:
                noise[name] = part.space.noise(keys, stream, step, x, m) if e is None else e
                x_t[name] = interpolate(part.path, x, noise[name], t)
        return Bridge(self.pack(x_t), self.pack(noise), x_1, t, mask, hidden)
