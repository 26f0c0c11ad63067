"""Where the starter pictures come from: pinned npm packages and Debian folders, with their licences."""

import base64
import gzip
import hashlib
import io
import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pictish.data.files import temp_path, write_atomic

_LARGEST_JSON = 64 << 20  # bytes


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


@dataclass(frozen=True)
class EmojiSet:
    """An iconify emoji set: its package, its licence as an SPDX name and where its makers are to be named."""

    name: str
    package: Package
    license: str
    attribution: str
    style_test: bool = False


@dataclass(frozen=True)
class FolderSet:
    """A folder of PNG files that a Debian package installs; a .txt file beside one begins with its caption.

    `licenses` are those of single files, by stem, where they are not the package's.
    """

    name: str
    debian: str
    folder: Path
    style: str
    license: str
    attribution: str
    licenses: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Catalogue:
    """Everything the starter data can be made of."""

    labels: Package
    emoji: tuple[EmojiSet, ...]
    folders: tuple[FolderSet, ...]

    def choose(self, names: Sequence[str] | None) -> tuple[str, ...]:
        """Return the sets to build, each once and in the catalogue's order; None: all that can be had here.

        ValueError for a name that is unknown, and for a folder set that is not installed.
        """
        installed = tuple(folder.name for folder in self.folders if folder.folder.is_dir())
        emoji = tuple(source.name for source in self.emoji)
        if names is None:
            return emoji + installed
        known = emoji + tuple(folder.name for folder in self.folders)
        for name in names:
            if name not in known:
                raise ValueError(f"there is no set {name!r} in the starter data; known: {', '.join(known)}")
        for folder in self.folders:
            if folder.name in names and folder.name not in installed:
                raise ValueError(
                    f"the set {folder.name} needs the folder {folder.folder}, which is not there: "
                    f"apt install {folder.debian}"
                )
        return tuple(name for name in known if name in names)


_LABELS = Package(
    "emojibase-data",
    "17.0.0",
    "Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
)

_EMOJI_SETS = (
    EmojiSet(
        "noto",
        Package(
            "@iconify-json/noto",
            "1.2.9",
            "DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
        ),
        "Apache-2.0",
        "https://github.com/googlefonts/noto-emoji",
    ),
    EmojiSet(
        "twemoji",
        Package(
            "@iconify-json/twemoji",
            "1.2.5",
            "uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
        ),
        "CC-BY-4.0",
        "https://github.com/jdecked/twemoji",
    ),
    EmojiSet(
        "fluent-emoji-flat",
        Package(
            "@iconify-json/fluent-emoji-flat",
            "1.2.6",
            "RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
        ),
        "MIT",
        "https://github.com/microsoft/fluentui-emoji",
    ),
    EmojiSet(
        "openmoji",
        Package(
            "@iconify-json/openmoji",
            "1.2.29",
            "vXdhkqcXVSO6suy+m9LbcUM3OdVyuNOtpV8/als/WqfkQIRxevL5Geb/g+6GH/Qwnq1OqksEmaDGTCmZ5nFKJQ==",
        ),
        "CC-BY-SA-4.0",
        "https://openmoji.org",
        style_test=True,
    ),
)

# Stamps whose licence is named in the package's changelog, and is not its GPL-2.0-or-later.
_STAMP_LICENSES = {
    "CC-BY-2.5": ("firetruck", "Mince_Pie"),
    "CC-BY-2.0": ("Roast_turkey",),
    "LicenseRef-public-domain": (
        "Candy_cane_photo_1",
        "Candy_cane_photo_2",
        "Christmas_Tree_photo",
        "f22_raptor",
    ),
    "CC-BY-SA-2.5": ("inukshuk-photo", "pelican", "heron_greatblue", "heron_greatblue_flying"),
    "CC-BY-SA-3.0": (
        "adeenia",
        "anthoorium",
        "appooppanthady",
        "bolsom",
        "chemparathi",
        "chuvanna_plastic_poo",
        "German_Christmas_toy",
    ),
    "GFDL-1.2-no-invariants-or-later": (
        "helmeted_guineafowl",
        "Christmas_pudding",
        "Lightbulb",
        "Apricot_whole",
        "Cherry_Stella",
        "Strawberry2",
        "Woodlouse",
        "Brown_slug",
    ),
}

_FOLDER_SETS = (
    FolderSet(
        "openclipart",
        "openclipart-png",
        Path("/usr/share/openclipart/png"),
        "clip art",
        "CC-PDDC",
        "https://openclipart.org",
    ),
    FolderSet(
        "tuxpaint",
        "tuxpaint-stamps-default",
        Path("/usr/share/tuxpaint/stamps"),
        "stamp",
        "GPL-2.0-or-later",
        "https://tuxpaint.org",
        {stem: license_name for license_name, stems in _STAMP_LICENSES.items() for stem in stems},
    ),
)

CATALOGUE = Catalogue(_LABELS, _EMOJI_SETS, _FOLDER_SETS)

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


def package_json(package: Package, members: Sequence[str], cache: Path, fetch: Fetch = npm_pack) -> list[Any]:
    """Return parsed JSON files of a pinned package, in the order asked; nothing is unpacked to disk."""
    blob = tarball(package, cache, fetch)
    found: dict[str, Any] = {}
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(blob))) as tar:
        for member in tar:
            name = member.name.removeprefix("package/")
            if name not in members or not member.isfile():
                continue
            if member.size > _LARGEST_JSON:
                raise ValueError(f"{name} of {package.spec} has more than {_LARGEST_JSON:,} bytes")
            file = tar.extractfile(member)
            assert file is not None
            found[name] = json.load(file)
    missing = [name for name in members if name not in found]
    if missing:
        raise ValueError(f"{package.spec} holds no {', '.join(missing)}")
    return [found[name] for name in members]


def debian_version(package: str) -> str:
    """Return the installed version of a Debian package, or `unknown` where dpkg does not know it."""
    dpkg = shutil.which("dpkg-query")
    if dpkg is None:
        return "unknown"
    done = subprocess.run(
        [dpkg, "-W", "-f", "${Version}", package], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 and done.stdout.strip() else "unknown"
