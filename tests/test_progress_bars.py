import functools
import io

import pytest
from rich.console import Console
from tqdm import tqdm

from trt_native.errors import SpecError
from trt_native.export import export_module
from trt_native.progress import phase
from trt_native.progress_bars import ExportProgress, shows_byte_progress, shows_progress

STEPS = [
    ("Hashing the checkpoint", 0, 4096),
    ("Hashing the checkpoint", 4096, 4096),
    ("Tracing the module", 0, 0),
    ("Writing the weights", 1 << 20, 2 << 20),
]


def shown(terminal):
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=100)
    with ExportProgress(console) as progress:
        for step in STEPS:
            progress(*step)
    return file.getvalue()


def test_elsewhere_each_phase_is_one_line_with_its_size():
    lines = [line.split("] ", 1)[1] for line in shown(terminal=False).splitlines()]
    assert lines == [
        "Hashing the checkpoint (4.0 KiB)",
        "Tracing the module",
        "Writing the weights (2.0 MiB)",
    ]


def test_on_a_terminal_a_bar_counts_bytes():
    last = shown(terminal=True).rsplit("Writing the weights", 1)[1]
    assert "1.0/2.0 MiB" in last


@shows_progress
def steps(*, progress=None):
    with phase(progress, "Working", 3) as step:
        for number in range(3):
            step(number)


@shows_byte_progress
def transfer(*, progress=None):
    for done in range(4) if progress else ():
        progress("Working", done, 3)


@pytest.mark.parametrize("work", [steps, transfer])
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


def test_the_functions_keep_their_names():
    assert export_module.__name__ == "export_module"
    assert "progress" in export_module.__wrapped__.__kwdefaults__
