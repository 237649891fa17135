"""Checkpoints: safetensors for numbers, JSON for words, never a pickle.

A checkpoint is a folder with ``model.safetensors`` and ``model.json``. The JSON carries the format
version, the configuration, free metadata and the SHA-256 of the tensor file, so a torn copy or a
flipped bit of the numbers is an error when they are loaded and not a strange sample later.

Files are written under a temporary name, flushed to the disk and renamed, the JSON last. Whoever
writes over a checkpoint and is killed between the two renames leaves one that fails its SHA-256;
whoever cannot lose the old one (training) writes every checkpoint into a folder of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from driftworks.errors import UserError

__all__ = ["FORMAT", "load", "save", "write_atomically", "write_file"]

FORMAT = 1


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` so that ``path`` is either untouched or complete, also after a crash.

    Raises OSError when the place cannot be written; no temporary file stays behind.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with scratch.open("wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_file(path: Path, content: bytes) -> Path:
    """`write_atomically` for a user's file, its folder made if need be; returns the path.

    Raises `UserError` when the place cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def save(
    folder: Path | str, tensors: dict[str, Tensor], meta: dict[str, Any], name: str = "model"
) -> str:
    """Write ``tensors`` and ``meta`` (JSON-serialisable) into ``folder``; returns the SHA-256.

    The JSON names the tensor file by content, and is renamed into place last: it is the commit.
    The fields ``format`` and ``sha256`` are ours, so metadata that was loaded can be saved again.
    Raises `UserError` when the folder cannot be written, TypeError or ValueError for metadata that
    JSON does not know (NaN among it), and then touches nothing.
    """
    from safetensors.torch import save as serialise

    folder = Path(folder)
    # Copies, because safetensors refuses tensors that share memory (tied or sliced weights).
    own = {
        k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()
    }
    blob = serialise(own)
    digest = hashlib.sha256(blob).hexdigest()
    document = {**meta, "format": FORMAT, "sha256": digest}
    text = json.dumps(document, indent=1, sort_keys=True, allow_nan=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / f"{name}.safetensors", blob)
        write_atomically(folder / f"{name}.json", text.encode() + b"\n")
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"checkpoint {folder} cannot be written: {reason}") from None
    return digest


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"no checkpoint at {path.parent}: {path} is missing") from None
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"checkpoint file {path} cannot be read: {reason}") from None


def load(folder: Path | str, name: str = "model") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint folder; returns (tensors on the CPU, metadata).

    Raises `UserError` when a file is missing, truncated, altered, or of a newer format.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as deserialise

    folder = Path(folder)
    text = _read(folder / f"{name}.json")
    try:
        meta = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"checkpoint {folder}: {name}.json is not JSON: {error}") from None
    if not isinstance(meta, dict) or not isinstance(meta.get("format"), int):
        raise UserError(f"checkpoint {folder}: {name}.json is not a driftworks checkpoint")
    if meta["format"] > FORMAT:
        raise UserError(
            f"checkpoint {folder} has format {meta['format']}, this version reads up to {FORMAT}; "
            "update driftworks"
        )
    blob = _read(folder / f"{name}.safetensors")
    if hashlib.sha256(blob).hexdigest() != meta.get("sha256"):
        raise UserError(f"checkpoint {folder} is damaged: {name}.safetensors fails its SHA-256")
    try:
        return deserialise(blob), meta
    except SafetensorError as error:
        raise UserError(f"checkpoint {folder} is damaged: {error}") from None
