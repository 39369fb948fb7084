"""Broken and hostile files, made from good ones: the same ones in every run."""

from __future__ import annotations

import copy
import json
import random
import struct

from trt_native.errors import TrtNativeError


def attempt(call, *arguments, kind=TrtNativeError):
    """What a call returns and None; or None and the error, which must be of this kind."""
    try:
        return call(*arguments), None
    except kind as error:
        return None, error


# Bytes

EDGES = (0, 1, 2, 0x7F, 0x80, 0xFF)


def truncated(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def shortened(rng: random.Random, data: bytes) -> bytes:
    """As a copy that ended early: a few bytes are lacking."""
    return data[: -rng.randint(1, min(64, len(data)))]


def bits_flipped(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def header_flipped(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        changed[rng.randrange(min(64, len(data)))] = rng.choice((*EDGES, rng.randrange(256)))
    return bytes(changed)


def zeroed(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(len(data))
    length = rng.randint(1, len(data) - start)
    return data[:start] + bytes(length) + data[start + length :]


def noise(rng: random.Random, data: bytes) -> bytes:
    return rng.randbytes(rng.choice((0, 1, 3, 31, 32, 33, 1000)))


def extended(rng: random.Random, data: bytes) -> bytes:
    return data + rng.randbytes(rng.choice((1, 7, 4096)))


def cut_out(rng: random.Random, data: bytes) -> bytes:
    start, end = sorted((rng.randrange(len(data)), rng.randrange(len(data))))
    return data[:start] + data[end:]


def repeated(rng: random.Random, data: bytes) -> bytes:
    start, end = sorted((rng.randrange(len(data)), rng.randrange(len(data))))
    return data[:end] + data[start:]


def spliced(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """The start of one file, then the rest of another."""
    return data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :]


def header_swapped(rng: random.Random, data: bytes, other: bytes) -> bytes:
    length = rng.choice((4, 24, 28, 32, 64))
    return other[:length] + data[length:]


BYTES = (
    truncated, shortened, bits_flipped, header_flipped, zeroed, noise, extended, cut_out, repeated,
)  # fmt: skip
SPLICES = (spliced, header_swapped)


def lengths_absurd(rng: random.Random, data: bytes) -> bytes:
    """Eight bytes of the header become a number that no file has as its length."""
    offset = rng.choice((8, 16, 24, 32))
    number = rng.choice((0, 1, 2**31, 2**32, 2**40, 2**63, 2**64 - 1))
    return data[:offset] + struct.pack("<Q", number) + data[offset + 8 :]


# JSON

HOSTILE_VALUES = (
    None, True, False, 0, -1, -2, 2**31, 2**63, 10**400, 1.5, 1e308, "", "x", "-1", "..", "/", "\0",
    "../../../etc/passwd", "/etc/passwd", "$(id)", "'; id; '", "a\nb", "\x1b[2J", "9" * 5000,
    "\ud800", "\N{GREEK SMALL LETTER OMEGA}", "1:2:4", "4:2:1", "1x3x8x8:4x3x8x8", "-1x2",
    [], [[]], {}, {"": ""}, [None], [{}], [-1, -1], ["x"] * 3, {"file": "../x"},
)  # fmt: skip


def json_edited(rng: random.Random, document: object) -> bytes:
    """One to three values of a JSON document removed, doubled or replaced."""
    edited = copy.deepcopy(document)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(edited))
        if not places:
            break
        holder, key = rng.choice(places)
        action = rng.randrange(8)
        if action == 0:
            del holder[key]
        elif action == 1 and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        elif action == 2 and isinstance(holder, dict):
            holder[rng.choice(("", "__class__", "x" * 300, "\x1b[31m"))] = holder.pop(key)
        elif action == 3:
            holder[key] = copy.deepcopy(rng.choice(places)[0])
        else:
            holder[key] = copy.deepcopy(rng.choice(HOSTILE_VALUES))
    return json.dumps(edited).encode()


def json_broken(rng: random.Random, document: object) -> bytes:
    """Text that is JSON only nearly, or far too deep."""
    text = json.dumps(document).encode()
    return rng.choice(
        (
            b"", b"null", b"[]", b"{}", b"1", b'"x"', b"\xff\xfe{}", b"\xef\xbb\xbf" + text,
            b"[" * 100_000, b'{"a":' * 100_000, b"9" * 10_000, b"[1e999, NaN, -Infinity]",
            text[: rng.randrange(len(text))], text + text, text.replace(b",", b"", 1),
            text.replace(b'"', b"'"), b"\0" * 100, text.decode().encode("utf-16"),
        )
    )  # fmt: skip


def _places(node: object):
    """Every container and key in a JSON document."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in list(items):
        yield node, key
        if isinstance(value, (dict, list)):
            yield from _places(value)
