#!/usr/bin/env bash
# Writes requirements/lock.txt: every wheel and source hash of each pinned version, for Python 3.11 and up, without a registry's address.
# Keeps the pins that are there; "tools/lock.sh --upgrade" takes the newest. Needs uv.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
command -v uv >/dev/null || { echo "lock.sh: uv is missing: pip install uv" >&2; exit 3; }
uv pip compile pyproject.toml requirements/build.in --extra dev --universal --python-version 3.11 --generate-hashes --quiet \
    --no-header --no-annotate --no-emit-index-url --no-emit-find-links "$@" --output-file requirements/lock.txt >/dev/null
