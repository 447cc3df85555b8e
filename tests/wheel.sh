#!/usr/bin/env bash
# Builds sdist and wheel, checks what is in them, installs the wheel into a new environment and uses it in another folder.
# The environment has the libraries of .venv; `tests/wheel.sh clean` resolves and installs its own, under constraints.txt.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python="$root/.venv/bin/python"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
rm -rf "$root/build" # setuptools adds what an earlier build left there
"$python" -m build --outdir "$work/dist" "$root" >/dev/null
"$python" -m build --wheel --outdir "$work/dist/tree" "$root" >/dev/null
"$python" "$root/tests/distributions.py" "$work/dist"
if [ "${1:-}" = clean ]; then
    "$python" -m venv "$work/env"
    "$work/env/bin/python" -m pip install -q twine
    "$work/env/bin/python" -m twine check --strict "$work"/dist/*.*
    "$python" -m venv --clear "$work/env"
    "$work/env/bin/python" -m pip install -q -c "$root/constraints.txt" "$work"/dist/*.whl
    "$work/env/bin/python" -m pip check
else
    "$python" -m venv --without-pip "$work/env"
    "$python" -m pip --python "$work/env/bin/python" install -q --no-deps "$work"/dist/*.whl
    # the editable install in .venv must not serve: only its third-party packages may
    site=$("$work/env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    "$python" -c 'import sys; print(*(path for path in sys.path if path.endswith("site-packages")), sep="\n")' \
        >"$site/libraries.pth"
fi
cd "$work"
where=$("$work/env/bin/python" -c 'import sae_cli; print(sae_cli.__file__)')
case "$where" in "$work"/env/*) ;; *) echo "the wheel is not what is imported: $where" >&2; exit 1 ;; esac
sae="$work/env/bin/sae"
"$sae" config ls sae
"$sae" sweep smoke --dry-run
"$sae" train experiment=three_features train=quick tracker=jsonl name=wheel
"$sae" eval runs/wheel
test -s runs/wheel/*/eval.json
if [ "${1:-}" = clean ]; then
    "$sae" doctor
    "$sae" sweep smoke
    "$sae" train train=quick tracker=jsonl name=text cache.tokens=20000 cache.validation_tokens=2000 train.tokens=20000
    "$sae" eval runs/text
    "$sae" report runs
    "$sae" export runs/text/* --to saelens --out exported
fi
echo "the wheel works in another folder"
