#!/usr/bin/env bash
# Build the wheel, install it alone into a clean environment and use its light commands there.
set -euo pipefail
cd "$(dirname "$0")/.."
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
.venv/bin/pip wheel -q --no-deps -w "$place" .
"${PYTHON:-python3.11}" -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check -c constraints.txt "$place"/retroln-*.whl
cd "$place"
venv/bin/retroln --help
venv/bin/retroln crop --help >/dev/null
venv/bin/retroln doctor || true
venv/bin/python -c "import importlib.util as u; assert not any(map(u.find_spec, ['flows', 'tasks', 'torch', 'prefect']))"
echo "wheel: installed alone and usable"
