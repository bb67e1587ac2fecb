"""Every setting, read once at the edge from `RETROLN_*` variables and passed in from there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from difflib import get_close_matches
from math import inf
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict
from pydantic_settings import SettingsError as SourceError

from retroln.errors import SettingsError
from retroln.specs import Spec

LOCAL_STACK = Path("var/stack/retroln.env")
"""Private file in which `make stack` keeps where its servers are and how to get in."""

LabelScheme = Literal["totalseg-v2", "totalseg-v1", "verse"]
AskedArithmetic = Literal["auto", "float32", "bf16"]
Device = Literal["auto", "cpu", "cuda"]
Profile = Literal["reference", "demo"]
SeriesCriterion = Literal["orientation", "kernel", "coverage", "phase", "thickness", "original", "slices"]


class RoiSpec(Spec):
    """Size of the region in millimetres along the array axes, referenced to L2 (docs/reference)."""

    model_config = ConfigDict(extra="forbid")

    behind_mm: float = Field(30.0, gt=0, description="from L2's anterior margin towards the back")
    ahead_mm: float = Field(150.0, gt=0, description="from L2's anterior margin towards the front")
    lateral_mm: float = Field(150.0, gt=0, description="full left-right width, centred on L2")


class Hu(Spec):
    """The Hounsfield window that is scaled to 0..1; stored with every model."""

    model_config = ConfigDict(extra="forbid")

    low: float = -1000.0
    high: float = 400.0

    @model_validator(mode="after")
    def _is_window(self) -> Self:
        if not -inf < self.low < self.high < inf:
            raise ValueError(f"LOW must be below HIGH, got {self.low:g} {self.high:g}")
        return self


class SeriesRule(BaseModel):
    """Which of a study's CT series is taken when nobody names one (docs/reference/dicom.md)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    order: tuple[SeriesCriterion, ...] = Field(
        ("orientation", "kernel", "coverage", "phase", "thickness", "original", "slices"),
        description="criteria from the most to the least important; what is left out does not count",
    )
    kernel: Literal["soft", "sharp"] = Field("soft", description="wanted sharpness of the kernel")
    phase: Literal["portal_venous", "contrast", "plain"] = Field(
        "portal_venous", description="wanted phase of the contrast medium"
    )
    coverage_mm: float = Field(
        250.0, gt=0, description="extent that T12 to L5 fit into; more counts as no better"
    )
    thinnest_mm: float = Field(1.0, ge=0, description="slices from this thickness on are wanted")
    thickest_mm: float = Field(3.0, gt=0, description="up to this one; outside, the nearest is taken")


class TotalSegSpec(Spec):
    """How TotalSegmentator finds the vertebrae of a CT that came without them."""

    model_config = ConfigDict(extra="forbid")

    weights: str | None = Field(
        None,
        pattern=r"^[0-9a-f]{64}$",
        description="sha256 of the weights bundle in the store, as `retroln weights import` prints it",
    )
    quality: Literal["full", "fast"] = Field(
        "full", description="full: 1.5 mm, cropped to the spine first; fast: 3 mm over the whole scan"
    )
    device: Literal["auto", "cpu", "gpu"] = Field("auto", description="auto takes a GPU if there is one")
    ribs: bool = Field(
        False, description="with full: also the ribs, one network more (fast finds them anyway)"
    )
    refine: bool = Field(False, description="number the levels by task vertebrae_pp, one network more")


