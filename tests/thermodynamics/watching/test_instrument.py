"""The watch changes nothing of the training, reads what is a step of it, and lets go."""

from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.utils import prune

import freenergy as fe
from freenergy.thermodynamics import watch
from freenergy.thermodynamics.watching.schedule import DENSE, Schedule


def n_hooks(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def step(module: nn.Module, x: torch.Tensor, rate: float = 0.01) -> None:
    module.zero_grad()
    module(x).square().mean().backward()
    with torch.no_grad():
        for p in module.parameters():
            if p.grad is not None:
                p -= rate * p.grad


X = torch.randn(16, 4, generator=torch.Generator().manual_seed(3))


# ---- nothing changes -----------------------------------------------------------------------------


@pytest.mark.parametrize("between", [None, nn.BatchNorm1d])
@pytest.mark.parametrize("activation", [nn.SELU, nn.ReLU])
def test_training_goes_the_same_way_to_the_last_bit(net, rows, activation, between):
    def train(watched: bool) -> tuple[list[torch.Tensor], torch.Tensor]:
        torch.manual_seed(5)
        module = net(activation, 3, 32, dropout=0.2, between=between)
        optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
        run = watch(module, budget=1e3)
        if watched:
            run.attach(module)
        for start in range(0, 240, 40):
            optimizer.zero_grad()
            batch = slice(start, start + 40)
            nn.functional.cross_entropy(module(rows[0][batch]), rows[1][batch]).backward()
            optimizer.step()
        assert run.cost.n_read == (6 if watched else 0)
        run.close()
        return [t.clone() for t in module.state_dict().values()], torch.get_rng_state()

    (bare, bare_stream), (watched, watched_stream) = train(False), train(True)
    for a, b in zip(bare, watched, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(bare_stream, watched_stream)


def test_spectral_normalisation_is_left_alone():
    def train(watched: bool) -> torch.Tensor:
        torch.manual_seed(0)
        layer = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
        module = nn.Sequential(layer, nn.ReLU(), nn.Linear(4, 1))
        with watch(module if watched else small()) as run:
            for _ in range(4):
                step(module, X)
        if watched:
            assert [layer.readable_weights for layer in run.history.layers] == [False, True]
            assert np.isnan(run.history.records[0].readings[0].weight_norm)
            assert run.history.records[0].readings[0].variance > 0
        return layer.weight.detach()

    assert torch.equal(train(False), train(True))


def test_the_hooks_are_gone_after_the_end():
    module = small()
    with watch(module):
        assert n_hooks(module) == 1
        step(module, X)
        assert n_hooks(module) == 1
    assert n_hooks(module) == 0


def test_the_hooks_are_gone_after_an_exception():
    class Fails(nn.Module):
        def forward(self, x):
            raise RuntimeError("within the pass")

    module = nn.Sequential(*small(), Fails())
    with pytest.raises(RuntimeError, match="within the pass"), watch(module):
        module(X)
    assert n_hooks(module) == 0


def test_a_pass_that_fails_leaves_the_next_one_readable():
    module = small()
    with watch(module) as run:
        with pytest.raises(RuntimeError):
            module(torch.zeros(3, 5))
        for _ in range(6):
            step(module, X)
    assert run.history.records[0].readings[0].variance > 0
    assert n_hooks(module) == 0


def test_the_pass_behind_one_that_failed_is_read():
    module = small()
    with watch(module, budget=1e-9) as run:
        for k in range(8):
            if k in (0, 3):
                with pytest.raises(RuntimeError):
                    module(torch.zeros(3, 5))
            step(module, X)
    assert [record.step for record in run.history.records if record.whole] == [2, 3, 4, 6, 7, 10]


# ---- modules that change, and modules in parts ---------------------------------------------------


def pruned() -> nn.Sequential:
    module = small()
    generator = torch.Generator().manual_seed(0)
    mask = (torch.rand(8, 4, generator=generator) > 0.5).float()
    prune.custom_from_mask(module[0], "weight", mask)
    return module


def test_pruned_weights_are_read_as_they_are_used():
    module = pruned()
    with torch.no_grad():
        module(X)  # which leaves weights that ask for no gradient
    with watch(module, budget=1e3) as run:
        weights = []
        for _ in range(4):
            weights.append((module[0].weight_orig * module[0].weight_mask).detach())
            step(module, X)
    assert run.history.layers[0].trainable
    for k in range(3):
        reading = run.history.records[k].readings[0]
        assert reading.weight_norm == pytest.approx(float(weights[k].norm()), rel=1e-6)
        moved = float((weights[k + 1] - weights[k]).norm() / weights[k].norm())
        assert reading.update_ratio == pytest.approx(moved, rel=1e-4)


def test_pruning_goes_the_same_way_to_the_last_bit():
    bare, watched = pruned(), pruned()
    for module in (bare, watched):
        with watch(module if module is watched else small()):
            for _ in range(5):
                step(module, X)
    for a, b in zip(bare.parameters(), watched.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("update", ["attributes", "weights alone"])
def test_layers_that_are_cut_down_while_they_are_watched_are_read_on(update):
    def cut(module: nn.Sequential) -> None:
        first, last = module[0], module[2]
        first.weight = nn.Parameter(first.weight[:50].detach().clone())
        first.bias = nn.Parameter(first.bias[:50].detach().clone())
        last.weight = nn.Parameter(last.weight[:, :50].detach().clone())
        if update == "attributes":
            first.out_features = last.in_features = 50

    module = nn.Sequential(nn.Linear(4, 300), nn.ReLU(), nn.Linear(300, 2))
    with watch(module, budget=1e3) as run:
        for k in range(8):
            if k == 4:
                cut(module)
            step(module, X)
    assert (run.history.layers[0].n_units, run.history.layers[1].fan_in) == (50, 50)
    last = run.history.records[-2].readings
    assert [np.isfinite(reading.weight_norm) for reading in last] == [True, True]
    assert [np.isfinite(reading.input_variance) for reading in last] == [True, True]


def test_weights_that_get_a_parametrization_while_they_are_watched_are_left_alone():
    def train(watched: bool) -> torch.Tensor:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
        with watch(module if watched else small()):
            step(module, X)
            torch.manual_seed(1)
            nn.utils.parametrizations.spectral_norm(module[0])
            for _ in range(4):
                step(module, X)
        return module[0].weight.detach()

    assert torch.equal(train(False), train(True))


def free_energy_steps(vae: fe.models.VAE, n: int) -> None:
    random = fe.random.RandomStream(0)
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-3)
    x = (X.repeat(1, 2) > 0).float()
    for _ in range(n):
        optimizer.zero_grad()
        vae.free_energy(x, random).free_energy.mean().backward()
        optimizer.step()


def test_encoder_and_decoder_are_read_though_their_model_is_never_called():
    torch.manual_seed(0)
    vae = fe.models.VAE(8, 2, hidden_sizes=(16, 12))
    with watch(vae, budget=1e3) as run:
        free_energy_steps(vae, 6)
        vae.eval()
        vae.decoder(torch.zeros(1, 2))
    assert run.n_steps == 6
    assert len([record for record in run.history.records if record.whole]) == 6
    chains = [[run.history.layers[i].name for i in chain] for chain in run.history.chains]
    assert chains == [
        ["encoder.0", "encoder.2", "encoder.4"],
        ["decoder.0", "decoder.2", "decoder.4"],
    ]
    assert [run.history.layers[i].activation for i in run.history.hidden] == ["Tanh"] * 4
    first = run.history.records[0].readings
    assert all(np.isfinite(reading.gradient_variance) for reading in first)
    assert n_hooks(vae) == 0


@pytest.mark.parametrize("options", [{}, {"latent": "bernoulli", "n_components": 6}])
def test_a_watch_is_a_callback_of_the_variational_autoencoder(digits, options):
    arguments = {"n_components": 4, "hidden_layer_sizes": (24,), "n_iter": 4, "random_state": 0}
    rows, run = digits[0] / 16, watch()
    watched = fe.VariationalAutoencoder(**arguments | options, callback=run).fit(rows)
    bare = fe.VariationalAutoencoder(**arguments | options).fit(rows)
    for a, b in zip(watched.model_.parameters(), bare.model_.parameters(), strict=True):
        assert torch.equal(a, b)
    assert run.findings == ()
    assert run.n_steps == sum(watched.history_["updates"])
    assert len(run.history.layers) == 4


def test_the_part_that_goes_wrong_is_named():
    torch.manual_seed(0)
    vae = fe.models.VAE(8, 2, hidden_sizes=(16, 16), activation="relu")
    nn.init.constant_(vae.decoder[2].bias, -100.0)
    with watch(vae) as run:
        free_energy_steps(vae, 6)
    assert (run.findings[0].kind, run.findings[0].layer) == ("dead units", "decoder.2")


# ---- what is a step ------------------------------------------------------------------------------


def test_evaluation_and_passes_without_gradients_are_no_steps():
    module = small()
    with watch(module) as run:
        module.eval()
        module(X)
        module.train()
        with torch.no_grad():
            module(X)
        with torch.inference_mode():
            module(X)
        assert run.n_steps == 0
        step(module, X)
    assert run.n_steps == 1
    assert len(run.history.records) == 2  # and the last look at the weights


def test_passes_that_no_gradient_comes_back_from_are_not_read():
    module = small()
    with watch(module) as run:
        for _ in range(7):
            module(X)
        assert run.history.records == []
        for _ in range(9):
            step(module, X)
    assert len([r for r in run.history.records if r.whole]) >= 2


def test_an_update_after_several_passes_is_theirs_together():
    module = small()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    with watch(module, budget=1e3) as run:
        for turn in range(8):
            module(X).square().mean().backward()
            if turn % 4 == 3:
                before = module[0].weight.detach().clone()
                optimizer.step()
                moved = (module[0].weight.detach() - before).norm() / before.norm()
                optimizer.zero_grad()
    whole = [record for record in run.history.records if record.whole]
    assert [record.step for record in whole] == [1, 5]
    assert whole[1].readings[0].update_ratio == pytest.approx(float(moved), rel=1e-5)


def test_of_two_passes_for_one_gradient_the_first_is_read():
    module = small()
    with watch(module, budget=1e3) as run:
        for _ in range(3):
            module.zero_grad()
            (module(X) - module(2 * X)).square().mean().backward()
            with torch.no_grad():
                for p in module.parameters():
                    p -= 0.01 * p.grad
    first = run.history.records[0].readings[0]
    assert first.input_variance == pytest.approx(float(X.var(correction=0)), rel=1e-5)
    assert first.gradient_variance > 0


def test_a_layer_that_is_called_twice_is_read_once():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.spare = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.inner(torch.tanh(self.inner(x)))

    module = Twice()
    with watch(module) as run:
        step(module, X)
    inner, _ = run.history.layers
    assert inner.calls == 2
    assert run.history.records[0].readings[0].input_variance == pytest.approx(
        float(X.var(correction=0)), rel=1e-5
    )
    assert run.history.never_called == ["spare"]
    assert "Never called: spare" in str(run)


def test_modules_that_are_not_understood_are_named():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.memory, self.out = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 1)
            self.words, self.attention = nn.Embedding(3, 4), nn.MultiheadAttention(5, 1)

        def forward(self, x):
            h = self.memory(x[:, None])[0]
            return self.out(self.attention(h, h, h)[0][:, 0])

    module = Net()
    with watch(module) as run:
        step(module, X)
    assert run.history.unwatched == [
        "memory (LSTM)",
        "words (Embedding)",
        "attention (MultiheadAttention)",
    ]
    assert "memory (LSTM)" in str(run)
    assert [run.history.layers[i].name for i in run.history.called] == ["out"]


def test_layers_without_a_size_get_one_in_the_first_pass():
    module = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 2))
    with watch(module) as run:
        module(X)
        for _ in range(3):
            step(module, X)
    assert run.history.layers[0].fan_in == 4


