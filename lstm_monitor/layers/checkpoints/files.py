"""Read a checkpoint file: what it holds, without running code of whoever made it unless that is asked for."""

from __future__ import annotations

import itertools
import os
import re
import tarfile
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path, PosixPath, PurePosixPath
from typing import Any

import numpy as np
import torch

from lstm_monitor.core.errors import require

SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")
_NUMBERS = [type(np.dtype(code)) for code in "?bBhHiIlLqQefdFD"]
_MAKERS = [value.__reduce__()[0] for value in (np.float64(0), np.zeros(0))]
HARMLESS: tuple[Any, ...] = (Namespace, PosixPath, PurePosixPath, np.ndarray, np.dtype, *_MAKERS, *_NUMBERS)
"""What many checkpoints hold, torch does not make by itself, and does nothing when made: settings, numbers of numpy."""
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")


def read_file(path: str | Path, unsafe_pickle: bool = False) -> Any:
    """What a checkpoint file holds, on the CPU: a dict of tensors, a dict that holds one, or a whole model.

    Args:
        path: a file of ``torch.save`` or of safetensors.
        unsafe_pickle: load what is refused otherwise by unpickling it, which runs code of whoever made the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a folder or no checkpoint, or holds objects that only unpickling can make.
        ImportError: a safetensors file, and safetensors is not installed (extra ``history``).
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give a checkpoint file{_files_in(path)}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if _is_safetensors(path):
        return _read_safetensors(path)
    try:
        with _allowing(HARMLESS), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch's own words on files that are told below
            return torch.load(path, map_location="cpu", weights_only=not unsafe_pickle)
    except Exception as error:  # torch raises a dozen kinds, and unpickling any
        raise ValueError(_why_not(path, error, unsafe_pickle)) from error


def _allowing(classes: Sequence[Any]) -> AbstractContextManager[None]:
    """Inside, torch makes objects of these classes too; torch 2.4 cannot be told for a while only."""
    allowing = getattr(torch.serialization, "safe_globals", None)
    return nullcontext() if allowing is None else allowing(list(classes))


def _files_in(folder: Path) -> str:
    """The first few checkpoints in a folder and below, in words."""
    walk = itertools.islice(os.walk(folder), 500)
    files = (Path(parent, name) for parent, _, names in walk for name in sorted(names))
    found = list(itertools.islice((str(file) for file in files if file.suffix in SUFFIXES), 3))
    return f", such as {', '.join(found)}" if found else f"; none lies in it ({', '.join(SUFFIXES)})"


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(9)
    return path.suffix == ".safetensors" or (start[8:] == b"{" and start[4:8] == b"\0" * 4)


def _read_safetensors(path: Path) -> Any:
    safetensors = require("safetensors.torch", "history")
    try:
        return safetensors.load_file(path, device="cpu")
    except Exception as error:  # safetensors has an error type of its own for each reader
        raise ValueError(f"{path} cannot be read as a safetensors file ({_first_line(error)})") from error


def _why_not(path: Path, error: Exception, unsafe_pickle: bool) -> str:
    if unsafe_pickle:
        return f"{path} cannot be loaded: {type(error).__name__}: {_first_line(error)}"
    words = str(error)
    foreign = _foreign(path)
    if foreign:
        return f"{path} is {foreign}"
    if "TorchScript" in words:
        return f"{path} is a TorchScript archive; save the state_dict() of the module, or add --unsafe-pickle"
    named = _GLOBAL.search(words)
    if named is None and not ("Weights only load failed" in words and _is_pickled(path)):
        return f"{path} cannot be read as a checkpoint; give an undamaged file of torch.save or of safetensors"
    what = "objects, or it is damaged" if named is None else f"{named[1]!r}"
    return (
        f"{path} holds more than tensors and plain values ({what}): a whole model, or settings that are objects. "
        "Making them means unpickling, which runs code of whoever made the file. If you trust them add "
        "--unsafe-pickle; or save model.state_dict() alone"
    )


_KERAS = "of Keras: load it there, and give the model with KerasLSTMMonitor to fit"


def _foreign(path: Path) -> str:
    """What a file is that is no checkpoint of torch, and what to do with it; nothing where that is not known."""
    if path.name.endswith(".index.json"):
        return "the index of a checkpoint in several files: give the one that holds the recurrent weights"
    if tarfile.is_tarfile(path):
        return "an archive: unpack it, and give a checkpoint in it"
    with path.open("rb") as file:
        start = file.read(8)
    if start == b"\x89HDF\r\n\x1a\n":
        return f"an HDF5 file, perhaps {_KERAS}"
    names = zipfile.ZipFile(path).namelist() if zipfile.is_zipfile(path) else []
    if "model.weights.h5" in names:
        return f"a model {_KERAS}"
    if names and not any(name.endswith(("data.pkl", "version")) for name in names):
        return "an archive: unpack it, and give a checkpoint in it"
    return ""


def _is_pickled(path: Path) -> bool:
    with path.open("rb") as file:
        return zipfile.is_zipfile(path) or file.read(1) == b"\x80"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:160] if str(error) else type(error).__name__
