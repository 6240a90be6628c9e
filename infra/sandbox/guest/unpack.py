"""Unpack an untrusted `.tar.gz` inside the fence. Standard library alone, started with `python -I -S`.

Its arguments are the descriptors of the archive and of the answer, and the request as JSON.
`/out` is the empty folder to fill. Files and folders only, each opened
beneath `/out` one component at a time without following links, each created anew. `tarfile`'s own
filters are not relied on (CVE-2025-4517). Answers with a byte when it is up, then one JSON object.
A hard link becomes a copy of its file. Files that operating systems put beside people's files are left out.
"""

import codecs
import gzip
import json
import os
import resource
import stat
import sys
import tarfile
import zlib


class ArchiveRefused(Exception):
    pass


# Files that macOS, Windows and file managers leave in folders, in lower case; besides `._*`, macOS's resource forks.
LITTER_NAMES = frozenset(
    {
        *(".ds_store", "__macosx", ".appledouble", ".apdisk", ".fseventsd", ".localized", ".spotlight-v100"),
        *(".temporaryitems", ".trashes", ".volumeicon.icns", "icon\r", "$recycle.bin", "desktop.ini", "ehthumbs.db"),
        *("system volume information", "thumbs.db", "thumbs.db:encryptable", ".directory", "@eadir"),
    }
)
MAX_LISTED_NAMES = 40


def _quote_name(name):
    return ascii(name[:200])


def _is_litter(parts):
    return any(part.startswith("._") or part.lower() in LITTER_NAMES for part in parts)


def _escape_name(name):
    # A name that is no UTF-8 has halves of surrogate pairs, which no answer can hold, and others steer terminals.
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in name[:200])


def _split_name(name, limits):
    if "\0" in name or name.startswith("/"):
        raise ArchiveRefused(f"{_quote_name(name)}: absolute names are not allowed.")
    if len(name.encode(errors="surrogateescape")) > 1024:
        raise ArchiveRefused(f"{_quote_name(name)}: the name is longer than 1024 bytes.")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ArchiveRefused(f"{_quote_name(name)}: '..' is not allowed.")
    if len(parts) > limits["depth"]:
        raise ArchiveRefused(f"{_quote_name(name)}: deeper than {limits['depth']} folders.")
    return parts


_folder_count = 0


def _open_folder(root, parts, max_folders):
    """Return a descriptor of the folder `parts` beneath `root`, created where it is missing, never through a link."""
    global _folder_count
    folder = os.dup(root)
    for part in parts:
        try:
            os.mkdir(part, 0o755, dir_fd=folder)
            _folder_count += 1
            if _folder_count > max_folders:
                raise ArchiveRefused(f"The archive makes more than {max_folders} folders.")
        except FileExistsError:
            pass
        try:
            child = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        finally:
            os.close(folder)
        folder = child
    return folder


def _write_file(folder, name, source, size, executable, quoted):
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        file = os.open(name, flags, 0o755 if executable else 0o644, dir_fd=folder)
    except FileExistsError:
        problem = "is in the archive twice. Pack the folder anew: `tar -r` adds a file and replaces none."
        raise ArchiveRefused(f"{quoted}: {problem}") from None
    try:
        left = size
        while left:
            chunk = source.read(min(left, 1 << 20))
            if not chunk:
                raise ArchiveRefused(f"{quoted}: the archive ends in the middle of this file.")
            left -= len(chunk)
            while chunk:
                chunk = chunk[os.write(file, chunk) :]
    finally:
        os.close(file)


def _open_link_target(root, member, limits, quoted):
    """Open the regular file, unpacked before, that a hard link names."""
    parts = _split_name(member.linkname, limits)
    problem = f"{quoted}: is a hard link to {_quote_name(member.linkname)}, which is no file before it in the archive."
    folder = os.dup(root)
    try:
        for part in parts[:-1]:
            child = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            os.close(folder)
            folder = child
        file = os.open(parts[-1] if parts else ".", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        raise ArchiveRefused(problem) from None
    finally:
        os.close(folder)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise ArchiveRefused(problem)
    return open(file, "rb")


_TYPE_NAMES = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}


class _Unpacker:
    """Unpack the members of one archive beneath a folder, within limits."""

    def __init__(self, archive, root, limits):
        self._archive, self._root, self._limits = archive, root, limits
        self.count = self.total = 0
        self.backslashes = []
        self._litter_count = self._litter_bytes = 0

    def unpack_member(self, member):
        limits, quoted = self._limits, _quote_name(member.name)
        parts = _split_name(member.name, limits)
        if limits["skip_litter"] and _is_litter(parts):
            self._skip_litter(member, quoted)
            return
        self.count += 1
        if self.count > limits["entries"]:
            raise ArchiveRefused(f"The archive has more than {limits['entries']} entries.")
        if "\\" in member.name and len(self.backslashes) < MAX_LISTED_NAMES:
            self.backslashes.append(_escape_name(member.name))
        if member.isdir():
            os.close(_open_folder(self._root, parts, limits["entries"]))
            return
        source, size, mode = self._open_member(member, quoted)
        if not parts:
            raise ArchiveRefused("A file in the archive has no name.")
        if size > limits["file"]:
            raise ArchiveRefused(f"{quoted}: is larger than {limits['file']} bytes.")
        self.total += size
        if self.total > limits["total"]:
            raise ArchiveRefused(f"{quoted}: with it, the files are larger than {limits['total']} bytes together.")
        folder = _open_folder(self._root, parts[:-1], limits["entries"])
        try:
            with source:
                _write_file(folder, parts[-1], source, size, mode & 0o100, quoted)
        finally:
            os.close(folder)

    def _skip_litter(self, member, quoted):
        # Litter counts for nothing, but reading past it takes time as well.
        self._litter_count += 1
        self._litter_bytes += member.size
        if self._litter_count > self._limits["entries"] or self._litter_bytes > self._limits["total"]:
            raise ArchiveRefused(
                f"{quoted}: the archive has too many files like .DS_Store or Thumbs.db; leave them out."
            )

    def _open_member(self, member, quoted):
        if member.islnk():
            source = _open_link_target(self._root, member, self._limits, quoted)
            return source, os.fstat(source.fileno()).st_size, os.fstat(source.fileno()).st_mode
        if member.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE) and not member.issparse():
            return self._archive.extractfile(member), member.size, member.mode
        kind = _TYPE_NAMES.get(member.type, "sparse" if member.issparse() else "of an unknown kind")
        advice = " `tar --dereference` packs what links lead to." if member.issym() else ""
        raise ArchiveRefused(f"{quoted}: is {kind}; only files and folders are allowed.{advice}")


