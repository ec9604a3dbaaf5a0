"""Buckets on the loopback: an emulator of Google Cloud Storage, and moto's S3."""

import itertools

import pytest

from experiments.benchmarks import bucket_servers
from slth_jax.storage import bucket, claims

NUMBERS = itertools.count()


@pytest.fixture(scope="session", params=["gs", "s3"])
def server(request):
    if request.param == "s3":
        for name in ("moto", "flask_cors"):
            pytest.importorskip(name, reason="moto's server is not installed")
    with bucket_servers.SERVERS[request.param]() as served:
        yield served


@pytest.fixture
def proxy(server, monkeypatch):
    """The proxy in front of the server, with short pauses between attempts and short claims."""
    for name, value in server[1].items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(bucket, "PAUSES", (0.01,) * 6)
    monkeypatch.setattr(bucket, "FIRST_PAUSES", (0.01,) * 6)
    monkeypatch.setenv(claims.SECONDS, "1")
    server[2].plan = lambda method, path: None
    yield server[2]
    server[2].plan = lambda method, path: None


@pytest.fixture
def url(server, proxy):
    """A folder of the bucket that no other test uses."""
    return f"{server[0]}/test-{next(NUMBERS)}"
