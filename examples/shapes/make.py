"""Make the two shapes of this folder: a cat-like and a wolf-like creature, each meshed anew.

    python examples/shapes/make.py [FOLDER]

They are drawn by the procedural generator, so nobody's scan went into them and they are free to
use. cat_of_wolf.txt is the ground truth: for every vertex of the wolf its vertex of the cat,
counted from 0, as `driftworks match cat.off wolf.off --out map.txt` writes it.
"""

from __future__ import annotations

import sys
import zlib
from pathlib import Path

import numpy as np

from driftworks.shapes import creatures

PLAN, SEED, VERTICES = "quadruped", 7, 2000
#: Of the creatures under this seed, number 0 is four fifths cat and number 1 nine tenths wolf.
NUMBERS = {"cat": 0, "wolf": 1}


def main(folder: Path) -> None:
    made = {}
    for name, number in NUMBERS.items():
        rng = np.random.default_rng((SEED, zlib.crc32(PLAN.encode()), number))
        creature = creatures.draw(PLAN, rng, vertices=VERTICES, own_surface=True)
        made[name] = creature
        # five digits are plenty, and a third of the size of shapes.write
        points = "".join(f"{x:.5f} {y:.5f} {z:.5f}\n" for x, y, z in creature.mesh.vertices)
        faces = "".join(f"3 {i} {j} {k}\n" for i, j, k in creature.mesh.faces)
        sizes = f"{len(creature.mesh)} {len(creature.mesh.faces)} 0\n"
        (folder / f"{name}.off").write_text(f"OFF\n{sizes}{points}{faces}")
    truth, _ = creatures.correspondence(made["wolf"], made["cat"])
    (folder / "cat_of_wolf.txt").write_text("".join(f"{v}\n" for v in truth))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent)
