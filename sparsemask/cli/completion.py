"""Completion: what the Tab key needs to know of the commands and their flags, for bash and zsh.

    sparsemask completion bash > ~/.local/share/bash-completion/completions/sparsemask
    sparsemask completion zsh > ~/.sparsemask-completion.zsh      and in ~/.zshrc: source ~/.sparsemask-completion.zsh

Commands, flags and values with a fixed choice are completed, and files elsewhere. The script holds all of it: pressing
Tab starts no Python. Write it again after an update.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import shlex
from collections.abc import Sequence

from sparsemask.errors import command
from sparsemask.options import Parser, asked

_BODY = """\
_sparsemask() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} verb=${COMP_WORDS[1]} words=
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        words=@VERBS@
    else
        case "$verb $prev" in
@CHOICES@
        *)
            case "$cur" in
            -*)
                case "$verb" in
@FLAGS@
                esac
                ;;
            esac
            ;;
        esac
    fi
    if [ -n "$words" ]; then
        COMPREPLY=($(compgen -W "$words" -- "$cur"))
    else
        COMPREPLY=($(compgen -f -- "$cur"))
    fi
}
complete -o filenames -F _sparsemask sparsemask
"""
_ZSH = "autoload -U +X bashcompinit && bashcompinit\n"


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = Parser("completion", prog="sparsemask completion", description=__doc__)
    parser.add_argument("shell", choices=("bash", "zsh"), help="of which shell")
    options = parser.parse_args(argv)
    text = script()
    print(text if options.shell == "bash" else _ZSH + text, end="")
    return 0


def script() -> str:
    """The completion function of bash, which zsh understands too."""
    from sparsemask import spaces
    from sparsemask.cli.main import VERBS

    known = {"space": spaces.available()}  # which the parser does not list, since users register more
    flags, choices = [], []
    for verb in VERBS:
        actions = [] if verb == "completion" else flags_of(verb)
        names = sorted({name for action in actions for name in action.option_strings if name.startswith("--")})
        if names:
            flags.append(f"                {verb}) words={shlex.quote(' '.join(names))} ;;")
        for action in actions:
            if offered := action.choices or known.get(action.dest):
                heads = "|".join(f'"{verb} {name}"' for name in action.option_strings)
                words = shlex.quote(" ".join(map(str, offered)))
                choices.append(f"        {heads}) words={words} ;;")
    verbs = shlex.quote(" ".join([*VERBS, "--help", "--version"]))
    text = _BODY.replace("@VERBS@", verbs).replace("@FLAGS@", "\n".join(flags))
    return text.replace("@CHOICES@", "\n".join([*choices, '        "completion completion") words="bash zsh" ;;']))


def flags_of(verb: str) -> list[argparse.Action]:
    """The flags of a command that have a text, from its own parser."""
    from sparsemask.cli.main import VERBS

    module = importlib.import_module(VERBS[verb])
    aside = io.StringIO()
    with asked() as parsers, contextlib.redirect_stdout(aside), contextlib.redirect_stderr(aside):
        with contextlib.suppress(SystemExit):
            module.main(["--help-all"])
    return [action for action in parsers[-1].visible() if action.option_strings] if parsers else []