def test_a_module_that_is_itself_a_layer_and_one_without_layers():
    layer = nn.Linear(4, 2)
    with watch(layer) as run:
        step(layer, X)
    assert run.history.layers[0].name == "(itself)"
    with watch(nn.Sequential(nn.ReLU())) as run:
        run._module(X.clone().requires_grad_()).sum().backward()
    assert run.findings == ()
    assert "no linear or convolutional layers" in str(run)
    with watch(layer) as run:
        pass
    assert "No training pass" in str(run)


def test_keyword_arguments_reach_the_layers():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, *, rows):
            return self.layer(input=rows)

    module = Net()
    with watch(module) as run:
        module(rows=X).sum().backward()
    assert run.history.records[0].readings[0].input_variance > 0


# ---- use -----------------------------------------------------------------------------------------


def test_it_stands_at_the_front():
    assert fe.watch is watch
    assert "watch" in dir(fe)


def test_what_cannot_be_watched_is_refused():
    with pytest.raises(TypeError, match=r"takes a torch.nn.Module, got list"):
        watch([nn.Linear(1, 1)])
    with pytest.raises(TypeError, match=r"an RBM is read by RBMMonitor.* TemperatureMonitor"):
        watch(fe.models.RBM(3, 2))
    with pytest.raises(TypeError, match=r"TemperatureMonitor.* read its marginal_rbm\(\)"):
        watch(fe.models.DiscriminativeRBM(3, 2, 2))
    with pytest.raises(TypeError, match="neither this ParameterList nor a part of it"):
        watch(nn.ParameterList([torch.zeros(2)]))
    with pytest.raises(ValueError, match="budget must be positive, got 0"):
        watch(budget=0)
    with pytest.raises(ValueError, match="n_rows must be at least 2, got 1"):
        watch(n_rows=1)


