"""A stranger's kernels: the same hooks as Liger's, an attention of their own among them."""

from __future__ import annotations

from typing import Any

import pytest

from oumi_kernel import ConfigError
from tests.conftest import Install
from tests.trainers.conftest import Train, train  # noqa: F401 - a fixture

PLUGIN = '''
from typing import Any

from oumi_kernel import Component, Params, hookimpl
from oumi_kernel.schema import PositiveFloat


class QuickParams(Params):
    scale: PositiveFloat = 1.0
    """By what the output of each feed-forward layer is multiplied."""


class Quick(Component):
    """Registers attentions before the model is built, and scales its feed-forward layers after."""

    params_type = QuickParams
    seen = []

    @hookimpl
    def oumi_before_model(self, run: Any) -> None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        def quick(module, query, key, value, mask, **options):
            self.seen.append(options.get("cu_seq_lens_q"))
            return sdpa_attention_forward(module, query, key, value, mask, **options)

        def ahead(module, query, key, value, mask, **options):
            return sdpa_attention_forward(module, query, key, value, mask, **options | {"is_causal": False})

        def fails(module, query, key, value, mask, **options):
            raise RuntimeError("quick attention needs a newer device")

        ALL_ATTENTION_FUNCTIONS.register("quick", quick)
        ALL_MASK_ATTENTION_FUNCTIONS.register("quick", sdpa_mask)
        ALL_ATTENTION_FUNCTIONS.register("quick_leaking", quick)
        ALL_ATTENTION_FUNCTIONS.register("quick_ahead", ahead)
        ALL_ATTENTION_FUNCTIONS.register("quick_fails", fails)

    @hookimpl
    def oumi_apply_kernel(self, params: QuickParams, model: Any, run: Any) -> None:
        for layer in model.model.layers:
            layer.mlp.register_forward_hook(lambda module, inputs, output: output * params.scale)
'''
ON = "--model.kernels.quick={}"


@pytest.fixture(autouse=True)
def quick(install: Install) -> None:
    install("oumi-quick", "1.0", {"oumi.kernels": {"quick": "quick_kernel:Quick"}}, quick_kernel=PLUGIN)


def test_a_kernel_is_switched_on_by_its_name_and_given_its_parameters(train: Train) -> None:  # noqa: F811
    plain, same = train(name="plain"), train(ON, name="same")
    scaled = train("--model.kernels.quick={scale: 2}", name="scaled")
    assert same.figures("loss") == plain.figures("loss")
    assert scaled.figures("loss") != plain.figures("loss")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--model.kernels.quick={scael: 2}",), "model.kernels.quick.scael: unknown key 'scael'"),
        (("--model.kernels.quick={scale: 0}",), "model.kernels.quick.scale"),
        (("--model.kernels.quik={}",), "model.kernels.quik: no kernel is named 'quik'. did you mean 'quick'"),
        (("--model.kernels.liger={}", "--model.enable_liger_kernel=true"), "model.kernels.liger: .*keep one"),
    ],
)
def test_a_mistake_in_its_name_or_parameters_is_found_when_the_config_is_read(
    train: Train,  # noqa: F811
    flags: tuple[str, ...],
    message: str,
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(*flags)


def test_an_attention_that_a_kernel_registers_gets_flat_batches_and_their_borders(
    train: Train,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    import quick_kernel  # type: ignore[import-not-found]

    plain = train("--model.attn_implementation=sdpa", name="plain")
    quick_kernel.Quick.seen.clear()
    caplog.clear()
    found = train(ON, "--model.attn_implementation=quick", name="quick")
    assert "batches are padded" not in caplog.text
    assert found.figures("loss") == pytest.approx(plain.figures("loss"), rel=1e-5)
    bounds = quick_kernel.Quick.seen[-1].tolist()
    assert bounds[0] == 0
    assert len(bounds) == 9  # eight sequences


def test_an_attention_that_does_not_keep_sequences_apart_gets_padded_batches_and_no_packs(
    train: Train,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    plain = train("--model.attn_implementation=sdpa", name="plain")
    found = train(ON, "--model.attn_implementation=quick_leaking", name="leaking")
    assert "batches are padded: sequences laid end to end are not kept apart" in caplog.text
    assert found.figures("loss") == pytest.approx(plain.figures("loss"), rel=1e-5)
    packed = ("--data.train.pack=true", "--data.train.stream=true")
    with pytest.raises(ConfigError, match=r"data.train.pack: this model cannot keep packed examples apart"):
        train(ON, "--model.attn_implementation=quick_leaking", *packed)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("quick_ahead", "model.attn_implementation: with 'quick_ahead' a token reads those after it"),
        ("quick_fails", "model.attn_implementation: the model cannot compute by 'quick_fails'.*a newer device"),
        ("qiuck", "model.attn_implementation: .*Did you mean 'quick'"),
    ],
)
def test_an_attention_that_cannot_be_trained_with_is_refused(train: Train, name: str, message: str) -> None:  # noqa: F811
    with pytest.raises(ConfigError, match=message):
        train(ON, f"--model.attn_implementation={name}")


def test_kernels_are_asked_before_data_is_prepared(install: Install, train: Train) -> None:  # noqa: F811
    module = '''
from oumi_kernel import Component, ConfigError, Problem, hookimpl


class Fussy(Component):
    """Runs nowhere."""

    @hookimpl
    def oumi_before_model(self) -> None:
        raise ConfigError(Problem(code="not-served", path="model.kernels.fussy", message="not on this machine."))
'''
    with pytest.raises(ConfigError, match="no kernel is named 'fussy'"):
        train("--model.kernels.fussy={}")
    install("oumi-fussy", "1.0", {"oumi.kernels": {"fussy": "fussy_kernel:Fussy"}}, fussy_kernel=module)
    missing: Any = "--data.train.datasets[0].dataset_path=./nowhere.jsonl"
    with pytest.raises(ConfigError, match=r"model\.kernels\.fussy: not on this machine"):
        train("--model.kernels.fussy={}", missing)
