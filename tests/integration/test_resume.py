"""Training state back: train, publish, lose the folder, restore, resume, bit for bit."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TRAINER = """
import json, sys, torch, torchvision
folder, steps, resume = sys.argv[1], int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else None
torch.set_num_threads(1)
torch.manual_seed(3)
model = torchvision.models.resnet50(num_classes=10)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
done = 0
if resume:
    state = torch.load(resume, weights_only=True)
    model.load_state_dict(state["model"]); optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["rng"]); done = state["step"]
losses = []
for step in range(done + 1, steps + 1):
    images, labels = torch.randn(4, 3, 32, 32), torch.randint(0, 10, (4,))
    loss = torch.nn.functional.cross_entropy(model(images), labels)
    optimizer.zero_grad(); loss.backward(); optimizer.step()
    losses.append(loss.item().hex())
    if step % 2 == 0:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save({**state, "step": step, "rng": torch.get_rng_state()}, f"{folder}/step-{step}.pt")
print(json.dumps(losses))
"""


def run_trainer(*words: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", TRAINER, *words], capture_output=True, text=True, timeout=170, check=True
    )
    return json.loads(done.stdout)


def syncd(*words: str, cwd: Path) -> dict:
    done = subprocess.run(
        [sys.executable, "-m", "syncd", *words, "--json", "--no-input"],
        capture_output=True,
        text=True,
        timeout=170,
        cwd=cwd,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.mark.timeout(400)
def test_resnet50_with_adamw_resumes_bit_for_bit_from_a_restore_after_its_folder_is_lost(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    uninterrupted = run_trainer(str(run), "4")
    checkpoint = run / "step-2.pt"
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    store = f"file://{tmp_path}/store"
    made = syncd("init", store, "--model", "resnet50", "--keys", "keys", "--no-passphrase", cwd=tmp_path)
    config = tmp_path / "publisher.toml"
    root = tmp_path / "store/fleet/1.root.json"
    config.write_text(
        f'[store]\nurl = "{store}"\n[trust]\nroot = "{root}"\nkeys = "{tmp_path}/keys"\n'
        f'[node]\nfolder = "{tmp_path}/node"\n[[publish]]\nmodel = "resnet50"\nwatch = "{run}"\n'
    )
    assert made["fingerprint"]
    published = syncd("publish", str(checkpoint), "--model", "resnet50", "-c", str(config), cwd=tmp_path)
    assert published["checkpoint_bytes"] == checkpoint.stat().st_size
    shutil.rmtree(run)
    again = tmp_path / "again"
    restored = syncd("restore", "resnet50", "--to", str(again), "-c", str(config), cwd=tmp_path)
    assert [(file["path"], file["sha256"].removeprefix("sha256:")) for file in restored["files"]] == [
        ("step-2.pt", digest)
    ]
    assert hashlib.sha256((again / "step-2.pt").read_bytes()).hexdigest() == digest
    resumed = run_trainer(str(again), "4", str(again / "step-2.pt"))
    assert resumed == uninterrupted[2:]
