"""Griffe extension: jaxtyping's shapes as written; public names with or without `__all__`; no fields told twice."""

from typing import Any

import griffe


class PublicApi(griffe.Extension):
    """What the API pages show of the package."""

    def on_class(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        """Show every class without an underscore, in `__all__` or not."""
        cls.public = not cls.name.startswith("_")

    def on_function(self, *, func: griffe.Function, **kwargs: Any) -> None:
        """Show every function without an underscore, its shapes as they are written."""
        func.public = not func.name.startswith("_")
        for parameter in func.parameters:
            _restore(parameter.annotation)
        _restore(func.returns)

    def on_attribute(self, *, attr: griffe.Attribute, **kwargs: Any) -> None:
        """Restore the shapes of an attribute; hide the attributes of instances and the fields of dataclasses."""
        _restore(attr.annotation)
        _restore(attr.value)
        owner = attr.parent
        if owner and owner.is_class and not attr.has_docstring and "property" not in attr.labels:
            assigned_in_method = "class-attribute" not in attr.labels and attr.annotation is None
            if assigned_in_method or "dataclass" in owner.labels:
                attr.public = False


def _restore(expression: Any) -> None:
    """Make the last argument of `Float[Tensor, "batch"]` a string again, where Griffe read a forward reference."""
    if not isinstance(expression, griffe.Expr):
        return
    if isinstance(expression, griffe.ExprSubscript) and _is_jaxtyping(expression.left):
        arguments = expression.slice
        if isinstance(arguments, griffe.ExprTuple):
            shape = str(arguments.elements[-1]).strip("'\" ")
            arguments.elements = [*arguments.elements[:-1], f'"{shape}"']
        return
    for part in expression.iterate(flat=False):
        if part is not expression:
            _restore(part)


def _is_jaxtyping(name: Any) -> bool:
    return isinstance(name, griffe.ExprName | griffe.ExprAttribute) and name.canonical_path.startswith("jaxtyping.")
