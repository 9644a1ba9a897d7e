"""Names that the YAML language knows, so that a component that is not installed is told apart from a typing error."""

from __future__ import annotations

VOCABULARY: dict[str, frozenset[str]] = {
    "trainers": frozenset(
        "sft dpo kto grpo gkd gold trl_sft trl_dpo trl_kto trl_grpo trl_gkd trl_gold hf oumi verl_grpo".split()
    ),
    "optimizers": frozenset(
        (
            "adam adamw adamw_torch adamw_torch_fused sgd adafactor adamw_8bit paged_adamw_8bit paged_adamw "
            "paged_adamw_32bit adamw_torch_xla adamw_torch_npu_fused adamw_apex_fused adamw_anyprecision "
            "adamw_torch_4bit adamw_torch_8bit ademamix adagrad adamw_bnb_8bit ademamix_8bit lion_8bit lion_32bit "
            "paged_ademamix_32bit paged_ademamix_8bit paged_lion_32bit paged_lion_8bit rmsprop rmsprop_bnb "
            "rmsprop_bnb_8bit rmsprop_bnb_32bit galore_adamw galore_adamw_8bit galore_adafactor "
            "galore_adamw_layerwise galore_adamw_8bit_layerwise galore_adafactor_layerwise lomo adalomo grokadamw "
            "schedule_free_radam schedule_free_adamw schedule_free_sgd apollo_adamw apollo_adamw_layerwise stable_adamw"
        ).split()
    ),
    "schedulers": frozenset(
        (
            "linear cosine cosine_with_restarts polynomial constant constant_with_warmup inverse_sqrt "
            "reduce_lr_on_plateau cosine_with_min_lr cosine_warmup_with_min_lr warmup_stable_decay greedy"
        ).split()
    ),
    "collators": frozenset(
        (
            "text_with_padding text_completions_only_with_padding vision_language_with_padding vision_language_sft"
        ).split()
    ),
    "datasets": frozenset(
        (
            "text_sft text_sft_jsonl huggingfacedataset promptresponsedataset hf_vision vl_sft vision_language_jsonl "
            "vision_dpo_jsonl debug_sft debug_pretraining debug_dpo debug_kto debug_classfication coco_captions "
            "mnist_sft rar_medicine rar_science allenai/pixmo-ask-model-anything allenai/pixmo-cap "
            "allenai/pixmo-cap-qa hiyouga/geometry3k HuggingFaceH4/llava-instruct-mix-vsft HuggingFaceM4/Docmatix "
            "HuggingFaceM4/the_cauldron lmms-lab/multimodal-open-r1-8k-verified merve/vqav2-small nlphuji/flickr30k "
            "openbmb/RLAIF-V-Dataset mlabonne/orpo-dpo-mix-40k trl-lib/kto-mix-14k openai/gsm8k d1shs0ap/countdown "
            "oumi-ai/oumi-letter-count oumi-ai/oumi-letter-count-clean oumi-ai/berrybench-v0.1.1 trl-lib/tldr"
        ).split()
    ),
    "peft": frozenset("lora ia3 vera oft boft adalora loha lokr prompt_tuning".split()),
    "strategies": frozenset({"single", "ddp", "fsdp", "deepspeed", "distributed"}),
    "kernels": frozenset({"liger"}),
    "trackers": frozenset({"wandb", "mlflow", "tensorboard"}),
}
