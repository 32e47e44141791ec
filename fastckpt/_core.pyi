"""The native core: hashing and moving of bytes, in threads, without the GIL.

Sizes, offsets and addresses are in bytes. A *buffer* is any contiguous object
with the buffer protocol; read-only ones will do unless stated otherwise.
"""

from collections.abc import Callable
from typing import Final, Literal

from typing_extensions import Buffer

SimdLevel = Literal["portable", "neon", "sse2", "avx2", "avx512"]

LEAF_SIZE: Final[int]
CHUNK_SIZE: Final[int]
ALIGNMENT: Final[int]
PACK_ALIGNMENT: Final[int]
DIGEST_SIZE: Final[int]
LEAF_DIGEST_SIZE: Final[int]
MAGIC_SIZE: Final[int]
FORMAT_VERSION: Final[int]
PLANES_LAYOUT: Final[int]
PLANES_TILE: Final[int]
PLANES_GROUP: Final[int]
PLANES_BLOCK_LOG2: Final[int]
PLANES_BLOCK_LOG2_MAX: Final[int]
PLANES_HEAD_SIZE: Final[int]
PLANES_BLOCK_HEAD_SIZE: Final[int]
PLANES_PLANE_ROW_SIZE: Final[int]
PLANES_MASKED: Final[int]
PLANES_MAX_LEVELS: Final[int]
PLANES_MAX_WIDTH: Final[int]
PLANES_MODE_RAW: Final[int]
PLANES_MODE_PACKED: Final[int]
PLANES_MODE_NESTED: Final[int]
PLANES_KIND_BYTES: Final[int]
PLANES_KIND_WORDS: Final[int]
PLANES_KIND_DOUBLE_WORDS: Final[int]
PLANES_KIND_QUAD_WORDS: Final[int]
PLANES_KIND_FLOAT16: Final[int]
PLANES_KIND_BFLOAT16: Final[int]
PLANES_KIND_FLOAT32: Final[int]
PLANES_KIND_FLOAT64: Final[int]
PLANES_KIND_FLOAT8_E4: Final[int]
PLANES_KIND_FLOAT8_E5: Final[int]
PLANES_KIND_NIBBLES: Final[int]
MAGIC_SUPERBLOCK: Final[bytes]
MAGIC_MANIFEST: Final[bytes]
MAGIC_RECORD: Final[bytes]
MAGIC_INDEX: Final[bytes]
MAGIC_FOOTER: Final[bytes]
MAGIC_SOURCE: Final[bytes]

def simd_level() -> SimdLevel:
    """The instruction set the kernels use now: the best one this machine has, unless set otherwise."""

def simd_levels() -> tuple[SimdLevel, ...]:
    """The instruction sets this machine can run, slowest first. All give the same results."""

def set_simd_level(name: str, /) -> None:
    """Use another instruction set, in all threads. For tests and benchmarks.

    Raises:
        ValueError: The level is unknown, or this machine does not have it.
    """

def address(buffer: Buffer, /) -> int:
    """The address of a buffer's first byte (0 is possible for an empty one)."""

def leaf_digests(buffer: Buffer, threads: int = 1) -> bytes:
    """XXH3-64 (seed 0) of every 16 KiB of a buffer, 8 bytes little-endian each.

    A shorter last leaf is hashed as if zero-padded; an empty buffer has none.

    Raises:
        ValueError: ``threads`` is not in 1..1024.
        KeyboardInterrupt: Ctrl-C, within 0.2 s.
    """

def crc32(buffer: Buffer, value: int = 0) -> int:
    """CRC-32 as zlib and zip have it; ``value`` is the CRC of what came before."""

def cached_bytes(fd: int, size: int, /) -> int | None:
    """How many of the first ``size`` bytes of a file are in the page cache; None where the system does not tell.

    Asking fetches nothing.
    """

def crc32_combine(a: int, b: int, size_b: int, /) -> int:
    """The CRC-32 of A followed by B, from the CRCs of both and the size of B."""

