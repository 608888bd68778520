"""One operation for a layer and its branches: what it computes, and its gradients, are those of the separate ones."""

import pytest
import torch
from torch import Tensor, nn

from tessera.client.adapters.attach import activate, attach
from tessera.client.adapters.pq_lora import GLOBAL, LOCAL, GatedLinear


class Stack(nn.Module):
    """Two layers, with and without a bias; the second one gets PQ-LoRA."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(6, 5)), nn.Sequential(nn.Linear(5, 7, bias=False))])

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.layers[1](self.layers[0](x).tanh())
        return answer


def outcome(branches: list[str], trained: list[str], apart: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """What a stirred model gives, and all gradients. With `apart` somebody listens to the base, which has to be called."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    model = attach(Stack().double(), {"x": "layers"}, 3, lambda m: m(x), n_blocks=1)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape).double()
    activate(model, branches, trained)
    layers = [module for module in model.modules() if isinstance(module, GatedLinear)]
    for layer in layers:
        layer.scaling = {LOCAL: 2.0, GLOBAL: 0.5}
        if apart:
            layer.base_layer.register_forward_hook(lambda *_: None)
    output = model(x)
    output.sin().sum().backward()
    named = [*model.named_parameters(), ("x", x)]
    return output.detach(), {name: value.grad for name, value in named if value.grad is not None}


@pytest.mark.parametrize("trained", [[LOCAL], [GLOBAL], [LOCAL, GLOBAL]], ids="+".join)
@pytest.mark.parametrize("branches", [[LOCAL], [GLOBAL], [LOCAL, GLOBAL]], ids="+".join)
def test_output_and_gradients_are_those_of_the_separate_operations(branches: list[str], trained: list[str]) -> None:
    output, gradients = outcome(branches, trained, apart=False)
    naive, wanted = outcome(branches, trained, apart=True)
    torch.testing.assert_close(output, naive)
    assert gradients.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(gradients[name], value, msg=name)
