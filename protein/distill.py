r"""Distillation: students of a few network calls from a teacher of hundreds, without data.

sid, sim   A generator G asked at K times (`core.student`), from x_g = 0 on,

               x = (1 - t_k) gamma e_k + t_k x_g,     x_g <- G(x, t_k),
               t_k = 1 - 10^(-2 tau_k / 400),         tau_k = 30 .. 400 in K equal steps, rounded,

           taught by `core.distill.sid_loss` with alpha = 1 (SiD, as published for proteins) or 1/2
           (the exact gradient; SIM). Noise levels are those of tau ~ U{0..400} for the generator
           (or uniform: early levels are what tells the shares of modes) and of the teacher's own
           training for the critic, both within [0.02, 0.98]; each sample
           is divided by its mean |x_g - D_p|. The critic, a copy of the teacher that learns the
           generator's denoiser, goes back to the teacher every `reset_every` samples. Training has
           gamma = 1; a sampler may cool, because every step draws its noise anew.
ctm        A flow map (`core.flowmap`) that learns to jump along the teacher's flow between the
           times of a grid, on chains that the teacher itself has drawn.

Everything is made from noise, lengths and labels: no chain is read. Chains of one update share one
length and are centred before every loss, so no padding enters. All draws are functions of (seed,
step); a run that was stopped goes on as if it had not been.

References: Zhou et al. 2024, "Score identity distillation"; Xie et al. 2025, "Distilled protein
backbone generation"; Luo et al. 2024, "One-step diffusion distillation through score implicit
matching"; Kim et al. 2024, "Consistency trajectory models".
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from driftworks.core import checkpoint, grids
from driftworks.core.flowmap import FlowMap, ctm_loss, ctm_times
from driftworks.core.keys import Keys
from driftworks.core.process import Process
from driftworks.core.run import Count, Fraction, Positive, Recipe, Run, open_folder, pick_device
from driftworks.core.student import Distiller, Student, inner_times
from driftworks.core.train import matching_loss
from driftworks.core.watch import Watch
from driftworks.errors import UserError
from driftworks.protein.network import ChainNet, JumpNet, build_jumping
from driftworks.protein.process import LABELS, NULL, chain_process, random_rotations, training_times
from driftworks.protein.sample import generate
from driftworks.protein.zoo import Model

__all__ = ["PRESETS", "DistillConfig", "SidRun", "distill", "step_times"]

FIRST, LAST = 30, 400  # tau of the first and the last step; 400 steps are the teacher's sampler
EARLIEST, LATEST = 0.02, 0.98
#: Squared errors of the denoised chain count as those of the velocity, up to 1 / 0.02^2.
CAP = (1.0 - LATEST) ** -2
#: Blocks of teacher's chains at hand for a flow map, and the steps after which one is replaced.
BLOCKS, LIFE = 16, 32


class DistillConfig(Recipe):
    """Everything that decides a distillation (see `core.run`); saved inside the checkpoint.

    ``calls`` K; ``alpha`` by default 1 for sid and 1/2 for sim; ``levels`` the law of noise levels
    in the student's loss, "log" as published or "uniform"; ``labelled`` the share of chains made
    for a class; ``learning_rate`` the student's, ``critic_rate`` the critic's; ``stops`` of
    the grid of a flow map and ``teacher_steps`` of the chains it learns from.
    """

    method: Literal["sid", "sim", "ctm"] = "sid"
    calls: Count = 8
    alpha: float | None = None
    lengths: tuple[Count, Count] | None = None
    labelled: Fraction = 0.5
    learning_rate: Positive = 5e-5
    critic_rate: Positive = 1e-4
    critic_updates: Count = 1
    reset_every: Count = 400_000
    levels: Literal["log", "uniform"] = "log"
    warmup: Count = 50
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    ema: Fraction = 0.998
    stops: Count = 64
    teacher_steps: Count = 50

    @model_validator(mode="after")
    def _lengths(self) -> DistillConfig:
        if self.lengths is not None and not 2 <= self.lengths[0] <= self.lengths[1]:
            raise ValueError(f"lengths are (least, most) from 2 on, got {self.lengths}")
        return self

    @property
    def mix(self) -> float:
        """alpha of `sid_loss`."""
        default = 0.5 if self.method == "sim" else 1.0
        return default if self.alpha is None else self.alpha

    @classmethod
    def preset(cls, name: str, **changes: Any) -> DistillConfig:
        """A named recipe with fields changed; unknown names raise `UserError`."""
        if name not in PRESETS:
            raise UserError(f"unknown preset {name!r}; choose one of {', '.join(PRESETS)}")
        return cls.model_validate(PRESETS[name] | changes)


PRESETS: dict[str, dict[str, Any]] = {
    # one CPU core
    "small": {"batch": 16, "precision": "bfloat16"},
    # one GPU
    "base": {
        "batch": 256, "learning_rate": 3e-5, "reset_every": 300_000, "precision": "bfloat16",
        "compile": True,
    },
}


def step_times(calls: int) -> tuple[float, ...]:
    """The times t_k of a generator of ``calls`` steps; a single one starts at t = 0.369."""
    if calls < 1:
        raise UserError(f"a student makes at least 1 call, got {calls}")
    if calls == 1:
        return (_time_of(40),)
    gap = (LAST - FIRST) / (calls - 1)
    return tuple(_time_of(round(FIRST + k * gap)) for k in range(calls))


def _time_of(tau: float) -> float:
    return 1.0 - 10.0 ** (-2.0 * tau / 400.0)


def loss_times(uniform: Tensor) -> Tensor:
    """Noise levels (B,) of the generator's loss, from uniforms (B, 2): tau ~ U{0..400}."""
    tau = (uniform[:, 0] * 401).floor()
    return (1.0 - torch.pow(10.0, -tau / 200.0)).clamp(EARLIEST, LATEST)


