"""`pcrm compare`: plain, plain with a temperature, and constrained reward models on the user's own pairs.

`pairs.py` reads the pairs and splits them by prompt, `training.py` trains a model into a folder once, `table.py` says
what came out, and `run.py` puts them together. `pcrm demo` shares the training.
"""
