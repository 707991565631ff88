"""Where things lie on a machine unless the configuration says otherwise: the one place that knows the folders."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

SYSTEM_CONFIG = Path("/etc/syncd/config.toml")
SYSTEM_STATE = Path("/var/lib/syncd")
SYSTEM_RUNTIME = Path("/run/syncd")
STATUS_SOCKET = "status.sock"


def _xdg(environ: Mapping[str, str], variable: str, below_home: str) -> Path:
    return Path(environ.get(variable) or Path(environ.get("HOME") or "/") / below_home) / "syncd"


def config_file(given: Path | None, environ: Mapping[str, str] = os.environ) -> Path | None:
    """The file of `-c`, else /etc/syncd/config.toml, else the user's own; None: there is none."""
    if given is not None:
        return given
    for candidate in (SYSTEM_CONFIG, _xdg(environ, "XDG_CONFIG_HOME", ".config") / "config.toml"):
        if candidate.is_file():
            return candidate
    return None


def unit_name(config: Path | None) -> str:
    """`syncd`, or `syncd-publish-USER` for /etc/syncd/publish-USER.toml: the names of that unit's folders."""
    own = config is not None and config.parent == SYSTEM_CONFIG.parent and config.stem.startswith("publish-")
    return f"syncd-{config.stem}" if own and config is not None else "syncd"


def default_node_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """/var/lib/syncd if it exists or one is root, else XDG's."""
    if SYSTEM_STATE.is_dir() or os.geteuid() == 0:
        return SYSTEM_STATE
    return _xdg(environ, "XDG_DATA_HOME", ".local/share")


def node_folder(
    configured: Path | None,
    *,
    daemon: bool = False,
    config: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Path:
    """`[node] folder`, `$SYNCD_NODE_FOLDER`, `$STATE_DIRECTORY` (daemon only), then the default.

    `configured` is what the configuration says (`SYNCD_NODE__FOLDER` included); `config` the file it came from.
    """
    if configured is not None:
        return configured
    if named := environ.get("SYNCD_NODE_FOLDER"):
        return Path(named).absolute()
    if daemon and (named := environ.get("STATE_DIRECTORY")):
        return Path(named.split(":")[0])
    if (name := unit_name(config)) != "syncd":
        return SYSTEM_STATE.parent / name
    return default_node_folder(environ)


def status_address(
    listen: str | None,
    *,
    daemon: bool = False,
    config: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> str:
    """What `[status] listen` says, else the socket in this unit's runtime folder, else in the user's.

    Who asks (`daemon` false) and is not root gets the user's own daemon if there is one, else the system's.
    """
    if listen is not None:
        return listen
    if daemon and (named := environ.get("RUNTIME_DIRECTORY")):
        return str(Path(named.split(":")[0]) / STATUS_SOCKET)
    if (name := unit_name(config)) != "syncd":
        return str(SYSTEM_RUNTIME.parent / name / STATUS_SOCKET)
    system = SYSTEM_RUNTIME / STATUS_SOCKET
    if os.geteuid() == 0:
        return str(system)
    runtime = environ.get("XDG_RUNTIME_DIR")
    own = (Path(runtime) / "syncd" if runtime else default_node_folder(environ)) / STATUS_SOCKET
    if daemon:  # the system's folder belongs to the service's user
        return str(system if os.access(SYSTEM_RUNTIME, os.W_OK) else own)
    there = os.path.exists(own)  # noqa: PTH110 - False where the folder is closed to this user
    return str(system if SYSTEM_RUNTIME.is_dir() and not there else own)


def parse_address(address: str) -> Path | tuple[str, int]:
    """A socket's path, or (host, port) of `HOST:PORT` and `[HOST]:PORT`; ValueError for anything else."""
    if "/" in address:
        return Path(address)
    host, colon, port = address.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535 or not host:
        raise ValueError("neither a socket's path nor HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


def is_loopback(host: str) -> bool:
    """Does `host` name this machine and nothing else? Names other than localhost do not count."""
    import ipaddress

    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
