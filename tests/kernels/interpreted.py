"""Liger's kernels on a CPU: run by Triton's interpreter, in a process of its own, against the model without them.

    TRITON_INTERPRET=1 python -m tests.kernels.interpreted OUT.json FAMILY ...

The interpreter lacks three things that these kernels need; they are mended here, the kernels themselves are Liger's:
it hands numbers over as Python's own where compiled kernels get float32, and it has neither CUDA's rsqrt nor its tanh.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import liger_kernel.ops.geglu
import liger_kernel.ops.rms_norm
import numpy as np
import torch
import transformers
import triton
import triton.language as tl
from triton.runtime import interpreter

from oumi_kernel.contracts import Run
from oumi_kernel.loading import load_text
from oumi_plugins.kernels._liger import put_into
from oumi_plugins.kernels.liger import LigerParams
from oumi_plugins.trainers._forward import Forward
from tests.conftest import minimal_yaml
from tests.trainers.test_forward import SHAPE, alone, gradients, padded_batch, sequences

LENGTHS = (5, 1, 3)
MOE = {"num_experts_per_tok": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "mistral": ("Mistral", {"sliding_window": 6}),
    "ministral": ("Ministral", {"sliding_window": 6}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {}),
    "gemma": ("Gemma", {}),
    "gemma2": ("Gemma2", {"sliding_window": 6, "query_pre_attn_scalar": 8}),
    "gemma3": ("Gemma3Text", {"sliding_window": 6, "query_pre_attn_scalar": 8}),
    "phi3": ("Phi3", {"sliding_window": 6}),
    "olmo2": ("Olmo2", {}),
    "olmo3": ("Olmo3", {"sliding_window": 6}),
    "smollm3": ("SmolLM3", {}),
    "granite": ("Granite", {"logits_scaling": 3.0, "attention_multiplier": 0.2}),
    "exaone4": ("Exaone4", {"sliding_window": 6}),
    "glm4": ("Glm4", {}),
    "hunyuan": ("HunYuanDenseV1", {}),
    "mixtral": ("Mixtral", MOE | {"num_local_experts": 4}),
    "gpt_oss": ("GptOss", MOE | {"num_local_experts": 4, "sliding_window": 6}),
}
WITHOUT = {"mixtral": {"swiglu": False}}
"""Experts are one grouped product, which the interpreter does not run at all."""


def mend() -> None:
    convert = interpreter._implicit_cvt

    def with_floats(value: Any) -> Any:
        if not isinstance(value, float):
            return convert(value)
        return tl.tensor(interpreter.TensorHandle(np.array([value], dtype=np.float32), tl.float32), tl.float32)

    @triton.jit
    def rsqrt(x):
        return 1.0 / tl.sqrt(x)

    @triton.jit
    def tanh(x):
        return 2.0 * tl.sigmoid(2.0 * x) - 1.0

    interpreter._implicit_cvt = with_floats
    liger_kernel.ops.rms_norm.rsqrt = rsqrt
    liger_kernel.ops.geglu.tanh = tanh


def launched() -> set[str]:
    """Return a set that fills with the names of the kernels that run."""
    names: set[str] = set()
    run = interpreter.GridExecutor.__call__

    def noted(self: Any, *args: Any, **kwargs: Any) -> None:
        names.add(self.fn.__name__)
        run(self, *args, **kwargs)

    interpreter.GridExecutor.__call__ = noted
    return names


def built(name: str) -> Any:
    family, settings = FAMILIES[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**(SHAPE | {"num_hidden_layers": 1} | settings))
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():  # norms that are not all ones, weights that matter
            parameter.mul_(3) if parameter.dim() > 1 else parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.train()


def compared(name: str, run: Run, kernels: set[str]) -> dict[str, Any]:
    rows = sequences(LENGTHS)
    plain = built(name)
    expected = torch.cat(alone(plain, rows))
    expected.sum().backward()
    wanted = gradients(plain)
    modeling = vars(sys.modules[type(plain).__module__])
    before = dict(modeling)
    model = built(name)
    put_into(model, LigerParams(**WITHOUT.get(name, {})), run)
    kernels.clear()
    forward = Forward(model, ignore=-100)
    forward.choose(None, nullcontext)
    batch, _ = forward.supervise(padded_batch(rows))
    loss = forward.loss(batch)
    loss.backward()
    found = gradients(model)
    used = sorted(kernels)
    kernels.clear()
    again = torch.cat(alone(built(name), rows))
    return {
        "is_flat": forward.is_flat,
        "has_head": forward._head is not None,
        "loss_difference": float((loss - expected.sum()).detach().abs() / expected.sum().detach()),
        "gradient_difference": max(
            float((found[key] - wanted[key]).abs().max() / (wanted[key].abs().max() + 1e-6)) for key in wanted
        ),
        "gradients": len(found) - len(wanted),
        "kernels": used,
        "changed_in_transformers": [key for key, value in before.items() if modeling[key] is not value],
        "other_model_is_equal": torch.equal(again, expected) and not kernels,
    }


def main() -> None:
    assert os.environ.get("TRITON_INTERPRET") == "1"
    mend()
    kernels = launched()
    loaded = load_text(minimal_yaml(model="  enable_liger_kernel: true\n"), "test.yaml")
    run = Run(config=loaded.config, folder=Path())
    Path(sys.argv[1]).write_text(json.dumps({name: compared(name, run, kernels) for name in sys.argv[2:]}))


if __name__ == "__main__":
    main()
