"""Broken and malicious NIfTI files, made from one small sound CT. The same seed makes the same files."""

from __future__ import annotations

import gzip
import random
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tests.hostile.damage import flipped

SHAPE = (24, 20, 16)
_FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-30, 1e-7, 1e5, 1e30, -3.4e38, float("nan"), float("inf"), float("-inf"))
_SHORTS = (0, 1, 2, 3, 7, 8, 15, 255, 256, 512, 1000, 32767, -1, -2, -32768)
_DATATYPES = (0, 1, 2, 4, 8, 16, 32, 64, 128, 255, 256, 512, 768, 1024, 1280, 1536, 1792, 2048, 2304, 77, -4)

# Offsets of the NIfTI-1 header (nifti1.h).
_SHORT_FIELDS = {f"dim[{i}]": 40 + 2 * i for i in range(8)} | {
    "intent_code": 68,
    "datatype": 70,
    "bitpix": 72,
    "slice_start": 74,
    "slice_end": 120,
    "qform_code": 252,
    "sform_code": 254,
}
_FLOAT_FIELDS = (
    {f"pixdim[{i}]": 76 + 4 * i for i in range(8)}
    | {"vox_offset": 108, "scl_slope": 112, "scl_inter": 116, "cal_max": 124, "cal_min": 128}
    | {f"quatern_{name}": 256 + 4 * i for i, name in enumerate("bcd")}
    | {f"qoffset_{name}": 268 + 4 * i for i, name in enumerate("xyz")}
    | {f"srow[{i}]": 280 + 4 * i for i in range(12)}
)
_BYTE_FIELDS = {"dim_info": 39, "slice_code": 122, "xyzt_units": 123, "regular": 38}


@dataclass(frozen=True)
class Mutant:
    """One input.

    Attributes:
        name: what was done to it, usable as a case id.
        data: the bytes of `file`.
        file: the file's name in its case folder.
    """

    name: str
    data: bytes
    file: str = "ct.nii.gz"


def sound_ct() -> bytes:
    """An uncompressed NIfTI-1 CT in HU: air, soft tissue, a block of bone; oblique by nothing."""
    rng = np.random.default_rng(3)
    voxels = rng.normal(40, 20, SHAPE)
    voxels[:3], voxels[10:14, 8:12] = -1000, 700
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *SHAPE, 1, 1, 1, 1)
    struct.pack_into("<hh", header, 70, 4, 16)
    struct.pack_into("<8f", header, 76, 1, 2.0, 2.5, 3.0, 0, 0, 0, 0)
    struct.pack_into("<fff", header, 108, 352, 1, 0)
    header[123] = 2
    struct.pack_into("<hh", header, 252, 1, 1)
    struct.pack_into("<6f", header, 256, 0, 0, 0, -20, -30, -40)
    struct.pack_into("<12f", header, 280, 2, 0, 0, -20, 0, 2.5, 0, -30, 0, 0, 3, -40)
    header[344:348] = b"n+1\0"
    return bytes(header) + voxels.astype("<i2").tobytes(order="F")


def mutants(seed: int = 600) -> Iterator[Mutant]:
    """All of them, each name once."""
    ct = sound_ct()
    yield Mutant("sound", gzip.compress(ct, 1))
    yield Mutant("sound-plain", ct, "ct.nii")
    yield from _fields(ct)
    yield from _several_fields(ct, random.Random(seed))
    yield from _lengths(ct, random.Random(seed + 1))
    yield from _flips(ct, random.Random(seed + 2))
    yield from _streams(ct)
    yield from _voxels(ct)
    yield from _strangers()


def _packed(ct: bytes, offset: int, form: str, value: float) -> bytes:
    changed = bytearray(ct)
    struct.pack_into(form, changed, offset, value)
    return gzip.compress(bytes(changed), 1)


def _fields(ct: bytes) -> Iterator[Mutant]:
    """Every field of the header set to values that it must not, or may just, have."""
    for name, offset in _SHORT_FIELDS.items():
        values = _DATATYPES if name == "datatype" else _SHORTS
        for value in dict.fromkeys(values):
            yield Mutant(_id(name, value), _packed(ct, offset, "<h", value))
    for name, offset in _FLOAT_FIELDS.items():
        for number, value in enumerate(_FLOATS):
            yield Mutant(_id(name, f"{number}-{value}"), _packed(ct, offset, "<f", value))
    for name, offset in _BYTE_FIELDS.items():
        for value in (0, 1, 2, 3, 4, 8, 16, 127, 255):
            yield Mutant(_id(name, value), _packed(ct, offset, "<B", value))
    for value in (0, 1, 347, 349, 540, 352, -1, 2**31 - 1, 1543569408):  # the last is 348 of the other order
        yield Mutant(_id("sizeof_hdr", value), _packed(ct, 0, "<i", value))
    for magic in (b"ni1\0", b"n+2\0", b"n+1x", b"\0\0\0\0", b"N+1\0"):
        yield Mutant(f"magic-{magic.hex()}", gzip.compress(ct[:344] + magic + ct[348:], 1))


