"""Memory of the weights of loaded networks, packed and rounded ones among them."""

from torch import nn

from worker.engine.weights import WeightSize
from worker.models.linear import ReplacedLinear


def weight_size(*networks: nn.Module) -> WeightSize:
    """Return the size of the parameters of networks. What several of them share counts once."""
    parameters: set[nn.Parameter] = set()
    replaced: set[ReplacedLinear] = set()
    for network in networks:
        parameters.update(network.parameters())
        for layer in network.modules():
            if isinstance(layer, ReplacedLinear):
                replaced.add(layer)
    num_weights = sum(parameter.numel() for parameter in parameters)
    num_bytes = sum(parameter.nbytes for parameter in parameters)
    for layer in replaced:
        num_weights += layer.num_weights
        num_bytes += layer.num_bytes
    return WeightSize(num_weights, num_bytes)
