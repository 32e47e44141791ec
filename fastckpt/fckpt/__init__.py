"""One ``.fckpt`` file, without torch: opening, reading, verifying, writing it."""
