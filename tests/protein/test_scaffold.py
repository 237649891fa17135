"""Motifs, variations and annealing against enumeration, superposition in numpy and closed forms."""

from __future__ import annotations

import gzip
import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch

from driftworks.core import checkpoint, grids
from driftworks.core.keys import Keys
from driftworks.core.laws import Gaussian
from driftworks.core.paths import Path
from driftworks.errors import UserError
from driftworks.protein import ideal
from driftworks.protein.chains import Chains
from driftworks.protein.motif import Free, Held, Motif, parse_contigs
from driftworks.protein.network import NetConfig, build, build_jumping
from driftworks.protein.process import chain_process
from driftworks.protein.sample import generate, low_temperature
from driftworks.protein.scaffold import Scaffolded, asked_twice, hold, posed
from driftworks.protein.zoo import load

SMALL = NetConfig(width=32, pair_width=16, heads=4, layers=2, rounds=2, radial=8)
LINEAR = Path.linear()


def kabsch(mobile, fixed):
    """Mobile points (n, 3) on fixed ones by the singular value decomposition, never mirrored."""
    a, b = mobile - mobile.mean(0), fixed - fixed.mean(0)
    u, _, vt = np.linalg.svd(a.T @ b)
    flip = np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    return a @ u @ flip @ vt + fixed.mean(0)


def rmsd(a, b):
    a, b = np.asarray(a, float), np.asarray(b, float)
    return float(np.sqrt(((kabsch(a, b) - b) ** 2).sum(1).mean()))


def structure(chains):
    """Atoms N, CA, C, O of chains: name -> ((n, 3) C-alphas, numbers, insertion codes)."""
    import biotite.structure as struc

    parts = []
    for name, (ca, numbers, codes) in chains.items():
        atoms = struc.AtomArray(4 * len(ca))
        moves = np.array([[-0.5, 1.3, 0.2], [0, 0, 0], [0.6, -1.3, 0.3], [1.8, -1.2, 0.4]])
        atoms.coord = (ca[:, None] + moves).reshape(-1, 3).astype(np.float32)
        atoms.atom_name = np.tile(["N", "CA", "C", "O"], len(ca))
        atoms.element = np.tile(["N", "C", "C", "O"], len(ca))
        atoms.res_name = np.repeat(np.resize(["SER", "TRP", "MET"], len(ca)), 4)
        atoms.res_id = np.repeat(numbers, 4)
        atoms.ins_code = np.repeat(codes, 4)
        atoms.chain_id[:] = name
        parts.append(atoms)
    return struc.concatenate(parts)


