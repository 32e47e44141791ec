"""``python -m fastckpt``: the same as the ``fastckpt`` command."""

from fastckpt.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
