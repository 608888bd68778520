"""One operation for a layer and its branches: what it computes, and its gradients, are those of the separate ones."""

import pytest
import torch
from torch import Tensor, nn

from tessera.client.adapters.attach import PLAIN, activate, attach
from tessera.client.adapters.pq_lora import GLOBAL, LOCAL, GatedLinear
from tessera.common.registry.methods import PQSettings


class Stack(nn.Module):
    """Two layers, with and without a bias; the second one gets PQ-LoRA."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(6, 5)), nn.Sequential(nn.Linear(5, 7, bias=False))])

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.layers[1](self.layers[0](x).tanh())
        return answer


def outcome(
    branches: list[str], trained: list[str], apart: bool, form: PQSettings = PLAIN
) -> tuple[Tensor, dict[str, Tensor]]:
    """What a stirred model gives, and all gradients. With `apart` somebody listens to the base, which has to be called."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    model = attach(Stack().double(), {"x": "layers"}, 3, lambda m: m(x), n_blocks=1, form=form)
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
    assert_same(outcome(branches, trained, apart=False), outcome(branches, trained, apart=True))


@pytest.mark.parametrize("gate", ["convex", "additive"])
@pytest.mark.parametrize("gate_per", ["linear", "layer"])
def test_so_are_those_of_plain_lora_beside_p_and_q_and_of_every_gate(gate: str, gate_per: str) -> None:
    given = {"name": "pq", "union": True, "gate": gate, "gate_per": gate_per, "queries_and_keys": True}
    form, both = PQSettings.model_validate(given), [LOCAL, GLOBAL]
    united = outcome(both, both, apart=False, form=form)
    assert_same(united, outcome(both, both, apart=True, form=form))
    assert sum("lora_plain_" in name for name in united[1]) == 2 * 2
    assert not torch.allclose(united[0], outcome(both, both, apart=False)[0])


def assert_same(one: tuple[Tensor, dict[str, Tensor]], other: tuple[Tensor, dict[str, Tensor]]) -> None:
    (output, gradients), (naive, wanted) = one, other
    torch.testing.assert_close(output, naive)
    assert gradients.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(gradients[name], value, msg=name)
