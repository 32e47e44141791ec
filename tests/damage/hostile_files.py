"""Small files made to cost much: each builder writes one."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import zstandard
from forge import Edit, Header, forge, in_header, in_manifest, new_block, seal
from slow_keys import MODULUS, same_hash, same_way

import fastckpt


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def long(number: int) -> bytes:
    raw = number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def storage(key: str = "0", numel: int = 16, kind: str = "FloatStorage") -> bytes:
    return b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + long(numel) + b"tQ"


HOOKS = b"ccollections\nOrderedDict\n)R"


def tensor(
    shape: Iterable[int] = (16,), stride: Iterable[int] = (1,), *, key: str = "0", numel: int = 16, offset: int = 0
) -> bytes:
    extents = b"(" + b"".join(map(long, shape)) + b"t(" + b"".join(map(long, stride)) + b"t"
    head = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage(key, numel)
    return head + long(offset) + extents + b"\x89" + HOOKS + b"tR"


def archive(path: Path, pickled: bytes, storages: Iterable[bytes] = (bytes(64),)) -> None:
    """A .pt with this pickle."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("m/data.pkl", b"\x80\x02" + pickled + b".")
        file.writestr("m/byteorder", "little")
        for number, data in enumerate(storages):
            file.writestr(f"m/data/{number}", data)
        file.writestr("m/version", "3\n")


def legacy(path: Path, pickled: bytes) -> None:
    """A .pt as torch wrote it before version 1.6, with this pickle and no storage."""
    magic = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
    system = b"\x80\x02}(" + text("protocol_version") + b"M\xe9\x03" + text("little_endian") + b"\x88u."
    path.write_bytes(magic + b"\x80\x02M\xe9\x03." + system + b"\x80\x02" + pickled + b"." + b"\x80\x02].")


def tar(path: Path, **parts: bytes) -> None:
    """A .pth of torch's first years."""
    with tarfile.open(path, "w:") as file:
        for name, content in {"pickle": b"\x80\x02N.", "tensors": b"K\0.", "storages": b"K\0.].", **parts}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))


def tar_storages(keys: Iterable[int]) -> bytes:
    """Storages without bytes, with these numbers."""
    rows = [long(key) + b"U\0ctorch\nByteStorage\n\x87." + bytes(8) for key in keys]
    return long(len(rows)) + b"." + b"".join(rows) + b"]."


def tar_tensors(count: int) -> bytes:
    """Tensors of no dimension on the storage 1."""
    row = b"K\x01ctorch\nByteTensor\n\x87." + bytes(16)
    return long(count) + b"." + b"".join(long(key) + row for key in range(2, count + 2))


def items(keys: Iterable[int], value: bytes = b"N") -> bytes:
    """A pickled dict with these keys."""
    return b"}(" + b"".join(long(key) + value for key in keys) + b"u"


def leb(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes((*out, number))


def tree_int(number: int) -> bytes:
    raw = number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)
    return b"\x03" + leb(len(raw)) + raw


def tree_items(keys: list[int]) -> bytes:
    """A dict of a .fckpt with these keys."""
    return b"\x0a" + leb(len(keys)) + b"".join(tree_int(key) + b"\0" for key in keys)


def tree_list(keys: list[int]) -> bytes:
    return b"\x08" + leb(len(keys)) + b"".join(map(tree_int, keys))


def tree_pairs(keys: list[int]) -> bytes:
    return b"\x08" + leb(len(keys)) + b"".join(b"\x09\x02" + tree_int(key) + b"\0" for key in keys)


def named(name: str, payload: bytes) -> bytes:
    return b"\x10" + leb(len(name)) + name.encode() + payload


def fckpt(path: Path, **changes: object) -> None:
    """A .fckpt with changes under right digests; see `forge`."""
    fastckpt.save({"w": torch.arange(20_000.0)}, path, durable=False)
    path.write_bytes(forge(path.read_bytes(), **changes))  # type: ignore[arg-type]


def tree(encoded: bytes) -> Edit:
    def change(manifest: object) -> None:
        manifest.tree = encoded  # type: ignore[attr-defined]

    return in_manifest(change)


def metadata(encoded: bytes) -> Edit:
    def change(manifest: object) -> None:
        manifest.metadata = encoded  # type: ignore[attr-defined]

    return in_manifest(change)


