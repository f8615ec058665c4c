"""Stands for torchaudio, which LLaMA-Factory imports at once and uses for audio alone: its wheels are built for one CUDA version."""
