"""Hosts of their own on one machine: each has an address, a /tmp, and processes that die together. Needs root.

    with Lab() as lab:
        store, head = lab.add_host("store"), lab.add_host("head")
        head.start(["ray", "start", "--head", "--block"], env={}, log=tmp_path / "head.log")
        head.run([sys.executable, "-c", "..."])   # inside the head
        head.set_link(up=False)                   # nobody reaches it, it goes on
        head.kill()                               # as if its power went

A host is a network, process and mount namespace; a bridge in one more joins them, and this process with them.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

# What is a host's own besides its network: Ray keeps sessions, sockets and its object store there.
_PRIVATE = "mkdir -p /tmp/ray && mount -t tmpfs none /tmp/ray && mount -t tmpfs none /dev/shm"


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def why_not() -> str:
    """The reason why this machine can hold no hosts, "" where it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [tool for tool in ("ip", "unshare", "nsenter") if shutil.which(tool) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    name = f"rm{secrets.token_hex(3)}"
    try:
        _ip("netns", "add", name)
        try:
            _ip("-n", name, "link", "add", "probe", "type", "veth", "peer", "name", "peer")
            _ip("-n", name, "link", "add", "bridge", "type", "bridge")
        finally:
            _ip("netns", "del", name)
    except RuntimeError as error:
        return str(error)
    return ""


class Host:
    """One host: `address` is its own; what `start` runs there ends with `kill`."""

    def __init__(self, *, name: str, namespace: str, address: str, switch: str, port: str) -> None:
        self.name = name
        self.address = address
        self.namespace = namespace
        self._switch = switch
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def launcher(self) -> tuple[str, ...]:
        """Put before a command it shares the host's network, and nothing else."""
        return ("ip", "netns", "exec", self.namespace)

    def start(self, command: Sequence[str], *, env: Mapping[str, str], log: Path, hidden: Sequence[Path] = ()) -> None:
        """Run a command as the first process of the host, which all the others end with; it sees no `hidden` folder."""
        isolated = ("unshare", "--mount", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc")
        enter = " && ".join([_PRIVATE, *(f"mount -t tmpfs none '{path}'" for path in hidden), 'exec "$@"'])
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [*self.launcher, *isolated, "sh", "-c", enter, "host", *command],
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def inside(self, command: Sequence[str]) -> list[str]:
        """The command, to be run inside the host that was started."""
        return ["nsenter", "-t", str(self._first_process()), "-m", "-n", "-p", "--", *command]

    def processes(self, name: str = "") -> list[int]:
        """The processes of the host whose command line has `name`."""
        found = [int(line) for line in _ip("netns", "pids", self.namespace).split()]
        return [pid for pid in found if name.encode() in _command_line(pid)]

    def signal(self, number: signal.Signals, name: str = "") -> int:
        """Send a signal to the processes whose command line has `name`; returns how many got it."""
        count = 0
        for pid in self.processes(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
                count += 1
        return count

    def set_link(self, *, up: bool) -> None:
        _ip("-n", self._switch, "link", "set", self._port, "up" if up else "down")

    def sent_bytes(self) -> int:
        """What left the host so far, by its network interface."""
        (link,) = json.loads(_ip("-n", self._switch, "-s", "-j", "link", "show", self._port))
        return int(link["stats64"]["rx"]["bytes"])

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """SIGKILL to everything that runs on it, at once; the host itself stays, and can start again."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()  # the first process of the namespace goes with it, and all others with that one
            self._process.wait()
            self._process = None
        deadline = time.monotonic() + 10
        while self.processes() and time.monotonic() < deadline:
            self.signal(signal.SIGKILL)
            time.sleep(0.05)

    def _first_process(self) -> int:
        assert self._process is not None, f"{self.name} was not started"
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            found = children.read_text().split()
            if found:
                return int(found[0])
            time.sleep(0.05)
        raise TimeoutError(f"{self.name} has no process")


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
    except OSError:
        return b""


class Lab:
    """A switch and the hosts at it. Leaving it kills all that runs on them and takes everything away."""

    def __init__(self) -> None:
        self._tag = f"rm{secrets.token_hex(3)}"
        self._subnet = f"10.{secrets.randbelow(100) + 100}.{secrets.randbelow(250)}"
        self._switch = f"{self._tag}-sw"
        self._outside = f"{self._tag}o"
        self._numbers = itertools.count(2)
        self.hosts: list[Host] = []

    def __enter__(self) -> Self:
        _ip("netns", "add", self._switch)
        try:
            _ip("-n", self._switch, "link", "add", "bridge", "type", "bridge")
            _ip("-n", self._switch, "link", "set", "bridge", "up")
            self._plug(self._outside, "1")
            _ip("addr", "add", f"{self._subnet}.1/24", "dev", self._outside)
            _ip("link", "set", self._outside, "up")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for host in self.hosts:
            host.kill()
        for name in (*(host.namespace for host in self.hosts), self._switch):
            with contextlib.suppress(RuntimeError):
                _ip("netns", "del", name)
        with contextlib.suppress(RuntimeError):  # it goes with its other end
            _ip("link", "del", self._outside)
        self.hosts.clear()

    def add_host(self, name: str) -> Host:
        number = str(next(self._numbers))
        namespace, end, address = f"{self._tag}-{name}", f"{self._tag}{number}", f"{self._subnet}.{number}"
        _ip("netns", "add", namespace)
        host = Host(name=name, namespace=namespace, address=address, switch=self._switch, port=f"port{number}")
        self.hosts.append(host)
        self._plug(end, number)
        _ip("link", "set", end, "netns", namespace)
        _ip("-n", namespace, "addr", "add", f"{address}/24", "dev", end)
        _ip("-n", namespace, "link", "set", end, "up")
        _ip("-n", namespace, "link", "set", "lo", "up")
        return host

    def remove(self, host: Host) -> None:
        """Kill what runs on a host and take it away."""
        host.kill()
        self.hosts.remove(host)
        _ip("netns", "del", host.namespace)

    def _plug(self, end: str, number: str) -> None:
        """A cable from the switch, whose free end is here."""
        port = f"port{number}"
        _ip("link", "add", end, "type", "veth", "peer", "name", port, "netns", self._switch)
        _ip("-n", self._switch, "link", "set", port, "master", "bridge", "up")
