"""No key leaves its store."""

from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retroln.errors import InputError
from retroln.storage.keys import is_hidden, safe_key, safe_prefix


@pytest.mark.parametrize(
    "key", ["ct.nii.gz", "p1/c1/ct.nii.gz", "Müller 3/ct (1).nii.gz", "a..b/c", "x" * 255]
)
def test_ordinary_keys_pass_unchanged(key: str):
    assert safe_key(key) == key


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("", "empty"),
        ("/etc/passwd", "absolute"),
        ("a//b", "empty name"),
        ("a/", "empty name"),
        ("../a", "leaves"),
        ("a/../../b", "leaves"),
        ("./a", "leaves"),
        ("a/.retroln/x", "hidden"),
        (".partial-1", "hidden"),
        ("a\\..\\b", "backslash"),
        ("a\nb", "control"),
        ("a\x00b", "control"),
        ("caf\udce9/ct.nii.gz", "no UTF-8 text"),
        ("x" * 256, "longer than 255"),
        ("/".join(["abcdefgh"] * 120), "longer than 1024"),
        ("ü" * 128, "longer than 255"),
    ],
)
def test_unsafe_keys_say_why(key: str, why: str):
    with pytest.raises(InputError, match=why) as caught:
        safe_key(key)
    assert caught.value.reason == "unsafe_key"


@given(st.text(max_size=40))
def test_a_key_that_passes_stays_below_its_root(key: str):
    try:
        safe_key(key)
    except InputError:
        return
    path = PurePosixPath("/root/store") / key
    assert path.parts[:3] == ("/", "root", "store")
    assert ".." not in path.parts
    assert str(path) == f"/root/store/{key}"


@pytest.mark.parametrize("prefix", ["", "a", "a/", "a/b"])
def test_prefixes_may_end_in_a_slash(prefix: str):
    assert safe_prefix(prefix) == prefix


@pytest.mark.parametrize("prefix", ["/", "../", "a//"])
def test_unsafe_prefixes_are_refused(prefix: str):
    with pytest.raises(InputError):
        safe_prefix(prefix)


def test_hidden_means_a_part_with_a_leading_dot():
    assert is_hidden("a/.DS_Store")
    assert is_hidden(".retroln/sha256/a")
    assert not is_hidden("a.b/c.")
