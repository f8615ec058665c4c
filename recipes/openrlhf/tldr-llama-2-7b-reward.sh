#!/usr/bin/env bash
# bash recipes/openrlhf/tldr-llama-2-7b-reward.sh [FLAGS]
# The paper's reward model for summaries, with the length ratio. OpenRLHF evaluates it on 1% of the training pairs, about 900.
run=runs/openrlhf/tldr-llama-2-7b-reward
exec deepspeed --module pcrm.openrlhf train_rm \
    --model.model_name_or_path runs/tldr-llama-2-7b-sft \
    --data.dataset trl-lib/tldr-preference --data.prompt_key prompt --data.max_len 1024 \
    --pcrm.prior length_ratio --pcrm.preset tldr/length_ratio \
    --adam.lr 1e-6 --adam.betas 0.9 0.95 --adam.weight_decay 0.1 --lr_scheduler cosine --lr_warmup_ratio 0 \
    --train.max_epochs 1 --train.batch_size 64 --train.micro_batch_size 8 \
    --ds.zero_stage 2 --ds.param_dtype bf16 --ds.packing_samples --model.gradient_checkpointing_enable \
    --ckpt.output_dir "$run" --ckpt.path "$run/checkpoints" "$@"
