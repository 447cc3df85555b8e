"""Triton's kernels run interpreted, on the CPU; TRITON_INTERPRET=0 (make gpu-check) runs them on a GPU."""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is first imported, which torch may do
