"""Priors on functional maps by name: `load`.

    prior = load("creatures")                      # the network shipped with the package
    prior = load("runs/mine", kind="gaussian")     # one's own, without the network

A checkpoint holds three priors, of which ``kind`` chooses one (see `prior`). Every one answers
`denoise` and `energy` for maps of up to `k` functions.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from driftworks.core import shelf
from driftworks.core.run import pick_device
from driftworks.errors import UserError
from driftworks.shapes.dit import NetConfig, Network, build
from driftworks.shapes.prior import Gaussian, Prior, SecondMoment

__all__ = ["KINDS", "available", "load"]

#: The priors of a checkpoint, the best first.
KINDS = ("network", "gaussian", "second-moment")


def available() -> dict[str, Path]:
    """Names and folders of the shipped priors."""
    return shelf.available("shapes")


def load(
    name: str | os.PathLike[str] = "creatures", kind: str = "network", device: str = "cpu"
) -> Prior:
    """A prior by name or by the folder of its checkpoint.

    kind: one of `KINDS`; device: where the network computes, auto, cpu or cuda

    Raises `UserError` for an unknown name or kind and for a damaged checkpoint.
    """
    if kind not in KINDS:
        raise UserError(f"unknown kind of prior {kind!r}; choose from {', '.join(KINDS)}")
    title, tensors, meta = shelf.fetch(name, "shapes")
    broken = [k for k, v in tensors.items() if not bool(torch.isfinite(v).all())]
    if broken:
        raise UserError(f"checkpoint {title!r} holds numbers that are not finite: {broken[0]}")
    try:
        return _prior(tensors, meta, kind, pick_device(device))
    except KeyError as error:
        raise UserError(f"checkpoint {title!r} lacks {error}") from None
    except (TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"checkpoint {title!r} does not fit this version: {reason}") from None


def _prior(
    tensors: dict[str, Tensor], meta: dict[str, Any], kind: str, device: torch.device
) -> Prior:
    own = {k.removeprefix(f"{kind}."): v for k, v in tensors.items() if k.startswith(f"{kind}.")}
    if kind == "second-moment":
        return SecondMoment.restore(own)
    if kind == "gaussian":
        return Gaussian.restore(own)
    net = build(NetConfig.model_validate(meta["config"]["net"]))
    net.load_state_dict({k: v.float() for k, v in own.items()})
    net.eval().requires_grad_(False)
    return Network(net, tensors["moments.mean"], tensors["moments.variance"]).to(device)
