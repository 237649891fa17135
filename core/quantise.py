r"""Linear layers in 8-bit integers for sampling on a CPU, and the gate that says whether they may.

A row x of activations and a row w_j of weights are each rounded on their own scale,

    s = max|x| / 127,   q = round(x / s),        s_j = max|w_j| / 127,   q_j = round(w_j / s_j),

    y_j = s s_j (q . q_j) + bias_j,

with the product of integers exact in 32 bits. Rounding to 127 levels on either side of 0 makes an
error of about 1 % of |y| in one layer; weights take a quarter of their memory.

Scales of a whole tensor, as ready-made dynamic quantisation has them, would let an outlier of one
sample coarsen its neighbours. A scale a row depends on that row alone, integer sums have no order,
and what remains is elementwise multiplication and addition, each correctly rounded: the answer for
a row is the same to the last bit whatever stands beside it. (That of a float32 product is not: the
order of its sums changes with the number of rows.)

The product is `torch._int_mm`, which uses the CPU's 8-bit instructions. It is checked once against
64-bit integers, because processors without those instructions may saturate; where it fails or is
missing, and on other devices, the same integers are multiplied in floating point, exactly (float32
holds them up to 1040 columns, float64 beyond), so that results do not depend on the machine.

Speed. Rounding the activations costs a few passes over them, so a layer gains with its width: on
one core with 8-bit instructions about 2.5 times at width 128 and 4 times at 256, nothing at 64 with
some hundred rows. A network gains by the share of such layers; one of width 128 that spends a third
of its time in them, a tenth. Measure before you use it; whether it is as good, `gate` finds out.
"""

from __future__ import annotations

import copy
import fnmatch
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from driftworks.core import predict
from driftworks.core.keys import Keys
from driftworks.core.paths import Path
from driftworks.core.process import Masks, Process, State
from driftworks.core.sample import sample
from driftworks.errors import UserError

__all__ = ["Gate", "Int8Linear", "gate", "int8_matmul", "quantise", "restore", "stored_bytes"]

_LEVELS = 127
_FLOAT32_COLUMNS = (1 << 24) // _LEVELS**2  # sums up to here are whole numbers below 2^24
_NUMBERS = 1 << 18  # of a block of rows, so that its temporaries stay in the cache


@lru_cache(maxsize=1)
def _exact_on_cpu() -> bool:
    """Whether torch._int_mm exists and gives exact sums of the largest products."""
    if not hasattr(torch, "_int_mm"):
        return False
    signs = (torch.arange(64 * 256).view(64, 256) * 40503 % 65521) % 3 - 1
    a = (signs * _LEVELS).to(torch.int8)
    a[:2], a[2] = _LEVELS, -_LEVELS
    try:
        found = torch._int_mm(a, a.t())
    except RuntimeError:
        return False
    return torch.equal(found.long(), a.long() @ a.long().t())


def int8_matmul(a: Tensor, b: Tensor) -> Tensor:
    """The exact product a b' of a (M, K) and b (N, K), int8 within +-127; (M, N), int32 or a
    floating dtype that holds the same integers.
    """
    if a.device.type == "cpu" and _exact_on_cpu():
        return torch._int_mm(a, b.t())
    wide = torch.float32 if a.shape[1] <= _FLOAT32_COLUMNS else torch.float64
    with torch.autocast(a.device.type, enabled=False):
        return a.to(wide) @ b.to(wide).t()