def transfer(
    source_fd: int,
    sink_fd: int,
    extents: Buffer,
    leaves: Buffer | None,
    crcs: Buffer | None,
    *,
    threads: int,
    source_direct_fd: int = -1,
    sink_direct_fd: int = -1,
    mapped: bool = False,
    release: bool = False,
    progress: Callable[[int], object] | None = None,
) -> list[tuple[int, int, int, int]]:
    """Move extents from a source to a sink, hashing them on the way.

    Every piece is read, hashed and written by one thread while it lies in the
    cache. Source and sink extents must not overlap each other in memory.

    Args:
        source_fd: A file, or -1: memory.
        sink_fd: A file, -1: memory, or -2: none (only hash).
        extents: Rows of four native u64: source, sink, size, first leaf. Source
            and sink are file offsets or addresses. Memory given by address is
            trusted: it must exist and stay for the length of the call.
        leaves: Writable, u64 each; leaf ``k`` of an extent has its digest in
            ``leaves[first_leaf + k]``. None: no leaf is hashed.
        crcs: Writable, one u32 per extent: its CRC-32, or 0 when it has a fault.
        threads: Threads at work, 1..1024; fewer where there is too little to
            share out, or where no more can be had. As many as cores for the
            page cache and for memory; twice as many, and 4 at least, for direct
            I/O, so that the disk has requests waiting while others are hashed.
        source_direct_fd: The source opened with O_DIRECT. What the page cache
            holds is taken from there, all else is read past it.
        sink_direct_fd: The sink opened with O_DIRECT. Whole 4 KiB units at
            aligned offsets are written past the page cache, the rest through
            ``sink_fd``. Nothing outside the extents is ever written.
        mapped: The source is a mapped file: a page that is not there, for a cut
            file or a bad sector, is a fault and not SIGBUS.
        release: With ``mapped``, and only for a shared map of a file: give its pages back once
            they are moved.
        progress: Called every 20 ms with the bytes done, and once at the end.

    Returns:
        What could not be read, in order: ``(extent, offset in it, size, errno)``,
        errno 0 for the end of the file. Faults are kept as small as a leaf. The
        digests of the leaves they touch are 0; a memory sink holds undefined
        bytes there, a file sink is not written there.

    Raises:
        OSError: A write failed; the file offset is in the message.
        ValueError: An extent does not fit its source, sink or ``leaves``.
        MemoryError: No scratch memory (at most three times 8 MiB a thread).
        KeyboardInterrupt: Ctrl-C, within 0.2 s. So for any exception that a
            signal handler or ``progress`` raises; no thread is left running.
    """

class SlotFiller:
    """Fills slots of memory from a file, or a file, turn after turn, on threads that it starts and keeps.

    A turn is some extents that go into one slot, or have their bytes there; turn ``t`` uses slot ``t % slots``.
    As many turns as there are slots are filled ahead of the ones that were released.

    Args:
        source_fd: A file, or -1: memory.
        extents: Rows as for `transfer`, those of all turns one after the other.
            Addresses in them must stay until `close`.
        ends: u64 each: the number of extents in all turns up to this one.
        leaves: As for `transfer`; what belongs to a turn is there once `wait` has returned for it.
        crcs: So too.
        slots: How many there are.
        threads: As for `transfer`. Where not one can be had, `wait` does the work.
        source_direct_fd: As for `transfer`.
        sink_fd: A file, or -1: memory.
        sink_direct_fd: As for `transfer`.
        sources: i32, two for each turn, where the turns have different ones: source_fd and source_direct_fd.
        hashed: u8, one for each turn: 0 where no leaf is hashed; None: all are. What belongs to a turn that is
            not yet among the first ``slots`` that were not released may be changed.
        padded: Zeros follow each extent in a sink that is a file, up to its next multiple of 4 KiB.
        tally: A `parity_tally` to which all that is written is added.

    Raises:
        ValueError: An extent does not fit its source, sink or ``leaves``, or is in no turn.
    """

    def __new__(
        cls,
        source_fd: int,
        extents: Buffer,
        ends: Buffer,
        leaves: Buffer | None,
        crcs: Buffer | None,
        *,
        slots: int,
        threads: int,
        source_direct_fd: int = -1,
        sink_fd: int = -1,
        sink_direct_fd: int = -1,
        sources: Buffer | None = None,
        hashed: Buffer | None = None,
        padded: bool = False,
        tally: object | None = None,
    ) -> SlotFiller: ...
    def wait(self, turn: int, progress: Callable[[int], object] | None = None, /) -> list[tuple[int, int, int, int]]:
        """Wait until a turn is full; what could not be read, as `transfer` has it.

        ``progress`` is called every 20 ms with the bytes moved in all turns.

        The turn must have a slot: it is one of the first ``slots`` that were not released.

        Raises:
            ValueError: The filler is closed.
            OSError: A write failed.
            MemoryError: No scratch memory.
            KeyboardInterrupt: Ctrl-C, within 0.2 s.
        """

    def release(self) -> None:
        """Let the slot of the oldest turn be filled again. Raises ValueError if that turn is not full."""

    def close(self) -> None:
        """Stop and join all threads. Closing twice does nothing; a filler that is dropped is closed."""

