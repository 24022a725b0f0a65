"""What `select` and `doctor` say of machines with cards; the cards are pretended, so this shows no computation."""

from __future__ import annotations

import json

import pytest

from gpu_cluster.backend import look_for_gpu, select
from gpu_cluster.backend.select import LEAST_DRIVERS
from gpu_cluster.errors import DeviceError
from gpu_cluster.jobs.doctor import diagnose
from tests.helpers import called

from .cards import pretended

pytestmark = pytest.mark.usefixtures("_environment")


@pytest.fixture
def _environment(monkeypatch, tmp_path):
    # Set and taken away, so that what the code under test sets is undone afterwards.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.delenv("CUDA_CACHE_DISABLE", raising=False)
    monkeypatch.setenv("CUDA_CACHE_PATH", str(tmp_path / "compiled"))


@pytest.mark.parametrize(
    ("capability", "cuda"), [((7, 5), 12020), ((8, 0), 12020), ((8, 9), 12020), ((9, 0), 12050), ((12, 0), 12080)]
)
def test_a_card_that_will_do_is_chosen_and_the_doctor_says_so(monkeypatch, capability, cuda):
    pretended(monkeypatch, n=1, capability=capability, cuda=cuda)
    assert [select(device).backend.name for device in ("auto", "gpu")] == ["gpu", "gpu"]
    diagnosis = diagnose("gpu")
    assert all(check.status == "ok" for check in diagnosis.checks if check.name.startswith("GPU"))
    assert any("Pretended, 80 GiB" in check.found for check in diagnosis.checks)


@pytest.mark.parametrize(
    ("given", "says", "remedy"),
    [
        ({"n": 0}, "devices: 0 seen by CuPy", "check nvidia-smi"),
        ({"n": 1, "blind": True}, "TensorFlow: TensorFlow sees no card", "see which library TensorFlow misses"),
        (
            {"n": 1, "capability": (7, 0)},
            "compute capability: 7.0, driver for CUDA 12.4",
            "use a card of compute capability 7.5 or above",
        ),
        (
            {"n": 1, "capability": (9, 0), "cuda": 12020},
            "compute capability: 9.0, driver for CUDA 12.2",
            "install driver 555 or newer, which such a card needs (CUDA 12.5)",
        ),
        (
            {"n": 1, "capability": (8, 0), "cuda": 12000},
            "compute capability: 8.0, driver for CUDA 12.0",
            "install driver 535 or newer",
        ),
    ],
    ids=["no card", "TensorFlow blind", "7.0", "9.0, old driver", "8.0, old driver"],
)
def test_a_card_that_will_not_do_is_named_with_a_remedy_and_auto_takes_the_cpu(monkeypatch, given, says, remedy):
    pretended(monkeypatch, **given)
    choice = select("auto")
    assert choice.backend.name == "cpu"
    assert says in choice.reason
    with pytest.raises(DeviceError) as error:
        select("gpu")
    assert says in str(error.value)
    assert remedy in str(error.value)
    (missing,) = [check for check in diagnose("gpu").checks if check.status == "missing"]
    assert remedy in missing.remedy
    assert diagnose("auto").works


@pytest.mark.parametrize(("set_before", "shown"), [(None, "0"), ("5,6", "5")])
def test_of_eight_cards_the_first_visible_one_is_shown_before_the_driver_starts(monkeypatch, set_before, shown):
    if set_before:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", set_before)
    driver = pretended(monkeypatch, n=8)
    choice = select("gpu")
    assert driver.visible == shown
    assert choice.notes == ()
    pretended(monkeypatch, n=8)
    assert [check.found for check in diagnose("gpu").checks if check.name == "GPU devices"] == ["1 seen by CuPy"]


def test_a_process_that_has_started_cuda_is_told_that_all_eight_cards_stay_visible(monkeypatch):
    driver = pretended(monkeypatch, n=8, loaded=True)
    (note,) = select("gpu").notes
    assert driver.visible is None
    assert note.startswith("8 cards are visible to this process")
    assert note.endswith("set CUDA_VISIBLE_DEVICES=0 before")


def test_a_first_run_that_compiles_says_so_and_where_that_is_kept(monkeypatch, tmp_path):
    pretended(monkeypatch, n=1, capability=(9, 0), cuda=12050)
    (note,) = select("gpu").notes
    assert "no code for compute capability 9.0" in note
    assert f"keeps it in {str(tmp_path / 'compiled')!r} (CUDA_CACHE_PATH)" in note
    (check,) = [check for check in diagnose("gpu").checks if check.name == "GPU compute capability"]
    assert note in check.found
    (tmp_path / "compiled").mkdir()
    (tmp_path / "compiled" / "index").touch()
    assert select("gpu").notes == ()
    (tmp_path / "compiled" / "index").unlink()
    monkeypatch.setenv("CUDA_CACHE_DISABLE", "1")
    assert "keeps nothing of it, because CUDA_CACHE_DISABLE is 1" in select("gpu").notes[0]


def test_a_card_with_native_code_has_nothing_to_be_told(monkeypatch):
    pretended(monkeypatch, n=1, capability=(8, 9))
    assert select("gpu").notes == ()


def test_blackwells_open_reports_are_told(monkeypatch):
    pretended(monkeypatch, n=1, capability=(12, 0), cuda=12080)
    assert any("#97387, #99592" in note for note in select("gpu").notes)


def test_the_doctors_json_has_the_notes_and_the_exit_code(monkeypatch):
    pretended(monkeypatch, n=1, capability=(9, 0), cuda=12020)
    done = called("doctor", "--device", "gpu", "--json")
    assert done.code == 1
    (check,) = [check for check in json.loads(done.out)["checks"] if check["name"] == "GPU compute capability"]
    assert check["status"] == "missing"


def test_tensorflow_is_asked_last_and_only_if_all_else_is_there(monkeypatch):
    pretended(monkeypatch, n=1, capability=(7, 0))
    assert [finding.name for finding in look_for_gpu()][-1] == "compute capability"
    assert LEAST_DRIVERS[0][0] == (7, 5)
