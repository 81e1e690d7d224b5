"""ETHER's class in PEFT's tests/test_initialization.py, where `make.py` puts it."""

import math

import pytest
import torch
from peft import EtherConfig, get_peft_model
from peft.utils import infer_device
from torch import nn


class TestEtherInitialization:
    """ETHER+ starts at the identity, ETHER cannot: the distance of a reflection from the identity is always 2."""

    torch_device = infer_device()

    def get_model(self):
        class MLP(nn.Module):
            def __init__(self):
                super().__init__()
                self.lin0 = nn.Linear(12, 30)

            def forward(self, X):
                return self.lin0(X)

        return MLP().to(self.torch_device).eval()

    @pytest.fixture
    def data(self):
        torch.manual_seed(0)
        return torch.randn(4, 12, device=self.torch_device)

    @pytest.mark.parametrize("n_blocks", [1, 3])
    def test_relaxed_starts_as_the_identity(self, data, n_blocks):
        base = self.get_model()
        expected = base(data)
        model = get_peft_model(base, EtherConfig(target_modules=["lin0"], relaxed=True, n_blocks=n_blocks))
        assert torch.equal(model(data), expected)

    @pytest.mark.parametrize("init_weights", [True, False])
    @pytest.mark.parametrize("n_blocks", [1, 3])
    def test_reflection_is_never_the_identity(self, data, n_blocks, init_weights):
        base = self.get_model()
        weight, expected = base.lin0.weight.detach().clone(), base(data)
        config = EtherConfig(target_modules=["lin0"], n_blocks=n_blocks, init_weights=init_weights)
        model = get_peft_model(base, config)
        assert not torch.allclose(model(data), expected)
        with model.disable_adapter():
            assert torch.equal(model(data), expected)
        model.merge_adapter()
        merged = model.base_model.model.lin0.base_layer.weight.detach()
        transformation = torch.linalg.lstsq(weight, merged).solution
        distance = torch.linalg.matrix_norm(transformation - torch.eye(12, device=self.torch_device))
        assert distance.item() == pytest.approx(2 * math.sqrt(n_blocks), rel=1e-3)

    @pytest.mark.parametrize("relaxed, expected", [(False, {"ether_u": 12}), (True, {"ether_u": 12, "ether_v": 12})])
    def test_number_of_parameters_does_not_depend_on_the_blocks(self, relaxed, expected):
        for n_blocks in (1, 2, 6):
            config = EtherConfig(target_modules=["lin0"], relaxed=relaxed, sides="input", n_blocks=n_blocks)
            layer = get_peft_model(self.get_model(), config).base_model.model.lin0
            sizes = {name: getattr(layer, name)["default"].numel() for name in expected}
            assert sizes == expected

    def test_blocks_that_do_not_divide_the_dimension_raise(self):
        with pytest.raises(ValueError, match="n_blocks=5 does not divide the input dimension 12"):
            get_peft_model(self.get_model(), EtherConfig(target_modules=["lin0"], n_blocks=5))
