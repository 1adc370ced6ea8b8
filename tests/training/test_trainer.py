"""Training on few texts: it learns, keeps its best epoch, repeats itself to the bit, and survives a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf  # type: ignore[import-untyped]  # ships no types

from tallybook.processes import free_port
from tests.training.small_training import CONFIG, TOGETHER, bert, run, small, texts
from training.checkpoints import Checkpoints
from training.classifier import Classifier
from training.devices import describe, find_devices
from training.errors import TrainingError
from training.evaluation import measure
from training.trainer import Epoch, Trained, predict

KILLS = int(os.environ.get("TALLYBOOK_DRILL_KILLS", "2"))
CPU = describe(tf.distribute.get_strategy(), "cpu")


@pytest.fixture(scope="module")
def once() -> Trained:
    return run(small, CPU)


def with_weights(build: Callable[[], Classifier], trained: Trained) -> Classifier:
    model = build()
    for variable, value in zip(model.variables, trained.weights, strict=True):
        variable.assign(value)
    return model


def same(one: Trained, other: Trained) -> bool:
    return one.epochs == other.epochs and all(
        (a == b).all() for a, b in zip(one.weights, other.weights, strict=True)
    )


def test_held_out_texts_are_told_apart_by_the_weights_of_the_best_epoch(once: Trained) -> None:
    model = with_weights(small, once)
    held_out, validation = texts(60, seed=3), texts(60, seed=2)
    assert measure(held_out.labels, predict(model, held_out)).accuracy > 0.8
    found = measure(validation.labels, predict(model, validation))
    assert found.log_loss == pytest.approx(min(e.validation_log_loss for e in once.epochs), abs=1e-5)


def test_the_same_seed_trains_the_same_model_and_another_seed_another(once: Trained) -> None:
    assert same(once, run(small, CPU))
    assert not same(once, run(small, CPU, config=replace(CONFIG, seed=8)))


def test_training_ends_when_it_gets_no_better() -> None:
    seen: list[Epoch] = []
    config = replace(CONFIG, epochs=30, learning_rate=0.0, sparse_learning_rate=0.0, patience=2)
    trained = run(bert, CPU, config=config, on_epoch=seen.append)
    assert len(trained.epochs) == 3
    assert seen == trained.epochs


# A run writes after each step, and after an epoch once more: it is killed within an epoch, or between two.
@pytest.mark.parametrize("write", [5, 14, 34, *range(1, 42)][:KILLS])
def test_a_killed_run_ends_with_the_weights_of_an_uninterrupted_one(
    once: Trained, tmp_path: Path, write: int
) -> None:
    command = [sys.executable, "-m", "tests.training.small_training", str(tmp_path)]
    killed = subprocess.run([*command, str(write)], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "weights.npz").exists()
    checkpoints = Checkpoints(tmp_path / "run")
    state, _ = checkpoints.read() or ({}, {})
    assert state["epoch"] * 14 + state["batch"] == write
    seen: list[Epoch] = []
    resumed = run(small, CPU, checkpoints, on_epoch=seen.append)
    checkpoints.close()
    assert same(once, resumed)
    assert len(seen) == 3 - state["epoch"]
    assert resumed.seconds > resumed.seconds_before == state["seconds"]


def test_two_processes_do_not_train_the_same_run_at_once(tmp_path: Path) -> None:
    held = Checkpoints(tmp_path)
    with pytest.raises(TrainingError) as caught:
        Checkpoints(tmp_path)
    assert caught.value.code == "run_in_progress"
    held.close()
    Checkpoints(tmp_path).close()


def test_a_broken_checkpoint_is_told_not_trained_over(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write({"epoch": 1}, {"model0": np.zeros(3)})
    assert checkpoints.read() is not None
    file = tmp_path / "checkpoint.npz"
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(TrainingError) as caught:
        checkpoints.read()
    assert caught.value.code == "checkpoint_broken"
    checkpoints.remove()
    assert checkpoints.read() is None
    checkpoints.close()


def test_xla_compiles_the_step() -> None:
    # One length of batches, because it compiles for each.
    config = replace(CONFIG, epochs=1)
    plain, compiled = (run(small, replace(CPU, xla=xla), config=config, longest=15) for xla in (False, True))
    # XLA draws other random numbers.
    assert compiled.epochs[0].training_loss == pytest.approx(plain.epochs[0].training_loss, rel=0.1)


def test_half_precision_scales_the_loss_down_until_it_fits_and_learns() -> None:
    def half() -> Classifier:
        return bert("float16")

    trained = run(half, replace(CPU, compute="float16"), config=replace(CONFIG, epochs=4))
    plain = run(bert, CPU, config=replace(CONFIG, epochs=4))
    assert all(np.isfinite(value).all() and value.dtype == np.float32 for value in trained.weights)
    assert trained.epochs[-1].training_loss == pytest.approx(plain.epochs[-1].training_loss, rel=0.1)


def test_a_batch_that_does_not_split_among_the_devices_is_refused() -> None:
    with pytest.raises(TrainingError) as caught:
        run(small, replace(CPU, count=3))
    assert caught.value.code == "batch_not_divisible"


MIRRORED = """
import sys, tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)
from tests.training.small_training import run, small
from training.devices import describe
devices = describe(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]), "cpu")
print(devices.count, *(e.training_loss for e in run(small, devices).epochs))
"""


def test_two_devices_of_a_machine_learn_what_one_does(once: Trained) -> None:
    done = subprocess.run([sys.executable, "-c", MIRRORED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    count, *losses = done.stdout.split()
    assert count == "2"
    # Each replica drops out something else, so it is not the same to the last digit.
    for found, epoch in zip(losses, once.epochs, strict=True):
        assert float(found) == pytest.approx(epoch.training_loss, rel=0.1)


def start_workers(folder: Path, kill_chief_after: int = -1) -> list[subprocess.Popen[bytes]]:
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    started = []
    for index, kill_after in enumerate((kill_chief_after, -1)):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "tests.training.small_training", str(folder), str(kill_after)],
                env={"TF_CONFIG": json.dumps(task), "PATH": "", "PYTHONPATH": ":".join(sys.path)},
                stderr=(folder / f"worker{index}.log").open("wb"),
            )
        )
    return started


def finish(workers: list[subprocess.Popen[bytes]], folder: Path) -> dict[str, np.ndarray]:
    """What the chief has learnt, when all have ended well."""
    try:
        codes = [worker.wait(timeout=900) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert codes == [0, 0], (folder / "worker0.log").read_text()[-2000:]
    with np.load(folder / "weights.npz") as found:
        return dict(found)


def test_two_machines_learn_what_one_does_also_when_one_was_killed(tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    whole.mkdir()
    resumed.mkdir()
    learnt = finish(start_workers(whole), whole)
    losses = learnt["epochs"].tolist()
    assert losses[-1] < losses[0]
    for loss, epoch in zip(losses, run(small, CPU, **TOGETHER).epochs, strict=True):
        assert loss == pytest.approx(epoch.validation_log_loss, rel=0.25)

    chief, other = start_workers(resumed, kill_chief_after=20)
    assert chief.wait(timeout=900) == -signal.SIGKILL
    other.kill()  # as a scheduler does with what is left; by itself it fails, or waits for the dead one
    assert other.wait() != 0
    assert not (resumed / "weights.npz").exists()
    again = finish(start_workers(resumed), resumed)
    assert again.keys() == learnt.keys()
    for name, value in learnt.items():
        np.testing.assert_array_equal(again[name], value, name)


@pytest.mark.parametrize("told", ["no json", '{"cluster": {"worker": ["127.0.0.1:1"]}}', "[]"])
def test_a_tf_config_that_names_no_machines_is_refused(monkeypatch: pytest.MonkeyPatch, told: str) -> None:
    monkeypatch.setenv("TF_CONFIG", told)
    with pytest.raises(TrainingError) as caught:
        find_devices()
    assert caught.value.code == "invalid_tf_config"
