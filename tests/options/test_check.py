"""Options that BasicSR accepts but a run cannot use, and impossible values: one line for each, before work begins."""

import pytest
import yaml

from dlgsanet.errors import UserError
from dlgsanet.options.read import read_options
from tests.options.conftest import change, fault, read


@pytest.mark.parametrize(
    "name", ["/tmp/x", "..", ".", "", "a/b", "../a", "a\\b", "a" * 201, "é" * 101, " a", "a\n", "a\0"]
)
def test_a_name_is_one_component_of_a_path(options, name):
    options["name"] = name
    assert "name: " in fault(options)
    options["name"] = "fine"
    options["datasets"]["val"]["name"] = name
    assert "datasets.val.name: " in fault(options)


NO_NUMBERS = (".nan", ".inf", "-.inf", "1.0e+400", "9" * 400, "9" * 5000, "[]", "{}", "!!binary eA==", "!!set {a}", "x")


@pytest.mark.parametrize("text", NO_NUMBERS, ids=lambda text: text[:10])
@pytest.mark.parametrize(("section", "key"), [("train", "ema_decay"), ("train", "total_iter"), ("network_g", "dim")])
def test_values_that_are_not_numbers(options, section, key, text):
    options[section][key] = "PIECE"
    with open("file.yml", "w") as file:
        file.write(yaml.safe_dump(options).replace("PIECE", text))
    with pytest.raises(UserError, match=key if len(text) < 5000 else "file.yml") as error:
        read_options("file.yml", is_train=True)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("value", [[], {}, None, 1, True, "L1loss", "x" * 5000])
@pytest.mark.parametrize("where", ["network_g", "train.optim_g", "train.pixel_opt", "datasets.train"])
def test_unknown_types(options, where, value):
    change(options, {f"{where}.type": value})
    assert f"{where}.type" in fault(options)


@pytest.mark.parametrize("template", ["{", "}", "{}{}", "{0.__class__}", "{:>99999999}", "{!r}", "x2", "", "a/{}"])
def test_templates_without_a_place_for_the_name(options, template):
    options["datasets"]["train"]["filename_tmpl"] = template
    assert "datasets.train.filename_tmpl" in fault(options)


def test_dates_are_text(options):
    text = yaml.safe_dump(options).replace(options["name"], "2026-11-25")
    with open("file.yml", "w") as file:
        file.write(text)
    assert read_options("file.yml", is_train=True)["name"] == "2026-11-25"


@pytest.mark.parametrize(
    "text",
    [
        "a: " + "[" * 400 + "]" * 400,
        "[" * 90000,
        "a: &a [*a]",
        "a0: &a0 [x]\n" + "".join(f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]\n" for i in range(9)),
        "a0: &a0 {x: 1}\n" + "".join(f"a{i + 1}: &a{i + 1} {{<<: [{', '.join([f'*a{i}'] * 9)}]}}\n" for i in range(9)),
        "".join(f"k{i}: 0\n" for i in range(60000)),
        "".join(f"k{i}: 0\n" for i in range(9000)),
        "a: " + "x" * 200000,
        "? [a]\n: b",
        '"\\ud800": 1',
    ],
    ids=["deep", "open", "itself", "laughs", "merged laughs", "many keys", "keys", "long", "list as key", "surrogate"],
)
def test_malicious_files_are_refused_quickly_in_one_line(tmp_path, text):
    import time

    path = tmp_path / "file.yml"
    path.write_text(text)
    started = time.process_time()
    with pytest.raises(UserError) as error:
        read_options(path, is_train=True)
    assert time.process_time() - started < 10
    assert max(map(len, str(error.value).splitlines())) < 1500
    assert len(str(error.value).splitlines()) < 25


def test_a_validation_set_without_originals(options):
    val = options["datasets"]["val"]
    options["datasets"]["val"] = {key: val[key] for key in ("name", "dataroot_lq", "io_backend")}
    options["datasets"]["val"]["type"] = "SingleImageDataset"
    assert "datasets.val: " in fault(options)
    del options["val"]["metrics"]
    read(options)  # its pictures can be looked at


def test_a_validation_set_without_a_section_on_validation(options):
    del options["val"]
    assert "val: " in fault(options)
    del options["datasets"]["val"]
    read(options)


@pytest.mark.parametrize("model", ["SRModel", "DLGSANetModel"])
@pytest.mark.parametrize("values", [{"lr": -1.0}, {"betas": [2, 3]}])
def test_values_of_the_optimizer_for_every_model(options, model, values):
    options["model_type"] = model
    for name in ("ema_warmup", "grad_clip"):
        options["train"].pop(name, None)
    options["train"]["optim_g"] |= values
    assert "train.optim_g" in fault(options)


@pytest.mark.parametrize(("network", "name"), [("DLGSANet", "upscale"), ("SwinIR", "upscale"), ("RRDBNet", "scale")])
def test_enlargement_of_the_network_and_of_the_data(options, network, name):
    """Also where the option file leaves it to the network's default."""
    default = 2 if network == "SwinIR" else 4
    options["scale"] = default + 1
    options["network_g"] = (
        {"type": network, "upsampler": "pixelshuffle"}
        if name == "upscale"
        else {"type": network} | ({"num_in_ch": 3, "num_out_ch": 3} if network == "RRDBNet" else {})
    )
    options["datasets"]["train"]["gt_size"] = 12 * options["scale"]
    assert f"network_g.{name}: is {default} " in fault(options)


def test_channels_of_network_and_images(options):
    options["network_g"]["in_chans"] = 1
    with pytest.raises(UserError, match=r"datasets\.train: "):
        read(options)
    for data_set in options["datasets"].values():
        data_set["color"] = "y"
    read(options)
    options["network_g"]["in_chans"] = 3
    with pytest.raises(UserError, match=r"datasets\.val: "):
        read(options)


@pytest.mark.parametrize("options", ["test"], indirect=True)
def test_channels_of_network_and_test_images(options):
    options["path"]["pretrain_network_g"] = None
    options["network_g"]["in_chans"] = 1
    with pytest.raises(UserError, match=r"datasets\.test_\d.*network_g\.in_chans.*color: y"):
        read(options, is_train=False)
