"""A planted fault is named first, in the right layer; a healthy net is left in peace."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from freenergy.thermodynamics import watch
from freenergy.thermodynamics.watching.findings import KINDS


def linear(net: nn.Module, place: int) -> tuple[str, nn.Linear]:
    return [(n, m) for n, m in net.named_modules() if isinstance(m, nn.Linear)][place]


def kinds(run) -> list[tuple[str, str]]:
    return [(finding.kind, finding.layer) for finding in run.findings]


# ---- faults --------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [4, 8, 32])
def test_torchs_own_initialisation_erases_the_input_of_a_selu_net(net, train, depth):
    run = train(net(nn.SELU, depth, torch_default=True), 6)
    assert kinds(run)[0] == ("vanishing signal", "0")
    assert "0.477" in run.findings[0].evidence
    assert "LeCun" in run.findings[0].suggestion


def test_signal_and_gradient_vanish_in_a_deep_selu_net_of_torchs_weights(net, train):
    found = [kind for kind, _ in kinds(train(net(nn.SELU, 32, torch_default=True), 6))]
    assert found == ["vanishing signal", "vanishing gradient"]


@pytest.mark.parametrize("activation", [nn.Sigmoid, nn.Tanh, nn.ReLU])
def test_a_deep_net_of_torchs_weights_loses_its_signal(net, train, activation):
    run = train(net(activation, 16, torch_default=True), 6)
    assert [kind for kind, _ in kinds(run)] == ["vanishing signal", "vanishing gradient"]


@pytest.mark.parametrize("place", [0, 2, 5])
@pytest.mark.parametrize("adam", [True, False])
def test_a_dead_layer_is_named_and_what_follows_from_it_is_not(net, train, place, adam):
    module = net(nn.ReLU)
    name, layer = linear(module, place)
    nn.init.constant_(layer.bias, -100.0)
    run = train(module, adam=adam)
    assert kinds(run) == [("dead units", name)]
    assert "100 %" in run.findings[0].evidence


def test_some_dead_units_are_no_dead_layer(net, train):
    module = net(nn.ReLU)
    with torch.no_grad():
        module[4].bias[:20] = -100.0
    assert kinds(train(module)) == []


@pytest.mark.parametrize("activation", [nn.Sigmoid, nn.Tanh])
@pytest.mark.parametrize("place", [0, 2, 3])
@pytest.mark.parametrize("by", ["weights", "bias"])
def test_a_saturated_layer_is_named(net, train, activation, place, by):
    module = net(activation, 4)
    name, layer = linear(module, place)
    with torch.no_grad():
        if by == "weights":
            layer.weight.mul_(200)
        else:
            layer.bias.fill_(-20.0)
    run = train(module)
    assert kinds(run)[0] == ("saturation", name)


def test_selu_units_deep_in_their_plateau_are_saturated(net, train):
    module = net(nn.SELU)
    name, layer = linear(module, 3)
    nn.init.constant_(layer.bias, -10.0)
    assert kinds(train(module))[0] == ("saturation", name)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.SELU, nn.LeakyReLU])
@pytest.mark.parametrize("place", [0, 3, 5])
def test_exploding_weights_are_named(net, train, activation, place):
    module = net(activation)
    name, layer = linear(module, place)
    with torch.no_grad():
        layer.weight.mul_(30)
    run = train(module, rate=1e-5)
    assert kinds(run)[0] == ("exploding weights", name)


def test_weights_whose_squares_overflow_are_named(net, train):
    module = net(nn.ReLU)
    with torch.no_grad():
        module[4].weight.mul_(1e25)
    run = train(module, 3, rate=1e-6)
    assert kinds(run) == [("exploding weights", "4")]


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.SELU])
@pytest.mark.parametrize("place", [1, 3, 5])
def test_a_signal_that_one_layer_loses_is_lost_there(net, train, activation, place):
    module = net(activation)
    name, layer = linear(module, place)
    with torch.no_grad():
        layer.weight.mul_(1e-4)
    assert kinds(train(module, 6, rate=1e-6, adam=False))[0] == ("vanishing signal", name)


def test_activations_that_explode_with_depth_are_named_at_the_first_layer(net, train):
    module = net(nn.ReLU)
    for layer in module:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0, 0.9, generator=torch.Generator().manual_seed(0))
    run = train(module, rate=1e-6)
    assert kinds(run)[0] == ("exploding signal", "0")
    assert "exploding gradient" in [kind for kind, _ in kinds(run)]


def test_weights_that_explode_in_training_are_named(net, train):
    run = train(net(nn.SELU), 40, rate=1.0)
    assert run.findings[0].kind == "exploding weights"
    evidence = run.findings[0].evidence
    assert "times that of the start" in evidence
    # What has grown is not how it was at the start.
    assert evidence.startswith("Within the first 5 steps the weights")


@pytest.mark.parametrize("fault", ["no zero_grad", "summed loss"])
def test_weights_that_run_away_late_in_a_short_run_are_named(net, rows, fault):
    module = net(nn.ReLU, 3)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with watch(module, budget=1e-9) as run:
        for step in range(174):
            if fault != "no zero_grad":
                optimizer.zero_grad()
            batch = torch.arange(64 * step, 64 * step + 64) % 256
            kind = "sum" if fault == "summed loss" else "mean"
            cross_entropy(module(rows[0][batch]), rows[1][batch], reduction=kind).backward()
            optimizer.step()
    # What a summed loss does within a few steps, gradients that add up do later. That they add up
    # is the cause, and seen before.
    found = {
        "no zero_grad": ["gradient never cleared", "exploding weights"],
        "summed loss": ["not finite", "exploding weights"],
    }
    assert [kind for kind, _ in kinds(run)][:2] == found[fault]


# ---- gradients that add up -----------------------------------------------------------------------


OPTIMISERS = {
    "adam": lambda net: torch.optim.Adam(net.parameters(), lr=1e-3),
    "adam, small rate": lambda net: torch.optim.Adam(net.parameters(), lr=1e-5),
    "sgd": lambda net: torch.optim.SGD(net.parameters(), lr=0.1),
    "sgd, small rate": lambda net: torch.optim.SGD(net.parameters(), lr=1e-3),
    "momentum": lambda net: torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.99),
}


def passes(module, rows, optimizer, n_updates, *, per_update=1, clear="before", clip=None, n=64):
    """Updates, each by some passes, with the gradients cleared at one place or at none."""
    generator = torch.Generator().manual_seed(2)
    with watch(module, budget=1e-9) as run:
        for k in range(n_updates * per_update):
            if clear == "before" and k % per_update == 0:
                optimizer.zero_grad()
            batch = torch.randint(0, 256, (n,), generator=generator)
            loss = cross_entropy(module(rows[0][batch]), rows[1][batch])
            if clear == "between" and k % per_update == 0:
                optimizer.zero_grad()
            loss.backward()
            if k % per_update == per_update - 1:
                if clip is not None:
                    nn.utils.clip_grad_norm_(module.parameters(), clip)
                optimizer.step()
                if clear == "after":
                    optimizer.zero_grad(set_to_none=False)
    return run


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("optimizer", OPTIMISERS)
def test_gradients_that_nobody_clears_are_named_at_any_rate(net, rows, optimizer, clip):
    module = net(nn.ReLU, 3)
    run = passes(module, rows, OPTIMISERS[optimizer](module), 12, clear="never", clip=clip)
    assert kinds(run)[0] == ("gradient never cleared", "0")
    assert "zero_grad" in run.findings[0].suggestion
    # It is of the loop, and of no layer.
    assert str(run).startswith("Gradient never cleared.")


def test_gathered_gradients_that_nobody_clears_are_named(net, rows):
    module = net(nn.ReLU, 3)
    run = passes(module, rows, OPTIMISERS["adam"](module), 8, per_update=3, clear="never")
    assert kinds(run)[0] == ("gradient never cleared", "0")


def test_gradients_that_are_cleared_now_and_then_are_not_called_never_cleared(net, rows):
    module = net(nn.ReLU, 3)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    with watch(module, budget=1e3) as run:
        for k in range(24):
            if k % 8 == 0:
                optimizer.zero_grad()
            cross_entropy(module(rows[0][k::3]), rows[1][k::3]).backward()
            optimizer.step()
    assert sum(0 in seen.carried for seen in run.history.sums) > 10
    assert kinds(run) == []


def test_clipped_gradients_of_full_batches_are_not_told_apart(net, rows):
    """All of them point one way and have one length, cleared or not."""
    module = net(nn.ReLU, 3)
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)
    with watch(module, budget=1e-9) as run:
        for _ in range(12):
            loss = cross_entropy(module(rows[0]), rows[1])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 0.02)
            optimizer.step()
    assert kinds(run) == []
    assert not any(seen.carried for seen in run.history.sums)


def test_gradients_of_full_batches_that_nobody_clears_are_named(net, rows):
    """All of them point one way, so that only their length tells."""
    module = net(nn.ReLU, 3)
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-5)
    with watch(module, budget=1e-9) as run:
        for _ in range(12):
            cross_entropy(module(rows[0]), rows[1]).backward()
            optimizer.step()
    assert kinds(run)[0] == ("gradient never cleared", "0")
    ratios = [seen.carried[0] for seen in run.history.sums]
    assert ratios[:4] == pytest.approx([1, 2, 3, 4], rel=1e-3)


def test_the_layers_that_one_of_two_optimisers_forgets_are_named(net, rows):
    module = net(nn.ReLU, 3)
    halves = [torch.optim.Adam(part.parameters(), lr=1e-3) for part in (module[:4], module[4:])]
    with watch(module, budget=1e-9) as run:
        for _ in range(12):
            halves[0].zero_grad()
            cross_entropy(module(rows[0]), rows[1]).backward()
            for half in halves:
                half.step()
    assert kinds(run) == [("gradient never cleared", "4")]


@pytest.mark.parametrize(
    ("optimizer", "clip"),
    [("adam", None), ("adam, small rate", 0.05), ("sgd, small rate", None), ("momentum", None)],
)
@pytest.mark.parametrize("clear", ["before", "between", "after"])
@pytest.mark.parametrize("per_update", [1, 4])
def test_gradients_that_are_gathered_on_purpose_are_healthy(
    net, rows, optimizer, clear, per_update, clip
):
    module = net(nn.ReLU, 2, 32)
    run = passes(
        module,
        rows,
        OPTIMISERS[optimizer](module),
        8,
        per_update=per_update,
        clear=clear,
        clip=clip,
    )
    assert kinds(run) == []
    assert all(not seen.carried for seen in run.history.sums)
    assert len(run.history.sums) >= 3


def test_a_discriminator_through_which_a_generator_learns_is_healthy(net):
    """What a generator's step adds to its gradients is cleared before its own next update."""
    torch.manual_seed(0)
    critic, generator = net(nn.LeakyReLU, 2), nn.Linear(20, 20)
    optimisers = [torch.optim.Adam(part.parameters(), lr=1e-4) for part in (critic, generator)]
    with watch(critic, budget=1e-9) as run:
        for _ in range(15):
            optimisers[0].zero_grad()
            real, fake = torch.randn(32, 20), generator(torch.randn(32, 20))
            nn.functional.softplus(-critic(real)[:, 0]).mean().backward()
            nn.functional.softplus(critic(fake.detach())[:, 0]).mean().backward()
            optimisers[0].step()
            optimisers[1].zero_grad()
            nn.functional.softplus(-critic(fake)[:, 0]).mean().backward()
            optimisers[1].step()
    assert kinds(run) == []


