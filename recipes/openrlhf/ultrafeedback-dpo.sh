#!/usr/bin/env bash
# bash recipes/openrlhf/ultrafeedback-dpo.sh MODEL [FLAGS]
# For Qwen/Qwen3-8B or meta-llama/Llama-3.1-8B-Instruct.
model=${1:?a model, such as Qwen/Qwen3-8B}
run=runs/openrlhf/ultrafeedback-$(basename "$model")-dpo
data=runs/data/ultrafeedback # with a prior, written by recipes/prepare/ultrafeedback.sh
exec deepspeed --module pcrm.openrlhf train_dpo \
    --model.model_name_or_path "$model" \
    --data.dataset "$data" --eval.dataset "$data" --eval.split test --data.apply_chat_template --data.max_len 2048 \
    --pcrm.config "$data.toml" --model.beta 0.1 \
    --adam.lr 5e-7 --lr_scheduler cosine --lr_warmup_ratio 0.1 \
    --train.max_epochs 1 --train.batch_size 128 --train.micro_batch_size 2 \
    --ds.zero_stage 3 --ds.param_dtype bf16 --ds.packing_samples --model.gradient_checkpointing_enable \
    --ckpt.output_dir "$run" --ckpt.path "$run/checkpoints" "${@:2}"
