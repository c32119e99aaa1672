"""Several processes at one folder: saves wait for each other, readers find one model whole.

Each process here is forked and reports what it found; before there were locks and snapshots, about
every third save and every third load failed in these tests, or gave a model mixed from two.
"""

import json
import os
import signal
import time
from itertools import chain

import pytest
import torch

import nestedseg
from nestedseg.data import LabelledImages, find_pairs
from nestedseg.hub import lock, storage
from nestedseg.hub.lock import LOCK, FolderInUse, locked
from nestedseg.hub.snapshot import Snapshot, weights_in
from nestedseg.training import Settings, fit

CONFIG = "config.json"


def make(seed, heads):
    """Models that differ in their config, so that weights of another one are seen."""
    torch.manual_seed(seed)
    model = nestedseg.create("unetpp", encoder_channels=(4, 6, 8), deep_supervision=heads).eval()
    model.set_preprocessing(mean=[0.1 + seed / 10] * 3)
    return model


def same(a, b):
    first, second = a.state_dict(), b.state_dict()
    return a.config == b.config and all(torch.equal(first[name], second[name]) for name in second)


def start(work):
    """``work()`` in a process of its own, and where it will say what came of it."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        try:
            text = json.dumps(work())
        except BaseException as error:
            text = json.dumps([f"{type(error).__name__}: {error}"])
        os.write(writer, text.encode())
        os._exit(0)
    os.close(writer)
    return pid, reader


def result(process):
    pid, reader = process
    with os.fdopen(reader, "rb") as file:
        text = file.read()
    os.waitpid(pid, 0)
    return json.loads(text)


def holding(folder):
    """A process that holds the lock of a folder until it is killed, once it does."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        with locked(folder, 0, ""):
            os.write(writer, b"!")
            time.sleep(60)
            os._exit(1)
    os.close(writer)
    assert os.read(reader, 1) == b"!"
    os.close(reader)
    return pid


def kill(pid):
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


# -- saves -----------------------------------------------------------------------------------------


def save_at_once(folder, saves):
    """What fails where three processes save, one of them a model of another number of files."""
    models = [make(0, True), make(1, True), make(2, False)]

    def saving(model):
        def work():
            failures = []
            for _ in range(saves):
                try:
                    model.save_pretrained(folder)
                except Exception as error:
                    failures.append(repr(error))
            return failures
        return work

    failures = [result(process) for process in [start(saving(model)) for model in models]]
    loaded = nestedseg.from_pretrained(folder)
    assert any(same(loaded, model) for model in models)
    shards = 0 if same(loaded, models[2]) else 2
    assert len(os.listdir(folder)) == (2 + shards if shards else 2)  # nothing else is left
    return [*chain(*failures)]


def test_three_processes_save_into_one_folder(tmp_path):
    assert save_at_once(tmp_path, saves=3) == []


@pytest.mark.slow
def test_three_processes_save_into_one_folder_for_long(tmp_path):
    assert save_at_once(tmp_path, saves=40) == []


def test_a_folder_in_use_names_who_holds_it(tmp_path, monkeypatch):
    pid = holding(tmp_path)
    monkeypatch.setattr(storage, "WAIT", 0.1)
    began = time.monotonic()
    with pytest.raises(FolderInUse, match=rf"in use by process {pid} on '.+', since '20.+Wait"):
        make(0, True).save_pretrained(tmp_path)
    assert 0.1 <= time.monotonic() - began < 10
    assert os.listdir(tmp_path) == [LOCK]
    kill(pid)  # however a process ends, its locks do
    make(0, True).save_pretrained(tmp_path)
    assert LOCK not in os.listdir(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "5", '{"process": 1}', "x" * 10 ** 6])
def test_a_lock_file_of_no_sense_is_another_process(tmp_path, text):
    (tmp_path / LOCK).write_text(text)
    assert lock.holder(tmp_path / LOCK) == "another process"
    with locked(tmp_path, 0, ""):  # nobody holds it
        assert lock.holder(tmp_path / LOCK).startswith(f"process {os.getpid()} on ")


def test_what_a_killed_save_left_goes_but_not_what_a_save_is_writing(tmp_path, monkeypatch):
    left = tmp_path / ".saving.1-ab"
    left.mkdir()
    pid = holding(tmp_path)
    monkeypatch.setattr(storage, "WAIT", 0)
    with pytest.raises(FolderInUse):
        make(0, True).save_pretrained(tmp_path)
    assert left.exists()
    kill(pid)
    make(0, True).save_pretrained(tmp_path)
    assert not left.exists()


def test_a_forked_process_does_not_keep_a_lock(tmp_path):
    with locked(tmp_path, 0, ""):
        pid = os.fork()
        if pid == 0:
            time.sleep(60)
            os._exit(0)
    try:
        with locked(tmp_path, 5, ""):
            pass
    finally:
        kill(pid)


def test_a_lock_is_one_between_threads_too(tmp_path):
    with locked(tmp_path, 0, ""), pytest.raises(FolderInUse, match=f"process {os.getpid()}"), \
            locked(tmp_path, 0, ""):
        pass


