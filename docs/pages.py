"""Makes the pages that say what the sources say: docs/cli.md and docs/python.md.

python docs/pages.py             # print them
python docs/pages.py --update    # write them
"""

from __future__ import annotations

import argparse

import commands
import reference


def main() -> None:
    """Print the pages, or write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true")
    update = parser.parse_args().update
    for module in (commands, reference):
        if update:
            module.PAGE.write_text(module.render())
        else:
            print(module.render())


if __name__ == "__main__":
    main()
