"""Progressive networks: bits that growth keeps, fades, saving, widening and fusing."""

from __future__ import annotations

import copy
import io
import pickle
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_equal, assert_identical, outputs_of, randomise, randomise_new_blocks
from torch import Tensor, nn
from torch.nn import functional as F

import splitgrow
from splitgrow import (
    FadeSchedule,
    ProgressiveAutoencoder,
    ProgressiveDecoder,
    ProgressiveDiscriminator,
    ProgressiveEncoder,
    ProgressiveGenerator,
)
from splitgrow.layers.split_layer import SplitLayer

SEEDS = range(6)


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.norm(self.conv(x)))


def inside(width: int, rng: random.Random) -> list[nn.Module]:
    """Some layers that keep size and width."""
    found: list[nn.Module] = []
    for _ in range(rng.randint(0, 2)):
        kind = rng.randrange(4)
        if kind == 0:
            found += [nn.Conv2d(width, width, 3, padding=1), nn.SiLU()]
        elif kind == 1:
            found += [nn.BatchNorm2d(width), nn.ReLU(inplace=rng.random() < 0.5)]
        elif kind == 2:
            found += [nn.Conv2d(width, width, 1, bias=False), nn.GroupNorm(1, width)]
        else:
            found.append(Residual(width))
    return found


def down(ins: int, outs: int, rng: random.Random) -> nn.Module:
    ways: list[Callable[[], list[nn.Module]]] = [
        lambda: [nn.Conv2d(ins, outs, 3, padding=1), nn.AvgPool2d(2)],
        lambda: [nn.Conv2d(ins, outs, 4, stride=2, padding=1)],
        lambda: [nn.Conv2d(ins, outs, 3, stride=2, padding=1), nn.BatchNorm2d(outs)],
        lambda: [nn.MaxPool2d(2), nn.Conv2d(ins, outs, 1)],
    ]
    return nn.Sequential(*inside(ins, rng), *rng.choice(ways)(), *inside(outs, rng))


def up(ins: int, outs: int, rng: random.Random) -> nn.Module:
    ways: list[Callable[[], list[nn.Module]]] = [
        lambda: [nn.Upsample(scale_factor=2), nn.Conv2d(ins, outs, 3, padding=1)],
        lambda: [nn.ConvTranspose2d(ins, outs, 4, stride=2, padding=1)],
        lambda: [nn.Conv2d(ins, 4 * outs, 1), nn.PixelShuffle(2)],
    ]
    return nn.Sequential(*inside(ins, rng), *rng.choice(ways)(), *inside(outs, rng))


def same(ins: int, outs: int, rng: random.Random) -> nn.Module:
    return nn.Sequential(*inside(ins, rng), nn.Conv2d(ins, outs, 3, padding=1))


def encoder(seed: int, levels: int = 3) -> ProgressiveEncoder:
    torch.manual_seed(seed)
    rng = random.Random(seed)
    widths = [rng.randint(3, 9) for _ in range(levels)]
    stages = [same(widths[0], 5, rng)]
    stages += [down(widths[k], widths[k - 1], rng) for k in range(1, levels)]
    options = {"image_channels": rng.choice((1, 2, 3, 5)), "start": rng.choice((2, 4))}
    return prepared(ProgressiveEncoder([randomise(s) for s in stages], widths, **options))


def decoder(seed: int, levels: int = 3) -> ProgressiveDecoder:
    torch.manual_seed(seed)
    rng = random.Random(seed)
    widths = [rng.randint(3, 9) for _ in range(levels)]
    stages = [same(5, widths[0], rng)]
    stages += [up(widths[k - 1], widths[k], rng) for k in range(1, levels)]
    options = {"image_channels": rng.choice((1, 2, 3, 5)), "start": rng.choice((2, 4))}
    return prepared(ProgressiveDecoder([randomise(s) for s in stages], widths, **options))


def prepared(model: Any) -> Any:
    return randomise(model).double().eval()


def images(model: Any, seed: int = 0) -> Tensor:
    half = model.halves()[0]
    shape = (2, half.image_channels, model.resolution, model.resolution)
    return torch.randn(shape, generator=torch.manual_seed(seed), dtype=torch.float64)


def features(model: Any, seed: int = 0) -> Tensor:
    shape = (2, 5, model.start, model.start)
    return torch.randn(shape, generator=torch.manual_seed(seed), dtype=torch.float64)


def doubled(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, -1).repeat_interleave(2, -2)


