"""Catalog, part results: what is left to infer, what was found, and the whole story of a case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, delete, exists, func, select
from sqlalchemy.orm import Session

from retroln.catalog.claims import require_claim
from retroln.catalog.consent import require_consent
from retroln.catalog.database import Database
from retroln.catalog.models import CaseEvent, Dataset, DatasetMember, Node, Prediction, Scan
from retroln.catalog.preparation import crop_or_none, landmarks_or_none
from retroln.catalog.records import (
    CaseHistory,
    EventRecord,
    NodeRecord,
    PredictionRecord,
    record_of,
)
from retroln.catalog.scans import scan_record, scan_row
from retroln.catalog.states import ScanState
from retroln.errors import ConflictError, NotFoundError

_NODE_FIELDS = [
    "label",
    "volume_mm3",
    "short_axis_mm",
    "long_axis_mm",
    "centroid_world_mm",
    "recist",
    "stratum",
    "station",
    "level",
]


class PredictionQueries:
    """Predictions, nodes and histories; each method is one transaction."""

    _database: Database
    _owner: str | None

    def scans_to_infer(
        self,
        model_name: str,
        version: int,
        limit: int | None = None,
        *,
        exclude_training_scans_of: int | None = None,
    ) -> list[int]:
        """Ids of the prepared scans whose current results are not of this version of this model.

        The cost follows the number of scans returned, not the number stored (see `to_infer`).

        Args:
            model_name: the registered model.
            version: its version that shall have seen every scan.
            limit: at most so many.
            exclude_training_scans_of: id of the dataset whose training scans are left out.
        """
        found: list[int] = []
        with self._database.reading() as session:
            for statement in to_infer(model_name, version, exclude_training_scans_of):
                left = None if limit is None else limit - len(found)
                found += session.scalars(statement.limit(left))
        return sorted(found)

    def count_inferred(self, model_name: str, version: int) -> int:
        """How many prepared scans have results of this version of this model."""
        return self._count(
            select(func.count())
            .select_from(Scan)
            .where(Scan.state == ScanState.PREPARED, *_seen_by(model_name, version))
        )

    def count_trained_on(self, dataset_id: int, model_name: str, version: int) -> int:
        """How many prepared scans are left out of inference because the dataset trained on them."""
        return self._count(
            select(func.count())
            .select_from(DatasetMember)
            .join(Scan, Scan.id == DatasetMember.scan_id)
            .where(
                DatasetMember.dataset_id == dataset_id,
                DatasetMember.role == "train",
                Scan.state == ScanState.PREPARED,
                ~and_(*_seen_by(model_name, version)),
            )
        )

    def _count(self, statement: Select[tuple[int]]) -> int:
        with self._database.reading() as session:
            return session.scalars(statement).one()

    def record_prediction(
        self,
        scan_id: int,
        *,
        model_name: str,
        version: int,
        label_key: str,
        page_key: str | None,
        nodes: Sequence[Mapping[str, Any]],
        run_id: int | None,
        sha256: str | None = None,
    ) -> PredictionRecord:
        """Record a scan's results and mark them current; repeating it replaces, never doubles.

        Args:
            nodes: one mapping per node with the fields of `NodeRecord`.

        Raises:
            ConflictError: the scan is no longer `prepared`.
            WithdrawnError: the patient withdrew.
        """
        with self._database.writing() as session:
            scan = scan_row(session, scan_id, lock=True)
            require_claim(session, scan_id, self._owner)
            require_consent(session, scan.case_id, scan.patient_id)
            if scan.state != ScanState.PREPARED:
                raise ConflictError(
                    f"case {scan.case_id} changed during inference", expected="prepared", got=scan.state
                )
            row = _prediction_row(session, scan_id, model_name, version)
            row.label_key, row.page_key, row.sha256 = label_key, page_key, sha256
            row.run_id, row.n_nodes = run_id, len(nodes)
            session.flush()
            session.execute(delete(Node).where(Node.prediction_id == row.id))
            session.add_all(Node(prediction_id=row.id, **_node_values(node)) for node in nodes)
            scan.predicted_model, scan.predicted_version = model_name, version
            session.flush()
            return _prediction_record(row)

    def predictions_of(self, scan_id: int) -> list[PredictionRecord]:
        """Every version's prediction of a scan, oldest first."""
        with self._database.reading() as session:
            return [_prediction_record(row) for row in session.scalars(_predictions((scan_id,)))]

    def predictions_of_run(self, run_id: int, limit: int) -> list[tuple[str, PredictionRecord]]:
        """Case id and prediction of at most `limit` scans that a run inferred, in case order."""
        statement = (
            select(Scan.case_id, Prediction)
            .join(Scan, Scan.id == Prediction.scan_id)
            .where(Prediction.run_id == run_id)
            .order_by(Scan.case_id)
            .limit(limit)
        )
        with self._database.reading() as session:
            rows = session.execute(statement).tuples()
            return [(case_id, _prediction_record(row)) for case_id, row in rows]

    def current_prediction(self, scan_id: int) -> PredictionRecord | None:
        """The prediction whose results are current; None when there is none."""
        with self._database.reading() as session:
            scan = scan_row(session, scan_id)
            same = _is_of(scan_id, scan.predicted_model, scan.predicted_version)
            row = session.scalars(select(Prediction).where(*same)).first()
            return _prediction_record(row) if row else None

    def nodes_of(self, scan_id: int, *, version: int | None = None) -> list[NodeRecord]:
        """Nodes in label order, of the current results (or another version of that model); [] for none."""
        with self._database.reading() as session:
            scan = scan_row(session, scan_id)
            return list(_nodes(session, scan_id, scan.predicted_model, version or scan.predicted_version))

    def case_history(self, case_id: str) -> CaseHistory:
        """Everything known about a case. Raises `NotFoundError` for an unknown one."""
        with self._database.reading() as session:
            chosen = select(Scan).where(Scan.case_id == case_id).order_by(Scan.revision)
            scans = tuple(scan_record(row) for row in session.scalars(chosen))
            if not scans:
                raise NotFoundError(f"no case {case_id} in the catalog", fix="look at `retroln status`")
            ids = [scan.scan_id for scan in scans]
            current = next(scan for scan in scans if scan.state is not ScanState.SUPERSEDED)
            events = session.scalars(
                select(CaseEvent).where(CaseEvent.case_id == case_id).order_by(CaseEvent.id)
            )
            return CaseHistory(
                case_id=case_id,
                scans=scans,
                events=tuple(record_of(EventRecord, row, event_id=row.id) for row in events),
                landmarks=landmarks_or_none(session, current.scan_id),
                crop=crop_or_none(session, current.scan_id),
                predictions=tuple(_prediction_record(row) for row in session.scalars(_predictions(ids))),
                nodes=_nodes(session, current.scan_id, current.predicted_model, current.predicted_version),
                datasets=tuple(session.scalars(_datasets(ids))),
            )


