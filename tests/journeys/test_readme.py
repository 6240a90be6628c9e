"""Test that the examples of the READMEs work and that their tables are complete."""

import asyncio
import re
import shutil
from pathlib import Path

import pytest

from scripts.cli import build_parser
from tests.support.clients import TenantClient

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


NEEDS_CURL = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl, as the READMEs' examples do")


async def run_shell_examples(text: str, acme: TenantClient, folder: Path) -> bytes:
    """Run the shell examples of a page with another URL and key; return their output."""
    block = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL))
    exports = f"export URL={str(acme.http.base_url).rstrip('/')} KEY={await acme.create_key()}"
    assert len(re.findall(r"^export URL=.*$", block, flags=re.MULTILINE)) == 1
    script = re.sub(r"^export URL=.*$", exports.replace("\\", ""), block, count=1, flags=re.MULTILINE)
    script = re.sub(r"\b(\w+\.tar\.gz)", lambda match: str(folder / match.group(1)), script)
    process = await asyncio.create_subprocess_exec(
        *("bash", "-euo", "pipefail", "-c", script), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode(errors="replace")
    return output


@NEEDS_CURL
async def test_examples_of_the_newsroom_page_work(acme: TenantClient, tmp_path: Path) -> None:
    output = await run_shell_examples((ROOT / "examples/newsroom/README.md").read_text(), acme, tmp_path)
    # A busy machine may take longer than the page waits.
    execution_id = re.findall(rb'"execution_id":"(\w+)"', output)[-1].decode()
    ended = await acme.wait_for_end(execution_id, 180)
    assert ended["status"] == "completed", ended


@NEEDS_CURL
async def test_examples_of_the_code_review_page_work(acme: TenantClient, tmp_path: Path) -> None:
    output = await run_shell_examples((ROOT / "examples/code_review/README.md").read_text(), acme, tmp_path)
    assert b'"status":"waiting"' in output
    assert b'"status":"completed"' in output
    assert b"mutable-default" in output


@NEEDS_CURL
async def test_shell_examples_of_the_readme_work(acme: TenantClient, tmp_path: Path) -> None:
    output = await run_shell_examples(README, acme, tmp_path)
    assert b'"output_data":{"result":"Hello, Ada!"}' in output
    # The runs of the greeter, the poet, the workflow and the crew.
    assert output.count(b'"status":"completed"') == 4, output
    assert b'"next_run_at":"' in output, "the schedule's next run"


def test_manifest_and_function_of_the_readme_match_the_example() -> None:
    manifest = re.findall(r"```yaml\n# agent.yaml\n(.*?)```", README, re.DOTALL)[0]
    source = re.findall(r"```python\n# hello/main.py\n(.*?)```", README, re.DOTALL)[0]
    assert manifest.strip() in (ROOT / "examples/hello/agent.yaml").read_text()
    assert source.strip() in (ROOT / "examples/hello/hello/main.py").read_text()


def test_every_command_is_in_the_readme_table() -> None:
    commands = build_parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    for command in set(commands or ()) - {"version"}:
        assert f"`paddock {command}" in README, command


def test_every_setting_is_documented() -> None:
    import msgspec

    from infra.settings import Settings, get_variable_name

    documented = (ROOT / "docs/configuration.md").read_text()
    for field in msgspec.structs.fields(Settings):
        name = get_variable_name(field.name).replace("PADDOCK_RATE_LIMIT", "")
        assert f"{name}`" in documented, name


def test_every_make_target_of_the_readme_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^    make (\w+)", README, re.MULTILINE):
        assert f"\n{target}:" in makefile