class Int8Linear(nn.Module):
    """An nn.Linear with 8-bit weights, for inference: (..., in) to (..., out) in the input's dtype.

    Buffers: ``weight_int8`` (out, in), ``scale`` (out,) float32, ``bias`` (out,) float32 or None.
    Rows that are not finite give rows that are not finite. It has no derivative: an input that
    requires one raises UserError.
    """

    weight_int8: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        super().__init__()
        weight = weight.detach().to(torch.float32)
        if not bool(weight.isfinite().all()):
            raise UserError("weights that are not finite cannot be quantised")
        top = weight.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny)
        whole = (weight.double() * (_LEVELS / top.double()).unsqueeze(1)).round()
        self.out_features, self.in_features = weight.shape
        self.register_buffer("weight_int8", whole.clamp(-_LEVELS, _LEVELS).to(torch.int8))
        self.register_buffer("scale", (top.double() / _LEVELS**2).to(torch.float32))
        self.register_buffer("bias", None if bias is None else bias.detach().to(torch.float32))

    def extra_repr(self) -> str:
        bias = self.bias is not None
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={bias}"

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled():
            raise UserError(
                "a quantised model has no derivative: guide and train with the original one"
            )
        rows = x.reshape(-1, self.in_features)
        out = torch.empty(len(rows), self.out_features, dtype=torch.float32, device=x.device)
        block = max(64, _NUMBERS // max(self.in_features, self.out_features))
        if len(rows):
            for given, answer in zip(rows.split(block), out.split(block), strict=True):
                self._block(given.to(torch.float32), answer)
        return out.view(*x.shape[:-1], self.out_features).to(x.dtype)

    def _block(self, x: Tensor, out: Tensor) -> None:
        top = x.abs().amax(-1, keepdim=True)
        unit = _LEVELS / top.clamp(min=1e-30)
        whole = int8_matmul(torch.mul(x, unit).round_().to(torch.int8), self.weight_int8)
        # one rounding at a time: a fused multiply-add would round otherwise in the last elements
        out.copy_(whole).mul_(top).mul_(self.scale)
        if self.bias is not None:
            out.add_(self.bias)


def quantise(model: nn.Module, minimum: int = 16384, keep: Sequence[str] = ()) -> nn.Module:
    """A copy of ``model`` whose large linear layers compute in 8-bit integers; the model stays.

    Args:
        minimum: layers with at least this many weights are replaced. Smaller ones gain nothing:
            rounding the activations then costs what the product saves.
        keep: patterns (`fnmatch`) of submodule names to leave alone, e.g. ``("*head*",)``.

    Only plain nn.Linear modules without hooks are replaced; a tied weight stays tied for the ones
    that are not. Raises UserError when nothing is replaced, or the model is not an nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"only an nn.Module can be quantised, got {type(model).__name__}")
    names = [
        name
        for name, module in model.named_modules()
        if type(module) is nn.Linear
        and module.weight.numel() >= minimum
        and not (module._forward_hooks or module._forward_pre_hooks)
        and not any(fnmatch.fnmatchcase(name, pattern) for pattern in keep)
    ]
    if not names:
        sizes = [m.weight.numel() for m in model.modules() if type(m) is nn.Linear]
        raise UserError(
            f"no linear layer of at least {minimum} weights to quantise; the model's largest has "
            f"{max(sizes, default=0)}"
        )
    return _replaced(model, names, lambda layer: Int8Linear(layer.weight, layer.bias))


def restore(model: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
    """A quantised model from its saved tensors: the way back from a checkpoint.

    ``model`` is a freshly built one of the same architecture, in floating point; it is copied.
    ``tensors`` are the ``state_dict()`` of a quantised model: what they hold as ``weight_int8``
    becomes 8-bit again. Raises UserError when they do not fit.
    """
    suffix = ".weight_int8"
    names = [key.removesuffix(suffix) for key in tensors if key.endswith(suffix)]
    modules = dict(model.named_modules())
    wrong = [name for name in names if type(modules.get(name)) is not nn.Linear]
    if wrong:
        raise UserError(f"the model has no linear layer {wrong[0]!r}, which the tensors quantise")
    restored = _replaced(model, names, lambda layer: Int8Linear(layer.weight, layer.bias))
    try:
        restored.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the tensors do not fit the model: {reason}") from None
    return restored


def _replaced(
    model: nn.Module, names: list[str], build: Callable[[Any], nn.Module]
) -> nn.Module:
    if names == [""]:
        return build(model).train(model.training)
    changed = copy.deepcopy(model)
    for name in names:
        owner, _, last = name.rpartition(".")
        layer = build(changed.get_submodule(name))
        setattr(changed.get_submodule(owner), last, layer.train(model.training))
    return changed


def stored_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters and buffers as they are saved."""
    return sum(v.numel() * v.element_size() for v in model.state_dict().values())


@dataclass(frozen=True)
class Level:
    """The error of the quantised predictions at one time: mean over samples, and the worst one."""

    part: str
    t: float
    error: float
    worst: float


@dataclass(frozen=True)
class Gate:
    """The verdict on a quantised model.

    ``levels`` hold the prediction errors, ``moved`` the difference of samples from the same keys,
    one number a part (see `gate`), ``quality`` the mean quality of the original's and the quantised
    model's samples and the standard error of their difference, if it was asked for. ``reasons`` say
    what failed.
    """

    levels: tuple[Level, ...]
    moved: dict[str, float]
    quality: tuple[float, float, float] | None
    tolerance: float
    bytes: tuple[int, int]
    reasons: tuple[str, ...] = field(default=())

    @property
    def passed(self) -> bool:
        return not self.reasons

    def require(self) -> None:
        """Raise UserError with the reasons unless the gate is passed."""
        if self.reasons:
            raise UserError("the quantised model fails its gate: " + "; ".join(self.reasons))

    def __str__(self) -> str:
        worst: dict[str, Level] = {}
        for level in self.levels:
            if level.part not in worst or level.error > worst[level.part].error:
                worst[level.part] = level
        before, after = self.bytes
        lines = [f"{'passed' if self.passed else 'FAILED'}: {before} -> {after} bytes"]
        lines += [
            f"  {name}: prediction error at most {level.error:.4f} (t = {level.t:.2f}, tolerance "
            f"{self.tolerance}), samples of the same keys differ by {self.moved[name]:.4f}"
            for name, level in worst.items()
        ]
        if self.quality is not None:
            first, second, stderr = self.quality
            lines.append(f"  quality {first:.4f} -> {second:.4f} +- {stderr:.4f}")
        return "\n".join([*lines, *(f"  {reason}" for reason in self.reasons)])


class _Both:
    """The original model, which also asks the quantised one and notes how the answers differ."""

    def __init__(self, original: Any, quantised: Any, process: Process):
        for name, part in process.items():
            if not (part.space.discrete or isinstance(part.path, Path)):
                raise UserError(
                    f"part {name!r} moves by {type(part.path).__name__}: the gate knows real parts "
                    "on a path and tokens"
                )
        self.original, self.quantised, self.process = original, quantised, process
        self.records: list[tuple[float, dict[str, Tensor]]] = []

    def __getattr__(self, name: str) -> Any:
        # what a guide asks of a model (null, batched_guidance, evaluations)
        return getattr(self.original, name)

    def __call__(
        self, x: State, t: Tensor, mask: Masks = None, cond: Any = None,
        previous: State | None = None,
    ) -> State:
        answer: Any = self.original(x, t, mask=mask, cond=cond, previous=previous)
        other: Any = self.quantised(x, t, mask=mask, cond=cond, previous=previous)
        state, wanted, found = map(self.process.unpack, (x, answer, other))
        errors = {}
        for name, part in self.process.items():
            p, q, now = wanted[name].double(), found[name].double(), state[name]
            entries = part.space.entry_mask(self.process.mask_of(name, mask), now)
            if part.space.discrete:
                gap = 0.5 * (p.softmax(-1) - q.softmax(-1)).abs().sum(-1)
                errors[name] = _mean(gap, entries)
            else:
                assert isinstance(part.path, Path)
                clock = t.double()
                of_p = predict.weights(part.path, clock, part.predicts, "denoised")[1]
                gap = part.space.project(p - q, self.process.mask_of(name, mask))
                gap = gap * predict.per_sample(of_p, gap)
                errors[name] = _mean(gap.square(), entries).sqrt()
        self.records.append((float(t[0]), errors))
        return answer


def _mean(values: Tensor, entries: Tensor | None) -> Tensor:
    """Mean over the entries of each sample that exist, (B,)."""
    if entries is None:
        return values.flatten(1).mean(1)
    entries = entries.expand_as(values)
    total = values.masked_fill(~entries, 0).flatten(1).sum(1)
    return total / entries.flatten(1).sum(1).clamp(min=1)


def gate(
    original: Any,
    quantised: Any,
    process: Process,
    keys: Keys,
    shape: Any,
    mask: Masks = None,
    cond: Any = None,
    *,
    tolerance: float = 0.02,
    moved: float | None = 0.1,
    quality: Callable[[State, Masks], Tensor] | None = None,
    loss: float = 0.02,
    steps: int = 20,
    **settings: Any,
) -> Gate:
    """Compare a quantised model with its original, and judge.

    The original samples; at every row both models answer the same question, previous prediction
    included. Errors are relative to what the part is about: for real parts the root mean square of
    D_q - D over that of the sample's final state, for tokens the total variation of the class
    probabilities, averaged over entries. Then the quantised model samples from the same keys.

    Args:
        keys, shape, mask, cond, steps, settings: of `sample.sample`; ``settings`` as you will use
            them (solver, remask, guide).
        tolerance: the largest error allowed at any level, mean over samples.
        moved: the largest median difference allowed between samples of the same keys: the root mean
            square of x_q - x over that of x, and the share of tokens that changed. A stochastic
            choice of tokens turns the least difference into another sample of the same law: then
            pass None and judge by ``quality``.
        quality: state and mask to one number a sample (B,), larger is better (validity, fit).
        loss: the largest drop of the mean quality that may be true: the gate fails when the drop
            plus two standard errors (of the paired differences) exceeds it.

    Returns a report; ``report.require()`` raises UserError unless it is passed.
    """
    both = _Both(original, quantised, process)
    first = sample(both, process, keys, shape, mask, cond=cond, steps=steps, **settings)
    second = sample(quantised, process, keys, shape, mask, cond=cond, steps=steps, **settings)
    finals, again = process.unpack(first.x), process.unpack(second.x)
    reasons, levels, shifts = [], [], {}
    for name, part in process.items():
        entries = part.space.entry_mask(process.mask_of(name, mask), finals[name])
        if part.space.discrete:
            scale = torch.ones(len(keys), dtype=torch.float64, device=keys.ids.device)
            changed = (finals[name] != again[name]).double()
            shifts[name] = float(_mean(changed, entries).mean())
        else:
            scale = _mean(finals[name].double().square(), entries).sqrt()
            shift = _mean((again[name] - finals[name]).double().square(), entries).sqrt()
            shifts[name] = float((shift / scale.clamp(min=1e-12)).nan_to_num(math.inf).median())
        for t, errors in both.records:
            error = (errors[name] / scale.clamp(min=1e-12)).nan_to_num(math.inf)
            levels.append(Level(name, t, float(error.mean()), float(error.max())))
        worst = max((v for v in levels if v.part == name), key=lambda v: v.error)
        if not worst.error <= tolerance:
            reasons.append(
                f"predictions of {name} err by {worst.error:.3g} at t = {worst.t:.2f}, more than "
                f"{tolerance}"
            )
        if moved is not None and not shifts[name] <= moved:
            reasons.append(f"samples of {name} moved by {shifts[name]:.3g}, more than {moved}")
    if bool((first.finite & ~second.finite).any()):
        reasons.append("samples stopped being finite")
    found = None
    if quality is not None:
        before, after = (quality(s.x, mask).double() for s in (first, second))
        drop = before - after
        stderr = float(drop.std() / math.sqrt(len(drop)))
        found = float(before.mean()), float(after.mean()), stderr
        if not float(drop.mean()) + 2.0 * stderr <= loss:
            reasons.append(
                f"quality may have dropped by {float(drop.mean()) + 2.0 * stderr:.3g}, more than "
                f"{loss} (standard error {stderr:.2g} from {len(drop)} samples; more make it sure)"
            )
    sizes = [stored_bytes(m) if isinstance(m, nn.Module) else 0 for m in (original, quantised)]
    return Gate(
        tuple(levels), shifts, found, tolerance, (sizes[0], sizes[1]), tuple(reasons)
    )
