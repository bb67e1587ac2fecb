"""Cases that a run held for their landmarks: an artifact each, with the picture that a person needs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any

from retroln.catalog.accounting import CaseOutcome, Outcome
from retroln.catalog.landmark_reviews import LANDMARK_REASONS
from retroln.catalog.records import LandmarksRecord
from retroln.errors import NotFoundError
from retroln.report.cautions import cautions
from retroln.settings import Settings
from retroln.steps.workspace import Workspace, open_workspace
from tasks.artifacts import show_text

_CASES = 20  # a run's page is to be read; `retroln review list` has the rest


def show_held(settings: Settings, run_id: int) -> None:
    """One artifact for each case that this run held for its landmarks, the first twenty."""
    workspace = open_workspace(settings)
    quarantined = workspace.catalog.outcomes_of(run_id, Outcome.QUARANTINED)
    held = [outcome for outcome in quarantined if outcome.reason in LANDMARK_REASONS]
    for outcome in held[:_CASES]:
        markdown = "\n\n".join(_lines(workspace, outcome))
        show_text(
            artifact_key(outcome.case_id), markdown, f"{outcome.case_id} waits for a look: {outcome.reason}"
        )
    if len(held) > _CASES:
        more = f"{len(held) - _CASES} more cases wait for a look at their landmarks: `retroln review list`."
        show_text("review-more", more, "Further cases that need a person")


def artifact_key(case_id: str) -> str:
    """Key of a case's artifact: Prefect allows lower case letters, digits and dashes alone."""
    readable = re.sub(r"[^a-z0-9]+", "-", case_id.lower()).strip("-")
    return f"review-{readable}-{sha256(case_id.encode()).hexdigest()[:6]}"


def _lines(workspace: Workspace, outcome: CaseOutcome) -> Iterator[str]:
    case = outcome.case_id
    yield f"## {case}: {outcome.reason}"
    yield outcome.detail or ""
    scan = workspace.catalog.current_scan(case)
    try:
        found = workspace.catalog.landmarks_of(scan.scan_id) if scan else None
    except NotFoundError:  # prepared anew, or withdrawn, meanwhile
        found = None
    if found:
        yield from _picture(workspace, found)
        yield _trust(found)
        yield "\n".join(_table(found.levels))
        yield "\n".join(f"- {sentence}" for sentence in cautions(found))
    yield "When you have looked at it, in a shell on the machine of the platform:"
    words = '--reviewer "who" --comment "why"'
    yield "\n".join(
        [
            "```",
            f"retroln review show {case}",
            f"retroln review accept {case} {words}",
            f"retroln review correct {case} {words} --vertebrae FILE   # or --l2 X,Y,Z",
            "```",
        ]
    )


def _trust(found: LandmarksRecord) -> str:
    anchored = "anchored" if found.anchored else "not anchored"
    known = "" if found.confidence is None else f", confidence {found.confidence:.2f} (an aid for sorting)"
    return f"Numbering {anchored}{known}."


def _picture(workspace: Workspace, found: LandmarksRecord) -> Iterator[str]:
    """The picture by a signed link: it is gone when the object is, as after a withdrawal."""
    if found.picture_key is None:
        yield "There is no picture: `retroln review show` draws one."
        return
    hours = workspace.settings.page_link_h
    address = workspace.store.link(found.picture_key, 3600 * hours)
    if address.startswith("http"):
        yield f"![sagittal and coronal cut along the spine]({address})"
        yield f"[the picture alone]({address}); the link works for {hours:g} h"
    else:  # a browser shows no file inside a page
        yield f"[sagittal and coronal cut along the spine]({address})"


def _table(levels: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    if not levels:
        return
    yield "| level | ml | mm high | mm to the next | mm of drift | stray pieces | border |"
    yield "|---|---|---|---|---|---|---|"
    for name, one in levels.items():
        cells = [f"{one['volume_mm3'] / 1000:.1f}"]
        cells += [
            "" if one[key] is None else f"{one[key]:.0f}" for key in ("height_mm", "to_next_mm", "drift_mm")
        ]
        fragments = one["fragments"]
        cells += [f"{fragments['share']:.1%}" if fragments["count"] else "", " ".join(one["touches"])]
        yield f"| {name} | {' | '.join(cells)} |"