def _several_fields(ct: bytes, chance: random.Random) -> Iterator[Mutant]:
    """Several fields at once, drawn."""
    fields = [(offset, "<h", _SHORTS) for offset in _SHORT_FIELDS.values()]
    fields += [(offset, "<f", _FLOATS) for offset in _FLOAT_FIELDS.values()]
    for number in range(150):
        changed = bytearray(ct)
        for offset, form, values in chance.sample(fields, chance.randint(2, 6)):
            struct.pack_into(form, changed, offset, chance.choice(values))  # type: ignore[arg-type]
        yield Mutant(f"several-{number:03}", gzip.compress(bytes(changed), 1))


def _lengths(ct: bytes, chance: random.Random) -> Iterator[Mutant]:
    """Too short, too long, at every kind of place; compressed and not."""
    packed = gzip.compress(ct, 1)
    for size in sorted({0, 1, 2, 3, 10, 18, 100, 347, 348, 351, 352, 353, len(ct) - 1, len(ct) - 2}):
        yield Mutant(f"cut-plain-{size}", ct[:size], "ct.nii")
        yield Mutant(f"cut-inside-{size}", gzip.compress(ct[:size], 1))
    for size in sorted(
        {*(chance.randrange(len(packed)) for _ in range(40)), len(packed) - 1, len(packed) - 8}
    ):
        yield Mutant(f"cut-stream-{size}", packed[:size])
    for extra in (1, 2, 1000, 100_000):
        yield Mutant(f"longer-plain-{extra}", ct + bytes(extra), "ct.nii")
        yield Mutant(f"longer-inside-{extra}", gzip.compress(ct + bytes(extra), 1))
        yield Mutant(f"longer-stream-{extra}", packed + bytes(extra))


def _flips(ct: bytes, chance: random.Random) -> Iterator[Mutant]:
    """Single bits turned over, in the header, in the voxels and in the compressed stream."""
    packed = gzip.compress(ct, 1)
    for number in range(120):
        yield Mutant(f"flip-header-{number:03}", gzip.compress(flipped(ct, chance.randrange(348 * 8)), 1))
    for number in range(80):
        yield Mutant(f"flip-stream-{number:03}", flipped(packed, chance.randrange(len(packed) * 8)))


def _streams(ct: bytes) -> Iterator[Mutant]:
    """Compression that is odd, or a bomb: little to read, much to hold."""
    packed = gzip.compress(ct, 1)
    yield Mutant("twice-compressed", gzip.compress(packed, 1))
    yield Mutant("two-members", gzip.compress(ct[:500], 1) + gzip.compress(ct[500:], 1))
    yield Mutant("many-members", b"".join(gzip.compress(ct[i : i + 16], 1) for i in range(0, len(ct), 16)))
    yield Mutant("empty-members", gzip.compress(b"") * 5000 + packed)
    yield Mutant("wrong-crc", packed[:-8] + b"\1\2\3\4" + packed[-4:])
    yield Mutant("wrong-size-at-the-end", packed[:-4] + (len(ct) + 7).to_bytes(4, "little"))
    yield Mutant("zlib-not-gzip", zlib.compress(ct))
    yield Mutant("gzip-named-plain", packed, "ct.nii")
    yield Mutant("plain-named-gzip", ct)
    yield Mutant("bomb-behind-the-voxels", gzip.compress(ct, 1) + gzip.compress(bytes(1 << 28), 9))
    yield Mutant("bomb-inside", gzip.compress(ct + bytes(1 << 28), 9))
    yield Mutant("bomb-of-one-gibibyte", gzip.compress(_announcing(ct, 1024, 1024, 512) + bytes(1 << 30), 1))
    yield Mutant("bomb-of-the-largest-size", _zeros(_announcing(ct, 1024, 1024, 1024), 2048))
    yield Mutant("bomb-beyond-its-header", _zeros(_announcing(ct, 1024, 1024, 512), 2048))
    yield Mutant("bomb-of-doubles", _zeros(_as_type(_announcing(ct, 1024, 1024, 256), 64, 64), 2048))
    yield Mutant("bomb-scaled", _zeros(_scaled(_as_type(_announcing(ct, 1024, 1024, 512), 2, 8)), 512))
    yield Mutant("bomb-scaled-beyond", _zeros(_scaled(_as_type(_announcing(ct, 1024, 1024, 513), 2, 8)), 513))
    yield Mutant("members-without-end", gzip.compress(b"") * 200_000 + packed)
    for shape in ((32767, 32767, 32767), (2048, 2048, 512), (30000, 300, 300), (1, 1, 32767), (32767, 1, 1)):
        yield Mutant(f"announces-{'x'.join(map(str, shape))}", gzip.compress(_announcing(ct, *shape) + ct, 1))


