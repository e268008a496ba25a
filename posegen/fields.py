"""Fields of frozen dataclasses set by name, from text or from Python values, by their declared types."""

import dataclasses
import difflib
import math
import numbers
import types
import typing
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

Described = TypeVar("Described")

BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def replace_fields(
    described: Described, settings: Mapping[str, object], path: str, *, fixed: Collection[str] = ()
) -> Described:
    """A copy of a dataclass instance with those fields set; all at once, so that they are checked together.

    Text is parsed by the field's type: int, float, bool, str, Path, Literal, tuple ("64,32") and `| None` ("none");
    other values must be of the type, with int accepted for float. `path` is what the instance is called in messages.
    Raises ValueError for a field that does not exist or is `fixed`, naming those that can be set, for a value of
    another type, and for whatever the dataclass itself refuses.
    """
    kinds = typing.get_type_hints(type(described))
    known = [field.name for field in dataclasses.fields(described) if field.init and field.name not in fixed]  # pyright: ignore[reportArgumentType]
    values = {}
    for name, given in settings.items():
        if name not in known:
            raise unknown_setting(f"{path}.{name}", [f"{path}.{each}" for each in known])
        try:
            values[name] = convert(given, kinds[name])
        except ValueError:
            raise ValueError(f"{path}.{name} is {given!r}; expected {describe(kinds[name])}") from None
    return dataclasses.replace(described, **values)  # pyright: ignore[reportArgumentType]


def unknown_setting(given: str, known: Collection[str]) -> ValueError:
    """The error for a dotted path that is none of the known ones."""
    near = difflib.get_close_matches(given, known, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return ValueError(f"there is no setting '{given}'.{hint} There are: {', '.join(known)}")


def convert(given: object, kind: Any) -> object:
    """The value as the annotated type `kind`; raises ValueError where it is not one."""
    if _is_union(kind):
        return _convert_union(given, typing.get_args(kind))
    if typing.get_origin(kind) is Literal:
        return _one_of({str(option): option for option in typing.get_args(kind)}, given)
    if typing.get_origin(kind) is tuple:
        return _convert_tuple(given, typing.get_args(kind))
    if kind in _CONVERTERS:
        return _CONVERTERS[kind](given)
    raise ValueError(f"a field of type {kind} cannot be set")


def describe(kind: Any) -> str:
    """What values of a type are called in messages."""
    arguments = typing.get_args(kind)
    if _is_union(kind):
        return " or ".join("none" if each is types.NoneType else describe(each) for each in arguments)
    if typing.get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if typing.get_origin(kind) is tuple:
        count = "any number" if Ellipsis in arguments else str(len(arguments))
        return f"{count} of values such as {describe(arguments[0])}, separated by commas"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
    return names.get(kind, "something that cannot be given here")


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (Union, types.UnionType)


def _convert_union(given: object, kinds: tuple[Any, ...]) -> object:
    if types.NoneType in kinds and (given is None or (isinstance(given, str) and given.lower() == "none")):
        return None
    for kind in kinds:
        try:
            return convert(given, kind)
        except ValueError:
            continue
    raise ValueError


def _convert_tuple(given: object, kinds: tuple[Any, ...]) -> tuple[object, ...]:
    parts = [part.strip() for part in given.split(",")] if isinstance(given, str) else given
    if not isinstance(parts, list | tuple):
        raise ValueError
    if Ellipsis in kinds:
        kinds = (kinds[0],) * len(parts)
    return tuple(convert(part, kind) for part, kind in zip(parts, kinds, strict=True))


def _one_of(options: Mapping[str, object], given: object) -> object:
    for text, option in options.items():
        if given == text or (given == option and type(given) is type(option)):
            return option
    raise ValueError


def _to_bool(given: object) -> bool:
    return (
        given
        if isinstance(given, bool)
        else bool(_one_of(BOOLEANS, given.lower() if isinstance(given, str) else given))
    )


def _to_int(given: object) -> int:
    if isinstance(given, str) or (isinstance(given, numbers.Integral) and not isinstance(given, bool)):
        return int(given)
    raise ValueError


def _to_float(given: object) -> float:
    if isinstance(given, str) or (isinstance(given, numbers.Real) and not isinstance(given, bool)):
        value = float(given)
        if math.isfinite(value):
            return value
    raise ValueError


def _to_text(given: object) -> str:
    if isinstance(given, str):
        return given
    raise ValueError


def _to_path(given: object) -> Path:
    if isinstance(given, str | Path):
        return Path(given)
    raise ValueError


_CONVERTERS: dict[Any, Callable[[object], object]] = {
    bool: _to_bool,
    int: _to_int,
    float: _to_float,
    str: _to_text,
    Path: _to_path,
}
