"""What every test shares: real servers, asyncio's debug mode, and the rule that a skip in CI is a failure.

- `root` and `debian` tests are skipped by name where they cannot run. With SYNCD_CI=1 any skip turns the run red.
- `bench` tests run only when asked for: `-m bench`.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.servers import Nginx, RcloneS3, SeaweedFS, Unavailable


def _can_mount() -> bool:
    """Root, and not one that a container has taken CAP_SYS_ADMIN or the loop devices from."""
    if os.geteuid() != 0 or not Path("/dev/loop-control").exists():
        return False
    capabilities = re.search(r"^CapEff:\s*(\w+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    cap_sys_admin = 21
    return bool(capabilities and int(capabilities[1], 16) >> cap_sys_admin & 1)


CAN_MOUNT = _can_mount()
IN_CI = os.environ.get("SYNCD_CI") == "1"
DEBIAN_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))


def pytest_configure(config: pytest.Config) -> None:
    config.option.asyncio_debug = True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if reason := _cannot_run(item):
            item.add_marker(pytest.mark.skip(reason=reason))
    if "bench" not in (config.option.markexpr or ""):
        benches = [item for item in items if item.get_closest_marker("bench")]
        if benches:
            items[:] = [item for item in items if item not in benches]
            config.hook.pytest_deselected(items=benches)


def _cannot_run(item: pytest.Item) -> str | None:
    """Why this machine cannot run the test; `@pytest.mark.debian("nginx", …)` names the programs it needs."""
    if item.get_closest_marker("root") and not CAN_MOUNT:
        return f"{item.name} needs root that may mount disks (CAP_SYS_ADMIN, loop devices)"
    for marker in item.iter_markers("debian"):
        for program in marker.args:
            if shutil.which(program, path=DEBIAN_PATH) is None:
                return f"{item.name} needs the program {program}, which is not installed"
    return None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    if IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped where nothing may be: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    report = yield
    if IN_CI and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} was skipped where nothing may be: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    """A real S3 server: endpoint, bucket, access_key_id, secret_access_key; `section(path)` and `environment`."""
    with SeaweedFS(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


@pytest.fixture
def s3(seaweed: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> SeaweedFS:
    """The same server with its credentials in this process's environment."""
    for name, value in seaweed.environment.items():
        monkeypatch.setenv(name, value)
    return seaweed


@pytest.fixture(scope="session")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    """A real nginx that shows a folder by http, https, and https that wants a client certificate."""
    try:
        server = Nginx(tmp_path_factory.mktemp("nginx"))
    except Unavailable as error:
        pytest.skip(str(error))
    with server:
        yield server


@pytest.fixture(scope="session")
def rclone_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RcloneS3]:
    """An S3 server that takes conditional puts and ignores the condition."""
    with RcloneS3(tmp_path_factory.mktemp("rclone")) as server:
        yield server


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A mounted ext4 of 16 MiB in the file `image` beside it; for tests marked root."""
    from tests.support.disks import mounted_image

    with mounted_image(tmp_path / "image", 16 << 20) as mount:
        yield mount
