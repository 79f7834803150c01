"""A model's configuration: scopes spelled out, kept as JSON, and refused where it makes no model."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from reference import model_of

import docvit
from docvit.model.config import POSITIONS, SCOPES, STEMS, DocViTConfig, parse_scopes
from docvit.model.positions import SCHEMES
from docvit.model.stems import STEM_TYPES


@pytest.mark.parametrize(
    ("scopes", "depth", "expected"),
    [
        ("page", 3, "ppp"),
        ("document", 3, "ddd"),
        ("page-then-document:1", 4, "pppd"),
        ("page-then-document:4", 4, "dddd"),
        ("alternate:1", 3, "ddd"),
        ("alternate:2", 5, "pdpdp"),
        ("alternate:3", 6, "ppdppd"),
        ("alternate:4", 4, "pppd"),
    ],
)
def test_scopes_spelled_out(scopes, depth, expected):
    assert parse_scopes(scopes, depth) == tuple({"p": "page", "d": "document"}[letter] for letter in expected)


@pytest.mark.parametrize(
    "scopes",
    [
        *("", "pages", "page:2", "document:1", "page-then-document", "page-then-document:4", "page-then-document:2:1"),
        *("alternate", "alternate:", "alternate:0", "alternate:4", "alternate:-1", "alternate:x", "alternate:1.5"),
    ],
)
def test_scopes_that_do_not_exist(scopes):
    with pytest.raises(ValueError, match="page-then-document:K"):
        parse_scopes(scopes, 3)


def test_a_configuration_survives_json():
    config = DocViTConfig(grid=(3, 5), classes=("α", "b"), num_classes=2, mean=(0.1, 0.2, 0.3), init_values=None)
    assert DocViTConfig.from_dict(json.loads(json.dumps(config.as_dict()))) == config
    assert DocViTConfig(**config.as_dict()) == config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.depth = 3


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"frobnicate": 1, "widgets": 2}, "frobnicate, widgets"),
        ({"embed_dim": 100, "num_heads": 3}, "num_heads"),
        ({"in_chans": 2}, "in_chans"),
        ({"pooling": "median"}, "mean, max"),
        ({"stem": "resnet"}, "linear, conv"),
        ({"stem": "ink", "patch_size": 32, "mean": [0.5, 0.4, 0.4]}, "one mean and std"),
        ({"scopes": "everything"}, "alternate:K"),
        ({"num_classes": 3, "classes": ["a", "b"]}, "2 class names for 3 classes"),
    ],
)
def test_settings_that_make_no_model(settings, says):
    with pytest.raises(ValueError, match=says):
        DocViTConfig.from_dict(settings)


def test_an_unknown_positional_scheme_makes_no_model():
    with pytest.raises(ValueError, match="'sideways'") as raised:
        model_of(positions="sideways")
    assert all(name in str(raised.value) for name in POSITIONS)


@pytest.mark.parametrize(
    "settings", [{"num_heads": 0}, {"depth": -1}, {"page_embeddings": 0}, {"num_registers": -1}], ids=str
)
def test_settings_below_their_least_are_refused(settings):
    (name,) = settings
    with pytest.raises(ValueError, match=f"{name} must be at least"):
        model_of(**settings)


def test_the_names_are_those_of_what_can_be_built():
    assert tuple(SCHEMES) == POSITIONS
    assert tuple(STEM_TYPES) == STEMS
    for scopes in SCOPES:
        assert len(parse_scopes(scopes.replace("K", "1"), 2)) == 2


def test_names_and_settings_need_no_torch():
    script = (
        "import sys, types\n"
        "package = sys.modules['docvit'] = types.ModuleType('docvit')\n"
        f"package.__path__ = [{str(Path(docvit.__file__).parent)!r}]\n"
        "from docvit.model import config, errors, variants\n"
        "assert config.DocViTConfig(**variants.VARIANTS['docvit_compact_patch32']).rendering.size == 256\n"
        "assert not {'torch', 'timm', 'numpy'} & sys.modules.keys(), sorted(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
