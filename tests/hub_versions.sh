#!/usr/bin/env bash
# The tests of the Hub under the oldest and the newest client of each major version that is
# supported. Each lies in a folder of its own before the environment's: nothing else is installed.
#
#   tests/hub_versions.sh PYTHON    of an environment in which the tests run
set -euo pipefail
cd "$(dirname "$0")/.."
python="$1"
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
for version in "==0.34.0" "<1" "==1.0.0" "<2" "<3"; do
  client="$folder/client$version"
  "$python" -m pip install --quiet --target "$client" "huggingface-hub$version"
  export PYTHONPATH="$client"
  "$python" -c 'import huggingface_hub as client; print("huggingface-hub", client.__version__)'
  "$python" -m pytest tests/hub/test_hub_server.py tests/hub/test_hub.py \
    tests/hub/test_card.py tests/hub/test_publish.py
done
