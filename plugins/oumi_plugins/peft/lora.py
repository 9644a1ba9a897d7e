"""LoRA, and what the library builds on it: DoRA, rsLoRA."""

from __future__ import annotations

from oumi_plugins.peft._method import SECTION, Method, parameters, unserved

ELSEWHERE = (
    "megatron_config megatron_core corda_config lora_ga_config alora_invocation_tokens use_qalora qalora_group_size "
    "monteclora_config arrow_config kasa_config runtime_config"
).split()
"""Fields of variants that need another trainer, other weights, or what no key gives them."""


class Lora(Method):
    """Low-rank adaptation (arXiv 2106.09685): matrices of rank `lora_r` beside the frozen ones of the model.

    `use_dora` gives each adapted matrix a magnitude of its own (arXiv 2402.09353), `use_rslora` divides the scale by
    the root of the rank (arXiv 2312.03732).
    """

    config_class = "LoraConfig"
    keys = tuple(SECTION)
    params_type = parameters("peft.tuners.lora.config", config_class, keys, without=ELSEWHERE)
    unserved = unserved(keys, "LoRA")
