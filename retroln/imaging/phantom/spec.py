"""What a phantom is asked for and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations, product
from typing import Literal

from retroln.imaging.volume import Volume

Phase = Literal["native", "arterial", "portal"]
Variant = Literal["usual", "l6", "sacralised_l5", "lumbar_rib"]
USUAL_NAMES = ("S1", "L5", "L4", "L3", "L2", "L1", "T12", "T11")
"""Names of the eight vertebrae that are modelled, bottom to top."""
ORIENTATIONS = frozenset(
    "".join(letters) for order in permutations(("RL", "AP", "SI")) for letters in product(*order)
)
MAX_TILT_DEG = 40.0


@dataclass(frozen=True)
class PhantomSpec:
    """One CT of one made-up patient.

    `seed` alone fixes the patient: the anatomy in world mm is the same for every spacing,
    orientation, tilt, field of view and phase; only the noise follows the grid.

    Attributes:
        seed: the patient.
        spacing_mm: voxel spacing along the right, anterior and superior axis (also when
            `orientation` stores them in another order).
        orientation: one of the 48 codes such as "RAS" or "LPS": the delivered axis order.
        tilt_deg: the sampling grid turns about the left-right axis; the patient stays.
        phase: contrast phase.
        node_count: number of nodes; None draws 2 to 9 by seed.
        node_free: no node at all (wins over `node_count`).
        missing_levels: names left out of the vertebra label map (the CT still shows the vertebrae).
        level_names: what the label map calls the eight vertebrae, bottom to top; "" labels one not at all.
            See `shifted_names`.
        variant: how the spine is numbered. `l6`: six lumbar vertebrae, the 12th ribs one vertebra higher
            than usual. `sacralised_l5`: the lowest lumbar vertebra is grown together with the sacrum and
            has wings like it. `lumbar_rib`: the first lumbar vertebra bears short ribs, a 13th pair.
        rib_labels: whether the vertebra label map holds the 12th ribs (TotalSegmentator v2 ids 103, 115),
            and which are called so: the `twelfth`, or the `lowest` pair.
        fused_l2: a block vertebra: the L2/L3 disc is bone and the label map calls both "L2".
        field_of_view: kept share of the superior extent, from 0 (lowest) to 1 (highest slice).
        extent_mm: full size of the sampled box along right, anterior, superior.
        noise_hu: standard deviation of the noise at 0.8 x 0.8 x 2.5 mm; coarser voxels have less.
    """

    seed: int
    spacing_mm: tuple[float, float, float] = (0.8, 0.8, 2.5)
    orientation: str = "RAS"
    tilt_deg: float = 0.0
    phase: Phase = "portal"
    node_count: int | None = None
    node_free: bool = False
    missing_levels: tuple[str, ...] = ()
    level_names: tuple[str, ...] = USUAL_NAMES
    variant: Variant = "usual"
    rib_labels: Literal["none", "twelfth", "lowest"] = "none"
    fused_l2: bool = False
    field_of_view: tuple[float, float] = (0.0, 1.0)
    extent_mm: tuple[float, float, float] = (360.0, 300.0, 330.0)
    noise_hu: float = 14.0

    def __post_init__(self) -> None:
        """Raise `ValueError` on a spec that has no meaning."""
        if self.orientation not in ORIENTATIONS:
            raise ValueError(f"orientation must be one of 48 codes such as RAS, got {self.orientation}")
        if self.phase not in ("native", "arterial", "portal"):
            raise ValueError(f"phase must be native, arterial or portal, got {self.phase}")
        if abs(self.tilt_deg) > MAX_TILT_DEG:
            raise ValueError(f"tilt_deg must lie within +-{MAX_TILT_DEG}, got {self.tilt_deg}")
        if len(self.level_names) != len(USUAL_NAMES) or not {*self.level_names} <= {*USUAL_NAMES, ""}:
            raise ValueError(f"level_names must be eight of {USUAL_NAMES} or empty, got {self.level_names}")
        low, high = self.field_of_view
        if not 0 <= low < high <= 1:
            raise ValueError(f"field_of_view must rise within 0..1, got {self.field_of_view}")
        if min(self.spacing_mm) <= 0 or min(self.extent_mm) <= 0:
            raise ValueError("spacing_mm and extent_mm must be positive")


def shifted_names(steps: int) -> tuple[str, ...]:
    """The names of a spine that is numbered too high by so many levels (below 0: too low).

    With 1 the vertebra L2 is called L1, and S1 is called L5; what has no name in the model gets "".
    """
    named = dict(enumerate(USUAL_NAMES))
    return tuple(named.get(place + steps, "") for place in named)


@dataclass(frozen=True)
class PhantomNode:
    """The analytic truth of one node (an ellipsoid), free of any voxel effect.

    `short_axis_mm` and `long_axis_mm` are the two diameters of the ellipse that the scan's own
    axial plane through the centre cuts out of the ellipsoid. All parallel sections are similar
    ellipses, so this is the greatest one and short is perpendicular to long in the same slice:
    DESIGN's definition in the limit of small voxels. With a tilt the plane tilts too. For a node
    that the field of view cuts, axes, volume and centroid are those of the whole node.
    """

    label: int
    station: str
    short_axis_mm: float
    long_axis_mm: float
    volume_mm3: float
    centroid_world_mm: tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Phantom:
    """Volumes on one grid and the true node table.

    Attributes:
        ct: int16, HU.
        vertebrae: uint8, TotalSegmentator v2 ids (S1 26 ... T11 33).
        ribs: uint8, the 12th ribs (left 103, right 115, TotalSegmentator v2).
        nodes: uint8, instance labels; a node keeps its label on every grid of the same seed.
        vessels: uint8, TotalSegmentator v2 `total` ids (see `vessels.VESSEL_IDS`).
        node_table: one row per node with at least one voxel in the field of view.
    """

    spec: PhantomSpec
    ct: Volume
    vertebrae: Volume
    ribs: Volume
    nodes: Volume
    vessels: Volume
    node_table: tuple[PhantomNode, ...]
