#!/usr/bin/env bash
# Builds sdist and, from it, wheel into dist/; installs the wheel into an empty environment, and runs
# README's first example there, without the extras.
#
#   tests/wheel.sh PYTHON
set -euo pipefail
cd "$(dirname "$0")/.."
python="$1"
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
"$python" -m venv "$folder/build"
"$folder/build/bin/python" -m pip install --quiet build
rm -rf dist
"$folder/build/bin/python" -m build
awk '/^```$/ { inside = 0 } inside { print } /^```python$/ { if (seen++) exit; inside = 1 }' \
  README.md > "$folder/example.py"
"$python" -m venv "$folder/empty"
"$folder/empty/bin/python" -m pip install --quiet dist/*.whl
cd "$folder"
empty/bin/python example.py
empty/bin/nestedseg --version
