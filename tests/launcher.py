"""Runs the command line with faults at named call sites, each time in a fresh process, in a moment.

The product has no hook for faults: they are patched in here, and then the CLI's own `main` runs. A
server imports torch once and forks for each case, so that kill loops cost milliseconds a case. It
has one thread and uses one, so that a fork copies a whole process.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import importlib
import io
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

# Name of a site -> (module, attribute): what the product calls there.
SITES = {
    "load": ("streamdit_model.weights", "load"),
    "velocity": ("streamdit_model.weights", "Model.velocity"),
    "decode": ("streamdit_model.autoencoder", "Autoencoder.decode_step"),
    "encode": ("streamdit_cli.video_encoder", "VideoEncoder.encode"),
    "file write": ("streamdit_cli.part", "PartFile.write"),
    "pipe write": ("streamdit_cli.pipe", "Pipe.write"),
    "rename": ("streamdit_cli.part", "_rename_new"),
    "lock": ("streamdit_cli.part", "_lock"),
}
PRELOADED = (
    "streamdit_model.stream",
    "streamdit_cli.app",
    "streamdit_cli.generate",
    "streamdit_cli.making",
    "streamdit_cli.records",
)


@dataclass(frozen=True)
class Fault:
    """What happens at a call of a site.

    Args:
        site: a key of `SITES`.
        kind: `oom` (as CUDA says it), `cpu oom` (a real one), `no memory`, `nan`, `inf`,
            `no space`, `io error`, `sleep`, `yes` (returns True without the call), `chatter`
            (writes to everything that a library may write to), or the name of a signal, which
            the process sends to itself.
        number: of the call, from 1.
        times: how many calls in a row, 0 for all that follow.
        seconds: of `sleep`.
    """

    site: str
    kind: str
    number: int = 1
    times: int = 1
    seconds: float = 0.0


@dataclass(frozen=True)
class Ended:
    """How a case ended: exit code (negative for a signal), what it wrote, and its wall time."""

    code: int
    stdout: bytes
    stderr: str
    seconds: float

    @property
    def errors(self) -> list[str]:
        """The lines that say what went wrong."""
        return [line for line in self.stderr.splitlines() if line.startswith("error:")]


def _spoiled(result: Any, value: float) -> Any:
    """Return a result of a call with one number of its tensor replaced."""
    first, rest = (result[0], result[1:]) if isinstance(result, tuple) else (result, None)
    first = first.contiguous().clone()
    first.view(-1)[-1] = value
    return first if rest is None else (first, *rest)


def _chatter() -> None:
    """Write where careless libraries write: Python's and C's standard output, and warnings."""
    import logging
    import warnings

    print("chatter of print", flush=True)
    os.write(1, b"chatter of write\n")
    ctypes.CDLL(None).puts(b"chatter of puts")
    ctypes.CDLL(None).fflush(None)
    subprocess.run(["echo", "chatter of a child"], check=True)
    warnings.warn("chatter of warnings", stacklevel=1)
    logging.getLogger("torch").warning("chatter of logging")


def _raised(kind: str) -> BaseException:
    """Return what a site raises in a fault of this kind."""
    import torch

    return {
        "oom": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        "no memory": MemoryError(),
        "no space": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        "io error": OSError(errno.EIO, os.strerror(errno.EIO)),
    }[kind]


def _with_fault(original: Callable[..., Any], fault: Fault) -> Callable[..., Any]:
    """Return the function with a fault in the calls that it is meant for."""
    lock = threading.Lock()
    calls = 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        with lock:
            calls += 1
            number = calls
        is_meant = fault.number <= number and (
            fault.times == 0 or number < fault.number + fault.times
        )
        if not is_meant:
            return original(*args, **kwargs)
        if fault.kind in ("nan", "inf"):
            return _spoiled(original(*args, **kwargs), float(fault.kind))
        if fault.kind == "sleep":
            time.sleep(fault.seconds)
            return original(*args, **kwargs)
        if fault.kind == "yes":
            return True
        if fault.kind == "cpu oom":
            import torch

            torch.empty(2**60, dtype=torch.uint8)
        if fault.kind == "chatter":
            _chatter()
            return original(*args, **kwargs)
        if fault.kind.startswith("SIG"):
            os.kill(os.getpid(), getattr(signal, fault.kind))
            return original(*args, **kwargs)
        raise _raised(fault.kind)

    return call


def install(faults: Sequence[Fault]) -> None:
    """Patch the sites of this process."""
    for fault in faults:
        module_name, path = SITES[fault.site]
        owner: Any = importlib.import_module(module_name)
        *parents, name = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        setattr(owner, name, _with_fault(getattr(owner, name), fault))


def until(condition: Callable[[], object], seconds: float = 120.0) -> None:
    """Return when a condition holds; AssertionError when it does not in this time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "what the test waits for did not happen"
        time.sleep(0.02)