CA_A = ideal.bundle(40, 2) + np.array([30.0, -20.0, 11.0])
CA_B = ideal.bundle(30, 2) + np.array([30.0, -20.0, 21.0])
NUMBERS = np.array([*range(-2, 10), 10, 10, 10, *range(11, 36)])
CODES = np.array([""] * 13 + ["A", "B"] + [""] * 25)


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """A PDB file: chain A numbered -2 to 35 with 10, 10A, 10B, chain B from 101 on."""
    from biotite.structure.io import pdb

    file = pdb.PDBFile()
    atoms = structure({"A": (CA_A, NUMBERS, CODES), "B": (CA_B, np.arange(101, 131), [""] * 30)})
    file.set_structure(atoms)
    path = tmp_path_factory.mktemp("files") / "target.pdb"
    file.write(str(path))
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A teacher, a student and a flow map with random weights, as checkpoints."""
    out = {}
    for role in ("teacher", "student", "flowmap"):
        net = (build_jumping if role == "flowmap" else build)(SMALL)
        g = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for p in net.parameters():
                p.add_(0.05 * torch.randn(p.shape, generator=g))
        out[role] = tmp_path_factory.mktemp(role)
        meta = {
            "kind": "protein", "role": role, "net": SMALL.model_dump(mode="json"),
            "lengths": [10, 60], "times": [0.3, 0.7, 0.9],
        }
        checkpoint.save(out[role], {k: v.half() for k, v in net.state_dict().items()}, meta)
    return out


# Contigs


def test_contigs_are_read_piece_by_piece():
    got = parse_contigs("[10-20/A12-25/ 5 /B3/A-2-4/0-7]")
    want = (
        Free(10, 20), Held("A", 12, 25), Free(5, 5), Held("B", 3, 3), Held("A", -2, 4), Free(0, 7),
    )
    assert got == want


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("10-20/A12-25/1O", "'1O'"),
        ("10/A12:25", "'A12:25'"),
        ("10//A3-5", "''"),
        ("10/A/5", "'A'"),
        ("", "''"),
        ("20-10/A3-5", "'20-10' is empty"),
        ("5/A9-5", "'A9-5' is empty"),
        ("A3-5/0 B3-5", "'0 B3-5'"),
        ("A3-5/0/B3-5", "break the chain"),
        ("5/A3-5/99999999", "more than"),
        ("10-20/30", "hold no residue"),
        ("A3-5/A7-9", "no residue free"),
    ],
)
def test_a_piece_that_makes_no_sense_is_named(text, named):
    with pytest.raises(UserError, match=named):
        parse_contigs(text)


def test_free_numbers_are_uniform_over_all_combinations_of_an_allowed_length(target):
    motif = Motif.read(target, "2-5/A3-8/3-4/A12-14/0-6", length=(18, 20))
    combos = [
        k for k in itertools.product(range(2, 6), range(3, 5), range(7))
        if 18 <= sum(k) + len(motif) <= 20
    ]
    count = 3000
    layouts = motif.layouts(Keys.for_samples(4, range(count)))
    seen = Counter()
    for layout in layouts:
        p = layout.positions
        before, between = int(p[0]), int(p[6] - p[5] - 1)
        seen[before, between, layout.length - 1 - int(p[-1])] += 1
        assert (np.diff(p[:6]) == 1).all() and (np.diff(p[6:]) == 1).all()
    assert set(seen) == set(combos)
    expected = count / len(combos)
    chi2 = sum((seen[k] - expected) ** 2 / expected for k in combos)
    assert chi2 < len(combos) - 1 + 4 * math.sqrt(2 * (len(combos) - 1))
    assert [x.contigs for x in motif.layouts(Keys.for_samples(4, [5, 3]))] == [
        layouts[5].contigs, layouts[3].contigs
    ]
    length, first = layouts[0].length, int(layouts[0].positions[0])
    assert layouts[0].contigs.startswith(f"{first}/A3-8/") and 18 <= length <= 20


def test_residues_are_those_of_the_authors_with_insertion_codes_and_negative_numbers(target):
    motif = Motif.read(target, "3/B105-108/6/A-2-1/3/A9-11/1")
    rows = [*range(4), *range(11, 16)]
    assert motif.names == (
        "B105", "B106", "B107", "B108", "A-2", "A-1", "A0", "A1",
        "A9", "A10", "A10A", "A10B", "A11",
    )
    want = np.concatenate([CA_B[4:8], CA_A[rows]])
    assert np.abs(motif.ca - want).max() < 6e-4  # a PDB file has three decimals
    assert motif.sequence[:4] == "WMSW" and motif.contigs == "3/B105-108/6/A-2-1/3/A9-11/1"
    assert motif.lengths == (26, 26)


@pytest.mark.parametrize("kind", ["pdb.gz", "cif", "cif.gz", "bcif"])
def test_every_kind_of_file_gives_the_same_motif(target, tmp_path, kind):
    import biotite.structure.io as io

    path = tmp_path / f"again.{kind}"
    if kind == "pdb.gz":
        path.write_bytes(gzip.compress(target.read_bytes()))
    else:
        plain = tmp_path / f"again.{kind.removesuffix('.gz')}"
        io.save_structure(str(plain), io.load_structure(str(target)))
        if kind.endswith(".gz"):
            path.write_bytes(gzip.compress(plain.read_bytes()))
    one, two = (Motif.read(p, "5/A12-20/5/B103-110/5") for p in (target, path))
    assert np.array_equal(one.ca, two.ca) and one.names == two.names


@pytest.mark.parametrize(
    ("contigs", "length", "named"),
    [
        ("5/C12-25/5", None, "no protein chain C; its chains: A, B"),
        ("5/A30-40/5", None, "residue A36 is not in target.pdb.*from -2 to 35"),
        ("5/A3-9/5/A8-12/5", None, "A8 twice"),
        ("5/A3-9/0-4/A30-33/5", None, "A9 and A30 .* apart, too far for 0 free"),
        ("5/A3-9/5", 7, "7 residues: no room"),
        ("5/A3-9/5", 5, "7 residues: no room"),
        ("5-9/A3-9/5", 30, "no chain of 30 residues.*make 17-21"),
        ("5-9/A3-9/5", (2, 14), "no chain of 2-14"),
        ("5-9/A3-9/5", (20, 14), "range is empty"),
        ("5-9/A3-9/5", 17.5, "17.5"),
    ],
)
def test_motifs_that_cannot_be_are_explained(target, contigs, length, named):
    with pytest.raises(UserError, match=named):
        Motif.read(target, contigs, length)


def test_a_gap_in_the_file_is_told_from_a_bond(tmp_path):
    from biotite.structure.io import pdb

    ca = CA_A.copy()
    ca[20:] += 12.0
    file = pdb.PDBFile()
    file.set_structure(structure({"A": (ca, np.arange(1, 41), [""] * 40)}))
    file.write(str(tmp_path / "gap.pdb"))
    with pytest.raises(UserError, match="A20 and A21 .* apart"):
        Motif.read(tmp_path / "gap.pdb", "5/A15-25/5")
    distance = np.linalg.norm(ca[20] - ca[19])
    least = math.ceil((distance - 4.2) / 3.8)  # what the message asks for is enough
    with pytest.raises(UserError, match=f"put {least} or more"):
        Motif.read(tmp_path / "gap.pdb", f"5/A15-20/{least - 1}-30/A21-25/5")
    assert len(Motif.read(tmp_path / "gap.pdb", f"5/A15-20/{least}-30/A21-25/5")) == 11


def test_files_without_what_is_asked_for_are_named(target, tmp_path):
    bare = [
        line for line in target.read_text().splitlines()
        if not (line[12:16].strip() == "CA" and line[22:26].strip() == "7")
    ]
    contents = {
        "empty.pdb": ("", "empty file"),
        "words.cif": ("no structure", "broken file"),
        "words.txt": ("no structure", "not a structure file"),
        "bare.pdb": ("\n".join(bare), "residue A7 of bare.pdb has no C-alpha"),
    }
    for name, (content, named) in contents.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=named):
            Motif.read(tmp_path / name, "5/A3-9/5")
    with pytest.raises(UserError, match="no structure file at .*nowhere"):
        Motif.read(tmp_path / "nowhere.pdb", "5/A3-9/5")
    (tmp_path / "torn.pdb.gz").write_bytes(gzip.compress(target.read_bytes())[:300])
    with pytest.raises(UserError, match="unreadable file"):
        Motif.read(tmp_path / "torn.pdb.gz", "5/A3-9/5")


# Scaffolds


def test_a_motif_is_put_where_it_fits_best_without_mirroring(rng, turn):
    chain = rng.normal(size=(4, 9, 3))
    known = np.zeros((4, 9), bool)
    known[:, [1, 2, 5, 6, 8]] = True
    motif = chain @ turn() + rng.normal(size=3)
    motif[2:, :, 0] *= -1  # mirror images cannot be put in place
    onto = chain + 0.1 * rng.normal(size=chain.shape)
    got = posed(*map(torch.from_numpy, (motif, onto, known))).numpy()
    for row in range(4):
        k = known[row]
        want = kabsch(motif[row, k], onto[row, k])
        assert np.abs(got[row, k] - want).max() < 1e-9
    assert all(rmsd(got[row, known[row]], onto[row, known[row]]) < 0.4 for row in range(2))
    # the volume that four residues span keeps its sign
    volumes = [np.linalg.det(x[:, [2, 5, 6]] - x[:, [1]]) for x in (motif, got)]
    assert np.abs(volumes[0] - volumes[1]).max() < 1e-9


def test_a_finished_design_is_moved_as_a_whole(rng, turn):
    chain, where = rng.normal(size=(20, 3)), np.array([3, 4, 5, 9, 15])
    motif = chain[where] @ turn() + 40.0
    noisy = chain + 1e-4 * rng.normal(size=chain.shape)
    got = hold(noisy, where, motif)
    assert np.array_equal(got[where], motif)
    gaps = [np.linalg.norm(z[:, None] - z, axis=-1) for z in (got, chain)]
    assert np.abs(gaps[0] - gaps[1]).max() < 2e-3
    chain[0, 0] = np.nan
    assert np.array_equal(hold(chain, where, motif), chain, equal_nan=True)


class Shapes:
    """A model that knows a few shapes up to rotation and answers with the nearest one."""

    def __init__(self, shapes):
        self.shapes = [torch.from_numpy(s - s.mean(0)).float() / 10 for s in shapes]

    def __call__(self, x, t, mask=None, cond=None, previous=None):
        weight = torch.ones(x.shape[:2])
        y = x
        if cond is not None and "known" in cond:
            weight = torch.where(cond["known"], 100.0, weight)
            y = torch.where(cond["known"].unsqueeze(-1), t.view(-1, 1, 1) * cond["motif"], x)
        fits = [posed(s.expand_as(x), y, weight) for s in self.shapes]
        time = t.view(-1, 1, 1)
        errors = torch.stack(
            [((time * f - y).square().sum(-1) * weight).sum(1) for f in fits], 1
        )
        return torch.stack(fits, 1)[torch.arange(len(x)), errors.argmin(1)]


@pytest.mark.parametrize("solver", ["sde", "ode"])
def test_a_motif_decides_between_shapes_that_hold_it_and_shapes_that_do_not(solver):
    """The chain that is completed is the one whose part the motif is, or its mirror image's."""
    shapes = [ideal.bundle(36, 2), ideal.hairpin(36), ideal.bundle(36, 2) * np.array([-1.0, 1, 1])]
    net, process = Shapes(shapes), chain_process()
    keys, mask = Keys.for_samples(2, range(24)), torch.ones(24, 36, dtype=torch.bool)
    free = generate(net, process, keys, mask, 40, solver=solver).x * 10
    drawn = [int(np.argmin([rmsd(z, s) for s in shapes])) for z in free]
    assert len(set(drawn)) > 1
    known = torch.zeros(24, 36, dtype=torch.bool)
    known[:, 4:24] = True
    which = torch.arange(24) % 3
    motif = torch.stack([torch.from_numpy(shapes[k]).float() / 10 for k in which])
    cond = {"known": known, "motif": motif + 3.0}
    run = generate(net, process, keys, mask, 40, solver=solver, cond=cond, guide=Scaffolded)
    for z, k in zip(run.x * 10, which, strict=True):
        assert rmsd(z, shapes[k]) < 1e-2
    assert float(run.x.mean(1).abs().max()) < 1e-4