def fade_out(model: Any, alpha: float = 1.0) -> None:
    for half in model.halves():
        half.fade.alpha = alpha


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_grown_encoder_gives_what_it_gave_for_the_halved_image(seed, training) -> None:
    model = encoder(seed)
    for level in (1, 2):
        old = copy.deepcopy(model).train(training)
        model.grow()
        model.train(training)
        assert (model.level, model.resolution) == (level, model.start * 2**level)
        x = images(model)
        expected = outputs_of(old, F.avg_pool2d(x, 2))
        assert expected.std() > 0.01
        assert_identical(outputs_of(model, x), expected)
        model.eval()
        fade_out(model, 0.5)
        assert not torch.allclose(outputs_of(model, x), outputs_of(old.eval(), F.avg_pool2d(x, 2)))
        fade_out(model)
        shown = outputs_of(model, x)
        model.finish()
        assert_identical(outputs_of(model, x), shown)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_grown_decoder_gives_the_doubled_images_that_it_gave(seed, training) -> None:
    model = decoder(seed)
    for level in (1, 2):
        old = copy.deepcopy(model).train(training)
        model.grow()
        model.train(training)
        assert (model.level, model.resolution) == (level, model.start * 2**level)
        x = features(model)
        expected = doubled(outputs_of(old, x))
        assert expected.std() > 0.01
        assert_identical(outputs_of(model, x), expected)
        model.eval()
        fade_out(model, 0.5)
        assert not torch.allclose(outputs_of(model, x), doubled(outputs_of(old.eval(), x)))
        fade_out(model)
        shown = outputs_of(model, x)
        assert shown.shape[-1] == model.resolution
        model.finish()
        assert_identical(outputs_of(model, x), shown)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_the_blend_is_that_of_the_paper(alpha: float) -> None:
    model = prepared(ProgressiveAutoencoder.of_widths([6, 4], image_channels=1))
    model.grow()
    fade_out(model, alpha)
    x = images(model)
    with torch.no_grad():
        there, back = model.encoder, model.decoder
        old = there.adapters["0"](F.avg_pool2d(x, 2))
        new = there.stages["1"](there.adapters["1"](x))
        code = there.stages["0"]((1 - alpha) * old + alpha * new)
        z = back.stages["0"](code)
        old = F.interpolate(back.adapters["0"](z), scale_factor=2)
        new = back.adapters["1"](back.stages["1"](z))
        expected = (1 - alpha) * old + alpha * new
    assert_equal(outputs_of(model, x), expected)


def autoencoder() -> Any:
    return prepared(ProgressiveAutoencoder.of_widths([6, 5, 4], image_channels=2, latent=3))


def generator() -> Any:
    return prepared(ProgressiveGenerator.of_widths([6, 5, 4], latent=7, image_channels=1))


def discriminator() -> Any:
    return prepared(ProgressiveDiscriminator.of_widths([6, 5, 4], image_channels=1))


WHOLE = [autoencoder, generator, discriminator]


def given(model: Any, seed: int = 0) -> Tensor:
    if isinstance(model, ProgressiveGenerator):
        return torch.randn(3, 7, generator=torch.manual_seed(seed), dtype=torch.float64)
    return images(model, seed)


@pytest.mark.parametrize("build", WHOLE)
def test_whole_networks_grow_without_changing_what_they_compute(build: Any) -> None:
    model = build()
    for _ in range(2):
        old = copy.deepcopy(model)
        model.grow()
        x = given(model)
        before = outputs_of(old, x if build is generator else F.avg_pool2d(x, 2))
        expected = before if build is discriminator else doubled(before)
        assert_identical(outputs_of(model, x), expected)
        fade_out(model, 0.5)
        assert not torch.allclose(outputs_of(model, x), expected)
        fade_out(model)
        model.finish()
        assert (model.alpha, model.halves()[0].fade) == (1, None)
    assert model.resolution == 16
    shapes = {autoencoder: (2, 2, 16, 16), generator: (3, 1, 16, 16), discriminator: (2, 1)}
    assert outputs_of(model, given(model)).shape == shapes[build]


