"""The words that promise something: each is said only where all that it claims was looked at.

`tests/claims/` has a table for each of them: what must be true for it, and
inputs that break just that. A word that is not here is no verdict: nothing
that is shown as good news may do without one.
"""

from __future__ import annotations

from enum import Enum


class Verdict(str, Enum):
    """A promise that a command or report makes. The value is the word that people read."""

    INTACT = "intact"
    """A checksum proves every byte of the file: one of its own, or of the seal beside it. Where there is a seal, that
    proves all of them, and the file's own checksums match, too."""
    PRESENT = "present"
    """Every byte that the format names is there and none besides; nothing in the file proves them all, or that they are
    of one save."""
    IDENTICAL = "identical"
    """Of two checkpoints every bit was compared, and is the same."""
    EQUAL_DIGESTS = "equal digests"
    """Two .fckpt files were saved with the same content; the bytes of their tensors were not read."""
    SAME_STRUCTURE = "same structure"
    """Of two checkpoints all is the same but the bytes of tensors, which were not compared."""
    COMPLETE = "complete"
    """Nothing of the damaged file is missing in what was salvaged from it, and no byte of it is known to be wrong."""
    NOTHING_DAMAGED = "nothing is damaged"
    """Every tensor of the file is there, and a checksum proves each."""
    NOTHING_MISSING = "nothing is missing, and nothing can prove it"
    """Every tensor of the file is there, but nothing proves each, or that they are of one save."""
    WHOLE = "whole"
    """All files of a step are there, none is damaged, and they are of one save."""
    NOTHING_WRONG = "nothing wrong"
    """Of the steps that were looked at training goes on, as far as their files tell."""
    SOURCE_VERIFIED = "source verified"
    """Every byte of a tensor that was converted was proven by a checksum of the source."""
    BYTE_FOR_BYTE = "the original file, byte for byte"
    """What was written is the file that the .fckpt was made from."""
    WAY_BACK = "exact way back kept"
    """Converting back gives the source byte for byte."""
    AS_SEALED = "OK"
    """Every byte of a file is the one that was sealed, none is missing and none was added."""
    ALL_AS_SEALED = "every file as sealed"
    """Of all files that were asked for, and of every file in a directory, that is true; and no sealed file is gone."""
    AS_SIGNED = "digest as signed; signature not checked"
    """The SHA-256 of the file is the one that the signature beside it states; nobody looked who signed that."""
    HEALED = "healed: every byte as sealed"
    """A file that was damaged, or its seal, is again what was sealed: every byte of the file that was written was
    compared with the seal before it took its name."""
    HEALED_INSIDE = "healed: every byte as saved"
    """A .fckpt that was damaged is again what was saved with its parity inside: every byte of it is proven by its own
    checksums. Nothing is said of a seal beside it."""
    VERIFIED = "verified"
    """What was written was read back, and its checksums match."""

    def __str__(self) -> str:
        return self.value