SETTINGS = {
    "teacher": {"steps": 6}, "teacher-ode": {"steps": 6, "solver": "ode"}, "student": {},
    "flowmap": {"steps": 3, "gamma": 0.5},
}


@pytest.mark.parametrize("way", list(SETTINGS))
def test_designs_hold_the_motif_where_the_file_has_it(folders, target, way):
    model = load(folders[way.split("-")[0]], "cpu")
    motif = Motif.read(target, "2-4/A12-20/6-8/B103-109/1-3", length=(26, 29))
    whole = model.scaffold(motif, 5, seed=3, **SETTINGS[way])
    assert whole.finite.all() and len(set(whole.lengths.tolist())) > 1
    made = whole.provenance["motif"]
    for row, name in enumerate(whole.ids):
        held = whole.ca[row, whole.held[row]].numpy()
        assert np.array_equal(held, motif.ca)
        first, _, between, _, last = made["designs"][name].split("/")
        where = np.flatnonzero(whole.held[row].numpy())
        assert where[0] == int(first) and where[9] - where[8] - 1 == int(between)
        assert int(whole.lengths[row]) - 1 - where[-1] == int(last)
    assert made["source"] == "target.pdb" and made["residues"].startswith("A12 A13 ")
    apart = model.scaffold(motif, 5, seed=3, batch_size=1, **SETTINGS[way])
    assert torch.equal(whole.ca, apart.ca) and torch.equal(whole.confidence, apart.confidence)
    tail = model.scaffold(motif, 2, seed=3, first=3, **SETTINGS[way])
    for k in range(2):
        size = int(tail.lengths[k])
        assert torch.equal(tail.ca[k, :size], whole.ca[3 + k, :size])
    assert torch.equal(whole[[2, 4]].held, whole.held[[2, 4]])


