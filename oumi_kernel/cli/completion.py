"""`oumi completion`: scripts that ask `oumi __complete` for candidates."""

from __future__ import annotations

import sys
from typing import Literal

_BASH = """\
_oumi_complete() {
    local line
    COMPREPLY=()
    while IFS= read -r line; do
        COMPREPLY+=("$line")
    done < <("${COMP_WORDS[0]}" __complete "$COMP_CWORD" "${COMP_WORDS[@]}" 2>/dev/null)
    if [[ ${#COMPREPLY[@]} -gt 0 && ${COMPREPLY[0]} == *. ]]; then
        compopt -o nospace 2>/dev/null
    fi
}
complete -o default -F _oumi_complete oumi
"""

_ZSH = """\
#compdef oumi
_oumi_complete() {
    local -a found
    found=("${(@f)$("${words[1]}" __complete $((CURRENT - 1)) "${(@Q)words}" 2>/dev/null)}")
    found=(${found:#})
    if (( $#found )); then
        compadd -S '' -- ${(M)found:#*.}
        compadd -- ${found:#*.}
    else
        _files
    fi
}
compdef _oumi_complete oumi
"""

_FISH = """\
function __oumi_complete
    set -l before (commandline -opc)
    set -l current (commandline -ct)
    oumi __complete (count $before) $before "$current" 2>/dev/null
end
complete -c oumi -a '(__oumi_complete)'
"""

_SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def completion(shell: Literal["bash", "zsh", "fish"], /) -> None:
    """Print the completion script of a shell; put the line of the examples into its start-up file.

    Args:
        shell: bash, zsh or fish.
    """
    sys.stdout.write(_SCRIPTS[shell])
