"""Which shared libraries an ELF file links against, read without loading it."""

from __future__ import annotations

import struct
from pathlib import Path

from wdm_runtime.errors import EngineError

_MAGIC = b"\x7fELF\x02\x01"  # 64 bit, little endian: all that wheels are built for
_SECTION_DYNAMIC, _TAG_NULL, _TAG_NEEDED = 6, 0, 1
_SECTION = struct.Struct("<IIQQQQIIQQ")
_ENTRY = struct.Struct("<QQ")


def needed_libraries(path: Path) -> tuple[str, ...]:
    """The names under NEEDED in a file's dynamic section, in order.

    Raises
    ------
    EngineError
        The file cannot be read, or is no complete 64-bit little-endian ELF file.
    """
    try:
        with path.open("rb") as file:

            def read(offset: int, count: int) -> bytes:
                file.seek(offset)
                data = file.read(count)
                if len(data) != count:
                    raise ValueError(f"it ends before byte {offset + count}")
                return data

            header = read(0, 64)
            if not header.startswith(_MAGIC):
                raise ValueError(f"it starts with {header[:6]!r}")
            (table,) = struct.unpack_from("<Q", header, 40)
            size, count = struct.unpack_from("<HH", header, 58)
            if size != _SECTION.size:
                raise ValueError(f"its section headers have {size} bytes")
            sections = [_SECTION.unpack(read(table + i * size, size)) for i in range(count)]
            names: list[str] = []
            for _, kind, _, _, offset, length, link, _, _, _ in sections:
                if kind == _SECTION_DYNAMIC:
                    text = read(sections[link][4], sections[link][5])
                    names += _needed(read(offset, length), text)
            return tuple(names)
    except (OSError, ValueError, struct.error, IndexError, OverflowError) as error:
        raise EngineError(
            f"{path}: cannot be read as a shared library ({error}); expected a 64-bit "
            "little-endian ELF file. Install its package again."
        ) from error


def _needed(dynamic: bytes, text: bytes) -> list[str]:
    names = []
    for tag, value in _ENTRY.iter_unpack(dynamic):
        if tag == _TAG_NULL:
            break
        if tag == _TAG_NEEDED:
            names.append(text[value : text.index(b"\0", value)].decode())
    return names
