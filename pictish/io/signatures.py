"""What an image file is by its first bytes: the one table for the search and for decoding."""

HEAD = 256  # bytes that `image_format` looks at, at most
PNG = b"\x89PNG\r\n\x1a\n"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the latter two are BigTIFF
_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)  # lengths in bytes
_AVIF_BRANDS = (b"avif", b"avis")
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_SUFFIXES = {"AVIF": "avif", "BMP": "bmp", "GIF": "gif", "HEIF": "heic", "JPEG": "jpg", "PNG": "png"}
_SUFFIXES |= {"TIFF": "tif", "WEBP": "webp"}


def image_format(head: bytes) -> str | None:
    """Pillow's name for the format of a file that begins with `head`; None for one that is not read."""
    if head.startswith(PNG):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head.startswith(_TIFF):
        return "TIFF"
    if head.startswith(b"BM") and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    if head[4:8] == b"ftyp":
        brands = head[8 : min(int.from_bytes(head[:4], "big"), HEAD)]
        if any(brand in brands for brand in _AVIF_BRANDS):
            return "AVIF"
        if any(brand in brands for brand in _HEIF_BRANDS):
            return "HEIF"
    return None


def image_suffix(head: bytes) -> str | None:
    """The usual suffix of images that begin with these bytes; None for anything else."""
    return _SUFFIXES.get(image_format(head) or "")