def to_infer(
    model_name: str, version: int, exclude_training_scans_of: int | None = None
) -> tuple[Select[tuple[int]], ...]:
    """Ids of what inference has left: ranges beside (model_name, version) in the index ix_scans_predicted.

    "not equal" alone would read every prepared scan.
    """
    statement = select(Scan.id).where(Scan.state == ScanState.PREPARED)
    if exclude_training_scans_of is not None:
        trained_on = exists().where(
            DatasetMember.dataset_id == exclude_training_scans_of,
            DatasetMember.scan_id == Scan.id,
            DatasetMember.role == "train",
        )
        statement = statement.where(~trained_on)
    statement = statement.order_by(Scan.predicted_model, Scan.predicted_version, Scan.id)
    of_model = statement.where(Scan.predicted_model == model_name)
    return (
        statement.where(Scan.predicted_model < model_name),
        of_model.where(Scan.predicted_version < version),
        of_model.where(Scan.predicted_version > version),
        statement.where(Scan.predicted_model > model_name),
    )


def _seen_by(model_name: str, version: int) -> tuple[ColumnElement[bool], ...]:
    """What singles out the scans whose results are of one version."""
    return Scan.predicted_model == model_name, Scan.predicted_version == version


def _is_of(scan_id: int, model_name: str, version: int) -> tuple[ColumnElement[bool], ...]:
    """What singles out one prediction."""
    return Prediction.scan_id == scan_id, Prediction.model_name == model_name, Prediction.version == version


def _prediction_row(session: Session, scan_id: int, model_name: str, version: int) -> Prediction:
    row = session.scalars(select(Prediction).where(*_is_of(scan_id, model_name, version))).first()
    if row is None:
        row = Prediction(scan_id=scan_id, model_name=model_name, version=version)
        session.add(row)
    return row


def _node_values(node: Mapping[str, Any]) -> dict[str, Any]:
    values = {name: node.get(name) for name in _NODE_FIELDS}
    return {**values, "centroid_world_mm": [float(value) for value in node["centroid_world_mm"]]}


def _prediction_record(row: Prediction) -> PredictionRecord:
    return record_of(PredictionRecord, row, prediction_id=row.id)


def _predictions(scan_ids: Sequence[int]) -> Select[tuple[Prediction]]:
    return select(Prediction).where(Prediction.scan_id.in_(scan_ids)).order_by(Prediction.id)


def _nodes(session: Session, scan_id: int, model_name: str, version: int) -> tuple[NodeRecord, ...]:
    statement = (
        select(Node)
        .join(Prediction, Prediction.id == Node.prediction_id)
        .where(*_is_of(scan_id, model_name, version))
        .order_by(Node.label)
    )
    return tuple(record_of(NodeRecord, row, node_id=row.id) for row in session.scalars(statement))


def _datasets(scan_ids: Sequence[int]) -> Select[tuple[str]]:
    used = select(DatasetMember.dataset_id).where(DatasetMember.scan_id.in_(scan_ids))
    return select(Dataset.version).where(Dataset.id.in_(used)).order_by(Dataset.id)
