"""MetaImage (.mha) and NRRD files: where their voxels lie and how many bytes of them there are.

ITK reads what such a header says without comparing it with the file: a damaged size gives a cut volume, and a file
name in place of `LOCAL` another file.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from pathlib import Path

_MAX_HEADER_BYTES = 1 << 16
_BLOCK = 1 << 22


class TextHeaderError(ValueError):
    """A header that is damaged, names another file, or has an encoding whose length cannot be counted."""


@dataclass(frozen=True)
class Attached:
    """Voxels in the same file.

    Attributes:
        offset: their first byte.
        compressed: whether they are a zlib or gzip stream.
        stream: bytes of the stream, in the header's words; None where it does not say.
    """

    offset: int
    compressed: bool
    stream: int | None = None


def parse_text_header(content: bytes, ending: str) -> Attached:
    """Where the voxels are, by the beginning of a file.

    Args:
        content: its first bytes.
        ending: `.mha` or `.nrrd`.

    Raises:
        TextHeaderError: saying what is wrong.
    """
    return _parse_metaimage(content) if ending == ".mha" else _parse_nrrd(content)


def count_voxel_bytes(path: Path, ending: str, limit: int) -> int:
    """Bytes of voxels in a file, decompressed; counting ends shortly after `most`.

    Raises:
        TextHeaderError: as :func:`parse_text_header`, and for a damaged or unfinished compressed stream.
    """
    with path.open("rb") as file:
        attached = parse_text_header(file.read(_MAX_HEADER_BYTES), ending)
        file.seek(attached.offset)
        if not attached.compressed:
            return path.stat().st_size - attached.offset
        stored = path.stat().st_size - attached.offset
        if attached.stream is not None and attached.stream != stored:
            # ITK would decompress a part and leave the rest as it is in memory.
            raise TextHeaderError(f"{stored} bytes of compressed voxels, its header announces {attached.stream}")
        # Of either kind, zlib's or gzip's.
        stream, count = zlib.decompressobj(zlib.MAX_WBITS | 32), 0
        try:
            while (block := file.read(_BLOCK)) and not stream.eof:
                while block and count <= limit:
                    count += len(stream.decompress(block, _BLOCK))
                    block = stream.unconsumed_tail
                if count > limit:
                    return count
        except zlib.error as error:
            raise TextHeaderError(f"damaged compression ({error})") from error
        if not stream.eof:
            raise TextHeaderError("truncated: its compressed voxels have no end")
        return count


def _parse_metaimage(content: bytes) -> Attached:
    # The field that ends the header, at the beginning of a line.
    end = re.search(rb"(?:^|\n)[ \t]*ElementDataFile[ \t]*=[ \t]*([^\r\n]*?)[ \t]*\r?\n", content)
    if end is None:
        raise TextHeaderError("no header of a MetaImage: no ElementDataFile")
    if end.group(1) != b"LOCAL":
        raise TextHeaderError(f"its voxels are said to be in another file, {_text(end.group(1))}")
    header = content[: end.end()]
    compressed = re.search(rb"(?:^|\n)[ \t]*CompressedData[ \t]*=[ \t]*([^\r\n]*)", header)
    words = b"false" if compressed is None else compressed.group(1).strip().lower()
    if words not in (b"true", b"false"):
        raise TextHeaderError(f"CompressedData {_text(words)}, expected True or False")
    length = re.search(rb"(?:^|\n)[ \t]*CompressedDataSize[ \t]*=[ \t]*(\d{1,18})[ \t]*\r?\n", header)
    if length is None and words == b"true":
        raise TextHeaderError("no CompressedDataSize in spite of CompressedData")
    return Attached(end.end(), words == b"true", None if length is None else int(length.group(1)))


def _parse_nrrd(content: bytes) -> Attached:
    end = re.search(rb"\r?\n\r?\n", content)
    if not content.startswith(b"NRRD000") or end is None:
        raise TextHeaderError("no header of an NRRD file")
    header = content[: end.start()] + b"\n"
    data_file = re.search(rb"\ndata ?file:[ \t]*([^\r\n]*)", header, re.IGNORECASE)
    if data_file is not None:
        raise TextHeaderError(f"its voxels are said to be in another file, {_text(data_file.group(1))}")
    encoding = re.search(rb"\nencoding:[ \t]*([^\r\n]*)", header, re.IGNORECASE)
    words = b"" if encoding is None else encoding.group(1).strip().lower()
    if words not in (b"raw", b"gzip", b"gz"):
        raise TextHeaderError(f"encoding {_text(words)}, expected raw or gzip")
    return Attached(end.end(), words != b"raw")


def _text(words: bytes) -> str:
    return repr(words[:80].decode(errors="replace"))
