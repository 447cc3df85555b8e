"""The kernels of kernels.cpp and pairs.cpp, compiled for this machine when they are first needed."""

import ctypes
import logging
import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from sae_cli.files import replace_atomically, short_hash
from sae_cli.sparse.operators import Entries, Operators

log = logging.getLogger(__name__)

SOURCES = [Path(__file__).with_name(name) for name in ("kernels.cpp", "pairs.cpp")]
HEADER = Path(__file__).with_name("rows.h")
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-signed-zeros", "-fno-trapping-math", "-fassociative-math")
SHARED = ("-fopenmp", "-shared", "-fPIC")


@cache
def library() -> ctypes.CDLL | None:
    """Return the compiled kernels, or None where there is no C++ compiler with OpenMP.

    They are kept in the user's cache folder, under a name that changes with their source and with the processor.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = _kept()
            if not file.exists():
                made = Path(folder) / file.name
                command = [os.environ.get("CXX", "c++"), *FLAGS, *SHARED, "-o", str(made), *map(str, SOURCES)]
                subprocess.run(command, check=True, capture_output=True, text=True)
                try:
                    replace_atomically(file, made.read_bytes())
                except OSError:  # a read-only home: compiled anew by each process
                    file = made
            found = ctypes.CDLL(str(file))
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        log.info("sparse products take torch's operators, which are slower: no kernels compiled (%s)", error)
        log.debug("%s", getattr(error, "stderr", ""))
        return None
    found.sae_find.restype = ctypes.c_int64
    return found


def _kept() -> Path:
    """Return the file of the kernels that were compiled for this processor."""
    described = Path("/proc/cpuinfo")
    lines = (
        re.findall(r"^(?:model name|flags|Features)\s*:.*", described.read_text(), re.M) if described.exists() else []
    )
    processor = [platform.machine(), platform.processor(), *sorted(set(lines))]
    name = f"kernels-{short_hash([[file.read_text() for file in (HEADER, *SOURCES)], FLAGS, processor])}.so"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sae-cli" / name


class Compiled(Operators):
    """Operators by the compiled kernels."""

    narrow_share = 1 / 8

    def __init__(self, compiled: ctypes.CDLL) -> None:
        self.compiled = compiled

    def _call(self, name: str, *values: Tensor | int) -> int:
        arguments = [ctypes.c_void_p(v.data_ptr()) if isinstance(v, Tensor) else ctypes.c_int64(v) for v in values]
        return getattr(self.compiled, name)(*arguments)

    def find(self, m_KBF: Tensor, offset_KF: Tensor, ks: Sequence[int], capacity: int) -> tuple[Entries, Tensor] | None:
        (_, B, F), (m_BF, narrow), (k,) = m_KBF.shape, _rows(m_KBF), ks
        starts_R, columns_N = torch.empty(B + 1, dtype=torch.int32), torch.empty(capacity, dtype=torch.int32)
        m_N, offset_F, threads = torch.empty(capacity), offset_KF.contiguous(), torch.get_num_threads()
        N = self._call("sae_find", m_BF, narrow, offset_F, B, F, k, capacity, threads, starts_R, columns_N, m_N)
        if N == -2:
            raise MemoryError("no memory for the latents that fire")
        return None if N < 0 else (Entries(starts_R, columns_N[:N], F, self, [N]), m_N[:N])

    def by_column(self, entries: Entries) -> tuple[Tensor, Tensor, Tensor]:
        starts_C = torch.empty(entries.latents + 1, dtype=torch.int32)
        rows_N, order_N = torch.empty_like(entries.columns_N), torch.empty_like(entries.columns_N)
        found = starts_C, rows_N, order_N
        self._call("sae_by_column", entries.rows, entries.latents, entries.starts_R, entries.columns_N, *found)
        return found

    def decode(
        self, entries: Entries, f_N: Tensor, W_FD: Tensor, b_dec_KD: Tensor, target_BD: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        (B, D), (W_FD, narrow), (target_BD, _) = target_BD.shape, _rows(W_FD), _rows(target_BD.float())
        f_N, b_dec_D, threads = f_N.contiguous(), b_dec_KD.contiguous(), torch.get_num_threads()
        found = W_FD.new_empty(B, D), torch.empty(B), torch.empty_like(f_N)
        places = entries.starts_R, entries.columns_N
        self._call("sae_decode", W_FD, narrow, b_dec_D, target_BD, B, D, *places, f_N, threads, *found)
        return found

    def accumulate(self, entries: Entries, weights_N: Tensor, G_BD: Tensor, transposed: bool) -> Tensor:
        D, F, (G_BD, narrow), weights_N = G_BD.shape[1], entries.latents, _rows(G_BD), weights_N.contiguous()
        out, threads = torch.empty((1, D, F) if transposed else (F, D)), torch.get_num_threads()
        self._call("sae_accumulate", G_BD, narrow, D, F, *entries.by_column, weights_N, transposed, threads, out)
        return out

    def project(self, grad: Tensor, directions: Tensor) -> None:
        if not (grad.is_contiguous() and directions.is_contiguous() and grad.dtype == torch.float32):
            return super().project(grad, directions)
        D = grad.shape[-1]
        self._call("sae_project", grad, directions, grad.numel() // D, D, torch.get_num_threads())

    def unit(self, directions: Tensor) -> None:
        D = directions.shape[-1]
        self._call("sae_unit", directions, directions.numel() // D, D, torch.get_num_threads())


def _rows(values: Tensor) -> tuple[Tensor, bool]:
    """Return a matrix without gaps in bf16 or fp32, and whether it is bf16."""
    narrow = values.dtype == torch.bfloat16
    return (values if narrow else values.float()).contiguous(), narrow
