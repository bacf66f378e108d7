"""Sinks: in memory, and several as one."""

from dataclasses import replace

import pytest
import torch

import lstm_monitor as lm
from lstm_monitor.report.sinks import FanOut

REPORT = lm.Report(())


class Failing:
    def __init__(self, words: str) -> None:
        self.words = words

    def write(self, report: lm.Report) -> None:
        raise OSError(f"write {self.words}")

    def close(self) -> None:
        raise OSError(f"close {self.words}")


class Closing(lm.MemorySink):
    closed = False

    def close(self) -> None:
        self.closed = True


def test_memory_keeps_reports_in_order() -> None:
    sink, other = lm.MemorySink(), lm.Report((), step=3)
    sink.write(REPORT)
    sink.write(other)
    sink.close()
    assert sink.reports == [REPORT, other]
    assert isinstance(sink, lm.Sink)
    assert not isinstance(object(), lm.Sink)


def test_one_that_fails_does_not_keep_a_report_from_the_others() -> None:
    before, after = Closing(), Closing()
    sinks = FanOut([before, Failing("one"), Failing("two"), after])
    with pytest.raises(OSError, match="write one"):
        sinks.write(REPORT)
    with pytest.raises(OSError, match="close one"):
        sinks.close()
    assert before.reports == after.reports == [REPORT]
    assert before.closed
    assert after.closed


class Wanting(lm.MemorySink):
    wants_snapshots = True


def test_weights_go_only_to_those_that_want_them() -> None:
    wanting, other = Wanting(), lm.MemorySink()
    FanOut([wanting, other]).write(replace(REPORT, snapshots=lm.snapshot(torch.nn.GRU(2, 3))))
    assert [len(sink.reports[0].snapshots) for sink in (wanting, other)] == [1, 0]


@pytest.mark.parametrize("wrong", ["runs", ["x"], [lm.MemorySink], lm.MemorySink(), 3])
def test_what_takes_no_reports_is_refused_at_once(wrong: object) -> None:
    with pytest.raises(TypeError, match=r"sinks.*give a list of sinks, such as sinks=\[TensorBoardSink"):
        lm.LSTMMonitor(sinks=wrong)  # type: ignore[arg-type]  # that is the mistake
