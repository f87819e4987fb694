"""A process that has imported everything, and forks the programs that tests start: they begin in milliseconds.

A fresh interpreter imports PyTorch for some five seconds. What a forked program sees is what a fresh one sees: its own
standard streams, environment, folder, signals and process group, `sys.argv`, `__main__`, atexit functions and exit
status. Tests of imports and of the interpreter itself start a fresh one with `fresh=True` (tests/helpers/runs.py).

python3 -m tests.helpers.fork_server SOCKET        started by `ForkServer`; it ends when its standard input does
"""

import array
import atexit
import contextlib
import json
import os
import resource
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_LENGTH = 8  # digits of a request's length


class ForkServer:
    """Starts the server at the first program; ends it with `close` or with this process."""

    def __init__(self, path=None):
        self._folder = None if path else tempfile.TemporaryDirectory(prefix="fork-")
        self.path = path or f"{self._folder.name}/s"
        self._server = None

    def start(self, arguments, environment, cwd, streams, new_session=False, limits=None):
        """A socket that sends the pid of the forked process, and its exit status when it has ended.

        Args:
            arguments: as of Python: a file and its arguments, or -c or -m.
            streams: file descriptors for standard input, output and error.
            limits: resource limits by their names, such as {"RLIMIT_NOFILE": 32}.
        """
        self.ready()
        request = json.dumps({
            "arguments": arguments, "environment": environment, "cwd": str(cwd), "new_session": new_session,
            "limits": limits or {}, "parent": os.getpid(),
        }).encode()  # fmt: skip
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self.path)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", streams))]
        connection.sendmsg([b"%*d" % (_LENGTH, len(request))], ancillary)
        connection.sendall(request)
        return connection

    def ready(self):
        """Wait until it has imported everything."""
        if self._server is not None or self._folder is None:
            return
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.fork_server", self.path],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "MPLBACKEND": "agg"},
        )
        deadline = time.monotonic() + 120
        while not os.path.exists(self.path):
            assert self._server.poll() is None, "the fork server has ended"
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def close(self):
        if self._server is not None:
            self._server.stdin.close()
            self._server.wait(20)
            self._server = None
        if self._folder is not None:
            self._folder.cleanup()


class ForkedProcess:
    """The part of subprocess.Popen's interface that tests use, for a program of the fork server."""

    def __init__(self, server, arguments, env, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=None, stderr=None,
                 start_new_session=False, text=True, errors="strict", limits=None):  # fmt: skip
        self.args, self.returncode, self._text, self._errors = arguments, None, text, errors
        self.stdin = self.stdout = self.stderr = None
        theirs, close = [], []
        for number, (name, wanted) in enumerate((("stdin", stdin), ("stdout", stdout), ("stderr", stderr))):
            if wanted == subprocess.PIPE:
                read, write = os.pipe()
                own, end = (write, read) if number == 0 else (read, write)
                mode = ("w" if number == 0 else "r") + ("" if text else "b")
                setattr(self, name, os.fdopen(own, mode, **({"encoding": "utf-8", "errors": errors} if text else {})))
                theirs.append(end)
                close.append(end)
            elif wanted == subprocess.DEVNULL:
                end = os.open(os.devnull, os.O_RDWR)
                theirs.append(end)
                close.append(end)
            elif wanted == subprocess.STDOUT:
                theirs.append(theirs[1])
            elif wanted is None:
                theirs.append(number)
            else:
                theirs.append(wanted if isinstance(wanted, int) else wanted.fileno())
        environment = {str(name): str(value) for name, value in env.items()}
        self._connection = server.start(
            [str(a) for a in arguments], environment, cwd, theirs, start_new_session, limits
        )
        for end in close:
            os.close(end)
        self._buffer = b""
        self.pid = int(self._line(30))

    def _line(self, timeout):
        self._connection.settimeout(timeout)
        while b"\n" not in self._buffer:
            data = self._connection.recv(100)
            assert data, "the fork server has ended"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def poll(self):
        if self.returncode is None:
            with contextlib.suppress(BlockingIOError, socket.timeout):
                self.returncode = int(self._line(0))
        return self.returncode

    def wait(self, timeout=None):
        if self.returncode is None:
            try:
                self.returncode = int(self._line(timeout))
            except socket.timeout:
                raise subprocess.TimeoutExpired(self.args, timeout) from None
        return self.returncode

    def communicate(self, input=None, timeout=None):
        deadline = None if timeout is None else time.monotonic() + timeout
        if self.stdin is not None:
            if input is not None:
                self.stdin.write(input)
            self.stdin.close()
        found, readers = {}, []
        for name in ("stdout", "stderr"):
            stream = getattr(self, name)
            if stream is not None and not stream.closed:
                readers.append(threading.Thread(target=self._read, args=(found, name, stream), daemon=True))
                readers[-1].start()
        for reader in readers:
            reader.join(None if deadline is None else max(0, deadline - time.monotonic()))
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout)
        self.wait(None if deadline is None else max(0.1, deadline - time.monotonic()))
        return found.get("stdout"), found.get("stderr")

    @staticmethod
    def _read(found, name, stream):
        found[name] = stream.read()
        stream.close()

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                stream.close()
        self.wait()


def adopt(path):
    """From here on, what this program starts with subprocess.Popen(args, env) is forked by the server at `path`.

    For torchrun's agent and the launcher of `--gpus`, whose processes are programs of Python.
    """
    server, ordinary = ForkServer(path), subprocess.Popen

    def popen(args, env=None, **options):
        if args[0] != sys.executable:
            return ordinary(args, env=env, **options)
        options.pop("universal_newlines", None)
        return ForkedProcess(server, args[1:], os.environ if env is None else env, os.getcwd(), **options)

    for module in list(sys.modules.values()):  # torchrun's takes it by its name
        if getattr(module, "__dict__", {}).get("Popen") is ordinary:
            module.Popen = popen


