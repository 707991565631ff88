"""Make the kept store of the current format: `python -m tests.support.make_store tests/fixtures/store-1`.

Run once for each format that syncd has released; what it wrote is committed and never made anew, since the test on it
shows that stores written by an older syncd stay readable. Needs torch; writes about 2 MB.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from syncd.cli.setup import run_init
from syncd.config import ArchitectureSection, GoldenSection, PublishSection, StoreSection
from syncd.publisher.publish import publish
from syncd.state.db import Database
from syncd.store.open import open_store


def mixed(step: int) -> dict[str, Any]:
    """A checkpoint of many kinds of tensors; from one step to the next only the head and the counters change."""
    made = torch.Generator().manual_seed(5)
    trunk = torch.randn(560, 560, generator=made) * 0.02
    head = torch.randn(64, 100, generator=made) * 0.02 + step * 1e-4
    model = {
        "trunk.weight": trunk,
        "trunk.bias": torch.zeros(560),
        "conv.weight": torch.randn(8, 4, 3, 3, generator=made).to(memory_format=torch.channels_last),
        "head.weight": head,
        "head.tied": head,
        "head.view": head[:, ::2],
        "half": torch.randn(300, generator=made).to(torch.bfloat16),
        "batches": torch.tensor(step),
        "empty": torch.zeros(0, 7),
    }
    state = {"step": torch.tensor(float(step)), "exp_avg": torch.randn(64, 100, generator=made) * step}
    return {"model": model, "optimizer": {"state": {0: state}, "param_groups": [{"lr": 1e-3}]}, "epoch": step}


async def fill(folder: Path, work: Path) -> dict[str, Any]:
    """Publish two versions of `mixed` and one of `linear` into the store at `folder`; what each must give back."""
    section = StoreSection(url=f"file://{folder}")
    root = (folder / "fleet/1.root.json").read_bytes()
    store = open_store(section)
    kept: dict[str, Any] = {"fingerprint": hashlib.sha256(root).hexdigest(), "versions": []}
    linear = PublishSection(
        model="linear",
        watch=work,
        architecture=ArchitectureSection(
            name="torch.nn:Linear", args={"in_features": 30, "out_features": 10}
        ),
        golden=GoldenSection(shape=(2, 30)),
    )
    torch.manual_seed(5)
    runs = [
        (PublishSection(model="mixed", watch=work), "step-1.pt", mixed(1)),
        (PublishSection(model="mixed", watch=work), "step-2.pt", mixed(2)),
        (linear, "linear.pt", torch.nn.Linear(30, 10).state_dict()),
    ]
    with Database(work / "state.db") as db:
        for publishing, name, state in runs:
            path = work / name
            torch.save(state, path)
            result = await publish(
                path, section=publishing, store=store, trust_root=root, keys=work / "keys", db=db
            )
            tensors = state.get("model", state)
            kept["versions"].append(
                {
                    "model": result.model,
                    "version": result.version,
                    "file": name,
                    "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                    "tensors": {
                        tensor: hashlib.sha256(
                            value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
                        ).hexdigest()
                        for tensor, value in tensors.items()
                        if value.numel()
                    },
                }
            )
    await store.aclose()
    return kept


def main(folder: Path) -> None:
    """Make the store and `expected.json` beside it."""
    folder.mkdir(parents=True)
    store = folder.resolve() / "store"
    with tempfile.TemporaryDirectory() as made:
        work = Path(made)
        run_init(
            StoreSection(url=f"file://{store}"),
            models=("mixed", "linear"),
            channels=(),
            keys=work / "keys",
            passphrase=lambda new: None,
        )
        kept = asyncio.run(fill(store, work))
    (folder / "expected.json").write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