def source_section(count: int) -> bytes:
    """A source section that names storage 0 again and again."""
    rows = b"".join(struct.pack("<QQQ", i * 80_000, 0, 80_000) for i in range(count))
    return seal(new_block(b"FCKPTSRC", struct.pack("<IIQQQQ", 1, 0, 80_000 * count, count, 0, 0) + rows))


def safetensors(path: Path, header: object, data: bytes = b"") -> None:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)


def row(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def plain(keys: Iterable[str], value: bytes) -> bytes:
    return b"}(" + b"".join(text(key) + value for key in keys) + b"u"


HUGE = 2**62


def views(count: int) -> bytes:
    """Tensors that begin and end everywhere in a storage that is not there."""
    shared = storage("0", HUGE) + b"q\x010" + HOOKS + b"q\x020ctorch._utils\n_rebuild_tensor_v2\nq\x030"
    one = b"h\x03(h\x01%s%s\x85K\x01\x85\x89h\x02tR"
    return shared + b"](" + b"".join(one % (long(k << 20), long((HUGE >> 1) - (k << 21))) for k in range(count)) + b"e"


def empty_tensors(count: int) -> bytes:
    """As few bytes for each as can be."""
    head = (
        b"ctorch._utils\n_rebuild_tensor_v2\nq\x000"
        + storage("0", 0)
        + b"q\x010"
        + b"K\x00\x85q\x020"
        + HOOKS
        + b"q\x030"
    )
    one = b"h\x00(h\x01K\x00h\x02h\x02\x89h\x03tR"
    return head + b"](" + one * count + b"e"


def often(value: bytes, count: int) -> bytes:
    """A list that holds one thing many times."""
    return value + b"q\x010](" + b"h\x01" * count + b"e"


def around(opening: bytes, inner: bytes, closing: bytes, depth: int) -> bytes:
    return opening * depth + inner + closing * depth


def param_groups(count: int) -> bytes:
    """An optimizer in which every group has an option that no other has."""
    groups = b"".join(b"}" + text("params") + b"]s" + text(f"o{i}") + b"K\x01s" for i in range(count))
    return b"}" + text("state") + b"}s" + text("param_groups") + b"](" + groups + b"es"


def many_views(path: Path, count: int) -> None:
    """Tensors that all reach to the end of one storage."""
    whole = torch.zeros(count)
    torch.save({f"t{i}": whole[i:] for i in range(count)}, path)


def bad_leaves(path: Path, chunks: int, count: int) -> None:
    """A compressed storage in which every other leaf is wrong, and tensors that all reach over most of it."""
    whole = torch.zeros(chunks << 18)
    fastckpt.save({f"t{i}": whole[i:] for i in range(count)}, path, codec="zstd", durable=False)

    def change(header: Header) -> None:
        header.leaves = b"".join(header.leaves[at : at + 8] + b"\1" * 8 for at in range(0, len(header.leaves), 16))

    path.write_bytes(forge(path.read_bytes(), header=in_header(change)))


def deflated(path: Path, pickled: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("m/data.pkl", b"\x80\x02" + pickled + b".")
        file.writestr("m/version", "3\n")


def literals(count: int) -> bytes:
    """A source section with so many zeros between storages."""
    raw = zstandard.ZstdCompressor().compress(bytes(count))
    head = struct.pack("<IIQQQQ", 1, 1, 80_000 + count, 1, count, len(raw))
    return seal(new_block(b"FCKPTSRC", head + struct.pack("<QIIQ", 0, 0, 0, 80_000) + raw))


BUILDERS: dict[str, Callable[[Path], object]] = {
    "same-hash.pt": lambda path: archive(path, items(same_hash(5_000))),
    "same-way.pt": lambda path: archive(path, items(same_way(20_000))),
    "same-hash-legacy.pt": lambda path: legacy(path, items(same_hash(5_000))),
    "same-hash-ordered.pt": lambda path: archive(path, HOOKS + items(same_hash(5_000))[1:]),
    "same-hash-singly.pt": lambda path: archive(
        path, b"}" + b"".join(long(key) + b"Ns" for key in same_hash(5_000))
    ),
    "same-hash-pairs.pt": lambda path: archive(
        path,
        b"ccollections\nOrderedDict\n](" + b"".join(long(key) + b"N\x86" for key in same_hash(5_000)) + b"e\x85R",
    ),
    "same-hash-opaque.pt": lambda path: archive(path, b"cm\nThing\n)\x81" + items(same_hash(5_000)) + b"b"),
    "same-key.pt": lambda path: archive(
        path, items(same_hash(3_000)) [:-1] + (long(3_000 * MODULUS) + b"N") * 20_000 + b"u"
    ),
    "same-hash-tar.pth": lambda path: tar(path, storages=tar_storages(same_hash(5_000))),
    "same-way-tar.pth": lambda path: tar(path, storages=tar_storages(same_way(10_000))),
    "many-tensors-tar.pth": lambda path: tar(
        path,
        tensors=tar_tensors(10_000),
        storages=b"K\x01.K\x01U\0ctorch\nByteStorage\n\x87." + struct.pack("<q", 1) + b"x].",
    ),
    "long-number-tar.pth": lambda path: tar(path, storages=tar_storages([1 << 2_000])),
    "huge-tensor-tar.pth": lambda path: tar(
        path,
        tensors=b"K\x01.K\x02K\x01ctorch\nByteTensor\n\x87." + struct.pack("<6q", 2, HUGE, HUGE, HUGE, 1, 0),
        storages=b"K\x01.",
    ),
    "memo.pt": lambda path: archive(path, b"N" + b"".join(b"r" + struct.pack("<I", k) for k in same_way(20_000))),
    "memo-text.pt": lambda path: archive(path, b"N" + b"".join(b"p%d\n" % k for k in same_hash(5_000))),
    "same-hash.fckpt": lambda path: fckpt(path, manifest=tree(tree_items(same_hash(5_000)))),
    "same-way.fckpt": lambda path: fckpt(path, manifest=tree(tree_items(same_way(10_000)))),
    "same-hash-metadata.fckpt": lambda path: fckpt(path, manifest=metadata(tree_items(same_hash(5_000)))),
    "same-hash-set.fckpt": lambda path: fckpt(path, manifest=tree(named("set", tree_list(same_hash(5_000))))),
    "same-hash-frozenset.fckpt": lambda path: fckpt(
        path, manifest=tree(named("frozenset", tree_list(same_hash(5_000))))
    ),
    "same-hash-dict.fckpt": lambda path: fckpt(path, manifest=tree(named("dict", tree_pairs(same_hash(5_000))))),
    "same-hash-counter.fckpt": lambda path: fckpt(
        path, manifest=tree(named("counter", tree_pairs(same_hash(5_000))))
    ),
    "same-hash-tuples.pt": lambda path: archive(
        path, b"}(" + b"".join(long(key) + b"\x85N" for key in same_hash(5_000)) + b"u"
    ),
    "same-hash-frozenset-key.pt": lambda path: archive(
        path, b"}cbuiltins\nfrozenset\n](" + b"".join(map(long, same_hash(5_000))) + b"e\x85RNs"
    ),
    "same-hash-tuples.fckpt": lambda path: fckpt(
        path,
        manifest=tree(
            named(
                "dict",
                b"\x08" + leb(5_000) + b"".join(b"\x09\x02\x09\x01" + tree_int(k) + b"\0" for k in same_hash(5_000)),
            )
        ),
    ),
    "same-hash-frozensets.fckpt": lambda path: fckpt(
        path,
        manifest=tree(
            named(
                "set",
                b"\x08" + leb(3_000) + b"".join(named("frozenset", tree_list([k])) for k in same_hash(3_000)),
            )
        ),
    ),
    "storage-2e62.pt": lambda path: archive(path, plain("w", tensor(numel=HUGE))),
    "storage-2e40.pt": lambda path: archive(path, plain("w", tensor(numel=2**40))),
    "tensor-2e40.pt": lambda path: archive(path, plain("w", tensor([2**40], numel=2**40))),
    "tensor-2e40-repeated.pt": lambda path: archive(path, plain("w", tensor([2**40], [0]))),
    "storage-2e62.fckpt": lambda path: fckpt(
        path, manifest=in_manifest(lambda manifest: manifest.storages[0].__setitem__(0, HUGE))
    ),
    "many-references.pt": lambda path: archive(
        path, b"]" + tensor() + b"q\x010(" + b"h\x01" * 250_000 + b"e"
    ),
    "many-references.fckpt": lambda path: fckpt(path, manifest=tree(b"\x08" + leb(30_000) + b"\x0c\0" * 30_000)),
    "empty-tensors.pt": lambda path: archive(path, empty_tensors(30_000), [b""]),
    "empty-tensors.safetensors": lambda path: safetensors(path, {f"t{i}": row([0], 0, 0) for i in range(4_000)}),
    "big-int.pt": lambda path: archive(path, plain("n", b"\x8b" + struct.pack("<I", 40_000) + b"\x7f" * 40_000)),
    "big-int-key.pt": lambda path: archive(
        path, b"}(\x8b" + struct.pack("<I", 2_000) + b"\x7f" * 2_000 + b"Nu"
    ),
    "big-int.fckpt": lambda path: fckpt(path, manifest=tree(tree_int(1 << 300_000))),
    "big-int-metadata.fckpt": lambda path: fckpt(
        path, manifest=metadata(b"\x0a\x01\x06\x01n" + tree_int(1 << 300_000))
    ),
    "big-int-in-list.pt": lambda path: archive(
        path, plain("n", b"](\x8b" + struct.pack("<I", 4_000) + b"\x7f" * 4_000 + b"e")
    ),
    "big-int-list-metadata.fckpt": lambda path: fckpt(
        path, manifest=metadata(b"\x0a\x01\x06\x01n\x08\x01" + tree_int(1 << 300_000))
    ),
    "marks.pt": lambda path: archive(path, b"(" * 500_000 + b"N"),
    "marks-and-tuples.pt": lambda path: archive(path, b"(" * 50_000 + b"t" * 50_000),
    "source-bomb.fckpt": lambda path: fckpt(path, extra=[(4, 0, source_section(5_000))]),
    "zero-huge.safetensors": lambda path: safetensors(
        path, {"a": row([0, HUGE, HUGE], 0, 0), "b": row([16], 0, 64)}, bytes(64)
    ),
    "zero-huge.pt": lambda path: archive(path, plain("w", tensor([0, HUGE, HUGE], [1, 1, 1]))),
    "zero-large.safetensors": lambda path: safetensors(
        path, {"a": row([0, 2**40], 0, 0), "b": row([16], 0, 64)}, bytes(64)
    ),
    "zero-stride.pt": lambda path: archive(path, plain("w", tensor([0, 4], [HUGE, HUGE]))),
    "zeros-and-factors.safetensors": lambda path: safetensors(path, {"a": row([HUGE] * 20_000 + [0], 0, 0)}),
    "views-of-nothing.pt": lambda path: archive(path, views(4_000)),
    "text-references.pt": lambda path: archive(path, often(text("x" * 50_000), 20_000)),
    "int-references.pt": lambda path: archive(path, often(long(1 << 2000), 200_000)),
    "object-references.pt": lambda path: archive(path, often(b"cm\nThing\n)\x81", 100_000)),
    "long-key-references.pt": lambda path: archive(
        path, text("k" * 50_000) + b"q\x010](" + b"}h\x01Ns" * 20_000 + b"e"
    ),
    "deep-lists.pt": lambda path: archive(path, around(b"]", b"](" + b"}K\x01Ns" * 20_000 + b"e", b"a", 110)),
    "deep-lists.fckpt": lambda path: fckpt(
        path, manifest=tree(b"\x08\x01" * 110 + b"\x08" + leb(20_000) + b"\x0a\0" * 20_000)
    ),
    "sets-in-sets.pt": lambda path: archive(
        path, around(b"cbuiltins\nfrozenset\n](", b"(" + b"N" * 100_000 + b"t", b"e\x85R", 38)
    ),
    "fractions-in-fractions.pt": lambda path: archive(
        path, around(b"cfractions\nFraction\n", b"](" + b"N" * 100_000 + b"e", b"\x85R", 38)
    ),
    "lost-attributes.pt": lambda path: archive(path, tensor() + b"K\x01b" * 60_000),
    "param-groups.pt": lambda path: archive(path, param_groups(4_000)),
    "many-keys.pt": lambda path: archive(path, b"](" + b"}K\x01Ns" * 20_000 + b"e"),
    "many-views.pt": lambda path: many_views(path, 6_000),
    "quotes.safetensors": lambda path: safetensors(path, b'{"' + b'\\"' * 300_000),
    "deflated-pickle.pt": lambda path: deflated(path, b"](" + b"N" * 20_000_000 + b"e"),
    "literals.fckpt": lambda path: fckpt(path, extra=[(4, 0, literals(200 << 20))]),
    "unknown-dtype.safetensors": lambda path: safetensors(path, {"a": row([4], 0, 4, "X9")}, bytes(4)),
}  # fmt: skip
