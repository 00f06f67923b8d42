"""The wire format of protocol buffers, as far as event files need it."""

from collections.abc import Iterator


class NoMessageError(ValueError):
    """These bytes are no protocol buffer."""


_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """
    The fields of a message in order: number and value, varints as `int`, everything else as `bytes`.

    Raises:
        NoMessageError: If it is no message.
    """
    position, end = 0, len(data)
    while position < end:
        tag, position = varint(data, position)
        field, kind = tag >> 3, tag & 7
        value: int | bytes
        if kind == _VARINT:
            value, position = varint(data, position)
            yield field, value
            continue
        if kind == _BYTES:
            size, position = varint(data, position)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise NoMessageError(f"wire type {kind} at byte {position}.")
        if position + size > end:
            raise NoMessageError(f"field {field} ends after byte {end}.")
        value, position = data[position : position + size], position + size
        yield field, value


def varint(data: bytes, position: int) -> tuple[int, int]:
    """The number at `position`, and where it ends."""
    result = shift = 0
    while position < len(data):
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
        shift += 7
    raise NoMessageError("it ends within a number.")
