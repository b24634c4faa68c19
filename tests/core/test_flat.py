import torch
from builders import gaussian
from torch import nn

from gcflow.flat import FlatParameters


def network():
    """Weights of several shapes, convolutions channels last."""
    layers = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 4, 1), nn.Flatten(), nn.Linear(4 * 36, 2))
    return layers.to(memory_format=torch.channels_last)


def test_parameters_keep_values_shapes_and_layouts_and_share_their_memory_with_the_tensor():
    plain, flattened = network(), network()
    flattened.load_state_dict(plain.state_dict())
    flat = FlatParameters(flattened)
    assert flat.tensor.shape == (sum(p.numel() for p in plain.parameters()),)
    for (name, before), (same, after) in zip(plain.named_parameters(), flattened.named_parameters(), strict=True):
        assert name == same
        assert torch.equal(before, after)
        assert before.stride() == after.stride()
    x = gaussian(0, 2, 3, 6, 6)
    assert torch.equal(plain(x), flattened(x))
    with torch.no_grad():
        flat.tensor.mul_(2)
    for before, after in zip(plain.parameters(), flattened.parameters(), strict=True):
        assert torch.equal(2 * before, after)
    flattened.load_state_dict(plain.state_dict())
    assert torch.equal(flat.tensor, flat.gather(list(plain.parameters())))


def test_gathering_and_cutting_are_inverse_whatever_the_layout_of_what_is_gathered():
    flat = FlatParameters(network())
    tensors = [gaussian(k, *p.shape) for k, p in enumerate(flat.parameters)]
    for found in (tensors, [t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for t in tensors]):
        assert all(torch.equal(a, b) for a, b in zip(flat.parts(flat.gather(found)), tensors, strict=True))
