"""Compiled models are seen like eager ones, in whole graphs that no cadence compiles anew."""

import copy
import gc
import warnings

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint

import numwatch
from numwatch.schedule import Schedule
from numwatch.snapshot import ROLES
from numwatch.stats.layout import CALLS
from numwatch.taps import traced
from numwatch.taps.gate import Gate
from numwatch.watch import Watch

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

EVERY_STEP = Schedule(1, 0)


class Net(nn.Module):
    """A shared input, a residual, an in-place activation, a norm, an embedding, attention."""

    def __init__(self, checkpointed=False):
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.norm = nn.LayerNorm(16)
        self.q, self.k = nn.Linear(16, 16), nn.Linear(16, 16)
        self.act = nn.ReLU(inplace=True)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 20)
        self.checkpointed = checkpointed

    def block(self, x):
        n = self.norm(x)
        y = self.act(self.q(n)) * self.k(n)
        return x + self.attention(y, y, n, need_weights=False)[0]

    def forward(self, tokens):
        x = self.embed(tokens)
        x = checkpoint(self.block, x, use_reentrant=False) if self.checkpointed else self.block(x)
        return self.head(x)


@pytest.fixture(autouse=True)
def _compiles_afresh():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def train(model, run, schedule=EVERY_STEP, steps=3, dtype=None, pause=False):
    """Trains `run`, which is the model or compiled from it; returns the snapshots and losses."""
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = Watch(model, Gate(strict=True), schedule)
    watch.attach([optimizer])
    snapshots, losses = [], []
    for step in range(steps):
        watch.begin(step)
        tokens = torch.randint(0, 20, (4, 5))
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            loss = nn.functional.cross_entropy(run(tokens).flatten(0, 1), tokens.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        watch.end()
        losses.append(float(loss))
        if pause:
            watch.pause()
            watch.resume()
        snapshots += watch.collect(everything=True)
    watch.detach()
    return snapshots, losses


def rows_of(snapshot):
    return {row.slot: row.stats for row in snapshot.rows}


def compile_as(model, how):
    options = {"mode": how} if how == "reduce-overhead" else {"backend": how}
    return torch.compile(model, fullgraph=True, **options)


def differing(stats, other):
    """How many elements two rows count differently."""
    histograms = [dict(enumerate(one.binades, one.binade_first)) for one in (stats, other)]
    binades = histograms[0].keys() | histograms[1].keys()
    counted = sum(abs(histograms[0].get(b, 0) - histograms[1].get(b, 0)) for b in binades)
    return counted + abs(stats.zeros - other.zeros)


@pytest.mark.parametrize(
    ("how", "dtype", "checkpointed"),
    [
        ("aot_eager", None, False),
        ("aot_eager", torch.bfloat16, True),
        ("inductor", None, True),
        ("inductor", torch.bfloat16, False),
        ("reduce-overhead", None, False),
    ],
)
def test_rows_are_those_of_the_eager_model(how, dtype, checkpointed):
    model = Net(checkpointed)
    twin = copy.deepcopy(model)
    eager, _ = train(twin, twin, dtype=dtype)
    ours, _ = train(model, compile_as(model, how), dtype=dtype)
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 1
    for theirs, own in zip(eager, ours, strict=True):
        expected, found = rows_of(theirs), rows_of(own)
        # An attention's grad_input is that of tensors others use too, which no graph shows.
        assert expected.keys() - found.keys() == {"attention:grad_input"}
        calls = dict(zip(theirs.rows.slots, theirs.rows.counts[:, CALLS], strict=True))
        own_calls = dict(zip(own.rows.slots, own.rows.counts[:, CALLS], strict=True))
        for slot in (slot for slot in found if slot.split(":")[1] in ROLES):
            stats = found[slot]
            assert own_calls[slot] == calls[slot], slot
            assert stats.numel == expected[slot].numel, slot
            if how == "aot_eager":  # the same operations in the same order
                assert differing(stats, expected[slot]) == 0, slot
                assert stats.amax == expected[slot].amax, slot
                assert stats.sum == pytest.approx(expected[slot].sum, rel=1e-6, abs=1e-12), slot
            elif dtype is None:  # fused ones, rounded a little otherwise
                assert differing(stats, expected[slot]) <= 0.02 * stats.numel, slot
                assert stats.amax == pytest.approx(expected[slot].amax, rel=1e-4), slot


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_training_is_bitwise_that_without_a_watch(dtype):
    model = Net()
    twin = copy.deepcopy(model)
    _, losses = train(model, compile_as(model, "inductor"), dtype=dtype)
    torch._dynamo.reset()
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    bare, run = [], compile_as(twin, "inductor")
    for _ in losses:
        tokens = torch.randint(0, 20, (4, 5))
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            loss = nn.functional.cross_entropy(run(tokens).flatten(0, 1), tokens.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        bare.append(float(loss))
    assert losses == bare
    assert all(map(torch.equal, model.state_dict().values(), twin.state_dict().values()))


def test_no_cadence_and_no_validation_compiles_anew():
    model = Net()
    compiled = compile_as(model, "aot_eager")
    snapshots, _ = train(model, compiled, Schedule(7, 3), steps=200, pause=True)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["recompiles"]
    recorded = [s.step for s in snapshots if s.rows is not None]
    assert recorded == [step for step in range(200) if step % 7 == 0 or step % 3 == 0]
    assert all("head:grad_output" in rows_of(s) for s in snapshots if s.rows is not None)


def test_a_later_watch_sees_what_was_compiled_for_an_earlier_one():
    model = Net()
    compiled = compile_as(model, "aot_eager")
    train(model, compiled)
    later, _ = train(model, compiled)
    assert counters["stats"]["unique_graphs"] == 1
    assert rows_of(later[0]).keys() >= {"q:input", "q:grad_output", "q:grad_input", "norm:output"}


def test_a_graph_calls_nobody_once_the_watching_has_ended():
    model = Net()
    compiled = compile_as(model, "aot_eager")
    train(model, compiled)
    (token,) = traced._tokens[model.q]
    assert not traced._taken(token)
    compiled(torch.randint(0, 20, (4, 5))).sum().backward()


def test_a_watch_that_nobody_ended_dies_with_its_model():
    model = nn.Sequential(nn.Linear(4, 4))
    Watch(model, Gate(strict=True), EVERY_STEP).attach()
    (token,) = traced._tokens[model[0]]
    assert traced._taken(token)
    del model
    gc.collect()
    assert not traced._taken(token)


def test_two_watches_see_every_tensor_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    compiled = compile_as(model, "aot_eager")
    watches = [Watch(model, Gate(strict=True), EVERY_STEP) for _ in range(2)]
    for watch in watches:
        watch.attach()
        watch.begin(0)
    compiled(torch.randn(3, 4)).sum().backward()
    for watch in watches:
        watch.end()
        (snapshot,) = watch.collect(everything=True)
        watch.detach()
        assert rows_of(snapshot)["0:input"].numel == 12
        assert rows_of(snapshot)["1:grad_output"].numel == 6


def test_compiled_submodules_are_seen():
    model = Net()
    model.q.compile(fullgraph=True, backend="aot_eager")
    model.head.compile(fullgraph=True, backend="aot_eager")
    (snapshot, *_), _ = train(model, model)
    seen = rows_of(snapshot)
    for slot in ("q:input", "q:grad_output", "q:grad_input", "head:output", "k:output"):
        assert slot in seen
    assert not counters["graph_break"]


class Transformed(nn.Module):
    def __init__(self, transform):
        super().__init__()
        self.inner, self.outer, self.transform = nn.Linear(4, 4), nn.Linear(4, 4), transform

    def forward(self, x):
        return self.outer(self.transform(self.inner, x))


def by_vmap(module, x):
    return torch.func.vmap(module)(x)


def by_gradient(module, x):
    return x + torch.func.grad(lambda given: module(given).square().sum())(x)


@pytest.mark.parametrize("transform", [by_vmap, by_gradient])
def test_modules_inside_function_transforms_do_no_harm(transform):
    model = Transformed(transform)
    compiled = torch.compile(model, backend="aot_eager")
    x = torch.randn(3, 5, 4)
    expected = model(x)
    watch = Watch(model, Gate(strict=True), EVERY_STEP)
    watch.attach()
    watch.begin(0)
    found = compiled(x)
    found.sum().backward()
    watch.end()
    watch.detach()
    seen = rows_of(watch.collect(everything=True)[0])
    assert torch.equal(found, expected)
    assert ("inner:input" in seen) == (transform is by_gradient)
    assert seen["outer:input"].numel == 60


def test_graph_breaks_of_the_user_s_own_change_nothing():
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            x = self.first(x)
            torch._dynamo.graph_break()
            return self.second(x)

    model = Broken()
    (snapshot,) = [watched_once(model, torch.compile(model, backend="aot_eager"))]
    for slot in ("first:input", "first:grad_output", "second:input", "second:grad_input"):
        assert slot in rows_of(snapshot)


def watched_once(model, run):
    watch = Watch(model, Gate(strict=True), EVERY_STEP)
    watch.attach()
    watch.begin(0)
    run(torch.randn(3, 4)).sum().backward()
    watch.end()
    watch.detach()
    return watch.collect(everything=True)[0]


def test_a_model_traced_before_it_is_watched_is_told_of(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    compiled = compile_as(model, "aot_eager")
    compiled(torch.randn(3, 4)).sum().backward()
    with numwatch.watch(model, dir=tmp_path, summary=False, every_n_steps=1) as watch:
        compiled(torch.randn(3, 4)).sum().backward()
        with pytest.warns(UserWarning, match="was compiled before numwatch"):
            watch.step()
        compiled(torch.randn(3, 4)).sum().backward()
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # told once
            watch.step()
    events = (tmp_path / "numwatch" / "events.jsonl").read_text()
    assert events.count("activations: the model was compiled before") == 1


def test_a_step_that_trains_nothing_says_nothing_of_compiling(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with numwatch.watch(model, dir=tmp_path, summary=False, every_n_steps=1) as watch:
            watch.step()
            model(torch.randn(3, 4)).sum().backward()
            watch.step()
    assert "compiled" not in (tmp_path / "numwatch" / "events.jsonl").read_text()


class Called(nn.Module):
    """Sees one module twice, with gradients that are equal."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return self.fc(x) + self.fc(x + 1)


@pytest.mark.parametrize("how", ["aot_eager", "inductor"])
def test_equal_gradients_of_two_calls_count_twice(how):
    model = Called()
    rows = rows_of(watched_once(model, compile_as(model, how)))
    assert rows["fc:grad_output"].numel == 24
    assert rows["fc:output"].numel == 24


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return x + self.fc(x)


def test_blocks_compiled_one_by_one_share_a_graph():
    model = nn.Sequential(*(Block() for _ in range(12)))
    for block in model:
        block.compile(backend="aot_eager", fullgraph=True)
    rows = rows_of(watched_once(model, model))
    assert counters["stats"]["unique_graphs"] <= 2  # the first one's input needs no gradient
    for i in range(12):
        assert rows[f"{i}.fc:output"].numel == 12
        assert rows[f"{i}.fc:grad_output"].numel == 12
    assert rows["3.fc:output"].sum != rows["4.fc:output"].sum


def test_a_model_in_eval_that_trains_is_seen():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).eval()
    rows = rows_of(watched_once(model, compile_as(model, "aot_eager")))
    assert {"0:input", "0:output", "1:grad_output", "1:grad_input"} <= rows.keys()


def test_what_a_compiler_fuses_with_a_norm_is_rounded_as_without_a_watch():
    def losses(watched):
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.SiLU(), nn.Linear(64, 64))
        model = model.bfloat16()
        watch = Watch(model, Gate(strict=True), EVERY_STEP)
        if watched:
            watch.attach()
            watch.begin(0)
        loss = compile_as(model, "inductor")(torch.randn(32, 64).bfloat16()).float().square().mean()
        loss.backward()
        watch.detach()
        return float(loss), *(parameter.grad for parameter in model.parameters())

    bare, ours = losses(watched=False), losses(watched=True)
    assert bare[0] == ours[0]
    assert all(map(torch.equal, bare[1:], ours[1:]))


def test_a_model_compiled_while_its_operations_are_audited_has_whole_graphs(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    with numwatch.watch(model, dir=tmp_path, summary=False, every_n_steps=1, strict=True) as watch:
        compiled = compile_as(model, "aot_eager")
        for _ in range(5):
            compiled(torch.randn(3, 4)).sum().backward()
            watch.step()
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 2  # under the audit's dispatch mode, and without


def test_a_whole_step_that_is_compiled_trains_on(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = torch.compile(optimizer.step, backend="aot_eager")
    with numwatch.watch(
        model, optimizer, dir=tmp_path, summary=False, every_n_steps=1, strict=True
    ) as watch:
        for _ in range(3):
            model(torch.randn(3, 4)).sum().backward()
            step()
            watch.step()
    assert numwatch.open_run(tmp_path).tensors(slot="0:input").num_rows == 3
