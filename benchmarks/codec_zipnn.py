"""ZipNN's speed and ratio, run by an interpreter that has it (it brings a torch of its own):

    PYTHON benchmarks/codec_zipnn.py DTYPE FILE ROUNDS

Prints JSON. It gets a fresh copy each time: it changes what it compresses, and it runs in one thread.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def main() -> None:
    """Measure one file of raw numbers."""
    import zipnn

    dtype, file, rounds = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    raw = file.read_bytes()
    codec = zipnn.ZipNN(method="HUFFMAN", bytearray_dtype=dtype, input_format="byte", threads=1)
    encode, decode = [], []
    packed = b""
    for _ in range(rounds):
        copy = bytearray(raw)
        start = time.process_time()
        packed = codec.compress(copy)
        encode.append(time.process_time() - start)
        start = time.process_time()
        back = codec.decompress(packed)
        decode.append(time.process_time() - start)
        if bytes(back) != raw:
            raise SystemExit("ZipNN did not give back what it got")
    speeds = {"encode": len(raw) / min(encode) / 1e9, "decode": len(raw) / min(decode) / 1e9}
    print(json.dumps({"ratio": len(raw) / len(packed), **speeds}))


if __name__ == "__main__":
    main()
