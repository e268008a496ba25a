"""Settings: the fields of frozen dataclasses, read, set and checked by name.

A field's annotation is its type and its bounds, as in `width: Positive = 128`. The fields of a dataclass
that is held in a field are settings of the holder: `steps` of a stage is a field of its `training`. There, None says
that the holder has no such setting.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union

from annotated_types import Ge, GroupedMetadata, Gt, Interval
from pydantic import ConfigDict, TypeAdapter, ValidationError

Positive = Annotated[int, Ge(1)]
Weight = Annotated[float, Ge(0)]
Rate = Annotated[float, Gt(0)]
Share = Annotated[float, Interval(ge=0, le=1)]
Decay = Annotated[float, Interval(ge=0, lt=1)]

Described = TypeVar("Described")

TYPES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
BOUNDS = {"gt": "greater than", "ge": "at least", "lt": "less than", "le": "at most", "multiple_of": "a multiple of"}


def check_known(what: str, given: str, known: Collection[str]) -> None:
    """Raise ValueError, with the known names and the nearest of them, where the given name is none of them."""
    if given not in known:
        near = difflib.get_close_matches(given, known, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise ValueError(f"no {what} is called '{given}'.{hint} There are: {', '.join(known)}")


def unknown_setting(given: str, known: Collection[str]) -> ValueError:
    """Return the error for a dotted path that is none of the known ones."""
    near = difflib.get_close_matches(given, known, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return ValueError(f"there is no setting '{given}'.{hint} There are: {', '.join(known)}")


def settings_of(described: Any) -> dict[str, Any]:
    """Return a dataclass's settings by name, those of the dataclasses that it holds among them."""
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(described):
        value = getattr(described, field.name)
        if dataclasses.is_dataclass(value):
            flat |= {name: setting for name, setting in settings_of(value).items() if setting is not None}
        else:
            flat[field.name] = value
    return flat


def replace_fields(
    described: Described, settings: Mapping[str, object], path: str, *, fixed: Collection[str] = ()
) -> Described:
    """Return a copy of a dataclass instance with some settings replaced, all at once.

    Text is parsed by the field's type: int, float, bool, str, Path, Literal, tuple ("64,32") and `| None` ("none");
    other values must be of the type, with int accepted for float.

    Args:
        described: The instance.
        settings: New values by name.
        path: The name of the instance in messages, such as "refinement".
        fixed: Names of fields that are no settings.

    Raises:
        ValueError: A setting does not exist, its value is of another type or out of bounds, or the dataclass itself
            refuses it.
    """
    known = [name for name in settings_of(described) if name not in fixed]
    for name in settings:
        if name not in known:
            raise unknown_setting(f"{path}.{name}", [f"{path}.{each}" for each in known])
    types_, changes = _field_types(type(described)), {}
    for name in types_:
        value = getattr(described, name)
        if dataclasses.is_dataclass(value):
            held = {inner: settings[inner] for inner in settings_of(value) if inner in settings}
            changes |= {name: replace_fields(value, held, path)} if held else {}
        elif name in settings:
            changes[name] = _parsed(settings[name], types_[name], f"{path}.{name}")
    return dataclasses.replace(described, **changes)  # pyright: ignore[reportArgumentType]


def check_fields(described: Any, path: str) -> None:
    """Raise ValueError for the first setting of a dataclass, called `path`, of a wrong type or out of bounds."""
    for name, kind in _field_types(type(described)).items():
        value = getattr(described, name)
        if dataclasses.is_dataclass(value):
            check_fields(value, path)
        else:
            _parsed(value, kind, f"{path}.{name}")


@cache
def _field_types(described: type) -> dict[str, Any]:
    hints = typing.get_type_hints(described, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(described) if field.init}


@cache
def _adapter(kind: Any) -> TypeAdapter:
    return TypeAdapter(kind, config=ConfigDict(allow_inf_nan=False))


def _parsed(given: object, kind: Any, path: str) -> Any:
    """The value as the annotated type; raises ValueError in terms of `path`."""
    bare = _bare(kind)
    value = _from_text(given, bare) if isinstance(given, str) else _plain(given)
    try:
        value = _adapter(bare).validate_python(value, strict=not isinstance(given, str))
    except ValidationError:
        raise ValueError(f"{path} is {given!r}; expected {_described(bare)}") from None
    try:
        return _adapter(kind).validate_python(value)
    except ValidationError:
        raise ValueError(f"{path} is {value}; it must be {_bounds(kind)}") from None


def _bare(kind: Any) -> Any:
    """The type without bounds."""
    if typing.get_origin(kind) is Annotated:
        return _bare(typing.get_args(kind)[0])
    return Union[tuple(map(_bare, typing.get_args(kind)))] if _is_union(kind) else kind  # noqa: UP007


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (Union, types.UnionType)


def _plain(given: Any) -> object:
    """NumPy's numbers as Python's, and lists as tuples."""
    given = given.item() if hasattr(given, "dtype") else given
    return tuple(given) if isinstance(given, list) else given


def _from_text(text: str, kind: Any) -> object:
    """The text as pydantic reads it."""
    arguments = typing.get_args(kind)
    if types.NoneType in arguments:
        others = [each for each in arguments if each is not types.NoneType]
        return None if text.lower() == "none" else _from_text(text, others[0])
    if typing.get_origin(kind) is tuple:
        return tuple(part.strip() for part in text.split(","))
    if typing.get_origin(kind) is Literal:
        return {str(option): option for option in arguments}.get(text, text)
    return text


def _described(kind: Any) -> str:
    """The values of a type, in words."""
    arguments = typing.get_args(kind)
    if _is_union(kind):
        return " or ".join("none" if each is types.NoneType else _described(each) for each in arguments)
    if typing.get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if typing.get_origin(kind) is tuple:
        count = "any number" if Ellipsis in arguments else str(len(arguments))
        return f"{count} of values such as {_described(_bare(arguments[0]))}, separated by commas"
    return TYPES.get(kind, "something that cannot be given here")


def _bounds(kind: Any) -> str:
    """The bounds of a type, in words."""
    if _is_union(kind):
        return " or ".join(filter(None, map(_bounds, typing.get_args(kind))))
    metadata = getattr(kind, "__metadata__", ())
    single = [each for group in metadata for each in (group if isinstance(group, GroupedMetadata) else [group])]
    bounds = [f"{words} {getattr(b, name):g}" for b in single for name, words in BOUNDS.items() if hasattr(b, name)]
    return " and ".join(bounds)
