"""The TOML file as typed models: every key with its unit, default and bounds; `load_config` tells all mistakes at once.

Reload: `[[publish]]` and `[[follow]]` keys on SIGHUP; `[store]`, `[trust]`, `[node]`, `[status]` and `[serve]` at a
restart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator

from syncd.configfile import read_sources

MODEL_NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"
_DURATION = re.compile(r"^(\d+(?:\.\d+)?)(ms|s|m|h|d)$")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration(value: Any) -> float:
    """Seconds from `"250ms"`, `"30s"`, `"5m"`, `"12h"`, `"14d"`; ValueError for anything else, a bare number too."""
    found = _DURATION.match(value) if isinstance(value, str) else None
    if not found:
        raise ValueError('a duration is a string with a unit: "250ms", "30s", "5m", "12h" or "14d"')
    return float(found[1]) * _SECONDS[found[2]]


_SIZE = re.compile(r"^(\d+)(B|KiB|MiB|GiB)$")
_BYTES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def parse_size(value: Any) -> int:
    """Bytes from `"512B"`, `"64KiB"`, `"64MiB"`, `"2GiB"`; ValueError for anything else, a bare number too."""
    found = _SIZE.match(value) if isinstance(value, str) else None
    if not found:
        raise ValueError('a size is a string with a unit: "512B", "64KiB", "64MiB" or "2GiB"')
    return int(found[1]) * _BYTES[found[2]]


def _size(value: Any, info: ValidationInfo) -> int:
    """Code may give bytes as an int; a file may not."""
    from_file = bool(info.context and info.context.get("from_file"))
    return value if isinstance(value, int) and not from_file else parse_size(value)


def _duration(value: Any, info: ValidationInfo) -> float:
    """Code may give seconds as a float; a file may not."""
    from_file = bool(info.context and info.context.get("from_file"))
    return value if isinstance(value, float) and not from_file else parse_duration(value)


Duration = Annotated[float, BeforeValidator(_duration)]
Size = Annotated[int, BeforeValidator(_size)]
ModelName = Annotated[str, Field(pattern=MODEL_NAME)]


class Section(BaseModel):
    """What every section shares: unknown keys are refused, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class StoreSection(Section):
    """Where versions lie."""

    url: str = Field(description="file://, s3://, gs://, az://, https:// or http:// (read-only)")
    endpoint: str | None = Field(default=None, description="S3-compatible servers")
    region: str | None = Field(default=None, description="S3 region")
    profile: str | None = Field(default=None, description="a profile of ~/.aws (needs syncd[aws])")
    proxy: str | None = Field(default=None, description="http(s): proxy URL")
    ca_file: Path | None = Field(default=None, description="http(s): a private CA, PEM")
    client_cert: Path | None = Field(default=None, description="http(s): client certificate, PEM")
    client_key: Path | None = Field(default=None, description="http(s): its key, PEM")

    @model_validator(mode="after")
    def _pair(self) -> StoreSection:
        if (self.client_cert is None) != (self.client_key is None):
            raise ValueError("client_cert and client_key go together: one of them is missing")
        return self


class TrustSection(Section):
    """What is trusted, and which keys this machine has."""

    root: Path = Field(description="the fleet root, as `syncd init` or `syncd join` wrote it")
    keys: Path | None = Field(default=None, description="folder of this machine's online keys (publishers)")


class WeightsSection(Section):
    """Which part of a checkpoint is the model, where syncd cannot tell by itself."""

    key: str | None = Field(
        default=None, description='key path of the weights, for example "model" or "ema/model"'
    )
    strip_prefix: str | None = Field(default=None, description='taken off every name, for example "module."')


class ArchitectureSection(Section):
    """How an edge builds the module."""

    name: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", description="package.module:callable")
    args: dict[str, Any] = Field(default_factory=dict)


class GoldenSection(Section):
    """The golden sample: inputs drawn from a fixed seed by shape, or a file with inputs (and outputs)."""

    shape: tuple[Annotated[int, Field(ge=1, le=2**20)], ...] | None = None
    file: Path | None = None

    @model_validator(mode="after")
    def _one(self) -> GoldenSection:
        if (self.shape is None) == (self.file is None):
            raise ValueError("give shape or file, not both and not neither")
        return self


class KeepSection(Section):
    """How many versions of a model the store keeps; without this section nothing is ever retired."""

    versions: int = Field(default=20, ge=1, le=50_000, description="the newest so many")
    training_state: int = Field(
        default=3, ge=1, le=50_000, description="and the newest so many that hold training state"
    )


class PublishSection(Section):
    """One watched training directory and the model its checkpoints become."""

    model: ModelName
    channel: ModelName = "latest"
    watch: Path
    include: tuple[str, ...] = ("*.pt", "*.pth", "*.ckpt", "*.safetensors")
    exclude: tuple[str, ...] = ()
    backfill: Literal["newest", "all", "none"] = "newest"
    settle: Duration = Field(
        default=2.0, ge=0.0, le=86400.0, description="quiet time before a complete file is taken"
    )
    rescan: Duration = Field(
        default=10.0, ge=0.1, le=86400.0, description="how often the folder is listed, events or not"
    )
    side_files: tuple[str, ...] = ()
    weights: WeightsSection = WeightsSection()
    architecture: ArchitectureSection | None = None
    golden: GoldenSection | None = None
    keep: KeepSection | None = Field(default=None, description="absent: every version is kept for ever")


