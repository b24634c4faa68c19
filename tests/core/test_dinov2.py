"""DINOv2's features against transformers, its authors' code, Pillow and formulas.

The first two are no part of the locked environment: `pip install transformers` and `pip install --no-deps dinov2`.
"""

import json

import numpy as np
import pytest
import torch
from builders import dinov2_weights, random_images, randomised
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from gcflow import dinov2
from gcflow.dinov2 import Dinov2, VisionTransformer
from gcflow.errors import GcflowError
from gcflow.extractors import resize_pillow
from gcflow.files import sha256_of


def published_by_hugging_face(network, folder):
    """Writes a network as `facebook/dinov2-large` is: with its names of layers, and apart what the hub has in one."""
    names = {
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "blocks.": "encoder.layer.",
        "attn.proj": "attention.output.dense",
        ".ls1.gamma": ".layer_scale1.lambda1",
        ".ls2.gamma": ".layer_scale2.lambda1",
    }
    tensors = {"embeddings.mask_token": torch.zeros(1, network.cls_token.shape[-1])}
    for name, tensor in network.state_dict().items():
        theirs = "layernorm." + name.removeprefix("norm.") if name.startswith("norm.") else name
        for ours, other in names.items():
            theirs = theirs.replace(ours, other)
        if "attn.qkv" not in theirs:
            tensors[theirs] = tensor.contiguous()
            continue
        for part, values in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
            tensors[theirs.replace("attn.qkv", f"attention.attention.{part}")] = values.contiguous()
    width, depth, grid = network.cls_token.shape[-1], len(network.blocks), network.grid
    settings = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": width // 64, "mlp_ratio": 4}
    settings |= {"model_type": "dinov2", "image_size": 14 * grid, "patch_size": 14}
    (folder / "config.json").write_text(json.dumps(settings))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("width", "depth", "sizes"),
    [(128, 3, [(518, 518), (224, 224), (70, 154), (14, 14)]), (1024, 1, [(518, 518), (224, 224)])],
    ids=["small", "a layer of vitl14"],
)
def test_features_are_those_of_transformers(width, depth, sizes, tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    network = randomised(VisionTransformer(width, depth))
    published_by_hugging_face(network, tmp_path)
    theirs, told = transformers.Dinov2Model.from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager"
    )
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    # It stretches positions to a whole number of patches, where the hub has a tenth of a patch more.
    monkeypatch.setattr(dinov2, "OFFSET", 1e-6)
    for size in sizes:
        images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            ours, expected = network(images), theirs.eval()(images).pooler_output
        assert expected.std() > 0.1
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(518, 518), (224, 224), (70, 154)])
def test_features_are_those_of_the_hubs_own_network(size):
    theirs = pytest.importorskip("dinov2.models.vision_transformer")
    network = randomised(VisionTransformer(128, 2))
    settings = {"img_size": 518, "patch_size": 14, "embed_dim": 128, "depth": 2, "num_heads": 2, "init_values": 1.0}
    reference = theirs.DinoVisionTransformer(**settings, block_chunks=0).eval()
    reference.load_state_dict(network.state_dict() | {"mask_token": torch.zeros(1, 128)})
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(network(images), reference(images), rtol=1e-5, atol=1e-5)