def test_filters_never_change_their_shape_and_parameters_stay_the_same_objects() -> None:
    model = autoencoder()
    before = dict(model.named_parameters())
    shapes = {name: tuple(p.shape) for name, p in before.items()}
    new = model.grow()
    now = dict(model.named_parameters())
    assert all(now[name] is parameter for name, parameter in before.items())
    assert {name: tuple(now[name].shape) for name in before} == shapes
    assert {id(p) for p in new} == {id(p) for p in now.values()} - {id(p) for p in before.values()}
    fade_out(model)
    model.finish()
    left = dict(model.named_parameters())
    assert all(now[name] is parameter for name, parameter in left.items())
    assert set(now) - set(left) == {
        f"{half}.adapters.0.{name}"
        for half in ("encoder", "decoder")
        for name in ("weight", "bias")
    }


def step(model: Any, optimizer: Any, x: Tensor) -> None:
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.Adagrad])
def test_new_parameters_join_the_groups_of_the_old_adapter(kind: Any) -> None:
    model = autoencoder().train()
    named = list(model.named_parameters())
    biases = [p for name, p in named if name.endswith("bias")]
    groups = [
        {"params": [p for name, p in named if not name.endswith("bias")], "weight_decay": 0.1},
        {"params": biases, "weight_decay": 0.0},
    ]
    optimizer = kind(groups, lr=0.01)
    step(model, optimizer, images(model))
    kept = {id(p): copy.deepcopy(state) for p, state in optimizer.state.items()}
    new = model.grow(optimizer=optimizer)
    weights, others = (group["params"] for group in optimizer.param_groups)
    assert {id(p) for p in (*weights, *others)} == {id(p) for p in model.parameters()}
    assert all(any(p is other for other in (others if p.dim() == 1 else weights)) for p in new)
    assert all(str(optimizer.state[p]) == str(kept[id(p)]) for _, p in named if id(p) in kept)
    fade_out(model, 0.5)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    step(model, optimizer, images(model))
    assert all(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    fade_out(model)
    model.finish(optimizer=optimizer)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in trained} == {id(p) for p in model.parameters()}
    assert {id(p) for p in optimizer.state} <= {id(p) for p in trained}
    step(model, optimizer, images(model))


def test_growing_again_drops_a_fade_that_is_over_from_the_optimizer_too() -> None:
    model = autoencoder()
    optimizer = torch.optim.Adam(model.named_parameters())
    model.grow(optimizer=optimizer)
    fade_out(model)
    model.grow(optimizer=optimizer)
    (group,) = optimizer.param_groups
    named = dict(model.named_parameters())
    assert sorted(group["param_names"]) == sorted(named)
    pairs = zip(group["param_names"], group["params"], strict=True)
    assert all(named[name] is parameter for name, parameter in pairs)
    assert sorted(model.encoder.adapters) == ["1", "2"]


def test_a_schedule_takes_both_halves_along() -> None:
    model = autoencoder()
    model.grow()
    schedule = FadeSchedule(model, 4)
    schedule.step()
    assert model.alpha == model.encoder.fade.alpha == model.decoder.fade.alpha == 0.25
    for _ in range(3):
        schedule.step()
    model.finish()


@pytest.mark.parametrize("build", WHOLE)
def test_it_refuses_to_grow_or_finish_while_a_fade_is_under_way(build: Any) -> None:
    model = build()
    model.finish()
    model.grow()
    fade_out(model, 0.75)
    for call in (model.grow, model.finish):
        with pytest.raises(splitgrow.SplitGrowError, match=r"its alpha is 0\.75; take it to 1"):
            call()
    assert model.level == 1
    fade_out(model)
    model.grow()
    fade_out(model)
    with pytest.raises(splitgrow.SplitGrowError, match="all 3 stages are in use, at 16x16"):
        model.grow()


def test_without_a_fade_the_new_stage_counts_at_once() -> None:
    model = encoder(0)
    model.grow(fade=False)
    assert model.fade is None
    assert list(model.adapters) == ["1"]
    x = images(model)
    with torch.no_grad():
        expected = model.stages["0"](model.stages["1"](model.adapters["1"](x)))
    assert_identical(outputs_of(model, x), expected)


