#!/usr/bin/env bash
# Set-up on a bare machine: virtual environment, pinned install, and what the tests need from Debian.
# Nothing is done twice: make calls this only when pyproject.toml or constraints.txt changed.
set -euo pipefail
cd "$(dirname "$0")/.."

python="${PYTHON:-python3.11}"
command -v "$python" >/dev/null || { echo "Python 3.11 is needed: set PYTHON to its path" >&2; exit 1; }
[ -x .venv/bin/python ] || "$python" -m venv .venv
# pip, not uv: pip also finds wheels that lie on the machine's own disk
.venv/bin/pip install -q --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
# These ancient packages come in through batchgenerators; argparse 1.4 would shadow the standard library.
.venv/bin/pip uninstall -q -y argparse unittest2 traceback2 linecache2 2>/dev/null || true

# The browser test wants Debian's Chromium. Everything else comes from pip.
if ! command -v chromium >/dev/null && command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null
fi
touch .venv/.ready