# ---- losses that are added up --------------------------------------------------------------------


def by_loss(module, rows, loss, *, n=64, rate=1e-5):
    optimizer = torch.optim.SGD(module.parameters(), lr=rate)
    with watch(module, budget=1e-9) as run:
        for k in range(9):
            optimizer.zero_grad()
            batch = torch.arange(n * k, n * k + n) % 256
            loss(module(rows[0][batch]), rows[1][batch]).backward()
            optimizer.step()
    return run


def binary(outputs, labels, **options):
    targets = nn.functional.one_hot(labels, 4).float()
    return nn.functional.binary_cross_entropy_with_logits(outputs, targets, **options)


SUMS = {
    "one class": lambda z, y: cross_entropy(z, y, reduction="sum"),
    "one class, as its logarithm": lambda z, y: nn.functional.nll_loss(
        z.log_softmax(1), y, reduction="sum"
    ),
    "labels by themselves": lambda z, y: binary(z, y, reduction="sum"),
}
MEANS = {
    "one class": cross_entropy,
    "labels by themselves": binary,
    "labels, summed in each row": lambda z, y: binary(z, y, reduction="none").sum(1).mean(),
    "weighted": lambda z, y: cross_entropy(z, y, weight=torch.arange(1.0, 5.0)),
    "smoothed": lambda z, y: cross_entropy(z, y, label_smoothing=0.1),
    "another form, summed": lambda z, y: 0.01 * (z[:, 0] - y).square().sum(),
    "scaled for half precision": lambda z, y: 1024 * cross_entropy(z, y),
}


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.SELU])
@pytest.mark.parametrize("loss", SUMS)
def test_a_loss_that_adds_rows_up_is_named_at_a_small_rate(net, rows, loss, activation):
    run = by_loss(net(activation, 3), rows, SUMS[loss])
    (finding,) = run.findings
    assert (finding.kind, finding.layer, finding.severity) == ("summed loss", "6", "warning")
    assert "instead of 1/64" in finding.evidence


