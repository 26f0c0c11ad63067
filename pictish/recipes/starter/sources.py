"""Fetching pinned npm packages, and asking Debian for versions."""

import base64
import gzip
import hashlib
import io
import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pictish.io.files import temp_path, write_atomic

_LARGEST_FILE = 64 << 20  # bytes


@dataclass(frozen=True)
class Package:
    """One npm package at one version, with the sha512 its tarball must have (npm's `integrity`, base64)."""

    name: str
    version: str
    sha512: str

    @property
    def spec(self) -> str:
        """Return what `npm pack` is asked for."""
        return f"{self.name}@{self.version}"

    @property
    def tarball(self) -> str:
        """Return the file name `npm pack` writes."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


Fetch = Callable[[Package, Path], None]  # puts the package's tarball into a folder


def npm_pack(package: Package, folder: Path) -> None:
    """Download the package's tarball into a folder with `npm pack`; ValueError when that fails."""
    npm = shutil.which("npm")
    if npm is None:
        raise ValueError(
            f"{package.spec} is downloaded with npm, which is not installed: apt install npm, or give "
            f"--cache a folder that holds {package.tarball}"
        )
    done = subprocess.run(
        [npm, "pack", package.spec, "--pack-destination", str(folder), "--loglevel=error"],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode != 0:
        said = [
            line for line in done.stderr.splitlines() if not re.match(r"npm \S+ (code|syscall|errno) ", line)
        ]
        reason = next((line for line in said if line.strip()), f"exit code {done.returncode}")
        raise ValueError(f"npm could not download {package.spec}: {reason}")


def tarball(package: Package, cache: Path, fetch: Fetch = npm_pack) -> bytes:
    """Return the bytes of the pinned tarball, fetched unless the cache has it; ValueError for other bytes."""
    path = cache / package.tarball
    blob = path.read_bytes() if path.exists() else _fetched(package, path, fetch)
    came = base64.b64encode(hashlib.sha512(blob).digest()).decode()
    if came != package.sha512:
        raise ValueError(
            f"{path} is not {package.spec} as it was pinned: its sha512 is {came[:12]}..., expected "
            f"{package.sha512[:12]}...; delete it to have it downloaded again"
        )
    return blob


def _fetched(package: Package, path: Path, fetch: Fetch) -> bytes:
    """Fetch a tarball into a folder of its own first, so that the cache never has half of one."""
    folder = temp_path(path.with_suffix(".fetch"))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        fetch(package, folder)
        if not (folder / package.tarball).is_file():
            raise ValueError(f"{package.spec} was asked for, but no {package.tarball} came")
        blob = (folder / package.tarball).read_bytes()
        write_atomic(path, blob)
        return blob
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def package_files(
    package: Package, wanted: Callable[[str], bool], cache: Path, fetch: Fetch = npm_pack
) -> dict[str, bytes]:
    """Return the files of a pinned package whose names `wanted` accepts; nothing is unpacked to disk."""
    blob = tarball(package, cache, fetch)
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(blob))) as tar:
        for member in tar:
            name = member.name.removeprefix("package/")
            if not member.isfile() or not wanted(name):
                continue
            if member.size > _LARGEST_FILE:
                raise ValueError(f"{name} of {package.spec} has more than {_LARGEST_FILE:,} bytes")
            file = tar.extractfile(member)
            assert file is not None
            found[name] = file.read()
    return found


def package_members(
    package: Package, members: Sequence[str], cache: Path, fetch: Fetch = npm_pack
) -> list[bytes]:
    """Return those files of a pinned package in the order asked; ValueError when one is missing."""
    found = package_files(package, lambda name: name in members, cache, fetch)
    missing = [name for name in members if name not in found]
    if missing:
        raise ValueError(f"{package.spec} holds no {', '.join(missing)}")
    return [found[name] for name in members]


def package_json(package: Package, members: Sequence[str], cache: Path, fetch: Fetch = npm_pack) -> list[Any]:
    """Return parsed JSON files of a pinned package, in the order asked."""
    return [json.loads(blob) for blob in package_members(package, members, cache, fetch)]


def debian_version(package: str) -> str:
    """Return the installed version of a Debian package, or `unknown` where dpkg does not know it."""
    dpkg = shutil.which("dpkg-query")
    if dpkg is None:
        return "unknown"
    done = subprocess.run(
        [dpkg, "-W", "-f", "${Version}", package], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 and done.stdout.strip() else "unknown"