class Case:
    """A command line that runs."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._file = connection.makefile("r")
        self.pid = int(self._file.readline())
        self._code: int | None = None

    @property
    def is_running(self) -> bool:
        """Whether nobody has seen its end yet."""
        return self._code is None

    def send(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def settle(self) -> None:
        """Return when all its threads wait for something and no signal is on its way (Linux).

        Signals that come close together are one signal, or come in another order.
        """
        until(lambda: all(self._is_waiting() for _ in range(3)))

    def _is_waiting(self) -> bool:
        time.sleep(0.02)
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            fields = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())
            pending = int(fields["SigPnd"], 16) | int(fields["ShdPnd"], 16)
            if pending or not fields["State"].strip().startswith("S"):
                return False
        return True

    def wait(self, seconds: float = 60.0) -> int:
        """Return its exit code, negative for a signal; TimeoutError when it does not end."""
        if self._code is None:
            self._connection.settimeout(seconds)
            try:
                self._code = int(self._file.readline())
            except TimeoutError:
                self.send(signal.SIGKILL)
                raise
            self._file.close()
            self._connection.close()
        return self._code


@dataclass
class Launcher:
    """The client of a fork server; a context manager.

    Args:
        preloaded: modules that the server imports beside its own.
    """

    preloaded: tuple[str, ...] = ()
    _folder: tempfile.TemporaryDirectory[str] = field(default_factory=tempfile.TemporaryDirectory)

    def __enter__(self) -> Launcher:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
            "COLUMNS": "200",
        }
        self._path = str(Path(self._folder.name) / "socket")
        self._listener = socket.socket(socket.AF_UNIX)
        command = [sys.executable, __file__, self._path, *self.preloaded]
        self._server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == b"ready\n"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._listener.close()
        self._server.terminate()
        self._server.wait()
        assert self._server.stdout is not None
        self._server.stdout.close()
        self._folder.cleanup()

    def start(
        self,
        words: Sequence[str],
        *,
        cwd: Path,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        faults: Sequence[Fault] = (),
        limits: dict[str, int] | None = None,
        ignored: Sequence[str] = (),
        code: str = "",
    ) -> Case:
        """Run a command line.

        Args:
            words: after `streamdit`.
            cwd: its folder.
            stdin, stdout, stderr: open descriptors; None is /dev/null, and -1 is a closed one.
            faults: see `Fault`.
            limits: of `resource`, e.g. {"RLIMIT_FSIZE": 1000}.
            ignored: names of signals that it is started to ignore.
            code: Python to run first, for what a fault cannot say.
        """
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self._path)
        request = {
            "words": list(words),
            "cwd": str(cwd),
            "faults": [asdict(fault) for fault in faults],
            "limits": limits or {},
            "ignored": list(ignored),
            "closed": [index for index, fd in enumerate((stdin, stdout, stderr)) if fd == -1],
            "code": code,
        }
        nowhere = os.open(os.devnull, os.O_RDWR)
        given = [nowhere if fd is None or fd < 0 else fd for fd in (stdin, stdout, stderr)]
        line = json.dumps(request).encode() + b"\n"
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", given))]
        connection.sendmsg([line[:1]], ancillary)
        connection.sendall(line[1:])
        os.close(nowhere)
        return Case(connection)

    def run(
        self, words: Sequence[str], *, cwd: Path, seconds: float = 60.0, **settings: Any
    ) -> Ended:
        """Run a command line to its end.

        Standard output is a file unless another one is given; standard error is a pipe, to which
        no limit of file sizes applies, with room for what a run says.
        """
        began = time.monotonic()
        with tempfile.TemporaryFile() as out:
            settings.setdefault("stdout", out.fileno())
            reader, writer = os.pipe()
            case = self.start(words, cwd=cwd, stderr=writer, **settings)
            os.close(writer)
            exit_code = case.wait(seconds)
            with os.fdopen(reader, errors="replace") as err:
                text = err.read()
            out.seek(0)
            return Ended(exit_code, out.read(), text, time.monotonic() - began)


def _serve(path: str, *preloaded: str) -> None:
    """Fork for each connection, for ever."""
    _die_with_parent()
    for module in (*PRELOADED, *preloaded):
        importlib.import_module(module)
    from streamdit_cli.app import main

    with contextlib.redirect_stderr(io.StringIO()):  # the rest is imported on the way
        assert main(["generate", "--no-prompt", "-m", "./no", "-o", "no.mp4"]) == 2
    assert threading.active_count() == 1
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    print("ready", flush=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            _keep(connection)
        connection.close()


def _die_with_parent() -> None:
    """Leave nothing behind when the tests are killed (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _keep(connection: socket.socket) -> None:
    """Run one case in a child, tell its number, wait for it, tell its end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _die_with_parent()
    head, descriptors, _, _ = socket.recv_fds(connection, 1, 3)
    with connection.makefile("rb") as file:
        request = json.loads(head + file.readline())
    child = os.fork()
    if child == 0:
        connection.close()
        _become(request, descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    connection.sendall(f"{child}\n".encode())
    status = os.waitpid(child, 0)[1]
    connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _become(request: dict[str, Any], descriptors: Sequence[int]) -> None:
    """Be the command line: its folder, streams, signals, limits and faults; then `main`."""
    code = 99
    try:
        _die_with_parent()
        os.setsid()
        os.chdir(request["cwd"])
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
            os.close(descriptor)
        for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
            if number in request["closed"]:
                os.close(number)
                setattr(sys, name, None)
            else:
                setattr(sys, name, os.fdopen(number, mode, errors="backslashreplace"))
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            is_ignored = name in request["ignored"]
            default = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
            signal.signal(getattr(signal, name), signal.SIG_IGN if is_ignored else default)
        for name, limit in request["limits"].items():
            resource.setrlimit(getattr(resource, name), (limit, limit))
        install([Fault(**fault) for fault in request["faults"]])
        if request["code"]:
            exec(request["code"], {})
        from streamdit_cli.app import main

        code = main(request["words"])
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except BrokenPipeError:
        code = 98
    finally:
        os._exit(code)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
    _serve(*sys.argv[1:])
