#!/usr/bin/env bash
# Runs the fast tests in an environment of its own, .versions-NAME: `lowest` under tests/lowest.txt, `newest` under nothing.
# torch is that of constraints.txt in both (TORCH=torch==2.14.1 takes another); PYTHON=python3.13 takes another Python.
# Words after the name go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
name=$1 && shift
folder=".versions-$name"
"${PYTHON:-python3}" -m venv --clear "$folder"
grep '^torch==' constraints.txt >"$folder/constraints.txt"
if [ -n "${TORCH:-}" ]; then echo "$TORCH" >"$folder/constraints.txt"; fi
if [ "$name" = lowest ]; then cat tests/lowest.txt >>"$folder/constraints.txt"; fi
"$folder/bin/python" -m pip install -q -c "$folder/constraints.txt" -e . pytest hypothesis triton moto[s3] s3fs flask flask-cors
"$folder/bin/python" -m pip check
timeout "${LIMIT:-1200}" "$folder/bin/python" -m pytest -q -p no:cacheprovider --ignore tests/runs/test_ray.py \
    --ignore tests/fuzz --ignore tests/benchmarks "$@"
