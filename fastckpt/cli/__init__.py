"""The ``fastckpt`` command: one module per subcommand, loaded only when it is the one asked for.

A command module has ``add_arguments(parser)``, ``run(args, out) -> exit
code``, and ``EXAMPLES``, and is listed in `fastckpt.cli.parsers.COMMANDS`.
"""
