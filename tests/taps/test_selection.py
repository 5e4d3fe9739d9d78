import warnings

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from numwatch.snapshot import ROLES
from numwatch.taps.selection import clean_path, inner_products, select, weight_of


def names(model, **globs):
    return {slot.slot for slot in select(model, **globs)[1]}


def model():
    return nn.Sequential(
        nn.Embedding(10, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU(), nn.Conv1d(8, 8, 1)
    )


def test_default_is_gemms_in_all_roles_and_outputs_of_embeddings_and_norms():
    expected = {"0:output", "1:output"} | {f"{gemm}:{role}" for gemm in "24" for role in ROLES}
    assert names(model()) == expected


@pytest.mark.parametrize("make", [nn.LSTM, nn.GRU, nn.RNN, nn.GRUCell])
def test_recurrent_layers_have_input_output_and_gradient_and_no_single_weight(make):
    expected = {"0:input", "0:output", "0:grad_output"}
    assert names(nn.Sequential(make(4, 4))) == expected


def test_norm_of_another_library_is_known_by_its_name():
    class LlamaRMSNorm(nn.Module):
        pass

    assert names(nn.Sequential(LlamaRMSNorm())) == {"0:output"}


class Router(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 8))


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(torch.randn(4, 16, 8))
        self.down = nn.Parameter(torch.randn(4, 8, 16))
        self.bias = nn.Parameter(torch.randn(4, 16))
        self.first = nn.Parameter(torch.randn(1, 16, 8))


class TokenEmbedding(Router):
    pass


def test_matrix_of_a_module_of_someones_own_is_a_gemms():
    assert names(nn.Sequential(Router(), TokenEmbedding())) == {f"0:{role}" for role in ROLES}


def test_stacks_of_matrices_are_watched_with_what_their_module_takes_and_gives():
    expected = {f"0.{name}:{role}" for name in ("up", "down") for role in ("weight", "grad_weight")}
    ends = {f"0:{role}" for role in ("input", "output", "grad_output", "grad_input")}
    assert names(nn.Sequential(Experts())) == expected | ends
    assert names(nn.Sequential(Experts()), include=["0.up:grad_*"]) == {"0.up:grad_weight"}
    assert names(nn.Sequential(Experts()), exclude=["0", "*.down"]) == {
        "0.up:weight",
        "0.up:grad_weight",
    }


class RoutedExperts(Experts):
    """A router's matrix and the experts' stacks in one module."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 8))


def test_stacks_beside_a_matrix_of_the_same_module_are_watched_too():
    stacks = {f"0.{name}:{role}" for name in ("up", "down") for role in ("weight", "grad_weight")}
    assert names(nn.Sequential(RoutedExperts())) == stacks | {f"0:{role}" for role in ROLES}


def test_whose_products_are_not_seen_is_named():
    net = nn.Sequential(Experts(), nn.Linear(8, 8), Experts())
    assert inner_products(select(net)[0]) == (
        "products inside 0 and 1 more, whose weights are stacked in one parameter"
    )
    assert inner_products(select(nn.Sequential(nn.Linear(8, 8), nn.Conv1d(4, 4, 3)))[0]) is None


def test_parametrized_convolution_is_no_stack():
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 4, 3)))
    assert not any("parametrizations" in name for name in names(net))


def test_include_replaces_the_default_and_exclude_takes_away():
    assert names(model(), include=["2:grad_*", "3"]) == {
        "2:grad_output",
        "2:grad_input",
        "2:grad_weight",
        "3:input",
        "3:output",
        "3:grad_output",
        "3:grad_input",
    }
    assert names(model(), exclude=["2", "4:*weight", "0:output"]) == {
        "1:output",
        "4:input",
        "4:output",
        "4:grad_output",
        "4:grad_input",
    }


@pytest.mark.parametrize(
    ("globs", "text"),
    [
        (
            {"include": ["blocks.*.fcc"]},
            r"include='blocks.\*.fcc' matches no .*did you mean '.*fc'",
        ),
        ({"exclude": ["*:gradoutput"]}, r"exclude='\*:gradoutput'.*did you mean 'grad_output'"),
        ({"exclude": ["zzzzzz"]}, r"exclude='zzzzzz' matches no module and role$"),
    ],
)
def test_mistyped_glob_warns_and_names_near_ones(globs, text):
    net = nn.ModuleDict({"blocks": nn.Sequential(nn.ModuleDict({"fc": nn.Linear(4, 4)}))})
    with pytest.warns(UserWarning, match=text):
        select(net, **globs)


def test_glob_that_matches_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        select(model(), include=["2", "*:output"], exclude="3")


def test_shared_weight_has_one_slot_and_an_embedding_does_not_take_it():
    net = nn.ModuleDict({"embed": nn.Embedding(8, 4), "head": nn.Linear(4, 8, bias=False)})
    net["head"].weight = net["embed"].weight
    net["again"] = nn.Linear(4, 8, bias=False)
    net["again"].weight = net["head"].weight
    slots = names(net)
    assert {"head:weight", "head:grad_weight"} <= slots
    assert not {"again:weight", "again:grad_weight", "embed:weight"} & slots


def test_root_is_not_watched():
    with pytest.warns(UserWarning, match="nothing is watched"):
        assert names(nn.Linear(4, 4)) == set()


def test_empty_include_watches_nothing():
    assert names(model(), include=[]) == set()


def test_parametrized_weight_is_found_without_running_its_parametrization():
    net = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)))
    u = net[0].parametrizations.weight[0]._u.clone()
    assert {"0:weight", "0:grad_weight"} <= names(net)
    assert weight_of(net[0]) is net[0].parametrizations.weight.original
    assert torch.equal(net[0].parametrizations.weight[0]._u, u)


def test_wrapper_and_wrapped_share_one_slot():
    net = nn.ModuleDict({"block": checkpoint_wrapper(nn.Linear(4, 4))})
    slots = [slot.slot for slot in select(net, include=["*"])[1]]
    assert len(slots) == len(set(slots))


def test_attention_projections_are_watched():
    slots = names(nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2)}))
    assert {"attention:weight", "attention:grad_weight", "attention.out_proj:weight"} <= slots


@pytest.mark.parametrize(
    ("wrapped", "clean"),
    [
        ("_orig_mod.blocks.0", "blocks.0"),
        ("blocks.0._fsdp_wrapped_module.fc", "blocks.0.fc"),
        ("blocks.0._checkpoint_wrapped_module", "blocks.0"),
        ("_orig_mod", ""),
        ("my_orig_mod.layer", "my_orig_mod.layer"),
        ("a.my_orig_mod", "a.my_orig_mod"),
        ("a._orig_mod._orig_mod.b", "a.b"),
        ("_fsdp_wrapped_module._checkpoint_wrapped_module", ""),
        ("a.b", "a.b"),
    ],
)
def test_wrappers_leave_no_trace_in_paths(wrapped, clean):
    assert clean_path(wrapped) == clean
