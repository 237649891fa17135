"""``driftworks doctor``: what this machine has, and whether the parts work together."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from driftworks import __version__

__all__ = ["PACKAGES", "doctor"]

#: What driftworks is built on, as pyproject.toml lists it.
PACKAGES = (
    "torch", "numpy", "scipy", "safetensors", "rdkit", "biotite", "pandas", "pyarrow", "sqlalchemy",
    "pydantic", "typer", "rich", "jinja2", "matplotlib", "tblite", "pyscf", "torch-geometric",
    "networkx", "mdtraj", "fcd-torch", "robust-laplacian", "potpourri3d", "trimesh",
    "threadpoolctl",
)  # fmt: skip

# Water at the experimental geometry [angstrom]: O-H 0.9572, H-O-H 104.52 degrees.
WATER = ((8, 1, 1), ((0.0, 0.0, 0.0), (0.7570, 0.0, 0.5859), (-0.7570, 0.0, 0.5859)))


def doctor(
    dft: Annotated[bool, typer.Option("--dft", help="Time a DFT calculation too.")] = False,
) -> None:
    """Versions, threads, device, free disk, and one timed calculation with each oracle.

    \b
    Example:
      driftworks doctor
    """
    _row("driftworks", __version__)
    _row("python", f"{platform.python_version()} ({sys.executable})")
    _row("system", f"{platform.system()} {platform.release()} {platform.machine()}")
    for name in PACKAGES:
        try:
            _row(name, version(name))
        except PackageNotFoundError:
            _row(name, "not installed")

    import torch

    _row("cores", f"{_cores()} usable, {torch.get_num_threads()} threads in torch")
    _row("device", torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu")
    free = shutil.disk_usage(os.getcwd()).free / 2**30
    _row("free disk", f"{free:.1f} GiB in {os.getcwd()}")
    _oracle("xtb")
    if dft:
        _oracle("dft", preset="screen")


def _row(name: str, text: str) -> None:
    print(f"{name:<16} {text}")


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _oracle(name: str, **options: object) -> None:
    import numpy as np

    from driftworks.errors import UserError
    from driftworks.molgen.oracles import OracleInput, get

    numbers, positions = WATER
    water = OracleInput(
        numbers=np.array(numbers), positions=np.array(positions, float), charge=0, mol=None
    )
    try:
        oracle = get(name, **options)
        oracle.evaluate([water])  # the first call loads libraries
        start = time.perf_counter()
        (result,) = oracle.evaluate([water])
        seconds = time.perf_counter() - start
    except UserError as error:
        _row(name, str(error))
        return
    if result.status == "ok":
        _row(name, f"works: dipole of water {result.values['mu']:.3f} D in {1e3 * seconds:.0f} ms")
    else:
        _row(name, f"fails: {result.status}, {result.reason}")
