"""Log-probabilities of logits with the arithmetic of the programs: `exp` and `log` of FreeBSD's msun in f64, sums in order.

The C library's functions differ from them in the last bit now and then, and the check asks for equal numbers.
"""

import json
import math
import struct

LN2_HIGH, LN2_LOW, INVERSE_LN2 = 6.93147180369123816490e-01, 1.90821492927058770002e-10, 1.44269504088896338700e+00
EXP = (1.66666666666666019037e-01, -2.77777777770155933842e-03, 6.61375632143793436117e-05, -1.65339022054652515390e-06,
       4.13813679705723846039e-08)
LOG = (6.666666666666735130e-01, 3.999999999940941908e-01, 2.857142874366239149e-01, 2.222219843214978396e-01,
       1.818357216161805012e-01, 1.531383769920937332e-01, 1.479819860511658591e-01)


def high_word(x):
    return struct.unpack("<Q", struct.pack("<d", x))[0] >> 32


def exp(x):
    """e to the power of x, for x from -700 to 0."""
    size = high_word(x) & 0x7FFFFFFF
    if size > 0x3FD62E42:
        k = int(INVERSE_LN2 * x + math.copysign(0.5, x)) if size >= 0x3FF0A2B2 else (1 if x > 0 else -1)
        high, low = x - k * LN2_HIGH, k * LN2_LOW
        x = high - low
    elif size > 0x3E300000:
        k, high, low = 0, x, 0.0
    else:
        return 1.0 + x
    square = x * x
    c = x - square * (EXP[0] + square * (EXP[1] + square * (EXP[2] + square * (EXP[3] + square * EXP[4]))))
    return math.ldexp(1.0 + (x * c / (2.0 - c) - low + high), k)


def log(x):
    """The natural logarithm of a normal number from 1 on."""
    if x == 1.0:
        return 0.0
    bits = struct.unpack("<Q", struct.pack("<d", x))[0]
    word = (bits >> 32) + (0x3FF00000 - 0x3FE6A09E)
    k = (word >> 20) - 0x3FF
    word = (word & 0x000FFFFF) + 0x3FE6A09E
    f = struct.unpack("<d", struct.pack("<Q", word << 32 | bits & 0xFFFFFFFF))[0] - 1.0
    half = 0.5 * f * f
    s = f / (2.0 + f)
    z = s * s
    w = z * z
    even = w * (LOG[1] + w * (LOG[3] + w * LOG[5]))
    odd = z * (LOG[0] + w * (LOG[2] + w * (LOG[4] + w * LOG[6])))
    return s * (half + (odd + even)) + k * LN2_LOW - half + f + k * LN2_HIGH


def log_probabilities(row):
    """ln softmax of a row of logits."""
    most = max(row)
    total = 0.0
    for logit in row:
        total += exp(logit - most)
    total = log(total)
    return [logit - most - total for logit in row]


def read_logits(path):
    """The tensors `<name>.logits` of `bitnet-run logits`: by name, rows of floats."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    found = {}
    for name, entry in json.loads(data[8:8 + length]).items():
        if not name.endswith(".logits"):
            continue
        rows, columns = entry["shape"]
        values = struct.unpack_from(f"<{rows * columns}f", data, 8 + length + entry["data_offsets"][0])
        found[name.removesuffix(".logits")] = [values[at * columns:(at + 1) * columns] for at in range(rows)]
    return found