@pytest.mark.parametrize("loss", MEANS)
def test_other_losses_are_left_in_peace(net, rows, loss):
    assert kinds(by_loss(net(nn.ReLU, 3), rows, MEANS[loss])) == []


@pytest.mark.parametrize("n", [1, 2, 4])
def test_a_sum_of_few_rows_is_no_matter(net, rows, n):
    assert kinds(by_loss(net(nn.ReLU, 3), rows, SUMS["one class"], n=n)) == []


@pytest.mark.parametrize(
    ("loss", "weight"), [("one class", 1 / 64), ("labels by themselves", 1 / 256)]
)
def test_the_weight_of_a_row_in_the_loss_is_read_off_its_gradient(net, rows, loss, weight):
    run = by_loss(net(nn.ReLU, 3), rows, MEANS[loss])
    for record in run.history.records[:-1]:
        assert record.readings[-1].row_weight == pytest.approx(weight, rel=1e-4)
    reading = by_loss(net(nn.ReLU, 3), rows, MEANS["weighted"]).history.records[0].readings[-1]
    assert reading.row_weight != reading.row_weight


# ---- weights -------------------------------------------------------------------------------------


def test_weights_that_came_broken_are_not_blamed_on_the_learning_rate(net, train):
    module = net(nn.Tanh)
    with torch.no_grad():
        module[4].weight[0, 0] = float("nan")
    first = train(module, 3).findings[0]
    assert (first.kind, first.layer) == ("not finite", "4")
    assert "learning rate" not in first.suggestion
    assert "check how the weights are drawn, or the file" in first.suggestion


