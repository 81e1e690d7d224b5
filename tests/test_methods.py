"""From YAML to adapted model: what is trained, what is frozen, and which methods are refused with which message."""

from __future__ import annotations

import pytest
import torch
import transformers
from peft import OFTConfig, PeftModel, get_peft_model
from peft.tuners.oft.layer import OFTRotationModule

from ether import config
from ether.errors import ConfigurationError
from ether.methods import adapt as methods
from ether.methods.bottleneck import Bottleneck
from ether.methods.layer_sets import LAYER_SETS
from ether.methods.oft import official_radius

D, F, LAYERS, LABELS = 32, 64, 2, 3


def deberta(labels: int = LABELS) -> torch.nn.Module:
    torch.manual_seed(0)
    return transformers.DebertaV2ForSequenceClassification(
        transformers.DebertaV2Config(
            vocab_size=50,
            hidden_size=D,
            num_hidden_layers=LAYERS,
            num_attention_heads=2,
            intermediate_size=F,
            relative_attention=True,
            position_buckets=8,
            pos_att_type=["p2c", "c2p"],
            share_att_key=True,
            num_labels=labels,
            pooler_hidden_size=D,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )  # fmt: skip
    )


def bert() -> torch.nn.Module:
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=50,
            hidden_size=D,
            num_hidden_layers=LAYERS,
            num_attention_heads=2,
            intermediate_size=F,
            num_labels=LABELS,
        )  # fmt: skip
    )


def adapted(how: dict, model: torch.nn.Module | None = None, head: tuple[str, ...] = ("classifier",)) -> torch.nn.Module:
    return methods.adapt(
        model or deberta(), how, layers="all-linear", head=head, task_type="SEQ_CLS",
        values={"dropout": 0.0} | methods.step_values(20),
    )  # fmt: skip


HEAD = D * LABELS + LABELS
SUM_D = LAYERS * (5 * D + F)  # query, key, value, attention output, feed-forward in: d=32; feed-forward out: d=64
SUM_F = LAYERS * (5 * D + F)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("linear-probe", 0),
        ("lora", 8 * (SUM_D + SUM_F)),
        ("ether", SUM_D),
        ("ether-plus", 2 * (SUM_D + SUM_F)),
        ("h-adapter", 2 * LAYERS * (2 * D * 32 + 32 + D)),
        ("p-adapter", LAYERS * (2 * D * 64 + 64 + D)),
        ("oft", SUM_D // 16 * (16 * 15 // 2)),
        ("boft", 2 * SUM_D * 8 + SUM_F),  # both butterfly factors, and the magnitudes
    ],
)
def test_trainable_parameters_equal_the_closed_form(key, expected):
    assert methods.trainable(adapted(config.methods()[key]["adapt"])) == expected + HEAD


def test_bitfit_trains_exactly_biases_and_head():
    model = adapted(config.methods()["bitfit"]["adapt"])
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    encoder = {n for n, _ in model.named_parameters() if n.startswith("deberta.") and n.endswith("bias")}
    assert encoder and trained == encoder | {"classifier.weight", "classifier.bias"}


def test_full_trains_everything():
    model = adapted({"kind": "full"})
    assert methods.trainable(model) == methods.total(model) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("make", [deberta, bert])
@pytest.mark.parametrize("key", [key for key, method in config.methods().items() if "glue" in method["training"]])
def test_every_method_moves_what_it_trains_and_nothing_else(key, make):
    model = adapted(config.methods()[key]["adapt"], make())
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    ids = torch.randint(0, 50, (4, 7), generator=torch.Generator().manual_seed(1))
    for _ in range(2):  # zero-initialised factors get their partner's gradient in the second step
        optimizer.zero_grad()
        model(input_ids=ids, labels=torch.tensor([0, 1, 2, 0])).loss.backward()
        optimizer.step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert moved <= trained
    # Null directions of an output side and a pooling layer that reads one token can stay; most must move.
    assert len(moved) > 0.6 * len(trained), trained - moved


@pytest.mark.parametrize("key", ["h-adapter", "p-adapter", "lora", "oft", "boft", "ether-plus", "bitfit"])
def test_methods_that_can_start_at_the_pretrained_model_do(key):
    ids = torch.randint(0, 50, (2, 7), generator=torch.Generator().manual_seed(1))
    plain = deberta().eval()(input_ids=ids).logits
    assert torch.allclose(adapted(config.methods()[key]["adapt"]).eval()(input_ids=ids).logits, plain, atol=1e-6)


def test_bottlenecks_are_where_the_two_papers_put_them():
    def places(key: str) -> list[str]:
        model = adapted(config.methods()[key]["adapt"])
        return [n for n, m in model.named_modules() if isinstance(m, Bottleneck)]

    both, one = places("h-adapter"), places("p-adapter")
    assert len(both) == 2 * LAYERS and len(one) == LAYERS
    assert sum("attention" in name for name in both) == LAYERS
    assert not any("attention" in name for name in one)


