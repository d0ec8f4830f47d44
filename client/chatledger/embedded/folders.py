"""Where the embedded servers keep their data and their sockets, and who may reach it."""

import contextlib
import hashlib
import os
import stat
import tempfile
from pathlib import Path

import platformdirs

from .errors import EmbeddedError

# PostgreSQL refuses to run as root. For root the servers run as "nobody", by number: no passwd entry is needed.
NOBODY = 65534
# macOS allows 103 bytes, Linux 107.
_LONGEST_SOCKET_PATH = 103


def server_uid() -> int | None:
    """The uid (and gid) to switch to for the servers; None: they run as we do."""
    return NOBODY if os.geteuid() == 0 else None


def blocking_folder(path: Path) -> Path | None:
    """The first part of `path`, from the top, that the servers' user may not pass. What is missing does not block."""
    if server_uid() is None:
        return None
    for part in reversed([path, *path.parents]):
        try:
            info = part.stat()
        except FileNotFoundError:
            return None
        if info.st_uid == NOBODY:
            needed = stat.S_IXUSR
        elif info.st_gid == NOBODY:
            needed = stat.S_IXGRP
        else:
            needed = stat.S_IXOTH
        if not info.st_mode & needed:
            return part
    return None


def require_reachable(path: Path, remedy: str) -> None:
    """Check that the servers' user can get to `path`.

    Args:
        path: A file or folder; what is missing of it does not matter.
        remedy: What to do when not, for the hint.

    Raises:
        EmbeddedError: A folder on the way, which it names, is closed to that user.
    """
    if blocking := blocking_folder(path):
        mode = stat.S_IMODE(blocking.stat().st_mode)
        raise EmbeddedError(
            f"{path} cannot be used: for root, the embedded servers run as uid {NOBODY}, and {blocking} "
            f"(mode {mode:04o}) does not let that user pass",
            hint=f"{remedy}, or allow it: chmod o+x '{blocking}'",
        )


def default_data_dir() -> Path:
    """CHATLEDGER_DATA_DIR, else the user's data folder, else (root, whose home is closed to the servers) /var/lib."""
    if configured := os.environ.get("CHATLEDGER_DATA_DIR"):
        return Path(configured)
    folder = Path(platformdirs.user_data_dir("chatledger"))
    return Path("/var/lib/chatledger") if blocking_folder(folder) else folder


def prepare_data_dir(folder: Path) -> Path:
    """Create the data folder if need be and return its resolved path.

    Raises:
        EmbeddedError: The servers' user cannot get to it.
        OSError: It cannot be made.
    """
    folder = folder.expanduser().resolve()
    remedy = "Choose another data folder (CHATLEDGER_DATA_DIR)"
    require_reachable(folder, remedy)
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        # For root, the servers' user must be able to pass it: from the first moment, since others may start just now.
        folder.mkdir(mode=0o700 if server_uid() is None else 0o711, exist_ok=True)
        if server_uid() is not None:
            folder.chmod(0o711)  # whatever the umask
        require_reachable(folder, remedy)
    return folder


def require_private(folder: Path) -> None:
    """Check that `folder` is a folder (no link) of our own or our servers', closed to others.

    Its name can be guessed and the temporary folder is everybody's, so nothing about an existing one is trusted.

    Raises:
        EmbeddedError: It is not.
        FileNotFoundError: There is none.
    """
    info = folder.lstat()
    owners = {os.geteuid(), server_uid() or os.geteuid()}
    if not stat.S_ISDIR(info.st_mode) or info.st_uid not in owners or stat.S_IMODE(info.st_mode) != 0o700:
        raise EmbeddedError(
            f"{folder} should be a folder of our own with mode 0700, but is {stat.filemode(info.st_mode)} "
            f"of uid {info.st_uid}",
            hint="Remove it, or set TMPDIR to another folder",
        )


def prepare_socket_dir(data_dir: Path) -> Path:
    """Create, or check and empty, the private folder for the sockets of `data_dir`. Only under the data folder's lock.

    Raises:
        EmbeddedError: Its path is too long for a socket, or others can get to it, or the servers' user cannot.
        OSError: It cannot be made or emptied.
    """
    digest = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()).resolve() / f"chatledger-{digest}"
    if len(os.fsencode(folder / "supervisor.sock")) > _LONGEST_SOCKET_PATH:
        raise EmbeddedError(f"{folder} is too long a path for a Unix socket", hint="Set TMPDIR to a shorter folder")
    require_reachable(folder.parent, "Set TMPDIR to another folder")
    uid = server_uid()
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    require_private(folder)
    if uid is not None:
        os.chown(folder, uid, uid, follow_symlinks=False)
    for left_over in folder.iterdir():
        left_over.unlink()
    return folder
