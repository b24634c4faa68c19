"""Import and export of EDM models.

The checkpoints are pickled here by a miniature of EDM's persistence mechanism, in the layout of the public files.
"""

import collections
import contextlib
import copyreg
import hashlib
import io
import itertools
import math
import os
import pickle
import subprocess
import sys
import types
import warnings
from dataclasses import replace

import numpy
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from gcflow import edm_pickle
from gcflow.config import NetworkConfig, NoiseProcess, from_dict
from gcflow.edm import export_state_dict, import_edm, infer_network, read_model
from gcflow.errors import GcflowError
from gcflow.weights import ModelSpec, load_tensors, save_tensors

DDPM = {"side": 8, "channels": 8, "multipliers": (1, 2), "blocks": (1, 1), "attention": (4,)}
NCSN = {**DDPM, "residual": True}
VARIANTS = {"ddpm++": DDPM, "ncsn++": NCSN}
WRAPPERS = {"edm": "EDMPrecond", "vp": "VPPrecond", "ve": "VEPrecond"}
SOURCE = "raise SystemExit('the source of a checkpoint was run')"


def reconstruct(meta):
    raise AssertionError("a persistent object was reconstructed")


class EasyDict(dict):
    pass


class Persistent(torch.nn.Module):
    """Pickles as EDM's persistent objects do."""

    def __reduce__(self):
        meta = {"type": "class", "version": 6, "module_src": SOURCE, "class_name": type(self).__name__}
        return reconstruct, ({**meta, "state": self.__dict__},)


def named(function, module, name):
    function.__module__, function.__name__, function.__qualname__ = module, name, name
    return function


named(reconstruct, "torch_utils.persistence", "_reconstruct_persistent_obj")
named(EasyDict, "dnnlib.util", "EasyDict")


@contextlib.contextmanager
def edm_modules(**others):
    """Lets pickle find the names of EDM, and nothing of them afterwards."""
    found = {"torch_utils": {}, "torch_utils.persistence": {"_reconstruct_persistent_obj": reconstruct}}
    found |= {"dnnlib": {}, "dnnlib.util": {"EasyDict": EasyDict}} | others
    before = {name: sys.modules.get(name) for name in found}
    for name, content in found.items():
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(content)
    try:
        yield
    finally:
        for name, module in before.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module


def module(class_name, attributes=(), parameters=(), buffers=()):
    made = type(class_name, (Persistent,), {})()
    vars(made).update(dict(attributes), _init_args=(), _init_kwargs={"init_weight": numpy.sqrt(0.2)})
    for name, tensor in dict(parameters).items():
        made.register_parameter(name, None if tensor is None else torch.nn.Parameter(tensor, requires_grad=False))
    for name, tensor in dict(buffers).items():
        made.register_buffer(name, tensor)
    return made