def test_a_learning_rate_far_too_high_shows_in_the_size_of_updates(net, train):
    module = net(nn.ReLU, between=nn.BatchNorm1d)
    run = train(module, 20, rate=50.0, adam=False)
    assert "updates too large" in [kind for kind, _ in kinds(run)]


@pytest.mark.parametrize("rate", [0.0, 1e-9])
def test_a_net_that_does_not_learn_is_named(net, train, rate):
    run = train(net(nn.ReLU), rate=rate, adam=False)
    assert kinds(run) == [("not learning", "0")]


def test_a_layer_that_the_optimiser_does_not_hold_is_named(net, rows):
    module = net(nn.ReLU)
    held = [p for name, p in module.named_parameters() if not name.startswith("4.")]
    optimizer = torch.optim.Adam(held, lr=1e-3)
    with watch(module) as run:
        for _ in range(5):
            optimizer.zero_grad()
            cross_entropy(module(rows[0]), rows[1]).backward()
            optimizer.step()
    assert kinds(run) == [("not learning", "4")]


def test_a_frozen_layer_is_no_fault(net, train):
    module = net(nn.ReLU)
    module[0].requires_grad_(False)
    module[4].requires_grad_(False)
    assert kinds(train(module)) == []


def test_what_is_not_finite_comes_first_with_its_step_and_layer(net, train):
    class Breaks(nn.Module):
        calls = 0

        def forward(self, x):
            Breaks.calls += 1
            return x / 0.0 if Breaks.calls == 4 else x

    module = net(nn.SELU, torch_default=True)
    module.insert(6, Breaks())  # between the third activation and the fourth layer
    run = train(module, 8)
    first = run.findings[0]
    assert (first.kind, first.layer) == ("not finite", "7")
    assert first.evidence.startswith("At step 4 inputs")
    assert "step 3, the reading before" in first.evidence


