"""Whether a function of another package is one that was read before its replacement was written.

A fingerprint is a hash of a function's code: its parameters' names and the words of its body, without docstring,
comments and layout, the same on every Python. The defaults of parameters are not in it. Versions are not compared: a
release that did not change what is replaced is known, and one that did is not.

What is hashed is the function under its decorators, which a replacement takes away with it: those of the packages
themselves (a tuple or an output object, recorded hidden states) the replacements have too; anyone else's are found by
`foreign_wrapper`.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import io
import textwrap
import tokenize
from collections.abc import Callable
from typing import Any

PACKAGES = ("transformers", "timm", "torch")
_LAYOUT = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


def fingerprint(function: Callable[..., Any]) -> str:
    """Of the function under its decorators. Raises `OSError` where there is no source."""
    return of_source(inspect.getsource(inspect.unwrap(function)))


def foreign_wrapper(function: Callable[..., Any]) -> str | None:
    """The module that wrote a wrapper around the function, if it is of none of the PACKAGES.

    Told by its globals: `functools.wraps` gives a wrapper the `__module__` of what it wraps.
    """
    while (inner := getattr(function, "__wrapped__", None)) is not None:
        where = getattr(function, "__globals__", {}).get("__name__", type(function).__module__)
        if where.partition(".")[0] not in PACKAGES:
            return where
        function = inner
    return None


def of_source(source: str) -> str:
    source = textwrap.dedent(source)
    function = ast.parse(source).body[0]
    assert isinstance(function, ast.FunctionDef)
    arguments = function.args
    names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    names += [a.arg for a in (arguments.vararg, arguments.kwarg) if a is not None]
    body = function.body[1:] if ast.get_docstring(function, clean=False) is not None else function.body
    lines = source.splitlines(keepends=True)[body[0].lineno - 1 :]
    tokens = tokenize.generate_tokens(io.StringIO(textwrap.dedent("".join(lines))).readline)
    words = "".join(token.string for token in tokens if token.type not in _LAYOUT)
    # From Python 3.12 on an f-string is several tokens, without the spaces between them.
    return hashlib.sha256(f"{names}{''.join(words.split())}".encode()).hexdigest()[:16]