class GateSpec(BaseModel):
    """What a candidate must reach on the locked test set before a person may approve it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_test_patients: int = Field(6, ge=1, description="fewer say too little")
    min_sensitivity_ge10mm: float = Field(
        0.8, ge=0, le=1, description="nodes with short axis >= 10 mm, IoU >= 0.1"
    )
    max_fp_per_volume: float = Field(2.0, ge=0, description="false positives per test volume")
    max_sensitivity_drop: float = Field(0.02, ge=0, le=1, description="allowed loss against the champion")
    max_dice_drop: float = Field(
        0.02, ge=0, le=1, description="allowed loss of mean Dice against the champion"
    )


def _in_order(schema: dict[str, Any]) -> None:
    """Number the fields, so that a form made from the schema shows them as they stand here."""
    for place, field in enumerate(schema["properties"].values()):
        field["position"] = place


class TrainSpec(Spec):
    """How to train. `demo` is a small network for the CPU, `reference` the published one."""

    model_config = ConfigDict(json_schema_extra=_in_order)

    profile: Profile = Field("reference", description="the published network, or a small one for the CPU")
    folds: tuple[int, ...] = Field((0,), description="which of `n_folds` to train")
    n_folds: int = Field(5, ge=2, le=20, description="folds that the training patients are split into")
    epochs: int = Field(1000, ge=1, description="epochs per fold")
    iterations: int = Field(250, ge=1, description="training iterations per epoch")
    validation_iterations: int = Field(50, ge=1, description="validation iterations per epoch")
    device: Device = Field("auto", description="auto takes a GPU if there is one")
    test_fraction: float = Field(0.2, gt=0, lt=1, description="share of patients locked away for testing")
    seed: int = Field(600, description="of the split by patient and of the training")
    containment_min: float = Field(
        0.9, ge=0, le=1, description="share of a case's labelled node voxels that must lie in the region"
    )
    override_containment: bool = Field(False, description="a person takes responsibility for nodes outside")
    min_probability: float = Field(
        0.5, gt=0, lt=1, description="voxels of at least this probability belong to a node"
    )
    min_finding_mm3: float = Field(
        65.0, ge=0, description="smaller findings are specks; the default is a sphere 5 mm across"
    )
    stand_in: str | None = Field(
        None, description="what a stand-in model was trained on; shown wherever its results appear"
    )


class Settings(BaseSettings):
    """Where things are and how the platform behaves; field `x` is read from `RETROLN_X`."""

    model_config = SettingsConfigDict(
        env_prefix="RETROLN_", env_nested_delimiter="__", extra="ignore", frozen=True
    )

    source_uri: str = Field("file://var/source", description="CT as delivered; never written to")
    store_uri: str = Field("file://var/store", description="canonical scans, crops, predictions, pages")
    catalog_url: str = Field("sqlite:///var/catalog.db", description="SQLAlchemy URL; SQLite or PostgreSQL")
    catalog_password: SecretStr | None = Field(None, description="password when the URL holds none")
    mlflow_uri: str = Field("sqlite:///var/mlflow.db", description="MLflow tracking and registry URI")
    mlflow_artifacts: str = Field("var/mlartifacts", description="artifact root for a local MLflow")
    mlflow_user: str | None = Field(None, description="login of a server with basic auth")
    mlflow_password: SecretStr | None = Field(None, description="its password")
    work_dir: Path = Field(Path("var/work"), description="scratch: downloads, nnU-Net folders")
    model_name: str = Field("retroln", description="registered model's name")
    experiment: str = Field("retroln", description="MLflow experiment")
    label_ids: LabelScheme = Field(
        "totalseg-v2", description="scheme of vertebra label maps without their own"
    )
    unanchored: Literal["accept", "review"] = Field(
        "review", description="what to do when neither a sacral S1 nor ribs confirm the numbering"
    )
    series: SeriesRule = SeriesRule()
    mask_names: str = Field(
        r"(?i)lymph|node|\bLN",
        description="regular expression for the segments or ROIs of a DICOM mask that are nodes",
    )
    identity: Literal["given", "pseudonym"] = Field(
        "given",
        description="whether patient and case ids of the source are pseudonyms already, or are replaced",
    )
    pseudonym_key: SecretStr | None = Field(
        None, description="secret under which pseudonyms, UIDs and dates are made; kept beside no data"
    )
    landmarks: Literal["delivered", "totalseg"] = Field(
        "delivered",
        description="a CT that came without vertebra labels is held back, or TotalSegmentator makes them",
    )
    totalseg: TotalSegSpec = TotalSegSpec()
    roi: RoiSpec = RoiSpec()
    hu: Hu = Hu()
    gates: GateSpec = GateSpec()
    arithmetic: AskedArithmetic = Field(
        "auto",
        description="of networks on a CPU: auto takes bf16 for the demo's where the CPU is faster in it",
    )
    processes: int = Field(2, ge=1, description="processes per shard")
    shard_size: int = Field(200, ge=1, description="cases per shard where none takes more than seconds")
    network_shard_size: int = Field(
        25, ge=1, description="cases per shard where a network looks at each: infer, landmarks by totalseg"
    )
    fan_out: Literal["here", "workers"] = Field(
        "here", description="run shards in this process, or each as a flow run on the work pool"
    )
    lease_s: float = Field(
        1800.0, gt=0, description="how long a claimed case stays with a silent worker; renewed at work"
    )
    patience_s: float = Field(180.0, ge=0, description="how long a case waits for a server that is away")
    max_run_h: float = Field(
        240.0, gt=0, description="a flow run that says it runs for longer is over-age and is closed"
    )
    max_pending_s: float = Field(
        900.0,
        gt=0,
        description="a flow run that a worker took and did not start for longer is given to another",
    )
    page_link_h: float = Field(168.0, gt=0, le=168, description="how long links to case pages in S3 work")
    notify_url: SecretStr | None = Field(
        None, description="webhook that is told about failing and over-age runs"
    )
    s3_endpoint: str | None = None
    s3_access_key: SecretStr | None = None
    s3_secret_key: SecretStr | None = None
    s3_region: str = "us-east-1"

    @field_validator("mask_names")
    @classmethod
    def _is_expression(cls, text: str) -> str:
        try:
            re.compile(text)
        except re.error as error:
            raise ValueError(f"a regular expression; {error}") from error
        return text

    def __init__(self, **values: Any) -> None:
        """Read the variables.

        Raises:
            SettingsError: names the variable, what was expected and what it holds.
        """
        try:
            super().__init__(_env_file=env_files(), **values)
        except ValidationError as error:
            raise _unusable(error) from error
        except SourceError as error:
            raise SettingsError(str(error), fix="correct the variable or .env") from error


def env_files() -> tuple[Path, ...]:
    """Files that settings are read from, the later one winning; the environment wins over both.

    What `make stack` wrote yields to a `.env`. A file that `RETROLN_ENV_FILE` names does not: a worker is
    given one that holds no more rights than its work needs.
    """
    if given := os.environ.get("RETROLN_ENV_FILE"):
        return Path(".env"), Path(given)
    return LOCAL_STACK, Path(".env")


def misspelt() -> dict[str, str]:
    """Variables that look like a setting and are none, with the one that each may be meant for.

    Other programs read `RETROLN_` variables of their own, and containers some that end in `_FILE`.
    """
    lines = [f"{name}=" for name in os.environ]
    lines += [path.read_text("utf-8", "replace") for path in env_files() if path.is_file()]
    given = re.findall(r"^\s*(?:export\s+)?RETROLN_(\w+)\s*=", "\n".join(lines), re.IGNORECASE | re.MULTILINE)
    names = {name.removeprefix("RETROLN_") for name in _variables(Settings)}
    others = sorted({name.upper() for name in given if not name.upper().endswith("_FILE")} - names)
    near = {name: get_close_matches(name, names, n=1, cutoff=0.8) for name in others}
    return {f"RETROLN_{name}": f"RETROLN_{found[0]}" for name, found in near.items() if found}


def _variables(model: type[BaseModel], *path: str) -> Iterator[str]:
    """Names of all variables that a field of the model is read from."""
    for name, field in model.model_fields.items():
        if isinstance(field.default, BaseModel):
            yield from _variables(type(field.default), *path, name)
        else:
            yield _variable(*path, name)


def _unusable(error: ValidationError) -> SettingsError:
    """The first thing wrong, under the variable's name; a secret's value is not shown."""
    found = error.errors(include_url=False)[0]
    name = _variable(*found["loc"])
    if found["type"] == "extra_forbidden":
        return _misspelt(name, str(found["loc"][0]))
    if isinstance(found["input"], dict):  # of a group as a whole
        name += "__..."
    secret = any(
        word in name
        for word in ("SECRET", "ACCESS_KEY", "PSEUDONYM_KEY", "PASSWORD", "NOTIFY_URL", "CATALOG_URL")
    )
    got = None if secret else repr(found["input"])
    return SettingsError(
        f"{name} cannot be used",
        expected=found["msg"].removeprefix("Input should be ").removeprefix("Value error, "),
        got=got,
        fix=f"correct {name} in the environment or in .env",
    )


def _misspelt(name: str, group: str) -> SettingsError:
    """A field that its group does not have: left unread, its default would hold without a word."""
    names = list(_variables(type(Settings.model_fields[group].default), group))
    near = get_close_matches(name, names, n=1) or names
    return SettingsError(
        f"{name} is no setting",
        expected=", ".join(near),
        fix="correct its name in the environment or in .env",
    )


def _variable(*path: object) -> str:
    """Name of the variable that a field is read from."""
    return "RETROLN_" + "__".join(str(piece) for piece in path).upper()