class NodeSection(Section):
    """This machine."""

    name: str | None = Field(default=None, description="default: host name")
    folder: Path | None = Field(
        default=None, description="default: /var/lib/syncd if it exists or one is root, else XDG's"
    )


class HookSection(Section):
    """What is told or run after something has happened on this node; it never holds the edge up."""

    on: Literal["install", "swap", "rollback"]
    command: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="program and arguments, run once without a shell"
    )
    http: str | None = Field(
        default=None, pattern=r"^https?://[^\s]+$", description="a URL that is posted to, again if it fails"
    )
    within: Duration = Field(default=30.0, ge=0.1, le=3600.0, description="time for one run or one request")

    @model_validator(mode="after")
    def _one(self) -> HookSection:
        if (self.command is None) == (self.http is None):
            raise ValueError("give command or http, not both and not neither")
        return self


class FollowSection(Section):
    """One model that this node follows."""

    model: ModelName
    channel: ModelName = "latest"
    poll: Duration = Field(default=300.0, ge=1.0, le=30 * 86400.0)
    cron: str | None = Field(
        default=None, description='in place of poll: "0 2 * * sun", the node\'s local time'
    )
    keep: int = Field(default=2, ge=2, le=1000)
    approve: Literal["automatic", "manual"] = Field(
        default="automatic", description="manual: nothing is fetched before `syncd approve`"
    )
    probation: Duration = Field(default=600.0, ge=0.0, le=30 * 86400.0)
    probation_errors: int = Field(
        default=1, ge=1, description="failed or non-finite predictions in probation that roll back"
    )
    gate_within: Duration = Field(default=60.0, ge=0.1, le=86400.0)
    hooks: tuple[HookSection, ...] = ()


class ServeModelSection(Section):
    """One model that `syncd serve` answers for."""

    model: ModelName
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|cuda|cuda:[0-9]{1,2})$",
        description="auto: a GPU if there is one",
    )
    dtype: Literal["as-published"] = "as-published"
    inputs: tuple[str, ...] = Field(
        default=(), description='names of the inputs in place of "input", or "input.0", "input.1"'
    )
    outputs: tuple[str, ...] = Field(
        default=(), description='names of the outputs in place of "output", or "output.0", "output.1"'
    )


class ServeSection(Section):
    """Open Inference V2 over HTTP; read at the start of `syncd serve`."""

    listen: str = Field(
        default="127.0.0.1:8080", description="HOST:PORT or a socket's path; a socket unit's sockets win"
    )
    architectures: tuple[str, ...] = Field(
        default=("torchvision.models:*",), description="what a version's head may name to be imported"
    )
    max_body: Size = Field(
        default=64 * 2**20, ge=1024, le=2**40, description="largest request, decompressed too"
    )
    request_within: Duration = Field(
        default=30.0, ge=0.01, le=3600.0, description="from a request's beginning to its answer"
    )
    threads: int = Field(
        default=0, ge=0, le=256, description="predictions at once; 0: half the cores, at most 4"
    )
    queue: int = Field(default=64, ge=0, le=100_000, description="requests that wait for a thread")
    models: tuple[ServeModelSection, ...] = Field(
        default=(), description="none: every model that this node follows"
    )


class StatusSection(Section):
    """Where the daemon answers."""

    listen: str | None = Field(default=None, description="a socket's path or HOST:PORT; default: status.sock")
    token_file: Path | None = Field(
        default=None,
        description="TCP only: the token that changes, and everything from elsewhere, must bring",
    )


class Config(Section):
    """The whole file; a section that is there is a role that runs."""

    shutdown_within: Duration = Field(default=30.0, ge=0.0, le=3600.0)
    store: StoreSection
    trust: TrustSection
    node: NodeSection = NodeSection()
    publish: tuple[PublishSection, ...] = ()
    follow: tuple[FollowSection, ...] = ()
    serve: ServeSection | None = None
    status: StatusSection = StatusSection()


class StoreAlone(Section):
    """What `--store URL` says where there is no file."""

    store: StoreSection


def load_config(path: Path | str | None = None, flags: Mapping[str, Any] | None = None) -> Config:
    """Read the file (None: the machine's or the user's own), `conf.d`, `SYNCD_A__B` and flags, and check everything.

    Args:
        flags: dotted key → value, winning over all else, for example `{"store.url": "file:///srv/models"}`.
    Raises:
        ConfigInvalid: with all mistakes in `findings`, each {file, line, key, value, problem, allowed, nearest}.
    """
    from syncd import paths
    from syncd.findings import check

    sources = read_sources(paths.config_file(Path(path) if path is not None else None), flags)
    return check(Config, sources)
