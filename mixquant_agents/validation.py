"""What our frozen data has in common: one base class, and pydantic's complaints as one line.

Every model that a user fills derives from :class:`FrozenModel` or :class:`FrozenConfig`; both refuse unknown fields.
"""

from __future__ import annotations

import difflib
import enum
from collections.abc import Collection, Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from mixquant_agents.errors import ConfigError

__all__ = ["FrozenConfig", "FrozenModel", "config_error", "readable"]


class FrozenModel(BaseModel):
    """Data that cannot be changed and holds no field that its class does not name.

    Raises:
        pydantic.ValidationError: a field is missing, unknown or wrong.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")


class FrozenConfig(FrozenModel):
    """Settings that a user gives. Defaults are checked too.

    Raises:
        ConfigError: one line about every wrong field.
    """

    model_config = ConfigDict(validate_default=True)

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise config_error(type(self).__name__, error, type(self).model_fields) from None

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """What is not as by default, in the words in which it is given."""
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if field.is_required() or value != field.get_default(call_default_factory=True):
                yield name, value.value if isinstance(value, enum.Enum) else value


def config_error(what: str, error: ValidationError, known: Collection[str] = ()) -> ConfigError:
    """Our error for pydantic's: the one that a validator raised, else one line about every wrong field.

    Args:
        what: name of what was set up, such as ``EngineConfig``.
        known: names of its settings; the error names the one that was probably meant.
    """
    causes = (item.get("ctx", {}).get("error") for item in error.errors())
    own_error = next((cause for cause in causes if isinstance(cause, ConfigError)), None)
    return own_error or ConfigError(readable(what, error, known))


def readable(what: str, error: ValidationError, known: Collection[str] = ()) -> str:
    """One line: of each wrong field its name, the value given, and what is allowed.

    Of an unknown one what may have been meant, and what is ``known``.
    """
    fields: dict[str, list[Any]] = {}
    for item in error.errors():
        fields.setdefault(str(item["loc"][0]) if item["loc"] else "", []).append(item)
    complaints = []
    for field, items in fields.items():
        allowed = " or ".join(dict.fromkeys(item["msg"].removeprefix("Value error, ") for item in items))
        if not field:
            complaints.append(allowed)
        elif items[0]["type"] == "extra_forbidden":
            near = difflib.get_close_matches(field, known, 1)
            meant = f" (did you mean {near[0]!r}?)" if near else ""
            listed = f", it has {', '.join(sorted(known))}" if known else ""
            complaints.append(f"{what} has no setting {field!r}{meant}{listed}")
        elif items[0]["type"] == "missing":
            complaints.append(f"{what} needs {field!r}")
        else:
            # One error names the wrong part of the value; several come from the alternatives of one union.
            path = ".".join(str(part) for part in items[0]["loc"]) if len(items) == 1 else field
            complaints.append(f"{what}.{path} = {_short(items[0]['input'])}: {allowed}")
    return "; ".join(complaints)


def _short(value: object, limit: int = 100) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
