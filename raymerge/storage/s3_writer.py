"""Streams one S3 object out in parts, with checksums, some of the parts copied inside the store."""

from __future__ import annotations

import base64
import hashlib
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING, Any

from raymerge.errors import NotFoundError, Problem, StorageError, TransientStorageError
from raymerge.storage import s3_parts
from raymerge.storage.base import CopyRange, ObjectInfo, ObjectWriter, Store
from raymerge.storage.crc32 import crc32, crc32_combine
from raymerge.storage.process import PerProcess
from raymerge.storage.retry import Limiter
from raymerge.storage.s3_client import (
    COPIES,
    UploadGoneError,
    call,
    copy_limiter,
    current_client,
    parse_s3_url,
    write_limiter,
)
from raymerge.storage.traffic import count
from raymerge.storage.transfer import raise_first, split
from raymerge.storage.urls import redact

if TYPE_CHECKING:
    from typing_extensions import Buffer

_CHECK_SECONDS = 0.5

_uploaders = PerProcess(lambda: ThreadPoolExecutor(16, thread_name_prefix="raymerge-upload"))
_copiers = PerProcess(lambda: ThreadPoolExecutor(COPIES, thread_name_prefix="raymerge-copy"))
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    number: int
    nbytes: int
    etag: str
    crc32: int | None


