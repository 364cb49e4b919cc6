from __future__ import annotations

import base64
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import assert_readable, needs_browser
from click.testing import CliRunner
from torch.nn import functional

import splitgrow
from splitgrow.cli.main import main
from splitgrow.cli.settings import DemoSettings
from splitgrow.demos import datasets, galleries, progressive, themes
from splitgrow.demos.progressive import enlarged, pyramid, run, widths_for
from splitgrow.demos.progressive_report import write_progressive_report
from splitgrow.demos.results import (
    DemoEvent,
    LevelEvaluation,
    LevelGrowth,
    LevelPhase,
    LevelStep,
    ProgressiveResult,
    Tiles,
)

SETTINGS = DemoSettings(epochs=2, width=2, batch_size=32)
OPTIONS = ["--progressive", "--limit", "64", "--epochs", "1", "--width", "2", "--threads", "1"]


@pytest.fixture(scope="module")
def finished(dataset: datasets.Dataset) -> tuple[ProgressiveResult, list[DemoEvent]]:
    events: list[DemoEvent] = []
    return run(dataset, SETTINGS, events.append), events


# The run


def test_a_level_trains_fades_in_and_trains_alone(
    finished: tuple[ProgressiveResult, list[DemoEvent]],
) -> None:
    _, events = finished
    epoch = [LevelStep, LevelStep, LevelEvaluation]
    phase = [LevelPhase, *epoch, *epoch]
    assert [type(event) for event in events] == [*phase, LevelGrowth, *phase, *phase]
    fading = [event.fading for event in events if isinstance(event, LevelPhase)]
    assert fading == [False, True, False]


def test_the_fade_goes_from_nothing_to_all(
    finished: tuple[ProgressiveResult, list[DemoEvent]],
) -> None:
    result, _ = finished
    alphas = [step.alpha for step in result.steps]
    assert alphas == [1, 1, 1, 1, 0, 0.25, 0.5, 0.75, 1, 1, 1, 1]


def test_growing_changes_no_reconstruction(
    finished: tuple[ProgressiveResult, list[DemoEvent]],
) -> None:
    result, _ = finished
    assert [growth.exact for growth in result.growths] == [True]
    assert result.growths[0].disturbance == 0