def _import_all():
    """Import what a run, its evaluation, report, export and TensorBoard use."""
    for name in (
        "main", "lib.commands.train", "lib.commands.report", "lib.report.compare", "lib.distributed.process_group",
        "lib.distributed.launch",
        "lib.checkpoint.manager", "lib.report", "lib.commands.embed", "lib.commands.export", "lib.export.network_files",
        "lib.pretrained.weights_file", "lib.evaluation.linear", "lib.evaluation.cluster", "lib.clustering.kmeans",
        "datasets.sources.digits", "sklearn.datasets", "faiss", "matplotlib.pyplot", "tensorboardX", "jinja2",
        "torch.distributed", "torch.distributed.run", "torch.utils.data", "torch.fx", "torchvision",
        "sklearn.cluster", "sklearn.metrics", "pytest",
    ):  # fmt: skip
        with contextlib.suppress(ImportError):
            __import__(name)


def _serve(path):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the tests' Ctrl-C; it ends when they do
    _import_all()
    children, sockets = {}, selectors.DefaultSelector()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path + ".new")
    listener.listen(64)
    read, write = os.pipe()
    os.set_blocking(write, False)
    os.set_blocking(read, False)
    signal.signal(signal.SIGCHLD, lambda *event: None)
    signal.set_wakeup_fd(write)
    for file in (listener, read, 0):
        sockets.register(file, selectors.EVENT_READ)
    os.rename(path + ".new", path)
    while True:
        for key, _ in sockets.select():
            if key.fileobj is listener:
                connection = listener.accept()[0]
                try:
                    streams, request = _receive(connection)
                except EOFError:
                    continue
                inherited = [connection, listener, *children.values()]
                pid = _fork(request, streams, [read, write, *(each.fileno() for each in inherited)])
                children[pid] = connection
                with contextlib.suppress(OSError):  # its end is noticed below
                    connection.sendall(b"%d\n" % pid)
                sockets.register(connection, selectors.EVENT_READ, pid)
            elif key.fileobj == read:
                with contextlib.suppress(BlockingIOError):
                    os.read(read, 4096)
            elif key.fileobj == 0:  # the tests have ended
                for pid in children:
                    os.kill(pid, signal.SIGKILL)
                return
            else:  # who started the program has ended, or has forgotten it
                sockets.unregister(key.fileobj)
                os.kill(key.data, signal.SIGKILL)
        while children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            connection = children.pop(pid, None)
            if connection is not None:
                code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
                with contextlib.suppress(KeyError):
                    sockets.unregister(connection)
                with contextlib.suppress(OSError):  # nobody asks any more
                    connection.sendall(b"%d\n" % code)
                connection.close()


def _receive(connection):
    """The program's streams and the request. EOFError if the client has ended."""
    streams = array.array("i")
    head, ancillary, _, _ = connection.recvmsg(_LENGTH, socket.CMSG_SPACE(3 * streams.itemsize))
    for _level, _kind, data in ancillary:
        streams.frombytes(data[: len(data) - len(data) % streams.itemsize])
    request = b""
    while not head or len(request) < int(head):
        data = connection.recv(2**16)
        if not data:
            raise EOFError
        request += data
    return streams, json.loads(request)


def _fork(request, streams, to_close):
    pid = os.fork()
    if pid:
        for stream in streams:
            os.close(stream)
        return pid
    try:
        signal.set_wakeup_fd(-1)
        for number in to_close:
            os.close(number)
        os._exit(_become(request, list(streams)))
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def _become(request, streams):
    """Run the requested program in this forked process. Returns its exit status."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    for stream in streams:
        if stream > 2:
            os.close(stream)
    if request["new_session"]:
        os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    rank = request["environment"].get("RANK")
    if rank is not None:  # see `worker` in tests/helpers/processes.py
        Path("/proc/self/comm").write_text(f"{rank}:{request['parent']}")
    for name, limit in request["limits"].items():
        resource.setrlimit(getattr(resource, name), (limit, limit))
    os.environ.clear()
    os.environ.update(request["environment"])
    tempfile.tempdir = None
    os.chdir(request["cwd"])
    kept = {"errors": "strict", "newline": None, "closefd": False, "encoding": "utf-8"}
    sys.stdin = sys.__stdin__ = os.fdopen(0, **kept)
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", **kept)
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w", 1, **{**kept, "errors": "backslashreplace"})  # by lines
    import torch

    torch.set_num_threads(int(request["environment"].get("OMP_NUM_THREADS") or os.cpu_count()))
    status = _run(request["arguments"])
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    if status < 0:  # as Python ends after a Ctrl-C that nobody caught
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


def _run(arguments):
    """Run the program and return the status with which Python would exit."""
    while arguments[0] == "-u":
        sys.stdout.reconfigure(write_through=True)
        arguments = arguments[1:]
    try:
        if arguments[0] == "-c":
            sys.argv = ["-c", *arguments[2:]]
            main = type(sys)("__main__")
            sys.modules["__main__"] = main
            exec(compile(arguments[1], "<string>", "exec"), main.__dict__)
        elif arguments[0] == "-m":
            sys.argv = arguments[1:]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = arguments
            sys.path[0] = os.path.dirname(os.path.abspath(arguments[0]))
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        traceback.print_exc()
        return -signal.SIGINT
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    _serve(sys.argv[1])
