"""An object store on this machine that misbehaves: moto's S3 server behind a proxy that injects faults."""

import http.client
import http.server
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

# What becomes of the NUMBERth request with this METHOD on this path: None, or one of
# "503", "hang" (longer than clients wait), "cut" (half of the body and the connection ends), "short" (half
# of it, and a length that says it was all), "lost" (the request never arrives; the connection ends).
Faults = Callable[[int, str, str], str | None]
HANG = 5.0  # seconds


class Store:
    """Where the proxy listens, and what it has done."""

    def __init__(self, port: int, target: tuple[str, int]) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.target = target
        self.faults: Faults = lambda number, method, path: None
        self.injected: list[str] = []
        self.requests = 0
        self.counting = threading.Lock()


class _Proxy(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: Store

    def _forward(self) -> None:
        store = self.store
        with store.counting:
            store.requests += 1
            fault = store.faults(store.requests, self.command, self.path)
            if fault:
                store.injected.append(fault)
        length = int(self.headers.get("Content-Length") or 0)
        if fault == "lost":
            self.rfile.read(length // 2)
            self.close_connection = True
            return
        body = self.rfile.read(length)
        if fault == "hang":
            time.sleep(HANG)
            self.close_connection = True
            return
        if fault == "503":
            text = b"<Error><Code>SlowDown</Code><Message>slow down</Message></Error>"
            self._answer(503, [("Content-Type", "application/xml")], text, len(text))
            return
        connection = http.client.HTTPConnection(*store.target, timeout=20)
        connection.request(self.command, self.path, body, dict(self.headers))
        answer = connection.getresponse()
        blob = answer.read()
        declared = int(answer.headers.get("Content-Length") or len(blob))
        headers = [
            (k, v) for k, v in answer.getheaders() if k.lower() not in ("content-length", "connection")
        ]
        connection.close()
        half = blob[: len(blob) // 2]
        if fault == "cut" and blob:
            self._answer(answer.status, headers, half, len(blob))
            self.close_connection = True
        elif fault == "short" and blob:
            self._answer(answer.status, headers, half, len(half))
        else:
            self._answer(answer.status, headers, blob, declared)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _forward

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, length: int) -> None:
        self.send_response_only(status)
        for key, value in headers:
            self.send_header(key, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def misbehaving_store(patch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A store with the buckets `raw` and `tokens`, that s3:// means while the block runs."""
    import boto3
    import fsspec.config
    from moto.server import ThreadedMotoServer
    from s3fs import S3FileSystem

    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Proxy)
    proxy.daemon_threads = True
    store = Store(proxy.server_address[1], moto.get_host_and_port())
    _Proxy.store = store
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        patch.setenv(key, "testing")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    patch.setenv("AWS_ENDPOINT_URL", store.url)
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    impatient = {"config_kwargs": {"read_timeout": 2, "connect_timeout": 2, "retries": {"max_attempts": 1}}}
    patch.setitem(fsspec.config.conf, "s3", impatient)
    client = boto3.client("s3", endpoint_url=store.url)
    for bucket in ("raw", "tokens"):
        client.create_bucket(Bucket=bucket)
    patch.setattr(S3FileSystem, "retries", 2)  # its own; ours come on top
    S3FileSystem.clear_instance_cache()
    try:
        yield store
    finally:
        S3FileSystem.clear_instance_cache()
        proxy.shutdown()
        moto.stop()
