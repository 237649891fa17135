"""Body plans of the procedural creatures: bones, joint limits and archetypes, as tables.

A plan is a tree of bones in a rest pose (y up, z forward, x to the creature's left; metres for a
grown human, arbitrary otherwise). A bone is a segment with flesh around it, a tapered capsule of
elliptic cross-section. Paired bones are written for the left side and mirrored at x = 0. Numbers
are estimates by eye from general anatomy; no body model and no scan went into them.

An archetype multiplies length and girth of bones; an individual is a random mixture of archetypes.
Plans that share a skeleton (human and ape) can be put into correspondence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

__all__ = ["ALL_PLANS", "Bone", "Plan"]

Vector = tuple[float, float, float]
Limits = tuple[float, float]


@dataclass(frozen=True)
class Bone:
    """One bone of the rest pose.

    parent: name of the bone it hangs on, None for the root
    at: where it starts; None is the end of the parent
    by: vector from its start to its end
    radii: of the flesh at start and end, before flattening
    bulge: added to the radius in the middle
    flat: width over depth of the cross-section; width is measured along the axis nearest to x
    flex, side, twist: joint limits in degrees. Flex turns the bone towards its depth axis (forward
        for a limb, up for a tail), side towards its width axis (outward for a left limb).
    paired: mirrored at x = 0
    """

    name: str
    parent: str | None
    at: Vector | None
    by: Vector
    radii: tuple[float, float]
    bulge: float = 0.0
    flat: float = 1.0
    flex: Limits = (0.0, 0.0)
    side: Limits = (0.0, 0.0)
    twist: Limits = (0.0, 0.0)
    paired: bool = False


@dataclass(frozen=True)
class Plan:
    """A skeleton and its archetypes.

    archetypes: for each, factors (length, girth) by bone names separated by blanks; "*" is every
        bone, and factors of several entries multiply
    spread: standard deviations of the logarithms of single lengths and girths
    """

    name: str
    bones: tuple[Bone, ...]
    archetypes: Mapping[str, Mapping[str, tuple[float, float]]]
    spread: tuple[float, float] = (0.05, 0.07)


_limb = partial(Bone, paired=True)


_HOMINID = (
    Bone("pelvis", None, (0, 0.935, 0), (0, 0.08, 0), (0.107, 0.098), flat=1.55,
         flex=(-10, 10), side=(-5, 5), twist=(-10, 10)),
    Bone("abdomen", "pelvis", None, (0, 0.17, 0), (0.094, 0.106), flat=1.38,
         flex=(-8, 30), side=(-12, 12), twist=(-15, 15)),
    Bone("chest", "abdomen", None, (0, 0.18, -0.01), (0.116, 0.112), 0.006, 1.5,
         flex=(-8, 22), side=(-10, 10), twist=(-15, 15)),
    Bone("neck", "chest", (0, 1.40, -0.015), (0, 0.14, 0.027), (0.058, 0.05),
         flex=(-20, 25), side=(-15, 15), twist=(-25, 25)),
    Bone("head", "neck", (0, 1.575, 0.012), (0, 0.075, -0.01), (0.074, 0.085), flat=0.84,
         flex=(-15, 20), side=(-12, 12), twist=(-25, 25)),
    Bone("jaw", "head", (0, 1.555, 0.028), (0, -0.018, 0.030), (0.052, 0.042), flat=1.1),
    Bone("nose", "head", (0, 1.60, 0.08), (0, -0.022, 0.02), (0.016, 0.017)),
    _limb("ear", "head", (0.07, 1.59, 0.0), (0.012, 0.02, -0.012), (0.017, 0.017), flat=0.6),
    _limb("breast", "chest", (0.075, 1.29, 0.052), (0.004, -0.012, 0.012), (0.054, 0.046)),
    _limb("clavicle", "chest", (0.05, 1.385, -0.01), (0.115, 0.005, 0.0), (0.058, 0.052),
          flex=(-12, 12), side=(-10, 15)),
    _limb("upperarm", "clavicle", None, (0.185, -0.205, 0.0), (0.05, 0.038), 0.004,
          flex=(-35, 75), side=(-28, 95), twist=(-25, 25)),
    _limb("forearm", "upperarm", None, (0.165, -0.185, 0.03), (0.037, 0.026), 0.006,
          flex=(0, 95), twist=(-25, 25)),
    _limb("hand", "forearm", None, (0.055, -0.062, 0.012), (0.029, 0.034), flat=0.55,
          flex=(-12, 12), side=(-35, 35)),
    _limb("fingers", "hand", None, (0.055, -0.066, 0.01), (0.030, 0.021), flat=0.45,
          side=(-45, 10)),
    _limb("thumb", "hand", (0.545, 0.955, 0.058), (0.025, -0.04, 0.042), (0.016, 0.013),
          flex=(-15, 15), side=(-20, 10)),
    _limb("buttock", "pelvis", (0.062, 0.90, -0.055), (0.01, 0.03, 0.0), (0.076, 0.072)),
    _limb("thigh", "pelvis", (0.085, 0.87, 0.0), (0.042, -0.38, 0.01), (0.076, 0.052), 0.008,
          flex=(-18, 65), side=(-4, 28), twist=(-12, 12)),
    _limb("shin", "thigh", None, (0.005, -0.41, -0.02), (0.047, 0.033), 0.012,
          flex=(-85, 0), twist=(-8, 8)),
    _limb("heel", "foot", (0.132, 0.05, -0.035), (0.0, -0.01, -0.02), (0.034, 0.032)),
    _limb("foot", "shin", (0.132, 0.075, -0.01), (0.02, -0.038, 0.11), (0.036, 0.030), flat=1.2,
          flex=(-18, 25), side=(-8, 8)),
    _limb("toes", "foot", None, (0.008, -0.006, 0.055), (0.031, 0.022), flat=1.8,
          flex=(-8, 25)),
)

_QUADRUPED = (
    Bone("pelvis", None, (0, 0.63, -0.33), (0, 0.005, 0.14), (0.092, 0.092), flat=0.9,
         flex=(-10, 10), side=(-8, 8), twist=(-5, 5)),
    Bone("loin", "pelvis", None, (0, -0.01, 0.19), (0.088, 0.098), flat=0.85,
         flex=(-18, 14), side=(-15, 15), twist=(-8, 8)),
    Bone("chest", "loin", None, (0, -0.005, 0.20), (0.112, 0.105), 0.004, 0.75,
         flex=(-10, 12), side=(-12, 12), twist=(-8, 8)),
    Bone("neck", "chest", (0, 0.665, 0.235), (0, 0.115, 0.115), (0.088, 0.07), flat=0.85,
         flex=(-25, 30), side=(-22, 22), twist=(-10, 10)),
    Bone("nape", "neck", None, (0, 0.095, 0.075), (0.066, 0.06), flat=0.9,
         flex=(-20, 25), side=(-20, 20), twist=(-12, 12)),
    Bone("head", "nape", None, (0, -0.015, 0.085), (0.068, 0.058), flat=1.05,
         flex=(-25, 20), side=(-20, 20), twist=(-12, 12)),
    Bone("snout", "head", None, (0, -0.03, 0.11), (0.046, 0.033), flat=0.95),
    _limb("ear", "head", (0.04, 0.915, 0.42), (0.02, 0.075, -0.005), (0.026, 0.012), flat=1.4,
          flex=(-25, 25), side=(-15, 30)),
    Bone("tail1", "pelvis", (0, 0.665, -0.36), (0, -0.03, -0.12), (0.036, 0.03),
         flex=(-40, 35), side=(-25, 25)),
    Bone("tail2", "tail1", None, (0, -0.035, -0.11), (0.03, 0.027),
         flex=(-18, 30), side=(-25, 25)),
    Bone("tail3", "tail2", None, (0, -0.02, -0.11), (0.027, 0.023),
         flex=(-10, 35), side=(-25, 25)),
    Bone("tail4", "tail3", None, (0, -0.005, -0.10), (0.023, 0.015),
         flex=(-5, 35), side=(-25, 25)),
    _limb("scapula", "chest", (0.062, 0.67, 0.15), (0.018, -0.15, 0.075), (0.062, 0.052),
          flat=0.65, flex=(-15, 15), side=(-4, 6)),
    _limb("humerus", "scapula", None, (0.005, -0.135, -0.075), (0.05, 0.038), flat=0.8,
          flex=(-18, 28), side=(-5, 10)),
    _limb("forearm", "humerus", None, (0.0, -0.20, 0.02), (0.037, 0.023),
          flex=(-20, 40), side=(-4, 4)),
    _limb("pastern", "forearm", None, (0.0, -0.13, 0.005), (0.023, 0.022),
          flex=(-55, 8)),
    _limb("paw", "pastern", (0.085, 0.045, 0.18), (0.0, -0.015, 0.05), (0.027, 0.026), flat=1.2,
          flex=(-30, 20)),
    _limb("thigh", "pelvis", (0.066, 0.62, -0.29), (0.02, -0.20, 0.09), (0.086, 0.052), flat=0.65,
          flex=(-30, 32), side=(-4, 12)),
    _limb("shank", "thigh", None, (0.0, -0.16, -0.135), (0.048, 0.025), 0.003,
          flex=(-30, 22), side=(-3, 3)),
    _limb("hock", "shank", None, (0.0, -0.21, 0.02), (0.026, 0.022),
          flex=(-12, 38)),
    _limb("hindpaw", "hock", (0.086, 0.045, -0.318), (0.0, -0.015, 0.055), (0.027, 0.026),
          flat=1.2, flex=(-25, 20)),
)

_THEROPOD = (
    Bone("pelvis", None, (0, 0.88, -0.15), (0, 0.005, 0.15), (0.118, 0.118), flat=0.85,
         flex=(-14, 14), side=(-6, 6), twist=(-6, 6)),
    Bone("trunk", "pelvis", None, (0, 0.0, 0.18), (0.124, 0.122), 0.004, 0.85,
         flex=(-12, 14), side=(-10, 10), twist=(-8, 8)),
    Bone("chest", "trunk", None, (0, 0.03, 0.12), (0.115, 0.098), flat=0.85,
         flex=(-12, 14), side=(-10, 10), twist=(-8, 8)),
    Bone("neck", "chest", (0, 0.95, 0.33), (0, 0.12, 0.09), (0.08, 0.06),
         flex=(-25, 25), side=(-22, 22), twist=(-8, 8)),
    Bone("nape", "neck", None, (0, 0.14, 0.03), (0.056, 0.05),
         flex=(-30, 25), side=(-20, 20), twist=(-10, 10)),
    Bone("head", "nape", None, (0, 0.012, 0.09), (0.064, 0.056), flat=0.9,
         flex=(-25, 22), side=(-22, 22), twist=(-12, 12)),
    Bone("snout", "head", None, (0, -0.025, 0.13), (0.045, 0.029), flat=0.9),
    Bone("tail1", "pelvis", (0, 0.885, -0.19), (0, 0.0, -0.19), (0.098, 0.076), flat=0.85,
         flex=(-20, 15), side=(-16, 16)),
    Bone("tail2", "tail1", None, (0, -0.01, -0.19), (0.076, 0.055), flat=0.85,
         flex=(-14, 16), side=(-20, 20)),
    Bone("tail3", "tail2", None, (0, 0.005, -0.19), (0.054, 0.036),
         flex=(-12, 20), side=(-22, 22)),
    Bone("tail4", "tail3", None, (0, 0.015, -0.19), (0.035, 0.018),
         flex=(-10, 22), side=(-25, 25)),
    _limb("humerus", "chest", (0.088, 0.85, 0.25), (0.025, -0.11, 0.0), (0.036, 0.028),
          flex=(-35, 45), side=(-5, 30)),
    _limb("forearm", "humerus", None, (0.005, -0.055, 0.085), (0.026, 0.02),
          flex=(-15, 45), side=(-10, 15)),
    _limb("hand", "forearm", None, (-0.005, -0.05, 0.05), (0.021, 0.012), flat=0.7,
          flex=(-35, 20)),
    _limb("thigh", "pelvis", (0.085, 0.83, -0.07), (0.04, -0.22, 0.13), (0.105, 0.06), flat=0.7,
          flex=(-32, 32), side=(-4, 14)),
    _limb("shank", "thigh", None, (0.0, -0.25, -0.16), (0.056, 0.03), 0.006,
          flex=(-35, 25), side=(-3, 3)),
    _limb("hock", "shank", None, (0.0, -0.30, 0.06), (0.031, 0.027),
          flex=(-15, 40)),
    _limb("toes", "hock", (0.125, 0.055, -0.01), (0.012, -0.028, 0.15), (0.03, 0.016), flat=1.5,
          flex=(-25, 20)),
    _limb("toe", "hock", (0.13, 0.055, -0.015), (0.075, -0.028, 0.095), (0.026, 0.015), flat=1.2,
          flex=(-25, 20)),
    _limb("spur", "hock", (0.12, 0.05, -0.03), (0.0, -0.02, -0.065), (0.024, 0.013),
          flex=(-15, 15)),
)

_HUMANS = {
    "man": {"breast": (1, 0.72), "clavicle": (1.05, 1), "chest": (1.03, 1.03)},
    "woman": {"*": (0.94, 0.93), "breast": (1.2, 1.12), "pelvis buttock": (1, 1.1),
              "clavicle upperarm forearm": (0.92, 0.9), "abdomen": (1, 0.93), "neck": (1, 0.88)},
    "stout": {"abdomen": (0.97, 1.36), "pelvis chest": (1, 1.16), "thigh upperarm": (0.97, 1.15),
              "buttock breast": (1, 1.12), "neck jaw": (0.9, 1.1)},
    "child": {"*": (0.68, 0.68), "head jaw nose ear": (1.36, 1.3), "breast": (1, 0.75),
              "thigh shin": (0.9, 1.0)},
}

_APES = {
    "gorilla": {"thigh": (0.62, 1.15), "shin": (0.60, 1.15), "upperarm": (1.28, 1.45),
                "forearm": (1.35, 1.5), "hand fingers thumb": (1.1, 1.35),
                "abdomen": (1.1, 1.38), "chest": (1.1, 1.32), "pelvis": (1, 1.12),
                "clavicle": (1.15, 1.4), "neck": (0.6, 1.55), "jaw": (1.5, 1.25),
                "nose": (1, 0.8), "foot toes": (1.05, 1.15), "breast": (1, 0.75)},
    "chimpanzee": {"*": (0.8, 0.8), "thigh shin": (0.68, 1.0), "upperarm": (1.22, 1.15),
                   "forearm": (1.3, 1.15), "hand fingers": (1.3, 1.1), "abdomen": (1.05, 1.12),
                   "neck": (0.7, 1.2), "jaw": (1.6, 1.15), "ear": (1.5, 1.5), "foot toes": (1.1, 1),
                   "breast buttock": (1, 0.75)},
}

_QUADRUPEDS = {
    "wolf": {},
    "cat": {"*": (0.62, 0.60), "pelvis loin chest": (1.1, 0.88), "snout": (0.35, 0.95),
            "neck nape": (0.75, 0.88), "head": (0.95, 1.1), "humerus forearm": (0.92, 1.05),
            "thigh shank hock": (0.95, 1.05), "tail1 tail2 tail3 tail4": (1.35, 0.85),
            "ear": (0.9, 1.1)},
    "horse": {"*": (1.6, 1.6), "neck": (1.75, 1.25), "nape": (1.55, 1.1), "head": (1.35, 1.0),
              "snout": (1.15, 1.05), "humerus": (1.05, 1.15), "forearm": (1.35, 0.95),
              "pastern": (1.75, 0.8), "thigh": (1.05, 1.15), "shank": (1.15, 1.0),
              "hock": (1.3, 0.85), "paw hindpaw": (0.75, 0.95), "ear": (0.8, 0.75),
              "tail1": (0.7, 0.85), "tail2 tail3 tail4": (0.8, 0.9), "loin chest": (1.0, 1.12)},
    "cow": {"*": (1.5, 1.5), "pelvis": (1.1, 1.25), "loin": (1.15, 1.45), "chest": (1.1, 1.3),
            "neck": (1.1, 1.15), "snout": (0.95, 1.3), "head": (1.2, 1.05),
            "paw hindpaw": (0.8, 1.05), "tail1 tail2 tail3 tail4": (0.95, 0.6), "ear": (0.9, 0.9)},
    "llama": {"*": (1.3, 1.2), "neck": (2.6, 0.85), "nape": (2.2, 0.9), "snout": (0.8, 0.85),
              "forearm pastern": (1.35, 0.9), "shank hock": (1.2, 0.9), "ear": (1.1, 0.8),
              "tail1 tail2 tail3 tail4": (0.45, 0.9)},
    "hound": {"*": (0.85, 0.78), "loin": (1.05, 0.88), "snout": (1.15, 0.9),
              "forearm shank": (1.15, 0.95), "tail1 tail2 tail3 tail4": (1.1, 0.7)},
}

_THEROPODS = {
    "raptor": {},
    "tyrant": {"*": (1.7, 1.85), "head": (1.55, 1.45), "snout": (1.25, 1.7),
               "neck nape": (0.85, 1.35), "humerus forearm hand": (0.65, 0.75),
               "shank hock": (0.9, 1.15), "toes toe spur": (0.9, 1.2)},
    "ostrich": {"*": (1.1, 1.0), "neck": (2.2, 0.7), "nape": (2.3, 0.72), "head": (0.75, 0.8),
                "snout": (0.7, 0.75), "tail1": (0.6, 0.95), "tail2": (0.45, 0.8),
                "tail3 tail4": (0.3, 0.8), "trunk": (1.0, 1.12), "humerus forearm": (1.2, 0.95),
                "shank hock": (1.2, 0.85)},
}

ALL_PLANS: dict[str, Plan] = {
    plan.name: plan
    for plan in (
        Plan("human", _HOMINID, _HUMANS),
        Plan("ape", _HOMINID, _APES),
        Plan("quadruped", _QUADRUPED, _QUADRUPEDS),
        Plan("theropod", _THEROPOD, _THEROPODS),
    )
}