def test_a_loss_that_is_not_finite_shows_on_the_way_back(net):
    module = net(nn.Tanh)
    x = torch.randn(32, 20, generator=torch.Generator().manual_seed(0))
    with watch(module) as run:
        (module(x).sum() * torch.tensor(float("nan"))).backward()
    assert kinds(run) == [("not finite", "12")]
    assert "gradients" in run.findings[0].evidence


def test_weights_that_the_last_update_broke_are_seen_after_the_end(net, train):
    module = net(nn.Tanh)
    optimizer = torch.optim.SGD(module.parameters(), lr=float("inf"))
    with watch(module) as run:
        module(torch.ones(4, 20)).sum().backward()
        optimizer.step()
    assert run.findings[0].kind == "not finite"
    assert "weights" in run.findings[0].evidence


def test_many_findings_of_a_kind_are_one(net, train):
    module = net(nn.Tanh, 8)
    for layer in module:
        if isinstance(layer, nn.Linear):
            nn.init.constant_(layer.bias, 20.0)
    (finding,) = train(module, 6).findings
    assert (finding.kind, finding.layer) == ("saturation", "0")
    assert "Likewise in 2, 4" in finding.evidence


def test_findings_are_frozen_and_readable(net, train):
    module = net(nn.ReLU)
    nn.init.constant_(module[4].bias, -100.0)
    (finding,) = train(module).findings
    assert finding.kind in KINDS
    assert str(finding).startswith("Dead units in layer 4: At the start 100 %")
    with pytest.raises(dataclasses.FrozenInstanceError):
        finding.layer = "5"


# ---- healthy nets --------------------------------------------------------------------------------


