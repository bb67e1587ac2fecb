"""Settings that decide a result: how they are recorded, hashed, compared and read again."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Self

from pydantic import BaseModel, ConfigDict


@dataclass(frozen=True)
class Absent:
    """What a record that lacks a field says by that: the value in use before there was the field.

    Stands in the annotation of a field that was added to a `Spec` later. It is no second default: the default
    may change, this value may not, because records keep their meaning.
    """

    value: Any


class Spec(BaseModel):
    """Settings that decide a result. Whether it was made before is looked up by them, in records and hashes.

    A field without `Absent` is always recorded. One added later is left out while it says what its absence
    says, so that its coming changes no hash and nothing is made again for it.
    """

    model_config = ConfigDict(frozen=True)

    def recorded(self, only: Collection[str] | None = None) -> dict[str, Any]:
        """Plain JSON values to store, hash and compare: all of them, or of the fields in `only`."""
        unsaid = {name for name, value in _absent(type(self)).items() if getattr(self, name) == value}
        return self.model_dump(mode="json", include=None if only is None else {*only}, exclude=unsaid)

    def added(self) -> list[tuple[str, Any]]:
        """What `recorded` holds of fields that were added later, for a hash that lists the others itself."""
        later = _absent(type(self))
        return [(name, value) for name, value in self.recorded().items() if name in later]

    @classmethod
    def of_record(cls, content: Any) -> Self:
        """The spec that `recorded` wrote, in this version or an earlier one; a spec is returned as it is.

        Raises:
            pydantic.ValidationError: something else, or a record with fields of a later version.
        """
        known = {**_absent(cls), **content} if isinstance(content, Mapping) else content
        return cls.model_validate(known, extra="forbid")


def _absent(spec: type[Spec]) -> dict[str, Any]:
    """What the absence of each field says, of those that were added later."""
    marks = ((name, mark) for name, field in spec.model_fields.items() for mark in field.metadata)
    return {name: mark.value for name, mark in marks if isinstance(mark, Absent)}
