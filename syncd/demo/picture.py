"""The demo in the terminal: versions, predictions and what is happening, drawn with rich while it happens."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from syncd.demo.run import Story

SHOWN_EVENTS = 8


def draw(story: Story) -> Group:
    """The whole picture of this moment."""
    return Group(_flow(story), _versions(story), _predictions(story), _events(story))


def _flow(story: Story) -> Panel:
    flow = "training ─► publisher ─► store ─► edge ─► predictor ─► answers"
    return Panel(Text(flow, justify="center"), title="syncd demo", subtitle=story.phase)


def _size(count: Any) -> str:
    return f"{count / 1e6:,.1f} MB" if isinstance(count, int | float) else "…"


def _versions(story: Story) -> Table:
    table = Table("version", "checkpoint", "over the wire", "written → served", "accuracy", expand=True)
    for version, row in sorted(story.versions.items()):
        seconds = row.get("seconds_to_serve")
        accuracy = row.get("accuracy")
        table.add_row(
            str(version),
            _size(row.get("checkpoint_bytes")),
            _size(row.get("wire_bytes")),
            f"{seconds:.1f} s" if seconds is not None else "…",
            f"{accuracy:.1%}" if accuracy is not None else "…",
        )
    for entry in story.refused:
        table.add_row(
            str(entry["version"]), "", "", "refused by the gate", str(entry["reason"])[:60], style="red"
        )
    return table


def _predictions(story: Story) -> Text:
    seen = story.predictions
    failed = seen.get("failed") or 0
    text = Text(
        f" {seen.get('total') or 0:,} predictions, {failed} failed", style="red" if failed else "green"
    )
    return text.append(f" · p50 {seen.get('p50_ms')} ms · p99 {seen.get('p99_ms')} ms", style="default")


def _events(story: Story) -> Text:
    lines = [f" {at:5.1f} s  {what}" for at, what in story.events[-SHOWN_EVENTS:]]
    lines.append(f" {time.time() - story.started:5.1f} s")
    return Text("\n".join(lines), style="dim")