def test_calls_that_look_for_the_place_are_counted(folders, target):
    motif = Motif.read(target, "5/A12-20/6")
    student = load(folders["student"], "cpu")
    asked = Counter()
    forward = student.net.forward

    def counted(*args, **kwargs):
        asked["known" in kwargs["cond"]] += 1
        return forward(*args, **kwargs)

    student.net.forward = counted
    made = student.scaffold(motif, 4, confidence=False).provenance
    assert asked == {True: 3, False: 2} and made["network_calls"] == 5
    assert asked_twice((0.9,)) == 1
    teacher = load(folders["teacher"], "cpu")
    guided = teacher.scaffold(motif, 2, steps=5, label="alpha", guidance=2.0)
    early = sum(t < 0.8 for t in grids.log(5)[:-1])
    assert guided.provenance["network_calls"] == 2 * (5 + early)


# Variations


class Known:
    """Gaussian data N(0, v) of centred chains, as a network that answers their posterior mean."""

    def __init__(self, v):
        self.oracle = Gaussian(0.0, v).on(LINEAR)

    def __call__(self, x, t, mask=None, cond=None, previous=None):
        return self.oracle(x, t, mask=mask, cond=None)


def slope(t, v):
    """E[x_1 | x_t] = slope x_t of N(0, v)."""
    return t * v / (t * t * v + (1 - t) ** 2)


