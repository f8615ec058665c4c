#!/usr/bin/env bash
# bash recipes/openrlhf/alpaca-farm-llama-2-7b-ppo.sh [FLAGS]
# The paper's PPO on the reward model of alpaca-farm-llama-2-7b-reward.sh, with stock OpenRLHF, Ray and vLLM.
# PPO does not use the constraint. All five models share 8 GPUs.
run=runs/openrlhf/alpaca-farm-llama-2-7b-ppo
exec python -m openrlhf.cli.train_ppo_ray \
    --actor.model_name_or_path runs/alpaca-farm-llama-2-7b-sft \
    --reward.model_name_or_path runs/openrlhf/alpaca-farm-llama-2-7b-reward \
    --data.prompt_dataset runs/data/alpaca-farm/prompts --data.input_key prompt --data.max_len 640 --rollout.max_new_tokens 384 \
    --actor.adam.lr 1e-5 --critic.adam.lr 5e-6 --actor.adam.weight_decay 0.1 --critic.adam.weight_decay 0.1 \
    --actor.lr_scheduler cosine --critic.lr_scheduler cosine \
    --algo.kl.init_coef 0.1 --algo.advantage.gamma 1 --algo.advantage.lambd 0.95 \
    --actor.eps_clip 0.2 --critic.value_clip 0.2 --reward.clip_range -5 5 \
    --train.num_episodes 1 --train.max_epochs 1 --rollout.batch_size 128 --train.batch_size 128 \
    --rollout.micro_batch_size 4 --train.micro_batch_size 4 \
    --train.colocate_all --vllm.num_engines 4 --vllm.tensor_parallel_size 2 --vllm.gpu_memory_utilization 0.5 \
    --vllm.enable_sleep --ds.enable_sleep \
    --ds.zero_stage 3 --ds.param_dtype bf16 --ds.packing_samples --actor.gradient_checkpointing_enable \
    --ckpt.output_dir "$run" --ckpt.path "$run/checkpoints" "$@"
