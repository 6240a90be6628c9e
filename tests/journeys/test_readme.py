"""The README's commands do what it says, and its table of commands is the command line's."""

import asyncio
import re
import shutil
from pathlib import Path

import pytest

from scripts.cli import parser
from tests.clients import Tenant

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl, as the README's example does")
async def test_the_shell_examples_work(acme: Tenant, tmp_path: Path) -> None:
    block = "\n".join(re.findall(r"```bash\n(.*?)```", README, re.DOTALL))
    exports = f"export URL={acme.http.base_url} KEY={await acme.key()}"
    script = re.sub(r"^export URL=.*$", exports.replace("\\", ""), block, count=1, flags=re.MULTILINE)
    script = script.replace("greeter.tar.gz", str(tmp_path / "greeter.tar.gz"))
    process = await asyncio.create_subprocess_exec(
        *("bash", "-euo", "pipefail", "-c", script), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    assert b'"output_data":{"result":"Hello, Ada!"}' in output
    # The greeter's run and the poet's, the workflow's and the crew's.
    assert output.count(b'"status":"completed"') == 4, output
    assert b'"next_run_at":"' in output, "of the schedule"


def test_the_manifest_and_the_function_are_the_example_s() -> None:
    manifest = re.findall(r"```yaml\n# agent.yaml\n(.*?)```", README, re.DOTALL)[0]
    source = re.findall(r"```python\n# hello/main.py\n(.*?)```", README, re.DOTALL)[0]
    assert manifest.strip() in (ROOT / "examples/hello/agent.yaml").read_text()
    assert source.strip() in (ROOT / "examples/hello/hello/main.py").read_text()


def test_every_command_is_in_the_table() -> None:
    commands = parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    for command in set(commands or ()) - {"version"}:
        assert f"`paddock {command}" in README, command


def test_every_setting_is_documented() -> None:
    import msgspec

    from infra.settings import Settings, variable

    documented = (ROOT / "docs/configuration.md").read_text()
    for field in msgspec.structs.fields(Settings):
        name = variable(field.name).replace("PADDOCK_RATE_LIMIT", "")
        assert f"{name}`" in documented, name


def test_every_make_target_of_the_readme_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^    make (\w+)", README, re.MULTILINE):
        assert f"\n{target}:" in makefile
