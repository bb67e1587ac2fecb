"""Write one file per secret into a folder: `python3 -m infra.images.make_secrets [FOLDER]`.

Only the standard library is needed. A file that exists is kept, so a repeat changes nothing. The folder
is open to its owner alone. The files in it can be read by all, because compose mounts each by itself and
the containers do not run as its owner.
"""

from __future__ import annotations

import base64
import os
import secrets
import sys
from pathlib import Path

from infra.seaweedfs import identities, new_keys
from infra.stack.plan import DATABASES, MLFLOW_USERS, S3_RIGHTS

FOLDER = Path("var/secrets")


def make_secrets(folder: Path) -> list[str]:
    """Write the secrets that are missing from `folder`; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    missing = {name: value for name, value in _fresh().items() if not (folder / name).exists()}
    for name, value in missing.items():
        _write(folder / name, value)
    if not (folder / "s3.json").exists():
        keys = {name: _keys(folder, name) for name in S3_RIGHTS}
        _write(folder / "s3.json", identities(keys, S3_RIGHTS))
        missing["s3.json"] = ""
    return sorted(missing)


def _fresh() -> dict[str, str]:
    """A new value for every secret, by file name."""
    found = {f"postgres_{name}": secrets.token_hex(16) for name in ("superuser", *DATABASES)}
    found |= {f"mlflow_{name}": secrets.token_hex(16) for name in MLFLOW_USERS}
    for name in S3_RIGHTS:
        found[f"s3_{name}_access"], found[f"s3_{name}_secret"] = new_keys()
    return {
        **found,
        "prefect_login": f"retroln:{secrets.token_hex(16)}",
        "mlflow_session": secrets.token_hex(32),
        # what SeaweedFS's own parts sign their calls to each other with
        "s3_internal": secrets.token_hex(32),
        # a Fernet key: what MLflow encrypts the secrets of its webhooks with
        "mlflow_encryption": base64.urlsafe_b64encode(os.urandom(32)).decode(),
        # what patients and source objects are renamed under; a new one gives every patient another name
        "pseudonym_key": secrets.token_hex(32),
    }


def _keys(folder: Path, name: str) -> tuple[str, str]:
    """The keys of one of SeaweedFS's identities, as they lie in `folder`."""
    return (folder / f"s3_{name}_access").read_text("utf-8"), (folder / f"s3_{name}_secret").read_text(
        "utf-8"
    )


def _write(path: Path, content: str) -> None:
    with os.fdopen(
        os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8"
    ) as stream:
        stream.write(content)
    path.chmod(0o444)


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    made = make_secrets(target)
    print(f"{len(made)} secrets made in {target}" if made else f"every secret is in {target} already")  # noqa: T201
