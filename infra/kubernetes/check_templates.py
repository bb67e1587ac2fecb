"""Checks of the base job templates and of every reference to a secret, without a cluster.

`python -m infra.kubernetes.check_templates [RENDERED]` fills each template with the defaults of its
variables, by Prefect's own code, and validates the job that comes out. It reads the rendered manifests,
too, and wants every secret that is referred to in secrets.example.yaml. It prints what is wrong and
exits with 1.

`--secrets MADE` compares the Secrets that make_secrets.sh made with secrets.example.yaml instead.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from prefect.utilities.templating import apply_values, find_placeholders

HERE = Path(__file__).parent
EXAMPLE = HERE / "secrets.example.yaml"
GIVEN_PER_RUN = {
    "name": "a-run",
    "command": "prefect flow-run execute",
    "env": {},
    "labels": {},
    "annotations": {},
}
_SECRET_NAME = re.compile(r"PASSWORD|SECRET_KEY|ACCESS_KEY|PSEUDONYM_KEY|AUTH_STRING$")


def main() -> int:
    """Number of findings; each is printed."""
    if sys.argv[1:2] == ["--secrets"]:
        made, wanted = secret_keys(Path(sys.argv[2]), "data"), secret_keys(EXAMPLE, "stringData")
        return 0 if made == wanted else _tell([f"make_secrets.sh makes {made}; {EXAMPLE.name} has {wanted}"])
    documents: list[dict[str, Any]] = []
    for rendered in sys.argv[1:]:
        documents += [found for found in yaml.safe_load_all(Path(rendered).read_text("utf-8")) if found]
    findings: list[str] = []
    for path in sorted(HERE.glob("*-job-template.json")):
        job, wrong = filled(json.loads(path.read_text("utf-8")))
        findings += [f"{path.name}: {what}" for what in wrong]
        documents.append(job)
    return _tell([*findings, *unknown_secrets(documents)])


def _tell(findings: list[str]) -> int:
    for finding in findings:
        print(finding)  # noqa: T201
    return len(findings)


def filled(template: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The job that a worker makes when a deployment changes nothing, and what is wrong with it."""
    variables = template["variables"]["properties"]
    names = {place.name for place in find_placeholders(template["job_configuration"])}
    findings = [f"{{{{ {name} }}}} has no variable" for name in sorted(names - variables.keys())]
    values = {name: spec["default"] for name, spec in variables.items() if spec.get("default") is not None}
    job = apply_values(template["job_configuration"], values | GIVEN_PER_RUN)["job_manifest"]
    pod = job["spec"]["template"]["spec"]
    for container in pod["containers"]:
        # the worker splits the command itself, and names the job
        container["args"] = container["args"].split()
        findings += [f"{name} holds a secret in plain text" for name in _plain_secrets(container)]
    try:
        kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)
    except kubernetes_validate.ValidationError as error:
        findings.append(f"{'.'.join(map(str, error.path))}: {error.message}")
    return job, findings


def _plain_secrets(container: dict[str, Any]) -> list[str]:
    return [e["name"] for e in container["env"] if _SECRET_NAME.search(e["name"]) and "valueFrom" not in e]


def secret_keys(path: Path, field: str) -> dict[str, set[str]]:
    """Keys of every Secret in a file, by the Secret's name."""
    documents = yaml.safe_load_all(path.read_text("utf-8"))
    return {found["metadata"]["name"]: set(found[field]) for found in documents}


def unknown_secrets(documents: list[dict[str, Any]]) -> Iterator[str]:
    """References to secrets or keys that secrets.example.yaml does not have."""
    known = secret_keys(EXAMPLE, "stringData")
    for document in documents:
        where = f"{document['kind']} {document['metadata'].get('name', '(flow run)')}"
        for reference in _references(document):
            name, key = reference.get("name") or reference.get("secretName"), reference.get("key")
            if name not in known or (key and key not in known[name]):
                yield f"{where}: no secret {name}{' with key ' + key if key else ''} in secrets.example.yaml"


def _references(node: Any) -> Iterator[dict[str, str]]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("secretKeyRef", "secretRef") or (key == "secret" and "secretName" in value):
                yield value
            yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