def _unpack_archive(stream, root, limits):
    with tarfile.open(fileobj=stream, mode="r|", tarinfo=tarfile.TarInfo) as archive:
        unpacker = _Unpacker(archive, root, limits)
        for member in archive:
            archive.members = []  # a stream's members are never read again
            unpacker.unpack_member(member)
    if not unpacker.count:
        raise ArchiveRefused("The archive is empty.")
    return {"files": unpacker.count, "size": unpacker.total, "backslashes": unpacker.backslashes}


# The longer mark first: it begins with the shorter one's.
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def _decode_text(name, data):
    """Return text in the encoding of its byte order mark, else UTF-8."""
    encoding = next((encoding for mark, encoding in _BYTE_ORDER_MARKS if data.startswith(mark)), "utf-8-sig")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        problem = f"is not {encoding.removesuffix('-sig').upper()} text (byte {error.start}, line {line})"
        raise ArchiveRefused(f"{name}: {problem}; save it as UTF-8.") from None
    if "\0" in text:
        raise ArchiveRefused(f"{name}: holds NUL characters, as UTF-16 without a mark does; save it as UTF-8.")
    return text


def _read_text(root, name, max_bytes):
    try:
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=root)
    except OSError:
        return None
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise ArchiveRefused(f"{name}: is a folder, not a file.")
    with open(file, "rb") as content:
        data = content.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ArchiveRefused(f"{name}: is larger than {max_bytes} bytes.")
    return _decode_text(name, data)


def _open_subfolder(root, name):
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)


def _read_manifest(folder, request):
    for name in request["manifests"]:
        manifest = _read_text(folder, name, request["max_manifest"])
        if manifest is not None:
            requirements = _read_text(folder, "requirements.txt", request["max_requirements"])
            return {"manifest": manifest, "manifest_name": name, "requirements": requirements}
    return None


def _find_manifest(root, request):
    """Find the folder that holds the manifest: the top, or the only folder there; files beside it do not matter."""
    at_top = _read_manifest(root, request)
    if at_top is not None:
        return {**at_top, "root": ""}
    entries = sorted(os.listdir(root))
    folders = [name for name in entries if stat.S_ISDIR(os.stat(name, dir_fd=root, follow_symlinks=False).st_mode)]
    visible = [name for name in folders if not name.startswith(".")] or folders
    if len(visible) == 1:
        folder = _open_subfolder(root, visible[0])
        answer = _read_manifest(folder, request)
        os.close(folder)
        if answer is not None:
            left_out = [_escape_name(name) for name in entries if name != visible[0]]
            return {
                **answer,
                "root": _make_name_printable(root, visible[0], entries),
                "left_out": left_out[:MAX_LISTED_NAMES],
            }
    nested = []
    for name in visible[:MAX_LISTED_NAMES]:
        folder = _open_subfolder(root, name)
        nested += [f"{_escape_name(name)}/{entry}" for entry in os.listdir(folder) if entry in request["manifests"]]
        os.close(folder)
    top = [_escape_name(name) + ("/" if name in folders else "") for name in entries[:MAX_LISTED_NAMES]]
    return {"top": top, "nested": nested}


def _make_name_printable(root, name, entries):
    """Return the folder's name, renamed if its name is not printable: an answer holds printable names alone."""
    if _escape_name(name) == name:
        return name
    plain = next(candidate for candidate in ("agent", "agent_", "agent__") if candidate not in entries)
    os.rename(name, plain, src_dir_fd=root, dst_dir_fd=root)
    return plain


def _answer_request(request):
    root = os.open("/out", os.O_RDONLY | os.O_DIRECTORY)
    try:
        with gzip.GzipFile(fileobj=os.fdopen(int(sys.argv[1]), "rb"), mode="rb") as stream:
            contents = _unpack_archive(stream, root, request["limits"])
    except ArchiveRefused as error:
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
        return {"error": f"The archive cannot be unpacked: {error.strerror} ({_quote_name(str(error.filename))})."}
    except (ValueError, OverflowError) as error:
        return {"error": f"The tar archive is damaged: {error}."}
    try:
        manifest = _find_manifest(root, request)
    except ArchiveRefused as error:
        return {"error": str(error)}
    return {**contents, **manifest}


def unpack_upload():
    answers, request = int(sys.argv[2]), json.loads(sys.argv[3])
    os.write(answers, b"+")
    resource.setrlimit(resource.RLIMIT_DATA, (256 << 20, 256 << 20))
    os.umask(0o022)
    data = json.dumps(_answer_request(request)).encode("ascii", "replace")
    while data:
        data = data[os.write(answers, data) :]
    os._exit(0)


unpack_upload()
