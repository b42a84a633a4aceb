"""Registries: tables of info records, from which lists, help texts and tests are made."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, runtime_checkable

from datadistill.utils.errors import RequestError, unknown_name


@runtime_checkable
class Info(Protocol):
    """What every record has: the name people type and one line of explanation."""

    @property
    def name(self) -> str: ...

    @property
    def line(self) -> str: ...


T = TypeVar("T", bound=Info)


@dataclass
class Registry(Generic[T]):
    """The records of one kind, looked up by name without regard to case.

    Attributes:
        kind: what the records are, in the singular, as error messages name it.
        records: in the order in which they are listed.
    """

    kind: str
    records: tuple[T, ...]

    def __iter__(self) -> Iterator[T]:
        return iter(self.records)

    def names(self) -> list[str]:
        return [record.name for record in self.records]

    def register(self, record: T) -> None:
        """Add a record, such as one of the user's own.

        Raises:
            RequestError: there is one of that name.
        """
        if any(known.name.lower() == record.name.lower() for known in self.records):
            raise RequestError(f"there is a {self.kind} named {record.name} already: give yours another name")
        self.records = (*self.records, record)

    def get(self, name: str) -> T:
        """The record of that name.

        Raises:
            RequestError: there is none; the nearest name is suggested.
        """
        for record in self.records:
            if record.name.lower() == name.lower():
                return record
        raise unknown_name(self.kind, name, self.names())
