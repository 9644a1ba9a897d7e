"""The shapes of the models that recipes name, so that they can be built without their weights and without a hub.

Each is what the `config.json` of the model says about its size; what it does not say here is the default of its type in
transformers. The number of parameters is that of the published weights, and tests the rest.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from transformers import AutoConfig, PretrainedConfig


class Architecture(NamedTuple):
    """A `model_type` of transformers, its sizes, and how many parameters they make (tied ones once)."""

    kind: str
    sizes: dict[str, Any]
    parameters: int


def _sizes(width: int, layers: int, heads: int, groups: int, inner: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "intermediate_size": inner,
        **more,
    }


_UNTIED = {"tie_word_embeddings": False}
_TIED = {"tie_word_embeddings": True}
_SMOLLM = {"vocab_size": 49152} | _TIED
_LLAMA = {"vocab_size": 128256, "rms_norm_eps": 1e-5, "max_position_embeddings": 131072}
_QWEN3 = {"vocab_size": 151936, "head_dim": 128, "max_position_embeddings": 40960}
_QWEN2 = {"vocab_size": 152064} | _UNTIED
_GEMMA = {"vocab_size": 262144, "head_dim": 256, "sliding_window": 512} | _TIED
_SIGLIP = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 896,
    "patch_size": 14,
    "vision_use_head": False,
}
_MISTRAL = {"sliding_window": None, "head_dim": 128} | _UNTIED
_OLMO = {"vocab_size": 100352, "max_position_embeddings": 4096} | _UNTIED
_GPT_OSS: dict[str, Any] = {
    "head_dim": 64,
    "vocab_size": 201088,
    "num_experts_per_tok": 4,
    "quantization_config": {"quant_method": "mxfp4"},
} | _UNTIED


def _gemma_with_vision(*sizes: int, head: int) -> dict[str, Any]:
    text = _sizes(*sizes, head_dim=head, vocab_size=262208, sliding_window=1024)
    return {"text_config": text, "vision_config": _SIGLIP, "mm_tokens_per_image": 256}


_LLAMA_8B = Architecture("llama", _sizes(4096, 32, 32, 8, 14336, **_LLAMA, **_UNTIED), 8_030_261_248)
_LLAMA_70B = Architecture("llama", _sizes(8192, 80, 64, 8, 28672, **_LLAMA, **_UNTIED), 70_553_706_496)
_LLAMA_405B = Architecture("llama", _sizes(16384, 126, 128, 8, 53248, **_LLAMA, **_UNTIED), 405_853_388_800)
_MISTRAL_7B = Architecture("mistral", _sizes(4096, 32, 32, 8, 14336, vocab_size=32000, **_MISTRAL), 7_241_732_096)

ARCHITECTURES = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": Architecture("llama", _sizes(576, 30, 9, 3, 1536, **_SMOLLM), 134_515_008),
    "HuggingFaceTB/SmolLM2-360M-Instruct": Architecture("llama", _sizes(960, 32, 15, 5, 2560, **_SMOLLM), 361_821_120),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": Architecture(
        "llama", _sizes(2048, 24, 32, 32, 8192, **_SMOLLM), 1_711_376_384
    ),
    "HuggingFaceTB/SmolLM3-3B": Architecture(
        "smollm3", _sizes(2048, 36, 16, 4, 11008, vocab_size=128256, **_TIED), 3_075_098_624
    ),
    "meta-llama/Llama-3.2-1B-Instruct": Architecture(
        "llama", _sizes(2048, 16, 32, 8, 8192, head_dim=64, **_LLAMA, **_TIED), 1_235_814_400
    ),
    "meta-llama/Llama-3.2-3B-Instruct": Architecture(
        "llama", _sizes(3072, 28, 24, 8, 8192, head_dim=128, **_LLAMA, **_TIED), 3_212_749_824
    ),
    "meta-llama/Llama-3.1-8B-Instruct": _LLAMA_8B,
    "meta-llama/Llama-3.1-70B-Instruct": _LLAMA_70B,
    "meta-llama/Llama-3.1-405B-Instruct": _LLAMA_405B,
    "meta-llama/Llama-3.3-70B-Instruct": _LLAMA_70B,
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": _LLAMA_8B,
    "deepseek-ai/DeepSeek-R1-Distill-Llama-70B": _LLAMA_70B,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": Architecture(
        "qwen2", _sizes(1536, 28, 12, 2, 8960, **_QWEN2 | {"vocab_size": 151936}), 1_777_088_000
    ),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": Architecture(
        "qwen2", _sizes(3584, 28, 28, 4, 18944, **_QWEN2), 7_615_616_512
    ),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B": Architecture(
        "qwen2", _sizes(5120, 48, 40, 8, 13824, **_QWEN2), 14_770_033_664
    ),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B": Architecture(
        "qwen2", _sizes(5120, 64, 40, 8, 27648, **_QWEN2), 32_763_876_352
    ),
    "Qwen/Qwen2.5-7B-Instruct": Architecture("qwen2", _sizes(3584, 28, 28, 4, 18944, **_QWEN2), 7_615_616_512),
    "Qwen/Qwen3-0.6B": Architecture("qwen3", _sizes(1024, 28, 16, 8, 3072, **_QWEN3, **_TIED), 596_049_920),
    "Qwen/Qwen3-1.7B": Architecture("qwen3", _sizes(2048, 28, 16, 8, 6144, **_QWEN3, **_TIED), 1_720_574_976),
    "Qwen/Qwen3-4B": Architecture("qwen3", _sizes(2560, 36, 32, 8, 9728, **_QWEN3, **_TIED), 4_022_468_096),
    "Qwen/Qwen3-8B": Architecture("qwen3", _sizes(4096, 36, 32, 8, 12288, **_QWEN3, **_UNTIED), 8_190_735_360),
    "Qwen/Qwen3-14B": Architecture("qwen3", _sizes(5120, 40, 40, 8, 17408, **_QWEN3, **_UNTIED), 14_768_307_200),
    "Qwen/Qwen3-32B": Architecture("qwen3", _sizes(5120, 64, 64, 8, 25600, **_QWEN3, **_UNTIED), 32_762_123_264),
    "Qwen/Qwen3-30B-A3B": Architecture(
        "qwen3_moe",
        _sizes(2048, 48, 32, 4, 6144, num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768)
        | _QWEN3
        | _UNTIED,
        30_532_122_624,
    ),
    "google/gemma-3-270m-it": Architecture("gemma3_text", _sizes(640, 18, 4, 1, 2048, **_GEMMA), 268_098_176),
    "google/gemma-3-1b-it": Architecture("gemma3_text", _sizes(1152, 26, 4, 1, 6912, **_GEMMA), 999_885_952),
    "google/gemma-3-4b-it": Architecture("gemma3", _gemma_with_vision(2560, 34, 8, 4, 10240, head=256), 4_300_079_472),
    "google/gemma-3-12b-it": Architecture(
        "gemma3", _gemma_with_vision(3840, 48, 16, 8, 15360, head=256), 12_187_325_040
    ),
    "google/gemma-3-27b-it": Architecture(
        "gemma3", _gemma_with_vision(5376, 62, 32, 16, 21504, head=128), 27_432_406_640
    ),
    "mistralai/Mistral-7B-v0.1": _MISTRAL_7B,
    "alignment-handbook/zephyr-7b-sft-full": _MISTRAL_7B,
    "mistralai/Mistral-7B-Instruct-v0.3": Architecture(
        "mistral", _sizes(4096, 32, 32, 8, 14336, vocab_size=32768, **_MISTRAL), 7_248_023_552
    ),
    "mistralai/Mistral-Nemo-Instruct-2407": Architecture(
        "mistral", _sizes(5120, 40, 32, 8, 14336, vocab_size=131072, **_MISTRAL), 12_247_782_400
    ),
    "mistralai/Mistral-Small-24B-Instruct-2501": Architecture(
        "mistral", _sizes(5120, 40, 32, 8, 32768, vocab_size=131072, **_MISTRAL), 23_572_403_200
    ),
    "microsoft/phi-4": Architecture(
        "phi3", _sizes(5120, 40, 40, 10, 17920, vocab_size=100352, **_UNTIED), 14_659_507_200
    ),
    "microsoft/Phi-4-mini-instruct": Architecture(
        "phi3", _sizes(3072, 32, 24, 8, 8192, vocab_size=200064, partial_rotary_factor=0.75, **_TIED), 3_836_021_760
    ),
    "allenai/OLMo-2-0425-1B-Instruct": Architecture("olmo2", _sizes(2048, 16, 16, 16, 8192, **_OLMO), 1_484_916_736),
    "allenai/OLMo-2-1124-7B-Instruct": Architecture("olmo2", _sizes(4096, 32, 32, 32, 11008, **_OLMO), 7_298_617_344),
    "allenai/OLMo-2-1124-13B-Instruct": Architecture("olmo2", _sizes(5120, 40, 40, 40, 13824, **_OLMO), 13_716_198_400),
    "allenai/Olmo-3-7B-Instruct": Architecture(
        "olmo3", _sizes(4096, 32, 32, 32, 11008, **_OLMO | {"vocab_size": 100278}), 7_298_011_136
    ),
    "openai/gpt-oss-20b": Architecture(
        "gpt_oss", _sizes(2880, 24, 64, 8, 2880, num_local_experts=32, **_GPT_OSS), 20_914_757_184
    ),
    "openai/gpt-oss-120b": Architecture(
        "gpt_oss", _sizes(2880, 36, 64, 8, 2880, num_local_experts=128, **_GPT_OSS), 116_829_156_672
    ),
    "openai-community/gpt2": Architecture("gpt2", {}, 124_439_808),
}
"""Name on the hub -> architecture."""


def config_of(name: str) -> PretrainedConfig:
    """Return what the `config.json` of a model says."""
    architecture = ARCHITECTURES[name]
    return AutoConfig.for_model(architecture.kind, **architecture.sizes)
