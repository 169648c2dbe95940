"""S3 and servers that speak its protocol, through botocore.

botocore knows every way to find credentials, regions and endpoints, offers conditional and checksummed requests and
in-store copies, and reads ranges with a third of s3fs's CPU time.
"""

from __future__ import annotations

import base64
import contextlib
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from raymerge.errors import AccessError, ChangedError, NotFoundError, Problem, StorageError
from raymerge.storage.base import CopyRange, ObjectInfo, ObjectWriter, Store
from raymerge.storage.crc32 import crc32
from raymerge.storage.retry import Again, StoppedError
from raymerge.storage.s3_client import UploadGoneError, call, parse_s3_url, read_limiter, write_limiter
from raymerge.storage.traffic import count
from raymerge.storage.transfer import read_parts
from raymerge.storage.urls import base_name, join_url, redact, scheme_of

if TYPE_CHECKING:
    from typing_extensions import Buffer

# Of an answer at a time: urllib3 holds this much per connection beside the caller's buffer, 8 MiB for all readers.
# Larger slices cost the same CPU time, smaller ones more (64 KiB: a fifth).
SLICE_BYTES = 256 << 10
# An answer may trickle in without ever being silent; slower than this is better asked for again elsewhere.
SLOWEST_BYTES_PER_SECOND = 50_000
PATIENCE_SECONDS = 60
PROBE_PREFIX = ".raymerge-probe-"


class S3Store(Store):
    """Versions are etags, and every read is conditional on one."""

    def __reduce__(self) -> tuple[type[S3Store], tuple[()]]:
        return (S3Store, ())

    def buffered_bytes(self, nbytes: int) -> int:
        from raymerge.storage.s3_parts import buffered_bytes

        return buffered_bytes(nbytes)

    def copies_from(self, url: str) -> bool:
        return scheme_of(url) == "s3"  # a process knows one endpoint

    def copied_bytes(self, pieces: Sequence[CopyRange | int]) -> int:
        from raymerge.storage.s3_parts import copied_bytes

        return copied_bytes(pieces)

    def info(self, url: str) -> ObjectInfo:
        bucket, key = _object(url)
        answer = call(
            lambda client: client.head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED"),
            url=url,
            limiter=read_limiter.get(),
        )
        return _info(url, answer, answer["ContentLength"], whole_crc32(answer))

    def list(self, url: str) -> tuple[ObjectInfo, ...]:
        prefix = _prefix(url)
        tokens = {"ContinuationToken": "NextContinuationToken"}
        found = [
            _info(join_url(url, item["Key"][len(prefix) :]), item, item["Size"], None)
            for page in _pages(url, "list_objects_v2", tokens, Prefix=prefix, Delimiter="/")
            for item in page.get("Contents", ())
            if item["Key"] != prefix  # the folder's own marker
        ]
        return tuple(sorted(found, key=lambda info: info.url))

    def read(self, url: str, *, max_bytes: int) -> bytes:
        bucket, key = _object(url)

        def get(client: Any) -> bytes:
            answer = client.get_object(Bucket=bucket, Key=key)
            size = answer["ContentLength"]
            if size > max_bytes:
                answer["Body"].close()
                raise StorageError(
                    Problem(subject=redact(url), message=f"holds {size:,} bytes, at most {max_bytes:,} were expected")
                )
            buffer = bytearray(size)
            receive(answer["Body"], memoryview(buffer), threading.Event(), url)
            return bytes(buffer)

        return call(get, url=url, limiter=read_limiter.get())

    def read_into(self, url: str, buffer: Buffer, *, offset: int, version: str) -> None:
        bucket, key = _object(url)
        condition = {"IfMatch": version} if version else {}

        def fetch(view: memoryview, start: int, stop: threading.Event) -> None:
            end = start + len(view)

            def get(client: Any) -> None:
                answer = client.get_object(Bucket=bucket, Key=key, Range=f"bytes={start}-{end - 1}", **condition)
                check_range(answer, url, start=start, end=end, version=version)
                receive(answer["Body"], view, stop, url)

            call(get, url=url, limiter=read_limiter.get(), version=version, stop=stop)

        with memoryview(buffer).cast("B") as whole:
            read_parts(fetch, whole, offset)

    def create(self, url: str, *, nbytes: int) -> ObjectWriter:
        from raymerge.storage.s3_writer import S3Writer

        _object(url)
        return S3Writer(self, url, nbytes=nbytes)

    def put_new(self, url: str, data: bytes) -> bool:
        bucket, key = _object(url)
        seal = encode_crc32(crc32(data))
        try:
            call(
                lambda client: client.put_object(
                    Bucket=bucket, Key=key, Body=data, IfNoneMatch="*", ChecksumCRC32=seal
                ),
                url=url,
                limiter=write_limiter.get(),
            )
        except ChangedError:
            return False
        except StorageError as error:
            if type(error) is not StorageError:
                raise
            return super().put_new(url, data)  # a server, or a botocore, that knows no such condition
        count(written_bytes=len(data))
        return True

    def delete(self, url: str) -> None:
        bucket, key = _object(url)
        call(lambda client: client.delete_object(Bucket=bucket, Key=key), url=url, limiter=write_limiter.get())

    def probe(self, url: str, *, nbytes: int) -> None:  # noqa: ARG002 (an object store has room)
        """Start a multipart upload and abort it: needs the rights of a real write, and leaves no version behind."""
        target = join_url(url, f"{PROBE_PREFIX}{secrets.token_hex(4)}")
        bucket, key = parse_s3_url(target)
        limiter = write_limiter.get()
        try:
            with contextlib.suppress(AccessError):  # one may write to a bucket that one may not look at
                call(lambda client: client.head_bucket(Bucket=bucket), url=url, limiter=limiter)
            upload = call(
                lambda client: client.create_multipart_upload(Bucket=bucket, Key=key), url=url, limiter=limiter
            )["UploadId"]
        except NotFoundError as error:
            raise NotFoundError(
                Problem(subject=redact(url), message="the bucket does not exist", remedy="create it, or name another")
            ) from error
        abort_upload(target, upload)

    def clean(self, url: str, *, names: tuple[str, ...]) -> int:
        wanted = frozenset(join_url(url, name) for name in names)
        left = [
            (target, upload)
            for target, upload in list_uploads(url)
            if target in wanted or base_name(target).startswith(PROBE_PREFIX)  # one whose id was lost with an answer
        ]
        for target, upload in left:
            abort_upload(target, upload)
        return len(left)

    def unfinished(self, url: str) -> tuple[str, ...]:
        return tuple(sorted(base_name(target) for target, _ in list_uploads(url)))


