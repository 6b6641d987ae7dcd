"""config.json beside the weights: the sizes it tells must be those of the file."""

from __future__ import annotations

from diffmavil.model.exchange.names import Names
from diffmavil.model.exchange.reader import Reader
from diffmavil.model.exchange.vit import hidden_of

_AS_IN_THE_FILE = "as in the file"


def check_sizes(reader: Reader, names: Names) -> None:
    """Raise `ValueError`, with both values, where config.json tells another size than the encoder in the file has."""
    kernel = reader.state.take(f"{names.patch}.weight").shape
    check_told(reader, "num_hidden_layers", reader.depth(names))
    check_told(reader, "hidden_size", kernel[0])
    check_told(reader, "intermediate_size", hidden_of(reader.state, names))
    check_told(reader, "num_channels", kernel[1])
    if len(kernel) == 5:
        check_told(reader, "tubelet_size", kernel[2])
    check_area(reader, "patch_size", kernel[-2], kernel[-1])


def check_told(reader: Reader, name: str, has: int) -> None:
    """Raise `ValueError` if config.json tells `name`, and tells another value than `has`, the file's."""
    told = reader.told.get(name)
    if told not in (None, has):
        raise _refusal(reader, name, f"{has}, {_AS_IN_THE_FILE}")


def check_area(reader: Reader, name: str, height: int, width: int, why: str = _AS_IN_THE_FILE) -> None:
    """The same of a size along two axes, for which config.json may have one number or two."""
    if told_area(reader, name) not in (None, (height, width)):
        raise _refusal(reader, name, f"{height} x {width}, {why}")


def told_side(reader: Reader, name: str) -> int | None:
    """The size of a square. None: config.json does not tell it.

    Raises:
        ValueError: it is not a square, or as of `told_area`.
    """
    area = told_area(reader, name)
    if area is None:
        return None
    if area[0] != area[1]:
        raise _refusal(reader, name, "as high as wide")
    return area[0]


def told_area(reader: Reader, name: str) -> tuple[int, int] | None:
    """Height and width. None: config.json does not tell them.

    Raises:
        ValueError: it tells neither one number nor two.
    """
    told = reader.told.get(name)
    if told is None:
        return None
    sizes = told if isinstance(told, list) else [told, told]
    pair = [one for one in sizes if type(one) is int and one > 0]
    if not len(sizes) == len(pair) == 2:
        raise _refusal(reader, name, "a positive whole number, or two: height and width")
    return pair[0], pair[1]


def _refusal(reader: Reader, name: str, allowed: str) -> ValueError:
    return reader.state.refusal(f"config.json beside it tells {name}={reader.told[name]!r}: must be {allowed}")
