"""Every number the format fixes, once.

``SPEC.md`` states them, ``csrc/core/constants.h`` repeats those the native
core needs, and a test compares the three. Sizes and offsets are in bytes.
"""

from __future__ import annotations

from typing import Final

# --- sizes ------------------------------------------------------------------

LEAF_SIZE: Final[int] = 16 * 1024
"""Raw bytes under one leaf digest; a shorter last leaf is zero-padded."""
CHUNK_SIZE: Final[int] = 1024 * 1024
"""Raw bytes of one chunk: the unit of encoding, parallel I/O and parity."""
LEAVES_PER_CHUNK: Final[int] = CHUNK_SIZE // LEAF_SIZE
ALIGNMENT: Final[int] = 4096
"""Every block and every payload starts at a multiple of this."""
PACK_ALIGNMENT: Final[int] = 64
"""Alignment of a storage inside a pack record."""
PACK_THRESHOLD: Final[int] = 256 * 1024
"""A storage smaller than this goes into a pack, others get their own record."""
PACK_LIMIT: Final[int] = 8 * 1024 * 1024
"""A pack is closed before its raw size would exceed this."""
PACK_MAX_STORAGES: Final[int] = 8192
"""A pack is closed when it holds this many storages."""
DIGEST_SIZE: Final[int] = 16
"""Size of an XXH3-128 digest in canonical (big-endian) form."""
LEAF_DIGEST_SIZE: Final[int] = 8
"""Size of an XXH3-64 leaf digest, stored as a little-endian u64."""

# --- identification ---------------------------------------------------------

FORMAT_VERSION: Final[int] = 2
"""What a writer writes; a reader takes this and every earlier one."""
MAGIC_SIZE: Final[int] = 8
MAGIC_SUPERBLOCK: Final[bytes] = b"\x89FCKPT\r\n"
MAGIC_MANIFEST: Final[bytes] = b"FCKPTMAN"
MAGIC_RECORD: Final[bytes] = b"FCKPTREC"
MAGIC_INDEX: Final[bytes] = b"FCKPTIDX"
MAGIC_FOOTER: Final[bytes] = b"FCKPTEND"
MAGIC_DIRECTORY: Final[bytes] = b"FCKPTDIR"
MAGIC_SOURCE: Final[bytes] = b"FCKPTSRC"
MAGIC_PARITY: Final[bytes] = b"FCKPTPAR"
MAGIC_PARITY_PAGE: Final[bytes] = b"FCKPTPDG"
"""A page of digests in a parity section."""
FILE_SUFFIX: Final[str] = ".fckpt"

# --- flags ------------------------------------------------------------------

KNOWN_MUST_UNDERSTAND_FLAGS: Final[int] = 0
"""Must-understand bits this version knows; any other bit means: reject."""
KNOWN_MAY_IGNORE_FLAGS: Final[int] = 0
"""May-ignore bits this version gives a meaning to; others are ignored."""

# --- sealed blocks: fixed parts ---------------------------------------------

SEAL_HEAD_SIZE: Final[int] = 16
"""Magic and block size, at the start of every sealed block."""
SUPERBLOCK_SIZE: Final[int] = 4096
MANIFEST_FIXED_SIZE: Final[int] = 96
RECORD_FIXED_SIZE: Final[int] = 128
INDEX_FIXED_SIZE: Final[int] = 32
DIRECTORY_FIXED_SIZE: Final[int] = 32
FOOTER_SIZE: Final[int] = 4096
FOOTER_FIXED_SIZE: Final[int] = 80
PARITY_PAGE_FIXED_SIZE: Final[int] = 56

# --- table rows -------------------------------------------------------------

ENTRY_TABLE_HEAD_SIZE: Final[int] = 24
ENTRY_KIND_SIZE: Final[int] = 4
"""Of a kind of entries, before its shape and stride."""
CHUNK_ROW_SIZE: Final[int] = 24
INDEX_ROW_SIZE: Final[int] = 16
DIRECTORY_ROW_SIZE: Final[int] = 32
SECTION_ROW_SIZE: Final[int] = 40
PARITY_PAGE_DIGESTS: Final[int] = (ALIGNMENT - PARITY_PAGE_FIXED_SIZE - DIGEST_SIZE) // LEAF_DIGEST_SIZE
"""Leaf digests in a page of a parity section, which is a block of ALIGNMENT bytes."""

# --- codecs (chunk table) ---------------------------------------------------

CODEC_NONE: Final[int] = 0
CODEC_ZSTD: Final[int] = 1
"""One zstd frame per chunk."""
CODEC_PLANES: Final[int] = 2
"""The fields of numbers, each by itself."""

# --- codec planes -----------------------------------------------------------

PLANES_LAYOUT: Final[int] = 1
"""How the stored bytes of a chunk are laid out; others are refused."""
PLANES_TILE: Final[int] = 4096
"""Elements of a tile, which decodes alone."""
PLANES_GROUP: Final[int] = 8
"""Elements under one bit of a tile's mask."""
PLANES_BLOCK_LOG2: Final[int] = 17
"""Raw bytes of a block, as a power of two: modes, widths and symbols are chosen for each. The least."""
PLANES_BLOCK_LOG2_MAX: Final[int] = 20
PLANES_HEAD_SIZE: Final[int] = 24
PLANES_BLOCK_HEAD_SIZE: Final[int] = 8
PLANES_PLANE_ROW_SIZE: Final[int] = 8
PLANES_MASKED: Final[int] = 0x8000
"""Bit of a tile's row: groups of zeros are left out."""
PLANES_MAX_LEVELS: Final[int] = 6
PLANES_MAX_WIDTH: Final[int] = 7
"""Bits of one digit of a nested plane, and of a packed value."""
PLANES_MODE_RAW: Final[int] = 0
PLANES_MODE_PACKED: Final[int] = 1
PLANES_MODE_NESTED: Final[int] = 2
PLANES_KIND_BYTES: Final[int] = 0
PLANES_KIND_WORDS: Final[int] = 1
PLANES_KIND_DOUBLE_WORDS: Final[int] = 2
PLANES_KIND_QUAD_WORDS: Final[int] = 3
PLANES_KIND_FLOAT16: Final[int] = 4
PLANES_KIND_BFLOAT16: Final[int] = 5
PLANES_KIND_FLOAT32: Final[int] = 6
PLANES_KIND_FLOAT64: Final[int] = 7
PLANES_KIND_FLOAT8_E4: Final[int] = 8
PLANES_KIND_FLOAT8_E5: Final[int] = 9
PLANES_KIND_NIBBLES: Final[int] = 10
"""Two 4-bit numbers in a byte."""