def critic_times(uniform: Tensor) -> Tensor:
    """Noise levels (B,) of the critic, from uniforms (B, 2): the teacher's own law."""
    return training_times(uniform).clamp(EARLIEST, LATEST)


class _Cast(nn.Module):
    """A network computed in half precision where a loss only compares answers.

    The generator itself stays in single precision: its chains are what everything else is about.
    """

    def __init__(self, net: nn.Module, half: bool):
        super().__init__()
        self.net, self.low = net, half

    def forward(self, x: Tensor, t: Tensor, mask: Any = None, cond: Any = None) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, self.low):
            answer: Tensor = self.net(x, t, mask=mask, cond=cond)
        return answer.to(x.dtype)


class _Still:
    """A model that is asked without its previous answer, and answers in single precision."""

    def __init__(self, model: Any, half: bool):
        self.model, self.half = model, half

    def __call__(
        self, x: Any, t: Tensor, mask: Any = None, cond: Any = None, previous: Any = None
    ) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, self.half):
            answer: Tensor = self.model(x, t, mask=mask, cond=cond)
        return answer.to(x.dtype)


class SidRun(Run[nn.Module]):
    """A run that trains a generator against a teacher and a critic; resumable like any other.

    Args:
        config: the recipe, of method sid or sim.
        teacher: any model of the process: (x, t, mask=, cond=) -> denoised chains.
        student, critic: networks to start from, usually copies of the teacher; a later run must be
            built with the same critic.
        lengths: least and most residues of the chains that are made.
        labels: number of classes to ask for, 0 for a network that knows none.
        process: of chains in nm by default.
    """

    def __init__(
        self, config: DistillConfig, teacher: Any, student: nn.Module, critic: nn.Module,
        lengths: tuple[int, int], labels: int = len(LABELS), process: Process | None = None,
        device: torch.device | None = None,
    ):
        blank = copy.deepcopy(student).cpu()
        super().__init__(
            config, student, lambda: copy.deepcopy(blank), device or torch.device("cpu")
        )
        self.config, self.lengths, self.labels = config, lengths, labels
        half = config.precision == "bfloat16"
        self.critic = critic.to(self.device)
        self.critic_optimiser = torch.optim.Adam(
            self.critic.parameters(), lr=config.critic_rate, betas=(0.0, 0.999), eps=1e-6
        )
        process = process or chain_process()
        self.distiller = Distiller(
            _Still(teacher, half), _Cast(self.critic, half),
            Student(self.net, process, step_times(config.calls)),
            self.critic_optimiser, self.optimiser,
            alpha=config.mix, normalise=True,
            times=loss_times if config.levels == "log" else inner_times,
            critic_times=critic_times,
            critic_loss=partial(matching_loss, velocity_cap=CAP),
            critic_updates=config.critic_updates, reset_every=config.reset_every,
            clip=config.clip, decay=0.0,  # the average is kept by the run
        )

    def request(self) -> tuple[Keys, int, dict[str, Tensor] | None]:
        """The keys, the length and the condition of the step that comes."""
        return made_for(self.config, self.step, self.lengths, self.labels, self.device)

    def advance(self) -> dict[str, Tensor]:
        """One update of critic and student; the losses and the gap to the teacher, detached."""
        keys, length, cond = self.request()
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate()
        share = self.learning_rate() / self.config.learning_rate
        for group in self.critic_optimiser.param_groups:
            group["lr"] = self.config.critic_rate * share
        update = self.distiller.update(keys, (length, 3), cond=cond)
        self.ema.update(self.parameters)
        self.step += 1
        return {
            "critic": update.critic.total.detach(),
            "student": update.student.total.detach(),
            "gap": update.student.gap["x"],
        }

    def save(self, folder: Path) -> None:
        # The critic goes first: the student's file is what says that a state is whole.
        state, optimiser = self.critic.state_dict(), self.critic_optimiser.state_dict()["state"]
        tensors = {f"critic.{k}": v for k, v in state.items()}
        for k, entries in optimiser.items():
            tensors |= {f"{name}.{k}": v.reshape(v.shape or (1,)) for name, v in entries.items()}
        counts = {"updates": self.distiller.updates, "samples": self.distiller.samples}
        checkpoint.save(folder / f"state-{self.step:08d}", tensors, counts, name="critic")
        super().save(folder)

    def restore(self, folder: Path) -> bool:
        if not super().restore(folder):
            return False
        tensors, meta = checkpoint.load(folder / f"state-{self.step:08d}", name="critic")
        names = self.critic.state_dict()
        self.critic.load_state_dict({k: tensors[f"critic.{k}"] for k in names})
        kept = self.critic_optimiser.state_dict()
        kept["state"] = {
            k: {
                name: tensors[f"{name}.{k}"].reshape(() if name == "step" else p.shape)
                for name in ("step", "exp_avg", "exp_avg_sq")
            }
            for k, p in enumerate(self.critic.parameters()) if f"step.{k}" in tensors
        }
        self.critic_optimiser.load_state_dict(kept)
        self.distiller.updates, self.distiller.samples = meta["updates"], meta["samples"]
        return True


