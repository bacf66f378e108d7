"""The limit of a decoupled LSTM cell: its transcendental functions alone, five exp2 and two divisions a cell-step.

A loop in C over one block that stays in the first cache, for this machine's own instructions; exp2 is a polynomial of
degree 5, as exact as float32. Nothing of a cell's recurrence, input, metrics or memory is in it.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

SOURCE = r"""
#include <math.h>
#include <stdint.h>
#include <string.h>

static inline float exp2_of(float z) {
    float whole = rintf(z), part = z - whole, p = 1.8775767e-3f;
    p = p * part + 8.9893397e-3f;
    p = p * part + 5.5826318e-2f;
    p = p * part + 2.4015361e-1f;
    p = p * part + 6.9315308e-1f;
    p = p * part + 9.9999994e-1f;
    int32_t bits, power = ((int32_t)whole) << 23;
    memcpy(&bits, &p, 4);
    bits += power;
    memcpy(&p, &bits, 4);
    return p;
}

void cell_steps(float *x, int lanes, long steps) {
    for (long t = 0; t < steps; t++)
        for (int k = 0; k < lanes; k++) {
            float v = x[k];
            float a = exp2_of(v), b = exp2_of(v + 0.1f), c = exp2_of(v + 0.2f), d = exp2_of(v + 0.3f);
            float e = exp2_of(v + 0.4f);
            x[k] = a * b / (1.0f + c) + d / (1.0f + e) - v;
        }
}
"""
LANES = 256
FLAGS = ("-O3", "-march=native", "-ffast-math", "-shared", "-fPIC")


def bound(cell_steps: int) -> Callable[[], None] | None:
    """An action that does the transcendental functions of so many cell-steps on one core; None without a C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "bound.c"), Path(folder, "bound.so")
        source.write_text(SOURCE)
        subprocess.run([compiler, *FLAGS, "-o", str(library), str(source), "-lm"], check=True)
        run = ctypes.CDLL(str(library)).cell_steps
    run.argtypes, run.restype = (ctypes.c_void_p, ctypes.c_int, ctypes.c_long), None
    values = np.full(LANES, 0.1, np.float32)
    return lambda: run(values.ctypes.data, LANES, cell_steps // LANES)