# --- sections (footer) ------------------------------------------------------

SECTION_MANIFEST: Final[int] = 1
SECTION_INDEX: Final[int] = 2
SECTION_MANIFEST_COPY: Final[int] = 3
SECTION_SOURCE: Final[int] = 4
"""What a byte-exact conversion back to the foreign file needs."""
SECTION_PARITY: Final[int] = 5
"""With which lost bytes can be computed from others; may be ignored. (6 was reserved once and is given up.)"""
SECTION_DIRECTORY: Final[int] = 7
"""Places and digests of all record headers."""
SECTION_FLAG_MUST_UNDERSTAND: Final[int] = 1

# --- entry flags ------------------------------------------------------------

ENTRY_FLAG_REQUIRES_GRAD: Final[int] = 1
ENTRY_FLAG_PARAMETER: Final[int] = 2
ENTRY_FLAG_CONJ: Final[int] = 4
ENTRY_FLAG_NEG: Final[int] = 8
ENTRY_FLAGS_KNOWN: Final[int] = ENTRY_FLAG_REQUIRES_GRAD | ENTRY_FLAG_PARAMETER | ENTRY_FLAG_CONJ | ENTRY_FLAG_NEG

# --- limits -----------------------------------------------------------------

MAX_SECTIONS: Final[int] = (FOOTER_SIZE - FOOTER_FIXED_SIZE - DIGEST_SIZE) // SECTION_ROW_SIZE
"""Section rows that fit the footer."""
MAX_NDIM: Final[int] = 64
"""Dimensions of one tensor; torch's own limit."""
MAX_SHARED_NAME: Final[int] = 63
"""Bytes that a name may take over from the one before it; bounds what the names of a table grow to."""
MAX_TREE_DEPTH: Final[int] = 128
"""Nesting of containers in the manifest's tree; bounds a reader's recursion."""
MAX_INT_KEY_SIZE: Final[int] = 256
"""Bytes of an int that is a dict key; flat names hold its decimal form."""
MAX_FILE_SIZE: Final[int] = 2**63 - 1
"""Offsets must fit a signed 64-bit file position."""
MAX_LITERAL_SIZE: Final[int] = 256 * 1024 * 1024
"""Bytes of a foreign file outside its storages that a source section may keep."""

# --- files made of others ------------------------------------------------------

SALVAGE_KEY: Final[str] = "fastckpt.salvage"
"""Under which key of the metadata a salvaged file says what came back, and from where."""

STRIPPED_KEY: Final[str] = "fastckpt.strip_prefix"
"""Under which key of the metadata a file says which prefixes its tensors had before they were renamed, in order."""

# --- sets of files ----------------------------------------------------------

SET_NAME: Final[str] = "set.fckpt"
"""The file that names the shards of a set."""
SET_VERSION_KEY: Final[str] = "fastckpt_set"
"""Under which key of its state it says which version of the manifest it holds."""
SET_VERSION: Final[int] = 1
SET_SHARD: Final[str] = "shard-([0-9]{4,})-([0-9]{5,})[.]fckpt"
"""The names of shards: generation and rank. A new save takes a new generation, and touches no file of an old one."""
SET_TENSORS: Final[str] = "tensors"
"""The part of a shard's state that holds the parts of tensors."""
SET_OBJECTS: Final[str] = "objects"
"""The part that holds all else."""
SET_SHARD_KEY: Final[str] = "dcp"
"""Under which key of its metadata a shard says what its parts are parts of."""

# --- sums beside files ------------------------------------------------------

SUMS_SUFFIX: Final[str] = ".fckpt-sums"
"""What follows the name of a sealed file in the name of its sums file."""
SEAL_KEY: Final[str] = "seal"
"""Under which key of the metadata a sums file says what was sealed."""
SEAL_DIGESTS: Final[str] = "digests"
"""The tensor of a sums file that holds the leaf digests."""
SEAL_DIGESTS_COPY: Final[str] = "digests copy"
"""The tensor that holds them again, behind a leaf of zeros, in a sums file with parity."""
SEAL_ROWS: Final[str] = "PQR"
"""The tensors that hold parity: one letter for each row, in this order."""
SEAL_MAX_DEPTH: Final[int] = 255
"""Leaves of a group under parity, at most: so many numbers that are not 0 the field has."""

MODEL_SIGNATURE: Final[str] = "model.sig"
"""The file of OpenSSF model signing, whose digests are compared; it is signed after all others are sealed."""

# --- nanochat steps ---------------------------------------------------------

SAVE_MARK_KEY: Final[str] = "nanochat"
"""Under which key of the metadata a file says which save it belongs to."""
SAVED_AS_KEY: Final[str] = "nanochat_saved_as"
"""Under which key of the metadata a file without that says which role, step and rank it was written for."""
SAVE_HEAD_SIZE: Final[int] = 4096
"""Bytes of each tensor, from its start, that the digest of a save covers."""
