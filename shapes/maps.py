r"""Maps to learn from: |C| of many pairs of shapes whose correspondence is known.

Shape i has functions Phi_i (n, k) and, at the points that correspond, rows S_i = Phi_i[points_i].
With weights W, the area that each point stands for,

    C_ij = P_j S_i,      P_j = (S_j^T W_j S_j)^{-1} S_j^T W_j,

the least-squares functional map from i to j, all on shapes of area 1. Stored are |C| in half
precision and the eigenvalues of both shapes.

Two surfaces of one shape differ in their Laplacians as meshes do, by a relative change of size e,
and functions whose eigenvalues differ by less than that share mix freely. Such a copy is made of
every shape without meshing it anew (`perturbed`): with a random symmetric matrix E of unit entries,

    diag(l) + e sqrt(l l^T) * E = Q diag(l') Q^T,      Phi' = Phi Q,

which is what first-order perturbation theory makes of a random change, and a full rotation inside
eigenspaces whose gap is below e.

Sources: procedural creatures (`creatures`: individuals in several poses, some with a surface of
their own, people and apes paired with each other), or registered meshes of one's own. A share of
the subjects is held out, and no pair joins them with the others, so that a prior can be tested on
shapes it never saw; whole categories are left out with `Maps.of_groups`.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.random.bit_generator import ISpawnableSeedSequence
from numpy.typing import NDArray

from driftworks.core.checkpoint import write_file
from driftworks.data.progress import progress_bar
from driftworks.errors import UserError
from driftworks.shapes import files
from driftworks.shapes.creatures import PLANS, Creature, correspondence, draw
from driftworks.shapes.mesh import Mesh
from driftworks.shapes.repair import clean
from driftworks.shapes.spectrum import Basis, basis

__all__ = [
    "Maps",
    "diagonal_shares",
    "is_maps",
    "load_or_make",
    "of_creatures",
    "of_meshes",
    "perturbed",
    "read",
]

Array = NDArray[np.float64]
Index = NDArray[np.int64]

#: Relative change of the Laplacian between two meshes of one shape with about 2000 vertices.
CHANGE = 0.005
_FIELDS = ("c", "pairs", "values", "groups", "subjects", "held", "source")


@dataclass(frozen=True, eq=False)
class Maps:
    """Absolute functional maps of pairs of shapes, all of one size.

    c: (N, k, k) float16, |C| from shape ``pairs[:, 0]`` to shape ``pairs[:, 1]``
    pairs: (N, 2) int64 numbers of shapes
    values: (S, k) float32 eigenvalues of the shapes at area 1, rising from 0
    groups: (S,) the category of each shape
    subjects: (S,) whose shape it is
    held: (S,) bool, of a subject held out
    source: what it was made from
    """

    c: NDArray[np.float16]
    pairs: Index
    values: NDArray[np.float32]
    groups: NDArray[np.str_]
    subjects: NDArray[np.str_]
    held: NDArray[np.bool_]
    source: str = ""

    def __post_init__(self) -> None:
        n, k = len(self.c), self.c.shape[-1]
        shapes = len(self.values)
        if (
            self.c.shape != (n, k, k)
            or self.pairs.shape != (n, 2)
            or self.values.shape != (shapes, k)
            or not len(self.groups) == len(self.subjects) == len(self.held) == shapes
            or (n and not 0 <= self.pairs.min() <= self.pairs.max() < shapes)
        ):
            raise UserError(
                f"maps {self.c.shape}, pairs {self.pairs.shape} and eigenvalues "
                f"{self.values.shape} do not fit together"
            )

    def __len__(self) -> int:
        return len(self.c)

    @property
    def k(self) -> int:
        """The number of functions of each shape."""
        return self.c.shape[1]

    def take(self, rows: NDArray[Any] | np.bool_) -> Maps:
        """The maps of some rows, by number or truth value."""
        return Maps(
            self.c[rows], self.pairs[rows], self.values, self.groups, self.subjects, self.held,
            self.source,
        )  # fmt: skip

    def training(self) -> Maps:
        """The maps between shapes that are not held out."""
        return self.take(~self.held[self.pairs].any(1))

    def held_out(self) -> Maps:
        """The maps between shapes of subjects that are held out."""
        return self.take(self.held[self.pairs].all(1))

    def of_groups(self, names: Iterable[str]) -> Maps:
        """The maps between shapes of these categories; `UserError` for a name that is not there."""
        names = tuple(names)
        known = sorted({str(name) for name in self.groups})
        if wrong := [name for name in names if name not in known]:
            raise UserError(f"no category {wrong[0]!r}; choose from {', '.join(known)}")
        return self.take(np.isin(self.groups, names)[self.pairs].all(1))

    def first(self, k: int) -> Maps:
        """The leading k functions of every shape."""
        if not 1 <= k <= self.k:
            raise UserError(f"these maps have {self.k} functions; {k} were asked for")
        return Maps(
            self.c[:, :k, :k], self.pairs, self.values[:, :k], self.groups, self.subjects,
            self.held, self.source,
        )  # fmt: skip

    def write(self, path: Path | str) -> None:
        """Write an .npz file; numpy alone reads it. Raises `UserError` if it cannot be written."""
        path = Path(path)
        if path.suffix != ".npz":
            raise UserError(f"output {path}: maps are written as .npz")
        content = io.BytesIO()
        # bound to Any: the stubs take the names of arrays for an option
        save: Any = np.savez
        save(content, **{name: np.asarray(getattr(self, name)) for name in _FIELDS})
        write_file(path, content.getvalue())


def is_maps(path: Path | str) -> bool:
    """Whether a file looks like one of `Maps.write`: an .npz whose arrays have those names."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {f"{name}.npy" for name in _FIELDS} <= set(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def read(path: Path | str) -> Maps:
    """Maps from a file of `Maps.write`; `UserError` for anything else."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            found = {name: stored[name] for name in _FIELDS}
    except FileNotFoundError:
        raise UserError(f"no file {path}") from None
    except KeyError as error:
        raise UserError(f"{path} is no file of maps: it lacks {error}") from None
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    return Maps(**{**found, "source": str(found["source"])})


def perturbed(
    values: Array, rng: np.random.Generator, change: float = CHANGE
) -> tuple[Array, Array]:
    """Eigenvalues (k,) and rotation Q (k, k) of a Laplacian with a relative random change.

    values: (k,) rising from 0, which stays 0 with its function; Q has the new functions in columns.
    """
    k = len(values)
    noise = rng.normal(size=(k, k))
    root = np.sqrt(values)
    found, q = np.linalg.eigh(
        np.diag(values) + change * np.outer(root, root) * (noise + noise.T) / np.sqrt(2.0)
    )
    return np.maximum(found, 0.0), q


@dataclass(frozen=True, eq=False)
class _Shape:
    """A shape on its way into maps; ``samples`` (s, k) and ``inverse`` (k, s) are S and P."""

    values: Array
    samples: NDArray[np.float32]
    inverse: NDArray[np.float32]
    group: str
    subject: str


def _shape(found: Basis, points: Index, group: str, subject: str) -> _Shape:
    """A shape from its functions and its vertices (s,) at the points that correspond."""
    if len(np.unique(points)) < len(found):
        raise UserError(
            f"{subject}: {len(np.unique(points))} points that correspond cannot fix "
            f"{len(found)} functions"
        )
    samples = found.functions[points]
    # a vertex that several points share counts once
    weight = found.mass[points] / np.bincount(points, minlength=found.vertices)[points]
    weighted = samples.T * weight
    inverse = np.linalg.solve(weighted @ samples, weighted)
    return _Shape(
        found.values, samples.astype(np.float32), inverse.astype(np.float32), group, subject
    )


def of_creatures(
    count: int = 600,
    k: int = 100,
    *,
    plans: Sequence[str] = PLANS,
    vertices: int = 2000,
    poses: int = 4,
    own_surfaces: float = 0.15,
    partners: int = 10,
    held: float = 0.1,
    seed: int = 0,
    progress: bool = False,
) -> Maps:
    """Maps between procedural creatures.

    count: creatures in all, evenly of each plan
    k: functions a creature; 100 of them take about a third of a second at 2000 vertices
    poses: of each individual; own_surfaces: share of the creatures meshed anew
    partners: others that each creature is paired with, in both directions: one in seven the same
        individual, one in five, where plans share a skeleton, of another plan
    held: share of the individuals held out

    Raises `UserError` for an unknown plan and impossible numbers.
    """
    if not plans or (wrong := [name for name in plans if name not in PLANS]):
        raise UserError(f"unknown body plan {(wrong or ['none'])[0]!r}; choose from "
                        f"{', '.join(PLANS)}")
    for name, number, least in (
        ("count", count, 2 * len(plans)), ("k", k, 2), ("poses", poses, 1),
        ("partners", partners, 1),
    ):  # fmt: skip
        if not isinstance(number, int) or number < least:
            raise UserError(f"{name} is a whole number of at least {least}, got {number!r}")
    for name, share in (("own_surfaces", own_surfaces), ("held", held)):
        if not 0.0 <= share < 1.0:
            raise UserError(f"{name} is a share from 0 to 1, got {share!r}")

    rng = np.random.default_rng((seed, 0))
    families = _families(plans, vertices)
    build = _Builder(rng, partners, held)
    with progress_bar("creatures", count, show=progress) as update:
        done = 0
        for reference, members in families:
            shapes = []
            for plan in members:
                share = count // len(plans) + (list(plans).index(plan) < count % len(plans))
                stream = zlib.crc32(plan.encode())
                for i in range(share):
                    creature = _creature(plan, (seed, stream), i, poses, vertices, own_surfaces)
                    points, _ = correspondence(reference, creature)
                    found = basis(creature.mesh.normalised(), k, cache=False)
                    shapes.append(_shape(found, points, plan, f"{plan}-{i // poses}"))
                    done += 1
                    update(done, count)
            build.add(shapes)
    return build.maps(f"{count} procedural creatures ({', '.join(plans)}), seed {seed}")


class _Streams(ISpawnableSeedSequence):
    """A seed whose children are given: a creature's form, flesh, stance and meshing."""

    def __init__(self, children: Sequence[np.random.SeedSequence]):
        self.children = list(children)

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> NDArray[Any]:
        return cast(NDArray[Any], self.children[0].generate_state(n_words, dtype))

    def spawn(self, n_children: int) -> list[np.random.SeedSequence]:  # type: ignore[override]
        if n_children != len(self.children):
            raise ValueError(f"a creature has {len(self.children)} streams, not {n_children}")
        return self.children


