"""The Ray of one run: started, joined or borrowed, in the background, and let go at the end."""

from __future__ import annotations

import contextlib
import logging
import os
import site
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from raymerge.errors import ExecutionError, Problem
from raymerge.execute.ray.address import Target, choose_target, process_is_connected
from raymerge.storage.process import forks

# Ray's minimum is 75 MiB; tensors never enter the object store.
_OBJECT_STORE_BYTES = 80 * 2**20
_CLOSE_SECONDS = 10.0
_IMPORT_PATH = "PYTHONPATH"
_AUTH_MODE = "RAY_AUTH_MODE"


class RaySession:
    """A context that provides Ray to this process.

    `start` returns at once, so that planning goes on while a private Ray starts (some 5 seconds); `wait` returns when
    Ray can be used and raises what went wrong. `close` shuts a private Ray down, leaves a cluster that was joined, and
    does not touch one that this process was connected to before.
    """

    def __init__(self, address: str | None = None, *, num_cpus: int | None = None) -> None:
        """Raises `UsageError` at once for an address that cannot be used. `num_cpus` bounds a private Ray."""
        self.target: Target = choose_target(address, os.environ, connected=process_is_connected())
        self._num_cpus = num_cpus
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._release = threading.Event()
        self._error: BaseException | None = None

    @property
    def is_private(self) -> bool:
        return self.target.kind == "private"

    def start(self) -> RaySession:
        if self.target.kind == "connected":
            self._ready.set()
        elif self._thread is None:
            # The kernel ends a private Ray's processes when the *thread* that started them ends, so this one lives as
            # long as the session. A daemon: a run that fails before Ray is up ends at once, and Ray with it.
            self._thread = threading.Thread(target=self._hold, name="raymerge-ray", daemon=True)
            self._thread.start()
        return self

    def wait(self) -> None:
        """Return once Ray can be used. Raises `ExecutionError` or `UsageError` where it cannot."""
        self.start()
        self._ready.wait()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Let Ray go. Where it is still starting this returns at once and it is let go when it is up."""
        self._release.set()
        if self._thread is not None and self._ready.is_set():
            self._thread.join(_CLOSE_SECONDS)

    def __enter__(self) -> RaySession:  # noqa: PYI034 - Self is not in the standard library of Python 3.10
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _hold(self) -> None:
        with contextlib.ExitStack() as stack:
            try:
                with _environment(_private_environment() if self.is_private else {}):
                    stack.enter_context(_quiet_ray())
                    if self.is_private:
                        self._start_private()
                    else:
                        self._join()
            except BaseException as error:  # noqa: BLE001 - raised by wait, in the thread that asked
                self._error = error
                return
            finally:
                self._ready.set()
            self._release.wait()
            import ray

            ray.shutdown()

    def _start_private(self) -> None:
        import ray

        try:
            with forks.get().alone():
                ray.init(
                    address="local",
                    num_cpus=self._num_cpus,
                    object_store_memory=_OBJECT_STORE_BYTES,
                    include_dashboard=False,
                    log_to_driver=False,
                    configure_logging=False,
                    namespace="raymerge",
                )
        except Exception as error:
            raise ExecutionError(
                Problem(
                    subject="private Ray",
                    message=f"could not start: {error}",
                    remedy="--executor inline runs without Ray",
                )
            ) from error
        _end_autoscaler()

    def _join(self) -> None:
        from raymerge.execute.ray.preflight import check_cluster

        address = check_cluster(self.target)
        import ray

        try:
            ray.init(address=address, log_to_driver=False, configure_logging=False, namespace="raymerge")
        except Exception as error:
            raise ExecutionError(
                Problem(
                    subject=f"{self.target.origin} {self.target.address}",
                    message=f"could not join the Ray cluster: {_innermost(error)}",
                    remedy="use the same Ray and Python versions as the cluster",
                )
            ) from error


def _end_autoscaler() -> None:
    """End the autoscaler of a private Ray, which never grows: it takes a second to obey at shutdown (ray 2.60)."""
    import ray

    worker: Any = getattr(getattr(ray, "_private", None), "worker", None)
    end = getattr(getattr(worker, "_global_node", None), "kill_monitor", None)
    if end is not None:
        with contextlib.suppress(Exception):  # a private call of Ray may change; all it saves is that second
            end(check_alive=False)


def _innermost(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _private_environment() -> dict[str, str]:
    return {
        # Workers inherit this process's environment; what only its sys.path tells has to be added.
        _IMPORT_PATH: _import_path(),
        # Under `uv run` Ray would pack and ship the working directory to workers that share it.
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    }


def _import_path() -> str:
    """The driver's extra import folders, so that workers find raymerge where it is importable but not installed."""
    standard = {Path(folder).resolve() for folder in (*site.getsitepackages(), site.getusersitepackages())}
    prefixes = {Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve()}
    wanted = [str(Path(__file__).resolve().parents[3]), *sys.path]
    kept = [
        folder
        for folder in dict.fromkeys(str(Path(entry).resolve()) for entry in wanted if entry and Path(entry).is_dir())
        if Path(folder) not in standard and not any(Path(folder).is_relative_to(prefix) for prefix in prefixes)
    ]
    return os.pathsep.join([*kept, *filter(None, [os.environ.get(_IMPORT_PATH)])])


@contextlib.contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Set variables of this process for a while, for the children started meanwhile."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            _set_variable(name, value)


def _set_variable(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


@contextlib.contextmanager
def _quiet_ray() -> Iterator[None]:
    """Keep Ray's own lines off the terminal: what matters of them arrives as events and errors.

    Ray's log level, its switch for lines about dead workers and its authentication default, which it leaves in the
    environment of the whole process, are put back afterwards.
    """
    auth_mode = os.environ.get(_AUTH_MODE)
    import ray

    logger = logging.getLogger("ray")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    worker: Any = getattr(getattr(ray, "_private", None), "worker", None)
    switch = "_worker_logs_enabled"
    printed = getattr(worker, switch, None)
    if printed is not None:
        setattr(worker, switch, False)
    try:
        yield
    finally:
        logger.setLevel(level)
        if printed is not None:
            setattr(worker, switch, printed)
        if os.environ.get(_AUTH_MODE) != auth_mode:
            _set_variable(_AUTH_MODE, auth_mode)
            _forget_authentication()


def _forget_authentication() -> None:
    """Let a later Ray of this process read the environment again.

    Otherwise it would go on asking the workers of a cluster without tokens for one, and never hear from them.
    """
    from ray import _raylet

    config: Any = getattr(_raylet, "Config", None)
    loader: Any = getattr(_raylet, "AuthenticationTokenLoader", None)
    if config is not None and loader is not None:
        config.initialize("")  # before the cache: a thread that still ends would read a token under the old mode
        loader.instance().reset_cache()
