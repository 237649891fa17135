"""Speed of the molecular flow on this machine: molecules a second, sampling and training.

    python benchmarks/molgen_speed.py [--model qm9] [--molecules 96] [--seconds 20]

Sampling is timed on one core, on two, and on the GPU if there is one, at 25, 50 and 100 steps;
training (small preset, batches of 64, half of them self-conditioned) on one core and on the GPU.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from driftworks import data, molgen
from driftworks.molgen.batches import Batches
from driftworks.molgen.process import molecular_process
from driftworks.molgen.train import TrainConfig, _loss, _Run


def sampling(name: str, molecules: int) -> None:
    places = [("1 core", "cpu", 1), ("2 cores", "cpu", 2)]
    if torch.cuda.is_available():
        places.append((torch.cuda.get_device_name(), "cuda", torch.get_num_threads()))
    print(f"{'sampling, molecules/s':28s}" + "".join(f"{s:>4d} steps" for s in (25, 50, 100)))
    cores = torch.get_num_threads()
    for label, device, threads in places:
        torch.set_num_threads(threads)
        model = molgen.load(name, device)
        count = molecules if device == "cpu" else 40 * molecules
        batch = 16 if device == "cpu" else 512
        model.sample(batch, steps=2, batch_size=batch)
        rates = []
        for steps in (25, 50, 100):
            begin = time.perf_counter()
            model.sample(count, steps=steps, batch_size=batch)
            rates.append(count / (time.perf_counter() - begin))
        print(f"{model.name + ', ' + label:28s}" + "".join(f"{r:10.1f}" for r in rates), flush=True)
    torch.set_num_threads(cores)


def training(seconds: float) -> None:
    """On molecules of the CCD within QM9's elements: real structures that need no download."""
    table = data.ccd(limit=300, max_heavy=9, elements=("H", "C", "N", "O", "F"), progress=False)
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        for precision in ("float32", "bfloat16"):
            config = TrainConfig.preset("small", steps=10**6, device=device, precision=precision)
            batches = Batches(table, molecular_process(config.net), config)
            cores = torch.get_num_threads()
            torch.set_num_threads(1)
            run = _Run(config, batches, torch.device(device))
            done, size, begin = 0, [], time.perf_counter()
            while time.perf_counter() - begin < seconds:
                batch = {k: v.to(device) for k, v in batches[done].items()}
                loss, _ = _loss(run.net, batches.process, batch, config)
                run.update(loss)
                size.append(float(batch["mask"].sum(1).float().mean()))
                done += 1
            rate = done * config.batch / (time.perf_counter() - begin)
            torch.set_num_threads(cores)
            where = "1 core" if device == "cpu" else torch.cuda.get_device_name()
            print(f"training, small, {where}, {precision}: {rate:.0f} molecules/s "
                  f"(mean size {np.mean(size):.1f} atoms)", flush=True)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--model", default="qm9")
    arguments.add_argument("--molecules", type=int, default=96)
    arguments.add_argument("--seconds", type=float, default=20.0)
    chosen = arguments.parse_args()
    sampling(chosen.model, chosen.molecules)
    training(chosen.seconds)
