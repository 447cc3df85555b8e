#!/usr/bin/env bash
# Runs the fast tests in an environment of its own, .versions-NAME: `lowest` under tests/lowest.txt, `newest` under nothing.
# torch is that of constraints.txt in both (TORCH=torch==2.14.1 takes another); PYTHON=python3.13 takes another Python.
# Words after the name go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
name=$1 && shift
folder=".versions-$name"
"${PYTHON:-python3}" -m venv --clear "$folder"
echo "${TORCH:-$(grep '^torch==' constraints.txt)}" >"$folder/constraints.txt"
wanted=(-e '.[dev]')
# what stands in for S3 and Ray in tests, and what builds the site, does not go with the lowest versions; the fuzzer and benchmarks have their own targets
without=(--ignore tests/fuzz --ignore tests/benchmarks)
if [ "$name" = lowest ]; then
    cat tests/lowest.txt >>"$folder/constraints.txt"
    wanted=(-e '.[slurm,joblib]' pytest hypothesis triton)
    without+=(--ignore tests/runs/test_ray.py --ignore tests/store/test_remote.py --ignore tests/store/test_upload.py)
    without+=(--ignore tests/docs/test_links.py --ignore tests/docs/test_site.py -k 'not ray.md')
fi
"$folder/bin/python" -m pip install -q -c "$folder/constraints.txt" "${wanted[@]}"
"$folder/bin/python" -m pip check
timeout "${LIMIT:-1500}" "$folder/bin/python" -m pytest -q -p no:cacheprovider "${without[@]}" "$@"