def test_a_watch_is_entered_once_at_a_time_and_goes_on_where_it_left():
    module = small()
    run = watch(module)
    with run:
        step(module, X)
        with pytest.raises(RuntimeError, match="attached already"):
            run.__enter__()
    with run:
        step(module, X)
    assert run.n_steps == 2


def test_two_watches_read_one_module():
    module = small()
    with watch(module) as outer, watch(module) as inner:
        for _ in range(3):
            step(module, X)
    a, b = (run.history.records[1].readings[0] for run in (outer, inner))
    assert a.to_dict() == b.to_dict()


def test_the_choice_of_rows_follows_the_seed():
    def signal(seed: int) -> float:
        module = small()
        with watch(module, n_rows=5, seed=seed) as run:
            step(module, X)
        return run.history.records[0].readings[0].signal

    assert signal(1) == signal(1) != signal(2)


def test_copies_hold_the_readings_and_are_not_attached(tmp_path):
    module = small()
    run = watch(module)
    with run:
        step(module, X)
        twins = [copy.deepcopy(run), pickle.loads(pickle.dumps(run))]
        copied = copy.deepcopy(module)
    for twin in twins:
        assert not twin.attached
        assert twin.history.records[0].readings[0].mean == run.history.records[0].readings[0].mean
        twin.report(tmp_path / "twin.html")
    before = run.n_steps
    step(copied, X)
    assert run.n_steps == before