class Maker:
    """Builds the module tree of an EDM network with random weights."""

    def __init__(self, seed, residual, dropout, dtype):
        self.generator = torch.Generator().manual_seed(seed)
        self.residual, self.dropout, self.dtype = residual, dropout, dtype

    def random(self, *shape):
        return (0.3 * torch.randn(*shape, generator=self.generator)).to(self.dtype)

    def conv(self, inputs, outputs, kernel, up=False, down=False):
        taps = torch.tensor([1.0, 3, 3, 1] if self.residual else [1.0, 1])
        taps = (torch.outer(taps, taps) / taps.sum().square())[None, None]
        attributes = {"in_channels": inputs, "out_channels": outputs, "up": up, "down": down}
        parameters = {"weight": self.random(outputs, inputs, kernel, kernel), "bias": self.random(outputs)}
        return module("Conv2d", attributes, parameters, {"resample_filter": taps if up or down else None})

    def linear(self, inputs, outputs, bias=True):
        parameters = {"weight": self.random(outputs, inputs), "bias": self.random(outputs) if bias else None}
        return module("Linear", {"in_features": inputs, "out_features": outputs}, parameters)

    def norm(self, channels):
        parameters = {"weight": 1 + self.random(channels), "bias": self.random(channels)}
        return module("GroupNorm", {"num_groups": min(32, channels // 4), "eps": 1e-6}, parameters)

    def block(self, inputs, outputs, embedding, attention=False, **resample):
        made = module(
            "UNetBlock",
            {
                "in_channels": inputs,
                "out_channels": outputs,
                "num_heads": int(attention),
                "dropout": self.dropout,
                "skip_scale": numpy.sqrt(0.5),
                "adaptive_scale": False,
            },
        )
        made.norm0, made.conv0 = self.norm(inputs), self.conv(inputs, outputs, 3, **resample)
        made.affine, made.norm1 = self.linear(embedding, outputs), self.norm(outputs)
        made.conv1, made.skip = self.conv(outputs, outputs, 3), None
        if inputs != outputs or resample:
            made.skip = self.conv(inputs, outputs, 1, **resample)
        if attention:
            made.norm2, made.qkv = self.norm(outputs), self.conv(outputs, 3 * outputs, 1)
            made.proj = self.conv(outputs, outputs, 1)
        return made


def song_unet(
    side,
    channels,
    multipliers,
    blocks,
    attention,
    residual=False,
    labels=0,
    augment=0,
    dropout=0.13,
    dtype=torch.float32,
    seed=0,
):
    make = Maker(seed, residual, dropout, dtype)
    noise, embedding = channels * (2 if residual else 1), 4 * channels
    net = module("SongUNet", {"label_dropout": 0})
    if residual:
        net.map_noise = module("FourierEmbedding", buffers={"freqs": 16 * make.random(noise // 2)})
    else:
        net.map_noise = module("PositionalEmbedding", {"max_positions": 10000, "endpoint": True})
    net.map_label = make.linear(labels, noise) if labels else None
    net.map_augment = make.linear(augment, noise, bias=False) if augment else None
    net.map_layer0, net.map_layer1 = make.linear(noise, embedding), make.linear(embedding, embedding)
    net.enc, net.dec = torch.nn.ModuleDict(), torch.nn.ModuleDict()
    net.enc[f"{side}x{side}_conv"] = make.conv(3, channels, 3)
    here, auxiliary, skips = channels, 3, [channels]
    for level, multiplier in enumerate(multipliers):
        s = side // 2**level
        if level:
            net.enc[f"{s}x{s}_down"] = make.block(here, here, embedding, down=True)
            if residual:
                net.enc[f"{s}x{s}_aux_residual"] = make.conv(auxiliary, here, 3, down=True)
                auxiliary = here
            skips.append(here)
        for index in range(blocks[level]):
            net.enc[f"{s}x{s}_block{index}"] = make.block(here, channels * multiplier, embedding, s in attention)
            here = channels * multiplier
            skips.append(here)
    for level in reversed(range(len(multipliers))):
        s = side // 2**level
        if level == len(multipliers) - 1:
            net.dec[f"{s}x{s}_in0"] = make.block(here, here, embedding, True)
            net.dec[f"{s}x{s}_in1"] = make.block(here, here, embedding)
        else:
            net.dec[f"{s}x{s}_up"] = make.block(here, here, embedding, up=True)
        for index in range(blocks[level] + 1):
            attends = s in attention and index == blocks[level]
            outputs = channels * multipliers[level]
            net.dec[f"{s}x{s}_block{index}"] = make.block(here + skips.pop(), outputs, embedding, attends)
            here = outputs
    net.dec[f"{side}x{side}_aux_norm"], net.dec[f"{side}x{side}_aux_conv"] = make.norm(here), make.conv(here, 3, 3)
    return net


def checkpoint(preconditioning="edm", **options):
    options = {**DDPM, **options}
    wrapper = module(WRAPPERS[preconditioning], {"img_channels": 3, "label_dim": options.get("labels", 0)})
    wrapper.img_resolution = options["side"]
    if preconditioning == "edm":
        wrapper.sigma_data, wrapper.sigma_max = 0.6, math.inf
    if preconditioning == "vp":
        wrapper.beta_d, wrapper.beta_min, wrapper.M, wrapper.epsilon_t = 19.9, 0.1, 1000, 1e-5
    wrapper.model = song_unet(**options)
    return {
        "ema": wrapper,
        "loss_fn": module("EDMLoss", {"P_mean": -1.2}),
        "augment_pipe": module("AugmentPipe", {"p": numpy.float32(0.12), "xflip": 1e8}),
        "dataset_kwargs": EasyDict(path="cifar10.zip", use_labels=False),
    }


def write(path, document, protocol=4, **modules):
    with edm_modules(**modules):
        path.write_bytes(document if isinstance(document, bytes) else pickle.dumps(document, protocol))
    return path


def refusal(call):
    """The one line that a call fails with."""
    with warnings.catch_warnings(record=True) as said, pytest.raises(GcflowError) as caught:
        call()
    assert not said
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 600
    return message


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The bytes of a checkpoint that imports well."""
    path = tmp_path_factory.mktemp("edm") / "plain.pkl"
    return write(path, checkpoint()).read_bytes()


@pytest.fixture
def sentinel(tmp_path):
    """A file that malicious content would make."""
    path = tmp_path / "it-ran"
    yield path
    assert not path.exists()


def predicted(preconditioning, network, x, sigma, sigma_data):
    """D(x, sigma) by table 1 of Karras et al. 2022, for one sigma."""
    sigma_inverse = (math.sqrt(0.1**2 + 2 * 19.9 * math.log(1 + sigma**2)) - 0.1) / 19.9
    root = math.sqrt(sigma**2 + sigma_data**2)
    c_skip, c_out, c_in, c_noise = {
        "edm": (sigma_data**2 / root**2, sigma * sigma_data / root, 1 / root, math.log(sigma) / 4),
        "vp": (1, -sigma, 1 / math.sqrt(sigma**2 + 1), 999 * sigma_inverse),
        "ve": (1, sigma, 1, math.log(sigma / 2)),
    }[preconditioning]
    return c_skip * x + c_out * network(c_in * x, torch.full((len(x),), c_noise))


def images(count=2, side=8, seed=5):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("architecture", VARIANTS)
@pytest.mark.parametrize("preconditioning", WRAPPERS)
def test_a_checkpoint_becomes_the_same_denoiser(architecture, preconditioning, tmp_path):
    document = checkpoint(preconditioning, **VARIANTS[architecture])
    path = write(tmp_path / "edm.pkl", document)
    imported = import_edm(path, tmp_path / "weights.safetensors")
    expected = document["ema"].model.state_dict()
    assert list(imported.tensors) == list(expected)
    assert all(torch.equal(imported.tensors[name], tensor) for name, tensor in expected.items())
    sigma_data = 0.6 if preconditioning == "edm" else 0.5
    network = NetworkConfig(architecture, 8, 1, (1, 2), (4,), 0.0)
    assert imported.spec == ModelSpec(network, preconditioning, NoiseProcess(sigma_data=sigma_data), (3, 8, 8))
    assert imported.notes == ()
    assert imported.source == {
        "file": "edm.pkl",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "class": WRAPPERS[preconditioning],
        "dropout": 0.13,
        "label_dim": 0,
        "augment_dim": 0,
    }
    written, metadata = load_tensors(tmp_path / "weights.safetensors")
    assert written.keys() == {f"ema.{name}" for name in expected}
    assert all(torch.equal(written[f"ema.{name}"], tensor) for name, tensor in expected.items())
    assert metadata["source"] == imported.source
    spec = from_dict(ModelSpec, metadata["model"])
    assert spec == imported.spec
    model = spec.build(1).eval()
    model.network.load_state_dict(imported.tensors, strict=True)
    for sigma in (0.002, 0.7, 60.0):
        x = images() * max(1, sigma)
        with torch.no_grad():
            ours = model(x, torch.full((2,), sigma))
            theirs = predicted(preconditioning, model.network, x, sigma, sigma_data)
        torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-4 * max(1, sigma))


def test_nothing_is_imported_and_no_module_source_is_run(tmp_path, plain):
    before = set(sys.modules)
    assert SOURCE.encode() in plain
    read_model(write(tmp_path / "edm.pkl", plain))
    assert set(sys.modules) == before


def test_older_numpy_protocols_and_locations_are_read_too(tmp_path, plain):
    document = checkpoint()
    old = named(lambda *_: None, "numpy.core.multiarray", "scalar")

    class OldPickler(pickle.Pickler):
        def reducer_override(self, value):
            if isinstance(value, numpy.generic):
                return old, value.__reduce__()[1]
            return NotImplemented

    expected = read_model(write(tmp_path / "edm.pkl", plain)).tensors
    for protocol in (3, 4, 5):
        buffer = io.BytesIO()
        with edm_modules(**{"numpy.core.multiarray": {"scalar": old}}):
            OldPickler(buffer, protocol).dump(document)
        content = buffer.getvalue()
        assert b"numpy.core.multiarray" in content
        assert b"numpy._core" not in content
        on_gpu = content.replace(b"\x03\x00\x00\x00cpu", b"\x03\x00\x00\x00npu")
        assert on_gpu != content
        for variant in (content, on_gpu):
            tensors = read_model(write(tmp_path / "old.pkl", variant)).tensors
            assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(dtype, tmp_path):
    document = checkpoint(dtype=dtype)
    document["ema"].model.half() if dtype == torch.float16 else None
    tensors = read_model(write(tmp_path / "edm.pkl", document)).tensors
    for name, tensor in document["ema"].model.state_dict().items():
        assert tensors[name].dtype == torch.float32
        assert torch.equal(tensors[name], tensor.float())


def test_views_of_storages_become_tensors_of_their_own(tmp_path):
    document = checkpoint()
    layer = document["ema"].model.map_layer1
    shared = torch.randn(32 * 40)
    layer._parameters["weight"] = torch.nn.Parameter(shared[8:].as_strided((32, 32), (1, 32)))
    layer._parameters["bias"] = torch.nn.Parameter(shared[-32:])
    tensors = read_model(write(tmp_path / "edm.pkl", document)).tensors
    assert torch.equal(tensors["map_layer1.weight"], layer.weight)
    assert torch.equal(tensors["map_layer1.bias"], shared[-32:])
    storages = {tensor.untyped_storage().data_ptr() for tensor in tensors.values()}
    assert len(storages) == len(tensors)


def test_tied_tensors_of_a_state_dict_become_tensors_of_their_own(tmp_path):
    tensors = song_unet(**DDPM).state_dict()
    tensors["enc.8x8_conv.bias"] = tensors["map_layer0.bias"][:8]
    torch.save(tensors, tmp_path / "state.pt")
    import_edm(tmp_path / "state.pt", tmp_path / "weights.safetensors", "edm")
    written = load_tensors(tmp_path / "weights.safetensors")[0]
    assert all(torch.equal(written[f"ema.{name}"], tensor) for name, tensor in tensors.items())


def test_buffers_that_a_state_dict_leaves_out_are_left_out(tmp_path):
    document = checkpoint()
    document["ema"].model.enc["8x8_conv"].register_buffer("cache", torch.zeros(3), persistent=False)
    assert "enc.8x8_conv.cache" not in read_model(write(tmp_path / "edm.pkl", document)).tensors


@pytest.mark.parametrize("architecture", VARIANTS)
@pytest.mark.parametrize(
    ("multipliers", "blocks", "attention"),
    [
        ((2,), (1,), ()),
        ((1,), (2,), (16,)),
        ((1, 1, 2), (1, 2, 1), (8,)),
        ((2, 1, 3), (2, 2, 2), (16, 4)),
        ((1, 2), (3, 1), (16, 8)),
        ((1, 2), (1, 1), ()),
    ],
)
def test_the_network_is_inferred_from_names_and_shapes(architecture, multipliers, blocks, attention, tmp_path):
    options = {"side": 16, "channels": 8, "multipliers": multipliers, "blocks": blocks, "attention": attention}
    document = checkpoint(**{**VARIANTS[architecture], **options})
    tensors = document["ema"].model.state_dict()
    blocks = blocks[0] if len(set(blocks)) == 1 else blocks
    expected = NetworkConfig(architecture, 8, blocks, multipliers, attention)
    assert infer_network(tensors) == (expected, (3, 16, 16))
    assert read_model(write(tmp_path / "edm.pkl", document)).spec.network == expected


@pytest.mark.parametrize("architecture", VARIANTS)
@pytest.mark.parametrize(("labels", "augment"), [(3, 0), (0, 9), (3, 9)])
def test_embeddings_are_left_out_without_changing_the_output(architecture, labels, augment, tmp_path):
    document = checkpoint(**VARIANTS[architecture], labels=labels, augment=augment)
    path = write(tmp_path / "edm.pkl", document)
    kept, bare = read_model(path, keep_embeddings=True), read_model(path)
    assert (kept.spec.network.label_dim, kept.spec.network.augment_dim) == (labels, augment)
    assert (kept.source["label_dim"], kept.source["augment_dim"]) == (labels, augment)
    assert kept.notes == ()
    assert len(bare.notes) == bool(labels) + bool(augment)
    assert bare.source == kept.source
    assert bare.spec == replace(kept.spec, network=replace(kept.spec.network, label_dim=0, augment_dim=0))
    outputs = []
    for model in (kept, bare):
        built = model.spec.build().eval()
        built.network.load_state_dict(model.tensors, strict=True)
        with torch.no_grad():
            outputs.append(built(images(), torch.tensor([0.3, 5.0])))
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)
    if not labels:
        assert torch.equal(*outputs)
    if labels:
        # The bias that was folded is of consequence.
        built.network.map_layer0.bias.data.copy_(kept.tensors["map_layer0.bias"])
        with torch.no_grad():
            assert not torch.allclose(built(images(), torch.tensor([0.3, 5.0])), outputs[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
@pytest.mark.parametrize("architecture", VARIANTS)
def test_export_gives_the_state_dict_back_and_import_reads_it(suffix, architecture, tmp_path):
    document = checkpoint("vp", **VARIANTS[architecture], labels=3, augment=9)
    weights, again = tmp_path / "weights.safetensors", tmp_path / "again.safetensors"
    first = import_edm(write(tmp_path / "edm.pkl", document), weights, keep_embeddings=True)
    out = tmp_path / f"out{suffix}"
    export_state_dict(weights, out)
    exported = safetensors.torch.load_file(out) if suffix == ".safetensors" else torch.load(out, weights_only=True)
    expected = document["ema"].model.state_dict()
    assert exported.keys() == expected.keys()
    assert all(torch.equal(exported[name], tensor) for name, tensor in expected.items())
    second = import_edm(out, again, "vp", keep_embeddings=True)
    assert second.spec == first.spec
    assert load_tensors(again)[0].keys() == load_tensors(weights)[0].keys()
    assert all(torch.equal(second.tensors[name], tensor) for name, tensor in first.tensors.items())
    assert second.source["class"] == "SongUNet"
    assert second.source["dropout"] is None
    before = out.read_bytes()
    export_state_dict(weights, out)
    assert out.read_bytes() == before


def test_export_chooses_the_weights(tmp_path):
    spec = ModelSpec(NetworkConfig("mlp", 4, 1), "consistency", NoiseProcess(), (2,))
    raw, ema = spec.build(0).network.state_dict(), spec.build(1).network.state_dict()
    tensors = {f"raw.{n}": t for n, t in raw.items()} | {f"ema.{n}": t for n, t in ema.items()}
    save_tensors(tmp_path / "both.safetensors", tensors, {"model": spec.header()})
    for weights, expected in (("ema", ema), ("raw", raw)):
        export_state_dict(tmp_path / "both.safetensors", tmp_path / "out.pt", weights)
        assert all(torch.equal(t, expected[n]) for n, t in torch.load(tmp_path / "out.pt").items())


def test_export_explains_what_it_cannot_do(tmp_path):
    save_tensors(tmp_path / "ema.safetensors", {"ema.w": torch.zeros(1)}, {"model": {}})
    save_tensors(tmp_path / "other.safetensors", {"ema.w": torch.zeros(1)}, {})
    (tmp_path / "folder.pt").mkdir()
    for name, out, weights, part in [
        ("ema.safetensors", "out.bin", "ema", "out.bin: unknown ending '.bin'; expected .safetensors, .pt or .pth"),
        ("ema.safetensors", "out.pt", "raw", "ema.safetensors: has no raw weights"),
        ("other.safetensors", "out.pt", "ema", "other.safetensors: has no gcflow header"),
        ("absent.safetensors", "out.pt", "ema", "absent.safetensors: no such file"),
        ("ema.safetensors", "folder.pt", "ema", "folder.pt: cannot be written"),
    ]:
        assert part in refusal(lambda n=name, o=out, w=weights: export_state_dict(tmp_path / n, tmp_path / o, w))
    assert not (tmp_path / "out.pt").exists()


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("how", ["safetensors", "zip", "legacy"])
def test_plain_state_dicts_are_read(prefix, how, tmp_path):
    tensors = song_unet(**NCSN, labels=3).state_dict()
    document = {prefix + name: tensor for name, tensor in tensors.items()}
    path = tmp_path / "state"
    if how == "safetensors":
        safetensors.torch.save_file(document, path)
    else:
        torch.save(document, path, _use_new_zipfile_serialization=how == "zip")
    model = read_model(path, "ve", keep_embeddings=True)
    assert model.spec.preconditioning == "ve"
    assert model.spec.network.architecture == "ncsn++"
    assert all(torch.equal(model.tensors[name], tensor) for name, tensor in tensors.items())
    assert read_model(path, "consistency").spec.network.label_dim == 0
    assert "give --preconditioning" in refusal(lambda: read_model(path))


def test_a_preconditioning_that_is_not_the_checkpoints_is_refused(tmp_path, plain):
    path = write(tmp_path / "edm.pkl", plain)
    assert read_model(path, "edm").spec.preconditioning == "edm"
    assert "is of class EDMPrecond, so its preconditioning is edm, not vp" in refusal(lambda: read_model(path, "vp"))


class Evil:
    """Asks for a call when unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def short(text):
    return b"\x8c" + bytes([len(text.encode())]) + text.encode()


def request(module, name, *arguments):
    """A pickle that calls module.name, by STACK_GLOBAL."""
    values = b"".join(pickle.dumps(argument, 2)[2:-1] for argument in arguments)
    return b"\x80\x04" + short(module) + short(name) + b"\x93(" + values + b"tR."


CALLS = {
    "os.system": lambda ran: Evil(os.system, f"touch {ran}"),
    "eval": lambda ran: Evil(eval, f"open({str(ran)!r}, 'w')"),
    "exec": lambda ran: Evil(exec, f"open({str(ran)!r}, 'w')"),
    "open": lambda ran: Evil(open, str(ran), "w"),
    "getattr": lambda ran: Evil(getattr, Evil(__import__, "os"), "system"),
    "import": lambda ran: Evil(__import__, "antigravity"),
    "subprocess.Popen": lambda ran: Evil(subprocess.Popen, ["touch", str(ran)]),
    "subprocess.run": lambda ran: Evil(subprocess.run, ["touch", str(ran)]),
    "torch.load": lambda ran: Evil(torch.load, str(ran)),
    "torch.hub.load": lambda ran: Evil(torch.hub.load, "a/b", "c"),
    "copyreg._reconstructor": lambda ran: Evil(copyreg._reconstructor, dict, object, None),
    "type": lambda ran: Evil(type, "Name", (), {}),
    "bytearray": lambda ran: Evil(bytearray, 10),
    "pickle.loads": lambda ran: Evil(pickle.loads, pickle.dumps(Evil(os.system, f"touch {ran}"))),
    "Counter": lambda ran: Evil(collections.Counter, ()),
    "SimpleNamespace": lambda ran: Evil(types.SimpleNamespace),
}


@pytest.mark.parametrize(("call", "where"), list(zip(CALLS, itertools.cycle(("top", "attribute", "instead")))))
def test_calls_are_refused_by_name_and_not_run(call, where, tmp_path, sentinel):
    evil = CALLS[call](sentinel)
    document = checkpoint()
    if where == "top":
        document = {"a": evil, **document}
    elif where == "attribute":
        document["ema"].model.enc["8x8_conv"].in_channels = evil
    else:
        document = evil
    path = write(tmp_path / "edm.pkl", document)
    function = evil.call[0]
    asked = f"{pickle.whichmodule(function, function.__qualname__)}.{function.__qualname__}"
    assert refusal(lambda: read_model(path)) == (
        f"{path}: refused: it asks to run {asked}, which no EDM model needs; nothing of it was run"
    )


def test_the_malicious_content_of_these_tests_would_run(tmp_path):
    ran = tmp_path / "it-ran"
    for call in ("os.system", "eval", "exec", "open", "pickle.loads"):
        pickle.loads(pickle.dumps(CALLS[call](ran)))
        ran.unlink()
    pickle.loads(request("os", "system", f"touch {ran}"))
    ran.unlink()
    pickle.loads(request("os", "path.os.system", f"touch {ran}"))
    ran.unlink()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("torch", "os.system"),
        ("torch.storage", "_load_from_bytes.__globals__"),
        ("torch.storage", "io.open"),
        ("collections", "OrderedDict.__init__"),
        ("numpy", "dtype.__class__"),
        ("torch_utils.persistence", "os.system"),
        ("torch_utils.persistence", "exec"),
        ("dnnlib.util", "open_url"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("torch.nn.modules.container", "Sequential"),
        ("training.networks", "EDMPrecond"),
        ("", ""),
        ("two\nlines", "\x1b[31mred"),
        ("os\u2028", "system" * 30),
    ],
)
def test_other_names_are_refused(module, name, tmp_path, sentinel):
    path = write(tmp_path / "edm.pkl", request(module, name, f"touch {sentinel}"))
    assert "refused: it asks to run " in refusal(lambda: read_model(path))


OPCODES = {
    "PERSID": b"\x80\x02Pname\n.",
    "BINPERSID": b"\x80\x02X\x01\x00\x00\x00aQ.",
    "INST": b"\x80\x02(X\x01\x00\x00\x00aios\nsystem\n.",
    "OBJ": b"\x80\x02(cos\nsystem\nX\x01\x00\x00\x00ao.",
    "NEWOBJ_EX": b"\x80\x04cdnnlib.util\nEasyDict\n)}\x92.",
    "EXT1": b"\x80\x02\x82\xf7X\x01\x00\x00\x00a\x85R.",
    "EXT2": b"\x80\x02\x83\xf7\x00X\x01\x00\x00\x00a\x85R.",
    "EXT4": b"\x80\x02\x84\xf7\x00\x00\x00X\x01\x00\x00\x00a\x85R.",
    "BYTEARRAY8": b"\x80\x05\x96\x01\x00\x00\x00\x00\x00\x00\x00a.",
    "NEXT_BUFFER": b"\x80\x05\x97.",
}


@pytest.mark.parametrize("opcode", OPCODES)
def test_opcodes_that_reach_beyond_the_file_are_refused(opcode, tmp_path):
    path = write(tmp_path / "edm.pkl", OPCODES[opcode])
    if opcode.startswith("EXT"):
        copyreg.add_extension("builtins", "print", 0xF7)
        # Now the unpickler finds the function without asking for its name.
        pickle.loads(b"\x80\x02\x82\xf7.")
    try:
        message = refusal(lambda: read_model(path))
    finally:
        if opcode.startswith("EXT"):
            copyreg.remove_extension("builtins", "print", 0xF7)
    assert f"refused: it has the pickle opcode {opcode}, which no EDM model needs" in message


def test_a_persistent_object_of_pickle_is_refused(tmp_path):
    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return "outside" if isinstance(value, torch.nn.Parameter) else None

    buffer = io.BytesIO()
    with edm_modules():
        Pickler(buffer, 4).dump(checkpoint())
    path = write(tmp_path / "edm.pkl", buffer.getvalue())
    assert "opcode BINPERSID" in refusal(lambda: read_model(path))
    # Were the opcode let through, the reference would still lead nowhere.
    with pytest.raises(edm_pickle.Refusal):
        edm_pickle._InertUnpickler(buffer).persistent_load("outside")


@pytest.mark.parametrize(
    "state",
    [
        b"}" + short("__call__") + short("x") + b"s",
        b"}" + short("_answer") + b"cdnnlib.util\nEasyDict\ns",
        b"N}" + short("_answer") + b"cdnnlib.util\nEasyDict\ns\x86",
        b"N}" + short("__setstate__") + b"cdnnlib.util\nEasyDict\ns\x86",
        b"N}" + short("__class__") + b"ctorch.nn.modules.container\nModuleDict\ns\x86",
        b"N}" + short("__init__") + b"ccollections\nOrderedDict\ns\x86",
        b"N}" + short("state") + short("x") + b"s\x86",
    ],
)
def test_what_is_allowed_cannot_be_changed_from_inside(state, tmp_path, plain):
    before = {key: (type(value), getattr(value, "_answer", None)) for key, value in edm_pickle.ANSWERS.items()}
    attributes = {key: dict(vars(type(value))) for key, value in edm_pickle.ANSWERS.items()}
    classes = {cls: dict(vars(cls)) for cls in (edm_pickle._Dict, edm_pickle._Container)}
    for module, name in edm_pickle.ANSWERS:
        path = write(tmp_path / "edm.pkl", b"\x80\x04" + f"c{module}\n{name}\n".encode() + state + b"b.")
        refusal(lambda p=path: read_model(p))
    assert {key: (type(value), getattr(value, "_answer", None)) for key, value in edm_pickle.ANSWERS.items()} == before
    assert {key: dict(vars(type(value))) for key, value in edm_pickle.ANSWERS.items()} == attributes
    assert {cls: dict(vars(cls)) for cls in classes} == classes
    read_model(write(tmp_path / "plain.pkl", plain))


def parameter(content, offset=0, size=(8,), stride=(1,)):
    """A parameter whose pickle asks for this storage and view."""
    storage = Evil(torch.storage._load_from_bytes, content)
    hooks = collections.OrderedDict()
    view = Evil(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, hooks)
    return Evil(torch._utils._rebuild_parameter, view, False, hooks)


def storage_bytes(values):
    buffer = io.BytesIO()
    storage = torch.storage.TypedStorage(wrap_storage=values.untyped_storage(), dtype=values.dtype, _internal=True)
    torch.save(storage, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def with_bias(replacement):
    document = checkpoint()
    document["ema"].model.enc["8x8_conv"].__dict__["_parameters"]["bias"] = replacement
    return document


def test_storages_are_read_without_running_what_is_in_them(tmp_path, sentinel):
    evil = Evil(os.system, f"touch {sentinel}")
    saved, legacy = io.BytesIO(), io.BytesIO()
    torch.save(evil, saved)
    torch.save({"a": evil}, legacy, _use_new_zipfile_serialization=False)
    for content in (pickle.dumps(evil), saved.getvalue(), legacy.getvalue(), b"", b"\x80\x02", os.urandom(100)):
        path = write(tmp_path / "edm.pkl", with_bias(parameter(content)))
        expected = "refused: the storage of enc.8x8_conv.bias is damaged, or holds more than numbers"
        assert expected in refusal(lambda p=path: read_model(p))
    whole = storage_bytes(torch.arange(8.0))
    tensors = read_model(write(tmp_path / "edm.pkl", with_bias(parameter(whole)))).tensors
    assert torch.equal(tensors["enc.8x8_conv.bias"], torch.arange(8.0))
    for length in range(0, len(whole), 7):
        path = write(tmp_path / "edm.pkl", with_bias(parameter(whole[:length])))
        assert "enc.8x8_conv.bias is damaged" in refusal(lambda p=path: read_model(p))


@pytest.mark.parametrize(
    "content",
    [
        storage_bytes(torch.arange(8)),
        storage_bytes(torch.zeros(8, dtype=torch.complex64)),
        storage_bytes(torch.zeros(8, dtype=torch.bool)),
        pickle.dumps(torch.zeros(8)),
    ],
)
def test_storages_of_anything_but_floating_point_numbers_are_refused(content, tmp_path):
    path = write(tmp_path / "edm.pkl", with_bias(parameter(content)))
    assert "the storage of enc.8x8_conv.bias" in refusal(lambda: read_model(path))


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (1, (8,), (1,)),
        (9, (0,), (1,)),
        (0, (9,), (1,)),
        (0, (8,), (2,)),
        (0, (8,), (0,)[:0]),
        (0, (2, 4), (8, 1)),
        (0, (8, 8), (0, 1)),
        (0, (2**40,), (0,)),
        (0, (8,), (2**62,)),
        (0, (2, 2), (2**63, 2**63)),
        (2**64, (8,), (1,)),
        (-1, (8,), (1,)),
        (7, (8,), (-1,)),
        (0, (-8,), (1,)),
        (0, (8.0,), (1,)),
        (0, [8], [1]),
        (0, 8, 1),
        (None, (8,), (1,)),
        (True, (4,), (1,)),
    ],
)
def test_views_outside_their_storage_are_refused(offset, size, stride, tmp_path):
    content = storage_bytes(torch.arange(8.0))
    path = write(tmp_path / "edm.pkl", with_bias(parameter(content, offset, size, stride)))
    assert "refused: enc.8x8_conv.bias reaches outside its storage" in refusal(lambda: read_model(path))


def test_modules_within_themselves_and_in_two_places_are_refused(tmp_path):
    document = checkpoint()
    document["ema"].model.enc._modules["8x8_block0"]._modules["norm0"]._modules["enc"] = document["ema"].model.enc
    assert "is in two places" in refusal(lambda: read_model(write(tmp_path / "edm.pkl", document)))
    document = checkpoint()
    enc = document["ema"].model.enc
    enc["copy"] = enc["8x8_block0"]
    assert "is in two places" in refusal(lambda: read_model(write(tmp_path / "edm.pkl", document)))


def change(document, dotted, value):
    *path, name = dotted.split(".")
    where = document
    for part in path:
        where = where[part] if isinstance(where, dict) else where._modules[part]
    if isinstance(where, dict):
        where[name] = value
    else:
        vars(where)[name] = value
    return document


def without(document, *path):
    where = document["ema"].model
    for part in path[:-1]:
        where = where._modules[part]
    del (where._parameters if path[-1] in where._parameters else where._modules)[path[-1]]
    return document


def wrong_class(wrapper="EDMPrecond", network="SongUNet"):
    document = checkpoint()
    named(type(document["ema"]), "edm", wrapper)
    named(type(document["ema"].model), "edm", network)
    return document


OTHERS = {
    "list": (lambda: [1, 2], "holds no network under 'ema'"),
    "number": (lambda: 3, "holds no network under 'ema'"),
    "no ema": (lambda: {"net": 1}, "holds no network under 'ema'; expected a network-snapshot-*.pkl of EDM"),
    "ema of tensors": (lambda: {"ema": {"w": torch.zeros(1)}}, "holds no network under 'ema'"),
    "wrapper": (
        lambda: wrong_class("iDDPMPrecond"),
        "of class iDDPMPrecond; expected EDMPrecond, VPPrecond, VEPrecond",
    ),
    "network": (lambda: wrong_class(network="DhariwalUNet"), "holds DhariwalUNet; only SongUNet models"),
    "no network": (lambda: {"ema": module("EDMPrecond")}, "holds no network; only SongUNet models"),
    "beta_d": (lambda: change(checkpoint("vp"), "ema.beta_d", 20.0), "beta_d is 20.0, expected 19.9"),
    "beta_min": (lambda: change(checkpoint("vp"), "ema.beta_min", 0), "beta_min is 0, expected 0.1"),
    "M": (lambda: change(checkpoint("vp"), "ema.M", None), "M is None, expected 1000"),
    "sigma_data": (lambda: change(checkpoint(), "ema.sigma_data", -1.0), "sigma_data is -1.0, expected a number > 0"),
    "side": (
        lambda: change(checkpoint(), "ema.img_resolution", 16),
        "shape (3, 16, 16), but its network is for (3, 8, 8)",
    ),
    "heads": (
        lambda: change(checkpoint(), "ema.model.enc.4x4_block0.num_heads", 4),
        "enc.4x4_block0.num_heads is 4, expected 0 or 1",
    ),
    "scale": (lambda: change(checkpoint(), "ema.model.dec.4x4_in0.skip_scale", 1.0), "dec.4x4_in0.skip_scale is 1.0"),
    "adaptive": (lambda: change(checkpoint(), "ema.model.dec.4x4_in0.adaptive_scale", True), "adaptive_scale is True"),
    "eps": (lambda: change(checkpoint(), "ema.model.dec.8x8_aux_norm.eps", numpy.float64(1e-5)), "eps is 1e-05"),
    "endpoint": (lambda: change(checkpoint(), "ema.model.map_noise.endpoint", False), "map_noise.endpoint is False"),
    "missing": (
        lambda: without(checkpoint(), "dec", "4x4_in0"),
        "lacks tensors of its ddpm++ network: dec.4x4_in0.norm0.weight, dec.4x4_in0.norm0.bias, "
        "dec.4x4_in0.conv0.weight and 13 more",
    ),
    "missing one": (lambda: without(checkpoint(), "map_layer1", "bias"), "network: map_layer1.bias"),
    "missing first": (lambda: without(checkpoint(), "enc", "8x8_conv", "weight"), "lacks enc.8x8_conv.weight"),
    "missing mapping": (lambda: without(checkpoint(), "map_layer0", "weight"), "lacks map_layer0.weight"),
    "missing block": (lambda: without(checkpoint(), "enc", "4x4_block0"), "lacks enc.4x4_block0.conv1.weight"),
    "missing bias of labels": (lambda: without(checkpoint(labels=2), "map_label", "bias"), "network: map_label.bias"),
    "missing encoder": (lambda: without(checkpoint(), "enc"), "holds no tensor enc.*"),
    "shape": (
        lambda: with_bias(torch.nn.Parameter(torch.zeros(7))),
        "tensors of other shapes than its ddpm++ network: enc.8x8_conv.bias ([7], expected [8])",
    ),
    "dimensions": (
        lambda: change(checkpoint(), "ema.model.enc.8x8_conv._parameters", {"weight": torch.zeros(8)}),
        "enc.8x8_conv.weight has shape [8], expected 4 dimensions",
    ),
    "no tensor": (lambda: with_bias(3), "enc.8x8_conv.bias is no tensor"),
    "no module": (lambda: change(checkpoint(), "ema.model._modules", {"enc": 3}), "enc is no module"),
    "no names": (lambda: change(checkpoint(), "ema.model._modules", {1: module("Linear")}), "_modules are not named"),
    "no state": (lambda: change(checkpoint(), "ema.model._parameters", 3), "_parameters are not named"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_models_are_refused_in_one_line(case, tmp_path):
    make, part = OTHERS[case]
    path = write(tmp_path / "edm.pkl", make())
    message = refusal(lambda: import_edm(path, tmp_path / "out.safetensors"))
    assert message.startswith(f"{path}: ")
    assert part in message
    assert not (tmp_path / "out.safetensors").exists()


def extra(name, tensor, channels=8):
    tensors = song_unet(**{**DDPM, "channels": channels}).state_dict()
    return {**tensors, name: tensor}


STATE_DICTS = {
    "empty": ({}, "holds no tensor enc.*"),
    "another": ({"weight": torch.zeros(1)}, "holds no tensor enc.*"),
    "nested": ({"state": {"weight": torch.zeros(1)}}, "expected the state dict of a SongUNet"),
    "numbers": ({1: torch.zeros(1)}, "expected the state dict of a SongUNet"),
    "a list": ([torch.zeros(1)], "expected the state dict of a SongUNet"),
    "ours": ({"ema.a": torch.zeros(1)}, "holds ema.*, as weights files of gcflow do"),
    "integers": ({"enc.a": torch.zeros(1).int()}, "enc.a holds no floating-point numbers"),
    "no values": ({"enc.a": torch.zeros(1, device="meta")}, "enc.a holds no floating-point numbers"),
    "skip": (extra("enc.4x4_aux_skip.weight", torch.zeros(1)), "enc.4x4_aux_skip.weight, which neither ddpm++ nor"),
    "down": (
        extra("enc.4x4_aux_down.resample_filter", torch.zeros(1)),
        "enc.4x4_aux_down.resample_filter, which neither",
    ),
    "oblong": (extra("enc.4x8_conv.weight", torch.zeros(1)), "enc.4x8_conv.weight, which neither"),
    "fourier": (extra("map_noise.freqs", torch.zeros(4)), "mixes EDM's networks (Fourier embedding of width 8, 2x2"),
    "residual": (extra("enc.4x4_aux_residual.bias", torch.zeros(8)), "2x2 filters, residual encoder)"),
    "width": (extra("map_layer0.weight", torch.zeros(32, 16)), "(positional embedding of width 16, 2x2 filters"),
    "filters": (extra("enc.4x4_down.conv0.resample_filter", torch.zeros(1, 1, 4, 4)), "2x2 and 4x4 filters"),
    "filter": (extra("enc.4x4_down.conv0.resample_filter", torch.ones(1, 1, 2, 2)), "is not the ddpm++ filter"),
    "extra": (extra("map_label.other", torch.zeros(1)), "has tensors that a ddpm++ network lacks: map_label.other"),
    "side": (
        extra("enc.3x3_block0.conv1.weight", torch.zeros(8, 8, 3, 3)),
        "has levels of sides [8, 4, 3], expected each half of the one before",
    ),
    "huge": (extra("enc.4x4_block0.conv1.weight", torch.zeros(2**20, 1, 1, 1), 32), "tensors of other shapes"),
    "indivisible": (extra("enc.4x4_block0.conv1.weight", torch.zeros(12, 1, 1, 1)), "12 channels at 4x4, expected a"),
}


@pytest.mark.parametrize("case", STATE_DICTS)
def test_other_state_dicts_are_refused_in_one_line(case, tmp_path):
    document, part = STATE_DICTS[case]
    torch.save(document, tmp_path / "state.pt")
    assert part in refusal(lambda: read_model(tmp_path / "state.pt", "edm"))


def test_state_dicts_are_read_without_running_what_is_in_them(tmp_path, sentinel):
    for zipped in (True, False):
        torch.save(CALLS["os.system"](sentinel), tmp_path / "state.pt", _use_new_zipfile_serialization=zipped)
        assert "holds more than tensors" in refusal(lambda: read_model(tmp_path / "state.pt", "edm"))


@pytest.mark.parametrize("how", ["pickle", "safetensors", "zip", "legacy"])
def test_truncated_files_are_refused_in_one_line(how, plain, tmp_path):
    path = tmp_path / "file"
    tensors = song_unet(**{**DDPM, "multipliers": (1,), "blocks": (1,)}).state_dict()
    if how == "safetensors":
        safetensors.torch.save_file(tensors, path)
    elif how != "pickle":
        torch.save(tensors, path, _use_new_zipfile_serialization=how == "zip")
    content = plain if how == "pickle" else path.read_bytes()
    for length in [*range(0, 300, 9), *range(300, len(content), len(content) // 60), len(content) - 1]:
        path.write_bytes(content[:length])
        message = refusal(lambda: read_model(path, "edm"))
        assert message.startswith(f"{path}: ")


def read(path, content):
    """Reads a file that may be anything: into a model, or one line."""
    path.write_bytes(content)
    with contextlib.suppress(GcflowError):
        return read_model(path, "edm")
    return refusal(lambda: read_model(path, "edm"))


@given(st.binary(max_size=60), st.sampled_from([b"", b"\x80\x04", b"\x80\x02}", b"\x80\x04cbuiltins\nset\n)R"]))
def test_random_bytes_never_raise_anything_else(tmp_path_factory, tail, head):
    read(tmp_path_factory.getbasetemp() / "random", head + tail)


@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4))
def test_damaged_checkpoints_never_raise_anything_else(tmp_path_factory, plain, damage):
    content = bytearray(plain)
    for where, byte in damage:
        content[int(where * len(content))] = byte
    read(tmp_path_factory.getbasetemp() / "damaged", bytes(content))


def test_an_escape_in_damaged_text_is_not_warned_of(tmp_path):
    """A byte that makes the rest of a pickle a text of Python, as `test_damaged_checkpoints…` once found."""
    path = write(tmp_path / "edm.pkl", b"\x80\x02S'\\\x01'\n.")
    assert "EDM" in refusal(lambda: read_model(path))


def test_a_memo_index_far_beyond_the_file_costs_no_memory(tmp_path):
    path = write(tmp_path / "edm.pkl", b"\x80\x02}r\xff\xff\xff\x7f.")
    assert "is not a whole pickle of an EDM network" in refusal(lambda: read_model(path))


def test_missing_files_and_folders_are_refused_in_one_line(tmp_path):
    assert refusal(lambda: read_model(tmp_path / "a.pkl")) == (
        f"{tmp_path / 'a.pkl'}: no such file; download the checkpoint first"
    )
    assert "cannot be read (Is a directory)" in refusal(lambda: read_model(tmp_path))


def test_numpy_values_must_be_plain_numbers(tmp_path):
    for value in (numpy.float16(2), numpy.int64(-3), numpy.bool_(True), numpy.uint8(7), numpy.dtype(">f8").type(1.5)):
        document = change(checkpoint(), "ema.model.label_dropout", value)
        read_model(write(tmp_path / "edm.pkl", document))
    for value in (numpy.complex64(1), numpy.str_("a"), numpy.datetime64(1, "s")):
        document = change(checkpoint(), "ema.model.label_dropout", value)
        assert "numpy" in refusal(lambda d=document: read_model(write(tmp_path / "edm.pkl", d)))
    # sigma_data of either byte order arrives as it was.
    scalar = numpy.float64(0.25).__reduce__()[0]
    for order in "<>":
        kind = numpy.dtype(f"{order}f8")
        evil = Evil(scalar, kind, numpy.array(0.25, kind).tobytes())
        model = read_model(write(tmp_path / "edm.pkl", change(checkpoint(), "ema.sigma_data", evil)))
        assert model.spec.process.sigma_data == 0.25
