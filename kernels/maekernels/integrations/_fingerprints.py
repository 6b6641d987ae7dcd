"""Whether a function of another package is one that was read before its replacement was written.

A fingerprint is a hash of a function's code: its parameters' names and the words of its body, without docstring,
comments and layout, the same on every Python. Versions are not compared: a release that did not change what is replaced
is known, and one that did is not.
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

_LAYOUT = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


def fingerprint(function: Callable[..., Any]) -> str:
    """Of the function under its decorators. Raises `OSError` where there is no source."""
    return of_source(inspect.getsource(inspect.unwrap(function)))


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
