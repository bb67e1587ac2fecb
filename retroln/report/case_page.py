"""One self-contained HTML page per case: three browsable planes, the node table, where it came from.

The page makes no network request (its content policy forbids them) and works from `file://`. Without
JavaScript it shows still pictures and the same table.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroln.imaging.geometry import VoxelBox
from retroln.imaging.volume import Volume
from retroln.report import planes

RESEARCH_NOTICE = (
    "Research use only. Not a medical device; not for diagnosis or treatment decisions. "
    "Every finding must be confirmed by a radiologist on the original images."
)
# RECIST 1.1 (Eisenhauer 2009): short axis < 10 mm normal, 10 to < 15 non-target, >= 15 target.
CLASS_TEXT: Mapping[str, str] = {
    "target": "Target, ≥ 15 mm",
    "non_target": "Non-target, 10 to < 15 mm",
    "normal": "Normal, < 10 mm",
}
RUNG_TEXT: Mapping[str, str] = {
    "l2": "L2 itself",
    "interpolated_l1_l3": "interpolated from L1 and L3 (L2 cut or unusable)",
    "extrapolated": "extrapolated from the nearest two lumbar levels (L2 cut or unusable)",
    "reviewer": "L2 as a person placed it",
}
_FOLDER = Path(__file__).parent
_MAX_VOXELS = 5_000_000
_MAX_THUMBNAILS = 60
_OBLIQUE_DEGREES = 5.0
# Display values: -200..250 HU in steps of 2, where nodes, fat and vessels are; coarser outside. One
# byte per voxel keeps the page small and every preset window usable.
_CODE_HU = ((0, -1024.0), (15, -200.0), (240, 250.0), (255, 1500.0))


@dataclass(frozen=True)
class CasePage:
    """What the page shows; everything is already de-identified.

    Attributes:
        case_id, patient_id: pseudonyms.
        ct: crop in HU, RAS+.
        labels: instance labels on the crop's grid (0 background); numbers match `label` of `nodes`.
        nodes: one mapping per node: `label`, `station`, `level`, `short_axis_mm`, `long_axis_mm`,
            `volume_mm3`, `recist`, `centroid_world_mm`.
        provenance: shown as it is, in order: model, version, training, software, source sha256.
        rung: which landmark the region rests on (`l2`, `interpolated_l1_l3`, `extrapolated`, `reviewer`).
        short_sides: where the region is cut short, as `cautions.short_sides` says it.
        cautions: sentences a reader must see first (`cautions.cautions`, a stand-in model).
        accounting: runs that handled the case: (name, its counts `in done skipped quarantined failed`).
        events: the case's history: (time, what, detail), the oldest first.
        notice: shown on top and at the foot.
        model: name and version for the heading.
    """

    case_id: str
    patient_id: str
    ct: Volume
    labels: Volume
    nodes: Sequence[Mapping[str, Any]]
    provenance: Mapping[str, object]
    rung: str = "l2"
    short_sides: Sequence[str] = ()
    cautions: Sequence[str] = ()
    accounting: Sequence[tuple[str, Mapping[str, int]]] = ()
    events: Sequence[tuple[str, str, str]] = ()
    notice: str = RESEARCH_NOTICE
    model: str = ""


def case_page(page: CasePage) -> str:
    """The page as HTML text.

    Raises:
        ValueError: labels and CT differ in shape, or a node has no voxels in `labels`.
    """
    _require_consistent(page)
    nodes = sorted(page.nodes, key=lambda node: -float(node["short_axis_mm"]))
    script = (_FOLDER / "case_page.js").read_text("utf-8")
    return Template((_FOLDER / "case_page.html").read_text("utf-8")).substitute(
        csp=f"script-src 'sha256-{base64.b64encode(sha256(script.encode()).digest()).decode()}'",
        style=(_FOLDER / "case_page.css").read_text("utf-8"),
        script=script,
        data=_json(_viewer_data(page, nodes)),
        case_id=escape(page.case_id),
        patient_id=escape(page.patient_id),
        model=f"<span>Model <b>{escape(page.model)}</b></span>" if page.model else "",
        notice=escape(page.notice),
        cautions=_cautions(page),
        summary=_summary(nodes),
        still=_still(page, nodes),
        rows=_rows(page, nodes),
        region=_definitions(_region(page)),
        provenance=_definitions(page.provenance),
        history=_history(page),
    )


def _require_consistent(page: CasePage) -> None:
    if page.ct.array.shape != page.labels.array.shape:
        raise ValueError(f"labels must be {page.ct.array.shape}, got {page.labels.array.shape}")
    absent = {int(n["label"]) for n in page.nodes} - set(np.unique(page.labels.array).tolist())
    if absent:
        raise ValueError(f"nodes {sorted(absent)} have no voxels in the label map")


def _viewer_data(page: CasePage, nodes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the script needs: two gzipped volumes, their size in mm, the nodes' places."""
    step = _step(page.ct.array.shape)
    cut = tuple(slice(s // 2, None, s) for s in step)
    ct = encode(page.ct.array[cut])
    labels = page.labels.array[cut].astype("<u2")
    spacing = [mm * s for mm, s in zip(page.ct.grid.spacing_mm, step, strict=True)]
    return {
        "shape": list(ct.shape),
        "spacing": spacing,
        "step": list(step),
        "codeHu": _CODE_HU,
        "ct": _packed(ct),
        "labels": _packed(labels),
        "nodes": [_viewer_node(page, node, step) for node in nodes],
        "colours": {name: f"#{bytes(c).hex()}" for name, c in planes.CLASS_COLOURS.items()},
    }


def _viewer_node(page: CasePage, node: Mapping[str, Any], step: Sequence[int]) -> dict[str, Any]:
    at = _voxel(page.ct, node)
    shape = page.ct.array[tuple(slice(s // 2, None, s) for s in step)].shape
    shown = [min(i // s, n - 1) for i, s, n in zip(at, step, shape, strict=True)]
    return {"label": int(node["label"]), "recist": str(node["recist"]), "at": shown}


def encode(hu: NDArray[Any]) -> NDArray[np.uint8]:
    """HU as one display byte per voxel (see `_CODE_HU`); 2 HU steps between -200 and 250 HU."""
    codes, values = np.array(_CODE_HU).T
    table_hu = np.arange(-1024, 1501)
    table = np.rint(np.interp(table_hu, values, codes)).astype(np.uint8)
    return np.asarray(table[np.clip(np.rint(hu), -1024, 1500).astype(np.int32) + 1024])


def _step(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Every n-th voxel per axis, so that the page stays small; 1, 1, 1 for ordinary crops."""
    step = [1, 1, 1]
    while np.prod([-(-n // s) for n, s in zip(shape, step, strict=True)]) > _MAX_VOXELS:
        longest = int(np.argmax([n / s for n, s in zip(shape, step, strict=True)]))
        step[longest] += 1
    return step[0], step[1], step[2]


def _packed(array: NDArray[Any]) -> str:
    """Base64 of the gzipped bytes, first axis fastest."""
    return base64.b64encode(gzip.compress(array.tobytes(order="F"), 6, mtime=0)).decode()


def _voxel(ct: Volume, node: Mapping[str, Any]) -> tuple[int, int, int]:
    """The crop's voxel nearest to the node's centroid."""
    world = np.append(np.asarray(node["centroid_world_mm"], float), 1)
    index = np.rint(np.linalg.inv(ct.grid.affine) @ world)[:3]
    x, y, z = np.clip(index, 0, np.array(ct.array.shape) - 1).astype(int).tolist()
    return x, y, z


def _colours(nodes: Sequence[Mapping[str, Any]]) -> dict[int, planes.Colour]:
    known = planes.CLASS_COLOURS
    return {int(n["label"]): known[n["recist"]] for n in nodes if n["recist"] in known}


def _rows(page: CasePage, nodes: Sequence[Mapping[str, Any]]) -> str:
    if not nodes:
        return (
            '<tr><td colspan="7" class="none">The model marked no lymph node in this region. '
            "This does not exclude enlarged nodes.</td></tr>"
        )
    return "".join(_row(page, nodes, place) for place in range(len(nodes)))


def _row(page: CasePage, nodes: Sequence[Mapping[str, Any]], place: int) -> str:
    node = nodes[place]
    recist = str(node["recist"])
    label = int(node["label"])
    named = CLASS_TEXT.get(recist, recist)
    image = ""
    if place < _MAX_THUMBNAILS:
        jpeg = _thumbnail(page, node, _colours(nodes))
        image = f'<img alt="Node {label}, axial, 50 mm" src="data:image/jpeg;base64,{jpeg}">'
    cells = (
        f'<th scope="row"><button type="button" data-node="{label}" aria-label="Show node {label}">'
        f"{image}<span>{label}</span></button></th>",
        f'<td data-name="Station">{_text(node.get("station"))}</td>',
        f'<td data-name="Level">{_text(node.get("level"))}</td>',
        f'<td class="n strong" data-name="Short axis, mm">{float(node["short_axis_mm"]):.1f}</td>',
        f'<td class="n" data-name="Long axis, mm">{float(node["long_axis_mm"]):.1f}</td>',
        f'<td class="n" data-name="Volume, mL">{float(node["volume_mm3"]) / 1000:.2f}</td>',
        f'<td data-name="Size class"><span class="class {escape(recist)}">{escape(named)}</span></td>',
    )
    return f'<tr data-row="{label}">{"".join(cells)}</tr>'


def _thumbnail(page: CasePage, node: Mapping[str, Any], colours: Mapping[int, planes.Colour]) -> str:
    """The node's slice; cut to a slab first, so that many nodes stay cheap."""
    x, y, z = _voxel(page.ct, node)
    a, b, _ = page.ct.array.shape
    slab = VoxelBox((0, 0, z), (a, b, z + 1))
    image = planes.thumbnail(page.ct.crop(slab), page.labels.crop(slab), (x, y, 0), colours=colours)
    return base64.b64encode(image).decode()


def _still(page: CasePage, nodes: Sequence[Mapping[str, Any]]) -> str:
    """Three planes through the largest node (the middle without nodes), for pages without script."""
    a, b, c = page.ct.array.shape
    at = _voxel(page.ct, nodes[0]) if nodes else (a // 2, b // 2, c // 2)
    png = planes.three_planes(page.ct, page.labels, at, colours=_colours(nodes), pixel_mm=0.8)
    where = f"the largest node ({int(nodes[0]['label'])})" if nodes else "the middle of the region"
    encoded = base64.b64encode(png).decode()
    return (
        f'<figure><img alt="Axial, coronal and sagittal plane through {where}" '
        f'src="data:image/png;base64,{encoded}"><figcaption>Still picture through {where}; '
        "browsing needs JavaScript in a browser of 2023 or later.</figcaption></figure>"
    )


def _summary(nodes: Sequence[Mapping[str, Any]]) -> str:
    counts = {name: sum(n["recist"] == name for n in nodes) for name in CLASS_TEXT}
    largest = f"{float(nodes[0]['short_axis_mm']):.1f} mm" if nodes else "none"
    tiles = [("Nodes marked", str(len(nodes)), "")]
    tiles += [(CLASS_TEXT[name], str(count), name) for name, count in counts.items()]
    tiles += [("Largest short axis", largest, "")]
    return "".join(
        f'<div class="tile {kind}"><b>{escape(value)}</b><span>{escape(name)}</span></div>'
        for name, value, kind in tiles
    )


def _cautions(page: CasePage) -> str:
    found = list(page.cautions)
    tilt = _oblique_degrees(page.ct)
    if tilt > _OBLIQUE_DEGREES:
        found.append(f"Oblique scan: planes follow the scan's own axes, {tilt:.0f}° off the patient's.")
    if not found:
        return ""
    items = "".join(f"<li>{escape(text)}</li>" for text in found)
    return (
        f'<section class="cautions" aria-label="Check first"><h2>Check first</h2><ul>{items}</ul></section>'
    )


def _oblique_degrees(ct: Volume) -> float:
    """Largest angle between an array axis and its anatomical axis, degrees."""
    cosines = np.diag(ct.grid.affine[:3, :3]) / np.array(ct.grid.spacing_mm)
    return float(np.degrees(np.arccos(np.clip(cosines, -1, 1))).max())


def _region(page: CasePage) -> dict[str, object]:
    sides = [n * mm for n, mm in zip(page.ct.grid.shape, page.ct.grid.spacing_mm, strict=True)]
    step = _step(page.ct.array.shape)
    shown = "every voxel" if step == (1, 1, 1) else "every " + " × ".join(f"{s}." for s in step) + " voxel"
    return {
        "Reference": RUNG_TEXT.get(page.rung, page.rung),
        "Cut short at": ", ".join(page.short_sides) or "no side",
        "Size LR × AP × SI": " × ".join(f"{mm:.0f}" for mm in sides) + " mm",
        "Voxel": " × ".join(f"{mm:.2f}" for mm in page.ct.grid.spacing_mm) + " mm",
        "Shown here": f"{shown}; grey values in steps of 2 HU from -200 to 250 HU, coarser outside",
    }


def _history(page: CasePage) -> str:
    text = "".join(_sum(name, counts) for name, counts in page.accounting)
    items = "".join(
        f"<li><time>{escape(when)}</time> <b>{escape(what)}</b> {escape(detail)}</li>"
        for when, what, detail in page.events
    )
    return text + (f"<ol>{items}</ol>" if items else "") or "<p>Nothing recorded.</p>"


def _sum(name: str, counts: Mapping[str, int]) -> str:
    parts = " + ".join(f"{count} {escape(kind)}" for kind, count in counts.items() if kind != "in")
    return f"<p>{escape(name)}: <b>{counts['in']} cases in</b> = {parts}</p>"


def _definitions(pairs: Mapping[str, object]) -> str:
    return "".join(f"<dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd>" for k, v in pairs.items())


def _text(value: object) -> str:
    """A station or level in words, a dash when unknown."""
    return escape(str(value).replace("_", " ")) if value else '<span class="none">not assigned</span>'


def _json(content: Mapping[str, Any]) -> str:
    """JSON that cannot end its script element."""
    return json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
