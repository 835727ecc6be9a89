"""The events of one VM or of all, merged by time, as dictionaries with the VM's name added."""

from __future__ import annotations

import heapq
import json
import time
from collections.abc import Iterator
from typing import Any

from casemate import app

POLL_S = 0.5


def merged(reference: str | None, *, follow: bool) -> Iterator[dict[str, Any]]:
    """Events oldest first. Followed without a VM, it goes on for ever and picks up VMs as they come."""
    if reference is not None:
        yield from of_vm(reference, app.inspect(reference)["name"], follow=follow)
        return
    last: dict[str, tuple[str, int]] = {}
    while True:
        rows = app.list_vms()
        streams = [list(_new_ones(row["id"], row["name"], last)) for row in rows]
        yield from heapq.merge(*streams, key=lambda event: str(event["time"]))
        if not follow:
            return
        time.sleep(POLL_S)


def _new_ones(vm_id: str, name: str, last: dict[str, tuple[str, int]]) -> Iterator[dict[str, Any]]:
    """Events that were not given yet: later ones, and of the same millisecond those beyond the number given."""
    seen, count = last.get(vm_id, ("", 0))
    same = 0
    for event in of_vm(vm_id, name, follow=False):
        moment = str(event["time"])
        if moment < seen:
            continue
        if moment == seen:
            same += 1
            if same <= count:
                continue
        last[vm_id] = (moment, last[vm_id][1] + 1 if last.get(vm_id, ("", 0))[0] == moment else 1)
        yield event


def of_vm(reference: str, name: str, *, follow: bool) -> Iterator[dict[str, Any]]:
    """One VM's events; lines that are no event (a log cut by rotation) are passed over."""
    pending = b""
    for piece in app.events(reference, follow=follow):
        *lines, pending = (pending + piece).split(b"\n")
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and isinstance(event.get("time"), str) and "event" in event:
                yield {"time": event.pop("time"), "vm": name, **event}
