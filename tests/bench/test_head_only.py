"""A head-only update of ResNet-50 (frozen BatchNorm, 1000 classes): what moves, against what has changed."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

from syncd.artifact.head import Head
from syncd.edge.pull import pull
from tests.support.publishing import MODEL, Publishing, make_publishing

pytestmark = [pytest.mark.bench, pytest.mark.timeout(600)]

MAX_RATIO = 1.05


def train_the_head(net: torch.nn.Module, seed: int) -> None:
    """One step of SGD on the last layer alone, BatchNorm frozen."""
    torch.manual_seed(seed)
    net.eval()
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    net.fc.requires_grad_(True)
    optimizer = torch.optim.SGD(net.fc.parameters(), lr=0.01)
    loss = torch.nn.functional.cross_entropy(net(torch.randn(4, 3, 64, 64)), torch.randint(0, 1000, (4,)))
    loss.backward()
    optimizer.step()


def documents_of(publishing: Publishing, version: int) -> int:
    """Bytes of a version's head, layout and table."""
    raw = (publishing.model_folder / "versions" / str(version) / "head.json").read_bytes()
    head = Head.parse(raw)
    return len(raw) + head.layout.length + head.table.length


@pytest.fixture
async def publishing(tmp_path: Path) -> Publishing:
    return await make_publishing(tmp_path)


async def test_a_new_head_moves_little_more_than_the_head(publishing: Publishing) -> None:
    from torchvision.models import resnet50

    torch.manual_seed(0)
    net = resnet50(num_classes=1000)
    torch.save(net.state_dict(), publishing.runs / "1.pt")
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    train_the_head(net, 1)
    torch.save(net.state_dict(), publishing.runs / "2.pt")
    changed = {name: each for name, each in net.state_dict().items() if not torch.equal(each, before[name])}
    assert changed.keys() == {"fc.weight", "fc.bias"}
    changed_bytes = sum(each.numel() * each.element_size() for each in changed.values())
    store, root, to = publishing.signed.store, publishing.signed.root, publishing.base / "edge"
    await publishing.publish(publishing.runs / "1.pt")
    first = await pull(store, root, MODEL, to=to)
    up = await publishing.publish(publishing.runs / "2.pt")
    down = await pull(store, root, MODEL, to=to)
    documents = documents_of(publishing, 2)
    print(
        f"\nResNet-50, head only: changed {changed_bytes} bytes of {first.model_bytes}; up {up.uploaded_bytes} "
        f"({up.uploaded_bytes / changed_bytes:.3f}), down {down.wire_bytes} ({down.wire_bytes / changed_bytes:.3f}, "
        f"documents {documents}); plan {down.plan}; {platform.machine()}, torch {torch.__version__}"
    )
    assert up.uploaded_bytes / changed_bytes <= MAX_RATIO
    assert (down.wire_bytes - documents) / changed_bytes <= MAX_RATIO
