import functools
import io
import time

import pytest
from rich.console import Console
from tqdm import tqdm

from trt_native import build_plan, progress_bars
from trt_native.builder.plan_cache import EngineCache
from trt_native.builder.refit import refit_plan
from trt_native.builder.select_precision import select_precision
from trt_native.calibration.collect import calibrate
from trt_native.errors import SpecError
from trt_native.export import export_module
from trt_native.models.latentsync.build_folder import build_latentsync
from trt_native.models.latentsync.checkpoint import load_checkpoint
from trt_native.models.latentsync.loading import load_unet
from trt_native.progress import byte_phase, phase
from trt_native.progress_bars import (
    ProgressDisplay,
    shows_progress,
)
from trt_native.verify.check import verify_plan
from trt_native.verify.first_mismatch import find_first_mismatch


def shown(terminal):
    """What is shown in the midst of writing."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=100)
    with ProgressDisplay(console) as progress:
        with phase(progress, "Tracing the module"), phase(progress, "Inside", parent="Tracing"):
            pass
        with byte_phase(progress, "Writing the weights", (2 << 20) - 5) as written:
            written(1 << 20)
            progress.__exit__()
    return file.getvalue()


def test_elsewhere_each_phase_is_one_line():
    lines = [line.split("] ", 1)[1] for line in shown(terminal=False).splitlines()]
    assert lines == ["Tracing the module", "Writing the weights (MiB)"]


def test_on_a_terminal_a_bar_counts_steps():
    last = shown(terminal=True).rsplit("Writing the weights (MiB)", 1)[1]
    assert "1/2" in last


@shows_progress
def steps(*, progress=None):
    with phase(progress, "Working", 3) as step:
        for number in range(3):
            step(number)


@shows_progress
def nested(*, progress=None):
    steps(progress=progress)


@pytest.mark.parametrize("work", [steps, nested])
class TestAnyProgress:
    def test_a_function(self, work):
        calls = []
        work(progress=lambda *call: calls.append(call))
        assert calls == [("Working", done, 3) for done in range(4)]

    def test_callbacks(self, work):
        calls = []

        class Callbacks:
            def phase_start(self, *call):
                calls.append(call)

            step_complete = phase_finish = phase_start

        work(progress=Callbacks())
        first, *steps, last = calls
        assert first == ("Working", None, 3)
        assert steps == [("Working", number) for number in range(3)]
        assert last == ("Working",)

    def test_bars_of_tqdm(self, work):
        file = io.StringIO()
        work(progress=functools.partial(tqdm, file=file, mininterval=0))
        assert "Working: 100%" in file.getvalue()
        assert "3/3" in file.getvalue()

    def test_one_bar_of_tqdm(self, work):
        with tqdm(file=io.StringIO()) as bar:
            work(progress=bar)
            assert (bar.desc, bar.n, bar.total) == ("Working: ", 3, 3)

    @pytest.mark.parametrize("progress", [None, False])
    def test_none(self, work, progress, capsys):
        work(progress=progress)
        assert capsys.readouterr() == ("", "")

    def test_true(self, work, capsys):
        work(progress=True)
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "Working" in captured.err

    @pytest.mark.parametrize("progress", [3, "bar"])
    def test_what_receives_none(self, work, progress):
        with pytest.raises(SpecError, match="give True, tqdm"):
            work(progress=progress)


@pytest.mark.parametrize(
    "function",
    [
        build_plan,
        EngineCache.build_plan,
        refit_plan,
        select_precision,
        calibrate,
        verify_plan,
        find_first_mismatch,
        export_module,
        build_latentsync,
        load_checkpoint,
        load_unet,
    ],
    ids=lambda function: function.__qualname__,
)
def test_all_long_work_takes_any_progress(function):
    assert function.__wrapped__.__kwdefaults__["progress"] is None
    with pytest.raises(SpecError, match="give True, tqdm"):
        function(progress=3)


def lines_of(display, work, count, monkeypatch):
    """The lines that a display writes while nothing happens."""
    monkeypatch.setattr(progress_bars, "_LINE_INTERVAL", 0.01)
    file = io.StringIO()
    progress = display(Console(file=file, width=1000))
    work(progress)  # before there is a thread that could write in between
    with progress:
        deadline = time.monotonic() + 30
        while file.getvalue().count("\n") < count and time.monotonic() < deadline:
            time.sleep(0.01)
    return [line.split("] ", 1)[1] for line in file.getvalue().splitlines()]


class TestWaits:
    """Elsewhere than on a terminal, a line comes when none was written for a time."""

    def test_what_is_done_how_far_and_what_is_left(self, monkeypatch):
        def work(progress):
            progress.phase_start("Comparing", None, 0)
            progress.phase_start("Running the reference\n" + "x" * 9000, "Comparing", 2000)
            progress.step_complete("Running the reference\n" + "x" * 9000, 999)

        display = functools.partial(ProgressDisplay, brief=True)
        for line in lines_of(display, work, 2, monkeypatch):
            assert len(line) < 700
            assert line.startswith("Running the reference\\nxxx")
            assert line.endswith(" characters)..." + line.rpartition("...")[2])
            assert ": 1,000 of 2,000, about 0 s left" in line

    def test_a_phase_of_unknown_length(self, monkeypatch):
        def work(progress):
            progress.phase_start("Capturing", None, 0)
            progress.step_complete("Capturing", 4)

        assert lines_of(ProgressDisplay, work, 3, monkeypatch)[:2] == ["Capturing", "Capturing: 5"]

    def test_a_phase_without_steps(self, monkeypatch):
        def work(progress):
            progress.phase_start("Building", None, 1)

        first, second, *_ = lines_of(ProgressDisplay, work, 3, monkeypatch)
        assert (first, second) == ("Building", "Building (0 s so far)")

    def test_between_phases(self, monkeypatch):
        def work(progress):
            progress.phase_start("Reading", None, 1)
            progress.phase_finish("Reading")

        assert lines_of(ProgressDisplay, work, 2, monkeypatch)[:2] == ["Reading", "working"]


def test_names_beside_bars_are_short_and_on_one_line():
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=250)
    with ProgressDisplay(console) as progress:
        progress.phase_start("Building\x1b " + "x" * 9000, None, 0)
        progress.step_complete("Building\x1b " + "x" * 9000, 6)
    assert "Building\\x1b xxx" in file.getvalue()
    assert "x" * 101 not in file.getvalue()
    assert "7/?" in file.getvalue()
