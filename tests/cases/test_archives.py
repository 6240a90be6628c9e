"""Test archives and manifests as common tools write them (kind C), through the API and a real build."""

import io
import platform
import tarfile
from typing import Any

import pytest

from tests.support.case_inputs import find_case_folder
from tests.support.clients import DEFAULT_MANIFEST, TenantClient, pack_archive

AGENT_SOURCE = "def handle(p):\n    return 'ran'\n"


async def _build_archive(tenant: TenantClient, data: bytes) -> tuple[str, dict[str, Any]]:
    agent = await tenant.create_agent()
    return str(agent["id"]), await tenant.build_version(agent["id"], data)


async def _build_case(tenant: TenantClient, folder: str, name: str) -> tuple[str, dict[str, Any]]:
    return await _build_archive(tenant, (find_case_folder(folder) / f"{name}.tar.gz").read_bytes())


def _pack_members(*members: tuple[str | tarfile.TarInfo, bytes]) -> bytes:
    """Return a `.tar.gz` whose names are not normalized, in Latin-1 where they are not ASCII."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", format=tarfile.USTAR_FORMAT, encoding="latin-1") as packing:
        for name, data in members:
            member = tarfile.TarInfo(name) if isinstance(name, str) else name
            member.size = len(data)
            packing.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


async def test_requirements_with_many_hashes_are_accepted(shared_tenant: TenantClient) -> None:
    agent_id, version = await _build_case(shared_tenant, "05-requirements-with-many-hashes", "locked")
    assert version["status"] == "ready", version["build_log"]
    assert (await shared_tenant.run_agent(agent_id))["status"] == "completed"
    _, version = await _build_case(shared_tenant, "05-requirements-with-many-hashes", "wrong-line")
    assert version["status"] == "failed"
    assert "requirements.txt, line 5: options are not allowed: '-e .'" in version["error_message"]


@pytest.mark.parametrize("name", ["ds-store-beside", "in-a-package", "macosx-folder"])
async def test_macos_metadata_files_are_ignored(shared_tenant: TenantClient, name: str) -> None:
    agent_id, version = await _build_case(shared_tenant, "06-macos-archive", name)
    assert version["status"] == "ready", version["build_log"]
    assert "Does not compile" not in version["build_log"]
    assert (await shared_tenant.run_agent(agent_id))["status"] == "completed"


async def test_metadata_files_of_every_system_are_ignored(shared_tenant: TenantClient) -> None:
    top_level_litter = [
        "desktop.ini",
        "Thumbs.db",
        "._x",
        ".DS_Store",
        "__MACOSX/x/._agent.py",
        "Icon\r",
        ".Trashes/501/x",
    ]
    nested_litter = ["x/Desktop.ini", "x/._agent.py", "x/.ds_store", "x/pkg/._", "x/$RECYCLE.BIN/a.py"]
    files: dict[str, str | bytes] = dict.fromkeys([*top_level_litter, *nested_litter], b"\x00\x05\x16\x07")
    agent_id, version = await _build_archive(
        shared_tenant, pack_archive({**files, "x/agent.yaml": DEFAULT_MANIFEST, "x/agent.py": AGENT_SOURCE}, None)
    )
    assert version["status"] == "ready", version["build_log"]
    assert "Unpacked 2 entries" in version["build_log"]
    assert "Left out" not in version["build_log"]
    listing_source = "import os\ndef handle(p):\n    return sorted(os.listdir('.'))\n"
    files = {**dict.fromkeys(top_level_litter, b"\x00"), "agent.yaml": DEFAULT_MANIFEST, "agent.py": listing_source}
    agent_id, version = await _build_archive(shared_tenant, pack_archive(files, None))
    assert (await shared_tenant.run_agent(agent_id))["output_data"] == ["__pycache__", "agent.py", "agent.yaml"]


async def test_link_among_metadata_files_is_ignored(shared_tenant: TenantClient) -> None:
    link = tarfile.TarInfo("__MACOSX/x")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc"
    _, version = await _build_archive(
        shared_tenant,
        _pack_members((link, b""), ("agent.yaml", DEFAULT_MANIFEST.encode()), ("agent.py", AGENT_SOURCE.encode())),
    )
    assert version["status"] == "ready", version["build_log"]


async def test_files_beside_the_manifests_folder_are_left_out(shared_tenant: TenantClient) -> None:
    files: dict[str, str | bytes] = {
        "README.md": "x",
        ".git/HEAD": "x",
        "x/agent.yaml": DEFAULT_MANIFEST,
        "x/agent.py": AGENT_SOURCE,
    }
    agent_id, version = await _build_archive(shared_tenant, pack_archive(files, None))
    assert version["status"] == "ready", version["build_log"]
    assert "Left out, as it lies beside the folder of the manifest: .git, README.md." in version["build_log"]
    assert (await shared_tenant.run_agent(agent_id))["output_data"] == "ran"


@pytest.mark.parametrize("name", ["literal", "folded", "emoji", "python-3-10"])
async def test_manifest_fields_of_several_lines_are_accepted(shared_tenant: TenantClient, name: str) -> None:
    _, version = await _build_case(shared_tenant, "07-manifest-of-several-lines", name)
    if name != "python-3-10":
        assert version["status"] == "ready", version["build_log"]
    elif not platform.python_version().startswith("3.10."):
        assert version["status"] == "failed"
        assert "asks for 3.10, and this host runs" in version["error_message"]
        assert "Write it in quotes, as '3.10'" in version["error_message"]


@pytest.mark.parametrize("name", ["utf-16", "utf-8-bom"])
async def test_requirements_in_utf_16_are_accepted(shared_tenant: TenantClient, name: str) -> None:
    agent_id, version = await _build_case(shared_tenant, "19-requirements-in-utf-16", name)
    assert version["status"] == "ready", version["build_log"]
    assert (await shared_tenant.run_agent(agent_id))["output_data"] == {"idna": "3.10"}


BYTE_ORDER_MARKS = {
    "utf-16-be": b"\xfe\xff",
    "utf-16-le": b"\xff\xfe",
    "utf-32-le": b"\xff\xfe\x00\x00",
    "utf-32-be": b"\x00\x00\xfe\xff",
    "utf-8": b"\xef\xbb\xbf",
}


async def test_manifest_is_decoded_by_its_byte_order_mark(shared_tenant: TenantClient) -> None:
    for encoding, mark in BYTE_ORDER_MARKS.items():
        manifest = mark + DEFAULT_MANIFEST.replace("\n", "\r\n").encode(encoding)
        _, version = await _build_archive(
            shared_tenant, pack_archive({"agent.yaml": manifest, "agent.py": AGENT_SOURCE}, None)
        )
        assert version["status"] == "ready", (encoding, version["build_log"])
    unmarked = pack_archive({"agent.py": AGENT_SOURCE, "requirements.txt": "idna\r\n".encode("utf-16-le")})
    _, version = await _build_archive(shared_tenant, unmarked)
    assert "requirements.txt: holds NUL characters" in version["error_message"]
    assert "save it as UTF-8" in version["error_message"]
    _, version = await _build_archive(
        shared_tenant, pack_archive({"agent.py": AGENT_SOURCE, "requirements.txt": b"# a\n# caf\xe9\n"})
    )
    assert "requirements.txt: is not UTF-8 text (byte 9, line 2); save it as UTF-8" in version["error_message"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("direct", "wikipedia is published without a wheel"),
        ("indirect-2", "langdetect is published without a wheel"),
        ("indirect", "sgmllib3k, which feedparser==6.0.11 needs, is published without a wheel"),
    ],
)
async def test_package_without_a_wheel_is_named(shared_tenant: TenantClient, name: str, message: str) -> None:
    _, version = await _build_case(shared_tenant, "20-packages-without-a-wheel", name)
    assert version["status"] == "failed"
    first, _, rest = version["error_message"].partition("\n")
    assert message in first
    assert "or put its modules into the archive" in first
    assert "no usable wheels" in rest, "the installer's own output follows"
    assert "--no-build" not in version["error_message"]
    assert message in version["build_log"]


async def test_archives_of_unusual_tools_are_accepted_or_explained(shared_tenant: TenantClient) -> None:
    folder = "36-archives-made-otherwise"
    ready = {"dots": {}, "hard-link": {}, "latin-1": {}}
    for name in ready:
        agent_id, version = await _build_case(shared_tenant, folder, name)
        assert version["status"] == "ready", (name, version["build_log"])
        assert (await shared_tenant.run_agent(agent_id))["status"] == "completed"
    assert "br\\udcf6ken.py" in version["build_log"], "the file that does not compile is named"
    refused = {
        "twice": ["'main.py': is in the archive twice", "Pack the folder anew"],
        "agent-yml": ["Found agent.yml: rename it to agent.yaml", "main.py"],
        "backslashes": ["win\\agent.yaml", "a backslash is part of a name"],
    }
    for name, messages in refused.items():
        _, version = await _build_case(shared_tenant, folder, name)
        assert version["status"] == "failed"
        for message in messages:
            assert message in version["error_message"], (name, version["error_message"])


async def test_hard_link_copies_an_earlier_member_only(shared_tenant: TenantClient) -> None:
    def build_hard_link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = tarfile.LNKTYPE, target
        return member, b""

    members = [
        ("agent.yaml", DEFAULT_MANIFEST.encode()),
        ("pkg/one.py", AGENT_SOURCE.encode()),
        build_hard_link("agent.py", "./pkg/one.py"),
    ]
    agent_id, version = await _build_archive(shared_tenant, _pack_members(*members))
    assert version["status"] == "ready", version["build_log"]
    assert (await shared_tenant.run_agent(agent_id))["output_data"] == "ran"
    for target, message in {
        "/etc/passwd": "absolute names are not allowed",
        "../../etc/passwd": "'..' is not allowed",
        "later.py": "is a hard link to 'later.py', which is no file before it",
        "pkg": "is a hard link to 'pkg', which is no file before it",
        "": "is a hard link to '', which is no file before it",
        "agent.yaml/x": "is a hard link to 'agent.yaml/x', which is no file before it",
    }.items():
        _, version = await _build_archive(
            shared_tenant, _pack_members(*members[:2], build_hard_link("x.py", target), ("later.py", b""))
        )
        assert version["status"] == "failed"
        assert message in version["error_message"]


async def test_missing_manifest_error_lists_the_archive(shared_tenant: TenantClient) -> None:
    for files, message in [
        ({"Agent.yaml": DEFAULT_MANIFEST, "agent.py": AGENT_SOURCE}, "Found Agent.yaml: rename it to agent.yaml"),
        ({"agent.yaml.txt": DEFAULT_MANIFEST}, "Found agent.yaml.txt: rename it to agent.yaml"),
        (
            {"a/agent.yaml": DEFAULT_MANIFEST, "b/agent.yaml": DEFAULT_MANIFEST},
            "Found a/agent.yaml, b/agent.yaml beside other folders",
        ),
        (
            {"a/agent.yaml": DEFAULT_MANIFEST, "lib/x.py": ""},
            "Found a/agent.yaml beside other folders: pack only that folder",
        ),
        ({f"f{n}": "" for n in range(30)}, "The top level contains: f0, f1, f10"),
        ({"a/b/agent.yaml": DEFAULT_MANIFEST}, "The top level contains: a/."),
        ({"odd\nname \x1b[31m": ""}, "odd\\nname \\x1b[31m"),
    ]:
        _, version = await _build_archive(shared_tenant, pack_archive(dict(files), None))
        assert version["status"] == "failed"
        assert "The archive has no agent.yaml or anymind.yaml at its top level" in version["error_message"]
        assert message in version["error_message"]


async def test_latin_1_names_are_escaped_in_messages(shared_tenant: TenantClient) -> None:
    files = [("agent.yaml", DEFAULT_MANIFEST.encode()), ("agent.py", AGENT_SOURCE.encode())]
    _, version = await _build_archive(
        shared_tenant, _pack_members(*files, ("caf\xe9.py", b"def (:\n"), ("d\xe9/x.txt", b""))
    )
    assert version["status"] == "ready", version["build_log"]
    assert "caf\\udce9.py" in version["build_log"]
    _, version = await _build_archive(shared_tenant, _pack_members(("r\xe9sum\xe9.txt", b"")))
    assert "r\\udce9sum\\udce9.txt" in version["error_message"]
    raising = ("caf\xe9.py", b"raise ValueError(__file__)\n")
    source = b"import importlib\nimportlib.import_module('caf\\udce9')\ndef handle(p): pass\n"
    _, version = await _build_archive(shared_tenant, _pack_members(files[0], ("agent.py", source), raising))
    assert "ValueError: /agent/caf\\udce9.py" in version["error_message"]


async def test_backslashes_in_names_are_explained_when_the_import_fails(shared_tenant: TenantClient) -> None:
    files = {"pkg\\main.py": AGENT_SOURCE}
    _, version = await _build_archive(
        shared_tenant, pack_archive(dict(files), "name: x\nentrypoint: pkg.main:handle\n")
    )
    assert "ModuleNotFoundError" in version["error_message"]
    assert "pkg\\main.py: a backslash is part of a name here" in version["error_message"]


async def test_null_bytes_in_a_source_are_reported_with_the_file(shared_tenant: TenantClient) -> None:
    _, version = await _build_archive(
        shared_tenant, pack_archive({"agent.py": "import pkg.bad\n" + AGENT_SOURCE, "pkg/bad.py": b"x = 1\n\x00\n"})
    )
    assert version["status"] == "failed"
    assert "null bytes" in version["error_message"]
    assert "pkg/bad.py" in version["error_message"]
    assert "Does not compile: pkg/bad.py" in version["build_log"]


async def test_import_is_limited_by_the_manifests_timeout(shared_tenant: TenantClient) -> None:
    slow_source = "import time\ntime.sleep(20)\n" + AGENT_SOURCE
    _, version = await _build_archive(
        shared_tenant, pack_archive({"agent.py": slow_source}, DEFAULT_MANIFEST + "timeout: 2.0\n")
    )
    assert version["status"] == "failed"
    assert "longer than 2 s" in version["error_message"]
