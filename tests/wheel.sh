#!/usr/bin/env bash
# Builds the wheel, installs it into a new environment beside the libraries of .venv, and uses it in another folder.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$root/.venv/bin/python" -m build --wheel --outdir "$work/dist" "$root" >/dev/null
"$root/.venv/bin/python" -m venv --without-pip "$work/env"
site=$("$work/env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
libraries=$("$root/.venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$root/.venv/bin/python" -m pip install -q --no-deps --target "$site" "$work"/dist/*.whl
# the editable install in .venv must not serve: only its third-party packages may
echo "import sys; sys.path.append('$libraries')" >"$site/libraries.pth"
cd "$work"
where=$("$work/env/bin/python" -c 'import sae_cli; print(sae_cli.__file__)')
case "$where" in "$site"/*) ;; *) echo "the wheel is not what is imported: $where" >&2; exit 1 ;; esac
"$work/env/bin/python" -m sae_cli config ls sae
"$work/env/bin/python" -m sae_cli sweep smoke --dry-run
"$work/env/bin/python" -m sae_cli train experiment=three_features train=quick tracker=jsonl name=wheel
test -s runs/wheel/*/sae.safetensors
echo "the wheel works in another folder"
