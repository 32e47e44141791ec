"""`fastckpt.convert`: foreign checkpoints to ``.fckpt`` and back, one file or a whole directory."""
