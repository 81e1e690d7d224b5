"""From YAML to adapted model: what is trained, what is frozen, and that every method's block of the house stands."""

from __future__ import annotations

import pytest
import torch
import transformers
from peft import PeftModel

from ether import config
from ether.methods import adapt as methods
from ether.errors import ConfigurationError
from ether.methods.layer_sets import LAYER_SETS

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
    # An output side's own null directions and a pooling layer that sees one token can stay; most must move.
    assert len(moved) > 0.6 * len(trained), trained - moved


@pytest.mark.parametrize("key", ["h-adapter", "p-adapter", "lora", "oft", "boft", "ether-plus", "bitfit"])
def test_methods_that_can_start_at_the_pretrained_model_do(key):
    ids = torch.randint(0, 50, (2, 7), generator=torch.Generator().manual_seed(1))
    plain = deberta().eval()(input_ids=ids).logits
    assert torch.allclose(adapted(config.methods()[key]["adapt"]).eval()(input_ids=ids).logits, plain, atol=1e-6)


def test_bottlenecks_stand_where_the_two_papers_put_them():
    def places(key: str) -> list[str]:
        model = adapted(config.methods()[key]["adapt"])
        return [n for n, m in model.named_modules() if isinstance(m, methods.Bottleneck)]

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


def test_a_method_of_ones_own_needs_no_python():
    model = adapted({"kind": "peft", "type": "HRA", "config": {"r": 2}})
    assert isinstance(model, PeftModel)
    assert methods.trainable(model) == 2 * SUM_D + HEAD


def test_errors_say_what_where_and_what_to_do():
    with pytest.raises(ConfigurationError, match="Unknown head module 'clasifier'.*Did you mean 'classifier'"):
        adapted({"kind": "full"}, head=("clasifier",))
    with pytest.raises(ConfigurationError, match="7"):
        adapted({"kind": "peft", "type": "ETHER", "config": {"n_blocks": 7}})
    with pytest.raises(ConfigurationError, match="Unknown layer set 'everything'"):
        adapted({"kind": "peft", "type": "LORA", "layers": "everything"})
    with pytest.raises(ConfigurationError, match=r"Unknown hyperparameter '\$drop'"):
        adapted({"kind": "peft", "type": "LORA", "config": {"lora_dropout": "$drop"}})
    with pytest.raises(ConfigurationError, match="PEFT refuses OFT"):
        adapted({"kind": "peft", "type": "OFT", "config": {"r": 3, "oft_block_size": 5}})


@pytest.mark.parametrize("name", ["all-linear", "attention", "query-value"])
def test_layer_sets_match_whole_encoders(name):
    import re

    for make, model_type in ((deberta, "deberta-v2"), (bert, "bert")):
        matched = [n for n, _ in make().named_modules() if re.fullmatch(LAYER_SETS[model_type][name], n)]
        assert len(matched) == LAYERS * {"all-linear": 6, "attention": 4, "query-value": 2}[name]
