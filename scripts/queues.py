"""Show the queues and workers of a running installation (`paddock queues`)."""

import os
import sys
from pathlib import Path

import httpx

from infra.telemetry import escape_controls
from scripts.installation import find_running_installation


def show_queues(data: Path, url: str | None, key: str | None) -> int:
    """Print the queues and workers. Returns an exit code."""
    url, key = url or os.environ.get("PADDOCK_URL"), key or os.environ.get("PADDOCK_API_KEY")
    if url is None or key is None:
        running = find_running_installation(data)
        if running is None:
            print(f"paddock: nothing is running on {data}; give --url and --key.", file=sys.stderr)
            return 1
        url, key = url or running.url, key or running.admin_key
    try:
        answer = httpx.get(f"{url}/api/v1/queues", headers={"X-API-Key": key}, timeout=10)
    except httpx.HTTPError as error:
        print(f"paddock: {url} does not answer: {error}", file=sys.stderr)
        return 1
    if answer.status_code != 200:
        print(f"paddock: {escape_controls(str(answer.json().get('detail', answer.text)))}", file=sys.stderr)
        return 1
    body = answer.json()
    print(f"{'lane':8}{'depth':>8}{'running':>9}{'failed 24h':>12}{'oldest':>10}")
    for lane in body["items"]:
        oldest = "-" if lane["oldest_seconds"] is None else f"{lane['oldest_seconds']:.1f} s"
        print(f"{lane['lane']:8}{lane['depth']:>8}{lane['running']:>9}{lane['failed']:>12}{oldest:>10}")
    for worker in body["workers"]:
        problem = f"  {worker['problem']}" if worker["problem"] else ""
        line = f"worker {worker['id']}: {worker['busy']} of {worker['slots']} slots busy{problem}"
        print(escape_controls(line))
    return 0