def test_a_module_that_outlives_its_watch_forgets_it():
    module = small()
    run = watch()
    run.attach(module)
    step(module, X)
    del run
    step(module, X)


def test_readings_are_thinned_in_long_runs(monkeypatch):
    monkeypatch.setattr("freenergy.thermodynamics.watching.history._MAX_RECORDS", 30)
    module = small()
    with watch(module, budget=1e3) as run:
        for _ in range(120):
            step(module, X)
    steps = [record.step for record in run.history.records]
    assert len(steps) <= 31
    assert steps[:20] == list(range(1, 21))
    assert steps == sorted(steps)
    assert steps[-1] == 121


def test_json_holds_what_was_measured_and_predicted(net, train, tmp_path):
    run = train(net(nn.SELU, 3), 9)
    content = json.loads(run.to_json(tmp_path / "run.json").read_text())
    assert content["findings"] == []
    assert content["steps"] == [*range(1, 10), 10]
    layer = content["layers"][1]
    assert layer["activation"] == "SELU"
    assert layer["domain"][0] in ("theorem 1", "theorem 2", "theorem 3", "outside")
    ratio = layer["measured"]["variance"][0] / layer["predicted"]["variance"][0]
    assert 0.7 < ratio < 1.4
    assert content["cost"]["n_steps"] == 9


def test_json_says_which_gradients_were_not_cleared(tmp_path):
    module = small()
    with watch(module) as run:
        for _ in range(6):
            module(X).square().mean().backward()
            with torch.no_grad():
                for p in module.parameters():
                    p -= 1e-4 * p.grad
    (first, *_) = json.loads(run.to_json(tmp_path / "run.json").read_text())["gradient_sums"]
    assert (first["step"], first["cleared"]) == (2, [])
    assert list(first["carried"]) == ["0", "2"]