def test_a_block_is_torchs_own_layer_with_its_scales_in_the_weights():
    block = randomised(VisionTransformer(128, 1).blocks[0])
    theirs = nn.TransformerEncoderLayer(128, 2, 512, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True).eval()
    ours, state = block.state_dict(), {}
    for name, place, scale in (
        ("attn.qkv.", "self_attn.in_proj_", 1),
        ("attn.proj.", "self_attn.out_proj.", ours["ls1.gamma"]),
        ("mlp.fc1.", "linear1.", 1),
        ("mlp.fc2.", "linear2.", ours["ls2.gamma"]),
        ("norm1.", "norm1.", 1),
        ("norm2.", "norm2.", 1),
    ):
        for part in ("weight", "bias"):
            state[f"{place}{part}"] = (ours[f"{name}{part}"].movedim(0, -1) * scale).movedim(-1, 0)
    theirs.load_state_dict(state)
    x = torch.randn(2, 9, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(block(x), theirs(x), rtol=1e-5, atol=1e-5)


def kernel(distance):
    """torch's bicubic kernel, a = -0.75."""
    d, a = np.abs(distance), -0.75
    near, far = (a + 2) * d**3 - (a + 3) * d**2 + 1, a * (d**3 - 5 * d**2 + 8 * d - 4)
    return np.where(d < 1, near, np.where(d < 2, far, 0))


def test_positions_are_interpolated_as_the_hub_does_a_tenth_of_a_patch_wider():
    network = randomised(VisionTransformer(64, 0))
    grid = network.pos_embed[0, 1:].detach().double().numpy().reshape(37, 37, 64)
    sampled = []
    for patches in (16, 5):
        centres = (np.arange(patches) + 0.5) * 37 / (patches + 0.1) - 0.5
        taps = np.floor(centres).astype(int)[:, None] + np.arange(-1, 3)
        matrix = np.zeros((patches, 37))
        weights = kernel(centres[:, None] - taps)
        np.add.at(matrix, (np.arange(patches)[:, None], taps.clip(0, 36)), weights)
        sampled.append(matrix)
    found = network.positions(16, 5)[0].detach()
    assert torch.equal(found[0], network.pos_embed[0, 0])
    expected = np.einsum("ra,cb,abk->rck", *sampled, grid).reshape(80, 64)
    np.testing.assert_allclose(found[1:], expected, atol=1e-5)
    assert network.positions(37, 37) is network.pos_embed


def pillow(images, side):
    """Pillow's own bicubic of 8-bit images."""
    whole = map(Image.fromarray, images.permute(0, 2, 3, 1).numpy())
    resized = [np.asarray(image.resize((side, side), Image.BICUBIC)) for image in whole]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("shape", [(8, 8), (32, 32), (64, 64), (28, 47), (224, 300), (411, 350), (1, 640), (7, 3)])
def test_resized_pixels_are_pillows_to_the_bit(shape):
    images = torch.cat([random_images(2, 3, *shape), 255 * random_images(1, 3, *shape, seed=1).remainder(2)])
    resized = resize_pillow(images, 224)
    assert resized.dtype == torch.float32
    assert torch.equal(resized, pillow(images, 224).float())


def test_images_are_prepared_as_dgm_eval_does(tmp_path, monkeypatch):
    """Resized by Pillow, then what torchvision's ToTensor and Normalize compute, in float32."""
    taken = []
    loaded = Dinov2.load(dinov2_weights(tmp_path / "w.pth"))
    monkeypatch.setattr(loaded, "network", lambda x: taken.append(x) or x[:, 0, 0, :5])
    images = random_images(3, 3, 32, 40)
    _, probabilities = loaded(images, "pillow")
    assert probabilities is None
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    mean, deviation = (np.array(values, dtype=np.float32)[:, None, None] for values in imagenet)
    expected = (pillow(images, 224).numpy().astype(np.float32) / np.float32(255) - mean) / deviation
    assert np.array_equal(taken[0].numpy(), expected)
    grey = random_images(1, 1, 32, 32)
    loaded(grey, "clean")
    loaded(grey.expand(-1, 3, -1, -1), "clean")
    torch.testing.assert_close(taken[1], taken[2], rtol=0, atol=1e-6)


def test_a_file_of_the_hub_is_loaded_whatever_its_size_and_the_batch_does_not_matter(tmp_path, monkeypatch):
    path = dinov2_weights(tmp_path / "w.pth", width=128, depth=3)
    loaded = Dinov2.load(path, sha256=sha256_of(path))
    assert (loaded.features, loaded.sha256) == (128, sha256_of(path))
    assert loaded.description == {"network": "class token of 3 blocks of width 128, float32"}
    images = random_images(3, 3, 16, 16)
    features, _ = loaded(images, "pillow")
    assert features.shape == (3, 128)
    assert features.std(0).max() > 1e-2
    monkeypatch.setattr(loaded, "batch", 1)
    torch.testing.assert_close(loaded(images, "pillow")[0], features, rtol=1e-5, atol=1e-5)


def changed(state, **values):
    return {name: tensor for name, tensor in (state | values).items() if tensor is not None}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: {"model": state}, "cls_token: missing, expected"),
        (lambda state: list(state.values()), "cls_token: missing, expected"),
        (lambda state: changed(state, register_tokens=torch.zeros(1, 4, 64)), "register_tokens: .*, expected missing"),
        (lambda state: changed(state, **{"blocks.1.ls1.gamma": None}), "blocks.1.ls1.gamma: missing, expected .64."),
        (
            lambda state: changed(state, pos_embed=torch.zeros(1, 12, 64)),
            r"pos_embed: .1, 12, 64., expected .1, 10, 64.",
        ),
        (lambda state: changed(state, pos_embed=torch.zeros(1, 26, 100)), "100"),
        (lambda state: changed(state, **{"patch_embed.proj.weight": torch.zeros(64, 3, 16, 16)}), "16, 16., expected"),
    ],
    ids=["nested", "a list", "registers", "incomplete", "not square", "another width", "another patch"],
)
def test_another_network_is_refused_in_one_line(change, told, tmp_path):
    path = dinov2_weights(tmp_path / "w.pth")
    torch.save(change(torch.load(path)), path)
    with pytest.raises(GcflowError, match=f"not DINOv2 as its torch hub has it .*{told}") as error:
        Dinov2.load(path)
    assert "\n" not in str(error.value)


class Code:
    """What runs code when it is unpickled."""

    def __reduce__(self):
        return (print, ("code ran",))


def test_what_is_no_file_of_weights_is_refused_and_its_code_not_run(tmp_path, capsys):
    path = tmp_path / "w.pth"
    whole = dinov2_weights(path).read_bytes()
    torch.save({"cls_token": Code()}, path)
    for content in (b"", b"<html>404</html>", whole[: len(whole) // 2], path.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(GcflowError, match="not a readable file of torch's weights; DINOv2's is at https:") as error:
            Dinov2.load(path)
        assert "\n" not in str(error.value)
    assert "code ran" not in capsys.readouterr().out
