"""Plain data -> YAML that our reader, and YAML 1.1 readers, read back as the same data."""

from __future__ import annotations

import re
from typing import Any

import yaml


class _Dumper(yaml.SafeDumper):
    """Quotes every string that our reader would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write equal objects out each time."""
        return True


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    """Write text with breaks or marks that a plain or single-quoted scalar would change in double quotes."""
    style = None if text.replace(" ", "").isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)
_NUMBER = re.compile(r"[-+]?(?:\.[0-9]+|[0-9](?:_?[0-9])*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z")
_OCTAL_OR_HEX = re.compile(r"0(?:o[0-7]+|x[0-9a-fA-F]+)\Z")
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+.0123456789"))
_Dumper.add_implicit_resolver("tag:yaml.org,2002:int", _OCTAL_OR_HEX, ["0"])
_Dumper.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?[0-9](?:_?[0-9])*\Z"), list("-+0123456789"))


def to_yaml(tree: Any) -> str:
    """Return `tree`, of dicts, lists and scalars, as YAML in its own order."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
