"""Addresses of a catalog that cannot be one: refused before anybody is asked, without a password in it."""

from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from retroln.catalog.catalog import Catalog
from retroln.catalog.refusals import without_password
from retroln.cli.finding import tried
from retroln.errors import SettingsError


@pytest.mark.parametrize(
    ("address", "got"),
    [
        ("", "not a database address"),
        ("catalog.db", "not a database address"),
        ("postgresql://app:secret@db:12x/catalog", "not a database address"),
        ("postgresql://app:secret@[::1/catalog", "not a database address"),
        ("postgresql://app:se@cret@db/catalog", "more than one '@'"),
        ("postgresql+psycopg2://app:secret@db/catalog", "psycopg2"),
        ("mysql://app:secret@db/catalog", "mysql"),
        ("postgresql://app:secret@db/catalog?port=abc", "non-integer port"),
        ("postgresql://app:secret@/catalog?host=a,b&port=1,2,3", "hosts and ports"),
        ("postgresql://app:secret@db..example.org/catalog", "label empty"),
        ("sqlite://folder/catalog.db", "Invalid SQLite URL"),
        ("sqlite:///catalog.db?timeout=abc", "abc"),
    ],
)
def test_what_is_no_address_is_a_wrong_setting(address: str, got: str) -> None:
    with pytest.raises(SettingsError, match=r"cannot use this address") as caught:
        Catalog.open(address)
    assert caught.value.got is not None
    assert got in caught.value.got
    assert "RETROLN_CATALOG_URL" in str(caught.value.fix)
    assert "secret" not in str(caught.value)
    assert "cret@" not in str(caught.value)


def test_options_that_sqlite_has_are_taken(tmp_path: Path) -> None:
    opened = Catalog.open(f"sqlite:///{tmp_path}/catalog.db?timeout=3&check_same_thread=false")
    assert opened.runs() == []
    opened.close()


def test_a_password_is_never_shown_wherever_it_stands() -> None:
    address = make_url(
        "postgresql://app:secret@db/catalog?password=secret&sslpassword=secret&sslmode=require"
    )
    assert without_password(address) == "postgresql://app:***@db/catalog?sslmode=require"


@pytest.mark.parametrize(
    "place",
    ["postgresql://app:se@cret@db/x", "postgresql://app:se/cret@db/x", "postgresql://db/x?password=cret"],
)
def test_nor_does_the_doctor_show_it(place: str) -> None:
    assert "cret" not in tried("catalog", place, lambda: None, "RETROLN_CATALOG_URL").seen