def list_uploads(url: str) -> list[tuple[str, str]]:
    """(object URL, upload id) of every unfinished multipart upload inside a folder."""
    tokens = {"KeyMarker": "NextKeyMarker", "UploadIdMarker": "NextUploadIdMarker"}
    bucket, _ = parse_s3_url(url)
    return [
        (f"s3://{bucket}/{item['Key']}", item["UploadId"])
        for page in _pages(url, "list_multipart_uploads", tokens, Prefix=_prefix(url))
        for item in page.get("Uploads", ())
    ]


def _pages(url: str, method: str, tokens: dict[str, str], **arguments: str) -> Iterator[Any]:
    """The pages of a listing; `tokens` maps an argument of the next request to the field of the answer it takes."""
    bucket, _ = parse_s3_url(url)

    def ask(client: Any) -> Any:
        return getattr(client, method)(Bucket=bucket, **arguments)

    more = True
    while more:
        page = call(ask, url=url, limiter=read_limiter.get())
        yield page
        more = bool(page.get("IsTruncated"))
        arguments |= {argument: page[field] for argument, field in tokens.items() if field in page}


def _prefix(url: str) -> str:
    _, key = parse_s3_url(url)
    return f"{key.rstrip('/')}/" if key else ""


def abort_upload(url: str, upload: str) -> None:
    """Drop an unfinished upload; nothing happens if it is gone."""
    bucket, key = parse_s3_url(url)
    try:
        call(
            lambda client: client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload),
            url=url,
            limiter=write_limiter.get(),
        )
    except UploadGoneError:
        return


def check_range(answer: Any, url: str, *, start: int, end: int, version: str) -> None:
    """Raise Again unless the answer is the range that was asked for: proxies and gateways drop range headers."""
    status = answer["ResponseMetadata"]["HTTPStatusCode"]
    length = answer.get("ContentLength")
    whole = status == 200 and start == 0 and length == end
    found = str(answer.get("ContentRange", ""))
    fault = ""
    if not whole and (status != 206 or not found.startswith(f"bytes {start}-{end - 1}/")):
        fault = f"asked for bytes {start}-{end - 1}, got status {status} with range {found or 'missing'}"
    elif length != end - start:
        fault = f"asked for {end - start} bytes, {length} were announced"
    elif version and answer.get("ETag") != version:
        fault = f"the answer has etag {answer.get('ETag')}, {version} was asked for"
    if fault:
        answer["Body"].close()
        total = found.rpartition("/")[2]
        if total.isdigit() and int(total) < end:
            raise StorageError(
                Problem(subject=redact(url), message=f"ends at byte {total}, bytes {start} to {end} were expected")
            )
        raise Again(fault)


def receive(body: Any, view: memoryview, stop: threading.Event, url: str) -> None:
    """Read exactly `len(view)` bytes of an answer."""
    deadline = time.monotonic() + PATIENCE_SECONDS + len(view) / SLOWEST_BYTES_PER_SECOND
    done = 0
    try:
        while done < len(view):
            if stop.is_set():
                raise StoppedError(Problem(subject=redact(url), message="given up, since another part of it failed"))
            got = body.readinto(view[done : done + SLICE_BYTES])
            if not got:
                raise Again(f"the answer ended after {done} of {len(view)} bytes")
            done += got
            if time.monotonic() > deadline:
                raise Again(f"only {done} of {len(view)} bytes had arrived after {PATIENCE_SECONDS} s and more")
    except BaseException:
        body.close()  # a connection with bytes left in it serves no other request
        raise
    count(read_bytes=done)


def whole_crc32(answer: Any) -> int | None:
    """The checksum of the whole object, where the answer has it; that of a part-wise sum ("...-3") says nothing."""
    text = answer.get("ChecksumCRC32")
    if not text or answer.get("ChecksumType", "FULL_OBJECT") != "FULL_OBJECT" or "-" in text:
        return None
    return int.from_bytes(base64.b64decode(text), "big")


def encode_crc32(value: int) -> str:
    return base64.b64encode(value.to_bytes(4, "big")).decode()


def _info(url: str, answer: Mapping[str, Any], nbytes: int, crc32: int | None) -> ObjectInfo:
    """`answer` describes an object, in a listing or by itself."""
    etag, modified = answer["ETag"], answer.get("LastModified")
    return ObjectInfo(
        url=url,
        nbytes=nbytes,
        version=etag,
        identity=f"{etag.strip(chr(34))}:{nbytes}",
        crc32=crc32,
        modified=modified.timestamp() if modified is not None else None,
    )


def _object(url: str) -> tuple[str, str]:
    bucket, key = parse_s3_url(url)
    if not key or not base_name(url):
        raise StorageError(Problem(subject=redact(url), message="is a bucket or folder, an object was expected"))
    return bucket, key
