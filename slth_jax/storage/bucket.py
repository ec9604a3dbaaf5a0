"""Objects in a bucket of Google Cloud Storage or S3, through TensorStore.

An object is written completely or not at all. A write can be made conditional: it then succeeds
only if a given version of the object is stored. Endpoints and credentials come from the providers'
usual variables: AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID, AWS_PROFILE,
STORAGE_EMULATOR_HOST, GOOGLE_APPLICATION_CREDENTIALS.
"""

import functools
import html
import http.client
import logging
import os
import random
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from slth_jax.storage.errors import CheckpointError

_log = logging.getLogger("slth_jax.storage")
SCHEMES = {"gs": "gcs", "s3": "s3"}  # maps schemes to TensorStore's drivers
# Seconds between attempts, ten minutes in total, or less if a server has never answered.
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, *[30.0] * 19)
FIRST_PAUSES = PAUSES[:6]
PATIENCE = 300.0  # seconds to wait for an answer, since an object may have gigabytes
# After these answers a repeated request may succeed: time-outs, too many requests, server errors.
_TEMPORARY = {408, 409, 429, 500, 502, 503, 504}
_NO_RETRIES = {"max_retries": 0, "initial_delay": "10ms", "max_delay": "10ms"}


class Stored(NamedTuple):
    """An object's bytes, and the version of these bytes in the bucket."""

    data: bytes
    version: bytes


class Bucket:
    """A bucket of objects; an object's key is its path, such as 'run/config.json'.

    Every method repeats a request that fails for a temporary reason (a lost connection, a slow or
    overloaded server), with growing pauses.

    Raises:
      CheckpointError: the bucket is missing, access is denied, a quota is used up, or the server
        has not answered for ten minutes.
    """

    def __init__(self, scheme: str, name: str):
        """Read the configuration from the environment; no request is sent."""
        import tensorstore

        self.url = f"{scheme}://{name}"
        self._range = tensorstore.KvStore.KeyRange
        self._answered = False
        context = tensorstore.Context(
            {"s3_request_retries": _NO_RETRIES, "gcs_request_retries": _NO_RETRIES}
        )
        spec = _s3(name) if scheme == "s3" else _gcs(name)
        self._store = tensorstore.KvStore.open(spec, context=context).result()

    def read(self, key: str) -> Stored | None:
        """Return the bytes and the version of an object; None if no object has this key."""
        result = self._answer("read", key, lambda: self._store.read(key))
        return Stored(result.value, result.stamp.generation) if result.state == "value" else None

    def write(self, key: str, data: bytes) -> None:
        """Write an object; an existing object with this key is overwritten."""
        self._answer("write", key, lambda: self._store.write(key, data))

    def swap(self, key: str, version: bytes | None, data: bytes | None) -> bytes | None:
        """Write or delete an object if its stored version is still `version`.

        Args:
          key: the key of the object.
          version: the version that must be stored, as `read` or an earlier `swap` returned it. None
            requires that no object has this key.
          data: the new bytes; None to delete the object.

        Returns:
          The new version (b'' for a deleted object); None if nothing was changed because another
          version was stored.
        """
        before = self._missing if version is None else version
        answer = self._answer("write", key, lambda: self._store.write(key, data, if_equal=before))
        if answer.generation and (data is None) == (answer.generation == self._missing):
            return b"" if data is None else answer.generation
        # An earlier attempt may have succeeded although its answer was lost; then the new bytes are
        # already stored.
        now = self.read(key)
        if now is None:
            if version is None:
                self.check()  # S3 gives the same answer for a missing bucket
            return b"" if data is None else None
        return now.version if now.data == data else None

    def delete(self, key: str) -> None:
        """Delete the object with this key, if there is one."""
        self._answer("delete", key, lambda: self._store.write(key, None))

    def keys(self, prefix: str) -> list[str]:
        """Return the sorted keys that begin with `prefix`."""
        return self._keys(prefix, prefix[:-1] + chr(ord(prefix[-1]) + 1) if prefix else "")

    def has(self, key: str) -> bool:
        """Return whether an object with this key exists, without reading it."""
        return bool(self._keys(key, key + "\0"))

    def check(self) -> None:
        """Raise an error if the bucket is missing or this process may not list its objects."""
        self._keys("slth-jax-no-such-object", "slth-jax-no-such-object\0")

    def _keys(self, first: str, end: str) -> list[str]:
        span = self._range(first, end)
        keys = self._answer("list", first, lambda: self._store.list(span))
        return sorted(key.decode() for key in keys)

    # The generation that TensorStore returns for a missing object.
    _missing = b"\x02"

    def _answer(self, action: str, key: str, request: Callable[[], Any]) -> Any:
        pauses = iter(PAUSES if self._answered else FIRST_PAUSES)
        while True:
            try:
                answer = request().result(timeout=PATIENCE)
            except (ValueError, TimeoutError) as error:  # TensorStore's errors are ValueErrors
                words, temporary = _explain(error)
                line = f"cannot {action} {self.url}/{key}: {words}"
                pause = next(pauses, None) if temporary else None
                if pause is None:
                    raise CheckpointError(line) from error
                _log.warning("%s; trying again", line)
                time.sleep(pause * random.uniform(0.75, 1.25))
            else:
                self._answered = True
                return answer


@functools.lru_cache(maxsize=16)
def _opened(scheme: str, name: str, environment: tuple[tuple[str, str], ...]) -> Bucket:
    return Bucket(scheme, name)


def bucket(scheme: str, name: str) -> Bucket:
    """Return the `Bucket` with this name, cached until a relevant environment variable changes."""
    named = ("AWS_", "GOOGLE_", "STORAGE_EMULATOR_HOST")
    environment = {name: value for name, value in os.environ.items() if name.startswith(named)}
    return _opened(scheme, name, tuple(sorted(environment.items())))


def _s3(name: str) -> Mapping[str, Any]:
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    spec: dict[str, Any] = {"driver": "s3", "bucket": name}
    if endpoint:
        spec |= {"endpoint": endpoint, "aws_region": region or "us-east-1"}
    elif region:
        spec["aws_region"] = region
    if "AWS_ACCESS_KEY_ID" in os.environ:  # otherwise missing files of credentials are reported
        spec["aws_credentials"] = {"type": "environment"}
    return spec


def _gcs(name: str) -> Mapping[str, Any]:
    host = os.environ.get("STORAGE_EMULATOR_HOST")
    if host:
        url = host if "://" in host else f"http://{host}"
        os.environ["TENSORSTORE_GCS_HTTP_URL"] = url.rstrip("/")
        os.environ.setdefault("GOOGLE_AUTH_TOKEN_FOR_TESTING", "emulator")
    return {"driver": "gcs", "bucket": name}


def _explain(error: BaseException) -> tuple[str, bool]:
    """Return a short description of an error, and whether a repeated request may succeed."""
    text = str(error)
    if isinstance(error, TimeoutError):
        return f"no answer within {PATIENCE:.0f} s", True
    code = re.search(r"http_response_code='(\d+)'", text)
    if code is None:
        curl = re.search(r"CURL error (.*?)(?: \[|$)", text)
        return (curl[1] if curl else text.partition(" [")[0])[:300], curl is not None
    status = int(code[1])
    words = f"{status} {http.client.responses.get(status, '')}".strip()
    body = text.replace('\\"', '"').replace("\\n", " ")
    message = re.search(r"<Message>(.*?)</Message>", body) or re.search(
        r'"message": ?"(.*?)"', body
    )
    if message:
        words += f" ({html.unescape(message[1])[:200]})"
    return words, status in _TEMPORARY
