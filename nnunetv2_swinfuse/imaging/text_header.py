"""MetaImage (.mha) and NRRD files: where their voxels lie, how many bytes there are, and what the header leaves open.

ITK reads what such a header says without comparing it with the file: a damaged size gives a cut volume, and a file
name in place of `LOCAL` another file. What the header does not say, ITK replaces by LPS axes and voxels of 1 mm.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_swinfuse.imaging.grid import HeaderProblem

MAX_HEADER_BYTES = 1 << 16
_BLOCK = 1 << 22
# The spaces of NRRD whose axes ITK knows, by name and by abbreviation; it takes all others for LPS.
_SPACES = {b"right-anterior-superior", b"ras", b"left-anterior-superior", b"las", b"left-posterior-superior", b"lps"}
_UNITS = {b"mm", b"millimeter", b"millimeters", b"millimetre", b"millimetres", b""}
# MetaImage's names of the same property.
_SAME = ((b"TransformMatrix", b"Rotation", b"Orientation"), (b"Offset", b"Position", b"Origin"))
_EXPORT = "Export it again, or set it with the images at hand that show left and right."


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


def find_header_problems(content: bytes, ending: str) -> Iterator[HeaderProblem]:
    """What a header does not say about orientation and voxel size, says twice, or says in a unit that ITK ignores.

    Args:
        content: the first bytes of a file.
        ending: `.mha` or `.nrrd`.

    Raises:
        TextHeaderError: as :func:`parse_text_header`.
    """
    header = content[: parse_text_header(content, ending).offset]
    return _metaimage_problems(header) if ending == ".mha" else _nrrd_problems(header)


def count_voxel_bytes(path: Path, ending: str, limit: int) -> int:
    """Bytes of voxels in a file, decompressed; counting ends shortly after `limit`.

    Raises:
        TextHeaderError: as :func:`parse_text_header`, and for a damaged or unfinished compressed stream.
    """
    with path.open("rb") as file:
        attached = parse_text_header(file.read(MAX_HEADER_BYTES), ending)
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
    end = re.search(rb"(?:^|\n)[ \t]*ElementDataFile[ \t]*[=:][ \t]*([^\r\n]*?)[ \t]*\r?\n", content)
    if end is None:
        raise TextHeaderError("no header of a MetaImage: no ElementDataFile")
    if end.group(1) != b"LOCAL":
        raise TextHeaderError(f"its voxels are said to be in another file, {_text(end.group(1))}")
    header = content[: end.end()]
    fields = _metaimage_fields(header)
    for begin in fields.get(b"HeaderSize", []):
        if begin not in (b"0", b"-1"):
            # ITK looks there for the voxels, also in the middle of the header.
            raise TextHeaderError(f"HeaderSize {_text(begin)}, expected none: voxels follow the header")
    words = fields.get(b"CompressedData", [b"false"])[-1].lower()
    if words not in (b"true", b"false"):
        raise TextHeaderError(f"CompressedData {_text(words)}, expected True or False")
    length = fields.get(b"CompressedDataSize", [b""])[-1]
    known = length.isdigit() and len(length) <= 18
    if not known and words == b"true":
        raise TextHeaderError("no CompressedDataSize in spite of CompressedData")
    return Attached(end.end(), words == b"true", int(length) if known else None)


def _parse_nrrd(content: bytes) -> Attached:
    end = re.search(rb"\r?\n\r?\n", content)
    if not content.startswith(b"NRRD000") or end is None:
        raise TextHeaderError("no header of an NRRD file")
    header = content[: end.start()]
    data_file = _nrrd_field(header, b"data file")
    if data_file is not None:
        raise TextHeaderError(f"its voxels are said to be in another file, {_text(data_file)}")
    words = (_nrrd_field(header, b"encoding") or b"").lower()
    if words not in (b"raw", b"gzip", b"gz"):
        raise TextHeaderError(f"encoding {_text(words)}, expected raw or gzip")
    return Attached(end.end(), words != b"raw")


def _metaimage_problems(header: bytes) -> Iterator[HeaderProblem]:
    fields = _metaimage_fields(header)
    if fields.keys().isdisjoint(_SAME[0]):
        yield HeaderProblem("no TransformMatrix: the file does not say how its axes lie in the body", _EXPORT)
    if fields.keys().isdisjoint((b"ElementSpacing", b"ElementSize")):
        yield HeaderProblem("no ElementSpacing: the file does not say how large its voxels are", _EXPORT)
    for unit in fields.get(b"DistanceUnits", []):
        # MetaImage has a word for an unknown unit.
        if unit.lower() not in _UNITS | {b"?"}:
            yield _other_unit(f"DistanceUnits {_text(unit)}")
    others = fields.keys() - {name for names in _SAME for name in names} - {b"Comment"}
    for names in (*_SAME, *((name,) for name in sorted(others))):
        found = [(name, value) for name in names for value in fields.get(name, [])]
        if len({_numbers(value) for _, value in found}) > 1:
            words = " and ".join(f"{name.decode(errors='replace')} {_text(value)}" for name, value in found)
            yield HeaderProblem(f"{words}: programs differ in which one they read", _EXPORT)


def _metaimage_fields(header: bytes) -> dict[bytes, list[bytes]]:
    """The values of every field, in the order of their lines. ITK reads the last one, also behind a colon."""
    fields: dict[bytes, list[bytes]] = {}
    for name, value in re.findall(rb"^[ \t]*([^\s=:]+)[ \t]*[=:][ \t]*([^\r\n]*)", header, re.MULTILINE):
        fields.setdefault(name, []).append(value.strip())
    return fields


def _numbers(value: bytes) -> tuple[float, ...] | bytes:
    """The numbers of a field, so that 1 and 1.0 are the same; the text of another field."""
    try:
        return tuple(map(float, value.split()))
    except ValueError:
        return value


def _nrrd_problems(header: bytes) -> Iterator[HeaderProblem]:
    space, directions = _nrrd_field(header, b"space"), _nrrd_field(header, b"space directions")
    if space is None or space.lower() not in _SPACES or directions is None:
        found = f"space {_text(space)}" if space is not None else "no space"
        found += ", no space directions" if directions is None else ""
        yield HeaderProblem(f"{found}: the file does not say how its axes lie in the body", _EXPORT)
    for name in (b"space units", b"units"):
        units = re.findall(rb'"([^"]*)"', _nrrd_field(header, name) or b"")
        if not {unit.strip().lower() for unit in units} <= _UNITS:
            yield _other_unit(f"{name.decode()} {' '.join(map(_text, units))}")


def _other_unit(found: str) -> HeaderProblem:
    return HeaderProblem(f"{found}, expected mm: ITK takes its numbers for mm", "Convert it to millimetres.")


def _nrrd_field(header: bytes, name: bytes) -> bytes | None:
    """Value of a field; None where there is none. `name:=value` is a key of the writer's own, no field."""
    found = re.search(rb"\n" + name.replace(b" ", b" ?") + rb":(?!=)[ \t]*([^\r\n]*)", header, re.IGNORECASE)
    return None if found is None else found.group(1).strip()


def _text(words: bytes) -> str:
    return repr(words[:80].decode(errors="replace"))
