"""The building process: handling of crashes, kills, cancels and time limits.

What TensorRT cannot be brought to do on a small machine is planted into the child by a
``sitecustomize`` module (the ``plant`` fixture); the product has no hook for it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import MappingProxyType

import onnx
import pytest
from helpers import tiny_models
from helpers.planted_builds import PARSER_CRASH, PLANT
from onnx import helper

from trt_native.builder import isolated
from trt_native.builder.fallback import FusionError
from trt_native.builder.isolated import Job, build_with_retries
from trt_native.config import BuildConfig, Precision
from trt_native.errors import BuildError, TrtNativeError
from trt_native.plans.plan import Plan
from trt_native.shapes import ProfileSpec

pytestmark = pytest.mark.usefixtures("started_builds")

DIMS = ("--dim", "batch=1:2:4", "--dim", "height=8", "--dim", "width=8")
MOMENTS = ["Reading the model", "Writing the rewritten graph", "Building engine"]


def command(*arguments):
    return [sys.executable, "-m", "trt_native", *map(str, arguments)]


@pytest.fixture
def model(tmp_path):
    return tiny_models.conv(tmp_path / "m.onnx")


@pytest.fixture
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture
def build(model, scratch, plant):
    """Build ``model`` with something planted; returns the finished process."""
    pytest.importorskip("tensorrt_rtx")

    def run(*arguments, body="return build()", path=model, code=None):
        env = plant(code or PLANT.format(body=body), TMPDIR=str(scratch))
        return subprocess.run(
            command("build", path, *DIMS, "--backend", "rtx", *arguments),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env=env,
        )

    return run


def failed(result):
    """The message of a command that failed as it should."""
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    return result.stderr


class Running:
    """A build under way."""

    def __init__(self, model, scratch, *arguments, env=None):
        self.process = subprocess.Popen(
            command("build", model, "--dim", "batch=1:2:4", "--backend", "rtx", *arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**(env or os.environ), "TMPDIR": str(scratch)},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def wait_for(self, text):
        while text not in (line := self.process.stderr.readline()):
            assert line, f"the build ended before {text!r}"

    @property
    def child(self):
        pid = self.process.pid
        (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(child)

    def end(self):
        return self.process.communicate(timeout=60)


def gone(pid, seconds=20):
    """Whether a process ends; a zombie that no process waits for has ended."""
    for _ in range(seconds * 20):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.backend
class TestCrashes:
    def test_a_model_that_crashes_the_parser_is_an_error_with_the_node(
        self, build, tmp_path, scratch
    ):
        path = tiny_models.save(
            tmp_path / "m.onnx",
            [
                helper.make_node("Relu", ["x"], ["a"], name="before"),
                helper.make_node("Floor", ["a"], ["y"], name="crashing"),
            ],
            [tiny_models.tensor("x", tiny_models.FLOAT, ["batch", 8, "height", "width"])],
            [tiny_models.tensor("y", tiny_models.FLOAT, None)],
        )
        code = PARSER_CRASH.format(node="crashing")
        message = failed(build("--precision", "fp32", path=path, code=code))
        assert "crashed with SIGFPE (Floating point exception)" in message
        assert "after it began to parse node crashing [Floor]" in message
        assert message.startswith("[")
        assert "error: TensorRT-RTX 1." in message
        assert os.listdir(tmp_path) == ["m.onnx"]
        assert os.listdir(scratch) == []

    @pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGBUS"])
    def test_a_crash_while_building_names_signal_and_phase(self, build, tmp_path, scratch, name):
        message = failed(build(body=f"os.kill(os.getpid(), signal.{name})"))
        assert f"crashed with {name} (" in message
        assert ("the model is damaged" in message) == (name == "SIGSEGV")
        assert ("a file was cut off" in message) == (name == "SIGBUS")
        assert "in phase 'Building engine'" in message
        assert "TensorRT's last line: " in message
        assert os.listdir(tmp_path) == ["m.onnx"]
        assert os.listdir(scratch) == []

    def test_sigkill_gets_the_hint_about_memory(self, build, tmp_path):
        message = failed(build(body="os.kill(os.getpid(), signal.SIGKILL)"))
        assert "the building process was killed (SIGKILL) in phase 'Building engine'" in message
        assert "ran out of memory: it held" in message
        assert os.listdir(tmp_path) == ["m.onnx"]

    def test_output_of_a_dying_child_is_in_the_error(self, build):
        message = failed(build(body="os.write(2, b'terminate called: planted'); os._exit(3)"))
        assert "ended the building process with exit code 3" in message
        assert "terminate called: planted" in message

    def test_a_defect_of_this_package_shows_its_place(self, build, tmp_path):
        result = build(body="return 1 / 0")
        assert result.returncode == 1
        assert "ended the building process with exit code 1 in phase" in result.stderr
        assert "ZeroDivisionError: division by zero" in result.stderr
        assert os.listdir(tmp_path) == ["m.onnx"]

    def test_pythons_own_lack_of_memory(self, build):
        assert "the machine has too little memory" in failed(build(body="raise MemoryError"))


def test_a_signal_from_outside_is_no_fault_of_the_model(tmp_path, monkeypatch):
    import resource

    job = Job(
        model=tmp_path / "m.onnx", target=tmp_path / "m.plan", config=BuildConfig(), backend="rtx",
        cache=None, cache_bytes=None,
    )  # fmt: skip
    child = isolated.ChildBuild(job)
    child._phases = ["Building engine"]
    for code, name in {
        -signal.SIGTERM: "SIGTERM (Terminated)",
        -signal.SIGHUP: "SIGHUP (Hangup)",
        -40: "signal 40",
        130: "SIGINT (Interrupt)",
    }.items():
        message = child._ended_from_outside(code).message
        assert f"was ended from outside with {name} in phase 'Building engine'" in message
    for code in (0, 1, 3, -signal.SIGSEGV, -signal.SIGABRT, -signal.SIGKILL):
        assert child._ended_from_outside(code) is None
    at_limit = "reached its limit of CPU time in phase 'Building engine'; raise the limit"
    assert at_limit in child._ended_from_outside(-signal.SIGXCPU).message
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1, 1))  # what the kernel kills at
    assert at_limit in child._ended_from_outside(-signal.SIGKILL).message


@pytest.mark.backend
class TestEnds:
    @pytest.fixture(autouse=True)
    def _needs_rtx(self):
        pytest.importorskip("tensorrt_rtx")

    @pytest.fixture
    def chain(self, tmp_path):
        return tiny_models.conv_chain(tmp_path / "m.onnx")

    @pytest.mark.parametrize("moment", MOMENTS)
    def test_kill_9_of_the_command_leaves_nothing(self, chain, tmp_path, scratch, moment):
        running = Running(chain, scratch)
        running.wait_for(moment)
        child = running.child
        running.process.kill()
        running.end()
        assert gone(child)
        assert os.listdir(tmp_path) == ["m.onnx"]
        assert os.listdir(scratch) == []

    @pytest.mark.parametrize("moment", MOMENTS)
    def test_kill_9_of_the_child_is_an_error_and_leaves_nothing(
        self, chain, tmp_path, scratch, moment
    ):
        running = Running(chain, scratch)
        running.wait_for(moment)
        os.kill(running.child, signal.SIGKILL)
        _, message = running.end()
        assert running.process.returncode == 1
        assert "the building process was killed (SIGKILL)" in message
        assert os.listdir(tmp_path) == ["m.onnx"]
        assert os.listdir(scratch) == []

    def test_kill_9_while_a_file_is_half_written(self, tmp_path, scratch, model, plant):
        target = tmp_path / "m.plan"
        target.write_bytes(b"what was here")
        env = plant(
            """
            import os, signal
            from trt_native import files
            from trt_native.plans.plan_file import PlanFile
            real = PlanFile.write
            def write(self, chunk):
                real(self, chunk[:1000])
                self.new.file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            PlanFile.write = write
            """,
            TMPDIR=str(scratch),
        )
        for unnamed in (True, False):  # not every filesystem has files without a name
            if not unnamed:
                code = Path(env["PYTHONPATH"].split(os.pathsep)[0], "sitecustomize.py")
                code.write_text(code.read_text() + "files._open_unnamed = lambda folder: None\n")
            result = subprocess.run(
                command("build", model, *DIMS, "--backend", "rtx", "--no-cache"),
                capture_output=True,
                text=True,
                check=False,
                env=env,
            )
            assert "was killed (SIGKILL)" in failed(result)
            assert sorted(os.listdir(tmp_path)) == ["m.onnx", "m.plan"]
            assert target.read_bytes() == b"what was here"

    def test_ctrl_c_works_while_a_build_ignores_it(self, chain, tmp_path, scratch, plant):
        env = plant(PLANT.format(body="time.sleep(600)"))
        running = Running(chain, scratch, env=env)
        running.wait_for("Building engine")
        child = running.child
        running.process.send_signal(signal.SIGINT)
        running.wait_for("press Ctrl-C again")
        running.process.send_signal(signal.SIGINT)
        _, message = running.end()
        assert message == "\ninterrupted\n"
        assert running.process.returncode == 130
        assert gone(child)
        assert os.listdir(tmp_path) == ["m.onnx"]
        assert os.listdir(scratch) == []

    def test_sigterm_ends_the_child_too(self, chain, tmp_path, scratch):
        running = Running(chain, scratch)
        running.wait_for("Building engine")
        child = running.child
        running.process.terminate()
        _, message = running.end()
        assert message.endswith("\ninterrupted\n")
        assert gone(child)
        assert os.listdir(scratch) == []

    def test_a_time_limit_cancels_the_build(self, build, tmp_path, scratch):
        # The real build follows after the request to stop: TensorRT itself ends it.
        body = "cancelled.wait(); return build()"
        message = failed(build("--timeout", "3s", body=body))
        assert (
            "the time is up: cancelling after the current TensorRT step, in 10 s at most" in message
        )
        assert "again" not in message
        assert "took too long and was stopped in phase 'Building engine'" in message
        assert os.listdir(tmp_path) == ["m.onnx"]
        assert os.listdir(scratch) == []

    def test_a_time_limit_kills_what_does_not_stop(self, tmp_path, scratch, model, plant):
        grace = "\nfrom trt_native.builder import isolated\nisolated.CANCEL_GRACE_S = 0.5\n"
        env = plant(PLANT.format(body="time.sleep(600)") + grace)
        running = Running(model, scratch, *DIMS[2:], "--timeout", "3", env=env)
        running.wait_for("Building engine")
        child = running.child
        _, message = running.end()
        assert running.process.returncode == 1
        assert "took too long" in message
        assert gone(child)
        assert os.listdir(tmp_path) == ["m.onnx"]
        assert os.listdir(scratch) == []

    def test_a_plan_that_is_being_written_when_the_time_is_up_counts(self, model, tmp_path, plant):
        env = plant(
            """
            import time
            from trt_native.plans.plan import Plan
            real = Plan.save
            Plan.save = lambda *plan, **written: time.sleep(5) or real(*plan, **written)
            """
        )
        result = subprocess.run(
            command("build", model, *DIMS, "--backend", "rtx", "--timeout", "4", "--no-cache"),
            capture_output=True,
            text=True,
            check=False,
            env=env,
        )
        assert "the time is up" in result.stderr
        assert result.returncode == 0, result.stderr
        assert sorted(os.listdir(tmp_path)) == ["m.onnx", "m.plan", "m.plan.json"]

    @pytest.mark.parametrize("text", ["soon", "0", "-5s", "5 parsecs", ""])
    def test_bad_durations(self, model, text):
        result = subprocess.run(
            command("build", model, *DIMS, f"--timeout={text}"),
            capture_output=True,
            text=True,
            check=False,
        )
        assert "not a duration" in failed(result)


NO_ROOM = """
    if workspace > {room}:
        raise BuildError("TensorRT-RTX failed to build the network", [
            "Error Code 10: Internal Error (Could not find any implementation for node {{conv}}.)"
        ])
    return build()
