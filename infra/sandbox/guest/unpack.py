"""Unpacks an untrusted `.tar.gz` inside the fence. Standard library alone, started with `python -I -S`.

Its arguments are the descriptors of the archive and of the answer, and what is allowed as JSON.
`/out` is the empty folder to fill. Files and folders only, each opened
beneath `/out` one component at a time without following links, each created anew. `tarfile`'s own
filters are not relied on (CVE-2025-4517). Answers with a byte when it is up, then one JSON object.
"""

import gzip
import json
import os
import resource
import stat
import sys
import tarfile
import zlib


class Refused(Exception):
    pass


def _shown(name):
    return ascii(name[:200])


def _parts(name, limits):
    if "\0" in name or name.startswith("/"):
        raise Refused(f"{_shown(name)}: absolute names are not allowed.")
    if len(name.encode(errors="surrogateescape")) > 1024:
        raise Refused(f"{_shown(name)}: the name is longer than 1024 bytes.")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise Refused(f"{_shown(name)}: '..' is not allowed.")
    if len(parts) > limits["depth"]:
        raise Refused(f"{_shown(name)}: deeper than {limits['depth']} folders.")
    return parts


_made = 0


def _folder(root, parts, most):
    """A descriptor of the folder `parts` beneath `root`, made where it is missing, never through a link."""
    global _made
    here = os.dup(root)
    for part in parts:
        try:
            os.mkdir(part, 0o755, dir_fd=here)
            _made += 1
            if _made > most:
                raise Refused(f"The archive makes more than {most} folders.")
        except FileExistsError:
            pass
        try:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
        finally:
            os.close(here)
        here = below
    return here


def _write(folder, name, source, size, executable, shown):
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        file = os.open(name, flags, 0o755 if executable else 0o644, dir_fd=folder)
    except FileExistsError:
        raise Refused(f"{shown}: is in the archive twice.") from None
    try:
        left = size
        while left:
            chunk = source.read(min(left, 1 << 20))
            if not chunk:
                raise Refused(f"{shown}: the archive ends in the middle of this file.")
            left -= len(chunk)
            while chunk:
                chunk = chunk[os.write(file, chunk) :]
    finally:
        os.close(file)


_KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}


def _unpack(stream, root, limits):
    count = total = 0
    with tarfile.open(fileobj=stream, mode="r|", tarinfo=tarfile.TarInfo) as archive:
        for member in archive:
            count += 1
            if count > limits["entries"]:
                raise Refused(f"The archive has more than {limits['entries']} entries.")
            shown = _shown(member.name)
            parts = _parts(member.name, limits)
            if member.isdir():
                os.close(_folder(root, parts, limits["entries"]))
                continue
            if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE) or member.issparse():
                kind = _KINDS.get(member.type, "sparse" if member.issparse() else "of an unknown kind")
                raise Refused(f"{shown}: is {kind}; only files and folders are allowed.")
            if not parts:
                raise Refused("A file in the archive has no name.")
            if member.size > limits["file"]:
                raise Refused(f"{shown}: is larger than {limits['file']} bytes.")
            total += member.size
            if total > limits["total"]:
                raise Refused(f"{shown}: with it, the files are larger than {limits['total']} bytes together.")
            folder = _folder(root, parts[:-1], limits["entries"])
            try:
                _write(folder, parts[-1], archive.extractfile(member), member.size, member.mode & 0o100, shown)
            finally:
                os.close(folder)
            archive.members = []  # a stream's members are never looked at again
    if not count:
        raise Refused("The archive is empty.")
    return count, total


def _text(root, name, most):
    try:
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=root)
    except OSError:
        return None
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise Refused(f"{name}: is a folder, not a file.")
    with open(file, "rb") as opened:
        data = opened.read(most + 1)
    if len(data) > most:
        raise Refused(f"{name}: is larger than {most} bytes.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refused(f"{name}: is not UTF-8 text (byte {error.start}).") from None


def _found(root, request):
    """The folder that holds the manifest: the top, or the single folder that everything lies in."""
    entries = os.listdir(root)
    for base in ["", *([entries[0]] if len(entries) == 1 else [])]:
        try:
            folder = os.open(base or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=root)
        except NotADirectoryError:
            continue
        for name in request["manifests"]:
            manifest = _text(folder, name, request["max_manifest"])
            if manifest is not None:
                requirements = _text(folder, "requirements.txt", request["max_requirements"])
                return {
                    "root": base,
                    "manifest": manifest,
                    "manifest_name": name,
                    "requirements": requirements,
                }
    return {}


def _run(request):
    root = os.open("/out", os.O_RDONLY | os.O_DIRECTORY)
    try:
        with gzip.GzipFile(fileobj=os.fdopen(int(sys.argv[1]), "rb"), mode="rb") as stream:
            files, size = _unpack(stream, root, request["limits"])
    except Refused as error:
        return {"error": str(error)}
    except gzip.BadGzipFile:
        return {"error": "The file is not a gzip archive."}
    except (EOFError, zlib.error):
        return {"error": "The archive is cut short or damaged."}
    except tarfile.ReadError as error:
        if "unexpected end" in str(error) or "zlib" in str(error):
            return {"error": "The archive is cut short or damaged."}
        return {"error": f"The file is gzip, but holds no tar archive: {error}."}
    except tarfile.TarError as error:
        return {"error": f"The tar archive is damaged: {error}."}
    except (MemoryError, RecursionError):
        return {"error": "A header of the archive is too large."}
    except OSError as error:
        return {"error": f"The archive cannot be unpacked: {error.strerror} ({_shown(str(error.filename))})."}
    except (ValueError, OverflowError) as error:
        return {"error": f"The tar archive is damaged: {error}."}
    try:
        found = _found(root, request)
    except Refused as error:
        return {"error": str(error)}
    return {"files": files, "size": size, **found}


def main():
    answers, request = int(sys.argv[2]), json.loads(sys.argv[3])
    os.write(answers, b"+")
    resource.setrlimit(resource.RLIMIT_DATA, (256 << 20, 256 << 20))
    os.umask(0o022)
    data = json.dumps(_run(request)).encode("ascii", "replace")
    while data:
        data = data[os.write(answers, data) :]
    os._exit(0)


main()
