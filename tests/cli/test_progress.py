import io

from rich.console import Console

from trt_native.cli.progress import ExportProgress

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