def find_blocks(fd: int, magic: bytes, start: int, stop: int, *, threads: int = 1) -> list[int]:
    """Offsets in ``[start, stop)``, multiples of 4096, at which the 8 bytes of ``magic`` stand.

    Ends at the end of the file; parts that cannot be read are passed over.

    Raises:
        OSError: The file cannot be read at all (a closed descriptor, a directory).
        ValueError: ``magic`` has not 8 bytes, or ``threads`` is not in 1..1024.
    """

def planes_encode(raw: Buffer, kinds: Buffer, *, row_length: int = 0, phase: int = 0) -> bytes | None:
    """The stored bytes of one chunk with the codec planes, or None if they would not be fewer than the raw ones.

    Args:
        raw: At most CHUNK_SIZE bytes.
        kinds: One PLANES_KIND_* byte for each 128 KiB of them. A wrong one costs room, never a bit.
        row_length: Elements in a row of the matrix that they are, or 0.
        phase: Which element of its row is the first one.

    Raises:
        ValueError: More than a chunk, or not as many kinds as there are blocks.
    """

def planes_decode(stored: Buffer, raw: Buffer, /) -> None:
    """Fill ``raw``, which is writable, with the raw bytes of one chunk with the codec planes.

    Raises:
        ValueError: They do not decode to exactly that many bytes; those in ``raw`` mean nothing then.
    """

def planes_read(
    fd: int,
    chunks: Buffer,
    leaves: Buffer | None,
    *,
    threads: int,
    direct_fd: int = -1,
    progress: Callable[[int], object] | None = None,
) -> bytes:
    """Read, decode and hash chunks with the codec planes: while some threads wait for the disk, others decode.

    Args:
        fd: The file.
        chunks: Rows of five native u64: offset and size of the stored bytes, their XXH3-64, the address that the
            raw bytes shall have or 0 (they are only hashed), and their number. Neighbours are read in one request.
        leaves: Writable, u64 for every leaf of all chunks, one chunk after the other. None: nothing is verified, the
            digests of the stored bytes neither.
        threads: As for `transfer`.
        direct_fd: The file opened with O_DIRECT: what the page cache does not hold is read past it.
        progress: Called every 20 ms with the raw bytes done, and once at the end.

    Returns:
        A byte for each chunk: 1, or 0 where it could not be read or is not as its digest says or does not decode.
        Whoever reads such a chunk alone finds out; its raw bytes and leaves are undefined.

    Raises:
        ValueError: A size or an offset is out of range, or ``leaves`` has another size.
        KeyboardInterrupt: Ctrl-C, within 0.2 s.
    """

class PlanesWriter:
    """Encodes chunks with the codec planes and writes them one behind the other, on threads that it keeps.

    Args:
        sink_fd: A file.
        sink_direct_fd: The same file opened with O_DIRECT, or -1: it is written through the page cache.
        offset: Where the first chunk shall begin: a multiple of 4096.
        threads: As for `transfer`. Where not one can be had, whoever waits does the work.
        crcs: Whether the CRC-32 of the raw bytes of each chunk is wanted.

    Raises:
        ValueError: ``offset`` or ``threads`` is out of range.
        MemoryError: No memory to write from (24 MiB; besides, 3 MiB a thread).
    """

    def __new__(cls, sink_fd: int, sink_direct_fd: int, *, offset: int, threads: int, crcs: bool) -> PlanesWriter: ...
    def append(self, source_fd: int, chunks: Buffer, kinds: Buffer, /) -> None:
        """Have chunks encoded and written behind the others.

        Args:
            source_fd: The file that they are read from, or -1: memory, which must stay until `wait_read`.
            chunks: Rows of five native u64: where the raw bytes begin, how many there are, ``row_length`` and ``phase``
                as for `planes_encode`, and how many bytes are left out before the chunk, counted from the next
                multiple of 4 KiB: 0 (it follows at once) or a multiple of 4096. The file is not written there.
            kinds: Eight bytes for each chunk: those that `planes_encode` takes, then zeros.

        Raises:
            ValueError: A number is out of range, or the writer is closed.
        """

    def wait_read(self, progress: Callable[[int], object] | None = None, /) -> None:
        """Wait until the raw bytes of all chunks appended are no longer needed. Raises what `take` does."""

    def take(self, count: int, progress: Callable[[int], object] | None = None, /) -> tuple[bytes, bytes]:
        """Wait until the ``count`` oldest chunks are in the file, and forget them.

        Zeros follow the last of them up to the next multiple of 4 KiB: the chunk behind it must leave out some bytes.
        ``progress`` is called every 20 ms with the raw bytes done.

        Returns:
            For each a row of seven native u64: its offset in the file, its size there, whether it is encoded (0: it
            would not be smaller, and is stored as it is), the XXH3-64 of the stored bytes if it is, the CRC-32, how
            many raw bytes could be read, and the errno that says why not all (0: the file ended). And the leaf digests
            of all, u64 each.

        Raises:
            ValueError: The writer is closed, or has not so many chunks.
            OSError: A write failed.
            MemoryError: No memory to work in.
            KeyboardInterrupt: Ctrl-C, within 0.2 s.
        """

    def close(self) -> None:
        """Stop and join all threads. Closing twice does nothing; a writer that is dropped is closed."""