def _announcing(ct: bytes, *shape: int) -> bytes:
    header = bytearray(ct[:352])
    struct.pack_into("<3h", header, 42, *shape)
    return bytes(header)


def _zeros(head: bytes, mib: int) -> bytes:
    """A header and so many MiB of zeros, in one gzip stream: 1000 times smaller."""
    packing = zlib.compressobj(1, wbits=31)
    packed = [packing.compress(head), *(packing.compress(bytes(1 << 20)) for _ in range(mib))]
    return b"".join(packed) + packing.flush()


def _as_type(head: bytes, datatype: int, bits: int) -> bytes:
    return head[:70] + struct.pack("<hh", datatype, bits) + head[74:]


def _scaled(head: bytes) -> bytes:
    return head[:112] + struct.pack("<ff", 3.0, -1000.0) + head[120:]


def _voxels(ct: bytes) -> Iterator[Mutant]:
    """Values that are none, or mean something else."""
    count = int(np.prod(SHAPE))
    real = np.frombuffer(ct, "<i2", offset=352).astype("<f4")
    for name, value in (("nan", np.nan), ("inf", np.inf), ("huge", 3e38)):
        for where in (0, count // 2, count - 1):
            changed = real.copy()
            changed[where] = value
            yield Mutant(f"voxel-{name}-{where}", _as(ct, changed, 16, 32))
    yield Mutant("voxels-all-nan", _as(ct, np.full(count, np.nan, "<f4"), 16, 32))
    yield Mutant("voxels-float64", _as(ct, real.astype("<f8"), 64, 64))
    yield Mutant("voxels-all-alike", _as(ct, np.zeros(count, "<i2"), 4, 16))
    yield Mutant("voxels-a-mask", _as(ct, (real > 300).astype("u1"), 2, 8))
    yield Mutant("voxels-scaled-to-one", _as(ct, ((real + 1000) / 1700).astype("<f4"), 16, 32))
    yield Mutant("voxels-colour", _as(ct, np.zeros(3 * count, "u1"), 128, 24))
    yield Mutant("voxels-complex", _as(ct, real.astype("<c8"), 32, 64))
    swapped = bytearray(ct[:352]) + real.astype(">i2").tobytes()
    yield Mutant("voxels-of-the-other-order", gzip.compress(bytes(swapped), 1))


def _as(ct: bytes, values: np.ndarray, datatype: int, bits: int) -> bytes:
    header = bytearray(ct[:352])
    struct.pack_into("<hh", header, 70, datatype, bits)
    return gzip.compress(bytes(header) + values.tobytes(), 1)


def _strangers() -> Iterator[Mutant]:
    """Files that are something else."""
    chance = random.Random(9)
    yield Mutant("stranger-empty", b"")
    yield Mutant("stranger-empty-gzip", gzip.compress(b""))
    yield Mutant("stranger-text", b"case_id,patient_id\n" * 100)
    yield Mutant("stranger-png", b"\x89PNG\r\n\x1a\n" + bytes(500))
    yield Mutant("stranger-zip", b"PK\x03\x04" + bytes(500))
    yield Mutant("stranger-dicom", bytes(128) + b"DICM" + bytes(500))
    yield Mutant("stranger-html", b"<html><body>403</body></html>")
    for number in range(30):
        noise = chance.randbytes(chance.randint(1, 3000))
        yield Mutant(f"stranger-noise-{number:02}", noise)
        yield Mutant(f"stranger-noise-gzip-{number:02}", gzip.compress(noise))


def _id(field: str, value: object) -> str:
    return f"{field}-{value}".replace("[", ".").replace("]", "").replace("+", "p")
