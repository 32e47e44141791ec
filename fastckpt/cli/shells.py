"""Shell completion, made from the parsers of the commands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from fastckpt.cli.parsers import COMMANDS, Argument, arguments_of

_FRAME_OPTIONS: Final = ("--help", "--version")


def _bash() -> str:
    cases = []
    for command in COMMANDS:
        options = " ".join(name for argument in arguments_of(command) for name in argument.names)
        words = " ".join(word for argument in arguments_of(command) if not argument.names for word in argument.choices)
        cases.append(f'        {command}) options="{options}" words="{words}" ;;')
    values = [f"        {line}" for line in _bash_values()]
    return "\n".join(
        [
            "# bash completion for fastckpt",
            "_fastckpt() {",
            '    local word=${COMP_WORDS[COMP_CWORD]} command=${COMP_WORDS[1]} options="" words=""',
            "    COMPREPLY=()",
            "    if ((COMP_CWORD == 1)); then",
            f'        COMPREPLY=($(compgen -W "{" ".join((*COMMANDS, *_FRAME_OPTIONS))}" -- "$word"))',
            "        return",
            "    fi",
            '    case "$command ${COMP_WORDS[COMP_CWORD - 1]}" in',
            *values,
            "    esac",
            '    case "$command" in',
            *cases,
            "    esac",
            '    if [[ $word == -* || $words ]]; then COMPREPLY=($(compgen -W "$words $options" -- "$word")); fi',
            "}",
            "complete -o default -F _fastckpt fastckpt",
        ]
    )


def _bash_values() -> Iterator[str]:
    """What follows the options that take a value: one of a few words, or nothing that is known; else bash has files."""
    free = []
    for command in COMMANDS:
        for argument in arguments_of(command):
            patterns = [f'"{command} {name}"' for name in argument.names if argument.takes]
            if argument.choices and patterns:
                words = " ".join(argument.choices)
                yield f'{"|".join(patterns)}) COMPREPLY=($(compgen -W "{words}" -- "$word")); return ;;'
            elif not argument.is_path:
                free += patterns
    yield f"{'|'.join(free)}) compopt +o default 2>/dev/null; return ;;"


def _zsh() -> str:
    described = "\n".join(f"        {_zsh_quoted(f'{name}:{about}')}" for name, about in COMMANDS.items())
    cases = []
    for command in COMMANDS:
        arguments = arguments_of(command)
        words = " ".join(word for argument in arguments if not argument.names for word in argument.choices)
        specs = [spec for argument in arguments for spec in _zsh_options(argument)]
        specs.append(f"*:file:{f'({words})' if words else '_files'}")
        lines = " \\\n".join(f"            {_zsh_quoted(spec)}" for spec in specs)
        cases.append(f"        {command}) _arguments \\\n{lines} ;;")
    return "\n".join(
        [
            "#compdef fastckpt",
            "_fastckpt() {",
            "    local -a commands=(",
            described,
            "    )",
            "    if ((CURRENT == 2)); then",
            "        _describe command commands",
            "        return",
            "    fi",
            "    shift words",
            "    ((CURRENT--))",
            "    case $words[1] in",
            *cases,
            "    esac",
            "}",
            'if [[ $funcstack[1] == _fastckpt ]]; then _fastckpt "$@"; else compdef _fastckpt fastckpt; fi',
        ]
    )


def _zsh_options(argument: Argument) -> Iterator[str]:
    action = f"({' '.join(argument.choices)})" if argument.choices else "_files" if argument.is_path else " "
    about = argument.about.replace("\\", "\\\\").replace("[", "\\[").replace("]", "\\]")
    for name in argument.names:
        yield f"{name}[{about}]" + (f":{argument.takes}:{action}" if argument.takes else "")


def _zsh_quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _fish() -> str:
    first = "complete -c fastckpt -n __fish_use_subcommand -f"
    lines = ["# fish completion for fastckpt", f"{first} -l version -d 'the version'"]
    for command, about in COMMANDS.items():
        lines.append(f"{first} -a {command} -d {_fish_quoted(about)}")
        seen = f"complete -c fastckpt -n '__fish_seen_subcommand_from {command}'"
        for argument in arguments_of(command):
            if not argument.names:
                if argument.choices:
                    lines.append(f"{seen} -f -a {_fish_quoted(' '.join(argument.choices))}")
                continue
            names = [f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in argument.names]
            value = "" if not argument.takes else " -r" if argument.is_path and not argument.choices else " -x"
            words = f" -a {_fish_quoted(' '.join(argument.choices))}" if argument.choices else ""
            lines.append(f"{seen} {' '.join(names)}{value}{words} -d {_fish_quoted(argument.about)}")
    return "\n".join(lines)


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SHELLS: Final[dict[str, Callable[[], str]]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
"""What makes the completion of each shell."""