def test_freezing_keeps_what_existed_as_it_was() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.out = nn.BatchNorm2d(5), nn.Conv2d(5, 1, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(F.relu(self.norm(x)))

    torch.manual_seed(0)
    stages = [nn.Conv2d(6, 5, 1), down(4, 6, random.Random(1))]
    model = prepared(ProgressiveDiscriminator(ProgressiveEncoder(stages, [6, 4]), Head()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    model.train()
    step(model, optimizer, images(model))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    new = model.grow(optimizer=optimizer, freeze=True)
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in new}
    fade_out(model, 0.5)
    model.train()
    for _ in range(2):
        step(model, optimizer, images(model))
    after = model.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(after[name], value)}
    assert changed == {"encoder.reached"}
    model.thaw()
    model.train()
    assert all(parameter.requires_grad for parameter in model.parameters())
    step(model, optimizer, images(model))
    assert not torch.equal(model.head.norm.running_mean, before["head.norm.running_mean"])


@pytest.mark.parametrize("hold", [False, True])
def test_the_old_adapter_can_be_held_while_it_fades_out(hold: bool) -> None:
    model = autoencoder().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    step(model, optimizer, images(model))
    model.grow(optimizer=optimizer, hold_old=hold)
    fade_out(model, 0.5)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    step(model, optimizer, images(model))
    kept = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    assert kept == ({name for name in before if "adapters.0" in name} if hold else set())
    fade_out(model)
    model.finish(optimizer=optimizer)
    assert all(parameter.requires_grad for parameter in model.parameters())


# -- what goes wrong changes nothing ---------------------------------------------------------------


def test_a_stage_that_does_not_fit_changes_nothing() -> None:
    wrong = {
        "does not halve": nn.Conv2d(4, 6, 3, padding=1),
        "gives other channels": nn.Conv2d(4, 7, 4, 2, 1),
        "reads other channels": nn.Conv2d(5, 6, 4, 2, 1),
    }
    for stage in wrong.values():
        for whole in (False, True):
            model: Any = ProgressiveEncoder([nn.Conv2d(6, 6, 1), stage], [6, 4])
            if whole:
                back = ProgressiveDecoder.of_widths([6, 4])
                model = ProgressiveAutoencoder(model, back)
            optimizer = torch.optim.Adam(model.parameters())
            before = str(model), str(optimizer.state_dict()), torch.get_rng_state()
            with pytest.raises(ValueError, match="stage 1 does not fit: "):
                model.grow(optimizer=optimizer, freeze=True)
            assert (str(model), str(optimizer.state_dict())) == before[:2]
            assert torch.equal(torch.get_rng_state(), before[2])
            assert all(parameter.requires_grad for parameter in model.parameters())


def test_an_optimizer_that_does_not_train_the_adapter_is_refused() -> None:
    model = autoencoder()
    optimizer = torch.optim.Adam(model.decoder.parameters())
    before = str(model), str(optimizer.state_dict())
    with pytest.raises(splitgrow.OptimizerError, match="does not train the adapter"):
        model.grow(optimizer=optimizer)
    assert (str(model), str(optimizer.state_dict())) == before
    with pytest.raises(TypeError, match=r"must be a torch\.optim\.Optimizer"):
        model.grow(optimizer="adam")
    assert model.level == 0


def test_an_interruption_takes_everything_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    model = autoencoder()
    model.grow()
    fade_out(model)
    optimizer = torch.optim.Adam(model.parameters())
    x = images(model)
    before = str(model), str(optimizer.state_dict()), list(model.state_dict()), outputs_of(model, x)
    monkeypatch.setattr("splitgrow.progressive.base.join_", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.grow(optimizer=optimizer, freeze=True, hold_old=True)
    assert (str(model), str(optimizer.state_dict()), list(model.state_dict())) == before[:3]
    assert_identical(outputs_of(model, x), before[3])
    assert all(parameter.requires_grad for parameter in model.parameters())
    monkeypatch.undo()
    model.grow(optimizer=optimizer)
    assert model.level == 2


def test_images_of_another_size_are_refused() -> None:
    model = autoencoder()
    model.grow()
    with pytest.raises(ValueError, match=r"images of 4x4 at level 1, where the network takes 8x8"):
        model(torch.zeros(1, 2, 4, 4, dtype=torch.float64))


@pytest.mark.parametrize(
    ("stages", "channels", "options", "error", "message"),
    [
        ([], [], {}, ValueError, "0 stages"),
        ([nn.Identity()], [1, 2], {}, ValueError, "1 stages, 2 numbers"),
        ([3], [1], {}, TypeError, "a stage must be a module or make one"),
        ([nn.Identity()], [0], {}, ValueError, r"channels\[0\] must be positive"),
        ([nn.Identity()], [1.5], {}, TypeError, r"channels\[0\] must be an int"),
        ([nn.Identity()], [1], {"image_channels": 0}, ValueError, "image_channels must be posi"),
        ([nn.Identity()], [1], {"start": True}, TypeError, "start must be an int"),
    ],
)
def test_bad_arguments_are_refused(stages, channels, options, error, message) -> None:
    for kind in (ProgressiveEncoder, ProgressiveDecoder):
        with pytest.raises(error, match=message):
            kind(stages, channels, **options)


def test_halves_that_do_not_belong_together_are_refused() -> None:
    there = ProgressiveEncoder.of_widths([4, 3])
    for back in (
        ProgressiveDecoder.of_widths([4]),
        ProgressiveDecoder.of_widths([4, 3], start=2),
        ProgressiveDecoder.of_widths([4, 3], image_channels=1),
    ):
        with pytest.raises(ValueError, match="must have the same level"):
            ProgressiveAutoencoder(there, back)


# -- saving, copying, compiling --------------------------------------------------------------------


def saved(model: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("build", WHOLE)
def test_a_fresh_network_loads_the_state_of_a_grown_one(build: Any, assign: bool) -> None:
    model = build()
    states = [(saved(model), copy.deepcopy(model))]
    for _ in range(2):
        model.grow()
        randomise(model)
        for alpha in (0.3, 1.0):
            fade_out(model, alpha)
            states.append((saved(model), copy.deepcopy(model)))
        model.finish()
        states.append((saved(model), copy.deepcopy(model)))
    other = build()
    for state, expected in states:
        fresh = build()
        for loaded in (fresh, other):  # one from scratch, one from what was loaded before
            loaded.load_state_dict(state, assign=assign)
            assert (loaded.level, loaded.alpha) == (expected.level, expected.alpha)
            assert loaded.state_dict().keys() == expected.state_dict().keys()
            x = given(expected)
            assert_identical(outputs_of(loaded.eval(), x), outputs_of(expected.eval(), x))
    fresh.load_state_dict(states[-2][0])  # the same level, while its fade was under way
    assert fresh.halves()[0].fade is not None
    with pytest.raises(ValueError, match="saved at level 1; this Progressive"):
        fresh.load_state_dict(states[1][0])
    narrow = ProgressiveAutoencoder.of_widths([6, 5], image_channels=2, latent=3)
    if build is autoencoder:
        with pytest.raises(ValueError, match="is at level 0 and has 1 more stages"):
            narrow.load_state_dict(states[-1][0])


def test_a_loaded_network_goes_on_growing() -> None:
    model, fresh = autoencoder(), autoencoder()
    model.grow()
    fade_out(model)
    fresh.load_state_dict(model.state_dict())
    fresh.grow()
    assert fresh.resolution == 16
    x = images(fresh)
    assert_identical(outputs_of(fresh, x), doubled(outputs_of(model, F.avg_pool2d(x, 2))))


@pytest.mark.parametrize("build", WHOLE)
def test_copies_and_pickles_are_things_of_their_own(build: Any) -> None:
    model = build()
    model.grow()
    fade_out(model, 0.5)
    x = given(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_identical(outputs_of(other, x), outputs_of(model, x))
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        assert not outputs_of(other, x).any()
        fade_out(other)
        other.grow()
        assert (other.level, model.level) == (2, 1)


def test_it_follows_the_model_in_dtype_and_device() -> None:
    model = autoencoder().bfloat16()
    model.grow()
    fade_out(model, 0.3)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    x = images(model).bfloat16()
    assert outputs_of(model, x).dtype == torch.bfloat16
    share = model.encoder.fade.share
    assert model.double().encoder.fade.share == share
    assert (model.encoder.fade.share.dtype, model.encoder.reached.dtype) == (
        torch.float32,
        torch.int64,
    )
    assert ProgressiveAutoencoder.of_widths([4, 3]).to("meta").grow()[0].is_meta


def test_it_compiles() -> None:
    model = autoencoder()
    model.grow()
    x = images(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for alpha in (0.0, 0.5):
        fade_out(model, alpha)
        assert_equal(outputs_of(compiled, x), outputs_of(model, x))
    torch._dynamo.reset()


# -- width growth and fusion -----------------------------------------------------------------------


@pytest.mark.parametrize("build", WHOLE)
def test_stages_grow_wider_at_every_level(build: Any) -> None:
    """Through fades, and on after them: wider layers do not stand in the way of more pixels."""
    model = build()
    for level in range(3):
        if level:
            old, x = copy.deepcopy(model), None
            model.grow()
            x = given(model)
            before = outputs_of(old, x if build is generator else F.avg_pool2d(x, 2))
            expected = before if build is discriminator else doubled(before)
            assert_equal(outputs_of(model, x), expected)
        for alpha in (0.0, 0.5, 1.0) if level else (1.0,):
            if level:
                fade_out(model, alpha)
            x = given(model)
            splitgrow.growable(model, x)
            fixed = [layer.name for layer in model.layers if not layer.growable]
            assert not fixed
            shown = outputs_of(model, x)
            inner = [layer for layer in model.layers if layer.readers]
            for layer in (inner[0], inner[-1]):
                model.expand_layer(layer.name, layer.step, freeze=False)
            assert_equal(outputs_of(model, x), shown)
            randomise_new_blocks(model)
            wide = outputs_of(model, x)
            assert not torch.allclose(wide, shown)
            assert_equal(outputs_of(splitgrow.merge(model), x), wide)
            assert_equal(outputs_of(splitgrow.fuse(model), x), wide)
        if level:
            model.finish()
            assert_equal(outputs_of(model, x), wide)
    assert any(isinstance(module, SplitLayer) for module in model.modules())


@pytest.mark.parametrize("build", WHOLE)
def test_fused_at_the_end_of_a_fade_the_new_path_alone_is_left(build: Any) -> None:
    model = build()
    model.grow()
    fade_out(model)
    x = given(model)
    network = splitgrow.fuse(splitgrow.growable(copy.deepcopy(model), x))
    assert not any("adapters.0" in name or "share" in name for name in network.state_dict())
    model.finish()
    assert set(network.state_dict()) == set(dict(model.named_parameters()))
    assert "splitgrow" not in network.code
    assert_equal(outputs_of(network, x), outputs_of(model, x))


def test_wider_layers_stop_stages_that_are_made_already_and_nothing_changes() -> None:
    stages = [nn.Conv2d(6, 6, 1), nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.AvgPool2d(2))]
    model: Any = prepared(ProgressiveEncoder(stages, [6, 4], image_channels=1))
    splitgrow.growable(model, images(model))
    model.expand_layer("adapters.0", 2, freeze=False)
    before = str(model)
    with pytest.raises(ValueError, match=r"makes the shape \(1, 6, 4, 4\) where the network has"):
        model.grow()
    assert str(model) == before


def test_adapters_of_ones_own_serve_as_well() -> None:
    def adapter(ins: int, outs: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(ins, outs, 1), nn.LeakyReLU(0.2))

    stages = [nn.Conv2d(6, 5, 1), down(4, 6, random.Random(0))]
    model: Any = prepared(ProgressiveEncoder(stages, [6, 4], adapter=adapter))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    old = copy.deepcopy(model)
    model.grow(optimizer=optimizer)
    x = images(model)
    assert_identical(outputs_of(model, x), outputs_of(old, F.avg_pool2d(x, 2)))
    fresh = ProgressiveEncoder(
        [nn.Conv2d(6, 5, 1), down(4, 6, random.Random(0))], [6, 4], adapter=adapter
    )
    fresh.load_state_dict(model.state_dict())
    assert fresh.level == 1


def test_a_gan_trains_through_its_growth() -> None:
    torch.manual_seed(0)
    maker = ProgressiveGenerator.of_widths([8, 6, 4], latent=5, image_channels=1)
    judge = ProgressiveDiscriminator.of_widths([8, 6, 4], image_channels=1)
    optimizers = [torch.optim.Adam(m.parameters(), 1e-3, (0.0, 0.99)) for m in (maker, judge)]
    real = torch.randn(8, 1, 16, 16)
    for level in range(3):
        if level:
            maker.grow(optimizer=optimizers[0])
            judge.grow(optimizer=optimizers[1])
        schedule = FadeSchedule([maker, judge], 3) if level else None
        size = maker.resolution
        for _ in range(3):
            fake = maker(torch.randn(8, 5))
            loss = F.softplus(judge(fake.detach())) + F.softplus(
                -judge(F.adaptive_avg_pool2d(real, size))
            )
            for optimizer, value in ((optimizers[1], loss), (optimizers[0], None)):
                optimizer.zero_grad()
                (F.softplus(-judge(fake)) if value is None else value).mean().backward()
                optimizer.step()
            if schedule is not None:
                schedule.step()
        maker.finish(optimizer=optimizers[0])
        judge.finish(optimizer=optimizers[1])
    assert maker(torch.randn(1, 5)).shape == (1, 1, 16, 16)
    assert all(p.isfinite().all() for m in (maker, judge) for p in m.parameters())
