"""Inputs made from valid ones by small changes: bits, numbers, pieces, and words that parsers stumble on."""

import re
from random import Random

NUMBERS = [b"0", b"-1", b"1e999", b"NaN", b"99999999999999999999", b"0.5", b"null", b"true", b"1e-400", b"2147483648"]
NUMBERS += [b"9" * 400, b"9" * 5000]
WORDS = [
    b"[", b"]", b"{", b"}", b'"', b"'", b"\\", b"\n", b"\0", b"../", b"/etc/passwd", b"${oc.env:HOME}", b"${name}",
    b"!!python/object/apply:os.system ['true']", b"&a [*a]", b"<script>", b"\xff\xfe", b"=", b",", b"~", b"+", b"@",
    b"[" * 3_000, b"{\"a\":" * 3_000, b"\xf0\x9f\x92\xa9", b"__class__", b"_target_: os.system",
]  # fmt: skip


def mutated(seeds: list[bytes], random: Random) -> bytes:
    """Return one of the seeds after one to six changes."""
    data = bytearray(random.choice(seeds))
    for _ in range(random.randint(1, 6)):
        spot = random.randrange(len(data) + 1)
        match random.randrange(8):
            case 0 if data:
                data[spot % len(data)] ^= 1 << random.randrange(8)
            case 1:
                data[spot:spot] = random.choice(WORDS)
            case 2:
                del data[spot : spot + random.randint(1, 40)]
            case 3:
                data[spot:spot] = data[spot : spot + random.randint(1, 200)]
            case 4:
                del data[spot:]
            case 5:
                numbers = list(re.finditer(rb"\d[\d.e+-]*", data))
                if numbers:
                    found = random.choice(numbers)
                    data[found.start() : found.end()] = random.choice(NUMBERS)
            case 6:
                other = random.choice(seeds)
                data[spot:] = other[random.randrange(len(other) + 1) :]
            case _:
                data[spot : spot + 8] = random.randbytes(random.randint(0, 8))
    return bytes(data)
