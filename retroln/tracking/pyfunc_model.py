"""The model that MLflow stores by path: crop in, label map out, through RetroLN's own predictor.

MLflow runs this file on loading (`mlflow.pyfunc.load_model("models:/retroln@champion")`); nothing
else imports it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd  # type: ignore[import-untyped]
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

if TYPE_CHECKING:
    from retroln.nnunet.predict import Predictor


class RetroLNModel(PythonModel):
    """Finds lymph nodes in crops that `retroln crop --no-normalize` or the prepare step made (HU)."""

    def load_context(self, context: PythonModelContext) -> None:
        """Open the bundle; its sha256 manifest is checked before any checkpoint is read."""
        from retroln.engine.warm import predictor_for

        self._predictor: Predictor = predictor_for(Path(context.artifacts["bundle"]), "auto")

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Write one label map per row.

        Args:
            model_input: columns `ct` (path of a crop in HU, NIfTI) and `output` (path to write:
                uint8, 0 background, 1 lymph node, on the grid of `ct`).

        Returns:
            Columns `output` and `n_nodes` (26-connected findings), one row per input row.
        """
        rows = [self._one(Path(ct), Path(out)) for ct, out in model_input[["ct", "output"]].to_numpy()]
        return pd.DataFrame(rows, columns=["output", "n_nodes"])

    def _one(self, ct: Path, output: Path) -> tuple[str, int]:
        from retroln.anatomy.nodes import findings
        from retroln.imaging import nifti

        labels = self._predictor.predict(nifti.read(ct))
        found = findings(labels, self._predictor.contract.min_finding_mm3)
        nifti.write_source(output, labels.with_array((found > 0).astype("uint8")))
        return str(output), int(found.max(initial=0))


set_model(RetroLNModel())