def encode_parity(
    source: int | Buffer,
    size: int,
    groups: int,
    rows: int,
    first: int,
    parity: Buffer,
    leaves: Buffer | None,
    *,
    threads: int,
    source_direct_fd: int = -1,
    progress: Callable[[int], object] | None = None,
) -> list[tuple[int, int, int, int]]:
    """The parity of some groups of leaves of a file, and the digests of these leaves, in one pass over them.

    Leaf ``n`` belongs to group ``n % groups``, as number ``n // groups``. Row ``j`` of a group is the sum over its
    leaves ``i`` of ``(2**j)**i`` times the leaf, in GF(2^8) modulo 0x11D. Short and missing leaves count as zeros.

    Args:
        source: The file, or its bytes.
        size: Of all of it.
        groups: How many there are: none without leaves, else enough for at most 255 leaves each.
        rows: Leaves of parity of a group: 1, 2 or 3.
        first: The first group wanted.
        parity: Writable: as many leaves as there are wanted groups, for each row.
        leaves: Writable, u64 for every leaf of the file; those of the wanted groups are written. None: none is hashed.
        threads: As for `transfer`.
        source_direct_fd: As for `transfer`.
        progress: Called every 20 ms with the bytes done, and once at the end.

    Returns:
        What could not be read, as `transfer` has it: ``(0, offset in the file, size, errno)``. The parity of the
        groups in it means nothing.

    Raises:
        ValueError: A number is out of range, or a buffer has another size.
        MemoryError: No scratch memory (about 2 MiB a thread).
        KeyboardInterrupt: Ctrl-C, within 0.2 s.
    """

def parity_tally(size: int, groups: int, rows: int, parity: Buffer, leaves: Buffer, /) -> object:
    """Begin to sum up parity and leaf digests of a file that is going to be written.

    Args:
        size: Of all of it.
        groups: As for `encode_parity`.
        rows: So, too.
        parity: Writable: as many leaves as there are groups, for each row. It means something after `tally_finish`.
        leaves: Writable, u64 for every leaf of the file. So, too.

    Raises:
        ValueError: A number is out of range, or a buffer has another size.
    """

def tally_add(tally: object, data: Buffer, offset: int, /) -> None:
    """Add bytes that are written to this offset: once for each byte, in any order, also while other threads do."""

def tally_finish(tally: object, /) -> None:
    """All is added: what was not is zero."""

def recover_leaves(
    source: int | Buffer,
    size: int,
    groups: int,
    rows: int,
    picked: Buffer,
    parity: Buffer,
    known: Buffer,
    lost: Buffer,
    recovered: Buffer,
    solved: Buffer,
    *,
    threads: int,
    source_direct_fd: int = -1,
    mapped: bool = False,
    progress: Callable[[int], object] | None = None,
) -> list[tuple[int, int, int, int]]:
    """Lost leaves of some groups, from the others and their parity.

    Whether they are right, only their digests tell: the other leaves of the group must be.

    Args:
        source: The file, or its bytes.
        size: Of all of it.
        groups: As for `encode_parity`.
        rows: So, too.
        picked: The groups wanted: u64, ascending.
        parity: Their parity: as many leaves as there are such groups, for each row.
        known: u8 for each of these leaves: 1 if it can be relied on.
        lost: Numbers of lost leaves: u64, ascending. They are not read.
        recovered: Writable: a leaf for each lost one.
        solved: Writable, u8 for each lost leaf: set to 1 where it was found. Where a group has more lost leaves than
            known ones of parity, both stay as they were.
        threads: As for `transfer`.
        source_direct_fd: As for `transfer`.
        mapped: Bytes are a shared map of the file. Pages that were read are given back; one that is not there makes
            all of it a fault with EFAULT.
        progress: Called every 20 ms with the bytes done, and once at the end.

    Returns:
        What else could not be read, as `encode_parity` has it. What was found of these groups means nothing.

    Raises:
        ValueError: A number is out of range or order, or a buffer has another size.
        MemoryError: No scratch memory (about 4 MiB a thread).
        KeyboardInterrupt: Ctrl-C, within 0.2 s.
    """