class S3Writer(ObjectWriter):
    """See ObjectWriter. One put for a small object, else a multipart upload; `crc32` given to `write` is not needed."""

    def __init__(self, store: Store, url: str, *, nbytes: int) -> None:
        self._store = store
        self._url = url
        self._bucket, self._key = parse_s3_url(url)
        self._nbytes = nbytes
        self._sizes = s3_parts.PartSizes.of(nbytes)
        self._part_bytes = self._sizes.sent
        self._position = 0
        self._buffer = bytearray()  # made when bytes come: a file of copies needs it for its first bytes only
        self._filled = 0
        self._pending: CopyRange | None = None
        self._upload = ""
        self._checksums = True
        self._parts: list[Future[_Part]] = []
        self._slots = threading.BoundedSemaphore(s3_parts.BUFFERED_PARTS - 1)
        self._spare: list[bytearray] = []
        self._stop = threading.Event()
        self._closed = False

    def write(self, data: Buffer, *, crc32: int | None = None) -> None:  # noqa: ARG002 (parts are summed on upload)
        with memoryview(data).cast("B") as view:
            self._settle_copy()
            self._claim(len(view))
            self._append(view)

    def copy(self, source: CopyRange) -> None:
        pending = self._pending
        if pending is not None and _adjacent(pending, source):
            self._claim(source.nbytes)
            self._pending = replace(pending, nbytes=pending.nbytes + source.nbytes)
            return
        self._settle_copy()
        self._claim(source.nbytes)
        if source.nbytes:
            self._pending = source

    def settle(self, check: Callable[[], None]) -> None:
        self._settle_copy()
        while wait(self._parts, timeout=_CHECK_SECONDS).not_done:
            check()
            self._check_parts()

    def commit(self) -> ObjectInfo:
        if self._position != self._nbytes:
            raise StorageError(
                Problem(
                    subject=redact(self._url),
                    message=f"{self._position:,} bytes were written, {self._nbytes:,} were announced",
                )
            )
        self._settle_copy()
        info = self._complete() if self._upload else self._put()
        self._closed = True
        return info

    def abort(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._stop.set()
        for future in self._parts:
            future.cancel()
        wait(self._parts)
        if self._upload:
            self._drop(self._upload)

    def _drop(self, upload: str) -> None:
        from raymerge.storage.s3 import abort_upload

        try:
            abort_upload(self._url, upload)
        except StorageError as error:  # what led here matters more; `clean` finds the upload
            _log.warning("unfinished upload left behind: %s", error)

    def _claim(self, nbytes: int) -> None:
        self._position += nbytes
        if self._position > self._nbytes:
            raise StorageError(
                Problem(
                    subject=redact(self._url),
                    message=f"{self._position:,} bytes were written, {self._nbytes:,} were announced",
                )
            )

    def _append(self, view: memoryview) -> None:
        done = 0
        while done < len(view):
            if not self._buffer:
                # A fresh buffer costs a page fault for every 4 KiB.
                self._buffer = self._spare.pop() if self._spare else bytearray(min(self._nbytes, self._part_bytes))
            count_ = min(len(self._buffer) - self._filled, len(view) - done)
            self._buffer[self._filled : self._filled + count_] = view[done : done + count_]
            self._filled += count_
            done += count_
            if self._filled == len(self._buffer) and self._nbytes > self._part_bytes:
                self._flush()

    def _flush(self) -> None:
        """Send the buffer as a part and take another."""
        if not self._filled:
            return
        self._slots.acquire()
        self._check_parts()
        body = self._buffer if self._filled == len(self._buffer) else self._buffer[: self._filled]
        self._submit(_uploaders.get(), self._send_part, body)
        self._buffer = bytearray()
        self._filled = 0

    def _submit(self, pool: ThreadPoolExecutor, task: Callable[..., _Part], *arguments: Any) -> None:
        self._start_upload()
        self._parts.append(pool.submit(task, len(self._parts) + 1, *arguments))

    def _check_parts(self) -> None:
        raise_first(self._parts)

    def _start_upload(self) -> None:
        if self._upload:
            return
        members = current_client().meta.service_model.operation_model("CreateMultipartUpload").input_shape.members
        wanted = {"ChecksumAlgorithm": "CRC32", "ChecksumType": "FULL_OBJECT"}
        if "ChecksumType" not in members:  # an older botocore
            wanted = {}
        try:
            answer = self._create_upload(wanted)
        except StorageError as error:
            if not wanted or type(error) is not StorageError:
                raise
            answer = self._create_upload({})  # a server without such checksums
        if answer.get("ChecksumAlgorithm") and answer.get("ChecksumType") != "FULL_OBJECT":
            # A server that knows part-wise checksums alone would demand them of copied parts too.
            self._drop(answer["UploadId"])
            answer = self._create_upload({})
        self._checksums = answer.get("ChecksumType") == "FULL_OBJECT"
        self._upload = answer["UploadId"]

    def _create_upload(self, options: dict[str, str]) -> Any:
        return self._call(
            lambda client: client.create_multipart_upload(Bucket=self._bucket, Key=self._key, **options),
            write_limiter.get(),
        )

    def _send_part(self, number: int, body: bytearray) -> _Part:
        try:
            checksum = crc32(body)
            answer = self._call(
                lambda client: client.upload_part(
                    **self._target(), PartNumber=number, Body=body, **self._seal(body, checksum)
                ),
                write_limiter.get(),
                stop=self._stop,
            )
            count(written_bytes=len(body))
            return _Part(number=number, nbytes=len(body), etag=answer["ETag"], crc32=checksum)
        finally:
            if len(body) == self._part_bytes:
                self._spare.append(body)
            self._slots.release()

    def _copy_part(self, number: int, source: CopyRange) -> _Part:
        bucket, key = parse_s3_url(source.url)
        condition = {"CopySourceIfMatch": source.version} if source.version else {}
        answer = call(
            lambda client: client.upload_part_copy(
                **self._target(),
                PartNumber=number,
                CopySource={"Bucket": bucket, "Key": key},
                CopySourceRange=f"bytes={source.offset}-{source.offset + source.nbytes - 1}",
                **condition,
            ),
            url=source.url,
            limiter=copy_limiter.get(),
            version=source.version,
            stop=self._stop,
        )["CopyPartResult"]
        count(copied_bytes=source.nbytes)
        text = answer.get("ChecksumCRC32")
        checksum = int.from_bytes(base64.b64decode(text), "big") if text else None
        return _Part(number=number, nbytes=source.nbytes, etag=answer["ETag"], crc32=checksum)

    def _settle_copy(self) -> None:
        """Copy the pending range: inside the store where its pieces are large enough, else through this process."""
        source, self._pending = self._pending, None
        if source is None:
            return
        head = source.nbytes
        if self._store.copies_from(source.url):
            ends_object = self._position == self._nbytes
            head = self._sizes.through(source.nbytes, filled=self._filled, ends_object=ends_object)
        self._copy_through(replace(source, nbytes=head))
        if head == source.nbytes:
            return
        self._flush()
        self._check_parts()
        rest = source.nbytes - head
        pieces = max(1, rest // max(s3_parts.COPY_PART_BYTES, self._sizes.least))
        for start, end in split(rest, -(-rest // pieces)):
            piece = replace(source, offset=source.offset + head + start, nbytes=end - start)
            self._submit(_copiers.get(), self._copy_part, piece)

    def _copy_through(self, source: CopyRange) -> None:
        from raymerge.storage import store_for

        store = store_for(source.url)
        block = memoryview(bytearray(min(s3_parts.PART_BYTES, source.nbytes)))
        for done in range(0, source.nbytes, s3_parts.PART_BYTES):
            view = block[: source.nbytes - done]
            store.read_into(source.url, view, offset=source.offset + done, version=source.version)
            self._append(view)

    def _put(self) -> ObjectInfo:
        body = self._buffer[: self._filled]
        checksum = crc32(body)
        try:
            answer = self._send_object(body, checksum)
        except StorageError as error:
            if type(error) is not StorageError:
                raise
            self._checksums = False  # a server that refuses the header
            answer = self._send_object(body, checksum)
        count(written_bytes=len(body))
        etag = answer["ETag"]
        identity = f"{etag.strip(chr(34))}:{self._nbytes}"
        return ObjectInfo(url=self._url, nbytes=self._nbytes, version=etag, identity=identity, crc32=checksum)

    def _send_object(self, body: bytearray, checksum: int) -> Any:
        return self._call(
            lambda client: client.put_object(
                Bucket=self._bucket, Key=self._key, Body=body, **self._seal(body, checksum)
            ),
            write_limiter.get(),
        )

    def _complete(self) -> ObjectInfo:
        self._flush()
        wait(self._parts)
        self._check_parts()
        parts = [future.result() for future in self._parts]
        checksum = _whole_crc32(parts)
        try:
            self._call(lambda client: self._send_complete(client, parts, checksum), write_limiter.get())
        except UploadGoneError as error:
            # An earlier try may have gone through although its answer was lost; the object then is what was sent.
            return self._found(checksum, error)
        return self._found(checksum, None)

    def _send_complete(self, client: Any, parts: list[_Part], checksum: int | None) -> None:
        from raymerge.storage.s3 import encode_crc32

        listed = [
            {"PartNumber": part.number, "ETag": part.etag}
            | ({"ChecksumCRC32": encode_crc32(part.crc32)} if self._checksums and part.crc32 is not None else {})
            for part in parts
        ]
        seal: dict[str, Any] = {}
        if self._checksums and checksum is not None:
            seal = {
                "ChecksumCRC32": encode_crc32(checksum),
                "ChecksumType": "FULL_OBJECT",
                "MpuObjectSize": self._nbytes,
            }
        client.complete_multipart_upload(**self._target(), MultipartUpload={"Parts": listed}, **seal)

    def _found(self, checksum: int | None, lost: UploadGoneError | None) -> ObjectInfo:
        """What is now under the name, checked against what was sent."""
        try:
            info = self._store.info(self._url)
        except NotFoundError as error:
            raise TransientStorageError(
                Problem(subject=redact(self._url), message="the upload was aborted by another process")
            ) from (lost or error)
        same_sum = None in (checksum, info.crc32) or checksum == info.crc32
        if info.nbytes != self._nbytes or not same_sum:
            raise TransientStorageError(
                Problem(
                    subject=redact(self._url),
                    message=f"holds {info.nbytes:,} bytes with CRC32 {info.crc32} after the upload, "
                    f"{self._nbytes:,} with {checksum} were sent",
                )
            ) from lost
        return replace(info, crc32=info.crc32 if checksum is None else checksum)

    def _target(self) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._key, "UploadId": self._upload}

    def _seal(self, body: bytearray, checksum: int) -> dict[str, str]:
        from raymerge.storage.s3 import encode_crc32

        if self._checksums:
            return {"ChecksumCRC32": encode_crc32(checksum)}
        return {"ContentMD5": base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()}

    def _call(self, operation: Callable[[Any], Any], limiter: Limiter, *, stop: threading.Event | None = None) -> Any:
        return call(operation, url=self._url, limiter=limiter, stop=stop)


def _adjacent(first: CopyRange, second: CopyRange) -> bool:
    return (first.url, first.version, first.offset + first.nbytes) == (second.url, second.version, second.offset)


def _whole_crc32(parts: list[_Part]) -> int | None:
    """None where a range was copied by a server that does not say its checksum."""
    if any(part.crc32 is None for part in parts):
        return None
    return reduce(lambda total, part: crc32_combine(total, part.crc32 or 0, part.nbytes), parts, 0)