def test_boft_keeps_both_factors_and_equals_block_diag():
    from peft.tuners.boft.layer import FastBlockDiag

    import ether.methods.boft  # noqa: F401

    model = adapted(config.methods()["boft"]["adapt"])
    factors = {p.shape[0] for n, p in model.named_parameters() if "boft_R" in n}
    assert factors == {2}
    blocks = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    dense = torch.stack([torch.block_diag(*blocks[i]) for i in range(2)])
    assert torch.equal(FastBlockDiag.apply(blocks), dense)
    assert torch.autograd.gradcheck(FastBlockDiag.apply, (blocks,))


def test_a_new_method_needs_no_python():
    model = adapted({"kind": "peft", "type": "HRA", "config": {"r": 2}})
    assert isinstance(model, PeftModel)
    assert methods.trainable(model) == 2 * SUM_D + HEAD


# --- methods that are refused ----------------------------------------------------------------------------------


def llama() -> torch.nn.Module:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=50, hidden_size=D, intermediate_size=F, num_hidden_layers=LAYERS, num_attention_heads=2, use_cache=False
        )
    )


def with_ether(n_blocks: int, **config) -> torch.nn.Module:
    return adapted({"kind": "peft", "type": "ETHER", "config": {"n_blocks": n_blocks, **config}})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "input side of layer .*whose dimension is 32: ETHER only flips a sign"),
        ({"relaxed": True}, "input side of layer .*: ETHER\\+ changes nothing there"),
        ({"sides": "output"}, "output side of layer"),
        ({"layout": "release"}, "input side of layer"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_blocks_of_one_element_are_refused(config, message, device):
    with torch.device(device), pytest.raises(ConfigurationError, match=f"n_blocks={D} makes blocks of size 1 on the {message}"):
        with_ether(D, **config)
    with torch.device(device):
        assert methods.trainable(with_ether(D // 2, **config)) > HEAD


def test_the_reason_for_refusing_blocks_of_one_element_is_true():
    from ether.reflection import reflect

    x, u, v = torch.randn(5, 4), torch.randn(4, 1), torch.randn(4, 1)
    assert torch.allclose(reflect(x, u, None), -x)
    assert torch.allclose(reflect(x, u, v), x)


@pytest.mark.parametrize("peft_type", ["PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CARTRIDGE"])
@pytest.mark.parametrize("task_type", ["SEQ_CLS", "CAUSAL_LM", None])
def test_prompt_learning_works_where_peft_can_do_it_and_is_refused_elsewhere(peft_type, task_type):
    model, head = (llama(), ()) if task_type == "CAUSAL_LM" else (deberta(), ("classifier",))
    how = {"kind": "peft", "type": peft_type, "config": {"num_virtual_tokens": 3}}

    def make():
        return methods.adapt(model, how, layers="query-value", head=head, task_type=task_type)

    if task_type not in methods.PROMPT_LEARNING[peft_type]:
        with pytest.raises(
            ConfigurationError, match=f"PEFT type {peft_type} prepends trained vectors to the tokens.*Remove"
        ) as raised:
            make()
        assert "\n" not in str(raised.value)
        return
    ids = torch.randint(0, 50, (2, 7), generator=torch.Generator().manual_seed(1))
    plain = model.eval()(input_ids=ids).logits
    tuned = make()
    labels = ids if task_type == "CAUSAL_LM" else torch.tensor([0, 1])
    found = tuned(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels)
    found.loss.backward()
    trained = {name: p for name, p in tuned.named_parameters() if p.requires_grad and "classifier" not in name}
    assert trained and all("prompt_encoder" in name and p.grad.abs().sum() > 0 for name, p in trained.items())
    last = found.logits if task_type == "SEQ_CLS" else found.logits[:, -ids.shape[1] :]
    assert last.shape == plain.shape and (last - plain).abs().max() > 1e-5


@pytest.mark.parametrize("peft_type", ["POLY", "MULTITASK_PROMPT_TUNING", "CPT"])
def test_types_whose_batches_no_experiment_has_are_refused_before_loading(peft_type):
    with pytest.raises(
        ConfigurationError, match=f"workflow/methods/mine.yaml: PEFT type {peft_type} needs .* with every example"
    ):
        methods.check_arguments("mine", {"kind": "peft", "type": peft_type, "config": {}})


def test_arguments_are_checked_before_loading():
    def refused(match: str, peft_type: str = "LORA", **config) -> None:
        with pytest.raises(ConfigurationError, match=f"workflow/methods/mine.yaml.*{match}|{match}.*workflow/methods/mine.yaml"):
            methods.check_arguments("mine", {"kind": "peft", "type": peft_type, "config": config})

    refused("task_type, which the experiment sets", task_type="SEQ_CLS")
    refused("Unknown LORA parameter 'rank'", rank=4)
    refused("num_virtual_tokens", "PROMPT_TUNING")
    with pytest.raises(ConfigurationError, match="Unknown PEFT type 'LORRA'.*Did you mean 'LORA'"):
        methods.check_arguments("mine", {"kind": "peft", "type": "LORRA"})
    for key, method in config.methods().items():
        methods.check_arguments(key, method["adapt"])


def test_a_type_that_reads_weights_is_left_to_a_model_with_weights():
    """`ether.check` builds the model on the CPU then."""
    shira = {"kind": "peft", "type": "SHIRA", "config": {"r": 2}}
    with torch.device("meta"), pytest.raises(RuntimeError, match="meta"):
        adapted(shira)
    assert methods.trainable(adapted(shira)) > HEAD


def test_errors_say_what_where_and_what_to_do():
    with pytest.raises(ConfigurationError, match="Unknown head module 'clasifier'.*Did you mean 'classifier'"):
        adapted({"kind": "full"}, head=("clasifier",))
    with pytest.raises(ConfigurationError, match="7"):
        adapted({"kind": "peft", "type": "ETHER", "config": {"n_blocks": 7}})
    with pytest.raises(ConfigurationError, match="Unknown layer set 'everything'"):
        adapted({"kind": "peft", "type": "LORA", "layers": "everything"})
    with pytest.raises(ConfigurationError, match=r"Unknown hyperparameter '\$drop'"):
        adapted({"kind": "peft", "type": "LORA", "config": {"lora_dropout": "$drop"}})
    with pytest.raises(ConfigurationError, match="Unknown kind of adaptation 'lora'.*Known: bitfit"):
        adapted({"kind": "lora"})
    with pytest.raises(ConfigurationError, match="PEFT rejects OFT"):
        adapted({"kind": "peft", "type": "OFT", "config": {"r": 3, "oft_block_size": 5}})


@pytest.mark.parametrize("name", ["all-linear", "attention", "query-value"])
def test_layer_sets_match_whole_encoders(name):
    import re

    for make, model_type in ((deberta, "deberta-v2"), (bert, "bert")):
        matched = [n for n, _ in make().named_modules() if re.fullmatch(LAYER_SETS[model_type][name], n)]
        assert len(matched) == LAYERS * {"all-linear": 6, "attention": 4, "query-value": 2}[name]


@pytest.mark.parametrize("eps", [6e-5, 2e-3])
def test_coft_trains_as_the_official_code(eps: float) -> None:
    """Against official OFT's formulas: a matrix for each block, projected to the radius eps b^2 / sqrt(r) before every pass."""
    torch.manual_seed(0)
    blocks, b, out, rate = 4, 6, 10, 5e-3
    base = torch.nn.Linear(blocks * b, out, bias=False).double()
    weight, x, y = base.weight.detach().clone(), torch.randn(50, blocks * b).double(), torch.randn(50, out).double()

    settings = {"r": blocks, "oft_block_size": 0, "use_cayley_neumann": False, "coft": True, "eps": eps}
    adapted_ = official_radius(get_peft_model(torch.nn.Sequential(base), OFTConfig(target_modules=["0"], **settings))).double()
    ours = torch.optim.Adam([p for p in adapted_.parameters() if p.requires_grad], lr=rate, eps=1e-30)
    raw = torch.zeros(blocks, b, b, dtype=torch.float64, requires_grad=True)
    theirs = torch.optim.Adam([raw], lr=rate, eps=1e-30)
    radius, identity = eps * b**2 / blocks**0.5, torch.eye(b, dtype=torch.float64)
    at_the_border = 0
    for _ in range(12):
        with torch.no_grad():
            norms = raw.flatten(1).norm(dim=1)
            at_the_border += int((norms > radius).sum())
            raw *= torch.where(norms > radius, radius / norms.clamp(min=1e-300), 1.0)[:, None, None]
        skew = (raw - raw.transpose(1, 2)) / 2
        rotation = torch.block_diag(*((identity + skew) @ torch.linalg.inv(identity - skew)))
        expected = x @ (rotation @ weight.T)
        actual = adapted_(x)
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)  # PEFT takes the root in float32
        for output, optimiser in ((actual, ours), (expected, theirs)):
            optimiser.zero_grad()
            (output - y).square().sum().backward()
            optimiser.step()
    assert (at_the_border > 0) and (actual - x @ weight.T).abs().max() > 1e-4
    of_method = adapted({"kind": "peft", "type": "OFT", "config": settings})
    radii = {m.eps for m in of_method.modules() if isinstance(m, OFTRotationModule)}
    assert radii == {eps * (D // blocks) ** 2, eps * (F // blocks) ** 2}
