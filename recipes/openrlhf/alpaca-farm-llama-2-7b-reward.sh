#!/usr/bin/env bash
# bash recipes/openrlhf/alpaca-farm-llama-2-7b-reward.sh [FLAGS]
# The paper's reward model for dialogue, with the length ratio.
run=runs/openrlhf/alpaca-farm-llama-2-7b-reward
data=runs/data/alpaca-farm/preferences # written by recipes/prepare/alpaca_farm.py
exec deepspeed --module pcrm.openrlhf train_rm \
    --model.model_name_or_path runs/alpaca-farm-llama-2-7b-sft \
    --data.dataset "$data" --eval.dataset "$data" --eval.split test --data.prompt_key prompt --data.max_len 512 \
    --pcrm.prior length_ratio --pcrm.preset alpaca/length_ratio \
    --adam.lr 3e-6 --adam.betas 0.9 0.95 --adam.weight_decay 0.1 --lr_scheduler cosine --lr_warmup_ratio 0 \
    --train.max_epochs 1 --train.batch_size 16 --train.micro_batch_size 2 \
    --ds.zero_stage 2 --ds.param_dtype bf16 --ds.packing_samples --model.gradient_checkpointing_enable \
    --ckpt.output_dir "$run" --ckpt.path "$run/checkpoints" "$@"
