"""The YAML section `model`: which model, how it is loaded, and what of it trains."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from msgspec import Meta

from oumi_kernel.schema import Params, PositiveInt

DtypeName = Annotated[
    str,
    Meta(
        pattern=r"^(?i:auto|f64|float64|double|f32|float32|float|bf16|bfloat16|f16|float16|half|uint8)$",
        examples=["float32", "bfloat16", "float16", "auto"],
    ),
]
"""A number format: float32, bfloat16, float16, float64 and their short names, or auto."""


class ModelParams(Params):
    """The model: its name, precision, tokenizer and chat template."""

    model_name: Annotated[str, Meta(min_length=1)]
    """Hub id, or path of a folder. `./name` is read beside the configuration file. Required."""

    adapter_model: str | None = None
    """Hub id or path of a trained adapter to start from. Null: none, unless `model_name` is an adapter itself."""

    tokenizer_name: str | None = None
    """Hub id or path of the tokenizer. Null: the model's own."""

    tokenizer_pad_token: str | None = None
    """The padding token, added to the vocabulary if it is not there. Null: the tokenizer's own."""

    tokenizer_kwargs: dict[str, Any] = {}
    """Further arguments for the tokenizer. A name that the tokenizer does not know is an error."""

    processor_kwargs: dict[str, Any] = {}
    """Arguments for the processor of a vision-language model. Must not repeat a key of this section."""

    model_max_length: PositiveInt | None = None
    """Longest sequence, in tokens; longer ones are cut. Null: the tokenizer's own limit."""

    load_pretrained_weights: bool = True
    """Whether to load trained weights. False starts from random ones of the same architecture."""

    trust_remote_code: bool = False
    """Whether code from the model's repository may run on this machine. Only for models that you trust."""

    torch_dtype_str: DtypeName = "float32"
    """The number format of the weights: float32, bfloat16, float16, float64, or auto (as they were saved)."""

    compile: bool = False
    """Not for training: use `training.compile`."""

    chat_template: str | None = None
    """How a conversation becomes text: the name of a shipped template, a path of a .jinja file, or auto (the
    tokenizer's own, as for null)."""

    chat_template_kwargs: dict[str, Any] | None = None
    """Further variables for the chat template, such as enable_thinking. One that it never reads is an error."""

    attn_implementation: str | None = None
    """How attention is computed: sdpa, eager, flash_attention_2, flex_attention, a kernel from the hub, or a name that
    a plugin registers. Null: the model's choice."""

    device_map: str | None = "auto"
    """Where weights are placed: auto or null leave it to the strategy."""

    model_kwargs: dict[str, Any] = {}
    """Changes to the model's own configuration, such as rope_scaling. A name that it does not know is an error."""

    enable_liger_kernel: bool = False
    """Whether to put Liger's fused kernels into the model. Needs a GPU and the extra `liger`."""

    kernel_kwargs: dict[str, Any] = {}
    """Parameters of the kernel that `enable_liger_kernel` switches on."""

    kernels: dict[str, dict[str, Any]] = {}
    """Further kernels to put into the model, by name, each with its parameters: `{my_kernel: {}}`."""

    shard_for_eval: bool = False
    """Whether evaluation harnesses may spread the model over devices. Training does not use it."""

    freeze_layers: list[str] = []
    """Modules that do not train, by dotted name or a part of it. Each must match something."""

    model_revision: str | None = None
    """Branch, tag or commit of the model on the hub. Null: its main branch."""

    tool_call_parser: str | None = None
    """The parser of tool calls that an inference engine uses. Training does not use it."""

    def check(self) -> Iterator[tuple[str, str]]:
        """Refuse processor arguments that repeat a key of this section, and a kernel that is named twice."""
        taken = sorted(set(self.processor_kwargs) & set(self.__struct_fields__))
        if taken:
            yield "processor_kwargs", f"repeats keys of `model`: {', '.join(taken)}; set them there."
        for name in self.kernels:
            if getattr(self, f"enable_{name}_kernel", False):
                yield f"kernels.{name}", f"enable_{name}_kernel names this kernel too; keep one of the two."
