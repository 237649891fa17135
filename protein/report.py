"""An evaluation as one page: figures beside natives, cartoons, plots. No network, no other file.

The page is rendered from `assets/report.html.j2`; pictures are embedded, scripts there are none and
its policy forbids them. Names of files and chains are escaped. Equal evaluations make equal pages
but for the seconds that they took.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from driftworks.core.bootstrap import Figure
from driftworks.core.checkpoint import write_file
from driftworks.errors import UserError
from driftworks.protein import picture
from driftworks.protein.chains import Chains
from driftworks.protein.descriptors import rg_of_length
from driftworks.protein.evaluation import Report
from driftworks.protein.reconstruct import full_backbones
from driftworks.protein.reference import Measures, Reference, measure

__all__ = ["page", "write_report"]

#: The figures at the top and what they are called there.
_TILES = {
    "realistic": "realistic chains, of the requested",
    "clash_free": "without a clash",
    "right_handed": "right-handed, of helix-like dihedrals",
    "ramachandran": "outside the favoured Ramachandran regions",
    "frechet": "Fréchet distance of descriptors",
    "folds": "folds over realistic chains",
    "memorised": "with a training chain at TM-score .9",
}


def write_report(
    report: Report,
    chains: Chains,
    path: Path | str,
    *,
    backbones: Sequence[ArrayLike] | None = None,
    natives: Sequence[ArrayLike] | None = None,
    reference: Reference | None = None,
    lines: Sequence[str] = (),
) -> Path:
    """Write `page` to an .html file, whole or not at all.

    Raises `UserError` for another suffix and a place that cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"{path} has the ending {path.suffix!r}; reports are .html files")
    text = page(
        report, chains, backbones=backbones, natives=natives, reference=reference, lines=lines,
        title=path.stem,
    )  # fmt: skip
    return write_file(path, text.encode())


def page(
    report: Report,
    chains: Chains,
    *,
    backbones: Sequence[ArrayLike] | None = None,
    natives: Sequence[ArrayLike] | None = None,
    reference: Reference | None = None,
    lines: Sequence[str] = (),
    title: str = "backbones",
) -> str:
    """The page of an evaluation of chains.

    backbones: (n, 4, 3) of each chain, built around the C-alphas by default
    natives: backbones behind the Ramachandran plot, `reference` the chains behind the others; the
        shipped statistics by default
    lines: what was read, one a line
    """
    from jinja2 import Environment, StrictUndefined

    from driftworks import __version__

    full = full_backbones(chains) if backbones is None else list(backbones)
    reference = Reference.builtin() if reference is None else reference
    measures = measure(chains, reference.library)
    plots = [
        (
            _element(picture.ramachandran(full, natives)),
            "Ramachandran plot: samples blue, natives grey; dashed: favoured.",
        ),
        (
            _element(_scatter(measures, reference.measures, "content")),
            "Helix and strand content of each chain, by angles that know handedness.",
        ),
        (
            _element(_scatter(measures, reference.measures, "size")),
            "Radius of gyration against length.",
        ),
        (
            _element(_scatter(measures, reference.measures, "order")),
            "Contact order against length: how far apart in the chain what touches is.",
        ),
    ]
    try:
        sheet = base64.b64encode(picture.sheet(chains, "png", columns=4)).decode()
    except UserError:  # no chain is finite, and the report says that
        sheet = ""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = (files("driftworks.protein") / "assets" / "report.html.j2").read_text("utf-8")
    return environment.from_string(template).render(
        title=title,
        report=report,
        tiles=_tiles(report),
        rows=[_row(report, name, figure) for name, figure in report.figures.items()],
        plots=plots,
        sheet=sheet,
        lines=list(lines),
        version=__version__,
    )


def _tiles(report: Report) -> list[dict[str, Any]]:
    out = []
    for name, what in _TILES.items():
        if name not in report.figures or not np.isfinite(report[name].value):
            continue
        native = report.natives.get(name)
        out.append({
            "value": _number(report[name].value, name),
            "what": what,
            "native": "" if native is None else _number(native, name),
            "off": name in report.flags,
        })  # fmt: skip
    return out


def _row(report: Report, name: str, figure: Figure) -> dict[str, Any]:
    low, high = report.band.get(name, (np.nan, np.nan))
    native = report.natives.get(name, np.nan)
    return {
        "name": name,
        "value": _plain(figure.value),
        "interval": _range(figure.low, figure.high),
        "native": _plain(native),
        "band": _range(low, high),
        "of": f"{figure.n} {figure.of}".strip(),
        "off": name in report.flags,
    }


def _number(x: float, name: str) -> str:
    return f"{x:.1f}" if name == "frechet" else f"{100 * x:.1f} %"


def _plain(x: float) -> str:
    return f"{x:.3f}" if np.isfinite(x) else "–"


def _range(low: float, high: float) -> str:
    return f"{low:.3f} – {high:.3f}" if np.isfinite([low, high]).all() else ""


def _scatter(samples: Measures, natives: Measures, what: str) -> bytes:
    """A plot of one figure of each chain, natives behind samples, as SVG."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Drawing

    good = samples.finite

    def columns(m: Measures) -> tuple[NDArray[Any], NDArray[Any]]:
        if what == "content":
            return m.column("helix"), m.column("strand")
        if what == "size":
            return m.lengths, np.exp(m.column("log_rg")) * rg_of_length(m.lengths)
        return m.lengths, m.column("contact_order")

    labels = {
        "content": ("helix", "strand"),
        "size": ("residues", "radius of gyration [Å]"),
        "order": ("residues", "contact order"),
    }[what]
    with rc_context(picture.STYLE):
        figure = Drawing(figsize=(4.4, 4.2))
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        x, y = columns(natives)
        axes.scatter(x, y, s=9, c=picture.GREY, lw=0, label="natives", rasterized=True)
        if good.any():
            x, y = columns(samples[good])
            axes.scatter(x, y, s=13, c=picture.COLOURS["b"], lw=0, alpha=0.8, label="samples")
        axes.set(xlabel=labels[0], ylabel=labels[1])
        axes.legend(fontsize=8, frameon=False)
        figure.tight_layout(pad=0.4)
        return picture.as_bytes(figure, "svg")


def _element(svg: bytes) -> str:
    text = svg.decode()
    return text[text.index("<svg") :]
