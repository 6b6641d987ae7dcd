"""Whether a function of another package is one that was reviewed when its replacement was written.

A fingerprint is a hash of a function's code: its parameter names and the tokens of its body, without docstring,
comments and layout, identical on every Python version. Parameter defaults are not included. Versions are not compared:
a release that did not change the replaced code is accepted, and one that did is not.

The hash is of the function beneath its decorators, which the replacement removes as well: the replacements cover those
of the packages themselves (a tuple or an output object, recorded hidden states); `foreign_wrapper` detects any others.
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
    """The fingerprint of the function beneath its decorators. Raises `OSError` if there is no source."""
    return of_source(inspect.getsource(inspect.unwrap(function)))


def foreign_wrapper(function: Callable[..., Any]) -> str | None:
    """The module that defines a wrapper around the function, if it belongs to none of the PACKAGES.

    Identified by its globals: `functools.wraps` gives a wrapper the `__module__` of the function that it wraps.
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
    # From Python 3.12 on, an f-string is several tokens, without the spaces between them.
    return hashlib.sha256(f"{names}{''.join(words.split())}".encode()).hexdigest()[:16]