def test_a_long_training_keeps_so_many_sums_of_gradients_and_no_more(monkeypatch):
    monkeypatch.setattr("freenergy.thermodynamics.watching.instrument._MOST_SUMS", 5)
    module = small()
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)
    with watch(module, budget=1e3) as run:
        for _ in range(30):
            optimizer.zero_grad()
            module(X).square().mean().backward()
            optimizer.step()
    assert len(run.history.sums) == 5
    assert len(run.history.records) > 5


# ---- estimators ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    return x[:600], y[:600]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("options", [{}, {"dropout": 0.1, "activation": "selu"}])
def test_the_callback_of_an_estimator_changes_nothing_of_its_net(digits, options):
    arguments = {"max_iter": 3, "random_state": 0, "hidden_layer_sizes": (32, 32)} | options
    run = watch(budget=1e3)
    watched = fe.MLPClassifier(**arguments, callback=run).fit(*digits)
    bare = fe.MLPClassifier(**arguments).fit(*digits)
    for a, b in zip(watched.coefs_, bare.coefs_, strict=True):
        np.testing.assert_array_equal(a, b)
    assert run.n_steps == 9
    assert len(run.history.layers) == 3
    before = run.n_steps
    watched.predict(digits[0])
    assert run.n_steps == before


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_nothing_is_found_in_the_default_classifier(digits):
    run = watch(budget=0.3)
    with run:
        fe.MLPClassifier(random_state=0, max_iter=60, callback=run).fit(*digits)
    assert run.findings == ()
    assert run.history.layers[0].activation == "ReLU"


def test_an_rbm_names_the_instruments_for_it(digits):
    with pytest.raises(TypeError, match="TemperatureMonitor"):
        fe.BernoulliRBM(n_iter=1, callback=watch()).fit(digits[0] / 16)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_an_estimator_with_a_watch_can_be_cloned_and_fitted_again(digits):
    run = watch()
    classifier = fe.MLPClassifier(max_iter=1, random_state=0, callback=run)
    other = clone(classifier)
    assert other.callback is not run
    classifier.fit(*digits)
    first = run.history
    classifier.fit(*digits)
    assert run.history is not first
    assert run.n_steps == 3


def test_a_trainer_that_does_not_announce_itself_is_watched_from_its_first_call():
    class Trainer:
        model = small()

    run = watch()
    run(Trainer())
    assert run.attached
    step(Trainer.model, X)
    assert run.n_steps == 1


# ---- schedule ------------------------------------------------------------------------------------


def test_the_first_passes_are_read_and_then_the_budget_is_kept():
    schedule, now, read = Schedule(0.05), 0.0, []
    for number in range(4000):
        schedule.step(now)
        if schedule.due():
            read.append(number)
            schedule.begin_reading()
            schedule.own_seconds += 0.01
            schedule.end_reading()
            now += 0.01
        now += 0.01
    assert read[:DENSE] == list(range(DENSE))
    assert schedule.share == pytest.approx(0.025, rel=0.05)
    assert np.diff(read[20:]).max() < 45


@pytest.mark.parametrize("n_steps", [40, 94, 174, 1000, 100_000])
def test_a_run_of_any_length_is_read_up_to_its_end(n_steps):
    """Without any budget: after the first five by factors of the square root of two."""
    schedule, read = Schedule(1e-12), []
    for step in range(1, n_steps + 1):
        schedule.step(0.01 * step)
        if schedule.due():
            read.append(step)
            schedule.begin_reading()
            schedule.own_seconds += 0.01
            schedule.end_reading()
    assert read[:8] == [1, 2, 3, 4, 5, 8, 12, 17]
    assert n_steps < np.sqrt(2) * read[-1] + 1
    assert DENSE <= len(read) <= 2 * np.log2(n_steps)
    assert read[-5] > n_steps / 7


def test_a_pause_buys_no_readings():
    schedule, now = Schedule(0.05), 0.0
    for _ in range(100):
        schedule.step(now)
        now += 0.01
    before = schedule.training_seconds
    schedule.step(now + 1000.0)
    assert schedule.training_seconds - before < 0.2
    schedule.pause()
    schedule.step(now + 5000.0)
    assert schedule.training_seconds - before < 0.2


def test_a_module_may_change_its_precision_on_the_way():
    module = small()
    with watch(module) as run:
        step(module, X)
        module.double()
        step(module, X.double())
    assert run.history.records[-1].readings[0].distance > 0
    assert [record.step for record in run.history.records] == [1, 2, 3]