def test_a_growth_that_changes_something_is_told(
    dataset: datasets.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    grow = splitgrow.ProgressiveAutoencoder.grow
    monkeypatch.setattr(
        splitgrow.ProgressiveAutoencoder,
        "grow",
        lambda model, **options: grow(model, fade=False, **options),
    )
    monkeypatch.setattr(progressive._Trainer, "fade_in", progressive._Trainer.train)
    result = run(dataset, SETTINGS, lambda event: None)
    assert not result.growths[0].exact
    assert result.growths[0].disturbance > 1e-3


def test_fusion_leaves_the_new_path_alone(
    finished: tuple[ProgressiveResult, list[DemoEvent]],
) -> None:
    result, _ = finished
    assert result.fusion.old_path_gone
    assert result.fusion.fused == result.levels[-1].parameters < result.fusion.both_paths
    assert result.fusion.largest_difference < 1e-5


def test_errors_and_sizes_are_those_of_the_levels(
    finished: tuple[ProgressiveResult, list[DemoEvent]],
) -> None:
    result, _ = finished
    assert [level.resolution for level in result.levels] == [4, 8]
    assert result.levels[0].error < result.levels[0].full_error
    assert result.levels[1].error == result.levels[1].full_error
    assert result.evaluations[-1].error == result.levels[1].error


def test_the_tiles_are_the_images(
    dataset: datasets.Dataset, finished: tuple[ProgressiveResult, list[DemoEvent]]
) -> None:
    tiles = finished[0].levels[1].originals
    assert (tiles.count, tiles.side) == (10, 8)
    images = dataset.x_test[:10, 0].numpy()
    shown = np.stack(galleries.pictures(tiles)).astype(float)
    scale = (images.max() - images.min()) / 255
    assert np.abs(shown * scale + images.min() - images).max() <= 0.51 * scale


def test_the_seed_makes_the_run_and_torchs_own_random_state_is_left(
    dataset: datasets.Dataset,
) -> None:
    def losses(seed: int) -> list[float]:
        settings = DemoSettings(epochs=1, width=2, batch_size=32, seed=seed)
        return [step.loss for step in run(dataset, settings, lambda event: None).steps]

    state = torch.get_rng_state()
    first = losses(3)
    assert torch.equal(torch.get_rng_state(), state)
    assert losses(3) == first
    assert losses(4) != first


def test_training_that_diverges_ends_with_the_reason(dataset: datasets.Dataset) -> None:
    broken = replace(dataset, x_train=dataset.x_train * float("inf"))
    with pytest.raises(FloatingPointError, match="after 0 steps; a lower learning rate may help"):
        run(broken, SETTINGS, lambda event: None)


def test_gradients_are_clipped(dataset: datasets.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    norms = []
    step = torch.optim.AdamW.step

    def measured(optimizer: torch.optim.AdamW) -> None:
        gradients = [
            p.grad.norm() for p in optimizer.param_groups[0]["params"] if p.grad is not None
        ]
        norms.append(torch.stack(gradients).norm().item())
        step(optimizer)

    monkeypatch.setattr(torch.optim.AdamW, "step", measured)
    run(dataset, SETTINGS, lambda event: None)
    assert max(norms) <= 0.5 + 1e-5
    assert max(norms) > 0.49  # some were


def test_colour_images_go_on_to_sixteen_pixels() -> None:
    images = torch.rand(12, 3, 14, 18)
    labels = torch.arange(12) % 2
    data = datasets.Dataset("noise", images, labels, images[:10], labels[:10], ("a", "b"))
    settings = DemoSettings(epochs=1, width=2, batch_size=6)
    result = run(data, settings, lambda event: None)
    assert [level.resolution for level in result.levels] == [4, 8, 16]
    assert all(growth.exact for growth in result.growths)
    assert galleries.pictures(result.levels[2].originals)[0].shape == (16, 16, 3)


def test_each_size_is_the_half_of_the_next_and_enlarging_repeats_pixels() -> None:
    images = torch.randn(2, 1, 28, 28)
    sizes = pyramid(images, 3)
    assert [size.shape[-1] for size in sizes] == [4, 8, 16, 32]
    for small, large in pairwise(sizes):
        assert torch.equal(small, functional.avg_pool2d(large, 2))
    assert torch.equal(functional.avg_pool2d(enlarged(sizes[0], 8), 2), sizes[0])
    exact = torch.randn(2, 1, 8, 8)
    assert pyramid(exact, 1)[-1] is exact


def test_widths_fall_towards_the_images_and_stay_bounded() -> None:
    for width in (1, 4, 100):
        widths = widths_for(3, width)
        assert widths == sorted(widths, reverse=True)
        assert max(widths) <= max(64, width)


# What is shown of it


def test_the_report_has_the_pictures_and_the_numbers(
    finished: tuple[ProgressiveResult, list[DemoEvent]], tmp_path: Path
) -> None:
    result, _ = finished
    text = write_progressive_report(replace(result, dataset="<b>"), tmp_path).read_text("utf-8")
    for level in result.levels:
        assert f"{level.error:.4f}" in text
    assert "the new path alone is left" in text
    assert "the same, bit for bit" in text
    assert "&lt;b&gt;" in text
    assert {file.name for file in tmp_path.iterdir()} == {
        "errors.png",
        "gallery.png",
        "report.html",
    }


def test_a_change_by_growth_is_shown_as_one(
    finished: tuple[ProgressiveResult, list[DemoEvent]], tmp_path: Path
) -> None:
    result, _ = finished
    moved = replace(result.growths[0], exact=False, disturbance=0.25)
    page = write_progressive_report(replace(result, growths=(moved,)), tmp_path)
    assert "differ by up to 2.5e-01" in page.read_text("utf-8")


def test_pictures_have_their_pixels_where_the_images_had_them() -> None:
    pixels = np.arange(2 * 3 * 2 * 2, dtype=np.uint8)
    tiles = Tiles(2, 3, 2, base64.b64encode(pixels.tobytes()).decode())
    assert np.array_equal(
        galleries.pictures(tiles)[1], pixels.reshape(2, 3, 2, 2)[1].transpose(1, 2, 0)
    )


def test_the_gallery_is_drawn_from_the_images(
    finished: tuple[ProgressiveResult, list[DemoEvent]],
) -> None:
    levels = finished[0].levels
    first = galleries.gallery(levels, themes.LIGHT)
    assert galleries.gallery(levels, themes.LIGHT) == first
    swapped = replace(levels[0], reconstructions=levels[0].originals)
    assert galleries.gallery((swapped, levels[1]), themes.LIGHT) != first


def test_a_fade_is_shaded_where_it_happened(
    finished: tuple[ProgressiveResult, list[DemoEvent]],
) -> None:
    steps = finished[0].steps
    assert galleries._fades(steps) == [(5, 8)]
    assert galleries._fades(steps[:4]) == []


# The command


def _demo(out: Path, *options: str) -> tuple[int, str, str]:
    outcome = CliRunner().invoke(main, ["demo", *OPTIONS, "--out", str(out), *options])
    return outcome.exit_code, outcome.stdout, outcome.stderr


def test_the_command_prints_the_levels_and_writes_the_report(tmp_path: Path) -> None:
    code, printed, progress = _demo(tmp_path, "--seed", "5")
    assert code == 0
    for text in ("the same, bit for bit", "4x4", "8x8", "the new path alone is left"):
        assert text in printed
    assert "alpha 1.00" in progress
    assert "to 8x8 pixels" in progress
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["finished"], results["settings"]["seed"]) == (True, 5)
    assert [level["resolution"] for level in results["levels"]] == [4, 8]
    assert results["fusion"]["old_path_gone"] is True


def test_the_command_fails_if_growth_changed_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progressive, "enlarged", lambda images, side: torch.zeros(1))
    monkeypatch.setattr(progressive._Trainer, "_errors", lambda trainer: (1.0, 1.0))
    code, printed, errors = _demo(tmp_path)
    assert code == 1
    assert errors.endswith("Error: growth changed what the network gives\n")
    assert "is left" in printed  # the results are shown all the same


def test_ctrl_c_keeps_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(trainer: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(progressive._Trainer, "fade_in", stop)
    code, printed, errors = _demo(tmp_path)
    kept = tmp_path / "interrupted.json"
    assert (code, printed) == (130, "")
    assert errors.endswith(
        f"Interrupted: what was measured until then is in {kept}; the same command begins anew.\n"
    )
    record = json.loads(kept.read_text())
    assert record["finished"] is False
    assert [growth["resolution"] for growth in record["growths"]] == [8]
    assert len(record["steps"]) == 1


def test_what_grows_widths_is_refused_by_name(tmp_path: Path) -> None:
    code, _, errors = _demo(tmp_path, "--by", "0.25")
    assert code == 2
    assert "--by is for widths, which --progressive leaves as they are" in errors


@needs_browser
def test_a_browser_shows_the_page_on_narrow_and_wide_screens(
    finished: tuple[ProgressiveResult, list[DemoEvent]], tmp_path: Path
) -> None:
    assert_readable(write_progressive_report(finished[0], tmp_path), tmp_path)
