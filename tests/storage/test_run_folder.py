"""A run's folder: its owner, its pieces, and its refusals."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import safetensors.numpy

from slth_jax import storage
from slth_jax.storage import CheckpointError, Damaged, Locked, RunFolder

CONFIG = {"seeds": 2, "grid": {"width": [4, 8]}, "trial": "a"}


def run_folder(path, changes=None, **options):
    options = {"grows": ("seeds",), "ignores": ("trial",), **options}
    return RunFolder(path, {**CONFIG, **(changes or {})}, **options)


FORMS = [storage.Folders(), storage.Files()]


@pytest.mark.parametrize("form", FORMS, ids=["folders", "files"])
def test_a_piece_is_saved_and_loaded_with_its_notes(tmp_path, form):
    run = run_folder(tmp_path, form=form)
    arrays = {"bits": np.arange(6, dtype=np.uint8).reshape(2, 3)}
    with run.claim():
        assert run.recorded() is None and run.names() == []
        finish = run.save("a", arrays, {"seconds": 1.5}, contents=[0, 1])
        assert not run.has("a")
        finish()
        assert run.names() == ["a"] and run.whole("a", [0, 1]) and not run.has("b")
    loaded, notes = run_folder(tmp_path, form=form).load("a", arrays, contents=[0, 1])
    np.testing.assert_array_equal(loaded["bits"], arrays["bits"])
    assert notes["seconds"] == 1.5 and run.recorded() == CONFIG
    with pytest.raises(Damaged, match="belongs to another run or place"):
        run.load("a", arrays, contents=[1, 0])
    with run.claim():
        assert not run.whole("a", [1, 0])  # moved aside
        assert run.names() == []
        run.save("a", arrays, contents=[1, 0])()
        run.drop("a")
        assert run.names() == []


@pytest.mark.parametrize("form", FORMS, ids=["folders", "files"])
def test_a_cut_of_a_piece_is_noticed(tmp_path, form):
    arrays = {"bits": np.arange(256, dtype=np.uint8)}
    run = run_folder(tmp_path, form=form)
    with run.claim():
        run.save("a", arrays)()
    place = tmp_path / "pieces"
    for path in [path for path in place.rglob("*") if path.is_file()]:
        good = path.read_bytes()
        path.write_bytes(good[:-1] or b"x")
        with pytest.raises(Damaged) as caught:
            run.load("a", arrays)
        assert "\n" not in str(caught.value) and str(place) in str(caught.value)
        path.write_bytes(good)
    run.load("a", arrays)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": 1}, r"seeds is 2 there and 1 here \(it may go on with these and more"),
        ({"seeds": [1, 0]}, r"seeds is 2 there and \[1, 0\] here"),
        ({"grid": {"width": [4, 9]}}, r"grid.width\[1\] is 8 there and 9 here"),
        ({"rate": 0.1}, "rate is missing there and 0.1 here"),
    ],
)
def test_another_run_is_refused_and_a_longer_one_goes_on(tmp_path, changes, words):
    with run_folder(tmp_path).claim():
        run_folder(tmp_path).save("a", {"x": np.ones(1)})()
    with (
        pytest.raises(CheckpointError, match=f"holds another fit: {words}") as caught,
        run_folder(tmp_path, changes, kind="fit").claim(),
    ):
        pass
    assert "\n" not in str(caught.value)
    for longer in ({"seeds": 3}, {"seeds": [0, 1, 7]}, {"trial": "b"}):
        with run_folder(tmp_path, longer).claim():
            pass


def test_seeds_added_by_another_shard_stay_recorded(tmp_path):
    with run_folder(tmp_path).claim():
        run_folder(tmp_path, {"seeds": 3}).save("b", {"x": np.ones(1)})()
        run_folder(tmp_path).save("a", {"x": np.ones(1)})()
    assert run_folder(tmp_path).recorded()["seeds"] == 3
    with pytest.raises(CheckpointError, match=r"grid.width\[1\] is 8 there and 9 here"):
        run_folder(tmp_path, {"grid": {"width": [4, 9]}}).save("c", {"x": np.ones(1)})()


def test_a_folder_is_free_until_its_first_piece(tmp_path):
    with run_folder(tmp_path).claim():
        pass
    run_folder(tmp_path).record()  # as a process leaves it that is killed before the piece is seen
    with run_folder(tmp_path, {"grid": {}}).claim():
        pass
    (tmp_path / "other").mkdir()
    run = run_folder(tmp_path / "other", pieces=None)
    run.record()
    with pytest.raises(CheckpointError, match=r"grid\.width is"):
        run_folder(tmp_path / "other", {"grid": {}}, pieces=None).compare()


def test_one_process_holds_a_folder_or_a_shard(tmp_path):
    with run_folder(tmp_path, shard="0/2").claim(), run_folder(tmp_path, shard="1/2").claim():
        for shard in (None, "0/2"):
            with pytest.raises(Locked), run_folder(tmp_path, shard=shard).claim():
                pass


def test_a_piece_file_of_the_first_versions_is_read(tmp_path):
    bits = np.arange(4, dtype=np.uint8)
    notes = {"seconds": 1, "sha256": hashlib.sha256(bits.tobytes()).hexdigest()}
    (tmp_path / "parts").mkdir()
    safetensors.numpy.save_file(
        {"bits": bits}, tmp_path / "parts" / "a.safetensors", {"piece": json.dumps(notes)}
    )
    run = run_folder(tmp_path, form=storage.Files(), pieces="parts")
    loaded, read = run.load("a")
    assert read == {"seconds": 1} and (loaded["bits"] == bits).all()


@pytest.mark.parametrize("part", ["", "pieces"])
@pytest.mark.parametrize("again", [False, True])
def test_a_folder_that_is_removed_while_in_use_is_an_error(tmp_path, part, again):
    """Otherwise the folder would be created anew, without its finished pieces."""
    path = tmp_path / "run"
    run = run_folder(path)
    with pytest.raises(CheckpointError, match="was removed or replaced"), run.claim():
        run.save("a", {"x": np.ones(1)})()
        shutil.rmtree(path / part)
        if again:
            (path / part).mkdir()
        run.save("b", {"x": np.ones(1)})()
    assert not run.has("b")


def test_a_configuration_that_json_cannot_hold_is_refused_at_once(tmp_path):
    for value in (object(), {1, 2}, b"x", 1j):
        with pytest.raises(ValueError, match=r"config\.rate must be in JSON's types") as caught:
            run_folder(tmp_path, {"rate": value})
        assert "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir())
