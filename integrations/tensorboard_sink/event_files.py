"""Event files on disks that fill up and in folders that vanish: errors are raised here, in the thread of the caller.

TensorBoard writes in a thread of its own. An error there ends that thread, and is raised at whatever the user logs next
through the same writer, which may end their training.
"""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import suppress
from typing import Any

ROOM = 1 << 12
"""Bytes that must fit before an event file is begun."""


def open_writer(folder: str) -> Any:
    """A ``SummaryWriter`` of our own; OSError if no file can be written in the folder."""
    from torch.utils.tensorboard import SummaryWriter

    _try_out(folder)
    return SummaryWriter(folder)


def put(writer: Any, summary: Any, step: int | None = None) -> None:
    """Write a summary now. After an error the writer begins a new file with what is logged next.

    The old file may end in half a record, behind which nothing could be read.
    """
    from tensorboard.compat.proto.event_pb2 import Event

    event = Event(summary=summary, step=step or 0, wall_time=time.time())
    try:
        if writer.file_writer is None:
            _try_out(str(writer.log_dir))
        _write(writer._get_file_writer().event_writer, event)
    except Exception:
        let_go(writer)
        raise


def is_gone(writer: Any) -> bool:
    """Whether the file of a writer was deleted: on many systems writing to it raises nothing."""
    path = getattr(getattr(writer.file_writer, "event_writer", None), "_file_name", None)
    return isinstance(path, str) and "://" not in path and not os.path.exists(path)


def let_go(writer: Any) -> None:
    """Close the files of a writer; what is logged next opens new ones."""
    for file in (writer.all_writers or {}).values():
        with suppress(Exception):
            file.close()
    writer.file_writer = writer.all_writers = None


def _write(events: Any, event: Any) -> None:
    """Behind all that waits for TensorBoard's thread, but not in it."""
    thread = events._async_writer
    with thread._lock:
        thread._check_worker_status()
        thread._byte_queue.join()
        thread._check_worker_status()
        thread._writer.write(event.SerializeToString())
        thread._writer.flush()


def _try_out(folder: str) -> None:
    if "://" not in folder:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(ROOM))
