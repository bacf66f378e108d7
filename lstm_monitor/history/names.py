"""The names of the files of a history: what is in them, at which step, when written, and by which attempt."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

_NAME = re.compile(r"(check|study|weights)-(-?\d+|none)-(\d{8}T\d{12})-([0-9a-f]+)\.(parquet|safetensors)$")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FORMAT = "%Y%m%dT%H%M%S%f"


def file_name(kind: str, step: int | None, stamp: str, attempt: str) -> str:
    """``check-0000000120-20261123T025719123456-1f2e3d4c.parquet``: sorted by kind and step."""
    return f"{kind}-{'none' if step is None else f'{step:010d}'}-{stamp}-{attempt}.parquet"


def weights_name(name: str) -> str:
    """The name of the file of snapshots that belongs to the file of a check."""
    return f"weights-{name.split('-', 1)[1].removesuffix('.parquet')}.safetensors"


def is_ours(name: str) -> bool:
    """Whether a file, or the part of one whose writing was cut off, bears such a name."""
    return _NAME.match(name) is not None or is_part(name)


def is_part(name: str) -> bool:
    """Whether it is the part of a file whose writing was cut off."""
    return name.startswith(".") and name.endswith(".part") and _NAME.match(name[1:-5]) is not None


def is_weights(name: str) -> bool:
    """Whether it is a file of snapshots."""
    return name.endswith(".safetensors") and _NAME.match(name) is not None


def stamp_of(name: str) -> int:
    """When a file was written, in microseconds since 1970; 0 for a file that is not ours."""
    found = _NAME.match(name)
    return 0 if found is None else (to_time(found[3]) - _EPOCH) // timedelta(microseconds=1)


def to_stamp(microseconds: int) -> str:
    """A time in UTC as it stands in names, ``20261123T025719123456``."""
    return f"{_EPOCH + timedelta(microseconds=microseconds):{_FORMAT}}"


def to_time(stamp: str) -> datetime:
    """The time that such a stamp means."""
    return datetime.strptime(stamp, _FORMAT).replace(tzinfo=UTC)