def start_chain(size=6.0):
    g = np.random.default_rng(5)
    return Chains.of([size * g.normal(size=(12, 3)) + 30.0], ids=["native"], labels=[1])


@pytest.mark.parametrize("t", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("way", ["ode", "sde", "student"])
def test_variations_have_the_size_of_the_closed_form(folders, way, t):
    """E|x_1|^2 = m^2 |s|^2 + 33 V: what is left of the start s, and what is new."""
    v, gamma, chain, count = 0.25, 0.8, start_chain(15.0), 300
    model = load(folders["student" if way == "student" else "teacher"], "cpu")
    model.net = Known(v)
    if way == "student":
        times = [u for u in (0.3, 0.7, 0.9) if u >= (0.7 if t == 0.6 else t)]
        settings = {"gamma": gamma}
        m, var = times[0], (gamma * (1 - times[0])) ** 2
        for u, nxt in itertools.pairwise([*times, 1.0]):
            m, var = slope(u, v) * m, slope(u, v) ** 2 * var
            m, var = nxt * m, nxt**2 * var + (gamma * (1 - nxt)) ** 2
    elif way == "ode":  # x_1 = a x_t
        settings = {"solver": "ode", "steps": 100}
        a = math.sqrt(v / (t * t * v + (1 - t) ** 2))
        m, var = a * t, (a * (1 - t)) ** 2
    else:  # every row is x <- a x + b slope x + c noise
        settings = {"gamma": gamma, "steps": 40}
        grid = (t, *(u for u in grids.log(40) if u > t))
        table = low_temperature(gamma)(LINEAR, grid)
        m, var = t, (1 - t) ** 2
        for u, (a,), (b,), c in zip(table.times, table.a, table.b, table.c, strict=True):
            m, var = (a + b * slope(u, v)) * m, (a + b * slope(u, v)) ** 2 * var + c * c
    out = model.vary(chain, t, count, confidence=False, batch_size=400, **settings)
    x = (out.ca - out.ca.mean(1, keepdim=True)).double() / 10
    s = (chain.ca - chain.ca.mean(1, keepdim=True)).double() / 10
    want = m * m * float(s.square().sum()) + 33 * var
    spread = math.sqrt(4 * m * m * float(s.square().sum()) * var + 66 * var * var)
    got = float(x.square().sum((1, 2)).mean())
    bias = 0.03 * want if way == "ode" else 0.0  # of 100 steps of first order
    assert abs(got - want) < 4 * spread / math.sqrt(count) + bias


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_the_nearer_to_the_data_the_less_changes(folders, role):
    model, chain = load(folders[role], "cpu"), start_chain()
    model.net = Known(0.36)
    settings = {"steps": 40, "solver": "ode"} if role == "teacher" else {}
    means = []
    for t in (0.3, 0.7, 0.9):
        out = model.vary(chain, t, 16, confidence=False, gamma=1.0, **settings)
        means.append(np.mean([rmsd(z, chain.arrays()[0]) for z in out.arrays()]))
        # results lie on their chains: superposing them changes nothing
        raw = np.sqrt(((out.arrays()[0] - chain.arrays()[0]) ** 2).sum(1).mean())
        assert raw == pytest.approx(rmsd(out.arrays()[0], chain.arrays()[0]), abs=1e-3)
    assert means[0] > 1.3 * means[1] > 1.3 * 1.3 * means[2]


def test_variations_know_their_source_and_depend_on_their_key_alone(folders):
    chains = Chains.of(
        [ideal.helix(20), ideal.helix(14), ideal.hairpin(20)], ids=["x", "y", "z"],
        labels=[0, 4, 1], index=[[*range(9), *range(12, 23)], range(14), range(20)],
    )
    teacher = load(folders["teacher"], "cpu")
    settings = {"seed": 4, "steps": 10}
    out = teacher.vary(chains, 0.6, 2, **settings)
    assert out.lengths.tolist() == [20, 20, 14, 14, 20, 20]
    assert list(out.provenance["starts"].values()) == ["x", "x", "y", "y", "z", "z"]
    assert list(out.provenance["starts"]) == list(out.ids) and out.provenance["time"] == 0.6
    assert torch.equal(out.index[0], chains.index[0]) and out.label.tolist() == [0, 0, 4, 4, 1, 1]
    later = sum(u > 0.6 for u in grids.log(10)[1:])
    assert out.provenance["network_calls"] == later
    apart = teacher.vary(chains, 0.6, 2, batch_size=1, **settings)
    assert torch.equal(out.ca, apart.ca)
    one = teacher.vary(chains[1], 0.6, 2, first=2, **settings)
    assert torch.equal(one.ca[:, :14], out.ca[2:4, :14])
    student = load(folders["student"], "cpu")
    for t, used, calls in ((0.05, 0.3, 3), (0.55, 0.7, 2), (0.79, 0.7, 2), (0.99, 0.9, 1)):
        made = student.vary(chains[1], t).provenance
        assert (made["time"], made["network_calls"]) == (used, calls)
    assert student.vary(chains[1], 0.4, steps=[0.2, 0.5]).provenance["time"] == 0.5
    assert load(folders["flowmap"], "cpu").vary(chains, 0.5, steps=3).finite.all()


@pytest.mark.parametrize("t", [0.0, 1.0, -0.2, 1.5, math.nan, "half"])
def test_times_outside_the_way_are_refused(folders, t):
    with pytest.raises(UserError, match="between 0 and 1"):
        load(folders["teacher"], "cpu").vary(start_chain(), t)


def test_chains_that_cannot_be_varied_are_named(folders):
    teacher = load(folders["teacher"], "cpu")
    broken = ideal.helix(20)
    broken[3] = np.nan
    with pytest.raises(UserError, match="chain torn has coordinates that are not finite"):
        teacher.vary(Chains.of([ideal.helix(20), broken], ids=["whole", "torn"]))
    with pytest.raises(UserError, match="no chains"):
        teacher.vary(Chains.of([]))
    with pytest.raises(UserError, match="n must"):
        teacher.vary(start_chain(), 0.5, 0)
    with pytest.raises(UserError, match="at least 2"):
        teacher.vary(Chains.of([np.zeros((1, 3))]))


# Annealing


def test_particles_have_the_variance_of_the_power_of_a_gaussian(folders):
    """q^2 of N(0, v) is N(0, v / 2)."""
    teacher = load(folders["teacher"], "cpu")
    teacher.net = Known(0.04)
    with pytest.warns(RuntimeWarning, match="outside 10-60"):
        out = teacher.anneal(3, 800, power=2.0, steps=80, confidence=False, batch_size=400)
    size = float((out.ca / 10).square().sum((1, 2)).mean()) / 6
    assert size == pytest.approx(0.02, rel=0.15)
    told = out.provenance["particles"]
    assert told["distinct"] <= 800 and 1 <= told["ancestors"] <= told["distinct"]
    assert told["distinct"] == len({z.tobytes() for z in out.ca.numpy()})
    assert 0 < told["effective"] <= 800 and out.provenance["independent"] is False


@pytest.mark.filterwarnings("ignore:the 6 chains")
def test_pieces_do_not_change_particles(folders):
    teacher = load(folders["teacher"], "cpu")
    one, two = (
        teacher.anneal(14, 6, power=1.1, steps=6, label="beta", batch_size=k) for k in (4, 50)
    )
    assert torch.allclose(one.ca, two.ca, atol=1e-3)
    assert torch.allclose(one.confidence, two.confidence, atol=1e-3)
    assert one.label.tolist() == [1] * 6 and (one.confidence > 0).all()


@pytest.mark.parametrize(
    ("role", "settings", "named"),
    [
        ("student", {}, "for teachers"),
        ("teacher", {"power": 0.0}, "power"),
        ("teacher", {"power": math.nan}, "power"),
        ("teacher", {"n": 1}, "at least 4"),
        ("teacher", {"steps": 0}, "at least 1"),
        ("teacher", {"length": [20, 30]}, "one length"),
        ("teacher", {"ess": 2.0}, "ess"),
        ("teacher", {"label": "gamma"}, "alpha, beta"),
    ],
)
def test_annealing_that_makes_no_sense_is_refused(folders, role, settings, named):
    with pytest.raises(UserError, match=named):
        load(folders[role], "cpu").anneal(**{"length": 20, "n": 8, "steps": 4} | settings)
