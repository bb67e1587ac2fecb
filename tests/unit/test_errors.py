"""Messages are one line; errors come back whole from a worker process."""

import copy
import os
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from retroln import errors
from retroln.errors import GeometryError, InputError, RetroLNError, UserError, naming

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, UserError)]


def build(kind):
    named = {"file": Path("a/ct.nii.gz"), "expected": "4x4", "got": "(3, 3)", "fix": "write it anew"}
    return kind("bad affine", **named, **({"reason": "bad_affine"} if issubclass(kind, InputError) else {}))


def test_the_message_names_file_expected_got_and_fix():
    assert str(build(GeometryError)) == (
        "a/ct.nii.gz: bad affine; expected: 4x4; got: (3, 3); fix: write it anew"
    )
    assert str(UserError("no bucket")) == "no bucket"
    assert str(UserError("no bucket", fix="make one")) == "no bucket; fix: make one"


def test_the_message_can_be_written_whatever_a_file_is_called():
    error = InputError("bad", reason="r", file=os.fsdecode(b"caf\xe9/ct.nii.gz"))
    assert str(error) == "caf\\udce9/ct.nii.gz: bad"
    assert str(error).encode()
    assert error.file == "caf\udce9/ct.nii.gz"


def test_the_message_is_one_line():
    for broken in ("a\nb", "a\r\nb", "a\u2028b"):
        assert len(str(UserError(broken, got=broken)).splitlines()) == 1
    assert str(UserError("a\nb")) == "a b"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy])
def test_errors_survive_pickle_and_copy(kind, way):
    error = build(kind)
    error.case_id = "c1"
    back = way(error)
    assert type(back) is kind and str(back) == str(error) and back.args == error.args
    assert back.__dict__ == error.__dict__
    assert back.exit_code == kind.exit_code


def _raise():
    raise build(InputError)


def test_a_worker_process_hands_the_reason_back():
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool, pytest.raises(InputError) as caught:
        pool.submit(_raise).result()
    assert caught.value.reason == "bad_affine" and caught.value.fix == "write it anew"


def test_exit_codes_tell_the_kinds_apart():
    own = {kind: kind.exit_code for kind in KINDS if not issubclass(kind, InputError)} | {InputError: 3}
    assert len(set(own.values())) == len(own)
    assert all(code not in (0, RetroLNError.exit_code) for code in own.values())


def test_an_input_error_needs_a_reason():
    with pytest.raises(TypeError, match="reason"):
        InputError("bad")


def _refuse(file=None):
    raise GeometryError("bad", reason="bad_affine", file=file, expected="4x4", got="3x3", fix="write anew")


@pytest.mark.parametrize(
    ("own", "instead", "named"),
    [(None, False, "given"), ("own", False, "own"), ("own", True, "given"), (None, True, "given")],
)
def test_naming_fills_in_the_file_and_keeps_the_rest(own, instead, named):
    with pytest.raises(GeometryError) as caught, naming("given", instead=instead):
        _refuse(own)
    assert str(caught.value) == f"{named}: bad; expected: 4x4; got: 3x3; fix: write anew"
    assert caught.value.reason == "bad_affine"
