"""From a file to tensors: `fastckpt.load`, `load_into`, `stream`, `open` and `verify_tensors`."""