def _creature(
    plan: str, seed: tuple[int, int], number: int, poses: int, vertices: int, own_surfaces: float
) -> Creature:
    """Creature ``number``; each ``poses`` in a row are one individual."""
    individual = np.random.SeedSequence((*seed, 1, number // poses)).spawn(2)
    own = np.random.SeedSequence((*seed, 2, number)).spawn(3)
    # the stubs know only SeedSequence; numpy takes whatever has its two methods
    streams: Any = _Streams([*individual, *own[:2]])
    rng = np.random.Generator(np.random.PCG64(streams))
    anew = float(np.random.default_rng(own[2]).uniform()) < own_surfaces
    return draw(plan, rng, vertices=vertices, own_surface=anew)


def _families(plans: Sequence[str], vertices: int) -> list[tuple[Creature, list[str]]]:
    """Plans that share a skeleton, each family with a creature whose vertices are its points."""
    out: list[tuple[Creature, list[str]]] = []
    for plan in dict.fromkeys(plans):
        rest = draw(plan, np.random.default_rng(0), vertices=vertices, pose=0.0)
        for reference, members in out:
            if reference.skeleton.names == rest.skeleton.names:
                members.append(plan)
                break
        else:
            out.append((rest, [plan]))
    return out


def of_meshes(
    path: Path | str,
    k: int = 100,
    *,
    poses: int = 1,
    partners: int | None = None,
    held: float = 0.1,
    seed: int = 0,
    progress: bool = False,
) -> Maps:
    """Maps between registered meshes: all ordered pairs, or some partners of each.

    path: an .npz with ``names`` and for every name ``NAME.v`` (n, 3), ``NAME.f`` (m, 3) and
        ``NAME.corr`` (s,), vertices in one order of points; or a folder of meshes of one
        triangulation. Names up to their digits are categories; in a folder, sub-folders are
    k: functions a shape
    poses: so many meshes of a category in a row are of one subject
    partners: others that each mesh is paired with, in both directions; None for all of them

    Raises `UserError` for files that are not of this form, and for fewer than two meshes.
    """
    path = Path(path)
    if k < 2:
        raise UserError(f"k is a whole number of at least 2, got {k!r}")
    loaded = _from_npz(path) if path.is_file() else _from_folder(path)
    if poses < 1:
        raise UserError(f"poses is a whole number of at least 1, got {poses!r}")
    by_group: dict[str, list[_Shape]] = {}
    with progress_bar("meshes", len(loaded), show=progress) as update:
        for i, (name, group, mesh, points) in enumerate(loaded, start=1):
            found = basis(mesh.normalised(), k)
            members = by_group.setdefault(group, [])
            subject = name if poses == 1 else f"{group}-{len(members) // poses}"
            members.append(_shape(found, mesh.origin[points], group, subject))
            update(i, len(loaded))
    build = _Builder(np.random.default_rng((seed, 0)), partners, held)
    for shapes in by_group.values():
        build.add(shapes)
    if not build.pairs:
        raise UserError(f"{path}: no category has two meshes to pair")
    return build.maps(f"{len(loaded)} meshes of {path.name}")


def _from_npz(path: Path) -> list[tuple[str, str, Mesh, Index]]:
    out = []
    try:
        with np.load(path, allow_pickle=False) as stored:
            for name in map(str, stored["names"]):
                v, f, corr = (stored[f"{name}.{part}"] for part in ("v", "f", "corr"))
                points = np.asarray(corr, dtype=np.int64).ravel()
                if len(points) and not 0 <= points.min() <= points.max() < len(v):
                    raise UserError(f"{path}: {name}.corr names vertices that are not there")
                mesh = clean(v.astype(np.float64), f.astype(np.int64), name=name)
                out.append((name, _category(name), mesh, points))
    except KeyError as error:
        raise UserError(
            f"{path} is no file of registered meshes: it lacks {error}; it holds names and, for "
            "each, NAME.v, NAME.f and NAME.corr"
        ) from None
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    return out


def _from_folder(folder: Path) -> list[tuple[str, str, Mesh, Index]]:
    if not folder.is_dir():
        raise UserError(f"no file or folder {folder}")
    suffixes = (".off", ".obj", ".ply", ".stl")
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in suffixes)
    out = []
    for file in found:
        mesh = files.read(file)
        inside = file.relative_to(folder).parts[:-1]
        group = inside[0] if inside else _category(file.stem)
        out.append((file.stem, group, mesh, np.arange(len(mesh.origin))))
    counts: dict[str, set[int]] = {}
    for _, group, _, points in out:
        counts.setdefault(group, set()).add(len(points))
    for group, sizes in counts.items():
        if len(sizes) > 1:
            raise UserError(
                f"{folder}: meshes of {group!r} have {min(sizes)} to {max(sizes)} vertices; those "
                "of a category must share their vertex numbers"
            )
    if not out:
        raise UserError(f"{folder} holds no meshes ({', '.join(suffixes)})")
    return out


def _category(name: str) -> str:
    return name.rstrip("0123456789").rstrip("_-. ") or name


class _Builder:
    """Collects shapes family by family and pairs them."""

    def __init__(self, rng: np.random.Generator, partners: int | None, held: float):
        self.rng, self.partners, self.held = rng, partners, held
        self.c: list[NDArray[np.float16]] = []
        self.pairs: list[tuple[int, int]] = []
        self.values: list[Array] = []
        self.groups: list[str] = []
        self.subjects: list[str] = []
        self.out: list[bool] = []

    def add(self, shapes: Sequence[_Shape]) -> None:
        """Pair shapes that correspond with each other; every one also as a perturbed copy."""
        base, count = len(self.values), len(shapes)
        subjects = list(dict.fromkeys(shape.subject for shape in shapes))
        left_out = {s for s in subjects if self.rng.uniform() < self.held}
        turns: list[Array] = []
        for copy in (False, True):
            for shape in shapes:
                values, turn = shape.values, np.eye(len(shape.values))
                if copy:
                    values, turn = perturbed(values, self.rng)
                turns.append(turn)
                self.values.append(values)
                self.groups.append(shape.group)
                self.subjects.append(shape.subject)
                self.out.append(shape.subject in left_out)
        for i, j in self._choose(shapes, left_out):
            c = shapes[j].inverse @ shapes[i].samples
            a, b = (n + count * int(self.rng.integers(2)) for n in (i, j))
            self.c.append(np.abs(turns[b].T @ c @ turns[a]).astype(np.float16))
            self.pairs.append((base + a, base + b))

    def _choose(self, shapes: Sequence[_Shape], left_out: set[str]) -> list[tuple[int, int]]:
        """Ordered pairs of shapes, both held out or neither."""
        chosen: list[tuple[int, int]] = []
        outside = np.array([shape.subject in left_out for shape in shapes])
        subject = np.array([shape.subject for shape in shapes])
        group = np.array([shape.group for shape in shapes])
        for i in range(len(shapes)):
            others = outside == outside[i]
            others[i] = False
            if self.partners is None:
                chosen += [(i, j) for j in np.flatnonzero(others).tolist()]
                continue
            own = others & (subject == subject[i])
            kin = others & (group == group[i]) & ~own
            far = others & (group != group[i])
            for _ in range(self.partners):
                u = self.rng.uniform()
                wanted = own if u < 1 / 7 else far if u > 4 / 5 else kin
                pool = np.flatnonzero(next((p for p in (wanted, kin, others) if p.any()), wanted))
                if len(pool):
                    j = int(self.rng.choice(pool))
                    chosen += [(i, j), (j, i)]
        return chosen

    def maps(self, source: str) -> Maps:
        if not self.c:
            raise UserError(f"{source}: there is no pair to make a map of")
        return Maps(
            np.stack(self.c), np.array(self.pairs, np.int64),
            np.stack(self.values).astype(np.float32), np.array(self.groups),
            np.array(self.subjects), np.array(self.out), source,
        )  # fmt: skip


def diagonal_shares(maps: Maps, band: int = 3) -> dict[str, float]:
    """How near maps are to the identity: mean |C_ii|, mean share of C^2 within ``band`` of the
    diagonal, mean of |C|^2 / k (1 for an orthogonal map), mean deviation of an entry from its mean.
    """
    c = maps.c.astype(np.float64)
    k = maps.k
    near = np.abs(np.subtract.outer(np.arange(k), np.arange(k))) <= band
    square = np.square(c)
    total = square.sum((1, 2))
    return {
        "diagonal": float(np.einsum("nii->ni", c).mean()),
        "near_diagonal": float(((square * near).sum((1, 2)) / total).mean()),
        "norm": float((total / k).mean()),
        "deviation": float(np.sqrt(np.square(c - c.mean(0)).mean())),
    }


def load_or_make(path: Path | str, make: Callable[[], Maps]) -> Maps:
    """Maps from a file if it is there, else made and written to it."""
    path = Path(path)
    if path.is_file():
        return read(path)
    made = make()
    made.write(path)
    return made