def test_without_locks_of_the_file_system_models_are_saved_as_before(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_lock", lambda file: False)
    (tmp_path / ".saving.1-ab").mkdir()  # perhaps of another process, which cannot be known
    model = make(0, True)
    with locked(tmp_path, 0, ""):
        model.save_pretrained(tmp_path)
    assert same(nestedseg.from_pretrained(tmp_path), model)
    assert (tmp_path / ".saving.1-ab").exists() and LOCK not in os.listdir(tmp_path)


# -- readers ---------------------------------------------------------------------------------------


def load_during_saves(folder, loads):
    """What a reader finds wrong while another process replaces the model all the time."""
    models = [make(0, True), make(1, True), make(2, False)]
    models[0].save_pretrained(folder)
    stop = folder.with_name("stop")

    def work():
        saves = 0
        while not stop.exists():
            models[saves % 3].save_pretrained(folder)
            saves += 1
        return saves

    writer, wrong = start(work), []
    for _ in range(loads):
        try:
            loaded = nestedseg.from_pretrained(folder)
            if not any(same(loaded, model) for model in models):
                wrong.append("a model mixed from two")
        except Exception as error:
            wrong.append(repr(error))
    stop.touch()
    assert result(writer) > 1
    return wrong


def test_a_reader_finds_a_whole_model_during_saves(tmp_path):
    assert load_during_saves(tmp_path / "model", loads=15) == []


@pytest.mark.slow
def test_a_reader_finds_a_whole_model_during_many_saves(tmp_path):
    assert load_during_saves(tmp_path / "model", loads=300) == []


def test_a_reader_keeps_the_model_that_it_found(tmp_path):
    """Whenever another one is saved: what is read is what was there at first."""
    make(0, True).save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    snapshot = Snapshot(tmp_path)
    make(1, False).save_pretrained(tmp_path)
    assert {name: snapshot.find(name).read_bytes() for name in before} == before
    assert snapshot.find("model.safetensors") is None


@pytest.mark.parametrize("moment", [1, 2])
def test_a_snapshot_taken_while_files_move_is_of_one_model(tmp_path, monkeypatch, moment):
    """A save is completed between the listing of the files and their opening."""
    make(0, True).save_pretrained(tmp_path)
    new, calls = make(2, False), []

    def listed(directory):
        names = weights_in(directory)
        calls.append(None)
        if len(calls) == moment:
            new.save_pretrained(directory)
        return names

    monkeypatch.setattr("nestedseg.hub.snapshot.weights_in", listed)
    snapshot = Snapshot(tmp_path)
    assert snapshot.files.keys() == {CONFIG, "model.safetensors"}


def test_a_reader_writes_nothing_and_leaves_no_file_open(tmp_path):
    model = make(0, True)
    model.save_pretrained(tmp_path)
    for path in (*tmp_path.iterdir(), tmp_path):
        path.chmod(0o555 if path == tmp_path else 0o444)
    try:
        before = tmp_path.stat().st_mtime_ns, len(os.listdir("/dev/fd"))
        assert same(nestedseg.from_pretrained(tmp_path), model)
        assert (tmp_path.stat().st_mtime_ns, len(os.listdir("/dev/fd"))) == before
    finally:
        tmp_path.chmod(0o755)


def test_a_folder_of_very_many_files_is_read_as_it_is(tmp_path):
    model = make(0, True)
    model.save_pretrained(tmp_path)
    for number in range(250):
        (tmp_path / f"model-{number:05}-of-00250.safetensors").touch()
    assert Snapshot(tmp_path).files == {}
    assert same(nestedseg.from_pretrained(tmp_path), model)


def test_without_paths_of_open_files_a_folder_is_read_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr("nestedseg.hub.snapshot.OPEN_FILES", tmp_path / "none")
    for heads in (True, False):
        model = make(0, heads)
        model.save_pretrained(tmp_path)
        assert same(nestedseg.from_pretrained(tmp_path), model)


# -- trainings -------------------------------------------------------------------------------------


def train(run, images, resume=False, epochs=2):
    model = nestedseg.create("unetpp", encoder_channels=(4, 6), in_channels=1)
    history = fit(model, images, images, run, Settings(epochs=epochs, steps=1, batch=2, patch=16),
                  resume=resume, log=lambda line: None)
    return [epoch.epoch for epoch in history]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    cv2 = pytest.importorskip("cv2")
    folder, numbers = tmp_path_factory.mktemp("images"), torch.Generator().manual_seed(0)
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
    for name in ("a", "b"):
        label = (torch.rand(24, 24, generator=numbers) > 0.5).byte() * 255
        cv2.imwrite(str(folder / "images" / f"{name}.png"), label.numpy())
        cv2.imwrite(str(folder / "labels" / f"{name}.png"), label.numpy())
    return LabelledImages(find_pairs(folder / "images", folder / "labels"), binary=True)


def test_a_second_training_in_a_folder_is_refused_before_it_touches_anything(tmp_path, images):
    train(tmp_path, images)
    pid = holding(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    try:
        for resume in (False, True):
            with pytest.raises(FolderInUse, match=rf"process {pid} on .*Wait until that training"):
                train(tmp_path, images, resume, epochs=3)
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    finally:
        kill(pid)
    (tmp_path / ".checkpoint.1-ab.pt").write_text("of a training that was killed")
    assert train(tmp_path, images, resume=True, epochs=3) == [1, 2, 3]
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.pt", "model"}


@pytest.mark.slow
def test_of_three_trainings_that_start_at_once_one_goes_on(tmp_path, images):
    for number in range(5):
        run = tmp_path / str(number)
        ends = [result(process) for process in
                [start(lambda run=run: train(run, images, epochs=4)) for _ in range(3)]]
        assert [end for end in ends if end == [1, 2, 3, 4]] == [[1, 2, 3, 4]]
        assert all("in use by process" in end[0] or "holds a run already" in end[0]
                   for end in ends if end != [1, 2, 3, 4])
        assert train(run, images, resume=True, epochs=5) == [1, 2, 3, 4, 5]
