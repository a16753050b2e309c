from __future__ import annotations

from pathlib import Path

from servicectl.training.pressure import Patience, pressure


def test_the_kernel_s_figure_is_read_or_said_to_be_unknown(tmp_path: Path) -> None:
    path = tmp_path / "cpu"
    path.write_text("some avg10=12.34 avg60=1.00 avg300=0.50 total=1\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n")

    assert pressure(path) == 12.34
    assert pressure(tmp_path / "absent") is None


def test_training_waits_while_the_machine_is_busy_but_not_for_ever() -> None:
    now = [100.0]
    busy = iter([50.0, 30.0, 5.0])

    def sleep(seconds: float) -> None:
        now[0] += seconds

    patient = Patience(False, lambda: 99.0, lambda: now[0], sleep)
    patient.wait()
    assert patient.paused_s == 0
    patient._on = True  # without the nice(), which a test could not take back
    patient._measured = lambda: next(busy)
    patient.wait()
    assert patient.paused_s == 2
    patient._measured = lambda: 99.0
    now[0] += 10
    patient.wait()
    assert patient.paused_s == 62