"""


@pytest.mark.backend
class TestRetries:
    def test_the_plan_and_the_summary_name_the_settings_used(self, build, tmp_path):
        body = NO_ROOM.format(room=2**29)
        result = build("--retry", "--json", body=body)
        assert result.returncode == 0, result.stderr
        printed = json.loads(result.stdout)
        assert printed["options"]["workspace_bytes"] == 2**29
        assert "optimization_level" not in printed["options"]  # TensorRT-RTX has none
        cause = "TensorRT found no implementation"
        assert printed["failed_attempts"] == [
            {"workspace_bytes": 2**33, "optimization_level": None, "cause": cause},
            {"workspace_bytes": 2**31, "optimization_level": None, "cause": cause},
        ]
        written = json.loads((tmp_path / "m.plan.json").read_text())
        assert written["options"] == printed["options"]
        assert "attempt 1 failed with workspace 8.0 GiB" in " ".join(result.stderr.split())

    def test_the_same_command_does_not_fail_first_again(self, build, tmp_path):
        body = NO_ROOM.format(room=2**29)
        first, second = (json.loads(build("--retry", "--json", body=body).stdout) for _ in range(2))
        assert (first.pop("cached"), second.pop("cached")) == (False, True)
        assert first == second
        # No other build gets less than was asked for.
        assert "hint: a retry builds again" in failed(build(body=body))
        subprocess.run(command("cache", "clear"), check=True, capture_output=True)
        assert json.loads(build("--retry", "--json", body=body).stdout)["cached"] is False

    def test_the_summary_for_people(self, build):
        result = build("--retry", body=NO_ROOM.format(room=2**31))
        assert "workspace 2.0 GiB, optimization level the default" in result.stdout
        assert "workspace 8.0 GiB" in result.stdout

    def test_a_workspace_that_is_too_small_grows(self, tmp_path):
        pytest.importorskip("tensorrt_rtx")
        path = tiny_models.wide_convs(tmp_path / "m.onnx")
        job = Job(
            model=path,
            target=tmp_path / "m.plan",
            config=BuildConfig(workspace_bytes=16 << 20),
            backend="rtx",
            cache=None,
            cache_bytes=None,
        )
        with pytest.raises(BuildError, match=r"limit is 16\.0 MiB; allow 64\.0 MiB") as caught:
            build_with_retries(job, None)
        assert caught.value.details[-1] == "hint: a retry builds again with a larger workspace"
        assert caught.value.options == ("workspace_bytes", "retry")
        outcome = build_with_retries(job, None, retry=True)
        (attempt,) = outcome.attempts
        assert attempt.workspace_bytes == 16 << 20
        assert "the workspace is too small, it needs" in attempt.cause
        assert outcome.manifest.options["workspace_bytes"] == 64 << 20
        assert "optimization_level" not in outcome.manifest.options

    def test_only_on_request(self, build, tmp_path):
        message = failed(build(body=NO_ROOM.format(room=2**29)))
        assert "Could not find any implementation for node {conv}" in message
        assert "hint: a retry builds again" in message
        assert " (--retry)\n" in message
        assert os.listdir(tmp_path) == ["m.onnx"]

    def test_it_ends_after_four_attempts(self, build, tmp_path):
        message = failed(build("--retry", body=NO_ROOM.format(room=0)))
        attempts = [line for line in message.splitlines() if line.startswith("  attempt ")]
        assert [line.split(":")[0] for line in attempts] == [f"  attempt {n}" for n in range(1, 5)]
        assert "workspace 128.0 MiB, optimization level the default" in attempts[-1]
        assert os.listdir(tmp_path) == ["m.onnx"]

    def test_a_killed_child_is_lack_of_memory(self, build):
        body = "os.kill(os.getpid(), signal.SIGKILL) if workspace > 2**29 else None; return build()"
        result = build("--retry", "--json", body=body)
        assert [a["cause"] for a in json.loads(result.stdout)["failed_attempts"]] == [
            "killed for lack of memory"
        ] * 2

    def test_an_abort_for_lack_of_memory(self, build):
        words = "b\"terminate called after throwing an instance of 'std::bad_alloc'\""
        body = f"os.write(2, {words}) and os.abort() if workspace > 2**29 else None; return build()"
        result = build("--retry", "--json", body=body)
        assert [a["cause"] for a in json.loads(result.stdout)["failed_attempts"]] == [
            "out of memory"
        ] * 2

    def test_other_failures_are_not_retried(self, build, tmp_path):
        (tmp_path / "broken.onnx").write_bytes(b"not onnx")
        message = failed(build("--retry", path=tmp_path / "broken.onnx"))
        assert "not an ONNX" in message
        assert "attempt" not in message


NO_KERNEL = """
    import trt_native.builder.trial_run as trial_run
    from trt_native.errors import CudaError
    def run_once(plan):
        if not plan.manifest.options.get("break_fusions"):
            words = "No valid engine configs for ConvFwd_ADD_"
            raise CudaError("no kernel for a fusion", ["Error Code 1: Myelin (" + words])
    trial_run.run_once = run_once
    return build()
