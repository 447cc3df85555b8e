"""The kernels compile for a GPU; what they compute is tested in test_triton_operators.py and on a GPU."""

import os
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_every_kernel_compiles_for_an_h100(tmp_path):
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "tests.sparse.compile_kernels"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    compiled = {line.split()[0] for line in done.stdout.splitlines()}
    assert len(compiled) == 10