HEALTHY = {
    "relu-he": lambda net: net(nn.ReLU, 8),
    "relu-he-32": lambda net: net(nn.ReLU, 32, 128),
    "relu-he-narrow": lambda net: net(nn.ReLU, 12, 16),
    "selu-lecun": lambda net: net(nn.SELU, 8),
    "selu-lecun-32": lambda net: net(nn.SELU, 32),
    "selu-dropout": lambda net: net(nn.SELU, 8, dropout=0.1),
    "tanh-glorot": lambda net: net(nn.Tanh, 8),
    "leaky": lambda net: net(nn.LeakyReLU, 8),
    "sigmoid-shallow": lambda net: net(nn.Sigmoid, 2),
    "relu-torch-shallow": lambda net: net(nn.ReLU, 3, torch_default=True),
    "relu-dropout": lambda net: net(nn.ReLU, 3, dropout=0.5),
    "batch-norm": lambda net: net(nn.ReLU, 8, between=nn.BatchNorm1d),
    "batch-norm-32": lambda net: net(nn.ReLU, 32, between=nn.BatchNorm1d),
    "batch-norm-tanh": lambda net: net(nn.Tanh, 8, between=nn.BatchNorm1d),
    "layer-norm": lambda net: net(nn.ReLU, 8, between=nn.LayerNorm),
    "no-hidden": lambda net: net(nn.ReLU, 0),
    "one-hidden": lambda net: net(nn.ReLU, 1),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_nothing_is_found_in_a_healthy_net(net, train, name):
    torch.manual_seed(0)
    assert kinds(train(HEALTHY[name](net), 9)) == []


@pytest.mark.parametrize("activation", [nn.ReLU, nn.SELU, nn.Tanh, nn.LeakyReLU])
def test_nothing_is_found_after_training_to_the_end(net, train, activation):
    module = net(activation, 4, 32)
    run = train(module, 300, budget=0.2)
    assert run.findings == ()


def test_nothing_is_found_in_a_small_convolutional_net(train):
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Unflatten(1, (1, 4, 5)),
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4),
    )  # fmt: skip
    run = train(module, 30)
    assert run.findings == ()
    assert [layer.normalization for layer in run.history.layers] == ["", "BatchNorm2d", "", ""]


def he_weights(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)
    return module


def test_a_mean_over_320_places_is_no_vanishing_gradient(train):
    """Each place gets a 320th of the gradient, whose variance is a 1e5th; the weights get it all,
    as they are those of every place."""
    module = nn.Sequential(
        nn.Unflatten(1, (1, 4, 5)), nn.Upsample(scale_factor=4),
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4),
    )  # fmt: skip
    run = train(he_weights(module), 3)
    first = run.history.series(0, "gradient_variance")[0]
    last = run.history.series(2, "gradient_variance")[0]
    assert first < 2e-5 * last
    assert run.findings == ()


def test_widths_that_change_keep_the_sum_of_squared_gradients(train):
    """With weights of variance 2/fan-in the sum of squared gradients is kept, not their mean."""
    sizes = (20, 4096, 1024, 64, 8)
    layers = [m for n, k in pairwise(sizes) for m in (nn.Linear(n, k), nn.LeakyReLU(0.2))]
    module = he_weights(nn.Sequential(*layers, nn.Linear(8, 4)))
    run = train(module, 5)
    square = [run.history.series(i, "gradient_square")[0] for i in (0, 3)]
    assert 0.1 < square[0] / square[1] < 10
    assert run.findings == ()


def test_a_net_that_has_to_reach_large_numbers_is_told_to_scale_them(rows):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
    module.append(nn.Linear(64, 1))
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    with watch(module, budget=1e3) as run:
        for _ in range(400):
            optimizer.zero_grad()
            (module(rows[0])[:, 0] - 1e5 * rows[0][:, 0]).square().mean().backward()
            optimizer.step()
    assert run.findings[0].kind.startswith("exploding")
    assert "if the targets of a regression are that large" in run.findings[0].suggestion


def test_residual_branches_that_start_at_zero_are_healthy(train):
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(20, 20)
            self.outer = nn.Linear(20, 20)
            nn.init.zeros_(self.outer.weight)

        def forward(self, x):
            return x + self.outer(torch.relu(self.inner(x)))

    torch.manual_seed(0)
    run = train(nn.Sequential(*[Block() for _ in range(6)], nn.Linear(20, 4)), 10)
    assert run.findings == ()