"""


class TestWarming:
    """What a child reports after its plan is written."""

    RESULT = MappingProxyType({"manifest": {}, "cached": False, "failed": []})
    JOB = Job(
        model=Path("m.onnx"), target=Path("m.plan"), config=BuildConfig(), backend="rtx",
        cache=None, cache_bytes=None, warm=True,
    )  # fmt: skip

    def child(self, **changes):
        child = isolated.ChildBuild(dataclasses.replace(self.JOB, **changes))
        child._on_result(dict(self.RESULT))
        return child

    def test_a_warm_plan(self):
        child = self.child()
        child._on_warmed(2.5)
        assert child.result(timed_out=False) == {**self.RESULT, "warming_s": 2.5}
        assert self.child(warm=False).result(timed_out=True) == self.RESULT
        assert self.child(action="decide").result(timed_out=False) == self.RESULT

    def test_too_little_time(self):
        child = self.child()
        child._on_phase_start("Compiling kernels", None, 0)
        with pytest.raises(BuildError, match=r"m\.plan is built, .* in phase 'Compiling kernels'"):
            child.result(timed_out=True)

    @pytest.mark.parametrize(
        ("kind", "words"),
        [("CudaError", "too little memory"), ("BuildError", "std::bad_alloc")],
    )
    def test_an_error_says_that_the_plan_is_there(self, kind, words):
        child = self.child()
        child._on_error(
            {"type": kind, "message": words, "details": ["E"], "options": [], "problems": []}
        )
        with pytest.raises(
            TrtNativeError, match=f"^m.plan is built, but not all its .*{words}"
        ) as caught:
            child.result(timed_out=False)
        assert type(caught.value).__name__ == kind  # no retry builds what is there again
        assert caught.value.details == ("E",)

    @pytest.mark.backend
    def test_it_comes_after_the_plan_is_written(self, plant, model, tmp_path):
        pytest.importorskip("tensorrt_rtx")
        code = """
        import os, signal
        from pathlib import Path
        import trt_native.runtime.warming as warming
        def warm_plan(plan, *, compiled):
            assert Path(plan.path).read_bytes() == bytes(plan.data)
            print("last words", flush=True)
            os.kill(os.getpid(), signal.SIGSEGV)
        warming.warm_plan = warm_plan
        warming.check_warming = lambda *arguments: None
        """
        ended = subprocess.run(
            command("build", model, *DIMS, "--backend", "rtx", "--no-cache", "--warm"),
            capture_output=True, text=True, timeout=120, check=False, env=plant(code),
        )  # fmt: skip
        message = " ".join(failed(ended).split())
        assert "m.plan is built, but not all its kernels are compiled" in message
        assert "crashed with SIGSEGV" in message
        assert "in phase 'Compiling kernels for the GPU'" in message
        assert "last words" in message
        assert Plan.load(tmp_path / "m.plan").manifest is not None


class TestMissingKernels:
    @pytest.mark.backend
    def test_the_fusion_is_broken(self, build, model):
        fused = onnx.load(model)
        fused.graph.node[1].output[0] = "product"
        fused.graph.node.append(helper.make_node("Sigmoid", ["product"], ["y"], name="sigmoid"))
        onnx.save(fused, model)
        result = build("--retry", "--json", "--no-cache", body=NO_KERNEL)
        assert result.returncode == 0, result.stderr
        printed = json.loads(result.stdout)
        (attempt,) = printed["failed_attempts"]
        assert attempt["cause"] == "no kernel on this GPU for the fusion ConvFwd_ADD"
        (record,) = [one for one in printed["passes"] if one["name"] == "break_fusions"]
        assert list(record["tensors"]) == printed["options"]["break_fusions"] == ["product"]
        assert "building again with fusions broken at" in " ".join(result.stderr.split())

    def test_it_gives_up_where_that_does_not_help(self, monkeypatch):
        tried = []

        def build_in_child(job, progress, *, deadline, child):
            tried.append(job.config.break_fusions)
            raise FusionError(BuildError("no kernel"), "Conv_ADD", ("a", "b"), 2**30)

        monkeypatch.setattr(isolated, "build_in_child", build_in_child)
        job = Job(
            model=Path("m"),
            target=Path("t"),
            config=BuildConfig(break_fusions=("b",)),
            backend="rtx",
            cache=None,
            cache_bytes=None,
        )
        with pytest.raises(BuildError) as caught:
            isolated.build_with_retries(job, None, retry=True)
        assert tried == [("b",), ("b", "a")]
        assert type(caught.value) is BuildError
        assert caught.value.details[-1] == (
            "attempt 2: workspace 1.0 GiB, optimization level the default: no kernel on this GPU"
            " for the fusion Conv_ADD"
        )


def test_a_job_survives_the_way_to_the_child():
    from cattrs import Converter

    options = {}
    for field in dataclasses.fields(BuildConfig):
        options[field.name] = {
            "bool": True,
            "bool | None": False,
            "int | None": 3,
            "tuple[str, ...]": ("8.9", "9.0"),
        }.get(str(field.type), field.default)
    options |= {
        "profiles": (ProfileSpec.parse(["b=1:2:4"], ["x=1x3:2x3:4x3", "s=scalar"]),),
        "precision": Precision.BF16,
        "workspace_bytes": 2**30,
        "fixed_inputs": ("sr=16000", "flag=true"),
        "io_formats": ("x=hwc8",),
        "fast_at": ("b=2,x=1x3", "b=4"),
        "timing_cache": Path(os.fsdecode(b"/tmp/caf\xe9")),
    }
    job = Job(
        model=Path("ümlaut.onnx"),
        target=Path("out.plan"),
        config=BuildConfig(**options),
        backend="auto",
        cache=None,
        cache_bytes=7,
    )
    text = json.dumps(Converter().unstructure(job))
    assert Converter().structure(json.loads(text), Job) == job


@pytest.mark.backend
def test_the_child_imports_nothing_from_the_working_folder(model, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    for name in ("json", "numpy", "tensorrt_rtx"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from here')")
    start = "import sys; sys.path.remove(''); from trt_native.cli import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", start, "build", "m.onnx", *DIMS, "--backend", "rtx"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.backend
def test_the_command_itself_stays_light(model):
    pytest.importorskip("tensorrt_rtx")
    script = (
        "import sys; from trt_native.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'onnx', 'onnx_ir', 'numpy', 'tensorrt_rtx', 'cuda'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, "build", model, *DIMS, "--backend", "rtx"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stderr.splitlines()[-1] == "[]"
    assert "Built" in result.stdout


@pytest.mark.backend
def test_the_childs_log_is_the_commands_log(model):
    pytest.importorskip("tensorrt_rtx")
    arguments = ("build", model, *DIMS, "--backend", "rtx", "--no-cache")
    quiet, informed, everything = (
        subprocess.run(
            command(*level, *arguments), capture_output=True, text=True, check=True
        ).stderr
        for level in ((), ("-v",), ("-vv",))
    )
    assert "Engine generation completed" not in quiet
    assert "Engine generation completed" in informed
    assert "Parsing node: conv [Conv]" not in informed
    assert "Parsing node: conv [Conv]" in everything