def made_for(
    config: DistillConfig, step: int, lengths: tuple[int, int], labels: int, device: torch.device,
) -> tuple[Keys, int, dict[str, Tensor] | None]:
    """Keys (B,), the length and the condition of a step: functions of (seed, step)."""
    low, high = lengths
    u = Keys.for_samples(config.seed, [step]).uniform("length", 0, (), torch.float64)
    length = low + int(float(u) * (high - low + 1))
    first = step * config.batch
    keys = Keys.for_samples(config.seed, range(first, first + config.batch))
    if labels == 0:
        return keys.to(device), length, None
    told = keys.uniform("label", 0) < config.labelled
    label = torch.where(told, (keys.uniform("class", 0) * labels).long(), NULL)
    return keys.to(device), length, {"label": label.to(device)}


class _Blocks:
    """Chains of the teacher in blocks of one length; the newest `BLOCKS` are at hand."""

    def __init__(
        self, config: DistillConfig, teacher: ChainNet, lengths: tuple[int, int],
        device: torch.device,
    ):
        self.config, self.teacher, self.lengths, self.device = config, teacher, lengths, device
        self.process = chain_process()
        self.kept: dict[int, tuple[Tensor, dict[str, Tensor] | None]] = {}

    def __call__(self, step: int) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Chains (B, L, 3) and their condition for a step."""
        newest = BLOCKS - 1 + step // LIFE
        u = Keys.for_samples(self.config.seed, [step]).uniform("block", 0, (), torch.float64)
        number = newest - int(float(u) * BLOCKS)
        if number not in self.kept:
            self.kept = {k: v for k, v in self.kept.items() if k > newest - BLOCKS}
            self.kept[number] = self._draw(number)
        return self.kept[number]

    def _draw(self, number: int) -> tuple[Tensor, dict[str, Tensor] | None]:
        keys, length, cond = made_for(
            self.config, number, self.lengths, len(LABELS), self.device
        )
        mask = torch.ones(len(keys), length, dtype=torch.bool, device=self.device)
        drawn = generate(
            self.teacher, self.process, keys, mask, self.config.teacher_steps, solver="ode",
            cond=cond, self_condition=False, stream="block",
        ).x
        assert isinstance(drawn, Tensor)
        return drawn, cond


def _ctm_step(
    run: Run[JumpNet], config: DistillConfig, teacher: Any, average: JumpNet, blocks: _Blocks
) -> dict[str, Tensor]:
    process = blocks.process
    chains, cond = blocks(run.step)
    first = run.step * config.batch
    keys = Keys.for_samples(config.seed, range(first, first + config.batch)).to(run.device)
    chains = chains @ random_rotations(keys)
    t, u, s = ctm_times(keys.uniform("time", 0, (3,)), grids.log(config.stops))
    bridge = process.bridge(chains, t, keys)
    with torch.autocast(run.device.type, torch.bfloat16, config.precision == "bfloat16"):
        loss = ctm_loss(
            FlowMap(run.net, process), teacher, bridge, u, s, cond,
            reference=FlowMap(average, process),
        )
    run.update(loss.total)
    own = dict(average.named_parameters())
    names = {id(p): name for name, p in run.net.named_parameters()}
    run.ema.copy_to([own[names[id(p)]] for p in run.parameters])
    return {"consistency": loss.consistency, "matching": loss.matching}


def _export(
    run: Run[Any], config: DistillConfig, folder: Path, teacher: Model, lengths: tuple[int, int]
) -> str:
    """Write the averaged weights in half precision as the model of ``folder``."""
    from driftworks import __version__

    meta = {
        "kind": "protein",
        "role": "flowmap" if config.method == "ctm" else "student",
        "config": config.model_dump(mode="json"),
        "net": teacher.config.model_dump(mode="json"),
        "lengths": list(lengths),
        "times": list(step_times(config.calls)),
        "teacher": {"name": teacher.name, "sha256": teacher.hash},
        "training": {
            "method": config.method,
            "steps": run.step,
            "chains_made": run.step * config.batch,
            "minutes": round(run.seconds / 60, 2),
            "device": torch.cuda.get_device_name() if run.device.type == "cuda" else "cpu",
            "torch": torch.__version__,
            "driftworks": __version__,
        },
    }
    tensors = {k: v.half() for k, v in run.averaged().state_dict().items()}
    return checkpoint.save(folder, tensors, meta)


def distill(
    config: DistillConfig, teacher: Model, out: Path | str, *, resume: bool = False,
    progress: bool = True,
) -> Path:
    """Distil a loaded teacher into a student or a flow map, written to ``out``.

    No data are read. With ``resume`` the newest state in ``out`` is continued. Returns the folder,
    which `protein.load` reads. Raises `UserError` when ``teacher`` is no teacher, when ``out``
    holds another run or cannot be written, and when training diverges.
    """
    if teacher.role != "teacher":
        raise UserError(f"{teacher.name} is a {teacher.role}: only a teacher can be distilled")
    out = open_folder(out, resume)
    device = pick_device(config.device)
    lengths = config.lengths or teacher.lengths
    net = copy.deepcopy(teacher.net).to(device)
    net.eval().requires_grad_(False)
    run: Run[Any]
    advance: Callable[[], dict[str, Tensor]]
    if config.method == "ctm":
        student = build_jumping(teacher.config)
        student.load_state_dict(net.state_dict(), strict=False)
        run = Run(config, student, lambda: build_jumping(teacher.config), device)
        average, blocks = copy.deepcopy(run.net), _Blocks(config, net, lengths, device)
        average.requires_grad_(False)
        still = _Still(net, config.precision == "bfloat16")
        advance = partial(_ctm_step, run, config, still, average, blocks)
    else:
        first, second = (copy.deepcopy(net).train().requires_grad_(True) for _ in range(2))
        run = SidRun(config, net, first, second, lengths, device=device)
        advance = run.advance
    if resume and run.restore(out) and config.method == "ctm":
        average.load_state_dict(run.averaged().state_dict())
    if config.compile:
        networks: list[Any] = [net, run.net]
        for part in (part for one in networks for part in one.rounds):
            part.compile(dynamic=True)

    def save() -> None:
        run.check()
        run.save(out)
        _export(run, config, out, teacher, lengths)

    with Watch(run, "chains", save, enabled=progress) as view:
        while not run.finished():
            view.stepped(advance())
        save()
    return out
